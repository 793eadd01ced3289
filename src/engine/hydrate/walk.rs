//! The walk: directories are listed ahead of the workers, depth first, several at once, and nothing of them is held but their listings.

use std::ffi::OsString;
use std::sync::Arc;

use crate::core::filter::Scope;
use crate::core::path::RelPath;
use crate::core::priority::Priority;
use crate::engine::hydrate::content::{Digest, Directories, Entries};
use crate::engine::listing::Listing;
use crate::engine::node::{Body, Node};
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, Ordering};

/// One directory while its content is copied. It gets its own metadata when the last entry in it is there.
#[derive(Debug)]
pub(super) struct DirectoryJob {
    pub(super) node: Arc<Node>,
    pub(super) scope: Scope,
    /// What is left out of it is counted and told; once, however often it is looked through.
    pub(super) is_counted: bool,
    parent: Option<Arc<DirectoryJob>>,
    /// What is under way in it: entries, directories, the walk through both. AcqRel: who takes the last sees the work of all.
    open: AtomicU64,
}

impl DirectoryJob {
    fn new(
        node: Arc<Node>,
        scope: Scope,
        is_counted: bool,
        parent: Option<Arc<DirectoryJob>>,
    ) -> Arc<Self> {
        Arc::new(Self { node, scope, is_counted, parent, open: AtomicU64::new(1) })
    }

    /// Not kept: the paths of 10 000 levels would be 100 MB.
    pub(super) fn path(&self) -> RelPath {
        self.node.path()
    }

