//! Which blocks of one file are present.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::core::run_set::RunSet;

/// Blocks in one segment: 4 KiB of bits, 4 GiB of file.
const SEGMENT_BLOCKS: u64 = 32 * 1024;
const WORD_BITS: u64 = 64;
const WORDS: usize = 512;

/// One bit a block, in segments that exist only while they are partly filled. A file of 10 TiB with a block here and
/// there costs 4 KiB for each 4 GiB touched; one without, or complete, costs nothing.
#[derive(Debug, Default)]
pub struct BlockMap {
    /// Segments in which every block is present.
    full: RunSet,
    partial: BTreeMap<u64, Segment>,
    present: u64,
}

#[derive(Debug)]
struct Segment {
    words: Box<[u64; WORDS]>,
    present: u64,
}

impl Segment {
    fn empty() -> Self {
        Self { words: Box::new([0; WORDS]), present: 0 }
    }

    fn has(&self, bit: u64) -> bool {
        let (word, mask) = position(bit);
        self.words[word] & mask != 0
    }

    fn full() -> Self {
        Self { words: Box::new([u64::MAX; WORDS]), present: SEGMENT_BLOCKS }
    }

    /// Clears the bits and returns how many were set.
    fn clear(&mut self, bits: Range<u64>) -> u64 {
        let mut gone = 0;
        for bit in bits {
            let (word, mask) = position(bit);
            gone += u64::from(self.words[word] & mask != 0);
            self.words[word] &= !mask;
        }
        self.present -= gone;
        gone
    }

    /// Sets the bits and returns how many were clear.
    fn set(&mut self, bits: Range<u64>) -> u64 {
        let mut newly = 0;
        for bit in bits {
            let (word, mask) = position(bit);
            newly += u64::from(self.words[word] & mask == 0);
            self.words[word] |= mask;
        }
        self.present += newly;
        newly
    }
}

fn position(bit: u64) -> (usize, u64) {
    let word = usize::try_from(bit / WORD_BITS).unwrap_or(WORDS - 1);
    (word, 1 << (bit % WORD_BITS))
}

impl BlockMap {
    /// Whether block `index` is present.
    pub fn is_present(&self, index: u64) -> bool {
        let segment = index / SEGMENT_BLOCKS;
        match self.partial.get(&segment) {
            Some(bits) => bits.has(index % SEGMENT_BLOCKS),
            None => self.full.run_of(segment).is_some(),
        }
    }

    /// Marks `blocks` present and returns how many were not.
    pub fn set(&mut self, blocks: Range<u64>) -> u64 {
        let mut newly = 0;
        let mut at = blocks.start;
        while at < blocks.end {
            let segment = at / SEGMENT_BLOCKS;
            let first = segment * SEGMENT_BLOCKS;
            if at == first
                && blocks.end - at >= SEGMENT_BLOCKS
                && !self.partial.contains_key(&segment)
            {
                let stop = self.untouched_until(segment, blocks.end / SEGMENT_BLOCKS);
                if let Some(run) = self.full.run_of(segment) {
                    at = run.end.min(stop) * SEGMENT_BLOCKS;
                    continue;
                }
                let stop = self.full.next_run(segment).map_or(stop, |run| run.start.min(stop));
                newly += (stop - segment) * SEGMENT_BLOCKS;
                self.full.insert(segment..stop);
                at = stop * SEGMENT_BLOCKS;
                continue;
            }
            let end = blocks.end.min(first + SEGMENT_BLOCKS);
            if self.full.run_of(segment).is_none() {
                newly += self.set_in(segment, at - first..end - first);
            }
            at = end;
        }
        self.present += newly;
        newly
    }

    /// First segment from `segment` to `limit` that is partly filled, else `limit`.
    fn untouched_until(&self, segment: u64, limit: u64) -> u64 {
        self.partial.range(segment..limit).next().map_or(limit, |(&partial, _)| partial)
    }

    fn set_in(&mut self, segment: u64, bits: Range<u64>) -> u64 {
        let entry = self.partial.entry(segment).or_insert_with(Segment::empty);
        let newly = entry.set(bits);
        if entry.present == SEGMENT_BLOCKS {
            self.partial.remove(&segment);
            self.full.insert(segment..segment + 1);
        }
        newly
    }

