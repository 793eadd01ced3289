//! One entry brought over: its bytes read once, written, read back and compared; then its metadata.
//!
//! The proof is `transfer`: what the destination gives back equals what the source gave, and the source had the same fingerprint before
//! the first byte and after the last. It comes from the page cache, unless durability is paranoid: then from the disk. Where extents can
//! be cloned nothing is written, and both sides are read all the same. copy_file_range(2) would not save the reading either, and without
//! cloning the kernel copies just as we do.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_range};
use crate::engine::bulk::land::Landed;
use crate::engine::bulk::plan::{Batch, FileJob, Place};
use crate::engine::bulk::{Bulk, send};
use crate::engine::stats::Counter;
use crate::error::{Error, Kind, Result};
use crate::source::local::tree::{LocalDirectory, LocalFile};
use crate::store::bulk::{Content, Finished, Ready, WholePart};
use crate::store::catalog::Version;
use crate::store::verify::{BlockHash, hash_block};
use crate::store::{Durability, FileHash, Metadata};
use crate::sync::Ordering;

const BLOCK_BYTES: usize = 128 << 10;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK_SIZE);
/// What is read at once.
const BUFFER: usize = 1 << 20;
/// Files from here on, unless they can be cloned, are brought by the engine: it goes on where an earlier life was cut short, and several
/// chunks of one file come at once.
const RESUMED_MIN: u64 = 1 << 30;
/// Files below this are not worth the attempt to clone.
const CLONE_MIN: u64 = 64 << 10;

/// One thread that carries.
pub(super) struct Carrier<'a> {
    bulk: &'a Bulk,
    /// What the source gave.
    given: Vec<u8>,
    /// What the destination gives back.
    back: Vec<u8>,
}

/// What became of one entry.
enum Carried {
    Ready(Box<Ready>),
    /// Not now: it changed a moment ago, or there is no room.
    Again,
    /// It cannot be made here, which is counted.
    Lost,
    /// So large that it is left to the engine.
    Left,
}

/// What became of the bytes of one file.
enum Brought {
    Whole(Finished, FileHash),
    /// The source changed meanwhile.
    Changed,
    Left,
}

/// Bytes of one file that are here before it is published: a large one moves the bar. Taken back if nothing becomes of it.
struct Counted<'a> {
    at: &'a Counter,
    bytes: u64,
}

impl Counted<'_> {
    fn add(&mut self, bytes: u64) {
        self.at.add(bytes);
        self.bytes += bytes;
    }

    /// Whoever publishes the file goes on with the count.
    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.at.sub(self.bytes);
    }
}

impl<'a> Carrier<'a> {
    pub(super) fn new(bulk: &'a Bulk) -> Self {
        Self { bulk, given: vec![0; BUFFER], back: vec![0; BUFFER] }
    }

    /// Carries until nobody sends any more.
    pub(super) fn run(&mut self, batches: &Receiver<Batch>, landed: &Sender<Landed>) {
        for batch in batches {
            if self.bulk.is_over() {
                continue; // the others must not wait for room in the channel
            }
            let directory = match &batch.directory {
                Place::Open(directory) => Ok(Some(Arc::clone(directory))),
                Place::Path(path) => {
                    self.bulk.tree.open_directory(path).map(|opened| opened.map(Arc::new))
                }
            };
            match directory {
                Ok(Some(directory)) => self.carry_batch(&directory, batch, landed),
                Ok(None) => {}
                Err(error) => self.bulk.failed(batch.directory.path(), &error),
            }
        }
    }

    fn carry_batch(&mut self, directory: &LocalDirectory, batch: Batch, to: &Sender<Landed>) {
        let mut landed = Landed::default();
        let mut again = Vec::new();
        for file in batch.files {
            if self.bulk.is_over() {
                break;
            }
            if self.bulk.is_held() {
                // What is ready does not wait with us.
                send(to, std::mem::take(&mut landed));
                self.bulk.wait_until_allowed();
            }
            let path = directory.path().child(&file.name);
            let carried = path.map(|path| (self.carry(directory, &path, &file), path));
            match carried {
                Ok((Ok(Carried::Ready(ready)), _)) => landed.ready.push(*ready),
                Ok((Ok(Carried::Again), _)) => again.push(file),
                Ok((Ok(Carried::Left), path)) => landed.left.push(path),
                Ok((Ok(Carried::Lost), _)) => self.bulk.engine.stats.metadata_lost.increment(),
                Ok((Err(error), _)) if is_no_room(&error) => {
                    self.bulk.engine.room.ran_out(&error);
                    again.push(file);
                }
                // It was cut short, which is no fault of the file.
                Ok((Err(_), _)) if self.bulk.is_over() => {}
                Ok((Err(error), path)) => self.bulk.failed(&path, &error),
                Err(error) => self.bulk.failed(directory.path(), &error),
            }
        }
        if !again.is_empty() {
            let place = Place::Path(directory.path().clone());
            landed.again.push(Batch { directory: place, ino: batch.ino, files: again });
        }
        send(to, landed);
    }

