//! Checkpoints: data synced first, then the hashes, then one commit that vouches for both. And the way back: a part of an earlier life.

use std::ops::Range;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::core::hashes::BlockHash;
use crate::core::path::RelPath;
use crate::core::range::block_count;
use crate::error::{Error, Kind, Result};

use super::backing::Place;
use super::catalog::{Catalog, EntryPhase, EntryRecord, Landed, Part, Version};
use super::root::{open_beneath, stat_entry, sync_directory};
use super::{BackingFile, Destination, Identity};

/// What shall be recorded of one file. The blocks were present when this was taken; the sync comes after.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoint<'a> {
    /// The file's name.
    pub path: &'a RelPath,
    /// Its version. Blocks under a validator that is not settled must not be recorded.
    pub version: &'a Version,
    /// Where its bytes are.
    pub part: &'a BackingFile,
    /// New blocks since the last checkpoint.
    pub blocks: &'a [Range<u64>],
    /// The hash of each, in rising order. None for a file of one block: its digest comes with the publication.
    pub hashes: &'a [(u64, BlockHash)],
}

impl Destination {
    /// The durable catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.disk.catalog
    }

    /// Makes what landed durable and records it, all files in one commit. Answers in the order of `files`: after an error nothing
    /// new of that file is recorded, and if its part [is broken](BackingFile::is_broken) it must be abandoned.
    pub fn checkpoint_many(&self, files: &[Checkpoint<'_>]) -> Vec<Result<()>> {
        let disk = &self.disk;
        let mut results: Vec<Result<Option<Part>>> =
            files.iter().map(|file| self.sync_landed(file)).collect();
        let names = sync_directory(disk.state.parts())
            .and_then(|()| disk.catalog.sync_hash_names())
            .map_err(|errno| Error::io("sync parts of", errno).at(disk.root.shown_as()));
        let landed: Vec<Landed<'_>> = files
            .iter()
            .zip(&results)
            .filter_map(|(file, synced)| {
                let part = synced.as_ref().ok()?.clone()?;
                let Checkpoint { path, version, blocks, .. } = *file;
                Some(Landed { path, version, part, blocks })
            })
            .collect();
        let recorded = names.and_then(|()| {
            // Before the commit: from then on the part is the catalog's.
            files
                .iter()
                .zip(&results)
                .filter(|(_, synced)| synced.is_ok())
                .for_each(|(file, _)| file.part.keep());
            if landed.is_empty() { Ok(()) } else { disk.catalog.record_landed(&landed) }
        });
        results.drain(..).map(|synced| synced.and_then(|_| recorded.clone())).collect()
    }

    /// Everything of one file that comes before the commit. `None` = it has left `parts/`: publishing records it.
    fn sync_landed(&self, file: &Checkpoint<'_>) -> Result<Option<Part>> {
        let Checkpoint { path, version, part, blocks, hashes } = *file;
        let invalid = |why: &str| {
            Err(Error::new(Kind::Invalid, "record checkpoint").at(path.as_path()).because(why))
        };
        self.disk.check_path(path)?;
        if !version.is_settled {
            return invalid("its validator is not settled");
        }
        let count = block_count(version.fingerprint.size);
        if version.fingerprint.size != part.size() || blocks.iter().any(|run| run.end > count) {
            return invalid("blocks beyond the file's size");
        }
        let Place::Part(name) = &**part.place.load() else { return Ok(None) };
        part.sync()?;
        if count > 1 && !hashes.is_empty() {
            let written = self.disk.catalog.write_hashes(version.ino, hashes);
            written
                .and_then(rustix::fs::fdatasync)
                .map_err(|errno| self.disk.root.error("write block hashes of", path, errno))?;
        }
        Ok(Some(Part { name: name.clone(), inode: part.identity().inode }))
    }

    /// Nothing of this part counts any more: recorded first, then its file goes, when the last user drops it. A part that has been published
    /// meanwhile is one no more: it stays, and so does its record.
    ///
    /// # Errors
    /// As a durable write of the catalog; the part then stays until the next start.
    pub fn abandon_part(&self, path: &RelPath, ino: u64, part: &BackingFile) -> Result<()> {
        self.disk.catalog.clear(path, ino, part.identity().inode)?;
        part.let_go();
        Ok(())
    }

    /// Opens the part of an entry again.
    ///
    /// # Errors
    /// `NotFound` if the entry has none; `Stale` if its name, inode or length is not what was recorded: then nothing of it counts.
    pub fn reopen_part(&self, record: &EntryRecord) -> Result<BackingFile> {
        let disk = &self.disk;
        let path = &record.path;
        let failed = |errno| disk.root.error("open part of", path, errno);
        let part = match (&record.part, record.phase) {
            (Some(part), EntryPhase::Filling | EntryPhase::Sealed | EntryPhase::Failed) => part,
            _ => return Err(failed(Errno::NOENT)),
        };
        let size = record.version.fingerprint.size;
        if !self.has_part(part, size).map_err(failed)? {
            return Err(failed(Errno::STALE).because("its part is not the one recorded"));
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW;
        let fd = open_beneath(disk.state.parts(), part.name.as_bytes(), flags).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        if stat.st_ino != part.inode {
            return Err(failed(Errno::STALE));
        }
        let place = Place::Part(part.name.clone());
        let identity = Identity::of(&stat);
        let file = BackingFile::new(Arc::clone(disk), disk.ids.next(), identity, size, place, fd);
        file.keep();
        Ok(file)
    }

    /// Whether `parts/` holds this part. An attempt to publish may have left it with its final mode.
    pub(super) fn has_part(&self, part: &Part, size: u64) -> Result<bool, Errno> {
        let parts = self.disk.state.parts();
        let Some(stat) = stat_entry(parts, part.name.as_ref())? else { return Ok(false) };
        let is_it = FileType::from_raw_mode(stat.st_mode).is_file()
            && stat.st_ino == part.inode
            && u64::try_from(stat.st_size) == Ok(size);
        if is_it && stat.st_mode & 0o7777 != 0o600 {
            // By name: nobody else can reach into this directory.
            rustix::fs::chmodat(
                parts,
                part.name.as_str(),
                Mode::from_raw_mode(0o600),
                rustix::fs::AtFlags::empty(),
            )?;
        }
        Ok(is_it)
    }
}
