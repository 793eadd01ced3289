//! Laws of publishing: groups, the source's checksums, checkpoints by bytes, errors that are remembered.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lazycopy::core::attributes::{
    Attributes, Checksum, EntryKind, Fingerprint, Timestamp, Validator,
};
use lazycopy::core::filter::Filter;
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::engine::Engine;
use lazycopy::engine::hydrate::Hydration;
use lazycopy::engine::limits::LimitSettings;
use lazycopy::engine::settings::{EngineSettings, HydrateSettings};
use lazycopy::error::{Error, Kind, Result};
use lazycopy::source::{ByteStream, Entry, ListBatch, Source, Traits};
use lazycopy::store::catalog::{EntryPhase, EntryRecord, ProofClass};
use lazycopy::store::checksum::Summer;
use lazycopy::store::{Destination, DestinationOptions, Durability};
use tokio::sync::mpsc;

/// One file of the scripted source.
#[derive(Debug, Clone)]
struct Scripted {
    bytes: Vec<u8>,
    version: u64,
    checksum: Option<Checksum>,
    /// Changes by itself when its bytes have been read: a writer that never rests.
    restless: bool,
    /// Reads stop here and never go on.
    stops_at: Option<u64>,
    /// Seconds of its modification.
    modified: Option<i64>,
}

impl Scripted {
    fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let (checksum, stops_at, modified) = (None, None, None);
        Self { bytes: bytes.into(), version: 1, checksum, restless: false, stops_at, modified }
    }

    fn modified(self, seconds: i64) -> Self {
        Self { modified: Some(seconds), ..self }
    }

    fn summed(self, like: &Checksum) -> Self {
        let checksum = Some(sum(like, &self.bytes));
        Self { checksum, ..self }
    }

    fn attributes(&self) -> Attributes {
        let size = self.bytes.len() as u64;
        let validator = Validator::ETag(format!("\"{}\"", self.version));
        Attributes {
            fingerprint: Fingerprint { size, validator },
            checksum: self.checksum.clone(),
            modified: self.modified.map(|seconds| Timestamp { seconds, nanos: 0 }),
            ..super::attributes(EntryKind::File, size)
        }
    }
}

fn sum(like: &Checksum, bytes: &[u8]) -> Checksum {
    let mut summer = Summer::like(like);
    summer.update(bytes);
    summer.finish()
}

/// A directory of files that the test changes under way.
#[derive(Debug, Clone, Default)]
struct Many {
    files: Arc<Mutex<HashMap<String, Scripted>>>,
    bytes_sent: Arc<AtomicU64>,
    /// Questions for attributes and for bytes.
    asked: Arc<AtomicU64>,
}

impl Many {
    fn put(&self, name: &str, file: Scripted) {
        self.files.lock().unwrap().insert(name.to_owned(), file);
    }

    fn file(&self, path: &RelPath) -> Result<Scripted> {
        let files = self.files.lock().unwrap();
        let found = files.get(std::str::from_utf8(path.as_bytes()).unwrap()).cloned();
        found.ok_or_else(|| Error::new(Kind::NotFound, "stat"))
    }
}

#[async_trait]
impl Source for Many {
    fn display_name(&self) -> &str {
        "many"
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: false,
            has_modes: false,
            connections: 16,
            refresh: Duration::from_secs(60),
        }
    }

    async fn list(&self, _: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let entry = |(name, file): (&String, &Scripted)| Entry {
            name: name.into(),
            kind: EntryKind::File,
            attributes: Some(file.attributes()),
        };
        let entries = self.files.lock().unwrap().iter().map(entry).collect();
        drop(batches.send(ListBatch { entries, refused: 0 }).await);
        Ok(())
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match path.is_root() {
            true => Ok(super::attributes(EntryKind::Directory, 0)),
            false => Ok(self.file(path)?.attributes()),
        }
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let file = self.file(path)?;
        if file.attributes().fingerprint != *expected {
            return Err(Error::new(Kind::Stale, "read"));
        }
        if file.restless {
            let next = Scripted { version: file.version + 1, ..file.clone() };
            self.put(std::str::from_utf8(path.as_bytes()).unwrap(), next);
        }
        if file.stops_at.is_some_and(|stop| range.end > stop) {
            return Ok(stream::pending().boxed());
        }
        self.bytes_sent.fetch_add(range.len(), Ordering::Relaxed);
        let index = |offset: u64| usize::try_from(offset).unwrap();
        let bytes = file.bytes[index(range.start)..index(range.end)].to_vec();
        let pieces: Vec<_> =
            bytes.chunks(64 << 10).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(stream::iter(pieces).boxed())
    }
}

