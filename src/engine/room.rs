//! Whether the destination has room to keep more. Looked at once a second; asked from memory.

use std::time::Duration;

use crate::error::Error;
use crate::store::Space;
use crate::sync::{AtomicBool, AtomicU64, Ordering};

const GIB: u64 = 1 << 30;
/// Between two looks of what waits for room.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Room is short below a reserve: then background work pauses and readers are served straight from the source, unkept.
#[derive(Debug)]
pub struct Room {
    /// Bytes that stay free; `None` = by the size of the file system.
    reserve: Option<u64>,
    /// Relaxed: a reader that sees it a moment late writes one block more, or one less.
    short: AtomicBool,
    /// A write found no room, and none has succeeded since: what statvfs says does not count, as no quota shows there. Relaxed too.
    refused: AtomicBool,
    /// What was free at the last look, and what of it stays free. Relaxed: for people.
    free: AtomicU64,
    kept_free: AtomicU64,
}

impl Room {
    /// Nothing is known yet; room is taken to be there.
    pub fn new(reserve: Option<u64>) -> Self {
        let [short, refused] = [false; 2].map(AtomicBool::new);
        let [free, kept_free] = [0; 2].map(AtomicU64::new);
        Self { reserve, short, refused, free, kept_free }
    }

    /// Bytes that were free at the last look, and bytes that stay free.
    pub fn seen(&self) -> (u64, u64) {
        (self.free.load(Ordering::Relaxed), self.kept_free.load(Ordering::Relaxed))
    }

    /// Bytes that would have to go until room is not short any more.
    pub fn lacking(&self, space: &Space) -> u64 {
        self.reserve(space).saturating_sub(space.free_bytes)
    }

    fn reserve(&self, space: &Space) -> u64 {
        self.reserve.unwrap_or_else(|| default_reserve(space.total_bytes)).max(1)
    }

    /// Takes in what the file system says.
    pub fn update(&self, space: &Space) {
        let reserve = self.reserve(space);
        self.free.store(space.free_bytes, Ordering::Relaxed);
        self.kept_free.store(reserve, Ordering::Relaxed);
        let is_full = space.free_bytes < reserve || space.is_used_up();
        let short = is_full || self.is_refused();
        if self.short.swap(short, Ordering::Relaxed) != short {
            let free = space.free_bytes;
            match short {
                true => tracing::warn!(free, reserve, "too little room at the destination: paused"),
                false => tracing::info!(free, reserve, "room at the destination again"),
            }
        }
    }

    /// A write found no room, for the reason that `error` tells.
    pub fn ran_out(&self, error: &Error) {
        self.refused.store(true, Ordering::Relaxed);
        if !self.short.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "no room at the destination: paused");
        }
    }

    /// Whether a write has to succeed before there is room again.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// A write found room again.
    pub(crate) fn accepted(&self) {
        self.refused.store(false, Ordering::Relaxed);
    }

    /// Whether nothing more is to be kept now.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }
}

/// 5 % of the file system, at least 1 GiB, at most 64 GiB.
fn default_reserve(total_bytes: u64) -> u64 {
    (total_bytes / 20).clamp(GIB, 64 * GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(free_bytes: u64) -> Space {
        let total_bytes = 100 * GIB;
        Space { total_bytes, free_bytes, total_inodes: 10, free_inodes: 10, name_max: 255 }
    }

    #[test]
    fn room_is_short_below_the_reserve_and_there_again_above_it() {
        let room = Room::new(None);
        room.update(&space(5 * GIB - 1));
        assert!(room.is_short());
        room.update(&space(5 * GIB));
        assert!(!room.is_short());
    }

    // Quotas do not show in statvfs.
    #[test]
    fn what_a_write_found_out_stays_until_a_write_succeeds() {
        let room = Room::new(None);
        room.ran_out(&Error::new(crate::error::Kind::NoSpace, "write"));
        room.update(&space(50 * GIB));
        assert!(room.is_short() && room.is_refused());
        room.accepted();
        room.update(&space(50 * GIB));
        assert!(!room.is_short());
    }

    // btrfs counts no inodes: it says 0 of 0.
    #[test]
    fn a_file_system_without_a_limit_of_inodes_has_room() {
        let room = Room::new(None);
        room.update(&Space { total_inodes: 0, free_inodes: 0, ..space(50 * GIB) });
        assert!(!room.is_short());
        room.update(&Space { free_inodes: 0, ..space(50 * GIB) });
        assert!(room.is_short());
    }

    #[test]
    fn without_a_reserve_only_a_full_disk_is_short() {
        let room = Room::new(Some(0));
        room.update(&space(1));
        assert!(!room.is_short());
        room.update(&space(0));
        assert!(room.is_short());
    }

    #[test]
    fn the_default_reserve_has_both_bounds() {
        assert_eq!(default_reserve(GIB), GIB);
        assert_eq!(default_reserve(1 << 50), 64 * GIB);
    }
}
