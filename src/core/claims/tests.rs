use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::error::Kind;

const BIG: u64 = 16 << 20;

fn file(size: u64) -> (Arc<Claims>, Ids, Instant) {
    (Arc::new(Claims::new(size)), Ids::default(), Instant::now())
}

fn pending(claim: Claim) -> (Vec<Lease>, Waiter) {
    match claim {
        Claim::Pending { leases, waiter } => (leases, waiter),
        other => panic!("expected to wait, got {other:?}"),
    }
}

fn lead(claim: Lead) -> Lease {
    match claim {
        Lead::Lease(lease) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

#[test]
fn each_block_is_led_once() {
    let (claims, ids, now) = file(10 * BLOCK_SIZE);
    let (first, _w1) = pending(claims.claim(ByteRange::at(5, 1), Priority::Demand, BIG, &ids, now));
    let all = ByteRange::at(0, 10 * BLOCK_SIZE);
    let (rest, _w2) = pending(claims.claim(all, Priority::Demand, BIG, &ids, now));
    assert_eq!(first[0].chunk().range, ByteRange::new(0, BLOCK_SIZE));
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].chunk().range, ByteRange::new(BLOCK_SIZE, 10 * BLOCK_SIZE));
    let (none, _w3) = pending(claims.claim(all, Priority::Demand, BIG, &ids, now));
    assert!(none.is_empty());
    assert!(matches!(claims.lead(all, Priority::Hydration, BIG, &ids, now), Lead::Running));
}

// H34, H35, L5: a wake-up was missed, dropped, or taken by a reader that still lacked data.
#[test]
fn every_waiter_wakes_when_its_own_bytes_are_there_and_no_earlier() {
    let (claims, ids, now) = file(BLOCK_SIZE);
    let mut lease = None;
    let mut waiters: Vec<Waiter> = (0..64)
        .map(|n| {
            let want = ByteRange::at(n * 2048, 2048);
            let (leases, waiter) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
            lease = lease.take().or(leases.into_iter().next());
            waiter
        })
        .collect();
    let mut lease = lease.unwrap();
    lease.landed(40 * 2048 + 5);
    for (n, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(waiter.signal().is_closed(), n < 40, "waiter {n}");
        assert_eq!(claims.covers(waiter.want()), n < 40);
    }
    assert_eq!(waiters[40].lacking(), 2048 - 5);
    drop(lease);
    assert!(waiters.iter_mut().all(|waiter| waiter.signal().is_closed()));
}

#[test]
fn dropping_a_lease_wakes_every_waiter() {
    let (claims, ids, now) = file(3 * BLOCK_SIZE);
    let want = ByteRange::at(10, 2 * BLOCK_SIZE);
    let (leases, mut leader) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    let (none, mut joiner) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    assert!(none.is_empty());
    drop(leases);
    assert!(leader.signal().is_closed() && joiner.signal().is_closed());
    assert!(!pending(claims.claim(want, Priority::Demand, BIG, &ids, now)).0.is_empty());
}

// L17: one reader's failure poisoned the chunk for all, for ever.
#[test]
fn a_failure_is_remembered_until_its_time_and_forgotten_when_a_byte_arrives() {
    let (claims, ids, now) = file(4 * BLOCK_SIZE);
    let want = ByteRange::at(0, BLOCK_SIZE);
    let (leases, _waiter) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    let later = now + Duration::from_secs(30);
    for lease in leases {
        lease.fail(Error::new(Kind::Unreachable, "read"), later);
    }
    assert!(matches!(claims.claim(want, Priority::Demand, BIG, &ids, now), Claim::Failed(_)));
    let elsewhere = ByteRange::at(BLOCK_SIZE, 1);
    let unaffected = claims.claim(elsewhere, Priority::Demand, BIG, &ids, now);
    assert!(matches!(unaffected, Claim::Pending { .. }));
    let (mut leases, _waiter) = pending(claims.claim(want, Priority::Demand, BIG, &ids, later));
    leases[0].landed(1);
    drop(leases);
    assert!(matches!(claims.claim(want, Priority::Demand, BIG, &ids, now), Claim::Pending { .. }));
}

#[test]
fn a_waiter_that_leaves_disturbs_nobody() {
    let (claims, ids, now) = file(BLOCK_SIZE);
    let want = ByteRange::at(0, 100);
    let (mut leases, first) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    let (_, mut second) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    drop(first);
    assert!(!second.signal().is_closed());
    leases[0].landed(100);
    assert!(second.signal().is_closed());
}

