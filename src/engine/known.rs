//! What the catalog knows comes into memory when somebody asks for it, and leaves it when the kernel has forgotten it.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::core::flight::Boarded;
use crate::core::phase::Phase;
use crate::core::table::Table;
use crate::engine::listing::Listing;
use crate::engine::named::Named;
use crate::engine::node::{Body, Node};
use crate::engine::stats::Counter;
use crate::engine::tree::identity_of;
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::store::catalog::EntryPhase;
use crate::sync::{AtomicU64, Ordering};

/// How long a listing stays in memory after it was used last.
const LISTING_IDLE_MS: u64 = 30_000;

/// Published files that are not in memory, with their bytes: they still count as here.
#[derive(Debug, Default)]
pub(super) struct LetGo {
    files: Table<u64, u64>,
    count: Counter,
    bytes: Counter,
    /// Files that began to leave memory, and those that are through. AcqRel: who sees both alike before and after a look at all files saw
    /// each of them once.
    begun: AtomicU64,
    through: AtomicU64,
}

/// A file on its way out of memory: it counts neither as there nor as let go.
struct Moving<'a>(&'a LetGo);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.through.fetch_add(1, Ordering::AcqRel);
    }
}

impl LetGo {
    fn moving(&self) -> Moving<'_> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        Moving(self)
    }

    /// Something that changes with every file that leaves; `None` while one is on its way.
    pub(super) fn generation(&self) -> Option<u64> {
        let through = self.through.load(Ordering::Acquire);
        (self.begun.load(Ordering::Acquire) == through).then_some(through)
    }

    fn note(&self, ino: u64, bytes: u64) {
        if self.files.insert(ino, bytes).is_none() {
            self.count.increment();
            self.bytes.add(bytes);
        }
    }

    /// It is in memory again, or its name means another version. Says whether it had been let go in this life.
    pub(super) fn take_back(&self, ino: u64) -> bool {
        let bytes = self.files.remove(&ino);
        if let Some(bytes) = bytes {
            self.count.sub(1);
            self.bytes.sub(bytes);
        }
        bytes.is_some()
    }

    /// How many, and their bytes.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.count.get(), self.bytes.get())
    }
}

impl Engine {
    /// The node of a name as memory or the catalog has it, fresh or not.
    pub(super) async fn remembered(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        name: &OsStr,
    ) -> Option<Arc<Node>> {
        if let Some(node) = self.known(directory.ino, name) {
            return Some(node);
        }
        let (engine, directory, name) = (Arc::clone(self), Arc::clone(directory), name.to_owned());
        let recalled = on_disk("look into catalog", move || Ok(engine.recall(&directory, &name).0));
        recalled.await.unwrap_or_else(|error| {
            tracing::error!(%error, "catalog");
            None
        })
    }

    /// Brings what the catalog has of a name into memory: its node, or at least the number that was reserved for it. Nothing of a name
    /// that is gone. Blocking.
    pub(super) fn recall(
        &self,
        directory: &Arc<Node>,
        name: &OsStr,
    ) -> (Option<Arc<Node>>, Option<u64>) {
        loop {
            let before = self.tree.gone.count();
            if self.tree.gone.has(directory.ino, name) {
                return (None, None);
            }
            let found = self.recall_once(directory, name);
            if self.tree.gone.count() == before {
                return found;
            }
            // It may have gone, and been forgotten, while we read.
            if let Some(node) = &found.0 {
                let named = Named::new(directory.ino, name, node);
                self.tree.names.take_exact(&named, usize::MAX);
            }
        }
    }

