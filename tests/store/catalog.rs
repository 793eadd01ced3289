//! What a second life knows of the first: checkpoints, publications, changes by others, a full disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use lazycopy::core::attributes::{EntryKind, Fingerprint, Validator};
use lazycopy::core::range::BLOCK_SIZE;
use lazycopy::error::Kind;
use lazycopy::store::catalog::{EntryPhase, ProofClass, Version};
use lazycopy::store::verify::{hash_backing, hash_block};
use lazycopy::store::{
    BackingFile, Candidate, Checkpoint, Destination, Published, Replace, Standing, Vouched,
};

use super::support::{
    CHILD_DIRECTORY, child, metadata, open, part, parts_in, rel, start_until_ready,
};

pub(crate) fn version(ino: u64, size: u64) -> Version {
    let fingerprint = Fingerprint { size, validator: Validator::ETag(format!("\"{ino}\"")) };
    Version { ino, fingerprint, is_settled: true }
}

/// What block `index` of every test's file holds.
pub(crate) fn block_bytes(index: u64) -> Vec<u8> {
    let len = usize::try_from(BLOCK_SIZE).unwrap();
    (0u64..).map(|at| u8::try_from((at * 7 + index * 13 + 1) % 251).unwrap()).take(len).collect()
}

/// Reads every trusted block of a part and returns how many from the first on are trusted.
pub(crate) fn check_part(destination: &Destination, path: &str) -> u64 {
    let Some(record) = destination.catalog().entry(&rel(path)).unwrap() else { return 0 };
    let runs = destination.catalog().blocks(&record).unwrap();
    if runs.is_empty() {
        return 0;
    }
    let part = destination.reopen_part(&record).unwrap();
    let mut target = vec![0; usize::try_from(BLOCK_SIZE).unwrap()];
    for block in runs.iter().cloned().flatten() {
        part.read_at(block * BLOCK_SIZE, &mut target).unwrap();
        assert_eq!(target, block_bytes(block), "block {block}");
        let hash = hash_block(block, part.size(), &target).unwrap();
        assert_eq!(destination.catalog().hashes(&record, block..block + 1).unwrap(), [hash]);
    }
    runs[0].end
}

pub(crate) fn checkpoint(
    destination: &Destination,
    path: &str,
    part: &BackingFile,
    ino: u64,
    block: u64,
) {
    let (path, version, bytes) = (rel(path), version(ino, part.size()), block_bytes(block));
    part.write_at(block * BLOCK_SIZE, &bytes).unwrap();
    let hashes = [(block, hash_block(block, part.size(), &bytes).unwrap())];
    let run = block..block + 1;
    let blocks = std::slice::from_ref(&run);
    let checkpoint = Checkpoint { path: &path, version: &version, part, blocks, hashes: &hashes };
    destination.checkpoint_many(&[checkpoint]).remove(0).unwrap();
}

pub(crate) fn publish(destination: &Destination, path: &str, ino: u64, bytes: &[u8]) -> Published {
    let file = part(destination, bytes);
    let hash = hash_backing(&file, file.size()).unwrap();
    let version = version(ino, file.size());
    let vouched =
        Vouched { version: &version, hash: &hash, proof: ProofClass::Transfer, origin: None };
    let candidate = Candidate {
        file: &file,
        path: &rel(path),
        metadata: &metadata(EntryKind::File, 0o444),
        replace: Replace::Never,
        vouched: Some(vouched),
    };
    destination.publish(candidate).unwrap()
}

// Found stale or failed while it was published: the task that forgets it comes late.
#[test]
fn giving_up_a_part_late_forgets_nothing_that_was_published() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let part = destination.create_part(BLOCK_SIZE).unwrap();
    checkpoint(&destination, "f", &part, 7, 0);
    let hash = hash_backing(&part, part.size()).unwrap();
    let version = version(7, part.size());
    let candidate = Candidate {
        file: &part,
        path: &rel("f"),
        metadata: &metadata(EntryKind::File, 0o444),
        replace: Replace::Never,
        vouched: Some(Vouched {
            version: &version,
            hash: &hash,
            proof: ProofClass::Transfer,
            origin: None,
        }),
    };
    destination.publish(candidate).unwrap();
    destination.abandon_part(&rel("f"), 7, &part).unwrap();
    drop(part);
    let record = destination.catalog().entry(&rel("f")).unwrap().unwrap();
    assert_eq!(destination.standing(&record).unwrap(), Standing::Same);
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), block_bytes(0));

    // Begun anew, and the new part is recorded before the old one is given up.
    let [old, new] = [(), ()].map(|()| destination.create_part(2 * BLOCK_SIZE).unwrap());
    checkpoint(&destination, "g", &old, 8, 0);
    checkpoint(&destination, "g", &new, 8, 1);
    destination.abandon_part(&rel("g"), 8, &old).unwrap();
    drop((old, new, destination));
    let destination = open(directory.path());
    let record = destination.catalog().entry(&rel("g")).unwrap().unwrap();
    assert_eq!(destination.catalog().blocks(&record).unwrap(), std::slice::from_ref(&(1..2)));
    check_part(&destination, "g");
}

