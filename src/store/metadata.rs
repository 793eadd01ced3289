//! Owner, extended attributes, times and mode of an entry in DIR, applied in this order and looked at afterwards.
//!
//! What a destination cannot keep is told, not hidden: each entry answers the kinds of metadata that it lost.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::core::attributes::{Attributes, EntryKind, Ownership, Timestamp};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

use super::destination::{DestinationOptions, Disk};

const ACL_ACCESS: &str = "system.posix_acl_access";
const ACL_DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

/// The kernel's limit of a list of names (`XATTR_LIST_MAX`).
const XATTR_NAMES: usize = 65_536;

/// setuid and setgid.
const PRIVILEGED_BITS: u32 = 0o6000;

/// What an entry shall have in DIR.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// Mode, owner and times are taken from here, as far as the source tells them.
    pub attributes: Attributes,
    /// Extended attributes with ACLs, as raw values.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// A kind of metadata that an entry lost on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MetadataLoss {
    /// Owner or group.
    Owner,
    /// Permission bits.
    Mode,
    /// Modification time, or its last digits.
    Times,
    /// An extended attribute.
    Xattr,
    /// A POSIX access control list: the entry is accessible to its owner only.
    Acl,
    /// setuid, setgid or security.capability, taken off on purpose unless `preserve_privileged`.
    Privileged,
}

impl MetadataLoss {
    /// All kinds.
    pub const ALL: [MetadataLoss; 6] =
        [Self::Owner, Self::Mode, Self::Times, Self::Xattr, Self::Acl, Self::Privileged];

    /// The word that status and receipt use.
    pub fn as_str(self) -> &'static str {
        match self {
            MetadataLoss::Owner => "owner",
            MetadataLoss::Mode => "mode",
            MetadataLoss::Times => "times",
            MetadataLoss::Xattr => "xattr",
            MetadataLoss::Acl => "acl",
            MetadataLoss::Privileged => "privileged",
        }
    }
}

/// How an inode is reached.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// An `O_PATH` descriptor of something that must not be opened: a symlink, pipe, socket or device.
    Handle(BorrowedFd<'a>),
}

/// Applies `metadata`; answers each kind that was lost once, in order.
pub(super) fn apply(
    disk: &Disk,
    target: &Target<'_>,
    path: &RelPath,
    metadata: &Metadata,
) -> Result<Vec<MetadataLoss>> {
    apply_and_look(disk, target, path, metadata).map(|(losses, _)| losses)
}

/// As [`apply`], with the entry as it is then.
pub(super) fn apply_and_look(
    disk: &Disk,
    target: &Target<'_>,
    path: &RelPath,
    metadata: &Metadata,
) -> Result<(Vec<MetadataLoss>, Stat)> {
    let failed = |errno| disk.root.error("set metadata of", path, errno);
    let mut losses = Vec::new();
    let attributes = &metadata.attributes;

    let owner_kept = target.set_owner(attributes.ownership).map_err(failed)?;
    if !owner_kept {
        losses.push(MetadataLoss::Owner);
    }
    let keeps_privileges = disk.options.preserve_privileged && owner_kept;
    let acl_kept = target.set_xattrs(metadata, keeps_privileges, &mut losses).map_err(failed)?;
    target.set_times(attributes).map_err(failed)?;
    let mode = wanted_mode(attributes, &disk.options, owner_kept, acl_kept, &mut losses);
    if let Some(mode) = mode {
        target.set_mode(mode).map_err(failed)?;
    }

    let stat = target.stat().map_err(failed)?;
    if mode.is_some_and(|mode| stat.st_mode & 0o7777 != mode) {
        losses.push(MetadataLoss::Mode);
    }
    if attributes.modified.is_some_and(|modified| modified_of(&stat) != modified) {
        losses.push(MetadataLoss::Times);
    }
    losses.sort_unstable();
    losses.dedup();
    refuse_if_strict(disk, path, &losses)?;
    Ok((losses, stat))
}

