//! RING 2: the lazy file system, with no FUSE in it.
//!
//! | file | what |
//! |---|---|
//! | [`settings`], [`stats`] | how it behaves; what it counts |
//! | [`node`], `named`, [`tree`], [`ask`] | inodes and versions; their names; what these mean now; asking the source about one |
//! | [`listing`], [`list`] | what a directory holds; asking the source for it |
//! | [`xattrs`] | extended attributes, also while the source is away |
//! | [`changes`] | what becomes of them when the source changes |
//! | [`known`], [`recorder`], `gone` | the tree out of the catalog into memory and back; what the source shows goes into the catalog, and what it shows no more leaves it |
//! | [`mod@file`] | one version of one file: presence, backing file, phase |
//! | [`fetch`], `attempts`, [`read`] | from the source into backing files, chunk by chunk; from there to readers |
//! | [`publish`], [`publisher`] | finished files are verified; they become plain files, small ones in groups |
//! | `sidecar` | checksums that lie beside their files at the source |
//! | [`adopt`], [`compare`] | files that lie in DIR already are compared and kept |
//! | [`resume`] | checkpoints, and going on where an earlier life ended |
//! | `through` | from the source straight to readers |
//! | [`limits`] | what may be asked of the source: how fast, how much, how often |
//! | [`errors`] | what went wrong, until it goes well |
//! | [`room`] | what happens when the destination fills up |
//! | [`cache`], [`evict`] | a cache of limited size: what lies in it and room for more; what goes |
//! | [`hydrate`], [`switch`] | the whole tree in the background; whether it goes on |
//! | [`bulk`] | the whole tree of a source on this machine, by plain threads |
//! | [`verify`] | the copy proven again and mended |
//! | [`report`] | what goes on, for people and programs |
//! | [`events`], [`history`] | what happens, told as it happens; the lives that a copy had |
//! | [`orders`], [`pins`] | orders for one path; what is kept from eviction |

pub mod adopt;
pub mod ask;
mod attempts;
pub mod bulk;
pub mod cache;
pub mod changes;
mod chunk_hasher;
pub mod compare;
pub mod errors;
pub mod events;
pub mod evict;
pub mod fetch;
pub mod file;
mod gone;
pub mod history;
pub mod hydrate;
pub mod known;
pub mod limits;
pub mod list;
pub mod listing;
mod named;
pub mod node;
pub mod orders;
pub mod pins;
pub mod publish;
pub mod publisher;
pub mod read;
pub mod recorder;
pub mod report;
pub mod resume;
pub mod room;
pub mod settings;
mod sidecar;
pub mod stats;
pub mod switch;
mod through;
pub mod tree;
pub mod verify;
pub mod xattrs;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::core::attributes::Attributes;
use crate::core::flight::Flight;
use crate::core::in_flight::InFlight;
use crate::core::permits::Permits;
use crate::core::table::Table;
use crate::engine::adopt::Candidates;
pub(crate) use crate::engine::attempts::patiently;
use crate::engine::cache::Cache;
use crate::engine::changes::Changes;
use crate::engine::events::Events;
use crate::engine::fetch::Fetcher;
use crate::engine::file::LazyFile;
use crate::engine::hydrate::board::Board;
use crate::engine::limits::Limits;
use crate::engine::node::{Node, Xattrs};
use crate::engine::pins::Pins;
use crate::engine::publisher::Publisher;
use crate::engine::read::Handles;
use crate::engine::recorder::Recorder;
use crate::engine::resume::Beginning;
use crate::engine::room::Room;
use crate::engine::settings::EngineSettings;
use crate::engine::stats::Stats;
use crate::engine::switch::Switch;
use crate::engine::tree::Tree;
use crate::error::{Error, Kind, Result};
use crate::source::{Capacity, Source};
use crate::store::{Destination, Space};
use crate::sync::{AtomicBool, AtomicU64};

/// What a cache gives at least when the disk takes no more although it seems to have room: more than the probe that then asks again.
const GIVEN: u64 = 8 << 20;

