//! The whole tree in the background, in listing order, and then what comes later.

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::task::JoinSet;

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::core::phase::Phase;
use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::engine::changes::changed;
use crate::engine::file::LazyFile;
use crate::engine::listing::Listed;
use crate::engine::node::Node;
use crate::engine::room::LOOK;
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::verify::compare_files;
use crate::store::{Metadata, Replace};
use crate::sync::{AtomicU64, Ordering};

/// Times that a file which changes or fails is begun again within one run.
const TRIES: u32 = 3;

/// Pause before a file is begun again; longer each time.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Single entries that are copied at once.
const PATHS_AT_ONCE: usize = 64;

/// Whether a file that failed is worth another try within one run.
fn may_go_better(error: &Error) -> bool {
    error.is_transient() || matches!(error.kind(), Kind::Stale | Kind::Corrupt | Kind::Io)
}

/// One entry of a directory that is copied.
#[derive(Debug)]
struct Found {
    name: OsString,
    kind: EntryKind,
}

/// The copy of the whole tree, and of what comes later.
#[derive(Debug)]
pub struct Hydration {
    engine: Arc<Engine>,
    /// Directories that were copied or are under way: what comes later in them is told by [`Changes`](super::changes::Changes).
    begun: HashSet<u64>,
    failures: Arc<AtomicU64>,
}

/// One directory while its content is copied. It gets its own metadata when the last entry in it is there.
#[derive(Debug)]
struct DirectoryJob {
    node: Arc<Node>,
    parent: Option<Arc<DirectoryJob>>,
    /// Entries under way, plus one while it is scanned. AcqRel: who takes the last sees the work of all.
    open: AtomicU64,
}

impl DirectoryJob {
    fn new(node: Arc<Node>, parent: Option<Arc<DirectoryJob>>) -> Arc<Self> {
        Arc::new(Self { node, parent, open: AtomicU64::new(1) })
    }
}

impl Hydration {
    /// Nothing is copied yet.
    pub fn new(engine: &Arc<Engine>) -> Self {
        let failures = Arc::new(AtomicU64::new(0));
        Self { engine: Arc::clone(engine), begun: HashSet::new(), failures }
    }

    /// Copies everything. Returns the number of entries that could not be copied; each is in status and log.
    ///
    /// # Errors
    /// `Stale` if there is no root.
    pub async fn copy_tree(&mut self) -> Result<u64> {
        self.engine.changes.follow();
        let root = self.engine.node(ROOT_INO)?;
        self.engine.wait_for_source(&root).await;
        self.copy(vec![root]).await
    }

    /// Copies what is new in directories that were copied before. As [`Hydration::copy_tree`].
    ///
    /// # Errors
    /// A name that cannot be used.
    pub async fn copy_news(&mut self) -> Result<u64> {
        let directories = self.engine.changes.take_directories();
        let known = |ino: &u64| self.engine.node(*ino).ok();
        self.copy(directories.iter().filter_map(known).collect()).await
    }

    async fn copy(&mut self, directories: Vec<Arc<Node>>) -> Result<u64> {
        self.failures.store(0, Ordering::Release);
        let engine = Arc::clone(&self.engine);
        let mut stack: Vec<_> =
            directories.into_iter().map(|node| DirectoryJob::new(node, None)).collect();
        let mut tasks = JoinSet::new();
        while let Some(job) = stack.pop() {
            self.begun.insert(job.node.ino);
            let mut below = Vec::new();
            let scanned = engine.scan(&job).await;
            for entry in engine.note(&job.node.path(), scanned, &self.failures).unwrap_or_default()
            {
                job.open.fetch_add(1, Ordering::AcqRel);
                if entry.kind == EntryKind::Directory {
                    below.push(entry);
                    continue;
                }
                while tasks.len() >= engine.settings.hydrate.max_jobs.unwrap_or(64) {
                    tasks.join_next().await;
                }
                tasks.spawn(copy_entry(
                    Arc::clone(&engine),
                    Arc::clone(&job),
                    entry,
                    Arc::clone(&self.failures),
                ));
            }
            for entry in below.into_iter().rev() {
                let found = engine.lookup(job.node.ino, &entry.name).await;
                let path = job.node.path().child(&entry.name)?;
                match engine.note(&path, found, &self.failures) {
                    Some(node) if !self.begun.contains(&node.ino) => {
                        stack.push(DirectoryJob::new(node, Some(Arc::clone(&job))));
                    }
                    _ => engine.close(Arc::clone(&job), &self.failures).await,
                }
            }
            engine.close(job, &self.failures).await;
        }
        engine.until_recorded().await;
        engine.stats.scan_done.increment();
        while tasks.join_next().await.is_some() {}
        Ok(self.failures.load(Ordering::Acquire))
    }
}

