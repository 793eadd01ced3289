//! How fast it goes and how long it will take.

use std::time::Duration;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// Time over which the rate is smoothed.
const SMOOTHING_S: f64 = 5.0;

/// A moving average of bytes that really landed. Bytes that were here before do not count.
#[derive(Debug, Default)]
pub struct Rate {
    state: Mutex<RateState>,
}

#[derive(Debug, Default)]
struct RateState {
    last: Option<(Duration, u64)>,
    bytes_per_s: Option<f64>,
}

impl Rate {
    /// Takes in the count of landed bytes at `now` (since any fixed moment).
    pub fn sample(&self, now: Duration, landed_bytes: u64) {
        let mut state = self.state.lock();
        if let Some((then, before)) = state.last {
            let elapsed = now.saturating_sub(then).as_secs_f64();
            if elapsed < 0.05 {
                return;
            }
            #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
            let sample = landed_bytes.saturating_sub(before) as f64 / elapsed;
            let weight = 1.0 - (-elapsed / SMOOTHING_S).exp();
            state.bytes_per_s = Some(match state.bytes_per_s {
                Some(rate) => rate + weight * (sample - rate),
                None if sample > 0.0 => sample,
                None => return state.last = Some((now, landed_bytes)),
            });
        }
        state.last = Some((now, landed_bytes));
    }

    /// Bytes per second; 0 until known.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates, and the rate is never negative"
    )]
    pub fn bytes_per_s(&self) -> u64 {
        self.state.lock().bytes_per_s.unwrap_or(0.0) as u64
    }

    /// Seconds until `remaining_bytes` more have landed; `None` until the rate is known.
    pub fn eta_s(&self, remaining_bytes: u64) -> Option<u64> {
        let rate = self.bytes_per_s();
        (rate > 0).then(|| remaining_bytes.div_ceil(rate))
    }
}

/// A share for people that never falls, to a thousandth.
#[derive(Debug, Default)]
pub struct Highest(AtomicU64);

impl Highest {
    /// The highest so far, `percent` included.
    pub fn raise(&self, percent: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float cast saturates"
        )]
        let thousandths = (percent * 1000.0) as u64;
        // Relaxed: the number itself is all that is exchanged.
        let highest = self.0.fetch_max(thousandths, Ordering::Relaxed).max(thousandths);
        #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
        let percent = highest as f64 / 1000.0;
        percent
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    // O8: resumed bytes counted as copied at once, so the ETA was wild.
    #[test]
    fn the_rate_counts_only_what_landed_since_the_first_sample() {
        let rate = Rate::default();
        rate.sample(Duration::from_secs(0), 1 << 40);
        assert_eq!((rate.bytes_per_s(), rate.eta_s(100)), (0, None));
        for second in 1..60u64 {
            rate.sample(Duration::from_secs(second), (1 << 40) + second * 1000);
        }
        assert_eq!(rate.bytes_per_s(), 1000);
        assert_eq!(rate.eta_s(10_500), Some(11));
    }

    // O2: progress above 100 %, and falling when more was found.
    #[test]
    fn the_share_shown_never_falls() {
        let highest = Highest::default();
        let shown = [10.0, 5.0, 50.25, 0.0].map(|percent| highest.raise(percent));
        assert_eq!(shown, [10.0, 10.0, 50.25, 50.25]);
    }

    #[test]
    fn a_stalled_source_lets_the_rate_fall() {
        let rate = Rate::default();
        rate.sample(Duration::ZERO, 0);
        rate.sample(Duration::from_secs(1), 1_000_000);
        for second in 2..40 {
            rate.sample(Duration::from_secs(second), 1_000_000);
        }
        assert!(rate.bytes_per_s() < 1000);
    }
}
