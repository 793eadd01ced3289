//! A complete file becomes a plain file of the destination: verify, metadata, rename, each step durable before the next.

use std::sync::Arc;

use crate::core::flight::{Boarded, Landing};
use crate::core::path::RelPath;
use crate::core::permits::{Acquired, Permit, Permits};
use crate::core::phase::Phase;
use crate::core::priority::Priority;
use crate::core::range::{ByteRange, block_count, block_range};
use crate::core::table::Table;
use crate::engine::file::LazyFile;
use crate::engine::resume::is_ours;
use crate::engine::stats::Proof;
use crate::engine::{Engine, jitter, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::ProofClass;
use crate::store::publish::{Candidate, Vouched};
use crate::store::verify::{compare_files, hash_backing};
use crate::store::{BackingFile, FileHash, Identity, Metadata, Replace};

/// Files verified and renamed at once: more would only move the disk's head.
const PUBLISH_AT_ONCE: usize = 4;

/// Bounds how many files are published at once and knows which names are ours.
#[derive(Debug)]
pub struct Publisher {
    permits: Arc<Permits>,
    /// Final names that were published or adopted in this session, with their inode: a newer version may replace exactly that.
    ours: Table<RelPath, Identity>,
}

impl Default for Publisher {
    fn default() -> Self {
        Self { permits: Permits::new(PUBLISH_AT_ONCE, 0), ours: Table::default() }
    }
}

impl Publisher {
    async fn permit(&self) -> Option<Permit> {
        match self.permits.acquire(Priority::Hydration) {
            Acquired::Now(permit) => Some(permit),
            Acquired::Queued(mut ticket) => {
                ticket.signal().await;
                ticket.permit()
            }
        }
    }

    pub(crate) fn note_ours(&self, path: &RelPath, identity: Identity) {
        self.ours.insert(path.clone(), identity);
    }
}

impl Engine {
    /// Publishes a file in a task of its own once every block is present. Exactly one caller starts it.
    pub(crate) fn seal_if_complete(self: &Arc<Self>, file: &Arc<LazyFile>) {
        if !file.claims.is_complete() || file.is_stale() || file.phase.get() == Phase::Published {
            return;
        }
        // Boarded before the phase says Sealed, so that who sees Sealed can wait for the end.
        if let Boarded::Lead(landing) = file.publishing.board()
            && file.phase.advance(Phase::Sealed)
        {
            let (engine, file) = (Arc::clone(self), Arc::clone(file));
            self.runtime.spawn(async move { engine.publish(file, landing).await });
        }
    }

    /// Waits until a complete file is published.
    ///
    /// # Errors
    /// `Stale` or `Failed`'s cause in general words; the cause itself is in status and log.
    pub(crate) async fn published(self: &Arc<Self>, file: &Arc<LazyFile>) -> Result<()> {
        loop {
            match file.phase.get() {
                Phase::Published => return Ok(()),
                Phase::Sealed | Phase::Verified => {
                    if let Boarded::Join(signal) = file.publishing.board() {
                        signal.await;
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                phase => {
                    return Err(Error::new(Kind::Io, "publish file")
                        .at(file.path.as_path())
                        .because(format!("it is {phase:?} now")));
                }
            }
        }
    }

    async fn publish(self: Arc<Self>, file: Arc<LazyFile>, landing: Landing) {
        // Waited for without a permit: many young files settle at the same time.
        let settled = self.settle(&file).await;
        let permit = self.publisher.permit().await;
        let published = match settled {
            Ok(()) => self.try_publish(&file).await,
            Err(error) => Err(error),
        };
        match published {
            Ok(proof) => self.note_published(&file, proof),
            Err(error) if error.kind() == Kind::Stale => self.found_stale(&file),
            Err(error) if error.kind() == Kind::Corrupt => self.start_over(&file, &error),
            Err(error) => {
                file.phase.advance(Phase::Failed);
                self.stats.failed(&file.path, &error);
                tracing::warn!(path = %file.path, kind = %error.kind(), %error, "not published");
            }
        }
        drop((permit, landing));
    }

    pub(crate) fn note_published(&self, file: &LazyFile, proof: Proof) {
        if file.phase.advance(Phase::Published) {
            self.stats.count_proof(proof);
            if !self.changes.is_refused(file.ino) {
                self.stats.succeeded(&file.path);
            }
            tracing::debug!(path = %file.path, ino = file.ino, size = file.size(), ?proof, "published");
        }
        file.hashes.clear();
    }

    /// What is on disk is not what was received: nothing of it is trusted any more.
    pub(crate) fn start_over(&self, file: &LazyFile, error: &Error) {
        self.stats.remember(&file.path, error);
        self.stats.bytes_wasted.add(file.size());
        tracing::error!(path = %file.path, %error, "verification failed; fetching it again");
        let part = file.backing();
        file.start_over();
        if let Some(part) = part {
            self.abandon(file, &part);
        }
        file.phase.advance(Phase::Absent);
    }

    /// Waits until the fingerprint of a file that changed a moment ago tells versions apart.
    pub(crate) async fn settle(&self, file: &LazyFile) -> Result<()> {
        while !file.is_settled() {
            tokio::time::sleep(file.settles_in()).await;
            let attributes = self.source_metadata(file).await?.attributes;
            file.confirm(&attributes);
        }
        Ok(())
    }

    /// Compares what came before the file was settled with what the source has now; another version if they differ.
    async fn confirm_provisional(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        backing: &Arc<BackingFile>,
    ) -> Result<()> {
        match self.first_difference(file, backing).await? {
            None => Ok(()),
            Some(offset) => Err(Error::new(Kind::Stale, "publish file")
                .at(file.path.as_path())
                .because(format!("rewritten within a second; it differs from byte {offset} on"))),
        }
    }

    /// Compares blocks that nothing vouches for with the source: holes, and what an earlier life left without a hash.
    async fn confirm_unhashed(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        backing: &Arc<BackingFile>,
    ) -> Result<()> {
        let unhashed = unhashed(file);
        if unhashed.is_empty() {
            return Ok(());
        }
        match self.first_difference_in(file, backing, &unhashed).await? {
            None => Ok(()),
            Some(offset) => Err(Error::new(Kind::Corrupt, "verify file")
                .at(file.path.as_path())
                .because(format!("byte {offset} on the destination's disk is not the source's"))),
        }
    }

    async fn try_publish(self: &Arc<Self>, file: &Arc<LazyFile>) -> Result<Proof> {
        let backing = file.ensure_backing(&self.destination).await?;
        let epoch = file.claims.epoch();
        if file.is_provisional() {
            self.confirm_provisional(file, &backing).await?;
        } else {
            self.confirm_unhashed(file, &backing).await?;
        }
        let metadata = self.source_metadata(file).await?;
        let (checked, hashed) = (Arc::clone(file), Arc::clone(&backing));
        let hash = on_disk("verify file", move || verify(&checked, &hashed))
            .await
            .map_err(Error::of_destination)?;
        if file.claims.epoch() != epoch {
            let error = Error::new(Kind::Corrupt, "verify file").at(file.path.as_path());
            return Err(error.because("what was received was taken back meanwhile"));
        }
        file.phase.advance(Phase::Verified);
        let replace = self.may_replace(&file.path).await?;
        let superseded = || Error::new(Kind::Stale, "publish file").at(file.path.as_path());
        // Looked at after `replace`: what a newer version has published must not be replaced by this one.
        if file.is_stale() {
            return Err(superseded());
        }
        let (destination, path) = (Arc::clone(&self.destination), file.path.clone());
        let (part, version) = (Arc::clone(&backing), file.version());
        let published = on_disk("publish file", move || {
            let (version, proof) = (&version, ProofClass::Transfer);
            destination.publish(Candidate {
                file: &part,
                path: &path,
                metadata: &metadata,
                replace,
                vouched: Some(Vouched { version, hash: &hash, proof }),
            })
        })
        .await
        .map_err(Error::of_destination);
        match published {
            Ok(published) => {
                self.stats.metadata_lost.add(published.losses.len() as u64);
                self.publisher.note_ours(&file.path, published.identity);
                Ok(Proof::Transfer)
            }
            Err(error) if error.kind() == Kind::Exists && file.is_stale() => {
                Err(superseded().caused_by(error))
            }
            Err(error) if error.kind() == Kind::Exists => self.keep_equal(file, &backing).await,
            Err(error) => Err(error),
        }
    }

    /// Attributes and xattrs of the source now, for exactly this version.
    pub(crate) async fn source_metadata(&self, file: &LazyFile) -> Result<Metadata> {
        let mut attempt = 1;
        loop {
            let asked = async {
                let attributes = self.source.stat(&file.path).await?;
                if attributes.fingerprint != *file.fingerprint() {
                    return Err(Error::new(Kind::Stale, "publish file").at(file.path.as_path()));
                }
                let xattrs = self.source.xattrs(&file.path).await?;
                Ok(Metadata { attributes, xattrs })
            };
            let error = match self.within_deadline("look at source file", asked).await {
                Ok(metadata) => return Ok(metadata),
                Err(error) if error.kind() == Kind::NotFound => {
                    return Err(error.kinded(Kind::Stale));
                }
                Err(error) => error,
            };
            let Some(wait) = self.settings.retry.wait_after(attempt, &error, jitter()) else {
                return Err(error);
            };
            attempt += 1;
            tokio::time::sleep(wait).await;
        }
    }

    /// What may go for a new version: what we published there, in this life or an earlier one, and what the user gave up.
    async fn may_replace(&self, path: &RelPath) -> Result<Replace> {
        let known = self.publisher.ours.get(path).or_else(|| self.candidates.to_overwrite(path));
        if let Some(identity) = known {
            return Ok(Replace::Only(identity));
        }
        let (destination, path) = (Arc::clone(&self.destination), path.clone());
        on_disk("look at former version", move || {
            let former =
                if is_ours(&destination, &path)? { destination.existing(&path)? } else { None };
            Ok(former.map_or(Replace::Never, |former| Replace::Only(former.identity)))
        })
        .await
        .map_err(Error::of_destination)
    }

    /// The final name is taken: kept if its bytes are ours, else a conflict.
    async fn keep_equal(
        self: &Arc<Self>,
        file: &LazyFile,
        part: &Arc<BackingFile>,
    ) -> Result<Proof> {
        let (destination, path) = (Arc::clone(&self.destination), file.path.clone());
        let part = Arc::clone(part);
        let existing = on_disk("compare with existing file", move || {
            let existing = destination.open_published(&path)?;
            match compare_files(&part, &existing)? {
                None => Ok(existing),
                Some(offset) => Err(conflict(&path, offset)),
            }
        })
        .await?;
        self.adopt_backing(file, Arc::new(existing)).await?;
        Ok(Proof::Transfer)
    }
}

/// The error of a file in the destination whose bytes differ.
pub(crate) fn conflict(path: &RelPath, offset: u64) -> Error {
    Error::new(Kind::Exists, "keep existing file")
        .at(path.as_path())
        .because(format!("it differs from the source from byte {offset} on; it was left alone"))
        .hint("move it away, or start with --existing overwrite")
}

/// The blocks of which no hash is known, as ranges in rising order.
fn unhashed(file: &LazyFile) -> Vec<ByteRange> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    for index in (0..block_count(file.size())).filter(|index| file.hashes.get(*index).is_none()) {
        let block = block_range(index, file.size());
        match ranges.last_mut() {
            Some(last) if last.end == block.start => last.end = block.end,
            _ => ranges.push(block),
        }
    }
    ranges
}

/// Reads the bytes again and compares them with what was received.
fn verify(file: &LazyFile, backing: &BackingFile) -> Result<FileHash> {
    let found = hash_backing(backing, file.size())?;
    for (index, hash) in (0u64..).zip(&found.blocks) {
        if file.hashes.get(index).is_some_and(|landed| landed != *hash) {
            return Err(Error::new(Kind::Corrupt, "verify file").at(file.path.as_path()).because(
                format!("block {index} on the destination's disk is not what was received"),
            ));
        }
    }
    Ok(found)
}
