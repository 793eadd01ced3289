//! Every interleaving, by loom: a limit that is changed loses no wake-up.

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
