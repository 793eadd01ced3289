//! DIR and source side by side: names, kinds, lengths, then every byte.

use std::collections::HashSet;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::path::RelPath;
use crate::core::range::{BLOCK_SIZE, ByteRange};
use crate::engine::verify::{Contrast, Event, Verification, Verified};
use crate::engine::{jitter, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, Source};
use crate::store::proof::Proven;
use crate::store::{BackingFile, Existing};

/// Files compared at once.
const AT_ONCE: usize = 4;
/// Bytes of one request: what it asks for is taken from a quota before it comes, and others want some, too.
const REQUEST_BYTES: u64 = 16 << 20;
/// Batches of a listing that wait.
const BATCHES: usize = 4;

/// What came of one name.
enum Compared {
    Equal(u64),
    Differs(Contrast),
    Failed(Error),
}

impl Verification {
    pub(super) async fn compare(self: Arc<Self>) -> Result<Verified> {
        let source = self.source.open().await?;
        let mut verified = Verified::default();
        let mut pending = vec![RelPath::root()];
        while let Some(directory) = pending.pop() {
            match self.compare_directory(&source, &directory, &mut verified).await {
                Ok(below) => pending.extend(below),
                Err(error) if directory.is_root() => return Err(error),
                Err(error) => self.source_failed(&mut verified, directory, error).await,
            }
            if self.events.is_closed() {
                break;
            }
        }
        Ok(verified)
    }

    async fn source_failed(&self, verified: &mut Verified, path: RelPath, error: Error) {
        verified.source_failures += 1;
        self.tell(Event::SourceFailed(path, error)).await;
    }

    /// Compares the names in one directory; answers the directories in it that both have.
    async fn compare_directory(
        &self,
        source: &Arc<dyn Source>,
        directory: &RelPath,
        verified: &mut Verified,
    ) -> Result<Vec<RelPath>> {
        let theirs = list(source, directory).await?;
        let (destination, at) = (Arc::clone(&self.destination), directory.clone());
        let ours = on_disk("list directory", move || destination.list_existing(&at)).await?;
        let names: HashSet<&OsString> = theirs.iter().map(|entry| &entry.name).collect();
        for (name, _) in ours.iter().filter(|(name, _)| !names.contains(name)) {
            self.contrast(verified, directory.child(name)?, Contrast::OnlyHere).await;
        }
        let here = |name: &OsString| {
            ours.iter().find(|(known, _)| known == name).map(|(_, existing)| *existing)
        };
        let mut below = Vec::new();
        let mut others = Vec::new();
        for entry in theirs {
            let path = directory.child(&entry.name)?;
            match here(&entry.name) {
                None => self.contrast(verified, path, Contrast::OnlyAtSource).await,
                Some(existing) if existing.kind != entry.kind => {
                    self.contrast(verified, path, Contrast::OtherKind).await;
                }
                Some(_) if entry.kind == EntryKind::Directory => {
                    verified.proven.others += 1;
                    below.push(path);
                }
                Some(existing) => others.push((path, entry, existing)),
            }
        }
        let mut compared = stream::iter(others)
            .map(|(path, entry, existing)| async move {
                let compared = self.compare_entry(source, &path, entry, existing).await;
                (path, compared)
            })
            .buffered(AT_ONCE);
        while let Some((path, compared)) = compared.next().await {
            match compared {
                Compared::Equal(bytes) => {
                    verified.proven.files += 1;
                    verified.proven.bytes += bytes;
                }
                Compared::Differs(contrast) => self.contrast(verified, path, contrast).await,
                Compared::Failed(error) => self.source_failed(verified, path, error).await,
            }
            self.tell(Event::Progress(Proven { ..verified.proven })).await;
        }
        Ok(below)
    }

    async fn contrast(&self, verified: &mut Verified, path: RelPath, contrast: Contrast) {
        verified.contrasts += 1;
        self.tell(Event::Contrast(path, contrast)).await;
    }

    async fn compare_entry(
        &self,
        source: &Arc<dyn Source>,
        path: &RelPath,
        entry: Entry,
        existing: Existing,
    ) -> Compared {
        let compared = match entry.kind {
            EntryKind::File => self.compare_file(source, path, entry.attributes, existing).await,
            EntryKind::Symlink => self.compare_link(source, path).await,
            _ => Ok(Compared::Equal(0)),
        };
        compared.unwrap_or_else(Compared::Failed)
    }

    async fn compare_link(&self, source: &Arc<dyn Source>, path: &RelPath) -> Result<Compared> {
        let theirs = source.readlink(path).await?;
        let (destination, at) = (Arc::clone(&self.destination), path.clone());
        let ours = on_disk("read link", move || destination.existing_target(&at)).await?;
        Ok(match ours == theirs {
            true => Compared::Equal(0),
            false => Compared::Differs(Contrast::OtherKind),
        })
    }

