//! What must be true of a mountpoint before the start, and what to do about a dead mount on it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::vfs::deadline::with_deadline;
use crate::vfs::mount::{self, UnmountMode};
use crate::vfs::mountinfo::{self, MountEntry};

/// How long a mount may take to say that it is dead; a dead one says so at once.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// More dead mounts in one place than this are not cleaned.
const STACK_MAX: usize = 16;

/// The absolute path of `path` with links resolved in its parent only: the last component is not looked at, because
/// it may be a mount that does not answer. Below a mount of ours not even the parent is looked at.
///
/// # Errors
/// What getcwd(2) and realpath(3) of the parent say.
pub fn locate(path: &Path, mounts: &[MountEntry]) -> Result<PathBuf> {
    let plain = absolute(path)?;
    let in_mount = |mount: &MountEntry| {
        mount.is_lazycopy() && plain != mount.mountpoint && plain.starts_with(&mount.mountpoint)
    };
    if mounts.iter().any(in_mount) {
        return Ok(plain);
    }
    match (plain.parent(), plain.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = fs::canonicalize(parent)
                .map_err(|error| Error::io("find directory", error).at(parent))?;
            Ok(parent.join(name))
        }
        _ => Ok(plain),
    }
}

/// The absolute path of `path` by name alone, without `.` and `..`: no file system is asked.
///
/// # Errors
/// What getcwd(2) says; `Invalid` for a NUL byte.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    mount::check_text(path)?;
    let absolute = std::path::absolute(path).map_err(|error| Error::io("find", error).at(path))?;
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    Ok(plain)
}

/// Whether the uppermost mount at `mountpoint` is one of ours whose daemon is gone. Never call it from that daemon.
pub fn is_dead(mountpoint: &Path, mounts: &[MountEntry]) -> bool {
    if !mountinfo::top_at(mounts, mountpoint).is_some_and(MountEntry::is_lazycopy) {
        return false;
    }
    let probed = mountpoint.to_owned();
    // A mount that does not answer in time is alive: only the kernel's word makes it dead.
    match with_deadline(PROBE_DEADLINE, move || rustix::fs::statfs(&probed).map(|_| ())) {
        Some(Err(error)) => is_disconnected(&error.into()),
        Some(Ok(())) | None => false,
    }
}

/// What the kernel says of a FUSE mount that nobody serves.
fn is_disconnected(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ECONNREFUSED))
}

/// Detaches the dead mounts of ours at `mountpoint`; returns how many there were. A foreign or living mount is left alone.
///
/// # Errors
/// What umount2(2) said, `Denied` for another user's.
pub fn clean_stale(mountpoint: &Path) -> Result<usize> {
    for cleaned in 0..STACK_MAX {
        let mounts = mountinfo::read()?;
        if !is_dead(mountpoint, &mounts) {
            return Ok(cleaned);
        }
        if let Some(top) = mountinfo::top_at(&mounts, mountpoint) {
            mount::unmount_ours(mountpoint, top.device, UnmountMode::Detach)?;
        }
        tracing::info!(path = %mountpoint.display(), "dead mount removed");
    }
    Ok(STACK_MAX)
}

/// Checks that `path` can be mounted on, removing a dead mount of ours first; returns its canonical path.
///
/// # Errors
/// `NotFound`, `Invalid` (no directory), `Exists` (not empty, or in use by another mount of ours), `Unreachable` (a dead mount that is not ours).
pub fn check_mountpoint(path: &Path) -> Result<PathBuf> {
    let mounts = mountinfo::read()?;
    let located = locate(path, &mounts).map_err(with_mkdir_hint)?;
    check_not_ours(&located, &mounts)?;
    let metadata = fs::metadata(&located).map_err(|error| unusable(&located, &mounts, error))?;
    if !metadata.is_dir() {
        return Err(refused(&located, Kind::Invalid, "it is not a directory"));
    }
    let canonical = fs::canonicalize(&located)
        .map_err(|error| Error::io("use mountpoint", error).at(&located))?;
    if canonical != located {
        check_not_ours(&canonical, &mounts)?;
    }
    let mut entries = fs::read_dir(&canonical)
        .map_err(|error| Error::io("use mountpoint", error).at(&canonical))?;
    if entries.next().is_some() {
        return Err(refused(&canonical, Kind::Exists, "it is not empty")
            .hint("a mount would hide what is in it; use an empty directory"));
    }
    Ok(canonical)
}

