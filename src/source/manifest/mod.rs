//! `manifest:FILE-or-URL`: a list of files with their places, lengths and checksums becomes a tree.
//!
//! The manifest is JSON lines, read once into an index in a temporary file, and again when it changes. Bytes come from where the lines
//! say: from servers as an HTTP source reads them, or from files of this machine. Where a line tells length and version, nobody is asked for
//! attributes.

mod index;
pub mod line;
mod load;
mod places;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use url::Url;

use self::index::{Found, Index, Numbered};
use self::line::{FileLine, Line, What};
use self::load::{Loaded, load};
use self::places::{Place, Places};
use super::http::{self, HttpOptions, HttpSource};
use super::kinds::{Remote, SourceKind};
use super::local::{LocalOptions, LocalSource};
use super::options::{OptionSpec, Takes};
use super::{ByteStream, Entry, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use crate::core::flight::{Boarded, Flight};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::core::secret::Secret;
use crate::core::table::Table;
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicU64, Ordering};

/// `manifest:`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["manifest"],
    example: "manifest:FILE-or-URL",
    options: &[http::CA, ALLOW_ORIGIN],
    display_name: |remote| Text::of(&remote.url).map(|text| text.display_name),
    open: |remote| {
        Box::pin(async { Ok(Arc::new(ManifestSource::of(remote).await?) as Arc<dyn Source>) })
    },
};

/// `-S allow-origin=ORIGIN,…`, and `--allow-origin`.
pub const ALLOW_ORIGIN: OptionSpec = OptionSpec {
    name: "allow-origin",
    takes: Takes::Text,
    help: "origins besides its own that a manifest may name, as https://host,https://other [default: none]",
};

/// Entries in a batch of a listing.
const BATCH: usize = 1000;
/// How often a local manifest, and one of a server, is looked at for changes.
const LOCAL_REFRESH: Duration = Duration::from_secs(2);
const REMOTE_REFRESH: Duration = Duration::from_secs(60);

/// How a manifest is read.
#[derive(Debug, Clone, Default)]
pub struct ManifestOptions {
    /// Origins besides its own that it may name, separated by commas.
    pub allowed_origins: String,
    /// How often it is looked at for changes; 2 s for a file and 60 s for a URL if `None`.
    pub refresh: Option<Duration>,
    /// How servers are asked.
    pub http: HttpOptions,
}

/// Where a manifest is.
struct Text {
    display_name: String,
    url: Url,
}

impl Text {
    /// Reads `manifest:FILE-or-URL`.
    fn of(spec: &str) -> Result<Self> {
        let invalid = |why: &str| Error::new(Kind::Invalid, "use manifest").because(why);
        let place = spec.split_once(':').map_or("", |(_scheme, place)| place);
        if place.starts_with("http://") || place.starts_with("https://") {
            let display_name = format!("manifest:{}", HttpSource::display_name_of(place)?);
            // It was parsed for its name.
            let url = Url::parse(place).map_err(|_error| invalid("not a usable URL"))?;
            return Ok(Self { display_name, url });
        }
        let path = match Url::parse(place) {
            Ok(url) if url.scheme() == "file" => url
                .to_file_path()
                .map_err(|()| invalid("a file: URL names a path of this machine"))?,
            _ if place.is_empty() => return Err(invalid("it names no file: manifest:FILE-or-URL")),
            _ => std::path::absolute(place).map_err(|error| Error::io("use manifest", error))?,
        };
        let url = Url::from_file_path(&path).map_err(|()| invalid("not a usable path"))?;
        Ok(Self { display_name: format!("manifest:{}", path.display()), url })
    }
}

/// The same manifest from any directory.
///
/// # Errors
/// `Invalid` if it names nothing.
pub fn absolute(spec: &str) -> Result<String> {
    let text = Text::of(spec)?;
    // As it was typed, with what its URL may hold of secrets.
    if text.url.scheme() == "file" { Ok(text.display_name) } else { Ok(spec.to_owned()) }
}