    fn carry(
        &mut self,
        directory: &LocalDirectory,
        path: &RelPath,
        job: &FileJob,
    ) -> Result<Carried> {
        if job.attributes.kind != EntryKind::File {
            return self.make(directory, path, job);
        }
        if !job.attributes.is_settled {
            return Ok(Carried::Again);
        }
        let file = directory.open_file(&job.name).map_err(|error| error.at(path.as_path()))?;
        let bulk = self.bulk;
        let mut counted = Counted { at: &bulk.engine.stats.carried_bytes, bytes: 0 };
        let carried = self.carry_file(&file, path, job, &mut counted);
        match carried {
            Ok(Brought::Whole(part, hash)) => {
                counted.keep();
                let fingerprint = job.attributes.fingerprint.clone();
                let version = Version { ino: job.ino, fingerprint, is_settled: true };
                let origin = Some(job.origin);
                let content = Content::File { part, version, hash, origin };
                let (path, replace) = (path.clone(), job.replace);
                Ok(Carried::Ready(Box::new(Ready { path, content, replace })))
            }
            Ok(Brought::Changed) => Ok(Carried::Again),
            Ok(Brought::Left) => Ok(Carried::Left),
            Err(error) => Err(error.at(path.as_path())),
        }
    }

    fn carry_file(
        &mut self,
        file: &LocalFile,
        path: &RelPath,
        job: &FileJob,
        counted: &mut Counted<'_>,
    ) -> Result<Brought> {
        let size = job.attributes.size;
        let destination = &self.bulk.engine.destination;
        let part = destination.begin_whole().map_err(Error::of_destination)?;
        let is_clone = size >= CLONE_MIN && self.clone(file, &part);
        if size >= RESUMED_MIN && !is_clone {
            return Ok(Brought::Left);
        }
        let Some(blocks) = self.bring(file, &part, job, is_clone, counted)? else {
            return Ok(Brought::Changed);
        };
        // After the last byte: a writer that came meanwhile is noticed here.
        if file.attributes()?.fingerprint != job.attributes.fingerprint {
            return Ok(Brought::Changed);
        }
        let hash = FileHash::of_blocks(blocks, size)
            .ok_or_else(|| Error::new(Kind::Corrupt, "hash file"))?;
        if destination.options().durability == Durability::Paranoid {
            part.leave_cache().map_err(Error::of_destination)?;
            self.compare(&part, &hash, size)?;
        }
        let metadata = Metadata { attributes: job.attributes.clone(), xattrs: file.xattrs()? };
        let finished = part.finish(path, &metadata, size).map_err(Error::of_destination)?;
        Ok(Brought::Whole(finished, hash))
    }

    fn clone(&self, file: &LocalFile, part: &WholePart) -> bool {
        if self.bulk.cannot_clone.load(Ordering::Relaxed) {
            return false;
        }
        let cloned = rustix::fs::ioctl_ficlone(part.fd(), file.fd());
        if let Err(errno) = cloned {
            tracing::debug!(err = %errno, "extents are not cloned between these two");
            self.bulk.cannot_clone.store(true, Ordering::Relaxed);
        }
        cloned.is_ok()
    }

