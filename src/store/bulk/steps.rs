//! Steps. One sync makes durable what a step's files hold and what the step before renamed; one commit then records the intents of the
//! one and the publication of the other; then come the renames. So a step costs one sync and one commit, however many files it has.
//!
//! Cut off anywhere, recovery finds each file of the last two steps under one of its names: it looks at every intent.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::store::catalog::{
    EntryPhase, EntryRecord, IntentEnd, KnownFiles, NameChange, OtherRecord, Part, ProofClass,
    Step, Version,
};
use crate::store::cut::cut_after;
use crate::store::destination::Disk;
use crate::store::publish::Replace;
use crate::store::recovery::{Final, placed_of};
use crate::store::root::{is_entry, open_beneath, sync_directory};
use crate::store::{Destination, FileHash, Identity, MetadataLoss};

use super::part::Finished;

/// Something that shall get its name in DIR.
#[derive(Debug)]
pub struct Ready {
    /// Its name.
    pub path: RelPath,
    /// What it is.
    pub content: Content,
    /// What may go for it.
    pub replace: Replace,
}

/// What gets a name.
#[derive(Debug)]
pub enum Content {
    /// A part that was proven.
    File {
        /// The part.
        part: Finished,
        /// The version that its bytes are.
        version: Version,
        /// Their hashes, read back.
        hash: FileHash,
        /// Its inode number at the source.
        origin: Option<u64>,
    },
    /// An entry without bytes.
    Special(Finished, EntryKind),
    /// A published file that has another name at the source now.
    Moved {
        /// What was recorded of it, with its old path.
        record: Box<EntryRecord>,
    },
}

/// What one step does and says.
#[derive(Debug, Default)]
pub struct Said {
    /// What gets its name.
    pub ready: Vec<Ready>,
    /// What the source has.
    pub names: Vec<NameChange>,
    /// Entries without bytes that lie in DIR already; this step makes them durable.
    pub others: Vec<OtherRecord>,
    /// Entries that were taken out of DIR; this step makes that durable.
    pub forgotten: Vec<RelPath>,
}

/// How it ended for one name.
#[derive(Debug)]
pub struct Outcome {
    /// The name.
    pub path: RelPath,
    /// What it is.
    pub what: What,
    /// Metadata that was lost; or why it has not its name.
    pub result: Result<Vec<MetadataLoss>>,
}

/// What got a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A file of so many bytes.
    File(u64),
    /// One that was there, under another name.
    Moved(u64),
    /// An entry without bytes.
    Special,
}

/// The steps of one copy, in order.
#[derive(Debug)]
pub struct Steps {
    disk: Arc<Disk>,
    /// Renamed by the last step.
    placed: Vec<Ready>,
    /// Intents of the last step that came to nothing.
    failed: Vec<(RelPath, u64)>,
    /// Steps that were begun.
    count: u64,
}

impl Destination {
    /// Begins steps. Nothing else publishes the same names meanwhile.
    pub fn steps(&self) -> Steps {
        Steps { disk: Arc::clone(&self.disk), placed: Vec::new(), failed: Vec::new(), count: 0 }
    }
}

impl Steps {
    /// Takes the next step. Answers what became durable, and what failed: a file of `said` that does neither is answered by the next
    /// step. An empty step ends them.
    ///
    /// # Errors
    /// After a failed sync nothing of this step and the one before is published; as a durable write of the catalog. The copy has to end.
    pub fn step(&mut self, mut said: Said) -> Result<(Vec<Outcome>, KnownFiles)> {
        self.count += 1;
        let mut outcomes = Vec::new();
        let mut ready = Vec::with_capacity(said.ready.len());
        let mut intents = Vec::with_capacity(said.ready.len());
        for one in said.ready.drain(..) {
            match self.intent(&one) {
                Ok(intent) => {
                    intents.extend(intent);
                    ready.push(one);
                }
                Err(error) => outcomes.push(one.failed(error)),
            }
        }
        self.sync(&ready).map_err(|error| self.take_back(error))?;
        self.cut_after("synced");
        let placed = std::mem::take(&mut self.placed);
        let (counts, known) = self.record(&placed, &intents, &said)?;
        self.cut_after("recorded");
        outcomes.extend(placed.into_iter().map(Ready::succeeded));
        let mut counts = counts.into_iter();
        let mut parents = HashMap::new();
        for one in ready {
            let is_superseded = one.ino().is_some() && counts.next() != Some(true);
            let placed = if is_superseded {
                Err(Error::new(Kind::Stale, "publish file")
                    .at(one.path.as_path())
                    .because("a later version of it is recorded"))
            } else {
                self.place(&mut parents, &one)
            };
            match placed {
                Ok(()) => {
                    self.placed.push(one.named());
                    self.cut_after("placed one");
                }
                Err(error) => {
                    self.failed.extend(one.ino().map(|ino| (one.path.clone(), ino)));
                    outcomes.push(one.failed(error));
                }
            }
        }
        self.cut_after("placed");
        Ok((outcomes, known))
    }

