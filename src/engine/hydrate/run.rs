//! The run: workers, spread over the directories that have something to copy. One task has all of it in hand, so nothing is locked.

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::core::lanes::{Climb, Done, Lanes};
use crate::engine::Engine;
use crate::engine::events::Step;
use crate::engine::hydrate::content::{Directories, Entries};
use crate::engine::hydrate::entry::{Copied, Slot};
use crate::engine::hydrate::walk::{DirectoryJob, Errand, Scanned};
use crate::engine::settings;
use crate::engine::switch::SwitchState;
use crate::sync::{AtomicU64, Ordering};

/// Most workers, where nothing else is said.
const WORKERS_MOST: usize = 64;
/// Directories that are listed at once.
const LISTED_AT_ONCE: usize = 8;
/// Entries that the walk may be ahead of the workers, in whole directories.
const AHEAD_MOST: usize = 1 << 20;
/// Entries listed between two waits for the catalog, which must not fall behind.
const RECORDED_EVERY: usize = 32 * 1024;
/// Files that are fetched and not yet published, besides those of the workers.
const PUBLISHING_MOST: usize = 256;
/// Between two looks at what the workers get done.
const BEAT: Duration = Duration::from_millis(250);

/// A source directory with entries to copy.
#[derive(Debug)]
struct Lane {
    job: Arc<DirectoryJob>,
    entries: Entries,
    weight: usize,
}

/// A directory whose directories are still to be walked.
#[derive(Debug)]
struct Branch {
    job: Arc<DirectoryJob>,
    directories: Directories,
}

