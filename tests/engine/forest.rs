//! A tree that a test writes down, whose answers wait until the test lets them go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lazycopy::core::attributes::{Attributes, EntryKind, Fingerprint};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind, Result};
use lazycopy::source::{ByteStream, Entry, ListBatch, Source, Traits};
use tokio::sync::{Semaphore, mpsc};

use super::attributes;

/// Bytes of one piece of an answer.
const PIECE: u64 = 128 * 1024;

/// The tree, and what was asked of it.
#[derive(Debug)]
pub(super) struct Forest {
    /// Files by path, with their sizes.
    files: BTreeMap<String, u64>,
    directories: BTreeSet<String>,
    connections: usize,
    tells_sizes: bool,
    log: Arc<Log>,
}

/// What was asked, and what may be answered.
#[derive(Debug)]
pub(super) struct Log {
    /// Reads in the order in which they began.
    begun: Mutex<Vec<(String, ByteRange)>>,
    running: Mutex<Vec<String>>,
    /// Most reads that ran at once in one directory.
    most_in_one: Mutex<usize>,
    listed: Mutex<Vec<String>>,
    /// One for each piece that may be sent.
    pub(super) pieces: Semaphore,
    /// One for each entry of the directories in `slow`.
    pub(super) listings: Semaphore,
    pub(super) slow: Mutex<BTreeSet<String>>,
    /// Files that cannot be read.
    pub(super) denied: Mutex<BTreeSet<String>>,
}

impl Log {
    pub(super) fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn running(&self) -> usize {
        self.running.lock().unwrap().len()
    }

    pub(super) fn most_in_one(&self) -> usize {
        *self.most_in_one.lock().unwrap()
    }

    pub(super) fn listed(&self) -> Vec<String> {
        self.listed.lock().unwrap().clone()
    }

    /// Lets everything go.
    pub(super) fn open(&self) {
        self.pieces.add_permits(1 << 20);
        self.listings.add_permits(1 << 20);
    }
}

/// Counts a read while it runs.
struct Running(Arc<Log>, String);

fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

impl Running {
    fn new(log: &Arc<Log>, path: &str) -> Self {
        let mut running = log.running.lock().unwrap();
        running.push(path.to_owned());
        let same = |other: &&String| directory_of(other) == directory_of(path);
        let here = running.iter().filter(same).count();
        let mut most = log.most_in_one.lock().unwrap();
        *most = here.max(*most);
        drop((most, running));
        Self(Arc::clone(log), path.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.0.running.lock().unwrap();
        let at = running.iter().position(|path| *path == self.1).unwrap();
        running.swap_remove(at);
    }
}

impl Forest {
    pub(super) fn new(connections: usize, files: impl IntoIterator<Item = (String, u64)>) -> Self {
        let files: BTreeMap<String, u64> = files.into_iter().collect();
        let mut directories = BTreeSet::new();
        for path in files.keys() {
            let mut at = path.as_str();
            while !at.is_empty() {
                at = directory_of(at);
                if !directories.insert(at.to_owned()) {
                    break;
                }
            }
        }
        let log = Log {
            begun: Mutex::default(),
            running: Mutex::default(),
            most_in_one: Mutex::default(),
            listed: Mutex::default(),
            pieces: Semaphore::new(0),
            listings: Semaphore::new(0),
            slow: Mutex::default(),
            denied: Mutex::default(),
        };
        Self { files, directories, connections, tells_sizes: true, log: Arc::new(log) }
    }

    /// Listings tell names only, as those of HTTP.
    #[must_use]
    pub(super) fn without_sizes(mut self) -> Self {
        self.tells_sizes = false;
        self
    }

    pub(super) fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    fn attributes(&self, path: &str) -> Result<Attributes> {
        if self.directories.contains(path) || path.is_empty() {
            return Ok(attributes(EntryKind::Directory, 0));
        }
        let size = self.files.get(path).ok_or_else(|| Error::new(Kind::NotFound, "stat"))?;
        Ok(attributes(EntryKind::File, *size))
    }

    fn children(&self, directory: &str) -> BTreeSet<String> {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let below = |path: &String| {
            let rest = path.strip_prefix(&prefix).filter(|rest| !rest.is_empty())?;
            (!rest.contains('/')).then(|| rest.to_owned())
        };
        let end = format!("{prefix}\u{10ffff}");
        let files = self.files.range(prefix.clone()..end.clone()).map(|(path, _)| path);
        let directories = self.directories.range(prefix.clone()..end);
        files.chain(directories).filter_map(below).collect()
    }
}

fn text(path: &RelPath) -> String {
    path.as_path().to_str().unwrap().to_owned()
}

/// The byte of a file at an offset.
pub(super) fn byte_at(offset: u64) -> u8 {
    u8::try_from((offset * 31 + offset / 251) % 251).unwrap()
}

#[async_trait]
impl Source for Forest {
    fn display_name(&self) -> &str {
        "forest"
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: self.tells_sizes,
            is_remote: false,
            has_modes: false,
            connections: self.connections,
            refresh: Duration::from_secs(600),
        }
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let directory = text(directory);
        self.log.listed.lock().unwrap().push(directory.clone());
        let is_slow = self.log.slow.lock().unwrap().contains(&directory);
        for name in self.children(&directory) {
            if is_slow {
                self.log.listings.acquire().await.unwrap().forget();
            }
            let path =
                if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
            let attributes = self.attributes(&path)?;
            let kind = attributes.kind;
            let attributes = self.tells_sizes.then_some(attributes);
            let entry = Entry { name: name.into(), kind, attributes };
            drop(batches.send(ListBatch { entries: vec![entry], refused: 0 }).await);
        }
        Ok(())
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.attributes(&text(path))
    }

    async fn read(&self, path: &RelPath, range: ByteRange, _: &Fingerprint) -> Result<ByteStream> {
        let path = text(path);
        self.log.begun.lock().unwrap().push((path.clone(), range));
        if self.log.denied.lock().unwrap().contains(&path) {
            return Err(Error::new(Kind::Denied, "read"));
        }
        let running = Arc::new(Mutex::new(Some(Running::new(&self.log, &path))));
        let starts = (0..range.len().div_ceil(PIECE)).map(move |n| range.start + n * PIECE);
        let log = Arc::clone(&self.log);
        let pieces = stream::iter(starts).then(move |start| {
            let (log, running) = (Arc::clone(&log), Arc::clone(&running));
            async move {
                log.pieces.acquire().await.unwrap().forget();
                let end = (start + PIECE).min(range.end);
                if end == range.end {
                    // Nothing more comes of it.
                    drop(running.lock().unwrap().take());
                }
                Ok(Bytes::from_iter((start..end).map(byte_at)))
            }
        });
        Ok(pieces.boxed())
    }
}

/// Waits until `look` gives something.
pub(super) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
