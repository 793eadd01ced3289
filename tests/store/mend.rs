//! Mending killed at every sync and rename: the old file or the new one, and a record that fits.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use lazycopy::core::attributes::EntryKind;
use lazycopy::core::range::BLOCK_SIZE;
use lazycopy::store::catalog::{EntryPhase, ProofClass};
use lazycopy::store::proof::{Flaw, Found, ProofOptions};
use lazycopy::store::verify::hash_backing;
use lazycopy::store::{Candidate, Destination, Replace, Standing, Vouched};

use super::catalog::{block_bytes, version};
use super::kill::{CALLS, run_killed};
use super::support::{CHILD_DIRECTORY, metadata, open, part, parts_in, rel, skip};

const BLOCKS: u64 = 5;

fn content() -> Vec<u8> {
    (0..BLOCKS).flat_map(block_bytes).collect()
}

/// A destination with one published file, the third block of which has rotted since.
fn rotten(directory: &Path) {
    let destination = open(directory);
    let file = part(&destination, &content());
    let hash = hash_backing(&file, file.size()).unwrap();
    destination
        .publish(Candidate {
            file: &file,
            path: &rel("d/f"),
            metadata: &metadata(EntryKind::File, 0o444),
            replace: Replace::Never,
            vouched: Some(Vouched {
                version: &version(2, content().len() as u64),
                hash: &hash,
                proof: ProofClass::Transfer,
                origin: None,
            }),
        })
        .unwrap();
    let file = File::options().write(true).open(directory.join("d/f")).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_at(b"rot", 2 * BLOCK_SIZE + 9).unwrap();
    file.set_modified(modified).unwrap();
}

fn prove(destination: &Destination) -> Vec<Found> {
    let options = ProofOptions { threads: 2, is_background: false };
    let mut flaws = Vec::new();
    let proven = destination
        .prove(options, &mut |_, found| {
            flaws.extend(found);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((proven.files, proven.flaws), (1, flaws.len() as u64));
    flaws
}

fn mend(destination: &Destination) {
    for found in prove(destination) {
        let Flaw::Differs(difference) = &found.flaw else { panic!("{found:?}") };
        assert_eq!(difference.blocks, [std::ops::Range { start: 2, end: 3 }]);
        let record = found.record.unwrap();
        let old = destination.open_published(&found.path).unwrap();
        let (part, missing) = destination.salvage(&record, Some(&old)).unwrap();
        assert_eq!(missing, difference.blocks);
        part.write_at(2 * BLOCK_SIZE, &block_bytes(2)).unwrap();
        let hash = hash_backing(&part, part.size()).unwrap();
        assert_eq!(Some(hash.root), record.digest);
        let metadata = destination.metadata_of(&record, &old).unwrap();
        let proof = ProofClass::Transfer;
        destination
            .publish(Candidate {
                file: &part,
                path: &found.path,
                metadata: &metadata,
                replace: Replace::Only(old.identity()),
                vouched: Some(Vouched {
                    version: &record.version,
                    hash: &hash,
                    proof,
                    origin: None,
                }),
            })
            .unwrap();
    }
}

/// Not a test by itself: one life.
#[test]
fn child_that_mends() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    mend(&open(Path::new(&directory)));
}

#[test]
fn killed_at_any_sync_a_mend_leaves_the_old_file_or_the_new_one() {
    let has_strace = Command::new("strace").arg("-V").stdout(std::process::Stdio::null()).status();
    if skip(has_strace.is_ok_and(|status| status.success()), "strace") {
        return;
    }
    let (mut kills, mut old) = (0, 0);
    for call in CALLS {
        for at in 1.. {
            let directory = tempfile::tempdir().unwrap();
            rotten(directory.path());
            if !run_killed("mend::child_that_mends", directory.path(), call, at) {
                break;
            }
            kills += 1;
            let what = format!("killed at {call} {at}");
            let destination = open(directory.path());
            assert!(destination.recovery().conflicts.is_empty(), "{what}");
            let record = destination.catalog().entry(&rel("d/f")).unwrap().unwrap();
            assert!(matches!(record.phase, EntryPhase::Published(_)), "{what}: {:?}", record.phase);
            assert_eq!(destination.standing(&record).unwrap(), Standing::Same, "{what}");
            assert_eq!(parts_in(directory.path()), 0, "{what}");
            let is_old = !prove(&destination).is_empty();
            old += usize::from(is_old);
            assert_eq!(fs::read(directory.path().join("d/f")).unwrap() != content(), is_old);
            mend(&destination);
            assert!(prove(&destination).is_empty(), "{what}");
            assert!(fs::read(directory.path().join("d/f")).unwrap() == content(), "{what}");
        }
    }
    println!("{kills} kills, {old} before the rename");
    assert!(kills > 10 && old > 0 && old < kills, "{kills} kills, {old} before the rename");
}

#[test]
fn without_its_hash_tree_a_file_is_still_proven_or_not() {
    let directory = tempfile::tempdir().unwrap();
    rotten(directory.path());
    let tree = directory.path().join(".lazycopy/trees/2");
    let whole = fs::read(&tree).unwrap();
    let mut damaged = whole.clone();
    damaged[70] ^= 1;
    for lost in [damaged, whole[..64].to_vec(), Vec::new()] {
        fs::write(&tree, lost).unwrap();
        let found = prove(&open(directory.path())).pop().unwrap();
        let Flaw::Differs(difference) = found.flaw else { panic!("{found:?}") };
        assert!(!difference.is_exact && difference.ranges().len() == 1, "{difference:?}");
        assert_eq!(difference.ranges()[0].len(), BLOCKS * BLOCK_SIZE);
    }
}