/// Checks that the directory `path` can be covered by a mount of its own copy, removing a dead mount of ours first; returns its canonical
/// path. It may be missing, its parent may not.
///
/// # Errors
/// `NotFound` without a parent; `Busy` if a living mount of ours lies there; `Unreachable` (a dead mount that is not ours).
pub fn check_in_place(path: &Path) -> Result<PathBuf> {
    let mounts = mountinfo::read()?;
    let located = locate(path, &mounts).map_err(|error| match error.kind() {
        Kind::NotFound => error.hint("make the directory above it first"),
        _ => error,
    })?;
    let in_use = |error: Error| {
        match error.kind() {
        Kind::Exists => error.kinded(Kind::Busy).hint(
            "`lazycopy status` tells how far it is, `lazycopy unmount` ends it; the copy can be gone on with later",
        ),
        _ => error,
    }
    };
    check_not_ours(&located, &mounts).map_err(in_use)?;
    match fs::canonicalize(&located) {
        Ok(canonical) => {
            check_not_ours(&canonical, &mounts).map_err(in_use)?;
            Ok(canonical)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(located),
        Err(error) => Err(unusable(&located, &mounts, error)),
    }
}

/// Refuses a destination that a copy in place covers at this moment: it cannot be reached through its own mount.
///
/// # Errors
/// `Busy`.
pub fn check_not_covered(destination: &Path) -> Result<()> {
    let mounts = mountinfo::read()?;
    let top = mountinfo::top_at(&mounts, destination).filter(|top| top.is_lazycopy());
    let Some(top) = top.filter(|_| !is_dead(destination, &mounts)) else { return Ok(()) };
    Err(Error::new(Kind::Busy, "open destination")
        .at(destination)
        .because(format!("it is covered by a mount of {}", top.source.display()))
        .hint("`lazycopy unmount` it first, or wait until that copy is complete"))
}

/// Refuses a destination that lies below a dead mount of ours: what is seen there says nothing of it.
///
/// # Errors
/// `Busy`.
pub fn check_not_dead(destination: &Path) -> Result<()> {
    if !is_dead(destination, &mountinfo::read()?) {
        return Ok(());
    }
    let dir = destination.display();
    Err(Error::new(Kind::Busy, "open destination")
        .at(destination)
        .because("it is covered by a dead mount: its daemon has ended without unmounting")
        .hint(format!(
            "`lazycopy unmount {dir}` clears it; the `lazycopy clone` that began it goes on with the copy"
        )))
}

fn check_not_ours(path: &Path, mounts: &[MountEntry]) -> Result<()> {
    let Some(top) = mountinfo::top_at(mounts, path).filter(|top| top.is_lazycopy()) else {
        return Ok(());
    };
    if is_dead(path, mounts) {
        clean_stale(path)?;
        return Ok(());
    }
    let why = format!("lazycopy has mounted {} there already", top.source.display());
    Err(refused(path, Kind::Exists, why).hint("`lazycopy unmount` it first"))
}

fn unusable(path: &Path, mounts: &[MountEntry], error: io::Error) -> Error {
    if let Some(top) = mountinfo::top_at(mounts, path)
        && is_disconnected(&error)
    {
        let why = format!("a mount of type {} lies there that nobody serves", top.fs_type);
        return refused(path, Kind::Unreachable, why)
            .hint("it is not ours to remove: unmount it, or use another directory");
    }
    with_mkdir_hint(Error::io("use mountpoint", error).at(path))
}

fn with_mkdir_hint(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => error.hint("make it first: mkdir -p"),
        _ => error,
    }
}

fn refused(path: &Path, kind: Kind, why: impl Into<String>) -> Error {
    Error::new(kind, "use mountpoint").at(path).because(why)
}

