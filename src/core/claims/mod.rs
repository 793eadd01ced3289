//! Who fetches which bytes of one file, who waits for them, and when they may be read.
//!
//! The heart. A caller asks for a range and is told that it is covered, that it failed a moment ago, or that it
//! must wait; in the last case it also receives a [`Lease`] for every part that nobody fetches yet. A lease is the right and the duty
//! to fetch: each block is led by at most one lease, and every way of ending one, drop included, wakes all who
//! waited for it.
//!
//! | file | what |
//! |---|---|
//! | `lease` | the two ends of a fetch |
//! | `record` | blocks on their way into the durable record |
//! | `evict` | blocks on their way off the disk, and who must not notice |

mod evict;
mod lease;
mod record;
mod state;

use std::sync::Arc;
use std::time::Instant;

use crate::core::ids::{ChunkId, Ids};
use crate::core::priority::Priority;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_count};
use crate::error::Error;
use crate::sync::{AtomicU8, AtomicU64, Mutex, Ordering, fence, signal};

use state::{Failure, State, Waiting};

pub use evict::{Covered, Eviction, Pin};
pub use lease::{Lease, Waiter};
pub use record::Unrecorded;

/// Presence, running chunks and waiters of one version of one file.
///
/// # Concurrency
/// All methods may be called from any thread; each holds one lock for memory work only and wakes waiters after it is released.
#[derive(Debug)]
pub struct Claims {
    size: u64,
    /// Bytes in present blocks. Written under the lock, read by anyone (Relaxed: a number for people).
    local_bytes: AtomicU64,
    /// How often everything was taken back. Release in `clear`; pairs with Acquire in `epoch`.
    epoch: AtomicU64,
    /// How often anything was taken back, a block or everything. Written under the lock; see [`Claims::still_covers`] for its fences.
    changes: AtomicU64,
    state: Mutex<State>,
}

/// One request to the source while it runs.
#[derive(Debug)]
pub struct Chunk {
    /// Its number, never repeated.
    pub id: ChunkId,
    /// Whole blocks, the last one cut at the file's end.
    pub range: ByteRange,
    /// Bytes landed from `range.start` on. Release by the downloader; pairs with Acquire in [`Chunk::landed`].
    landed: AtomicU64,
    /// The most urgent [`Priority`] that wants it. Relaxed: a hint.
    priority: AtomicU8,
    /// Signs of life without bytes: the source works towards this range. Relaxed: only its change matters.
    beats: AtomicU64,
}

impl Chunk {
    /// Bytes landed so far, from the start of the range.
    pub fn landed(&self) -> u64 {
        self.landed.load(Ordering::Acquire)
    }

    /// The most urgent priority that wants it.
    pub fn priority(&self) -> Priority {
        Priority::from_u8(self.priority.load(Ordering::Relaxed))
    }

    fn landed_range(&self) -> ByteRange {
        ByteRange::at(self.range.start, self.landed())
    }
}

/// The answer to [`Claims::claim`].
#[derive(Debug)]
pub enum Claim {
    /// Every byte can be read from the backing file.
    Covered,
    /// A part failed a moment ago and is not asked for again yet.
    Failed(Error),
    /// Fetch what `leases` name (if any), then wait.
    Pending {
        /// The parts that nobody fetched yet; the caller now has to.
        leases: Vec<Lease>,
        /// Wakes when the range is covered or a part of it ended without being fetched.
        waiter: Waiter,
    },
}

/// The answer to [`Claims::lead`].
#[derive(Debug)]
pub enum Lead {
    /// The first part of the range that nobody fetched yet.
    Lease(Lease),
    /// Everything missing is being fetched.
    Running,
    /// A missing part failed a moment ago.
    Failed(Error),
    /// Nothing is missing.
    Covered,
}

