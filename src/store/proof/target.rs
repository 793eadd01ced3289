//! One file that is being proven.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Advice, FileType, OFlags};
use rustix::io::Errno;

use crate::core::hashes::BlockHash;
use crate::core::path::RelPath;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_count, block_range};
use crate::error::{Error, Kind};
use crate::store::Identity;
use crate::store::backing::read_full;
use crate::store::catalog::EntryRecord;
use crate::store::destination::Disk;
use crate::store::recovery::placed_of;
use crate::store::root::Root;
use crate::store::root::{open_beneath, stat_entry};
use crate::store::verify::{BLOCK_BYTES, DataCursor, ZEROS, hash_block, root_of, subtree};

use super::{Difference, Flaw, runs};

/// What one thread takes at a time: a whole subtree of 2^7 blocks. Its value stands for it, so that a file of 10 TB costs 20 MB.
pub(super) const SEGMENT: u64 = 128 * BLOCK_SIZE;
/// Read at once: small enough to be hashed out of the cache.
const BATCH_BLOCKS: usize = 2;

/// A published file, open.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) record: EntryRecord,
    file: OwnedFd,
    size: u64,
    is_touched: bool,
}

/// What came out of one segment.
#[derive(Debug)]
pub(super) struct Sum {
    /// Value of the whole segment; of a file's only one, its root. `None` if bytes are missing.
    pub(super) value: Option<BlockHash>,
    /// Blocks that are not what the hash tree says; only true if the tree is.
    pub(super) suspects: Vec<u64>,
}

/// Opens files one after the other; remembers the directory of the last one.
#[derive(Debug, Default)]
pub(super) struct Opener {
    parent: Option<(RelPath, OwnedFd)>,
}

