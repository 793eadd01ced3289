//! What becomes of names and files when the source changes.
//!
//! Two versions are never mixed: a changed file gets a new inode number, and the old one is retired. What is gone keeps its local copy,
//! and is the same inode again when the same version comes back.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use tokio::sync::Notify;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::phase::Phase;
use crate::core::table::Table;
use crate::engine::file::LazyFile;
use crate::engine::node::{Body, Node};
use crate::engine::settings::OnChange;
use crate::engine::{Engine, Notice};
use crate::error::{Error, Kind};
use crate::sync::{AtomicBool, Ordering};

/// What was noticed of changes at the source.
#[derive(Debug, Default)]
pub struct Changes {
    /// Files that are gone, by directory and name.
    gone: Table<(u64, OsString), Arc<Node>>,
    /// Numbers of files that stay what they were although the source has another version.
    refused: Table<u64, ()>,
    /// Numbers of directories with something new since the background copy began.
    directories: Table<u64, ()>,
    /// Whether a background copy wants to know of them. Relaxed: set before its first listing.
    is_followed: AtomicBool,
    news: Notify,
}

impl Changes {
    /// From now on directories with something new are kept for [`Changes::take_directories`].
    pub(super) fn follow(&self) {
        self.is_followed.store(true, Ordering::Relaxed);
    }

    /// Something in `directory` is new.
    pub(super) fn note_news(&self, directory: u64) {
        if self.is_followed.load(Ordering::Relaxed) {
            self.directories.insert(directory, ());
            self.news.notify_one();
        }
    }

    /// The directories with something new since the last call.
    pub(super) fn take_directories(&self) -> Vec<u64> {
        let keys = self.directories.keys();
        keys.into_iter().filter(|ino| self.directories.remove(ino).is_some()).collect()
    }

    /// Whether the file keeps its first version although the source has another one.
    pub(crate) fn is_refused(&self, ino: u64) -> bool {
        self.refused.get(&ino).is_some()
    }

    /// Files that are gone at the source.
    pub(super) fn gone(&self) -> Vec<Arc<Node>> {
        self.gone.values()
    }
}

/// The error of a file that changed and must not.
pub(super) fn changed(path: &crate::core::path::RelPath) -> Error {
    Error::new(Kind::Stale, "follow source")
        .at(path.as_path())
        .because("it changed at the source; what is here of its first version is kept")
        .hint("--on-change fail was asked for; --on-change follow copies the new version")
}

impl Engine {
    /// Waits until a directory has something new.
    pub async fn news(&self) {
        while !self.has_news() {
            self.changes.news.notified().await;
        }
    }

    /// Whether a directory has something new that the background copy does not know of.
    pub fn has_news(&self) -> bool {
        !self.changes.directories.is_empty()
    }

    /// `old` is no longer what its name means: its handles get ESTALE for what is not local.
    pub(super) fn supersede(&self, old: &Node, parent: u64, name: &OsStr) {
        if let Body::File(file) = &old.body {
            if old.lose_name() {
                self.uncount(file);
            }
            if self.retire(file) {
                self.stats.files_changed.increment();
                tracing::info!(path = %old.path, ino = old.ino, "changed at the source");
            }
        }
        self.changes.note_news(parent);
        self.tell(Notice::EntryChanged { parent, name: name.to_owned() });
    }

    /// Whether `node` stays what its name means although the source says `attributes`: so it is asked for.
    pub(super) fn refuses(&self, node: &Node, attributes: &Attributes) -> bool {
        let Body::File(file) = &node.body else { return false };
        if self.settings.on_change == OnChange::Follow || attributes.kind != EntryKind::File {
            return false;
        }
        if self.changes.refused.insert(node.ino, ()).is_none() {
            if !file.is_stale() {
                self.stats.files_changed.increment();
            }
            let error = changed(&node.path);
            tracing::warn!(path = %node.path, %error, "not followed");
            self.stats.errors.failed(&node.path, Some(node.ino), &error);
        }
        true
    }

    /// The source has no such name any more. What is local is kept.
    pub(super) fn vanish(&self, parent: u64, name: &OsStr) {
        let place = (parent, name.to_owned());
        let Some(node) = self.tree.forget_name(&place) else { return };
        let is_last = node.lose_name();
        match &node.body {
            Body::File(file) if is_last => {
                if file.phase.get() == Phase::Published {
                    self.stats.files_deleted.increment();
                    tracing::info!(path = %node.path, "deleted at the source; the copy is kept");
                } else {
                    self.uncount(file);
                }
                self.changes.gone.insert(place, Arc::clone(&node));
            }
            Body::Directory(directory) => {
                for entry in directory.listing.load().iter().flat_map(|listing| &listing.entries) {
                    self.vanish(node.ino, &entry.name);
                }
            }
            Body::File(_) | Body::Other => {}
        }
        self.tell(Notice::EntryChanged { parent, name: name.to_owned() });
    }

    /// A name that was gone is there again: what it meant before, whatever it means now.
    pub(super) fn come_back(&self, place: &(u64, OsString)) {
        let Some(node) = self.changes.gone.remove(place) else { return };
        if let Body::File(file) = &node.body {
            if file.phase.get() == Phase::Published {
                self.stats.files_deleted.sub(1);
            } else {
                self.count(file);
            }
        }
        self.tree.remember_name(place, node);
    }

    pub(super) fn count(&self, file: &LazyFile) {
        self.stats.files_known.increment();
        self.stats.bytes_known.add(file.size());
    }

    fn uncount(&self, file: &LazyFile) {
        self.stats.files_known.sub(1);
        self.stats.bytes_known.sub(file.size());
    }

    /// The source answered that `file` has another version now: the next lookup finds it.
    pub(crate) fn found_stale(&self, file: &LazyFile) {
        if !self.retire(file) {
            return;
        }
        self.stats.files_changed.increment();
        tracing::info!(path = %file.path, ino = file.ino, "changed at the source");
        if let Ok(node) = self.node(file.ino) {
            let name = node.path.name().to_owned();
            self.changes.note_news(node.parent);
            self.tell(Notice::EntryChanged { parent: node.parent, name });
        }
    }
}