async fn copy_entry(
    engine: Arc<Engine>,
    job: Arc<DirectoryJob>,
    entry: Found,
    failures: Arc<AtomicU64>,
) {
    let copied = engine.hydrate_entry(&job.node, &entry).await;
    let path = job.node.path().child(&entry.name).unwrap_or(job.node.path());
    engine.note(&path, copied, &failures);
    engine.close(job, &failures).await;
}

impl Engine {
    /// Waits for a source that was away at the start: what it cannot answer now is no failure of the copy.
    async fn wait_for_source(&self, root: &Node) {
        let path = root.path();
        while !root.is_confirmed() {
            match self.within_deadline("look at source", self.source.stat(&path)).await {
                Err(error) if error.is_transient() => {
                    self.is_source_away.store(true, Ordering::Relaxed);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Whatever else is wrong with it, the scan will say.
                _ => break,
            }
        }
        self.is_source_away.store(false, Ordering::Relaxed);
    }

    /// Whether the copy waits for its source.
    pub fn is_source_away(&self) -> bool {
        self.is_source_away.load(Ordering::Relaxed)
    }

    async fn scan(self: &Arc<Self>, job: &DirectoryJob) -> Result<Vec<Found>> {
        let listing = self.list(job.node.ino).await?;
        let (destination, path) = (Arc::clone(&self.destination), job.node.path());
        on_disk("make directory", move || destination.ensure_directory(&path))
            .await
            .map_err(Error::of_destination)?;
        let found = |entry: Listed<'_>| Found { name: entry.name.to_owned(), kind: entry.kind };
        Ok(listing.after(0).map(found).collect())
    }

    fn note<T>(&self, path: &RelPath, result: Result<T>, failures: &AtomicU64) -> Option<T> {
        match result {
            Ok(value) => {
                self.stats.errors.succeeded(path);
                Some(value)
            }
            Err(error) if error.kind() == Kind::NotFound => {
                self.stats.entries_vanished.increment();
                tracing::info!(%path, "vanished at the source");
                None
            }
            Err(error) => {
                failures.fetch_add(1, Ordering::AcqRel);
                self.stats.errors.failed(path, None, &error);
                tracing::warn!(%path, kind = %error.kind(), %error, "not copied");
                None
            }
        }
    }

    /// One entry of the directory is done; after the last one the directory gets its own metadata, and so on upwards.
    async fn close(self: &Arc<Self>, mut job: Arc<DirectoryJob>, failures: &AtomicU64) {
        while job.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The root is finished last, by itself.
            if job.node.ino != ROOT_INO {
                let finished = self.finish_directory(&job.node).await;
                self.note(&job.node.path(), finished, failures);
            }
            let Some(parent) = job.parent.clone() else { return };
            job = parent;
        }
    }

