//! What directories list, and the attributes of siblings ahead of who walks.
//!
//! A listing is asked for again when it is older than the refresh time; if the source does not answer within a moment, the old one is
//! answered. Entries keep their positions, so that a walk in progress neither skips nor repeats.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::core::attributes::EntryKind;
use crate::core::flight::Boarded;
use crate::core::priority::Priority;
use crate::engine::node::{Body, Directory, Node};
use crate::engine::{Engine, ROOT_INO};
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};
use crate::store::RESERVED_NAMES;
use crate::sync::{AtomicU64, Ordering};

/// Attributes asked for ahead of who walks a directory.
const PREFETCH_SIBLINGS: u64 = 32;
/// Batches of a listing in transit.
const LIST_BATCHES: usize = 16;

/// What a directory holds, at one time.
#[derive(Debug)]
pub struct Listing {
    /// In order of position.
    pub entries: Vec<Listed>,
    by_name: HashMap<OsString, usize>,
    listed_ms: AtomicU64,
    next_position: u64,
}

/// One entry of a listing.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Keeps its value as long as the name stays in the directory: a cookie for readdir. From 1 on.
    pub position: u64,
    /// Inode number when it was listed.
    pub ino: u64,
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

impl Listing {
    /// The entries after position `after` (0 = from the start).
    pub fn after(&self, after: u64) -> &[Listed] {
        &self.entries[self.entries.partition_point(|entry| entry.position <= after)..]
    }

    /// The entry called `name`.
    pub fn find(&self, name: &OsStr) -> Option<&Listed> {
        self.by_name.get(name).map(|index| &self.entries[*index])
    }
}

impl Engine {
    /// The listing as far as memory knows, fresh or not.
    pub fn known_listing(&self, ino: u64) -> Option<Arc<Listing>> {
        self.node(ino).ok()?.directory().ok()?.listing.load_full()
    }