/// A source that a manifest describes.
#[derive(Debug)]
pub struct ManifestSource {
    display_name: String,
    /// The manifest, a source of one file.
    text: Arc<dyn Source>,
    name: RelPath,
    /// Its URL; a name and a password in it are for its own server.
    own: Secret,
    places: Arc<Places>,
    loaded: Arc<ArcSwap<Loaded>>,
    /// Fixed at the start: the mount was promised it.
    traits: Traits,
    options: ManifestOptions,
    refresh: Duration,
    reading: Flight,
    started: Instant,
    /// When the manifest was looked at last, in milliseconds after `started`. Relaxed: it only spares questions.
    looked_at: AtomicU64,
    /// All of this machine.
    files: Arc<LocalSource>,
    /// The servers by their origins.
    servers: Table<String, Arc<HttpSource>>,
}

/// A file as its line has it.
struct Listed {
    number: u64,
    line: Line,
    file: FileLine,
    place: Place,
}

impl ManifestSource {
    async fn of(remote: Remote) -> Result<Self> {
        let read = move || {
            let options = &remote.options;
            let http = HttpOptions { ca: options.path(http::CA.name)?, ..HttpOptions::default() };
            let allowed_origins = options.text(ALLOW_ORIGIN.name)?.unwrap_or_default();
            Ok((remote.url, ManifestOptions { allowed_origins, refresh: None, http }))
        };
        let (url, options) = blocking("use manifest", read).await?;
        Self::open(&url, options).await
    }

    /// Reads the manifest `spec`, `manifest:FILE-or-URL`.
    ///
    /// # Errors
    /// `Invalid` naming the line that makes no sense; what keeps the manifest from being read.
    pub async fn open(spec: &str, options: ManifestOptions) -> Result<Self> {
        let Text { display_name, url } = Text::of(spec)?;
        let files = blocking("open source", || {
            LocalSource::open(Path::new("/"), LocalOptions { cross_mounts: true })
        });
        let files = Arc::new(files.await?);
        let (text, base): (Arc<dyn Source>, Url) = match url.to_file_path() {
            Ok(path) if url.scheme() == "file" => open_file(path).await?,
            _ => {
                let source = HttpSource::open(url.as_str(), options.http.clone()).await?;
                (Arc::new(source), without_user(url.clone()))
            }
        };
        let name = text.single_file().ok_or_else(|| {
            Error::new(Kind::Invalid, "open source")
                .at(&display_name)
                .because("it is a directory, no manifest")
        })?;
        let name = RelPath::root().child(name)?;
        let own = Secret::new(url.as_str());
        let places = Arc::new(Places::new(base, &options.allowed_origins)?);
        let loaded = load(&*text, &name, &places, &temporary(&options)).await;
        let loaded = loaded.map_err(|error| error.at(&display_name))?;
        let is_remote = loaded.index.is_remote;
        let refresh = if text.traits().is_remote { REMOTE_REFRESH } else { LOCAL_REFRESH };
        Ok(Self {
            display_name,
            name,
            own,
            places,
            traits: Traits {
                lists_attributes: loaded.index.is_complete,
                is_remote,
                has_modes: false,
                connections: 32,
                refresh: if is_remote { REMOTE_REFRESH } else { LOCAL_REFRESH },
            },
            loaded: Arc::new(ArcSwap::from_pointee(loaded)),
            refresh: options.refresh.unwrap_or(refresh),
            text,
            options,
            reading: Flight::default(),
            started: Instant::now(),
            looked_at: AtomicU64::new(0),
            files,
            servers: Table::default(),
        })
    }

