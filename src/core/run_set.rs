//! A set of numbers kept as disjoint runs: small when the members are neighbours.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sorted, disjoint, never touching half-open runs of `u64`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunSet {
    /// start -> end
    runs: BTreeMap<u64, u64>,
}

impl RunSet {
    /// Adds every number of `run`.
    pub fn insert(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let (mut start, mut end) = (run.start, run.end);
        if let Some((&before, &before_end)) = self.runs.range(..start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.runs.range(start..=end).next() {
            end = end.max(next_end);
            self.runs.remove(&next);
        }
        self.runs.insert(start, end);
    }

    /// Takes every number of `run` away.
    pub fn remove(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        if let Some((&before, &before_end)) = self.runs.range(..run.start).next_back()
            && before_end > run.start
        {
            self.runs.insert(before, run.start);
            if before_end > run.end {
                self.runs.insert(run.end, before_end);
            }
        }
        while let Some((&next, &next_end)) = self.runs.range(run.clone()).next() {
            self.runs.remove(&next);
            if next_end > run.end {
                self.runs.insert(run.end, next_end);
            }
        }
    }

    /// The run that `number` is in.
    pub fn run_of(&self, number: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.runs.range(..=number).next_back()?;
        (number < end).then_some(start..end)
    }

    /// The first run that starts at or after `number`.
    pub fn next_run(&self, number: u64) -> Option<Range<u64>> {
        self.runs.range(number..).next().map(|(&start, &end)| start..end)
    }

    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }

    /// How many numbers of `run` are in it.
    pub fn count_in(&self, run: Range<u64>) -> u64 {
        let before = self.runs.range(..run.start).next_back();
        let within = self.runs.range(run.clone());
        let overlap =
            |(&start, &end): (&u64, &u64)| end.min(run.end).saturating_sub(start.max(run.start));
        before.into_iter().chain(within).map(overlap).sum()
    }

    /// How many numbers are in it.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..60)
        ) {
            let (mut runs, mut model) = (RunSet::default(), BTreeSet::new());
            for (add, start, len) in steps {
                if add {
                    runs.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    runs.remove(start..start + len);
                    model.retain(|n| !(start..start + len).contains(n));
                }
                prop_assert_eq!(runs.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                let all: Vec<_> = runs.iter().collect();
                prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "runs touch: {:?}", all);
                let inside = model.range(start / 2..start + len).count() as u64;
                prop_assert_eq!(runs.count_in(start / 2..start + len), inside);
                for number in 0..80 {
                    prop_assert_eq!(runs.run_of(number).is_some(), model.contains(&number));
                }
            }
        }
    }
}