    /// The listing if it is in memory and fresh.
    pub fn try_list(&self, ino: u64) -> Option<Result<Arc<Listing>>> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return Some(Err(error)),
        };
        let directory = match node.directory() {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        let listing = directory.listing.load_full()?;
        let fresh = self.is_fresh(listing.listed_ms.load(Ordering::Relaxed));
        fresh.then_some(Ok(listing))
    }

    /// The listing, asked from the source if memory has none or an old one. An old one is answered when the source does not answer
    /// within a moment.
    ///
    /// # Errors
    /// As [`crate::source::Source::list`]; `Timeout` at the deadline.
    pub async fn list(self: &Arc<Self>, ino: u64) -> Result<Arc<Listing>> {
        let node = self.node(ino)?;
        let directory = node.directory()?;
        loop {
            let known = directory.listing.load_full();
            if let Some(listing) = &known
                && self.is_fresh(listing.listed_ms.load(Ordering::Relaxed))
            {
                return Ok(Arc::clone(listing));
            }
            match (directory.listing_flight.board(), known) {
                (Boarded::Lead(landing), known) => {
                    let (engine, asked) = (Arc::clone(self), Arc::clone(&node));
                    let work = self.runtime.spawn(async move {
                        let listed = engine.list_now(&asked).await;
                        drop(landing);
                        listed
                    });
                    let patience = if known.is_some() {
                        self.settings.grace
                    } else {
                        self.settings.metadata_deadline()
                    };
                    return match (tokio::time::timeout(patience, work).await, known) {
                        (Ok(Ok(Ok(listing))), _) => Ok(listing),
                        (_, Some(old)) => Ok(old),
                        (Ok(Ok(Err(error))), None) => Err(error),
                        (Ok(Err(died)), None) => Err(Error::new(Kind::Io, "list").caused_by(died)),
                        (Err(late), None) => Err(Error::new(Kind::Timeout, "list directory")
                            .at(node.path.as_path())
                            .caused_by(late)),
                    };
                }
                (Boarded::Join(_), Some(old)) => return Ok(old),
                (Boarded::Join(signal), None) => {
                    let ended = async {
                        signal.await;
                        Ok(())
                    };
                    self.within_deadline("list directory", ended).await?;
                    if directory.listing.load().is_none() {
                        return Err(
                            Error::new(Kind::Unreachable, "list directory").at(node.path.as_path())
                        );
                    }
                }
            }
        }
    }

    async fn list_now(self: &Arc<Self>, node: &Arc<Node>) -> Result<Arc<Listing>> {
        let (sender, mut batches) = mpsc::channel::<ListBatch>(LIST_BATCHES);
        let listing_task = {
            let (source, path) = (Arc::clone(&self.source), node.path.clone());
            self.runtime.spawn(async move { source.list(&path, sender).await })
        };
        let directory = node.directory()?;
        let old = directory.listing.load_full();
        let mut next = old.as_ref().map_or(1, |old| old.next_position);
        let mut entries = Vec::new();
        while let Some(batch) = batches.recv().await {
            self.stats.names_refused.add(batch.refused);
            for entry in batch.entries {
                if node.ino == ROOT_INO && RESERVED_NAMES.iter().any(|name| entry.name == *name) {
                    continue;
                }
                let position =
                    old.as_ref().and_then(|old| old.find(&entry.name)).map(|e| e.position);
                if old.is_some() && position.is_none() {
                    self.changes.note_news(node.ino);
                }
                let position = position.unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                entries.push(self.take_in_entry(node, entry, position)?);
            }
        }
        match listing_task.await {
            Ok(result) => result?,
            Err(died) => return Err(Error::new(Kind::Io, "list directory").caused_by(died)),
        }
        entries.sort_by_key(|entry| entry.position);
        entries.dedup_by_key(|entry| entry.position);
        let by_name =
            entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        let listing = Arc::new(Listing {
            entries,
            by_name,
            listed_ms: AtomicU64::new(self.now_ms()),
            next_position: next,
        });
        directory.listing.store(Some(Arc::clone(&listing)));
        for gone in old.iter().flat_map(|old| &old.entries) {
            if listing.find(&gone.name).is_none() {
                self.vanish(node.ino, &gone.name);
            }
        }
        Ok(listing)
    }

    fn take_in_entry(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        entry: Entry,
        position: u64,
    ) -> Result<Listed> {
        let Entry { name, kind, attributes } = entry;
        let ino = match attributes {
            Some(attributes) => self.observe(directory, &name, attributes)?.ino,
            None => self.tree.reserve_ino((directory.ino, name.clone())),
        };
        Ok(Listed { position, ino, name, kind })
    }

    /// Where a listing tells no attributes, asks for those of the next siblings of a name that was looked up, from the second lookup
    /// in a directory on.
    pub(super) fn prefetch_siblings(self: &Arc<Self>, directory: &Arc<Node>, name: &OsStr) {
        if self.lists_attributes() {
            return;
        }
        let Body::Directory(Directory { listing, lookups, prefetched_to, .. }) = &directory.body
        else {
            return;
        };
        if lookups.fetch_add(1, Ordering::Relaxed) == 0 {
            return;
        }
        let Some(listing) = listing.load_full() else { return };
        let Some(at) = listing.find(name).map(|entry| entry.position) else { return };
        let until = at + PREFETCH_SIBLINGS;
        let done = prefetched_to.load(Ordering::Relaxed);
        let from = done.max(at);
        // Half a window left: wait. Relaxed: two who prefetch the same meet in `ask`.
        if from + PREFETCH_SIBLINGS / 2 > until {
            return;
        }
        prefetched_to.fetch_max(until, Ordering::Relaxed);
        for sibling in listing.after(from).iter().take_while(|entry| entry.position <= until) {
            let name = sibling.name.clone();
            if self.known(directory.ino, &name).is_some() {
                continue;
            }
            let (engine, directory) = (Arc::clone(self), Arc::clone(directory));
            self.runtime.spawn(async move {
                let work = engine.ask(&directory, &name, Priority::Readahead);
                if let Err(error) = engine.within_deadline("prefetch attributes", work).await {
                    tracing::debug!(?name, %error, "prefetch attributes");
                }
            });
        }
    }
}
