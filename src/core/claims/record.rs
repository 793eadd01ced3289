//! Blocks on their way into the durable record.

use std::ops::Range;
use std::sync::Arc;

use crate::core::run_set::RunSet;

use super::Claims;

/// Blocks that landed and that a checkpoint is about to record. They are not evicted until it has answered: a commit that vouches for
/// a block must never come after the one that takes it back. Dropping it gives them back, unless everything was taken back meanwhile.
#[derive(Debug)]
pub struct Unrecorded {
    claims: Arc<Claims>,
    epoch: u64,
    blocks: Vec<Range<u64>>,
}

impl Claims {
    /// Takes the blocks that landed since the last call: the snapshot that a checkpoint records once their bytes are synced. They are
    /// present now; their bytes were written before this call.
    pub fn take_unrecorded(self: &Arc<Self>) -> Unrecorded {
        let mut state = self.state.lock();
        let runs = std::mem::take(&mut state.unrecorded);
        runs.iter().for_each(|run| state.recording.insert(run));
        Unrecorded { claims: Arc::clone(self), epoch: self.epoch(), blocks: runs.iter().collect() }
    }
}

impl Unrecorded {
    /// The blocks, in rising order.
    pub fn blocks(&self) -> &[Range<u64>] {
        &self.blocks
    }

    /// Whether nothing was taken back as a whole since they were taken: what held the bytes then still does.
    pub fn is_current(&self) -> bool {
        self.claims.epoch() == self.epoch
    }

    /// They are recorded.
    pub fn recorded(mut self) {
        self.end(false);
    }

    fn end(&mut self, is_given_back: bool) {
        let blocks = std::mem::take(&mut self.blocks);
        let mut state = self.claims.state.lock();
        if self.claims.epoch() != self.epoch {
            return;
        }
        let forget = |runs: &mut RunSet, run: &Range<u64>| runs.remove(run.clone());
        for run in &blocks {
            forget(&mut state.recording, run);
            if is_given_back {
                state.unrecorded.insert(run.clone());
            }
        }
    }
}

impl Drop for Unrecorded {
    fn drop(&mut self) {
        self.end(true);
    }
}