#[test]
fn a_second_life_goes_on_where_the_first_left() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let large = destination.create_part(5 * BLOCK_SIZE).unwrap();
    checkpoint(&destination, "d/large", &large, 2, 0);
    checkpoint(&destination, "d/large", &large, 2, 3);
    large.write_at(BLOCK_SIZE, b"not recorded").unwrap();
    let forgotten = destination.create_part(9).unwrap();
    std::mem::forget(forgotten.descriptor());
    drop((large, forgotten, destination));

    let destination = open(directory.path());
    assert_eq!((destination.recovery().resumed, parts_in(directory.path())), (1, 1));
    check_part(&destination, "d/large");
    let record = destination.catalog().entry(&rel("d/large")).unwrap().unwrap();
    assert_eq!(record.phase, EntryPhase::Filling);
    assert_eq!(destination.catalog().blocks(&record).unwrap(), [0..1, 3..4]);
    let large = destination.reopen_part(&record).unwrap();
    for block in [1, 2, 4] {
        checkpoint(&destination, "d/large", &large, 2, block);
    }
    assert_eq!(check_part(&destination, "d/large"), 5);
    destination.abandon_part(&rel("d/large"), 2, &large).unwrap();
    drop(large);
    assert_eq!(parts_in(directory.path()), 0);
    assert_eq!(fs::read_dir(directory.path().join(".lazycopy/trees")).unwrap().count(), 0);
}

#[test]
fn a_part_that_is_not_the_recorded_one_is_never_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let file = destination.create_part(3 * BLOCK_SIZE).unwrap();
    checkpoint(&destination, "f", &file, 2, 1);
    let record = destination.catalog().entry(&rel("f")).unwrap().unwrap();
    drop(file);
    let name = directory.path().join(".lazycopy/parts").join(&record.part.as_ref().unwrap().name);
    let planted = fs::File::create(directory.path().join("planted")).unwrap();
    planted.set_len(fs::metadata(&name).unwrap().len()).unwrap();
    fs::rename(directory.path().join("planted"), &name).unwrap();
    assert_eq!(destination.reopen_part(&record).unwrap_err().kind(), Kind::Stale);
    drop(destination);
    let destination = open(directory.path());
    assert_eq!((destination.recovery().lost, parts_in(directory.path())), (1, 0));
    assert_eq!(check_part(&destination, "f"), 0);
}

#[test]
fn blocks_under_an_unsettled_validator_are_never_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let file = part(&destination, b"x");
    let version = Version { is_settled: false, ..version(2, 1) };
    let path = rel("f");
    let blocks = std::slice::from_ref(&(0..1));
    let unsettled = Checkpoint { path: &path, version: &version, part: &file, blocks, hashes: &[] };
    let refused = destination.checkpoint_many(&[unsettled]).remove(0);
    assert_eq!(refused.unwrap_err().kind(), Kind::Invalid);
    assert!(destination.catalog().entry(&path).unwrap().is_none());
}

#[test]
fn what_was_published_is_known_and_what_somebody_changed_is_not_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let bytes = vec![3; 300_000];
    for (ino, name) in (2..).zip(["same", "longer", "replaced", "gone"]) {
        publish(&destination, name, ino, &bytes);
    }
    let large = destination.catalog().entry(&rel("same")).unwrap().unwrap();
    assert_eq!(destination.catalog().hashes(&large, 0..3).unwrap().len(), 3);
    drop(destination);
    let longer = directory.path().join("longer");
    fs::set_permissions(&longer, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(longer, "theirs").unwrap();
    fs::write(directory.path().join("new"), "theirs").unwrap();
    fs::rename(directory.path().join("new"), directory.path().join("replaced")).unwrap();
    fs::remove_file(directory.path().join("gone")).unwrap();

    let destination = open(directory.path());
    let record = destination.catalog().entry(&rel("same")).unwrap().unwrap();
    assert!(matches!(record.phase, EntryPhase::Published(_)));
    assert_eq!(record.digest, Some(*blake3::hash(&bytes).as_bytes()));
    assert_eq!((record.proof, record.part.clone()), (Some(ProofClass::Transfer), None));
    assert_eq!(destination.standing(&record).unwrap(), Standing::Same);
    let mut changed = Vec::new();
    destination
        .changed_published(|record, standing| changed.push((record.path, standing)))
        .unwrap();
    let expected = [
        (rel("gone"), Standing::Missing),
        (rel("longer"), Standing::Changed),
        (rel("replaced"), Standing::Changed),
    ];
    assert_eq!(changed, expected);
}