fn settings() -> EngineSettings {
    EngineSettings { reserve: Some(0), refresh: None, ..EngineSettings::default() }
}

/// An engine over `source`, as soon as an earlier one has left the destination.
async fn open_with(
    source: &Many,
    directory: &Path,
    options: DestinationOptions,
    settings: EngineSettings,
) -> Arc<Engine> {
    let destination = Arc::new(open_destination(directory, options).await);
    Engine::open(Arc::new(source.clone()), destination, settings).await.unwrap().0
}

/// A destination, as soon as an earlier engine has left it.
async fn open_destination(directory: &Path, options: DestinationOptions) -> Destination {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Destination::open(directory, options.clone()) {
            Ok(destination) => return destination,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What is recorded of a file when nobody uses the destination any more.
async fn entry_of(directory: &Path, name: &str) -> Option<EntryRecord> {
    let destination = open_destination(directory, DestinationOptions::default()).await;
    destination.catalog().entry(&path(name)).unwrap()
}

async fn open(source: &Many, directory: &Path) -> Arc<Engine> {
    open_with(source, directory, DestinationOptions::default(), settings()).await
}

/// Not on a tmpfs, whose syncs cost nothing.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn path(name: &str) -> RelPath {
    RelPath::root().child(name.as_ref()).unwrap()
}

fn content(number: u64) -> Vec<u8> {
    format!("content of file {number}").repeat(40).into_bytes()
}

/// A source of `count` small files.
fn small_files(count: u64) -> Many {
    let source = Many::default();
    (0..count).for_each(|number| source.put(&format!("f{number}"), Scripted::new(content(number))));
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_that_are_ready_together_share_their_syncs() {
    let (source, directory) = (small_files(400), directory());
    let engine = open(&source, directory.path()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    for number in 0..400 {
        let bytes = std::fs::read(directory.path().join(format!("f{number}"))).unwrap();
        assert_eq!(bytes, content(number));
    }
    let groups = engine.stats().groups_published.get();
    assert!((1..200).contains(&groups), "{groups} groups of 400 files");
    assert_eq!(engine.stats().proof_transfer.get(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_published_leaves_the_others_in_peace() {
    let (source, directory) = (small_files(100), directory());
    source.put("stale", Scripted { restless: true, ..Scripted::new("s") });
    let wrong = Some(Checksum::Md5(vec![7; 16]));
    source.put("corrupt", Scripted { checksum: wrong, ..Scripted::new("c") });
    source.put("taken", Scripted::new("ours"));
    let engine = open(&source, directory.path()).await;
    // Nobody looked for it before the start.
    std::fs::write(directory.path().join("taken"), "theirs").unwrap();
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 3);
    for number in 0..100 {
        let bytes = std::fs::read(directory.path().join(format!("f{number}"))).unwrap();
        assert_eq!(bytes, content(number));
    }
    assert!(!directory.path().join("corrupt").exists() && !directory.path().join("stale").exists());
    assert_eq!(std::fs::read(directory.path().join("taken")).unwrap(), b"theirs");
    let errors = engine.stats().errors.recent();
    for name in ["stale", "corrupt", "taken"] {
        assert!(errors.iter().any(|note| note.path == path(name)), "{name}: {errors:#?}");
    }
    assert_eq!(engine.stats().files_published(), 100);
}

// Whoever waits for chunks that ended, or were taken back, before he was in the list waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_whenever_they_are_read_fail_and_hold_nobody_up() {
    let (source, directory) = (Many::default(), directory());
    for number in 0..64 {
        let file = Scripted { restless: true, ..Scripted::new(content(number)) };
        source.put(&format!("f{number}"), file);
    }
    let engine = open(&source, directory.path()).await;
    let hydrated =
        tokio::time::timeout(Duration::from_secs(120), Hydration::new(&engine).copy_tree()).await;
    assert_eq!(hydrated.expect("hydration hangs").unwrap(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_contradict_the_sources_checksum_are_never_published() {
    for right in [Checksum::Sha256(vec![]), Checksum::Md5(vec![]), Checksum::Crc32c(vec![])] {
        let (source, directory) = (Many::default(), directory());
        let (said, is) = (sum(&right, b"what it says"), sum(&right, b"what it is"));
        source
            .put("file", Scripted { checksum: Some(said.clone()), ..Scripted::new("what it is") });
        let engine = open(&source, directory.path()).await;
        assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 1);
        assert!(!directory.path().join("file").exists());
        let errors = engine.stats().errors.recent();
        let names_both = |message: &str| {
            message.contains(&said.to_string()) && message.contains(&is.to_string())
        };
        assert!(errors.iter().any(|note| names_both(&note.message)), "{errors:#?}");
        assert_eq!(engine.stats().errors.entries_failed(), 1);
        assert_eq!(source.bytes_sent.load(Ordering::Relaxed), 3 * 10, "fetched three times");
        assert_eq!(engine.stats().files_published(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_fit_the_sources_checksum_are_counted_as_such() {
    let (source, directory) = (Many::default(), directory());
    let kinds = [Checksum::Sha256(vec![]), Checksum::Md5(vec![]), Checksum::Crc32c(vec![])];
    for (number, kind) in (0u64..).zip(&kinds) {
        source.put(&format!("f{number}"), Scripted::new(content(number)).summed(kind));
    }
    source.put("large", Scripted::new(vec![3; 3 << 20]).summed(&kinds[0]));
    source.put("plain", Scripted::new("plain"));
    let engine = open(&source, directory.path()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    assert_eq!(engine.stats().proof_source_checksum.get(), 4);
    assert_eq!(engine.stats().proof_transfer.get(), 1);
    engine.save().await;
    drop(engine);
    // Over a restart too.
    let engine = open(&source, directory.path()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    assert_eq!(engine.stats().proof_source_checksum.get(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_file_that_fits_the_sources_checksum_costs_no_byte_of_the_source() {
    let (source, directory) = (Many::default(), directory());
    source.put("file", Scripted::new("the same").summed(&Checksum::Sha256(vec![])));
    std::fs::write(directory.path().join("file"), "the same").unwrap();
    source.put("other", Scripted::new("other").summed(&Checksum::Sha256(vec![])));
    std::fs::write(directory.path().join("other"), "OTHER").unwrap();
    let engine = open(&source, directory.path()).await;
    engine.check_existing().await.unwrap();
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 1, "one is a conflict");
    assert_eq!(engine.stats().proof_source_checksum.get(), 1);
    assert_eq!(source.bytes_sent.load(Ordering::Relaxed), 5, "only what differs was compared");
    assert_eq!(std::fs::read(directory.path().join("other")).unwrap(), b"OTHER");
    let proof = |engine: &Engine| engine.stats().proof_source_checksum.get();
    engine.save().await;
    drop(engine);
    let engine = open(&source, directory.path()).await;
    let node = engine.lookup_path(&path("file")).await.unwrap();
    engine.prepare_open(&node).await.unwrap();
    assert_eq!(proof(&engine), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_landed_is_recorded_when_it_is_much_without_a_beat() {
    const MIB: u64 = 1 << 20;
    for (checkpoint_bytes, expected) in [(4 * MIB, 1..=16), (1 << 40, 0..=0)] {
        let (source, directory) = (Many::default(), directory());
        let file = Scripted { stops_at: Some(32 * MIB), ..Scripted::new(vec![1; 48 << 20]) };
        source.put("file", file);
        let settings = EngineSettings { checkpoint_bytes, ..settings() };
        let options = DestinationOptions::default();
        let engine = open_with(&source, directory.path(), options, settings).await;
        let node = engine.lookup_path(&path("file")).await.unwrap();
        let file = Arc::clone(node.file().unwrap());
        for offset in (0..32 * MIB).step_by(usize::try_from(2 * MIB).unwrap()) {
            engine.read(&file, offset, 2 << 20).await.unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while engine.stats().checkpoints.get() < *expected.start() {
            assert!(Instant::now() < deadline, "no checkpoint");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(expected.contains(&engine.stats().checkpoints.get()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_shown_in_later_lives_until_its_file_is_copied() {
    let (source, directory) = (small_files(3), directory());
    let wrong = Some(Checksum::Md5(vec![7; 16]));
    source.put("bad", Scripted { checksum: wrong, ..Scripted::new("bad") });
    let engine = open(&source, directory.path()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 1);
    let first = engine.stats().errors.recent();
    assert!(!first.is_empty() && first.iter().all(|note| note.path == path("bad")));
    engine.save().await;
    drop(engine);

    let engine = open(&source, directory.path()).await;
    let later = engine.stats().errors.recent();
    let of = |notes: &[lazycopy::store::catalog::ErrorNote]| -> Vec<_> {
        notes.iter().map(|note| (note.path.clone(), note.message.clone())).collect()
    };
    assert_eq!(of(&later), of(&first));
    source.put("bad", Scripted { version: 2, ..Scripted::new("good now") });
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    assert!(engine.stats().errors.recent().is_empty());
    engine.save().await;
    drop(engine);
    let engine = open(&source, directory.path()).await;
    assert!(engine.stats().errors.recent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paranoid_copy_syncs_each_file_by_itself_and_says_so_later() {
    let (source, directory) = (small_files(40), directory());
    let options = DestinationOptions { durability: Durability::Paranoid, ..Default::default() };
    let engine = open_with(&source, directory.path(), options, settings()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    assert_eq!(engine.stats().groups_published.get(), 0);
    assert_eq!(engine.stats().files_published(), 40);
    drop(engine);
    let engine = open(&small_files(0), directory.path()).await;
    drop(engine);
    let destination = open_destination(directory.path(), DestinationOptions::default()).await;
    let catalog = destination.catalog();
    assert_eq!(catalog.durability().unwrap(), Some(Durability::Normal), "the later life was not");
    let entry = catalog.entry(&path("f1")).unwrap().unwrap();
    assert!(matches!(entry.phase, EntryPhase::Published(_)));
    assert_eq!(entry.proof, Some(ProofClass::Transfer));
}

/// The line that sha256sum writes.
fn sha256sum(bytes: &[u8], name: &str) -> String {
    let sum = sum(&Checksum::Sha256(vec![]), bytes).to_string();
    format!("{}  {name}\n", sum.strip_prefix("sha-256 ").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_fit_the_checksum_file_beside_them_are_proven_by_the_source() {
    let (source, directory) = (Many::default(), directory());
    source.put("file", Scripted::new("the bytes").modified(7));
    source.put("file.sha256", Scripted::new(sha256sum(b"the bytes", "file")).modified(9));
    // Made first, for what came then.
    source.put("late", Scripted::new("late bytes").modified(7));
    source.put("late.sha256", Scripted::new(sha256sum(b"late bytes", "late")).modified(5));
    let engine = open(&source, directory.path()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    assert_eq!(engine.stats().proof_source_checksum.get(), 2);
    assert_eq!(engine.stats().proof_transfer.get(), 2, "the checksum files themselves");
    engine.save().await;
    drop(engine);
    let entry = entry_of(directory.path(), "file").await.unwrap();
    assert_eq!(entry.proof, Some(ProofClass::SourceChecksum));
    assert_eq!(entry.checksum, Some(sum(&Checksum::Sha256(vec![]), b"the bytes")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_file_counts_as_it_is_read() {
    let (source, directory) = (Many::default(), directory());
    let sidecar = sha256sum(b"the bytes", "file");
    source.put("file", Scripted::new("the bytes").modified(7));
    source.put("file.sha256", Scripted::new(sidecar.clone()).modified(9));
    let engine = open(&source, directory.path()).await;
    assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
    // Copied like any file, and read once more for its file.
    let used = engine.limits().usage();
    assert_eq!((used.requests, used.bytes), (3, 9 + 2 * sidecar.len() as u64));
    drop(engine);
    // A proof that may not be fetched is no missing one: its file waits.
    let directory = self::directory();
    let limits = LimitSettings { max_requests: Some(1), ..LimitSettings::default() };
    let filter = Filter::new(&[], &["*.sha256".to_owned()], &[]).unwrap();
    let hydrate = HydrateSettings { filter, ..HydrateSettings::default() };
    let settings = EngineSettings { limits, hydrate, ..settings() };
    let engine =
        open_with(&source, directory.path(), DestinationOptions::default(), settings).await;
    let copying = Arc::clone(&engine);
    let copy = tokio::spawn(async move { Hydration::new(&copying).copy_tree().await.unwrap() });
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.stats().errors.recent().is_empty() {
        assert!(Instant::now() < deadline, "nothing was refused");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.switch().stop().await.unwrap();
    assert_eq!(copy.await.unwrap(), 0);
    assert_eq!((engine.limits().usage().requests, engine.stats().entries_failed()), (1, 0));
    assert_eq!(engine.stats().proof_source_checksum.get(), 0);
    assert!(!directory.path().join("file").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_contradict_a_checksum_file_are_not_published_unless_it_is_older() {
    // Of the file and of the checksum file; `None` where nobody tells.
    for (file, sidecar, is_older) in [
        (Some(7), Some(7), false),
        (Some(7), Some(8), false),
        (None, None, false),
        (Some(7), Some(6), true),
    ] {
        let (source, directory) = (Many::default(), directory());
        source.put("file", Scripted { modified: file, ..Scripted::new("what it is") });
        let said = sha256sum(b"what it was", "file");
        source.put("file.sha256", Scripted { modified: sidecar, ..Scripted::new(said.clone()) });
        let engine = open(&source, directory.path()).await;
        let failed = Hydration::new(&engine).copy_tree().await.unwrap();
        assert_eq!(engine.stats().proof_source_checksum.get(), 0);
        if is_older {
            assert_eq!((failed, engine.stats().proof_transfer.get()), (0, 2));
            assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"what it is");
            engine.save().await;
            drop(engine);
            let entry = entry_of(directory.path(), "file").await.unwrap();
            assert_eq!(entry.checksum, None, "what is not true is not written down");
            continue;
        }
        assert_eq!(failed, 1);
        assert!(!directory.path().join("file").exists());
        let errors = engine.stats().errors.recent();
        let is = sha256sum(b"what it is", "");
        let names_both =
            |message: &str| message.contains(&said[..64]) && message.contains(&is[..64]);
        assert!(errors.iter().any(|note| names_both(&note.message)), "{errors:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_checksum_file_costs_no_question_more() {
    let mut asked = Vec::new();
    for sidecar in [None, Some(("other.sha256", 64 << 10)), Some(("f1.sha256", (64 << 10) + 1))] {
        let (source, directory) = (small_files(20), directory());
        if let Some((name, size)) = sidecar {
            source.put(name, Scripted::new(vec![b'#'; size]));
        }
        let engine = open(&source, directory.path()).await;
        assert_eq!(Hydration::new(&engine).copy_tree().await.unwrap(), 0);
        assert_eq!(engine.stats().proof_source_checksum.get(), 0);
        asked.push(source.asked.load(Ordering::Relaxed));
    }
    // Copying one more file: its attributes before it is published, and its bytes. One that is too large is asked for its size.
    assert_eq!(asked, [asked[0], asked[0] + 2, asked[0] + 3]);
}
