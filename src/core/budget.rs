//! How many bytes may lie on the disk, and whose they are. Taken before they are written, given back after they are gone.

use std::ops::Range;
use std::sync::Arc;

use crate::core::range::{BLOCK_SIZE, block_count};
use crate::core::run_set::RunSet;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// What an extent of a block's length costs in the file system's own tables, at most (ext4: 12 bytes).
const EXTENT_BYTES: u64 = 16;

/// A cap on allocated bytes.
///
/// # Concurrency
/// Any thread may take and give back; what is taken never exceeds the cap but by [`Budget::take_anyway`].
#[derive(Debug)]
pub struct Budget {
    cap: u64,
    /// Unit of allocation of the file system.
    unit: u64,
    /// Relaxed: a number that protects nothing but itself.
    used: AtomicU64,
}

impl Budget {
    /// At most `cap` bytes on a file system that allocates in units of `unit` bytes.
    pub fn new(cap: u64, unit: u64) -> Arc<Self> {
        Arc::new(Self { cap, unit: unit.max(1), used: AtomicU64::new(0) })
    }

    /// The most that may be used.
    pub fn cap(&self) -> u64 {
        self.cap
    }

    /// What is used now, reservations included.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// What is lacking, if that would exceed the cap.
    pub fn take(&self, bytes: u64) -> Result<(), u64> {
        let mut used = self.used();
        loop {
            let then = used.saturating_add(bytes);
            if then > self.cap {
                return Err(then - self.cap);
            }
            let swapped =
                self.used.compare_exchange(used, then, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return Ok(()),
                Err(now) => used = now,
            }
        }
    }

    /// Takes what is on the disk already, even above the cap.
    pub fn take_anyway(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A number of bytes taken; given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Charge {
    /// Takes what a file with `allocated` bytes costs that is on the disk already, even above the cap.
    pub fn of_file(budget: &Arc<Budget>, allocated: u64) -> Self {
        let blocks = allocated.div_ceil(BLOCK_SIZE);
        let bytes = allocated.saturating_add(blocks * EXTENT_BYTES).saturating_add(budget.unit);
        budget.take_anyway(bytes);
        Self { budget: Arc::clone(budget), bytes: AtomicU64::new(bytes) }
    }

    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Leaves them to the caller, who accounts for them from now on.
    pub fn hand_over(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes());
    }
}

/// The bytes that one file on the disk takes from the budget, by its blocks. They are given back when it is dropped: that is after the
/// file's name is gone and the last who used it has closed it.
#[derive(Debug)]
pub struct Occupied {
    /// `None` = nothing is counted.
    budget: Option<Arc<Budget>>,
    size: u64,
    blocks: Mutex<Blocks>,
}

#[derive(Debug, Default)]
struct Blocks {
    runs: RunSet,
    count: u64,
    /// Bytes taken whatever the blocks are: those of a file that goes as a whole only.
    whole: u64,
}

impl Occupied {
    /// Nothing yet of a file of `size` bytes.
    pub fn new(budget: Option<Arc<Budget>>, size: u64) -> Self {
        Self { budget, size, blocks: Mutex::default() }
    }

    /// Takes what `blocks` need that have nothing yet: before a byte of them is written.
    ///
    /// # Errors
    /// The bytes that have to be given back first.
    pub fn reserve(&self, blocks: Range<u64>) -> Result<(), u64> {
        let Some(budget) = &self.budget else { return Ok(()) };
        let mut occupied = self.blocks.lock();
        let before = self.cost(budget, &occupied);
        let known = occupied.runs.count_in(blocks.clone());
        let count = occupied.count + (blocks.end - blocks.start) - known;
        let last = block_count(self.size).saturating_sub(1);
        let has_tail = blocks.contains(&last) || occupied.runs.run_of(last).is_some();
        budget.take(self.cost_of(budget, count, has_tail) + occupied.whole - before)?;
        occupied.runs.insert(blocks);
        occupied.count = count;
        Ok(())
    }

    /// Takes over `bytes` that were taken for the whole file, which goes as a whole only.
    pub fn take_over_whole(&self, bytes: u64) {
        self.blocks.lock().whole += bytes;
    }

    /// Takes what `runs` occupy already; `bytes` of it were taken before.
    pub fn take_over(&self, runs: &[Range<u64>], bytes: u64) {
        let Some(budget) = &self.budget else { return };
        let mut blocks = self.blocks.lock();
        let before = self.cost(budget, &blocks);
        for run in runs {
            blocks.count += run.end - run.start - blocks.runs.count_in(run.clone());
            blocks.runs.insert(run.clone());
        }
        let cost = self.cost(budget, &blocks) - before;
        // The difference only: nobody may find in between what is not free.
        budget.take_anyway(cost.saturating_sub(bytes));
        budget.give_back(bytes.saturating_sub(cost));
    }

