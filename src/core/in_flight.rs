//! What is being waited for right now: a table of atomics, so that a hang can be seen without touching any lock.

use std::sync::Arc;

use crate::core::ids::Ids;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Operations that can be noted at once; more are served, but not seen.
const SLOTS: usize = 8192;

/// What kind of operation waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// read(2) that waits for bytes.
    Read = 1,
    /// Name to inode.
    Lookup = 2,
    /// Directory listing.
    List = 3,
    /// Target of a symlink.
    Readlink = 4,
    /// Extended attributes.
    Xattr = 5,
    /// SEEK_DATA or SEEK_HOLE.
    Seek = 6,
    /// open(2) that looks for what an earlier life left.
    Open = 7,
}

impl Operation {
    /// The word in status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Lookup => "lookup",
            Operation::List => "list",
            Operation::Readlink => "readlink",
            Operation::Xattr => "xattr",
            Operation::Seek => "seek",
            Operation::Open => "open",
        }
    }

    fn from_u8(value: u8) -> Option<Self> {
        [Self::Read, Self::Lookup, Self::List, Self::Readlink, Self::Xattr, Self::Seek, Self::Open]
            .into_iter()
            .find(|operation| *operation as u8 == value)
    }
}

/// One operation in flight, as it was a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// Number of the request, never repeated.
    pub request: u64,
    /// What it does.
    pub operation: Operation,
    /// Inode it works on.
    pub ino: u64,
    /// First byte asked for (reads and seeks).
    pub offset: u64,
    /// Bytes asked for (reads).
    pub len: u64,
    /// When it began, in milliseconds on the caller's clock.
    pub since_ms: u64,
    /// Process that asks.
    pub pid: u32,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0 = free. Written last (Release) and read first (Acquire): who sees a number sees the rest of its slot.
    request: AtomicU64,
    operation: AtomicU8,
    warned: AtomicU8,
    pid: AtomicU32,
    ino: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    since_ms: AtomicU64,
}

/// The table.
///
/// # Concurrency
/// [`InFlight::note`] takes a free slot by compare-and-swap; nobody ever waits. A reader of the table may see a slot change under it and
/// skips it then.
#[derive(Debug)]
pub struct InFlight {
    requests: Ids,
    hint: AtomicU64,
    slots: Vec<Slot>,
}

/// Marks a slot that is being written.
const CLAIMED: u64 = u64::MAX;

impl Default for InFlight {
    fn default() -> Self {
        Self {
            requests: Ids::default(),
            hint: AtomicU64::new(0),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
        }
    }
}

impl InFlight {
    /// Notes an operation that begins to wait, until the guard is dropped. `noted.request` is ignored and given anew.
    pub fn note(self: &Arc<Self>, noted: Noted) -> InFlightGuard {
        let request = self.requests.next();
        let start = self.hint.fetch_add(1, Ordering::Relaxed);
        let slot = (0..64u64)
            .map(|step| usize::try_from((start + step) % SLOTS as u64).unwrap_or(0))
            .find(|index| {
                let free = &self.slots[*index].request;
                free.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
            });
        if let Some(index) = slot {
            let slot = &self.slots[index];
            slot.operation.store(noted.operation as u8, Ordering::Relaxed);
            slot.warned.store(0, Ordering::Relaxed);
            slot.pid.store(noted.pid, Ordering::Relaxed);
            slot.ino.store(noted.ino, Ordering::Relaxed);
            slot.offset.store(noted.offset, Ordering::Relaxed);
            slot.len.store(noted.len, Ordering::Relaxed);
            slot.since_ms.store(noted.since_ms, Ordering::Relaxed);
            slot.request.store(request, Ordering::Release);
        }
        InFlightGuard { table: Arc::clone(self), slot, request }
    }

    /// Everything in flight, oldest first.
    pub fn all(&self) -> Vec<Noted> {
        let mut all: Vec<Noted> = self.slots.iter().filter_map(Slot::read).collect();
        all.sort_by_key(|noted| noted.request);
        all
    }

    /// What has waited since before `before_ms` and was not reported by this call yet.
    pub fn newly_stuck(&self, before_ms: u64) -> Vec<Noted> {
        self.slots
            .iter()
            .filter_map(|slot| {
                let noted = slot.read()?;
                let first =
                    noted.since_ms < before_ms && slot.warned.swap(1, Ordering::Relaxed) == 0;
                first.then_some(noted)
            })
            .collect()
    }
}

impl Slot {
    fn read(&self) -> Option<Noted> {
        let request = self.request.load(Ordering::Acquire);
        if request == 0 || request == CLAIMED {
            return None;
        }
        let noted = Noted {
            request,
            operation: Operation::from_u8(self.operation.load(Ordering::Relaxed))?,
            ino: self.ino.load(Ordering::Relaxed),
            offset: self.offset.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            since_ms: self.since_ms.load(Ordering::Relaxed),
            pid: self.pid.load(Ordering::Relaxed),
        };
        (self.request.load(Ordering::Acquire) == request).then_some(noted)
    }
}

/// Takes the note back when it is dropped.
#[derive(Debug)]
pub struct InFlightGuard {
    table: Arc<InFlight>,
    slot: Option<usize>,
    request: u64,
}

impl InFlightGuard {
    /// The number of the request.
    pub fn request(&self) -> u64 {
        self.request
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if let Some(index) = self.slot {
            self.table.slots[index].request.store(0, Ordering::Release);
        }
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    fn read_of(ino: u64, since_ms: u64) -> Noted {
        Noted { request: 0, operation: Operation::Read, ino, offset: 1, len: 2, since_ms, pid: 3 }
    }

    #[test]
    fn a_note_is_seen_until_its_guard_drops() {
        let table = Arc::new(InFlight::default());
        let first = table.note(read_of(10, 5));
        let second = table.note(read_of(11, 50));
        let inos: Vec<u64> = table.all().iter().map(|noted| noted.ino).collect();
        assert_eq!(inos, [10, 11]);
        assert_eq!(table.newly_stuck(20).len(), 1);
        assert_eq!(table.newly_stuck(20).len(), 0, "each is reported once");
        drop(first);
        assert_eq!(table.all().len(), 1);
        drop(second);
        assert!(table.all().is_empty());
    }

    #[test]
    fn a_full_table_serves_on() {
        let table = Arc::new(InFlight::default());
        let guards: Vec<_> = (0..SLOTS as u64 + 100).map(|n| table.note(read_of(n, 0))).collect();
        assert!(table.all().len() >= SLOTS - 64);
        drop(guards);
        assert!(table.all().is_empty());
    }
}
