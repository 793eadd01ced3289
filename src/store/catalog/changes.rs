//! What is said of entries: each call is one transaction. Nothing is trusted before it was said, and it is unsaid before the data goes.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use redb::{ReadableTable, WriteTransaction};

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::core::range::block_count;
use crate::error::Result;
use crate::store::metadata::MetadataLoss;

use super::Catalog;
use super::database::{Commit, Failure};
use super::names::{KnownFiles, NameChange, Names};
use super::record::{EntryPhase, EntryRecord, OtherRecord, Part, Placed, Version};
use super::tables::{OTHERS, Tables, USES, get_other};

/// What one checkpoint adds to one file. The part and the hashes are durable already.
#[derive(Debug, Clone)]
pub(in crate::store) struct Landed<'a> {
    pub(in crate::store) path: &'a RelPath,
    pub(in crate::store) version: &'a Version,
    pub(in crate::store) part: Part,
    pub(in crate::store) blocks: &'a [Range<u64>],
}

impl Catalog {
    /// Records numbers and versions of entries of which nothing is here yet, so that they keep their numbers over a restart. What is
    /// recorded of the same or a later version stays.
    ///
    /// # Errors
    /// As a durable write.
    pub fn know(&self, entries: &[(RelPath, Version)]) -> Result<()> {
        self.change("record entries", Commit::Durable, |tables, gone| {
            for (path, version) in entries {
                let known = tables.get(path.as_bytes())?;
                if known.is_some_and(|known| known.version == *version) {
                    continue;
                }
                if let Some(record) = tables.get_version(path, version)? {
                    gone.extend(tables.put(&record)?);
                }
            }
            Ok(())
        })
    }

    /// Forgets all about `path`: to be called, and to return, before its data goes.
    ///
    /// # Errors
    /// As a durable write.
    pub fn forget_entry(&self, path: &RelPath) -> Result<()> {
        self.change("forget entry", Commit::Durable, |tables, gone| {
            gone.extend(tables.remove(path.as_bytes())?);
            Ok(())
        })
    }

    /// Records that `blocks` of version `ino` of `path` can no longer be trusted: to be called, and to return, before their data goes.
    ///
    /// # Errors
    /// As a durable write.
    pub fn clear_blocks(&self, path: &RelPath, ino: u64, blocks: &[Range<u64>]) -> Result<()> {
        self.change("clear blocks", Commit::Durable, |tables, gone| {
            let Some(mut record) = tables.get(path.as_bytes())? else { return Ok(()) };
            if record.version.ino != ino {
                return Ok(());
            }
            if matches!(record.phase, EntryPhase::Sealed | EntryPhase::Verified(_)) {
                record.former = record.placed();
                record.phase = EntryPhase::Filling;
                gone.extend(tables.put(&record)?);
                let all = 0..block_count(record.version.fingerprint.size);
                tables.change_blocks(ino, all, true)?;
            }
            for run in blocks {
                tables.change_blocks(ino, run.clone(), false)?;
            }
            Ok(())
        })
    }

    /// Records that nothing of version `ino` of `path` is in the part with this inode: to be called, and to return, before the part goes.
    /// What is recorded of another part stays; so does what has its name by now, or is about to get it: that ends by itself.
    ///
    /// # Errors
    /// As a durable write.
    pub fn clear(&self, path: &RelPath, ino: u64, inode: u64) -> Result<()> {
        self.change("clear entry", Commit::Durable, |tables, gone| {
            let is_it = |known: &EntryRecord| {
                known.version.ino == ino
                    && known.part.as_ref().is_some_and(|part| part.inode == inode)
                    && !matches!(known.phase, EntryPhase::Verified(_))
            };
            let Some(record) = tables.get(path.as_bytes())?.filter(is_it) else { return Ok(()) };
            gone.push(ino);
            tables.put(&emptied(record)).map(drop)
        })
    }

