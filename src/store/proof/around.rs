//! What is proven without a digest of its own.

use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::core::attributes::EntryKind;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_range};
use crate::error::{Error, Result};
use crate::store::Destination;
use crate::store::catalog::{EntryPhase, EntryRecord, OtherRecord};
use crate::store::root::open_beneath;

use super::target::hash_blocks;
use super::{Difference, Flaw, Found, Observer, Proven, runs};

impl Destination {
    pub(super) fn count_published(&self) -> Result<Proven> {
        let mut proven = Proven::default();
        let mut count = |record: &EntryRecord| {
            proven.total_files += 1;
            proven.total_bytes += record.version.fingerprint.size;
        };
        self.disk.catalog.entries(|record| {
            if matches!(record.phase, EntryPhase::Published(_)) {
                count(&record);
            }
            Ok(())
        })?;
        self.copies_of_links(|record| {
            count(&record);
            Ok(())
        })?;
        Ok(proven)
    }

    /// Shows files that have the bytes of another but an inode of their own, under a record that says so.
    pub(super) fn copies_of_links(
        &self,
        mut show: impl FnMut(EntryRecord) -> Result<()>,
    ) -> Result<()> {
        let catalog = &self.disk.catalog;
        catalog.others(|other| {
            let Some(first) = &other.link_of else { return Ok(()) };
            let Some(record) = catalog.entry(first)? else { return Ok(()) };
            match (self.existing(first), self.existing(&other.path)) {
                (Ok(Some(first)), Ok(Some(name)))
                    if name.kind == EntryKind::File && name.identity != first.identity =>
                {
                    show(EntryRecord { path: other.path, ..record })
                }
                _ => Ok(()),
            }
        })
    }

    /// The recorded blocks of parts.
    pub(super) fn prove_parts(
        &self,
        proven: &mut Proven,
        observer: &mut Observer<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut buffer = Vec::new();
        for record in self.disk.catalog.unfinished()? {
            let Some(bad) = self.prove_part(&record, proven, &mut buffer)? else { continue };
            let found = (!bad.is_empty()).then(|| {
                proven.flaws += 1;
                let size = record.version.fingerprint.size;
                let flaw = Flaw::Differs(Difference {
                    blocks: bad,
                    is_exact: true,
                    recorded_size: size,
                    size,
                    is_touched: false,
                });
                Found { path: record.path.clone(), record: Some(record), is_part: true, flaw }
            });
            if observer(proven, found).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Blocks of one part that are not what was recorded; `None` if it has no part.
    fn prove_part(
        &self,
        record: &EntryRecord,
        proven: &mut Proven,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Vec<Range<u64>>>> {
        let Some(part) = self.open_part_to_prove(record)? else { return Ok(None) };
        proven.parts += 1;
        let size = record.version.fingerprint.size;
        let failed = |errno| Error::io("read part", errno).at(record.path.as_path());
        let mut bad = Vec::new();
        for run in self.disk.catalog.blocks(record)? {
            for blocks in pieces(run) {
                let recorded = self.disk.catalog.hashes(record, blocks.clone())?;
                let range =
                    ByteRange::new(blocks.start * BLOCK_SIZE, blocks.end * BLOCK_SIZE).clip(size);
                let found = hash_blocks(part.as_fd(), range, size, buffer).map_err(failed)?;
                let count = blocks.end - blocks.start;
                proven.part_blocks += count;
                proven.unhashed_blocks += count - recorded.len() as u64;
                let differing = blocks.zip(found.iter().zip(&recorded));
                bad.extend(
                    differing
                        .filter(|(_, (found, recorded))| **found != Some(**recorded))
                        .map(|(block, _)| block),
                );
            }
        }
        // What was taken back while it was read need not be right, and may be right again by now.
        let now = self.disk.catalog.entry(&record.path)?;
        let now = now.filter(|now| now.version == record.version && now.part == record.part);
        let Some(now) = now else { return Ok(Some(Vec::new())) };
        let trusted = self.disk.catalog.blocks(&now)?;
        bad.retain(|block| trusted.iter().any(|run| run.contains(block)));
        let mut still = Vec::new();
        for block in bad {
            let range = block_range(block, size);
            let found = hash_blocks(part.as_fd(), range, size, buffer).map_err(failed)?;
            let recorded = self.disk.catalog.hashes(&now, block..block + 1)?;
            if found.first().copied().flatten() != recorded.first().copied() {
                still.push(block);
            }
        }
        Ok(Some(runs(still)))
    }

    /// The part of a record, for reading alone; `None` if a living daemon has published it or given it up meanwhile. Its mode stays: it
    /// may just be getting its final one.
    fn open_part_to_prove(&self, record: &EntryRecord) -> Result<Option<OwnedFd>> {
        let Some(part) = &record.part else { return Ok(None) };
        let failed = |errno| Error::io("open part of", errno).at(record.path.as_path());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let opened = match open_beneath(self.disk.state.parts(), part.name.as_bytes(), flags) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let stat = rustix::fs::fstat(&opened).map_err(failed)?;
        let is_it = stat.st_ino == part.inode
            && u64::try_from(stat.st_size) == Ok(record.version.fingerprint.size);
        Ok(is_it.then_some(opened))
    }

    /// Directories, links and pipes: whether they are there.
    pub(super) fn look_at_others(
        &self,
        proven: &mut Proven,
        observer: &mut Observer<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut flow = ControlFlow::Continue(());
        self.disk.catalog.others(|OtherRecord { path, kind, .. }| {
            if flow.is_break() {
                return Ok(());
            }
            let flaw = match self.existing(&path) {
                Ok(Some(found)) if found.kind == kind => None,
                Ok(Some(_)) => Some(Flaw::OtherKind),
                Ok(None) => Some(Flaw::Missing),
                Err(error) => Some(Flaw::Unreadable(error)),
            };
            match flaw {
                None => proven.others += 1,
                Some(flaw) => {
                    proven.flaws += 1;
                    let found = Found { path, record: None, is_part: false, flaw };
                    flow = observer(proven, Some(found));
                }
            }
            Ok(())
        })?;
        Ok(flow)
    }

    /// Files of somebody else.
    pub(super) fn count_unknown(&self, proven: &mut Proven) -> Result<()> {
        let catalog = &self.disk.catalog;
        let mut failed = None;
        self.walk_existing(|path, existing| {
            if existing.kind == EntryKind::Directory || failed.is_some() {
                return;
            }
            let known = catalog.entry(&path).and_then(|entry| match entry {
                Some(_) => Ok(true),
                None => catalog.other(&path).map(|other| other.is_some()),
            });
            match known {
                Ok(true) => {}
                Ok(false) => proven.unknown += 1,
                Err(error) => failed = Some(error),
            }
        })?;
        failed.map_or(Ok(()), Err)
    }
}

/// A run in pieces that fit into memory.
fn pieces(run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    const PIECE: usize = 1024;
    let end = run.end;
    run.step_by(PIECE).map(move |start| start..(start + PIECE as u64).min(end))
}
