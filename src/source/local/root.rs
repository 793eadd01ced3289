//! The root descriptor: the only way to an entry of a local source.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use arc_swap::ArcSwap;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, fstatvfs, open, openat2, readlinkat,
    statx,
};
use rustix::io::Errno;

use super::attributes::{entry_kind, from_statx};
use crate::core::attributes::{Attributes, EntryKind};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::Capacity;

/// Restarts of a lookup that raced with a rename (`openat2(2)`: EAGAIN under RESOLVE_BENEATH).
const RENAME_RACES: u32 = 64;

/// A source that is one file: shown under the name that was typed, found under its real one.
#[derive(Debug)]
struct Single {
    shown: OsString,
    actual: RelPath,
}

/// Where the source lies.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    resolve: ResolveFlags,
    single: Option<Single>,
    /// Mount points that were logged as left out.
    skipped_mounts: ArcSwap<HashSet<RelPath>>,
}

impl Root {
    /// See [`super::LocalSource::open`].
    pub(super) fn open(path: &Path, cross_mounts: bool) -> Result<Self> {
        let failed = |error: Errno| Error::io("open source", error).at(path);
        // O_PATH: a FIFO or device given by mistake is looked at, never opened.
        let target = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let (directory, single) =
            match entry_kind(stat_of(target.as_fd()).map_err(failed)?.stx_mode) {
                EntryKind::Directory => (target, None),
                EntryKind::File => {
                    let (parent, single) = locate_single(path)?;
                    (
                        open(
                            &parent,
                            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                            Mode::empty(),
                        )
                        .map_err(failed)?,
                        Some(single),
                    )
                }
                _ => {
                    return Err(Error::new(Kind::Invalid, "open source")
                        .at(path)
                        .because("neither a directory nor a regular file"));
                }
            };
        let mut resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        if !cross_mounts && single.is_none() {
            resolve |= ResolveFlags::NO_XDEV;
        }
        let root = Self { directory, resolve, single, skipped_mounts: ArcSwap::default() };
        // Found out now rather than at the first listing: may it be read at all?
        match root.single.as_ref() {
            Some(single) => drop(root.open_file(&RelPath::root().child(&single.shown)?)?),
            None => drop(root.open_directory(&RelPath::root()).map_err(|error| error.at(path))?),
        }
        Ok(root)
    }

    pub(super) fn single_file(&self) -> Option<&OsString> {
        self.single.as_ref().map(|single| &single.shown)
    }

    /// The path below the root descriptor.
    fn actual<'a>(&'a self, path: &'a RelPath) -> Result<&'a RelPath> {
        match &self.single {
            None => Ok(path),
            Some(_) if path.is_root() => Ok(path),
            Some(single) if path.as_bytes() == single.shown.as_encoded_bytes() => {
                Ok(&single.actual)
            }
            Some(_) => Err(Error::new(Kind::NotFound, "find")),
        }
    }

