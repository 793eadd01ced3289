//! The private directory `DIR/.lazycopy/`: lock, parts, and what must be remembered about DIR itself. Catalog and hash trees lie there
//! too, or in a state directory [`super::elsewhere`].

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

use super::destination::STATE_NAME;
use super::elsewhere::Elsewhere;
use super::root::{
    Root, UNFINISHED_DIRECTORY, create_beneath, forget_inherited_acls, is_entry, open_beneath,
    sync_directory,
};
use super::{Identity, destination::MARKER_NAME};

pub(super) const LOCK_NAME: &str = "lock";
pub(super) const PARTS_NAME: &str = "parts";
pub(super) const TREES_NAME: &str = "trees";
/// Holds the mode that DIR had before it was concealed, in octal.
pub(super) const OWN_MODE_NAME: &str = "root-mode";
/// A state file that is being written.
pub(super) const DRAFT_NAME: &str = "draft";
/// The longest small file.
const SMALL_BYTES: usize = 8192;

/// The open state directory. The lock is held as long as this lives.
#[derive(Debug)]
pub(super) struct StateDirectory {
    fd: OwnedFd,
    parts: OwnedFd,
    /// Where the catalog is; `None` = here.
    elsewhere: Option<Elsewhere>,
    trees: OwnedFd,
    device: u64,
    lock: OwnedFd,
}

impl StateDirectory {
    /// Makes or enters the directory and takes the lock. `asked` is the state directory that the user named.
    pub(super) fn open(root: &Root, asked: Option<&Path>) -> Result<Self> {
        let shown = |name: &str| root.shown_as().join(STATE_NAME).join(name);
        let own = root.shown_as().join(STATE_NAME);
        let fd = private_directory(root.fd(), STATE_NAME, &own)?;
        let lock = take_lock(root, fd.as_fd())?;
        let parts = private_directory(fd.as_fd(), PARTS_NAME, &shown(PARTS_NAME))?;
        let elsewhere = Elsewhere::find(root, fd.as_fd(), asked)?;
        let trees = match &elsewhere {
            Some(state) => {
                private_directory(state.fd(), TREES_NAME, &state.path().join(TREES_NAME))?
            }
            None => private_directory(fd.as_fd(), TREES_NAME, &shown(TREES_NAME))?,
        };
        let device = rustix::fs::fstat(&parts)
            .map_err(|errno| at_state(root, "stat parts of", errno))?
            .st_dev;
        Ok(Self { fd, parts, elsewhere, trees, device, lock })
    }

    /// Lets others have the destination.
    pub(super) fn leave_lock(&self, root: &Root) -> Result<()> {
        rustix::fs::flock(&self.lock, FlockOperation::Unlock)
            .map_err(|errno| at_state(root, "leave the lock of", errno))
    }

