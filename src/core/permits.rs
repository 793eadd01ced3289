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
        state.limit = (state.limit / 2).max(1);
        Some(state.limit)
    }

    /// A request went well: after as many as run at once there may be one more.
    pub fn served(&self) {
        let mut state = self.state.lock();
        if state.limit == self.most {
            return;
        }
        state.served += 1;
        if state.served < state.limit {
            return;
        }
        state.served = 0;
        state.limit += 1;
        let woken = self.hand_out(&mut state);
        drop(state);
        drop(woken);
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

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
    fn what_was_asked_together_and_refused_together_halves_the_limit_once() {
        let permits = Permits::new(32, 8);
        let began = Instant::now();
        let later = began + Duration::from_millis(1);
        assert_eq!(permits.spare(began, later), Some(16));
        assert_eq!(permits.spare(began, later), None);
        let mut limit = 16;
        for n in 2..9 {
            let now = began + Duration::from_secs(n);
            let halved = permits.spare(now, now + Duration::from_millis(1));
            assert_eq!(halved, (limit > 1).then_some((limit / 2).max(1)));
            limit = permits.limits().0;
        }
        assert_eq!(permits.limits(), (1, 32));
    }

    #[test]
    fn as_many_good_requests_as_run_at_once_raise_the_limit_by_one_up_to_the_most() {
        let permits = Permits::new(4, 1);
        let now = Instant::now();
        permits.spare(now, now);
        let limits = std::iter::repeat_with(|| {
            permits.served();
            permits.limits().0
        });
        assert_eq!(limits.take(7).collect::<Vec<_>>(), [2, 3, 3, 3, 4, 4, 4]);
    }

    #[test]
    fn a_lower_limit_holds_as_permits_come_back_and_a_higher_one_wakes_who_waits() {
        let permits = Permits::new(4, 0);
        let mut held: Vec<_> = (0..4).map(|_| now(permits.acquire(Priority::Demand))).collect();
        let time = Instant::now();
        assert_eq!(permits.spare(time, time), Some(2));
        let mut waits = queued(permits.acquire(Priority::Demand));
        assert!(held[0].is_over());
        held.truncate(2);
        assert!(!held[0].is_over() && !waits.signal().is_closed());
        permits.served();
        permits.served();
        assert!(waits.signal().is_closed());
        assert_eq!((permits.in_use(), permits.limits().0), (3, 3));
    }

    #[test]
    fn with_one_permit_left_the_background_is_not_shut_out() {
        let permits = Permits::new(32, 8);
        let time = Instant::now();
        for n in 0..6 {
            permits.spare(time + Duration::from_secs(n), time + Duration::from_secs(n));
        }
        assert_eq!(permits.limits().0, 1);
        drop(now(permits.acquire(Priority::Hydration)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Acquire(usize),
        GiveBack(usize),
        Leave(usize),
        Spare,
        Served,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3usize).prop_map(Step::Acquire),
            4 => (0..40usize).prop_map(Step::GiveBack),
            1 => (0..40usize).prop_map(Step::Leave),
            1 => Just(Step::Spare),
            4 => Just(Step::Served),
        ]
    }

    proptest! {
        /// Against a plain model: nothing new begins beyond the limit, background leaves demand its share, and nobody waits while there
        /// is room for him.
        #[test]
        fn the_limit_holds_and_nobody_waits_in_vain(most in 1..12usize, reserved in 0..6usize, steps in prop::collection::vec(step(), 1..200)) {
            let permits = Permits::new(most, reserved);
            let mut time = Instant::now();
            let (mut held, mut waiting): (Vec<(Priority, Permit)>, Vec<(Priority, Ticket)>) = Default::default();
            for step in steps {
                let before = permits.in_use();
                match step {
                    Step::Acquire(priority) => {
                        let priority = Priority::ALL[priority];
                        match permits.acquire(priority) {
                            Acquired::Now(permit) => held.push((priority, permit)),
                            Acquired::Queued(ticket) => waiting.push((priority, ticket)),
                        }
                    }
                    Step::GiveBack(n) if !held.is_empty() => drop(held.swap_remove(n % held.len())),
                    Step::Leave(n) if !waiting.is_empty() => drop(waiting.swap_remove(n % waiting.len())),
                    Step::Spare => {
                        time += Duration::from_secs(1);
                        permits.spare(time, time);
                    }
                    Step::Served => permits.served(),
                    _ => {}
                }
                let come: Vec<usize> = (0..waiting.len()).rev().filter(|n| waiting[*n].1.signal().is_closed()).collect();
                for n in come {
                    let (priority, ticket) = waiting.swap_remove(n);
                    held.push((priority, ticket.permit().unwrap()));
                }
                let (limit, _) = permits.limits();
                prop_assert_eq!(permits.in_use(), held.len());
                prop_assert!((1..=most).contains(&limit));
                prop_assert!(held.len() <= limit.max(before), "{} > {limit}", held.len());
                prop_assert_eq!(permits.queued(), waiting.len());
                let room = held.len() < limit;
                prop_assert!(!room || waiting.iter().all(|(priority, _)| *priority != Priority::Demand));
                let background = held.iter().filter(|(priority, _)| *priority != Priority::Demand).count();
                let share = if limit == most { reserved.min(most - 1) } else { reserved.min(limit / 2) };
                let has_place = room && background < (limit - share.min(limit)).max(1);
                prop_assert!(!has_place || waiting.is_empty());
            }
        }
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

#[cfg(all(test, lazycopy_loom))]
mod model {
    use loom::thread;

    use super::*;

    fn wait(permits: &Arc<Permits>) -> Permit {
        match permits.acquire(Priority::Demand) {
            Acquired::Now(permit) => permit,
            Acquired::Queued(mut ticket) => {
                let (_closer, unused) = signal();
                std::mem::replace(&mut ticket.signal, unused).wait();
                ticket.permit().expect("invariant: a closed signal is a permit")
            }
        }
    }

    #[test]
    fn a_limit_that_rises_wakes_who_waits() {
        loom::model(|| {
            let permits = Permits::new(2, 0);
            let time = Instant::now();
            permits.spare(time, time);
            let held = wait(&permits);
            let raising = Arc::clone(&permits);
            let raised = thread::spawn(move || raising.served());
            drop(wait(&permits)); // while the first is held
            raised.join().expect("no panic");
            drop(held);
            assert_eq!((permits.in_use(), permits.queued()), (0, 0));
        });
    }

    #[test]
    fn a_limit_that_falls_while_permits_come_back_leaves_nobody_waiting() {
        loom::model(|| {
            let permits = Permits::new(2, 0);
            let (one, two) = (wait(&permits), wait(&permits));
            let sparing = Arc::clone(&permits);
            let spared = thread::spawn(move || {
                let time = Instant::now();
                sparing.spare(time, time);
                drop(one);
            });
            let back = thread::spawn(move || drop(two));
            drop(wait(&permits));
            spared.join().expect("no panic");
            back.join().expect("no panic");
            assert_eq!((permits.in_use(), permits.queued(), permits.limits().0), (0, 0, 1));
        });
    }
}
