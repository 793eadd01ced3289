//! When a failed request is asked again.

use std::time::Duration;

use crate::error::{Error, Kind};

/// Attempts and back-off of one chunk.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1. Answers that ask for patience do not count.
    pub attempts: u32,
    /// Answers in all that may ask for patience (429, 503): that is no failure, but it must end.
    pub patience: u32,
    /// Wait before the second attempt; doubles from there.
    pub base: Duration,
    /// Longest wait, also when the source asks for more.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let (base, cap) = (Duration::from_millis(200), Duration::from_secs(10));
        Self { attempts: 3, patience: 8, base, cap }
    }
}

impl RetryPolicy {
    /// No attempt was made yet.
    pub fn begin(&self) -> Tries {
        Tries { policy: *self, failed: 0, put_off: 0 }
    }
}

/// The attempts of one chunk.
#[derive(Debug, Clone, Copy)]
pub struct Tries {
    policy: RetryPolicy,
    failed: u32,
    put_off: u32,
}

impl Tries {
    /// How long to wait after an attempt failed with `error`; `None` = do not ask again.
    /// `jitter` in `0.0..1.0` spreads the wait over its upper half, so that many chunks that failed together do not return together.
    /// The source's own `Retry-After` is kept when it is longer.
    pub fn wait_after(&mut self, error: &Error, jitter: f64) -> Option<Duration> {
        let RetryPolicy { attempts, patience, base, cap } = self.policy;
        if !error.is_transient() {
            return None;
        }
        let (count, most) = match error.kind() {
            Kind::Busy => (&mut self.put_off, patience),
            _ => (&mut self.failed, attempts),
        };
        *count += 1;
        if *count >= most {
            return None;
        }
        let doubled = base.saturating_mul(1 << (*count - 1).min(16)).min(cap);
        let spread = doubled.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        Some(error.requested_wait().map_or(spread, |asked| asked.max(spread).min(cap)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: Kind) -> Error {
        Error::new(kind, "read")
    }

    // O5: "up to 3 retries" was 3 attempts.
    #[test]
    fn three_attempts_are_two_waits() {
        let policy = RetryPolicy::default();
        let error = failed(Kind::Unreachable);
        let mut tries = policy.begin();
        let waits: Vec<_> = std::iter::from_fn(|| tries.wait_after(&error, 1.0)).collect();
        assert_eq!(waits, [Duration::from_millis(200), Duration::from_millis(400)]);
    }

    // C4: permanent errors were retried.
    #[test]
    fn permanent_errors_are_not_asked_again() {
        let policy = RetryPolicy::default();
        for kind in [Kind::NotFound, Kind::Denied, Kind::Stale, Kind::Corrupt, Kind::NoSpace] {
            assert_eq!(policy.begin().wait_after(&failed(kind), 0.5), None, "{kind}");
        }
    }

    #[test]
    fn to_be_put_off_is_no_failure_and_ends_all_the_same() {
        let policy = RetryPolicy::default();
        let mut tries = policy.begin();
        let put_off: Vec<_> =
            std::iter::from_fn(|| tries.wait_after(&failed(Kind::Busy), 1.0)).collect();
        assert_eq!(put_off.len(), 7);
        assert!(put_off.is_sorted() && put_off[6] == policy.cap);
        // The other attempts are still to be had.
        assert!(tries.wait_after(&failed(Kind::Timeout), 1.0).is_some());
    }

    #[test]
    fn the_sources_own_wait_is_kept_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let busy = |secs| failed(Kind::Busy).retry_after(Some(Duration::from_secs(secs)));
        assert_eq!(policy.begin().wait_after(&busy(3), 0.0), Some(Duration::from_secs(3)));
        assert_eq!(policy.begin().wait_after(&busy(3600), 0.0), Some(policy.cap));
    }
}
