//! Hashes of a file's blocks and of the file: BLAKE3's own tree, so that the root is the hash that `b3sum` prints.
//!
//! A block of 128 KiB is a whole subtree: its chaining value, taken as bytes land, can be compared with what is read back from disk, and all
//! of them together give the root without reading again (the BLAKE3 paper, section 2.1).

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};

use blake3::Hasher;
use blake3::hazmat::{
    HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;

use crate::core::attributes::Checksum;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_count, block_range};
use crate::error::{Error, Kind, Result};

use super::backing::read_full;
use super::checksum::Summer;
use super::{BackingFile, Durability};

/// The chaining value of one block at its place in the file; of a file of one block, its root.
pub type BlockHash = [u8; 32];

pub(super) const BLOCK_BYTES: usize = 128 * 1024;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK_SIZE);
/// What is read at once: what a core's own cache has room for.
const BATCH_LEN: usize = 2 * BLOCK_BYTES;
const BATCH_BYTES: u64 = 2 * BLOCK_SIZE;

thread_local! {
    /// Of each thread that reads back: a new one for each file would cost more than reading small files does.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Hashes one block while its bytes land, in order.
#[derive(Debug, Clone)]
pub struct BlockHasher {
    hasher: Hasher,
    /// Whether the block is all of the file.
    is_whole: bool,
    missing: u64,
}

impl BlockHasher {
    /// A hasher of block `index` of a file of `size` bytes, which must have that block.
    pub fn new(index: u64, size: u64) -> Self {
        let range = block_range(index, size);
        let mut hasher = Hasher::new();
        hasher.set_input_offset(range.start);
        Self { hasher, is_whole: size <= BLOCK_SIZE, missing: range.len() }
    }

    /// Takes the next bytes of the block.
    ///
    /// # Panics
    /// If they reach beyond the block: that would be somebody else's byte.
    pub fn update(&mut self, bytes: &[u8]) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        assert!(len <= self.missing, "{len} bytes for a block that lacks {}", self.missing);
        self.missing -= len;
        self.hasher.update(bytes);
    }

    /// Bytes that the block still lacks.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// The block's hash; `None` while bytes are missing.
    pub fn finish(&self) -> Option<BlockHash> {
        if self.missing > 0 {
            return None;
        }
        Some(match self.is_whole {
            true => *self.hasher.finalize().as_bytes(),
            false => self.hasher.finalize_non_root(),
        })
    }
}

/// The hash of one block whose bytes are all here.
pub fn hash_block(index: u64, size: u64, bytes: &[u8]) -> Option<BlockHash> {
    let mut hasher = BlockHasher::new(index, size);
    hasher.update(bytes);
    hasher.finish()
}

/// All hashes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHash {
    /// One per block, in order; none for an empty file.
    pub blocks: Vec<BlockHash>,
    /// The BLAKE3 hash of the whole file.
    pub root: [u8; 32],
}

impl FileHash {
    /// Puts the hashes of all blocks of a file of `size` bytes together; `None` if their number is not the file's.
    pub fn of_blocks(blocks: Vec<BlockHash>, size: u64) -> Option<Self> {
        if u64::try_from(blocks.len()).ok()? != block_count(size) {
            return None;
        }
        let root = root_of(&blocks, BLOCK_SIZE, size)?;
        Some(Self { blocks, root })
    }

    /// Index of the first block in which two files of one length differ.
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        self.blocks.iter().zip(&other.blocks).position(|(ours, theirs)| ours != theirs)
    }
}

/// The BLAKE3 hash of `size` bytes out of the chaining values of all their pieces of `piece` bytes, a power of two of at least 1 KiB.
/// Of a single piece its value is the root itself. `None` if their number is not the size's.
pub(super) fn root_of(pieces: &[BlockHash], piece: u64, size: u64) -> Option<[u8; 32]> {
    if u64::try_from(pieces.len()).ok()? != size.div_ceil(piece) {
        return None;
    }
    Some(match pieces {
        [] => *blake3::hash(&[]).as_bytes(),
        [only] => *only,
        all => {
            let (left, right) = split(all, piece, size)?;
            *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
        }
    })
}

