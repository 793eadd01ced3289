//! Room that is taken while there is some, so that the catalog can still be written when the disk is full.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::store::root::create_beneath;
use crate::sync::{AtomicBool, Ordering};

pub(in crate::store) const BALLAST_NAME: &str = "ballast";
const BALLAST_BYTES: u64 = 64 << 20;
/// At most this part of the file system.
const SHARE: u64 = 64;
/// Taken again only when so many times its size are free, so that it does not come and go.
const FREE_TIMES: u64 = 4;

/// A file of [`BALLAST_BYTES`] in the state directory, or none when room is short.
#[derive(Debug)]
pub(super) struct Ballast {
    /// The state directory; `None` in tests without a disk.
    state: Option<OwnedFd>,
    /// Relaxed: a hint; the file itself decides.
    is_there: AtomicBool,
}

impl Ballast {
    /// Takes the room if it can be spared.
    pub(super) fn new(state: Option<OwnedFd>) -> Self {
        let ballast = Self { state, is_there: AtomicBool::new(false) };
        ballast.restore();
        ballast
    }

    /// Gives the room back; says whether there was any.
    pub(super) fn release(&self) -> bool {
        self.is_there.store(false, Ordering::Relaxed);
        let Some(state) = &self.state else { return false };
        let is_gone = rustix::fs::unlinkat(state, BALLAST_NAME, AtFlags::empty()).is_ok();
        if is_gone {
            tracing::warn!("destination is full: ballast released for the catalog");
        }
        is_gone
    }

    /// Takes the room again if it is gone and can be spared.
    pub(super) fn restore(&self) {
        let Some(state) = &self.state else { return };
        if self.is_there.load(Ordering::Relaxed) {
            return;
        }
        match take(state) {
            Ok(is_there) => self.is_there.store(is_there, Ordering::Relaxed),
            Err(errno) => {
                // Not tried again: a file system that cannot reserve never will.
                self.is_there.store(errno == Errno::NOTSUP, Ordering::Relaxed);
                tracing::debug!(err = %errno, "no ballast");
            }
        }
    }
}

fn take(state: &OwnedFd) -> Result<bool, Errno> {
    let room = rustix::fs::fstatvfs(state)?;
    let total = room.f_blocks.saturating_mul(room.f_frsize);
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let wanted = BALLAST_BYTES.min(total / SHARE);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW;
    let is_there = rustix::fs::statat(state, BALLAST_NAME, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| u64::try_from(stat.st_blocks).is_ok_and(|units| units * 512 >= wanted));
    if is_there {
        return Ok(true);
    }
    if wanted == 0 || free / FREE_TIMES < wanted {
        return Ok(false);
    }
    let mode = Mode::from_raw_mode(0o600);
    let file =
        create_beneath(std::os::fd::AsFd::as_fd(state), BALLAST_NAME.as_bytes(), flags, mode)?;
    let taken = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, wanted);
    if taken.is_err() {
        rustix::fs::unlinkat(state, BALLAST_NAME, AtFlags::empty())?;
    }
    taken.map(|()| true)
}
