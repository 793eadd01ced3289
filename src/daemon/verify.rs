//! `verify` of a copy that nobody serves: opens the destination, does it, leaves the lock.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::control::verify::{Summary, VerifyLine, VerifyTask};
use crate::core::retry::RetryPolicy;
use crate::daemon::reach;
use crate::daemon::settings::SourceSpec;
use crate::engine::verify::{SourceDoor, Verification};
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::Source;
use crate::source::options::SourceOptions;
use crate::store::proof::ProofOptions;
use crate::store::{Destination, DestinationOptions};
use crate::vfs::mountpoint;

/// Longest wait for a piece from the source.
const STALL: Duration = Duration::from_secs(30);
/// Events that wait.
const EVENTS: usize = 64;

/// What `lazycopy verify` decides. Paths are absolute.
#[derive(Debug, Clone)]
pub struct VerifySettings {
    /// DIR.
    pub destination: PathBuf,
    /// Where its state is, if that has moved.
    pub state_dir: Option<PathBuf>,
    /// Another source than the recorded one.
    pub source: Option<SourceSpec>,
    /// Options of the recorded source.
    pub options: SourceOptions,
    /// What is to be done.
    pub task: VerifyTask,
}

/// The source that the user named, or the one that is copied.
#[derive(Debug)]
pub(super) enum Door {
    Named(SourceSpec),
    Served(Arc<Engine>),
    Recorded(Arc<Destination>, SourceOptions),
}

#[async_trait]
impl SourceDoor for Door {
    async fn open(&self) -> Result<Arc<dyn Source>> {
        let spec = match self {
            Door::Served(engine) => return Ok(engine.source()),
            Door::Named(spec) => spec.clone(),
            Door::Recorded(destination, options) => {
                recorded(Arc::clone(destination), options.clone()).await?
            }
        };
        // Other file systems that were crossed at the time are no obstacle now.
        reach::open(spec, true).await
    }
}

async fn recorded(destination: Arc<Destination>, options: SourceOptions) -> Result<SourceSpec> {
    let job = on_disk("look up source", move || destination.catalog().job()).await?;
    let job = job.ok_or_else(|| {
        Error::new(Kind::NotFound, "open source")
            .because("no source is recorded here")
            .hint("--source names it")
    })?;
    SourceSpec::parse_with(job.source.as_ref(), options)
}

/// Does it; `show` gets everything found, in order.
///
/// # Errors
/// `Busy` if somebody holds the destination; what keeps it from being done at all.
pub fn verify(settings: VerifySettings, mut show: impl FnMut(VerifyLine)) -> Result<Summary> {
    super::start::raise_file_limit();
    mountpoint::check_not_dead(&settings.destination)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("worker")
        .build()
        .map_err(|error| Error::io("start runtime", error))?;
    runtime.block_on(async {
        let (path, state_dir) = (settings.destination.clone(), settings.state_dir.clone());
        let open = move || {
            // What is mended keeps what it had.
            let preserve_privileged = true;
            let options =
                DestinationOptions { preserve_privileged, state_dir, ..Default::default() };
            Destination::open_known(&path, options)
        };
        let destination = Arc::new(on_disk("open destination", open).await?);
        let source = match settings.source {
            Some(spec) => Door::Named(spec),
            None => Door::Recorded(Arc::clone(&destination), settings.options),
        };
        let (events, mut received) = mpsc::channel(EVENTS);
        let verification = Verification {
            destination,
            source: Box::new(Once::new(source)),
            engine: None,
            options: ProofOptions {
                threads: available_parallelism().map_or(1, usize::from),
                is_background: false,
            },
            retry: RetryPolicy::default(),
            stall: STALL,
            events,
        };
        let running = tokio::spawn(verification.run(settings.task.into()));
        while let Some(event) = received.recv().await {
            show(event.into());
        }
        let ended = |died| Error::new(Kind::Io, "verify").caused_by(died);
        running.await.map_err(ended)?.map(Summary::from)
    })
}

/// As [`verify`] beside a living engine, out of everybody's way.
pub(super) async fn verify_served(
    engine: &Arc<Engine>,
    source: Option<SourceSpec>,
    task: VerifyTask,
    lines: mpsc::Sender<VerifyLine>,
) -> Result<Summary> {
    let door = source.map_or_else(|| Door::Served(Arc::clone(engine)), Door::Named);
    let (events, mut received) = mpsc::channel(EVENTS);
    let verification = Verification {
        destination: engine.destination(),
        source: Box::new(Once::new(door)),
        engine: Some(Arc::clone(engine)),
        options: ProofOptions { threads: 1, is_background: true },
        retry: engine.settings().retry,
        stall: engine.settings().stall,
        events,
    };
    let running = tokio::spawn(verification.run(task.into()));
    while let Some(event) = received.recv().await {
        if lines.send(event.into()).await.is_err() {
            break; // nobody listens: the next event finds its channel closed
        }
    }
    drop(received);
    let ended = |died| Error::new(Kind::Io, "verify").caused_by(died);
    running.await.map_err(ended)?.map(Summary::from)
}

/// Opens a source once; an error is answered again.
struct Once {
    door: Door,
    opened: tokio::sync::OnceCell<Result<Arc<dyn Source>>>,
}

impl Once {
    fn new(door: Door) -> Self {
        Self { door, opened: tokio::sync::OnceCell::new() }
    }
}

#[async_trait]
impl SourceDoor for Once {
    async fn open(&self) -> Result<Arc<dyn Source>> {
        self.opened.get_or_init(|| self.door.open()).await.clone()
    }
}
