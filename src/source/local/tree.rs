//! A local source for who reads all of it from threads of his own: blocking calls on directories that stay open, so that no path is
//! walked and no task is begun for a file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Dir, SeekFrom, fgetxattr, flistxattr, readlinkat, seek};
use rustix::io::{Errno, pread, retry_on_intr};

use super::attributes::of_file_type;
use super::root::{Root, stat_entry, stat_open};
use super::xattrs::{MAX_BYTES, read_handle};
use crate::core::attributes::{Attributes, EntryKind, is_copyable_xattr};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// A local source, read by threads.
///
/// # Concurrency
/// Any thread may call anything.
#[derive(Debug, Clone)]
pub struct LocalTree {
    root: Arc<Root>,
}

/// One open directory of it.
#[derive(Debug)]
pub struct LocalDirectory {
    root: Arc<Root>,
    fd: OwnedFd,
    path: RelPath,
}

/// One name in a directory.
#[derive(Debug)]
pub struct LocalEntry {
    /// The name.
    pub name: OsString,
    /// What has it, and its inode number; or why that cannot be told.
    pub found: Result<(Attributes, u64)>,
    /// What the listing says that it is.
    pub kind: EntryKind,
}

/// All names of a directory.
#[derive(Debug, Default)]
pub struct LocalListing {
    /// In the order of their bytes.
    pub entries: Vec<LocalEntry>,
    /// Names that cannot be used, each logged once.
    pub refused: u64,
}

impl LocalTree {
    pub(super) fn new(root: Arc<Root>) -> Self {
        Self { root }
    }

    /// Opens a directory; `None` if it is a mount point that is left out.
    ///
    /// # Errors
    /// `NotFound`, `Denied`; `Invalid` if it is none.
    pub fn open_directory(&self, path: &RelPath) -> Result<Option<LocalDirectory>> {
        let opened = self.root.open_directory(path).map_err(|error| error.at(path.as_path()))?;
        let root = &self.root;
        Ok(opened.map(|fd| LocalDirectory { root: Arc::clone(root), fd, path: path.clone() }))
    }
}

impl LocalDirectory {
    /// Where it is.
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// Its own attributes.
    ///
    /// # Errors
    /// `Io`.
    pub fn attributes(&self) -> Result<Attributes> {
        stat_open(self.fd.as_fd()).map_err(|error| error.at(self.path.as_path()))
    }

    /// Lists all of it. A name that vanishes meanwhile is left out.
    ///
    /// # Errors
    /// `Io`: then nothing is known to be missing.
    pub fn list(&self) -> Result<LocalListing> {
        let failed = |errno| Error::io("list directory", errno).at(self.path.as_path());
        let mut listing = LocalListing::default();
        for item in Dir::read_from(&self.fd).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = OsStr::from_bytes(item.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if let Err(refusal) = RelPath::check_name(name) {
                tracing::warn!(directory = %self.path, err = %refusal, "name refused");
                listing.refused += 1;
                continue;
            }
            let kind = of_file_type(item.file_type());
            listing.entries.push(LocalEntry {
                name: name.to_owned(),
                found: Err(Error::new(Kind::NotFound, "stat")),
                kind,
            });
        }
        // In the order of the catalog; and inodes that were made together mostly lie together.
        listing.entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        for entry in &mut listing.entries {
            entry.found =
                stat_entry(self.fd.as_fd(), &entry.name).map_err(|e| self.at(e, &entry.name));
        }
        let is_gone =
            |entry: &LocalEntry| matches!(&entry.found, Err(e) if e.kind() == Kind::NotFound);
        listing.entries.retain(|entry| !is_gone(entry));
        Ok(listing)
    }