    /// The index of the manifest as it is now; as it was, where that cannot be found out or somebody does.
    async fn index(&self) -> Arc<Loaded> {
        let now = self.started.elapsed();
        let looked_at = Duration::from_millis(self.looked_at.load(Ordering::Relaxed));
        if now.saturating_sub(looked_at) >= self.refresh
            && let Boarded::Lead(_landing) = self.reading.board()
        {
            let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            self.looked_at.store(millis, Ordering::Relaxed);
            if let Err(error) = self.look_again().await {
                tracing::warn!(source = %self.display_name, %error, "the manifest cannot be read again: it stays as it was");
            }
        }
        self.loaded.load_full()
    }

    async fn look_again(&self) -> Result<()> {
        let version = self.text.stat(&self.name).await?.fingerprint;
        if version == self.loaded.load().version {
            return Ok(());
        }
        let loaded = load(&*self.text, &self.name, &self.places, &temporary(&self.options)).await?;
        tracing::info!(source = %self.display_name, "the manifest has changed");
        self.loaded.store(Arc::new(loaded));
        Ok(())
    }

    async fn look_up<T: Send + 'static>(
        &self,
        op: &'static str,
        path: &RelPath,
        look: impl FnOnce(&Index, &RelPath) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (loaded, path) = (self.index().await, path.clone());
        blocking(op, move || look(&loaded.index, &path).map_err(|error| error.at(path.as_path())))
            .await
    }

    /// The file at `path`.
    async fn file(&self, op: &'static str, path: &RelPath) -> Result<Listed> {
        let missing = || Error::new(Kind::NotFound, op).at(path.as_path());
        match self.look_up(op, path, Index::find).await? {
            Found::Line(found) => self.listed(*found)?.ok_or_else(missing),
            Found::Implied | Found::Nothing => Err(missing()),
        }
    }

    /// What a line says, if it is that of a file.
    fn listed(&self, found: Numbered) -> Result<Option<Listed>> {
        let Numbered { number, line } = found;
        let What::File(file) = &line.what else { return Ok(None) };
        let place = self.places.of(&line.path, file);
        let place = place.map_err(|why| index::at_line(number, why).at(line.path.as_path()))?;
        Ok(Some(Listed { number, file: file.clone(), line, place }))
    }

    /// The server of `url`.
    async fn server(&self, url: &Url) -> Result<Arc<HttpSource>> {
        let origin = url.origin().ascii_serialization();
        if let Some(server) = self.servers.get(&origin) {
            return Ok(server);
        }
        let places =
            Signposts { loaded: Arc::clone(&self.loaded), places: Arc::clone(&self.places) };
        let own = Url::parse(self.own.reveal()).ok().filter(|own| own.origin() == url.origin());
        let mut root = own.unwrap_or_else(|| url.clone());
        root.set_path("/");
        root.set_query(None);
        let server =
            HttpSource::placed(root.as_str(), Arc::new(places), self.options.http.clone()).await?;
        Ok(self.servers.get_or_insert(origin, Arc::new(server)))
    }

    /// What a file is; asks where its line does not tell.
    async fn attributes(&self, listed: &Listed) -> Result<Attributes> {
        let Listed { number, line, file, place } = listed;
        let wrong = |why: &str| index::at_line(*number, why).at(line.path.as_path());
        let asked = match place {
            Place::Web(_) if index::is_complete(line) => return Ok(told_by(line)),
            Place::Web(url) => self.server(url).await?.stat(&line.path).await?,
            Place::Local(path) => self.files.stat(&below_root(path)?).await?,
        };
        if asked.kind != EntryKind::File {
            return Err(wrong("no file is there"));
        }
        if let Some(size) = file.size.filter(|size| *size != asked.size) {
            let why = format!("it says {size} bytes, and there are {}", asked.size);
            return Err(wrong(&why).kinded(Kind::Corrupt));
        }
        Ok(Attributes {
            mode: line.mode.or(asked.mode),
            modified: line.modified.or(asked.modified),
            checksum: file.checksum.clone().or(asked.checksum),
            link_count: 1,
            identity: None,
            ..asked
        })
    }

    /// Bytes of a file whose line tells its version.
    async fn read_known(
        &self,
        server: &HttpSource,
        listed: &Listed,
        range: ByteRange,
    ) -> Result<ByteStream> {
        let Listed { number, line: Line { path, .. }, file, .. } = listed;
        let size = file.size.unwrap_or_default();
        let loaded = self.loaded.load_full();
        let before = loaded.told.get(path);
        let expected = match (&file.etag, &before) {
            (Some(tag), _) => Fingerprint { size, validator: Validator::ETag(tag.clone()) },
            (None, Some(told)) => told.clone(),
            (None, None) => Fingerprint { size, validator: Validator::SizeOnly },
        };
        let read = server.read_and_tell(path, range, &expected).await;
        let stale = || {
            // Whoever reads next may begin with the version that is there now; the checksum decides.
            drop(loaded.told.remove(path));
            index::at_line(*number, "the server has another version than this line tells")
                .kinded(Kind::Stale)
                .at(path.as_path())
        };
        match read {
            Ok((bytes, _)) if file.etag.is_some() || before.is_some() => Ok(bytes),
            Ok((bytes, told)) => {
                let first = loaded.told.get_or_insert(path.clone(), told.clone());
                if first == told { Ok(bytes) } else { Err(stale()) }
            }
            Err(error) if error.kind() == Kind::Stale => Err(stale()),
            Err(error) => Err(error),
        }
    }
}

