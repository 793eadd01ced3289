//! How many workers pay off: the number that gets the most done, found by trying its neighbours.

use std::time::Duration;

/// Shortest time over which a number of workers is judged.
const WINDOW: Duration = Duration::from_millis(500);
/// Least that has to be done in it: a request more or less must not decide.
const REQUESTS_LEAST: u64 = 16;
/// As above, for few large ones.
const BYTES_LEAST: u64 = 8 << 20;
/// A longer window is judged by whatever was done.
const WINDOW_MOST: Duration = Duration::from_secs(4);
/// What a request costs besides its bytes, in bytes, at least.
const REQUEST_BYTES_LEAST: u64 = 32 << 10;
/// More workers have to do so much more.
const GAIN: f64 = 1.05;
/// Fewer workers may do so little less.
const LOSS: f64 = 0.97;
/// Windows between two trials, once neither more nor fewer paid off.
const REST: u32 = 8;

/// Finds the number of workers that gets the most done: it doubles while that pays off, then tries a quarter more or less now and then.
/// Of equals the smaller number wins.
#[derive(Debug)]
pub struct Climb {
    limit: usize,
    /// The best so far, and what it did per second; `None` = not judged yet.
    best: usize,
    best_rate: Option<f64>,
    /// What is tried now.
    trial: Option<usize>,
    is_doubling: bool,
    /// Whether the next trial is of more.
    tries_more: bool,
    /// Trials that failed in a row, and windows of rest since.
    refusals: u32,
    rested: u32,
    begun: Option<(Duration, Done)>,
}

/// What was done since any fixed moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Bytes that came.
    pub bytes: u64,
    /// Answers, of which each costs a round trip, too.
    pub requests: u64,
}

impl Climb {
    /// Between 1 and `limit >= 1`, beginning at `first`.
    pub fn new(first: usize, limit: usize) -> Self {
        let limit = limit.max(1);
        Self {
            limit,
            best: first.clamp(1, limit),
            best_rate: None,
            trial: None,
            is_doubling: true,
            tries_more: true,
            refusals: 0,
            rested: 0,
            begun: None,
        }
    }

    /// How many workers there should be now.
    pub fn workers(&self) -> usize {
        self.trial.unwrap_or(self.best)
    }

    /// Takes in what is done by `now` (since any fixed moment), where a round trip takes as long as `trip_bytes`; to be called while all
    /// workers have something to do.
    pub fn sample(&mut self, now: Duration, done: Done, trip_bytes: u64) {
        let (begun, then) = *self.begun.get_or_insert((now, done));
        let elapsed = now.saturating_sub(begun);
        let bytes = done.bytes.saturating_sub(then.bytes);
        let requests = done.requests.saturating_sub(then.requests);
        let is_much = requests >= REQUESTS_LEAST || bytes >= BYTES_LEAST;
        if elapsed < WINDOW || (!is_much && elapsed < WINDOW_MOST) {
            return;
        }
        self.begun = Some((now, done));
        let trips = requests.saturating_mul(trip_bytes.max(REQUEST_BYTES_LEAST));
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let rate = bytes.saturating_add(trips) as f64 / elapsed.as_secs_f64();
        self.judge(rate);
    }

    /// Not all workers had something to do: what was done since the last sample says nothing.
    pub fn interrupt(&mut self) {
        self.begun = None;
    }

    fn judge(&mut self, rate: f64) {
        let Some(best_rate) = self.best_rate else {
            self.best_rate = Some(rate);
            return self.try_next();
        };
        let Some(trial) = self.trial.take() else {
            self.best_rate = Some(0.5 * best_rate + 0.5 * rate);
            self.rested += 1;
            if self.rested >= REST {
                self.try_next();
            }
            return;
        };
        let is_better = match trial > self.best {
            true => rate >= best_rate * GAIN,
            false => rate >= best_rate * LOSS,
        };
        if is_better {
            self.best = trial;
            // What fewer workers may lose adds up to no more than once.
            self.best_rate = Some(best_rate.max(rate));
            self.refusals = 0;
        } else {
            self.is_doubling = false;
            self.tries_more = !self.tries_more;
            self.refusals += 1;
        }
        if self.refusals < 2 {
            return self.try_next();
        }
        // Neither way: what it does may be another by now.
        (self.refusals, self.rested) = (0, 0);
    }

