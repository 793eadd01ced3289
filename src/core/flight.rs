//! Work that is done once however many ask for it at the same time.

use std::sync::Arc;

use crate::sync::{Closer, Mutex, Signal, signal};

/// One piece of work (the listing of one directory, the revalidation of one entry).
#[derive(Debug, Clone, Default)]
pub struct Flight {
    /// `Some` while it runs: who waits for its end.
    waiting: Arc<Mutex<Option<Vec<Closer>>>>,
}

/// The answer to [`Flight::board`].
#[derive(Debug)]
pub enum Boarded {
    /// Do the work; dropping the guard ends it and wakes all who joined.
    Lead(Landing),
    /// Somebody does it: wait, then look again.
    Join(Signal),
}

impl Flight {
    /// Leads the work or joins who leads it.
    pub fn board(&self) -> Boarded {
        let mut waiting = self.waiting.lock();
        match &mut *waiting {
            Some(closers) => {
                let (closer, signal) = signal();
                closers.push(closer);
                Boarded::Join(signal)
            }
            None => {
                *waiting = Some(Vec::new());
                Boarded::Lead(Landing { flight: self.clone() })
            }
        }
    }
}

/// Ends the work when it is dropped, however that comes about.
#[derive(Debug)]
pub struct Landing {
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let woken = self.flight.waiting.lock().take();
        drop(woken);
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    // L10: two concurrent stagings of a new id both did the work.
    #[test]
    fn one_leads_and_its_end_wakes_all() {
        let flight = Flight::default();
        let Boarded::Lead(landing) = flight.board() else { panic!("the first leads") };
        let mut joined: Vec<Signal> = (0..5)
            .map(|_| match flight.board() {
                Boarded::Join(signal) => signal,
                Boarded::Lead(_) => panic!("only one leads"),
            })
            .collect();
        assert!(joined.iter_mut().all(|signal| !signal.is_closed()));
        drop(landing);
        assert!(joined.iter_mut().all(Signal::is_closed));
        assert!(matches!(flight.board(), Boarded::Lead(_)));
    }
}
