//! Names that the source has no more and the catalog still has: until it forgets them nobody may take them from there.

use std::ffi::{OsStr, OsString};

use crate::core::table::Table;
use crate::sync::{AtomicU64, Ordering};

/// The names that wait to be forgotten.
#[derive(Debug, Default)]
pub(super) struct Gone {
    names: Table<(u64, OsString), ()>,
    /// At least as many as there are in `names`; mostly 0, and then nobody looks there. AcqRel: who sees 0 comes before the next mark.
    marked: AtomicU64,
    /// How many there were so far. AcqRel: who sees one counted sees its name, or that it was forgotten.
    count: AtomicU64,
}

impl Gone {
    /// The source has no such name. To be called before it leaves memory.
    pub(super) fn mark(&self, parent: u64, name: &OsStr) {
        self.marked.fetch_add(1, Ordering::AcqRel);
        if self.names.insert((parent, name.to_owned()), ()).is_some() {
            self.marked.fetch_sub(1, Ordering::AcqRel);
        }
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// The source has it, or the catalog has it no more.
    pub(super) fn unmark(&self, parent: u64, name: &OsStr) {
        if self.any() && self.names.remove(&(parent, name.to_owned())).is_some() {
            self.marked.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether the catalog may still have a name that the source has not.
    pub(super) fn has(&self, parent: u64, name: &OsStr) -> bool {
        self.any() && self.names.get(&(parent, name.to_owned())).is_some()
    }

    /// Changes when a name goes: what was read from the catalog before may be of the past.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn any(&self) -> bool {
        self.marked.load(Ordering::Acquire) > 0
    }
}