    /// Marks `blocks` absent and returns how many were present.
    pub fn clear(&mut self, blocks: Range<u64>) -> u64 {
        let mut gone = 0;
        let mut at = blocks.start;
        while let Some(start) = self.skip(at..blocks.end, false) {
            let segment = start / SEGMENT_BLOCKS;
            let first = segment * SEGMENT_BLOCKS;
            at = blocks.end.min(first + SEGMENT_BLOCKS);
            if self.full.run_of(segment).is_some() {
                self.full.remove(segment..segment + 1);
                self.partial.insert(segment, Segment::full());
            }
            if let Some(entry) = self.partial.get_mut(&segment) {
                gone += entry.clear(start - first..at - first);
                if entry.present == 0 {
                    self.partial.remove(&segment);
                }
            }
        }
        self.present -= gone;
        gone
    }

    /// The first run of absent blocks within `blocks`.
    pub fn first_absent(&self, blocks: Range<u64>) -> Option<Range<u64>> {
        let start = self.skip(blocks.clone(), true)?;
        let end = self.skip(start..blocks.end, false).unwrap_or(blocks.end);
        Some(start..end)
    }

    /// The first block within `blocks` whose presence is not `present`.
    fn skip(&self, blocks: Range<u64>, present: bool) -> Option<u64> {
        let mut at = blocks.start;
        while at < blocks.end {
            let segment = at / SEGMENT_BLOCKS;
            if let Some(bits) = self.partial.get(&segment) {
                let first = segment * SEGMENT_BLOCKS;
                let end = blocks.end.min(first + SEGMENT_BLOCKS);
                if let Some(found) = (at..end).find(|index| bits.has(index - first) != present) {
                    return Some(found);
                }
                at = end;
            } else if let Some(run) = self.full.run_of(segment) {
                if !present {
                    return Some(at);
                }
                at = run.end * SEGMENT_BLOCKS;
            } else {
                if present {
                    return Some(at);
                }
                let limit = blocks.end.div_ceil(SEGMENT_BLOCKS);
                let stop = self.untouched_until(segment, limit);
                let stop = self.full.next_run(segment).map_or(stop, |run| run.start.min(stop));
                at = stop * SEGMENT_BLOCKS;
            }
        }
        None
    }

    /// Whether all of `blocks` are present. True for none.
    pub fn all_present(&self, blocks: Range<u64>) -> bool {
        self.skip(blocks, true).is_none()
    }

    /// How many blocks are present.
    pub fn present(&self) -> u64 {
        self.present
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Positions near the edges of segments, where mistakes live.
    fn edges() -> impl Strategy<Value = u64> {
        (0u64..4, -3i64..4)
            .prop_map(|(segment, off)| (segment * SEGMENT_BLOCKS).saturating_add_signed(off))
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_blocks(steps in prop::collection::vec((edges(), edges(), any::<bool>()), 0..12)) {
            let (mut map, mut model) = (BlockMap::default(), BTreeSet::new());
            for (a, b, is_set) in steps {
                let blocks = a.min(b)..a.max(b);
                let before = model.len();
                if is_set {
                    model.extend(blocks.clone());
                    prop_assert_eq!(map.set(blocks), (model.len() - before) as u64);
                } else {
                    model.retain(|index| !blocks.contains(index));
                    prop_assert_eq!(map.clear(blocks), (before - model.len()) as u64);
                }
                prop_assert_eq!(map.present(), model.len() as u64);
                for segment in 0..4u64 {
                    for off in -4i64..5 {
                        let index = (segment * SEGMENT_BLOCKS).saturating_add_signed(off);
                        prop_assert_eq!(map.is_present(index), model.contains(&index));
                    }
                }
                let all = 0..4 * SEGMENT_BLOCKS;
                let absent = map.first_absent(all.clone());
                let start = all.clone().find(|index| !model.contains(index));
                prop_assert_eq!(absent.as_ref().map(|run| run.start), start);
                if let Some(run) = absent {
                    let end = (run.start..all.end).find(|index| model.contains(index));
                    prop_assert_eq!(run.end, end.unwrap_or(all.end));
                }
            }
        }
    }

    #[test]
    fn a_file_of_eight_exbibytes_costs_no_time_and_no_memory() {
        let blocks = 1 << 46;
        let mut map = BlockMap::default();
        assert_eq!(map.first_absent(5..blocks), Some(5..blocks));
        assert_eq!(map.set(7..blocks - 9), blocks - 16);
        assert!(map.partial.len() <= 2);
        assert!(map.all_present(7..blocks - 9));
        assert_eq!(map.first_absent(7..blocks), Some(blocks - 9..blocks));
    }
}
