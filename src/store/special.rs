//! Entries without bytes: symlinks, named pipes, sockets, devices. Made aside with all their metadata, then renamed into place, like files.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

use super::backing::remove_part;
use super::catalog::Placed;
use super::destination::Disk;
use super::metadata::{self, Metadata, Target};
use super::publish::{Published, Replace};
use super::recovery::placed_of;
use super::root::{open_beneath, sync_directory};
use super::{Destination, Existing, Identity};

impl Destination {
    /// Publishes a symlink with the given target, byte for byte; it is not followed, ever. `None` if this destination cannot hold
    /// symlinks: the caller counts it.
    ///
    /// # Errors
    /// As [`Destination::publish_file`]; `Invalid` for an empty target.
    pub fn publish_symlink(
        &self,
        path: &RelPath,
        target: &OsStr,
        metadata: &Metadata,
        replace: Replace,
    ) -> Result<Option<Published>> {
        self.publish_made(path, metadata, replace, |disk, part| {
            make_node(disk, part, Some(target), &metadata.attributes)
        })
    }

    /// Publishes a named pipe, socket or device, as `metadata.attributes.kind` says. `None` if that is not possible here (devices
    /// need root): the caller counts it.
    ///
    /// # Errors
    /// As [`Destination::publish_file`]; `Invalid` for any other kind.
    pub fn publish_node(
        &self,
        path: &RelPath,
        metadata: &Metadata,
        replace: Replace,
    ) -> Result<Option<Published>> {
        if matches!(metadata.attributes.kind, EntryKind::File | EntryKind::Directory) {
            return Err(Error::new(Kind::Invalid, "publish node")
                .at(path.as_path())
                .because("neither pipe, socket nor device"));
        }
        self.publish_made(path, metadata, replace, |disk, part| {
            make_node(disk, part, None, &metadata.attributes)
        })
    }

    /// Records an entry without bytes that lay in DIR before us: the source has the same, and from now on it is ours.
    ///
    /// # Errors
    /// As a write of the catalog.
    pub fn note_existing(&self, path: &RelPath, existing: &Existing) -> Result<()> {
        self.disk.catalog.note_other(path, existing.kind, None, None, Some(existing.placed()))
    }

    /// Records that `name` is one more name of the published file `first`, or equal to it.
    ///
    /// # Errors
    /// As a write of the catalog.
    pub fn note_existing_link(&self, first: &RelPath, name: &RelPath) -> Result<()> {
        self.disk.catalog.note_other(name, EntryKind::File, Some(first), None, None)
    }

    fn publish_made(
        &self,
        path: &RelPath,
        metadata: &Metadata,
        replace: Replace,
        make: impl FnOnce(&Disk, &str) -> Result<(), Errno>,
    ) -> Result<Option<Published>> {
        let disk = &*self.disk;
        let parent = disk.ensure_parent(path)?;
        let part = disk.part_name(disk.ids.next());
        match make(disk, &part) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::NOSYS)
                if !disk.options.strict_metadata =>
            {
                return Ok(None);
            }
            Err(errno) => return Err(disk.root.error("make", path, errno)),
        }
        let (published, placed) = finish(disk, &part, parent.as_fd(), path, metadata, replace)
            .inspect_err(|_| remove_part(disk, &part))?;
        let kind = metadata.attributes.kind;
        disk.catalog.note_other(path, kind, None, Some(&published.losses), Some(placed))?;
        Ok(Some(published))
    }
}

/// Makes an entry without bytes in `parts/`, mode 0600: a symlink if it has a `target`.
pub(super) fn make_node(
    disk: &Disk,
    part: &str,
    target: Option<&OsStr>,
    attributes: &Attributes,
) -> Result<(), Errno> {
    let kind = match (attributes.kind, target) {
        (EntryKind::Symlink, Some(target)) if !target.is_empty() => {
            return rustix::fs::symlinkat(target, disk.state.parts(), part);
        }
        (EntryKind::Fifo, None) => FileType::Fifo,
        (EntryKind::Socket, None) => FileType::Socket,
        (EntryKind::CharDevice, None) => FileType::CharacterDevice,
        (EntryKind::BlockDevice, None) => FileType::BlockDevice,
        _ => return Err(Errno::INVAL),
    };
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(disk.state.parts(), part, kind, mode, attributes.device_number)
}

fn finish(
    disk: &Disk,
    part: &str,
    parent: BorrowedFd<'_>,
    path: &RelPath,
    metadata: &Metadata,
    replace: Replace,
) -> Result<(Published, Placed)> {
    let failed = |op, errno| disk.root.error(op, path, errno);
    // Not `open_beneath`'s business to follow it, and NO_SYMLINKS lets an O_PATH | O_NOFOLLOW open of a symlink itself pass (openat2(2)).
    let handle = open_beneath(disk.state.parts(), part.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW)
        .map_err(|errno| failed("open", errno))?;
    let target = Target::Handle(handle.as_fd());
    let (losses, stat) = metadata::apply_and_look(disk, &target, path, metadata)?;
    let identity = Identity::of(&stat);
    disk.place(part, identity, parent, path, replace)?;
    sync_directory(parent).map_err(|errno| failed("sync directory of", errno))?;
    Ok((Published { identity, losses }, placed_of(&stat)))
}