    fn cut_after(&self, what: &str) {
        if cfg!(debug_assertions) {
            cut_after(&format!("step {} {what}", self.count));
        }
    }

    /// Whether the last step left something for another.
    pub fn is_open(&self) -> bool {
        !self.placed.is_empty() || !self.failed.is_empty()
    }

    /// Everything of one file that comes before the sync, and what the catalog shall know before the rename.
    fn intent(&self, ready: &Ready) -> Result<Option<EntryRecord>> {
        let disk = &self.disk;
        disk.check_path(&ready.path)?;
        Ok(match &ready.content {
            Content::Special(..) => None,
            Content::Moved { record } => {
                let EntryPhase::Published(placed) = record.phase else {
                    return Err(Error::new(Kind::Invalid, "move file").at(ready.path.as_path()));
                };
                let phase = EntryPhase::Verified(placed);
                Some(EntryRecord { path: ready.path.clone(), phase, ..(**record).clone() })
            }
            Content::File { part, version, hash, origin } => {
                if hash.blocks.len() > 1 {
                    let hashes: Vec<_> = (0u64..).zip(hash.blocks.iter().copied()).collect();
                    disk.catalog.write_hashes(version.ino, &hashes).map_err(|errno| {
                        disk.root.error("write block hashes of", &ready.path, errno)
                    })?;
                }
                Some(EntryRecord {
                    phase: EntryPhase::Verified(part.placed),
                    part: Some(Part { name: part.scratch.name.clone(), inode: part.placed.inode }),
                    digest: Some(hash.root),
                    proof: Some(ProofClass::Transfer),
                    losses: part.losses.clone(),
                    origin: *origin,
                    ..EntryRecord::absent(ready.path.clone(), version.clone())
                })
            }
        })
    }

    /// What was written and what was renamed becomes durable.
    fn sync(&self, ready: &[Ready]) -> Result<()> {
        let disk = &self.disk;
        let failed = |errno| disk.root.own_error("sync", errno);
        if !disk.abilities.group_sync || disk.state.is_elsewhere() {
            disk.catalog.sync_hash_files().map_err(failed)?;
        }
        if disk.abilities.group_sync {
            return rustix::fs::syncfs(disk.root.fd()).map_err(failed);
        }
        for one in ready {
            if let Content::File { part, .. } = &one.content {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
                open_beneath(disk.state.parts(), part.scratch.name.as_bytes(), flags)
                    .and_then(rustix::fs::fsync)
                    .map_err(failed)?;
            }
        }
        let mut parents: Vec<_> =
            ready.iter().chain(&self.placed).filter_map(|one| one.path.parent()).collect();
        parents.sort_unstable();
        parents.dedup();
        // Those above them too: they may have been made for these.
        parents.iter().try_for_each(|parent| disk.root.sync_up(parent))
    }

    /// A sync failed: what is not provably published is not published at all.
    fn take_back(&mut self, error: Error) -> Error {
        let mut parents = HashMap::new();
        for one in self.placed.drain(..) {
            let Content::File { part, .. } = &one.content else { continue };
            match self.disk.parent(&mut parents, &one.path) {
                Ok(parent) => {
                    self.disk.take_back(&part.scratch.name, parent.as_fd(), &one.path);
                }
                Err(error) => tracing::error!(%error, "unproven file stays under its final name"),
            }
        }
        error.of_destination()
    }

    fn record(
        &mut self,
        placed: &[Ready],
        intents: &[EntryRecord],
        said: &Said,
    ) -> Result<(Vec<bool>, KnownFiles)> {
        let disk = &self.disk;
        disk.will_change(intents)?;
        let mut others = said.others.clone();
        others.extend(placed.iter().filter_map(Ready::other));
        let failed = std::mem::take(&mut self.failed);
        let published = |one: &'_ Ready| one.ino().map(|ino| (one.path.clone(), ino));
        let published: Vec<_> = placed.iter().filter_map(published).collect();
        let moved = placed.iter().filter_map(|one| match &one.content {
            Content::Moved { record } => Some(&record.path),
            _ => None,
        });
        let step = Step {
            ends: (published.iter().map(|(path, ino)| (path, *ino, IntentEnd::Published)))
                .chain(failed.iter().map(|(path, ino)| (path, *ino, IntentEnd::Broken)))
                .collect(),
            forgotten: said.forgotten.iter().chain(moved).collect(),
            intents,
            others: &others,
            names: &said.names,
        };
        disk.catalog.record_step(&step)
    }

