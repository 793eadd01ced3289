//! One segment of a block map: a bit for each of 32 768 blocks, as bytes without the zeros at the end.

use std::ops::Range;

/// Blocks of one segment: 4 KiB of bits, 4 GiB of file.
pub(super) const SEGMENT_BLOCKS: u64 = 32 * 1024;
const SEGMENT_BYTES: usize = 4096;

/// The blocks of one segment that may be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u8>);

impl Bits {
    /// `None` if the bytes are longer than a segment.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= SEGMENT_BYTES).then(|| Self(bytes.to_vec()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Sets or clears `bits`, which lie within the segment.
    pub(super) fn change(&mut self, bits: Range<u64>, is_set: bool) {
        if self.0.len() < SEGMENT_BYTES {
            self.0.resize(SEGMENT_BYTES, 0);
        }
        for bit in bits {
            let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| self.0.get_mut(at)) else {
                break;
            };
            let mask = 1 << (bit % 8);
            *byte = if is_set { *byte | mask } else { *byte & !mask };
        }
        let len = self.0.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.0.truncate(len);
    }

    /// Appends the set bits as runs of blocks that start at `first`, joining the last run of `runs`.
    pub(super) fn append_to(&self, runs: &mut Vec<Range<u64>>, first: u64) {
        for (base, byte) in (first..).step_by(8).zip(&self.0) {
            for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
                let block = base + bit;
                match runs.last_mut().filter(|run| run.end == block) {
                    Some(run) => run.end += 1,
                    None => runs.push(block..block + 1),
                }
            }
        }
    }
}

/// Cuts `blocks` at the edges of segments: (segment, bits within it).
pub(super) fn by_segment(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let segments = blocks.start / SEGMENT_BLOCKS..blocks.end.div_ceil(SEGMENT_BLOCKS);
    segments.filter_map(move |segment| {
        let first = segment * SEGMENT_BLOCKS;
        let start = blocks.start.max(first) - first;
        let end = blocks.end.min(first.saturating_add(SEGMENT_BLOCKS)).saturating_sub(first);
        (start < end).then_some((segment, start..end))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn edge() -> impl Strategy<Value = u64> {
        (0u64..3, -9i64..10)
            .prop_map(|(segment, off)| (segment * SEGMENT_BLOCKS).saturating_add_signed(off))
    }

    proptest! {
        #[test]
        fn segments_behave_like_a_set_of_blocks(steps in prop::collection::vec((edge(), edge(), any::<bool>()), 0..8)) {
            let (mut segments, mut model) = (BTreeMap::<u64, Bits>::new(), BTreeSet::new());
            for (a, b, is_set) in steps {
                let blocks = a.min(b)..a.max(b);
                for (segment, bits) in by_segment(blocks.clone()) {
                    segments.entry(segment).or_default().change(bits, is_set);
                }
                for block in blocks {
                    if is_set { model.insert(block) } else { model.remove(&block) };
                }
            }
            let mut runs = Vec::new();
            for (segment, bits) in &segments {
                let again = Bits::decode(bits.as_bytes()).unwrap();
                again.append_to(&mut runs, segment * SEGMENT_BLOCKS);
            }
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), model);
        }
    }

    #[test]
    fn a_segment_that_is_too_long_is_refused() {
        assert!(Bits::decode(&[0; SEGMENT_BYTES + 1]).is_none());
    }
}
