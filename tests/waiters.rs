//! Readers of one file at the engine's door, with a source that does what the test says. No mount, no sleeps.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use lazycopy::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::engine::settings::EngineSettings;
use lazycopy::engine::{Engine, ROOT_INO};
use lazycopy::error::{Error, Kind, Result};
use lazycopy::source::{ByteStream, Entry, ListBatch, Source, Traits};
use lazycopy::store::{Destination, DestinationOptions};
use tokio::sync::{Semaphore, mpsc};

const MIB: u64 = 1 << 20;
const PIECE: u64 = 64 * 1024;

/// The byte at an offset.
fn byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0]
}

fn content(range: ByteRange) -> Vec<u8> {
    (range.start..range.end).map(byte).collect()
}

/// One file, `file`, whose bytes come when the test lets them.
#[derive(Debug)]
struct Scripted {
    size: u64,
    /// One permit for each piece that may be sent.
    pieces: Arc<Semaphore>,
    /// Requests, and how often each piece was sent.
    requests: AtomicU64,
    sent: Arc<parking_lot::Mutex<BTreeMap<u64, u64>>>,
}

impl Scripted {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            size,
            pieces: Arc::new(Semaphore::new(0)),
            requests: AtomicU64::new(0),
            sent: Arc::default(),
        })
    }

    fn attributes(&self, kind: EntryKind) -> Attributes {
        let size = if kind == EntryKind::File { self.size } else { 4096 };
        Attributes {
            mode: Some(0o755),
            ..Attributes::bare(
                kind,
                Fingerprint { size, validator: Validator::ETag("\"1\"".to_owned()) },
            )
        }
    }
}

#[async_trait]
impl Source for Scripted {
    fn display_name(&self) -> &str {
        "scripted"
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: true,
            has_modes: false,
            connections: 32,
            refresh: Duration::from_secs(3600),
        }
    }

    async fn list(&self, _directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let attributes = Some(self.attributes(EntryKind::File));
        let entry = Entry { name: "file".into(), kind: EntryKind::File, attributes };
        drop(batches.send(ListBatch { entries: vec![entry], refused: 0 }).await);
        Ok(())
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        match path.as_path().to_str() {
            Some("") => Ok(self.attributes(EntryKind::Directory)),
            Some("file") => Ok(self.attributes(EntryKind::File)),
            _ => Err(Error::new(Kind::NotFound, "stat")),
        }
    }

    async fn read(
        &self,
        _path: &RelPath,
        range: ByteRange,
        _expected: &Fingerprint,
    ) -> Result<ByteStream> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let (pieces, sent) = (Arc::clone(&self.pieces), Arc::clone(&self.sent));
        let stream = futures_util::stream::unfold(range, move |left| {
            let (pieces, sent) = (Arc::clone(&pieces), Arc::clone(&sent));
            async move {
                if left.is_empty() {
                    return None;
                }
                pieces.acquire().await.unwrap().forget();
                let end = (left.start / PIECE * PIECE + PIECE).min(left.end);
                let piece = ByteRange::new(left.start, end);
                *sent.lock().entry(piece.start / PIECE).or_default() += 1;
                let bytes = Bytes::from(content(piece));
                Some((Ok(bytes), ByteRange::new(piece.end, left.end)))
            }
        });
        Ok(stream.boxed())
    }
}

struct Stage {
    source: Arc<Scripted>,
    engine: Arc<Engine>,
    file: Arc<lazycopy::engine::file::LazyFile>,
    _directory: tempfile::TempDir,
}

async fn stage(size: u64, settings: EngineSettings) -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let options = DestinationOptions::default();
    let destination = Destination::open(&directory.path().join("dest"), options).unwrap();
    let source = Scripted::new(size);
    let opened = Engine::open(Arc::clone(&source) as _, Arc::new(destination), settings).await;
    let (engine, _notices) = opened.unwrap();
    let node = engine.lookup(ROOT_INO, OsStr::new("file")).await.unwrap();
    let file = Arc::clone(node.file().unwrap());
    Stage { source, engine, file, _directory: directory }
}

/// Yields until `holds`.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), held).await.expect(what);
}

