//! The last step of publishing: the rename that clobbers nothing, and its ways back.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::core::path::RelPath;
use crate::error::{Kind, Result};

use super::destination::Disk;
use super::root::{create_beneath, is_entry};
use super::{Identity, Replace};

impl Disk {
    /// Moves `part`, the inode `identity`, from `parts/` to its final name in `parent`.
    pub(super) fn place(
        &self,
        part: &str,
        identity: Identity,
        parent: BorrowedFd<'_>,
        path: &RelPath,
        replace: Replace,
    ) -> Result<()> {
        let placed = match replace {
            Replace::Only(former) if is_entry(parent, path.name(), former) == Ok(true) => {
                self.replace(part, parent, path.name(), former)
            }
            _ => self.place_new(part, identity, parent, path.name()),
        };
        placed.map_err(|errno| {
            let error = self.root.error("publish", path, errno);
            match errno {
                Errno::EXIST | Errno::ISDIR | Errno::NOTEMPTY | Errno::NOTDIR => {
                    error.kinded(Kind::Exists).because("something else has this name")
                }
                _ => error,
            }
        })
    }

    fn place_new(
        &self,
        part: &str,
        identity: Identity,
        parent: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<(), Errno> {
        let parts = self.state.parts();
        if self.abilities.rename_no_replace {
            return rustix::fs::renameat_with(parts, part, parent, name, RenameFlags::NOREPLACE);
        }
        if self.abilities.hard_links {
            rustix::fs::linkat(parts, part, parent, name, AtFlags::empty())?;
            return rustix::fs::unlinkat(parts, part, AtFlags::empty());
        }
        // Only one can make the placeholder; the rename then replaces nothing but that.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        drop(create_beneath(parent, name.as_bytes(), flags, mode)?);
        rustix::fs::renameat(parts, part, parent, name)?;
        match is_entry(parent, name, identity)? {
            true => Ok(()),
            false => Err(Errno::EXIST),
        }
    }

    /// Puts `part` in the place of the inode `former`. By exchanging, what comes out can be looked at, and put back if it is something else.
    fn replace(
        &self,
        part: &str,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        former: Identity,
    ) -> Result<(), Errno> {
        let parts = self.state.parts();
        if !self.abilities.rename_exchange {
            return rustix::fs::renameat(parts, part, parent, name);
        }
        let exchange =
            || rustix::fs::renameat_with(parts, part, parent, name, RenameFlags::EXCHANGE);
        exchange()?;
        if is_entry(parts, OsStr::new(part), former)? {
            return rustix::fs::unlinkat(parts, part, AtFlags::empty());
        }
        exchange()?;
        Err(Errno::EXIST)
    }

    /// Best effort: the name goes back to `parts/`, whence it is swept.
    pub(super) fn take_back(&self, part: &str, parent: BorrowedFd<'_>, path: &RelPath) {
        let back = rustix::fs::renameat(parent, path.name(), self.state.parts(), part);
        if let Err(errno) = back {
            let error = self.root.error("take back", path, errno);
            tracing::error!(%path, err = %error, "unproven file stays under its final name");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
    use crate::store::{Abilities, Destination, DestinationOptions, Metadata};

    fn metadata() -> Metadata {
        let attributes = Attributes {
            mode: Some(0o644),
            ..Attributes::bare(
                EntryKind::File,
                Fingerprint { size: 0, validator: Validator::SizeOnly },
            )
        };
        Metadata { attributes, xattrs: Vec::new() }
    }

    fn path(name: &str) -> RelPath {
        RelPath::root().child(OsStr::new(name)).unwrap()
    }

    /// A destination that lacks what `lose` takes away.
    fn without(directory: &tempfile::TempDir, lose: impl FnOnce(&mut Abilities)) -> Destination {
        let mut destination =
            Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        lose(&mut Arc::get_mut(&mut destination.disk).unwrap().abilities);
        destination
    }

    fn never_clobbers(directory: &tempfile::TempDir, destination: &Destination) {
        fs::write(directory.path().join("theirs"), "theirs").unwrap();
        let part = destination.create_part(4).unwrap();
        part.write_at(0, b"ours").unwrap();
        let publish =
            |name, replace| destination.publish_file(&part, &path(name), &metadata(), replace);
        assert_eq!(publish("theirs", Replace::Never).unwrap_err().kind(), Kind::Exists);
        publish("new", Replace::Never).unwrap();
        assert_eq!(fs::read(directory.path().join("theirs")).unwrap(), b"theirs");
        assert_eq!(fs::read(directory.path().join("new")).unwrap(), b"ours");
        let parts = directory.path().join(".lazycopy/parts");
        assert_eq!(fs::read_dir(parts).unwrap().count(), 0);
        let next = destination.create_part(0).unwrap();
        let former = Replace::Only(part.identity());
        destination.publish_file(&next, &path("new"), &metadata(), former).unwrap();
        assert_eq!(fs::metadata(directory.path().join("new")).unwrap().len(), 0);
    }

    #[test]
    fn link_and_unlink_never_clobber_either() {
        let directory = tempfile::tempdir().unwrap();
        let destination = without(&directory, |abilities| {
            abilities.rename_no_replace = false;
            abilities.rename_exchange = false;
        });
        never_clobbers(&directory, &destination);
    }

    #[test]
    fn a_placeholder_never_clobbers_either() {
        let directory = tempfile::tempdir().unwrap();
        let destination = without(&directory, |abilities| {
            abilities.rename_no_replace = false;
            abilities.rename_exchange = false;
            abilities.hard_links = false;
        });
        never_clobbers(&directory, &destination);
    }
}
