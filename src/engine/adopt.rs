//! Files that lie in the destination before we come: kept when they are equal, never overwritten unasked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::core::attributes::{Attributes, Checksum, EntryKind};
use crate::core::path::RelPath;
use crate::core::phase::Phase;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::engine::file::LazyFile;
use crate::engine::node::Node;
use crate::engine::publish::{conflict, contradiction, origin_of};
use crate::engine::resume::is_ours;
use crate::engine::settings::ExistingPolicy;
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::ProofClass;
use crate::store::publish::Vouched;
use crate::store::verify::{hash_backing, hash_with};
use crate::store::{BackingFile, Destination, Existing, Identity, MetadataLoss};

/// Conflicts named in the error before the start; the rest is counted.
const SHOWN_CONFLICTS: usize = 20;

/// Before the source is asked again about what lies in the destination.
const LATER: Duration = Duration::from_secs(10);

/// Existing files of equal size that nobody has compared yet.
#[derive(Debug, Default)]
pub struct Candidates {
    waiting: Table<RelPath, Existing>,
    overwrite: Table<RelPath, Identity>,
}

impl Candidates {
    /// A file that most likely has the right bytes has come to lie at `path`.
    pub(super) fn note(&self, path: RelPath, existing: Existing) {
        self.waiting.insert(path, existing);
    }

    /// Whether a file lies at `path` that may have the right bytes.
    pub(super) fn has(&self, path: &RelPath) -> bool {
        self.waiting.get(path).is_some()
    }

    /// The inode that a published file may replace at `path`, if the user asked for that.
    pub(crate) fn to_overwrite(&self, path: &RelPath) -> Option<Identity> {
        self.overwrite.get(path)
    }
}

/// What an existing entry is to the copy.
enum Verdict {
    /// The source has no such name, or both are directories, or equal links.
    Unrelated,
    /// Equal size: to be compared.
    Candidate(RelPath, Existing),
    /// Replaced when the file is published.
    Overwrite(RelPath, Identity),
    /// Said in words.
    Conflict(String),
}

impl Engine {
    /// Looks at everything that lies in the destination, before the start. Files of equal size become candidates.
    ///
    /// # Errors
    /// `Exists` with a list if something differs in size or type; what source and disk answer.
    pub async fn check_existing(self: &Arc<Self>) -> Result<()> {
        let destination = Arc::clone(&self.destination);
        let found = on_disk("look into destination", move || {
            let mut found = Vec::new();
            destination.walk_existing(|path, existing| {
                // What we published ourselves needs no comparison.
                if !is_known(&destination, &path, existing.kind).unwrap_or(false) {
                    found.push((path, existing));
                }
            })?;
            Ok(found)
        })
        .await?;
        let connections = self.source.traits().connections.max(1);
        let verdicts: Vec<Verdict> = stream::iter(found)
            .map(|(path, existing)| self.judge(path, existing))
            .buffered(connections)
            .try_collect()
            .await?;
        let mut conflicts = Vec::new();
        for verdict in verdicts {
            match verdict {
                Verdict::Unrelated => {}
                Verdict::Candidate(path, existing) => {
                    self.candidates.waiting.insert(path, existing);
                }
                Verdict::Overwrite(path, identity) => {
                    self.candidates.overwrite.insert(path, identity);
                }
                Verdict::Conflict(words) => conflicts.push(words),
            }
        }
        if !conflicts.is_empty() {
            return Err(refusal(&conflicts));
        }
        let destination = Arc::clone(&self.destination);
        on_disk("record examination", move || destination.catalog().set_examined()).await
    }

    /// Whether an earlier life looked at everything that lay in the destination before.
    ///
    /// # Errors
    /// What the catalog says.
    pub fn is_examined(&self) -> Result<bool> {
        self.destination.catalog().is_examined()
    }

