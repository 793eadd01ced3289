//! A state directory outside DIR: catalog, hash trees and ballast lie there. Parts and lock stay in `DIR/.lazycopy/`, which remembers where
//! the state is; the state directory remembers whose it is. Either without the other is an error, never a fresh start.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};

use super::catalog::CATALOG_NAME;
use super::probe;
use super::root::{Root, UNFINISHED_DIRECTORY, stat_entry, sync_directory};
use super::state::{protect, read_bytes, write_file};

/// In `DIR/.lazycopy/`: an id, and where the state is.
pub(super) const POINTER_NAME: &str = "state-dir";
/// In the state directory: the same id, the inode of `DIR/.lazycopy/`, whether we made the directory, and where DIR was.
pub(super) const OWNER_NAME: &str = "destination";

/// An open state directory outside DIR.
#[derive(Debug)]
pub(super) struct Elsewhere {
    fd: OwnedFd,
    path: PathBuf,
    owner: Owner,
}

/// What a state directory says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    id: u64,
    /// Of `DIR/.lazycopy/`: a copy of DIR is another destination.
    inode: u64,
    is_made: bool,
    /// For people.
    destination: PathBuf,
}

impl Elsewhere {
    /// The state directory of the destination whose private directory is `state`; `None` if that holds its state itself. `asked` is what the
    /// user named.
    pub(super) fn find(
        root: &Root,
        state: BorrowedFd<'_>,
        asked: Option<&Path>,
    ) -> Result<Option<Self>> {
        let failed = |errno| Error::io("open destination", errno).at(root.shown_as());
        let inode = rustix::fs::fstat(state).map_err(failed)?.st_ino;
        let Some((id, remembered)) = pointer(state).map_err(failed)? else {
            let Some(asked) = asked else { return Ok(None) };
            if stat_entry(state, CATALOG_NAME.as_ref()).map_err(failed)?.is_some() {
                return Err(refused(
                    asked,
                    format!("{} keeps its state within itself already", root.shown_as().display()),
                )
                .hint("leave --state-dir out"));
            }
            return Self::begin(root, state, inode, asked).map(Some);
        };
        let path = asked.unwrap_or(&remembered);
        let opened = match open(path) {
            Err(error) if asked.is_none() && error.kind() == Kind::NotFound => {
                return Err(error
                    .because("the state of this destination lies there, and it is missing")
                    .hint("is its disk mounted? --state-dir names it if it has moved; `lazycopy forget --force` gives it up"));
            }
            result => result?,
        };
        let owner = owner(opened.as_fd()).map_err(|errno| Error::io("read", errno).at(path))?;
        let Some(owner) = owner.filter(|owner| (owner.id, owner.inode) == (id, inode)) else {
            let error =
                refused(path, format!("it is not the state of {}", root.shown_as().display()));
            let is_elsewhere = asked.is_some_and(|asked| asked != remembered);
            return Err(if is_elsewhere {
                error.hint(format!("its state lies in {}", remembered.display()))
            } else {
                error.hint("is its disk mounted?")
            });
        };
        protect(opened.as_fd(), path)?;
        if path != remembered {
            remember(state, id, path).map_err(failed)?;
        }
        Ok(Some(Self { fd: opened, path: path.to_owned(), owner }))
    }

