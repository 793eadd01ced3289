//! What an inode that somebody looked up costs in memory, counted byte by byte in a process of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lazycopy::core::attributes::{
    Attributes, EntryKind, Fingerprint, Ownership, Timestamp, Validator,
};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::engine::listing::Listing;
use lazycopy::engine::settings::EngineSettings;
use lazycopy::engine::{Engine, ROOT_INO};
use lazycopy::error::{Error, Kind, Result};
use lazycopy::source::{ByteStream, Entry, ListBatch, Source, Traits};
use lazycopy::store::{Destination, DestinationOptions};
use peak_alloc::PeakAlloc;
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const DIRECTORIES: usize = 100;
const FILES: u64 = 1000;
const INODES: usize = 100_000;

/// Directories of small files, with all the attributes that a local directory tells.
#[derive(Debug)]
struct Wide;

fn attributes(kind: EntryKind, number: u64) -> Attributes {
    let nanos = u32::try_from(number * 9973 % 1_000_000_000).unwrap();
    let time = Timestamp { seconds: 1_700_000_000, nanos };
    Attributes {
        kind,
        size: number,
        mode: Some(0o644),
        ownership: Some(Ownership { uid: 1000, gid: 1000 }),
        modified: Some(time),
        accessed: Some(time),
        changed: Some(time),
        link_count: 1,
        device_number: 0,
        allocated_units: Some(8),
        identity: None,
        fingerprint: Fingerprint { size: number, validator: Validator::Modified(time) },
        is_settled: true,
        checksum: None,
    }
}

#[async_trait]
impl Source for Wide {
    fn display_name(&self) -> &str {
        "wide"
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: false,
            has_modes: true,
            connections: 4,
            refresh: Duration::from_secs(60),
        }
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let (kind, count, word) = match directory.is_root() {
            true => (EntryKind::Directory, 2 * DIRECTORIES as u64, "directory"),
            false => (EntryKind::File, FILES, "file"),
        };
        let entry = |number| Entry {
            name: format!("{word}-{number:06}.dat").into(),
            kind,
            attributes: Some(attributes(kind, number)),
        };
        let entries = (0..count).map(entry).collect();
        drop(batches.send(ListBatch { entries, refused: 0 }).await);
        Ok(())
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        match path.is_root() {
            true => Ok(attributes(EntryKind::Directory, 0)),
            false => Err(Error::new(Kind::NotSupported, "stat")),
        }
    }

    async fn read(&self, _: &RelPath, _: ByteRange, _: &Fingerprint) -> Result<ByteStream> {
        Err(Error::new(Kind::NotSupported, "read"))
    }
}

/// What the kernel knows after a walk.
#[derive(Default)]
struct Walked {
    directories: Vec<u64>,
    files: Vec<u64>,
    listings: Vec<Weak<Listing>>,
}

/// Looks half of the directories and all of their files up, as `ls -lR` does, xattrs included.
async fn walk(engine: &Arc<Engine>, skip: u64) -> Walked {
    let mut walked = Walked::default();
    let root = engine.list(ROOT_INO).await.unwrap();
    for directory in root.after(skip).take(DIRECTORIES) {
        let directory = engine.lookup_for_kernel(ROOT_INO, directory.name).await.unwrap();
        let listing = engine.list(directory.ino).await.unwrap();
        for file in listing.after(0) {
            let file = engine.known(directory.ino, file.name).unwrap();
            assert!(file.refer());
            engine.xattrs(&file).await.unwrap();
            walked.files.push(file.ino);
        }
        walked.directories.push(directory.ino);
        walked.listings.push(Arc::downgrade(&listing));
    }
    assert_eq!(walked.files.len(), INODES);
    let is_recorded = |ino: &u64| !engine.node(*ino).unwrap().is_unrecorded();
    eventually("all is recorded", || walked.files.iter().all(is_recorded)).await;
    walked
}

/// The kernel forgets some; beats pass until something is so.
async fn forget(engine: &Engine, forgotten: &[u64], what: &str, is_so: impl Fn() -> bool) {
    forgotten.iter().for_each(|ino| engine.forget(*ino, 1));
    eventually(what, || {
        engine.tidy();
        is_so()
    })
    .await;
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !tokio::task::block_in_place(&is_so) {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// The contract: 250 bytes per looked-up inode. What the catalog keeps in memory has a limit of its own, so an inode costs what is freed
// when it is forgotten: those seen first, and those that the catalog knew. The tables are three quarters full at this number; where they have just doubled an inode takes 25 bytes more.
#[tokio::test(flavor = "multi_thread")]
async fn an_inode_costs_at_most_250_bytes_until_the_kernel_forgets_it() {
    let directory = tempfile::tempdir().unwrap();
    let destination = Destination::open(directory.path(), DestinationOptions::default()).unwrap();
    let settings = EngineSettings { refresh: None, reserve: Some(0), ..EngineSettings::default() };
    let opened = Engine::open(Arc::new(Wide), Arc::new(destination), settings).await;
    let (engine, _notices) = opened.unwrap();
    let each = |more: usize, less: usize| more.saturating_sub(less) / INODES;
    for skip in [0, DIRECTORIES, 0] {
        let walked = walk(&engine, u64::try_from(skip).unwrap()).await;
        let all = ALLOCATOR.current_usage();
        let is_gone = || walked.listings.iter().all(|listing| listing.strong_count() == 0);
        forget(&engine, &walked.directories, "listings leave", is_gone).await;
        let unlisted = ALLOCATOR.current_usage();
        let is_gone = || walked.files.iter().all(|ino| engine.node(*ino).is_err());
        forget(&engine, &walked.files, "inodes leave", is_gone).await;
        let left = ALLOCATOR.current_usage();
        let (listed, inode) = (each(all, unlisted), each(unlisted, left));
        eprintln!("{inode} bytes per inode, {listed} per name in a listing; {left} stay");
        assert!((100..=225).contains(&inode), "{inode} bytes per inode");
        assert!(listed <= 64, "{listed} bytes per name in a listing");
        assert!(left < 48 << 20, "{left} bytes stay");
    }
}
