//! Names: from a directory and a name to an inode and the version that it means.
//!
//! What is known is answered from memory. When it is older than the refresh time the source is asked again, and a lookup waits for that
//! only a moment: a source that hangs never hangs those who ask for what they saw before.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use crate::core::flight::{Boarded, Flight};
use crate::core::ids::Ids;
use crate::core::path::RelPath;
use crate::core::permits::Acquired;
use crate::core::priority::Priority;
use crate::core::table::Table;
use crate::engine::node::{Body, Node};
use crate::engine::{Engine, ROOT_INO};
use crate::error::{Error, Kind, Result};
use crate::store::RESERVED_NAMES;
use crate::sync::{AtomicBool, Ordering};

type Place = (u64, OsString);

/// All inodes and names seen so far.
#[derive(Debug)]
pub struct Tree {
    nodes: Table<u64, Arc<Node>>,
    names: Table<Place, Arc<Name>>,
    /// Inodes with several names, by their identity at the source.
    links: Table<(u64, u64), Arc<Node>>,
    stats_under_way: Table<Place, Flight>,
    inos: Ids,
    /// The source let a revalidation wait past its grace; nobody waits for one until it answers again.
    slow: AtomicBool,
}

/// One name in a directory. It has an inode number as soon as it is listed, and a node once its attributes are known.
#[derive(Debug)]
struct Name {
    ino: u64,
    node: Option<Arc<Node>>,
}

impl Tree {
    /// Only the root is known.
    pub fn new(root: Attributes, first_ino: u64) -> Self {
        let tree = Self {
            nodes: Table::default(),
            names: Table::default(),
            links: Table::default(),
            stats_under_way: Table::default(),
            inos: Ids::starting_at(first_ino.max(ROOT_INO + 1)),
            slow: AtomicBool::new(false),
        };
        let root = Node::new(ROOT_INO, ROOT_INO, RelPath::root(), root, 0);
        tree.nodes.insert(ROOT_INO, Arc::new(root));
        tree
    }

    /// All nodes seen so far.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.values()
    }

    fn name(&self, place: &Place) -> Option<Arc<Name>> {
        self.names.get(place)
    }

    /// A name means nothing any more; what it meant.
    pub(super) fn forget_name(&self, place: &Place) -> Option<Arc<Node>> {
        self.names.remove(place)?.node.clone()
    }

    /// A name means what it meant before, unless it means something else by now.
    pub(super) fn remember_name(&self, place: &Place, node: Arc<Node>) {
        let name = Arc::new(Name { ino: node.ino, node: Some(Arc::clone(&node)) });
        if self.names.compare_exchange(place.clone(), None, name).is_ok() {
            node.gain_name();
        }
    }

    /// The inode number of `place`, given now if it had none.
    pub(super) fn reserve_ino(&self, place: Place) -> u64 {
        if let Some(name) = self.names.get(&place) {
            return name.ino;
        }
        let name = Arc::new(Name { ino: self.inos.next(), node: None });
        self.names.get_or_insert(place, name).ino
    }
}

impl Engine {
    /// The node of an inode number.
    ///
    /// # Errors
    /// `Stale` if there is none.
    pub fn node(&self, ino: u64) -> Result<Arc<Node>> {
        let unknown = || Error::new(Kind::Stale, "find inode").because(format!("number {ino}"));
        self.tree.nodes.get(&ino).ok_or_else(unknown)
    }

