//! The two ends of a fetch: who has to do it, and who waits for it.

use std::sync::Arc;
use std::time::Instant;

use crate::core::range::{BLOCK_SIZE, ByteRange};
use crate::error::Error;
use crate::sync::{AtomicU64, Ordering, Signal};

use super::state::Failure;
use super::{Chunk, Claims};

/// The right and the duty to fetch one chunk. Owned by a fetch task, never by a reader.
#[derive(Debug)]
pub struct Lease {
    pub(super) claims: Arc<Claims>,
    pub(super) chunk: Arc<Chunk>,
    pub(super) ended: bool,
}

impl Lease {
    /// The chunk to fetch.
    pub fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    /// What has not landed yet: a suffix of the chunk's range. A retry resumes at its start.
    pub fn remaining(&self) -> ByteRange {
        ByteRange::new(self.chunk.range.start + self.chunk.landed(), self.chunk.range.end)
    }

    /// The source works on it, though no byte came.
    pub fn beat(&self) {
        self.chunk.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether somebody waits for a byte that has not landed yet.
    pub fn is_awaited(&self) -> bool {
        let remaining = self.remaining();
        let state = self.claims.state.lock();
        state.waiters.iter().any(|waiting| waiting.want.overlaps(remaining))
    }

    /// Tells that the next `bytes` bytes are in the backing file. Wakes whoever lacks nothing more. `false` = the chunk was taken back:
    /// nobody is waiting for it any more.
    ///
    /// # Panics
    /// If more lands than the chunk holds: the caller has to cut.
    pub fn landed(&mut self, bytes: u64) -> bool {
        let before = self.remaining().start;
        let front = before + bytes;
        assert!(front <= self.chunk.range.end, "invariant: no byte lands outside its chunk");
        let mut state = self.claims.state.lock();
        if !state.runs(&self.chunk) {
            return false; // taken back by `clear`
        }
        // Release; pairs with Acquire in Chunk::landed: who sees the count sees the bytes.
        self.chunk.landed.store(front - self.chunk.range.start, Ordering::Release);
        let end = if front == self.chunk.range.end {
            self.chunk.range.blocks().end
        } else {
            front / BLOCK_SIZE
        };
        let first = before / BLOCK_SIZE;
        if bytes > 0 && first < end {
            state.map.set(first..end);
            state.unrecorded.insert(first..end);
            self.claims.publish_local_bytes(&state);
        }
        let landed = ByteRange::new(before, front);
        state.failures.retain(|failure| !failure.range.overlaps(landed));
        let woken = state.count_off(landed);
        drop(state);
        drop(woken);
        true
    }

    /// Ends the chunk because all of it landed; anything less counts as abandoned.
    pub fn commit(mut self) {
        self.end(None);
    }

    /// Ends the chunk for good: who waits for what is missing gets `error`, as does who asks before `until`.
    pub fn fail(mut self, error: Error, until: Instant) {
        self.end(Some((error, until)));
    }

    fn end(&mut self, failure: Option<(Error, Instant)>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let missing = self.remaining();
        let mut state = self.claims.state.lock();
        if !state.runs(&self.chunk) {
            return;
        }
        state.running.remove(&self.chunk.range.start);
        if missing.is_empty() {
            return; // the last `landed` has woken everybody
        }
        if let Some((error, until)) = failure {
            state.failures.push(Failure { range: missing, error, until });
        }
        // The bytes that landed in an unfinished block are no longer covered: its readers look again too.
        let block_start = missing.start / BLOCK_SIZE * BLOCK_SIZE;
        let woken = state.wake_within(ByteRange::new(block_start, missing.end));
        drop(state);
        drop(woken);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end(None);
    }
}

/// A place in the queue for a range. Dropping it leaves the queue and disturbs nobody.
#[derive(Debug)]
pub struct Waiter {
    pub(super) claims: Arc<Claims>,
    pub(super) id: u64,
    pub(super) want: ByteRange,
    pub(super) lacking: Arc<AtomicU64>,
    pub(super) signal: Signal,
}

impl Waiter {
    /// Closes when the range is covered, or a part of it ended without being fetched: look again.
    pub fn signal(&mut self) -> &mut Signal {
        &mut self.signal
    }

    /// Bytes still lacking: falls while there is progress. Acquire; pairs with Release in `landed`.
    pub fn lacking(&self) -> u64 {
        self.lacking.load(Ordering::Acquire)
    }

    /// The range that is waited for.
    pub fn want(&self) -> ByteRange {
        self.want
    }

    #[cfg(lazycopy_loom)]
    pub(super) fn wait(self) {
        let (_, unused) = crate::sync::signal();
        let mut this = self;
        std::mem::replace(&mut this.signal, unused).wait();
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.claims.state.lock();
        let place = state.waiters.iter().position(|waiting| waiting.id == self.id);
        let left = place.map(|index| state.waiters.swap_remove(index));
        drop(state);
        drop(left);
    }
}
