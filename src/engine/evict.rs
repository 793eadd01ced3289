//! What goes from a cache of limited size: whole files that nobody has open, by last use; then blocks of open files behind their
//! streams; for a reader that finds no room otherwise, any block that nobody waits for. Blocking.
//!
//! | what | goes by |
//! |---|---|
//! | a published file, open nowhere | unlink; it is never punched, as the kernel may still read it by itself |
//! | a part, open nowhere | unlink, as a whole |
//! | blocks of a part | a hole |
//!
//! Everything a blocking task needs is in its hands until the bytes are gone: who waits for it may give up at any time.

use std::ops::Range;
use std::sync::Arc;

use crate::core::claims::Eviction;
use crate::core::flight::{Boarded, Landing};
use crate::core::phase::Phase;
use crate::core::range::{BLOCK_SIZE, ByteRange};
use crate::engine::cache::{Cache, KeptFile};
use crate::engine::file::LazyFile;
use crate::engine::{Engine, on_disk};
use crate::error::{Kind, Result};
use crate::store::catalog::ProofClass;
use crate::store::{BackingFile, Leaving, LeavingFrom};
use crate::sync::Ordering;

/// Versions that leave in one commit.
const BATCH: usize = 64;
/// Freed beyond what is needed, so that not every chunk costs a commit.
const SLACK_MAX: u64 = 64 << 20;

/// Who needs the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A reader: what others may read next goes too.
    Reader,
    /// What is fetched ahead.
    Ahead,
}

/// A version on its way out.
enum Going {
    Kept(Arc<KeptFile>, #[expect(dead_code, reason = "held, not looked at")] Landing),
    File(GoingFile),
}

struct GoingFile {
    file: Arc<LazyFile>,
    backing: Arc<BackingFile>,
    eviction: Eviction,
    landing: Landing,
}

impl Engine {
    /// Frees `lacking` bytes and somewhat more, if so much can go; returns what was freed.
    pub(crate) fn evict_now(&self, lacking: u64, urgency: Urgency) -> u64 {
        let slack = self.cache.fill().map_or(0, |(cap, _)| (cap / 16).min(SLACK_MAX));
        let goal = lacking.saturating_add(slack);
        let mut freed = self.evict_files(goal);
        if freed < lacking {
            freed += self.evict_blocks(goal - freed, Urgency::Ahead);
        }
        if freed < lacking && urgency == Urgency::Reader {
            freed += self.evict_blocks(lacking - freed, urgency);
        }
        self.stats.bytes_evicted.add(freed);
        tracing::debug!(lacking, freed, ?urgency, "evicted");
        freed
    }

    /// Frees `lacking` bytes of the destination's file system; `false` if nothing went.
    pub(crate) fn give_of_its_own(&self, lacking: u64) -> bool {
        let Boarded::Lead(_landing) = self.cache.evicting.board() else { return true };
        self.cache.is_limited() && self.evict_now(lacking, Urgency::Ahead) > 0
    }

    /// Evicts one version, whenever it was used; `false` if it is in use or not here.
    pub(crate) fn evict_one(&self, ino: u64) -> Result<bool> {
        let last_use = self.cache.files.get(&ino);
        let last_use = last_use.map_or(0, |file| file.last_use.load(Ordering::Relaxed));
        let Some(going) = self.cache.hold(last_use, ino) else { return Ok(false) };
        self.remove_from_disk(vec![going]).map(|_freed| true)
    }

    /// Whole files, the one that was used longest ago first.
    fn evict_files(&self, goal: u64) -> u64 {
        let (mut freed, mut is_new_look) = (0, false);
        while freed < goal {
            let batch = self.gather(goal - freed);
            if !batch.is_empty() {
                match self.remove_from_disk(batch) {
                    Ok(bytes) => freed += bytes,
                    Err(error) => {
                        tracing::error!(%error, "evict files");
                        break;
                    }
                }
            } else if is_new_look {
                break;
            } else {
                self.cache.look();
                is_new_look = true;
            }
        }
        freed
    }

    /// Takes hold of the oldest files that nobody uses, until their bytes reach `goal`.
    fn gather(&self, goal: u64) -> Vec<Going> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < goal
            && batch.len() < BATCH
            && let Some((last_use, ino)) = self.cache.queue.pop()
        {
            // What is kept of a first version cannot be had again.
            if !self.changes.is_refused(ino)
                && let Some(going) = self.cache.hold(last_use, ino)
            {
                bytes += going.bytes();
                batch.push(going);
            }
        }
        batch
    }