/// Chaining values of the two subtrees of `len` bytes: the left one is the largest power of two that leaves something to the right.
fn split(pieces: &[BlockHash], piece: u64, len: u64) -> Option<(BlockHash, BlockHash)> {
    let left_len = left_subtree_len(len);
    let (left, right) = pieces.split_at(usize::try_from(left_len / piece).ok()?);
    Some((subtree(left, piece, left_len)?, subtree(right, piece, len - left_len)?))
}

/// The chaining value of `len` bytes, a whole subtree but not all of a file. Recursion is as deep as the tree: at most 46 for 2^63 bytes.
pub(super) fn subtree(pieces: &[BlockHash], piece: u64, len: u64) -> Option<BlockHash> {
    if let [only] = pieces {
        return Some(*only);
    }
    let (left, right) = split(pieces, piece, len)?;
    Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

/// The first byte within `range` that is not zero. Holes are not read.
///
/// # Errors
/// What the disk says.
pub fn first_nonzero(file: &BackingFile, range: ByteRange) -> Result<Option<u64>> {
    let descriptor = file.descriptor()?;
    let failed = |errno| file.error("read back", errno);
    let mut data = DataCursor::default();
    let mut buffer = vec![0; BATCH_LEN];
    let mut offset = range.start;
    while offset < range.end {
        let batch = ByteRange::at(offset, BATCH_BYTES).intersect(range);
        if data.has_data(&*descriptor, batch).map_err(failed)? {
            let wanted = usize::try_from(batch.len()).unwrap_or(buffer.len());
            let read = read_full(descriptor.as_fd(), offset, &mut buffer[..wanted]);
            let bytes = &buffer[..read.map_err(failed)?];
            if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(offset + place as u64));
            }
        }
        offset = batch.end;
    }
    Ok(None)
}

/// Reads all bytes back and hashes them. Holes are hashed without being read. Takes one core for somewhat less than a second per GiB.
///
/// # Errors
/// `Corrupt` if the file on disk does not have `size` bytes; else as [`BackingFile::read_at`], and [`BackingFile::sync`] where durability
/// is paranoid.
pub fn hash_backing(file: &BackingFile, size: u64) -> Result<FileHash> {
    hash_and(file, size, |_| ())
}

/// As [`hash_backing`], and the checksum of the same bytes of the same kind as `expected`.
///
/// # Errors
/// As [`hash_backing`].
pub fn hash_with(
    file: &BackingFile,
    size: u64,
    expected: &Checksum,
) -> Result<(FileHash, Checksum)> {
    let mut summer = Summer::like(expected);
    let hash = hash_and(file, size, |bytes| summer.update(bytes))?;
    Ok((hash, summer.finish()))
}

/// Shows every byte to `also`, in order.
fn hash_and(file: &BackingFile, size: u64, also: impl FnMut(&[u8])) -> Result<FileHash> {
    let descriptor = file.descriptor()?;
    let failed = |errno| file.error("read back", errno);
    let stat = rustix::fs::fstat(&*descriptor).map_err(failed)?;
    if u64::try_from(stat.st_size) != Ok(size) {
        return Err(wrong_length(file, size));
    }
    if file.disk.options.durability == Durability::Paranoid {
        file.sync()?;
        // Clean pages only are dropped, so after the sync: what is read then comes from the disk.
        rustix::fs::fadvise(&*descriptor, 0, None, Advice::DontNeed).map_err(failed)?;
    }
    let blocks = BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(BATCH_LEN, 0);
        hash_blocks(descriptor.as_fd(), size, buffer, also)
    });
    let blocks = blocks.map_err(failed)?;
    let whole = blocks.and_then(|blocks| FileHash::of_blocks(blocks, size));
    whole.ok_or_else(|| wrong_length(file, size))
}

