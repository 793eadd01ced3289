//! DIR becomes a plain directory again: our state goes, and nothing else. Works without a readable catalog.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};

use super::aside::LEAVING_NAME;
use super::catalog::{BALLAST_NAME, CATALOG_NAME, DRAFT_NAME as CATALOG_DRAFT_NAME};
use super::destination::{MARKER_FIRST_LINE, MARKER_NAME, STATE_NAME};
use super::elsewhere::{Elsewhere, OWNER_NAME, POINTER_NAME, pointer};
use super::receipt::{RECEIPT_DRAFT_NAME, RECEIPT_NAME};
use super::root::{Root, open_beneath, stat_entry, sync_directory};
use super::state::{
    DRAFT_NAME, LOCK_NAME, OWN_MODE_NAME, PARTS_NAME, TREES_NAME, own_mode, read_small, remove,
    sweep, take_lock,
};

/// Files of ours in `DIR/.lazycopy/` and in a state directory, in the order in which they go: what is left after a crash is not trusted.
const FILES: [&str; 10] = [
    CATALOG_NAME,
    CATALOG_DRAFT_NAME,
    BALLAST_NAME,
    RECEIPT_NAME,
    RECEIPT_DRAFT_NAME,
    DRAFT_NAME,
    OWNER_NAME,
    POINTER_NAME,
    OWN_MODE_NAME,
    LOCK_NAME,
];
const DIRECTORIES: [&str; 2] = [TREES_NAME, PARTS_NAME];
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Whether there was anything of ours.
    pub is_known: bool,
    /// Unfinished parts that went with it.
    pub parts: u64,
    /// Bytes on the disk that they took.
    pub part_bytes: u64,
}

/// Removes everything of ours from the directory `path`, durably; `state_dir` if it keeps its state there and the place has moved. An
/// unfinished copy only with `is_forced`.
///
/// # Errors
/// `Busy` while a process holds it; `Exists` if the copy is unfinished, saying what would be lost; `Denied` if `.lazycopy` is not ours:
/// nothing is changed then.
pub fn forget(path: &Path, state_dir: Option<&Path>, is_forced: bool) -> Result<Forgotten> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::io("forget", errno).at(path))?;
    let root = Root::new(fd, path.to_owned());
    let failed = |errno| Error::io("forget", errno).at(path.join(STATE_NAME));
    let marker = has_marker(&root);
    let Some(state) = open_state(&root)? else {
        // A crash between the state and the marker.
        if marker {
            remove(root.fd(), MARKER_NAME).map_err(failed)?;
        }
        return Ok(Forgotten { is_known: marker, ..Forgotten::default() });
    };
    check_is_ours(&root, state.as_fd())?;
    let _lock = take_lock(&root, state.as_fd())?;
    let forgotten = Forgotten { is_known: true, ..count_parts(state.as_fd()).map_err(failed)? };
    if (marker || forgotten.parts > 0) && !is_forced {
        return Err(unfinished(path, forgotten));
    }
    let elsewhere = match Elsewhere::find(&root, state.as_fd(), state_dir) {
        Err(_) if is_forced => None,
        found => found?,
    };
    if let Some(elsewhere) = &elsewhere {
        clear(elsewhere.fd(), elsewhere.path())?;
        if elsewhere.is_made() {
            // Whatever else somebody put there keeps it.
            drop(std::fs::remove_dir(elsewhere.path()));
        }
    }
    let mode = own_mode(state.as_fd()).map_err(failed)?;
    clear(state.as_fd(), &path.join(STATE_NAME))?;
    rustix::fs::unlinkat(root.fd(), STATE_NAME, AtFlags::REMOVEDIR).map_err(failed)?;
    if let Some(mode) = mode {
        rustix::fs::fchmod(root.fd(), Mode::from_raw_mode(mode)).map_err(failed)?;
    }
    if marker {
        remove(root.fd(), MARKER_NAME).map_err(failed)?;
    }
    sync_directory(root.fd()).map_err(failed)?;
    Ok(forgotten)
}

fn unfinished(path: &Path, forgotten: Forgotten) -> Error {
    let parts = match forgotten.parts {
        0 => "nothing that was fetched is lost, but the next copy compares every file again"
            .to_owned(),
        parts => {
            format!("{parts} unfinished files with {} bytes would be lost", forgotten.part_bytes)
        }
    };
    Error::new(Kind::Exists, "forget")
        .at(path)
        .because(format!("this copy is not complete: {parts}"))
        .hint("--force forgets it; finished files stay in any case")
}

