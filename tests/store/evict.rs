//! What goes from a cache of limited size: the record first, then the bytes, and never what is not ours.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use lazycopy::core::range::BLOCK_SIZE;
use lazycopy::error::Kind;
use lazycopy::store::catalog::EntryPhase;
use lazycopy::store::{Destination, DestinationOptions, KeptAs, Leaving, LeavingFrom, Standing};

use super::catalog::{block_bytes, check_part, checkpoint, publish};
use super::kill::run_killed;
use super::support::{CHILD_DIRECTORY, open_with, parts_in, rel, skip};

const CAP: u64 = 16 << 20;

fn open(directory: &Path) -> Destination {
    let options = DestinationOptions { keep: Some(CAP), ..DestinationOptions::default() };
    open_with(directory, &options)
}

fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

#[test]
fn evicted_blocks_take_no_room_and_are_not_vouched_for() {
    let directory = on_disk();
    let destination = open(directory.path());
    let part = destination.create_part(5 * BLOCK_SIZE + 10).unwrap();
    part.occupied().reserve(0..6).unwrap();
    for block in 0..5 {
        checkpoint(&destination, "f", &part, 7, block);
    }
    let (used, units) = (destination.budget().unwrap().used(), part.data_blocks().unwrap());
    assert!(units * 512 <= used);
    let runs: Vec<_> = [1..3, 5..6].into();
    destination.evict_blocks(&rel("f"), 7, &part, &runs).unwrap();
    assert_eq!(part.data_blocks().unwrap(), units - 2 * BLOCK_SIZE / 512);
    assert!(destination.budget().unwrap().used() < used - 2 * BLOCK_SIZE);
    let record = destination.catalog().entry(&rel("f")).unwrap().unwrap();
    assert_eq!(destination.catalog().blocks(&record).unwrap(), [0..1, 3..5]);
    assert_eq!(check_part(&destination, "f"), 1);
    part.write_at(BLOCK_SIZE, &block_bytes(1)).unwrap();
}

#[test]
fn a_published_file_is_never_punched() {
    let directory = on_disk();
    let destination = open(directory.path());
    publish(&destination, "f", 7, &block_bytes(0));
    let published = destination.open_published(&rel("f")).unwrap();
    assert_eq!(published.punch(0..1).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), block_bytes(0));
}

#[test]
fn only_the_inode_that_we_placed_leaves_the_destination() {
    let directory = on_disk();
    let destination = open(directory.path());
    for (name, ino) in [("ours", 7), ("changed", 8), ("replaced", 9)] {
        publish(&destination, name, ino, &block_bytes(0));
    }
    assert_eq!(destination.kept().unwrap().len(), 3);
    let at = |name| directory.path().join(name);
    fs::write(at("changed"), "theirs").unwrap();
    fs::write(at("planted"), block_bytes(0)).unwrap();
    fs::rename(at("planted"), at("replaced")).unwrap();
    let paths = [rel("ours"), rel("changed"), rel("replaced")];
    let backings = paths.each_ref().map(|path| destination.open_published(path).unwrap());
    let leaving: Vec<_> = (7..)
        .zip(&paths)
        .zip(&backings)
        .map(|((ino, path), part)| Leaving { path, ino, what: LeavingFrom::Backing(part) })
        .collect();
    destination.evict_all(&leaving).unwrap();
    assert!(!at("ours").exists());
    assert_eq!(fs::read(at("changed")).unwrap(), b"theirs");
    assert_eq!(fs::read(at("replaced")).unwrap(), block_bytes(0));
    assert!(destination.kept().unwrap().is_empty(), "what is not ours is not counted");
}

#[test]
fn uses_are_known_again_and_forgotten_with_their_versions() {
    let directory = on_disk();
    let destination = open(directory.path());
    publish(&destination, "f", 7, &block_bytes(0));
    destination.catalog().note_uses(&[(7, 41), (99, 42)]).unwrap();
    destination.catalog().flush().unwrap();
    drop(destination);
    let kept = open(directory.path()).kept().unwrap();
    assert_eq!((kept.len(), kept[0].ino, kept[0].last_use), (1, 7, 41));
    assert!(kept[0].bytes >= BLOCK_SIZE);
}

/// Not a test by itself: lands, publishes and evicts.
#[test]
fn child_that_evicts() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let destination = open(Path::new(&directory));
    let part = destination.create_part(4 * BLOCK_SIZE).unwrap();
    part.occupied().reserve(0..4).unwrap();
    for block in 0..4 {
        checkpoint(&destination, "part", &part, 7, block);
    }
    destination.evict_blocks(&rel("part"), 7, &part, std::slice::from_ref(&(0..2))).unwrap();
    checkpoint(&destination, "part", &part, 7, 1);
    publish(&destination, "a", 8, &block_bytes(0));
    publish(&destination, "b", 9, &block_bytes(0));
    let (a, part_path) = (rel("a"), rel("part"));
    let published = destination.open_published(&a).unwrap();
    let leaving = [
        Leaving { path: &a, ino: 8, what: LeavingFrom::Backing(&published) },
        Leaving { path: &part_path, ino: 7, what: LeavingFrom::Backing(&part) },
    ];
    destination.evict_all(&leaving).unwrap();
    drop(part);
    for kept in destination.kept().unwrap() {
        let what = LeavingFrom::Kept(&kept.place);
        destination.evict_all(&[Leaving { path: &kept.path, ino: kept.ino, what }]).unwrap();
    }
}

/// Every trusted byte is right, and everything that takes room is known.
fn check(directory: &Path, what: &str) {
    let destination = open(directory);
    check_part(&destination, "part");
    let kept = destination.kept().unwrap();
    for name in ["a", "b"] {
        let record = destination.catalog().entry(&rel(name)).unwrap();
        let is_published = record.is_some_and(|record| {
            matches!(record.phase, EntryPhase::Published(_))
                && destination.standing(&record).unwrap() == Standing::Same
        });
        match fs::read(directory.join(name)) {
            Ok(bytes) => {
                assert!(bytes == block_bytes(0) && is_published, "{what}: {name}");
                assert!(kept.iter().any(|kept| kept.path == rel(name)), "{what}: {name}");
            }
            Err(_) => assert!(!is_published, "{what}: {name}"),
        }
    }
    let in_parts = kept.iter().filter(|kept| matches!(kept.place, KeptAs::Part(_)));
    let known: u64 = in_parts.map(|kept| kept.bytes).sum();
    let parts = fs::read_dir(directory.join(".lazycopy/parts")).unwrap();
    let there: u64 = parts.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert_eq!(known, there, "{what}: parts");
}

#[test]
fn killed_at_any_step_of_an_eviction_nothing_is_vouched_for_that_went() {
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    if skip(has_strace.is_ok_and(|status| status.success()), "strace") {
        return;
    }
    let mut kills = 0;
    for call in ["fallocate", "fdatasync", "renameat", "unlinkat"] {
        for at in 1.. {
            let directory = on_disk();
            if !run_killed("evict::child_that_evicts", directory.path(), call, at) {
                assert_eq!(parts_in(directory.path()), 0);
                assert!(!directory.path().join("b").exists());
                break;
            }
            kills += 1;
            check(directory.path(), &format!("killed at {call} {at}"));
        }
    }
    println!("{kills} kills");
    assert!(kills > 15, "only {kills} kills");
}
