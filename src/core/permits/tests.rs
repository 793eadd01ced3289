//! The laws of permits, and a plain model.

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
    let limits = std::iter::repeat_with(|| (permits.served(), permits.limits().0));
    let raised = [2, 3, 3, 3].map(|limit| (false, limit));
    let whole = [(true, 4), (false, 4), (false, 4)];
    assert_eq!(limits.take(7).collect::<Vec<_>>(), [&raised[..], &whole[..]].concat());
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
fn a_lower_limit_that_leaves_the_background_a_larger_share_wakes_it() {
    let permits = Permits::new(6, 5);
    let held = now(permits.acquire(Priority::Hydration));
    let mut waits = queued(permits.acquire(Priority::Hydration));
    let time = Instant::now();
    assert_eq!(permits.spare(time, time), Some(3));
    assert!(waits.signal().is_closed() && waits.permit().is_some());
    drop(held);
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
        let mut held: Vec<(Priority, Permit)> = Vec::new();
        let mut waiting: Vec<(Priority, Ticket)> = Vec::new();
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
                Step::Served => assert!(!permits.served() || permits.limits().0 == permits.limits().1),
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
