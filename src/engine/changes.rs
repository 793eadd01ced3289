//! What becomes of names and files when the source changes.
//!
//! Two versions are never mixed: a changed file gets a new inode number, and the old one is retired. What is gone keeps its local copy,
//! and is the same inode again when the same version comes back.

use std::ffi::OsStr;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::path::RelPath;
use crate::core::table::Table;
use crate::engine::file::LazyFile;
use crate::engine::node::Node;
use crate::engine::recorder::Said;
use crate::engine::settings::OnChange;
use crate::engine::{Engine, Notice};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::EntryPhase;
use crate::sync::{AtomicBool, Ordering};

/// What was noticed of changes at the source.
#[derive(Debug, Default)]
pub struct Changes {
    /// Published files whose names are gone, with their inode numbers.
    deleted: Table<RelPath, u64>,
    /// Numbers of files that stay what they were although the source has another version.
    refused: Table<u64, ()>,
    /// Numbers of directories with something new since somebody asked to know.
    directories: Table<u64, ()>,
    /// Whether somebody wants to know of them. Relaxed: set before its first listing.
    is_followed: AtomicBool,
    news: Notify,
}

impl Changes {
    /// From now on directories with something new are kept: they are the news of [`Engine::news`].
    pub fn follow(&self) {
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

    /// Inode numbers of published files that the source has no more.
    pub(super) fn deleted(&self) -> Vec<u64> {
        self.deleted.values()
    }

    pub(super) fn is_deleted(&self, path: &RelPath) -> bool {
        self.deleted.get(path).is_some()
    }

    /// How many these are.
    pub fn deleted_count(&self) -> u64 {
        self.deleted.len() as u64
    }
}

/// The error of a file that changed and must not.
pub(super) fn changed(path: &RelPath) -> Error {
    Error::new(Kind::Stale, "follow source")
        .at(path.as_path())
        .because("it changed at the source; what is here of its first version is kept")
        .hint("--on-change fail was asked for; --on-change follow copies the new version")
}

impl Engine {
    /// What was noticed of changes at the source.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

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
        if old.kind() == EntryKind::File {
            let was_stale = old.is_stale();
            old.supersede();
            self.tree.let_go.take_back(old.ino);
            let is_first = match old.file_in_use() {
                Some(file) => self.retire(file),
                None => !was_stale,
            };
            if is_first {
                self.stats.files_changed.increment();
                tracing::info!(path = %old.path(), ino = old.ino, "changed at the source");
            }
        }
        self.changes.note_news(parent);
        self.tell(Notice::EntryChanged { parent, name: name.to_owned() });
    }

    /// Whether `node` stays what its name means although the source says `attributes`: so it is asked for.
    pub(super) fn refuses(&self, node: &Node, attributes: &Attributes) -> bool {
        if self.settings.on_change == OnChange::Follow
            || node.kind() != EntryKind::File
            || attributes.kind != EntryKind::File
        {
            return false;
        }
        self.refuse(node.ino, &node.path());
        true
    }

    /// A file keeps what is here of its first version, and counts as failed.
    fn refuse(&self, ino: u64, path: &RelPath) {
        if self.changes.refused.insert(ino, ()).is_none() {
            self.stats.files_changed.increment();
            let error = changed(path);
            tracing::warn!(%path, %error, "not followed");
            self.stats.errors.failed(path, Some(ino), &error);
        }
    }

    /// The source definitely has no such name. What is local stays. May read the catalog.
    pub(super) fn vanish(self: &Arc<Self>, parent: u64, name: &OsStr) {
        // Most names that nobody has were never known: nothing to write then. Asked in this order: what was said is in the catalog before
        // it counts as written.
        if self.tree.names.get((parent, name)).is_none()
            && self.recorder.is_idle()
            && matches!(self.destination.catalog().name(parent, name), Ok(None))
        {
            return;
        }
        self.tree.gone.mark(parent, name);
        let gone = self.tree.names.take((parent, name));
        self.recorder.say(Said::Gone { parent, name: name.to_owned() });
        if gone.is_some() {
            self.tell(Notice::EntryChanged { parent, name: name.to_owned() });
        }
        let Ok(path) = self.node(parent).and_then(|parent| parent.path().child(name)) else {
            return;
        };
        let engine = Arc::clone(self);
        self.runtime.spawn_blocking(move || {
            if let Err(error) = engine.note_deleted(&path) {
                tracing::warn!(%path, %error, "what is deleted at the source is not counted");
            }
        });
    }

    /// Counts the published files at or below a path that is gone. Blocking.
    fn note_deleted(&self, path: &RelPath) -> Result<()> {
        self.destination.catalog().entries_below(path, |entry| {
            if matches!(entry.phase, EntryPhase::Published(_)) {
                tracing::info!(path = %entry.path, "deleted at the source; the copy is kept");
                self.tree.let_go.take_back(entry.version.ino);
                self.changes.deleted.insert(entry.path, entry.version.ino);
            }
            Ok(())
        })
    }

    /// A name is there, perhaps again.
    pub(super) fn note_there(&self, directory: &Node, name: &OsStr) {
        if !self.changes.deleted.is_empty()
            && let Ok(path) = directory.path().child(name)
        {
            self.changes.deleted.remove(&path);
        }
    }

    /// The source answered that `file` has another version now: the next lookup finds it.
    pub(crate) fn found_stale(&self, file: &LazyFile) {
        if self.settings.on_change == OnChange::Fail {
            return self.refuse(file.ino, &file.path);
        }
        if !self.retire(file) {
            return;
        }
        self.stats.files_changed.increment();
        tracing::info!(path = %file.path, ino = file.ino, "changed at the source");
        if let Ok(node) = self.node(file.ino) {
            let (parent, name) = (node.parent_ino(), node.name().to_owned());
            self.changes.note_news(parent);
            self.tell(Notice::EntryChanged { parent, name });
        }
    }
}
