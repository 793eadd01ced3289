//! How much may be fetched in all. Pure: the day is a parameter.
//!
//! What is asked for counts before it is asked (reserved), and is settled when it has come: so a quota holds however many ask at once.

use std::sync::Arc;

use crate::sync::Mutex;

/// A recorded day that lies further ahead than this was a clock that went wrong.
const AHEAD_DAYS: u64 = 2;

/// Most that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Most {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Whether the bytes are for one day.
    pub is_daily: bool,
    /// Requests.
    pub requests: Option<u64>,
}

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// Bytes, of the day if they are for one day.
    pub bytes: u64,
    /// Requests, in all.
    pub requests: u64,
    /// The day that the bytes belong to, counted from 1970.
    pub day: u64,
}

/// Which quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedUp {
    /// Bytes.
    Bytes,
    /// Requests.
    Requests,
}

/// A quota that is used up by and by.
///
/// # Concurrency
/// Any thread may call anything.
#[derive(Debug)]
pub struct Quota {
    most: Most,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: Used,
    reserved: u64,
    /// What was told to be used up, and still is.
    told: Option<UsedUp>,
    /// What was told to be used up and is no more; nobody was told that.
    lifted: Option<UsedUp>,
}

/// Bytes of one request, reserved. Dropping it gives back what did not come.
#[derive(Debug)]
pub struct Reserved {
    quota: Arc<Quota>,
    bytes: u64,
}

/// Why nothing was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// What is used up.
    pub what: UsedUp,
    /// It is used up, not only reserved, and nobody was told.
    pub is_first: bool,
}

impl Quota {
    /// Goes on from what was used before.
    pub fn new(most: Most, used: Used) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::new(State { used, ..State::default() }) })
    }

    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.most.bytes.is_some() || self.most.requests.is_some()
    }

    /// What may be used.
    pub fn most(&self) -> Most {
        self.most
    }

    /// What was used, as of `day`.
    pub fn used(&self, day: u64) -> Used {
        let mut state = self.state.lock();
        state.turn_to(day, self.most.is_daily);
        state.used
    }

    /// What is used up, as of `day`, for whoever wants `least` bytes in one more request.
    pub fn used_up(&self, least: u64, day: u64) -> Option<UsedUp> {
        let mut state = self.state.lock();
        state.turn_to(day, self.most.is_daily);
        self.left_in(&state, state.reserved, least).err()
    }

    /// What was told to be used up and is no more, as of `day`; once.
    pub fn take_lifted(&self, day: u64) -> Option<UsedUp> {
        let mut state = self.state.lock();
        state.turn_to(day, self.most.is_daily);
        state.lifted.take()
    }

    /// What is left for one more request of at least `least` bytes, as of `day`: bytes that are neither used nor reserved.
    ///
    /// # Errors
    /// What is used up.
    pub fn left(&self, least: u64, day: u64) -> Result<u64, Refused> {
        let mut state = self.state.lock();
        state.turn_to(day, self.most.is_daily);
        self.left_or_refused(&mut state, least)
    }

    fn left_or_refused(&self, state: &mut State, least: u64) -> Result<u64, Refused> {
        self.left_in(state, state.reserved, least).map_err(|what| {
            // What is only reserved may be given back.
            let is_used_up = self.left_in(state, 0, least).is_err();
            let is_first = is_used_up && state.told.is_none();
            if is_first {
                state.told = Some(what);
            }
            Refused { what, is_first }
        })
    }

    /// What is left beside what is `reserved`, at least `least` and at least one byte.
    fn left_in(&self, state: &State, reserved: u64, least: u64) -> Result<u64, UsedUp> {
        if self.most.requests.is_some_and(|most| state.used.requests >= most) {
            return Err(UsedUp::Requests);
        }
        let Some(most) = self.most.bytes else { return Ok(u64::MAX) };
        let taken = state.used.bytes.saturating_add(reserved);
        match most.saturating_sub(taken) {
            0 => Err(UsedUp::Bytes),
            left if left < least => Err(UsedUp::Bytes),
            left => Ok(left),
        }
    }

    /// One request for `bytes` bytes. What it takes does not exceed the quota, whoever asks beside it.
    ///
    /// # Errors
    /// What is used up; the request must not be made.
    pub fn reserve(self: &Arc<Self>, bytes: u64, day: u64) -> Result<Reserved, Refused> {
        let mut state = self.state.lock();
        state.turn_to(day, self.most.is_daily);
        self.left_or_refused(&mut state, bytes)?;
        state.used.requests = state.used.requests.saturating_add(1);
        state.reserved = state.reserved.saturating_add(bytes);
        Ok(Reserved { quota: Arc::clone(self), bytes })
    }
}

