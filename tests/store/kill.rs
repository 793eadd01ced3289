//! Killed at every sync and rename of a short life, and at those of the recovery after it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lazycopy::core::attributes::EntryKind;
use lazycopy::core::range::BLOCK_SIZE;
use lazycopy::store::catalog::{EntryPhase, ProofClass};
use lazycopy::store::verify::hash_backing;
use lazycopy::store::{Candidate, Destination, Replace, Standing, Vouched};

use super::catalog::{block_bytes, check_part, version};
use super::support::{CHILD_DIRECTORY, child, metadata, open, part, rel, skip};

/// strace counts each call for itself.
pub(crate) const CALLS: [&str; 6] =
    ["fsync", "fdatasync", "syncfs", "renameat", "renameat2", "unlinkat"];
const FILES: [(&str, u64); 4] = [("d/a", 2), ("b", 3), ("d/e/c", 4), ("large", 5)];

fn content(ino: u64) -> Vec<u8> {
    (0..if ino == 5 { 3 } else { 1 }).flat_map(|block| block_bytes(block + ino)).collect()
}

/// Publishes what is not published yet: one file alone, the others as a group.
fn publish_all(destination: &Destination) {
    let missing: Vec<_> = FILES
        .into_iter()
        .filter(|(path, _)| {
            let record = destination.catalog().entry(&rel(path)).unwrap();
            !record.is_some_and(|record| matches!(record.phase, EntryPhase::Published(_)))
        })
        .map(|(path, ino)| {
            (rel(path), version(ino, content(ino).len() as u64), part(destination, &content(ino)))
        })
        .collect();
    let hashes: Vec<_> =
        missing.iter().map(|(_, _, file)| hash_backing(file, file.size()).unwrap()).collect();
    let wanted = metadata(EntryKind::File, 0o444);
    let candidates: Vec<_> = missing
        .iter()
        .zip(&hashes)
        .map(|((path, version, file), hash)| Candidate {
            file,
            path,
            metadata: &wanted,
            replace: Replace::Never,
            vouched: Some(Vouched { version, hash, proof: ProofClass::Transfer, origin: None }),
        })
        .collect();
    let Some((alone, group)) = candidates.split_last() else { return };
    destination.publish(*alone).unwrap();
    destination.publish_group(group).into_iter().for_each(|done| drop(done.unwrap()));
}

/// Not a test by itself: one life.
#[test]
fn child_that_publishes() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    publish_all(&open(Path::new(&directory)));
}

/// Not a test by itself: only the recovery.
#[test]
fn child_that_recovers() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    drop(open(Path::new(&directory)));
}

/// Runs a child that is killed at its `at`-th `call`; false if it ended before.
pub(crate) fn run_killed(test: &str, directory: &Path, call: &str, at: usize) -> bool {
    let inner = child(test, directory, None);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
    command.arg("-e").arg(format!("inject={call}:signal=KILL:when={at}"));
    command.arg(inner.get_program()).args(inner.get_args());
    command.env(CHILD_DIRECTORY, directory).stdout(Stdio::null()).stderr(Stdio::null());
    !command.status().unwrap().success()
}

/// Whoever has a final name is whole and recorded; nothing else is. Then the copy goes on to its end.
fn check(directory: &Path, what: &str) {
    let destination = open(directory);
    assert!(destination.recovery().conflicts.is_empty(), "{what}");
    let state = |path| {
        let record = destination.catalog().entry(&rel(path)).unwrap();
        record.map(|record| (destination.standing(&record).unwrap(), record))
    };
    for (path, ino) in FILES {
        match fs::read(directory.join(path)) {
            Ok(bytes) => {
                assert!(bytes == content(ino), "{what}: {path} is not whole");
                let (standing, record) = state(path).unwrap_or_else(|| panic!("{what}: {path}"));
                assert_eq!(standing, Standing::Same, "{what}: {path}");
                assert_eq!(record.digest, Some(*blake3::hash(&content(ino)).as_bytes()));
            }
            Err(_) => {
                let Some((standing, record)) = state(path) else { continue };
                assert_eq!(standing, Standing::Unpublished, "{what}: {path}");
                if record.phase == EntryPhase::Sealed {
                    let part = destination.reopen_part(&record).unwrap();
                    let mut bytes = vec![0; content(ino).len()];
                    part.read_at(0, &mut bytes).unwrap();
                    assert!(bytes == content(ino), "{what}: part of {path}");
                }
            }
        }
    }
    publish_all(&destination);
    for (path, _) in FILES {
        assert_eq!(state(path).unwrap().0, Standing::Same, "{what}: {path}");
    }
    assert_eq!(check_part(&destination, "nothing"), 0);
    assert_eq!(content(5).len() as u64, 3 * BLOCK_SIZE);
}

#[test]
fn killed_at_any_sync_a_file_is_published_whole_and_known_or_not_at_all() {
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    if skip(has_strace.is_ok_and(|status| status.success()), "strace") {
        return;
    }
    let mut kills = 0;
    for call in CALLS {
        for at in 1.. {
            let directory = tempfile::tempdir().unwrap();
            if !run_killed("kill::child_that_publishes", directory.path(), call, at) {
                break;
            }
            kills += 1;
            if at % 3 == 0 {
                // A second crash, during recovery, a little further each time.
                for again in 1..=3 {
                    run_killed("kill::child_that_recovers", directory.path(), call, again);
                }
            }
            check(directory.path(), &format!("killed at {call} {at}"));
        }
    }
    println!("{kills} kills");
    assert!(kills > 40, "only {kills} kills");
}
