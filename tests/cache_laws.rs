//! Laws of a cache of limited size, on a source that the test writes and a real directory: no FUSE. `SEED=…` repeats one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lazycopy::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::engine::Engine;
use lazycopy::engine::read::TryRead;
use lazycopy::engine::settings::EngineSettings;
use lazycopy::error::{Error, Kind, Result};
use lazycopy::source::{ByteStream, ListBatch, Source, Traits};
use lazycopy::store::{Destination, DestinationOptions};
use tokio::sync::mpsc;

const CAP: u64 = 8 << 20;
const PIECE: usize = 96 * 1024;

/// Files `0`, `1`, …, whose bytes say which version, which file and which offset they are.
#[derive(Debug)]
struct Numbered {
    sizes: Vec<u64>,
    versions: Vec<AtomicU64>,
}

impl Numbered {
    fn new(sizes: Vec<u64>) -> Arc<Self> {
        let versions = sizes.iter().map(|_| AtomicU64::new(1)).collect();
        Arc::new(Self { sizes, versions })
    }
}

fn byte(number: usize, version: u64, offset: u64) -> u8 {
    let mixed = (offset / 3).wrapping_mul(31).wrapping_add(version * 7 + number as u64 * 13);
    u8::try_from(mixed % 255 + 1).unwrap() // never 0
}

fn bytes_of(number: usize, version: u64, range: ByteRange) -> Vec<u8> {
    (range.start..range.end).map(|offset| byte(number, version, offset)).collect()
}

fn number_of(path: &RelPath) -> Option<usize> {
    std::str::from_utf8(path.as_bytes()).ok()?.parse().ok()
}

fn attributes(kind: EntryKind, size: u64, version: u64) -> Attributes {
    Attributes::bare(kind, Fingerprint { size, validator: Validator::ETag(version.to_string()) })
}

struct Tree(Arc<Numbered>);

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tree")
    }
}

#[async_trait]
impl Source for Tree {
    fn display_name(&self) -> &str {
        "numbered"
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: false,
            has_modes: false,
            connections: 64,
            refresh: Duration::ZERO,
        }
    }

    async fn list(&self, _: &RelPath, _: mpsc::Sender<ListBatch>) -> Result<()> {
        Ok(())
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        if path.is_root() {
            return Ok(attributes(EntryKind::Directory, 0, 0));
        }
        let number = number_of(path).filter(|number| *number < self.0.sizes.len());
        let number = number.ok_or_else(|| Error::new(Kind::NotFound, "stat"))?;
        let version = self.0.versions[number].load(Ordering::SeqCst);
        Ok(attributes(EntryKind::File, self.0.sizes[number], version))
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        seen: &Fingerprint,
    ) -> Result<ByteStream> {
        let number = number_of(path).unwrap();
        let version = self.0.versions[number].load(Ordering::SeqCst);
        if seen.validator != Validator::ETag(version.to_string()) {
            return Err(Error::new(Kind::Stale, "read"));
        }
        let bytes = Bytes::from(bytes_of(number, version, range));
        let pieces: Vec<Bytes> = (0..bytes.len())
            .step_by(PIECE)
            .map(|at| bytes.slice(at..(at + PIECE).min(bytes.len())))
            .collect();
        let paced = stream::iter(pieces).then(|piece| async move {
            tokio::task::yield_now().await;
            Ok(piece)
        });
        Ok(paced.boxed())
    }
}

struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(0)
        });
        println!("SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

async fn open(tree: &Arc<Numbered>, directory: &Path, cap: u64) -> Arc<Engine> {
    let options = DestinationOptions { keep: Some(cap), ..DestinationOptions::default() };
    let destination = loop {
        match Destination::open(directory, options.clone()) {
            Ok(destination) => break Arc::new(destination),
            // The life before still lets go of it.
            Err(error) => assert_eq!(error.kind(), Kind::Busy, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let settings = EngineSettings {
        reserve: Some(0),
        refresh: Some(Duration::ZERO),
        grace: Duration::from_secs(5),
        ..EngineSettings::default()
    };
    let source = Arc::new(Tree(Arc::clone(tree)));
    Engine::open(source, destination, settings).await.unwrap().0
}

/// Bytes allocated by all files in DIR and in `parts/`.
fn allocated(directory: &Path) -> u64 {
    let in_directory = |path: &Path| -> u64 {
        let entries = std::fs::read_dir(path).unwrap();
        let metas = entries.filter_map(|entry| entry.unwrap().metadata().ok());
        metas.filter(std::fs::Metadata::is_file).map(|meta| meta.blocks() * 512).sum()
    };
    in_directory(directory) + in_directory(&directory.join(".lazycopy/parts"))
}

/// Opens a file, reads here and there as the kernel would, closes it. A version that goes is no error.
async fn visit(engine: &Arc<Engine>, tree: &Numbered, number: usize, mut random: Random) {
    let path = RelPath::root().child(number.to_string().as_ref()).unwrap();
    let node = engine.lookup_path(&path).await.unwrap();
    let Ok(handle_number) = engine.open_file(&node) else { return };
    let handle = engine.handle(handle_number).unwrap();
    let tag = node.attributes().fingerprint.validator.clone();
    let Validator::ETag(version) = tag else { panic!() };
    let version: u64 = version.parse().unwrap();
    let mut offset = random.below(tree.sizes[number]);
    for _ in 0..random.below(12) {
        let len = 1 + random.below(300_000);
        let want = ByteRange::at(offset, len).clip(tree.sizes[number]);
        let mut buffer = vec![0; usize::try_from(len).unwrap()];
        let found = match engine.try_read(&handle, offset, &mut buffer) {
            Ok(TryRead::Hit(bytes)) => Ok(buffer[..bytes].to_vec()),
            Ok(TryRead::Miss) => engine.read(&handle.file, offset, len).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(bytes) => {
                assert!(bytes == bytes_of(number, version, want), "{number} v{version} at {want}");
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Stale, "{error}");
                break;
            }
        }
        offset = if want.end < tree.sizes[number] { want.end } else { 0 };
    }
    engine.release(handle_number);
}

/// Looks at what is used without a pause.
fn watch(engine: &Arc<Engine>, is_over: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (engine, is_over) = (Arc::clone(engine), Arc::clone(is_over));
    std::thread::spawn(move || {
        let mut most = 0;
        while !is_over.load(Ordering::SeqCst) {
            most = most.max(engine.cache_fill().unwrap().1);
            std::thread::yield_now();
        }
        most
    })
}

async fn until_quiet(engine: &Arc<Engine>) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !engine.active_chunks().is_empty() || engine.queued_chunks() > 0 {
        assert!(std::time::Instant::now() < deadline, "chunks never end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Fifty at once, over and over, next to checkpoints, and, if wanted, next to versions that come.
async fn storm(engine: &Arc<Engine>, tree: &Arc<Numbered>, random: &mut Random, rewrites: bool) {
    let is_over = Arc::new(AtomicBool::new(false));
    let watcher = watch(engine, &is_over);
    for _ in 0..6 {
        let visits: Vec<_> = (0..50)
            .map(|_| {
                let number = usize::try_from(random.below(tree.sizes.len() as u64)).unwrap();
                let (engine, tree) = (Arc::clone(engine), Arc::clone(tree));
                let random = Random(random.below(u64::MAX) | 1);
                tokio::spawn(async move { visit(&engine, &tree, number, random).await })
            })
            .collect();
        for _ in 0..3 {
            engine.checkpoint_in_background();
            if rewrites {
                let number = usize::try_from(random.below(tree.sizes.len() as u64)).unwrap();
                tree.versions[number].fetch_add(1, Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for visit in visits {
            tokio::time::timeout(Duration::from_secs(60), visit).await.expect("hangs").unwrap();
        }
    }
    until_quiet(engine).await;
    is_over.store(true, Ordering::SeqCst);
    let most = watcher.join().unwrap();
    assert!(most <= CAP, "{most} used");
    assert!(engine.stats().bytes_evicted.get() > CAP, "nothing went");
}

fn sizes(random: &mut Random) -> Vec<u64> {
    let mut sizes: Vec<u64> = (0..40).map(|_| 1 + random.below(1 << 20)).collect();
    sizes.extend([3 * CAP + 17, 2 * CAP]);
    sizes
}

// L8: of two that looked for room at the same time both took it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_fills_at_once_never_exceed_the_cap() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut random = Random::new();
    let tree = Numbered::new(sizes(&mut random));
    let engine = open(&tree, directory.path(), CAP).await;
    storm(&engine, &tree, &mut random, false).await;
    // What is counted is at least what is there, also after a restart.
    engine.save().await;
    assert!(allocated(directory.path()) <= engine.cache_fill().unwrap().1);
    drop(engine);
    let engine = open(&tree, directory.path(), CAP).await;
    let (cap, used) = engine.cache_fill().unwrap();
    assert!(used <= cap && allocated(directory.path()) <= cap);
    storm(&engine, &tree, &mut random, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_that_change_while_they_are_evicted_show_one_version_each() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut random = Random::new();
    let tree = Numbered::new(sizes(&mut random));
    let engine = open(&tree, directory.path(), CAP).await;
    storm(&engine, &tree, &mut random, true).await;
    engine.save().await;
    let (used, there) = (engine.cache_fill().unwrap().1, allocated(directory.path()));
    assert!(there <= used, "{there} bytes on the disk, {used} counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_full_of_what_is_read_serves_more_readers_straight_through() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let size = 1 << 20;
    let tree = Numbered::new(vec![size; 32]);
    let engine = open(&tree, directory.path(), CAP).await;
    let whole = ByteRange::new(0, size);
    let reads: Vec<_> = (0..32)
        .map(|number| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move {
                let path = RelPath::root().child(number.to_string().as_ref()).unwrap();
                let node = engine.lookup_path(&path).await.unwrap();
                let file = Arc::clone(node.file().unwrap());
                (number, engine.read(&file, 0, size).await.unwrap())
            })
        })
        .collect();
    for read in reads {
        let (number, bytes) = read.await.unwrap();
        assert!(bytes == bytes_of(number, 1, whole), "{number}");
    }
    let (cap, used) = engine.cache_fill().unwrap();
    assert!(used <= cap);
}
