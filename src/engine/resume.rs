//! Going on where an earlier life ended: what the catalog vouches for is used again, and what lands is recorded each second, or each 256 MiB.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use crate::core::attributes::Attributes;
use crate::core::claims::Unrecorded;
use crate::core::flight::Boarded;
use crate::core::path::RelPath;
use crate::core::phase::Phase;
use crate::core::quota::Used;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_count};
use crate::core::run_set::RunSet;
use crate::engine::file::LazyFile;
use crate::engine::node::Node;
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::{EntryPhase, EntryRecord, ErrorNote, ProofClass, Version};
use crate::store::checkpoint::Checkpoint;
use crate::store::recovery::Standing;
use crate::store::verify::BlockHash;
use crate::store::{BackingFile, Destination};
use crate::sync::Ordering;

/// Numbers reserved for one life: more than it can use.
const NUMBERS: u64 = 1 << 32;

/// What a life begins with.
#[derive(Debug)]
pub struct Beginning {
    /// First chunk number. None from here on was ever used.
    pub first_chunk: u64,
    /// First inode number. None from here on was ever used.
    pub first_ino: u64,
    /// What was used of the limits in earlier lives.
    pub used: Used,
    /// What went wrong in earlier lives and is not made good, oldest first.
    pub errors: Vec<ErrorNote>,
}

/// Begins or goes on with the copy of `source`. Blocking.
///
/// # Errors
/// `Exists` if the destination holds a copy of another source; what the catalog says.
pub fn begin(destination: &Destination, source: &str) -> Result<Beginning> {
    let catalog = destination.catalog();
    catalog.ensure_job(source, SystemTime::now())?;
    catalog.record_durability(destination.options().durability)?;
    let recovery = destination.recovery();
    for path in &recovery.conflicts {
        tracing::warn!(%path, "somebody took this name while it was published; left alone");
    }
    tracing::info!(
        published = recovery.published,
        resumed = recovery.resumed,
        lost = recovery.lost,
        swept = recovery.swept_parts,
        "recovered"
    );
    Ok(Beginning {
        first_chunk: catalog.reserve_chunk_ids(NUMBERS)?.start,
        first_ino: catalog.reserve_inos(NUMBERS)?.start,
        used: catalog.used()?,
        errors: catalog.errors()?,
    })
}

/// Whether what lies at `path` is a file that we published, of this version or an earlier one, and nobody touched since. Blocking.
pub(crate) fn is_ours(destination: &Destination, path: &RelPath) -> Result<bool> {
    let Some(record) = destination.catalog().entry(path)? else { return Ok(false) };
    destination.has_placed(&record)
}

/// What is taken out of a file for one checkpoint.
struct Snapshot {
    file: Arc<LazyFile>,
    part: Arc<BackingFile>,
    version: Version,
    unrecorded: Unrecorded,
    hashes: Vec<(u64, BlockHash)>,
}

impl Engine {
    /// What is recorded at a path, whatever version of it.
    pub(super) fn entry_at(&self, path: &RelPath) -> Option<EntryRecord> {
        let found = self.destination.catalog().entry(path);
        found.unwrap_or_else(|error| {
            tracing::warn!(%path, %error, "record unreadable");
            None
        })
    }

    /// Whether the version that `attributes` describe is in DIR already, as it was published.
    ///
    /// # Errors
    /// What catalog and disk say.
    pub fn is_published(&self, path: &RelPath, attributes: &Attributes) -> Result<bool> {
        let Some(record) = self.destination.catalog().entry(path)? else { return Ok(false) };
        Ok(record.version.fingerprint == attributes.fingerprint
            && self.destination.standing(&record)? == Standing::Same)
    }

    /// Uses again what an earlier life left of a file. Done once, before its first byte is asked for.
    pub(crate) async fn restore(self: &Arc<Self>, file: &Arc<LazyFile>) {
        while file.needs_restoring() {
            match file.restoring.board() {
                Boarded::Join(signal) => signal.await,
                Boarded::Lead(landing) => {
                    if !file.needs_restoring() {
                        return;
                    }
                    let unevicted = self.cache.hold_kept(file.ino).await;
                    let (engine, restored) = (Arc::clone(self), Arc::clone(file));
                    let work = on_disk("go on with file", move || engine.restore_now(&restored));
                    if let Err(error) = work.await {
                        tracing::warn!(path = %file.path, %error, "fetched anew");
                    }
                    file.set_restored();
                    drop((unevicted, landing));
                    self.seal_if_complete(file);
                }
            }
        }
    }