    /// Takes an empty or missing directory, or what an attempt that was cut off has left of one.
    fn begin(root: &Root, state: BorrowedFd<'_>, inode: u64, path: &Path) -> Result<Self> {
        let failed = |op, errno| Error::io(op, errno).at(path);
        let made = rustix::fs::mkdir(path, Mode::from_raw_mode(UNFINISHED_DIRECTORY));
        let is_made = match made {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(Errno::NOENT) => {
                return Err(failed("make state directory", Errno::NOENT)
                    .because("the directory that should hold it does not exist")
                    .hint("is its disk mounted?"));
            }
            Err(errno) => return Err(failed("make state directory", errno)),
        };
        let fd = open(path)?;
        let known = owner(fd.as_fd()).map_err(|errno| failed("read state directory", errno))?;
        let owner = match known {
            Some(owner) if owner.inode == inode && owner.destination == root.shown_as() => owner,
            Some(other) => {
                let whose = other.destination.display();
                return Err(refused(path, format!("it is the state of {whose}")));
            }
            None if !is_empty(fd.as_fd()).map_err(|errno| failed("list", errno))? => {
                return Err(refused(path, "it is not empty".to_owned()));
            }
            None => Owner {
                id: probe::random(),
                inode,
                is_made,
                destination: root.shown_as().to_owned(),
            },
        };
        protect(fd.as_fd(), path)?;
        if is_made
            && let Some(parent) = path.parent()
            && let Ok(parent) = open(parent)
        {
            sync_directory(parent.as_fd()).map_err(|errno| failed("sync parent of", errno))?;
        }
        write_file(fd.as_fd(), fd.as_fd(), OWNER_NAME, &owner.encode())
            .map_err(|errno| failed("write to state directory", errno))?;
        remember(state, owner.id, path)
            .map_err(|errno| Error::io("write to destination", errno).at(root.shown_as()))?;
        Ok(Self { fd, path: path.to_owned(), owner })
    }

    /// The directory.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where it is, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was made for this destination, so that it may go with it.
    pub(super) fn is_made(&self) -> bool {
        self.owner.is_made
    }
}

impl Owner {
    fn encode(&self) -> Vec<u8> {
        let Self { id, inode, is_made, .. } = self;
        let mut bytes = format!("{id:016x}\n{inode}\n{is_made}\n").into_bytes();
        bytes.extend_from_slice(self.destination.as_os_str().as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
        let mut text = || std::str::from_utf8(lines.next()?).ok();
        let id = u64::from_str_radix(text()?, 16).ok()?;
        let inode = text()?.parse().ok()?;
        let is_made = text()?.parse().ok()?;
        let destination = PathBuf::from(OsStr::from_bytes(lines.next()?));
        Some(Self { id, inode, is_made, destination })
    }
}

fn refused(path: &Path, why: String) -> Error {
    Error::new(Kind::Invalid, "use state directory").at(path).because(why)
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::io("open state directory", errno).at(path))
}

/// Where a private directory says that its state is.
pub(super) fn pointer(state: BorrowedFd<'_>) -> Result<Option<(u64, PathBuf)>, Errno> {
    let Some(bytes) = read_bytes(state, POINTER_NAME)? else { return Ok(None) };
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let id = parts.next().and_then(|id| std::str::from_utf8(id).ok());
    let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
    match (id, parts.next()) {
        (Some(id), Some(path)) => Ok(Some((id, PathBuf::from(OsStr::from_bytes(path))))),
        // Written whole or not at all, so it is none of ours.
        _ => Err(Errno::BADMSG),
    }
}

fn remember(state: BorrowedFd<'_>, id: u64, path: &Path) -> Result<(), Errno> {
    let mut bytes = format!("{id:016x}\n").into_bytes();
    bytes.extend_from_slice(path.as_os_str().as_bytes());
    write_file(state, state, POINTER_NAME, &bytes)
}

fn owner(directory: BorrowedFd<'_>) -> Result<Option<Owner>, Errno> {
    match read_bytes(directory, OWNER_NAME)? {
        None => Ok(None),
        Some(bytes) => Owner::decode(&bytes).map(Some).ok_or(Errno::BADMSG),
    }
}

/// What an attempt that was cut off has left does not count.
fn is_empty(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if ![".", "..", super::state::DRAFT_NAME, "lost+found"]
            .iter()
            .any(|known| entry.file_name().to_bytes() == known.as_bytes())
        {
            return Ok(false);
        }
    }
    Ok(true)
}