    fn place(&self, parents: &mut Parents, ready: &Ready) -> Result<()> {
        let Ready { path, content, replace } = ready;
        let parent = self.disk.parent(parents, path)?;
        let part = match content {
            Content::File { part, .. } | Content::Special(part, _) => part,
            Content::Moved { record } => {
                let from = self.disk.parent(parents, &record.path)?;
                return self.disk.move_published(record, &from, &parent, path);
            }
        };
        let Finished { scratch, identity, .. } = part;
        self.disk.place(&scratch.name, *identity, parent.as_fd(), path, *replace)
    }
}

/// Open directories of one step.
type Parents = HashMap<RelPath, Arc<OwnedFd>>;
/// Directories that one step holds open at a time.
const PARENTS_MAX: usize = 64;

impl Disk {
    fn parent(&self, parents: &mut Parents, path: &RelPath) -> Result<Arc<OwnedFd>> {
        let parent = path.parent().unwrap_or_else(RelPath::root);
        if let Some(open) = parents.get(&parent) {
            return Ok(Arc::clone(open));
        }
        if parents.len() >= PARENTS_MAX {
            parents.clear();
        }
        let open = Arc::new(self.root.directory(&parent)?);
        parents.insert(parent, Arc::clone(&open));
        Ok(open)
    }

    /// Gives a published file another name, if it is still what was published.
    pub(super) fn move_published(
        &self,
        record: &EntryRecord,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &RelPath,
    ) -> Result<()> {
        let failed = |errno| self.root.error("move file to", path, errno);
        let old = record.path.name();
        let EntryPhase::Published(placed) = record.phase else { return Err(failed(Errno::INVAL)) };
        let handle =
            open_beneath(from.as_fd(), old.as_encoded_bytes(), OFlags::PATH | OFlags::NOFOLLOW)
                .map_err(failed)?;
        let stat = rustix::fs::fstat(&handle).map_err(failed)?;
        if Final::File(placed_of(&stat)) != Final::File(placed) {
            return Err(failed(Errno::STALE).because("it was changed since it was copied"));
        }
        // rename(2) does nothing between two names of one inode.
        if is_entry(to.as_fd(), path.name(), Identity::of(&stat)).map_err(failed)? {
            return rustix::fs::unlinkat(from, old, AtFlags::empty()).map_err(failed);
        }
        let moved = if self.abilities.rename_no_replace {
            rustix::fs::renameat_with(from, old, to, path.name(), RenameFlags::NOREPLACE)
        } else {
            rustix::fs::linkat(from, old, to, path.name(), AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(from, old, AtFlags::empty()))
        };
        moved.map_err(failed)
    }
}

impl Ready {
    fn ino(&self) -> Option<u64> {
        match &self.content {
            Content::File { version, .. } => Some(version.ino),
            Content::Moved { record } => Some(record.version.ino),
            Content::Special(..) => None,
        }
    }

    fn what(&self) -> What {
        match &self.content {
            Content::File { part, .. } => What::File(part.placed.size),
            Content::Moved { record } => What::Moved(record.version.fingerprint.size),
            Content::Special(..) => What::Special,
        }
    }

    fn other(&self) -> Option<OtherRecord> {
        let Content::Special(part, kind) = &self.content else { return None };
        let (path, losses) = (self.path.clone(), part.losses.clone());
        Some(OtherRecord { path, kind: *kind, link_of: None, losses, placed: Some(part.placed) })
    }

    /// It has its final name: its part is none any more.
    fn named(mut self) -> Self {
        if let Content::File { part, .. } | Content::Special(part, _) = &mut self.content {
            part.scratch.is_placed = true;
        }
        self
    }

    fn succeeded(mut self) -> Outcome {
        let what = self.what();
        let losses = match &mut self.content {
            Content::File { part, .. } | Content::Special(part, _) => {
                std::mem::take(&mut part.losses)
            }
            Content::Moved { .. } => Vec::new(),
        };
        Outcome { path: self.path, what, result: Ok(losses) }
    }

    fn failed(self, error: Error) -> Outcome {
        let what = self.what();
        Outcome { path: self.path, what, result: Err(error.of_destination()) }
    }
}

impl crate::store::root::Root {
    /// Makes a directory and the names of all above it durable.
    fn sync_up(&self, path: &RelPath) -> Result<()> {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            sync_directory(self.directory(&path)?.as_fd())
                .map_err(|errno| self.error("sync directory", &path, errno))?;
            at = path.parent();
        }
        Ok(())
    }
}
