//! Work that is done once however many ask for it at the same time.

use std::collections::HashMap;
use std::hash::Hash;
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

/// Work for each of many keys. Nothing is kept of a key when its work has ended.
#[derive(Debug)]
pub struct Flights<K: Hash + Eq> {
    /// The keys whose work runs: who waits for its end.
    waiting: Arc<Mutex<HashMap<K, Vec<Closer>>>>,
}

impl<K: Hash + Eq> Default for Flights<K> {
    fn default() -> Self {
        Self { waiting: Arc::default() }
    }
}

/// The answer to [`Flights::board`].
#[derive(Debug)]
pub enum BoardedOne<K: Hash + Eq> {
    /// Do the work; dropping the guard ends it and wakes all who joined.
    Lead(LandingOne<K>),
    /// Somebody does it: wait, then look again.
    Join(Signal),
}

impl<K: Hash + Eq + Clone> Flights<K> {
    /// Leads the work of `key` or joins who leads it.
    pub fn board(&self, key: K) -> BoardedOne<K> {
        let mut waiting = self.waiting.lock();
        if let Some(closers) = waiting.get_mut(&key) {
            let (closer, signal) = signal();
            closers.push(closer);
            return BoardedOne::Join(signal);
        }
        waiting.insert(key.clone(), Vec::new());
        drop(waiting);
        BoardedOne::Lead(LandingOne { waiting: Arc::clone(&self.waiting), key })
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Ends the work of one key when it is dropped, however that comes about.
#[derive(Debug)]
pub struct LandingOne<K: Hash + Eq> {
    waiting: Arc<Mutex<HashMap<K, Vec<Closer>>>>,
    key: K,
}

impl<K: Hash + Eq> Drop for LandingOne<K> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        let woken = waiting.remove(&self.key);
        if waiting.is_empty() {
            waiting.shrink_to_fit();
        }
        drop(waiting);
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

    // A table of flights kept an entry for every name that was ever asked for, and for ever if who asked gave up.
    #[test]
    fn nothing_is_kept_of_a_key_whose_work_has_ended() {
        let flights: Flights<u32> = Flights::default();
        let BoardedOne::Lead(seven) = flights.board(7) else { panic!("the first leads") };
        let BoardedOne::Lead(eight) = flights.board(8) else { panic!("another key") };
        let BoardedOne::Join(mut joined) = flights.board(7) else { panic!("only one leads") };
        drop(eight);
        assert!(!joined.is_closed());
        drop(seven);
        assert!(joined.is_closed() && flights.is_empty());
        assert!(matches!(flights.board(7), BoardedOne::Lead(_)));
    }
}
