//! The way of a finished part to its final name: metadata, fsync, rename without clobbering, fsync of the directory.
//!
//! Whether the bytes are right was decided before (see [`super::verify`]); nothing here looks at them.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::core::attributes::{Checksum, EntryKind};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

use super::backing::Place;
use super::catalog::{EntryPhase, EntryRecord, IntentEnd, Part, ProofClass, Version};
use super::destination::Disk;
use super::metadata::{self, Metadata, MetadataLoss, Target};
use super::recovery::placed_of;
use super::root::sync_directory;
use super::{BackingFile, Destination, FileHash, Identity};

/// Directories of one group that are synced one by one.
const PARENTS_MAX: usize = 8;

/// What may happen to something that has the final name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Nothing: it stays, and publishing fails.
    Never,
    /// It goes if it is this inode; anything else stays.
    Only(Identity),
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The inode that now has the final name.
    pub identity: Identity,
    /// Kinds of metadata that could not be kept, each once.
    pub losses: Vec<MetadataLoss>,
}

/// A verified part and what it shall become.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The part.
    pub file: &'a BackingFile,
    /// Its final name.
    pub path: &'a RelPath,
    /// What it shall have.
    pub metadata: &'a Metadata,
    /// What may go for it.
    pub replace: Replace,
    /// What the catalog records of it; without, nothing, and recovery will not know it.
    pub vouched: Option<Vouched<'a>>,
}

/// Why the bytes of a part may be published.
#[derive(Debug, Clone, Copy)]
pub struct Vouched<'a> {
    /// The version that they are.
    pub version: &'a Version,
    /// Their hashes, read back.
    pub hash: &'a FileHash,
    /// How they were proven.
    pub proof: ProofClass,
    /// Its inode number at the source, where that has such.
    pub origin: Option<u64>,
}

impl Destination {
    /// Gives a verified part its metadata and its final name, durably. Directories above it are made as by
    /// [`Destination::ensure_directory`]. Reads of `file` go on meanwhile; writes must have ended.
    ///
    /// # Errors
    /// `Exists` if something has the name that `replace` does not allow to go: nothing is changed there and the part stays usable.
    /// `NotSupported` if metadata is strict and cannot be kept. After a failed sync the part is broken for good and unpublished.
    pub fn publish_file(
        &self,
        file: &BackingFile,
        path: &RelPath,
        metadata: &Metadata,
        replace: Replace,
    ) -> Result<Published> {
        self.publish(Candidate { file, path, metadata, replace, vouched: None })
    }

    /// As [`Destination::publish_file`], recorded in the catalog: the intent before the rename, durably; the publication after it,
    /// with the next durable change, as recovery finds it out by itself.
    ///
    /// # Errors
    /// As [`Destination::publish_file`]; `Stale` if a later version of this path is recorded; as a durable write of the catalog.
    pub fn publish(&self, candidate: Candidate<'_>) -> Result<Published> {
        let disk = &self.disk;
        let prepared = Publication::prepare(disk, candidate)?.then(Publication::sync)?;
        let mut placed = Vec::with_capacity(1);
        for intended in intend(disk, vec![Ok(prepared)]) {
            placed.push(intended?.then(Publication::place)?.then(|publication| {
                publication.after_directory_sync(sync_directory(publication.parent.as_fd()))
            })?);
        }
        let mut settled = settle(disk, placed.into_iter().map(Ok).collect());
        settled.pop().unwrap_or_else(|| Err(Error::new(Kind::Io, "publish file")))
    }

