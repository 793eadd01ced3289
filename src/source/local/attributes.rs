//! What statx(2) tells, in the crate's words.

use std::time::SystemTime;

use rustix::fs::{FileType, Statx, StatxTimestamp, makedev};

use crate::core::attributes::{
    Attributes, EntryKind, Fingerprint, Ownership, SETTLE_TIME, Timestamp, Validator,
};
use crate::error::{Error, Kind, Result};

/// The kind in the file type bits of a mode.
pub(super) fn entry_kind(mode: u16) -> EntryKind {
    of_file_type(FileType::from_raw_mode(u32::from(mode)))
}

/// The kind of a directory entry's type; a type that nobody knows is taken for a file, which the next stat corrects.
pub(super) fn of_file_type(file_type: FileType) -> EntryKind {
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

/// Whether the inode has rested for longer than any file system's clock tick. A ctime in the future settles nothing.
fn is_settled(status: &Statx) -> bool {
    let age = SystemTime::now().duration_since(SystemTime::from(timestamp(&status.stx_ctime)));
    age.is_ok_and(|age| age >= SETTLE_TIME)
}

/// # Errors
/// `Invalid` if the size is 2^63 or more.
pub(super) fn from_statx(status: &Statx) -> Result<Attributes> {
    let kind = entry_kind(status.stx_mode);
    if i64::try_from(status.stx_size).is_err() {
        return Err(Error::new(Kind::Invalid, "stat")
            .because(format!("a size of {} bytes is impossible", status.stx_size)));
    }
    let modified = timestamp(&status.stx_mtime);
    let is_linked = status.stx_nlink > 1 && kind != EntryKind::Directory;
    let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
    Ok(Attributes {
        kind,
        size: status.stx_size,
        mode: Some(u32::from(status.stx_mode) & 0o7777),
        ownership: Some(Ownership { uid: status.stx_uid, gid: status.stx_gid }),
        modified: Some(modified),
        accessed: Some(timestamp(&status.stx_atime)),
        changed: Some(timestamp(&status.stx_ctime)),
        link_count: status.stx_nlink.max(1),
        device_number: if is_device {
            makedev(status.stx_rdev_major, status.stx_rdev_minor)
        } else {
            0
        },
        allocated_units: Some(status.stx_blocks),
        identity: is_linked
            .then(|| (makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino)),
        fingerprint: Fingerprint {
            size: status.stx_size,
            validator: Validator::Modified(modified),
        },
        is_settled: is_settled(status),
        checksum: None,
    })
}

fn timestamp(time: &StatxTimestamp) -> Timestamp {
    Timestamp { seconds: time.tv_sec, nanos: time.tv_nsec }
}
