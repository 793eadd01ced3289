//! One version of one regular file.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use crate::core::attributes::{Attributes, Fingerprint, SETTLE_TIME};
use crate::core::claims::Claims;
use crate::core::flight::{Boarded, Flight};
use crate::core::hashes::BlockHashes;
use crate::core::path::RelPath;
use crate::core::phase::{AtomicPhase, Phase};
use crate::core::range::ByteRange;
use crate::engine::chunk_hasher::ChunkHasher;
use crate::engine::on_disk;
use crate::error::{Error, Kind, Result};
use crate::source::Source;
use crate::store::{BackingFile, Destination};
use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// Longest wait for the local disk to make a backing file.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

/// Presence, backing file and phase of one version of one file.
#[derive(Debug)]
pub struct LazyFile {
    /// Its inode number, which names this version alone.
    pub ino: u64,
    /// The name under which it was first seen; it is published there.
    pub path: RelPath,
    /// Attributes of this version when it was first seen.
    pub attributes: Attributes,
    /// What is here and what is on its way.
    pub claims: Arc<Claims>,
    /// Where it stands.
    pub phase: AtomicPhase,
    /// Hash of each block that landed.
    pub hashes: BlockHashes,
    /// Times that its bytes were not those of the source's checksum. Relaxed: only who publishes it counts.
    pub(crate) rejections: AtomicU64,
    /// Handles open on it.
    pub open_handles: AtomicU64,
    /// The catalog may have bytes of it that are not used yet. Release once they are; pairs with Acquire in `needs_restoring`.
    unrestored: AtomicBool,
    /// Runs while that is used.
    pub(crate) restoring: Flight,
    /// Runs while it is verified and published.
    pub publishing: Flight,
    /// Runs while its bytes are verified and placed, or evicted: one at a time.
    pub(super) moving: Flight,
    /// Number of its last use in a cache of limited size. Relaxed: a hint.
    pub(super) last_use: AtomicU64,
    /// Block from which on the next ones are evicted. Relaxed: a hint.
    pub(super) evict_from: AtomicU64,
    backing: ArcSwapOption<BackingFile>,
    making_backing: Flight,
    pub(super) layout: ArcSwapOption<Layout>,
    asking_layout: Flight,
    stale: AtomicBool,
    first_seen: Instant,
    /// Its fingerprint tells it from every later version. Release once it does; pairs with Acquire in `is_settled`.
    settled: AtomicBool,
    /// Bytes were asked for before it was settled: they may be those of an earlier version with the same fingerprint.
    provisional: AtomicBool,
}

/// Where a sparse file holds data. `None` = everywhere.
#[derive(Debug, Default)]
pub struct Layout {
    data: Option<Vec<ByteRange>>,
}

impl LazyFile {
    /// Nothing of it is here.
    pub fn new(ino: u64, path: RelPath, attributes: Attributes) -> Self {
        let layout = if attributes.is_sparse() { None } else { Some(Arc::default()) };
        Self {
            ino,
            path,
            claims: Arc::new(Claims::new(attributes.size)),
            phase: AtomicPhase::new(Phase::Absent),
            hashes: BlockHashes::default(),
            rejections: AtomicU64::new(0),
            open_handles: AtomicU64::new(0),
            unrestored: AtomicBool::new(false),
            restoring: Flight::default(),
            publishing: Flight::default(),
            moving: Flight::default(),
            last_use: AtomicU64::new(0),
            evict_from: AtomicU64::new(0),
            backing: ArcSwapOption::empty(),
            making_backing: Flight::default(),
            layout: ArcSwapOption::new(layout),
            asking_layout: Flight::default(),
            stale: AtomicBool::new(false),
            first_seen: Instant::now(),
            settled: AtomicBool::new(attributes.is_settled),
            provisional: AtomicBool::new(false),
            attributes,
        }
    }

    /// The catalog may have bytes of it: they are used before the first one is asked for.
    #[must_use]
    pub(crate) fn of_an_earlier_life(self) -> Self {
        self.unrestored.store(true, Ordering::Relaxed);
        self
    }

    /// Whether the catalog may have bytes of it that are not used yet.
    pub(crate) fn needs_restoring(&self) -> bool {
        self.unrestored.load(Ordering::Acquire)
    }

