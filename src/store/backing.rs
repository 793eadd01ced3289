//! One file's bytes on disk: a sparse part first, the published file after. The identity (device, inode) stays the same.
//!
//! Descriptors come from a bounded pool and are opened again when they are needed; each is checked against the identity, so a file
//! that somebody put in its place is never read for it. Which bytes are valid is not known here (see `core`).

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use crate::core::budget::Occupied;
use crate::core::path::RelPath;
use crate::core::range::BLOCK_SIZE;
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicBool, Ordering};

use super::destination::Disk;
use super::root::{create_beneath, open_beneath};
use super::{Destination, Identity};

/// An open backing file. It lives until the last user is done, also when the pool has forgotten it.
pub(super) type Descriptor = Arc<OwnedFd>;

/// Most slices that one call takes (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

/// Where the inode has its name.
#[derive(Debug)]
pub(super) enum Place {
    /// In `parts/`.
    Part(String),
    /// On its way: it has one of the two names.
    Moving { part: String, path: RelPath },
    /// In DIR, read-only for us.
    Published(RelPath),
}

/// The bytes of one file of fixed length. Dropping it before it is published unlinks its part, unless the catalog vouches for it.
///
/// # Concurrency
/// All methods may be called at once. Reads go on undisturbed while the file is published; writes must have ended before.
#[derive(Debug)]
pub struct BackingFile {
    pub(super) disk: Arc<Disk>,
    id: u64,
    identity: Identity,
    size: u64,
    pub(super) place: ArcSwap<Place>,
    /// Holds what could not be opened again: a published file that its owner may not read, or that is nobody's business any more.
    kept: ArcSwapOption<OwnedFd>,
    /// Set when a sync failed. Relaxed: whoever depends on it saw the failed call return.
    is_broken: AtomicBool,
    /// What it takes from the budget of the destination.
    occupied: Occupied,
    /// Whether the catalog knows the part. Relaxed: set before the commit and taken back after one, by whoever then drops its handle.
    is_kept: AtomicBool,
    /// Whether it was given up for good: a checkpoint that began before must not keep it again. Relaxed, as above.
    is_given_up: AtomicBool,
}

impl Destination {
    /// Makes a sparse part of `size` bytes, mode 0600.
    ///
    /// # Errors
    /// `Limit` if the file system has no files of this size; `NoSpace` without room for an inode.
    pub fn create_part(&self, size: u64) -> Result<BackingFile> {
        let disk = &self.disk;
        let id = disk.ids.next();
        let name = disk.part_name(id);
        let failed = |op, errno| disk.root.own_error(op, errno);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd =
            create_beneath(disk.state.parts(), name.as_bytes(), flags, Mode::from_raw_mode(0o600))
                .map_err(|errno| failed("make part in", errno))?;
        let sized = set_size(&fd, size).and_then(|()| rustix::fs::fstat(&fd));
        let stat = match sized {
            Ok(stat) => stat,
            Err(errno) => {
                remove_part(disk, &name);
                return Err(match errno {
                    Errno::FBIG | Errno::INVAL | Errno::OVERFLOW => failed("make part in", errno)
                        .kinded(Kind::Limit)
                        .because(format!("its file system has no files of {size} bytes")),
                    _ => failed("make part in", errno),
                });
            }
        };
        let place = Place::Part(name);
        Ok(BackingFile::new(Arc::clone(disk), id, Identity::of(&stat), size, place, fd))
    }