    fn remove_from_disk(&self, batch: Vec<Going>) -> Result<u64> {
        let proofs: Vec<_> = batch.iter().map(|going| self.proof_of(going)).collect();
        let leaving: Vec<Leaving<'_>> = batch.iter().map(Going::leaving).collect();
        match self.destination.evict_all(&leaving) {
            Ok(set_aside) => self.stats.errors.remember_aside(&set_aside),
            Err(error) => {
                batch.into_iter().for_each(Going::stay);
                return Err(error);
            }
        }
        let mut freed = 0;
        for (going, proof) in batch.into_iter().zip(proofs) {
            freed += going.bytes();
            match going {
                Going::Kept(kept, _) => {
                    tracing::debug!(path = %kept.kept.path, ino = kept.kept.ino, "evicted");
                    self.cache.kept.remove(&kept.kept.ino);
                }
                Going::File(GoingFile { file, backing, eviction, landing }) => {
                    tracing::debug!(path = %file.path, ino = file.ino, "evicted");
                    self.publisher.forget_ours(&file.path);
                    proof.inspect(|proof| self.stats.uncount_proof(*proof));
                    file.emptied();
                    self.cache.files.remove(&file.ino);
                    // Its bytes go with the last who uses it; only then is room given back.
                    drop(backing);
                    drop((eviction, landing));
                }
            }
        }
        Ok(freed)
    }

    fn proof_of(&self, going: &Going) -> Option<ProofClass> {
        let Going::File(going) = going else { return None };
        let record = self.destination.catalog().entry(&going.file.path).ok()??;
        let is_published = going.file.phase.get() == Phase::Published;
        is_published.then(|| record.proof.unwrap_or(ProofClass::Transfer))
    }

    /// Blocks of parts. For what is fetched ahead those that streams are about to read stay.
    fn evict_blocks(&self, goal: u64, urgency: Urgency) -> u64 {
        if !self.cache.can_punch.load(Ordering::Relaxed) {
            return 0;
        }
        let mut files = self.cache.files.values();
        files.retain(|file| !self.changes.is_refused(file.ino));
        files.sort_by_key(|file| file.last_use.load(Ordering::Relaxed));
        let mut freed = 0;
        for file in files {
            if freed >= goal {
                break;
            }
            let keep = match urgency {
                Urgency::Reader => Vec::new(),
                Urgency::Ahead => self.read_next(&file),
            };
            match self.evict_blocks_of(&file, &keep, goal - freed) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    if error.kind() == Kind::NotSupported {
                        self.cache.can_punch.store(false, Ordering::Relaxed);
                    }
                    tracing::warn!(path = %file.path, %error, "evict blocks");
                }
            }
        }
        freed
    }

    fn evict_blocks_of(&self, file: &LazyFile, keep: &[ByteRange], goal: u64) -> Result<u64> {
        let Boarded::Lead(_landing) = file.moving.board() else { return Ok(0) };
        let Some(part) = file.backing() else { return Ok(0) };
        if part.published_path().is_some() {
            return Ok(0);
        }
        let from = file.evict_from.load(Ordering::Relaxed);
        let candidates = beginning_at(from, part.occupied().blocks());
        let max_blocks = goal.div_ceil(BLOCK_SIZE);
        let Some(eviction) = file.claims.evict(&candidates, keep, max_blocks) else {
            return Ok(0);
        };
        file.unsealed();
        let before = part.occupied().bytes();
        self.destination.evict_blocks(&file.path, file.ino, &part, eviction.blocks())?;
        let blocks = eviction.blocks();
        let wrapped = blocks.iter().rfind(|run| run.end <= from).or(blocks.last());
        let next = wrapped.map_or(0, |run| run.end);
        file.evict_from.store(next, Ordering::Relaxed);
        Ok(before.saturating_sub(part.occupied().bytes()))
    }

    /// A version that was superseded while it was published is nobody's: it would lie in DIR uncounted.
    pub(super) async fn let_superseded_go(&self, file: &LazyFile, part: Option<Arc<BackingFile>>) {
        let is_superseded = self.cache.is_limited() && file.phase.get() != Phase::Published;
        let Some(part) = part.filter(|_| is_superseded) else { return };
        let (destination, path, ino) = (Arc::clone(&self.destination), file.path.clone(), file.ino);
        let gone = on_disk("evict superseded file", move || {
            let what = LeavingFrom::Backing(&part);
            destination.evict_all(&[Leaving { path: &path, ino, what }])
        });
        match gone.await {
            Ok(set_aside) => self.stats.errors.remember_aside(&set_aside),
            Err(error) => {
                tracing::warn!(path = %file.path, %error, "superseded; it stays until the next start");
            }
        }
    }

    /// Keeps a complete file from eviction while it is published; `None` if it is complete no more.
    pub(super) async fn hold_complete(&self, file: &LazyFile) -> Option<Landing> {
        let held = loop {
            match file.moving.board() {
                Boarded::Lead(landing) => break landing,
                Boarded::Join(signal) => signal.await,
            }
        };
        if file.claims.is_complete() && file.phase.get() == Phase::Sealed {
            return Some(held);
        }
        file.unsealed();
        None
    }

    /// What the streams of a file's handles are about to read.
    fn read_next(&self, file: &LazyFile) -> Vec<ByteRange> {
        let handles = self.handles.all().into_iter();
        let of_file = handles.filter(|handle| handle.file.ino == file.ino);
        of_file.flat_map(|handle| handle.ahead()).collect()
    }
}

