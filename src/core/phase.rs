//! The life of one file, as a state that only moves along allowed arrows.

use crate::sync::{AtomicU8, Ordering};

/// Where a file stands on its way from the source into the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// No byte is here.
    Absent = 0,
    /// Some blocks are here.
    Filling = 1,
    /// All blocks are here; nothing will be written any more.
    Sealed = 2,
    /// The bytes were read again and are what was received.
    Verified = 3,
    /// A plain file in the destination.
    Published = 4,
    /// Could not be copied; tried again at the next access.
    Failed = 5,
    /// The source has another version now.
    Stale = 6,
}

impl Phase {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Phase::Absent,
            1 => Phase::Filling,
            2 => Phase::Sealed,
            3 => Phase::Verified,
            4 => Phase::Published,
            5 => Phase::Failed,
            _ => Phase::Stale,
        }
    }

    /// Whether the arrow from here to `next` exists.
    pub fn may_become(self, next: Phase) -> bool {
        use Phase::{Absent, Failed, Filling, Published, Sealed, Stale, Verified};
        matches!(
            (self, next),
            (Absent, Filling | Sealed | Published)
                | (Filling, Sealed | Absent | Published)
                | (Sealed, Verified | Absent | Published)
                | (Verified, Published | Absent)
                | (Published, Absent) // evicted
                | (Failed, Absent | Filling | Sealed)
                | (Absent | Filling | Sealed | Verified, Failed)
                | (Absent | Filling | Sealed | Verified | Failed, Stale)
        )
    }
}

/// A phase that threads share.
///
/// # Concurrency
/// Any thread moves it with [`AtomicPhase::advance`]; exactly one wins each arrow.
#[derive(Debug)]
pub struct AtomicPhase(AtomicU8);

impl AtomicPhase {
    /// Starts at `phase`.
    pub fn new(phase: Phase) -> Self {
        Self(AtomicU8::new(phase as u8))
    }

    /// The phase now. Acquire; pairs with the Release in `advance`.
    pub fn get(&self) -> Phase {
        Phase::from_u8(self.0.load(Ordering::Acquire))
    }

    /// Moves to `next` if the arrow exists; says whether this call did it.
    pub fn advance(&self, next: Phase) -> bool {
        let mut now = self.0.load(Ordering::Acquire);
        while Phase::from_u8(now).may_become(next) {
            // Release: what was done before the arrow is seen by whoever sees the new phase.
            match self.0.compare_exchange(now, next as u8, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_stays_so_unless_it_is_evicted() {
        assert!(Phase::Published.may_become(Phase::Absent));
        for next in [Phase::Filling, Phase::Sealed, Phase::Failed, Phase::Stale] {
            assert!(!Phase::Published.may_become(next), "{next:?}");
        }
    }

    #[test]
    fn exactly_one_thread_wins_an_arrow() {
        let phase = AtomicPhase::new(Phase::Sealed);
        let winners = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| phase.advance(Phase::Verified))).collect();
            threads
                .into_iter()
                .filter(|_| true)
                .map(|t| t.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
        assert_eq!(phase.get(), Phase::Verified);
    }
}