    /// As [`Destination::publish`] for many small files, with one sync of the whole file system and one of each directory in place of
    /// two for each file. Only where that sync [answers for each file](super::probe::Abilities::group_sync).
    /// Answers in the order of `group`; one that fails does not hinder the others, but if a sync fails none is published.
    ///
    /// A group holds two descriptors for each file, so it should be some dozens long.
    pub fn publish_group(&self, group: &[Candidate<'_>]) -> Vec<Result<Published>> {
        let disk = &self.disk;
        // Collected, so that every file has taken a step before the sync that vouches for it.
        let prepared: Vec<_> =
            group.iter().map(|candidate| Publication::prepare(disk, *candidate)).collect();
        let is_synced = rustix::fs::syncfs(disk.root.fd());
        let check = |publication: &Publication<'_>| publication.after_sync(is_synced);
        let synced = prepared.into_iter().map(|stage| stage?.then(check)).collect();
        let placed: Vec<_> =
            intend(disk, synced).into_iter().map(|stage| stage?.then(Publication::place)).collect();
        let is_synced = sync_parents(disk, &placed);
        let confirm = |publication: &Publication<'_>| publication.after_directory_sync(is_synced);
        settle(disk, placed.into_iter().map(|stage| stage?.then(confirm)).collect())
    }

    /// Records a file of DIR that was adopted: its bytes are those of the version, durably. `noted` is what of its metadata was lost, and
    /// the source's checksum.
    ///
    /// # Errors
    /// `Stale` if a later version of this path is recorded; as a durable write of the catalog.
    pub fn record_adopted(
        &self,
        file: &BackingFile,
        vouched: Vouched<'_>,
        noted: (Vec<MetadataLoss>, Option<Checksum>),
    ) -> Result<()> {
        let disk = &self.disk;
        let path = file.published_path().ok_or_else(|| file.error("record file", Errno::INVAL))?;
        let descriptor = file.descriptor()?;
        let failed = |errno| disk.root.error("record file", &path, errno);
        let stat = rustix::fs::fstat(&*descriptor).map_err(failed)?;
        if let Some(tree) = write_tree(disk, &vouched).map_err(failed)? {
            rustix::fs::fdatasync(tree).map_err(failed)?;
            disk.catalog.sync_hash_names().map_err(failed)?;
        }
        let phase = EntryPhase::Published(placed_of(&stat));
        let record = EntryRecord { is_adopted: true, ..record_of(&path, &vouched, phase, noted) };
        disk.will_change(std::slice::from_ref(&record))?;
        match disk.catalog.record_intents(&[record])?.as_slice() {
            [true] => Ok(()),
            _ => Err(superseded(&path)),
        }
    }

    /// Gives a file that lay in DIR before us, and whose bytes are right, the metadata of the source, durably.
    ///
    /// # Errors
    /// `NotSupported` if metadata is strict and cannot be kept; else as the system calls.
    pub fn adopt_file(&self, file: &BackingFile, metadata: &Metadata) -> Result<Vec<MetadataLoss>> {
        let path = file.published_path().unwrap_or_else(RelPath::root);
        let descriptor = file.descriptor()?;
        let target = Target::Open((*descriptor).as_fd());
        let losses = metadata::apply(&self.disk, &target, &path, metadata)?;
        file.sync()?;
        Ok(losses)
    }

    /// Gives the published file `existing` one more name, durably.
    ///
    /// # Errors
    /// `NotFound` without `existing`; `Exists` if something else than what may be replaced has the name `new`; `Limit` at the file system's
    /// number of links; `NotSupported` without hard links.
    pub fn publish_hard_link(
        &self,
        existing: &RelPath,
        new: &RelPath,
        replace: Replace,
    ) -> Result<()> {
        let disk = &self.disk;
        let to = disk.ensure_parent(new)?;
        self.link_later(existing, new, replace)?;
        sync_directory(to.as_fd())
            .map_err(|errno| disk.root.error("sync directory of", new, errno))?;
        disk.catalog.note_other(new, EntryKind::File, Some(existing), Some(&[]), None)
    }
}

/// One part on its way. Each step is either followed by the next or by [`Publication::undo`].
struct Publication<'a> {
    disk: &'a Disk,
    candidate: Candidate<'a>,
    part: String,
    parent: OwnedFd,
    /// Serves reads after the rename.
    read_only: OwnedFd,
    losses: Vec<MetadataLoss>,
    /// Its hashes, to be synced.
    tree: Option<OwnedFd>,
    /// Whether the catalog holds its intent.
    is_intended: bool,
}

