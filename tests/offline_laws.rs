//! Laws of the engine over two lives, the source away in the second: what was known is known, what was here is here, and nothing is
//! taken for deleted. On a source that the test writes and a real directory: no FUSE.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lazycopy::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::engine::settings::EngineSettings;
use lazycopy::engine::{Engine, ROOT_INO};
use lazycopy::error::{Error, Kind, Result};
use lazycopy::source::{ByteStream, Entry, ListBatch, Source, Traits};
use lazycopy::store::{Destination, DestinationOptions};
use tokio::sync::mpsc;

/// How a source answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// Every question fails at once.
    Away,
    /// No question is answered before that is over.
    Silent,
    /// A listing breaks off after its first entry.
    BreaksOff,
}

#[derive(Debug)]
struct World {
    entries: BTreeMap<Vec<u8>, Attributes>,
    mood: Mood,
}

/// A tree that a test changes at will.
#[derive(Debug, Clone)]
struct Scripted {
    world: Arc<Mutex<World>>,
    lists_attributes: bool,
    asked: Arc<AtomicUsize>,
}

fn attributes(kind: EntryKind, version: u64) -> Attributes {
    let size = if kind == EntryKind::File { 1000 } else { 0 };
    Attributes {
        mode: Some(0o640),
        ..Attributes::bare(
            kind,
            Fingerprint { size, validator: Validator::ETag(format!("\"{version}\"")) },
        )
    }
}

impl Scripted {
    fn new(lists_attributes: bool) -> Self {
        let world = World { entries: BTreeMap::new(), mood: Mood::Well };
        let source =
            Self { world: Arc::new(Mutex::new(world)), lists_attributes, asked: Arc::default() };
        source.put("", EntryKind::Directory, 1);
        source
    }

    fn put(&self, path: &str, kind: EntryKind, version: u64) {
        self.set(path, attributes(kind, version));
    }

    fn set(&self, path: &str, attributes: Attributes) {
        self.world.lock().unwrap().entries.insert(path.into(), attributes);
    }

    fn remove(&self, path: &str) {
        self.world.lock().unwrap().entries.remove(path.as_bytes());
    }

    fn is(&self, mood: Mood) {
        self.world.lock().unwrap().mood = mood;
    }

    fn mood(&self) -> Mood {
        self.world.lock().unwrap().mood
    }

    async fn answer<T>(&self, look: impl FnOnce(&World) -> Result<T>) -> Result<T> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        while self.mood() == Mood::Silent {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if self.mood() == Mood::Away {
            return Err(Error::new(Kind::Unreachable, "ask"));
        }
        look(&self.world.lock().unwrap())
    }
}

#[async_trait]
impl Source for Scripted {
    fn display_name(&self) -> &str {
        "scripted"
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: self.lists_attributes,
            is_remote: false,
            has_modes: true,
            connections: 4,
            refresh: Duration::from_secs(60),
        }
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let (entries, mood) = self
            .answer(|world| {
                let own = world.entries.get(directory.as_bytes());
                own.ok_or_else(|| Error::new(Kind::NotFound, "list"))?;
                let mut entries = Vec::new();
                for (path, attributes) in &world.entries {
                    let path =
                        path.split(|byte| *byte == b'/').try_fold(RelPath::root(), |path, name| {
                            path.child(std::str::from_utf8(name).unwrap().as_ref())
                        });
                    let Ok(path) = path else { continue };
                    if path.parent().as_ref() == Some(directory) {
                        entries.push(Entry {
                            name: path.name().to_owned(),
                            kind: attributes.kind,
                            attributes: self.lists_attributes.then(|| attributes.clone()),
                        });
                    }
                }
                Ok((entries, world.mood))
            })
            .await?;
        for entry in entries {
            drop(batches.send(ListBatch { entries: vec![entry], refused: 0 }).await);
            if mood == Mood::BreaksOff {
                return Err(Error::new(Kind::Unreachable, "list"));
            }
        }
        Ok(())
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.answer(|world| {
            let found = world.entries.get(path.as_bytes()).cloned();
            found.ok_or_else(|| Error::new(Kind::NotFound, "stat"))
        })
        .await
    }

    async fn readlink(&self, path: &RelPath) -> Result<OsString> {
        let target = format!("to {}", path.as_path().display());
        self.answer(|_| Ok(target.into())).await
    }

    async fn xattrs(&self, _: &RelPath) -> Result<Vec<(OsString, Vec<u8>)>> {
        self.answer(|_| Ok(vec![("user.x".into(), b"value".to_vec())])).await
    }

    async fn read(&self, _: &RelPath, range: ByteRange, _: &Fingerprint) -> Result<ByteStream> {
        let len = usize::try_from(range.len()).unwrap();
        self.answer(|_| Ok(stream::iter([Ok(Bytes::from(vec![b'x'; len]))]).boxed())).await
    }
}

