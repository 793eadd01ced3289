//! How many requests run at once, and who is next.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::core::ids::Ids;
use crate::core::priority::Priority;
use crate::sync::{Closer, Mutex, Signal, signal};

/// A bounded number of permits, handed to the most urgent first. `reserved` of them are for demand alone, so that a
/// reader never waits for a background request to end.
///
/// A source that asks to be spared halves the limit; requests that go well raise it again, one by one. A lower limit takes nothing away:
/// it holds as permits come back.
///
/// # Concurrency
/// All methods may be called from any thread.
#[derive(Debug)]
pub struct Permits {
    most: usize,
    reserved: usize,
    ids: Ids,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// 1 to `most`.
    limit: usize,
    /// Requests that went well since the limit was changed.
    served: usize,
    /// When the limit was halved last.
    halved: Option<Instant>,
    in_use: usize,
    background_in_use: usize,
    queues: [VecDeque<(u64, Closer)>; 3],
    granted: HashSet<u64>,
}

/// The answer to [`Permits::acquire`].
#[derive(Debug)]
pub enum Acquired {
    /// Go.
    Now(Permit),
    /// Wait for the ticket's signal, then take the permit.
    Queued(Ticket),
}

impl Permits {
    /// `limit >= 1` permits, of which `reserved < limit` are for demand alone.
    pub fn new(limit: usize, reserved: usize) -> Arc<Self> {
        let most = limit.max(1);
        let state = State {
            limit: most,
            served: 0,
            halved: None,
            in_use: 0,
            background_in_use: 0,
            queues: Default::default(),
            granted: HashSet::new(),
        };
        let reserved = reserved.min(most - 1);
        Arc::new(Self { most, reserved, ids: Ids::default(), state: Mutex::new(state) })
    }

    /// Asks for a permit.
    pub fn acquire(self: &Arc<Self>, priority: Priority) -> Acquired {
        let mut state = self.state.lock();
        let none_before_us =
            state.queues[..=priority as usize].iter().all(|queue| queue.is_empty());
        if none_before_us && self.has_room(&state, priority) {
            state.count(priority);
            return Acquired::Now(Permit { permits: Arc::clone(self), priority });
        }
        let id = self.ids.next();
        let (closer, signal) = signal();
        state.queues[priority as usize].push_back((id, closer));
        Acquired::Queued(Ticket { permits: Arc::clone(self), id, priority, signal })
    }

    /// Requests that wait for a permit.
    pub fn queued(&self) -> usize {
        self.state.lock().queues.iter().map(VecDeque::len).sum()
    }

    /// Requests that hold a permit.
    pub fn in_use(&self) -> usize {
        self.state.lock().in_use
    }

    /// Permits that may be in use now, and most that ever may.
    pub fn limits(&self) -> (usize, usize) {
        (self.state.lock().limit, self.most)
    }

    /// The source asked to be spared, answering a request that began at `began`: half as many from now on. Those that were under way
    /// already count as one. Returns the new limit if it was changed.
    pub fn spare(&self, began: Instant, now: Instant) -> Option<usize> {
        let mut state = self.state.lock();
        state.served = 0;
        if state.halved.is_some_and(|halved| began <= halved) || state.limit == 1 {
            return None;
        }
        state.halved = Some(now);
        let limit = (state.limit / 2).max(1);
        state.limit = limit;
        // Of fewer permits demand may keep fewer to itself.
        let woken = self.hand_out(&mut state);
        drop(state);
        drop(woken);
        Some(limit)
    }

    /// A request went well: after as many as run at once there may be one more. Says whether these are all again.
    pub fn served(&self) -> bool {
        let mut state = self.state.lock();
        if state.limit == self.most {
            return false;
        }
        state.served += 1;
        if state.served < state.limit {
            return false;
        }
        state.served = 0;
        state.limit += 1;
        let are_all = state.limit == self.most;
        let woken = self.hand_out(&mut state);
        drop(state);
        drop(woken);
        are_all
    }

    fn has_room(&self, state: &State, priority: Priority) -> bool {
        // Of few, demand keeps no more than half to itself.
        let reserved = if state.limit == self.most {
            self.reserved
        } else {
            self.reserved.min(state.limit / 2)
        };
        state.in_use < state.limit
            && (priority == Priority::Demand
                || state.background_in_use < (state.limit - reserved).max(1))
    }

    /// Hands free permits to the most urgent; returns their closers.
    fn hand_out(&self, state: &mut State) -> Vec<Closer> {
        let mut woken = Vec::new();
        for priority in Priority::ALL {
            while self.has_room(state, priority)
                && let Some((id, closer)) = state.queues[priority as usize].pop_front()
            {
                state.count(priority);
                state.granted.insert(id);
                woken.push(closer);
            }
        }
        woken
    }

    fn give_back(&self, priority: Priority) {
        let mut state = self.state.lock();
        state.in_use -= 1;
        state.background_in_use -= usize::from(priority != Priority::Demand);
        let woken = self.hand_out(&mut state);
        drop(state);
        drop(woken);
    }
}

impl State {
    fn count(&mut self, priority: Priority) {
        self.in_use += 1;
        self.background_in_use += usize::from(priority != Priority::Demand);
    }
}

/// The right to run one request. Dropping it gives it to the next.
#[derive(Debug)]
pub struct Permit {
    permits: Arc<Permits>,
    priority: Priority,
}

impl Permit {
    /// Whether more are in use than may be now: then it is better given back before the next request.
    pub fn is_over(&self) -> bool {
        let state = self.permits.state.lock();
        state.in_use > state.limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.give_back(self.priority);
    }
}

/// A place in the queue for a permit. Dropping it leaves the queue, or passes on a permit that had just come.
#[derive(Debug)]
pub struct Ticket {
    permits: Arc<Permits>,
    id: u64,
    priority: Priority,
    signal: Signal,
}

impl Ticket {
    /// Closes when the permit has come.
    pub fn signal(&mut self) -> &mut Signal {
        &mut self.signal
    }

    /// The permit, once the signal has closed; before that `None`, and the place is lost.
    pub fn permit(self) -> Option<Permit> {
        let granted = self.permits.state.lock().granted.remove(&self.id);
        granted.then(|| Permit { permits: Arc::clone(&self.permits), priority: self.priority })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.permits.state.lock();
        let granted = state.granted.remove(&self.id);
        let left = if granted {
            None
        } else {
            let queue = &mut state.queues[self.priority as usize];
            let place = queue.iter().position(|(id, _)| *id == self.id);
            place.and_then(|index| queue.remove(index))
        };
        drop(state);
        drop(left);
        if granted {
            self.permits.give_back(self.priority);
        }
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
#[path = "tests.rs"]
mod tests;

#[cfg(all(test, lazycopy_loom))]
#[path = "model.rs"]
mod model;