/// The inode number of the root, fixed by the FUSE protocol.
pub const ROOT_INO: u64 = 1;

/// A time in ms since the engine's start: not in this life.
pub const NEVER: u64 = u64::MAX;

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
    pub(crate) changes: Changes,
    pub(crate) recorder: Recorder,
    /// Shared by the many who have none.
    pub(crate) no_xattrs: Arc<Xattrs>,
    /// Files with blocks that no checkpoint has recorded.
    pub(crate) dirty: Table<u64, Arc<LazyFile>>,
    pub(crate) checkpointing: Flight,
    pub(crate) tidying: Flight,
    /// Bytes that landed since the last checkpoint began. Relaxed: one more or less in this one is all the same.
    pub(crate) landed: AtomicU64,
    pub(crate) room: Room,
    pub(crate) cache: Cache,
    pub(crate) limits: Arc<Limits>,
    pub(crate) switch: Arc<Switch>,
    pub(crate) board: Board,
    /// The copy waits for its source. Relaxed: for people.
    is_source_away: AtomicBool,
    pub(crate) stat_permits: Arc<Permits>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) events: Arc<Events>,
    pub(crate) pins: Pins,
    /// Number of this life in the history. Relaxed: written once, read at the end.
    pub(crate) life: AtomicU64,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) started: Instant,
    pub(crate) runtime: tokio::runtime::Handle,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Engine {
    /// Builds it and looks at the source's root; where the source does not answer, the root is what an earlier life with the same source
    /// recorded. Notices come out of the returned channel.
    ///
    /// # Errors
    /// What the source answers for its root, if nothing is recorded; `Exists` if the destination holds a copy of another source.
    pub async fn open(
        source: Arc<dyn Source>,
        destination: Arc<Destination>,
        settings: EngineSettings,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Notice>)> {
        let looked = look_at_root(&*source, &settings).await;
        let (notices, receiver) = mpsc::unbounded_channel();
        let stats = Arc::new(Stats::default());
        let connections = source.traits().connections;
        let (disk, name) = (Arc::clone(&destination), source.display_name().to_owned());
        let (root, beginning) = on_disk("begin copy", move || begin(&disk, &name, looked)).await?;
        let first_chunk = beginning.first_chunk;
        stats.errors.restore(beginning.errors);
        stats.errors.remember_aside(&destination.recovery().set_aside);
        let (recorder, hears) = Recorder::new();
        let disk = Arc::clone(&destination);
        let cache = on_disk("look into cache", move || Cache::open(&disk)).await?;
        let disk = Arc::clone(&destination);
        let switch = Arc::new(on_disk("look up orders", move || Switch::open(&disk)).await?);
        let (disk, at_start) = (Arc::clone(&destination), settings.limits.rate);
        let rate = move || limits::ordered_rate(disk.catalog(), at_start);
        let rate = on_disk("look up orders", rate).await?;
        let (log, shown_as) = (destination.event_log(), destination.shown_as());
        let events = Arc::new(Events::start(log, source.display_name(), shown_as)?);
        let limits = Limits::new(settings.limits, beginning.used, rate, &events);
        let fetcher = Fetcher::new(
            Arc::clone(&source),
            &settings,
            Arc::clone(&stats),
            Arc::clone(&switch),
            Arc::clone(&limits),
            first_chunk,
        );
        // A number of connections that somebody asked for is a number of connections, whatever they are for.
        let stat_permits = match settings.limits.max_connections {
            Some(_) => Arc::clone(&fetcher.permits),
            None => Permits::new(connections.max(2), 1),
        };
        let pins = Pins::new(destination.catalog().pins()?);
        let engine = Arc::new(Self {
            tree: Tree::new(root, beginning.first_ino),
            handles: Handles::default(),
            fetcher: Arc::new(fetcher),
            publisher: Publisher::start(Arc::clone(&destination), Arc::clone(&stats)),
            candidates: Candidates::default(),
            changes: Changes::default(),
            recorder,
            no_xattrs: Arc::default(),
            dirty: Table::default(),
            checkpointing: Flight::default(),
            tidying: Flight::default(),
            landed: AtomicU64::new(0),
            room: Room::new(settings.reserve),
            cache,
            limits,
            switch,
            board: Board::default(),
            is_source_away: AtomicBool::new(false),
            stat_permits,
            stats,
            events,
            pins,
            life: AtomicU64::new(0),
            in_flight: Arc::new(InFlight::default()),
            started: Instant::now(),
            runtime: tokio::runtime::Handle::current(),
            source,
            destination,
            settings,
            notices,
        });
        engine.count_known(engine.destination.catalog().known_files()?);
        engine.runtime.spawn(recorder::run(Arc::downgrade(&engine), hears));
        engine.record_root();
        engine.keep_cap().await?;
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

    /// What happens, as it happens.
    pub fn events(&self) -> &Events {
        &self.events
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

    /// What may be asked of the source.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// Changes the rate of hydration from now on; `None` = no limit. It is kept over restarts, until a daemon is started with another
    /// rate than this one was.
    ///
    /// # Errors
    /// As a durable write: it holds, but not over a restart.
    pub async fn order_rate(self: &Arc<Self>, bytes_per_s: Option<u64>) -> Result<()> {
        self.limits.set_rate(bytes_per_s);
        let engine = Arc::clone(self);
        // Of two that are recorded in the other order, both record the last.
        let last = move || {
            let catalog = engine.destination.catalog();
            catalog.record_rate(|| Some(engine.limits.ordered_rate()))
        };
        on_disk("record rate", last).await
    }

    /// Whether hydration goes on.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Whether listings carry attributes.
    pub fn lists_attributes(&self) -> bool {
        self.source.traits().lists_attributes
    }

    /// The runtime that its tasks run on.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Looks at the free space of the destination, and pauses or resumes what fills it. A cache first gives of its own.
    ///
    /// # Errors
    /// What statvfs says.
    pub async fn look_at_space(self: &Arc<Self>) -> Result<Space> {
        let engine = Arc::clone(self);
        let look = move || {
            let mut space = engine.destination.space()?;
            // A quota that the cache itself fills up is not seen in what is free.
            let is_refused = engine.room.is_refused() || space.is_used_up();
            let lacking = engine.room.lacking(&space).max(if is_refused { GIVEN } else { 0 });
            if lacking > 0 && engine.give_of_its_own(lacking) {
                space = engine.destination.space()?;
            }
            Ok((space, engine.room.is_refused() && engine.destination.try_room()?))
        };
        let (space, is_accepted) = on_disk("look at free space", look).await?;
        if is_accepted {
            self.room.accepted();
        }
        self.room.update(&space);
        self.tell_of_room(&space);
        Ok(space)
    }

    /// Bytes that were free at the destination at the last look, and bytes that stay free.
    pub fn room_seen(&self) -> (u64, u64) {
        self.room.seen()
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

async fn look_at_root(source: &dyn Source, settings: &EngineSettings) -> Result<Attributes> {
    let root = crate::core::path::RelPath::root();
    let looked = patiently(settings.retry, |_, _| {}, || source.stat(&root));
    let looked = tokio::time::timeout(settings.start_deadline, looked).await;
    looked.unwrap_or_else(|late| {
        Err(Error::new(Kind::Unreachable, "look at source")
            .at(source.display_name())
            .because(format!("no answer within {:?}", settings.start_deadline))
            .caused_by(late))
    })
}

/// The root as the source shows it, or as it was recorded. Blocking.
fn begin(
    destination: &Destination,
    source: &str,
    looked: Result<Attributes>,
) -> Result<(Node, Beginning)> {
    let catalog = destination.catalog();
    let root = match looked {
        Ok(attributes) => Node::new(ROOT_INO, None, &attributes, 0),
        Err(error) => {
            let is_known = catalog.job()?.is_some_and(|job| job.source == source);
            let recorded = if is_known { catalog.root()? } else { None };
            recorded.and_then(|record| Node::recalled(None, record)).ok_or(error)?
        }
    };
    Ok((root, resume::begin(destination, source)?))
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