/// Tells an HTTP source where the files of a manifest are.
#[derive(Debug)]
struct Signposts {
    loaded: Arc<ArcSwap<Loaded>>,
    places: Arc<Places>,
}

impl http::Places for Signposts {
    fn url_of(&self, path: &RelPath) -> Result<Url> {
        let missing = || Error::new(Kind::NotFound, "find").at(path.as_path());
        let Found::Line(found) = self.loaded.load().index.find(path)? else {
            return Err(missing());
        };
        match self.places.check(&found.line) {
            Ok(Some(Place::Web(url))) => Ok(url),
            _ => Err(missing()),
        }
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    op: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.map_err(|lost| Error::new(Kind::Io, op).caused_by(lost))?
}

/// The manifest in a file, and its URL; symlinks on the way are resolved, so that relative places are beside the file itself.
async fn open_file(path: PathBuf) -> Result<(Arc<dyn Source>, Url)> {
    blocking("open source", move || {
        let path =
            path.canonicalize().map_err(|error| Error::io("open manifest", error).at(&path))?;
        let source = LocalSource::open(&path, LocalOptions::default())?;
        let url = Url::from_file_path(&path)
            .map_err(|()| Error::new(Kind::Invalid, "open manifest").at(&path))?;
        Ok((Arc::new(source) as Arc<dyn Source>, url))
    })
    .await
}

/// Relative URLs would inherit them.
fn without_user(mut url: Url) -> Url {
    // Only URLs without a host refuse these, and they have neither.
    let _hostless = url.set_username("").and_then(|()| url.set_password(None));
    url
}

fn temporary(options: &ManifestOptions) -> PathBuf {
    options.http.spool_directory.clone().unwrap_or_else(std::env::temp_dir)
}

fn below_root(path: &Path) -> Result<RelPath> {
    let names = path.components().filter_map(|part| match part {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    });
    names.into_iter().try_fold(RelPath::root(), |at, name: &OsStr| at.child(name))
}

/// What a line tells that needs nobody else.
fn told_by(line: &Line) -> Attributes {
    let (kind, fingerprint) = match &line.what {
        What::Directory => {
            (EntryKind::Directory, Fingerprint { size: 0, validator: Validator::SizeOnly })
        }
        What::Symlink(target) => (
            EntryKind::Symlink,
            Fingerprint { size: target.len() as u64, validator: Validator::SizeOnly },
        ),
        What::File(file) => {
            let validator = match (&file.etag, &file.checksum) {
                (Some(tag), _) => Validator::ETag(tag.clone()),
                (None, Some(checksum)) => Validator::ETag(format!("\"{checksum}\"")),
                (None, None) => Validator::SizeOnly,
            };
            (EntryKind::File, Fingerprint { size: file.size.unwrap_or_default(), validator })
        }
    };
    let checksum = match &line.what {
        What::File(file) => file.checksum.clone(),
        What::Directory | What::Symlink(_) => None,
    };
    Attributes {
        mode: line.mode,
        modified: line.modified,
        link_count: if kind == EntryKind::Directory { 2 } else { 1 },
        checksum,
        ..Attributes::bare(kind, fingerprint)
    }
}

fn implied_directory() -> Attributes {
    told_by(&Line { path: RelPath::root(), what: What::Directory, mode: None, modified: None })
}

#[async_trait]
impl Source for ManifestSource {
    fn display_name(&self) -> &str {
        &self.display_name
    }