    /// Records in one commit that nothing of many versions is here any more. Answers for each what may have its final name and was published by us: it
    /// is about to leave DIR, and leaves at the next start if that is cut short.
    ///
    /// # Errors
    /// As a durable write.
    pub(in crate::store) fn clear_evicted(
        &self,
        versions: &[(&RelPath, u64)],
    ) -> Result<Vec<Option<Placed>>> {
        self.change("evict entries", Commit::Durable, |tables, gone| {
            let mut placed = Vec::with_capacity(versions.len());
            for (path, ino) in versions {
                let Some(record) = tables.get(path.as_bytes())? else {
                    placed.push(None);
                    continue;
                };
                if record.version.ino != *ino {
                    placed.push(record.former); // maybe that one, if it was superseded
                    continue;
                }
                let leaves = match record.phase {
                    EntryPhase::Published(placed) if !record.is_adopted => Some(placed),
                    _ => None,
                };
                placed.push(leaves);
                gone.push(*ino);
                let is_evicted = leaves.is_some();
                gone.extend(tables.put(&EntryRecord { is_evicted, ..emptied(record) })?);
            }
            Ok(placed)
        })
    }

    /// Records when versions were used last, as numbers that grow. It becomes durable with the next durable change.
    ///
    /// # Errors
    /// `Io`.
    pub fn note_uses(&self, uses: &[(u64, u64)]) -> Result<()> {
        self.database.write("note uses", Commit::Later, |transaction| {
            let mut table = transaction.open_table(USES)?;
            for (ino, use_number) in uses {
                table.insert(ino, use_number)?;
            }
            Ok(())
        })
    }

    /// Forgets the uses of all versions but these.
    ///
    /// # Errors
    /// `Io`.
    pub(in crate::store) fn keep_uses(&self, inos: &HashSet<u64>) -> Result<()> {
        self.database.write("forget uses", Commit::Later, |transaction| {
            transaction.open_table(USES)?.retain(|ino, _| inos.contains(&ino))?;
            Ok(())
        })
    }

    /// When each version was used last, where that is known.
    ///
    /// # Errors
    /// `Io`.
    pub(in crate::store) fn uses(&self) -> Result<HashMap<u64, u64>> {
        self.database.read("read catalog", |transaction| {
            let table = match transaction.open_table(USES) {
                // Made with the first use.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(HashMap::new()),
                table => table?,
            };
            let mut uses = HashMap::new();
            for row in table.iter()? {
                let (ino, use_number) = row?;
                uses.insert(ino.value(), use_number.value());
            }
            Ok(uses)
        })
    }

    /// Records that these versions could not be copied. What is trusted of them stays so. It becomes durable with the next durable
    /// change.
    ///
    /// # Errors
    /// As a write.
    pub fn set_failed(&self, failed: &[(RelPath, u64)]) -> Result<()> {
        if failed.is_empty() {
            return Ok(());
        }
        self.change("record failure", Commit::Later, |tables, _| {
            for (path, ino) in failed {
                let known = tables.get(path.as_bytes())?;
                if let Some(record) = known.filter(|known| known.version.ino == *ino)
                    && matches!(record.phase, EntryPhase::Absent | EntryPhase::Filling)
                {
                    tables.put(&EntryRecord { phase: EntryPhase::Failed, ..record })?;
                }
            }
            Ok(())
        })
    }

