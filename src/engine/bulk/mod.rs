//! The whole tree of a source on this machine, by plain threads: no task, no request and no sync for each file.
//!
//! Scanners compare directory by directory what the source, the catalog and DIR have; carriers bring the bytes over and prove them; one
//! publisher takes steps ([`Steps`](crate::store::bulk::Steps)). A first pass carries while it scans. Once a pass was complete, the next
//! one is a *delta pass*: it scans first, so that what has another name at the source is known again and only renamed.
//! What is out of the ordinary (a part of an earlier life, a file that lay in DIR before us, a very large one) is left to the engine's own way, file by file.
//!
//! | file | what |
//! |---|---|
//! | `scan`, `judge` | one directory: what is new, changed or gone; what is to be done about one name |
//! | `carry` | one file: its bytes brought over, read back, compared |
//! | `land` | the publisher |
//! | [`plan`] | what a pass found; renames |
//! | `mirror` | deletions, links, directories: what comes after the bytes |
//! | `gone` | what the source has no more: found, taken out |
//! | [`remote`] | a source on another machine: what its pass finds before the bytes and does after them |

mod carry;
mod gone;
mod judge;
mod land;
mod mirror;
pub mod plan;
pub mod remote;
mod scan;

use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use crossbeam::channel;

use crate::core::path::RelPath;
use crate::core::table::Table;
use crate::engine::Engine;
use crate::engine::bulk::carry::Carrier;
use crate::engine::bulk::land::{Landed, Publisher};
use crate::engine::bulk::plan::{Batch, Plan};
use crate::engine::bulk::scan::{Queue, Scanner};
use crate::engine::stats::Counter;
use crate::engine::switch::SwitchState;
use crate::error::{Error, Kind, Result};
use crate::source::local::tree::LocalTree;
use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Batches of files that wait for a carrier.
const BATCHES: usize = 256;
/// Between two looks at what makes the threads wait.
const LOOK: Duration = Duration::from_millis(50);
/// Times that a file which changes while it is carried is begun again.
const TRIES: u32 = 3;

/// What a bulk copy is asked for.
#[derive(Debug, Clone)]
pub struct BulkSettings {
    /// Threads that carry; `None` = as many as help on this machine.
    pub jobs: Option<usize>,
    /// Take out of DIR what is gone at the source, at most so many entries.
    pub delete: Option<u64>,
    /// Find out only what would be done.
    pub is_dry: bool,
}

/// What was done, or would be.
#[derive(Debug, Default)]
pub struct Counts {
    /// Files whose bytes travelled, and their bytes.
    pub copied: Counter,
    /// As above.
    pub copied_bytes: Counter,
    /// Files that were there already.
    pub unchanged: Counter,
    /// Files that only have another name now.
    pub renamed: Counter,
    /// More names of files.
    pub linked: Counter,
    /// Symlinks, pipes, sockets and devices made.
    pub specials: Counter,
    /// Entries that only got other metadata.
    pub renewed: Counter,
    /// Directories listed.
    pub directories: Counter,
    /// Entries taken out of DIR.
    pub deleted: Counter,
    /// Entries that are gone at the source and were not taken out: nobody asked for it.
    pub gone: Counter,
    /// Entries that are gone at the source and stay, because somebody changed them in DIR.
    pub kept: Counter,
    /// Entries that the filter leaves out; a directory counts once.
    pub left_out: Counter,
    /// Requests for bytes that a dry run would make.
    pub requests: Counter,
}

