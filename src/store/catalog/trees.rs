//! The files `.lazycopy/trees/<ino>`: 32 bytes for each block at 32 x its index. Only blocks that the catalog vouches for mean
//! something; a file of one block has none, its digest is that hash.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::core::hashes::BlockHash;
use crate::core::table::Table;
use crate::store::backing::read_full;
use crate::store::root::{create_beneath, open_beneath, sync_directory};
use crate::sync::{AtomicBool, Ordering};

const HASH_BYTES: u64 = 32;

/// The directory of hash trees.
#[derive(Debug)]
pub(super) struct Trees {
    directory: OwnedFd,
    /// Written in this life, until those of earlier lives were swept.
    written: Table<u64, ()>,
    is_swept: AtomicBool,
}

impl Trees {
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self { directory, written: Table::default(), is_swept: AtomicBool::new(false) }
    }

    /// Writes `hashes` of blocks in rising order. They become durable by a sync of the file that is returned, and its name by
    /// [`Trees::sync_names`].
    pub(super) fn write(&self, ino: u64, hashes: &[(u64, BlockHash)]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        if !self.is_swept.load(Ordering::Relaxed) {
            self.written.insert(ino, ());
        }
        let name = ino.to_string();
        let file = create_beneath(self.directory.as_fd(), name.as_bytes(), flags, mode)?;
        for run in hashes.chunk_by(|one, next| one.0 + 1 == next.0) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, hash)| *hash).collect();
            let mut offset = run[0].0 * HASH_BYTES;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let written = retry_on_intr(|| rustix::io::pwrite(&file, rest, offset))?;
                offset += u64::try_from(written).unwrap_or(0);
                rest = &rest[written..];
            }
        }
        Ok(file)
    }

    /// Makes the names of new files durable.
    pub(super) fn sync_names(&self) -> Result<(), Errno> {
        sync_directory(self.directory.as_fd())
    }

    /// Makes everything that was written durable, with all else on the same file system.
    pub(super) fn sync_all(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(&self.directory)
    }

    /// The hashes of `blocks`, as many as there are.
    pub(super) fn read(&self, ino: u64, blocks: Range<u64>) -> Result<Vec<BlockHash>, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let name = ino.to_string();
        let file = match open_beneath(self.directory.as_fd(), name.as_bytes(), flags) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            result => result?,
        };
        let count = usize::try_from(blocks.end.saturating_sub(blocks.start)).unwrap_or(0);
        let mut bytes = vec![0; count.saturating_mul(32)];
        let len = read_full(file.as_fd(), blocks.start.saturating_mul(HASH_BYTES), &mut bytes)?;
        Ok(bytes[..len].as_chunks().0.to_vec())
    }

    /// Removes the file of `ino`; it may be absent.
    pub(super) fn remove(&self, ino: u64) {
        match rustix::fs::unlinkat(&self.directory, ino.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!(ino, err = %errno, "hashes could not be removed"),
        }
    }

    /// Removes the file of `ino` unless it was written in this life; whether it did. What is written at this very moment may lose the
    /// hashes of blocks that nobody vouches for.
    pub(super) fn remove_unwritten(&self, ino: u64) -> bool {
        let is_left = self.written.get(&ino).is_none();
        if is_left {
            self.remove(ino);
        }
        is_left
    }

    /// Those of earlier lives were swept.
    pub(super) fn set_swept(&self) {
        self.is_swept.store(true, Ordering::Relaxed);
        for ino in self.written.keys() {
            self.written.remove(&ino);
        }
    }

    /// All files that could be ours.
    pub(super) fn inos(&self) -> Result<Vec<u64>, Errno> {
        let own = open_beneath(self.directory.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut inos = Vec::new();
        for entry in Dir::read_from(&own)? {
            let entry = entry?;
            inos.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(inos)
    }
}
