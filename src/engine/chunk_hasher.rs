//! The hashes of blocks, taken from the bytes of a chunk as they land.

use crate::core::hashes::BlockHashes;
use crate::core::range::BLOCK_SIZE;
use crate::store::BlockHasher;

/// Hashes the bytes of one chunk, block by block, as they land in order.
#[derive(Debug)]
pub struct ChunkHasher {
    size: u64,
    offset: u64,
    /// The block that `offset` lies in, once a byte of it has landed.
    block: Option<BlockHasher>,
}

impl ChunkHasher {
    /// For a chunk that starts at `start`, the first byte of a block of a file of `size` bytes.
    pub fn new(start: u64, size: u64) -> Self {
        Self { size, offset: start, block: None }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8], hashes: &BlockHashes) {
        while !bytes.is_empty() {
            let index = self.offset / BLOCK_SIZE;
            let end = ((index + 1) * BLOCK_SIZE).min(self.size);
            let room = usize::try_from(end - self.offset).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let block = self.block.get_or_insert_with(|| BlockHasher::new(index, self.size));
            block.update(now);
            self.offset += now.len() as u64;
            if self.offset == end
                && let Some(hash) = self.block.take().and_then(|block| block.finish())
            {
                hashes.set(index, hash);
            }
            bytes = later;
        }
    }
}