    fn open_beneath(&self, path: &RelPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mut reached: Option<OwnedFd> = None;
        let mut pieces = path.pieces().peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            let flags = if last { flags } else { OFlags::PATH | OFlags::DIRECTORY };
            let base = reached.as_ref().map_or(self.directory.as_fd(), AsFd::as_fd);
            reached = Some(self.open_piece(base, piece, flags)?);
        }
        reached.ok_or(Errno::NOENT)
    }

    fn open_piece(
        &self,
        base: BorrowedFd<'_>,
        piece: &Path,
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let below = if piece.as_os_str().is_empty() { Path::new(".") } else { piece };
        for _ in 0..RENAME_RACES {
            let opened = openat2(base, below, flags | OFlags::CLOEXEC, Mode::empty(), self.resolve);
            if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
                return opened;
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a directory for listing; `None` if it is a mount point that is left out.
    pub(super) fn open_directory(&self, path: &RelPath) -> Result<Option<OwnedFd>> {
        match self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::XDEV) => {
                self.log_skipped_mount(path);
                Ok(None)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Error::new(Kind::Invalid, "list directory")
                .at(path.as_path())
                .because("not a directory")),
            Err(error) => Err(Error::io("list directory", error)),
        }
    }

    fn log_skipped_mount(&self, path: &RelPath) {
        if self.skipped_mounts.load().contains(path) {
            return;
        }
        tracing::warn!(path = %path, "another file system is mounted here and left out (--cross-mounts includes it)");
        self.skipped_mounts.rcu(|known| {
            let mut known = HashSet::clone(known);
            known.insert(path.clone());
            known
        });
    }

    /// A descriptor that names the entry itself (a symlink is not followed) and gives no access to content.
    pub(super) fn open_handle(&self, path: &RelPath) -> Result<OwnedFd> {
        let actual = self.actual(path)?;
        self.open_beneath(actual, OFlags::PATH | OFlags::NOFOLLOW).map_err(handle_error)
    }

    /// Opens a regular file for reading. Nothing else is opened, whatever takes its place meanwhile: the inode is held by a
    /// descriptor without access, looked at, and then opened through that.
    pub(super) fn open_file(&self, path: &RelPath) -> Result<OwnedFd> {
        open_regular(&self.open_handle(path)?)
    }

    /// As [`Root::open_file`] for the entry `name` of an open directory.
    pub(super) fn open_file_in(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
        open_regular(&self.open_handle_in(directory, name)?)
    }

    /// As [`Root::open_handle`] for the entry `name` of an open directory.
    pub(super) fn open_handle_in(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<OwnedFd> {
        self.open_piece(directory, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(handle_error)
    }

    /// See [`crate::source::Source::stat`].
    pub(super) fn stat(&self, path: &RelPath) -> Result<Attributes> {
        if path.is_root() && self.single.is_some() {
            return self.synthetic_root();
        }
        let actual = self.actual(path)?;
        let Some(parent) = actual.parent() else {
            return from_statx(
                &stat_of(self.directory.as_fd()).map_err(|error| Error::io("stat", error))?,
            );
        };
        let directory = self
            .open_beneath(&parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
            .map_err(|error| match error {
                Errno::LOOP | Errno::XDEV => {
                    Error::new(Kind::NotFound, "stat").caused_by(std::io::Error::from(error))
                }
                error => Error::io("stat", error),
            })?;
        stat_at(directory.as_fd(), actual.name())
    }

    /// Attributes for the directory around a single file.
    fn synthetic_root(&self) -> Result<Attributes> {
        let Some(single) = &self.single else {
            return Err(Error::new(Kind::Invalid, "stat"));
        };
        let file = stat_at(self.directory.as_fd(), single.actual.name())?;
        Ok(Attributes {
            kind: EntryKind::Directory,
            size: 0,
            mode: Some(0o755),
            link_count: 2,
            allocated_units: None,
            identity: None,
            fingerprint: crate::core::attributes::Fingerprint {
                size: 0,
                ..file.fingerprint.clone()
            },
            ..file
        })
    }

    /// See [`crate::source::Source::readlink`].
    pub(super) fn readlink(&self, path: &RelPath) -> Result<OsString> {
        let link = self.open_handle(path)?;
        // An empty path names the link that the descriptor holds (readlinkat(2)).
        let target = readlinkat(&link, c"", Vec::new()).map_err(|error| match error {
            Errno::NOENT | Errno::INVAL => {
                Error::new(Kind::Invalid, "read link").because("not a symbolic link")
            }
            error => Error::io("read link", error),
        })?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    pub(super) fn capacity(&self) -> Result<Capacity> {
        let status =
            fstatvfs(&self.directory).map_err(|error| Error::io("stat file system", error))?;
        Ok(Capacity {
            total_bytes: status.f_blocks.saturating_mul(status.f_frsize),
            total_inodes: status.f_files,
        })
    }
}

fn handle_error(errno: Errno) -> Error {
    match errno {
        Errno::XDEV => Error::new(Kind::Denied, "open")
            .because("on another file system")
            .hint("--cross-mounts includes it"),
        // A symlink in the middle: what the caller listed there is gone.
        Errno::LOOP => Error::new(Kind::NotFound, "open").caused_by(std::io::Error::from(errno)),
        errno => Error::io("open", errno),
    }
}

/// Opens what `handle` holds for reading, if it is a regular file.
fn open_regular(handle: &OwnedFd) -> Result<OwnedFd> {
    let status = stat_of(handle.as_fd()).map_err(|error| Error::io("open file", error))?;
    if entry_kind(status.stx_mode) != EntryKind::File {
        return Err(Error::new(Kind::Stale, "open file").because("no longer a regular file"));
    }
    let link = proc_link(handle.as_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // O_NOATIME is for the owner only (open(2)).
    open(&link, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|error| match error {
            Errno::PERM => open(&link, flags, Mode::empty()),
            error => Err(error),
        })
        .map_err(|error| Error::io("open file", error))
}

/// Parent directory and names of the file that `path`, perhaps through a symlink, leads to.
fn locate_single(path: &Path) -> Result<(std::path::PathBuf, Single)> {
    let failed = |error| Error::io("open source", error).at(path);
    let real = std::fs::canonicalize(path).map_err(failed)?;
    let nameless =
        || Error::new(Kind::Invalid, "open source").at(path).because("a file without a name");
    let (Some(parent), Some(actual)) = (real.parent(), real.file_name()) else {
        return Err(nameless());
    };
    let shown = path.file_name().unwrap_or(actual).to_owned();
    let single = Single { shown, actual: RelPath::root().child(actual)? };
    Ok((parent.to_owned(), single))
}

fn stat_of(fd: BorrowedFd<'_>) -> rustix::io::Result<Statx> {
    statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS)
}

/// Status of an open file.
pub(super) fn stat_open(fd: BorrowedFd<'_>) -> Result<Attributes> {
    from_statx(&stat_of(fd).map_err(|error| Error::io("stat", error))?)
}

/// Status of the entry `name` of `directory`, not following it and mounting nothing.
pub(super) fn stat_at(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Attributes> {
    stat_entry(directory, name).map(|(attributes, _)| attributes)
}

/// As [`stat_at`], with the inode number.
pub(super) fn stat_entry(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(Attributes, u64)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let status = statx(directory, name, flags, StatxFlags::BASIC_STATS)
        .map_err(|error| Error::io("stat", error))?;
    Ok((from_statx(&status)?, status.stx_ino))
}

/// The magic link (proc_pid_fd(5)) that leads to exactly the inode that `fd` holds.
pub(super) fn proc_link(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