    /// Uses again what an earlier life left of a file that is about to be opened.
    ///
    /// # Errors
    /// `Timeout` if the destination's disk hangs.
    pub async fn prepare_open(self: &Arc<Self>, node: &Node) -> Result<()> {
        let (engine, file) = (Arc::clone(self), Arc::clone(node.file()?));
        // It goes on when nobody waits any more: half of it would be begun twice.
        let work = self.runtime.spawn(async move { engine.restore(&file).await });
        let ended =
            async { work.await.map_err(|died| Error::new(Kind::Io, "open").caused_by(died)) };
        self.within_deadline("open", ended).await
    }

    /// Whether bytes of a file have to be looked for in the catalog before it is opened.
    pub fn needs_restoring(&self, node: &Node) -> bool {
        node.file().is_ok_and(|file| file.needs_restoring())
    }

    fn restore_now(&self, file: &Arc<LazyFile>) -> Result<()> {
        let was_here = self.tree.let_go.take_back(file.ino);
        let destination = &self.destination;
        if file.backing().is_some() || file.is_stale() {
            return Ok(()); // begun anew already: two files never hold the bytes of one
        }
        let Some(record) = destination.catalog().entry_of_ino(file.ino)? else { return Ok(()) };
        if record.version.fingerprint != *file.fingerprint() || record.path != file.path {
            return Ok(());
        }
        let (record, path) = (&record, &record.path);
        match record.phase {
            EntryPhase::Published(_) => {
                if destination.standing(record)? != Standing::Same {
                    return Ok(());
                }
                let published = Arc::new(destination.open_published(path)?);
                published.occupied().take_over_whole(self.cache.hand_over(file.ino));
                self.publisher.note_ours(path, published.identity());
                file.set_backing(Some(published));
                file.claims.mark_present(ByteRange::new(0, file.size()));
                let proof = record.proof.unwrap_or(ProofClass::Transfer);
                if self.set_published(file, proof) && !was_here {
                    self.stats.metadata_lost.add(record.losses.len() as u64);
                    self.stats.count_proof(proof);
                }
                self.stats.files_restored.increment();
                self.cache.took_over(file);
            }
            EntryPhase::Filling | EntryPhase::Sealed | EntryPhase::Failed
                if record.part.is_some() =>
            {
                let part = destination.reopen_part(record)?;
                let runs = destination.catalog().blocks(record)?;
                self.occupy(file, &part, &runs)?;
                for run in &runs {
                    let hashes = destination.catalog().hashes(record, run.clone())?;
                    for (index, hash) in run.clone().zip(hashes) {
                        file.hashes.set(index, hash);
                    }
                }
                file.set_backing(Some(Arc::new(part)));
                for run in runs {
                    let bytes = ByteRange::new(run.start * BLOCK_SIZE, run.end * BLOCK_SIZE);
                    file.claims.mark_present(bytes.clip(file.size()));
                }
                file.phase.advance(Phase::Filling);
                self.cache.took_over(file);
            }
            _ => {}
        }
        Ok(())
    }

    /// Counts the blocks that are trusted; what else lies in the part takes room for nothing.
    fn occupy(&self, file: &LazyFile, part: &BackingFile, runs: &[Range<u64>]) -> Result<()> {
        if self.cache.is_limited() {
            let mut rest = RunSet::default();
            rest.insert(0..block_count(file.size()));
            runs.iter().for_each(|run| rest.remove(run.clone()));
            rest.iter().try_for_each(|run| part.punch(run))?;
            part.occupied().take_over(runs, self.cache.hand_over(file.ino));
        }
        Ok(())
    }

    /// Begins a checkpoint unless one runs: a slow disk delays nobody but the next one.
    pub fn checkpoint_in_background(self: &Arc<Self>) {
        if let Boarded::Lead(landing) = self.checkpointing.board() {
            let engine = Arc::clone(self);
            self.runtime.spawn(async move {
                engine.checkpoint().await;
                drop(landing);
            });
        }
    }

    /// Records, durably, the blocks that landed since the last call.
    async fn checkpoint(self: &Arc<Self>) {
        self.note_uses().await;
        self.save_errors().await;
        self.save_used().await;
        self.landed.store(0, Ordering::Relaxed);
        let mut snapshots = Vec::new();
        for ino in self.dirty.keys() {
            if let Some(file) = self.dirty.remove(&ino)
                && let Some(snapshot) = self.snapshot(file)
            {
                snapshots.push(snapshot);
            }
        }
        if snapshots.is_empty() {
            return;
        }
        self.stats.checkpoints.increment();
        let destination = Arc::clone(&self.destination);
        let recorded = on_disk("checkpoint", move || {
            let results = destination.checkpoint_many(&checkpoints(&snapshots));
            Ok(snapshots.into_iter().zip(results).collect::<Vec<_>>())
        });
        match recorded.await {
            Ok(results) => {
                for (snapshot, result) in results {
                    match result {
                        Ok(()) => snapshot.unrecorded.recorded(),
                        Err(error) => self.not_recorded(snapshot, &error),
                    }
                }
            }
            Err(error) => tracing::error!(%error, "checkpoint"),
        }
    }