impl Opener {
    /// Opens the file of `record`. `is_link` = it is an equal file under another name, whose times are its own.
    pub(super) fn open(
        &mut self,
        disk: &Disk,
        record: EntryRecord,
        is_link: bool,
    ) -> Result<Target, Box<(EntryRecord, Flaw)>> {
        match self.try_open(&disk.root, &record.path) {
            Ok(Some((file, now))) => {
                let is_same = record.placed().is_some_and(|then| then.modified == now.modified);
                let is_touched = !is_same && !is_link;
                Ok(Target { record, file, size: now.size, is_touched })
            }
            Ok(None) => Err(Box::new((record, Flaw::OtherKind))),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Box::new((record, Flaw::Missing))),
            // Whatever stands in its way, it is not what we put there.
            Err(Errno::LOOP | Errno::XDEV) => Err(Box::new((record, Flaw::OtherKind))),
            Err(errno) => {
                let error = disk.root.error("open published file", &record.path, errno);
                Err(Box::new((record, Flaw::Unreadable(error))))
            }
        }
    }

    /// `None` if it is no regular file. It is looked at before it is opened: opening a device can have effects.
    fn try_open(
        &mut self,
        root: &Root,
        path: &RelPath,
    ) -> Result<Option<(OwnedFd, crate::store::catalog::Placed)>, Errno> {
        let parent = path.parent().unwrap_or_else(RelPath::root);
        if self.parent.as_ref().is_none_or(|(known, _)| *known != parent) {
            let opened = root.open(&parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.parent = Some((parent, opened));
        }
        let Some((_, parent)) = &self.parent else { return Err(Errno::NOENT) };
        let seen = stat_entry(parent.as_fd(), path.name())?.ok_or(Errno::NOENT)?;
        if !FileType::from_raw_mode(seen.st_mode).is_file() {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let name = path.name().as_encoded_bytes();
        let file = open_beneath(parent.as_fd(), name, flags)?;
        let stat = rustix::fs::fstat(&file)?;
        if Identity::of(&stat) != Identity::of(&seen) {
            return Ok(None);
        }
        // A hint; where it is not taken it costs nothing.
        let _advised = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        Ok(Some((file, placed_of(&stat))))
    }
}

impl Target {
    fn recorded_size(&self) -> u64 {
        self.record.version.fingerprint.size
    }

    /// Number of segments; an empty file has one.
    pub(super) fn segments(size: u64) -> u64 {
        size.div_ceil(SEGMENT).max(1)
    }

    /// The bytes of segment `index` as recorded.
    pub(super) fn segment(&self, index: u64) -> ByteRange {
        ByteRange::at(index.saturating_mul(SEGMENT), SEGMENT).clip(self.recorded_size())
    }

    /// Reads and hashes segment `index`, and compares it with the hash tree.
    pub(super) fn sum(&self, disk: &Disk, index: u64, buffer: &mut Vec<u8>) -> Result<Sum, Error> {
        let range = self.segment(index);
        let hashes = hash_blocks(self.file.as_fd(), range, self.recorded_size(), buffer)
            .map_err(|errno| disk.root.error("read published file", &self.record.path, errno))?;
        let tree = self.tree(disk, range);
        let at_tree = |at: usize| tree.get(at).copied();
        let first = range.start / BLOCK_SIZE;
        let suspects = (0u64..)
            .zip(&hashes)
            .zip(0usize..)
            .filter(|((_, hash), at)| hash.is_none() || **hash != at_tree(*at))
            .map(|((block, _), _)| first + block)
            .collect();
        let whole: Option<Vec<BlockHash>> = hashes.into_iter().collect();
        let value = whole.and_then(|hashes| {
            if Self::segments(self.recorded_size()) == 1 {
                root_of(&hashes, BLOCK_SIZE, range.len())
            } else {
                subtree(&hashes, BLOCK_SIZE, range.len())
            }
        });
        Ok(Sum { value, suspects })
    }

    /// What the tree says of a segment; too little where it cannot be read: then it is not believed at all.
    fn tree(&self, disk: &Disk, range: ByteRange) -> Vec<BlockHash> {
        let blocks = range.blocks();
        if block_count(self.recorded_size()) < 2 {
            return self.record.digest.into_iter().take(blocks.count()).collect();
        }
        disk.catalog.hashes(&self.record, blocks).unwrap_or_else(|error| {
            tracing::warn!(path = %self.record.path, %error, "hash tree");
            Vec::new()
        })
    }

    /// Whether the tree is the one whose root is recorded.
    fn has_true_tree(&self, disk: &Disk) -> bool {
        let size = self.recorded_size();
        let is_one = Self::segments(size) == 1;
        let values: Option<Vec<BlockHash>> = (0..Self::segments(size))
            .map(|index| {
                let range = self.segment(index);
                let tree = self.tree(disk, range);
                let is_whole = tree.len() as u64 == range.blocks().end - range.blocks().start;
                match is_one {
                    _ if !is_whole => None,
                    true => root_of(&tree, BLOCK_SIZE, range.len()),
                    false => subtree(&tree, BLOCK_SIZE, range.len()),
                }
            })
            .collect();
        let root = values.and_then(|values| root_of(&values, SEGMENT, size.max(1)));
        root.is_some() && root == self.record.digest
    }

    /// The verdict on the whole file out of the values of all its segments and the suspects in them, both in rising order.
    pub(super) fn judge(
        &self,
        disk: &Disk,
        values: &[Option<BlockHash>],
        suspects: Vec<u64>,
    ) -> Option<Flaw> {
        let recorded_size = self.recorded_size();
        let Some(digest) = self.record.digest else {
            let error = Error::new(Kind::Corrupt, "prove file").at(self.record.path.as_path());
            return Some(Flaw::Unreadable(error.because("no digest of it is recorded")));
        };
        let values: Option<Vec<BlockHash>> = values.iter().copied().collect();
        let root = values.and_then(|values| root_of(&values, SEGMENT, recorded_size.max(1)));
        let is_proven = root == Some(digest) && self.size == recorded_size;
        if is_proven && !self.is_touched {
            return None;
        }
        let is_exact = root == Some(digest) || self.has_true_tree(disk);
        let blocks = match is_exact {
            _ if root == Some(digest) => Vec::new(),
            true => runs(suspects),
            false => std::iter::once(0..block_count(recorded_size)).collect(),
        };
        let (size, is_touched) = (self.size, self.is_touched);
        Some(Flaw::Differs(Difference { blocks, is_exact, recorded_size, size, is_touched }))
    }

    /// Whether the catalog still says of it what it said when it was opened.
    pub(super) fn is_current(disk: &Disk, record: &EntryRecord) -> bool {
        match disk.catalog.entry(&record.path) {
            Ok(Some(now)) => now == *record,
            // One more name has no record of its own.
            Ok(None) => true,
            Err(_) => true,
        }
    }
}

/// The hashes of the blocks of `range`, which is a run of whole blocks of a file of `size` bytes; `None` where bytes are missing. Holes
/// are not read.
pub(super) fn hash_blocks(
    file: BorrowedFd<'_>,
    range: ByteRange,
    size: u64,
    buffer: &mut Vec<u8>,
) -> Result<Vec<Option<BlockHash>>, Errno> {
    buffer.resize(BATCH_BLOCKS * BLOCK_BYTES, 0);
    let mut data = DataCursor::default();
    let mut hashes = Vec::new();
    let mut offset = range.start;
    while offset < range.end {
        let batch = ByteRange::at(offset, (BATCH_BLOCKS * BLOCK_BYTES) as u64).intersect(range);
        let is_hole = !data.has_data(file, batch)? && is_within(file, batch)?;
        let wanted = usize::try_from(batch.len()).unwrap_or(buffer.len());
        let read = match is_hole {
            true => wanted,
            false => read_blocks(file, offset, &mut buffer[..wanted])?,
        };
        for (at, index) in batch.blocks().enumerate() {
            let len = usize::try_from(block_range(index, size).len()).unwrap_or(BLOCK_BYTES);
            let start = at * BLOCK_BYTES;
            let bytes = if is_hole { &ZEROS[..len] } else { &buffer[start..start + len] };
            hashes.push(if start + len <= read { hash_block(index, size, bytes) } else { None });
        }
        offset = batch.end;
    }
    Ok(hashes)
}

/// What lies behind the end of a cut file is no hole.
fn is_within(file: BorrowedFd<'_>, range: ByteRange) -> Result<bool, Errno> {
    let size = rustix::fs::fstat(file)?.st_size;
    Ok(u64::try_from(size).is_ok_and(|size| range.end <= size))
}

/// Reads until `target` is full or the file ends. What the disk cannot read any more counts as missing, from its block on.
fn read_blocks(file: BorrowedFd<'_>, offset: u64, target: &mut [u8]) -> Result<usize, Errno> {
    let whole = read_full(file, offset, target);
    if whole != Err(Errno::IO) {
        return whole;
    }
    let mut read = 0;
    for block in target.chunks_mut(BLOCK_BYTES) {
        match read_full(file, offset + read as u64, block) {
            Ok(len) if len == block.len() => read += len,
            Ok(_) | Err(Errno::IO) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(read)
}