/// One walk through (a part of) the tree, and the workers behind it.
pub(super) struct Run<'a> {
    engine: &'a Arc<Engine>,
    failures: &'a Arc<AtomicU64>,
    begun: &'a mut HashSet<u64>,
    errands: Vec<Errand>,
    branches: Vec<Branch>,
    scans: JoinSet<Option<Scanned>>,
    lanes: Lanes<Lane>,
    workers: JoinSet<()>,
    freed: mpsc::UnboundedReceiver<u64>,
    free: mpsc::UnboundedSender<u64>,
    climb: Climb,
    /// Entries in memory that no worker has turned to yet.
    ahead: usize,
    unrecorded: usize,
    fetched: u64,
    is_walked: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        engine: &'a Arc<Engine>,
        failures: &'a Arc<AtomicU64>,
        begun: &'a mut HashSet<u64>,
        errands: Vec<Errand>,
    ) -> Self {
        let settings = &engine.settings.hydrate;
        let per_lane = match settings.lanes {
            settings::Lanes::Auto => usize::MAX,
            settings::Lanes::Directory => 1,
        };
        let (free, freed) = mpsc::unbounded_channel();
        engine.board.walk.directories_found.add(errands.len() as u64);
        Self {
            engine,
            failures,
            begun,
            errands,
            branches: Vec::new(),
            scans: JoinSet::new(),
            lanes: Lanes::new(per_lane),
            workers: JoinSet::new(),
            freed,
            free,
            climb: Climb::new(
                engine.source.traits().connections,
                settings.max_jobs.unwrap_or(WORKERS_MOST),
            ),
            ahead: 0,
            unrecorded: 0,
            fetched: 0,
            is_walked: false,
        }
    }

    /// Copies until nothing is left, or until an order ends it: then `true`.
    pub(super) async fn copy_all(mut self) -> bool {
        let engine = self.engine;
        let mut beat = tokio::time::interval(BEAT);
        engine.tell_scan(Step::Begun);
        loop {
            let orders = engine.switch.orders();
            match engine.switch.state() {
                SwitchState::Running => {
                    self.walk_on();
                    self.work_on();
                }
                SwitchState::Paused => {}
                SwitchState::Draining | SwitchState::Stopped => break,
            }
            if self.is_over() {
                return false;
            }
            tokio::select! {
                () = engine.switch.ordered_since(orders) => {}
                Some(lane) = self.freed.recv() => self.leave(lane),
                Some(scanned) = self.scans.join_next() => self.take_in(scanned),
                Some(ended) = self.workers.join_next() => self.note_death(ended.err()),
                _ = beat.tick() => self.tune(),
            }
        }
        self.wind_up().await;
        true
    }

    fn is_over(&self) -> bool {
        self.is_walked && self.workers.is_empty() && self.lanes.is_empty()
    }

    /// Lists more directories, as long as the workers are not too far behind.
    fn walk_on(&mut self) {
        while self.scans.len() < LISTED_AT_ONCE && self.ahead < AHEAD_MOST {
            let Some(errand) = self.next_errand() else { break };
            let (engine, failures) = (Arc::clone(self.engine), Arc::clone(self.failures));
            let waits = self.unrecorded >= RECORDED_EVERY;
            if waits {
                self.unrecorded = 0;
            }
            self.scans.spawn(async move {
                if waits {
                    engine.until_recorded().await;
                }
                engine.scan(errand, failures).await
            });
        }
        let is_through =
            self.scans.is_empty() && self.branches.is_empty() && self.errands.is_empty();
        if is_through && !self.is_walked {
            self.is_walked = true;
            let engine = Arc::clone(self.engine);
            self.workers.spawn(async move {
                engine.until_recorded().await;
                engine.stats.scan_done.increment();
                engine.tell_scan(Step::Ended);
            });
        }
    }

    fn next_errand(&mut self) -> Option<Errand> {
        let filter = &self.engine.settings.hydrate.filter;
        while let Some(branch) = self.branches.last_mut() {
            let begun = &*self.begun;
            let found = branch.directories.next(filter, &branch.job, |ino| begun.contains(&ino));
            if let Some(name) = found {
                branch.job.begin();
                return Some(Errand::Child(Arc::clone(&branch.job), name));
            }
            let Branch { job, .. } = self.branches.pop()?;
            self.end_of(job);
        }
        self.errands.pop()
    }

    /// Nothing more begins in a part of a directory.
    fn end_of(&mut self, job: Arc<DirectoryJob>) {
        let (engine, failures) = (Arc::clone(self.engine), Arc::clone(self.failures));
        self.workers.spawn(async move { engine.close(job, &failures).await });
    }

    fn take_in(&mut self, scanned: Result<Option<Scanned>, JoinError>) {
        let scanned = match scanned {
            Ok(scanned) => scanned,
            Err(died) => return self.note_death(Some(died)),
        };
        let Some(Scanned { job, directories, entries, weight }) = scanned else { return };
        self.begun.insert(job.node.ino);
        self.unrecorded += weight;
        if let Some(directories) = directories {
            self.branches.push(Branch { job: Arc::clone(&job), directories });
        }
        if let Some(entries) = entries
            && let Some(rank) = entries.rank()
        {
            self.ahead += weight;
            self.lanes.add(Lane { job, entries, weight }, rank);
        }
    }

    /// Sends workers into lanes, as many as pay off.
    fn work_on(&mut self) {
        let wanted = self.climb.workers();
        self.engine.board.workers_wanted.set(wanted as u64);
        while self.lanes.workers() < wanted
            && self.workers.len() < wanted + PUBLISHING_MOST
            && let Some((id, lane)) = self.lanes.enter()
        {
            let filter = &self.engine.settings.hydrate.filter;
            let name = lane.entries.next(filter, &lane.job);
            let (job, rank) = (Arc::clone(&lane.job), lane.entries.rank());
            job.begin();
            if rank.is_none() {
                self.ahead -= std::mem::take(&mut lane.weight);
                job.end_one();
            }
            self.lanes.set_next(id, rank);
            self.engine.board.show(id, &job.node, self.lanes.workers_in(id));
            let slot = Slot { lane: id, free: self.free.clone() };
            let (engine, failures) = (Arc::clone(self.engine), Arc::clone(self.failures));
            self.workers.spawn(work(engine, job, name, slot, failures));
        }
    }

    fn leave(&mut self, id: u64) {
        self.fetched += 1;
        drop(self.lanes.leave(id));
        self.engine.board.set_workers(id, self.lanes.workers_in(id));
    }

    /// A task that died did not do what it had to.
    fn note_death(&self, died: Option<JoinError>) {
        if let Some(died) = died.filter(JoinError::is_panic) {
            self.failures.fetch_add(1, Ordering::AcqRel);
            tracing::error!(%died, "a worker of the copy");
        }
    }

    fn tune(&mut self) {
        if self.lanes.workers() < self.climb.workers() || !self.engine.switch.is_running() {
            return self.climb.interrupt();
        }
        let stats = &self.engine.stats;
        let requests = self.fetched + stats.chunks_done.get(); // a file is asked for before its bytes are
        let done = Done { bytes: stats.bytes_fetched.get(), requests };
        self.climb.sample(self.engine.started.elapsed(), done, self.engine.fetcher.trip_bytes());
    }

    /// What is to end ends: by itself, unless it is stopped.
    async fn wind_up(mut self) {
        self.scans.shutdown().await;
        let engine = self.engine;
        loop {
            if engine.switch.state() == SwitchState::Stopped {
                self.workers.shutdown().await;
            }
            let orders = engine.switch.orders();
            tokio::select! {
                ended = self.workers.join_next() => match ended {
                    Some(ended) => self.note_death(ended.err()),
                    None => break,
                },
                () = engine.switch.ordered_since(orders) => {}
            }
        }
        engine.board.clear();
    }
}

async fn work(
    engine: Arc<Engine>,
    job: Arc<DirectoryJob>,
    name: Option<OsString>,
    slot: Slot,
    failures: Arc<AtomicU64>,
) {
    let Some(name) = name else { return engine.close(job, &failures).await };
    let copied = engine.hydrate_entry(&job.node, &name, slot).await;
    if matches!(copied, Ok(Copied::Cut)) {
        return; // the directory stays open
    }
    let path = job.path();
    if engine.note(&path.child(&name).unwrap_or(path), copied, &failures).is_some() {
        engine.board.walk.entries_done.increment();
    }
    engine.close(job, &failures).await;
}