impl<'a> Publication<'a> {
    /// Everything before the first sync.
    fn prepare(disk: &'a Disk, candidate: Candidate<'a>) -> Result<Self> {
        let Candidate { file, path, metadata, .. } = candidate;
        let failed = |op, errno| disk.root.error(op, path, errno);
        let parent = disk.ensure_parent(path)?;
        let part = match &**file.place.load() {
            Place::Part(part) => part.clone(),
            Place::Moving { .. } | Place::Published(_) => {
                return Err(failed("publish", Errno::INVAL).because("it is published already"));
            }
        };
        let descriptor = file.descriptor()?;
        // Opened while the part is still 0600: its final mode may not let us.
        let read_only = file
            .open_part(&part, OFlags::RDONLY | OFlags::NOFOLLOW)
            .map_err(|errno| failed("open part of", errno))?;
        let tree = match &candidate.vouched {
            Some(vouched) => {
                write_tree(disk, vouched).map_err(|errno| failed("write hashes of", errno))?
            }
            None => None,
        };
        let losses = Vec::new();
        let mut publication =
            Self { disk, candidate, part, parent, read_only, losses, tree, is_intended: false };
        let target = Target::Open((*descriptor).as_fd());
        publication.losses =
            metadata::apply(disk, &target, path, metadata).inspect_err(|_| publication.undo())?;
        Ok(publication)
    }

    /// Takes a step, or goes all the way back.
    fn then(self, step: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        step(&self).inspect_err(|_| self.undo())?;
        Ok(self)
    }

    fn sync(&self) -> Result<()> {
        let descriptor = self.candidate.file.descriptor()?;
        self.after_sync(rustix::fs::fsync(&*descriptor))?;
        let Some(tree) = &self.tree else { return Ok(()) };
        rustix::fs::fdatasync(tree)
            .and_then(|()| self.disk.catalog.sync_hash_names())
            .map_err(|errno| self.disk.root.error("sync hashes of", self.candidate.path, errno))
    }

    /// What the catalog shall know before the rename.
    fn intent(&self) -> Result<Option<EntryRecord>> {
        let Candidate { file, path, metadata, vouched, .. } = self.candidate;
        let Some(vouched) = vouched else { return Ok(None) };
        let descriptor = file.descriptor()?;
        let stat = rustix::fs::fstat(&*descriptor)
            .map_err(|errno| self.disk.root.error("stat part of", path, errno))?;
        let placed = placed_of(&stat);
        let part = Some(Part { name: self.part.clone(), inode: placed.inode });
        let checksum = metadata.attributes.checksum.clone();
        let noted = (self.losses.clone(), checksum);
        Ok(Some(EntryRecord {
            part,
            ..record_of(path, &vouched, EntryPhase::Verified(placed), noted)
        }))
    }

    fn end_intent(&self, end: IntentEnd) -> Option<(&'a RelPath, u64, IntentEnd)> {
        let Candidate { path, vouched, .. } = self.candidate;
        let vouched = vouched.filter(|_| self.is_intended)?;
        Some((path, vouched.version.ino, end))
    }

    fn after_sync(&self, is_synced: Result<(), Errno>) -> Result<()> {
        self.candidate.file.sync_by(|| is_synced)
    }

    fn place(&self) -> Result<()> {
        let Candidate { file, path, replace, .. } = self.candidate;
        let moving = Place::Moving { part: self.part.clone(), path: path.clone() };
        file.place.store(Arc::new(moving));
        self.disk.place(&self.part, file.identity(), self.parent.as_fd(), path, replace)
    }

    fn after_directory_sync(&self, is_synced: Result<(), Errno>) -> Result<()> {
        let Candidate { file, path, .. } = self.candidate;
        is_synced.map_err(|errno| {
            file.set_broken();
            // Not provably published, so not published at all.
            self.disk.take_back(&self.part, self.parent.as_fd(), path);
            self.disk.root.error("sync directory of", path, errno)
        })
    }

    fn settle(self) -> Published {
        let Candidate { file, path, metadata, .. } = self.candidate;
        file.settle(path, self.read_only, metadata.attributes.mode.unwrap_or(0o600));
        Published { identity: file.identity(), losses: self.losses }
    }