    /// Gives back what `blocks` occupied: after their bytes are gone, or if none was written.
    pub fn release(&self, gone: Range<u64>) {
        let Some(budget) = &self.budget else { return };
        let mut blocks = self.blocks.lock();
        let before = self.cost(budget, &blocks);
        blocks.count -= blocks.runs.count_in(gone.clone());
        blocks.runs.remove(gone);
        budget.give_back(before - self.cost(budget, &blocks));
    }

    /// The blocks that occupy anything, in rising order.
    pub fn blocks(&self) -> Vec<Range<u64>> {
        self.blocks.lock().runs.iter().collect()
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        self.budget.as_ref().map_or(0, |budget| self.cost(budget, &self.blocks.lock()))
    }

    fn cost(&self, budget: &Budget, blocks: &Blocks) -> u64 {
        let last = block_count(self.size).saturating_sub(1);
        self.cost_of(budget, blocks.count, blocks.runs.run_of(last).is_some()) + blocks.whole
    }

    /// Blocks with what the file system needs to find them, and one unit for the file itself.
    fn cost_of(&self, budget: &Budget, count: u64, has_tail: bool) -> u64 {
        if count == 0 {
            return 0;
        }
        let mut bytes = count.saturating_mul(BLOCK_SIZE + EXTENT_BYTES);
        let tail = self.size % BLOCK_SIZE;
        if tail > 0 && has_tail {
            let units = tail.div_ceil(budget.unit) * budget.unit;
            bytes = bytes - BLOCK_SIZE + units.min(BLOCK_SIZE);
        }
        bytes.saturating_add(budget.unit)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.cost(budget, &self.blocks.lock()));
        }
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 4096;

    #[test]
    fn what_is_taken_never_exceeds_the_cap() {
        let budget = Budget::new(1 << 20, UNIT);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let budget = &budget;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        let file = Occupied::new(Some(Arc::clone(budget)), 1 << 30);
                        let taken = (0..5).filter(|n| file.reserve(n * 3..n * 3 + 2).is_ok());
                        assert!(taken.count() <= 5);
                        assert!(budget.used() <= budget.cap());
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_small_file_costs_its_units_and_one_for_itself() {
        let budget = Budget::new(1 << 20, UNIT);
        let file = Occupied::new(Some(Arc::clone(&budget)), 5000);
        file.reserve(0..1).unwrap();
        assert_eq!(budget.used(), 3 * UNIT + EXTENT_BYTES);
        file.reserve(0..1).unwrap();
        assert_eq!(budget.used(), file.bytes(), "taken once");
        drop(file);
        assert_eq!(budget.used(), 0);
        let refused = Occupied::new(Some(Arc::clone(&budget)), 1 << 30);
        assert!(refused.reserve(0..9).is_err_and(|lacking| lacking > BLOCK_SIZE));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn without_a_budget_nothing_is_counted() {
        let file = Occupied::new(None, 1 << 30);
        file.reserve(0..1 << 13).unwrap();
        assert!(file.blocks().is_empty());
        assert_eq!(file.bytes(), 0);
    }

    proptest! {
        #[test]
        fn used_is_what_all_files_occupy(steps in prop::collection::vec((0usize..3, 0u8..3, 0u64..20, 0u64..8), 0..60)) {
            let budget = Budget::new(40 * BLOCK_SIZE, UNIT);
            let sizes = [20 * BLOCK_SIZE, 19 * BLOCK_SIZE + 1, 7];
            let files = sizes.map(|size| Occupied::new(Some(Arc::clone(&budget)), size));
            for (which, what, start, len) in steps {
                let count = block_count(sizes[which]);
                let blocks = start.min(count)..(start + len).min(count);
                match what {
                    0 => drop(files[which].reserve(blocks)),
                    1 => files[which].release(blocks),
                    _ if budget.used() < budget.cap() / 2 => {
                        let charge = Charge::of_file(&budget, len * BLOCK_SIZE);
                        let run: [Range<u64>; 1] = std::array::from_fn(|_| blocks.clone());
                        files[which].take_over(&run, charge.hand_over());
                    }
                    _ => {}
                }
                prop_assert_eq!(budget.used(), files.iter().map(Occupied::bytes).sum::<u64>());
                prop_assert!(budget.used() <= budget.cap());
            }
            drop(files);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
