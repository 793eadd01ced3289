//! The source; or, while it is away, what an earlier life with it knows: then the tree comes up from the catalog, and the source is used
//! as soon as it is there again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::core::path::RelPath;
use crate::core::retry::RetryPolicy;
use crate::daemon::settings::SourceSpec;
use crate::error::{Error, Kind, Result};
use crate::source::local::{LocalOptions, LocalSource};
use crate::source::reconnecting::{Appearance, Reconnecting};
use crate::source::{Source, Traits};
use crate::store::catalog::SourceShape;
use crate::store::{Catalog, Destination, RESERVED_NAMES};

/// How long the source of a copy that was begun before may take at the start.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a file system has in an empty root.
const OF_EMPTY_FILE_SYSTEMS: &str = "lost+found";

/// Where the source is and how it is read.
#[derive(Debug, Clone)]
pub(super) struct Way {
    spec: SourceSpec,
    cross_mounts: bool,
    /// A snapshot of the source, which is read instead of it.
    read_from: Option<PathBuf>,
}

/// The source as it can be used now.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) source: Arc<dyn Source>,
    /// Why it is away, if it is.
    pub(super) away: Option<Error>,
}

/// Whether a copy was begun in `destination` before.
pub(super) fn is_begun(destination: &Path) -> bool {
    Destination::is_known(destination)
}

impl Way {
    pub(super) fn new(spec: &SourceSpec, cross_mounts: bool) -> Self {
        Self { spec: spec.clone(), cross_mounts, read_from: None }
    }

    /// The same source, read from a snapshot of it.
    pub(super) fn reading_from(self, read_from: Option<&Path>) -> Self {
        Self { read_from: read_from.map(Path::to_owned), ..self }
    }

    async fn open_now(&self) -> Result<Arc<dyn Source>> {
        let Some(path) = self.read_from.clone() else {
            return patient(|| open(self.spec.clone(), self.cross_mounts)).await;
        };
        let (name, options) =
            (display_name(&self.spec)?, LocalOptions { cross_mounts: self.cross_mounts });
        let open = move || Ok(LocalSource::open(&path, options)?.shown_as(name));
        Ok(Arc::new(crate::engine::on_disk("open source", open).await?))
    }

    /// Opens the source, which is asked for nothing that could be waited for without an end if the copy `is_begun`.
    pub(super) async fn open(&self, is_begun: bool) -> Result<Arc<dyn Source>> {
        let opened = async {
            let source = self.open_now().await?;
            check_reserved_names(&*source).await?;
            Ok(source)
        };
        if !is_begun {
            return opened.await;
        }
        tokio::time::timeout(PATIENCE, opened).await.unwrap_or_else(|late| {
            Err(Error::new(Kind::Unreachable, "open source")
                .because(format!("no answer within {PATIENCE:?}"))
                .caused_by(late))
        })
    }

    /// What `opened` is good for, beside what the catalog knows.
    ///
    /// # Errors
    /// Why it did not open, if the catalog does not know it well enough to do without.
    pub(super) async fn reach(
        &self,
        opened: Result<Arc<dyn Source>>,
        catalog: &Catalog,
    ) -> Result<Reached> {
        let display_name = display_name(&self.spec)?;
        let is_known = catalog.job()?.is_some_and(|job| job.source == display_name);
        let had_names = is_known && catalog.has_names(crate::engine::ROOT_INO)?;
        let opened = match opened {
            Ok(source) => still_holds_something(source, had_names).await,
            Err(error) if is_refusal(&error) => return Err(error),
            Err(error) => Err(error),
        };
        let why = match opened {
            Ok(source) => {
                if is_known || catalog.job()?.is_none() {
                    catalog.set_source_shape(&shape_of(&*source))?;
                }
                return Ok(Reached { source, away: None });
            }
            Err(why) => why,
        };
        let shape = match catalog.source_shape()? {
            Some(shape) if is_known && catalog.root()?.is_some() => shape,
            _ => return Err(why),
        };
        let appearance =
            Appearance { display_name, traits: traits_of(&shape), single_file: shape.single_file };
        let way = self.clone();
        let open = Box::new(move || -> futures_util::future::BoxFuture<'static, _> {
            let way = way.clone();
            Box::pin(async move {
                let source = way.open_now().await?;
                check_reserved_names(&*source).await?;
                still_holds_something(source, had_names).await
            })
        });
        let source = Arc::new(Reconnecting::new(appearance, why.clone(), open));
        Ok(Reached { source, away: Some(why) })
    }
}

