use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::core::range::block_range;
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

// A chunk ended early before its copier began to wait, and the one that still ran told nobody of the gap.
#[test]
fn nobody_waits_for_what_nobody_fetches() {
    let (claims, ids, now) = file(2 * BLOCK_SIZE);
    let all = ByteRange::new(0, 2 * BLOCK_SIZE);
    assert!(claims.wait_while_running(all).is_none(), "nothing runs");
    let first = lead(claims.lead(all, Priority::Hydration, BLOCK_SIZE, &ids, now));
    assert!(claims.wait_while_running(all).is_none(), "half of it is free");
    let mut second = lead(claims.lead(all, Priority::Hydration, BLOCK_SIZE, &ids, now));
    let mut waiter = claims.wait_while_running(all).unwrap();
    drop(first);
    assert!(waiter.signal().is_closed(), "a gap wakes");
    assert!(claims.wait_while_running(all).is_none(), "there is a gap");
    let mut first = lead(claims.lead(all, Priority::Hydration, BLOCK_SIZE, &ids, now));
    let mut waiter = claims.wait_while_running(all).unwrap();
    first.landed(BLOCK_SIZE);
    first.commit();
    assert!(!waiter.signal().is_closed(), "the other one still runs");
    second.landed(BLOCK_SIZE);
    assert!(waiter.signal().is_closed());
    assert!(claims.wait_while_running(all).is_none(), "all is here");
}

