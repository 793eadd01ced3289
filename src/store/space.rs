//! How much room the destination has.

use rustix::io::retry_on_intr;

use crate::core::path::RelPath;
use crate::error::{Kind, Result};

use super::Destination;

/// What has to find room before more is kept: a few writes' worth, so that going on is no matter of one block.
const TRIED_BYTES: u64 = 4 << 20;
const TRIED_STEP: usize = 1 << 20;

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

impl Space {
    /// Whether nothing more can be made here, however small.
    pub fn is_used_up(&self) -> bool {
        self.free_bytes == 0 || (self.total_inodes > 0 && self.free_inodes == 0)
    }
}

impl Destination {
    /// The room now. Quotas of users and groups are not in it: they show as `NoSpace` of a write, and [`Destination::try_room`] finds out
    /// when they are over.
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

    /// Whether a part of a few MiB could be made and written now. It is removed again.
    ///
    /// # Errors
    /// What is no lack of room.
    pub fn try_room(&self) -> Result<bool> {
        let tried = self.create_part(TRIED_BYTES).and_then(|part| {
            let zeros = vec![0; TRIED_STEP];
            (0..TRIED_BYTES).step_by(TRIED_STEP).try_for_each(|at| part.write_at(at, &zeros))?;
            // Where room is taken when it is written, not when it is asked for.
            part.sync()
        });
        match tried {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == Kind::NoSpace => Ok(false),
            Err(error) => Err(error),
        }
    }
}
