//! Every interleaving, by loom: no lost wake-up (a waiter that never wakes is a deadlock), each block led once, every ending wakes all.

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
