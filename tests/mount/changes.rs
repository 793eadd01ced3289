//! A source that changes, loses files and gets them back while it is read and copied. `ITERATIONS=…` and `SEED=…` as elsewhere.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{BLOCK, Env, Mounted, Random, errno, eventually, patterned, read, read_at};
use crate::origin::{Behaviour, Origin, Page};

const FILES: u64 = 6;

fn iterations() -> usize {
    std::env::var("ITERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn name(number: u64) -> String {
    format!("file-{number}")
}

/// Whether `bytes`, read at `offset`, are those of one version. `None` if there is nothing to tell it by.
fn version_of(bytes: &[u8], offset: u64) -> Option<u8> {
    let version = *bytes.first()?;
    assert!(bytes == patterned(version, offset, bytes.len()), "two versions mixed at {offset}");
    Some(version)
}

/// Opens a file and reads all of it in pieces: all of one version, or an error.
fn read_one_version(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let (mut offset, mut first) = (0, None);
    // Multiples of 8: the first byte of every piece names the version.
    while let Ok(bytes) = read_at(&file, offset, 120_000) {
        let Some(version) = version_of(&bytes, offset) else { return };
        assert_eq!(*first.get_or_insert(version), version, "{} at {offset}", path.display());
        offset += bytes.len() as u64;
        if !offset.is_multiple_of(8) {
            return;
        }
    }
}

fn readers(mounted: &Mounted<'_>, random: &mut Random, change: impl FnOnce(&mut Random)) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut random = Random::seeded(random.next());
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    read_one_version(&mounted.path(name(random.below(FILES))));
                }
            });
        }
        change(random);
        is_over.store(true, Ordering::Relaxed);
    });
}

fn next_version(version: &mut u8) -> u8 {
    *version = *version % 250 + 1;
    *version
}

// A file replaced by rename is one version or the other, for whoever reads it; the copy ends as the last one.
#[test]
fn no_reader_mixes_two_versions_and_the_copy_is_the_last_one() {
    for _ in 0..iterations() {
        let Some(env) = Env::new() else { return };
        let (mut random, mut version) = (Random::new(), 0);
        let put = |number: u64, version: u8, size: u64| {
            let new = env.put("new", patterned(version, 0, usize::try_from(size).unwrap()));
            fs::rename(new, env.source().join(name(number))).unwrap();
        };
        for number in 0..FILES {
            put(number, next_version(&mut version), 1 + random.below(40 * BLOCK));
        }
        let mounted = env.mount(&["--hydrate", "--refresh", "50ms"]);
        readers(&mounted, &mut random, |random| {
            for _ in 0..60 {
                let number = random.below(FILES);
                match random.below(6) {
                    0 => drop(fs::remove_file(env.source().join(name(number)))),
                    _ => put(number, next_version(&mut version), 1 + random.below(40 * BLOCK)),
                }
                std::thread::sleep(Duration::from_millis(random.below(60)));
            }
            // What is gone comes back.
            (0..FILES).for_each(|number| put(number, next_version(&mut version), 9 * BLOCK + 1));
        });
        mounted.unmount();
        let mounted = env.mount(&["--hydrate"]);
        mounted.until_complete();
        mounted.unmount();
        for number in 0..FILES {
            let copied = read(env.destination().join(name(number))).unwrap();
            let original = fs::read(env.source().join(name(number))).unwrap();
            assert!(copied == original, "{} is not the last version", name(number));
        }
    }
}

#[test]
fn an_etag_that_changes_between_any_two_ranges_never_mixes_versions() {
    for _ in 0..iterations() {
        let Some(env) = Env::new() else { return };
        let (mut random, mut version) = (Random::new(), 0);
        let origin = Origin::start();
        let put = |number: u64, version: u8, size: u64, random: &mut Random| {
            let page = Page::new(size, move |offset, len| patterned(version, offset, len));
            let page = page.etag(&format!("{number}-{version}"));
            let latency = Duration::from_millis(random.below(8));
            origin.put(&format!("/{}", name(number)), page.latency(latency));
        };
        for number in 0..FILES {
            let size = 1 + random.below(60 * BLOCK);
            put(number, next_version(&mut version), size, &mut random);
        }
        let mounted = env.mount_from(origin.url(), &["--hydrate", "--refresh", "50ms"]);
        readers(&mounted, &mut random, |random| {
            for _ in 0..60 {
                let size = 1 + random.below(60 * BLOCK);
                put(random.below(FILES), next_version(&mut version), size, random);
                std::thread::sleep(Duration::from_millis(random.below(60)));
            }
        });
        mounted.unmount();
        let mounted = env.mount_from(origin.url(), &["--hydrate"]);
        mounted.until_complete();
        for number in 0..FILES {
            let copied = read(env.destination().join(name(number))).unwrap();
            assert!(copied == read(mounted.path(name(number))).unwrap());
            version_of(&copied, 0);
        }
        mounted.unmount();
    }
}

#[test]
fn a_file_that_disappears_and_comes_back_is_the_same_file() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let size = 30 * BLOCK;
    origin.put("/file", Page::new(size, |offset, len| patterned(1, offset, len)));
    let mounted = env.mount_from(origin.url(), &["--refresh", "50ms"]);
    let path = mounted.path("file");
    let file = File::open(&path).unwrap();
    assert!(read_at(&file, 0, 100).unwrap() == patterned(1, 0, 100));
    origin.behave("/file", Behaviour::Gone);
    eventually("its end", || fs::metadata(&path).is_err().then_some(()));
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT, "a definite answer");
    assert!(read_at(&file, 0, 100).unwrap() == patterned(1, 0, 100), "what is local is served");
    origin.behave("/file", Behaviour::Right);
    eventually("its return", || fs::metadata(&path).is_ok().then_some(()));
    let whole = patterned(1, 0, usize::try_from(size).unwrap());
    assert!(read(&path).unwrap() == whole);
    let copied = env.destination().join("file");
    eventually("its publication", || (read(&copied).ok()? == whole).then_some(()));
    drop(file);
    mounted.unmount();
}

