//! Every interleaving, by loom: no lost wake-up (a waiter that never wakes is a deadlock), each block led once, every ending wakes all,
//! no reader is given a byte of what was taken off the disk, and no record vouches for it.

use loom::thread;

use super::*;
use crate::sync::AtomicU32;

const TWO: u64 = 2 * BLOCK_SIZE;

fn run(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn file() -> (Arc<Claims>, Arc<Ids>, Instant) {
    (Arc::new(Claims::new(TWO)), Arc::new(Ids::default()), Instant::now())
}

/// Reads like the engine does: claim, fetch what it leads, wait, look again. Returns how many blocks it led.
fn read(claims: &Arc<Claims>, ids: &Ids, want: ByteRange, now: Instant) -> u64 {
    let mut led = 0;
    loop {
        match claims.claim(want, Priority::Demand, TWO, ids, now) {
            Claim::Covered => return led,
            Claim::Failed(_) => return led,
            Claim::Pending { leases, waiter } => {
                for mut lease in leases {
                    led += lease.chunk().range.len() / BLOCK_SIZE;
                    lease.landed(lease.remaining().len());
                    lease.commit();
                }
                waiter.wait();
            }
        }
    }
}

#[test]
fn two_leaders_fetch_each_block_once_and_both_wake() {
    run(|| {
        let (claims, ids, now) = file();
        let other = thread::spawn({
            let (claims, ids) = (Arc::clone(&claims), Arc::clone(&ids));
            move || read(&claims, &ids, ByteRange::at(0, TWO), now)
        });
        let mine = read(&claims, &ids, ByteRange::at(BLOCK_SIZE / 2, BLOCK_SIZE), now);
        assert_eq!(mine + other.join().unwrap(), 2);
        assert!(claims.is_complete());
    });
}

#[test]
fn bytes_that_land_piecewise_wake_each_waiter_once_its_own_are_there() {
    run(|| {
        let (claims, ids, now) = file();
        let Lead::Lease(mut lease) =
            claims.lead(ByteRange::at(0, BLOCK_SIZE), Priority::Hydration, TWO, &ids, now)
        else {
            panic!("nobody else leads");
        };
        let waiter = thread::spawn({
            let claims = Arc::clone(&claims);
            move || {
                let want = ByteRange::at(10, 10);
                if let Some(waiter) = claims.wait_for(want) {
                    waiter.wait();
                }
                assert!(claims.covers(want));
            }
        });
        lease.landed(15);
        lease.landed(5);
        waiter.join().unwrap();
        lease.landed(BLOCK_SIZE - 20);
        lease.commit();
    });
}

#[test]
fn a_lease_that_ends_badly_wakes_all_and_another_takes_over() {
    run(|| {
        let (claims, ids, now) = file();
        let Lead::Lease(mut lease) =
            claims.lead(ByteRange::at(0, TWO), Priority::Hydration, TWO, &ids, now)
        else {
            panic!("nobody else leads");
        };
        let reader = thread::spawn({
            let (claims, ids) = (Arc::clone(&claims), Arc::clone(&ids));
            move || read(&claims, &ids, ByteRange::at(BLOCK_SIZE, 100), now)
        });
        lease.landed(BLOCK_SIZE + 50);
        drop(lease);
        reader.join().unwrap();
        assert!(claims.covers(ByteRange::at(BLOCK_SIZE, 100)));
    });
}

#[test]
fn a_waiter_that_leaves_while_bytes_land_harms_nobody() {
    run(|| {
        let (claims, ids, now) = file();
        let want = ByteRange::at(0, BLOCK_SIZE);
        let Lead::Lease(mut lease) = claims.lead(want, Priority::Hydration, TWO, &ids, now) else {
            panic!("nobody else leads");
        };
        let leaver = thread::spawn({
            let claims = Arc::clone(&claims);
            move || drop(claims.wait_for(want))
        });
        let stayer = thread::spawn({
            let claims = Arc::clone(&claims);
            move || {
                if let Some(waiter) = claims.wait_for(want) {
                    waiter.wait();
                }
                assert!(claims.covers(want));
            }
        });
        lease.landed(BLOCK_SIZE);
        lease.commit();
        leaver.join().unwrap();
        stayer.join().unwrap();
    });
}

#[test]
fn a_failing_chunk_answers_every_waiter() {
    run(|| {
        let (claims, ids, now) = file();
        let until = now + std::time::Duration::from_secs(30);
        let answered = Arc::new(AtomicU32::new(0));
        let want = ByteRange::at(0, BLOCK_SIZE);
        let Lead::Lease(lease) = claims.lead(want, Priority::Demand, TWO, &ids, now) else {
            panic!("nobody else leads");
        };
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (claims, ids, answered) =
                    (Arc::clone(&claims), Arc::clone(&ids), Arc::clone(&answered));
                thread::spawn(move || {
                    let led = read(&claims, &ids, want, now);
                    assert_eq!(led, 0, "a failed range is not asked for again at once");
                    answered.fetch_add(1, Ordering::AcqRel);
                })
            })
            .collect();
        lease.fail(Error::new(crate::error::Kind::Unreachable, "read"), until);
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(answered.load(Ordering::Acquire), 2);
    });
}

