//! No law of every run: what the receipt of a large copy takes.

use std::fs;
use std::time::{Instant, SystemTime};

use lazycopy::core::attributes::EntryKind;
use lazycopy::store::catalog::{ProofClass, Version};
use lazycopy::store::receipt::Copied;
use lazycopy::store::verify::hash_backing;
use lazycopy::store::{Candidate, Replace, Vouched};

use crate::support::{metadata, open, part, rel};

/// Files that are published together.
const GROUP: u64 = 500;
/// The catalog's own cache and a little.
const MOST_BYTES: u64 = 48 << 20;

/// A line of /proc/self/status, in bytes.
fn memory(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// `LAZYCOPY_BENCH_FILES` files are published, then their receipt is written.
#[test]
#[ignore = "publishes LAZYCOPY_BENCH_FILES files"]
fn a_receipt_needs_no_memory_for_its_entries() {
    let files = std::env::var("LAZYCOPY_BENCH_FILES").map_or(20_000, |text| text.parse().unwrap());
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let destination = open(directory.path());
    destination.catalog().ensure_job("a source", SystemTime::now()).unwrap();
    let metadata = metadata(EntryKind::File, 0o644);
    let mut inos = destination.catalog().reserve_inos(files).unwrap();
    for group in 0..files / GROUP {
        let parts: Vec<_> = (0..GROUP)
            .map(|number| {
                let part = part(&destination, b"content");
                let hash = hash_backing(&part, 7).unwrap();
                let mut fingerprint = metadata.attributes.fingerprint.clone();
                fingerprint.size = 7;
                let version = Version { ino: inos.next().unwrap(), fingerprint, is_settled: true };
                let path = rel(&format!("directory {group:05}/a file {number:03}.bin"));
                (part, path, hash, version)
            })
            .collect();
        let known: Vec<_> = parts.iter().map(|(_, path, _, v)| (path.clone(), v.clone())).collect();
        destination.catalog().know(&known).unwrap();
        let group: Vec<_> = parts
            .iter()
            .map(|(file, path, hash, version)| Candidate {
                file,
                path,
                metadata: &metadata,
                replace: Replace::Never,
                vouched: Some(Vouched { version, hash, proof: ProofClass::Transfer, origin: None }),
            })
            .collect();
        destination.publish_group(&group).into_iter().for_each(|result| drop(result.unwrap()));
    }
    // Forgets the most that was ever used (proc(5), clear_refs).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, begun) = (memory("VmRSS"), Instant::now());
    let copied = Copied { job: "job".into(), ended: SystemTime::now(), skipped: 0 };
    destination.write_receipt(&copied).unwrap();
    let (took, more) = (begun.elapsed(), memory("VmHWM").saturating_sub(before));
    let size = fs::metadata(directory.path().join(".lazycopy/receipt.json")).unwrap().len();
    println!("{files} files: {took:?}, {more} bytes of memory, {size} bytes of receipt");
    assert!(more <= MOST_BYTES, "{more} bytes of memory");
}
