//! What the source shows of its tree goes into the catalog, behind those who asked for it.
//!
//! One task writes, in the order in which things were said, in bounded commits; what it writes of a name is what the tree says when it
//! writes. It becomes durable a moment later. So the catalog is at most that much behind, and never ahead or out of order.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::core::attributes::EntryKind;
use crate::engine::listing::Listing;
use crate::engine::node::{Body, Node, Xattrs};
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::store::catalog::{KnownFiles, NameChange, NameRecord};
use crate::sync::{AtomicU64, Closer, Ordering, Signal, signal};

/// Names in one commit.
const BATCH: usize = 4096;
/// Commits between two that wait for the disk.
const DURABLE_EVERY: u32 = 64;
/// How long what was said may stay undurable when nothing more is said.
const DURABLE_AFTER: Duration = Duration::from_secs(1);
/// Names of directories that are gone, forgotten in one commit.
const SWEEP: usize = 4096;
/// Extended attributes of more bytes are asked for again in each life.
const XATTR_BYTES: usize = 1024;

/// One thing that was said.
#[derive(Debug)]
pub(super) enum Said {
    /// The source has this name. With its position, number and kind if it was listed.
    Name { parent: u64, name: OsString, listed: Option<(u64, u64, EntryKind)> },
    /// The source has no such name.
    Gone { parent: u64, name: OsString },
    /// All names of a listing were said.
    Complete { directory: u64, listing: Weak<Listing> },
    /// Whoever waits for what was said before this.
    Until(Closer),
}

/// The way to the task that writes.
#[derive(Debug)]
pub(crate) struct Recorder {
    said: mpsc::UnboundedSender<Said>,
    /// How much was said, and how much of that was written or failed to be. Release; pairs with Acquire in `is_idle`.
    said_count: AtomicU64,
    written_count: AtomicU64,
}

impl Recorder {
    /// A way, and its end for [`Recorder::run`].
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Said>) {
        let (said, hears) = mpsc::unbounded_channel();
        (Self { said, said_count: AtomicU64::new(0), written_count: AtomicU64::new(0) }, hears)
    }

    pub(super) fn say(&self, said: Said) {
        self.said_count.fetch_add(1, Ordering::Release);
        // The task ends with the engine; what the catalog does not learn is asked for again.
        if self.said.send(said).is_err() {
            tracing::debug!("nobody left to record names");
        }
    }

    /// Whether everything that was said is in the catalog, or failed to come there.
    pub(super) fn is_idle(&self) -> bool {
        let written = self.written_count.load(Ordering::Acquire);
        self.said_count.load(Ordering::Acquire) == written
    }

    /// Wakes when everything that was said before is recorded, or failed to be.
    pub(super) fn until_recorded(&self) -> Signal {
        let (closer, signal) = signal();
        self.say(Said::Until(closer));
        signal
    }
}

/// Writes until the engine is gone.
pub(super) async fn run(engine: Weak<Engine>, mut hears: mpsc::UnboundedReceiver<Said>) {
    let mut writer = Writer::default();
    let mut heard = Vec::with_capacity(BATCH);
    loop {
        let next = hears.recv_many(&mut heard, BATCH);
        let count = match writer.undurable {
            0 => next.await,
            _ => match tokio::time::timeout(DURABLE_AFTER, next).await {
                Ok(count) => count,
                Err(_idle) => {
                    let Some(engine) = engine.upgrade() else { return };
                    writer = writer.pause(engine).await;
                    continue;
                }
            },
        };
        let Some(engine) = engine.upgrade().filter(|_| count > 0) else { return };
        let said = std::mem::take(&mut heard);
        let work = async move {
            on_disk("record names", move || {
                writer.write(&engine, said);
                Ok(writer)
            })
            .await
        };
        writer = work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "names not recorded");
            Writer::default()
        });
    }
}

/// Who writes.
#[derive(Debug, Default)]
struct Writer {
    /// Commits since the last durable one.
    undurable: u32,
    /// Directories of which a name could not be recorded: no listing of theirs is complete until it is made anew.
    spoilt: HashSet<u64>,
}

