//! What goes on, as plain values: for status, the progress bar and the log.

use std::collections::HashSet;
use std::sync::Arc;

use crate::core::claims::Chunk;
use crate::core::in_flight::Noted;
use crate::core::phase::Phase;
use crate::engine::Engine;
use crate::engine::file::LazyFile;
use crate::engine::hydrate::board::share;
use crate::engine::node::Node;
use crate::engine::stats::Stats;

/// Files that a count looks at, at most, until none leaves memory meanwhile. Of so many, the few that may be missed then are not seen.
const LOOKED_AT: usize = 100_000;

/// What is known of the copy at one time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Regular files known.
    pub files: u64,
    /// Of these, plain files in the destination.
    pub files_published: u64,
    /// Of these, partly here.
    pub files_partial: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, what is not left out by the copy; an estimate while not all sizes are known.
    pub bytes_wanted: u64,
    /// The share of the copy that is done, between 0 and 1; of a tree that is still walked, as if the rest were like what is known.
    pub share: f64,
    /// Bytes that are here.
    pub bytes_local: u64,
    /// Whether every directory was listed, so that `files` and `bytes` are all there are.
    pub is_scanned: bool,
}

impl Tally {
    /// Bytes that are wanted and not here.
    pub fn bytes_left(&self) -> u64 {
        self.bytes_wanted.saturating_sub(self.bytes_local)
    }
}

/// One waiting operation with what it waits for.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The operation.
    pub noted: Noted,
    /// What it works on, if that is known.
    pub path: String,
    /// The chunks that will answer it: their numbers and bytes landed.
    pub chunks: Vec<(u64, u64)>,
}

impl Engine {
    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts what is here, file by file.
    pub fn tally(&self) -> Tally {
        let mut looked_at = 0;
        loop {
            let before = self.tree.let_go.generation();
            let nodes = self.tree.nodes();
            let tally = self.tally_of(&nodes);
            let is_right = before.is_some() && self.tree.let_go.generation() == before;
            looked_at += nodes.len() + 1;
            if is_right || looked_at >= LOOKED_AT {
                return tally;
            }
            std::thread::yield_now();
        }
    }

    fn tally_of(&self, nodes: &[Arc<Node>]) -> Tally {
        let (published, published_bytes) = self.tree.let_go.counts();
        let mut tally = Tally {
            files_published: published + self.stats.carried.get(),
            bytes_local: published_bytes + self.stats.carried_bytes.get(),
            files: self.stats.files_known.get(),
            bytes: self.stats.bytes_known.get(),
            is_scanned: self.stats.scan_done.get() > 0,
            ..Tally::default()
        };
        let deleted: HashSet<u64> = self.changes.deleted().into_iter().collect();
        for node in nodes {
            let Some(file) = node.file_in_use().filter(|file| !file.is_stale()) else { continue };
            if deleted.contains(&node.ino) {
                continue;
            }
            tally.bytes_local += file.claims.local_bytes();
            match file.phase.get() {
                Phase::Published => tally.files_published += 1,
                Phase::Filling => tally.files_partial += 1,
                _ => {}
            }
        }
        self.estimate(&mut tally);
        tally
    }

    /// Where listings tell no sizes, entries are what can be counted.
    fn estimate(&self, tally: &mut Tally) {
        let walked = if tally.is_scanned { 1.0 } else { self.walked_share() };
        let (entries_share, entries) = self.entries_share();
        let skipped = self.stats.bytes_skipped.get();
        tally.bytes_wanted = tally.bytes.saturating_sub(skipped);
        if self.lists_attributes() || entries == 0 {
            let bytes_share = share(tally.bytes_local, tally.bytes_wanted).unwrap_or(0.0);
            tally.share = bytes_share * walked;
            return;
        }
        let mean = tally.bytes_wanted.checked_div(tally.files).unwrap_or(0);
        tally.bytes_wanted = tally.bytes_wanted.max(mean.saturating_mul(entries));
        tally.files = tally.files.max(entries);
        tally.share = entries_share * walked;
    }

    /// Seconds until everything that is wanted is here, as fast as it came lately; `None` until that is known.
    pub fn eta_s(&self, tally: &Tally) -> Option<u64> {
        self.stats.rate.eta_s(tally.bytes_left())
    }

    /// Takes a sample for the rates; called once a beat.
    pub fn sample_rate(&self) {
        self.stats.sample_rates(self.started.elapsed());
    }

    /// The chunks that run, with their files, in order of their numbers.
    pub fn active_chunks(&self) -> Vec<(Arc<Chunk>, Arc<LazyFile>)> {
        let mut active = self.fetcher.active();
        active.sort_by_key(|(chunk, _)| chunk.id);
        active
    }

    /// Requests that may run at once now, and most that ever may.
    pub fn connections(&self) -> (usize, usize) {
        self.fetcher.permits.limits()
    }

    /// Requests that wait for a permit.
    pub fn queued_chunks(&self) -> usize {
        self.fetcher.queued()
    }

    /// Everything that waits now, oldest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.in_flight.all().into_iter().map(|noted| self.explain(noted)).collect()
    }

    /// What an operation waits for.
    pub fn explain(&self, noted: Noted) -> Waiting {
        let node = self.node(noted.ino).ok();
        let path = node.as_ref().map_or_else(String::new, |node| node.path().to_string());
        let chunks = node
            .as_ref()
            .and_then(|node| node.file().ok())
            .map(|file| {
                let want = crate::core::range::ByteRange::at(noted.offset, noted.len);
                let running = file.claims.running_in(want);
                running.iter().map(|chunk| (chunk.id.0, chunk.landed())).collect()
            })
            .unwrap_or_default();
        Waiting { noted, path, chunks }
    }
}
