//! The tree as the source showed it last: names, and which directories were listed to the end.
//!
//! Changes become durable in the order in which they were said. So a listing is complete after a crash only if every one of its names
//! is there; while a later listing is recorded, what both hold never goes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use redb::{ReadableTable, Table, WriteTransaction};

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::error::Result;

use super::database::{Commit, Failure, corrupt};
use super::name::{ListedName, NameRecord, SourceShape, decode_listed};
use super::tables::{LINKS, LISTINGS, META, NAMES, ORPHANS};
use super::{Catalog, get_number};

/// The root's name, in directory 0.
const ROOT_PLACE: (u64, &[u8]) = (0, b"");

/// One thing to be said about names.
#[derive(Debug, Clone)]
pub enum NameChange {
    /// The source has this name. A position of 0 keeps the one that is recorded; attributes, target and xattrs that are not given
    /// are kept as long as it is the same inode.
    Put {
        /// Inode of the directory; 0 for the root, whose name is empty.
        parent: u64,
        /// The name.
        name: OsString,
        /// What it means now.
        record: NameRecord,
    },
    /// The source definitely has no such name.
    Remove {
        /// Inode of the directory.
        parent: u64,
        /// The name.
        name: OsString,
    },
    /// Every name in it was said.
    Complete {
        /// Inode of the directory.
        directory: u64,
        /// Above all positions that were given in it.
        next_position: u64,
    },
    /// What is known of its names may lack some.
    Incomplete {
        /// Inode of the directory.
        directory: u64,
    },
}

/// Regular files and their bytes that names stand for. A file with several names counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnownFiles {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Catalog {
    /// What is recorded of a name.
    ///
    /// # Errors
    /// `Corrupt`, naming the record; `Io`.
    pub fn name(&self, parent: u64, name: &OsStr) -> Result<Option<NameRecord>> {
        let key = (parent, name.as_bytes());
        self.database
            .read("read catalog", |transaction| get_name(&transaction.open_table(NAMES)?, key))
    }

    /// What is recorded of a path, name by name from the root down.
    ///
    /// # Errors
    /// As [`Catalog::name`].
    pub fn name_at(&self, path: &RelPath) -> Result<Option<NameRecord>> {
        self.database.read("read catalog", |transaction| {
            let names = transaction.open_table(NAMES)?;
            let mut found = get_name(&names, ROOT_PLACE)?;
            for name in path.components() {
                let Some(directory) = found else { return Ok(None) };
                found = get_name(&names, (directory.ino, name.as_bytes()))?;
            }
            Ok(found)
        })
    }

    /// What is recorded of the root.
    ///
    /// # Errors
    /// As [`Catalog::name`].
    pub fn root(&self) -> Result<Option<NameRecord>> {
        self.name(ROOT_PLACE.0, OsStr::from_bytes(ROOT_PLACE.1))
    }

    /// What is recorded of one of the names of a file that has several, by its identity at the source.
    ///
    /// # Errors
    /// As [`Catalog::name`].
    pub fn linked(&self, identity: (u64, u64)) -> Result<Option<NameRecord>> {
        self.database.read("read catalog", |transaction| {
            let links = transaction.open_table(LINKS)?;
            let Some(place) = links.get(identity)? else { return Ok(None) };
            get_name(&transaction.open_table(NAMES)?, place.value())
        })
    }

    /// The listing of a directory in order of position, and the next position to give; `None` if it was never listed to the end.
    ///
    /// # Errors
    /// As [`Catalog::name`].
    pub fn listing(&self, directory: u64) -> Result<Option<(Vec<ListedName>, u64)>> {
        self.database.read("read catalog", |transaction| {
            let listings = transaction.open_table(LISTINGS)?;
            let Some(next) = listings.get(directory)?.map(|next| next.value()) else {
                return Ok(None);
            };
            let names = transaction.open_table(NAMES)?;
            let mut listed = Vec::new();
            for row in names.range((directory, b"".as_slice())..(directory + 1, b"".as_slice()))? {
                let (key, record) = row?;
                let name = key.value().1;
                let one = decode_listed(name, record.value());
                listed.push(one.ok_or_else(|| unreadable(key.value()))?);
            }
            listed.retain(|one| one.position > 0);
            listed.sort_by_key(|one| one.position);
            Ok(Some((listed, next)))
        })
    }

    /// Whether a directory was listed to the end and had something in it.
    ///
    /// # Errors
    /// `Io`.
    pub fn has_names(&self, directory: u64) -> Result<bool> {
        self.database.read("read catalog", |transaction| {
            let names = transaction.open_table(NAMES)?;
            let mut rows =
                names.range((directory, b"".as_slice())..(directory + 1, b"".as_slice()))?;
            Ok(rows.next().transpose()?.is_some())
        })
    }

    /// Regular files that names stand for.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn known_files(&self) -> Result<KnownFiles> {
        self.database.read("read catalog", |transaction| {
            let meta = transaction.open_table(META)?;
            Ok(KnownFiles {
                files: get_number(&meta, "files")?.unwrap_or(0),
                bytes: get_number(&meta, "bytes")?.unwrap_or(0),
            })
        })
    }

    /// Says changes, in order and in one commit that becomes durable with the next durable one. Only differences are written. Answers
    /// what is known then.
    ///
    /// # Errors
    /// As a write; then none of them was said.
    pub fn record_names(&self, changes: &[NameChange]) -> Result<KnownFiles> {
        self.database.write("record names", Commit::Later, |transaction| {
            let mut names = Names::open(transaction)?;
            changes.iter().try_for_each(|change| names.apply(change))?;
            names.finish(transaction)
        })
    }

    /// Forgets up to `most` names below directories that are gone, and says whether there are more.
    ///
    /// # Errors
    /// As a write.
    pub fn sweep_names(&self, most: usize) -> Result<(KnownFiles, bool)> {
        let none_left = self.database.read("read catalog", |transaction| {
            Ok(transaction.open_table(ORPHANS)?.first()?.is_none())
        })?;
        if none_left {
            return Ok((self.known_files()?, false));
        }
        self.database.write("forget names", Commit::Later, |transaction| {
            let mut names = Names::open(transaction)?;
            let mut left = most;
            while left > 0 {
                let first = names.orphans.first()?.map(|row| row.0.value());
                let Some(directory) = first else { break };
                left = names.sweep(directory, left)?;
            }
            let is_more = names.orphans.first()?.is_some();
            Ok((names.finish(transaction)?, is_more))
        })
    }

    /// How the source looked when it was last open.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn source_shape(&self) -> Result<Option<SourceShape>> {
        self.database.read("read catalog", |transaction| {
            let meta = transaction.open_table(META)?;
            let Some(found) = meta.get("shape")? else { return Ok(None) };
            SourceShape::decode(found.value()).map(Some).ok_or_else(|| corrupt("shape"))
        })
    }

    /// Records how the source looks, durably, if that is news.
    ///
    /// # Errors
    /// As a durable write.
    pub fn set_source_shape(&self, shape: &SourceShape) -> Result<()> {
        if self.source_shape()?.as_ref() == Some(shape) {
            return Ok(());
        }
        self.database.write("record source", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert("shape", shape.encode().as_slice())?;
            Ok(())
        })
    }

    /// Whether everything that lay in DIR before the first life was compared with the source.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn is_examined(&self) -> Result<bool> {
        self.database.read("read catalog", |transaction| {
            Ok(get_number(&transaction.open_table(META)?, "examined")?.is_some())
        })
    }

    /// Records that it was.
    ///
    /// # Errors
    /// As a durable write.
    pub fn set_examined(&self) -> Result<()> {
        self.database.write("record examination", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert("examined", 1u64.to_le_bytes().as_slice())?;
            Ok(())
        })
    }
}

