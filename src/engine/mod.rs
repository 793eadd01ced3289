//! RING 2: the lazy file system, with no FUSE in it.
//!
//! | file | what |
//! |---|---|
//! | [`settings`], [`stats`] | how it behaves; what it counts |
//! | [`node`], [`tree`], [`listing`] | inodes and versions; names and their freshness; directories |
//! | [`mod@file`] | one version of one file: presence, backing file, phase |
//! | [`fetch`], [`read`] | from the source into backing files; from there to readers |
//! | [`publish`], [`adopt`], [`compare`] | finished files become plain files; files that lie in DIR already are compared and kept |
//! | [`resume`] | checkpoints, and going on where an earlier life ended |
//! | [`room`] | what happens when the destination fills up |
//! | [`hydrate`] | the whole tree in the background |
//! | [`verify`] | the copy proven again and mended |
//! | [`report`] | what goes on, for people and programs |

pub mod adopt;
pub mod compare;
pub mod fetch;
pub mod file;
pub mod hydrate;
pub mod listing;
pub mod node;
pub mod publish;
pub mod read;
pub mod report;
pub mod resume;
pub mod room;
pub mod settings;
pub mod stats;
pub mod tree;
pub mod verify;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::core::flight::Flight;
use crate::core::in_flight::InFlight;
use crate::core::permits::Permits;
use crate::core::table::Table;
use crate::engine::adopt::Candidates;
use crate::engine::fetch::Fetcher;
use crate::engine::file::LazyFile;
use crate::engine::publish::Publisher;
use crate::engine::read::Handles;
use crate::engine::room::Room;
use crate::engine::settings::EngineSettings;
use crate::engine::stats::Stats;
use crate::engine::tree::Tree;
use crate::error::{Error, Kind, Result};
use crate::source::{Capacity, Source};
use crate::store::{Destination, Space};

/// The inode number of the root, fixed by the FUSE protocol.
pub const ROOT_INO: u64 = 1;

/// Something the FUSE front has to tell the kernel. Sent from anywhere, handled by one thread that nobody waits for.
#[derive(Debug, Clone)]
pub enum Notice {
    /// What `name` in `parent` means has changed: the next lookup asks anew.
    EntryChanged {
        /// Inode of the directory.
        parent: u64,
        /// Name in it.
        name: OsString,
    },
    /// The kernel's pages of this inode may be wrong: the bytes are the same version's, the file that holds them is another.
    ContentChanged {
        /// The inode.
        ino: u64,
    },
    /// No more of them: the session has ended.
    Ended,
}

/// One lazy file system: a source, a destination and everything between.
///
/// # Concurrency
/// Shared by FUSE threads and tasks. `try_…` methods never wait; async methods end within the deadline.
#[derive(Debug)]
pub struct Engine {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) settings: EngineSettings,
    pub(crate) tree: Tree,
    pub(crate) handles: Handles,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) publisher: Publisher,
    pub(crate) candidates: Candidates,
    /// Files with blocks that no checkpoint has recorded.
    pub(crate) dirty: Table<u64, Arc<LazyFile>>,
    pub(crate) checkpointing: Flight,
    pub(crate) room: Room,
    pub(crate) stat_permits: Arc<Permits>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) started: Instant,
    pub(crate) runtime: tokio::runtime::Handle,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Engine {
    /// Builds it and looks at the source's root. Notices come out of the returned channel.
    ///
    /// # Errors
    /// What the source answers for its root.
    pub async fn open(
        source: Arc<dyn Source>,
        destination: Arc<Destination>,
        settings: EngineSettings,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Notice>)> {
        let root = tokio::time::timeout(
            settings.start_deadline,
            source.stat(&crate::core::path::RelPath::root()),
        )
        .await
        .map_err(|late| {
            Error::new(Kind::Unreachable, "look at source")
                .at(source.display_name())
                .because(format!("no answer within {:?}", settings.start_deadline))
                .caused_by(late)
        })??;
        let (notices, receiver) = mpsc::unbounded_channel();
        let stats = Arc::new(Stats::default());
        let connections = source.traits().connections;
        let (disk, name) = (Arc::clone(&destination), source.display_name().to_owned());
        let numbers = on_disk("begin copy", move || resume::begin(&disk, &name)).await?;
        let first_chunk = numbers.first_chunk;
        let fetcher = Fetcher::new(Arc::clone(&source), &settings, Arc::clone(&stats), first_chunk);
        let engine = Arc::new(Self {
            tree: Tree::new(root, numbers.first_ino),
            handles: Handles::default(),
            fetcher: Arc::new(fetcher),
            publisher: Publisher::default(),
            candidates: Candidates::default(),
            dirty: Table::default(),
            checkpointing: Flight::default(),
            room: Room::new(settings.reserve),
            stat_permits: Permits::new(connections.max(2), 1),
            stats,
            in_flight: Arc::new(InFlight::default()),
            started: Instant::now(),
            runtime: tokio::runtime::Handle::current(),
            source,
            destination,
            settings,
            notices,
        });
        Ok((engine, receiver))
    }

    /// Milliseconds since the engine was opened.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The table of waiting operations.
    pub fn in_flight(&self) -> &Arc<InFlight> {
        &self.in_flight
    }

    /// The destination.
    pub fn destination(&self) -> Arc<Destination> {
        Arc::clone(&self.destination)
    }

    /// The source.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.source)
    }

    /// The settings.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Whether listings carry attributes.
    pub fn lists_attributes(&self) -> bool {
        self.source.traits().lists_attributes
    }

    /// The runtime that its tasks run on.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Looks at the free space of the destination, and pauses or resumes what fills it.
    ///
    /// # Errors
    /// What statvfs says.
    pub async fn look_at_space(&self) -> Result<Space> {
        let destination = Arc::clone(&self.destination);
        let space = on_disk("look at free space", move || destination.space()).await?;
        self.room.update(&space);
        Ok(space)
    }

    /// Whether the destination has too little room to keep more.
    pub fn is_short_of_room(&self) -> bool {
        self.room.is_short()
    }

    /// Size of the source, where it has one.
    pub async fn source_capacity(&self) -> Option<Capacity> {
        self.source.capacity().await
    }

    /// Ends the thread that tells the kernel, once the session has ended.
    pub fn end_notices(&self) {
        self.tell(Notice::Ended);
    }

    pub(crate) fn tell(&self, notice: Notice) {
        // The receiver is gone only while the daemon ends; then no kernel is left to tell.
        if self.notices.send(notice).is_err() {
            tracing::debug!("nobody left to notify");
        }
    }

    /// Ends `work` at the deadline of metadata operations.
    pub(crate) async fn within_deadline<T>(
        &self,
        op: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let deadline = self.settings.metadata_deadline();
        match tokio::time::timeout(deadline, work).await {
            Ok(result) => result,
            Err(late) => Err(Error::new(Kind::Timeout, op)
                .because(format!("the source did not answer within {deadline:?}"))
                .caused_by(late)),
        }
    }
}

/// Runs blocking disk work away from the async threads, for whoever composes an engine.
///
/// # Errors
/// Those of `work`; `Io` if it panicked.
pub async fn on_disk<T: Send + 'static>(
    op: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panicked| Err(Error::new(Kind::Io, op).caused_by(panicked)))
}
/// A random share of a wait, in `0.0..1.0`, for back-off.
pub(crate) fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // RandomState is seeded anew each time; good enough to spread retries.
    #[expect(clippy::cast_precision_loss, reason = "53 bits of randomness suffice")]
    let share = (RandomState::new().hash_one(Instant::now()) >> 11) as f64 / (1u64 << 53) as f64;
    share
}
