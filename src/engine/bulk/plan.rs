//! What a pass found.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::sync::Arc;

use crate::core::attributes::{Attributes, Timestamp, Validator};
use crate::core::path::RelPath;
use crate::engine::bulk::gone::Gone;
use crate::source::local::tree::LocalDirectory;
use crate::store::Replace;
use crate::store::catalog::{EntryPhase, EntryRecord};

/// Some files of one directory.
#[derive(Debug)]
pub struct Batch {
    /// The directory.
    pub(super) directory: Place,
    /// Its inode number.
    pub(super) ino: u64,
    /// What is to be carried.
    pub(super) files: Vec<FileJob>,
}

/// A directory of the source: open, or to be opened.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Open(Arc<LocalDirectory>),
    Path(RelPath),
}

impl Place {
    pub(super) fn path(&self) -> &RelPath {
        match self {
            Place::Open(directory) => directory.path(),
            Place::Path(path) => path,
        }
    }
}

/// One entry that is to be brought over.
#[derive(Debug, Clone)]
pub(super) struct FileJob {
    pub(super) name: OsString,
    pub(super) attributes: Attributes,
    /// Inode number at the source.
    pub(super) origin: u64,
    /// Number of the version.
    pub(super) ino: u64,
    pub(super) replace: Replace,
    /// Nothing is recorded or lies there: it may be one that has another name now.
    pub(super) is_new: bool,
}

/// One more name of a file.
#[derive(Debug, Clone)]
pub(super) struct LinkJob {
    pub(super) first: RelPath,
    pub(super) path: RelPath,
    pub(super) replace: Replace,
}

/// A file that has another name at the source now.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) record: EntryRecord,
    pub(super) path: RelPath,
    /// Inode number of its new directory.
    pub(super) parent: u64,
    pub(super) attributes: Attributes,
}

/// What a pass found and has not done yet.
#[derive(Debug, Default)]
pub struct Plan {
    pub(super) batches: Vec<Batch>,
    pub(super) moves: Vec<Move>,
    pub(super) links: Vec<LinkJob>,
    pub(super) gone: Vec<Gone>,
    /// Directories that get their metadata at the end.
    pub(super) finish: BTreeSet<RelPath>,
    pub(super) left: Vec<RelPath>,
}

/// What a file is known by under another name.
type Known = (u64, u64, Timestamp);

impl Plan {
    /// Both together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.batches.extend(other.batches);
        self.moves.extend(other.moves);
        self.links.extend(other.links);
        self.gone.extend(other.gone);
        self.finish.extend(other.finish);
        self.left.extend(other.left);
        self
    }

    /// Files that are new under one name and gone under another, with the same inode, size and time of modification at the source.
    pub(super) fn match_renames(&mut self) {
        let mut gone: HashMap<Known, usize> = HashMap::new();
        for (index, one) in self.gone.iter().enumerate() {
            if let Gone::File(record) = one
                && matches!(record.phase, EntryPhase::Published(_))
                && let (Some(origin), Validator::Modified(time)) =
                    (record.origin, &record.version.fingerprint.validator)
            {
                gone.insert((origin, record.version.fingerprint.size, *time), index);
            }
        }
        if gone.is_empty() {
            return;
        }
        let mut moved = BTreeSet::new();
        for batch in &mut self.batches {
            let directory = batch.directory.path().clone();
            let parent = batch.ino;
            let mut stay = Vec::with_capacity(batch.files.len());
            for file in batch.files.drain(..) {
                let a = &file.attributes;
                let known = a.modified.map(|time| (file.origin, a.size, time));
                let index = known.filter(|_| file.is_new).and_then(|known| gone.remove(&known));
                match (index, directory.child(&file.name)) {
                    (Some(index), Ok(path)) if let Gone::File(record) = &self.gone[index] => {
                        let (record, attributes) = ((**record).clone(), file.attributes);
                        self.moves.push(Move { record, path, parent, attributes });
                        moved.insert(index);
                    }
                    _ => stay.push(file),
                }
            }
            batch.files = stay;
        }
        let mut index = 0;
        self.gone.retain(|_| {
            index += 1;
            !moved.contains(&(index - 1))
        });
        self.batches.retain(|batch| !batch.files.is_empty());
    }
}