/// The tables about names, open for writing.
pub(super) struct Names<'t> {
    names: Table<'t, (u64, &'static [u8]), &'static [u8]>,
    listings: Table<'t, u64, u64>,
    orphans: Table<'t, u64, ()>,
    links: Table<'t, (u64, u64), (u64, &'static [u8])>,
    /// Change of the counts, with wrapping.
    files: u64,
    bytes: u64,
}

impl<'t> Names<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Failure> {
        Ok(Self {
            names: transaction.open_table(NAMES)?,
            listings: transaction.open_table(LISTINGS)?,
            orphans: transaction.open_table(ORPHANS)?,
            links: transaction.open_table(LINKS)?,
            files: 0,
            bytes: 0,
        })
    }

    pub(super) fn apply(&mut self, change: &NameChange) -> Result<(), Failure> {
        match change {
            NameChange::Put { parent, name, record } => {
                self.put((*parent, name.as_bytes()), record)
            }
            NameChange::Remove { parent, name } => self.remove((*parent, name.as_bytes())),
            NameChange::Complete { directory, next_position } => {
                self.complete(*directory, *next_position)
            }
            NameChange::Incomplete { directory } => {
                self.listings.remove(*directory)?;
                Ok(())
            }
        }
    }

    fn put(&mut self, key: (u64, &[u8]), record: &NameRecord) -> Result<(), Failure> {
        let old = get_name(&self.names, key)?;
        let mut merged = merge(record, old.as_ref());
        merged.is_first &= !self.is_counted_elsewhere(key, &merged)?;
        if old.as_ref() == Some(&merged) {
            return Ok(());
        }
        self.names.insert(key, merged.encode().as_slice())?;
        self.unlink(key, old.as_ref())?;
        // The name that counts is the one that is found.
        if let Some(identity) = merged.identity().filter(|_| merged.is_first) {
            self.links.insert(identity, key)?;
        }
        self.count(old.as_ref(), Some(&merged));
        self.orphan(old.as_ref(), Some(&merged))
    }

    fn remove(&mut self, key: (u64, &[u8])) -> Result<(), Failure> {
        let old = get_name(&self.names, key)?;
        self.names.remove(key)?;
        self.unlink(key, old.as_ref())?;
        self.count(old.as_ref(), None);
        self.orphan(old.as_ref(), None)
    }

    /// Whether another name of the same file counts already.
    fn is_counted_elsewhere(
        &self,
        key: (u64, &[u8]),
        record: &NameRecord,
    ) -> Result<bool, Failure> {
        let Some(identity) = record.identity() else { return Ok(false) };
        let Some(place) = self.links.get(identity)?.filter(|place| place.value() != key) else {
            return Ok(false);
        };
        let other = get_name(&self.names, place.value())?;
        Ok(other.is_some_and(|other| other.ino == record.ino && other.is_first))
    }

    /// The name no longer stands for the file that it was.
    fn unlink(&mut self, key: (u64, &[u8]), old: Option<&NameRecord>) -> Result<(), Failure> {
        let Some(identity) = old.and_then(NameRecord::identity) else { return Ok(()) };
        let is_it = self.links.get(identity)?.is_some_and(|place| place.value() == key);
        if is_it {
            self.links.remove(identity)?;
        }
        Ok(())
    }

    fn complete(&mut self, directory: u64, next_position: u64) -> Result<(), Failure> {
        if self.listings.get(directory)?.map(|next| next.value()) != Some(next_position) {
            self.listings.insert(directory, next_position)?;
        }
        Ok(())
    }

    fn count(&mut self, old: Option<&NameRecord>, new: Option<&NameRecord>) {
        let of = |record: Option<&NameRecord>| record.map_or((0, 0), NameRecord::counts);
        let ((old_files, old_bytes), (files, bytes)) = (of(old), of(new));
        self.files = self.files.wrapping_add(files).wrapping_sub(old_files);
        self.bytes = self.bytes.wrapping_add(bytes).wrapping_sub(old_bytes);
    }

    /// What lies in a directory that is gone is forgotten later: it may be much.
    fn orphan(
        &mut self,
        old: Option<&NameRecord>,
        new: Option<&NameRecord>,
    ) -> Result<(), Failure> {
        let directory = |record: Option<&NameRecord>| {
            record.filter(|record| record.kind == EntryKind::Directory).map(|record| record.ino)
        };
        if let Some(gone) = directory(old).filter(|gone| directory(new) != Some(*gone)) {
            self.orphans.insert(gone, ())?;
        }
        Ok(())
    }

    /// Forgets up to `most` names of a directory that is gone; returns what is left of `most`.
    fn sweep(&mut self, directory: u64, most: usize) -> Result<usize, Failure> {
        // First: half a listing is none.
        self.listings.remove(directory)?;
        let mut gone = Vec::new();
        let range = (directory, b"".as_slice())..(directory + 1, b"".as_slice());
        for row in self.names.range(range)?.take(most) {
            gone.push(row?.0.value().1.to_vec());
        }
        for name in &gone {
            self.remove((directory, name))?;
        }
        if gone.len() < most {
            self.orphans.remove(directory)?;
        }
        Ok(most - gone.len().min(most))
    }

    pub(super) fn finish(self, transaction: &WriteTransaction) -> Result<KnownFiles, Failure> {
        let mut meta = transaction.open_table(META)?;
        let mut add = |name, change: u64| -> Result<u64, Failure> {
            let number = get_number(&meta, name)?.unwrap_or(0).wrapping_add(change);
            if change != 0 {
                meta.insert(name, number.to_le_bytes().as_slice())?;
            }
            Ok(number)
        };
        Ok(KnownFiles { files: add("files", self.files)?, bytes: add("bytes", self.bytes)? })
    }
}

