//! A cache of limited size: what lies in it, and room for more. Without a limit nothing here does anything.
//!
//! Room is reserved for a chunk before its first byte is written. If there is none, something goes first ([`super::evict`]); if
//! nothing can go, a reader is served straight from the source, and nothing is fetched ahead.

use std::sync::Arc;
use std::time::Duration;

use crate::core::budget::{Budget, Charge};
use crate::core::claims::Lease;
use crate::core::flight::{Boarded, Flight, Landing};
use crate::core::ids::Ids;
use crate::core::plan::Reach;
use crate::core::priority::Priority;
use crate::core::queue::UseQueue;
use crate::core::range::BLOCK_SIZE;
use crate::core::table::Table;
use crate::engine::evict::Urgency;
use crate::engine::file::LazyFile;
use crate::engine::stats::Counter;
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::{BackingFile, Destination, Kept};
use crate::sync::{AtomicBool, Ordering};

/// Least limit: below it a few readers at once would find room for nothing.
pub const KEEP_MIN: u64 = 8 << 20;
/// Times that a reader's chunk has others make room; each may find that somebody else was quicker.
const ROUNDS: u32 = 16;
/// As above, for what is fetched ahead.
const ROUNDS_AHEAD: u32 = 2;
/// How long who finds no room leaves the range to straight-through reads.
pub(crate) const FULL: Duration = Duration::from_millis(250);

/// What lies in a cache of limited size.
#[derive(Debug)]
pub struct Cache {
    pub(super) budget: Option<Arc<Budget>>,
    /// Numbers of uses: which of two came later.
    uses: Ids,
    /// Uses that the catalog does not know yet.
    unnoted: Table<u64, u64>,
    /// What earlier lives left and this one has not used.
    pub(super) kept: Table<u64, Arc<KeptFile>>,
    /// Files with bytes on the disk.
    pub(super) files: Table<u64, Arc<LazyFile>>,
    pub(super) queue: UseQueue,
    pub(super) evicting: Flight,
    /// Chunks that found no room.
    refused: Counter,
    /// The file system takes single blocks back. Relaxed: found out by trying.
    pub(super) can_punch: AtomicBool,
}

/// A version that an earlier life left.
#[derive(Debug)]
pub(super) struct KeptFile {
    pub(super) kept: Kept,
    pub(super) charge: Charge,
    /// Runs while it is restored or evicted.
    pub(super) busy: Flight,
}

impl Cache {
    /// Looks at what earlier lives left, if the destination is limited. Blocking.
    ///
    /// # Errors
    /// What the catalog and the disk say.
    pub fn open(destination: &Destination) -> Result<Self> {
        let budget = destination.budget().cloned();
        let kept = Table::default();
        let mut latest = 0;
        if let Some(budget) = &budget {
            for found in destination.kept()? {
                latest = latest.max(found.last_use);
                let charge = Charge::of_file(budget, found.bytes);
                let ino = found.ino;
                let found = KeptFile { kept: found, charge, busy: Flight::default() };
                kept.insert(ino, Arc::new(found));
            }
        }
        Ok(Self {
            budget,
            uses: Ids::starting_at(latest + 1),
            unnoted: Table::default(),
            kept,
            files: Table::default(),
            queue: UseQueue::default(),
            evicting: Flight::default(),
            refused: Counter::default(),
            can_punch: AtomicBool::new(true),
        })
    }

    /// Whether anything is ever evicted.
    pub fn is_limited(&self) -> bool {
        self.budget.is_some()
    }

    /// The limit and what is used of it, in bytes.
    pub fn fill(&self) -> Option<(u64, u64)> {
        self.budget.as_ref().map(|budget| (budget.cap(), budget.used()))
    }

    /// How far ahead to fetch, as far as the limit lets.
    pub(crate) fn limit(&self, reach: Reach) -> Reach {
        self.budget.as_ref().map_or(reach, |budget| reach.within(budget.cap()))
    }

    /// `file` was used now.
    pub(crate) fn touch(&self, file: &LazyFile) {
        if self.is_limited() {
            let number = self.uses.next();
            file.last_use.store(number, Ordering::Relaxed);
            self.unnoted.insert(file.ino, number);
        }
    }

    /// Keeps what an earlier life left of `ino` from eviction while it is restored.
    pub(crate) async fn hold_kept(&self, ino: u64) -> Option<Landing> {
        let kept = self.kept.get(&ino)?;
        loop {
            match kept.busy.board() {
                Boarded::Lead(landing) => return Some(landing),
                Boarded::Join(signal) => signal.await,
            }
        }
    }

    /// The bytes that were taken for what an earlier life left of `ino`; who asks accounts for them from now on.
    pub(crate) fn hand_over(&self, ino: u64) -> u64 {
        self.kept.get(&ino).map_or(0, |kept| kept.charge.hand_over())
    }

    /// What an earlier life left of `file` belongs to it now.
    pub(crate) fn took_over(&self, file: &Arc<LazyFile>) {
        if !self.is_limited() {
            return;
        }
        if let Some(kept) = self.kept.remove(&file.ino) {
            // Not later than a use of this life.
            if file.last_use.load(Ordering::Relaxed) == 0 {
                file.last_use.store(kept.kept.last_use, Ordering::Relaxed);
            }
        }
        self.files.insert(file.ino, Arc::clone(file));
    }