/// Takes off the extended attributes that are not `wanted` any more. Labels of security modules belong to the machine and stay.
pub(super) fn forget_others(
    target: &Target<'_>,
    wanted: &[(OsString, Vec<u8>)],
) -> Result<(), Errno> {
    let (Target::Open(fd) | Target::Handle(fd)) = target;
    let path = proc_path(*fd);
    let mut names = Vec::with_capacity(XATTR_NAMES);
    match rustix::fs::listxattr(&path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    let is_ours = |name: &[u8]| {
        name.starts_with(b"user.")
            || [ACL_ACCESS, ACL_DEFAULT].iter().any(|acl| name == acl.as_bytes())
    };
    for name in names.split(|byte| *byte == 0).filter(|name| is_ours(name)) {
        if wanted.iter().all(|(wanted, _)| wanted.as_encoded_bytes() != name) {
            kept(rustix::fs::removexattr(&path, name))?;
        }
    }
    Ok(())
}

/// The mode to set; `None` for a symlink, which has none.
fn wanted_mode(
    attributes: &Attributes,
    options: &DestinationOptions,
    owner_kept: bool,
    acl_kept: bool,
    losses: &mut Vec<MetadataLoss>,
) -> Option<u32> {
    let is_directory = attributes.kind == EntryKind::Directory;
    if attributes.kind == EntryKind::Symlink {
        return None;
    }
    let made_up = if is_directory { 0o777 } else { 0o666 } & !options.umask;
    let mut mode = attributes.mode.unwrap_or(made_up) & 0o7777;
    // On a directory setgid hands the group down and grants nobody anything: it is kept with its group.
    let may_keep = owner_kept && (is_directory || options.preserve_privileged);
    if mode & PRIVILEGED_BITS != 0 && !may_keep {
        mode &= !PRIVILEGED_BITS;
        losses.push(MetadataLoss::Privileged);
    }
    if !acl_kept {
        // Without its list the mode alone may grant what the list denied.
        mode &= 0o700;
        losses.push(MetadataLoss::Acl);
    }
    Some(mode)
}

fn refuse_if_strict(disk: &Disk, path: &RelPath, losses: &[MetadataLoss]) -> Result<()> {
    if losses.is_empty() || !disk.options.strict_metadata {
        return Ok(());
    }
    let words: Vec<_> = losses.iter().map(|loss| loss.as_str()).collect();
    Err(Error::new(Kind::NotSupported, "keep metadata of")
        .at(disk.root.shown_as().join(path.as_path()))
        .because(format!("the destination cannot keep: {}", words.join(", ")))
        .hint("without --strict-metadata the copy goes on and counts it"))
}

/// `modified` of a stat.
pub(super) fn modified_of(stat: &Stat) -> Timestamp {
    Timestamp { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Sorts "this cannot be kept here" (`Ok(false)`) from real failures.
fn kept(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        // NOSPC: an inode's room for attributes is full, whatever the disk has left.
        Err(
            Errno::PERM
            | Errno::ACCESS
            | Errno::NOTSUP
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::TOOBIG
            | Errno::RANGE
            | Errno::OVERFLOW
            | Errno::NOSPC
            | Errno::DQUOT
            | Errno::NOENT,
        ) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn timespec(time: Option<Timestamp>) -> Timespec {
    match time {
        Some(time) => Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    }
}

impl Target<'_> {
    fn stat(&self) -> Result<Stat, Errno> {
        let (Target::Open(fd) | Target::Handle(fd)) = self;
        rustix::fs::fstat(fd)
    }

    /// Whether owner and group are as wanted now. Without the right to give the file away, the group alone is tried.
    fn set_owner(&self, wanted: Option<Ownership>) -> Result<bool, Errno> {
        let Some(Ownership { uid, gid }) = wanted else { return Ok(true) };
        let stat = self.stat()?;
        if (stat.st_uid, stat.st_gid) == (uid, gid) {
            return Ok(true);
        }
        // (uid_t) -1 means "leave it" to chown(2), so it names nobody.
        if uid == u32::MAX || gid == u32::MAX {
            return Ok(false);
        }
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        if kept(self.chown(owner, group))? {
            return Ok(true);
        }
        kept(self.chown(None, group))?;
        let stat = self.stat()?;
        Ok((stat.st_uid, stat.st_gid) == (uid, gid))
    }

    fn chown(&self, owner: Option<Uid>, group: Option<Gid>) -> Result<(), Errno> {
        match self {
            Target::Open(fd) => rustix::fs::fchown(fd, owner, group),
            Target::Handle(fd) => rustix::fs::chownat(fd, "", owner, group, AtFlags::EMPTY_PATH),
        }
    }

    /// Sets all extended attributes; answers whether every access control list was kept.
    fn set_xattrs(
        &self,
        metadata: &Metadata,
        keeps_privileges: bool,
        losses: &mut Vec<MetadataLoss>,
    ) -> Result<bool, Errno> {
        let is_directory = metadata.attributes.kind == EntryKind::Directory;
        let mut acl_kept = true;
        for (name, value) in &metadata.xattrs {
            let is_acl = name == ACL_ACCESS || name == ACL_DEFAULT;
            if name == CAPABILITY && !keeps_privileges {
                losses.push(MetadataLoss::Privileged);
            } else if name == ACL_DEFAULT && !is_directory {
                losses.push(MetadataLoss::Xattr);
            } else if !kept(self.set_xattr(name, value))? {
                if is_acl {
                    acl_kept = false;
                } else {
                    losses.push(MetadataLoss::Xattr);
                }
            }
        }
        Ok(acl_kept)
    }

    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> Result<(), Errno> {
        match self {
            Target::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Target::Handle(fd) => {
                rustix::fs::setxattr(proc_path(*fd), name, value, XattrFlags::empty())
            }
        }
    }

    /// What was not kept shows in the stat afterwards.
    fn set_times(&self, attributes: &Attributes) -> Result<(), Errno> {
        if attributes.modified.is_none() && attributes.accessed.is_none() {
            return Ok(());
        }
        let times = Timestamps {
            last_access: timespec(attributes.accessed),
            last_modification: timespec(attributes.modified),
        };
        kept(match self {
            Target::Open(fd) => rustix::fs::futimens(fd, &times),
            Target::Handle(fd) => rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH),
        })
        .map(drop)
    }

    /// What was not kept shows in the stat afterwards.
    fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode);
        kept(match self {
            Target::Open(fd) => rustix::fs::fchmod(fd, mode),
            Target::Handle(fd) => rustix::fs::chmod(proc_path(*fd), mode),
        })
        .map(drop)
    }
}

