//! Which daemon a TARGET means, found without looking through a mount that may not answer.

use std::fs;
use std::path::{Path, PathBuf};

use crate::control::registry::{self, Found};
use crate::error::{Error, Kind, Result};
use crate::vfs::mountinfo::{self, MountEntry};
use crate::vfs::mountpoint::{absolute, is_dead, locate};

/// What is known about a TARGET.
#[derive(Debug)]
pub(crate) struct Target {
    /// Absolute, without links in its parent.
    pub(crate) path: PathBuf,
    /// The mount table as it was.
    pub(crate) mounts: Vec<MountEntry>,
    /// The daemon that says it serves it.
    pub(crate) daemon: Option<Found>,
}

impl Target {
    /// Looks up `path`, a mountpoint or destination.
    pub(crate) fn find(path: &Path) -> Result<Self> {
        let mounts = mountinfo::read()?;
        let located = locate(path, &mounts).or_else(|error| {
            // A directory on the way is gone or does not let us in; its daemon may still answer to the name.
            let named = absolute(path)?;
            registry::find(&named).map(|_| named).ok_or(error)
        })?;
        let target = Self { daemon: registry::find(&located), path: located, mounts };
        if target.daemon.is_some() || target.top().is_some_and(MountEntry::is_lazycopy) {
            return Ok(target);
        }
        // Nothing of ours lies there, so it is safe to follow a link.
        match fs::read_link(&target.path) {
            Ok(_link) => {
                let path = fs::canonicalize(&target.path)
                    .map_err(|error| Error::io("find", error).at(&target.path))?;
                Ok(Self { daemon: registry::find(&path), path, ..target })
            }
            Err(_no_link) => Ok(target),
        }
    }

    /// The uppermost mount there.
    pub(crate) fn top(&self) -> Option<&MountEntry> {
        mountinfo::top_at(&self.mounts, &self.path)
    }

    /// Why there is no daemon to ask.
    pub(crate) fn nobody_serves(&self) -> Error {
        let error = Error::new(Kind::NotFound, "find the daemon of").at(&self.path);
        if !self.top().is_some_and(MountEntry::is_lazycopy) {
            return error.because("no lazycopy daemon of this user serves it");
        }
        if is_dead(&self.path, &self.mounts) {
            return error
                .because("its mount is dead: the daemon has ended without unmounting")
                .hint("`lazycopy unmount` clears it, and so does the next mount there");
        }
        error
            .because("it is mounted, but by a daemon that is not registered for this user")
            .hint("ask as the user who mounted it, with the same LAZYCOPY_RUNTIME_DIR")
    }
}