impl State {
    /// A new day brings new bytes. A clock that goes back does not; one that was far ahead does not keep them for long.
    fn turn_to(&mut self, day: u64, is_daily: bool) {
        if day > self.used.day {
            self.used.day = day;
            if is_daily {
                self.used.bytes = 0;
                let is_of_bytes = |what: &mut UsedUp| *what == UsedUp::Bytes;
                self.lifted = self.told.take_if(is_of_bytes).or(self.lifted);
            }
        } else if self.used.day - day > AHEAD_DAYS {
            self.used.day = day;
        }
    }
}

impl Reserved {
    /// So many of its bytes have come.
    pub fn came(&mut self, bytes: u64) {
        let mut state = self.quota.state.lock();
        let expected = bytes.min(self.bytes);
        self.bytes -= expected;
        state.reserved -= expected;
        state.used.bytes = state.used.bytes.saturating_add(bytes);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.quota.state.lock().reserved -= self.bytes;
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(most: u64, is_daily: bool) -> Arc<Quota> {
        Quota::new(Most { bytes: Some(most), is_daily, requests: None }, Used::default())
    }

    #[test]
    fn what_is_asked_counts_before_it_comes() {
        let quota = bytes(100, false);
        let first = quota.reserve(60, 1).unwrap();
        assert_eq!(quota.left(1, 1), Ok(40));
        let refused = quota.reserve(41, 1).unwrap_err();
        assert_eq!(refused, Refused { what: UsedUp::Bytes, is_first: false });
        drop(first);
        assert_eq!(quota.left(1, 1), Ok(100));
    }

    #[test]
    fn it_is_told_once_that_it_is_used_up_and_again_the_next_day() {
        let quota = bytes(10, true);
        quota.reserve(10, 1).unwrap().came(10);
        let is_first = |day| quota.reserve(1, day).unwrap_err().is_first;
        assert!(is_first(1));
        assert!(!is_first(1));
        assert_eq!(quota.take_lifted(1), None);
        quota.reserve(10, 2).unwrap().came(10);
        assert_eq!([(); 2].map(|()| quota.take_lifted(2)), [Some(UsedUp::Bytes), None]);
        assert!(is_first(2));
    }

    #[test]
    fn a_clock_that_goes_back_brings_no_second_quota() {
        let quota = bytes(10, true);
        quota.reserve(10, 20).unwrap().came(10);
        assert_eq!(quota.used_up(1, 19), Some(UsedUp::Bytes));
        assert_eq!(quota.used_up(1, 20), Some(UsedUp::Bytes));
        assert_eq!(quota.left(1, 21), Ok(10));
        // One that was a year ahead does not keep the next days without.
        quota.reserve(10, 400).unwrap().came(10);
        assert_eq!(quota.used_up(1, 21), Some(UsedUp::Bytes));
        assert_eq!(quota.left(1, 22), Ok(10));
    }

    #[test]
    fn requests_are_counted_and_are_for_ever() {
        let most = Most { requests: Some(2), ..Most::default() };
        let quota = Quota::new(most, Used { requests: 1, bytes: 5, day: 7 });
        drop(quota.reserve(1 << 40, 7).unwrap());
        assert_eq!(quota.reserve(1, 9).unwrap_err().what, UsedUp::Requests);
        assert_eq!(quota.used(9).requests, 2);
    }

    #[test]
    fn many_who_ask_at_once_do_not_exceed_it() {
        let quota = bytes(1_000_000, false);
        let came: u64 = std::thread::scope(|scope| {
            let ask = || {
                (0..1000)
                    .filter_map(|_| quota.reserve(777, 1).ok())
                    .map(|mut r| r.came(777))
                    .count()
            };
            let threads: Vec<_> = (0..32).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap() as u64 * 777).sum()
        });
        assert_eq!(came, 1_000_000 / 777 * 777);
        assert_eq!(quota.used(1).bytes, came);
    }

    proptest! {
        #[test]
        fn used_and_reserved_never_exceed_the_quota(most in 0..5000u64, asks in prop::collection::vec((1..900u64, 0..900u64, 0..3u8), 0..60)) {
            let quota = bytes(most, false);
            let mut held = Vec::new();
            let mut used = 0;
            for (ask, come, keep) in asks {
                match quota.reserve(ask, 1) {
                    Ok(mut reserved) => {
                        let come = come.min(ask);
                        reserved.came(come);
                        used += come;
                        if keep > 0 { held.push((reserved, ask - come)); }
                    }
                    Err(_) => { held.pop(); }
                }
                let reserved: u64 = held.iter().map(|(_, left)| left).sum();
                prop_assert!(used + reserved <= most);
                prop_assert_eq!(quota.used(1).bytes, used);
                prop_assert_eq!(quota.left(1, 1).unwrap_or(0), most - used - reserved);
            }
        }
    }
}
