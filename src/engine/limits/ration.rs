//! What hydration buys before it asks the source, so that what is on its way keeps to the rate too.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::limits::Limits;

/// What hydration has bought for one request, and what it may ask for. Dropping it gives back what was not used.
#[derive(Debug)]
pub(crate) struct Ration {
    pub(super) limits: Arc<Limits>,
    pub(super) bought: u64,
    pub(super) most: u64,
}

impl Ration {
    /// Bytes that may be asked for.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// Gives back what is beyond `most`.
    pub(crate) fn cut(&mut self, most: u64) {
        self.most = self.most.min(most);
        let beyond = self.bought.saturating_sub(most);
        self.bought -= beyond;
        self.limits.bucket.give_back(beyond);
    }

    /// `bytes` have come. What was not bought is bought now: at once if somebody waits for it, else it is waited for, and nothing more is
    /// taken from the source until then.
    pub(crate) async fn pay(&mut self, bytes: u64, is_urgent: impl Fn() -> bool) {
        let covered = self.bought.min(bytes);
        self.bought -= covered;
        let mut due = bytes - covered;
        while due > 0 {
            match self.limits.buy(due, &is_urgent).await {
                Some(paid) => due -= paid,
                None => {
                    self.limits.bucket.spend(due, Instant::now());
                    due = 0;
                }
            }
        }
    }
}

impl Drop for Ration {
    fn drop(&mut self) {
        self.limits.bucket.give_back(self.bought);
    }
}