/// One block on a disk: 1 = its bytes are there. Relaxed, as bytes in a page cache are.
type Disk = Arc<AtomicU64>;

const BYTE: ByteRange = ByteRange { start: 5, end: 6 };

/// A file whose first block landed and lies on the disk.
fn one_block() -> (Arc<Claims>, Arc<Ids>, Instant, Disk) {
    let (claims, ids, now) = (Arc::new(Claims::new(BLOCK_SIZE)), Arc::default(), Instant::now());
    let disk = Arc::new(AtomicU64::new(0));
    fetch(&claims, &ids, now, &disk);
    (claims, ids, now, disk)
}

fn fetch(claims: &Arc<Claims>, ids: &Ids, now: Instant, disk: &Disk) {
    if let Lead::Lease(mut lease) = claims.lead(BYTE, Priority::Demand, TWO, ids, now) {
        disk.store(1, Ordering::Relaxed);
        lease.landed(BLOCK_SIZE);
        lease.commit();
    }
}

fn evict(claims: &Arc<Claims>, disk: &Disk) -> bool {
    let all: [std::ops::Range<u64>; 1] = std::array::from_fn(|_| 0..1);
    let Some(eviction) = claims.evict(&all, &[], 1) else { return false };
    disk.store(0, Ordering::Relaxed);
    drop(eviction);
    true
}

/// Copies the byte out as a hit does; says whether it counts, and asserts that it is right then.
fn hit(claims: &Claims, disk: &Disk) -> bool {
    let Some(since) = claims.covered_since(BYTE) else { return false };
    let byte = disk.load(Ordering::Relaxed);
    let counts = claims.still_covers(BYTE, since);
    assert!(!counts || byte == 1, "a reader was given what was punched");
    counts
}

#[test]
fn a_reader_is_never_given_a_byte_of_a_punched_block() {
    run(|| {
        let (claims, ids, now, disk) = one_block();
        let reader = thread::spawn({
            let (claims, disk) = (Arc::clone(&claims), Arc::clone(&disk));
            move || {
                hit(&claims, &disk);
                hit(&claims, &disk);
            }
        });
        evict(&claims, &disk);
        fetch(&claims, &ids, now, &disk);
        reader.join().unwrap();
        assert!(hit(&claims, &disk));
    });
}

#[test]
fn a_reader_whose_block_is_evicted_gets_it_after_all() {
    run(|| {
        let (claims, ids, now, disk) = one_block();
        let evictor = thread::spawn({
            let (claims, disk) = (Arc::clone(&claims), Arc::clone(&disk));
            move || evict(&claims, &disk)
        });
        let pin = claims.pin(BYTE);
        while !hit(&claims, &disk) {
            match claims.claim(BYTE, Priority::Demand, TWO, &ids, now) {
                Claim::Covered | Claim::Failed(_) => {}
                Claim::Pending { leases, waiter } => {
                    for mut lease in leases {
                        disk.store(1, Ordering::Relaxed);
                        lease.landed(BLOCK_SIZE);
                        lease.commit();
                    }
                    waiter.wait();
                }
            }
        }
        drop(pin);
        evictor.join().unwrap();
    });
}

#[test]
fn two_evictions_and_a_fetch_never_meet_on_one_block() {
    run(|| {
        let (claims, ids, now, disk) = one_block();
        let evictors: Vec<_> = (0..2)
            .map(|_| {
                let (claims, disk) = (Arc::clone(&claims), Arc::clone(&disk));
                thread::spawn(move || evict(&claims, &disk))
            })
            .collect();
        fetch(&claims, &ids, now, &disk);
        for evictor in evictors {
            evictor.join().unwrap();
        }
        assert_eq!(claims.covers(BYTE), disk.load(Ordering::Relaxed) == 1);
    });
}

#[test]
fn a_record_never_vouches_for_a_block_that_went() {
    run(|| {
        let (claims, _, _, disk) = one_block();
        let record = Arc::new(AtomicU64::new(0));
        let checkpoint = thread::spawn({
            let (claims, record) = (Arc::clone(&claims), Arc::clone(&record));
            move || {
                let taken = claims.take_unrecorded();
                if !taken.blocks().is_empty() {
                    record.store(1, Ordering::Relaxed);
                }
                taken.recorded();
            }
        });
        let all: [std::ops::Range<u64>; 1] = std::array::from_fn(|_| 0..1);
        if let Some(eviction) = claims.evict(&all, &[], 1) {
            record.store(0, Ordering::Relaxed);
            disk.store(0, Ordering::Relaxed);
            drop(eviction);
        }
        checkpoint.join().unwrap();
        let vouches = record.load(Ordering::Relaxed) == 1;
        assert!(!vouches || disk.load(Ordering::Relaxed) == 1);
    });
}
