//! Byte ranges and blocks: pure arithmetic, no state.

use std::fmt;

/// The unit of presence, in bytes.
pub const BLOCK_SIZE: u64 = 128 * 1024;

/// Half-open range of byte offsets `start..end` of one file; `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// The range `start..end`; empty at `start` if `end` lies before it.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// `len` bytes from `start`, cut at the largest offset there is.
    pub fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The bytes in both; empty if there are none.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self::new(start, self.end.min(other.end))
    }

    /// Whether at least one byte is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }

    /// Whether every byte of `other` is in this one. An empty range is in every range.
    pub fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The part before `size`, the length of the file.
    #[must_use]
    pub fn clip(self, size: u64) -> Self {
        Self { start: self.start.min(size), end: self.end.min(size) }
    }

    /// Grown outwards to whole blocks, the last one cut at `size`.
    #[must_use]
    pub fn to_blocks(self, size: u64) -> Self {
        if self.is_empty() {
            return self;
        }
        let start = self.start / BLOCK_SIZE * BLOCK_SIZE;
        let end = self.end.div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE);
        Self { start, end: end.min(size) }
    }

    /// Indices of the blocks that hold a byte of it.
    pub fn blocks(self) -> std::ops::Range<u64> {
        if self.is_empty() {
            let at = self.start / BLOCK_SIZE;
            return at..at;
        }
        self.start / BLOCK_SIZE..self.end.div_ceil(BLOCK_SIZE)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len())
    }
}

/// Number of blocks of a file of `size` bytes.
pub fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK_SIZE)
}

/// The bytes of block `index` of a file of `size` bytes.
pub fn block_range(index: u64, size: u64) -> ByteRange {
    ByteRange::at(index.saturating_mul(BLOCK_SIZE), BLOCK_SIZE).clip(size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn to_blocks_covers_and_never_leaves_the_file(start in 0u64..1 << 40, len in 0u64..1 << 24, size in 1u64..1 << 40) {
            let range = ByteRange::at(start, len).clip(size);
            let blocks = range.to_blocks(size);
            prop_assert!(blocks.contains(range));
            prop_assert!(blocks.end <= size);
            prop_assert!(range.is_empty() || blocks.start.is_multiple_of(BLOCK_SIZE));
            prop_assert!(range.is_empty() || blocks.end.is_multiple_of(BLOCK_SIZE) || blocks.end == size);
        }

        #[test]
        fn intersection_is_in_both(a in 0u64..1000, b in 0u64..1000, c in 0u64..1000, d in 0u64..1000) {
            let (x, y) = (ByteRange::new(a, b), ByteRange::new(c, d));
            let both = x.intersect(y);
            prop_assert!(x.contains(both) && y.contains(both));
            prop_assert_eq!(x.overlaps(y), !both.is_empty());
        }
    }

    #[test]
    fn the_largest_offset_does_not_overflow() {
        let range = ByteRange::at(u64::MAX - 1, 100);
        assert_eq!(range.len(), 1);
        assert_eq!(range.to_blocks(u64::MAX).end, u64::MAX);
    }
}
