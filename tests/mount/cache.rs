//! A cache of limited size: every byte right, the limit held. `ITERATIONS=20` repeats the storms, `SEED=…` repeats one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Env, Mounted, Random, patterned, read, read_at};
use crate::mapping::Mapping;

const MIB: u64 = 1 << 20;
const CAP: u64 = 8 * MIB;

/// Files of a tree by their sizes.
struct Tree(Vec<u64>);

impl Tree {
    /// Small and middling ones until there are `bytes`, then one of `large`.
    fn new(env: &Env, random: &mut Random, bytes: u64, large: u64) -> Self {
        let mut sizes = Vec::new();
        while sizes.iter().sum::<u64>() < bytes {
            sizes.push(match random.below(3) {
                0 => 1 + random.below(9000),
                _ => 1 + random.below(2 * MIB),
            });
        }
        if large > 0 {
            sizes.push(large);
        }
        for (number, size) in sizes.iter().enumerate() {
            let content = patterned(version(number), 0, usize::try_from(*size).unwrap());
            env.put(name(number), content);
        }
        Self(sizes)
    }

    fn pick(&self, random: &mut Random) -> usize {
        usize::try_from(random.below(self.0.len() as u64)).unwrap()
    }

    fn check(&self, number: usize, offset: u64, found: &[u8], len: usize) {
        let len = len.min(usize::try_from(self.0[number].saturating_sub(offset)).unwrap());
        let expected = patterned(version(number), offset, len);
        assert!(found == expected, "{} at {offset}+{len}", name(number));
    }
}

fn version(number: usize) -> u8 {
    u8::try_from(number % 250 + 1).unwrap()
}

fn name(number: usize) -> String {
    format!("d{}/file-{number}", number % 3)
}

fn iterations() -> usize {
    std::env::var("ITERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Bytes allocated by parts and published files, each inode once.
fn allocated(destination: &Path) -> u64 {
    fn walk(directory: &Path, found: &mut HashMap<u64, u64>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            if meta.is_dir() {
                if entry.file_name() != ".lazycopy" {
                    walk(&entry.path(), found);
                }
            } else if entry.file_name() != "LAZYCOPY-INCOMPLETE.txt" {
                found.insert(meta.ino(), meta.blocks() * 512);
            }
        }
    }
    let mut found = HashMap::new();
    walk(destination, &mut found);
    walk(&destination.join(".lazycopy/parts"), &mut found);
    found.values().sum()
}

/// Looks at what is allocated over and over while `work` runs; the daemon stands still for each look.
fn while_the_cap_is_watched<T>(mounted: &Mounted<'_>, cap: u64, work: impl FnOnce() -> T) -> T {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut looks, mut most) = (0, 0);
            while !is_over.load(Ordering::SeqCst) {
                mounted.signal(Signal::STOP);
                let now = allocated(&mounted.env.destination());
                mounted.signal(Signal::CONT);
                most = most.max(now);
                looks += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            println!("{looks} looks, at most {most} of {cap} bytes");
            most
        });
        let stop = Stop(&is_over);
        let result = work();
        drop(stop);
        let most = watcher.join().unwrap();
        assert!(most <= cap, "{most} bytes allocated, {cap} allowed");
        result
    })
}

fn used(status: &serde_json::Value) -> u64 {
    status["cache"]["used"].as_u64().unwrap()
}

fn assert_quiet(mounted: &Mounted<'_>, cap: u64) {
    let status = mounted.until("quiet", |status| {
        status["chunks"]["active"] == 0 && status["chunks"]["queued"] == 0
    });
    assert_eq!(status["cache"]["cap"], cap);
    assert!(used(&status) <= cap, "{status:#}");
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    assert_eq!(mounted.stuck().len(), 0);
    // The daemon counts at least what there is.
    assert!(allocated(&mounted.env.destination()) <= used(&mounted.status()));
}

fn keep(cap: u64) -> [String; 2] {
    ["--keep".to_owned(), cap.to_string()]
}

fn mount_keeping(env: &Env, cap: u64) -> Mounted<'_> {
    let keep = keep(cap);
    env.mount(&keep.each_ref().map(String::as_str))
}