#[test]
fn bytes_that_land_after_everything_was_taken_back_count_for_nothing() {
    let (claims, ids, now) = file(BLOCK_SIZE);
    let all = ByteRange::at(0, BLOCK_SIZE);
    let (mut old, mut waiter) = pending(claims.claim(all, Priority::Demand, BIG, &ids, now));
    claims.clear();
    assert!(waiter.signal().is_closed());
    let (new, _waiter) = pending(claims.claim(all, Priority::Demand, BIG, &ids, now));
    old[0].landed(BLOCK_SIZE);
    assert!(!claims.covers(all));
    drop(old);
    assert_eq!(claims.running().len(), 1, "the old lease does not end the new chunk");
    drop(new);
}

#[test]
fn holes_are_present_without_a_fetch_and_wake_who_waits() {
    let (claims, ids, now) = file(8 * BLOCK_SIZE + 5);
    let tail = ByteRange::at(7 * BLOCK_SIZE, 2 * BLOCK_SIZE);
    let (leases, mut waiter) = pending(claims.claim(tail, Priority::Demand, BIG, &ids, now));
    claims.mark_present(ByteRange::new(6 * BLOCK_SIZE + 1, 8 * BLOCK_SIZE + 5));
    assert!(waiter.signal().is_closed());
    assert!(claims.covers(tail));
    assert!(!claims.covers(ByteRange::at(6 * BLOCK_SIZE + 2, 1)), "only whole blocks of a hole");
    assert_eq!(claims.local_bytes(), BLOCK_SIZE + 5);
    drop(leases);
}

#[test]
fn whole_blocks_that_landed_are_taken_for_the_record_once() {
    let (claims, ids, now) = file(5 * BLOCK_SIZE);
    let all = ByteRange::at(0, 5 * BLOCK_SIZE);
    let mut lease = lead(claims.lead(all, Priority::Hydration, BIG, &ids, now));
    claims.mark_present(ByteRange::at(4 * BLOCK_SIZE, BLOCK_SIZE));
    lease.landed(2 * BLOCK_SIZE + 7);
    assert_eq!(claims.take_unrecorded().as_slice(), std::slice::from_ref(&(0..2)));
    assert!(claims.take_unrecorded().is_empty());
    claims.give_back_unrecorded(std::slice::from_ref(&(1..2)), claims.epoch());
    lease.landed(BLOCK_SIZE - 7);
    assert_eq!(claims.take_unrecorded().as_slice(), std::slice::from_ref(&(1..3)));
    let epoch = claims.epoch();
    claims.clear();
    claims.give_back_unrecorded(std::slice::from_ref(&(0..1)), epoch);
    assert!(claims.take_unrecorded().is_empty(), "what was taken back is never recorded");
}

#[test]
fn an_empty_file_is_complete_at_once() {
    let (claims, ids, now) = file(0);
    assert!(claims.is_complete());
    let claim = claims.claim(ByteRange::at(0, 4096), Priority::Demand, BIG, &ids, now);
    assert!(matches!(claim, Claim::Covered));
}

// L2: a read near the end waited for the whole file.
#[test]
fn the_tail_of_a_huge_file_is_one_chunk_of_its_own() {
    let size = 10 << 40;
    let (claims, ids, now) = file(size);
    let lease = lead(claims.lead(ByteRange::at(0, size), Priority::Hydration, BIG, &ids, now));
    let tail = ByteRange::at(size - 4096, 4096);
    let (mut leases, mut waiter) = pending(claims.claim(tail, Priority::Demand, BIG, &ids, now));
    let chunk = leases[0].chunk().range;
    assert_eq!((chunk.start, chunk.len()), (size - BLOCK_SIZE, BLOCK_SIZE));
    leases[0].landed(BLOCK_SIZE);
    assert!(waiter.signal().is_closed());
    drop(lease);
}

#[derive(Debug, Clone)]
enum Step {
    Claim { offset: u64, len: u64 },
    Lead { offset: u64, len: u64, max: u64 },
    Land { which: usize, bytes: u64 },
    Commit { which: usize },
    Drop { which: usize },
    Hole { offset: u64, len: u64 },
    Leave { which: usize },
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let range = (0..size + 10, 0..size);
    prop::collection::vec(
        prop_oneof![
            4 => range.clone().prop_map(|(offset, len)| Step::Claim { offset, len }),
            2 => (range.clone(), 0..4 * BLOCK_SIZE)
                .prop_map(|((offset, len), max)| Step::Lead { offset, len, max }),
            8 => (0usize..8, 1..2 * BLOCK_SIZE).prop_map(|(which, bytes)| Step::Land { which, bytes }),
            2 => (0usize..8).prop_map(|which| Step::Commit { which }),
            2 => (0usize..8).prop_map(|which| Step::Drop { which }),
            1 => range.prop_map(|(offset, len)| Step::Hole { offset, len }),
            1 => (0usize..8).prop_map(|which| Step::Leave { which }),
        ],
        0..60,
    )
}

