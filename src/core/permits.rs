//! How many requests run at once, and who is next.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::core::ids::Ids;
use crate::core::priority::Priority;
use crate::sync::{Closer, Mutex, Signal, signal};

/// A bounded number of permits, handed to the most urgent first. `reserved` of them are for demand alone, so that a
/// reader never waits for a background request to end.
///
/// # Concurrency
/// All methods may be called from any thread.
#[derive(Debug)]
pub struct Permits {
    limit: usize,
    background_limit: usize,
    ids: Ids,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
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
        let limit = limit.max(1);
        Arc::new(Self {
            limit,
            background_limit: (limit - reserved.min(limit - 1)).max(1),
            ids: Ids::default(),
            state: Mutex::new(State::default()),
        })
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

    fn has_room(&self, state: &State, priority: Priority) -> bool {
        state.in_use < self.limit
            && (priority == Priority::Demand || state.background_in_use < self.background_limit)
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
mod tests {
    use super::*;

    fn now(acquired: Acquired) -> Permit {
        match acquired {
            Acquired::Now(permit) => permit,
            Acquired::Queued(_) => panic!("expected a free permit"),
        }
    }

    fn queued(acquired: Acquired) -> Ticket {
        match acquired {
            Acquired::Queued(ticket) => ticket,
            Acquired::Now(_) => panic!("expected to queue"),
        }
    }

    #[test]
    fn background_leaves_the_reserved_permits_to_demand() {
        let permits = Permits::new(4, 1);
        let held: Vec<_> = (0..3).map(|_| now(permits.acquire(Priority::Hydration))).collect();
        let ticket = queued(permits.acquire(Priority::Hydration));
        let demand = now(permits.acquire(Priority::Demand));
        assert_eq!((permits.in_use(), permits.queued()), (4, 1));
        drop((held, ticket, demand));
        assert_eq!((permits.in_use(), permits.queued()), (0, 0));
    }

    #[test]
    fn a_free_permit_goes_to_the_most_urgent_not_to_the_first() {
        let permits = Permits::new(1, 0);
        let held = now(permits.acquire(Priority::Hydration));
        let mut background = queued(permits.acquire(Priority::Hydration));
        let mut demand = queued(permits.acquire(Priority::Demand));
        drop(held);
        assert!(demand.signal().is_closed());
        assert!(!background.signal().is_closed());
        drop(demand.permit().unwrap());
        assert!(background.signal().is_closed());
        assert!(background.permit().is_some());
        assert_eq!(permits.in_use(), 0);
    }

    #[test]
    fn a_ticket_dropped_after_its_grant_passes_the_permit_on() {
        let permits = Permits::new(1, 0);
        let held = now(permits.acquire(Priority::Demand));
        let first = queued(permits.acquire(Priority::Demand));
        let mut second = queued(permits.acquire(Priority::Demand));
        drop(held);
        drop(first);
        assert!(second.signal().is_closed());
        assert!(second.permit().is_some());
    }
}