/// Hashes of all blocks of a file of `size` bytes, read through `buffer`; `None` if it is shorter.
fn hash_blocks(
    fd: BorrowedFd<'_>,
    size: u64,
    buffer: &mut [u8],
    mut also: impl FnMut(&[u8]),
) -> Result<Option<Vec<BlockHash>>, Errno> {
    let mut data = DataCursor::default();
    let mut blocks = Vec::with_capacity(usize::try_from(block_count(size)).unwrap_or(0));
    let mut offset = 0;
    while offset < size {
        let batch = ByteRange::at(offset, BATCH_BYTES).clip(size);
        let is_hole = !data.has_data(fd, batch)?;
        let wanted = usize::try_from(batch.len()).unwrap_or(buffer.len());
        if !is_hole && read_full(fd, offset, &mut buffer[..wanted])? != wanted {
            return Ok(None);
        }
        for (at, index) in batch.blocks().enumerate() {
            let len = usize::try_from(block_range(index, size).len()).unwrap_or(BLOCK_BYTES);
            let start = at * BLOCK_BYTES;
            let bytes = if is_hole { &ZEROS[..len] } else { &buffer[start..start + len] };
            blocks.extend(hash_block(index, size, bytes));
            also(bytes);
        }
        offset = batch.end;
    }
    Ok(Some(blocks))
}

fn wrong_length(file: &BackingFile, size: u64) -> Error {
    file.error("read back", Errno::IO)
        .kinded(Kind::Corrupt)
        .because(format!("the file on disk does not have its {size} bytes"))
}

/// Walks the data of a file forwards, so that each extent is looked up once.
#[derive(Debug, Default)]
pub(super) struct DataCursor {
    /// No data lies between the last question and here.
    next_data: u64,
    /// The data from `next_data` ends here.
    data_end: u64,
}

impl DataCursor {
    /// Whether any byte of `range` may be something else than a hole. Ranges must be asked in rising order.
    pub(super) fn has_data(&mut self, fd: impl AsFd, range: ByteRange) -> Result<bool, Errno> {
        let fd = fd.as_fd();
        if self.data_end <= range.start && self.next_data < range.end {
            (self.next_data, self.data_end) =
                match rustix::fs::seek(fd, SeekFrom::Data(range.start)) {
                    Ok(next) => (next, rustix::fs::seek(fd, SeekFrom::Hole(next))?),
                    // lseek(2): no more data.
                    Err(Errno::NXIO) => (u64::MAX, u64::MAX),
                    // No SEEK_DATA here: everything is data.
                    Err(Errno::INVAL | Errno::NOTSUP) => (0, u64::MAX),
                    Err(errno) => return Err(errno),
                };
        }
        Ok(self.next_data < range.end && range.start < self.data_end)
    }
}