/// The reference: one bool a byte (scaled down by 1 KiB), and the same rules said in the plainest way.
struct Model {
    readable: Vec<bool>,
    unit: u64,
}

impl Model {
    fn set(&mut self, range: ByteRange, value: bool) {
        for index in range.start / self.unit..range.end.div_ceil(self.unit) {
            let index = usize::try_from(index).expect("a small file");
            self.readable[index] = value;
        }
    }
}

proptest! {
    #[test]
    fn covered_is_exactly_what_landed_and_nobody_sleeps_who_could_read(
        size in (1u64..7, 0..BLOCK_SIZE / 1024)
            .prop_map(|(blocks, extra)| (blocks * BLOCK_SIZE + extra * 1024) - BLOCK_SIZE / 2),
        steps in steps(6 * BLOCK_SIZE)
    ) {
        let unit = 1024;
        let (claims, ids, now) = file(size);
        let mut model = Model { readable: vec![false; usize::try_from(size.div_ceil(unit)).unwrap()], unit };
        let (mut leases, mut waiters): (Vec<Lease>, Vec<Waiter>) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Claim { offset, len } => {
                    match claims.claim(ByteRange::at(offset, len), Priority::Demand, BIG, &ids, now) {
                        Claim::Covered => {}
                        Claim::Failed(error) => prop_assert!(false, "nothing failed: {error}"),
                        Claim::Pending { leases: new, waiter } => {
                            leases.extend(new);
                            waiters.push(waiter);
                        }
                    }
                }
                Step::Lead { offset, len, max } => {
                    if let Lead::Lease(lease) = claims.lead(ByteRange::at(offset, len), Priority::Hydration, max, &ids, now) {
                        leases.push(lease);
                    }
                }
                Step::Land { which, bytes } if !leases.is_empty() => {
                    let which = which % leases.len();
                    let remaining = leases[which].remaining();
                    let whole = ((bytes / unit).max(1) * unit).min(remaining.len());
                    leases[which].landed(whole);
                    model.set(ByteRange::at(remaining.start, whole), true);
                }
                Step::Commit { which } | Step::Drop { which } if !leases.is_empty() => {
                    let lease = leases.swap_remove(which % leases.len());
                    let remaining = lease.remaining();
                    if !remaining.is_empty() {
                        // The unfinished block is forgotten, unless a hole made it present.
                        let block = ByteRange::new(remaining.start / BLOCK_SIZE * BLOCK_SIZE, remaining.start);
                        if !claims.state.lock().map.is_present(remaining.start / BLOCK_SIZE) {
                            model.set(block, false);
                        }
                    }
                    if matches!(step, Step::Commit { .. }) { lease.commit() } else { drop(lease) }
                }
                Step::Hole { offset, len } => {
                    let hole = ByteRange::at(offset, len).clip(size);
                    claims.mark_present(hole);
                    let start = hole.start.div_ceil(BLOCK_SIZE) * BLOCK_SIZE;
                    let end = if hole.end == size { size } else { hole.end / BLOCK_SIZE * BLOCK_SIZE };
                    if start < end {
                        model.set(ByteRange::new(start, end), true);
                    }
                }
                Step::Leave { which } if !waiters.is_empty() => {
                    waiters.swap_remove(which % waiters.len());
                }
                _ => {}
            }
            for (index, readable) in model.readable.iter().enumerate() {
                let at = ByteRange::at(index as u64 * unit, unit).clip(size);
                prop_assert_eq!(claims.covers(at), *readable, "at {}", at);
            }
            let mut led = vec![false; usize::try_from(block_count(size)).unwrap()];
            for lease in &leases {
                for block in lease.chunk().range.blocks() {
                    prop_assert!(!std::mem::replace(&mut led[usize::try_from(block).unwrap()], true), "block {} led twice", block);
                }
            }
            for waiter in &mut waiters {
                let covered = claims.covers(waiter.want());
                if covered {
                    prop_assert!(waiter.signal().is_closed(), "{} sleeps over bytes that are there", waiter.want());
                } else if !waiter.signal().is_closed() {
                    let fetched: u64 = claims.running_in(waiter.want()).len() as u64;
                    prop_assert!(fetched > 0, "{} waits and nobody fetches", waiter.want());
                    prop_assert!(waiter.lacking() > 0);
                }
            }
        }
        drop(leases);
        for waiter in &mut waiters {
            prop_assert!(waiter.signal().is_closed());
        }
        prop_assert!(claims.running().is_empty());
    }
}