/// Called once, before the first change to DIR.
pub type Begin = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// One bulk copy.
pub struct Bulk {
    engine: Arc<Engine>,
    tree: LocalTree,
    settings: BulkSettings,
    counts: Arc<Counts>,
    begin: Begin,
    begun: OnceLock<Result<()>>,
    /// Relaxed: looked at between two files.
    is_stopped: Arc<AtomicBool>,
    /// Files with several names at the source: which of them is carried.
    links: Table<(u64, u64), (RelPath, u64)>,
    /// Cloning extents does not work between these two. Relaxed: found out again.
    cannot_clone: AtomicBool,
    /// Until when what was read is paid for, in ns since the engine's start. Relaxed: a number among others.
    paid_ns: AtomicU64,
    /// Something could not be listed: what is missing is not known to be gone.
    is_blind: AtomicBool,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// How a bulk copy ended.
#[derive(Debug)]
pub struct Ended {
    /// Paths that are left to the engine.
    pub left: Vec<RelPath>,
    /// Whether it was stopped.
    pub is_stopped: bool,
}

impl Bulk {
    /// `None` if the source is not a directory of this machine.
    pub fn new(engine: &Arc<Engine>, settings: BulkSettings, begin: Begin) -> Option<Self> {
        Some(Self {
            tree: engine.source.local_tree()?,
            engine: Arc::clone(engine),
            settings,
            counts: Arc::default(),
            begin,
            begun: OnceLock::new(),
            is_stopped: Arc::default(),
            links: Table::default(),
            cannot_clone: AtomicBool::new(false),
            paid_ns: AtomicU64::new(0),
            is_blind: AtomicBool::new(false),
        })
    }

    /// What was done so far.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Set, it ends the copy soon; what is published stays.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_stopped)
    }

    /// Whether DIR was changed, or would have been.
    pub fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    /// Does all of it. `is_delta` says that an earlier pass was complete. Blocking.
    ///
    /// # Errors
    /// What makes the whole copy impossible; what fails for one entry is noted in the engine's errors.
    pub fn run(&self, is_delta: bool) -> Result<Ended> {
        let mut publisher = Publisher::new(self);
        let mut plan = self.scan(&mut publisher, is_delta || self.settings.is_dry)?;
        self.engine.stats.scan_done.increment();
        plan.match_renames();
        self.check_deletions(&plan)?;
        if self.settings.is_dry {
            self.count_plan(&plan);
            return Ok(self.ended(plan));
        }
        self.carry_plan(&mut publisher, &mut plan)?;
        self.mirror(&mut publisher, &mut plan)?;
        Ok(self.ended(plan))
    }

    fn ended(&self, plan: Plan) -> Ended {
        Ended { left: plan.left, is_stopped: self.is_over() }
    }

    /// Scans everything; unless `is_plan` what is found is carried at once.
    fn scan(&self, publisher: &mut Publisher<'_>, is_plan: bool) -> Result<Plan> {
        let (batches, carried) = channel::bounded(BATCHES);
        let (landed, lands) = channel::bounded(BATCHES);
        let queue = Queue::new(self.engine.settings.hydrate.filter.root());
        std::thread::scope(|scope| {
            let scanners: Vec<_> = (0..self.cores())
                .map(|_| {
                    let scanner =
                        Scanner::new(self, &queue, batches.clone(), landed.clone(), is_plan);
                    scope.spawn(move || scanner.run())
                })
                .collect();
            let carriers: Vec<_> = (0..if is_plan { 0 } else { self.jobs() })
                .map(|_| {
                    let (carried, landed) = (carried.clone(), landed.clone());
                    scope.spawn(move || Carrier::new(self).run(&carried, &landed))
                })
                .collect();
            let collector = is_plan.then(|| {
                let carried = carried.clone();
                scope.spawn(move || carried.iter().collect::<Vec<Batch>>())
            });
            // Everybody else ends when nobody can send to him any more.
            drop((batches, carried, landed));
            let published = publisher.run(&lands);
            if published.is_err() {
                self.is_stopped.store(true, Ordering::Relaxed);
                while lands.recv().is_ok() {}
            }
            let plans = scanners.into_iter().map(|thread| joined(thread.join()));
            let plans = plans.collect::<Result<Vec<_>>>()?;
            let mut plan = plans.into_iter().fold(Plan::default(), Plan::and);
            for carrier in carriers {
                joined(carrier.join())?;
            }
            plan.batches = collector.map_or(Ok(Vec::new()), |thread| joined(thread.join()))?;
            published.map(|()| plan)
        })
    }