impl Writer {
    fn write(&mut self, engine: &Engine, said: Vec<Said>) {
        let count = said.len() as u64;
        let mut changes = Vec::with_capacity(said.len());
        let (mut nodes, mut gone) = (Vec::new(), Vec::new());
        let (mut waiting, mut listings) = (Vec::new(), Vec::new());
        for one in said {
            match one {
                Said::Name { parent, name, listed } => {
                    let node = engine.tree.find(parent, &name);
                    let record = record_of(parent, &name, node.as_deref(), listed);
                    changes.extend(record.map(|record| {
                        let parent = if name.is_empty() { 0 } else { parent };
                        NameChange::Put { parent, name, record }
                    }));
                    nodes.extend(node);
                }
                Said::Gone { parent, name } => {
                    let is_gone = engine.tree.gone.has(parent, &name);
                    match engine.tree.find(parent, &name).filter(|_| !is_gone) {
                        None => {
                            gone.push((parent, name.clone()));
                            changes.push(NameChange::Remove { parent, name });
                        }
                        Some(node) => {
                            let record = record_of(parent, &name, Some(&node), None);
                            let put = |record| NameChange::Put { parent, name, record };
                            changes.extend(record.map(put));
                            nodes.push(node);
                        }
                    }
                }
                Said::Complete { directory, listing } => {
                    let Some(listing) = listing.upgrade() else { continue };
                    if self.spoilt.contains(&directory) {
                        changes.push(NameChange::Incomplete { directory });
                        continue;
                    }
                    let next_position = listing.next_position();
                    changes.push(NameChange::Complete { directory, next_position });
                    listings.push(listing);
                }
                Said::Until(closer) => waiting.push(closer),
            }
        }
        if !changes.is_empty() {
            match engine.destination.catalog().record_names(&changes) {
                Ok(known) => {
                    engine.count_known(known);
                    listings.iter().for_each(|listing| listing.set_recorded());
                    gone.iter().for_each(|(parent, name)| engine.tree.gone.unmark(*parent, name));
                }
                Err(error) => {
                    tracing::warn!(%error, names = changes.len(), "names not recorded");
                    nodes.iter().for_each(|node| node.set_unrecorded());
                    self.spoilt.extend(changes.iter().filter_map(parent_of));
                }
            }
            self.undurable += 1;
        }
        if self.undurable >= DURABLE_EVERY {
            self.make_durable(engine);
        }
        engine.recorder.written_count.fetch_add(count, Ordering::Release);
        drop(waiting);
    }

    /// What is done when nothing is said: what was said becomes durable, what is gone is forgotten.
    async fn pause(mut self, engine: Arc<Engine>) -> Self {
        let work = on_disk("record names", move || {
            match engine.destination.catalog().sweep_names(SWEEP) {
                Ok((known, is_more)) => {
                    engine.count_known(known);
                    self.make_durable(&engine);
                    self.undurable = u32::from(is_more);
                }
                Err(error) => {
                    tracing::warn!(%error, "names of directories that are gone stay recorded");
                    self.undurable = 0;
                }
            }
            Ok(self)
        });
        work.await.unwrap_or_default()
    }

    fn make_durable(&mut self, engine: &Engine) {
        self.undurable = 0;
        if let Err(error) = engine.destination.catalog().flush() {
            tracing::warn!(%error, "names are not durable yet");
        }
    }
}

fn parent_of(change: &NameChange) -> Option<u64> {
    match change {
        NameChange::Put { parent, .. } => Some(*parent),
        NameChange::Complete { directory, .. } => Some(*directory),
        NameChange::Remove { .. } | NameChange::Incomplete { .. } => None,
    }
}

/// What the catalog shall say of a name; `None` if nothing is known of it any more.
fn record_of(
    parent: u64,
    name: &OsStr,
    node: Option<&Node>,
    listed: Option<(u64, u64, EntryKind)>,
) -> Option<NameRecord> {
    let Some(node) = node else {
        return listed.map(|(position, ino, kind)| NameRecord::listed(ino, kind, position));
    };
    node.begin_recording();
    let packed = node.packed();
    let target = match &node.body {
        Body::Symlink(target) => target.load().as_deref().cloned(),
        _ => None,
    };
    let is_small = |xattrs: &&Xattrs| {
        xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= XATTR_BYTES
    };
    Some(NameRecord {
        ino: node.ino,
        kind: packed.kind(),
        position: listed.map_or(0, |(position, ..)| position),
        is_first: node.parent_ino() == parent && node.name() == name,
        attributes: Some(packed),
        target,
        xattrs: node.xattrs.load().as_deref().filter(is_small).cloned(),
    })
}

impl Engine {
    /// Something new is known of a node: the catalog learns it.
    pub(super) fn record(&self, node: &Node) {
        node.set_unrecorded();
        self.record_name(node.parent_ino(), node.name(), None);
    }

    pub(super) fn record_name(
        &self,
        parent: u64,
        name: &OsStr,
        listed: Option<(u64, u64, EntryKind)>,
    ) {
        self.recorder.say(Said::Name { parent, name: name.to_owned(), listed });
    }

    /// The root as it is now.
    pub(super) fn record_root(&self) {
        self.record_name(ROOT_INO, OsStr::new(""), None);
    }

    pub(super) fn count_known(&self, known: KnownFiles) {
        self.stats.files_known.set(known.files);
        self.stats.bytes_known.set(known.bytes);
    }

    /// Waits until the catalog has what was learnt so far.
    pub async fn until_recorded(&self) {
        self.recorder.until_recorded().await;
    }
}
