//! Writing a manifest of a source: one line for each entry, in the order of their paths.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use url::Url;

use crate::core::attributes::{Attributes, Checksum, EntryKind, Validator};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::core::retry::RetryPolicy;
use crate::daemon::reach;
use crate::daemon::settings::SourceSpec;
use crate::error::{Error, Kind, Result};
use crate::source::manifest::line::{FileLine, Line, What, url_path};
use crate::source::{Entry, ListBatch, Source};
use crate::store::checksum::Summer;

/// Longest wait for a piece of a file.
const STALL: Duration = Duration::from_secs(30);
/// Files that are read at once, for their checksums.
const READERS: usize = 8;

/// What a manifest is to hold.
#[derive(Debug, Clone)]
pub struct ManifestSettings {
    /// The tree.
    pub source: SourceSpec,
    /// Go into other file systems below a local source.
    pub cross_mounts: bool,
    /// How its lines name the files.
    pub base: Base,
    /// Which checksums they have.
    pub sums: Sums,
}

/// What the URLs of a manifest begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// The source's own.
    Source,
    /// Nothing: the manifest will lie in the root of the tree.
    Relative,
    /// This one.
    Url(Url),
}

/// Which checksums a manifest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// What the source tells; no file is read.
    Told,
    /// SHA-256 of every file, which is read for it.
    Sha256,
    /// BLAKE3 of every file, which is read for it.
    Blake3,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Symbolic links and directories.
    pub others: u64,
    /// Pipes, sockets and devices, and names that cannot be used: no manifest has them.
    pub left_out: u64,
    /// Entries that failed.
    pub failed: u64,
}

/// Writes the manifest to `to`; `complain` gets every entry that cannot be in it. Blocks the caller; makes its own threads.
///
/// # Errors
/// What keeps the source from being opened, a directory from being listed, or `to` from being written.
pub fn write(
    settings: ManifestSettings,
    to: &mut dyn Write,
    complain: &mut dyn FnMut(&Error),
) -> Result<Counts> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start runtime", error))?;
    let done = runtime.block_on(async {
        let source = reach::open(settings.source.clone(), settings.cross_mounts).await?;
        let base = base_url(&settings, &*source)?;
        let writer = Writer { source, base, sums: settings.sums, counts: Counts::default() };
        writer.walk(to, complain).await
    });
    runtime.shutdown_timeout(super::PATIENCE);
    done
}

/// What paths are joined to; `None` = nothing.
fn base_url(settings: &ManifestSettings, source: &dyn Source) -> Result<Option<Url>> {
    let name = source.display_name().to_owned();
    let url = match (&settings.base, &settings.source) {
        (Base::Relative, _) => return Ok(None),
        (Base::Url(url), _) => return Ok(Some(url.clone())),
        (Base::Source, SourceSpec::Local(path)) => {
            let path = path.canonicalize().map_err(|error| Error::io("find", error).at(path))?;
            let root = if source.single_file().is_some() { path.parent() } else { Some(&*path) };
            root.and_then(|root| Url::from_directory_path(root).ok())
        }
        (Base::Source, SourceSpec::Url(_)) => Url::parse(&name)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.query().is_none()),
    };
    let Some(mut url) = url else {
        return Err(Error::new(Kind::NotSupported, "write manifest")
            .at(&name)
            .because("its files have no URLs that a manifest can name")
            .hint("--base URL names where they are, --relative says that the manifest will lie beside them"));
    };
    if source.single_file().is_none() && !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(Some(url))
}

struct Writer {
    source: Arc<dyn Source>,
    base: Option<Url>,
    sums: Sums,
    counts: Counts,
}

impl Writer {
    async fn walk(
        mut self,
        to: &mut dyn Write,
        complain: &mut dyn FnMut(&Error),
    ) -> Result<Counts> {
        let failed = |error| Error::io("write manifest", error);
        let mut directories = vec![RelPath::root()];
        while let Some(directory) = directories.pop() {
            let (entries, refused) = self.list(&directory).await?;
            self.counts.left_out += refused;
            let is_empty = entries.is_empty();
            let mut below = Vec::new();
            {
                let this = &self;
                let mut lines = stream::iter(entries)
                    .map(|(name, entry)| this.look(directory.child(&name), entry))
                    .buffered(READERS);
                let mut counts = Counts::default();
                while let Some(line) = lines.next().await {
                    match line {
                        Ok(None) => counts.left_out += 1,
                        Ok(Some(line)) => {
                            counts.count(&line);
                            if line.what == What::Directory {
                                below.push(line.path.clone());
                            }
                            writeln!(to, "{}", line.to_json()).map_err(failed)?;
                        }
                        Err(error) => {
                            counts.failed += 1;
                            complain(&error);
                        }
                    }
                }
                drop(lines);
                self.counts.add(counts);
            }
            if is_empty && directory.is_root() {
                tracing::info!("the source is empty");
            }
            directories.extend(below.into_iter().rev());
        }
        to.flush().map_err(failed)?;
        Ok(self.counts)
    }