    /// Copies single entries, whose directories are there. As [`Hydration::copy_tree`].
    ///
    /// # Errors
    /// `Stale` if there is no root.
    pub async fn copy_paths(self: &Arc<Self>, paths: Vec<RelPath>) -> Result<u64> {
        let failures = AtomicU64::new(0);
        let at_once = self.settings.hydrate.max_jobs.unwrap_or(PATHS_AT_ONCE);
        let failed = &failures;
        let copied = stream::iter(paths).map(|path| async move {
            let copied = self.copy_path(&path).await;
            self.note(&path, copied, failed);
        });
        copied.buffer_unordered(at_once).collect::<()>().await;
        Ok(failures.load(Ordering::Acquire))
    }

    async fn copy_path(self: &Arc<Self>, path: &RelPath) -> Result<()> {
        let mut directory = self.node(ROOT_INO)?;
        for name in path.parent().iter().flat_map(RelPath::components) {
            directory = self.lookup(directory.ino, name).await?;
        }
        let node = self.lookup(directory.ino, path.name()).await?;
        let entry = Found { name: path.name().to_owned(), kind: node.kind() };
        self.hydrate_entry(&directory, &entry).await
    }

    async fn metadata_of(&self, node: &Node) -> Result<Metadata> {
        let path = node.path();
        let asked = self.source.xattrs(&path);
        let xattrs = self.within_deadline("read xattrs", asked).await?;
        Ok(Metadata { attributes: node.attributes(), xattrs })
    }

    async fn finish_directory(&self, node: &Node) -> Result<()> {
        let metadata = self.metadata_of(node).await?;
        let (destination, path) = (Arc::clone(&self.destination), node.path());
        let finish = move || destination.finish_directory(&path, &metadata);
        let losses = on_disk("finish directory", finish).await.map_err(Error::of_destination)?;
        self.stats.metadata_lost.add(losses.len() as u64);
        Ok(())
    }

    /// Removes the marker and gives DIR itself the metadata of the source's root.
    ///
    /// # Errors
    /// What the destination says.
    pub async fn finish_root(&self) -> Result<()> {
        let root = self.node(ROOT_INO)?;
        let metadata = match self.source.single_file() {
            Some(_) => None,
            None => Some(self.metadata_of(&root).await?),
        };
        let destination = Arc::clone(&self.destination);
        let losses = on_disk("finish destination", move || {
            destination.remove_marker()?;
            destination.finish_root(metadata.as_ref())
        })
        .await?;
        self.stats.metadata_lost.add(losses.len() as u64);
        Ok(())
    }

