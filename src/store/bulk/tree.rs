//! Directories, links and deletions of a bulk copy: done at once, and made durable by the next step.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::core::path::RelPath;
use crate::error::{Kind, Result};
use crate::store::catalog::{EntryPhase, EntryRecord};
use crate::store::metadata::{self, Metadata, Target};
use crate::store::recovery::placed_of;
use crate::store::root::{
    UNFINISHED_DIRECTORY, forget_inherited_acls, open_beneath, stat_entry, sync_directory,
};
use crate::store::{Destination, Existing, Identity, MetadataLoss, Replace};

use super::part::Scratch;

/// What became of something that was to be taken out of DIR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, or was gone already.
    Gone,
    /// Somebody changed it since it was copied: it stays.
    Changed,
    /// A directory with something in it.
    NotEmpty,
}

impl Destination {
    /// Makes the directory `path`, mode 0700, unless it is there; says whether it is new. Its parent must be there.
    ///
    /// # Errors
    /// `Exists` if something else has its name; else as mkdir(2).
    pub fn make_directory(&self, path: &RelPath) -> Result<bool> {
        let disk = &self.disk;
        disk.check_path(path)?;
        if path.is_root() {
            return Ok(false);
        }
        let parent = disk.root.parent_of(path)?;
        match rustix::fs::mkdirat(&parent, path.name(), Mode::from_raw_mode(UNFINISHED_DIRECTORY)) {
            Ok(()) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let made = open_beneath(parent.as_fd(), path.name().as_encoded_bytes(), flags)
                    .map_err(|errno| disk.root.error("open directory", path, errno))?;
                forget_inherited_acls(made.as_fd());
                Ok(true)
            }
            Err(Errno::EXIST) => {
                let made = disk.root.directory(path).map_err(|error| match error.kind() {
                    Kind::NotFound => error
                        .kinded(Kind::Exists)
                        .because("something that is no directory has this name"),
                    _ => error,
                })?;
                make_writable(&made)
                    .map_err(|errno| disk.root.error("use directory", path, errno))?;
                Ok(false)
            }
            Err(errno) => Err(disk.root.error("make directory", path, errno)),
        }
    }

    /// As [`Destination::finish_directory`], made durable and recorded by the next step.
    ///
    /// # Errors
    /// As there.
    pub fn finish_directory_later(
        &self,
        path: &RelPath,
        metadata: &Metadata,
    ) -> Result<Vec<MetadataLoss>> {
        let disk = &self.disk;
        disk.check_path(path)?;
        let directory = disk.root.directory(path)?;
        metadata::apply(disk, &Target::Open(directory.as_fd()), path, metadata)
    }

    /// Gives a published file or special entry that is otherwise unchanged the metadata that the source has now; what the source has
    /// taken off goes.
    ///
    /// # Errors
    /// As [`Destination::finish_directory`].
    pub fn renew_metadata(&self, path: &RelPath, metadata: &Metadata) -> Result<Vec<MetadataLoss>> {
        let disk = &self.disk;
        disk.check_path(path)?;
        let handle = disk
            .root
            .open(path, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(|errno| disk.root.error("open", path, errno))?;
        let target = Target::Handle(handle.as_fd());
        metadata::forget_others(&target, &metadata.xattrs)
            .map_err(|errno| disk.root.error("set metadata of", path, errno))?;
        metadata::apply(disk, &target, path, metadata)
    }

    /// Gives the published file `existing` one more name; made durable and recorded by the next step. What `replace` lets go has the name
    /// until the link has it.
    ///
    /// # Errors
    /// As [`Destination::publish_hard_link`].
    pub fn link_later(&self, existing: &RelPath, new: &RelPath, replace: Replace) -> Result<()> {
        let disk = &self.disk;
        disk.check_path(existing)?;
        disk.check_path(new)?;
        let failed = |errno| {
            let error = disk.root.error("make hard link", new, errno);
            match errno {
                Errno::MLINK => error.kinded(Kind::Limit),
                Errno::PERM if !disk.abilities.hard_links => error.kinded(Kind::NotSupported),
                _ => error,
            }
        };
        let (from, to) = (disk.root.parent_of(existing)?, disk.root.parent_of(new)?);
        let link = |to: BorrowedFd<'_>, name: &OsStr| {
            rustix::fs::linkat(&from, existing.name(), to, name, AtFlags::empty()).map_err(failed)
        };
        if replace == Replace::Never {
            return link(to.as_fd(), new.name());
        }
        let (parts, name) = (disk.state.parts(), disk.part_name(disk.ids.next()));
        link(parts, OsStr::new(&name))?;
        let scratch = Scratch { disk: Arc::clone(disk), name, is_placed: false };
        let stat = stat_entry(parts, OsStr::new(&scratch.name)).map_err(failed)?;
        let identity = stat.map(|stat| Identity::of(&stat)).ok_or_else(|| failed(Errno::NOENT))?;
        // Between two names of one inode rename(2) does nothing: then the scratch goes, as after an error.
        disk.place(&scratch.name, identity, to.as_fd(), new, replace)
    }

    /// Takes a published file out of DIR if it is still what was published. Looked at after it has lost its name, so that nobody's change
    /// is lost.
    ///
    /// # Errors
    /// As rename(2) and unlink(2).
    pub fn remove_published(&self, record: &EntryRecord) -> Result<Removed> {
        let (EntryPhase::Published(placed) | EntryPhase::Verified(placed)) = record.phase else {
            return Ok(Removed::Gone);
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        self.remove_if(&record.path, |parts, name| {
            let handle = open_beneath(parts, name.as_bytes(), flags)?;
            let stat = rustix::fs::fstat(&handle)?;
            let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
            Ok(is_file && placed_of(&stat) == placed)
        })
    }

    /// Gives the published file of `record` another name, durably, and forgets it: what it is under that name is to be found out anew.
    ///
    /// # Errors
    /// `Stale` if it is not what was published any more; `Exists` if something has the name; else as rename(2).
    pub fn move_published(&self, record: &EntryRecord, path: &RelPath) -> Result<()> {
        let disk = &self.disk;
        let to = disk.ensure_parent(path)?;
        let from = disk.root.parent_of(&record.path)?;
        disk.move_published(record, &from, &to, path)?;
        for directory in [&to, &from] {
            sync_directory(directory.as_fd())
                .map_err(|errno| disk.root.error("sync directory of", path, errno))?;
        }
        disk.catalog.forget_entry(&record.path)
    }

    /// As [`Destination::remove_published`] for one more name of a file, or a special entry, that is `known`.
    ///
    /// # Errors
    /// As there.
    pub fn remove_other(&self, path: &RelPath, known: &Existing) -> Result<Removed> {
        self.remove_if(path, |parts, name| {
            let stat = stat_entry(parts, name.as_ref())?;
            Ok(stat.is_some_and(|stat| Existing::of(&stat) == *known))
        })
    }

    fn remove_if(
        &self,
        path: &RelPath,
        is_ours: impl FnOnce(BorrowedFd<'_>, &str) -> Result<bool, Errno>,
    ) -> Result<Removed> {
        let disk = &self.disk;
        disk.check_path(path)?;
        let failed = |errno| disk.root.error("delete", path, errno);
        let parent = match disk
            .root
            .open(&path.parent().unwrap_or_else(RelPath::root), OFlags::RDONLY | OFlags::DIRECTORY)
        {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Removed::Gone),
            // A link or another mount in the place of the directory: what lies behind it is not ours, and ours is gone.
            Err(Errno::LOOP | Errno::XDEV) => return Ok(Removed::Gone),
            parent => parent.map_err(failed)?,
        };
        let (parts, scratch) = (disk.state.parts(), disk.part_name(disk.ids.next()));
        match rustix::fs::renameat(&parent, path.name(), parts, scratch.as_str()) {
            Err(Errno::NOENT) => return Ok(Removed::Gone),
            result => result.map_err(failed)?,
        }
        if is_ours(parts, &scratch).map_err(failed)? {
            rustix::fs::unlinkat(parts, scratch.as_str(), AtFlags::empty()).map_err(failed)?;
            return Ok(Removed::Gone);
        }
        let flags = if disk.abilities.rename_no_replace {
            RenameFlags::NOREPLACE
        } else {
            RenameFlags::empty()
        };
        rustix::fs::renameat_with(parts, scratch.as_str(), &parent, path.name(), flags)
            .map_err(failed)?;
        Ok(Removed::Changed)
    }

    /// Takes a directory out of DIR if nothing is in it.
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn remove_directory(&self, path: &RelPath) -> Result<Removed> {
        let disk = &self.disk;
        disk.check_path(path)?;
        let failed = |errno| disk.root.error("delete directory", path, errno);
        let parent = match disk
            .root
            .open(&path.parent().unwrap_or_else(RelPath::root), OFlags::RDONLY | OFlags::DIRECTORY)
        {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Removed::Gone),
            Err(Errno::LOOP | Errno::XDEV) => return Ok(Removed::Gone),
            parent => parent.map_err(failed)?,
        };
        match rustix::fs::unlinkat(&parent, path.name(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(Removed::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Removed::NotEmpty),
            Err(Errno::NOTDIR) => Ok(Removed::Changed),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// What has each of `names` in the directory `path` of DIR now; `None` if there is no such directory.
    ///
    /// # Errors
    /// `Denied`; `Io`.
    pub fn look_at<'a>(
        &self,
        path: &RelPath,
        names: impl Iterator<Item = &'a OsStr>,
    ) -> Result<Option<(Existing, Vec<Option<Existing>>)>> {
        let disk = &self.disk;
        let failed = |errno| disk.root.error("look at", path, errno);
        let directory = match disk.root.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            directory => directory.map_err(failed)?,
        };
        let own = rustix::fs::fstat(&directory).map_err(failed)?;
        let found = names
            .map(|name| Ok(stat_entry(directory.as_fd(), name)?.map(|stat| Existing::of(&stat))))
            .collect::<Result<_, Errno>>();
        Ok(Some((Existing::of(&own), found.map_err(failed)?)))
    }
}

/// A directory that its owner may not write to takes nothing; it gets its mode back when it is finished.
fn make_writable(directory: &impl AsFd) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(directory)?;
    if rustix::process::geteuid().is_root() || stat.st_mode & 0o300 == 0o300 {
        return Ok(());
    }
    rustix::fs::fchmod(directory, Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700))
}