/// What is recorded of a name after `new` was said of it.
fn merge(new: &NameRecord, old: Option<&NameRecord>) -> NameRecord {
    let mut merged = new.clone();
    let Some(old) = old else { return merged };
    if merged.position == 0 {
        merged.position = old.position;
    }
    if old.kind == merged.kind && (old.ino == merged.ino || merged.attributes.is_none()) {
        // Which of several names counts is decided once; and a name that is listed without attributes keeps its number.
        (merged.ino, merged.is_first) = (old.ino, old.is_first);
        merged.attributes = merged.attributes.or_else(|| old.attributes.clone());
        merged.target = merged.target.or_else(|| old.target.clone());
        let is_same = merged.attributes == old.attributes;
        merged.xattrs = merged.xattrs.or_else(|| old.xattrs.clone().filter(|_| is_same));
    }
    merged
}

fn get_name(
    names: &impl ReadableTable<(u64, &'static [u8]), &'static [u8]>,
    key: (u64, &[u8]),
) -> Result<Option<NameRecord>, Failure> {
    let Some(found) = names.get(key)? else { return Ok(None) };
    NameRecord::decode(found.value()).map(Some).ok_or_else(|| unreadable(key))
}

pub(super) fn unreadable((parent, name): (u64, &[u8])) -> Failure {
    corrupt(format!("name {:?} in directory {parent}", String::from_utf8_lossy(name)))
}
