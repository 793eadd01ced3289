//! What goes again from a cache of limited size. The record goes first, durably; then the bytes: so the catalog never vouches for
//! what is not there. Only what we put there goes: a file that somebody changed or replaced is left alone.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::core::path::RelPath;
use crate::error::Result;

use super::aside::{Left, SetAside};
use super::backing::remove_part;
use super::catalog::{EntryPhase, EntryRecord, Part, Placed};
use super::recovery::{Final, Standing};
use super::root::{is_entry, stat_entry};
use super::{BackingFile, Destination, Identity};

/// One version that an earlier life left on the disk.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its name.
    pub path: RelPath,
    /// Its inode number.
    pub ino: u64,
    /// Where its bytes are.
    pub place: KeptAs,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// Number of its last use; 0 where that is not known.
    pub last_use: u64,
}

/// Where the bytes of a version are.
#[derive(Debug, Clone)]
pub enum KeptAs {
    /// In `parts/`.
    Part(Part),
    /// In DIR.
    Published(Placed),
}

/// A version that goes as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Leaving<'a> {
    /// Its name.
    pub path: &'a RelPath,
    /// Its inode number.
    pub ino: u64,
    /// What goes.
    pub what: LeavingFrom<'a>,
}

/// What goes.
#[derive(Debug, Clone, Copy)]
pub enum LeavingFrom<'a> {
    /// What this life uses.
    Backing(&'a BackingFile),
    /// What an earlier life left.
    Kept(&'a KeptAs),
}

impl Destination {
    /// Everything that earlier lives left and that can be evicted. A file whose eviction was cut short goes now.
    ///
    /// # Errors
    /// As reads of the catalog; `Io`.
    pub fn kept(&self) -> Result<Vec<Kept>> {
        let uses = self.disk.catalog.uses()?;
        let mut kept = Vec::new();
        self.disk.catalog.entries(|record| {
            if let Some((place, bytes)) = self.measure(&record)? {
                let ino = record.version.ino;
                let last_use = uses.get(&ino).copied().unwrap_or(0);
                kept.push(Kept { path: record.path, ino, place, bytes, last_use });
            }
            Ok(())
        })?;
        let inos: HashSet<u64> = kept.iter().map(|kept| kept.ino).collect();
        if uses.keys().any(|ino| !inos.contains(ino)) {
            self.disk.catalog.keep_uses(&inos)?;
        }
        Ok(kept)
    }

    /// What a recorded version takes on the disk, and where.
    fn measure(&self, record: &EntryRecord) -> Result<Option<(KeptAs, u64)>> {
        let path = &record.path;
        if let Some(part) = &record.part {
            let stat = stat_entry(self.disk.state.parts(), part.name.as_ref())
                .map_err(|errno| self.disk.root.error("measure part of", path, errno))?;
            return Ok(stat.map(|stat| (KeptAs::Part(part.clone()), allocated(stat.st_blocks))));
        }
        if record.is_adopted {
            return Ok(None);
        }
        if let EntryPhase::Published(placed) = record.phase {
            return Ok(match self.standing(record)? {
                Standing::Same => {
                    let bytes = self.allocated_at(path)?;
                    Some((KeptAs::Published(placed), bytes))
                }
                _ => None,
            });
        }
        if let (true, Some(former)) = (record.is_evicted, record.former) {
            self.remove_placed(path, former)?;
        }
        Ok(None)
    }

    /// The bytes of `blocks` go from a part, after the catalog has taken them back.
    ///
    /// # Errors
    /// As a durable write of the catalog, then nothing has gone; as [`BackingFile::punch`].
    pub fn evict_blocks(
        &self,
        path: &RelPath,
        ino: u64,
        part: &BackingFile,
        blocks: &[Range<u64>],
    ) -> Result<()> {
        if self.may_vouch(path, ino)? {
            self.disk.catalog.clear_blocks(path, ino, blocks)?;
        }
        // Only what takes room: a block that was never written needs no hole.
        let occupied = part.occupied().blocks();
        for run in blocks {
            let first = occupied.partition_point(|taken| taken.end <= run.start);
            let within = occupied[first..].iter().take_while(|taken| taken.start < run.end);
            for taken in within {
                part.punch(taken.start.max(run.start)..taken.end.min(run.end))?;
            }
        }
        Ok(())
    }

    /// Whole versions go, after the catalog has taken all of them back in one commit. A part goes with the last who uses it, everything
    /// else at once, but for what somebody changed or replaced. Returns what of that could not keep its name.
    ///
    /// # Errors
    /// As a durable write of the catalog; then all of them stay.
    pub fn evict_all(&self, leaving: &[Leaving<'_>]) -> Result<Vec<SetAside>> {
        let versions: Vec<_> = leaving.iter().map(|leaving| (leaving.path, leaving.ino)).collect();
        let placed = self.disk.catalog.clear_evicted(&versions)?;
        let mut set_aside = Vec::new();
        for (leaving, placed) in leaving.iter().zip(placed) {
            let removed = match (leaving.what, placed) {
                (LeavingFrom::Kept(KeptAs::Part(part)), _) => {
                    self.remove_kept_part(part).map(|()| None)
                }
                (LeavingFrom::Kept(KeptAs::Published(placed)), _) => {
                    // Also a version that was superseded, and is vouched for no more.
                    self.remove_placed(leaving.path, *placed)
                }
                (LeavingFrom::Backing(part), placed) => {
                    part.let_go();
                    match placed.filter(|placed| placed.inode == part.identity().inode) {
                        Some(placed) => self.remove_placed(leaving.path, placed),
                        None => Ok(None),
                    }
                }
            };
            match removed {
                Ok(left) => set_aside.extend(left),
                Err(error) => {
                    tracing::warn!(path = %leaving.path, %error, "stays on the disk until the next start");
                }
            }
        }
        Ok(set_aside)
    }

    fn remove_kept_part(&self, part: &Part) -> Result<()> {
        let (parts, name) = (self.disk.state.parts(), OsStr::new(&part.name));
        let identity = Identity { device: self.disk.state.device(), inode: part.inode };
        if is_entry(parts, name, identity) == Ok(true) {
            remove_part(&self.disk, &part.name);
        }
        Ok(())
    }

    /// Whether the catalog may say anything of the bytes of version `ino`.
    fn may_vouch(&self, path: &RelPath, ino: u64) -> Result<bool> {
        let record = self.disk.catalog.entry(path)?;
        Ok(record
            .is_some_and(|record| record.version.ino == ino && record.phase != EntryPhase::Absent))
    }

    /// Takes a file of ours out of DIR, but nothing else that has its name.
    fn remove_placed(&self, path: &RelPath, placed: Placed) -> Result<Option<SetAside>> {
        if self.final_of(path)? != Final::File(placed) {
            return Ok(None);
        }
        let ino = self.disk.catalog.entry(path)?.map_or(0, |record| record.version.ino);
        Ok(match self.disk.leave(path, ino, placed)? {
            Left::Aside(left) => Some(left),
            Left::Gone | Left::Theirs => None,
        })
    }

    fn allocated_at(&self, path: &RelPath) -> Result<u64> {
        let failed = |errno| self.disk.root.error("measure", path, errno);
        let parent = self.disk.root.parent_of(path)?;
        let stat = stat_entry(parent.as_fd(), path.name()).map_err(failed)?;
        Ok(stat.map_or(0, |stat| allocated(stat.st_blocks)))
    }
}

/// Bytes of `st_blocks`.
fn allocated(units: i64) -> u64 {
    u64::try_from(units).unwrap_or(0).saturating_mul(512)
}
