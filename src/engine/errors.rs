//! What went wrong, in this life and earlier ones, for status: an error stays until its file is copied after all.

use std::time::SystemTime;

use crate::core::path::RelPath;
use crate::core::table::Table;
use crate::engine::stats::Counter;
use crate::engine::{Engine, on_disk};
use crate::error::Error;
use crate::store::SetAside;
use crate::store::catalog::{ERRORS_KEPT, ErrorNote};
use crate::sync::{AtomicBool, Ordering};

/// Errors that status shows.
const SHOWN: usize = 64;

/// The error history, kept in memory and saved with the next checkpoint.
#[derive(Debug, Default)]
pub struct Errors {
    /// Number of the next note, from 0 on: notes are a ring.
    seen: Counter,
    notes: Table<u64, ErrorNote>,
    /// Paths that have notes, with the number of the last.
    paths: Table<RelPath, u64>,
    /// Entries that could not be copied until they are tried again, with their inode number where they have one.
    failed: Table<RelPath, Option<u64>>,
    /// Something is to be saved. AcqRel: who takes it sees the notes.
    unsaved: AtomicBool,
}

/// What the catalog shall know of them.
#[derive(Debug)]
pub(crate) struct Unsaved {
    notes: Vec<ErrorNote>,
    failed: Vec<(RelPath, u64)>,
}

impl Errors {
    /// Takes in what earlier lives noted, oldest first.
    pub(crate) fn restore(&self, notes: Vec<ErrorNote>) {
        notes.into_iter().for_each(|note| self.note(note));
    }

    /// Remembers an error; the oldest is forgotten. The same once more only becomes newer.
    pub fn remember(&self, path: &RelPath, error: &Error) {
        let (kind, message) = (error.kind().as_str().to_owned(), error.to_string());
        self.note(ErrorNote { path: path.clone(), kind, message, at: SystemTime::now() });
        self.unsaved.store(true, Ordering::Release);
    }

    /// Remembers files of users that an eviction could not leave where they were.
    pub(crate) fn remember_aside(&self, set_aside: &[SetAside]) {
        set_aside.iter().for_each(|left| self.remember(&left.path, &left.error()));
    }

    fn note(&self, note: ErrorNote) {
        let last = self.paths.get(&note.path);
        let is_again = |last: &u64| {
            let known = self.notes.get(&(last % ERRORS_KEPT));
            known.is_some_and(|known| known.path == note.path && known.message == note.message)
        };
        let number = last.filter(is_again).unwrap_or_else(|| {
            self.seen.increment();
            self.seen.get() - 1
        });
        self.paths.insert(note.path.clone(), number);
        self.notes.insert(number % ERRORS_KEPT, note);
    }

    /// An entry could not be copied: counted once however often it fails, until [`Errors::succeeded`].
    pub fn failed(&self, path: &RelPath, ino: Option<u64>, error: &Error) {
        let ino = ino.or_else(|| self.failed.get(path).flatten());
        self.failed.insert(path.clone(), ino);
        self.remember(path, error);
    }

    /// An entry was copied after all: its errors are no longer of interest.
    pub fn succeeded(&self, path: &RelPath) {
        self.failed.remove(path);
        if self.paths.remove(path).is_none() {
            return;
        }
        for number in self.notes.keys() {
            if self.notes.get(&number).is_some_and(|note| note.path == *path) {
                self.notes.remove(&number);
            }
        }
        self.unsaved.store(true, Ordering::Release);
    }

    /// Entries that could not be copied so far.
    pub fn entries_failed(&self) -> u64 {
        self.failed.len() as u64
    }

    /// The last errors, oldest first.
    pub fn recent(&self) -> Vec<ErrorNote> {
        let mut notes = self.all();
        notes.split_off(notes.len().saturating_sub(SHOWN))
    }

    fn all(&self) -> Vec<ErrorNote> {
        let mut notes = self.notes.values();
        notes.sort_by_key(|note| note.at);
        notes
    }

    /// What is to be saved, if there is news.
    fn take_unsaved(&self) -> Option<Unsaved> {
        self.unsaved.swap(false, Ordering::AcqRel).then(|| {
            let failed = self.failed.keys().into_iter();
            let with_ino = |path| Some((self.failed.get(&path)??, path));
            let failed = failed.filter_map(with_ino).map(|(ino, path)| (path, ino)).collect();
            Unsaved { notes: self.all(), failed }
        })
    }
}

impl Engine {
    /// Saves what there is of new errors, all in one commit.
    pub(crate) async fn save_errors(&self) {
        let Some(Unsaved { notes, failed }) = self.stats.errors.take_unsaved() else { return };
        let destination = std::sync::Arc::clone(&self.destination);
        let save = move || {
            destination.catalog().set_failed(&failed)?;
            destination.catalog().record_errors(&notes)
        };
        if let Err(error) = on_disk("save errors", save).await {
            tracing::warn!(%error, "errors not saved; tried again with the next checkpoint");
            self.stats.errors.unsaved.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn path(name: &str) -> RelPath {
        RelPath::root().child(name.as_ref()).unwrap()
    }

    fn error(why: &str) -> Error {
        Error::new(Kind::Io, "copy file").because(why)
    }

    #[test]
    fn an_error_leaves_when_its_file_succeeds_and_no_other_does() {
        let errors = Errors::default();
        errors.failed(&path("a"), Some(2), &error("one"));
        errors.failed(&path("b"), None, &error("two"));
        errors.remember(&path("a"), &error("three"));
        assert_eq!((errors.recent().len(), errors.entries_failed()), (3, 2));
        errors.succeeded(&path("a"));
        let left: Vec<_> = errors.recent().into_iter().map(|note| note.path).collect();
        assert_eq!((left, errors.entries_failed()), (vec![path("b")], 1));
    }

    #[test]
    fn the_same_error_again_is_one_error() {
        let errors = Errors::default();
        for _ in 0..3 {
            errors.remember(&path("a"), &error("one"));
        }
        assert_eq!(errors.recent().len(), 1);
        errors.remember(&path("a"), &error("two"));
        assert_eq!(errors.recent().len(), 2);
    }

    #[test]
    fn what_is_saved_is_saved_once() {
        let errors = Errors::default();
        assert!(errors.take_unsaved().is_none());
        errors.failed(&path("a"), Some(7), &error("one"));
        let unsaved = errors.take_unsaved().unwrap();
        assert_eq!((unsaved.notes.len(), unsaved.failed), (1, vec![(path("a"), 7)]));
        assert!(errors.take_unsaved().is_none());
        // What earlier lives noted is saved already.
        errors.restore(unsaved.notes);
        assert!(errors.take_unsaved().is_none());
    }
}