#[test]
fn what_is_fetched_or_here_is_not_free() {
    let (claims, ids, now) = file(3 * BLOCK_SIZE);
    let (all, two) = (ByteRange::new(0, 3 * BLOCK_SIZE), ByteRange::new(0, 2 * BLOCK_SIZE));
    assert!(claims.has_free(all));
    let Lead::Lease(lease) = claims.lead(two, Priority::Hydration, BIG, &ids, now) else {
        panic!()
    };
    assert!(!claims.has_free(two) && claims.has_free(all));
    drop(lease);
    assert!(claims.has_free(two));
    claims.mark_present(all);
    assert!(!claims.has_free(all) && !claims.has_free(ByteRange::new(7, 7)));
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
    let taken = claims.take_unrecorded();
    assert_eq!(taken.blocks(), std::slice::from_ref(&(0..2)));
    assert!(claims.take_unrecorded().blocks().is_empty());
    drop(taken); // not recorded after all
    lease.landed(BLOCK_SIZE - 7);
    let taken = claims.take_unrecorded();
    assert_eq!(taken.blocks(), std::slice::from_ref(&(0..3)));
    claims.clear();
    assert!(!taken.is_current());
    drop(taken);
    let nothing = claims.take_unrecorded();
    assert!(nothing.blocks().is_empty(), "what was taken back is never recorded");
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

/// A file of `blocks` blocks, all of which landed.
fn full(blocks: u64) -> (Arc<Claims>, Ids, Instant) {
    let (claims, ids, now) = file(blocks * BLOCK_SIZE);
    let all = ByteRange::at(0, blocks * BLOCK_SIZE);
    let mut lease = lead(claims.lead(all, Priority::Hydration, u64::MAX, &ids, now));
    lease.landed(blocks * BLOCK_SIZE);
    lease.commit();
    (claims, ids, now)
}

fn one(run: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(run).collect()
}

fn runs<const N: usize>(runs: [Range<u64>; N]) -> Vec<Range<u64>> {
    runs.into_iter().collect()
}

#[test]
fn an_evicted_block_is_a_miss_that_waits_for_the_evictions_end() {
    let (claims, ids, now) = full(4);
    let want = ByteRange::at(BLOCK_SIZE, 10);
    let elsewhere = ByteRange::at(3 * BLOCK_SIZE, 10);
    let (since, apart) =
        (claims.covered_since(want).unwrap(), claims.covered_since(elsewhere).unwrap());
    let eviction = claims.evict(&one(0..2), &[], 9).unwrap();
    assert_eq!(eviction.blocks(), one(0..2));
    assert!(!claims.still_covers(want, since) && !claims.covers(want));
    assert!(claims.still_covers(elsewhere, apart), "other blocks are as they were");
    assert_eq!(claims.local_bytes(), 2 * BLOCK_SIZE);
    let (leases, mut waiter) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    assert!(leases.is_empty() && !waiter.signal().is_closed());
    assert!(matches!(claims.lead(want, Priority::Demand, BIG, &ids, now), Lead::Running));
    drop(eviction);
    assert!(waiter.signal().is_closed());
    let (leases, _waiter) = pending(claims.claim(want, Priority::Demand, BIG, &ids, now));
    assert_eq!(leases.len(), 1);
}

#[test]
fn what_is_pinned_fetched_kept_or_being_recorded_stays() {
    let (claims, ids, now) = full(8);
    let everything = one(0..8);
    let recording = claims.take_unrecorded();
    assert!(claims.evict(&everything, &[], 8).is_none());
    recording.recorded();
    let pin = claims.pin(ByteRange::at(BLOCK_SIZE + 1, 1));
    let keep = [ByteRange::at(5 * BLOCK_SIZE, BLOCK_SIZE)];
    let first = claims.evict(&everything, &keep, 4).unwrap();
    assert_eq!(first.blocks(), runs([0..1, 2..5]));
    drop(first);
    let gap = ByteRange::at(3 * BLOCK_SIZE, BLOCK_SIZE);
    let fetched = lead(claims.lead(gap, Priority::Demand, BIG, &ids, now));
    let second = claims.evict(&runs([6..8, 0..6]), &[], 8).unwrap();
    assert_eq!(second.blocks(), runs([0..1, 2..3, 4..8]));
    assert!(claims.evict_all().is_none());
    drop((pin, fetched, second));
    assert!(claims.evict_all().is_some());
}

#[test]
fn while_a_whole_file_is_evicted_nothing_of_it_can_be_fetched() {
    let (claims, ids, now) = file(4 * BLOCK_SIZE);
    let all = ByteRange::at(0, 4 * BLOCK_SIZE);
    let eviction = claims.evict_all().unwrap();
    assert!(matches!(claims.lead(all, Priority::Demand, BIG, &ids, now), Lead::Running));
    drop(eviction);
    assert!(matches!(claims.lead(all, Priority::Demand, BIG, &ids, now), Lead::Lease(_)));
}

#[test]
fn evicted_blocks_are_never_recorded_and_blocks_that_land_again_are() {
    let (claims, ids, now) = full(3);
    drop(claims.evict(&one(1..2), &[], 1));
    let taken = claims.take_unrecorded();
    assert_eq!(taken.blocks(), runs([0..1, 2..3]));
    taken.recorded();
    let mut lease = lead(claims.lead(ByteRange::at(0, 1 << 30), Priority::Demand, BIG, &ids, now));
    lease.landed(BLOCK_SIZE);
    assert_eq!(claims.take_unrecorded().blocks(), one(1..2));
}

#[test]
fn a_read_that_slept_through_many_evictions_looks_again() {
    let (claims, _, _) = full(2);
    let since = claims.covered_since(ByteRange::at(BLOCK_SIZE, 1)).unwrap();
    for _ in 0..200 {
        drop(claims.evict(&one(0..1), &[], 1));
    }
    assert!(!claims.still_covers(ByteRange::at(BLOCK_SIZE, 1), since));
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
    Evict { first: u64, count: u64, max: u64 },
    EndEviction { which: usize },
    Pin { offset: u64, len: u64 },
    Unpin { which: usize },
    TakeForRecord,
    EndRecord { which: usize, is_recorded: bool },
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
            3 => (0u64..7, 0u64..7, 0u64..7).prop_map(|(first, count, max)| Step::Evict { first, count, max }),
            2 => (0usize..8).prop_map(|which| Step::EndEviction { which }),
            1 => (0..size, 0..size).prop_map(|(offset, len)| Step::Pin { offset, len }),
            1 => (0usize..8).prop_map(|which| Step::Unpin { which }),
            1 => Just(Step::TakeForRecord),
            1 => (0usize..8, any::<bool>()).prop_map(|(which, is_recorded)| Step::EndRecord { which, is_recorded }),
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
        let (mut evictions, mut pins): (Vec<Eviction>, Vec<(Pin, ByteRange)>) = (Vec::new(), Vec::new());
        let mut recordings: Vec<Unrecorded> = Vec::new();
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
                Step::Evict { first, count, max } => {
                    let candidate = first..(first + count).min(block_count(size)).max(first);
                    if let Some(eviction) = claims.evict(&runs([candidate.clone()]), &[], max) {
                        let blocks: Vec<u64> = eviction.blocks().iter().cloned().flatten().collect();
                        prop_assert!(blocks.len() as u64 <= max);
                        for block in blocks {
                            let bytes = block_range(block, size);
                            prop_assert!(candidate.contains(&block));
                            prop_assert!(pins.iter().all(|(_, pin)| !pin.to_blocks(size).overlaps(bytes)), "pinned");
                            prop_assert!(leases.iter().all(|lease| !lease.chunk().range.overlaps(bytes)), "fetched");
                            prop_assert!(recordings.iter().all(|taken| !taken.blocks().iter().any(|run| run.contains(&block))), "recorded");
                            model.set(bytes, false);
                        }
                        evictions.push(eviction);
                    }
                }
                Step::EndEviction { which } if !evictions.is_empty() => {
                    evictions.swap_remove(which % evictions.len());
                }
                Step::Pin { offset, len } => {
                    let want = ByteRange::at(offset, len).clip(size);
                    pins.push((claims.pin(want), want));
                }
                Step::Unpin { which } if !pins.is_empty() => {
                    pins.swap_remove(which % pins.len());
                }
                Step::TakeForRecord => recordings.push(claims.take_unrecorded()),
                Step::EndRecord { which, is_recorded } if !recordings.is_empty() => {
                    let taken = recordings.swap_remove(which % recordings.len());
                    if is_recorded { taken.recorded() } else { drop(taken) }
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
                    let wanted = waiter.want().blocks();
                    let is_evicted = evictions.iter().flat_map(Eviction::blocks).any(|run| run.start < wanted.end && wanted.start < run.end);
                    let is_fetched = !claims.running_in(waiter.want()).is_empty();
                    prop_assert!(is_fetched || is_evicted, "{} waits and nobody fetches", waiter.want());
                    prop_assert!(waiter.lacking() > 0);
                }
            }
        }
        drop((leases, evictions));
        for waiter in &mut waiters {
            prop_assert!(waiter.signal().is_closed());
        }
        prop_assert!(claims.running().is_empty());
    }
}