    async fn hydrate_entry(self: &Arc<Self>, directory: &Arc<Node>, entry: &Found) -> Result<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut node = self.lookup(directory.ino, &entry.name).await?;
            let path = directory.path().child(&entry.name)?;
            if !node.is_confirmed() {
                // Known from an earlier life only, and looked at while the source was away.
                let work = self.ask(directory, &entry.name, Priority::Hydration);
                node = self.within_deadline("look up", work).await?;
            }
            if self.changes.is_refused(node.ino) {
                return Err(changed(&path));
            }
            if node.kind() != EntryKind::File {
                return self.publish_special(&node, path).await;
            }
            let file = node.file()?;
            match self.hydrate_file(file).await {
                // No fault of the file.
                Err(error) if error.kind() == Kind::NoSpace && error.is_of_destination() => {
                    self.room.ran_out(&error);
                    self.wait_for_room().await;
                    tries -= 1;
                }
                Ok(()) if file.path == path => {
                    self.tree.leaving.insert(node.ino, ());
                    return Ok(());
                }
                Ok(()) => return self.publish_link(&file.path, path).await,
                // It may have changed or failed on its way: the next look starts over.
                Err(error) if tries < TRIES && may_go_better(&error) => {
                    tracing::debug!(%path, tries, %error, "begun again");
                    // What a reader gave up after its own deadline is no verdict on the file.
                    tokio::time::sleep(RETRY_PAUSE * tries).await;
                    file.claims.forget_failures();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn hydrate_file(self: &Arc<Self>, file: &Arc<LazyFile>) -> Result<()> {
        self.restore(file).await;
        if file.phase.get() == Phase::Published {
            return Ok(());
        }
        if self.adopt_if_candidate(file).await? {
            return Ok(());
        }
        // Young files first rest until they are settled: fetched once instead of twice.
        self.settle(file).await?;
        self.ensure_layout(file).await?;
        let whole = ByteRange::new(0, file.size());
        while !file.claims.is_complete() {
            if file.is_stale() {
                return Err(Error::new(Kind::Stale, "copy file").at(file.path.as_path()));
            }
            self.wait_for_room().await;
            let mut rest = whole;
            while !self.room.is_short()
                && let Some(permit) = self.background_permit().await
                && let Some(led) = self.lead_with(file, rest, Priority::Hydration, permit)
            {
                rest = ByteRange::new(led.end, whole.end);
            }
            match self.recent_failure(file, whole) {
                Some(error) if error.kind() == Kind::NoSpace => {
                    file.claims.forget_failures();
                    self.room.ran_out(&error);
                    continue;
                }
                Some(error) => return Err(error),
                None if self.room.is_short() => continue,
                None => {}
            }
            let waiter = file.claims.wait_for(whole);
            // Looked at once we are in the list: a chunk that ended before, or was taken back, wakes nobody.
            if let Some(mut waiter) = waiter
                && !file.claims.running().is_empty()
            {
                waiter.signal().await;
            }
        }
        self.seal_if_complete(file);
        self.published(file).await
    }

    /// Waits until the destination has room again; the beat of the daemon looks.
    async fn wait_for_room(&self) {
        while self.room.is_short() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn recent_failure(&self, file: &LazyFile, range: ByteRange) -> Option<Error> {
        file.claims.failed(range, std::time::Instant::now())
    }

    /// Publishes one more name of a published file. A file that has the name already is kept if it is the same or equal.
    async fn publish_link(&self, first: &RelPath, path: RelPath) -> Result<()> {
        let (destination, first) = (Arc::clone(&self.destination), first.clone());
        let lost = on_disk("publish hard link", move || {
            let error = match destination.publish_hard_link(&first, &path) {
                Ok(()) => return Ok(0),
                Err(error) if error.kind() == Kind::Exists => error,
                Err(error) => return Err(error),
            };
            let identity = |path| destination.existing(path).map(|found| found.map(|e| e.identity));
            if identity(&first)? == identity(&path)? {
                return destination.note_existing_link(&first, &path).map(|()| 0);
            }
            let (one, other) =
                (destination.open_published(&first)?, destination.open_published(&path)?);
            // Equal bytes under a name of their own: kept; only the link is lost.
            match compare_files(&one, &other)? {
                None => destination.note_existing_link(&first, &path).map(|()| 1),
                Some(_) => Err(error),
            }
        })
        .await
        .map_err(Error::of_destination)?;
        self.stats.metadata_lost.add(lost);
        Ok(())
    }

    async fn publish_special(self: &Arc<Self>, node: &Node, path: RelPath) -> Result<()> {
        let metadata = self.metadata_of(node).await?;
        let target = match node.kind() {
            EntryKind::Symlink => Some(self.readlink(node).await?),
            _ => None,
        };
        let destination = Arc::clone(&self.destination);
        let losses = on_disk("publish entry", move || {
            if destination.existing(&path)?.is_some() {
                // Compared before the start.
                return destination.note_existing(&path, metadata.attributes.kind).map(|()| 0);
            }
            let published = match target {
                Some(target) => {
                    destination.publish_symlink(&path, &target, &metadata, Replace::Never)
                }
                None => destination.publish_node(&path, &metadata, Replace::Never),
            };
            Ok(published?.map(|published| published.losses.len()).unwrap_or(1)) // 1: not possible here
        })
        .await
        .map_err(Error::of_destination)?;
        self.stats.metadata_lost.add(losses as u64);
        Ok(())
    }
}
