//! Extended attributes and POSIX ACLs of a local entry.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{getxattr, listxattr};
use rustix::io::Errno;

use super::root::{Root, proc_link};
use crate::core::attributes::is_copyable_xattr;
use crate::core::path::RelPath;
use crate::error::{Error, Result};

/// The kernel's limit of a name list and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX` in linux/limits.h).
pub(super) const MAX_BYTES: usize = 65_536;

/// All attributes of `path` that a copy can have; see [`crate::source::Source::xattrs`]. Blocks.
pub(super) fn read_all(root: &Root, path: &RelPath) -> Result<Vec<(OsString, Vec<u8>)>> {
    if path.is_root() && root.single_file().is_some() {
        return Ok(Vec::new());
    }
    read_handle(&root.open_handle(path)?)
}

/// As [`read_all`] of what a descriptor without access holds.
pub(super) fn read_handle(handle: &OwnedFd) -> Result<Vec<(OsString, Vec<u8>)>> {
    // An O_PATH descriptor takes no f*xattr call; its magic link leads to the same inode, even if that is a symlink.
    let link = proc_link(handle.as_fd());
    let mut names = Vec::with_capacity(MAX_BYTES);
    match listxattr(&link, spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list extended attributes", error)),
    };
    let mut attributes = Vec::new();
    if names.is_empty() {
        return Ok(attributes);
    }
    let mut value = vec![0; MAX_BYTES];
    for name in names.split(|byte| *byte == 0).filter(|name| is_copyable_xattr(name)) {
        match getxattr(&link, name, &mut value[..]) {
            Ok(len) => attributes.push((OsStr::from_bytes(name).to_owned(), value[..len].to_vec())),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => {
                return Err(Error::io("read extended attribute", error));
            }
        }
    }
    Ok(attributes)
}