#[test]
fn a_refused_publication_is_sealed_and_can_be_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    fs::write(directory.path().join("f"), "theirs").unwrap();
    let file = part(&destination, b"ours");
    let hash = hash_backing(&file, 4).unwrap();
    let (path, version, wanted) = (rel("f"), version(2, 4), metadata(EntryKind::File, 0o444));
    let vouched =
        Vouched { version: &version, hash: &hash, proof: ProofClass::Transfer, origin: None };
    let candidate = Candidate {
        file: &file,
        path: &path,
        metadata: &wanted,
        replace: Replace::Never,
        vouched: Some(vouched),
    };
    assert_eq!(destination.publish(candidate).unwrap_err().kind(), Kind::Exists);
    let entry = || destination.catalog().entry(&path).unwrap().unwrap();
    assert_eq!(entry().phase, EntryPhase::Sealed);
    fs::remove_file(directory.path().join("f")).unwrap();
    destination.publish_group(&[candidate]).remove(0).unwrap();
    assert_eq!(destination.standing(&entry()).unwrap(), Standing::Same);

    // An earlier version comes late.
    let late = part(&destination, b"old!");
    let old = Version { ino: 1, ..version.clone() };
    let vouched = Vouched { version: &old, ..vouched };
    let candidate = Candidate { file: &late, vouched: Some(vouched), ..candidate };
    assert_eq!(destination.publish(candidate).unwrap_err().kind(), Kind::Stale);
    assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"ours");
}

/// Not a test by itself: makes checkpoints and publishes until it is killed, and tells what is done.
#[test]
fn child_that_copies_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let destination = open(directory);
    let ids = destination.catalog().reserve_chunk_ids(1000).unwrap();
    let inos = destination.catalog().reserve_inos(1000).unwrap();
    println!("\nready");
    let log = |text: String| {
        use std::io::Write;
        let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("log"));
        writeln!(log.unwrap(), "{text}").unwrap();
    };
    log(format!("chunks {}", ids.end));
    let mut inos = inos;
    let name = format!("large-{}", ids.start);
    let large = destination.create_part(400 * BLOCK_SIZE).unwrap();
    let ino = inos.next().unwrap();
    for block in 0..400 {
        checkpoint(&destination, &name, &large, ino, block);
        log(format!("block {name} {}", block + 1));
        let small = format!("small-{}-{block}", ids.start);
        publish(&destination, &small, inos.next().unwrap(), &block_bytes(block));
        log(format!("file {small} {block}"));
    }
}

#[test]
fn a_killed_copy_loses_nothing_that_it_had_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let mut resumed = 0;
    for round in 0..12u64 {
        let copying =
            child("catalog::child_that_copies_until_it_is_killed", directory.path(), None);
        let mut copying = start_until_ready(copying);
        // Anywhere: the moment is not what decides.
        std::thread::sleep(Duration::from_millis(5 + round * 17 % 60));
        copying.kill().unwrap();
        copying.wait().unwrap();

        let destination = open(directory.path());
        assert!(destination.recovery().conflicts.is_empty());
        resumed += destination.recovery().resumed;
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        for line in log.lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["chunks", end] => {
                    let next = destination.catalog().reserve_chunk_ids(1).unwrap().start;
                    assert!(next >= end.parse().unwrap());
                }
                ["block", name, count] => {
                    let record = destination.catalog().entry(&rel(name)).unwrap().unwrap();
                    let runs = destination.catalog().blocks(&record).unwrap();
                    assert!(runs[0].end >= count.parse().unwrap(), "{line}: {runs:?}");
                }
                ["file", name, block] => {
                    let record = destination.catalog().entry(&rel(name)).unwrap().unwrap();
                    assert_eq!(destination.standing(&record).unwrap(), Standing::Same, "{name}");
                    let bytes = fs::read(directory.path().join(name)).unwrap();
                    assert!(bytes == block_bytes(block.parse().unwrap()));
                }
                _ => {}
            }
        }
        // Every published name is recorded, and every trusted block is right.
        let mut paths = Vec::new();
        destination
            .catalog()
            .entries(|record| {
                paths.push(record.path);
                Ok(())
            })
            .unwrap();
        for path in paths.iter().map(ToString::to_string).filter(|path| path.starts_with("large")) {
            check_part(&destination, &path);
        }
        for entry in fs::read_dir(directory.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("small") {
                let record = destination.catalog().entry(&rel(&name)).unwrap().unwrap();
                assert!(matches!(record.phase, EntryPhase::Published(_)), "{name}");
            }
        }
    }
    assert!(resumed > 0);
}
