//! The directory below which everything happens, held by a descriptor. Paths in errors are for people; no system call uses them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::core::path::RelPath;
use crate::core::pool::LruPool;
use crate::error::{Error, Kind, Result};

use super::Identity;

/// Mode of a directory whose content is not complete.
pub(super) const UNFINISHED_DIRECTORY: u32 = 0o700;

/// How many directories are remembered to be durable; a forgotten one costs one more sync.
const DURABLE_DIRECTORIES: usize = 4096;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// A directory that nothing below can lead out of.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    shown_as: PathBuf,
    /// Directories whose names we have synced up to the root.
    durable: LruPool<RelPath, ()>,
}

impl Root {
    pub(super) fn new(fd: OwnedFd, shown_as: PathBuf) -> Self {
        Self { fd, shown_as, durable: LruPool::new(DURABLE_DIRECTORIES) }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the user said it is; for messages only.
    pub(super) fn shown_as(&self) -> &Path {
        &self.shown_as
    }

    /// An error about the entry `path`, with a reason that names what stands in the way.
    pub(super) fn error(&self, op: &'static str, path: &RelPath, errno: Errno) -> Error {
        let error = Error::io(op, errno).at(self.shown_as.join(path.as_path()));
        match errno {
            Errno::LOOP => error.kinded(Kind::Exists).because(
                "a symbolic link stands in the way; links in the destination are never followed",
            ),
            Errno::DQUOT => used_up_quota(error),
            Errno::XDEV => error
                .kinded(Kind::NotSupported)
                .because("another file system is mounted inside the destination")
                .hint("unmount it, or choose another destination"),
            _ => error,
        }
    }

    /// An error about the destination's own files.
    pub(super) fn own_error(&self, op: &'static str, errno: Errno) -> Error {
        let error = Error::io(op, errno).at(&self.shown_as);
        if errno == Errno::DQUOT { used_up_quota(error) } else { error }
    }

    /// Opens the directory `path`, for fsync and as the base of further calls.
    pub(super) fn directory(&self, path: &RelPath) -> Result<OwnedFd> {
        self.open(path, DIRECTORY).map_err(|errno| self.error("open directory", path, errno))
    }

    /// Opens an existing entry without following symlinks anywhere.
    pub(super) fn open(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut reached: Option<OwnedFd> = None;
        let mut pieces = path.pieces().peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            let flags = if last { flags } else { OFlags::PATH | OFlags::DIRECTORY };
            let base = reached.as_ref().map_or(self.fd(), AsFd::as_fd);
            let below = if path.is_root() { b".".as_slice() } else { piece.as_os_str().as_bytes() };
            reached = Some(open_beneath(base, below, flags)?);
        }
        reached.ok_or(Errno::NOENT)
    }

    /// The directory that holds `path`.
    pub(super) fn parent_of(&self, path: &RelPath) -> Result<OwnedFd> {
        let parent = path.parent().ok_or_else(|| {
            Error::new(Kind::Invalid, "open parent directory")
                .at(&self.shown_as)
                .because("the root itself has no parent here")
        })?;
        self.directory(&parent)
    }

    /// Opens the directory `path`, making what is missing of it: each directory 0700 and fsynced in its parent before anything
    /// is put into it.
    pub(super) fn ensure_directory(&self, path: &RelPath) -> Result<OwnedFd> {
        if path.is_root() || self.durable.get(path).is_some() {
            match self.open(path, DIRECTORY) {
                // Somebody removed it.
                Err(Errno::NOENT) => self.forget(path),
                result => return result.map_err(|errno| self.in_the_way(path, errno)),
            }
        }
        let mut unproven = Vec::new();
        let mut at = path.clone();
        while self.durable.get(&at).is_none() {
            let Some(parent) = at.parent() else { break };
            unproven.push(std::mem::replace(&mut at, parent));
        }
        let mut directory = match self.open(&at, DIRECTORY) {
            Err(Errno::NOENT) => {
                self.forget(path);
                return self.ensure_directory(path);
            }
            result => result.map_err(|errno| self.in_the_way(&at, errno))?,
        };
        for path in unproven.iter().rev() {
            directory = self.ensure_child(&directory, path)?;
        }
        Ok(directory)
    }

    fn forget(&self, path: &RelPath) {
        let mut at = path.clone();
        while let Some(parent) = at.parent() {
            self.durable.remove(&at);
            at = parent;
        }
    }

    fn ensure_child(&self, parent: &OwnedFd, path: &RelPath) -> Result<OwnedFd> {
        let mode = Mode::from_raw_mode(UNFINISHED_DIRECTORY);
        let is_new = match rustix::fs::mkdirat(parent, path.name(), mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(self.error("make directory", path, errno)),
        };
        let directory = open_beneath(parent.as_fd(), path.name().as_bytes(), DIRECTORY)
            .map_err(|errno| self.in_the_way(path, errno))?;
        if is_new {
            forget_inherited_acls(directory.as_fd());
        }
        // Also when it is not new: whoever makes it at this moment may not have come to this line.
        sync_directory(parent.as_fd())
            .map_err(|errno| self.error("sync parent of directory", path, errno))?;
        self.durable.insert(path.clone(), ());
        Ok(directory)
    }

    fn in_the_way(&self, path: &RelPath, errno: Errno) -> Error {
        let error = self.error("make directory", path, errno);
        if errno == Errno::NOTDIR {
            return error
                .kinded(Kind::Exists)
                .because("something that is no directory has this name");
        }
        error
    }
}

/// Which of the quotas that a new file counts against it was, no error number tells.
fn used_up_quota(error: Error) -> Error {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    error
        .because(format!(
            "the disk quota of user {user}, of group {group}, or of the project or subvolume that it lies in is used up"
        ))
        .hint("remove what counts against it, or have it raised; the copy then goes on by itself")
}

/// One `openat2` that neither leaves `base` nor follows a symlink nor enters another mount.
pub(super) fn open_beneath(
    base: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    create_beneath(base, path, flags, Mode::empty())
}

/// As [`open_beneath`]; `mode` is for a file that `flags` create.
pub(super) fn create_beneath(
    base: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(base, OsStr::from_bytes(path), flags, mode, resolve) {
            // openat2(2): EAGAIN when a rename or mount elsewhere raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Makes the names in a directory durable. A file system that cannot sync directories (EINVAL, see [`super::probe`]) is let pass.
pub(super) fn sync_directory(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::fs::fsync(directory) {
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
        result => result,
    }
}

/// `lstat` of `name` in `directory`; `None` if there is no such entry.
pub(super) fn stat_entry(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether `name` in `directory` is the inode `identity`.
pub(super) fn is_entry(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    identity: Identity,
) -> Result<bool, Errno> {
    Ok(stat_entry(directory, name)?.is_some_and(|stat| Identity::of(&stat) == identity))
}

/// Takes ACLs off a new directory: a default ACL of DIR would otherwise grant more than the source does.
pub(super) fn forget_inherited_acls(directory: BorrowedFd<'_>) {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(directory, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(errno) => {
                tracing::warn!(err = %io::Error::from(errno), "inherited ACL could not be removed");
            }
        }
    }
}