    async fn list(&self, directory: &RelPath) -> Result<(BTreeMap<OsString, Entry>, u64)> {
        with_retries(async || {
            let (sender, mut batches) = mpsc::channel::<ListBatch>(4);
            let collect = async {
                let (mut all, mut refused) = (BTreeMap::new(), 0);
                while let Some(batch) = batches.recv().await {
                    refused += batch.refused;
                    all.extend(batch.entries.into_iter().map(|entry| (entry.name.clone(), entry)));
                }
                (all, refused)
            };
            let (listed, all) = tokio::join!(self.source.list(directory, sender), collect);
            listed.map(|()| all)
        })
        .await
    }

    /// The line of an entry; `None` if no manifest has such.
    async fn look(&self, path: Result<RelPath>, entry: Entry) -> Result<Option<Line>> {
        let path = path?;
        let told = entry.attributes;
        with_retries(async || {
            let mut attributes = match &told {
                Some(attributes) => attributes.clone(),
                None => self.source.stat(&path).await?,
            };
            let what = match attributes.kind {
                EntryKind::Directory => What::Directory,
                EntryKind::Symlink => What::Symlink(self.source.readlink(&path).await?),
                EntryKind::File => match self.file(&path, &attributes).await {
                    // Changed since it was listed.
                    Err(error) if error.kind() == Kind::Stale => {
                        attributes = self.source.stat(&path).await?;
                        What::File(self.file(&path, &attributes).await?)
                    }
                    file => What::File(file?),
                },
                _ => return Ok(None),
            };
            let mode = attributes.mode.filter(|_| attributes.kind != EntryKind::Symlink);
            Ok(Some(Line { path: path.clone(), what, mode, modified: attributes.modified }))
        })
        .await
        .map_err(|error| error.at(path.as_path()))
    }

    async fn file(&self, path: &RelPath, attributes: &Attributes) -> Result<FileLine> {
        let like = match self.sums {
            Sums::Told => None,
            Sums::Sha256 => Some(Checksum::Sha256(Vec::new())),
            Sums::Blake3 => Some(Checksum::Blake3(Vec::new())),
        };
        let checksum = match like {
            None => attributes.checksum.clone(),
            Some(like) => Some(self.sum(path, attributes, &like).await?),
        };
        let url = match &self.base {
            None => format!("./{}", url_path(path)),
            Some(base) => base
                .join(&format!("./{}", url_path(path)))
                .map_err(|error| Error::new(Kind::Invalid, "name file").caused_by(error))?
                .into(),
        };
        let etag = match &attributes.fingerprint.validator {
            Validator::ETag(tag) => Some(tag.clone()),
            _ => None,
        };
        Ok(FileLine { url: Some(url), size: Some(attributes.size), checksum, etag })
    }

    /// The checksum of all bytes of one version.
    async fn sum(
        &self,
        path: &RelPath,
        attributes: &Attributes,
        like: &Checksum,
    ) -> Result<Checksum> {
        let mut summer = Summer::like(like);
        let version = &attributes.fingerprint;
        if version.size > 0 {
            let whole = ByteRange::new(0, version.size);
            let late = |_elapsed| {
                Error::new(Kind::Timeout, "read file")
                    .because(format!("nothing came for {} s", STALL.as_secs()))
            };
            let mut pieces = self.source.read(path, whole, version).await?;
            while let Some(piece) =
                tokio::time::timeout(STALL, pieces.next()).await.map_err(late)?
            {
                summer.update(&piece?);
            }
        }
        Ok(summer.finish())
    }
}

impl Counts {
    fn count(&mut self, line: &Line) {
        match &line.what {
            What::File(file) => {
                self.files += 1;
                self.bytes += file.size.unwrap_or_default();
            }
            What::Directory | What::Symlink(_) => self.others += 1,
        }
    }

    fn add(&mut self, more: Self) {
        self.files += more.files;
        self.bytes += more.bytes;
        self.others += more.others;
        self.left_out += more.left_out;
        self.failed += more.failed;
    }
}

/// Asks again where that may help.
async fn with_retries<T>(mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut tries = RetryPolicy::default().begin();
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match tries.wait_after(&error, crate::engine::jitter()) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}
