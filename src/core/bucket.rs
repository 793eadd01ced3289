//! A token bucket: how many bytes the background may take now. Pure: time is a parameter.
//!
//! The urgent spend at once, into debt if need be; the background takes only what is there, and waits until a debt is paid. So over any
//! time `t` the background takes at most `rate * t + burst`, less what the urgent took, and the urgent never wait.

use std::time::{Duration, Instant};

use crate::core::range::BLOCK_SIZE;
use crate::sync::Mutex;

/// Shares of a second that may be taken at once: the burst.
const BURSTS_PER_S: u64 = 8;
/// Longest debt: an hour without a limit on what is read must not silence the background for an hour.
const LONGEST_DEBT: Duration = Duration::from_secs(10);
const LARGEST_BURST: u64 = 16 << 20;
const NANOS: i128 = 1_000_000_000;

/// The bucket of one source.
///
/// # Concurrency
/// Any thread may call anything. Nobody is woken: who is told to wait looks again, and so does everybody when the rate is changed.
#[derive(Debug)]
pub struct Bucket {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes per second; 0 = no limit.
    rate: u64,
    /// Bytes that are there, in billionths; negative = a debt.
    level: i128,
    /// Up to when the level is right.
    at: Instant,
}

/// The answer to [`Bucket::take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// There is no limit: take what you like.
    Unlimited,
    /// So many bytes are yours: at least half a burst, or all that was asked for.
    Taken(u64),
    /// Look again after this.
    Wait(Duration),
}

impl Bucket {
    /// A full bucket; `rate` in bytes per second, `None` = no limit.
    pub fn new(rate: Option<u64>, now: Instant) -> Self {
        let rate = rate.unwrap_or(0);
        Self { state: Mutex::new(State { rate, level: burst(rate) * NANOS, at: now }) }
    }

    /// The rate; `None` = no limit.
    pub fn rate(&self) -> Option<u64> {
        Some(self.state.lock().rate).filter(|rate| *rate > 0)
    }

    /// Changes the rate from `now` on. A debt stays, up to what the new rate pays in a while; a bucket that had no limit begins full.
    pub fn set_rate(&self, rate: Option<u64>, now: Instant) {
        let mut state = self.state.lock();
        state.refill(now);
        let was_unlimited = state.rate == 0;
        state.rate = rate.unwrap_or(0);
        let full = burst(state.rate) * NANOS;
        state.level = if was_unlimited { full } else { state.level.min(full) };
        state.forgive();
    }

    /// The urgent take `bytes`, whether they are there or not.
    pub fn spend(&self, bytes: u64, now: Instant) {
        let mut state = self.state.lock();
        state.refill(now);
        if state.rate > 0 {
            state.level -= i128::from(bytes) * NANOS;
            state.forgive();
        }
    }

    /// The background asks for up to `most` bytes.
    pub fn take(&self, most: u64, now: Instant) -> Take {
        let mut state = self.state.lock();
        state.refill(now);
        if state.rate == 0 {
            return Take::Unlimited;
        }
        // Small portions would cost more requests than they are worth.
        let least = (burst(state.rate) / 2).min(i128::from(most)) * NANOS;
        if state.level < least {
            let nanos = (least - state.level).div_euclid(i128::from(state.rate)) + 1;
            return Take::Wait(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        }
        let there = u64::try_from(state.level / NANOS).unwrap_or(0);
        let taken = there.min(most);
        state.level -= i128::from(taken) * NANOS;
        Take::Taken(taken)
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, bytes: u64) {
        let mut state = self.state.lock();
        let full = burst(state.rate) * NANOS;
        state.level = (state.level + i128::from(bytes) * NANOS).min(full);
    }
}

impl State {
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let nanos = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let earned = nanos.saturating_mul(i128::from(self.rate));
        self.level = self.level.saturating_add(earned).min(burst(self.rate) * NANOS);
    }

    fn forgive(&mut self) {
        let paid_in_a_while = i128::from(self.rate) * i128::from(LONGEST_DEBT.as_secs()) * NANOS;
        self.level = self.level.max(-paid_in_a_while);
    }
}