impl Claims {
    /// No block of a file of `size` bytes is present. A file of 0 bytes is covered at once.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            local_bytes: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            state: Mutex::new(State::default()),
        }
    }

    /// Length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in present blocks.
    pub fn local_bytes(&self) -> u64 {
        self.local_bytes.load(Ordering::Relaxed)
    }

    /// Whether every byte of `want` that lies within the file can be read from the backing file now.
    pub fn covers(&self, want: ByteRange) -> bool {
        let want = want.clip(self.size);
        self.state.lock().lacking(want) == 0
    }

    /// How often everything was taken back.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether every block is present.
    pub fn is_complete(&self) -> bool {
        self.state.lock().map.present() == block_count(self.size)
    }

    /// Asks for `want`. New chunks hold at most `max_chunk` bytes (at least one block) and take their numbers from `ids`.
    pub fn claim(
        self: &Arc<Self>,
        want: ByteRange,
        priority: Priority,
        max_chunk: u64,
        ids: &Ids,
        now: Instant,
    ) -> Claim {
        let want = want.clip(self.size);
        let mut state = self.state.lock();
        if state.lacking(want) == 0 {
            return Claim::Covered;
        }
        if let Some(error) = state.recent_failure(want, now) {
            return Claim::Failed(error);
        }
        let blocks = want.to_blocks(self.size);
        for chunk in state.running_within(blocks) {
            chunk.priority.fetch_min(priority as u8, Ordering::Relaxed);
        }
        let mut leases = Vec::new();
        while let Some(gap) = state.first_gap(blocks, self.size) {
            leases.push(self.lease(&mut state, gap, priority, max_chunk, ids));
        }
        let waiter = self.enlist(&mut state, want);
        Claim::Pending { leases, waiter }
    }

    /// Takes the first part of `range` that nobody fetches, at most `max_bytes` (at least one block), without waiting for anything.
    pub fn lead(
        self: &Arc<Self>,
        range: ByteRange,
        priority: Priority,
        max_bytes: u64,
        ids: &Ids,
        now: Instant,
    ) -> Lead {
        let range = range.clip(self.size);
        let mut state = self.state.lock();
        if state.lacking(range) == 0 {
            return Lead::Covered;
        }
        if let Some(error) = state.recent_failure(range, now) {
            return Lead::Failed(error);
        }
        match state.first_gap(range.to_blocks(self.size), self.size) {
            Some(gap) => Lead::Lease(self.lease(&mut state, gap, priority, max_bytes, ids)),
            None => Lead::Running,
        }
    }

    /// Whether some of `range` is neither here nor fetched by anybody.
    pub fn has_free(&self, range: ByteRange) -> bool {
        let range = range.clip(self.size);
        let state = self.state.lock();
        state.lacking(range) > 0 && state.first_gap(range.to_blocks(self.size), self.size).is_some()
    }

    /// Waits for `want` without fetching: `None` if it is covered.
    pub fn wait_for(self: &Arc<Self>, want: ByteRange) -> Option<Waiter> {
        let want = want.clip(self.size);
        let mut state = self.state.lock();
        if state.lacking(want) == 0 {
            return None;
        }
        Some(self.enlist(&mut state, want))
    }

    /// Waits for `want` as long as all that is missing of it is being fetched: a chunk that ends before its end wakes too. `None` if `want`
    /// is covered, or if nobody fetches some of it: what is free already when one begins to wait, nobody would tell.
    pub fn wait_while_running(self: &Arc<Self>, want: ByteRange) -> Option<Waiter> {
        let want = want.clip(self.size);
        let mut state = self.state.lock();
        let is_under_way = state.lacking(want) > 0
            && state.first_gap(want.to_blocks(self.size), self.size).is_none();
        is_under_way.then(|| self.enlist(&mut state, want))
    }

    /// Marks the whole blocks inside `range` as present: the backing file holds them without a fetch (a hole, an adopted file).
    pub fn mark_present(&self, range: ByteRange) {
        let range = range.clip(self.size);
        let mut state = self.state.lock();
        let first = range.start.div_ceil(BLOCK_SIZE);
        let end =
            if range.end == self.size { block_count(self.size) } else { range.end / BLOCK_SIZE };
        if first < end {
            state.map.set(first..end);
            self.publish_local_bytes(&state);
        }
        let woken = state.recount(range);
        drop(state);
        drop(woken);
    }

    /// Takes back everything: no block is present any more, running chunks land in vain. All waiters look again. The backing file
    /// may be exchanged afterwards, not before.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.changes.fetch_add(1, Ordering::AcqRel);
        let old = std::mem::take(&mut *state);
        state.next_waiter = old.next_waiter;
        self.local_bytes.store(0, Ordering::Relaxed);
        drop(state);
        drop(old);
        fence(Ordering::Release); // as in `evict`
    }

    /// Remembers that `range` cannot be had until `until`, so that who asks again meanwhile is answered at once.
    pub fn remember_failure(&self, range: ByteRange, error: Error, until: Instant) {
        self.state.lock().failures.push(Failure { range, error, until });
    }

    /// The error of a missing part of `range` that failed a moment ago.
    pub fn failed(&self, range: ByteRange, now: Instant) -> Option<Error> {
        self.state.lock().recent_failure(range.clip(self.size), now)
    }

    /// A number that changes while the chunks that fetch `range` make progress, in bytes or otherwise.
    pub fn signs_of_life(&self, range: ByteRange) -> u64 {
        let state = self.state.lock();
        let lives = state.running_within(range.clip(self.size)).map(|chunk| {
            let beats = chunk.beats.load(Ordering::Relaxed);
            chunk.id.0.wrapping_add(beats).wrapping_add(chunk.landed())
        });
        lives.fold(0, u64::wrapping_add)
    }

    /// Forgets remembered failures (a new open asks afresh).
    pub fn forget_failures(&self) {
        self.state.lock().failures.clear();
    }

    /// The chunks that run now, in order of offset.
    pub fn running(&self) -> Vec<Arc<Chunk>> {
        self.state.lock().running.values().cloned().collect()
    }

    /// The chunks that run now and hold a byte of `range`.
    pub fn running_in(&self, range: ByteRange) -> Vec<Arc<Chunk>> {
        self.state.lock().running_within(range).cloned().collect()
    }

    fn lease(
        self: &Arc<Self>,
        state: &mut State,
        gap: ByteRange,
        priority: Priority,
        max_bytes: u64,
        ids: &Ids,
    ) -> Lease {
        let max_bytes = (max_bytes / BLOCK_SIZE).max(1) * BLOCK_SIZE;
        let range = ByteRange::new(gap.start, gap.end.min(gap.start.saturating_add(max_bytes)));
        let chunk = Arc::new(Chunk {
            id: ChunkId(ids.next()),
            range,
            landed: AtomicU64::new(0),
            priority: AtomicU8::new(priority as u8),
            beats: AtomicU64::new(0),
        });
        state.running.insert(range.start, Arc::clone(&chunk));
        Lease { claims: Arc::clone(self), chunk, ended: false }
    }

    fn enlist(self: &Arc<Self>, state: &mut State, want: ByteRange) -> Waiter {
        let (closer, signal) = signal();
        let id = state.next_waiter;
        state.next_waiter += 1;
        let lacking = Arc::new(AtomicU64::new(state.lacking(want)));
        let waiting = Waiting { id, want, lacking: Arc::clone(&lacking), _closer: closer };
        state.waiters.push(waiting);
        Waiter { claims: Arc::clone(self), id, want, lacking, signal }
    }

    fn publish_local_bytes(&self, state: &State) {
        let mut bytes = state.map.present().saturating_mul(BLOCK_SIZE);
        let tail = self.size % BLOCK_SIZE;
        if tail > 0 && state.map.is_present(self.size / BLOCK_SIZE) {
            bytes -= BLOCK_SIZE - tail;
        }
        self.local_bytes.store(bytes, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
#[path = "tests.rs"]
mod tests;

#[cfg(all(test, lazycopy_loom))]
#[path = "model.rs"]
mod model;