/// Whether DIR holds our marker rather than somebody's file of that name.
fn has_marker(root: &Root) -> bool {
    let text = read_small(root.fd(), MARKER_NAME);
    matches!(text, Ok(Some(text)) if text.starts_with(MARKER_FIRST_LINE))
}

fn open_state(root: &Root) -> Result<Option<OwnedFd>> {
    match open_beneath(root.fd(), STATE_NAME.as_bytes(), DIRECTORY) {
        Ok(state) => Ok(Some(state)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Err(foreign(
            root.shown_as().join(STATE_NAME),
            "it is a symbolic link, a mount point or no directory",
        )),
        Err(errno) => Err(Error::io("forget", errno).at(root.shown_as().join(STATE_NAME))),
    }
}

fn foreign(path: PathBuf, why: &str) -> Error {
    Error::new(Kind::Denied, "forget")
        .at(path)
        .because(format!("{why}: not made by lazycopy, left alone"))
}

/// A private directory holds our lock and nothing that we do not know.
fn check_is_ours(root: &Root, state: BorrowedFd<'_>) -> Result<()> {
    let shown = root.shown_as().join(STATE_NAME);
    let failed = |errno| Error::io("forget", errno).at(&shown);
    if stat_entry(state, LOCK_NAME.as_ref()).map_err(failed)?.is_none() {
        return Err(foreign(shown, "it has no lock"));
    }
    for (name, kind) in list(state).map_err(failed)? {
        if name == LEAVING_NAME && kind.is_dir() {
            check_nobody_waits(state, &shown)?;
            continue;
        }
        let is_ours = FILES.iter().any(|file| name == *file) && kind.is_file()
            || DIRECTORIES.iter().any(|directory| name == *directory) && kind.is_dir();
        if !is_ours {
            return Err(foreign(shown.join(name), "it is in the way"));
        }
    }
    for directory in DIRECTORIES {
        let Ok(below) = open_beneath(state, directory.as_bytes(), DIRECTORY) else { continue };
        for (name, kind) in list(below.as_fd()).map_err(failed)? {
            if kind.is_dir() {
                return Err(foreign(shown.join(directory).join(name), "it is in the way"));
            }
        }
    }
    pointer(state).map(drop).map_err(failed)
}

/// Nothing of a user's lies where files leave: he would lose it.
fn check_nobody_waits(state: BorrowedFd<'_>, shown: &Path) -> Result<()> {
    let shown = shown.join(LEAVING_NAME);
    let failed = |errno| Error::io("forget", errno).at(&shown);
    let leaving = open_beneath(state, LEAVING_NAME.as_bytes(), DIRECTORY).map_err(failed)?;
    if list(leaving.as_fd()).map_err(failed)?.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Denied, "forget")
        .at(&shown)
        .because("files that were changed while they were evicted lie there")
        .hint("move them to where you want them, or remove them"))
}

fn list(directory: BorrowedFd<'_>) -> Result<Vec<(OsString, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        if let Some(stat) = stat_entry(directory, OsStr::from_bytes(&name))? {
            found.push((OsString::from_vec(name), FileType::from_raw_mode(stat.st_mode)));
        }
    }
    Ok(found)
}

fn count_parts(state: BorrowedFd<'_>) -> Result<Forgotten, Errno> {
    let mut forgotten = Forgotten::default();
    let parts = match open_beneath(state, PARTS_NAME.as_bytes(), DIRECTORY) {
        Err(Errno::NOENT) => return Ok(forgotten),
        result => result?,
    };
    for (name, _) in list(parts.as_fd())? {
        if let Some(stat) = stat_entry(parts.as_fd(), &name)? {
            forgotten.parts += 1;
            forgotten.part_bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
    }
    Ok(forgotten)
}

/// Removes what is ours from one directory.
fn clear(directory: BorrowedFd<'_>, shown: &Path) -> Result<()> {
    let failed = |errno| Error::io("forget", errno).at(shown);
    for name in DIRECTORIES {
        match open_beneath(directory, name.as_bytes(), DIRECTORY) {
            Ok(below) => {
                sweep(below.as_fd(), |_| false).map_err(failed)?;
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(failed)?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    match rustix::fs::unlinkat(directory, LEAVING_NAME, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    for name in FILES {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    sync_directory(directory).map_err(failed)
}