    fn try_next(&mut self) {
        self.rested = 0;
        let step = if self.is_doubling { self.best } else { (self.best / 4).max(1) };
        let more = (self.best + step).min(self.limit);
        let fewer = self.best.saturating_sub((self.best / 4).max(1)).max(1);
        let choice = |is_more| if is_more { more } else { fewer };
        let trial = [self.tries_more, !self.tries_more].map(choice);
        let trial = trial.into_iter().find(|trial| *trial != self.best);
        if let Some(trial) = trial {
            self.tries_more = trial > self.best;
        }
        self.trial = trial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `workers` get done in a second, in MiB.
    type Model = fn(f64) -> f64;

    /// Lets it run for so many windows, and says how many workers it had in each of the last half.
    fn run(limit: usize, windows: u64, noise: f64, model: Model) -> Vec<usize> {
        let mut climb = Climb::new(16, limit);
        let (mut bytes, mut chosen, mut seed) = (0u64, Vec::new(), 1u64);
        climb.sample(Duration::ZERO, Done::default(), 0);
        for window in 1..=windows {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let workers = climb.workers() as f64;
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            #[expect(clippy::cast_precision_loss, reason = "noise")]
            let share = (seed >> 33) as f64 / (1u64 << 31) as f64;
            let done = model(workers) * (1.0 + noise * (2.0 * share - 1.0)) * f64::from(1 << 20);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
            let done = done as u64;
            bytes += done;
            let now = WINDOW * u32::try_from(window).unwrap();
            climb.sample(now, Done { bytes, requests: 0 }, 0);
            chosen.push(climb.workers());
        }
        chosen.split_off(chosen.len() / 2)
    }

    /// The number that it had most of the time.
    fn settled(chosen: &[usize]) -> usize {
        let count = |n: &usize| chosen.iter().filter(|other| *other == n).count();
        *chosen.iter().max_by_key(|n| count(n)).unwrap()
    }

    fn saturates_at_4(workers: f64) -> f64 {
        100.0 * workers.min(4.0)
    }

    fn worse_beyond_8(workers: f64) -> f64 {
        if workers <= 8.0 { 100.0 * workers } else { (800.0 - 60.0 * (workers - 8.0)).max(100.0) }
    }

    fn linear(workers: f64) -> f64 {
        100.0 * workers
    }

    #[test]
    fn a_source_that_saturates_gets_no_more_workers_than_it_takes() {
        let found = settled(&run(64, 300, 0.0, saturates_at_4));
        assert!((4..=5).contains(&found), "{found}");
    }

    #[test]
    fn a_source_that_suffers_from_many_gets_what_it_bears() {
        let found = settled(&run(64, 300, 0.0, worse_beyond_8));
        assert!((7..=9).contains(&found), "{found}");
    }

    #[test]
    fn a_source_that_takes_any_number_gets_the_limit() {
        for limit in [1, 2, 5, 64, 200] {
            let chosen = run(limit, 300, 0.0, linear);
            assert_eq!(settled(&chosen), limit);
            assert!(chosen.iter().all(|workers| (1..=limit).contains(workers)));
        }
    }

    #[test]
    fn noise_costs_little() {
        for model in [saturates_at_4, worse_beyond_8, linear] {
            let chosen = run(32, 2000, 0.1, model);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let mean = chosen.iter().map(|workers| model(*workers as f64)).sum::<f64>()
                / chosen.len() as f64;
            let best = (1..=32).map(|workers| model(f64::from(workers))).fold(0.0, f64::max);
            assert!(mean >= 0.8 * best, "{mean} of {best}");
        }
    }

    #[test]
    fn what_is_done_while_workers_are_idle_is_not_judged() {
        let mut climb = Climb::new(16, 64);
        let first = climb.workers();
        for second in 0..100 {
            climb.interrupt();
            let done = Done { bytes: second << 30, requests: second };
            climb.sample(Duration::from_secs(second), done, 0);
        }
        assert_eq!(climb.workers(), first);
    }

    /// One window holds a few large files, the next many small ones: the same number of workers is as busy with either.
    #[test]
    fn the_mix_of_sizes_decides_nothing() {
        const TRIP: u64 = 1 << 20;
        let mut climb = Climb::new(32, 64);
        climb.sample(Duration::ZERO, Done::default(), TRIP);
        let mut done = Done::default();
        for window in 1..200u32 {
            // Beyond 32 workers more are of no use; each worker does 25 MiB in a window, round trips included.
            let work = climb.workers().min(32) as u64 * (25 << 20);
            let size = if window % 2 == 0 { 4096 } else { 32 << 20 };
            let requests = work / (size + TRIP);
            done.requests += requests;
            done.bytes += requests * size;
            climb.sample(WINDOW * window, done, TRIP);
            assert!((24..=64).contains(&climb.workers()), "{} in {window}", climb.workers());
        }
    }
}
