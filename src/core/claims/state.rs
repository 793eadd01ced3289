//! What the lock of [`super::Claims`] guards. Methods that need the guard live here.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::core::block_map::BlockMap;
use crate::core::range::{BLOCK_SIZE, ByteRange};
use crate::core::run_set::RunSet;
use crate::error::Error;
use crate::sync::{AtomicU64, Closer, Ordering};

use super::Chunk;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) map: BlockMap,
    /// Blocks that landed since somebody took them for the record.
    pub(super) unrecorded: RunSet,
    /// Blocks that somebody took and has not answered for yet: a commit may be about to vouch for them.
    pub(super) recording: RunSet,
    /// Blocks that are being taken off the disk: absent, and nobody's to fetch until that has ended.
    pub(super) evicting: RunSet,
    /// What was evicted lately, by the number of the change; older changes are forgotten.
    pub(super) recently_evicted: VecDeque<(u64, Vec<Range<u64>>)>,
    /// What slow readers are about to copy out.
    pub(super) pins: Vec<(u64, ByteRange)>,
    /// By first byte. Chunks never overlap and hold no block that is present beyond their landed front.
    pub(super) running: BTreeMap<u64, Arc<Chunk>>,
    pub(super) waiters: Vec<Waiting>,
    /// Number of the next waiter or pin.
    pub(super) next_waiter: u64,
    pub(super) failures: Vec<Failure>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: u64,
    pub(super) want: ByteRange,
    pub(super) lacking: Arc<AtomicU64>,
    /// Its drop is the wake-up.
    pub(super) _closer: Closer,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) range: ByteRange,
    pub(super) error: Error,
    pub(super) until: Instant,
}

impl State {
    /// Bytes of `want` that cannot be read yet. `want` lies within the file.
    pub(super) fn lacking(&self, want: ByteRange) -> u64 {
        let mut lacking = 0;
        let mut blocks = want.blocks();
        while let Some(absent) = self.map.first_absent(blocks.clone()) {
            blocks.start = absent.end;
            let start = absent.start.saturating_mul(BLOCK_SIZE);
            let missing =
                ByteRange::new(start, absent.end.saturating_mul(BLOCK_SIZE)).intersect(want);
            let landed: u64 = self
                .running_within(missing)
                .map(|chunk| chunk.landed_range().intersect(missing).len())
                .sum();
            lacking += missing.len() - landed;
        }
        lacking
    }

    pub(super) fn running_within(&self, range: ByteRange) -> impl Iterator<Item = &Arc<Chunk>> {
        let before = self.running.range(..range.start).next_back();
        let within = self.running.range(range.start..range.end);
        before
            .into_iter()
            .chain(within)
            .map(|(_, chunk)| chunk)
            .filter(move |chunk| chunk.range.overlaps(range))
    }

    /// The first run of whole blocks in `range` that is neither present nor being fetched nor being evicted.
    pub(super) fn first_gap(&self, range: ByteRange, size: u64) -> Option<ByteRange> {
        let mut blocks = range.blocks();
        while let Some(absent) = self.map.first_absent(blocks.clone()) {
            if let Some(evicting) = self.evicting.run_of(absent.start) {
                blocks.start = evicting.end.min(blocks.end);
                continue;
            }
            let evicting = self.evicting.next_run(absent.start);
            let end = evicting.map_or(absent.end, |evicting| evicting.start.min(absent.end));
            let absent = ByteRange::new(
                absent.start.saturating_mul(BLOCK_SIZE),
                end.saturating_mul(BLOCK_SIZE).min(size),
            );
            match self.running_within(absent).next() {
                None => return Some(absent),
                Some(chunk) if chunk.range.start > absent.start => {
                    return Some(ByteRange::new(absent.start, chunk.range.start));
                }
                Some(chunk) => {
                    blocks.start = chunk.range.end.div_ceil(BLOCK_SIZE).min(blocks.end);
                }
            }
        }
        None
    }

    pub(super) fn recent_failure(&mut self, want: ByteRange, now: Instant) -> Option<Error> {
        self.failures.retain(|failure| failure.until > now);
        let failures = std::mem::take(&mut self.failures);
        let found = failures
            .iter()
            .find(|failure| self.lacking(want.intersect(failure.range)) > 0)
            .map(|failure| failure.error.clone());
        self.failures = failures;
        found
    }

    /// Counts `landed` off everybody who lacked it; returns those who lack nothing more: dropping them wakes them.
    pub(super) fn count_off(&mut self, landed: ByteRange) -> Vec<Waiting> {
        self.waiters
            .extract_if(.., |waiting| {
                let overlap = waiting.want.intersect(landed).len();
                overlap > 0 && {
                    let before = waiting.lacking.load(Ordering::Relaxed);
                    let left = before.saturating_sub(overlap);
                    // Release; pairs with Acquire in Waiter::lacking.
                    waiting.lacking.store(left, Ordering::Release);
                    left == 0
                }
            })
            .collect()
    }

    /// Counts anew what everybody who wants a byte of `range` lacks.
    pub(super) fn recount(&mut self, range: ByteRange) -> Vec<Waiting> {
        let mut waiters = std::mem::take(&mut self.waiters);
        let woken = waiters
            .extract_if(.., |waiting| {
                waiting.want.overlaps(range) && {
                    let left = self.lacking(waiting.want);
                    waiting.lacking.store(left, Ordering::Release);
                    left == 0
                }
            })
            .collect();
        self.waiters = waiters;
        woken
    }

    pub(super) fn wake_within(&mut self, range: ByteRange) -> Vec<Waiting> {
        self.waiters.extract_if(.., |waiting| waiting.want.overlaps(range)).collect()
    }

    /// Whether `chunk` still is the one that fetches its range.
    pub(super) fn runs(&self, chunk: &Chunk) -> bool {
        self.running.get(&chunk.range.start).is_some_and(|running| running.id == chunk.id)
    }
}
