//! What a power cut leaves of the store's work.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lazycopy::core::attributes::EntryKind;
use lazycopy::core::range::BLOCK_SIZE;
use lazycopy::store::verify::hash_block;
use lazycopy::store::{Candidate, Checkpoint, Destination, Replace};

use super::catalog::{block_bytes, check_part, version};
use super::cut_disk::{CutDisk, NEEDS};
use super::support::{MODIFIED, is_root, metadata, open, part, rel, skip};

const SIZE: usize = 50_000;

fn bytes_of(index: u64) -> Vec<u8> {
    (0u64..).map(|at| u8::try_from((at * 31 + index) % 251).unwrap()).take(SIZE).collect()
}

fn check(path: &Path, index: u64) {
    let is_whole = fs::read(path).unwrap() == bytes_of(index);
    assert!(is_whole, "{} is not whole", path.display());
    let stat = fs::metadata(path).unwrap();
    let modified = (stat.mtime(), stat.mtime_nsec());
    assert_eq!(modified, (MODIFIED.seconds, i64::from(MODIFIED.nanos)));
    assert_eq!(stat.mode() & 0o7777, 0o640);
}

/// One part in many checkpoints: after each, the blocks recorded so far are told.
fn fill(destination: &Destination, is_done: &AtomicBool, recorded: &AtomicU64) {
    let part = destination.create_part(BLOCKS * BLOCK_SIZE).unwrap();
    let version = version(2, BLOCKS * BLOCK_SIZE);
    let path = rel("d/large");
    for block in 0..BLOCKS {
        if is_done.load(Ordering::Relaxed) {
            break;
        }
        let bytes = block_bytes(block);
        part.write_at(block * BLOCK_SIZE, &bytes).unwrap();
        let hashes = [(block, hash_block(block, part.size(), &bytes).unwrap())];
        let run = block..block + 1;
        let blocks = std::slice::from_ref(&run);
        let checkpoint =
            Checkpoint { path: &path, version: &version, part: &part, blocks, hashes: &hashes };
        destination.checkpoint_many(&[checkpoint]).remove(0).unwrap();
        recorded.store(block + 1, Ordering::Release);
    }
}

const BLOCKS: u64 = 300;

#[test]
fn after_a_power_cut_every_recorded_block_is_there_and_every_trusted_one_is_right() {
    let disk = is_root().then(|| CutDisk::new(96)).flatten();
    if skip(disk.is_some(), NEEDS) {
        return;
    }
    let disk = disk.unwrap();
    let destination = open(&disk.path().join("dir"));
    let (recorded, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let filler = scope.spawn(|| fill(&destination, &is_done, &recorded));
        for _ in 0..8 {
            let before = recorded.load(Ordering::Acquire);
            while recorded.load(Ordering::Acquire) < before + 3 && !filler.is_finished() {
                std::thread::yield_now();
            }
            let durable = recorded.load(Ordering::Acquire);
            let left = open(&disk.cut().join("dir"));
            let trusted = check_part(&left, "d/large");
            assert!(trusted >= durable, "{trusted} of {durable}");
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

// C3: no fsync.
#[test]
fn what_was_published_survives_a_power_cut_and_nothing_else_has_a_final_name() {
    let disk = is_root().then(|| CutDisk::new(96)).flatten();
    if skip(disk.is_some(), NEEDS) {
        return;
    }
    let disk = disk.unwrap();
    let destination = open(&disk.path().join("dir"));
    let wanted = metadata(EntryKind::File, 0o640);
    let (published, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut index = 0;
            while !is_done.load(Ordering::Relaxed) && index < 600 {
                let files = [index, index + 1, index + 2].map(|index| {
                    (part(&destination, &bytes_of(index)), rel(&format!("d{}/{index}", index / 7)))
                });
                let group = files.each_ref().map(|(file, path)| Candidate {
                    file,
                    path,
                    metadata: &wanted,
                    replace: Replace::Never,
                    vouched: None,
                });
                if index % 2 == 0 {
                    destination
                        .publish_group(&group)
                        .into_iter()
                        .for_each(|done| drop(done.unwrap()));
                } else {
                    for Candidate { file, path, metadata, replace, .. } in group {
                        destination.publish_file(file, path, metadata, replace).unwrap();
                    }
                }
                index += 3;
                published.store(index, Ordering::Release);
            }
        });
        for _ in 0..8 {
            let before = published.load(Ordering::Acquire);
            while published.load(Ordering::Acquire) < before + 3 && !publisher.is_finished() {
                std::thread::yield_now();
            }
            let durable = published.load(Ordering::Acquire);
            let left = disk.cut().join("dir");
            for index in 0..durable {
                check(&left.join(format!("d{}/{index}", index / 7)), index);
            }
            for index in durable..durable + 30 {
                let path = left.join(format!("d{}/{index}", index / 7));
                if path.exists() {
                    check(&path, index);
                }
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert!(published.load(Ordering::Acquire) > 0);
}