/// The source's name for people, whether it is there or not.
///
/// # Errors
/// `Invalid` for what is no URL.
pub fn display_name(spec: &SourceSpec) -> Result<String> {
    match spec {
        SourceSpec::Local(path) => Ok(LocalSource::display_name_of(path)),
        SourceSpec::Url(remote) => remote.display_name(),
    }
}

/// A source that asks to be spared is asked again.
async fn patient<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    crate::engine::patiently(RetryPolicy::default(), |_, _| {}, ask).await
}

/// What waiting for the source does not mend.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Exists | Kind::NotSupported)
}

pub(super) async fn open(spec: SourceSpec, cross_mounts: bool) -> Result<Arc<dyn Source>> {
    match spec {
        SourceSpec::Local(path) => {
            let options = LocalOptions { cross_mounts };
            let open = move || LocalSource::open(&path, options);
            Ok(Arc::new(crate::engine::on_disk("open source", open).await?))
        }
        SourceSpec::Url(remote) => remote.open().await,
    }
}

/// Names that we need ourselves must not be in the source's root.
async fn check_reserved_names(source: &dyn Source) -> Result<()> {
    if source.single_file().is_some() {
        return Ok(());
    }
    for name in RESERVED_NAMES {
        let path = RelPath::root().child(name.as_ref())?;
        match patient(|| source.stat(&path)).await {
            Err(error) if error.kind() == Kind::NotFound => {}
            // Many servers refuse every name with a dot, whether it is there or not; a listing will not show it.
            Err(error) if error.kind() == Kind::Denied && source.traits().is_remote => {}
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(Error::new(Kind::Exists, "use source")
                    .at(source.display_name())
                    .because(format!("it holds {name}, a name that the destination needs for itself"))
                    .hint("is this the destination of another copy? Copy its content from elsewhere, or rename it"));
            }
        }
    }
    Ok(())
}

/// A root that held names and is empty now is most likely a mountpoint without its file system, or a server without its disk. Were it
/// believed, everything would count as deleted. So it is taken for a source that is away.
async fn still_holds_something(
    source: Arc<dyn Source>,
    had_names: bool,
) -> Result<Arc<dyn Source>> {
    if !had_names || source.single_file().is_some() {
        return Ok(source);
    }
    if patient(|| holds_something(&source)).await? {
        return Ok(source);
    }
    Err(Error::new(Kind::Unreachable, "use source")
        .at(source.display_name())
        .because("it is empty now, and was not when it was copied: its file system is not mounted?")
        .hint("if it was really emptied: another --dest, or remove .lazycopy/catalog.redb"))
}

async fn holds_something(source: &Arc<dyn Source>) -> Result<bool> {
    let (sender, mut batches) = mpsc::channel(1);
    let asked = Arc::clone(source);
    let listing = tokio::spawn(async move { asked.list(&RelPath::root(), sender).await });
    while let Some(batch) = batches.recv().await {
        if batch.entries.iter().any(|entry| entry.name != OF_EMPTY_FILE_SYSTEMS) {
            return Ok(true);
        }
    }
    listing.await.map_err(|died| Error::new(Kind::Io, "look at source").caused_by(died))??;
    Ok(false)
}

fn shape_of(source: &dyn Source) -> SourceShape {
    let traits = source.traits();
    SourceShape {
        lists_attributes: traits.lists_attributes,
        is_remote: traits.is_remote,
        has_modes: traits.has_modes,
        connections: traits.connections as u64,
        refresh_ms: u64::try_from(traits.refresh.as_millis()).unwrap_or(u64::MAX),
        single_file: source.single_file().cloned(),
    }
}

fn traits_of(shape: &SourceShape) -> Traits {
    Traits {
        lists_attributes: shape.lists_attributes,
        is_remote: shape.is_remote,
        has_modes: shape.has_modes,
        connections: usize::try_from(shape.connections).unwrap_or(1).clamp(1, 1024),
        refresh: Duration::from_millis(shape.refresh_ms),
    }
}

/// Where a local source lies: without links if it is there, else as it was spelled if a copy `is_begun`.
///
/// # Errors
/// Why it cannot be found.
pub(super) fn local_place(spec: &SourceSpec, is_begun: bool) -> Result<Option<PathBuf>> {
    let SourceSpec::Local(path) = spec else { return Ok(None) };
    match std::fs::canonicalize(path) {
        Ok(real) => Ok(Some(real)),
        Err(_) if is_begun => Ok(Some(path.clone())),
        Err(error) => Err(Error::io("open source", error)
            .at(path)
            .hint("SOURCE must be an existing directory or file")),
    }
}