    /// A part that was not published is a part as before, and can be opened for writing.
    fn undo(&self) {
        let Candidate { file, path, .. } = self.candidate;
        let end = if file.is_broken() { IntentEnd::Broken } else { IntentEnd::Back };
        end_intents(self.disk, self.end_intent(end).as_slice());
        file.place.store(Arc::new(Place::Part(self.part.clone())));
        let mode = Mode::from_raw_mode(0o600);
        let Ok(descriptor) = file.descriptor() else { return };
        if let Err(errno) = rustix::fs::fchmod(&*descriptor, mode) {
            tracing::warn!(%path, err = %errno, "mode of an unpublished part could not be put back");
        }
    }
}

/// Records the intents of all that came so far, in one commit.
fn intend<'a>(disk: &Disk, stages: Vec<Result<Publication<'a>>>) -> Vec<Result<Publication<'a>>> {
    let stages: Vec<_> = stages
        .into_iter()
        .map(|stage| {
            let publication = stage?;
            let intent = publication.intent().inspect_err(|_| publication.undo())?;
            Ok((publication, intent))
        })
        .collect();
    let intents: Vec<EntryRecord> =
        stages.iter().flatten().filter_map(|(_, intent)| intent.clone()).collect();
    let recorded = match intents.as_slice() {
        [] => Ok(Vec::new()),
        intents => disk.will_change(intents).and_then(|()| disk.catalog.record_intents(intents)),
    };
    let mut counts = recorded.as_deref().unwrap_or_default().iter();
    let mut take_part = |(mut publication, intent): (Publication<'a>, Option<EntryRecord>)| {
        if intent.is_some() {
            let answer = match &recorded {
                Err(error) => Err(error.clone()),
                Ok(_) if counts.next() == Some(&true) => Ok(()),
                Ok(_) => Err(superseded(publication.candidate.path)),
            };
            answer.inspect_err(|_| publication.undo())?;
            publication.is_intended = true;
        }
        Ok(publication)
    };
    stages.into_iter().map(|stage| stage.and_then(&mut take_part)).collect()
}

/// Makes the new names durable: few directories one by one, which leaves alone what else is dirty, many by a sync of everything.
fn sync_parents(disk: &Disk, placed: &[Result<Publication<'_>>]) -> Result<(), Errno> {
    let mut parents = HashMap::new();
    for publication in placed.iter().flatten() {
        parents.entry(publication.candidate.path.parent()).or_insert(&publication.parent);
    }
    if parents.len() > PARENTS_MAX {
        return rustix::fs::syncfs(disk.root.fd());
    }
    parents.values().try_for_each(|parent| sync_directory(parent.as_fd()))
}

/// Everything has its final name: says so, to the catalog in one commit.
fn settle(disk: &Disk, stages: Vec<Result<Publication<'_>>>) -> Vec<Result<Published>> {
    let ends: Vec<_> = stages
        .iter()
        .flatten()
        .filter_map(|publication| publication.end_intent(IntentEnd::Published))
        .collect();
    end_intents(disk, &ends);
    stages.into_iter().map(|stage| stage.map(Publication::settle)).collect()
}

fn end_intents(disk: &Disk, ends: &[(&RelPath, u64, IntentEnd)]) {
    if let Err(error) = disk.catalog.end_intents(ends) {
        tracing::warn!(%error, files = ends.len(), "left to recovery");
    }
}

/// Writes the hashes of a file of more than one block; they are to be synced.
fn write_tree(disk: &Disk, vouched: &Vouched<'_>) -> Result<Option<OwnedFd>, Errno> {
    if vouched.hash.blocks.len() < 2 {
        return Ok(None);
    }
    let hashes: Vec<_> = (0u64..).zip(vouched.hash.blocks.iter().copied()).collect();
    disk.catalog.write_hashes(vouched.version.ino, &hashes).map(Some)
}

fn record_of(
    path: &RelPath,
    vouched: &Vouched<'_>,
    phase: EntryPhase,
    (losses, checksum): (Vec<MetadataLoss>, Option<Checksum>),
) -> EntryRecord {
    let absent = EntryRecord::absent(path.clone(), vouched.version.clone());
    let digest = Some(vouched.hash.root);
    let (proof, origin) = (Some(vouched.proof), vouched.origin);
    EntryRecord { phase, digest, proof, losses, checksum, origin, ..absent }
}

fn superseded(path: &RelPath) -> Error {
    Error::new(Kind::Stale, "publish file")
        .at(path.as_path())
        .because("a later version of it is recorded")
}
