//! The extended attributes that DIR has kept, for who asks while the source is away.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{OFlags, getxattr, listxattr};
use rustix::io::Errno;

use crate::core::attributes::{EntryKind, is_copyable_xattr};
use crate::core::path::RelPath;
use crate::error::Result;

use super::catalog::EntryPhase;
use super::existing::Existing;
use super::metadata::proc_path;
use super::{Destination, MetadataLoss};

/// The kernel's limit of a name list and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX` in linux/limits.h).
const MAX_BYTES: usize = 65_536;
/// With one of these DIR does not have all that the source has.
const UNLIKE_THE_SOURCE: [MetadataLoss; 3] =
    [MetadataLoss::Xattr, MetadataLoss::Acl, MetadataLoss::Privileged];

/// Names and values, in any order.
pub type KeptXattrs = Vec<(OsString, Vec<u8>)>;

impl Destination {
    /// The attributes that the inode `ino`, named `path`, was given when it was published; `None` if it was not, if something was lost on
    /// the way, or if something else has its name now.
    ///
    /// # Errors
    /// As the catalog and the system calls.
    pub fn kept_xattrs(
        &self,
        ino: u64,
        path: &RelPath,
        kind: EntryKind,
    ) -> Result<Option<KeptXattrs>> {
        let disk = &self.disk;
        let (path, inode, losses) = match kind {
            EntryKind::File => match disk.catalog.entry_of_ino(ino)? {
                Some(entry) => match entry.phase {
                    EntryPhase::Published(placed) => (entry.path, Some(placed.inode), entry.losses),
                    _ => return Ok(None),
                },
                None => return Ok(None),
            },
            _ => match disk.catalog.other(path)? {
                Some(other) => (other.path, None, other.losses),
                None => return Ok(None),
            },
        };
        if losses.iter().any(|loss| UNLIKE_THE_SOURCE.contains(loss)) {
            return Ok(None);
        }
        let failed = |errno| disk.root.error("read extended attributes of", &path, errno);
        let handle = match disk.root.open(&path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            handle => handle.map_err(failed)?,
        };
        let now = Existing::of(&rustix::fs::fstat(&handle).map_err(failed)?);
        if now.kind != kind || inode.is_some_and(|inode| inode != now.identity.inode) {
            return Ok(None);
        }
        copyable(handle).map(Some).map_err(failed)
    }
}

/// All that a copy can have, as the source's are read.
fn copyable(handle: impl AsFd) -> Result<KeptXattrs, Errno> {
    // An O_PATH descriptor takes no f*xattr call; its magic link leads to the same inode, even if that is a symlink.
    let link = proc_path(handle.as_fd());
    let mut names = vec![0; MAX_BYTES];
    let len = match listxattr(&link, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    let mut value = vec![0; MAX_BYTES];
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| is_copyable_xattr(name)) {
        match getxattr(&link, name, &mut value[..]) {
            Ok(len) => found.push((OsStr::from_bytes(name).to_owned(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}
