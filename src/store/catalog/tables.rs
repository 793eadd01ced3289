//! The tables of one write transaction, kept in step with each other.

use std::ops::Range;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::error::Result;

use super::bits::{Bits, SEGMENT_BLOCKS, by_segment};
use super::database::{Failure, corrupt};
use super::record::{EntryPhase, EntryRecord, OtherRecord, Version};

/// name -> value of the whole catalog.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// path -> entry
pub(super) const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
/// inode number -> path
pub(super) const INOS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("inos");
/// (inode number, segment) -> bits
pub(super) const BLOCKS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("blocks");
/// paths of the entries that recovery looks at; few, however large the tree
pub(super) const UNFINISHED: TableDefinition<'_, &[u8], ()> = TableDefinition::new("unfinished");
/// path -> entry without bytes of its own
pub(super) const OTHERS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("others");
/// (inode number of the directory, name) -> name; the root is the empty name in directory 0
pub(super) const NAMES: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("names");
/// inode number of a directory of which every name is recorded -> the next position to give
pub(super) const LISTINGS: TableDefinition<'_, u64, u64> = TableDefinition::new("listings");
/// inode numbers of directories that are gone, with names left in them
pub(super) const ORPHANS: TableDefinition<'_, u64, ()> = TableDefinition::new("orphans");
/// identity at the source of a file with several names -> one of these
pub(super) const LINKS: TableDefinition<'_, (u64, u64), (u64, &[u8])> =
    TableDefinition::new("links");
/// inode number -> number of its last use; of a cache of limited size
pub(super) const USES: TableDefinition<'_, u64, u64> = TableDefinition::new("uses");
/// number of a life -> what it came to, as JSON
pub(super) const LIVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lives");
/// paths that are kept from eviction, with all below them
pub(super) const PINS: TableDefinition<'_, &[u8], ()> = TableDefinition::new("pins");
/// number -> note
pub(super) const ERRORS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("errors");

/// The tables about entries, open for writing.
pub(super) struct Tables<'t> {
    entries: Table<'t, &'static [u8], &'static [u8]>,
    inos: Table<'t, u64, &'static [u8]>,
    blocks: Table<'t, (u64, u64), &'static [u8]>,
    unfinished: Table<'t, &'static [u8], ()>,
    others: Table<'t, &'static [u8], &'static [u8]>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Failure> {
        Ok(Self {
            entries: transaction.open_table(ENTRIES)?,
            inos: transaction.open_table(INOS)?,
            blocks: transaction.open_table(BLOCKS)?,
            unfinished: transaction.open_table(UNFINISHED)?,
            others: transaction.open_table(OTHERS)?,
        })
    }

    pub(super) fn get(&self, path: &[u8]) -> Result<Option<EntryRecord>, Failure> {
        get_entry(&self.entries, path)
    }

    /// The entry of `version` as it is, or what it starts as. `None` if a later version is recorded under this path.
    pub(super) fn get_version(
        &self,
        path: &crate::core::path::RelPath,
        version: &Version,
    ) -> Result<Option<EntryRecord>, Failure> {
        let new = || EntryRecord::absent(path.clone(), version.clone());
        Ok(match self.get(path.as_bytes())? {
            None => Some(new()),
            Some(known) if known.version.ino == version.ino => {
                Some(EntryRecord { version: version.clone(), ..known })
            }
            Some(known) if known.version.ino > version.ino => None,
            Some(known) => Some(EntryRecord { former: known.placed(), ..new() }),
        })
    }

    /// Records `record`. An earlier version of its path is forgotten: its number is returned, for its tree.
    pub(super) fn put(&mut self, record: &EntryRecord) -> Result<Option<u64>, Failure> {
        let path = record.path.as_bytes();
        let ino = record.version.ino;
        let old = self.get(path)?.map(|old| old.version.ino).filter(|old| *old != ino);
        if let Some(old) = old {
            self.inos.remove(old)?;
            self.clear_all(old)?;
        }
        self.entries.insert(path, record.encode().as_slice())?;
        self.inos.insert(ino, path)?;
        if record.is_unfinished() {
            self.unfinished.insert(path, ())?;
        } else {
            self.unfinished.remove(path)?;
        }
        // Of these all blocks or none may be trusted.
        if !matches!(record.phase, EntryPhase::Filling | EntryPhase::Failed) {
            self.clear_all(ino)?;
        }
        Ok(old)
    }

    /// Forgets all of an entry; returns its number, unless an entry under another name has it now.
    pub(super) fn remove(&mut self, path: &[u8]) -> Result<Option<u64>, Failure> {
        let Some(old) = self.get(path)? else { return Ok(None) };
        let ino = old.version.ino;
        self.entries.remove(path)?;
        self.unfinished.remove(path)?;
        if self.inos.get(ino)?.is_some_and(|owner| owner.value() != path) {
            return Ok(None);
        }
        self.inos.remove(ino)?;
        self.clear_all(ino)?;
        Ok(Some(ino))
    }

    /// Records an entry without bytes of its own.
    pub(super) fn put_other(&mut self, record: &OtherRecord) -> Result<(), Failure> {
        self.others.insert(record.path.as_bytes(), record.encode().as_slice())?;
        Ok(())
    }

    /// What had no bytes of its own has some now.
    pub(super) fn remove_other(&mut self, path: &[u8]) -> Result<(), Failure> {
        self.others.remove(path)?;
        Ok(())
    }

    /// Records `blocks` of a file as trusted or not.
    pub(super) fn change_blocks(
        &mut self,
        ino: u64,
        blocks: Range<u64>,
        is_set: bool,
    ) -> Result<(), Failure> {
        for (segment, run) in by_segment(blocks) {
            let key = (ino, segment);
            let known = self.blocks.get(key)?.map(|known| decode_bits(key, known.value()));
            let mut bits = known.transpose()?.unwrap_or_default();
            bits.change(run, is_set);
            if bits.as_bytes().is_empty() {
                self.blocks.remove(key)?;
            } else {
                self.blocks.insert(key, bits.as_bytes())?;
            }
        }
        Ok(())
    }

    fn clear_all(&mut self, ino: u64) -> Result<(), Failure> {
        let all = (ino, 0)..=(ino, u64::MAX);
        // Mostly there are none, and looking costs less than retaining.
        if self.blocks.range(all.clone())?.next().is_some() {
            self.blocks.retain_in(all, |_, _| false)?;
        }
        Ok(())
    }
}