impl Cache {
    /// Looks anew at when everything was used last. Open files are no candidates.
    fn look(&self) {
        let kept = self.kept.values().into_iter().map(|kept| (kept.kept.last_use, kept.kept.ino));
        let files = self.files.values().into_iter().filter(|file| !file.is_open());
        let files = files.map(|file| (file.last_use.load(Ordering::Relaxed), file.ino));
        self.queue.refill(kept.chain(files).collect());
    }

    /// Takes hold of a version if nobody uses it and nobody has since it was looked at.
    fn hold(&self, last_use: u64, ino: u64) -> Option<Going> {
        if let Some(kept) = self.kept.get(&ino) {
            let Boarded::Lead(landing) = kept.busy.board() else { return None };
            // It may have been restored in between.
            let is_there = self.kept.get(&ino).is_some();
            return is_there.then_some(Going::Kept(kept, landing));
        }
        let file = self.files.get(&ino)?;
        if file.last_use.load(Ordering::Relaxed) != last_use || file.is_open() {
            return None;
        }
        let Boarded::Lead(landing) = file.moving.board() else { return None };
        let Some(backing) = file.backing() else {
            self.files.remove(&ino); // it went another way
            return None;
        };
        if backing.occupied().bytes() == 0 {
            return None;
        }
        let eviction = file.claims.evict_all()?;
        Some(Going::File(GoingFile { file, backing, eviction, landing }))
    }
}

impl Going {
    fn bytes(&self) -> u64 {
        match self {
            Going::Kept(kept, _) => kept.charge.bytes(),
            Going::File(going) => going.backing.occupied().bytes(),
        }
    }

    fn leaving(&self) -> Leaving<'_> {
        match self {
            Going::Kept(kept, _) => {
                let kept = &kept.kept;
                let what = LeavingFrom::Kept(&kept.place);
                Leaving { path: &kept.path, ino: kept.ino, what }
            }
            Going::File(going) => {
                let what = LeavingFrom::Backing(&going.backing);
                Leaving { path: &going.file.path, ino: going.file.ino, what }
            }
        }
    }

    /// It does not go after all: what the catalog vouches for is still there.
    fn stay(self) {
        if let Going::File(GoingFile { file, eviction, .. }) = self {
            if file.phase.get() == Phase::Published {
                file.claims.mark_present(ByteRange::new(0, file.size()));
            }
            drop(eviction);
        }
    }
}

impl LazyFile {
    /// Whether a handle is open on it.
    pub(crate) fn is_open(&self) -> bool {
        self.open_handles.load(Ordering::Relaxed) > 0
    }

    /// Not all of it is here any more.
    fn unsealed(&self) {
        if self.phase.get() == Phase::Sealed && self.phase.advance(Phase::Absent) {
            self.phase.advance(Phase::Filling);
        }
    }

    /// Nothing of it is here any more.
    fn emptied(&self) {
        self.set_backing(None);
        self.hashes.clear();
        if self.attributes.is_sparse() {
            self.layout.store(None);
        }
        self.phase.advance(Phase::Absent);
    }
}

/// `runs` in their order from block `from` on, then those before it.
fn beginning_at(from: u64, runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let after = runs.iter().filter(|run| run.end > from);
    let after = after.map(|run| run.start.max(from)..run.end);
    let before = runs.iter().filter(|run| run.start < from);
    let before = before.map(|run| run.start..run.end.min(from));
    after.chain(before).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_round_and_round() {
        let runs = || vec![0..4, 6..9];
        assert_eq!(beginning_at(0, runs()), [0..4, 6..9]);
        assert_eq!(beginning_at(2, runs()), [2..4, 6..9, 0..2]);
        assert_eq!(beginning_at(7, runs()), [7..9, 0..4, 6..7]);
        assert_eq!(beginning_at(9, runs()), [0..4, 6..9]);
    }
}
