//! The copy proven again, compared with its source, and mended. Works on a destination alone or beside a living [`Engine`].
//!
//! | file | what |
//! |---|---|
//! | `mend` | bad blocks fetched again, into a new inode |
//! | `compare` | DIR and source side by side, byte for byte |

mod compare;
mod mend;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::core::path::RelPath;
use crate::core::permits::Permit;
use crate::core::priority::Priority;
use crate::core::quota::Reserved;
use crate::core::range::ByteRange;
use crate::core::retry::RetryPolicy;
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::Source;
use crate::store::Destination;
use crate::store::catalog::EntryPhase;
use crate::store::proof::{Flaw, Found, ProofOptions, Proven};

/// Between two reports of progress.
const PROGRESS: Duration = Duration::from_millis(200);
/// Flaws that wait to be mended.
const WAITING: usize = 64;

/// What is done about flaws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mending {
    /// They are told.
    No,
    /// Bytes that changed by themselves, and what is missing, are fetched again. What somebody wrote to stays.
    Rot,
    /// What somebody wrote to is replaced as well.
    Everything,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Read what is recorded back and compare it with its digests.
    Prove(Mending),
    /// Compare DIR with the source.
    Compare,
    /// Tell the recorded digests.
    List,
}

/// Opens the source when it is needed for the first time.
#[async_trait]
pub trait SourceDoor: Send + Sync {
    /// The source of the copy, or the one that the user named.
    ///
    /// # Errors
    /// If it cannot be reached, or none is known.
    async fn open(&self) -> Result<Arc<dyn Source>>;
}

/// How DIR and source differ in one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contrast {
    /// Only DIR has it, and what it may hold.
    OnlyHere,
    /// Only the source has it, and what it may hold.
    OnlyAtSource,
    /// They are of different kinds, or links to different places.
    OtherKind,
    /// They have different lengths: here, there.
    Size(u64, u64),
    /// These blocks differ, as bytes; whether the source has another version than the one that was copied.
    Bytes(Vec<ByteRange>, bool),
}

/// What is told meanwhile.
#[derive(Debug, Clone)]
pub enum Event {
    /// How far it is.
    Progress(Proven),
    /// An entry has a flaw.
    Found(Box<Found>),
    /// DIR and source differ.
    Contrast(RelPath, Contrast),
    /// The source could not be read: no difference, but no proof either.
    SourceFailed(RelPath, Error),
    /// A file was replaced by a whole one; bytes that were fetched for it.
    Mended(RelPath, u64),
    /// Blocks of a part were forgotten; they are fetched again when the copy goes on.
    Forgotten(RelPath, u64),
    /// A flaw stays.
    NotMended(RelPath, Error),
    /// A published file and its recorded BLAKE3.
    Digest(RelPath, [u8; 32]),
}

/// How it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// What was looked at.
    pub proven: Proven,
    /// Flaws that were mended.
    pub mended: u64,
    /// Bytes that came from the source for them.
    pub fetched: u64,
    /// Differences from the source.
    pub contrasts: u64,
    /// Entries that the source would not let be compared.
    pub source_failures: u64,
}

impl Verified {
    /// Whether nothing is left that differs.
    pub fn is_clean(&self) -> bool {
        self.proven.flaws == self.mended && self.contrasts == 0
    }
}

/// One verification.
pub struct Verification {
    /// The copy.
    pub destination: Arc<Destination>,
    /// Its source.
    pub source: Box<dyn SourceDoor>,
    /// Who serves the copy meanwhile, to be told what was mended.
    pub engine: Option<Arc<Engine>>,
    /// How it is read.
    pub options: ProofOptions,
    /// Attempts at the source.
    pub retry: RetryPolicy,
    /// Longest wait for a piece from the source.
    pub stall: Duration,
    /// Who is told. When nobody listens any more it ends.
    pub events: mpsc::Sender<Event>,
}

impl std::fmt::Debug for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verification").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Verification {
    /// Does it.
    ///
    /// # Errors
    /// What keeps it from being done at all: the catalog, the source of a comparison. What is wrong with files is told as events.
    pub async fn run(self, task: Task) -> Result<Verified> {
        let verification = Arc::new(self);
        match task {
            Task::Prove(mending) => verification.prove(mending).await,
            Task::Compare => verification.compare().await,
            Task::List => verification.list().await,
        }
    }

    async fn prove(self: Arc<Self>, mending: Mending) -> Result<Verified> {
        let (flawed, mut to_mend) = mpsc::channel(WAITING);
        let prover = Arc::clone(&self);
        let proving = tokio::spawn(on_disk("prove copy", move || prover.prove_now(&flawed)));
        let mut verified = Verified::default();
        while let Some(found) = to_mend.recv().await {
            if mending == Mending::No {
                continue;
            }
            match self.mend(&found, mending).await {
                Ok(fetched) => {
                    verified.mended += 1;
                    verified.fetched += fetched;
                }
                Err(error) => self.tell(Event::NotMended(found.path.clone(), error)).await,
            }
        }
        let ended = |died| Error::new(Kind::Io, "prove copy").caused_by(died);
        verified.proven = proving.await.map_err(ended)??;
        Ok(verified)
    }

    /// Blocking.
    fn prove_now(&self, flawed: &mpsc::Sender<Found>) -> Result<Proven> {
        let mut told = Instant::now();
        self.destination.prove(self.options, &mut |proven, found| {
            if found.is_some() || told.elapsed() >= PROGRESS {
                told = Instant::now();
                if self.events.blocking_send(Event::Progress(*proven)).is_err() {
                    return ControlFlow::Break(());
                }
            }
            let Some(found) = found else { return ControlFlow::Continue(()) };
            let told = self.events.blocking_send(Event::Found(Box::new(found.clone())));
            match told.is_err() || flawed.blocking_send(found).is_err() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    }

    async fn list(self: Arc<Self>) -> Result<Verified> {
        let lister = Arc::clone(&self);
        on_disk("list digests", move || {
            let catalog = lister.destination.catalog();
            let send = |path, digest| {
                lister.events.blocking_send(Event::Digest(path, digest)).map_err(|_closed| {
                    Error::new(Kind::Io, "list digests").because("nobody listens any more")
                })
            };
            catalog.entries(|record| match (record.phase, record.digest) {
                (EntryPhase::Published(_), Some(digest)) => send(record.path, digest),
                _ => Ok(()),
            })?;
            catalog.others(|other| {
                let Some(first) = &other.link_of else { return Ok(()) };
                let digest = catalog.entry(first)?.and_then(|first| first.digest);
                digest.map_or(Ok(()), |digest| send(other.path, digest))
            })?;
            Ok(Verified::default())
        })
        .await
    }

    /// The right to one request for `bytes` bytes: beside a living engine it counts like any other in the background.
    async fn may_ask(&self, bytes: u64) -> Result<Option<Asking>> {
        let Some(engine) = &self.engine else { return Ok(None) };
        let permit = engine.fetcher.permit(Priority::Hydration).await;
        Ok(Some(Asking { reserved: engine.limits.reserve(bytes)?, _permit: permit }))
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: the proof ends by itself.
        drop(self.events.send(event).await);
    }
}

/// One request of a verification.
struct Asking {
    reserved: Reserved,
    _permit: Option<Permit>,
}

/// Why a flaw stays.
fn left(found: &Found, why: &str, hint: &str) -> Error {
    let kind = match found.flaw {
        Flaw::Missing => Kind::NotFound,
        _ => Kind::Exists,
    };
    Error::new(kind, "mend").at(found.path.as_path()).because(why).hint(hint)
}