    /// Opens the regular file `path` in DIR as it is: published earlier, or found there and to be adopted.
    ///
    /// # Errors
    /// `NotFound`; `Exists` if it is no regular file or a symlink stands in the way; `Denied`.
    pub fn open_published(&self, path: &RelPath) -> Result<BackingFile> {
        let disk = &self.disk;
        disk.check_path(path)?;
        let failed = |errno| disk.root.error("open published file", path, errno);
        let other = || failed(Errno::EXIST).because("it is no regular file");
        // Looked at before it is opened: opening a device can have effects.
        let handle = disk.root.open(path, OFlags::PATH | OFlags::NOFOLLOW).map_err(failed)?;
        let seen = rustix::fs::fstat(&handle).map_err(failed)?;
        if !FileType::from_raw_mode(seen.st_mode).is_file() {
            return Err(other());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = disk.root.open(path, flags).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        if Identity::of(&stat) != Identity::of(&seen) {
            return Err(other().because("it was replaced while it was opened"));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let place = Place::Published(path.clone());
        let id = disk.ids.next();
        Ok(BackingFile::new(Arc::clone(disk), id, Identity::of(&stat), size, place, fd))
    }
}

impl BackingFile {
    pub(super) fn new(
        disk: Arc<Disk>,
        id: u64,
        identity: Identity,
        size: u64,
        place: Place,
        fd: OwnedFd,
    ) -> Self {
        drop(disk.descriptors.insert(id, Arc::new(fd)));
        Self {
            occupied: Occupied::new(disk.budget.clone(), size),
            disk,
            id,
            identity,
            size,
            place: ArcSwap::from_pointee(place),
            kept: ArcSwapOption::empty(),
            is_broken: AtomicBool::new(false),
            is_kept: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
        }
    }

    /// Length in bytes; it never changes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The inode. The same before and after publishing.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The blocks that take room on the disk, where that is counted.
    pub fn occupied(&self) -> &Occupied {
        &self.occupied
    }

    /// Where it lies in DIR once it is published.
    pub fn published_path(&self) -> Option<RelPath> {
        match &**self.place.load() {
            Place::Published(path) => Some(path.clone()),
            Place::Part(_) | Place::Moving { .. } => None,
        }
    }

    /// Whether a sync failed: then nothing that was written since the last good one can be trusted, and it cannot be published.
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// An open descriptor, from the pool or opened again: writable while it is a part, read-only when published. May wait for the disk.
    ///
    /// # Errors
    /// `Stale` if somebody replaced the file in DIR; `NotFound` if it is gone; `Limit` without free descriptors.
    pub fn descriptor(&self) -> Result<Arc<OwnedFd>> {
        loop {
            if let Some(descriptor) = self.open_already() {
                return Ok(descriptor);
            }
            let place = self.place.load_full();
            let opened = self.reopen(&place);
            let is_current = || Arc::ptr_eq(&place, &self.place.load());
            match opened {
                // It moved meanwhile: look where it is now.
                Err(_) if !is_current() => {}
                Err(error) => return Err(error),
                Ok(fd) => {
                    let descriptor = Arc::new(fd);
                    drop(self.disk.descriptors.insert(self.id, Arc::clone(&descriptor)));
                    if is_current() {
                        return Ok(descriptor);
                    }
                    // Opened for a place that it has left: a writable descriptor must not stay in the pool.
                    drop(self.disk.descriptors.remove(&self.id));
                }
            }
        }
    }

    /// Keeps it readable for as long as this lives, whatever becomes of its name.
    ///
    /// # Errors
    /// As [`BackingFile::descriptor`].
    pub fn keep_open(&self) -> Result<()> {
        self.kept.store(Some(self.descriptor()?));
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// `NoSpace` when the disk or quota is full (what was written until then stays written); `Invalid` beyond the size; `ReadOnly` once
    /// it is published; `Io`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write_slices_at(offset, &mut [IoSlice::new(bytes)])
    }

    /// Writes all of `slices` one after the other at `offset`; consumes them.
    ///
    /// # Errors
    /// As [`BackingFile::write_at`].
    pub fn write_slices_at(&self, mut offset: u64, mut slices: &mut [IoSlice<'_>]) -> Result<()> {
        let len: u64 = slices.iter().map(|slice| len_u64(slice.len())).sum();
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(self
                .error("write to part", Errno::INVAL)
                .because(format!("{offset}+{len} lies beyond the file's {} bytes", self.size)));
        }
        if !matches!(&**self.place.load(), Place::Part(_)) {
            return Err(self.error("write to part", Errno::ROFS).because("it is published"));
        }
        let descriptor = self.descriptor()?;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let now = &slices[..slices.len().min(SLICES_MAX)];
            let written = retry_on_intr(|| rustix::io::pwritev(&*descriptor, now, offset))
                .map_err(|errno| self.error("write to part", errno))?;
            if written == 0 {
                return Err(self.error("write to part", Errno::IO).because("nothing was written"));
            }
            offset += len_u64(written);
            IoSlice::advance_slices(&mut slices, written);
        }
        Ok(())
    }

    /// Reads at `offset` until `target` is full or the file ends; returns the number of bytes. May wait for the disk.
    ///
    /// # Errors
    /// As [`BackingFile::descriptor`]; `Io`.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        let descriptor = self.descriptor()?;
        read_full(descriptor.as_fd(), offset, target)
            .map_err(|errno| self.error("read backing file", errno))
    }