    /// How many chunks found no room so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Whether `error` says that nothing could go.
    pub(crate) fn is_full(&self, error: &Error) -> bool {
        self.is_limited() && error.kind() == Kind::Limit && error.is_of_destination()
    }
}

impl Engine {
    /// The limit of the cache and what is used of it, in bytes; `None` = everything is kept.
    pub fn cache_fill(&self) -> Option<(u64, u64)> {
        self.cache.fill()
    }

    /// Reserves room for the chunk of `lease`, making some if it has to.
    ///
    /// # Errors
    /// `Limit`, of the destination, if nothing can go now.
    pub(crate) async fn make_room(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        part: &BackingFile,
        lease: &Lease,
    ) -> Result<()> {
        if !self.cache.is_limited() {
            return Ok(());
        }
        let blocks = lease.chunk().range.blocks();
        for round in 0.. {
            let Err(lacking) = part.occupied().reserve(blocks.clone()) else {
                self.cache.files.insert(file.ino, Arc::clone(file));
                return Ok(());
            };
            // Whoever waits for the chunk waits for nothing that hangs.
            lease.beat();
            let (rounds, urgency) = match lease.chunk().priority() {
                Priority::Demand => (ROUNDS, Urgency::Reader),
                _ => (ROUNDS_AHEAD, Urgency::Ahead),
            };
            if round >= rounds || !self.let_something_go(lacking, urgency).await {
                break;
            }
        }
        self.cache.refused.increment();
        Err(Error::new(Kind::Limit, "keep what is read")
            .at(file.path.as_path())
            .because("the cache is full of what is being read now")
            .of_destination())
    }

    /// Makes room or waits for who does; `false` if nothing can go.
    async fn let_something_go(self: &Arc<Self>, lacking: u64, urgency: Urgency) -> bool {
        let landing = match self.cache.evicting.board() {
            Boarded::Join(signal) => {
                signal.await;
                return true;
            }
            Boarded::Lead(landing) => landing,
        };
        if self.evict(lacking, urgency).await > 0 {
            return true;
        }
        if urgency == Urgency::Ahead {
            return false;
        }
        // What a checkpoint records just now can go after it.
        if let Boarded::Join(signal) = self.checkpointing.board() {
            signal.await;
        }
        let freed = self.evict(lacking, urgency).await;
        drop(landing);
        freed > 0
    }

    async fn evict(self: &Arc<Self>, lacking: u64, urgency: Urgency) -> u64 {
        let engine = Arc::clone(self);
        // All of it there: nothing is freed for use before its bytes are gone, whoever gives up waiting.
        let evicted = on_disk("evict", move || Ok(engine.evict_now(lacking, urgency))).await;
        evicted.unwrap_or_else(|error| {
            tracing::error!(%error, "evict");
            0
        })
    }

    /// Gives the blocks of a failed chunk back of which no byte landed, in the part that it was fetched into: the file may have
    /// another one by now, in which they are somebody else's.
    pub(crate) async fn give_back_room(&self, part: Option<Arc<BackingFile>>, lease: &Lease) {
        let Some(part) = part.filter(|_| self.cache.is_limited()) else { return };
        let rest = lease.remaining();
        // Nobody reads or fetches them while the lease lives. The block that has some bytes may be read: it stays.
        let blocks = rest.start.div_ceil(BLOCK_SIZE)..rest.blocks().end;
        if blocks.is_empty() {
            return;
        }
        let punched = on_disk("give room back", move || part.punch(blocks)).await;
        if let Err(error) = punched {
            tracing::debug!(chunk = lease.chunk().id.0, %error, "room not given back");
        }
    }

    /// Lets what an earlier life left fit the limit of this one, but for what is pinned: that stays until somebody says otherwise.
    pub(crate) async fn keep_cap(self: &Arc<Self>) -> Result<()> {
        while let Some((cap, used)) = self.cache.fill()
            && used > cap
        {
            if self.evict(used - cap, Urgency::Reader).await == 0 {
                if !self.pins.is_empty() {
                    return Ok(());
                }
                return Err(Error::new(Kind::NoSpace, "open cache")
                    .at(self.destination.shown_as())
                    .because(format!("{used} bytes lie in it that cannot be removed"))
                    .hint(format!("a --keep of more than {used} lets it start")));
            }
        }
        Ok(())
    }

    /// Tells the catalog what was used since the last call.
    pub(crate) async fn note_uses(&self) {
        let inos = self.cache.unnoted.keys();
        let take = |ino| self.cache.unnoted.remove(&ino).map(|number| (ino, number));
        let uses: Vec<(u64, u64)> = inos.into_iter().filter_map(take).collect();
        if uses.is_empty() {
            return;
        }
        let destination = Arc::clone(&self.destination);
        let noted = on_disk("note uses", move || destination.catalog().note_uses(&uses)).await;
        if let Err(error) = noted {
            tracing::debug!(%error, "uses not noted");
        }
    }
}