    /// What has this name now, and its inode number.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn look_at(&self, name: &OsStr) -> Result<(Attributes, u64)> {
        stat_entry(self.fd.as_fd(), name).map_err(|error| self.at(error, name))
    }

    /// Opens a regular file. Nothing else is opened, whatever takes its place meanwhile.
    ///
    /// # Errors
    /// `NotFound`, `Denied`; `Stale` if it is no regular file any more.
    pub fn open_file(&self, name: &OsStr) -> Result<LocalFile> {
        let opened = self.root.open_file_in(self.fd.as_fd(), name);
        opened.map(|fd| LocalFile { fd }).map_err(|error| self.at(error, name))
    }

    /// Where a symlink leads, byte for byte.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if it is none.
    pub fn readlink(&self, name: &OsStr) -> Result<OsString> {
        let target = readlinkat(&self.fd, name, Vec::new())
            .map_err(|errno| self.at(Error::io("read link", errno), name))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Extended attributes of an entry that is not opened.
    ///
    /// # Errors
    /// `NotFound`; `Io`.
    pub fn xattrs_of(&self, name: &OsStr) -> Result<Vec<(OsString, Vec<u8>)>> {
        let handle = self.root.open_handle_in(self.fd.as_fd(), name);
        handle.and_then(|handle| read_handle(&handle)).map_err(|error| self.at(error, name))
    }

    /// Its own extended attributes.
    ///
    /// # Errors
    /// `Io`.
    pub fn xattrs(&self) -> Result<Vec<(OsString, Vec<u8>)>> {
        read_open(self.fd.as_fd()).map_err(|error| error.at(self.path.as_path()))
    }

    fn at(&self, error: Error, name: &OsStr) -> Error {
        error.at(self.path.as_path().join(name))
    }
}

/// An open regular file of the source.
#[derive(Debug)]
pub struct LocalFile {
    fd: OwnedFd,
}

impl LocalFile {
    /// Its attributes now.
    ///
    /// # Errors
    /// `Io`.
    pub fn attributes(&self) -> Result<Attributes> {
        stat_open(self.fd.as_fd())
    }

    /// For cloning it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads at `offset` until `target` is full or the file ends; returns the number of bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while len < target.len() {
            let at = offset + u64::try_from(len).unwrap_or(0);
            let read = retry_on_intr(|| pread(&self.fd, &mut target[len..], at));
            match read.map_err(|errno| Error::io("read file", errno))? {
                0 => break,
                read => len += read,
            }
        }
        Ok(len)
    }

    /// The next data at or after `offset`: everything before its start is a hole. `None` behind the last data.
    ///
    /// # Errors
    /// `Io`.
    pub fn next_data(&self, offset: u64) -> Result<Option<ByteRange>> {
        let failed = |errno| Error::io("find holes", errno);
        match seek(&self.fd, SeekFrom::Data(offset)) {
            Ok(start) => {
                let end = seek(&self.fd, SeekFrom::Hole(start)).map_err(failed)?;
                Ok(Some(ByteRange::new(start, end)))
            }
            Err(Errno::NXIO) => Ok(None),
            // It cannot tell: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(ByteRange::new(offset, u64::MAX))),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Extended attributes that a copy can have.
    ///
    /// # Errors
    /// `Io`.
    pub fn xattrs(&self) -> Result<Vec<(OsString, Vec<u8>)>> {
        read_open(self.fd.as_fd())
    }
}

/// Extended attributes of an open file: one call where there are none.
fn read_open(fd: BorrowedFd<'_>) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut few = [0; 1024];
    let names = match flistxattr(fd, &mut few[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(len) => few[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut names = Vec::with_capacity(MAX_BYTES);
            flistxattr(fd, spare_capacity(&mut names))
                .map_err(|errno| Error::io("list extended attributes", errno))?;
            names
        }
        Err(errno) => return Err(Error::io("list extended attributes", errno)),
    };
    let mut attributes = Vec::new();
    let mut value = vec![0; MAX_BYTES];
    for name in names.split(|byte| *byte == 0).filter(|name| is_copyable_xattr(name)) {
        match fgetxattr(fd, name, &mut value[..]) {
            Ok(len) => attributes.push((OsStr::from_bytes(name).to_owned(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(Error::io("read extended attribute", errno)),
        }
    }
    Ok(attributes)
}