    /// As [`BackingFile::read_at`] without ever waiting: `None` where that would be needed, or the file system cannot tell.
    ///
    /// # Errors
    /// `Io`.
    pub fn try_read_at(&self, offset: u64, target: &mut [u8]) -> Result<Option<usize>> {
        if offset >= self.size || target.is_empty() {
            return Ok(Some(0));
        }
        if !self.disk.abilities.nowait_reads {
            return Ok(None);
        }
        let Some(descriptor) = self.open_already() else { return Ok(None) };
        let wanted = target.len().min(usize::try_from(self.size - offset).unwrap_or(usize::MAX));
        let mut slice = [IoSliceMut::new(&mut target[..wanted])];
        match rustix::io::preadv2(&*descriptor, &mut slice, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == wanted => Ok(Some(read)),
            // Short: the rest is not in the page cache.
            Ok(_) | Err(Errno::AGAIN | Errno::NOTSUP | Errno::INTR) => Ok(None),
            Err(errno) => Err(self.error("read backing file", errno)),
        }
    }

    /// Makes the bytes that were written durable (fdatasync).
    ///
    /// # Errors
    /// Any failure breaks the part for good: the kernel forgets after one failed sync which pages it lost, so asking again would lie.
    pub fn sync(&self) -> Result<()> {
        let descriptor = self.descriptor()?;
        self.sync_by(|| rustix::fs::fdatasync(&*descriptor))
    }

    /// 512-byte units that are allocated.
    ///
    /// # Errors
    /// As [`BackingFile::descriptor`].
    pub fn data_blocks(&self) -> Result<u64> {
        let descriptor = self.descriptor()?;
        let stat = rustix::fs::fstat(&*descriptor)
            .map_err(|errno| self.error("stat backing file", errno))?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0))
    }

    /// Gives the room of `blocks` back to the file system; they read as zeros then. Nobody may trust or write them meanwhile. A published
    /// file is never touched: the kernel may read it by itself, also through a mapping that outlives its handle.
    ///
    /// # Errors
    /// `ReadOnly` if it is no part; `NotSupported` where the file system cannot; `Io`.
    pub fn punch(&self, blocks: Range<u64>) -> Result<()> {
        if !matches!(&**self.place.load(), Place::Part(_)) {
            return Err(self.error("punch part", Errno::ROFS).because("it is published"));
        }
        let descriptor = self.descriptor()?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Whole blocks, also at the end: what is cut within a block of the file system is only zeroed (fallocate(2)).
        let (start, len) = (blocks.start * BLOCK_SIZE, (blocks.end - blocks.start) * BLOCK_SIZE);
        retry_on_intr(|| rustix::fs::fallocate(&*descriptor, flags, start, len))
            .map_err(|errno| self.error("punch part", errno))?;
        self.occupied.release(blocks);
        Ok(())
    }

    /// Runs one sync, at most once to failure.
    pub(super) fn sync_by(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<()> {
        if self.is_broken() {
            return Err(self.error("sync part", Errno::IO).because("an earlier sync failed"));
        }
        sync().map_err(|errno| {
            self.is_broken.store(true, Ordering::Relaxed);
            self.error("sync part", errno)
        })
    }

    /// Opens the inode by its name in `parts`.
    pub(super) fn open_part(&self, part: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.checked(open_beneath(self.disk.state.parts(), part.as_bytes(), flags)?)
    }

    /// It has its final name: reads go on through `descriptor`, which cannot write. A writable one in the pool would make every
    /// execve(2) of the published file fail with ETXTBSY.
    pub(super) fn settle(&self, path: &RelPath, descriptor: OwnedFd, mode: u32) {
        let descriptor = Arc::new(descriptor);
        if mode & 0o400 == 0 && !rustix::process::geteuid().is_root() {
            self.kept.store(Some(Arc::clone(&descriptor)));
        }
        self.place.store(Arc::new(Place::Published(path.clone())));
        drop(self.disk.descriptors.insert(self.id, descriptor));
    }

    /// The part outlives this: the catalog is about to vouch for it.
    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    /// Whether the catalog knows it as a part: then it outlives this process.
    pub fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed) && !self.is_given_up.load(Ordering::Relaxed)
    }

    /// The part goes with who drops it last, whatever a checkpoint that runs now still records of it. What the catalog vouches for is
    /// taken back before.
    pub fn let_go(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Counts as failed for good.
    pub(super) fn set_broken(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }

    pub(super) fn error(&self, op: &'static str, errno: Errno) -> Error {
        let path = match &**self.place.load() {
            Place::Part(_) => return self.disk.root.own_error(op, errno),
            Place::Moving { path, .. } | Place::Published(path) => path.clone(),
        };
        self.disk.root.error(op, &path, errno)
    }

    fn open_already(&self) -> Option<Descriptor> {
        self.disk.descriptors.get(&self.id).or_else(|| self.kept.load_full())
    }

    fn reopen(&self, place: &Place) -> Result<OwnedFd> {
        let read_only = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let published = |path| self.disk.root.open(path, read_only).and_then(|fd| self.checked(fd));
        let opened = match place {
            Place::Part(part) => self.open_part(part, OFlags::RDWR | OFlags::NOFOLLOW),
            Place::Moving { part, path } => {
                self.open_part(part, read_only).or_else(|_| published(path))
            }
            Place::Published(path) => published(path),
        };
        opened.map_err(|errno| {
            let error = self.error("open backing file", errno);
            match errno {
                Errno::STALE => error.because("somebody else's file has its name now"),
                _ => error,
            }
        })
    }

    fn checked(&self, fd: OwnedFd) -> Result<OwnedFd, Errno> {
        match Identity::of(&rustix::fs::fstat(&fd)?) == self.identity {
            true => Ok(fd),
            false => Err(Errno::STALE),
        }
    }
}

