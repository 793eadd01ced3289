//! Which worker works where, and how far the walk is: for status and tests.

use std::sync::Arc;

use crate::core::path::RelPath;
use crate::core::table::Table;
use crate::engine::Engine;
use crate::engine::node::Node;
use crate::engine::stats::Counter;

/// What the background copy shows of itself.
#[derive(Debug, Default)]
pub struct Board {
    /// Directories with workers, by the number of their lane.
    lanes: Table<u64, (Arc<Node>, usize)>,
    /// Most workers that are in lanes at once, as it pays off.
    pub(super) workers_wanted: Counter,
    pub(super) walk: Walked,
}

/// How far the walk is, and the workers behind it, since the whole tree was begun last.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) directories_found: Counter,
    pub(super) directories_listed: Counter,
    /// Entries to be copied, and those that are.
    pub(super) entries_found: Counter,
    pub(super) entries_done: Counter,
}

impl Walked {
    /// From the root again.
    pub(super) fn begin(&self) {
        let Self { directories_found, directories_listed, entries_found, entries_done } = self;
        [directories_found, directories_listed, entries_found, entries_done]
            .iter()
            .for_each(|counter| counter.set(0));
    }
}

/// A source directory in which workers fetch files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusyLane {
    /// The directory.
    pub path: RelPath,
    /// Workers in it.
    pub workers: usize,
}

impl Board {
    pub(super) fn show(&self, lane: u64, directory: &Arc<Node>, workers: usize) {
        self.lanes.insert(lane, (Arc::clone(directory), workers));
    }

    pub(super) fn set_workers(&self, lane: u64, workers: usize) {
        if let Some((directory, _)) = self.lanes.remove(&lane)
            && workers > 0
        {
            self.lanes.insert(lane, (directory, workers));
        }
    }

    pub(super) fn clear(&self) {
        self.lanes.keys().iter().for_each(|lane| drop(self.lanes.remove(lane)));
    }
}

impl Engine {
    /// The source directories in which workers fetch files now, in order of their paths.
    pub fn busy_lanes(&self) -> Vec<BusyLane> {
        let lanes = self.board.lanes.values().into_iter();
        let mut lanes: Vec<_> =
            lanes.map(|(node, workers)| BusyLane { path: node.path(), workers }).collect();
        lanes.sort_by(|one, other| one.path.cmp(&other.path));
        lanes
    }

    /// Most files that are fetched at once now, as it pays off.
    pub fn workers_wanted(&self) -> u64 {
        self.board.workers_wanted.get()
    }

    /// Of the directories found so far, the share that the walk has listed; 1 before it began.
    pub(crate) fn walked_share(&self) -> f64 {
        let walk = &self.board.walk;
        share(walk.directories_listed.get(), walk.directories_found.get()).unwrap_or(1.0)
    }

    /// Of the entries found so far, the share that is copied, and how many there are.
    pub(crate) fn entries_share(&self) -> (f64, u64) {
        let Walked { entries_found, entries_done, .. } = &self.board.walk;
        (share(entries_done.get(), entries_found.get()).unwrap_or(0.0), entries_found.get())
    }
}

/// `part` of `whole`, between 0 and 1; `None` of nothing.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
pub(in crate::engine) fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part as f64 / whole as f64).min(1.0))
}
