//! Names that the source has no more and the catalog still has: until it forgets them nobody may take them from there.

use crate::core::table::Table;
use crate::engine::tree::PlaceKey;
use crate::sync::{AtomicU64, Ordering};

/// The names that wait to be forgotten.
#[derive(Debug, Default)]
pub(super) struct Gone {
    names: Table<PlaceKey, ()>,
    /// How many there were so far. AcqRel: who sees one counted sees its name, or that it was forgotten.
    count: AtomicU64,
}

impl Gone {
    /// The source has no such name. To be called before it leaves memory.
    pub(super) fn mark(&self, key: PlaceKey) {
        self.names.insert(key, ());
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// The source has it, or the catalog has it no more.
    pub(super) fn unmark(&self, key: PlaceKey) {
        self.names.remove(&key);
    }

    /// Whether the catalog may still have a name that the source has not.
    pub(super) fn has(&self, key: PlaceKey) -> bool {
        self.names.get(&key).is_some()
    }

    /// Changes when a name goes: what was read from the catalog before may be of the past.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }
}