    pub(crate) fn set_restored(&self) {
        self.unrestored.store(false, Ordering::Release);
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.attributes.size
    }

    /// Says which version it is.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.attributes.fingerprint
    }

    /// Whether the source has another version now. Acquire; pairs with Release in `mark_stale`.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// The source has another version now; says whether this call found out first.
    pub fn mark_stale(&self) -> bool {
        let first = !self.stale.swap(true, Ordering::AcqRel);
        if first && self.phase.advance(Phase::Stale) {
            // Nobody may read it any more: its part must not fill the disk until the end.
            self.start_over();
        }
        first
    }

    /// The source confirmed this version: settled if it says so, or if the same was first seen long enough ago.
    pub fn confirm(&self, attributes: &Attributes) {
        let same = attributes.fingerprint == *self.fingerprint();
        if same && (attributes.is_settled || self.first_seen.elapsed() >= SETTLE_TIME) {
            self.settled.store(true, Ordering::Release);
        }
    }

    /// Whether its fingerprint tells it from every later version.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// When it may be settled at the latest, seen from now.
    pub fn settles_in(&self) -> Duration {
        SETTLE_TIME.saturating_sub(self.first_seen.elapsed())
    }

    /// Bytes are asked for now; what comes before the version is settled is provisional.
    pub fn note_request(&self) {
        if !self.is_settled() {
            self.provisional.store(true, Ordering::Release);
        }
    }

    /// Whether bytes of it have to be compared with the source again before they are believed.
    pub fn is_provisional(&self) -> bool {
        self.provisional.load(Ordering::Acquire)
    }

    /// The file that holds its bytes, if there is one yet.
    pub fn backing(&self) -> Option<Arc<BackingFile>> {
        self.backing.load_full()
    }

    /// From now on `backing` holds its bytes. Set before the blocks that it vouches for are marked present.
    pub fn set_backing(&self, backing: Option<Arc<BackingFile>>) {
        self.backing.store(backing);
    }

    /// The backing file, made if there is none.
    ///
    /// # Errors
    /// What the destination says; `Timeout` if its disk hangs.
    pub async fn ensure_backing(&self, destination: &Arc<Destination>) -> Result<Arc<BackingFile>> {
        loop {
            if let Some(backing) = self.backing() {
                return Ok(backing);
            }
            match self.making_backing.board() {
                Boarded::Lead(landing) => {
                    if let Some(backing) = self.backing() {
                        return Ok(backing);
                    }
                    let destination = Arc::clone(destination);
                    let size = self.size();
                    let made =
                        on_disk("make backing file", move || destination.create_part(size)).await?;
                    let kept = self.keep_first(made);
                    drop(landing);
                    return Ok(kept);
                }
                Boarded::Join(signal) => {
                    tokio::time::timeout(DISK_DEADLINE, signal).await.map_err(|late| {
                        Error::new(Kind::Timeout, "make backing file").caused_by(late)
                    })?;
                }
            }
        }
    }

    /// `made` becomes the backing file unless there is one meanwhile (an existing file was adopted): its blocks are present, and `made`
    /// would show zeros for them.
    fn keep_first(&self, made: BackingFile) -> Arc<BackingFile> {
        let made = Arc::new(made);
        let none: Option<Arc<BackingFile>> = None;
        let before = self.backing.compare_and_swap(&none, Some(Arc::clone(&made)));
        before.as_ref().map_or(made, Arc::clone)
    }

    /// Takes back everything that is here; what was not published goes from the disk with the last who uses it.
    pub fn start_over(&self) {
        self.claims.clear();
        self.hashes.clear();
        self.set_backing(None);
        // Once more: a fetch that began in between got the old backing file, and must not vouch for blocks of the next one.
        self.claims.clear();
    }

    /// Asks once where a sparse file holds data and marks its holes as present.
    ///
    /// # Errors
    /// `Stale`. If the source cannot say where the holes are, they are fetched like data.
    ///
    /// # Cancel safety
    /// Who gives up leaves the question to the next.
    pub async fn ensure_layout(&self, source: &dyn Source) -> Result<()> {
        while self.layout.load().is_none() {
            match self.asking_layout.board() {
                Boarded::Lead(landing) => {
                    let data = match source.data_ranges(&self.path, self.fingerprint()).await {
                        Ok(data) => data,
                        Err(error) if error.kind() == Kind::Stale => return Err(error),
                        Err(error) => {
                            tracing::debug!(path = %self.path, %error, "holes unknown");
                            None
                        }
                    };
                    if let Some(data) = &data {
                        for hole in holes(data, self.size()) {
                            self.claims.mark_present(hole);
                        }
                    }
                    self.layout.store(Some(Arc::new(Layout { data })));
                    drop(landing);
                }
                Boarded::Join(signal) => signal.await,
            }
        }
        Ok(())
    }

    /// The first offset at or after `offset` that holds data (`true`) or is a hole (`false`); the file's end is a hole.
    /// An unfetched range is data. `None` = past the end, or no more data.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if offset >= self.size() {
            return None;
        }
        let layout = self.layout.load_full();
        let whole = [ByteRange::new(0, self.size())];
        let ranges = layout.as_deref().and_then(|layout| layout.data.as_deref()).unwrap_or(&whole);
        let next = ranges.iter().find(|range| range.end > offset);
        match (data, next) {
            (true, range) => range.map(|range| range.start.max(offset)),
            (false, Some(range)) if range.start <= offset => Some(range.end.min(self.size())),
            (false, _) => Some(offset),
        }
    }

    /// Writes `pieces`, which follow one another from `offset` on, and hashes them. Blocking. Bytes that lie in a hole of the source
    /// are not written: they stay a hole.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(
        &self,
        backing: &BackingFile,
        mut offset: u64,
        pieces: &[Bytes],
        hasher: &mut ChunkHasher,
    ) -> Result<()> {
        let layout = self.layout.load_full();
        let data = layout.as_deref().and_then(|layout| layout.data.as_deref());
        if data.is_none() {
            let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            backing.write_slices_at(offset, &mut slices)?;
        }
        for piece in pieces {
            let range = ByteRange::at(offset, piece.len() as u64);
            if let Some(data) = data {
                let first = data.partition_point(|run| run.end <= range.start);
                for run in data[first..].iter().take_while(|run| run.start < range.end) {
                    let part = run.intersect(range);
                    backing.write_at(part.start, &piece[within(part, range.start)])?;
                }
            }
            hasher.update(piece, &self.hashes);
            offset = range.end;
        }
        Ok(())
    }
}

