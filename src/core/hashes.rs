//! The hash of each block as it landed.

use std::collections::BTreeMap;

use crate::sync::Mutex;

/// 32 bytes: the BLAKE3 subtree value of one block at its place in the file.
pub type BlockHash = [u8; 32];

const SEGMENT_BLOCKS: u64 = 1024;

/// Hashes of some blocks of one file, 32 bytes a block in runs of 1024.
#[derive(Debug, Default)]
pub struct BlockHashes {
    segments: Mutex<BTreeMap<u64, Vec<Option<BlockHash>>>>,
}

impl BlockHashes {
    /// Keeps the hash of block `index`.
    pub fn set(&self, index: u64, hash: BlockHash) {
        let mut segments = self.segments.lock();
        let segment = segments.entry(index / SEGMENT_BLOCKS).or_default();
        let place = usize::try_from(index % SEGMENT_BLOCKS).unwrap_or(0);
        if segment.len() <= place {
            segment.resize(place + 1, None);
        }
        segment[place] = Some(hash);
    }

    /// The hash of block `index`, if it landed.
    pub fn get(&self, index: u64) -> Option<BlockHash> {
        let place = usize::try_from(index % SEGMENT_BLOCKS).unwrap_or(0);
        self.segments.lock().get(&(index / SEGMENT_BLOCKS))?.get(place).copied().flatten()
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.segments.lock().clear();
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_kept_for_its_block_alone() {
        let hashes = BlockHashes::default();
        hashes.set(5000, [7; 32]);
        assert_eq!(hashes.get(5000), Some([7; 32]));
        assert_eq!((hashes.get(4999), hashes.get(5001), hashes.get(0)), (None, None, None));
        hashes.clear();
        assert_eq!(hashes.get(5000), None);
    }
}
