//! Who goes first: numbers in the order of their last use.

use std::collections::VecDeque;

use crate::sync::Mutex;

/// One look at when everything was used last, handed out the oldest first. What is used later than the look does not wait in it any
/// more by its old use; who takes it out compares.
#[derive(Debug, Default)]
pub struct UseQueue {
    waiting: Mutex<VecDeque<(u64, u64)>>,
}

impl UseQueue {
    /// A new look: pairs of last use and number.
    pub fn refill(&self, mut uses: Vec<(u64, u64)>) {
        uses.sort_unstable();
        *self.waiting.lock() = uses.into();
    }

    /// The pair that was used longest ago.
    pub fn pop(&self) -> Option<(u64, u64)> {
        self.waiting.lock().pop_front()
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_use_comes_first() {
        let queue = UseQueue::default();
        assert_eq!(queue.pop(), None);
        queue.refill([(7, 1), (3, 2), (5, 3)].to_vec());
        assert_eq!([queue.pop(), queue.pop()], [Some((3, 2)), Some((5, 3))]);
        queue.refill([(9, 1)].to_vec());
        assert_eq!([queue.pop(), queue.pop()], [Some((9, 1)), None]);
    }
}
