//! Good blocks of a file that has bad ones, in a new part: what is still what was proven is copied, the rest is left to be fetched.
//! The whole is published over the old file like any other version; nothing is ever written into a published file.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, fgetxattr, flistxattr};
use rustix::io::Errno;

use crate::core::attributes::{Attributes, EntryKind, Ownership, is_copyable_xattr};
use crate::core::path::RelPath;
use crate::core::range::{block_count, block_range};
use crate::error::{Kind, Result};

use super::backing::remove_part;
use super::catalog::EntryRecord;
use super::metadata::modified_of;
use super::publish::Replace;
use super::root::sync_directory;
use super::verify::{BLOCK_BYTES, DataCursor, hash_block};
use super::{BackingFile, Destination, Identity, Metadata};

/// The kernel's limit of a name list and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX` in linux/limits.h).
const XATTR_BYTES: usize = 65_536;

impl Destination {
    /// Makes a part for the version of `record` and copies into it every block of `old` that is still what the hash tree says. Holes stay
    /// holes. Answers the runs of blocks that are not in it, in rising order.
    ///
    /// # Errors
    /// As writes to a part. What cannot be read of `old` is missing, no error.
    pub fn salvage(
        &self,
        record: &EntryRecord,
        old: Option<&BackingFile>,
    ) -> Result<(BackingFile, Vec<Range<u64>>)> {
        let size = record.version.fingerprint.size;
        let part = self.create_part(size)?;
        let mut missing: Vec<Range<u64>> = Vec::new();
        let mut buffer = vec![0; BLOCK_BYTES];
        let mut data = DataCursor::default();
        for index in 0..block_count(size) {
            let range = block_range(index, size);
            let bytes = &mut buffer[..usize::try_from(range.len()).unwrap_or(BLOCK_BYTES)];
            let hash = self.disk.catalog.hashes(record, index..index + 1)?.first().copied();
            let is_good = |old: &BackingFile| {
                old.read_at(range.start, bytes).is_ok_and(|read| read == bytes.len())
                    && hash.is_some()
                    && hash_block(index, size, bytes) == hash
            };
            if old.is_some_and(is_good) {
                let descriptor = old.map(BackingFile::descriptor).transpose()?;
                let has_data = descriptor.map(|fd| data.has_data((*fd).as_fd(), range));
                if has_data != Some(Ok(false)) {
                    part.write_at(range.start, &buffer[..bytes_of(range.len())])?;
                }
                continue;
            }
            match missing.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => missing.push(index..index + 1),
            }
        }
        Ok((part, missing))
    }

    /// Owner, mode and extended attributes of `file` as they are in DIR, and the time of modification that `record` placed it with.
    ///
    /// # Errors
    /// As the system calls.
    pub fn metadata_of(&self, record: &EntryRecord, file: &BackingFile) -> Result<Metadata> {
        let descriptor = file.descriptor()?;
        let failed = |errno| file.error("look at metadata of", errno);
        let stat = rustix::fs::fstat(&*descriptor).map_err(failed)?;
        let modified = record.placed().map_or_else(|| modified_of(&stat), |then| then.modified);
        let attributes = Attributes {
            mode: Some(stat.st_mode & 0o7777),
            ownership: Some(Ownership { uid: stat.st_uid, gid: stat.st_gid }),
            modified: Some(modified),
            checksum: record.checksum.clone(),
            ..Attributes::bare(EntryKind::File, record.version.fingerprint.clone())
        };
        let xattrs = xattrs_of((*descriptor).as_fd()).map_err(failed)?;
        Ok(Metadata { attributes, xattrs })
    }

    /// Names in DIR that should be hard links of `first` and are the inode `inode`.
    ///
    /// # Errors
    /// What the catalog says.
    pub fn links_to(&self, first: &RelPath, inode: Identity) -> Result<Vec<RelPath>> {
        let mut names = Vec::new();
        self.disk.catalog.others(|other| {
            if other.link_of.as_ref() == Some(first)
                && self.existing(&other.path)?.is_some_and(|found| found.identity == inode)
            {
                names.push(other.path);
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// Makes `name`, which is the inode `old`, a hard link of the published file `first`, durably. Anything else of that name stays.
    ///
    /// # Errors
    /// `Exists` if it is another inode; `NotSupported` without hard links; else as linkat(2).
    pub fn relink(&self, first: &RelPath, name: &RelPath, old: Identity) -> Result<()> {
        let disk = &*self.disk;
        let failed = |errno| disk.root.error("link again", name, errno);
        let from = disk.root.parent_of(first)?;
        let to = disk.ensure_parent(name)?;
        let part = disk.part_name(disk.ids.next());
        let parts = disk.state.parts();
        let linked = rustix::fs::linkat(&from, first.name(), parts, &part, AtFlags::empty());
        linked.map_err(|errno| match errno {
            Errno::PERM if !disk.abilities.hard_links => failed(errno).kinded(Kind::NotSupported),
            _ => failed(errno),
        })?;
        let new = rustix::fs::statat(parts, &part, AtFlags::SYMLINK_NOFOLLOW).map_err(failed);
        new.and_then(|new| {
            disk.place(&part, Identity::of(&new), to.as_fd(), name, Replace::Only(old))
        })
        .inspect_err(|_| remove_part(disk, &part))?;
        sync_directory(to.as_fd()).map_err(failed)
    }
}

fn bytes_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES)
}

/// All that a copy can have.
fn xattrs_of(fd: impl AsFd) -> Result<Vec<(OsString, Vec<u8>)>, Errno> {
    let mut names = vec![0u8; XATTR_BYTES];
    let len = match flistxattr(&fd, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        result => result?,
    };
    let mut value = vec![0u8; XATTR_BYTES];
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| is_copyable_xattr(name)) {
        match fgetxattr(&fd, name, &mut value[..]) {
            Ok(len) => found.push((OsStr::from_bytes(name).to_owned(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}
