//! Blocks on their way off the disk, and who must not notice.
//!
//! A read that hits holds nothing while it copies: it looks at the bits, copies, and looks again whether a block of its range was
//! taken back meanwhile ([`Claims::still_covers`]). As every block is taken back here before its bytes go, bytes that pass the second
//! look were there for the whole copy. So a hit costs one load more, and an eviction waits for nobody. What a slow reader waited for
//! is pinned, else two readers of a small cache could take each other's blocks for ever.

use std::ops::Range;
use std::sync::Arc;

use crate::core::range::{BLOCK_SIZE, ByteRange, block_count};
use crate::core::run_set::RunSet;
use crate::sync::{Ordering, fence};

use super::Claims;
use super::state::State;

/// Evictions remembered, so that a read of other blocks than those needs no second try.
const REMEMBERED: usize = 64;

/// Says when a range was covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    changes: u64,
}

/// Blocks that are being taken off the disk. Their bits are clear already. Dropping it ends that: they are absent, may be fetched
/// again, and who waited looks again.
#[derive(Debug)]
pub struct Eviction {
    claims: Arc<Claims>,
    epoch: u64,
    blocks: Vec<Range<u64>>,
}

/// Keeps the blocks of one range from eviction until it is dropped.
#[derive(Debug)]
pub struct Pin {
    claims: Arc<Claims>,
    id: u64,
}

impl Claims {
    /// As [`Claims::covers`]: `Some` if so, to be asked again with [`Claims::still_covers`] after the bytes were copied.
    pub fn covered_since(&self, want: ByteRange) -> Option<Covered> {
        let want = want.clip(self.size);
        let state = self.state.lock();
        let changes = self.changes.load(Ordering::Relaxed);
        (state.lacking(want) == 0).then_some(Covered { changes })
    }

    /// Whether no byte of `want` was taken back since: then what was copied from the backing file meanwhile is right.
    pub fn still_covers(&self, want: ByteRange, since: Covered) -> bool {
        // Acquire, after the copy; pairs with the Release fence in `evict` and `clear`, before the bytes go: who copied a byte of what
        // came after sees the change.
        fence(Ordering::Acquire);
        if self.changes.load(Ordering::Relaxed) == since.changes {
            return true;
        }
        let state = self.state.lock();
        let now = self.changes.load(Ordering::Relaxed);
        let wanted = want.clip(self.size).blocks();
        let later = state.recently_evicted.iter().filter(|(number, _)| *number > since.changes);
        let mut known = 0;
        for (_, blocks) in later {
            known += 1;
            if blocks.iter().any(|run| run.start < wanted.end && wanted.start < run.end) {
                return false;
            }
        }
        known == now - since.changes
    }

    /// Keeps `want` from eviction while the pin lives.
    pub fn pin(self: &Arc<Self>, want: ByteRange) -> Pin {
        let mut state = self.state.lock();
        let id = state.next_waiter;
        state.next_waiter += 1;
        state.pins.push((id, want.clip(self.size)));
        Pin { claims: Arc::clone(self), id }
    }

    /// Takes back, in the order given, at most `max_blocks` of `candidates`, but no block that is pinned, lies in `keep`, is being
    /// fetched, recorded or evicted. `None` if nothing is left. Their bytes may go once the record does not vouch for them either.
    pub fn evict(
        self: &Arc<Self>,
        candidates: &[Range<u64>],
        keep: &[ByteRange],
        max_blocks: u64,
    ) -> Option<Eviction> {
        let mut state = self.state.lock();
        let bound = state.bound(keep);
        let (mut taken, mut left) = (RunSet::default(), max_blocks);
        for candidate in candidates {
            let mut free = RunSet::default();
            free.insert(candidate.clone());
            bound.iter().for_each(|run| free.remove(run));
            for run in free.iter() {
                let run = run.start..run.end.min(run.start.saturating_add(left));
                left -= run.end - run.start;
                taken.insert(run);
            }
        }
        let blocks: Vec<_> = taken.iter().collect();
        if blocks.is_empty() {
            return None;
        }
        let eviction = self.begin(&mut state, blocks);
        drop(state);
        // Release, before any byte goes; pairs with the Acquire fence in `still_covers`.
        fence(Ordering::Release);
        Some(eviction)
    }

    /// As [`Claims::evict`] for the whole file, absent blocks included: nothing of it can be fetched until the eviction has ended. `None`
    /// if anybody uses a block.
    pub fn evict_all(self: &Arc<Self>) -> Option<Eviction> {
        let mut state = self.state.lock();
        if !state.waiters.is_empty() || !state.bound(&[]).is_empty() {
            return None;
        }
        let whole = 0..block_count(self.size);
        let eviction = self.begin(&mut state, std::iter::once(whole).collect());
        drop(state);
        fence(Ordering::Release); // as in `evict`
        Some(eviction)
    }

    fn begin(self: &Arc<Self>, state: &mut State, blocks: Vec<Range<u64>>) -> Eviction {
        let number = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        for run in &blocks {
            state.map.clear(run.clone());
            state.unrecorded.remove(run.clone());
            state.evicting.insert(run.clone());
        }
        state.recently_evicted.push_back((number, blocks.clone()));
        if state.recently_evicted.len() > REMEMBERED {
            state.recently_evicted.pop_front();
        }
        self.publish_local_bytes(state);
        for run in &blocks {
            // Nobody is woken: they lack more than before.
            drop(state.recount(bytes_of(run)));
        }
        Eviction { claims: Arc::clone(self), epoch: self.epoch(), blocks }
    }
}

impl State {
    /// Blocks that cannot go now, besides those of `keep`.
    fn bound(&self, keep: &[ByteRange]) -> RunSet {
        let mut bound = self.recording.clone();
        self.evicting.iter().for_each(|run| bound.insert(run));
        self.running.values().for_each(|chunk| bound.insert(chunk.range.blocks()));
        self.pins.iter().for_each(|(_, range)| bound.insert(range.blocks()));
        keep.iter().for_each(|range| bound.insert(range.blocks()));
        bound
    }
}

impl Eviction {
    /// The blocks, in rising order.
    pub fn blocks(&self) -> &[Range<u64>] {
        &self.blocks
    }
}

impl Drop for Eviction {
    fn drop(&mut self) {
        let mut state = self.claims.state.lock();
        if self.claims.epoch() != self.epoch {
            return; // everything was taken back meanwhile, this too
        }
        let mut woken = Vec::new();
        for run in &self.blocks {
            state.evicting.remove(run.clone());
            woken.extend(state.wake_within(bytes_of(run)));
        }
        drop(state);
        drop(woken);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.claims.state.lock().pins.retain(|(id, _)| *id != self.id);
    }
}

fn bytes_of(blocks: &Range<u64>) -> ByteRange {
    ByteRange::new(blocks.start.saturating_mul(BLOCK_SIZE), blocks.end.saturating_mul(BLOCK_SIZE))
}