    /// Looks a name up in memory; `None` = the source has to be asked.
    pub fn try_lookup(self: &Arc<Self>, parent: u64, name: &OsStr) -> Option<Result<Arc<Node>>> {
        let directory = match self.node(parent) {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.check_name(&directory, name) {
            return Some(Err(error));
        }
        let known = self.tree.name(&(parent, name.to_owned()))?;
        let node = known.node.clone()?;
        let has_record = matches!(&node.body, Body::File(file) if file.has_record());
        if has_record || node.is_stale() || !self.is_fresh(node.checked_ms()) {
            return None;
        }
        self.prefetch_siblings(&directory, name);
        Some(Ok(node))
    }

    /// Looks a name up, asking the source where memory does not know or is too old.
    ///
    /// # Errors
    /// `NotFound` only if the source says so; `Timeout` at the deadline.
    pub async fn lookup(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<Arc<Node>> {
        let node = self.look_up(parent, name).await?;
        self.restore_node(&node).await;
        Ok(node)
    }

    async fn look_up(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<Arc<Node>> {
        let directory = self.node(parent)?;
        self.check_name(&directory, name)?;
        self.prefetch_siblings(&directory, name);
        let place = (parent, name.to_owned());
        let known = self.tree.name(&place).and_then(|known| known.node.clone());
        match known {
            Some(node) if !node.is_stale() => {
                if self.is_fresh(node.checked_ms()) {
                    return Ok(node);
                }
                self.revalidate(&directory, &node, name).await;
                match self.tree.name(&place).and_then(|known| known.node.clone()) {
                    Some(node) => Ok(node),
                    None => Err(Error::new(Kind::NotFound, "look up").at(node.path.as_path())),
                }
            }
            _ => {
                let work = self.ask(&directory, name, Priority::Demand);
                self.within_deadline("look up", work).await
            }
        }
    }

    /// The node of a name as far as memory knows, fresh or not.
    pub fn known(&self, parent: u64, name: &OsStr) -> Option<Arc<Node>> {
        self.tree.name(&(parent, name.to_owned())).and_then(|known| known.node.clone())
    }

    fn check_name(&self, directory: &Node, name: &OsStr) -> Result<()> {
        directory.directory()?;
        RelPath::check_name(name)?;
        if directory.ino == ROOT_INO && RESERVED_NAMES.iter().any(|reserved| name == *reserved) {
            return Err(Error::new(Kind::NotFound, "look up").at(name));
        }
        Ok(())
    }

    pub(super) fn is_fresh(&self, checked_ms: u64) -> bool {
        self.settings.refresh.is_none_or(|refresh| {
            u128::from(self.now_ms().saturating_sub(checked_ms)) < refresh.as_millis()
        })
    }

    /// Asks the source about a name and takes in the answer. Of those who ask at the same time one does the work.
    pub(super) async fn ask(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        name: &OsStr,
        priority: Priority,
    ) -> Result<Arc<Node>> {
        let place = (directory.ino, name.to_owned());
        let flight = self.tree.stats_under_way.get_or_insert(place.clone(), Flight::default());
        match flight.board() {
            Boarded::Join(signal) => {
                signal.await;
                let known = self.tree.name(&place).and_then(|known| known.node.clone());
                if let Some(node) = known.filter(|node| !node.is_stale()) {
                    return Ok(node);
                }
                // It failed for the one who led; our own answer may differ (a deadline, a cancellation).
                let attributes = self.stat(directory, name, priority).await?;
                self.observe(directory, name, attributes)
            }
            Boarded::Lead(landing) => {
                let asked = self.stat(directory, name, priority).await;
                let result = match asked {
                    Ok(attributes) => self.observe(directory, name, attributes),
                    Err(error) => {
                        if error.kind() == Kind::NotFound {
                            self.vanish(directory.ino, name);
                        }
                        Err(error)
                    }
                };
                self.tree.stats_under_way.remove(&place);
                drop(landing);
                result
            }
        }
    }

    async fn stat(&self, directory: &Node, name: &OsStr, priority: Priority) -> Result<Attributes> {
        let path = directory.path.child(name)?;
        if !self.lists_attributes() && self.is_listed_directory(directory, name) {
            return Ok(made_up_directory());
        }
        let _permit = match self.stat_permits.acquire(priority) {
            Acquired::Now(permit) => Some(permit),
            Acquired::Queued(mut ticket) => {
                ticket.signal().await;
                ticket.permit()
            }
        };
        self.source.stat(&path).await
    }

    fn is_listed_directory(&self, directory: &Node, name: &OsStr) -> bool {
        let Ok(directory) = directory.directory() else { return false };
        let listing = directory.listing.load();
        let listed = listing.as_deref().and_then(|listing| listing.find(name));
        listed.is_some_and(|listed| listed.kind == EntryKind::Directory)
    }

    /// Waits a moment for the source to confirm or correct what is known of `node`; then it goes on in the background.
    async fn revalidate(self: &Arc<Self>, directory: &Arc<Node>, node: &Arc<Node>, name: &OsStr) {
        let signal = match node.revalidating.board() {
            Boarded::Join(signal) => signal,
            Boarded::Lead(landing) => {
                let (engine, directory) = (Arc::clone(self), Arc::clone(directory));
                let (node, name) = (Arc::clone(node), name.to_owned());
                let Boarded::Join(signal) = node.revalidating.board() else { return };
                self.runtime.spawn(async move {
                    let asked = engine.stat(&directory, &name, Priority::Demand);
                    let deadline = engine.settings.metadata_deadline();
                    match tokio::time::timeout(deadline, asked).await {
                        Ok(answer) => engine.take_in(&directory, &node, &name, answer),
                        Err(_late) => node.touch(engine.now_ms()),
                    }
                    engine.tree.slow.store(false, Ordering::Relaxed);
                    drop(landing);
                });
                signal
            }
        };
        if !self.tree.slow.load(Ordering::Relaxed)
            && tokio::time::timeout(self.settings.grace, signal).await.is_err()
        {
            self.tree.slow.store(true, Ordering::Relaxed);
        }
    }

    fn take_in(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        node: &Node,
        name: &OsStr,
        answer: Result<Attributes>,
    ) {
        match answer {
            Ok(attributes) => {
                if let Err(error) = self.observe(directory, name, attributes) {
                    tracing::debug!(path = %node.path, %error, "revalidation");
                }
            }
            Err(error) if error.kind() == Kind::NotFound => {
                tracing::info!(path = %node.path, "gone at the source; what is local is kept");
                self.vanish(directory.ino, name);
            }
            // Unreachable is not deleted: what is known stays.
            Err(_) => node.touch(self.now_ms()),
        }
    }

    /// Takes in what the source says that `name` is: the node that describes this version, new if it is one.
    ///
    /// # Errors
    /// `Invalid`/`NameTooLong` for a name that cannot be used.
    pub(crate) fn observe(
        self: &Arc<Self>,
        directory: &Node,
        name: &OsStr,
        attributes: Attributes,
    ) -> Result<Arc<Node>> {
        let place = (directory.ino, name.to_owned());
        self.come_back(&place);
        let mut known = self.tree.name(&place);
        loop {
            let old = known.as_ref().and_then(|known| known.node.clone());
            if let Some(node) = &old
                && node.is_same_version(&attributes)
            {
                node.refresh(attributes, self.now_ms());
                return Ok(Arc::clone(node));
            }
            if let Some(node) = &old
                && self.refuses(node, &attributes)
            {
                node.touch(self.now_ms());
                return Ok(Arc::clone(node));
            }
            let reserved =
                known.as_ref().filter(|known| known.node.is_none()).map(|known| known.ino);
            let (node, is_new) = self.version(directory, name, &attributes, reserved)?;
            let new = Arc::new(Name { ino: node.ino, node: Some(Arc::clone(&node)) });
            match self.tree.names.compare_exchange(place.clone(), known.as_ref(), new) {
                Ok(()) => {
                    node.gain_name();
                    self.tree.nodes.insert(node.ino, Arc::clone(&node));
                    if let Body::File(file) = &node.body
                        && is_new
                    {
                        self.count(file);
                    }
                    if let Some(old) = old {
                        self.supersede(&old, directory.ino, name);
                    }
                    return Ok(node);
                }
                Err(now) => known = now,
            }
        }
    }

    /// A node for a version not seen under this name yet, and whether it is new: another name of the same inode may have it.
    fn version(
        &self,
        directory: &Node,
        name: &OsStr,
        attributes: &Attributes,
        reserved: Option<u64>,
    ) -> Result<(Arc<Node>, bool)> {
        let path = directory.path.child(name)?;
        let record = self.recorded(&path, attributes);
        // The number of a recorded version is its own; one that was reserved for the name serves any version that has none.
        let ino = record.as_ref().map(|record| record.version.ino).or(reserved);
        let ino = ino.unwrap_or_else(|| self.tree.inos.next());
        let (attributes_now, now_ms) = (attributes.clone(), self.now_ms());
        let node = Node::with_record(ino, directory.ino, path, attributes_now, now_ms, record);
        let node = Arc::new(node);
        let Some(identity) = attributes.identity.filter(|_| attributes.kind == EntryKind::File)
        else {
            return Ok((node, true));
        };
        let first = self.tree.links.get_or_insert(identity, Arc::clone(&node));
        if first.is_same_version(attributes) {
            let is_new = Arc::ptr_eq(&first, &node);
            return Ok((first, is_new));
        }
        self.tree.links.insert(identity, Arc::clone(&node));
        Ok((node, true))
    }
}

/// What a directory of a source without modes looks like.
fn made_up_directory() -> Attributes {
    Attributes {
        kind: EntryKind::Directory,
        size: 4096,
        mode: None,
        ownership: None,
        modified: None,
        accessed: None,
        changed: None,
        link_count: 2,
        device_number: 0,
        allocated_units: None,
        identity: None,
        fingerprint: Fingerprint { size: 4096, validator: Validator::SizeOnly },
        is_settled: true,
        checksum: None,
    }
}