impl Drop for BackingFile {
    fn drop(&mut self) {
        drop(self.disk.descriptors.remove(&self.id));
        match &**self.place.load() {
            Place::Part(part) | Place::Moving { part, .. } => {
                if !self.is_kept() {
                    remove_part(&self.disk, part);
                }
            }
            Place::Published(_) => {}
        }
    }
}

/// Unlinks a part; what fails is left to the sweep of the next start.
pub(super) fn remove_part(disk: &Disk, part: &str) {
    match rustix::fs::unlinkat(disk.state.parts(), part, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => tracing::warn!(part, err = %errno, "part could not be removed"),
    }
}

/// Reads until `target` is full or the file ends.
pub(super) fn read_full(
    fd: BorrowedFd<'_>,
    offset: u64,
    target: &mut [u8],
) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < target.len() {
        let at = offset.saturating_add(len_u64(filled));
        match rustix::io::pread(fd, &mut target[filled..], at) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

pub(super) fn set_size(fd: &OwnedFd, size: u64) -> Result<(), Errno> {
    if i64::try_from(size).is_err() {
        return Err(Errno::FBIG);
    }
    retry_on_intr(|| rustix::fs::ftruncate(fd, size))
}

/// Lossless: no supported platform has addresses wider than 64 bits.
fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DestinationOptions;

    fn open(directory: &tempfile::TempDir, descriptors: usize) -> Destination {
        let options =
            DestinationOptions { descriptors: Some(descriptors), ..DestinationOptions::default() };
        Destination::open(directory.path(), options).unwrap()
    }

    fn parts(directory: &tempfile::TempDir) -> usize {
        std::fs::read_dir(directory.path().join(".lazycopy/parts")).unwrap().count()
    }

    // H37, L6: a read met a closed or recycled descriptor.
    #[test]
    fn an_evicted_descriptor_is_opened_again_and_one_in_use_lives_on() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 2);
        let files: Vec<_> = (0u8..6).map(|_| destination.create_part(8).unwrap()).collect();
        let used = files[0].descriptor().unwrap();
        for (byte, file) in (0u8..).zip(&files) {
            file.write_at(0, &[byte; 8]).unwrap();
        }
        assert_eq!(destination.disk.descriptors.len(), 2);
        let mut target = [0; 8];
        assert_eq!(read_full(used.as_fd(), 0, &mut target).unwrap(), 8);
        for _ in 0..3 {
            for (byte, file) in (0u8..).zip(&files) {
                assert_eq!(file.read_at(0, &mut target).unwrap(), 8);
                assert_eq!(target, [byte; 8]);
            }
        }
    }

    #[test]
    fn descriptors_survive_many_threads_with_a_pool_of_two() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 2);
        let files: Vec<_> = (0u8..5).map(|_| destination.create_part(4096).unwrap()).collect();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let files = &files;
                scope.spawn(move || {
                    for round in 0..500u64 {
                        let at = usize::try_from((round + thread) % 5).unwrap();
                        let mark = [u8::try_from(at).unwrap(); 16];
                        files[at].write_at(thread * 16, &mark).unwrap();
                        let mut target = [0; 16];
                        files[at].read_at(thread * 16, &mut target).unwrap();
                        assert_eq!(target, mark);
                    }
                });
            }
        });
    }

    // L7: the evicted file was made anew, and the reader's descriptor saw the empty old one.
    #[test]
    fn a_part_replaced_behind_our_back_is_never_read_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 1);
        let file = destination.create_part(4).unwrap();
        file.write_at(0, b"good").unwrap();
        let other = destination.create_part(1).unwrap();
        let name = std::fs::read_dir(directory.path().join(".lazycopy/parts"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .find(|entry| entry.metadata().unwrap().len() == 4)
            .unwrap();
        // A rename, so that the inode number is certainly another one.
        let planted = directory.path().join("planted");
        std::fs::write(&planted, b"evil").unwrap();
        std::fs::rename(planted, name.path()).unwrap();
        other.write_at(0, b"x").unwrap();
        assert_eq!(file.read_at(0, &mut [0; 4]).unwrap_err().kind(), Kind::Stale);
    }

    // C3: temp files leaked on error.
    #[test]
    fn a_dropped_part_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 4);
        let file = destination.create_part(1 << 20).unwrap();
        assert_eq!(parts(&directory), 1);
        let used = file.descriptor().unwrap();
        file.write_at(0, b"still here").unwrap();
        drop(file);
        assert_eq!(parts(&directory), 0);
        assert!(destination.disk.descriptors.is_empty());
        let mut target = [0; 10];
        assert_eq!(read_full(used.as_fd(), 0, &mut target).unwrap(), 10);
        assert_eq!(&target, b"still here");
    }

    // L24: empty files were impossible.
    #[test]
    fn sizes_from_nothing_to_the_impossible() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 4);
        let empty = destination.create_part(0).unwrap();
        assert_eq!(empty.read_at(0, &mut [0; 4]).unwrap(), 0);
        assert_eq!(empty.try_read_at(0, &mut [0; 4]).unwrap(), Some(0));
        let large = destination.create_part(5 << 30).unwrap();
        assert!(large.data_blocks().unwrap() < 64);
        for size in [1 << 63, u64::MAX] {
            assert_eq!(destination.create_part(size).unwrap_err().kind(), Kind::Limit);
        }
        assert_eq!(parts(&directory), 2);
    }

    #[test]
    fn nothing_is_written_beyond_the_size() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 4);
        let file = destination.create_part(10).unwrap();
        for offset in [3, 10, u64::MAX] {
            let error = file.write_at(offset, b"12345678").unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
        }
        file.write_at(2, b"12345678").unwrap();
        let mut target = [0; 64];
        assert_eq!(file.read_at(0, &mut target).unwrap(), 10);
        assert_eq!(&target[..10], b"\0\x0012345678");
    }

    #[test]
    fn many_slices_land_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 4);
        let bytes: Vec<u8> = (0u8..=255).cycle().take(9000).collect();
        let file = destination.create_part(9000).unwrap();
        // More slices than one call takes, some of them empty.
        let mut slices: Vec<_> =
            bytes.chunks(3).flat_map(|piece| [IoSlice::new(piece), IoSlice::new(&[])]).collect();
        file.write_slices_at(0, &mut slices).unwrap();
        let mut target = vec![0; 9000];
        assert_eq!(file.read_at(0, &mut target).unwrap(), 9000);
        assert_eq!(target, bytes);
    }

    // H5: a read at the end must give what is there.
    #[test]
    fn a_read_that_never_waits_gives_all_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 1);
        let file = destination.create_part(100).unwrap();
        file.write_at(0, &[7; 100]).unwrap();
        let mut target = [0; 64];
        if destination.abilities().nowait_reads {
            assert_eq!(file.try_read_at(0, &mut target).unwrap(), Some(64));
            assert_eq!(file.try_read_at(90, &mut target).unwrap(), Some(10));
        } else {
            assert_eq!(file.try_read_at(0, &mut target).unwrap(), None);
        }
        assert_eq!(file.try_read_at(100, &mut target).unwrap(), Some(0));
        let other = destination.create_part(1).unwrap();
        assert_eq!(file.try_read_at(0, &mut target).unwrap(), None, "not in the pool");
        drop(other);
    }

    #[test]
    fn a_failed_sync_is_not_retried() {
        let directory = tempfile::tempdir().unwrap();
        let destination = open(&directory, 4);
        let file = destination.create_part(4).unwrap();
        assert_eq!(file.sync_by(|| Err(Errno::IO)).unwrap_err().kind(), Kind::Io);
        let mut asked = false;
        let again = file.sync_by(|| {
            asked = true;
            Ok(())
        });
        assert!(again.is_err() && !asked && file.is_broken());
        assert!(file.sync().is_err());
    }
}