    /// The directory of unpublished parts.
    pub(super) fn parts(&self) -> BorrowedFd<'_> {
        self.parts.as_fd()
    }

    /// The private directory itself.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The directory of the catalog, and its path for messages.
    pub(super) fn catalog(&self, root: &Root) -> (BorrowedFd<'_>, PathBuf) {
        match &self.elsewhere {
            Some(state) => (state.fd(), state.path().to_owned()),
            None => (self.fd(), root.shown_as().join(STATE_NAME)),
        }
    }

    /// The directory of block hashes.
    pub(super) fn trees(&self) -> BorrowedFd<'_> {
        self.trees.as_fd()
    }

    /// Whether catalog and hashes lie in a directory of their own, maybe on another file system.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// The device that parts are on, and so everything published.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// Remembers DIR's mode before it is concealed. Only the first call of all lives counts.
    pub(super) fn remember_own_mode(&self, root: &Root, mode: u32) -> Result<()> {
        if self.own_mode(root)?.is_some() {
            return Ok(());
        }
        let text = format!("{mode:04o}\n");
        write_file(self.fd(), self.fd(), OWN_MODE_NAME, text.as_bytes())
            .map_err(|errno| at_state(root, "remember mode of", errno))
    }

    /// DIR's mode before it was concealed, if it was.
    pub(super) fn own_mode(&self, root: &Root) -> Result<Option<u32>> {
        own_mode(self.fd()).map_err(|errno| at_state(root, "read remembered mode of", errno))
    }

    /// Forgets the remembered mode: DIR shows its final one.
    pub(super) fn forget_own_mode(&self, root: &Root) -> Result<()> {
        remove(self.fd.as_fd(), OWN_MODE_NAME)
            .map_err(|errno| at_state(root, "forget mode of", errno))
    }

    /// Puts the marker into DIR; replaces a former marker but nothing else of that name. `draft` is a name in `parts/` that nobody else
    /// uses.
    pub(super) fn write_marker(
        &self,
        root: &Root,
        draft: &str,
        first_line: &str,
        text: &str,
    ) -> Result<()> {
        let former = read_small(root.fd(), MARKER_NAME);
        let is_ours = match &former {
            Ok(None) => true,
            Ok(Some(former)) => former.starts_with(first_line),
            Err(_) => false,
        };
        if !is_ours {
            return Err(Error::new(Kind::Exists, "write marker")
                .at(root.shown_as().join(MARKER_NAME))
                .because("something else has this name")
                .hint("move it away, or choose another destination"));
        }
        write_file_by((self.parts(), draft), root.fd(), MARKER_NAME, text.as_bytes())
            .map_err(|errno| at_state(root, "write marker in", errno))
    }

    /// Takes the marker away. It is no error if there is none.
    pub(super) fn remove_marker(&self, root: &Root) -> Result<()> {
        remove(root.fd(), MARKER_NAME).map_err(|errno| at_state(root, "remove marker in", errno))
    }
}

/// Writes a whole file so that a crash leaves the former one or this one. `state`, on the same file system, holds it meanwhile.
pub(super) fn write_file(
    state: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
) -> Result<(), Errno> {
    write_file_by((state, DRAFT_NAME), directory, name, content)
}

/// As [`write_file`], with a draft of this name in this directory.
fn write_file_by(
    (state, draft_name): (BorrowedFd<'_>, &str),
    directory: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
    let draft = create_beneath(state, draft_name.as_bytes(), flags, Mode::from_raw_mode(0o644))?;
    write_all(draft.as_fd(), content)?;
    rustix::fs::fsync(&draft)?;
    rustix::fs::renameat(state, draft_name, directory, name)?;
    sync_directory(directory)
}

/// DIR's mode before it was concealed, if it was.
pub(super) fn own_mode(state: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    let text = read_small(state, OWN_MODE_NAME)?;
    Ok(text.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()))
}

fn at_state(root: &Root, op: &'static str, errno: Errno) -> Error {
    root.error(op, &RelPath::root(), errno)
}

/// Makes or enters a directory that nobody else can look into.
fn private_directory(parent: BorrowedFd<'_>, name: &str, shown: &Path) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(UNFINISHED_DIRECTORY);
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) => sync_directory(parent)
            .map_err(|errno| Error::io("sync directory of", errno).at(shown))?,
        Err(Errno::EXIST) => {}
        Err(errno) => {
            return Err(Error::io("write to destination", errno)
                .at(shown.parent().unwrap_or(shown))
                .hint("choose a directory that you can write to"));
        }
    }
    let open = OFlags::RDONLY | OFlags::DIRECTORY;
    let fd = open_beneath(parent, name.as_bytes(), open).map_err(|errno| {
        let error = Error::io("open private directory", errno).at(shown);
        match errno {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => error
                .kinded(Kind::Denied)
                .because("it is a symbolic link, a mount point or no directory")
                .hint("remove it: nothing but lazycopy may make it"),
            _ => error,
        }
    })?;
    protect(fd.as_fd(), shown)?;
    Ok(fd)
}