    /// Records what was used of the limits, if they are limits.
    async fn save_used(&self) {
        let Some(used) = self.limits.unsaved() else { return };
        let destination = Arc::clone(&self.destination);
        match on_disk("record use", move || destination.catalog().record_used(used)).await {
            Ok(()) => self.limits.saved(used),
            Err(error) => tracing::warn!(%error, "what was fetched is not recorded; tried again"),
        }
    }

    /// The blocks are taken first, then the file that holds them: both belong to one epoch, or nothing is recorded.
    fn snapshot(&self, file: Arc<LazyFile>) -> Option<Snapshot> {
        if file.is_stale() || file.phase.get() == Phase::Published {
            return None;
        }
        // Of a small file on its way to its name a checkpoint would say nothing that publishing does not say in a moment.
        let is_leaving = matches!(file.phase.get(), Phase::Sealed | Phase::Verified);
        if is_leaving && file.size() <= BLOCK_SIZE {
            return None;
        }
        if !file.is_settled() || file.is_provisional() {
            self.dirty.insert(file.ino, file);
            return None;
        }
        let unrecorded = file.claims.take_unrecorded();
        let part = file.backing()?;
        if !unrecorded.is_current() || unrecorded.blocks().is_empty() {
            return None;
        }
        let hash = |index| file.hashes.get(index).map(|hash| (index, hash));
        let hashes = unrecorded.blocks().iter().cloned().flatten().filter_map(hash).collect();
        Some(Snapshot { version: file.version(), file, part, unrecorded, hashes })
    }

    fn not_recorded(&self, snapshot: Snapshot, error: &crate::error::Error) {
        let Snapshot { file, part, unrecorded, .. } = snapshot;
        tracing::warn!(path = %file.path, %error, "checkpoint");
        if part.is_broken() {
            // What was not recorded is gone with the failed sync; the rest of the part is not worth telling apart.
            file.start_over();
            self.abandon(&file, &part);
            return;
        }
        drop(unrecorded); // gives them back
        self.dirty.insert(file.ino, file);
    }

    /// The source has another version now: nothing of this one is kept but what is published. Says whether this call found out first.
    pub(crate) fn retire(&self, file: &LazyFile) -> bool {
        let part = file.backing().filter(|part| part.published_path().is_none());
        let first = file.mark_stale();
        if let Some(part) = part.filter(|_| first && file.phase.get() == Phase::Stale) {
            self.abandon(file, &part);
        }
        first
    }

    /// The catalog forgets a part, and then it goes.
    pub(crate) fn abandon(&self, file: &LazyFile, part: &Arc<BackingFile>) {
        if !part.is_kept() {
            part.let_go(); // a checkpoint may be about to record it
            return;
        }
        let (destination, part) = (Arc::clone(&self.destination), Arc::clone(part));
        let (path, ino) = (file.path.clone(), file.ino);
        self.runtime.spawn_blocking(move || {
            if let Err(error) = destination.abandon_part(&path, ino, &part) {
                tracing::warn!(%path, %error, "part not forgotten; it stays until the next start");
            }
        });
    }

    /// `bytes` of `file` landed: the next checkpoint looks at it, and begins now if that is much.
    pub(crate) fn note_landed(self: &Arc<Self>, file: &Arc<LazyFile>, bytes: u64) {
        self.dirty.insert(file.ino, Arc::clone(file));
        let before = self.landed.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) >= self.settings.checkpoint_bytes {
            self.checkpoint_in_background();
        }
    }

    /// The last checkpoint of this life.
    pub async fn save(self: &Arc<Self>) {
        self.until_recorded().await;
        self.checkpoint().await;
        let destination = Arc::clone(&self.destination);
        if let Err(error) = on_disk("save catalog", move || destination.catalog().flush()).await {
            tracing::error!(%error, "the catalog was not saved; the next start recovers it");
        }
    }
}

fn checkpoints(snapshots: &[Snapshot]) -> Vec<Checkpoint<'_>> {
    snapshots
        .iter()
        .map(|Snapshot { file, part, version, unrecorded, hashes }| Checkpoint {
            path: &file.path,
            version,
            part,
            blocks: unrecorded.blocks(),
            hashes,
        })
        .collect()
}

impl LazyFile {
    /// The version that the catalog records: only settled ones are.
    pub(crate) fn version(&self) -> Version {
        Version { ino: self.ino, fingerprint: self.fingerprint().clone(), is_settled: true }
    }
}
