//! A complete file becomes a plain file of the destination: verify, metadata, rename, each step durable before the next.

use std::sync::Arc;

use crate::core::attributes::{Checksum, Fingerprint};
use crate::core::flight::{Boarded, Landing};
use crate::core::path::RelPath;
use crate::core::permits::Permit;
use crate::core::phase::Phase;
use crate::core::range::{ByteRange, block_count, block_range};
use crate::engine::changes::changed;
use crate::engine::file::LazyFile;
use crate::engine::limits::is_refused;
use crate::engine::publisher::Ready;
use crate::engine::resume::is_ours;
use crate::engine::sidecar::Expected;
use crate::engine::{Engine, jitter, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::Source;
use crate::store::catalog::ProofClass;
use crate::store::publish::Published;
use crate::store::verify::{compare_files, hash_backing, hash_with};
use crate::store::{BackingFile, FileHash, Metadata, Replace};
use crate::sync::Ordering;

/// Times that a file is fetched whose bytes are not those of the source's checksum.
const FETCHES: u64 = 3;

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
    /// Why it was not.
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
                    let verdict = self.publisher.verdicts.get(&file.ino);
                    return Err(verdict.filter(|_| phase != Phase::Stale).unwrap_or_else(|| {
                        Error::new(Kind::Io, "publish file")
                            .at(file.path.as_path())
                            .because(format!("it is {phase:?} now"))
                    }));
                }
            }
        }
    }

    async fn publish(self: Arc<Self>, file: Arc<LazyFile>, landing: Landing) {
        let settled = self.settle(&file).await;
        let Some(held) = self.hold_complete(&file).await else {
            drop(landing);
            return self.seal_if_complete(&file); // evicted, and complete again
        };
        let (part, epoch) = (file.backing(), file.claims.epoch());
        let published = match settled {
            Ok(()) => self.try_publish(&file).await,
            Err(error) => Err(error),
        };
        match published {
            Ok(proof) => {
                if file.claims.epoch() != epoch && file.backing().is_none() {
                    // Taken back while it got its name: what has the name was verified before.
                    file.set_backing(part.clone());
                    file.claims.mark_present(ByteRange::new(0, file.size()));
                }
                self.note_published(&file, proof);
                self.let_superseded_go(&file, part).await;
            }
            Err(error) if error.kind() == Kind::Stale => {
                self.found_stale(&file);
                if self.changes.is_refused(file.ino) {
                    self.publisher.verdicts.insert(file.ino, changed(&file.path));
                    file.phase.advance(Phase::Failed);
                }
            }
            Err(error) => {
                self.publisher.verdicts.insert(file.ino, error.clone());
                match self.is_worth_another_fetch(&file, &error) {
                    true => self.start_over(&file, &error),
                    false => self.give_up(&file, &error),
                }
            }
        }
        drop((held, landing));
    }

    pub(crate) fn note_published(&self, file: &LazyFile, proof: ProofClass) {
        if self.set_published(file, proof) {
            self.stats.count_proof(proof);
            self.tell_published(file, proof);
        }
    }

    /// It is a plain file now, which may be known and counted already; `false` if it was superseded or is one for long.
    pub(crate) fn set_published(&self, file: &LazyFile, proof: ProofClass) -> bool {
        let is_now = file.phase.advance(Phase::Published);
        if is_now {
            self.publisher.verdicts.remove(&file.ino);
            if !self.changes.is_refused(file.ino) {
                self.stats.errors.succeeded(&file.path);
            }
            tracing::debug!(path = %file.path, ino = file.ino, size = file.size(), ?proof, "published");
        }
        file.hashes.clear();
        is_now
    }

    /// Whether the bytes that are here are of no use: the disk lost them, or they are not those that the source sums up. A source that
    /// contradicts itself every time is not asked for ever.
    fn is_worth_another_fetch(&self, file: &LazyFile, error: &Error) -> bool {
        if file.backing().is_some_and(|part| part.is_broken()) {
            return true;
        }
        error.kind() == Kind::Corrupt
            && (error.is_of_destination()
                || file.rejections.fetch_add(1, Ordering::Relaxed) + 1 < FETCHES)
    }

    fn give_up(&self, file: &LazyFile, error: &Error) {
        file.phase.advance(Phase::Failed);
        // No fault of the file: it is tried again when there is room, or a quota again.
        if error.kind() == Kind::NoSpace && error.is_of_destination() {
            self.room.ran_out(error);
            self.stats.errors.remember(&file.path, error);
        } else if is_refused(error) {
            self.stats.errors.remember(&file.path, error);
        } else {
            self.stats.errors.failed(&file.path, Some(file.ino), error);
        }
        tracing::warn!(path = %file.path, kind = %error.kind(), %error, "not published");
    }

    pub(crate) fn start_over(&self, file: &LazyFile, error: &Error) {
        self.stats.errors.remember(&file.path, error);
        self.stats.bytes_wasted.add(file.size());
        tracing::error!(path = %file.path, %error, "not published; fetched again");
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

    async fn try_publish(self: &Arc<Self>, file: &Arc<LazyFile>) -> Result<ProofClass> {
        let backing = file.ensure_backing(&self.destination).await?;
        let epoch = file.claims.epoch();
        if file.is_provisional() {
            self.confirm_provisional(file, &backing).await?;
        } else {
            self.confirm_unhashed(file, &backing).await?;
        }
        let mut metadata = self.source_metadata(file).await?;
        let expected = self.expected(file, &metadata.attributes).await?;
        // Not before: many files wait for their source at the same time.
        let permit = self.publisher.permit().await;
        let (engine, checked, hashed) = (Arc::clone(self), Arc::clone(file), Arc::clone(&backing));
        let word = expected.clone();
        let look = move || {
            let verified = verify(&checked, &hashed, word.as_ref())?;
            let replace = engine.may_replace(&checked.path).map_err(Error::of_destination)?;
            let origin = origin_of(&*engine.source, &checked.path, checked.fingerprint());
            Ok((verified, replace, origin))
        };
        let ((hash, proof), replace, origin) = on_disk("verify file", look).await?;
        metadata.attributes.checksum = match proof {
            ProofClass::SourceChecksum => expected.map(|expected| expected.checksum),
            _ => None,
        };
        if file.claims.epoch() != epoch {
            let error = Error::new(Kind::Corrupt, "verify file").at(file.path.as_path());
            let why = "what was received was taken back meanwhile";
            return Err(error.because(why).of_destination());
        }
        file.phase.advance(Phase::Verified);
        let ready = Ready {
            part: Arc::clone(&backing),
            path: file.path.clone(),
            metadata,
            version: file.version(),
            hash,
            proof,
            origin,
        };
        match self.place(file, &Arc::new(ready), replace, permit).await {
            Ok(published) => {
                self.stats.metadata_lost.add(published.losses.len() as u64);
                Ok(proof)
            }
            Err(error) if error.kind() == Kind::Exists => {
                self.keep_equal(file, &backing, proof).await
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a verified file its name. `Exists` says that something has it that is not ours.
    async fn place(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        ready: &Arc<Ready>,
        mut replace: Replace,
        mut permit: Option<Permit>,
    ) -> Result<Published> {
        loop {
            // Looked at after `replace`: what a newer version has published must not be replaced by this one.
            let superseded = Error::new(Kind::Stale, "publish file").at(file.path.as_path());
            if file.is_stale() {
                return Err(superseded);
            }
            let placed = self.publisher.publish(ready, replace, permit.take()).await;
            let error = match placed.map_err(Error::of_destination) {
                Err(error) if error.kind() == Kind::Exists => error,
                result => return result,
            };
            if file.is_stale() {
                return Err(superseded.caused_by(error));
            }
            let (engine, named) = (Arc::clone(self), Arc::clone(file));
            let look = move || engine.may_replace(&named.path);
            let now = on_disk("look at former version", look).await?;
            if now == replace {
                return Err(error);
            }
            // An earlier version was published in between.
            replace = now;
        }
    }

    /// Attributes and xattrs of the source now, for exactly this version.
    pub(crate) async fn source_metadata(&self, file: &LazyFile) -> Result<Metadata> {
        let mut tries = self.settings.retry.begin();
        loop {
            let connection = self.connection().await;
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
            drop(connection);
            let Some(wait) = tries.wait_after(&error, jitter()) else {
                return Err(error);
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// What may go for a new version: what we published there, in this life or an earlier one, and what the user gave up. Blocking.
    fn may_replace(&self, path: &RelPath) -> Result<Replace> {
        let known = self.publisher.ours(path).or_else(|| self.candidates.to_overwrite(path));
        if let Some(identity) = known {
            return Ok(Replace::Only(identity));
        }
        let destination = &self.destination;
        let former = if is_ours(destination, path)? { destination.existing(path)? } else { None };
        Ok(former.map_or(Replace::Never, |former| Replace::Only(former.identity)))
    }

    /// The final name is taken: kept if its bytes are ours, else a conflict.
    async fn keep_equal(
        self: &Arc<Self>,
        file: &LazyFile,
        part: &Arc<BackingFile>,
        proof: ProofClass,
    ) -> Result<ProofClass> {
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
        self.adopt_backing(file, Arc::new(existing), proof).await?;
        Ok(proof)
    }
}

/// The inode number of this version at a source on this machine: by that it is known again under another name. Blocking.
pub(crate) fn origin_of(
    source: &dyn Source,
    path: &RelPath,
    fingerprint: &Fingerprint,
) -> Option<u64> {
    let directory = source.local_tree()?.open_directory(&path.parent()?).ok()??;
    let (attributes, origin) = directory.look_at(path.name()).ok()?;
    (attributes.fingerprint == *fingerprint).then_some(origin)
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

/// Reads the bytes again and compares them with what was received, and with the source's own checksum.
fn verify(
    file: &LazyFile,
    backing: &BackingFile,
    expected: Option<&Expected>,
) -> Result<(FileHash, ProofClass)> {
    let (found, sum) = match expected.map(|expected| &expected.checksum) {
        None => hash_backing(backing, file.size()).map(|hash| (hash, None)),
        Some(like) => hash_with(backing, file.size(), like).map(|(hash, sum)| (hash, Some(sum))),
    }
    .map_err(Error::of_destination)?;
    let corrupt =
        |why| Error::new(Kind::Corrupt, "verify file").at(file.path.as_path()).because(why);
    for (index, hash) in (0u64..).zip(&found.blocks) {
        if file.hashes.get(index).is_some_and(|landed| landed != *hash) {
            let why = format!("block {index} on the destination's disk is not what was received");
            return Err(corrupt(why).of_destination());
        }
    }
    let proof = match expected.zip(sum) {
        None => ProofClass::Transfer,
        Some((Expected { checksum, .. }, ours)) if *checksum == ours => ProofClass::SourceChecksum,
        Some((Expected { checksum, may_be_outdated: false }, ours)) => {
            return Err(corrupt(contradiction(checksum, &ours)));
        }
        Some((Expected { checksum, .. }, ours)) => {
            tracing::warn!(path = %file.path, says = %checksum, is = %ours, "its checksum file is older, and of other bytes: not used");
            ProofClass::Transfer
        }
    };
    Ok((found, proof))
}

/// Why bytes with the checksum `ours` are not those of the source.
pub(crate) fn contradiction(theirs: &Checksum, ours: &Checksum) -> String {
    format!("the source says its checksum is {theirs}; its bytes have {ours}")
}
