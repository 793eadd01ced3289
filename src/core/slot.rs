//! A value of which there are millions, each replaced as a whole now and then.

use crate::sync::Mutex;

/// Holds one value; costs one byte more than it. (An `ArcSwap` costs two allocations, and dropping one asks every thread that ever
/// read any.)
///
/// # Concurrency
/// Any thread reads and replaces it, each under a lock for a moment.
#[derive(Debug)]
pub struct Slot<T> {
    value: Mutex<T>,
}

impl<T> Slot<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value) }
    }
}

impl<T: Clone> Slot<T> {
    /// A copy of the value.
    pub fn get(&self) -> T {
        self.value.lock().clone()
    }
}

impl<T: PartialEq> Slot<T> {
    /// Replaces the value; `false` if it was the same already.
    pub fn replace(&self, mut value: T) -> bool {
        let mut held = self.value.lock();
        if *held == value {
            return false;
        }
        std::mem::swap(&mut *held, &mut value);
        drop(held);
        true
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn of_those_who_replace_it_by_the_same_value_one_did_it() {
        let slot = Slot::new(0);
        let replaced = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| slot.replace(7))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|did| *did).count()
        });
        assert_eq!((replaced, slot.get()), (1, 7));
    }

    #[test]
    fn it_costs_little() {
        assert_eq!(size_of::<Slot<Box<[u8]>>>(), size_of::<Box<[u8]>>() + 8);
    }
}