/// Makes sure that a directory is ours and that nobody else can look into it.
pub(super) fn protect(fd: BorrowedFd<'_>, shown: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(fd)
        .map_err(|errno| Error::io("stat private directory", errno).at(shown))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Error::new(Kind::Denied, "open private directory")
            .at(shown)
            .because(format!("it belongs to user {}", stat.st_uid))
            .hint("run as that user, or remove it"));
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(UNFINISHED_DIRECTORY))
        .map_err(|errno| Error::io("protect private directory", errno).at(shown))?;
    forget_inherited_acls(fd);
    Ok(())
}

/// Takes the destination's lock and writes our process id into it.
pub(super) fn take_lock(root: &Root, state: BorrowedFd<'_>) -> Result<OwnedFd> {
    let failed = |errno| Error::io("take the lock of destination", errno).at(root.shown_as());
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW;
        let lock = create_beneath(state, LOCK_NAME.as_bytes(), flags, Mode::from_raw_mode(0o600))
            .map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(in_use(root, state)),
            Err(errno) => return Err(failed(errno)),
        }
        // A lock file that was removed meanwhile locks nothing.
        let stat = rustix::fs::fstat(&lock).map_err(failed)?;
        if is_entry(state, OsStr::new(LOCK_NAME), Identity::of(&stat)).map_err(failed)? {
            rustix::fs::ftruncate(&lock, 0).map_err(failed)?;
            write_all(lock.as_fd(), format!("{}\n", std::process::id()).as_bytes())
                .map_err(failed)?;
            return Ok(lock);
        }
    }
}

/// As [`take_lock`] of a destination that is only looked at; `None` if nobody ever held it.
pub(super) fn take_lock_to_look(root: &Root, state: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let failed = |errno| Error::io("take the lock of destination", errno).at(root.shown_as());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    let lock = match open_beneath(state, LOCK_NAME.as_bytes(), flags) {
        Err(Errno::NOENT) => return Ok(None),
        lock => lock.map_err(failed)?,
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(in_use(root, state)),
        result => result.map(|()| Some(lock)).map_err(failed),
    }
}

fn in_use(root: &Root, state: BorrowedFd<'_>) -> Error {
    let holder = read_small(state, LOCK_NAME).ok().flatten().unwrap_or_default();
    let holder = match holder.trim() {
        "" => "another process".to_owned(),
        pid => format!("process {pid}"),
    };
    Error::new(Kind::Busy, "open destination")
        .at(root.shown_as())
        .because(format!("destination in use by {holder}"))
        .hint("`lazycopy status` shows the daemons that run")
}

/// Removes everything but directories and what is kept from `parts`.
pub(super) fn sweep(parts: BorrowedFd<'_>, is_kept: impl Fn(&OsStr) -> bool) -> Result<u64, Errno> {
    let mut swept = 0;
    for entry in Dir::read_from(parts)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." || is_kept(name) {
            continue;
        }
        match rustix::fs::unlinkat(parts, entry.file_name(), AtFlags::empty()) {
            Ok(()) => swept += 1,
            // Never made by us, so not ours to remove.
            Err(Errno::ISDIR | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(swept)
}

/// Removes `name` durably; it may be absent.
pub(super) fn remove(directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => sync_directory(directory),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A small regular file as text; `None` if it does not exist.
pub(super) fn read_small(directory: BorrowedFd<'_>, name: &str) -> Result<Option<String>, Errno> {
    let bytes = read_bytes(directory, name)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The first [`SMALL_BYTES`] of a regular file; `None` if it does not exist.
pub(super) fn read_bytes(directory: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match open_beneath(directory, name.as_bytes(), flags) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if !FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_file() {
        return Err(Errno::EXIST);
    }
    let mut content = vec![0; SMALL_BYTES];
    let len = rustix::io::retry_on_intr(|| rustix::io::pread(&fd, &mut content[..], 0))?;
    content.truncate(len);
    Ok(Some(content))
}

/// Writes all of `content` at the descriptor's position.
pub(super) fn write_all(fd: BorrowedFd<'_>, mut content: &[u8]) -> Result<(), Errno> {
    while !content.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, content))?;
        content = &content[written..];
    }
    Ok(())
}