fn within(part: ByteRange, base: u64) -> Range<usize> {
    let index = |offset: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
    index(part.start)..index(part.end)
}

/// What lies between the ranges of `data` in a file of `size` bytes.
pub(super) fn holes(data: &[ByteRange], size: u64) -> Vec<ByteRange> {
    let starts = std::iter::once(0).chain(data.iter().map(|run| run.end));
    let ends = data.iter().map(|run| run.start).chain(std::iter::once(size));
    starts
        .zip(ends)
        .map(|(start, end)| ByteRange::new(start, end))
        .filter(|hole| !hole.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::attributes::{EntryKind, Validator};
    use crate::store::DestinationOptions;

    fn empty_file(size: u64) -> LazyFile {
        let attributes =
            Attributes::bare(EntryKind::File, Fingerprint { size, validator: Validator::SizeOnly });
        LazyFile::new(2, RelPath::root(), attributes)
    }

    // A read that makes a part while an existing file is adopted: the part shows zeros where the adopted file has the bytes.
    #[test]
    fn a_part_made_late_never_takes_the_place_of_an_adopted_file() {
        let directory = tempfile::tempdir().unwrap();
        let destination =
            Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        let file = empty_file(10);
        let adopted = Arc::new(destination.create_part(10).unwrap());
        file.set_backing(Some(Arc::clone(&adopted)));
        let kept = file.keep_first(destination.create_part(10).unwrap());
        assert!(Arc::ptr_eq(&kept, &adopted));
        assert!(Arc::ptr_eq(&file.backing().unwrap(), &adopted));
        file.start_over();
        let made = file.keep_first(destination.create_part(10).unwrap());
        assert!(Arc::ptr_eq(&file.backing().unwrap(), &made));
    }
}
