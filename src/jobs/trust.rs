//! A jobs file names programs that are run: nobody else may be able to write it, nor to put another in its place.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Kind, Result};

/// Longer than any file that a person wrote.
const BYTES_MAX: u64 = 4 << 20;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A file that only root and this user can have written.
#[derive(Debug)]
pub(super) struct Trusted {
    /// Without links.
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Reads `path`, which may be a link; what is checked is what is read.
///
/// # Errors
/// `Denied` if somebody else can write it or change a directory above it; `Invalid` if it is not a text.
pub(super) fn read(path: &Path) -> Result<Trusted> {
    let failed = |error| Error::io("read jobs file", error).at(path);
    let real = std::fs::canonicalize(path).map_err(failed)?;
    // A pipe that nobody writes to would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(&real, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| failed(errno.into()))?);
    let metadata = file.metadata().map_err(failed)?;
    let invalid = |why: &str| Error::new(Kind::Invalid, "read jobs file").at(path).because(why);
    if !metadata.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    check(&real, metadata.uid(), metadata.mode())?;
    for above in real.ancestors().skip(1) {
        let metadata = std::fs::symlink_metadata(above).map_err(failed)?;
        // Others may add names to a sticky directory, but not take away or replace ours.
        let mode = match metadata.mode() & STICKY {
            0 => metadata.mode(),
            _ => metadata.mode() & !WRITABLE_BY_OTHERS,
        };
        check(above, metadata.uid(), mode)?;
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(invalid("it is larger than 4 MiB"));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|error| invalid("it is not UTF-8").caused_by(error))?;
    Ok(Trusted { path: real, text })
}

fn check(path: &Path, uid: u32, mode: u32) -> Result<()> {
    let us = rustix::process::geteuid().as_raw();
    let refused = |why: String, hint: String| {
        Err(Error::new(Kind::Denied, "trust jobs file").at(path).because(why).hint(hint))
    };
    if uid != 0 && uid != us {
        return refused(
            format!("it belongs to another user (uid {uid}), who could have any program run"),
            "it and all directories above it must belong to root or to you".to_owned(),
        );
    }
    if mode & WRITABLE_BY_OTHERS != 0 {
        return refused(
            format!("others can write to it (mode {:03o})", mode & 0o777),
            format!("chmod go-w {}", path.display()),
        );
    }
    Ok(())
}