/// The entry of a path.
pub(super) fn get_entry(
    entries: &impl ReadableTable<&'static [u8], &'static [u8]>,
    path: &[u8],
) -> Result<Option<EntryRecord>, Failure> {
    let Some(found) = entries.get(path)? else { return Ok(None) };
    decode_entry(path, found.value()).map(Some)
}

pub(super) fn decode_entry(path: &[u8], bytes: &[u8]) -> Result<EntryRecord, Failure> {
    EntryRecord::decode(path, bytes)
        .ok_or_else(|| corrupt(format!("entry {:?}", String::from_utf8_lossy(path))))
}

/// The entry without bytes of a path.
pub(super) fn get_other(
    others: &impl ReadableTable<&'static [u8], &'static [u8]>,
    path: &[u8],
) -> Result<Option<OtherRecord>, Failure> {
    let Some(found) = others.get(path)? else { return Ok(None) };
    decode_other(path, found.value()).map(Some)
}

pub(super) fn decode_other(path: &[u8], bytes: &[u8]) -> Result<OtherRecord, Failure> {
    OtherRecord::decode(path, bytes)
        .ok_or_else(|| corrupt(format!("entry {:?}", String::from_utf8_lossy(path))))
}

fn decode_bits((ino, segment): (u64, u64), bytes: &[u8]) -> Result<Bits, Failure> {
    Bits::decode(bytes).ok_or_else(|| corrupt(format!("block map of inode {ino}, part {segment}")))
}

/// The trusted blocks below `count` of a file, as runs in order.
pub(super) fn get_blocks(
    blocks: &impl ReadableTable<(u64, u64), &'static [u8]>,
    ino: u64,
    count: u64,
) -> Result<Vec<Range<u64>>, Failure> {
    let mut runs = Vec::new();
    let last = count.saturating_sub(1) / SEGMENT_BLOCKS;
    for row in blocks.range((ino, 0)..=(ino, last))? {
        let (key, bits) = row?;
        let key = key.value();
        decode_bits(key, bits.value())?.append_to(&mut runs, key.1 * SEGMENT_BLOCKS);
    }
    match runs.last() {
        Some(run) if run.end > count => {
            Err(corrupt(format!("block map of inode {ino}: block {} of {count}", run.end - 1)))
        }
        _ => Ok(runs),
    }
}