    /// As [`Engine::check_existing`] while everything else goes on: what came into the destination between two lives, or before a start
    /// without the source. Conflicts are reported.
    pub async fn check_existing_later(self: &Arc<Self>) {
        loop {
            match self.check_existing().await {
                Ok(()) => return,
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "what lies in the destination is compared later");
                    tokio::time::sleep(LATER).await;
                }
                Err(error) => return tracing::warn!(%error, "left alone"),
            }
        }
    }

    async fn judge(self: &Arc<Self>, path: RelPath, existing: Existing) -> Result<Verdict> {
        let connection = self.connection().await;
        let asked = self.patiently(|| self.source.stat(&path)).await;
        drop(connection);
        let source = match asked {
            Ok(attributes) => attributes,
            Err(error) if error.kind() == Kind::NotFound => return Ok(Verdict::Unrelated),
            Err(error) => return Err(error.at(path.as_path())),
        };
        let policy = self.settings.existing;
        if source.kind == EntryKind::Directory && existing.kind == EntryKind::Directory {
            return Ok(Verdict::Unrelated);
        }
        if policy == ExistingPolicy::Fail {
            return Ok(Verdict::Conflict(format!("{path}: exists")));
        }
        if source.kind != existing.kind {
            let words =
                format!("{path}: {:?} here, {:?} at the source", existing.kind, source.kind);
            return Ok(Verdict::Conflict(words));
        }
        match source.kind {
            EntryKind::File => Ok(judge_file(policy, path, &existing, &source)),
            EntryKind::Symlink => self.judge_link(path).await,
            _ => Ok(Verdict::Unrelated),
        }
    }

    async fn judge_link(&self, path: RelPath) -> Result<Verdict> {
        let theirs = self.source.readlink(&path).await?;
        let (destination, place) = (Arc::clone(&self.destination), path.clone());
        let ours =
            on_disk("read existing link", move || destination.existing_target(&place)).await?;
        Ok(if ours == theirs {
            Verdict::Unrelated
        } else {
            Verdict::Conflict(format!(
                "{path}: a link to {ours:?} here, to {theirs:?} at the source"
            ))
        })
    }

    /// Compares all candidates in the background, one after the other.
    pub async fn adopt_candidates(self: &Arc<Self>) {
        for path in self.candidate_paths() {
            let adopted = async {
                let node = self.lookup_path(&path).await?;
                self.adopt_if_candidate(node.file()?).await
            };
            if let Err(error) = adopted.await {
                tracing::warn!(%path, %error, "existing file not adopted");
            }
        }
    }

    fn candidate_paths(&self) -> Vec<RelPath> {
        self.candidates.waiting.keys()
    }

    /// Whether files lie in the destination that nobody has compared yet.
    pub fn has_candidates(&self) -> bool {
        !self.candidates.waiting.is_empty()
    }

    /// The node of a path, looked up name by name.
    ///
    /// # Errors
    /// As [`Engine::lookup`].
    pub async fn lookup_path(self: &Arc<Self>, path: &RelPath) -> Result<Arc<Node>> {
        let mut node = self.node(ROOT_INO)?;
        for name in path.components() {
            node = self.lookup(node.ino, name).await?;
        }
        Ok(node)
    }

    /// If a file of equal size lies at the final name of `file`, compares the two and keeps it when they are equal: `true`.
    ///
    /// # Errors
    /// `Exists` if they differ; it is reported and the existing file left alone.
    pub(crate) async fn adopt_if_candidate(self: &Arc<Self>, file: &Arc<LazyFile>) -> Result<bool> {
        let Some(existing) = self.candidates.waiting.remove(&file.path) else { return Ok(false) };
        if file.phase.get() == Phase::Published {
            return Ok(true);
        }
        let result = self.adopt(file, &existing).await;
        if let Err(error) = &result {
            if error.kind() == Kind::NotFound {
                tracing::info!(path = %file.path, "no longer in the destination; copied like any other");
                return Ok(false);
            }
            self.stats.errors.failed(&file.path, Some(file.ino), error);
            if error.kind() != Kind::Exists {
                self.candidates.waiting.insert(file.path.clone(), existing);
            }
        }
        result.map(|()| true)
    }

    async fn adopt(self: &Arc<Self>, file: &Arc<LazyFile>, existing: &Existing) -> Result<()> {
        let (destination, path) = (Arc::clone(&self.destination), file.path.clone());
        let ours = on_disk("open existing file", move || destination.open_published(&path)).await?;
        let ours = Arc::new(ours);
        // It may have been changed since the start.
        if ours.size() != file.size() {
            return Err(conflict(&file.path, ours.size().min(file.size())));
        }
        let fast = self.settings.existing == ExistingPolicy::AdoptFast
            && ours.identity() == existing.identity
            && file.attributes.modified == Some(existing.modified);
        self.settle(file).await?;
        let proof = match fast {
            true => ProofClass::AdoptedUnverified,
            false => self.prove_equal(file, &ours).await?,
        };
        self.adopt_backing(file, ours, proof).await?;
        self.note_published(file, proof);
        Ok(())
    }

    /// Compares an existing file with the source: by the source's own checksum where it has one, else byte by byte.
    async fn prove_equal(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        ours: &Arc<BackingFile>,
    ) -> Result<ProofClass> {
        // That it is still this version is looked at before anything is said of it.
        let contradicted = match file.attributes.checksum.clone() {
            None => None,
            Some(theirs) => {
                let (summed, like, size) = (Arc::clone(ours), theirs.clone(), file.size());
                let sum = move || hash_with(&summed, size, &like);
                let (_, sum) = on_disk("sum existing file up", sum).await?;
                if sum == theirs {
                    return Ok(ProofClass::SourceChecksum);
                }
                Some(contradiction(&theirs, &sum))
            }
        };
        match (self.first_difference(file, ours).await?, contradicted) {
            (Some(offset), _) => Err(conflict(&file.path, offset)),
            (None, None) => Ok(ProofClass::Transfer),
            (None, Some(why)) => Err(Error::new(Kind::Corrupt, "compare with source")
                .at(file.path.as_path())
                .because(why)),
        }
    }

    /// Lets the catalog vouch for an adopted file, with the hash of its bytes. One that nobody read is looked at again at the next start.
    async fn record_adopted(
        &self,
        file: &LazyFile,
        existing: &Arc<BackingFile>,
        proof: ProofClass,
        noted: (Vec<MetadataLoss>, Option<Checksum>),
    ) -> Result<()> {
        if proof == ProofClass::AdoptedUnverified {
            return Ok(());
        }
        let (destination, version) = (Arc::clone(&self.destination), file.version());
        let (adopted, size) = (Arc::clone(existing), file.size());
        let (source, path) = (Arc::clone(&self.source), file.path.clone());
        on_disk("record adopted file", move || {
            let hash = hash_backing(&adopted, size)?;
            let origin = origin_of(&*source, &path, &version.fingerprint);
            let vouched = Vouched { version: &version, hash: &hash, proof, origin };
            destination.record_adopted(&adopted, vouched, noted)
        })
        .await
    }

    /// From now on `existing`, which holds the right bytes, is the published file. It receives the source's metadata.
    pub(crate) async fn adopt_backing(
        &self,
        file: &LazyFile,
        existing: Arc<BackingFile>,
        proof: ProofClass,
    ) -> Result<()> {
        let metadata = self.source_metadata(file).await?;
        let (destination, adopted) = (Arc::clone(&self.destination), Arc::clone(&existing));
        let identity = existing.identity();
        let checksum = metadata.attributes.checksum.clone();
        let losses = on_disk("set metadata of existing file", move || {
            destination.adopt_file(&adopted, &metadata)
        })
        .await?;
        self.stats.metadata_lost.add(losses.len() as u64);
        self.record_adopted(file, &existing, proof, (losses, checksum)).await?;
        self.publisher.note_ours(&file.path, identity);
        // First the file, then the blocks: who sees them present reads them from here.
        file.set_backing(Some(existing));
        file.claims.mark_present(ByteRange::new(0, file.size()));
        Ok(())
    }
}

