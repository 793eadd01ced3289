//! Whether a source that keeps failing is asked again. Pure: time is a parameter.
//!
//! After ten failures in a row it is not asked any more: who asks is told at once. From time to time one request is let through, the
//! probe; if that goes well, so does everything else again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::sync::{AtomicBool, Mutex, Ordering};

/// Failures in a row that open it.
pub const FAILURES: u32 = 10;
/// Before the first probe; doubles with each that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The breaker of one source.
///
/// # Concurrency
/// Any thread may call anything.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Only that nobody takes the lock while all is well. Relaxed: who sees it late makes one request more, or one less.
    is_open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    pause: Duration,
    /// When the next probe may go.
    until: Instant,
    is_probed: bool,
    /// Why the last request failed.
    last: Error,
}

/// The answer to [`Breaker::admit`].
#[derive(Debug)]
pub enum Admission {
    /// Ask.
    Go(Pass),
    /// Do not: it failed too often, and is tried again after this.
    Closed(Duration, Error),
}

/// The right to make one request. How it went is told; dropping it says nothing.
#[derive(Debug)]
pub struct Pass {
    breaker: Arc<Breaker>,
    is_probe: bool,
}

/// What became of the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// The source is not asked any more.
    Opened,
    /// It is asked again, after so many failures in a row.
    Closed(u32),
}

impl Breaker {
    /// Asks whether the source may be asked.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Admission {
        let pass = |is_probe| Admission::Go(Pass { breaker: Arc::clone(self), is_probe });
        if !self.is_open.load(Ordering::Relaxed) {
            return pass(false);
        }
        let mut state = self.state.lock();
        match &mut state.open {
            None => pass(false),
            Some(open) if !open.is_probed && now >= open.until => {
                open.is_probed = true;
                pass(true)
            }
            Some(open) => {
                let wait = open.until.saturating_duration_since(now);
                Admission::Closed(wait, open.last.clone())
            }
        }
    }

    /// How long until the next probe, and why it is needed; `None` while the source is asked.
    pub fn open_for(&self, now: Instant) -> Option<(Duration, Error)> {
        if !self.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let state = self.state.lock();
        let open = state.open.as_ref()?;
        Some((open.until.saturating_duration_since(now), open.last.clone()))
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.state.lock().in_a_row
    }

    /// Whether a request made now would be let through.
    pub fn is_ready(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state.open.as_ref().is_none_or(|open| !open.is_probed && now >= open.until)
    }
}

impl Pass {
    /// Whether everybody else waits for how this one goes.
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// The source answered: everybody may ask.
    pub fn answered(mut self) -> Turn {
        self.is_probe = false;
        self.close()
    }

    /// The answer to a probe begins to come: everybody may ask before it has ended.
    pub fn answers(&mut self) -> Turn {
        match std::mem::replace(&mut self.is_probe, false) {
            true => self.close(),
            false => Turn::None,
        }
    }

    fn close(&self) -> Turn {
        let mut state = self.breaker.state.lock();
        let failures = std::mem::take(&mut state.in_a_row);
        let was_open = state.open.take();
        self.breaker.is_open.store(false, Ordering::Relaxed);
        if was_open.is_some() { Turn::Closed(failures) } else { Turn::None }
    }

    /// It failed for good.
    pub fn failed(mut self, error: &Error, now: Instant) -> Turn {
        let is_probe = std::mem::replace(&mut self.is_probe, false);
        let mut state = self.breaker.state.lock();
        state.in_a_row = state.in_a_row.saturating_add(1);
        let in_a_row = state.in_a_row;
        match &mut state.open {
            None if in_a_row < FAILURES => Turn::None,
            None => {
                let (pause, last) = (FIRST_PAUSE, error.clone());
                state.open = Some(Open { pause, until: now + pause, is_probed: false, last });
                self.breaker.is_open.store(true, Ordering::Relaxed);
                Turn::Opened
            }
            Some(open) => {
                open.last = error.clone();
                if is_probe {
                    open.pause = (open.pause * 2).min(LONGEST_PAUSE);
                    open.until = now + open.pause;
                    open.is_probed = false;
                }
                Turn::None
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(open) = &mut self.breaker.state.lock().open
        {
            open.is_probed = false; // it found nothing out: the next one does
        }
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn error() -> Error {
        Error::new(Kind::Unreachable, "read")
    }

    fn go(admission: Admission) -> Pass {
        match admission {
            Admission::Go(pass) => pass,
            Admission::Closed(wait, error) => panic!("closed for {wait:?}: {error}"),
        }
    }

    fn refused(breaker: &Arc<Breaker>, now: Instant) -> Duration {
        match breaker.admit(now) {
            Admission::Closed(wait, _) => wait,
            Admission::Go(pass) => panic!("let through: {pass:?}"),
        }
    }

    fn opened(now: Instant) -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::default());
        let turns: Vec<_> =
            (0..FAILURES).map(|_| go(breaker.admit(now)).failed(&error(), now)).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == Turn::Opened).count(), 1);
        assert_eq!(turns.last(), Some(&Turn::Opened));
        breaker
    }

    // O15: 10 permanent failures in a row stopped everything for good.
    #[test]
    fn the_tenth_failure_in_a_row_opens_it_and_one_success_closes_it() {
        let now = Instant::now();
        let breaker = Arc::new(Breaker::default());
        for _ in 0..FAILURES - 1 {
            assert_eq!(go(breaker.admit(now)).failed(&error(), now), Turn::None);
        }
        assert_eq!(go(breaker.admit(now)).answered(), Turn::None);
        for _ in 0..FAILURES - 1 {
            assert_eq!(go(breaker.admit(now)).failed(&error(), now), Turn::None);
        }
        let late = go(breaker.admit(now));
        assert_eq!(go(breaker.admit(now)).failed(&error(), now), Turn::Opened);
        assert_eq!(refused(&breaker, now), FIRST_PAUSE);
        // A success anywhere.
        assert_eq!(late.answered(), Turn::Closed(FAILURES));
        assert!(!go(breaker.admit(now)).is_probe());
    }

    #[test]
    fn one_probe_goes_per_pause_and_pauses_double_up_to_a_minute() {
        let mut now = Instant::now();
        let breaker = opened(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = refused(&breaker, now);
            pauses.push(pause.as_secs());
            now += pause;
            let probe = go(breaker.admit(now));
            assert!(probe.is_probe());
            refused(&breaker, now);
            refused(&breaker, now + LONGEST_PAUSE);
            assert_eq!(probe.failed(&error(), now), Turn::None);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_probe_that_finds_nothing_out_leaves_its_place_to_the_next() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + FIRST_PAUSE;
        drop(go(breaker.admit(later)));
        let probe = go(breaker.admit(later));
        assert!(!breaker.is_ready(later));
        assert_eq!(probe.answered(), Turn::Closed(FAILURES));
        assert!(breaker.is_ready(later) && breaker.open_for(later).is_none());
    }

    #[test]
    fn what_fails_beside_the_probe_delays_no_probe() {
        let now = Instant::now();
        let breaker = Arc::new(Breaker::default());
        let others: Vec<_> = (0..20).map(|_| go(breaker.admit(now))).collect();
        for other in others {
            other.failed(&error(), now);
        }
        assert_eq!(refused(&breaker, now), FIRST_PAUSE);
    }
}
