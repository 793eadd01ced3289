//! How much room the destination has.

use rustix::io::retry_on_intr;

use crate::core::path::RelPath;
use crate::error::Result;

use super::Destination;

/// Room on the destination's file system, as `statvfs` tells it to this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that this user can still take (without root's reserve).
    pub free_bytes: u64,
    /// All inodes; 0 where the file system has no limit.
    pub total_inodes: u64,
    /// Inodes that this user can still take.
    pub free_inodes: u64,
    /// Longest name, in bytes.
    pub name_max: u64,
}

impl Destination {
    /// The room now. Quotas are not in it: they show as `NoSpace` of a write.
    ///
    /// # Errors
    /// `Io` if the file system does not answer.
    pub fn space(&self) -> Result<Space> {
        let root = &self.disk.root;
        let stat = retry_on_intr(|| rustix::fs::fstatvfs(root.fd()))
            .map_err(|errno| root.error("measure free space of", &RelPath::root(), errno))?;
        Ok(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_inodes: stat.f_files,
            free_inodes: stat.f_favail,
            name_max: stat.f_namemax,
        })
    }
}
