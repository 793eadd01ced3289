//! Read-only snapshots of the btrfs subvolume that a source lies in.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Entry, Made, Order, program};
use crate::error::{Error, Kind, Result};

/// statfs(2)
const BTRFS_SUPER_MAGIC: u32 = 0x9123_683E;
/// Inode number of the root of every subvolume (btrfs-subvolume(8)).
const SUBVOLUME_INO: u64 = 256;
const PROGRAM: &str = "btrfs";

/// Makes it in the root of the subvolume.
pub(super) async fn make(name: String, order: &Order<'_>) -> Result<Made> {
    let op = "make snapshot of";
    let source = std::fs::canonicalize(order.source)
        .map_err(|error| Error::io(op, error).at(order.source))?;
    let unusable = |why: &str| {
        Error::new(Kind::NotSupported, op)
            .at(&source)
            .because(why)
            .hint("snapshot-required = false copies the source as it is")
    };
    let system = rustix::fs::statfs(&source).map_err(|errno| Error::io(op, errno).at(&source))?;
    if u32::try_from(system.f_type) != Ok(BTRFS_SUPER_MAGIC) {
        return Err(unusable("it does not lie on btrfs"));
    }
    let subvolume = subvolume_of(&source)?.ok_or_else(|| unusable("no subvolume holds it"))?;
    let path = subvolume.join(&name);
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| unusable("its path is not UTF-8"))
    };
    let argv = [PROGRAM, "subvolume", "snapshot", "-r"].map(str::to_owned).to_vec();
    let argv = [argv, vec![text(&subvolume)?, text(&path)?]].concat();
    let entry = Entry::of_btrfs(order.state, name, &path);
    entry.write()?;
    if let Err(error) = program(&argv, order.log).await {
        if let Err(left) = entry.remove(order.log).await {
            tracing::warn!(error = %left, "snapshot is not removed; the next run tries again");
        }
        return Err(error.hint("needs btrfs-progs and the right to write to the subvolume"));
    }
    let below = source.strip_prefix(&subvolume).unwrap_or(Path::new(""));
    Ok(Made { read_from: path.join(below), entry })
}

/// Removes it, if it is there and a subvolume.
pub(super) async fn remove(path: &Path, log: &std::fs::File) -> Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("remove snapshot", error).at(path)),
    };
    let refused = |why: &str| Error::new(Kind::Invalid, "remove snapshot").at(path).because(why);
    if !found.is_dir() || found.ino() != SUBVOLUME_INO {
        return Err(refused("it is no subvolume"));
    }
    let text = path.to_str().ok_or_else(|| refused("its path is not UTF-8"))?;
    let argv = [PROGRAM, "subvolume", "delete", text].map(str::to_owned);
    program(&argv, log).await.map(|_said| ())
}

/// The nearest directory above, or the place itself, that is the root of a subvolume; each subvolume is a device of its own.
fn subvolume_of(source: &Path) -> Result<Option<PathBuf>> {
    let look = |path: &Path| {
        std::fs::metadata(path).map_err(|error| Error::io("find subvolume of", error).at(path))
    };
    let device = look(source)?.dev();
    for above in source.ancestors() {
        let found = look(above)?;
        if found.dev() != device {
            return Ok(None);
        }
        if found.is_dir() && found.ino() == SUBVOLUME_INO {
            return Ok(Some(above.to_owned()));
        }
    }
    Ok(None)
}
