//! Numbers that are never given twice.

use std::fmt;

use crate::sync::{AtomicU64, Ordering};

/// Identifies one request to the source; 1, 2, 3 … within one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub u64);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Hands out consecutive numbers.
///
/// # Concurrency
/// Any thread may call [`Ids::next`]; numbers are unique, and within a thread they rise.
#[derive(Debug)]
pub struct Ids {
    next: AtomicU64,
}

impl Ids {
    /// Starts at `first`.
    pub fn starting_at(first: u64) -> Self {
        Self { next: AtomicU64::new(first) }
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        // Relaxed: the number itself is all that is exchanged.
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self::starting_at(1)
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    // O1: ids came from an unsynchronised counter.
    #[test]
    fn ids_differ_over_threads_and_rise_within_one() {
        let ids = Ids::default();
        let mut all = HashSet::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..100)
                .map(|_| scope.spawn(|| (0..10_000).map(|_| ids.next()).collect::<Vec<_>>()))
                .collect();
            for thread in threads {
                let given = thread.join().unwrap();
                assert!(given.windows(2).all(|pair| pair[0] < pair[1]));
                all.extend(given);
            }
        });
        assert_eq!(all.len(), 1_000_000);
        assert_eq!(ids.next(), 1_000_001);
    }
}