    /// Reads, hashes, writes and compares piece by piece. `None` if the source has fewer bytes than it said.
    fn bring(
        &mut self,
        file: &LocalFile,
        part: &WholePart,
        job: &FileJob,
        is_clone: bool,
        counted: &mut Counted<'_>,
    ) -> Result<Option<Vec<BlockHash>>> {
        let size = job.attributes.size;
        let is_sparse = job.attributes.is_sparse();
        if is_sparse && !is_clone {
            part.set_size(size).map_err(Error::of_destination)?;
        }
        let mut blocks =
            Vec::with_capacity(usize::try_from(size.div_ceil(BLOCK_SIZE)).unwrap_or(0));
        let mut data = Some(ByteRange::new(0, if is_sparse { 0 } else { size }));
        let mut offset = 0;
        while offset < size {
            if self.bulk.is_over() {
                return Err(Error::new(Kind::Busy, "copy file").because("the copy was stopped"));
            }
            let piece = ByteRange::at(offset, BUFFER as u64).clip(size);
            if is_sparse && data.is_some_and(|data| data.end <= offset) {
                data = file.next_data(offset)?;
            }
            let is_hole = data.is_none_or(|data| data.start >= piece.end);
            let len = usize::try_from(piece.len()).unwrap_or(BUFFER);
            if is_hole {
                self.given[..len].fill(0);
            } else {
                self.bulk.pace(piece.len());
                if file.read_at(offset, &mut self.given[..len])? < len {
                    return Ok(None);
                }
            }
            self.bulk.engine.stats.bytes_fetched.add(if is_hole { 0 } else { piece.len() });
            if !is_hole && !is_clone {
                self.write(part, offset, len, is_sparse)?;
            }
            self.read_back(part, offset, len)?;
            blocks.extend(piece.blocks().enumerate().filter_map(|(at, index)| {
                let start = at * BLOCK_BYTES;
                let end = start + usize::try_from(block_range(index, size).len()).ok()?;
                hash_block(index, size, &self.given[start..end])
            }));
            counted.add(piece.len());
            offset = piece.end;
        }
        Ok(Some(blocks))
    }

    /// Of a sparse file nothing but its data is written, so that the holes stay.
    fn write(&self, part: &WholePart, offset: u64, len: usize, is_sparse: bool) -> Result<()> {
        let given = &self.given[..len];
        if !is_sparse {
            return part.write_at(offset, given).map_err(Error::of_destination);
        }
        const PAGE: usize = 4096;
        let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
        let mut at = 0;
        for run in given.chunks(PAGE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b))
        {
            let bytes: usize = run.iter().map(|page| page.len()).sum();
            if !is_zero(run[0]) {
                part.write_at(offset + at as u64, &given[at..at + bytes])
                    .map_err(Error::of_destination)?;
            }
            at += bytes;
        }
        Ok(())
    }

    /// The destination has what the source gave.
    fn read_back(&mut self, part: &WholePart, offset: u64, len: usize) -> Result<()> {
        let read = part.read_back(offset, &mut self.back[..len]).map_err(Error::of_destination)?;
        if self.back[..read] == self.given[..len] {
            return Ok(());
        }
        let same = self.back.iter().zip(&self.given[..len]).take_while(|(a, b)| a == b).count();
        Err(differs(offset + same as u64))
    }

    /// The whole of it again, from the disk.
    fn compare(&mut self, part: &WholePart, hash: &FileHash, size: u64) -> Result<()> {
        for (index, expected) in (0u64..).zip(&hash.blocks) {
            let range = block_range(index, size);
            let len = usize::try_from(range.len()).unwrap_or(BUFFER);
            let back = &mut self.back[..len];
            let read = part.read_back(range.start, back).map_err(Error::of_destination)?;
            if read < len || hash_block(index, size, back).as_ref() != Some(expected) {
                return Err(differs(range.start));
            }
        }
        Ok(())
    }

    fn make(&self, directory: &LocalDirectory, path: &RelPath, job: &FileJob) -> Result<Carried> {
        let (attributes, kind) = (job.attributes.clone(), job.attributes.kind);
        let target = match kind {
            EntryKind::Symlink => Some(directory.readlink(&job.name)?),
            _ => None,
        };
        let metadata = Metadata { attributes, xattrs: directory.xattrs_of(&job.name)? };
        let made = self.bulk.engine.destination.make_special(path, target.as_deref(), &metadata);
        Ok(match made.map_err(Error::of_destination)? {
            None => Carried::Lost,
            Some(part) => Carried::Ready(Box::new(Ready {
                path: path.clone(),
                content: Content::Special(part, kind),
                replace: job.replace,
            })),
        })
    }
}

fn differs(offset: u64) -> Error {
    Error::new(Kind::Corrupt, "verify file")
        .because(format!("byte {offset} on the destination's disk is not the source's"))
        .of_destination()
}

fn is_no_room(error: &Error) -> bool {
    error.kind() == Kind::NoSpace && error.is_of_destination()
}