    async fn compare_file(
        &self,
        source: &Arc<dyn Source>,
        path: &RelPath,
        known: Option<Attributes>,
        existing: Existing,
    ) -> Result<Compared> {
        let theirs = match known {
            Some(attributes) => attributes,
            None => source.stat(path).await?,
        };
        if theirs.size != existing.size {
            return Ok(Compared::Differs(Contrast::Size(existing.size, theirs.size)));
        }
        let (destination, at) = (Arc::clone(&self.destination), path.clone());
        let (ours, recorded) = on_disk("open file", move || {
            let recorded = destination.catalog().entry(&at)?;
            Ok((Arc::new(destination.open_published(&at)?), recorded))
        })
        .await?;
        let is_other =
            recorded.is_some_and(|record| record.version.fingerprint != theirs.fingerprint);
        let blocks = self.differing_blocks(source, path, &theirs, &ours).await?;
        if blocks.is_empty() {
            return Ok(Compared::Equal(theirs.size));
        }
        let bytes = |run: &Range<u64>| {
            ByteRange::new(run.start * BLOCK_SIZE, run.end * BLOCK_SIZE).clip(theirs.size)
        };
        let ranges = blocks.iter().map(bytes).collect();
        Ok(Compared::Differs(Contrast::Bytes(ranges, is_other)))
    }

    /// Runs of blocks in which source and `ours` differ. Resumes after transient errors.
    async fn differing_blocks(
        &self,
        source: &Arc<dyn Source>,
        path: &RelPath,
        theirs: &Attributes,
        ours: &Arc<BackingFile>,
    ) -> Result<Vec<Range<u64>>> {
        let mut runs = Vec::new();
        let mut offset = 0;
        let mut tries = self.retry.begin();
        while offset < theirs.size {
            let rest = ByteRange::at(offset, REQUEST_BYTES).clip(theirs.size);
            let read = async {
                let mut asking = self.may_ask(rest.len()).await?;
                let late = |late| Error::new(Kind::Timeout, "compare").caused_by(late);
                let asked = source.read(path, rest, &theirs.fingerprint);
                let mut pieces = tokio::time::timeout(self.stall, asked).await.map_err(late)??;
                while let Some(piece) =
                    tokio::time::timeout(self.stall, pieces.next()).await.map_err(late)?
                {
                    let piece = piece?;
                    let (ours, at, len) = (Arc::clone(ours), offset, piece.len() as u64);
                    asking.iter_mut().for_each(|asking| asking.reserved.came(len));
                    let found = on_disk("compare", move || differing_in(&ours, at, &piece)).await?;
                    found.into_iter().for_each(|block| add(&mut runs, block));
                    offset += len;
                }
                match offset == rest.end {
                    true => Ok(()),
                    false => Err(Error::new(Kind::Unreachable, "compare")
                        .at(path.as_path())
                        .because("the answer ended early")),
                }
            };
            let Err(error) = read.await else { continue };
            let Some(wait) = tries.wait_after(&error, jitter()) else {
                return Err(error);
            };
            tokio::time::sleep(wait).await;
        }
        Ok(runs)
    }
}

fn add(runs: &mut Vec<Range<u64>>, block: u64) {
    match runs.last_mut() {
        Some(run) if run.end > block => {}
        Some(run) if run.end == block => run.end += 1,
        _ => runs.push(block..block + 1),
    }
}

/// Blocks in which the file's bytes from `at` on are not `piece`, in rising order.
fn differing_in(ours: &BackingFile, at: u64, piece: &[u8]) -> Result<Vec<u64>> {
    let mut mine = vec![0; piece.len()];
    let read = ours.read_at(at, &mut mine)?;
    if mine[..read] == *piece {
        return Ok(Vec::new());
    }
    let range = ByteRange::at(at, piece.len() as u64);
    let differs = |block: &u64| {
        let part = ByteRange::at(block * BLOCK_SIZE, BLOCK_SIZE).intersect(range);
        let index = |offset: u64| usize::try_from(offset - at).unwrap_or(usize::MAX);
        let bytes = index(part.start)..index(part.end);
        bytes.end > read || mine[bytes.clone()] != piece[bytes]
    };
    Ok(range.blocks().filter(differs).collect())
}

async fn list(source: &Arc<dyn Source>, directory: &RelPath) -> Result<Vec<Entry>> {
    let (batches, mut received) = mpsc::channel(BATCHES);
    let (source, directory) = (Arc::clone(source), directory.clone());
    let listing = tokio::spawn(async move { source.list(&directory, batches).await });
    let mut entries = Vec::new();
    while let Some(batch) = received.recv().await {
        entries.extend(batch.entries);
    }
    listing.await.map_err(|died| Error::new(Kind::Io, "list source").caused_by(died))??;
    Ok(entries)
}