    /// Records what landed, all in one commit. Of a file with a later version, or further on, nothing.
    pub(in crate::store) fn record_landed(&self, landed: &[Landed<'_>]) -> Result<()> {
        self.change("record checkpoint", Commit::Durable, |tables, gone| {
            for Landed { path, version, part, blocks } in landed {
                let Some(mut record) = tables.get_version(path, version)? else { continue };
                let is_open = matches!(
                    record.phase,
                    EntryPhase::Absent | EntryPhase::Filling | EntryPhase::Failed
                );
                if !is_open {
                    continue;
                }
                if record.part.as_ref() != Some(part) {
                    // Another part: nothing of the former one is in it.
                    record.phase = EntryPhase::Absent;
                    gone.extend(tables.put(&record)?);
                }
                record.phase = EntryPhase::Filling;
                record.part = Some(part.clone());
                gone.extend(tables.put(&record)?);
                for run in *blocks {
                    tables.change_blocks(version.ino, run.clone(), true)?;
                }
            }
            Ok(())
        })
    }

    /// Records, durably and in one commit, intents: each record is Verified or Published. Answers for each whether it counts: not if
    /// a later version of its path is recorded.
    pub(in crate::store) fn record_intents(&self, intents: &[EntryRecord]) -> Result<Vec<bool>> {
        self.change("record intent", Commit::Durable, |tables, gone| {
            intents.iter().map(|intent| put_intent(tables, gone, intent)).collect()
        })
    }

    /// Ends intents, in one commit that need not be durable at once: recovery finds the same by itself.
    pub(in crate::store) fn end_intents(&self, ends: &[(&RelPath, u64, IntentEnd)]) -> Result<()> {
        if ends.is_empty() {
            return Ok(());
        }
        self.change("end intent", Commit::Later, |tables, gone| {
            ends.iter().try_for_each(|(path, ino, end)| put_end(tables, gone, path, *ino, *end))
        })
    }

    /// What recovery found, in one commit.
    pub(in crate::store) fn record_recovered(&self, records: &[EntryRecord]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.change("record recovery", Commit::Durable, |tables, gone| {
            for record in records {
                gone.extend(tables.put(record)?);
                gone.extend((record.phase == EntryPhase::Absent).then_some(record.version.ino));
            }
            Ok(())
        })
    }

    /// Records an entry without bytes of its own. What is recorded of its losses stays if `losses` are not known now.
    ///
    /// # Errors
    /// As a write. It becomes durable with the next durable change.
    pub(in crate::store) fn note_other(
        &self,
        path: &RelPath,
        kind: EntryKind,
        link_of: Option<&RelPath>,
        losses: Option<&[MetadataLoss]>,
        placed: Option<Placed>,
    ) -> Result<()> {
        self.database.write("record entry", Commit::Later, |transaction| {
            let mut others = transaction.open_table(OTHERS)?;
            let known = get_other(&others, path.as_bytes())?;
            let kept = known.as_ref().map(|known| known.losses.clone()).unwrap_or_default();
            let losses = losses.map_or(kept, <[_]>::to_vec);
            let (path, link_of) = (path.clone(), link_of.cloned());
            let record = OtherRecord { path, kind, link_of, losses, placed };
            if known.as_ref() != Some(&record) {
                others.insert(record.path.as_bytes(), record.encode().as_slice())?;
            }
            Ok(())
        })
    }

    /// As [`Catalog::know`] for the next step of a bulk copy: what it says, all in one durable commit. Answers for each intent whether it
    /// counts, and what is known of the tree then.
    pub(in crate::store) fn record_step(&self, step: &Step<'_>) -> Result<(Vec<bool>, KnownFiles)> {
        let (value, gone) = self.database.write("record step", Commit::Durable, |transaction| {
            let (mut tables, mut gone) = (Tables::open(transaction)?, Vec::new());
            for (path, ino, end) in &step.ends {
                put_end(&mut tables, &mut gone, path, *ino, *end)?;
            }
            for path in &step.forgotten {
                gone.extend(tables.remove(path.as_bytes())?);
                tables.remove_other(path.as_bytes())?;
            }
            let intents = step.intents.iter().map(|one| put_intent(&mut tables, &mut gone, one));
            let counts = intents.collect::<Result<Vec<_>, _>>()?;
            for other in step.others {
                gone.extend(tables.remove(other.path.as_bytes())?);
                tables.put_other(other)?;
            }
            drop(tables);
            let mut names = Names::open(transaction)?;
            step.names.iter().try_for_each(|change| names.apply(change))?;
            Ok(((counts, names.finish(transaction)?), gone))
        })?;
        gone.into_iter().for_each(|ino| self.trees.remove(ino));
        Ok(value)
    }

    /// One change of entries. Trees of the numbers that it collects go after the commit that forgets them.
    fn change<T>(
        &self,
        op: &'static str,
        commit: Commit,
        change: impl Fn(&mut Tables<'_>, &mut Vec<u64>) -> Result<T, Failure>,
    ) -> Result<T> {
        let (value, gone) = self.database.write(op, commit, |transaction: &WriteTransaction| {
            let mut gone = Vec::new();
            let value = change(&mut Tables::open(transaction)?, &mut gone)?;
            Ok((value, gone))
        })?;
        // What may come back after a crash keeps its hashes.
        if commit == Commit::Durable {
            gone.into_iter().for_each(|ino| self.trees.remove(ino));
        }
        Ok(value)
    }
}

/// What a bulk copy says at once.
#[derive(Debug, Default)]
pub(in crate::store) struct Step<'a> {
    /// Ends of the intents of the step before.
    pub(in crate::store) ends: Vec<(&'a RelPath, u64, IntentEnd)>,
    /// Entries that are gone at the source and in DIR, or have moved.
    pub(in crate::store) forgotten: Vec<&'a RelPath>,
    /// Verified, and about to get their names.
    pub(in crate::store) intents: &'a [EntryRecord],
    /// Entries without bytes of their own that are in DIR, durably.
    pub(in crate::store) others: &'a [OtherRecord],
    /// What the source has.
    pub(in crate::store) names: &'a [NameChange],
}

/// Answers whether it counts: not if a later version of its path is recorded.
fn put_intent(
    tables: &mut Tables<'_>,
    gone: &mut Vec<u64>,
    intent: &EntryRecord,
) -> Result<bool, Failure> {
    let Some(known) = tables.get_version(&intent.path, &intent.version)? else {
        return Ok(false);
    };
    let is_mend = matches!(intent.phase, EntryPhase::Verified(_))
        && matches!(known.phase, EntryPhase::Published(_));
    let former = known.placed();
    tables.remove_other(intent.path.as_bytes())?;
    let mut intent = EntryRecord { former, is_mend, ..intent.clone() };
    intent.origin = intent.origin.or(known.origin);
    if is_mend {
        // Taken from the file in DIR, which lost the same before.
        intent.losses.extend(known.losses);
        intent.losses.sort_unstable();
        intent.losses.dedup();
        intent.checksum = intent.checksum.or(known.checksum);
    }
    gone.extend(tables.put(&intent)?);
    Ok(true)
}

fn put_end(
    tables: &mut Tables<'_>,
    gone: &mut Vec<u64>,
    path: &RelPath,
    ino: u64,
    end: IntentEnd,
) -> Result<(), Failure> {
    let known = tables.get(path.as_bytes())?;
    let Some(record) = known.filter(|known| known.version.ino == ino) else { return Ok(()) };
    let EntryPhase::Verified(placed) = record.phase else { return Ok(()) };
    let record = match end {
        IntentEnd::Published => published(record, placed),
        IntentEnd::Back | IntentEnd::Broken if record.is_mend => unmended(record),
        IntentEnd::Back => EntryRecord { phase: EntryPhase::Sealed, ..record },
        IntentEnd::Broken => {
            gone.push(ino);
            EntryRecord { former: record.former, ..emptied(record) }
        }
    };
    tables.put(&record).map(drop)
}

/// How an attempt to publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum IntentEnd {
    /// It has its final name, durably.
    Published,
    /// It is a part as before.
    Back,
    /// A sync failed: nothing of it counts.
    Broken,
}

pub(in crate::store) fn published(record: EntryRecord, placed: Placed) -> EntryRecord {
    let phase = EntryPhase::Published(placed);
    EntryRecord { phase, part: None, former: None, is_mend: false, ..record }
}

/// A mend that was not done: the file is published as it was before.
pub(in crate::store) fn unmended(record: EntryRecord) -> EntryRecord {
    match record.former {
        Some(placed) => published(record, placed),
        None => emptied(record),
    }
}

/// The same version with nothing here. What has the final name is remembered: it may be replaced.
pub(in crate::store) fn emptied(record: EntryRecord) -> EntryRecord {
    let former = record.placed();
    EntryRecord { former, ..EntryRecord::absent(record.path, record.version) }
}