/// Offset of the first byte in which two files differ, a missing one included; `None` if they are equal.
///
/// # Errors
/// As [`BackingFile::read_at`].
pub fn compare_files(one: &BackingFile, other: &BackingFile) -> Result<Option<u64>> {
    let (mut left, mut right) = (vec![0; 8 * BLOCK_BYTES], vec![0; 8 * BLOCK_BYTES]);
    let mut offset = 0u64;
    loop {
        let (a, b) = (one.read_at(offset, &mut left)?, other.read_at(offset, &mut right)?);
        let both = a.min(b);
        if left[..both] != right[..both] {
            let at = left.iter().zip(&right).position(|(x, y)| x != y).unwrap_or(both);
            return Ok(Some(offset.saturating_add(u64::try_from(at).unwrap_or(0))));
        }
        let end = offset.saturating_add(u64::try_from(both).unwrap_or(0));
        if a != b {
            return Ok(Some(end));
        }
        if both == 0 {
            return Ok(None);
        }
        offset = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Destination, DestinationOptions};

    fn bytes_of(size: u64, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..size)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .collect()
    }

    fn landed(bytes: &[u8]) -> FileHash {
        let size = u64::try_from(bytes.len()).unwrap();
        let blocks = bytes.chunks(BLOCK_BYTES).zip(0..).map(|(block, index)| {
            let mut hasher = BlockHasher::new(index, size);
            for piece in block.chunks(10_007) {
                assert_eq!(hasher.finish(), None, "a hash of half a block is no hash");
                hasher.update(piece);
            }
            hasher.finish().unwrap()
        });
        FileHash::of_blocks(blocks.collect(), size).unwrap()
    }

    #[test]
    fn block_hashes_give_the_hash_of_the_file_at_every_odd_size() {
        let b = BLOCK_SIZE;
        let mut sizes = vec![0, 1, 1023, 1024, 1025, b - 1, b, b + 1, 3 * b + 12_345];
        sizes.extend((2..=9).flat_map(|n| [n * b - 1, n * b, n * b + 1]));
        for size in sizes {
            let bytes = bytes_of(size, size);
            let hash = landed(&bytes);
            assert_eq!(hash.root, *blake3::hash(&bytes).as_bytes(), "size {size}");
        }
    }

    #[test]
    fn what_is_read_back_hashes_as_what_landed() {
        let directory = tempfile::tempdir().unwrap();
        let destination =
            Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        for size in [0, 1, BLOCK_SIZE, BLOCK_SIZE + 1, 9 * BLOCK_SIZE + 77, 17 * BLOCK_SIZE] {
            let bytes = bytes_of(size, 7);
            let part = destination.create_part(size).unwrap();
            part.write_at(0, &bytes).unwrap();
            assert_eq!(hash_backing(&part, size).unwrap(), landed(&bytes), "size {size}");
            let wrong = hash_backing(&part, size + 1).unwrap_err();
            assert_eq!(wrong.kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn holes_hash_as_zeros_wherever_they_lie() {
        let directory = tempfile::tempdir().unwrap();
        let destination =
            Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        let size = 40 * BLOCK_SIZE + 3;
        for written in [vec![], vec![0], vec![17], vec![40], vec![3, 9, 26]] {
            let part = destination.create_part(size).unwrap();
            let mut expected = vec![0; usize::try_from(size).unwrap()];
            for block in written {
                let at = block * BLOCK_SIZE + 1;
                part.write_at(at, b"x").unwrap();
                expected[usize::try_from(at).unwrap()] = b'x';
            }
            assert_eq!(hash_backing(&part, size).unwrap(), landed(&expected));
        }
    }

    // C1: corrupt copies went unnoticed; here a single flipped bit is found, and where.
    #[test]
    fn one_flipped_bit_is_found_in_its_block() {
        let directory = tempfile::tempdir().unwrap();
        let destination =
            Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        let mut bytes = bytes_of(3 * BLOCK_SIZE, 3);
        let (good, bad) = (
            destination.create_part(3 * BLOCK_SIZE).unwrap(),
            destination.create_part(3 * BLOCK_SIZE).unwrap(),
        );
        good.write_at(0, &bytes).unwrap();
        bytes[BLOCK_BYTES + 5] ^= 1;
        bad.write_at(0, &bytes).unwrap();
        let hashes = [&good, &bad].map(|part| hash_backing(part, 3 * BLOCK_SIZE).unwrap());
        assert_eq!(hashes[0].first_difference(&hashes[1]), Some(1));
        assert_eq!(compare_files(&good, &bad).unwrap(), Some(BLOCK_SIZE + 5));
        assert_eq!(compare_files(&good, &good).unwrap(), None);
        let short = destination.create_part(0).unwrap();
        assert_eq!(compare_files(&good, &short).unwrap(), Some(0));
    }
}
