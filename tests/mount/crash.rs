//! The daemon is killed, or the power fails, at random moments of a copy: no wrong byte, no published file lost, and nothing that was
//! recorded is fetched again. `ITERATIONS=200` for more moments, `SEED=…` to repeat.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lazycopy::core::range::BLOCK_SIZE;
use lazycopy::error::Kind;
use lazycopy::store::catalog::EntryPhase;
use lazycopy::store::{Destination, DestinationOptions};
use rustix::process::Signal;

use crate::common;
use crate::cut_disk::{CutDisk, NEEDS};
use crate::harness::{Env, Mounted, Random, eventually, fuse_is_there, patterned, read_at};
use crate::origin::{Origin, Page};
use crate::tree::{Compare, make_sparse, walk};

const MIB: u64 = 1 << 20;
const MARKER: &str = "LAZYCOPY-INCOMPLETE.txt";

fn iterations(default: usize) -> usize {
    std::env::var("ITERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Small files, large ones, holes and links; it stays as it is. Takes a good second to copy.
fn plant(root: &Path, random: &mut Random) {
    for number in 0..120 {
        let directory = root.join(format!("d{}/e{}", number % 7, number % 3));
        fs::create_dir_all(&directory).unwrap();
        let size = usize::try_from(random.below(400_000)).unwrap();
        fs::write(directory.join(format!("f{number}")), random.bytes(size)).unwrap();
    }
    for (number, size) in [(0, 9 * MIB + 7), (1, 30 * MIB), (2, 17 * MIB - 1)] {
        let large = random.bytes(usize::try_from(size).unwrap());
        fs::write(root.join(format!("large{number}")), large).unwrap();
    }
    make_sparse(&root.join("sparse"), 40 * MIB, &[(5 * MIB, 300_000), (39 * MIB, 4096)]);
    fs::hard_link(root.join("large0"), root.join("d1/another name")).unwrap();
    symlink("../large0", root.join("d1/link")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
}

/// Regular files below `root`, by path, without those of ours.
fn files_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(directory) = stack.pop() {
        for entry in fs::read_dir(root.join(&directory)).into_iter().flatten().flatten() {
            let path = directory.join(entry.file_name());
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && path != Path::new(".lazycopy") => stack.push(path),
                kind if kind.is_file() && path != Path::new(MARKER) => drop(found.insert(path)),
                _ => {}
            }
        }
    }
    found
}

/// Everything that has its final name is whole. Returns the names.
fn assert_published_is_whole(destination: &Path, source: &Path) -> BTreeSet<PathBuf> {
    let published = files_below(destination);
    for path in &published {
        let (copied, original) = (destination.join(path), source.join(path));
        let same = fs::read(&copied).unwrap() == fs::read(original).unwrap();
        assert!(same, "{} is wrong in the destination", path.display());
    }
    published
}

/// Reads at random through the mount until it is gone. A wrong byte is a failure; an error is not.
fn read_until_gone(place: &Path, source: &Path, mut random: Random, is_over: impl Fn() -> bool) {
    let all: Vec<PathBuf> = files_below(source).into_iter().collect();
    while !is_over() {
        let path = &all[usize::try_from(random.below(all.len() as u64)).unwrap()];
        let original = File::open(source.join(path)).unwrap();
        let size = original.metadata().unwrap().len();
        let (offset, len) = (random.below(size + 1), 1 + random.below(500_000));
        let len = usize::try_from(len).unwrap();
        // Before there is a mount, and after it is gone, there is no such file.
        let Ok(file) = File::open(place.join(path)) else {
            std::thread::sleep(Duration::from_millis(3));
            continue;
        };
        if let Ok(found) = read_at(&file, offset, len) {
            let expected = read_at(&original, offset, len).unwrap();
            assert!(found == expected, "{} at {offset}+{len} in the mount", path.display());
        }
    }
}

/// The receipt is the last that is written.
fn is_complete(destination: &Path) -> bool {
    destination.join(".lazycopy/receipt.json").exists() && !destination.join(MARKER).exists()
}

fn assert_equal_trees(source: &Path, copy: &Path) {
    let (source, copy) = (walk(source, Compare::Everything), walk(copy, Compare::Everything));
    for (path, seen) in &source {
        assert_eq!(copy.get(path), Some(seen), "{}", path.display());
    }
    assert_eq!(source.len(), copy.len(), "more than the source has");
}

// C1, C4: what is on disk after a kill is trusted.
#[test]
fn killed_at_random_moments_it_goes_on_and_loses_nothing() {
    let Some(env) = Env::new() else { return };
    let mut random = Random::new();
    plant(&env.source(), &mut random);
    let mut published = BTreeSet::new();
    let mut complete = 0;
    for _ in 0..iterations(12) {
        let mut daemon = env.start_in_foreground(&["--hydrate"]);
        let moment = Duration::from_millis(random.below(400));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = Random::seeded(random.next());
            let over = || is_over.load(Ordering::Relaxed);
            let (place, source) = (env.mountpoint(), env.source());
            scope.spawn(move || read_until_gone(&place, &source, reader, over));
            std::thread::sleep(moment);
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            is_over.store(true, Ordering::Relaxed);
        });
        let now = assert_published_is_whole(&env.destination(), &env.source());
        assert!(published.is_subset(&now), "lost: {:?}", published.difference(&now));
        published = now;
        if is_complete(&env.destination()) {
            complete += 1;
            fs::remove_dir_all(env.destination()).unwrap();
            published.clear();
        }
    }
    println!("{complete} copies ended before they were killed");
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    assert_equal_trees(&env.source(), &mounted.place);
    mounted.unmount();
    assert_equal_trees(&env.source(), &env.destination());
}