fn settings() -> EngineSettings {
    EngineSettings {
        read_timeout: Some(Duration::from_secs(2)),
        refresh: Some(Duration::from_millis(1)),
        reserve: Some(0),
        start_deadline: Duration::from_secs(1),
        ..EngineSettings::default()
    }
}

async fn try_open(source: &Scripted, directory: &Path) -> Result<Arc<Engine>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let destination = loop {
        // The lock of an earlier life goes with its last task.
        match Destination::open(directory, DestinationOptions::default()) {
            Ok(destination) => break Arc::new(destination),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    Ok(Engine::open(Arc::new(source.clone()), destination, settings()).await?.0)
}

async fn open(source: &Scripted, directory: &Path) -> Arc<Engine> {
    try_open(source, directory).await.unwrap()
}

async fn end(engine: Arc<Engine>) {
    engine.save().await;
    drop(engine);
}

fn path(text: &str) -> RelPath {
    text.split('/').fold(RelPath::root(), |path, name| path.child(name.as_ref()).unwrap())
}

type Shown = Vec<(String, u64, u64, EntryKind)>;

/// What a directory lists: names, positions, numbers, kinds.
async fn listed(engine: &Arc<Engine>, ino: u64) -> Shown {
    let listing = engine.list(ino).await.unwrap();
    let show = |entry: lazycopy::engine::listing::Listed<'_>| {
        (entry.name.to_str().unwrap().to_owned(), entry.position, entry.ino, entry.kind)
    };
    listing.after(0).map(show).collect()
}

