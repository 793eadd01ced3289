//! One part that one thread makes from front to back.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Advice, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::store::backing::{read_full, remove_part, set_size};
use crate::store::catalog::Placed;
use crate::store::destination::Disk;
use crate::store::metadata::{self, Metadata, Target};
use crate::store::recovery::placed_of;
use crate::store::root::{create_beneath, open_beneath};
use crate::store::special::make_node;
use crate::store::{Destination, Durability, Identity, MetadataLoss};

/// A part that is being written. Dropping it removes it.
#[derive(Debug)]
pub struct WholePart {
    scratch: Scratch,
    fd: OwnedFd,
}

/// A part with its bytes and metadata, that waits for its name. Dropping it removes it.
#[derive(Debug)]
pub struct Finished {
    pub(super) scratch: Scratch,
    pub(super) placed: Placed,
    pub(super) identity: Identity,
    /// Kinds of metadata that could not be kept, each once.
    pub losses: Vec<MetadataLoss>,
}

/// A name in `parts/` that goes when this is dropped, unless it got its final name.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) disk: Arc<Disk>,
    pub(super) name: String,
    pub(super) is_placed: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_placed {
            remove_part(&self.disk, &self.name);
        }
    }
}

impl Destination {
    /// Makes an empty part, mode 0600.
    ///
    /// # Errors
    /// `NoSpace` without room for an inode.
    pub fn begin_whole(&self) -> Result<WholePart> {
        let disk = &self.disk;
        let name = disk.part_name(disk.ids.next());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(0o600);
        let fd = create_beneath(disk.state.parts(), name.as_bytes(), flags, mode)
            .map_err(|errno| disk.root.own_error("make part in", errno))?;
        Ok(WholePart { scratch: Scratch { disk: Arc::clone(disk), name, is_placed: false }, fd })
    }

    /// Makes an entry without bytes aside, with its metadata: a symlink with its `target`, or what `metadata` says. `None` if that is
    /// not possible here: the caller counts it.
    ///
    /// # Errors
    /// As mknod(2) and symlink(2); `NotSupported` if metadata is strict and cannot be kept.
    pub fn make_special(
        &self,
        path: &RelPath,
        target: Option<&OsStr>,
        metadata: &Metadata,
    ) -> Result<Option<Finished>> {
        let disk = &self.disk;
        let failed = |op, errno| disk.root.error(op, path, errno);
        let name = disk.part_name(disk.ids.next());
        match make_node(disk, &name, target, &metadata.attributes) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::NOSYS)
                if !disk.options.strict_metadata =>
            {
                return Ok(None);
            }
            Err(errno) => return Err(failed("make", errno)),
        }
        let scratch = Scratch { disk: Arc::clone(disk), name, is_placed: false };
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let handle = open_beneath(disk.state.parts(), scratch.name.as_bytes(), flags)
            .map_err(|errno| failed("open", errno))?;
        finish(scratch, &Target::Handle(handle.as_fd()), path, metadata).map(Some)
    }
}

impl WholePart {
    /// For cloning into it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sets its length; what is not written reads as zeros and takes no room.
    ///
    /// # Errors
    /// `Limit` if the file system has no files of this size.
    pub fn set_size(&self, size: u64) -> Result<()> {
        set_size(&self.fd, size).map_err(|errno| self.error("make part in", errno))
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// `NoSpace` when the disk or quota is full; `Io`.
    pub fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let written = retry_on_intr(|| rustix::io::pwrite(&self.fd, bytes, offset))
                .map_err(|errno| self.error("write to part in", errno))?;
            if written == 0 {
                return Err(self
                    .error("write to part in", Errno::IO)
                    .because("nothing was written"));
            }
            offset += u64::try_from(written).unwrap_or(0);
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Where durability is paranoid: what was written goes to the disk and out of the page cache, so that what is read back comes from
    /// the disk itself.
    ///
    /// # Errors
    /// As fdatasync(2): then nothing of this part counts.
    pub fn leave_cache(&self) -> Result<()> {
        if self.scratch.disk.options.durability == Durability::Normal {
            return Ok(());
        }
        rustix::fs::fdatasync(&self.fd)
            .and_then(|()| rustix::fs::fadvise(&self.fd, 0, None, Advice::DontNeed))
            .map_err(|errno| self.error("sync part in", errno))
    }

    /// Reads at `offset` until `target` is full or the part ends; returns the number of bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_back(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        read_full(self.fd.as_fd(), offset, target)
            .map_err(|errno| self.error("read back part in", errno))
    }

    /// Gives it its metadata; `size` is what it must have.
    ///
    /// # Errors
    /// `Corrupt` if it has another length; `NotSupported` if metadata is strict and cannot be kept.
    pub fn finish(self, path: &RelPath, metadata: &Metadata, size: u64) -> Result<Finished> {
        let Self { scratch, fd } = self;
        let finished = finish(scratch, &Target::Open(fd.as_fd()), path, metadata)?;
        if finished.placed.size != size {
            let error = Error::new(Kind::Corrupt, "verify file").at(path.as_path());
            let why = format!("{} of {size} bytes are on the disk", finished.placed.size);
            return Err(error.because(why).of_destination());
        }
        Ok(finished)
    }

    fn error(&self, op: &'static str, errno: Errno) -> Error {
        self.scratch.disk.root.own_error(op, errno)
    }
}

fn finish(
    scratch: Scratch,
    target: &Target<'_>,
    path: &RelPath,
    metadata: &Metadata,
) -> Result<Finished> {
    let (losses, stat) = metadata::apply_and_look(&scratch.disk, target, path, metadata)?;
    let (placed, identity) = (placed_of(&stat), Identity::of(&stat));
    Ok(Finished { scratch, placed, identity, losses })
}