/// Bytes that the catalog vouches for, as the next life finds them.
fn recorded_bytes(destination: &Path) -> u64 {
    // A killed process holds its lock until its last thread is gone.
    let destination = eventually("the lock", || {
        match Destination::open(destination, DestinationOptions::default()) {
            Err(error) if error.kind() == Kind::Busy => None,
            opened => Some(opened.unwrap()),
        }
    });
    let catalog = destination.catalog();
    let mut recorded = 0;
    catalog
        .entries(|record| {
            let size = record.version.fingerprint.size;
            recorded += match record.phase {
                EntryPhase::Published(_) => size,
                _ => {
                    let runs = catalog.blocks(&record)?;
                    let bytes = |run: &std::ops::Range<u64>| {
                        (run.end * BLOCK_SIZE).min(size) - run.start * BLOCK_SIZE
                    };
                    runs.iter().map(bytes).sum::<u64>()
                }
            };
            Ok(())
        })
        .unwrap();
    recorded
}

#[test]
fn what_was_recorded_before_a_kill_is_not_fetched_again() {
    let Some(env) = Env::new() else { return };
    let mut random = Random::new();
    let origin = Origin::start();
    let mut total = 0;
    for number in 0..6 {
        let size = 6 * MIB + random.below(12 * MIB);
        total += size;
        let latency = Duration::from_millis(random.below(90));
        let version = u8::try_from(number + 1).unwrap();
        let page = Page::new(size, move |offset, len| patterned(version, offset, len));
        origin.put(&format!("/f{number}"), page.latency(latency));
    }
    for _ in 0..iterations(3) {
        let mut mounted = env.mount_from(origin.url(), &["--hydrate"]);
        std::thread::sleep(Duration::from_millis(random.below(500)));
        mounted.signal(Signal::KILL);
        mounted.until_gone();
        let recorded = recorded_bytes(&env.destination());
        let mounted = env.mount_from(origin.url(), &["--hydrate"]);
        let status = mounted.until_complete();
        let fetched = status["bytes"]["fetched"].as_u64().unwrap();
        println!("{recorded} of {total} recorded, {fetched} fetched after the kill");
        assert!(fetched <= total - recorded, "{fetched} fetched, {recorded} of {total} recorded");
        mounted.unmount();
        fs::remove_dir_all(env.destination()).unwrap();
    }
}

/// Finishes the copy that a power cut left, with the real program, and compares all of it.
fn finish(env: &Env, destination: &Path) {
    let mountpoint = env.path("after");
    fs::create_dir_all(&mountpoint).unwrap();
    let place = |path: &Path| path.to_str().unwrap().to_owned();
    let source = place(&env.source());
    let (at, dest) = (place(&mountpoint), place(destination));
    let ran = env.run(["mount", &source, &at, "--dest", &dest, "--hydrate"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    eventually("the end of the copy after a cut", || is_complete(destination).then_some(()));
    let ran = env.run(["unmount", &at]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_equal_trees(&env.source(), destination);
}

// C3: no fsync. What a status called published must be there after the cut.
#[test]
fn after_a_power_cut_at_any_moment_the_copy_goes_on() {
    if !fuse_is_there() {
        return;
    }
    let Some(disk) = CutDisk::new(400) else { return common::skip(NEEDS) };
    let Some(mut env) = Env::new() else { return };
    env.put_destination(disk.path().join("dir"));
    let mut random = Random::new();
    plant(&env.source(), &mut random);
    let mut left = iterations(4);
    while left > 0 {
        let mounted = env.mount(&["--hydrate"]);
        while left > 0 && !is_complete(&env.destination()) {
            std::thread::sleep(Duration::from_millis(random.below(400)));
            let durable = published_files(&mounted);
            let cut = disk.cut().join("dir");
            let published = assert_published_is_whole(&cut, &env.source()).len() as u64;
            assert!(published >= durable, "{published} of {durable} after the cut");
            finish(&env, &cut);
            left -= 1;
        }
        mounted.unmount();
        fs::remove_dir_all(env.destination()).unwrap();
    }
}

fn published_files(mounted: &Mounted<'_>) -> u64 {
    mounted.status()["files"]["published"].as_u64().unwrap()
}