/// Refuses every nesting of source, destination and mountpoint, all canonical; `source` is `None` if it is not on this machine.
///
/// # Errors
/// `Invalid`, saying which lies in which.
pub fn check_nesting(source: Option<&Path>, destination: &Path, mountpoint: &Path) -> Result<()> {
    let places = [
        source.map(|path| ("source", path)),
        Some(("destination", destination)),
        Some(("mountpoint", mountpoint)),
    ];
    check_apart(&places, "source, destination and mountpoint must be three separate directories")
}

/// As [`check_nesting`] for a copy in place: `others` are directories that the daemon needs and reaches by their paths.
///
/// # Errors
/// As [`check_nesting`].
pub fn check_nesting_in_place(
    source: Option<&Path>,
    destination: &Path,
    others: &[(&'static str, PathBuf)],
) -> Result<()> {
    let places = [source.map(|path| ("source", path)), Some(("destination", destination))];
    check_apart(&places, "source and destination must be two separate directories")?;
    for (word, path) in others {
        if resolved(path).starts_with(destination) {
            return Err(Error::new(Kind::Invalid, "start")
                .at(path)
                .because(format!("the {word} lies inside {}", destination.display()))
                .hint("the copy covers that directory while it is made; put it elsewhere"));
        }
    }
    Ok(())
}

/// `path` without links in what exists of it.
fn resolved(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(existing), path.strip_prefix(existing)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

fn check_apart(places: &[Option<(&str, &Path)>], hint: &'static str) -> Result<()> {
    for (inner_word, inner) in places.iter().flatten() {
        for (outer_word, outer) in places.iter().flatten() {
            if inner_word == outer_word || !inner.starts_with(outer) {
                continue;
            }
            let why = if inner == outer {
                format!("{inner_word} and {outer_word} are the same directory")
            } else {
                format!("the {inner_word} lies inside the {outer_word} {}", outer.display())
            };
            return Err(Error::new(Kind::Invalid, "start").at(inner).because(why).hint(hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nesting_is_refused_and_named() {
        let check = |source, destination, mountpoint| {
            let path = |text: &'static str| Path::new(text);
            check_nesting(Some(path(source)), path(destination), path(mountpoint))
        };
        assert!(check("/s", "/d", "/m").is_ok());
        assert!(check("/s", "/ss", "/sss").is_ok());
        for (source, destination, mountpoint, said) in [
            ("/s", "/s/d", "/m", "destination lies inside the source /s"),
            ("/d/s", "/d", "/m", "source lies inside the destination /d"),
            ("/s", "/d", "/s/m", "mountpoint lies inside the source /s"),
            ("/s", "/d", "/d/m", "mountpoint lies inside the destination /d"),
            ("/m/s", "/d", "/m", "source lies inside the mountpoint /m"),
            ("/s", "/m/d", "/m", "destination lies inside the mountpoint /m"),
            ("/s", "/d", "/d", "destination and mountpoint are the same directory"),
            ("/s", "/s", "/m", "source and destination are the same directory"),
            ("/", "/d", "/m", "destination lies inside the source /"),
        ] {
            let error = check(source, destination, mountpoint).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(said), "{error}");
        }
        assert!(check_nesting(None, Path::new("/d"), Path::new("/d/m")).is_err());
    }

    #[test]
    fn a_mountpoint_that_cannot_be_used_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let missing = check_mountpoint(&directory.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
        let file = directory.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(check_mountpoint(&file).unwrap_err().kind(), Kind::Invalid);
        let full = check_mountpoint(directory.path()).unwrap_err();
        assert!(full.to_string().contains("not empty"), "{full}");
        let empty = directory.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        assert_eq!(check_mountpoint(&link).unwrap(), fs::canonicalize(&empty).unwrap());
    }

    // H8: looking at our own mountpoint waits for ourselves.
    #[test]
    fn locating_never_looks_at_the_last_component_nor_into_a_mount_of_ours() {
        let directory = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(directory.path()).unwrap();
        std::os::unix::fs::symlink("/nowhere", base.join("link")).unwrap();
        assert_eq!(locate(&base.join("link"), &[]).unwrap(), base.join("link"));
        let line = b"5 1 0:9 / /hung rw - fuse.lazycopy s rw\n";
        let mounts = mountinfo::parse(line);
        let inside = locate(Path::new("/hung/a/../b/c"), &mounts).unwrap();
        assert_eq!(inside, Path::new("/hung/b/c"));
    }
}
