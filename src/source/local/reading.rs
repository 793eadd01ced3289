//! Bytes and holes of a local file, of one version only.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};

use super::blocking;
use super::root::{Root, stat_open};
use crate::core::attributes::{Attributes, Fingerprint};
use crate::core::path::RelPath;
use crate::core::permits::Permits;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::ByteStream;

/// Bytes per system call and per item of the stream.
const PIECE: u64 = 256 * 1024;

/// Extents beyond which a file's holes are not worth knowing.
const MAX_EXTENTS: usize = 1_000_000;

/// An open file of which one version is being read.
#[derive(Debug)]
struct Version {
    file: OwnedFd,
    expected: Fingerprint,
}

impl Version {
    /// The file's attributes, if it is still this version.
    fn check(&self) -> Result<Attributes> {
        let attributes = stat_open(self.file.as_fd())?;
        if attributes.fingerprint == self.expected {
            Ok(attributes)
        } else {
            Err(Error::new(Kind::Stale, "read file").because("the source file was changed"))
        }
    }

    /// The bytes of `range`, which is no longer than [`PIECE`]: all of them, and all of this version.
    fn read_piece(&self, range: ByteRange) -> Result<Bytes> {
        let len = usize::try_from(range.len())
            .map_err(|error| Error::new(Kind::Invalid, "read file").caused_by(error))?;
        let mut piece = Vec::with_capacity(len);
        while piece.len() < len {
            let offset = range.start + piece.len() as u64;
            match pread(&self.file, spare_capacity(&mut piece), offset) {
                Ok(0) => {
                    self.check()?;
                    return Err(Error::new(Kind::Corrupt, "read file").because(format!(
                        "ends at {offset}, before its size of {}",
                        self.expected.size
                    )));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("read file", error)),
            }
        }
        // The allocator may have given more than asked.
        piece.truncate(len);
        // After the bytes and before anybody sees them: a writer that came meanwhile is noticed here.
        self.check()?;
        Ok(Bytes::from(piece))
    }
}

/// The start of a range, read, and what it takes to go on.
#[derive(Debug)]
pub(super) struct Begun {
    version: Version,
    first: Bytes,
    rest: ByteRange,
}

/// Opens the version `expected` and reads the first piece of `range`: most files and requests have no other. Blocks.
pub(super) fn begin(
    root: &Root,
    path: &RelPath,
    range: ByteRange,
    expected: Fingerprint,
) -> Result<Begun> {
    let version = Version { file: root.open_file(path)?, expected };
    version.check()?;
    let piece = ByteRange::at(range.start, range.len().min(PIECE));
    let first = version.read_piece(piece)?;
    Ok(Begun { version, first, rest: ByteRange::new(piece.end, range.end) })
}

/// Streams what was begun to its end; see [`crate::source::Source::read`].
pub(super) fn stream(calls: Arc<Permits>, path: RelPath, begun: Begun) -> ByteStream {
    let Begun { version, first, rest } = begun;
    let version = Arc::new(version);
    let later = stream::try_unfold(rest, move |rest| {
        let version = Arc::clone(&version);
        let (calls, path) = (Arc::clone(&calls), path.clone());
        async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let piece = ByteRange::at(rest.start, rest.len().min(PIECE));
            let bytes = blocking(&calls, move || version.read_piece(piece))
                .await
                .map_err(|lost| Error::new(Kind::Io, "read file").caused_by(lost))
                .and_then(|read| read)
                .map_err(|error| error.at(path.as_path()))?;
            Ok(Some((bytes, ByteRange::new(piece.end, rest.end))))
        }
    });
    stream::once(async { Ok(first) }).chain(later).boxed()
}

/// The parts of a sparse file that hold data; see [`crate::source::Source::data_ranges`]. Blocks.
pub(super) fn data_ranges(
    root: &Root,
    path: &RelPath,
    expected: &Fingerprint,
) -> Result<Option<Vec<ByteRange>>> {
    let version = Version { file: root.open_file(path)?, expected: expected.clone() };
    if !version.check()?.is_sparse() {
        return Ok(None);
    }
    let ranges = extents(&version.file, expected.size)?;
    version.check()?;
    Ok(ranges)
}

/// Data extents within `size`; `None` if the file system does not tell or there are too many.
fn extents(file: &OwnedFd, size: u64) -> Result<Option<Vec<ByteRange>>> {
    let mut extents = Vec::new();
    let mut offset = 0;
    while offset < size {
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // No data from here to the end (lseek(2)).
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(Error::io("find holes", error)),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // Cut below `start` meanwhile; the caller's second check says so.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(Error::io("find holes", error)),
        };
        extents.push(ByteRange::new(start, end).clip(size));
        if extents.len() > MAX_EXTENTS || end <= offset {
            return Ok(None);
        }
        offset = end;
    }
    Ok(Some(extents))
}