    fn traits(&self) -> Traits {
        self.traits
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let lists_attributes = self.traits.lists_attributes;
        self.look_up("list directory", directory, move |index, directory| {
            let mut entries = Vec::new();
            index.children(directory, |name, found| {
                let attributes = match &found {
                    None => Some(implied_directory()),
                    Some(found) if index::is_complete(&found.line) => Some(told_by(&found.line)),
                    Some(_) => None,
                };
                let kind = attributes.as_ref().map_or(EntryKind::File, |known| known.kind);
                let attributes = attributes.filter(|_| lists_attributes);
                entries.push(Entry { name: name.to_owned(), kind, attributes });
                if entries.len() < BATCH {
                    return Ok(true);
                }
                let batch = ListBatch { entries: std::mem::take(&mut entries), refused: 0 };
                Ok(batches.blocking_send(batch).is_ok())
            })?;
            // A receiver that is gone has all it wanted.
            drop(batches.blocking_send(ListBatch { entries, refused: 0 }));
            Ok(())
        })
        .await
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        let found = match self.look_up("stat", path, Index::find).await? {
            Found::Implied => return Ok(implied_directory()),
            Found::Nothing => return Err(Error::new(Kind::NotFound, "stat").at(path.as_path())),
            Found::Line(found) => found,
        };
        let line = found.line.clone();
        match self.listed(*found)? {
            Some(listed) => self.attributes(&listed).await,
            None => Ok(told_by(&line)),
        }
    }

    async fn readlink(&self, path: &RelPath) -> Result<OsString> {
        match self.look_up("read link", path, Index::find).await? {
            Found::Line(found) => match found.line.what {
                What::Symlink(target) => Ok(target),
                _ => Err(Error::new(Kind::Invalid, "read link")
                    .at(path.as_path())
                    .because("not a symbolic link")),
            },
            Found::Implied => Err(Error::new(Kind::Invalid, "read link").at(path.as_path())),
            Found::Nothing => Err(Error::new(Kind::NotFound, "read link").at(path.as_path())),
        }
    }

    async fn data_ranges(
        &self,
        path: &RelPath,
        expected: &Fingerprint,
    ) -> Result<Option<Vec<ByteRange>>> {
        match self.file("find holes", path).await?.place {
            Place::Local(path) => self.files.data_ranges(&below_root(&path)?, expected).await,
            Place::Web(_) => Ok(None),
        }
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        let listed = self.file("read file", path).await?;
        let server = match &listed.place {
            Place::Local(path) => {
                return self.files.read(&below_root(path)?, range, expected).await;
            }
            Place::Web(url) => self.server(url).await?,
        };
        if !index::is_complete(&listed.line) {
            return server.read(path, range, expected).await;
        }
        if told_by(&listed.line).fingerprint != *expected {
            return Err(Error::new(Kind::Stale, "read file")
                .at(path.as_path())
                .because("the manifest names another version now"));
        }
        self.read_known(&server, &listed, range).await
    }
}