/// The name of an open inode, for calls that refuse `O_PATH` descriptors (proc(5), `/proc/pid/fd`): it leads to the inode itself, also
/// for a symlink.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::attributes::{Fingerprint, Validator};

    fn attributes(kind: EntryKind, mode: Option<u32>) -> Attributes {
        Attributes {
            mode,
            ..Attributes::bare(kind, Fingerprint { size: 0, validator: Validator::SizeOnly })
        }
    }

    fn mode_of(
        kind: EntryKind,
        mode: Option<u32>,
        options: &DestinationOptions,
        owner_kept: bool,
        acl_kept: bool,
    ) -> (Option<u32>, Vec<MetadataLoss>) {
        let mut losses = Vec::new();
        let mode = wanted_mode(&attributes(kind, mode), options, owner_kept, acl_kept, &mut losses);
        (mode, losses)
    }

    #[test]
    fn privileges_go_unless_they_are_asked_for_and_the_owner_was_kept() {
        let plain = DestinationOptions::default();
        let preserve = DestinationOptions { preserve_privileged: true, ..plain.clone() };
        let file =
            |options, owner_kept| mode_of(EntryKind::File, Some(0o6755), options, owner_kept, true);
        assert_eq!(file(&plain, true), (Some(0o755), vec![MetadataLoss::Privileged]));
        assert_eq!(file(&preserve, true), (Some(0o6755), vec![]));
        assert_eq!(file(&preserve, false), (Some(0o755), vec![MetadataLoss::Privileged]));
        let directory = mode_of(EntryKind::Directory, Some(0o3775), &plain, true, true);
        assert_eq!(directory, (Some(0o3775), vec![]));
    }

    #[test]
    fn a_lost_acl_leaves_the_owner_only() {
        let options = DestinationOptions::default();
        let file = mode_of(EntryKind::File, Some(0o664), &options, true, false);
        assert_eq!(file, (Some(0o600), vec![MetadataLoss::Acl]));
        let program = mode_of(EntryKind::File, Some(0o775), &options, true, false);
        assert_eq!(program, (Some(0o700), vec![MetadataLoss::Acl]));
    }

    #[test]
    fn a_source_without_modes_gets_ordinary_ones() {
        let options = DestinationOptions { umask: 0o027, ..DestinationOptions::default() };
        assert_eq!(mode_of(EntryKind::File, None, &options, true, true).0, Some(0o640));
        assert_eq!(mode_of(EntryKind::Directory, None, &options, true, true).0, Some(0o750));
        assert_eq!(mode_of(EntryKind::Symlink, None, &options, true, true).0, None);
    }
}
