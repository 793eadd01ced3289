//! Names: from a directory and a name to an inode and the version that it means.
//!
//! What is known is answered from memory, else from the catalog. When it is older than the refresh time the source is asked again, and a
//! lookup waits for that only a moment: a source that hangs never hangs those who ask for what they saw before. What this life has never
//! seen confirmed is worth waiting for, unless the source is known to be slow.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::flight::Flights;
use crate::core::ids::Ids;
use crate::core::path::RelPath;
use crate::core::priority::Priority;
use crate::core::shelf::Shelf;
use crate::core::table::Table;
use crate::engine::gone::Gone;
use crate::engine::known::LetGo;
use crate::engine::named::Named;
use crate::engine::node::Node;
use crate::engine::{Engine, NEVER, ROOT_INO};
use crate::error::{Error, Kind, Result};
use crate::store::RESERVED_NAMES;
use crate::sync::{AtomicBool, Ordering};

type Place = (u64, OsString);

/// The inodes and names that are in memory.
#[derive(Debug)]
pub struct Tree {
    pub(super) nodes: Shelf<Arc<Node>>,
    pub(super) names: Shelf<Named>,
    /// Inodes with several names, by their identity at the source.
    pub(super) links: Table<(u64, u64), Arc<Node>>,
    /// Directories whose listings are in memory.
    pub(super) listed: Table<u64, Arc<Node>>,
    /// Inodes that could not leave memory when the kernel forgot them.
    pub(super) leaving: Table<u64, ()>,
    pub(super) let_go: LetGo,
    pub(super) gone: Gone,
    pub(super) stats_under_way: Flights<Place>,
    pub(super) revalidations: Flights<u64>,
    pub(super) inos: Ids,
    /// The source let a revalidation wait past its grace; nobody waits for one until it answers again.
    slow: AtomicBool,
}

impl Tree {
    /// Only the root is known.
    pub fn new(root: Node, first_ino: u64) -> Self {
        let tree = Self {
            nodes: Shelf::default(),
            names: Shelf::default(),
            links: Table::default(),
            listed: Table::default(),
            leaving: Table::default(),
            let_go: LetGo::default(),
            gone: Gone::default(),
            stats_under_way: Flights::default(),
            revalidations: Flights::default(),
            inos: Ids::starting_at(first_ino.max(ROOT_INO + 1)),
            slow: AtomicBool::new(false),
        };
        tree.nodes.insert(Arc::new(root));
        tree
    }

    /// All nodes in memory.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.values()
    }

    /// What memory has under a name; the root's is empty.
    pub(super) fn find(&self, parent: u64, name: &OsStr) -> Option<Arc<Node>> {
        if name.is_empty() {
            return self.nodes.get(ROOT_INO);
        }
        self.names.get((parent, name)).map(Named::into_node)
    }

    /// From now on the name means `node`, if it means `expected` now (nothing if there is none); else what it means.
    pub(super) fn name(
        &self,
        parent: u64,
        name: &OsStr,
        expected: Option<&Arc<Node>>,
        node: &Arc<Node>,
    ) -> Result<(), Option<Arc<Node>>> {
        let named = |node: &Arc<Node>| Named::new(parent, name, node);
        let exchanged = self.names.exchange(expected.map(named).as_ref(), named(node));
        exchanged.map_err(|now| now.map(Named::into_node))
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }
}

impl Engine {
    /// The node of an inode number.
    ///
    /// # Errors
    /// `Stale` if there is none.
    pub fn node(&self, ino: u64) -> Result<Arc<Node>> {
        let unknown = || Error::new(Kind::Stale, "find inode").because(format!("number {ino}"));
        self.tree.nodes.get(ino).ok_or_else(unknown)
    }

