//! When a failed request is asked again.

use std::time::Duration;

use crate::error::Error;

/// Attempts and back-off of one chunk.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// Wait before the second attempt; doubles from there.
    pub base: Duration,
    /// Longest wait, also when the source asks for more.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, base: Duration::from_millis(200), cap: Duration::from_secs(10) }
    }
}

impl RetryPolicy {
    /// How long to wait after attempt number `attempt` (1, 2, …) failed with `error`; `None` = do not ask again.
    /// `jitter` in `0.0..1.0` spreads the wait over its upper half, so that many chunks that failed together do not return together.
    /// The source's own `Retry-After` is kept when it is longer.
    pub fn wait_after(&self, attempt: u32, error: &Error, jitter: f64) -> Option<Duration> {
        if attempt >= self.attempts || !error.is_transient() {
            return None;
        }
        let doubled = self.base.saturating_mul(1 << (attempt - 1).min(16)).min(self.cap);
        let spread = doubled.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        Some(error.requested_wait().map_or(spread, |asked| asked.max(spread).min(self.cap)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn failed(kind: Kind) -> Error {
        Error::new(kind, "read")
    }

    // O5: "up to 3 retries" was 3 attempts.
    #[test]
    fn three_attempts_are_two_waits() {
        let policy = RetryPolicy::default();
        let error = failed(Kind::Unreachable);
        let waits: Vec<_> = (1..10).filter_map(|n| policy.wait_after(n, &error, 1.0)).collect();
        assert_eq!(waits, [Duration::from_millis(200), Duration::from_millis(400)]);
    }

    // C4: permanent errors were retried.
    #[test]
    fn permanent_errors_are_not_asked_again() {
        let policy = RetryPolicy::default();
        for kind in [Kind::NotFound, Kind::Denied, Kind::Stale, Kind::Corrupt, Kind::NoSpace] {
            assert_eq!(policy.wait_after(1, &failed(kind), 0.5), None, "{kind}");
        }
    }

    #[test]
    fn the_sources_own_wait_is_kept_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let busy = |secs| failed(Kind::Busy).retry_after(Some(Duration::from_secs(secs)));
        assert_eq!(policy.wait_after(1, &busy(3), 0.0), Some(Duration::from_secs(3)));
        assert_eq!(policy.wait_after(1, &busy(3600), 0.0), Some(policy.cap));
    }
}