// A broadcast per block would be 64 readers x 128 blocks = 8192 wake-ups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_one_chunk_are_woken_about_once_each_and_share_its_bytes() {
    const SIZE: u64 = 16 * MIB;
    let stage = stage(SIZE, EngineSettings::default()).await;
    let readers = (0..64).map(|_| {
        let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
        tokio::spawn(async move { engine.read(&file, 0, SIZE).await })
    });
    let readers: Vec<_> = readers.collect();
    until("a request", || stage.source.requests.load(Ordering::SeqCst) > 0).await;
    // One piece after the other, so that each could wake everybody.
    for _ in 0..SIZE / PIECE {
        stage.source.pieces.add_permits(1);
        tokio::task::yield_now().await;
    }
    let expected = content(ByteRange::new(0, SIZE));
    for answer in join_all(readers).await {
        assert!(answer.unwrap().unwrap() == expected);
    }
    let wake_ups = stage.engine.stats().wake_ups.get();
    println!("{wake_ups} wake-ups");
    assert!(wake_ups <= 128, "{wake_ups}");
    assert_eq!(stage.engine.stats().bytes_fetched.get(), SIZE, "each byte once");
    let sent = stage.source.sent.lock();
    assert!(sent.values().all(|times| *times == 1) && sent.len() as u64 == SIZE / PIECE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_readers_of_parts_of_one_chunk_are_woken_about_once_each() {
    const SIZE: u64 = 16 * MIB;
    let stage = stage(SIZE, EngineSettings::default()).await;
    // The first asks for all, so that there is one chunk; the others join it.
    let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
    let first = tokio::spawn(async move { engine.read(&file, 0, SIZE).await });
    until("a request", || stage.source.requests.load(Ordering::SeqCst) > 0).await;
    let readers = (0..63u64).map(|reader| {
        let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
        tokio::spawn(async move {
            let range = ByteRange::at(reader * SIZE / 63 / 8 * 8, 300_000).clip(SIZE);
            let bytes = engine.read(&file, range.start, range.len()).await.unwrap();
            assert!(bytes == content(range), "{range}");
        })
    });
    let readers: Vec<_> = readers.collect();
    stage.source.pieces.add_permits(usize::try_from(SIZE / PIECE).unwrap());
    for reader in join_all(readers).await {
        reader.unwrap();
    }
    first.await.unwrap().unwrap();
    let wake_ups = stage.engine.stats().wake_ups.get();
    println!("{wake_ups} wake-ups");
    assert!(wake_ups <= 128, "{wake_ups}");
    assert_eq!(stage.source.requests.load(Ordering::SeqCst), 1);
    assert_eq!(stage.engine.stats().bytes_fetched.get(), SIZE);
}

// L5, L17: who has his bytes is answered; who lacks them times out and poisons nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stall_all_with_their_bytes_return_and_the_chunk_goes_on_for_who_comes_later() {
    const SIZE: u64 = 16 * MIB;
    const THERE: u64 = 100 * PIECE;
    let settings = EngineSettings {
        read_timeout: Some(Duration::from_millis(300)),
        stall: Duration::from_secs(60),
        ..EngineSettings::default()
    };
    let stage = stage(SIZE, settings).await;
    let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
    let first = tokio::spawn(async move { engine.read(&file, 0, SIZE).await });
    until("a request", || stage.source.requests.load(Ordering::SeqCst) > 0).await;
    let readers = (0..64u64).map(|reader| {
        let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
        tokio::spawn(async move {
            let range = ByteRange::at(reader * SIZE / 64, 5000);
            (range, engine.read(&file, range.start, range.len()).await)
        })
    });
    let readers: Vec<_> = readers.collect();
    stage.source.pieces.add_permits(usize::try_from(THERE / PIECE).unwrap());
    for reader in join_all(readers).await {
        let (range, answer) = reader.unwrap();
        match answer {
            Ok(bytes) => assert!(range.end <= THERE && bytes == content(range), "{range}"),
            Err(error) => {
                assert!(range.end > THERE, "{range}: {error}");
                assert_eq!(error.kind(), Kind::Timeout, "{range}");
            }
        }
    }
    assert_eq!(first.await.unwrap().unwrap_err().kind(), Kind::Timeout);
    // The chunk was nobody's: its request goes on, and no byte is asked for twice.
    stage.source.pieces.add_permits(1000);
    until("the rest", || stage.file.claims.is_complete()).await;
    let bytes = stage.engine.read(&stage.file, SIZE - 5000, 5000).await.unwrap();
    assert!(bytes == content(ByteRange::at(SIZE - 5000, 5000)));
    assert_eq!(stage.source.requests.load(Ordering::SeqCst), 1);
}

// L10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_first_readers_make_one_request() {
    let stage = stage(100_000, EngineSettings::default()).await;
    stage.source.pieces.add_permits(1000);
    let readers = (0..32).map(|_| {
        let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
        tokio::spawn(async move { engine.read(&file, 0, 100_000).await.unwrap().len() })
    });
    for read in join_all(readers.collect::<Vec<_>>()).await {
        assert_eq!(read.unwrap(), 100_000);
    }
    assert_eq!(stage.source.requests.load(Ordering::SeqCst), 1);
}

// L22, H33: what a reader asked for goes on when he is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_gives_up_harms_nobody() {
    let stage = stage(4 * MIB, EngineSettings::default()).await;
    let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
    let leader = tokio::spawn(async move { engine.read(&file, 0, 4 * MIB).await.map(drop) });
    until("a request", || stage.source.requests.load(Ordering::SeqCst) > 0).await;
    let (engine, file) = (Arc::clone(&stage.engine), Arc::clone(&stage.file));
    let other = tokio::spawn(async move { engine.read(&file, MIB, 5000).await });
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    stage.source.pieces.add_permits(1000);
    assert!(other.await.unwrap().unwrap() == content(ByteRange::at(MIB, 5000)));
    until("everything", || stage.file.claims.is_complete()).await;
    assert_eq!(stage.source.requests.load(Ordering::SeqCst), 1);
}