    /// Carries what a plan has, and again what was not ready the first time.
    fn carry_plan(&self, publisher: &mut Publisher<'_>, plan: &mut Plan) -> Result<()> {
        self.move_files(publisher, plan)?;
        let mut batches = std::mem::take(&mut plan.batches);
        let mut tries = 0;
        loop {
            if !batches.is_empty() {
                self.ensure_begun()?;
                self.carry(publisher, batches)?;
            }
            batches = publisher.take_again();
            tries += 1;
            if batches.is_empty() || self.is_over() {
                break;
            }
            self.rest(&batches);
            let mut looked = Vec::with_capacity(batches.len());
            for batch in batches {
                looked.extend(self.look_again(publisher, plan, batch, tries));
            }
            batches = looked;
        }
        plan.left.extend(publisher.take_left());
        Ok(())
    }

    fn carry(&self, publisher: &mut Publisher<'_>, batches: Vec<Batch>) -> Result<()> {
        let (sender, carried) = channel::bounded(BATCHES);
        let (landed, lands) = channel::bounded(BATCHES);
        std::thread::scope(|scope| {
            let carriers: Vec<_> = (0..self.jobs())
                .map(|_| {
                    let (carried, landed) = (carried.clone(), landed.clone());
                    scope.spawn(move || Carrier::new(self).run(&carried, &landed))
                })
                .collect();
            drop((carried, landed));
            let feeder = scope.spawn(move || {
                // Fails when all carriers have ended: then nobody wants more.
                let _all = batches.into_iter().try_for_each(|batch| sender.send(batch));
            });
            let published = publisher.run(&lands);
            if published.is_err() {
                self.is_stopped.store(true, Ordering::Relaxed);
                while lands.recv().is_ok() {}
            }
            joined(feeder.join())?;
            carriers.into_iter().try_for_each(|carrier| joined(carrier.join()))?;
            published
        })
    }

    fn cores(&self) -> usize {
        available_parallelism().map_or(1, usize::from)
    }

    /// More than there are cores: some of them wait for the disk.
    fn jobs(&self) -> usize {
        self.settings.jobs.unwrap_or_else(|| (2 * self.cores()).clamp(4, 32)).max(1)
    }

    /// Whether nothing new is to be begun.
    fn is_over(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
            || matches!(self.engine.switch().state(), SwitchState::Draining | SwitchState::Stopped)
    }

    /// Before the first change to DIR.
    fn ensure_begun(&self) -> Result<()> {
        match self.settings.is_dry {
            true => {
                Err(Error::new(Kind::ReadOnly, "change destination").because("this is a dry run"))
            }
            false => self.begun.get_or_init(|| (self.begin)()).clone(),
        }
    }

    /// Waits while it is paused, or the destination has too little room; the beat of the daemon looks.
    fn wait_until_allowed(&self) {
        while self.is_held() && !self.is_over() {
            std::thread::sleep(LOOK);
        }
    }

    fn is_held(&self) -> bool {
        self.engine.is_short_of_room() || self.engine.switch().state() == SwitchState::Paused
    }

    /// Waits until `bytes` more may come, where the rate is limited.
    fn pace(&self, bytes: u64) {
        let Some(rate) = self.engine.limits().rate() else { return };
        let started = self.engine.started;
        let now_ns = || u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let cost_ns = bytes.saturating_mul(1_000_000_000) / rate.max(1);
        let pay = |paid: u64| Some(paid.max(now_ns()).saturating_add(cost_ns));
        let before = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        let due = before.unwrap_or(0);
        while now_ns() < due && !self.is_over() {
            std::thread::sleep(LOOK.min(Duration::from_nanos(due.saturating_sub(now_ns()))));
        }
    }

    fn failed(&self, path: &RelPath, error: &Error) {
        let stats = &self.engine.stats;
        if error.kind() == Kind::NotFound && !error.is_of_destination() {
            stats.entries_vanished.increment();
            return tracing::info!(%path, "vanished at the source");
        }
        stats.errors.failed(path, None, error);
        tracing::warn!(%path, kind = %error.kind(), %error, "not copied");
    }
}

/// What a thread answers; a panic in it is an error of the copy.
fn joined<T>(ended: std::thread::Result<T>) -> Result<T> {
    ended.map_err(|_panic| Error::new(Kind::Io, "copy").because("a thread of it has panicked"))
}

/// Nobody is there to hear it only when the copy ends.
fn send(to: &channel::Sender<Landed>, landed: Landed) {
    if to.send(landed).is_err() {
        tracing::debug!("nobody publishes any more");
    }
}