    /// Looks a name up in memory; `None` = the catalog or the source has to be asked.
    pub fn try_lookup(self: &Arc<Self>, parent: u64, name: &OsStr) -> Option<Result<Arc<Node>>> {
        let directory = match self.node(parent) {
            Ok(directory) => directory,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.check_name(&directory, name) {
            return Some(Err(error));
        }
        let node = self.known(parent, name)?;
        if node.is_stale() || !self.is_fresh(node.checked_ms()) {
            return None;
        }
        self.prefetch_siblings(&directory, name);
        Some(Ok(node))
    }

    /// Looks a name up, asking the source where memory and catalog do not know or are too old.
    ///
    /// # Errors
    /// `NotFound` only if the source says so; `Timeout` at the deadline.
    pub async fn lookup(self: &Arc<Self>, parent: u64, name: &OsStr) -> Result<Arc<Node>> {
        let directory = self.node(parent)?;
        self.check_name(&directory, name)?;
        self.prefetch_siblings(&directory, name);
        match self.remembered(&directory, name).await {
            Some(node) if !node.is_stale() => {
                if self.is_fresh(node.checked_ms()) {
                    return Ok(node);
                }
                self.revalidate(&directory, &node, name).await;
                let gone = || Error::new(Kind::NotFound, "look up").at(node.path().as_path());
                self.known(parent, name).ok_or_else(gone)
            }
            _ => {
                let work = self.ask(&directory, name, Priority::Demand);
                self.within_deadline("look up", work).await
            }
        }
    }

    /// As [`Engine::lookup`], for the kernel, which learns of the node: [`Engine::forget`] ends that.
    ///
    /// # Errors
    /// As [`Engine::lookup`].
    pub async fn lookup_for_kernel(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
    ) -> Result<Arc<Node>> {
        loop {
            let node = self.lookup(parent, name).await?;
            if node.refer() {
                return Ok(node);
            }
            tokio::task::yield_now().await;
        }
    }

    /// The node of a name as far as memory knows, fresh or not.
    pub fn known(&self, parent: u64, name: &OsStr) -> Option<Arc<Node>> {
        self.tree.find(parent, name)
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
        checked_ms != NEVER
            && self.settings.refresh.is_none_or(|refresh| {
                u128::from(self.now_ms().saturating_sub(checked_ms)) < refresh.as_millis()
            })
    }

    /// Takes in what the source says that `name` is: the node that describes this version, new if it is one. May read the catalog.
    ///
    /// # Errors
    /// `Invalid`/`NameTooLong` for a name that cannot be used.
    pub(crate) fn observe(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<Arc<Node>> {
        let (mut known, reserved) = match self.known(directory.ino, name) {
            Some(known) => (Some(known), None),
            None => self.recall(directory, name),
        };
        let is_unheard_of = known.is_none() && reserved.is_none();
        loop {
            if let Some(node) = &known
                && node.is_same_version(attributes)
            {
                self.tree.gone.unmark(directory.ino, name);
                if node.refresh(attributes, self.now_ms()) {
                    self.note_identity(node, attributes);
                    self.record_name(directory.ino, name, None);
                }
                return Ok(Arc::clone(node));
            }
            if let Some(node) = known.as_ref().filter(|node| self.refuses(node, attributes)) {
                node.touch(self.now_ms());
                return Ok(Arc::clone(node));
            }
            let node = self.version(directory, name, attributes, reserved)?;
            match self.tree.name(directory.ino, name, known.as_ref(), &node) {
                Ok(()) => {
                    self.tree.gone.unmark(directory.ino, name);
                    self.tree.nodes.insert(Arc::clone(&node));
                    self.note_there(directory, name);
                    self.record_name(directory.ino, name, None);
                    if let Some(old) = known {
                        self.supersede(&old, directory.ino, name);
                    } else if is_unheard_of && self.destination.has_receipt() {
                        self.changes.note_news(directory.ino);
                    }
                    return Ok(node);
                }
                Err(now) => known = now,
            }
        }
    }

    /// A node for a version not seen under this name yet: another name of the same inode may have it.
    fn version(
        &self,
        directory: &Arc<Node>,
        name: &OsStr,
        attributes: &Attributes,
        reserved: Option<u64>,
    ) -> Result<Arc<Node>> {
        let path = directory.path().child(name)?;
        let entry = match attributes.kind {
            EntryKind::File => self.entry_at(&path).map(|entry| entry.version),
            _ => None,
        };
        // The number of a recorded version is its own. One that was reserved for the name serves any version that has none, but a later
        // version has a higher number.
        let recorded = entry.as_ref().filter(|entry| entry.fingerprint == attributes.fingerprint);
        // Its name was gone and is there again, while somebody still has it open.
        let known = recorded.and_then(|entry| self.tree.nodes.get(entry.ino));
        if let Some(node) = known.filter(|node| node.is_same_version(attributes)) {
            return Ok(node);
        }
        let last = entry.as_ref().map_or(0, |entry| entry.ino);
        let linked = identity_of(attributes).and_then(|identity| self.linked(identity, attributes));
        let linked = linked.filter(|ino| recorded.is_none() && *ino > last);
        match linked.and_then(|ino| self.tree.nodes.get(ino)) {
            Some(node) if node.is_same_version(attributes) => return Ok(node),
            _ => {}
        }
        let linked = linked.filter(|ino| self.tree.nodes.get(*ino).is_none());
        let known = recorded.map(|entry| entry.ino).or(linked);
        let ino = known.or(reserved.filter(|ino| *ino > last));
        let ino = ino.unwrap_or_else(|| self.tree.inos.next());
        let mut node = Node::new(ino, Some((directory, name)), attributes, self.now_ms());
        if known.is_some() {
            node = node.of_an_earlier_life();
            self.recall_links(&node);
        }
        let node = Arc::new(node);
        let Some(identity) = identity_of(attributes) else { return Ok(node) };
        let first = self.tree.links.get_or_insert(identity, Arc::clone(&node));
        if first.is_same_version(attributes) {
            return Ok(first);
        }
        self.tree.links.insert(identity, Arc::clone(&node));
        Ok(node)
    }

    /// The number of a file that the catalog knows under another name, if that is the same version.
    fn linked(&self, identity: (u64, u64), attributes: &Attributes) -> Option<u64> {
        let found = self.destination.catalog().linked(identity);
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "names of a file unreadable");
            None
        })?;
        let known = found.attributes?.unpack();
        let is_same =
            known.identity == Some(identity) && known.fingerprint == attributes.fingerprint;
        is_same.then_some(found.ino)
    }

    /// Another name of a node may be seen next.
    pub(super) fn note_identity(&self, node: &Arc<Node>, attributes: &Attributes) {
        if let Some(identity) = identity_of(attributes) {
            self.tree.links.insert(identity, Arc::clone(node));
        }
    }
}

/// What names of one file have in common.
pub(super) fn identity_of(attributes: &Attributes) -> Option<(u64, u64)> {
    attributes.identity.filter(|_| attributes.kind == EntryKind::File)
}