    fn recall_once(&self, directory: &Arc<Node>, name: &OsStr) -> (Option<Arc<Node>>, Option<u64>) {
        let found = self.destination.catalog().name(directory.ino, name);
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "name unreadable");
            None
        });
        let Some(mut record) = found else { return (None, self.listed_ino(directory, name)) };
        // Most have none: they share the one that says so.
        let has_none = record.xattrs.take_if(|xattrs| xattrs.is_empty()).is_some();
        let ino = record.ino;
        let node = match self.tree.nodes.get(ino) {
            Some(node) => node,
            None => {
                let Some(node) = Node::recalled(Some((directory, name)), record) else {
                    return (None, Some(ino));
                };
                if has_none {
                    node.xattrs.store(Some(Arc::clone(&self.no_xattrs)));
                }
                self.recall_links(&node);
                self.tree.nodes.get_or_insert(Arc::new(node))
            }
        };
        match self.tree.name(directory.ino, name, None, &node) {
            Ok(()) => {
                if let Some(identity) = identity_of(&node.attributes()) {
                    self.tree.links.get_or_insert(identity, Arc::clone(&node));
                }
                (Some(node), None)
            }
            Err(now) => (now, None),
        }
    }

    /// The number under which a name was listed a moment ago.
    fn listed_ino(&self, directory: &Node, name: &OsStr) -> Option<u64> {
        let listing = directory.directory().ok()?.listing.load_full()?;
        listing.find(name).map(|listed| listed.ino)
    }

    /// The bytes of a file with several names are recorded under one of them.
    pub(super) fn recall_links(&self, node: &Node) {
        if identity_of(&node.attributes()).is_none() {
            return;
        }
        match self.destination.catalog().entry_of_ino(node.ino) {
            Ok(Some(entry)) if entry.path != node.path() => node.set_file_path(&entry.path),
            Ok(_) => {}
            Err(error) => tracing::warn!(ino = node.ino, %error, "record unreadable"),
        }
    }

    /// Brings the next `count` entries of a listing into memory, from the position after `after` on, as far as the catalog has them.
    pub async fn recall_listed(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        listing: &Arc<Listing>,
        after: u64,
        count: usize,
    ) {
        let (engine, directory, listing) =
            (Arc::clone(self), Arc::clone(directory), Arc::clone(listing));
        let recalled = on_disk("look into catalog", move || {
            for entry in listing.after(after).take(count) {
                let node = match engine.known(directory.ino, entry.name) {
                    Some(node) => Some(node),
                    None => engine.recall(&directory, entry.name).0,
                };
                // A listing that carries attributes has confirmed them.
                if let Some(node) = node
                    && engine.lists_attributes()
                    && listing.is_confirmed()
                    && node.checked_ms() == crate::engine::NEVER
                {
                    node.touch(listing.listed_ms());
                }
            }
            Ok(())
        });
        if let Err(error) = recalled.await {
            tracing::error!(%error, "catalog");
        }
    }

    /// The kernel has forgotten `count` lookups of an inode: it may leave memory.
    pub fn forget(&self, ino: u64, count: u64) {
        let Some(node) = self.tree.nodes.get(ino).filter(|node| node.ino != ROOT_INO) else {
            return;
        };
        if !node.unrefer(count) {
            return;
        }
        match &node.body {
            // Whether the catalog has all of it is looked up where one may wait.
            Body::File(file) if file.get().is_some() => {
                self.tree.leaving.insert(ino, ());
            }
            Body::Directory(directory) => {
                directory.listing.load().iter().for_each(|listing| listing.note_disuse());
                self.let_go(node);
            }
            _ => self.let_go(node),
        }
    }

    /// Takes a node out of memory if nobody uses it and the catalog has all that is known of it; else it is tried again later. Blocking
    /// if its bytes are in use.
    pub(super) fn let_go(&self, node: Arc<Node>) {
        let ino = node.ino;
        if ino == ROOT_INO || !node.leave() {
            return;
        }
        let may_leave = !node.is_unrecorded() && is_idle(&node) && self.is_vouched_for(&node);
        let _moving = self.tree.let_go.moving();
        if !may_leave || !self.remove(&node) {
            node.stay();
            self.tree.leaving.insert(ino, ());
            return;
        }
        if let Some(file) = node.file_in_use()
            && file.phase.get() == Phase::Published
            && !self.changes.is_deleted(&file.path)
        {
            self.tree.let_go.note(ino, file.size());
        }
    }

    /// Whether the catalog has a published file. One that was adopted unseen it has not.
    fn is_vouched_for(&self, node: &Node) -> bool {
        let Some(file) = node.file_in_use().filter(|file| file.phase.get() == Phase::Published)
        else {
            return true;
        };
        let entry = self.destination.catalog().entry_of_ino(node.ino);
        entry.ok().flatten().is_some_and(|entry| {
            entry.path == file.path && matches!(entry.phase, EntryPhase::Published(_))
        })
    }

    /// Takes a node out of all tables unless somebody else holds it.
    fn remove(&self, node: &Arc<Node>) -> bool {
        let named = Named::First(Arc::clone(node));
        let identity = identity_of(&node.attributes());
        let was_named = self.tree.names.take_exact(&named, usize::MAX);
        let was_linked = identity.is_some_and(|id| self.tree.links.remove_exact(&id, node));
        // The caller, `named` and the shelf have it.
        if self.tree.nodes.take_exact(node, 3) {
            return true;
        }
        if was_named {
            self.tree.names.get_or_insert(named.clone());
            if self.tree.gone.has(node.parent_ino(), node.name()) {
                self.tree.names.take_exact(&named, usize::MAX);
            }
        }
        if let Some(identity) = identity.filter(|_| was_linked) {
            self.tree.links.get_or_insert(identity, Arc::clone(node));
        }
        false
    }

    /// Begins [`Engine::tidy`] unless it runs.
    pub fn tidy_in_background(self: &Arc<Self>) {
        if let Boarded::Lead(landing) = self.tidying.board() {
            let engine = Arc::clone(self);
            self.runtime.spawn_blocking(move || {
                engine.tidy();
                drop(landing);
            });
        }
    }

    /// Once a beat: listings that nobody used for a while and inodes that nobody needs any more leave memory. The catalog has them. Blocking.
    pub fn tidy(&self) {
        let now = self.now_ms();
        for node in self.tree.listed.values() {
            let Ok(directory) = node.directory() else { continue };
            let Some(listing) = directory.listing.load_full() else { continue };
            if listing.is_recorded() && listing.is_idle(now, LISTING_IDLE_MS) {
                directory.listing.compare_and_swap(&listing, None);
                self.tree.listed.remove(&node.ino);
                for entry in listing.after(0) {
                    if let Some(node) = self.known(node.ino, entry.name) {
                        self.let_go(node);
                    }
                }
            }
        }
        for ino in self.tree.leaving.keys() {
            self.tree.leaving.remove(&ino);
            if let Some(node) = self.tree.nodes.get(ino) {
                self.let_go(node);
            }
        }
    }
}

/// Whether nothing of it is in memory that the catalog does not have. A file with several names stays: the next of them has to find it. Who begins to use it later has to find it first.
fn is_idle(node: &Node) -> bool {
    if identity_of(&node.attributes()).is_some() {
        return false;
    }
    match &node.body {
        Body::Directory(directory) => directory.listing.load().is_none(),
        Body::File(file) => file.get().is_none_or(|file| {
            let is_plain = match file.phase.get() {
                Phase::Published => !file.is_stale(),
                Phase::Absent => file.claims.local_bytes() == 0,
                _ => false,
            };
            is_plain
                && Arc::strong_count(file) == 1
                && file.open_handles.load(Ordering::Acquire) == 0
        }),
        _ => true,
    }
}
