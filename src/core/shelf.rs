//! A shared map of values that carry their own keys, for tables with a million entries.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};

use hashbrown::HashTable;

use crate::sync::RwLock;

const SHARDS: usize = 64;
/// A table of fewer is not worth shrinking.
const SMALL: usize = 64;

/// A value that a [`Shelf`] can hold; cheap to clone.
pub trait Shelved: Clone {
    /// What it is found by.
    type Key<'a>: Hash + Copy
    where
        Self: 'a;

    /// Its key. Never changes.
    fn key(&self) -> Self::Key<'_>;

    /// Whether `key` is its key.
    fn is_at(&self, key: Self::Key<'_>) -> bool;

    /// Whether the two are the same `Arc`.
    fn is(&self, other: &Self) -> bool;

    /// How many have it, as `Arc::strong_count` says.
    fn holders(&self) -> usize;
}

/// Sharded set of values, each found by what it says its key is: an entry costs the value and one byte. Every method takes one lock for
/// a moment and returns a copy. It shrinks when it empties.
#[derive(Debug)]
pub struct Shelf<V> {
    hasher: RandomState,
    shards: Vec<RwLock<HashTable<V>>>,
}

impl<V> Default for Shelf<V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| RwLock::new(HashTable::new())).collect(),
        }
    }
}

impl<V: Shelved> Shelf<V> {
    fn shard(&self, key: V::Key<'_>) -> (u64, &RwLock<HashTable<V>>) {
        let hash = self.hasher.hash_one(key);
        (hash, &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or(0)])
    }

    /// The value at `key`.
    pub fn get(&self, key: V::Key<'_>) -> Option<V> {
        let (hash, shard) = self.shard(key);
        shard.read().find(hash, |value| value.is_at(key)).cloned()
    }

    /// Puts `value` at its key and returns the one before.
    pub fn insert(&self, value: V) -> Option<V> {
        let (hash, shard) = self.shard(value.key());
        let mut shard = shard.write();
        if let Some(present) = shard.find_mut(hash, |present| present.is_at(value.key())) {
            return Some(std::mem::replace(present, value));
        }
        shard.insert_unique(hash, value, |value| self.hasher.hash_one(value.key()));
        None
    }

    /// What is at the key of `value`, which is put there if nothing is. Of racing callers all get the same.
    pub fn get_or_insert(&self, value: V) -> V {
        match self.exchange(None, value.clone()) {
            Err(Some(present)) => present,
            Ok(()) | Err(None) => value,
        }
    }

    /// Puts `new` at its key if `expected` is there now (the same `Arc`, or none); else returns what is there.
    ///
    /// # Errors
    /// What is there, if somebody else was quicker.
    pub fn exchange(&self, expected: Option<&V>, new: V) -> Result<(), Option<V>> {
        let (hash, shard) = self.shard(new.key());
        let mut shard = shard.write();
        match (shard.find_mut(hash, |present| present.is_at(new.key())), expected) {
            (Some(present), Some(expected)) if present.is(expected) => *present = new,
            (Some(present), _) => return Err(Some(present.clone())),
            (None, Some(_)) => return Err(None),
            (None, None) => {
                shard.insert_unique(hash, new, |value| self.hasher.hash_one(value.key()));
            }
        }
        Ok(())
    }

    /// Takes out what is at `key`.
    pub fn take(&self, key: V::Key<'_>) -> Option<V> {
        self.take_one(key, None, usize::MAX)
    }

    /// Takes `value` out if it is what is at its key and at most `holders` have it, the shelf included; whether it did. Nobody can get
    /// it from here meanwhile.
    pub fn take_exact(&self, value: &V, holders: usize) -> bool {
        self.take_one(value.key(), Some(value), holders).is_some()
    }

    fn take_one(&self, key: V::Key<'_>, only: Option<&V>, holders: usize) -> Option<V> {
        let (hash, shard) = self.shard(key);
        let mut shard = shard.write();
        let found = shard.find_entry(hash, |value| value.is_at(key)).ok()?;
        if only.is_some_and(|only| !found.get().is(only)) || found.get().holders() > holders {
            return None;
        }
        let (taken, _) = found.remove();
        if shard.capacity() > SMALL && shard.len() < shard.capacity() / 4 {
            let half = shard.capacity() / 2;
            shard.shrink_to(half, |value| self.hasher.hash_one(value.key()));
        }
        Some(taken)
    }

    /// A copy of all values, shard by shard: not one moment's state.
    pub fn values(&self) -> Vec<V> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().iter().cloned());
        }
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Debug)]
    struct Word(String, u32);

    impl Shelved for Arc<Word> {
        type Key<'a> = &'a str;

        fn key(&self) -> &str {
            &self.0
        }

        fn is_at(&self, key: &str) -> bool {
            self.0 == key
        }

        fn is(&self, other: &Self) -> bool {
            Arc::ptr_eq(self, other)
        }

        fn holders(&self) -> usize {
            Arc::strong_count(self)
        }
    }

    fn word(text: impl ToString, number: u32) -> Arc<Word> {
        Arc::new(Word(text.to_string(), number))
    }

    // C6: a get-or-create registry raced.
    #[test]
    fn racing_inserts_agree_on_one_value() {
        let shelf: Shelf<Arc<Word>> = Shelf::default();
        let all: Vec<Arc<Word>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..10)
                .map(|n| {
                    let shelf = &shelf;
                    scope.spawn(move || shelf.get_or_insert(word("seven", n)))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|value| Arc::ptr_eq(value, &all[0])));
        assert_eq!(shelf.len(), 1);
    }

    #[test]
    fn a_value_is_replaced_or_taken_only_if_it_is_the_one_that_was_meant() {
        let shelf: Shelf<Arc<Word>> = Shelf::default();
        let (one, two) = (word("a", 1), word("a", 2));
        assert!(shelf.exchange(Some(&one), two.clone()).unwrap_err().is_none());
        assert!(shelf.exchange(None, one.clone()).is_ok());
        assert!(shelf.exchange(None, two.clone()).unwrap_err().unwrap().is(&one));
        assert!(shelf.exchange(Some(&one), two.clone()).is_ok());
        assert_eq!((shelf.get("a").unwrap().1, shelf.len()), (2, 1));
        assert!(!shelf.take_exact(&one, 9) && shelf.take_exact(&two, 9) && shelf.is_empty());
    }

    #[test]
    fn a_value_that_somebody_holds_stays() {
        let shelf: Shelf<Arc<Word>> = Shelf::default();
        let value = shelf.get_or_insert(word("a", 1));
        let held = Arc::clone(&value);
        assert!(!shelf.take_exact(&value, 2));
        drop(held);
        assert!(shelf.take_exact(&value, 2) && shelf.take("a").is_none());
    }

    #[test]
    fn it_finds_all_while_it_grows_and_shrinks() {
        let shelf: Shelf<Arc<Word>> = Shelf::default();
        for number in 0..20_000 {
            assert!(shelf.insert(word(number, number)).is_none());
        }
        let most: usize = shelf.shards.iter().map(|shard| shard.read().capacity()).sum();
        for number in 0..20_000 {
            assert_eq!(shelf.take(&number.to_string()).unwrap().1, number);
            let next = number + 1;
            assert_eq!(
                shelf.get(&next.to_string()).map(|word| word.1),
                (next < 20_000).then_some(next)
            );
        }
        let left: usize = shelf.shards.iter().map(|shard| shard.read().capacity()).sum();
        assert!(left < most / 4, "{left} of {most}");
    }
}
