//! A shared map that never lends a guard.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use crate::sync::RwLock;

const SHARDS: usize = 64;
/// A map of fewer is not worth shrinking.
const SMALL: usize = 64;

/// Sharded map of cheap-to-clone values (an `Arc`, a number). Every method takes one lock for a moment and returns a copy.
#[derive(Debug)]
pub struct Table<K, V> {
    hasher: RandomState,
    shards: Vec<RwLock<HashMap<K, V>>>,
}

impl<K: Hash + Eq, V: Clone> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| RwLock::new(HashMap::new())).collect(),
        }
    }
}

impl<K: Hash + Eq, V: Clone> Table<K, V> {
    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<V> {
        self.shard(key).read().get(key).cloned()
    }

    /// Sets the value of `key` and returns the one before.
    pub fn insert(&self, key: K, value: V) -> Option<V> {
        self.shard(&key).write().insert(key, value)
    }

    /// The value of `key`, which becomes `value` if there was none. Of racing callers all get the same.
    pub fn get_or_insert(&self, key: K, value: V) -> V {
        match self.shard(&key).write().entry(key) {
            Entry::Occupied(present) => present.get().clone(),
            Entry::Vacant(empty) => empty.insert(value).clone(),
        }
    }

    /// Takes the value of `key` out.
    pub fn remove(&self, key: &K) -> Option<V> {
        let mut shard = self.shard(key).write();
        let value = shard.remove(key);
        shrink(&mut shard);
        value
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of all values, shard by shard: not one moment's state.
    pub fn values(&self) -> Vec<V> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().values().cloned());
        }
        all
    }
}

impl<K: Hash + Eq, V> Table<K, V> {
    fn shard(&self, key: &K) -> &RwLock<HashMap<K, V>> {
        let hash = self.hasher.hash_one(key);
        &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or(0)]
    }
}

impl<K: Hash + Eq + Clone, V> Table<K, V> {
    /// A copy of all keys, shard by shard.
    pub fn keys(&self) -> Vec<K> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().keys().cloned());
        }
        all
    }
}

impl<K: Hash + Eq, V> Table<K, Arc<V>> {
    /// Sets the value of `key` to `new` if it still is `expected` (the same `Arc`, or none); else returns what it is now.
    ///
    /// # Errors
    /// The current value, if somebody else was quicker.
    pub fn compare_exchange(
        &self,
        key: K,
        expected: Option<&Arc<V>>,
        new: Arc<V>,
    ) -> Result<(), Option<Arc<V>>> {
        match self.shard(&key).write().entry(key) {
            Entry::Occupied(mut present) => {
                if !expected.is_some_and(|expected| Arc::ptr_eq(expected, present.get())) {
                    return Err(Some(Arc::clone(present.get())));
                }
                present.insert(new);
            }
            Entry::Vacant(empty) => {
                if expected.is_some() {
                    return Err(None);
                }
                empty.insert(new);
            }
        }
        Ok(())
    }
}

impl<K: Hash + Eq, V> Table<K, Arc<V>> {
    /// Takes the value of `key` out if it is `value` and nobody but the table and `holders` others has it; whether it did. Nobody can
    /// get it from here meanwhile.
    pub fn remove_unused(&self, key: &K, value: &Arc<V>, holders: usize) -> bool {
        let mut shard = self.shard(key).write();
        let is_unused = shard.get(key).is_some_and(|known| {
            Arc::ptr_eq(known, value) && Arc::strong_count(known) <= holders + 1
        });
        if is_unused {
            shard.remove(key);
            shrink(&mut shard);
        }
        is_unused
    }

    /// Takes the value of `key` out if it is `value`.
    pub fn remove_exact(&self, key: &K, value: &Arc<V>) -> bool {
        let mut shard = self.shard(key).write();
        let is_it = shard.get(key).is_some_and(|known| Arc::ptr_eq(known, value));
        if is_it {
            shard.remove(key);
            shrink(&mut shard);
        }
        is_it
    }
}

/// What many were in gives its memory back when few are left.
fn shrink<K: Hash + Eq, V>(shard: &mut HashMap<K, V>) {
    if shard.capacity() > SMALL && shard.len() < shard.capacity() / 4 {
        shard.shrink_to(shard.capacity() / 2);
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    // C6: a get-or-create registry raced.
    #[test]
    fn racing_inserts_agree_on_one_value() {
        let table: Table<u32, Arc<u32>> = Table::default();
        let all: Vec<Arc<u32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..10)
                .map(|n| {
                    scope.spawn({
                        let table = &table;
                        move || table.get_or_insert(7, Arc::new(n))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|value| Arc::ptr_eq(value, &all[0])));
        assert_eq!(table.len(), 1);
        assert!(table.remove(&7).is_some() && table.is_empty());
    }

    #[test]
    fn a_value_that_somebody_holds_stays() {
        let table: Table<u32, Arc<u32>> = Table::default();
        let value = table.get_or_insert(7, Arc::new(1));
        let held = Arc::clone(&value);
        assert!(!table.remove_unused(&7, &value, 1));
        drop(held);
        assert!(!table.remove_unused(&7, &Arc::new(1), 1), "another value");
        assert!(table.remove_unused(&7, &value, 1) && table.is_empty());
    }
}