#[test]
fn a_tree_five_times_the_cap_is_read_twice_and_the_cap_holds() {
    let Some(env) = Env::new() else { return };
    let mut random = Random::new();
    let tree = Tree::new(&env, &mut random, 5 * CAP, 0);
    let mounted = mount_keeping(&env, CAP);
    while_the_cap_is_watched(&mounted, CAP, || {
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for reader in 0..4 {
                    let (tree, mounted) = (&tree, &mounted);
                    scope.spawn(move || {
                        for number in (reader..tree.0.len()).step_by(4) {
                            forget(&File::open(mounted.path(name(number))).unwrap());
                            let found = read(mounted.path(name(number))).unwrap();
                            tree.check(number, 0, &found, usize::MAX);
                            assert_eq!(found.len() as u64, tree.0[number]);
                        }
                    });
                }
            });
        }
    });
    assert_quiet(&mounted, CAP);
    let status = mounted
        .until("some are plain files", |status| status["files"]["published"].as_u64() > Some(0));
    assert!(status["cache"]["evicted"].as_u64() > Some(4 * CAP), "{status:#}");
    mounted.unmount();
}

#[test]
fn one_open_file_larger_than_the_cap_is_read_to_its_end_and_anywhere() {
    let Some(env) = Env::new() else { return };
    let mut random = Random::new();
    let size = 6 * CAP + 4321;
    env.put("large", patterned(1, 0, usize::try_from(size).unwrap()));
    let mounted = mount_keeping(&env, CAP);
    while_the_cap_is_watched(&mounted, CAP, || {
        let file = File::open(mounted.path("large")).unwrap();
        for offset in (0..size).step_by(1 << 20) {
            let len = usize::try_from((size - offset).min(1 << 20)).unwrap();
            assert!(read_at(&file, offset, len).unwrap() == patterned(1, offset, len), "{offset}");
        }
        // And by readers who disturb one another.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (file, mut random) = (&file, Random::seeded(random.next()));
                scope.spawn(move || {
                    for _ in 0..60 {
                        forget(file);
                        let offset = random.below(size - 300_000);
                        let len = usize::try_from(1 + random.below(299_000)).unwrap();
                        let found = read_at(file, offset, len).unwrap();
                        assert!(found == patterned(1, offset, len), "{offset}+{len}");
                    }
                });
            }
        });
    });
    assert_quiet(&mounted, CAP);
    mounted.unmount();
}