/// Whether an entry of the destination is one of ours: a file that we published, or a directory that the source has too.
fn is_known(destination: &Destination, path: &RelPath, kind: EntryKind) -> Result<bool> {
    if kind != EntryKind::Directory {
        return is_ours(destination, path);
    }
    let recorded = destination.catalog().name_at(path)?;
    Ok(recorded.is_some_and(|recorded| recorded.kind == kind))
}

fn judge_file(
    policy: ExistingPolicy,
    path: RelPath,
    existing: &Existing,
    source: &Attributes,
) -> Verdict {
    if policy == ExistingPolicy::Overwrite {
        return Verdict::Overwrite(path, existing.identity);
    }
    if existing.size != source.size {
        let words = format!("{path}: {} bytes here, {} at the source", existing.size, source.size);
        return Verdict::Conflict(words);
    }
    Verdict::Candidate(path, *existing)
}

fn refusal(conflicts: &[String]) -> Error {
    let mut list = conflicts.iter().take(SHOWN_CONFLICTS).cloned().collect::<Vec<_>>().join("\n  ");
    if conflicts.len() > SHOWN_CONFLICTS {
        list.push_str(&format!("\n  … and {} more", conflicts.len() - SHOWN_CONFLICTS));
    }
    Error::new(Kind::Exists, "start")
        .because(format!("the destination holds what the copy would have to replace:\n  {list}\n"))
        .hint("move these away, or start with --existing overwrite")
}