/// A source with a bit of everything, walked through once.
async fn walked(lists_attributes: bool) -> (Scripted, tempfile::TempDir, Vec<Shown>) {
    let source = Scripted::new(lists_attributes);
    for (path, kind) in [
        ("a", EntryKind::File),
        ("dir", EntryKind::Directory),
        ("dir/b", EntryKind::File),
        ("dir/empty", EntryKind::Directory),
        ("link", EntryKind::Symlink),
        ("unseen", EntryKind::Directory),
        ("unseen/c", EntryKind::File),
    ] {
        source.put(path, kind, 1);
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let engine = open(&source, directory.path()).await;
    let mut shown = vec![listed(&engine, ROOT_INO).await];
    for name in ["a", "dir", "link", "unseen"] {
        engine.lookup(ROOT_INO, name.as_ref()).await.unwrap();
    }
    let link = engine.lookup(ROOT_INO, "link".as_ref()).await.unwrap();
    engine.readlink(&link).await.unwrap();
    let dir = engine.lookup(ROOT_INO, "dir".as_ref()).await.unwrap();
    shown.push(listed(&engine, dir.ino).await);
    let empty = engine.lookup(dir.ino, "empty".as_ref()).await.unwrap();
    shown.push(listed(&engine, empty.ino).await);
    let a = engine.lookup_path(&path("a")).await.unwrap();
    engine.xattrs(&a).await.unwrap();
    let file = Arc::clone(a.file().unwrap());
    assert_eq!(engine.read(&file, 0, 1000).await.unwrap(), [b'x'; 1000]);
    let b = engine.lookup_path(&path("dir/b")).await.unwrap();
    drop((link, dir, empty, a, b, file));
    end(engine).await;
    (source, directory, shown)
}

async fn nothing_is_missing(engine: &Arc<Engine>, before: &[Shown]) {
    assert_eq!(listed(engine, ROOT_INO).await, before[0]);
    let dir = engine.lookup(ROOT_INO, "dir".as_ref()).await.unwrap();
    assert_eq!(listed(engine, dir.ino).await, before[1]);
    let empty = engine.lookup(dir.ino, "empty".as_ref()).await.unwrap();
    assert_eq!(listed(engine, empty.ino).await, before[2]);
    let numbers: BTreeMap<&str, u64> =
        before.iter().flatten().map(|(name, _, ino, _)| (name.as_str(), *ino)).collect();
    for name in ["a", "dir", "link", "unseen"] {
        let node = engine.lookup(ROOT_INO, name.as_ref()).await.unwrap();
        assert_eq!(node.ino, numbers[name], "{name}");
        assert_eq!(node.attributes().kind, node.kind());
    }
    let link = engine.lookup(ROOT_INO, "link".as_ref()).await.unwrap();
    assert_eq!(engine.readlink(&link).await.unwrap(), "to link");
    let a = engine.lookup(ROOT_INO, "a".as_ref()).await.unwrap();
    assert_eq!(a.attributes().mode, Some(0o640));
    assert_eq!(engine.xattrs(&a).await.unwrap()[0].1, b"value");
    let bytes = engine.read(a.file().unwrap(), 0, 1000).await.unwrap();
    assert_eq!(bytes, [b'x'; 1000], "what was here is here");
}

async fn the_rest_is_an_error(engine: &Arc<Engine>) {
    let unseen = engine.lookup(ROOT_INO, "unseen".as_ref()).await.unwrap();
    let is_away = |error: &Error| matches!(error.kind(), Kind::Unreachable | Kind::Timeout);
    let error = engine.list(unseen.ino).await.unwrap_err();
    assert!(is_away(&error), "a directory that was never listed is not empty: {error}");
    for (parent, name) in [(unseen.ino, "c"), (ROOT_INO, "never heard of")] {
        let error = engine.lookup(parent, name.as_ref()).await.unwrap_err();
        assert!(is_away(&error), "{name}: {error}");
    }
    let b = engine.lookup_path(&path("dir/b")).await.unwrap();
    let error = engine.read(b.file().unwrap(), 0, 1000).await.unwrap_err();
    assert!(is_away(&error), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_source_away_everything_known_is_there_and_the_rest_is_an_error() {
    for lists_attributes in [true, false] {
        for mood in [Mood::Away, Mood::Silent] {
            let (source, directory, before) = walked(lists_attributes).await;
            source.is(mood);
            let engine = open(&source, directory.path()).await;
            nothing_is_missing(&engine, &before).await;
            the_rest_is_an_error(&engine).await;
            source.is(Mood::Well);
            let unseen = engine.lookup(ROOT_INO, "unseen".as_ref()).await.unwrap();
            assert_eq!(listed(&engine, unseen.ino).await.len(), 1, "it is used once it is back");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_catalog_a_source_that_is_away_is_an_error() {
    let source = Scripted::new(true);
    source.is(Mood::Away);
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let error = try_open(&source, directory.path()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_between_two_lives_is_seen_at_once() {
    for lists_attributes in [true, false] {
        let (source, directory, before) = walked(lists_attributes).await;
        source.put("a", EntryKind::File, 2);
        source.remove("dir/b");
        source.put("unseen", EntryKind::File, 1);
        source.remove("unseen/c");
        source.put("dir/new", EntryKind::File, 1);
        let engine = open(&source, directory.path()).await;
        let a = engine.lookup(ROOT_INO, "a".as_ref()).await.unwrap();
        assert_ne!(a.ino, before[0].iter().find(|(name, ..)| name == "a").unwrap().2);
        let gone = engine.lookup_path(&path("dir/b")).await.unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
        let unseen = engine.lookup(ROOT_INO, "unseen".as_ref()).await.unwrap();
        assert_eq!(unseen.kind(), EntryKind::File);
        let dir = engine.lookup(ROOT_INO, "dir".as_ref()).await.unwrap();
        let names: Vec<_> = listed(&engine, dir.ino).await.into_iter().map(|one| one.0).collect();
        assert_eq!(names, ["empty", "new"]);
        end(engine).await;
        // And the catalog has learnt it.
        source.is(Mood::Away);
        let engine = open(&source, directory.path()).await;
        let error = engine.lookup_path(&path("dir/b")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable, "gone, but who can tell now?");
        let dir = engine.lookup(ROOT_INO, "dir".as_ref()).await.unwrap();
        assert_eq!(listed(&engine, dir.ino).await.len(), 2);
        assert_eq!(engine.lookup(ROOT_INO, "a".as_ref()).await.unwrap().ino, a.ino);
    }
}

// A listing that broke off would hide what came after.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_listing_is_none_in_the_next_life() {
    for lists_attributes in [true, false] {
        let source = Scripted::new(lists_attributes);
        ["a", "b", "c"].iter().for_each(|name| source.put(name, EntryKind::File, 1));
        source.is(Mood::BreaksOff);
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let engine = open(&source, directory.path()).await;
        assert!(engine.list(ROOT_INO).await.is_err());
        end(engine).await;
        source.is(Mood::Away);
        let engine = open(&source, directory.path()).await;
        assert_eq!(engine.list(ROOT_INO).await.unwrap_err().kind(), Kind::Unreachable);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_names_of_one_file_have_one_number_and_one_set_of_bytes_in_every_life() {
    let source = Scripted::new(true);
    for name in ["first", "second"] {
        let linked =
            Attributes { link_count: 2, identity: Some((7, 7)), ..attributes(EntryKind::File, 1) };
        source.set(name, linked);
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let engine = open(&source, directory.path()).await;
    engine.list(ROOT_INO).await.unwrap();
    let node = engine.lookup(ROOT_INO, "first".as_ref()).await.unwrap();
    assert_eq!(engine.read(node.file().unwrap(), 0, 1000).await.unwrap().len(), 1000);
    let ino = node.ino;
    drop(node);
    end(engine).await;
    source.is(Mood::Away);
    let engine = open(&source, directory.path()).await;
    for name in ["second", "first"] {
        let node = engine.lookup(ROOT_INO, name.as_ref()).await.unwrap();
        assert_eq!(node.ino, ino, "{name}");
        let bytes = engine.read(node.file().unwrap(), 0, 1000).await.unwrap();
        assert_eq!(bytes, [b'x'; 1000], "{name}");
    }
}

// A blackholed source cost the whole deadline for each name that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_source_costs_one_deadline_and_not_one_for_every_name() {
    let source = Scripted::new(true);
    let names: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    names.iter().for_each(|name| source.put(name, EntryKind::File, 1));
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let engine = open(&source, directory.path()).await;
    engine.list(ROOT_INO).await.unwrap();
    end(engine).await;
    source.is(Mood::Silent);
    let engine = open(&source, directory.path()).await;
    let begun = Instant::now();
    for name in &names {
        engine.lookup(ROOT_INO, name.as_ref()).await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?} for 20 names", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_forgot_leaves_memory_and_comes_back_as_it_was() {
    let (source, directory, _) = walked(true).await;
    let engine = open(&source, directory.path()).await;
    engine.list(ROOT_INO).await.unwrap();
    let name = OsStr::new("a");
    let node = engine.lookup_for_kernel(ROOT_INO, name).await.unwrap();
    let (ino, attributes) = (node.ino, node.attributes());
    drop(node);
    engine.save().await;
    engine.forget(ino, 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.known(ROOT_INO, name).is_some() {
        assert!(Instant::now() < deadline, "it stays in memory");
        tokio::time::sleep(Duration::from_millis(5)).await;
        engine.tidy();
    }
    assert!(engine.node(ino).is_err());
    source.is(Mood::Away);
    let node = engine.lookup_for_kernel(ROOT_INO, name).await.unwrap();
    assert_eq!((node.ino, node.attributes()), (ino, attributes));
    // What somebody still uses stays.
    engine.forget(ino, 1);
    engine.tidy();
    assert!(Arc::ptr_eq(&engine.node(ino).unwrap(), &node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_file_that_left_memory_and_came_back_is_counted_once() {
    let source = Scripted::new(true);
    source.put("a", EntryKind::File, 1);
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let engine = open(&source, directory.path()).await;
    let name = OsStr::new("a");
    let deadline = Instant::now() + Duration::from_secs(20);
    for round in 0..3 {
        let node = engine.lookup_for_kernel(ROOT_INO, name).await.unwrap();
        engine.prepare_open(&node).await.unwrap();
        let file = Arc::clone(node.file().unwrap());
        assert_eq!(engine.read(&file, 0, 1000).await.unwrap(), [b'x'; 1000]);
        while file.phase.get() != lazycopy::core::phase::Phase::Published {
            assert!(Instant::now() < deadline, "never published");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(engine.stats().files_published(), 1, "round {round}");
        let ino = node.ino;
        drop((node, file));
        engine.save().await;
        engine.forget(ino, 1);
        while engine.known(ROOT_INO, name).is_some() {
            assert!(Instant::now() < deadline, "it stays in memory");
            tokio::time::sleep(Duration::from_millis(5)).await;
            engine.tidy();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_shows_nothing_new_is_not_written_again() {
    let (source, directory, before) = walked(true).await;
    let engine = open(&source, directory.path()).await;
    for _ in 0..3 {
        assert_eq!(listed(&engine, ROOT_INO).await, before[0]);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert!(source.asked.load(Ordering::Relaxed) > 3, "it was asked each time");
    assert_eq!(engine.stats().files_known.get(), 2, "a, dir/b");
}

// The catalog forgets a moment later than memory: who looks into it in between must not bring the name back.
#[test]
fn a_name_that_vanished_is_not_recorded_again_by_who_reads_the_catalog_meanwhile() {
    // One thread for the disk: who waits for it stands in line between the end of a listing and the recording of it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let source = Scripted::new(true);
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let names: Vec<String> = (0..20).map(|number| format!("file-{number}")).collect();
        names.iter().for_each(|name| source.put(name, EntryKind::File, 1));
        let engine = open(&source, directory.path()).await;
        let known = engine.list(ROOT_INO).await.unwrap();
        assert_eq!(known.len(), 20);
        engine.save().await;
        let root = engine.node(ROOT_INO).unwrap();
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (engine, root, known) =
                (Arc::clone(&engine), Arc::clone(&root), Arc::clone(&known));
            readers.spawn(async move {
                loop {
                    engine.recall_listed(&root, &known, 0, 20).await;
                }
            });
        }
        for name in &names {
            source.remove(name);
            let deadline = Instant::now() + Duration::from_secs(20);
            // A listing that is a moment old is not asked for again.
            while engine.list(ROOT_INO).await.unwrap().find(name.as_ref()).is_some() {
                assert!(Instant::now() < deadline, "never listed without {name}");
                tokio::task::yield_now().await;
            }
        }
        readers.shutdown().await;
        engine.save().await;
        for name in &names {
            assert!(engine.known(ROOT_INO, name.as_ref()).is_none(), "{name} is in memory again");
            let recorded = engine.destination().catalog().name(ROOT_INO, name.as_ref()).unwrap();
            assert!(recorded.is_none(), "{name} is recorded again");
        }
    });
}
