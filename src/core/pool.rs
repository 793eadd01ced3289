//! A bounded pool that forgets what was used longest ago.
//!
//! The store keeps open descriptors in it. It knows nothing of files: values are cheap handles (`Arc`), so a value that was
//! evicted lives on with whoever still uses it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use crate::sync::Mutex;

/// Least-recently-used pool of at most `capacity` values.
///
/// # Concurrency
/// Any thread may call any method. No value is dropped under the lock: what leaves the pool is returned, because dropping it may
/// be a system call (`close(2)`).
pub struct LruPool<K, V> {
    list: Mutex<UseList<K, V>>,
}

impl<K: Hash + Eq + Clone, V: Clone> LruPool<K, V> {
    /// An empty pool; a `capacity` of 0 counts as 1.
    pub fn new(capacity: usize) -> Self {
        Self { list: Mutex::new(UseList::new(capacity.max(1))) }
    }

    /// The value of `key`, which becomes the most recently used one.
    pub fn get(&self, key: &K) -> Option<V> {
        self.list.lock().get(key)
    }

    /// Keeps `value` as the most recently used one; returns the value that had to leave: the former one of `key`, else the one
    /// unused for longest if the pool was full.
    pub fn insert(&self, key: K, value: V) -> Option<V> {
        self.list.lock().insert(key, value)
    }

    /// Takes the value of `key` out.
    pub fn remove(&self, key: &K) -> Option<V> {
        self.list.lock().remove(key)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.list.lock().index.len()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, V> fmt::Debug for LruPool<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LruPool").finish_non_exhaustive()
    }
}

/// The guarded state: a doubly linked list in a vector, newest first, and where each key is in it.
struct UseList<K, V> {
    capacity: usize,
    index: HashMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    free: Vec<usize>,
    newest: Option<usize>,
    oldest: Option<usize>,
}

/// `content` is `None` in a free slot.
struct Slot<K, V> {
    content: Option<(K, V)>,
    newer: Option<usize>,
    older: Option<usize>,
}

impl<K: Hash + Eq + Clone, V: Clone> UseList<K, V> {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: None,
            oldest: None,
        }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        let at = *self.index.get(key)?;
        if self.newest != Some(at) {
            self.unlink(at);
            self.link_newest(at);
        }
        self.slots[at].content.as_ref().map(|(_, value)| value.clone())
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let mut gone = self.remove(&key);
        if self.index.len() == self.capacity {
            gone = self.oldest.and_then(|at| self.take(at));
        }
        let slot = Slot { content: Some((key.clone(), value)), newer: None, older: None };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.index.insert(key, at);
        self.link_newest(at);
        gone
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let at = *self.index.get(key)?;
        self.take(at)
    }

    fn take(&mut self, at: usize) -> Option<V> {
        self.unlink(at);
        let (key, value) = self.slots[at].content.take()?;
        self.index.remove(&key);
        self.free.push(at);
        Some(value)
    }

    fn unlink(&mut self, at: usize) {
        let (newer, older) = (self.slots[at].newer.take(), self.slots[at].older.take());
        match newer {
            Some(newer) => self.slots[newer].older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => self.slots[older].newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, at: usize) {
        self.slots[at].older = self.newest;
        match self.newest {
            Some(newest) => self.slots[newest].newer = Some(at),
            None => self.oldest = Some(at),
        }
        self.newest = Some(at);
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Get(u8),
        Insert(u8, u32),
        Remove(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..12).prop_map(Step::Get),
            (0u8..12, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            (0u8..12).prop_map(Step::Remove),
        ]
    }

    /// The reference: a vector, newest last.
    fn model_insert(
        model: &mut Vec<(u8, u32)>,
        capacity: usize,
        key: u8,
        value: u32,
    ) -> Option<u32> {
        let mut gone =
            model.iter().position(|(k, _)| *k == key).map(|position| model.remove(position).1);
        if model.len() == capacity {
            gone = Some(model.remove(0).1);
        }
        model.push((key, value));
        gone
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_list_in_order_of_use(capacity in 1usize..6, steps in prop::collection::vec(step(), 0..200)) {
            let pool = LruPool::new(capacity);
            let mut model: Vec<(u8, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Get(key) => {
                        let expected = model.iter().position(|(k, _)| *k == key).map(|position| {
                            let entry = model.remove(position);
                            model.push(entry);
                            entry.1
                        });
                        prop_assert_eq!(pool.get(&key), expected);
                    }
                    Step::Insert(key, value) => {
                        let expected = model_insert(&mut model, capacity, key, value);
                        prop_assert_eq!(pool.insert(key, value), expected);
                    }
                    Step::Remove(key) => {
                        let expected = model.iter().position(|(k, _)| *k == key).map(|position| model.remove(position).1);
                        prop_assert_eq!(pool.remove(&key), expected);
                    }
                }
                prop_assert_eq!(pool.len(), model.len());
            }
        }
    }

    #[test]
    fn an_evicted_value_lives_as_long_as_it_is_used() {
        let pool = LruPool::new(1);
        pool.insert(1, Arc::new("first"));
        let used = pool.get(&1).unwrap();
        drop(pool.insert(2, Arc::new("second")));
        assert!(pool.get(&1).is_none());
        assert_eq!(*used, "first");
    }

    #[test]
    fn a_pool_of_nothing_still_holds_one() {
        let pool = LruPool::new(0);
        assert!(pool.is_empty());
        assert_eq!(pool.insert(1, 10), None);
        assert_eq!(pool.insert(2, 20), Some(10));
        assert_eq!(pool.get(&2), Some(20));
    }

    // H36: a list was reordered under a read lock.
    #[test]
    fn many_threads_never_exceed_the_capacity() {
        let pool = LruPool::new(3);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        let key = (round * 7 + thread) % 10;
                        if let Some(value) = pool.get(&key) {
                            assert_eq!(value, key);
                        }
                        pool.insert(key, key);
                        assert!(pool.len() <= 3);
                    }
                });
            }
        });
    }
}