/// Makes the kernel forget what it has of a file, so that the next read comes to the daemon.
fn forget(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Opens, reads somewhere, sometimes goes on in sequence, closes; over and over. Some files stay open for a while.
fn storm(mounted: &Mounted<'_>, tree: &Tree, mut random: Random) {
    let mut held = Vec::new();
    for _ in 0..50 {
        let number = tree.pick(&mut random);
        let file = File::open(mounted.path(name(number))).unwrap();
        let mut offset = random.below(tree.0[number]);
        if random.below(2) == 0 {
            forget(&file);
        }
        for _ in 0..=random.below(5) {
            let len = usize::try_from(random.below(400_000)).unwrap();
            let found = read_at(&file, offset, len).unwrap();
            tree.check(number, offset, &found, len);
            offset += found.len() as u64;
        }
        if random.below(3) == 0 {
            held.push((file, number));
        }
        if held.len() > 4 {
            let (file, number): (File, usize) = held.remove(0);
            forget(&file);
            let found = read_at(&file, 0, 50_000).unwrap();
            tree.check(number, 0, &found, 50_000);
        }
    }
}

/// Maps files, whose handles are closed at once, and looks at them again when they were evicted long ago.
fn map(mounted: &Mounted<'_>, tree: &Tree, mut random: Random) {
    let mut mapped = Vec::new();
    for _ in 0..12 {
        let number = tree.pick(&mut random);
        let Some(mapping) = Mapping::of(&mounted.path(name(number))) else { return };
        mapped.push((mapping, number));
        for (mapping, number) in &mut mapped {
            let offset = random.below(mapping.len());
            let found =
                mapping.read(offset, 3000.min(usize::try_from(mapping.len() - offset).unwrap()));
            tree.check(*number, offset, &found, found.len());
        }
        if mapped.len() > 4 {
            mapped.remove(0);
        }
    }
}

#[test]
fn sixteen_readers_and_two_who_map_never_see_a_wrong_byte_while_files_are_evicted() {
    for _ in 0..iterations() {
        let Some(env) = Env::new() else { return };
        let mut random = Random::new();
        let tree = Tree::new(&env, &mut random, 3 * CAP, 2 * CAP + 999);
        let threads = (1 + random.below(3)).to_string();
        let keep = keep(CAP);
        let mounted = env.mount(&["--fuse-threads", &threads, &keep[0], &keep[1]]);
        while_the_cap_is_watched(&mounted, CAP, || {
            std::thread::scope(|scope| {
                for reader in 0..18 {
                    let (mounted, tree) = (&mounted, &tree);
                    let random = Random::seeded(random.next());
                    scope.spawn(move || match reader {
                        0..16 => storm(mounted, tree, random),
                        _ => map(mounted, tree, random),
                    });
                }
            });
        });
        assert_quiet(&mounted, CAP);
        mounted.unmount();
    }
}

#[test]
fn a_published_file_that_a_reader_holds_stays_right_after_it_was_evicted() {
    let Some(env) = Env::new() else { return };
    env.put("one", patterned(1, 0, 500_000));
    for number in 0..16 {
        env.put(format!("more-{number}"), patterned(2, 0, 1 << 20));
    }
    let mounted = mount_keeping(&env, CAP);
    read(mounted.path("one")).unwrap();
    mounted.until_published(1);
    let copy = env.destination().join("one");
    let Some(mut mapping) = Mapping::of(&mounted.path("one")) else { return };
    // Mapped, and closed since: the file may go, the mapping may not notice.
    crate::harness::eventually("the copy goes", || {
        for number in 0..16 {
            read(mounted.path(format!("more-{number}"))).unwrap();
        }
        (!copy.exists()).then_some(())
    });
    for offset in (0..490_000).step_by(40_000) {
        assert!(mapping.read(offset, 4000) == patterned(1, offset, 4000), "{offset}");
    }
    assert!(read(mounted.path("one")).unwrap() == patterned(1, 0, 500_000));
    drop(mapping);
    mounted.unmount();
}

#[test]
fn a_smaller_cap_is_kept_from_the_start_and_what_was_used_last_stays() {
    let Some(env) = Env::new() else { return };
    for number in 0..24 {
        env.put(format!("file-{number:02}"), patterned(3, 0, 1 << 20));
    }
    let mounted = mount_keeping(&env, 4 * CAP);
    for number in 0..24 {
        read(mounted.path(format!("file-{number:02}"))).unwrap();
    }
    mounted.until_published(24);
    // Used again: the first is the last now.
    drop(File::open(mounted.path("file-00")).unwrap());
    mounted.unmount();
    let mounted = mount_keeping(&env, CAP);
    assert!(allocated(&env.destination()) <= CAP);
    let left = crate::harness::names(&env.destination());
    let files: Vec<_> =
        left.iter().filter_map(|name| name.to_str()?.strip_prefix("file-")).collect();
    assert!(files.len() >= 5, "{files:?}");
    assert!(files.contains(&"00") && files.contains(&"23"), "{files:?}");
    assert!(!files.contains(&"01"), "{files:?}");
    for number in 0..24 {
        let found = read(mounted.path(format!("file-{number:02}"))).unwrap();
        assert!(found == patterned(3, 0, 1 << 20), "{number}");
    }
    assert_quiet(&mounted, CAP);
    mounted.unmount();
}

#[test]
fn a_daemon_killed_while_it_evicts_goes_on_with_right_bytes_below_the_cap() {
    let Some(env) = Env::new() else { return };
    let mut random = Random::new();
    let tree = Tree::new(&env, &mut random, 2 * CAP, 2 * CAP);
    for _ in 0..6 * iterations() {
        let mut mounted = mount_keeping(&env, CAP);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (mounted, tree) = (&mounted, &tree);
                let mut random = Random::seeded(random.next());
                scope.spawn(move || {
                    for _ in 0..500 {
                        let number = tree.pick(&mut random);
                        let Ok(file) = File::open(mounted.path(name(number))) else { return };
                        let offset = random.below(tree.0[number]);
                        let Ok(found) = read_at(&file, offset, 900_000) else { return };
                        tree.check(number, offset, &found, 900_000);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(200 + random.below(1800)));
            mounted.signal(Signal::KILL);
        });
        mounted.until_gone();
    }
    let mounted = mount_keeping(&env, CAP);
    assert!(allocated(&env.destination()) <= CAP);
    while_the_cap_is_watched(&mounted, CAP, || {
        for number in 0..tree.0.len() {
            let found = read(mounted.path(name(number))).unwrap();
            tree.check(number, 0, &found, usize::MAX);
        }
    });
    assert_quiet(&mounted, CAP);
    mounted.unmount();
}

#[test]
fn a_file_that_somebody_changed_in_the_cache_is_left_alone() {
    let Some(env) = Env::new() else { return };
    env.put("theirs", patterned(1, 0, 1 << 20));
    for number in 0..16 {
        env.put(format!("more-{number}"), patterned(2, 0, 1 << 20));
    }
    let mounted = mount_keeping(&env, CAP);
    read(mounted.path("theirs")).unwrap();
    mounted.until_published(1);
    let copy = env.destination().join("theirs");
    fs::remove_file(&copy).unwrap();
    fs::write(&copy, "mine now").unwrap();
    for number in 0..16 {
        read(mounted.path(format!("more-{number}"))).unwrap();
    }
    mounted.until("it was evicted", |status| status["cache"]["evicted"].as_u64() > Some(6 * MIB));
    assert_eq!(fs::read(&copy).unwrap(), b"mine now");
    assert!(read(mounted.path("theirs")).unwrap() == patterned(1, 0, 1 << 20));
    mounted.unmount();
    assert_eq!(fs::read(&copy).unwrap(), b"mine now");
}

#[test]
fn a_cap_below_what_is_pinned_lets_it_start_and_says_what_to_do() {
    let Some(env) = Env::new() else { return };
    for number in 0..4 {
        env.put(format!("file-{number}"), patterned(3, 0, 4 << 20));
    }
    let mounted = mount_keeping(&env, 4 * CAP);
    for number in 0..3 {
        read(mounted.path(format!("file-{number}"))).unwrap();
        let path = mounted.path(format!("file-{number}"));
        assert_eq!(env.run(["pin".as_ref(), path.as_os_str()]).code, Some(0));
    }
    mounted.until_published(3);
    mounted.unmount();
    let keep = keep(CAP);
    let started = env.try_mount(env.source(), &[&keep[0], &keep[1]]);
    assert_eq!(started.code, Some(0), "{started:?}");
    assert!(started.err.contains("lazycopy unpin"), "{started:?}");
    let mounted = env.mounted_now();
    // Nothing more is kept, and everything is served.
    assert!(read(mounted.path("file-3")).unwrap() == patterned(3, 0, 4 << 20));
    assert!(read(mounted.path("file-0")).unwrap() == patterned(3, 0, 4 << 20));
    assert!(!env.destination().join("file-3").exists());
    for number in 0..2 {
        let path = mounted.path(format!("file-{number}"));
        assert_eq!(env.run(["unpin".as_ref(), path.as_os_str()]).code, Some(0));
    }
    mounted.until("below its cap", |status| used(status) <= CAP);
    assert!(allocated(&env.destination()) <= CAP);
    assert!(env.destination().join("file-2").exists());
    mounted.unmount();
}

#[test]
fn without_a_destination_there_is_a_cache_of_its_own_for_each_source() {
    let Some(env) = Env::new() else { return };
    env.put("file", patterned(1, 0, 300_000));
    let (source, mountpoint) = (env.source(), env.mountpoint());
    let args = ["mount".as_ref(), source.as_os_str(), mountpoint.as_os_str()];
    let ran = env.run(args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("is cached in") && ran.out.contains("10737418240"), "{}", ran.out);
    assert!(read(mountpoint.join("file")).unwrap() == patterned(1, 0, 300_000));
    let ran = env.run(["status".as_ref(), mountpoint.as_os_str()]);
    assert!(
        ran.out.contains("cached in") && ran.out.contains("of at most 10.00 GiB"),
        "{}",
        ran.out
    );
    let ran = env.run(["unmount".as_ref(), mountpoint.as_os_str()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let caches = crate::harness::names(&env.path("cache/lazycopy"));
    assert_eq!(caches.len(), 1);
    assert!(caches[0].to_str().unwrap().contains("-source-"), "{caches:?}");
}