    /// One more is under way in it.
    pub(super) fn begin(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    /// One that is not the last has ended.
    pub(super) fn end_one(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for DirectoryJob {
    fn drop(&mut self) {
        // One by one: a tree may be deeper than the stack.
        let mut parent = self.parent.take();
        while let Some(mut job) = parent.and_then(Arc::into_inner) {
            parent = job.parent.take();
        }
    }
}

/// What a walk begins with.
#[derive(Debug)]
pub(super) enum Errand {
    /// A directory and everything below it.
    All(Arc<Node>, Scope),
    /// One in which there is something new since it was copied, and what is new below it.
    Again(Arc<Node>, Scope),
    /// A directory in a directory.
    Child(Arc<DirectoryJob>, OsString),
    /// Some entries of a directory.
    Some(RelPath, Vec<OsString>),
}

/// A directory that was looked through.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) job: Arc<DirectoryJob>,
    pub(super) directories: Option<Directories>,
    pub(super) entries: Option<Entries>,
    /// Entries that it takes in memory.
    pub(super) weight: usize,
}

impl Engine {
    /// Goes on an errand: finds and lists a directory. What fails is noted; `None` = nothing is to be done in it.
    pub(super) async fn scan(
        self: Arc<Self>,
        errand: Errand,
        failures: Arc<AtomicU64>,
    ) -> Option<Scanned> {
        let scanned = match errand {
            Errand::All(node, scope) => {
                let job = DirectoryJob::new(node, scope, true, None);
                self.scan_directory(job, &failures).await
            }
            Errand::Again(node, scope) => {
                let job = DirectoryJob::new(node, scope, false, None);
                self.scan_directory(job, &failures).await
            }
            Errand::Child(parent, name) => {
                let found = self.lookup_as(Priority::Hydration, parent.node.ino, &name).await;
                let above = parent.path();
                let path = above.child(&name).ok()?;
                let scope = self.settings.hydrate.filter.below(parent.scope, &above, &name, true);
                match self.note(&path, found, &failures) {
                    Some(node) if matches!(node.body, Body::Directory(_)) => {
                        let job = DirectoryJob::new(node, scope, true, Some(parent));
                        self.scan_directory(job, &failures).await
                    }
                    _ => {
                        self.close(parent, &failures).await;
                        None
                    }
                }
            }
            Errand::Some(directory, names) => self.scan_names(&directory, names, &failures).await,
        };
        self.board.walk.directories_listed.increment();
        scanned
    }

    async fn scan_directory(
        self: &Arc<Self>,
        job: Arc<DirectoryJob>,
        failures: &AtomicU64,
    ) -> Option<Scanned> {
        let looked = self.look_through(&job).await;
        let Some((listing, digest)) = self.note(&job.path(), looked, failures) else {
            self.close(job, failures).await;
            return None;
        };
        if job.is_counted {
            self.stats.files_skipped.add(digest.skipped);
            self.stats.bytes_skipped.add(digest.skipped_bytes);
        }
        self.board.walk.directories_found.add(digest.directories);
        self.board.walk.entries_found.add(digest.entries);
        let is_ranked = !digest.rows.is_empty();
        let entries = digest.first_entry.map(|next| match is_ranked {
            true => Entries::Ranked { listing: Arc::clone(&listing), rows: digest.rows },
            false => Entries::Listed { listing: Arc::clone(&listing), next },
        });
        let weight = listing.len();
        let directories = digest.first_directory.map(|next| Directories::Listed { listing, next });
        self.scanned(job, directories, entries, weight, failures).await
    }

    /// What was found keeps the directory open; where nothing was, it is done.
    async fn scanned(
        self: &Arc<Self>,
        job: Arc<DirectoryJob>,
        directories: Option<Directories>,
        entries: Option<Entries>,
        weight: usize,
        failures: &AtomicU64,
    ) -> Option<Scanned> {
        let parts = usize::from(directories.is_some()) + usize::from(entries.is_some());
        (0..parts).for_each(|_| job.begin());
        self.close(Arc::clone(&job), failures).await;
        (parts > 0).then_some(Scanned { job, directories, entries, weight })
    }

    async fn look_through(
        self: &Arc<Self>,
        job: &Arc<DirectoryJob>,
    ) -> Result<(Arc<Listing>, Digest)> {
        if !matches!(self.try_list(job.node.ino), Some(Ok(_))) {
            self.limits.until_asked_again().await;
        }
        let listing = self.list(job.node.ino).await?;
        let (engine, job) = (Arc::clone(self), Arc::clone(job));
        on_disk("make directory", move || {
            if job.scope == Scope::Copied {
                let made = engine.destination.ensure_directory(&job.path());
                made.map_err(Error::of_destination)?;
            }
            let digest = engine.digest(&job, &listing);
            Ok((listing, digest))
        })
        .await
    }

    /// Some entries of a directory, to be tried again.
    async fn scan_names(
        self: &Arc<Self>,
        directory: &RelPath,
        names: Vec<OsString>,
        failures: &AtomicU64,
    ) -> Option<Scanned> {
        let found = self.lookup_path(directory).await;
        let node = self.note(directory, found, failures)?;
        let scope = self.settings.hydrate.filter.scope(directory, true);
        let job = DirectoryJob::new(node, scope, false, None);
        let (mut directories, mut entries) = (Vec::new(), Vec::new());
        for name in names {
            let found = self.lookup_as(Priority::Hydration, job.node.ino, &name).await;
            let Ok(path) = directory.child(&name) else { continue };
            let node = match found {
                Ok(node) => node,
                Err(error) => {
                    let failed: Result<()> = Err(error);
                    self.note(&path, failed, failures);
                    continue;
                }
            };
            match &node.body {
                Body::Directory(_) => directories.push(name),
                Body::File(file) => {
                    // A memory of the failure is no new one.
                    file.get().inspect(|file| file.claims.forget_failures());
                    entries.push(name);
                }
                _ => entries.push(name),
            }
        }
        self.board.walk.directories_found.add(directories.len() as u64);
        let weight = entries.len();
        let directories = (!directories.is_empty()).then_some(Directories::Named(directories));
        let entries = (!entries.is_empty()).then_some(Entries::Named(entries));
        self.scanned(job, directories, entries, weight, failures).await
    }

    /// One that was under way in the directory is done; after the last one the directory gets its own metadata, and so on upwards.
    pub(super) async fn close(self: &Arc<Self>, mut job: Arc<DirectoryJob>, failures: &AtomicU64) {
        while job.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The root is finished last, by itself.
            if job.node.ino != ROOT_INO {
                let finished = self.finish_directory(&job).await;
                // What else was wrong with it stays known.
                if let Err(error) = finished {
                    self.note_failed(&job.path(), &error, failures);
                }
            }
            let Some(parent) = job.parent.clone() else { return };
            job = parent;
        }
    }

    async fn finish_directory(&self, job: &DirectoryJob) -> Result<()> {
        if job.scope != Scope::Copied {
            // There only if something in it was copied.
            let (destination, path) = (Arc::clone(&self.destination), job.path());
            let existing = on_disk("look at directory", move || destination.existing(&path)).await;
            if existing.map_err(Error::of_destination)?.is_none() {
                return Ok(());
            }
        }
        self.place_directory(&job.node).await
    }
}
