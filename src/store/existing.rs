//! What lies in DIR already, before or besides what is published there.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::core::attributes::{Attributes, EntryKind, Ownership, Timestamp};
use crate::core::path::RelPath;
use crate::error::{Kind, Result};

use super::catalog::{OtherRecord, Placed};
use super::destination::RESERVED_NAMES;
use super::metadata::modified_of;
use super::root::{open_beneath, stat_entry};
use super::{Destination, Identity};

/// An entry of DIR as lstat shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Existing {
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub ownership: Ownership,
    /// Last modification.
    pub modified: Timestamp,
    /// Number of names.
    pub link_count: u64,
    /// The inode.
    pub identity: Identity,
    /// Of a device.
    pub device_number: u64,
}

impl Existing {
    pub(super) fn of(stat: &Stat) -> Self {
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        Self {
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            ownership: Ownership { uid: stat.st_uid, gid: stat.st_gid },
            modified: modified_of(stat),
            link_count: stat.st_nlink,
            identity: Identity::of(stat),
            device_number: match kind {
                EntryKind::CharDevice | EntryKind::BlockDevice => stat.st_rdev,
                _ => 0,
            },
        }
    }

    /// Whether this is the very symlink, pipe, socket or device that is recorded: the kind alone tells nothing about whose it is.
    pub fn is_of(&self, record: &OtherRecord) -> bool {
        self.kind == record.kind && record.placed == Some(self.placed())
    }

    /// What is recorded of it where it is ours.
    pub fn placed(&self) -> Placed {
        Placed { inode: self.identity.inode, size: self.size, modified: self.modified }
    }
}

fn kind_of(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink,
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => EntryKind::CharDevice,
        FileType::BlockDevice => EntryKind::BlockDevice,
        FileType::RegularFile | FileType::Unknown => EntryKind::File,
    }
}

/// Looks at many entries in the order of their paths: a directory stays open as long as the next ones lie in it.
#[derive(Debug)]
pub(super) struct Looker<'a> {
    destination: &'a Destination,
    directory: Option<(RelPath, OwnedFd)>,
}

impl Looker<'_> {
    /// As [`Destination::existing`].
    pub(super) fn existing(&mut self, path: &RelPath) -> Result<Option<Existing>> {
        let Some(parent) = path.parent() else { return self.destination.existing(path) };
        let disk = &self.destination.disk;
        if self.directory.as_ref().is_none_or(|(open, _)| *open != parent) {
            match disk.root.open(&parent, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(opened) => self.directory = Some((parent, opened)),
                // It will say what stands in the way.
                Err(_) => return self.destination.existing(path),
            }
        }
        let Some((_, directory)) = &self.directory else { return Ok(None) };
        stat_entry(directory.as_fd(), path.name())
            .map(|stat| stat.map(|stat| Existing::of(&stat)))
            .map_err(|errno| disk.root.error("stat", path, errno))
    }
}

impl Looker<'_> {
    /// As [`Looker::existing`]; what lies behind a link that somebody put in the way is not ours, and nothing else has the name.
    pub(super) fn own(&mut self, path: &RelPath) -> Result<Option<Existing>> {
        match self.existing(path) {
            Err(error) if error.kind() == Kind::Exists => Ok(None),
            now => now,
        }
    }
}

impl Destination {
    /// For looking at many entries.
    pub(super) fn looker(&self) -> Looker<'_> {
        Looker { destination: self, directory: None }
    }

    /// What has the name `path` in DIR, symlinks not followed; `None` if nothing has.
    ///
    /// # Errors
    /// `Exists` if a symlink stands in the way to it; `Denied`; `Io`.
    pub fn existing(&self, path: &RelPath) -> Result<Option<Existing>> {
        let disk = &self.disk;
        disk.check_path(path)?;
        match disk.root.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(handle) => rustix::fs::fstat(&handle)
                .map(|stat| Some(Existing::of(&stat)))
                .map_err(|errno| disk.root.error("stat", path, errno)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(disk.root.error("stat", path, errno)),
        }
    }

    /// The target of the symlink `path` in DIR.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if it is no symlink.
    pub fn existing_target(&self, path: &RelPath) -> Result<OsString> {
        let disk = &self.disk;
        disk.check_path(path)?;
        let parent = disk.root.parent_of(path)?;
        rustix::fs::readlinkat(&parent, path.name(), Vec::new())
            .map(|target| OsStr::from_bytes(target.as_bytes()).to_owned())
            .map_err(|errno| disk.root.error("read symlink", path, errno))
    }

    /// Whether `here`, which has the name `path`, is what the source has: a link to the same `target`, a pipe, the same device.
    ///
    /// # Errors
    /// As [`Destination::existing_target`].
    pub fn is_alike(
        &self,
        path: &RelPath,
        here: &Existing,
        attributes: &Attributes,
        target: Option<&OsStr>,
    ) -> Result<bool> {
        if here.kind != attributes.kind {
            return Ok(false);
        }
        match (here.kind, target) {
            (EntryKind::Symlink, Some(target)) => Ok(self.existing_target(path)? == target),
            (EntryKind::CharDevice | EntryKind::BlockDevice, _) => {
                Ok(here.device_number == attributes.device_number)
            }
            _ => Ok(true),
        }
    }

    /// What lies in the directory `path` of DIR, our own names left out. Nothing if there is no such directory.
    ///
    /// # Errors
    /// `Denied`; `Io`.
    pub fn list_existing(&self, path: &RelPath) -> Result<Vec<(OsString, Existing)>> {
        let disk = &self.disk;
        let failed = |errno| disk.root.error("list directory", path, errno);
        let directory = match disk.root.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => return Ok(Vec::new()),
            Err(errno) => return Err(failed(errno)),
        };
        let mut listed = list(&directory).map_err(failed)?;
        let is_ours = |name: &OsString| RESERVED_NAMES.iter().any(|reserved| name == *reserved);
        listed.retain(|(name, _)| !(path.is_root() && is_ours(name)));
        Ok(listed)
    }

    /// Shows every entry of DIR except our own, a directory before what it holds. Symlinks and other mounts are shown, never entered.
    /// Entries that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// `Denied` for a directory that cannot be read; `Io`.
    pub fn walk_existing(&self, mut show: impl FnMut(RelPath, Existing)) -> Result<()> {
        let mut pending = vec![RelPath::root()];
        while let Some(at) = pending.pop() {
            // A directory that is gone or changed since it was seen, or another file system, shows nothing.
            for (name, existing) in self.list_existing(&at)? {
                let path = at.child(&name)?;
                if existing.kind == EntryKind::Directory {
                    pending.push(path.clone());
                }
                show(path, existing);
            }
        }
        Ok(())
    }
}

fn list(directory: &impl AsFd) -> Result<Vec<(OsString, Existing)>, Errno> {
    let mut listed = Vec::new();
    // Read through a descriptor of its own: a shared one has one position.
    let own = open_beneath(directory.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    for entry in Dir::read_from(&own)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if let Some(stat) = stat_entry(directory.as_fd(), name)? {
            listed.push((name.to_owned(), Existing::of(&stat)));
        }
    }
    Ok(listed)
}