#[test]
fn what_is_deleted_at_the_source_is_reported_and_stays_in_the_copy() {
    let Some(env) = Env::new() else { return };
    env.put("stays", "content");
    env.put("goes/away", patterned(1, 0, 500_000));
    let mounted = env.mount(&["--hydrate", "--refresh", "50ms"]);
    mounted.until_complete();
    fs::remove_dir_all(env.source().join("goes")).unwrap();
    let gone = mounted.path("goes");
    eventually("the end of its name", || fs::metadata(&gone).is_err().then_some(()));
    assert_eq!(errno(fs::metadata(&gone)), libc::ENOENT);
    let status = mounted.until("the report", |status| status["files"]["deleted"] == 1);
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    mounted.unmount();
    let kept = fs::read(env.destination().join("goes/away")).unwrap();
    assert!(kept == patterned(1, 0, 500_000), "the local copy is kept");
    // And so it is by the next life, which never saw it.
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    assert_eq!(errno(fs::metadata(mounted.path("goes"))), libc::ENOENT);
    mounted.unmount();
    assert!(env.destination().join("goes/away").exists());
}

#[test]
fn what_vanishes_between_the_listing_and_the_copy_is_no_failure() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let page = |version| Page::new(BLOCK, move |offset, len| patterned(version, offset, len));
    origin.put("/a", page(1));
    origin.put("/b", page(2).behaves(Behaviour::Gone));
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["vanished"], 1, "{status:#}");
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    mounted.unmount();
}

#[test]
fn with_on_change_fail_the_first_version_stays_and_the_job_says_so() {
    let Some(env) = Env::new() else { return };
    env.put("changes", patterned(1, 0, 500_000));
    env.put("stays", "content");
    let options = ["--hydrate", "--refresh", "50ms", "--on-change", "fail"];
    let mounted = env.mount_in_foreground(&options);
    mounted.until_complete();
    let path = mounted.path("changes");
    env.put("changes", patterned(2, 0, 600_000));
    let status = mounted.until("the report", |status| {
        drop(fs::metadata(&path));
        status["files"]["failed"] == 1
    });
    assert_eq!(status["files"]["changed"], 1, "{status:#}");
    assert!(status["errors"].to_string().contains("--on-change"), "{status:#}");
    assert!(read(&path).unwrap() == patterned(1, 0, 500_000), "the first version is served");
    assert_eq!(mounted.unmount_and_wait().code(), Some(1));
    assert!(fs::read(env.destination().join("changes")).unwrap() == patterned(1, 0, 500_000));
    // A later life finds it changed too, and fetches nothing of it.
    let mounted = env.mount(&options);
    mounted.until("the end", |status| status["phase"] == "failed");
    mounted.unmount();
    assert!(fs::read(env.destination().join("changes")).unwrap() == patterned(1, 0, 500_000));
}

#[test]
fn a_hydrated_tree_follows_what_comes_later() {
    let Some(env) = Env::new() else { return };
    env.put("dir/old", "content");
    let mounted = env.mount(&["--hydrate", "--refresh", "50ms"]);
    mounted.until_complete();
    env.put("dir/new", patterned(3, 0, 300_000));
    env.put("dir/below/newer", "newer");
    env.put("dir/old", "another content");
    let (old, new) = (env.destination().join("dir/old"), env.destination().join("dir/new"));
    eventually("the new names", || {
        drop(fs::read_dir(mounted.path("dir")).map(Iterator::count));
        drop(fs::metadata(mounted.path("dir/old")));
        (fs::read(&new).ok()? == patterned(3, 0, 300_000)).then_some(())
    });
    eventually("the new version", || (fs::read(&old).ok()? == b"another content").then_some(()));
    let below = env.destination().join("dir/below/newer");
    eventually("the new directory", || (fs::read(&below).ok()? == b"newer").then_some(()));
    mounted.until_complete();
    assert!(!env.destination().join("LAZYCOPY-INCOMPLETE.txt").exists());
    mounted.unmount();
}

#[test]
fn with_on_change_fail_a_read_that_finds_the_change_keeps_what_is_local() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let page = |version| Page::new(30 * BLOCK, move |offset, len| patterned(version, offset, len));
    origin.put("/file", page(1).etag("1"));
    let options = ["--refresh", "never", "--on-change", "fail"];
    let mounted = env.mount_from(origin.url(), &options);
    let path = mounted.path("file");
    let file = File::open(&path).unwrap();
    assert!(read_at(&file, 0, 8192).unwrap() == patterned(1, 0, 8192));
    origin.put("/file", page(2).etag("2"));
    assert_eq!(errno(read_at(&file, 29 * BLOCK, 100)), libc::ESTALE);
    drop(file);
    let again = File::open(&path).unwrap();
    // Out of the daemon, not out of the page cache.
    rustix::fs::fadvise(&again, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(read_at(&again, 0, 8192).unwrap() == patterned(1, 0, 8192), "the first version stays");
    let status = mounted.status();
    assert_eq!((&status["files"]["failed"], &status["files"]["changed"]), (&1.into(), &1.into()));
    drop(again);
    mounted.unmount();
}
