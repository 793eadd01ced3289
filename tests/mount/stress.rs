//! Many readers at once while the copy runs: each byte right, nothing left behind. `ITERATIONS=100` repeats it, `SEED=…` repeats one.

use std::fs::{self, File};
use std::time::Duration;

use crate::harness::{Env, Mounted, Random, patterned, read_at};
use crate::origin::{Behaviour, Origin, Page};

const READERS: u64 = 16;
const READS: usize = 60;
const FILES: u64 = 12;

fn iterations() -> usize {
    std::env::var("ITERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Sizes from nothing to some megabytes, one of them large.
fn sizes(random: &mut Random) -> Vec<u64> {
    let mut sizes: Vec<u64> = (1..FILES).map(|_| random.below(3 << 20)).collect();
    sizes.push(24 << 20);
    sizes
}

fn version(number: usize) -> u8 {
    u8::try_from(number + 1).unwrap()
}

fn name(number: usize) -> String {
    format!("file-{number}")
}

/// Opens, reads somewhere, sometimes goes on in sequence, closes; over and over.
fn storm(mounted: &Mounted<'_>, sizes: &[u64], mut random: Random) {
    for _ in 0..READS {
        let number = usize::try_from(random.below(sizes.len() as u64)).unwrap();
        let file = File::open(mounted.path(name(number))).unwrap();
        let mut offset = random.below(sizes[number] + 1);
        for _ in 0..=random.below(4) {
            let len = usize::try_from(random.below(300_000)).unwrap();
            let expected_len = len.min(usize::try_from(sizes[number] - offset).unwrap());
            let found = read_at(&file, offset, len).unwrap();
            let expected = patterned(version(number), offset, expected_len);
            assert!(found == expected, "{} at {offset}+{len}", name(number));
            offset += expected_len as u64;
        }
    }
}

fn storm_by_all(mounted: &Mounted<'_>, sizes: &[u64], random: &mut Random) {
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            let random = Random::seeded(random.next());
            scope.spawn(move || storm(mounted, sizes, random));
        }
    });
}

/// What must hold once all is quiet.
fn assert_nothing_is_left(mounted: &Mounted<'_>, idle_descriptors: usize) {
    let status = mounted.until("quiet", |status| {
        status["chunks"]["active"] == 0 && status["chunks"]["queued"] == 0
    });
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    assert_eq!(mounted.stuck().len(), 0);
    let pid = mounted.pid().as_raw_nonzero();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let parts = mounted.env.destination().join(".lazycopy/parts");
    assert_eq!(fs::read_dir(parts).unwrap().count(), 0, "every part was published");
    // Published files may stay open in the pool, one descriptor each; connections stay alive for a while.
    let allowed = idle_descriptors + usize::try_from(FILES).unwrap() + 40;
    assert!(descriptors <= allowed, "{descriptors} descriptors, {idle_descriptors} at the start");
}

fn assert_copied(env: &Env, sizes: &[u64]) {
    for (number, size) in sizes.iter().enumerate() {
        let copied = fs::read(env.destination().join(name(number))).unwrap();
        let expected = patterned(version(number), 0, usize::try_from(*size).unwrap());
        assert!(copied == expected, "{} in the destination", name(number));
    }
}

fn descriptors_of(mounted: &Mounted<'_>) -> usize {
    let pid = mounted.pid().as_raw_nonzero();
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn many_readers_of_a_local_tree_see_each_byte_right_while_it_is_copied() {
    for _ in 0..iterations() {
        let Some(env) = Env::new() else { return };
        let mut random = Random::new();
        let sizes = sizes(&mut random);
        for (number, size) in sizes.iter().enumerate() {
            let content = patterned(version(number), 0, usize::try_from(*size).unwrap());
            env.put(name(number), content);
        }
        let threads = (1 + random.below(4)).to_string();
        let mounted = env.mount(&["--hydrate", "--fuse-threads", &threads]);
        let idle = descriptors_of(&mounted);
        storm_by_all(&mounted, &sizes, &mut random);
        mounted.until_complete();
        assert_nothing_is_left(&mounted, idle);
        mounted.unmount();
        assert_copied(&env, &sizes);
    }
}

// L4: no resume after a cut connection.
#[test]
fn many_readers_of_a_flaky_server_see_each_byte_right_while_it_is_copied() {
    for _ in 0..iterations() {
        let Some(env) = Env::new() else { return };
        let mut random = Random::new();
        let sizes = sizes(&mut random);
        let origin = Origin::start();
        for (number, size) in sizes.iter().enumerate() {
            let version = version(number);
            let behaviour = match random.below(3) {
                0 => Behaviour::CutAfter { bytes: random.below(200_000), times: 2 },
                1 => Behaviour::Status { code: 503, times: 2 },
                _ => Behaviour::Right,
            };
            let latency = Duration::from_millis(random.below(30));
            let page = Page::new(*size, move |offset, len| patterned(version, offset, len));
            origin.put(&format!("/{}", name(number)), page.behaves(behaviour).latency(latency));
        }
        let mounted = env.mount_from(origin.url(), &["--hydrate"]);
        let idle = descriptors_of(&mounted);
        storm_by_all(&mounted, &sizes, &mut random);
        mounted.until_complete();
        assert_nothing_is_left(&mounted, idle);
        mounted.unmount();
        assert_copied(&env, &sizes);
    }
}