/// Bytes that may be taken at once at a rate.
fn burst(rate: u64) -> i128 {
    // Two blocks at least: half of it is a portion, and a portion is a whole block.
    i128::from((rate / BURSTS_PER_S).clamp(2 * BLOCK_SIZE, LARGEST_BURST))
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn taken(take: Take) -> u64 {
        match take {
            Take::Taken(bytes) => bytes,
            Take::Wait(_) => 0,
            Take::Unlimited => panic!("no limit"),
        }
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let now = Instant::now();
        let bucket = Bucket::new(None, now);
        bucket.spend(u64::MAX, now);
        assert_eq!(bucket.take(u64::MAX, now), Take::Unlimited);
        assert_eq!(bucket.rate(), None);
    }

    #[test]
    fn the_background_waits_until_a_debt_is_paid_and_the_urgent_never_do() {
        let now = Instant::now();
        let bucket = Bucket::new(Some(8 * MIB), now);
        bucket.spend(9 * MIB, now); // one burst was there, 8 MiB is debt
        let Take::Wait(wait) = bucket.take(MIB, now) else { panic!() };
        assert!(wait > Duration::from_secs(1), "{wait:?}");
        assert_eq!(
            bucket.take(MIB, now + wait - Duration::from_nanos(10)),
            Take::Wait(Duration::from_nanos(10))
        );
        assert!(taken(bucket.take(MIB, now + wait)) >= MIB / 2);
    }

    #[test]
    fn a_debt_is_forgiven_beyond_what_ten_seconds_pay() {
        let now = Instant::now();
        let bucket = Bucket::new(Some(MIB), now);
        bucket.spend(1 << 40, now);
        let Take::Wait(wait) = bucket.take(MIB, now) else { panic!() };
        assert!(wait < LONGEST_DEBT + Duration::from_secs(1), "{wait:?}");
    }

    #[test]
    fn a_new_rate_counts_at_once() {
        let now = Instant::now();
        let bucket = Bucket::new(Some(MIB), now);
        bucket.spend(5 * MIB, now);
        let Take::Wait(slow) = bucket.take(MIB, now) else { panic!() };
        bucket.set_rate(Some(100 * MIB), now);
        let Take::Wait(fast) = bucket.take(MIB, now) else { panic!() };
        assert!(fast < slow / 10, "{fast:?} {slow:?}");
        bucket.set_rate(None, now);
        assert_eq!(bucket.take(MIB, now), Take::Unlimited);
        // What was taken while there was no limit is no debt.
        bucket.spend(1 << 40, now);
        bucket.set_rate(Some(MIB), now);
        assert!(taken(bucket.take(MIB, now)) > 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Pass(u64),
        Spend(u64),
        Take(u64),
        GiveBackHalf,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..200_000_000u64).prop_map(Step::Pass),
            (0..4 * MIB).prop_map(Step::Spend),
            (1..8 * MIB).prop_map(Step::Take),
            Just(Step::GiveBackHalf),
        ]
    }

    proptest! {
        /// Over every window the background takes at most rate * t + burst, and who waited as long as told gets something unless somebody
        /// urgent came between.
        #[test]
        fn the_rate_holds_over_every_window(rate in 1024..100 * MIB, steps in prop::collection::vec(step(), 1..120)) {
            let start = Instant::now();
            let (mut now, mut last) = (start, 0);
            let bucket = Bucket::new(Some(rate), now);
            // (nanoseconds since the start, net bytes of the background)
            let mut flow: Vec<(u128, i128)> = Vec::new();
            for step in steps {
                let at = (now - start).as_nanos();
                match step {
                    Step::Pass(nanos) => now += Duration::from_nanos(nanos),
                    Step::Spend(bytes) => bucket.spend(bytes, now),
                    Step::GiveBackHalf => {
                        bucket.give_back(last / 2);
                        flow.push((at, -i128::from(last / 2)));
                        last = 0;
                    }
                    Step::Take(most) => match bucket.take(most, now) {
                        Take::Taken(bytes) => {
                            prop_assert!(bytes <= most);
                            prop_assert!(i128::from(bytes) >= (burst(rate) / 2).min(i128::from(most)));
                            last = bytes;
                            flow.push((at, i128::from(bytes)));
                        }
                        Take::Wait(wait) => {
                            prop_assert!(wait > Duration::ZERO);
                            now += wait;
                            prop_assert!(matches!(bucket.take(1, now), Take::Taken(1)));
                            flow.push(((now - start).as_nanos(), 1));
                        }
                        Take::Unlimited => prop_assert!(false, "no limit"),
                    },
                }
            }
            for from in 0..flow.len() {
                let mut bytes = 0;
                for (at, taken) in &flow[from..] {
                    bytes += taken;
                    let t = i128::try_from(at - flow[from].0).unwrap();
                    let allowed = burst(rate) + i128::from(rate) * t / NANOS + 1;
                    // What was taken before the window and is given back within it only makes it less.
                    prop_assert!(bytes <= allowed, "{bytes} > {allowed} in {t} ns");
                }
            }
        }
    }
}
