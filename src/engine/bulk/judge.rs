//! What is to be done about one name of the source.

use std::ffi::OsString;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::filter::Scope;
use crate::core::path::RelPath;
use crate::engine::bulk::Bulk;
use crate::error::{Error, Kind, Result};
use crate::source::local::tree::LocalDirectory;
use crate::store::bulk::Removed;
use crate::store::catalog::{EntryPhase, EntryRecord, NameRecord, OtherRecord, Placed, ProofClass};
use crate::store::{Existing, Metadata, MetadataLoss, Replace};

/// A part of an earlier life is worth going on with from this size on.
const RESUME_MIN: u64 = 8 << 20;

/// All that is known of one name.
pub(super) struct Seen<'a> {
    pub(super) scope: Scope,
    pub(super) path: &'a RelPath,
    pub(super) attributes: &'a Attributes,
    pub(super) name: Option<&'a NameRecord>,
    pub(super) file: Option<EntryRecord>,
    pub(super) other: Option<OtherRecord>,
    /// What has the name in DIR.
    pub(super) here: Option<Existing>,
    pub(super) directory: &'a LocalDirectory,
}

/// What is to be done, and the inode number of what it is done to.
pub(super) struct Judged {
    pub(super) ino: u64,
    pub(super) decision: Decision,
    /// Where a symlink leads.
    pub(super) target: Option<OsString>,
}

pub(super) enum Decision {
    /// A directory.
    Enter { is_new: bool },
    /// It is there.
    Nothing,
    /// It was there; the catalog learns it.
    Said(OtherRecord),
    /// Brought over.
    Carry { replace: Replace, is_new: bool },
    /// One more name of a file.
    Link { first: RelPath, replace: Replace },
    /// Left to the engine's own way.
    Leave,
}

impl Judged {
    /// Whether the catalog has the same of this name. When it was read last does not matter.
    pub(super) fn is_as_recorded(&self, name: &NameRecord, attributes: &Attributes) -> bool {
        let Some(recorded) = &name.attributes else { return false };
        let mut recorded = recorded.unpack();
        recorded.accessed = attributes.accessed;
        if attributes.kind != EntryKind::File {
            // It has only grown older.
            recorded.is_settled = attributes.is_settled;
        }
        name.ino == self.ino && recorded == *attributes
    }
}

impl Bulk {
    pub(super) fn judge(&self, seen: Seen<'_>) -> Result<Judged> {
        let known = seen.name.filter(|name| name.kind == seen.attributes.kind);
        match seen.attributes.kind {
            EntryKind::Directory => {
                let ino = known.map_or_else(|| self.engine.tree.inos.next(), |name| name.ino);
                let is_new = self.prepare_directory(&seen)?;
                Ok(Judged { ino, decision: Decision::Enter { is_new }, target: None })
            }
            EntryKind::File => self.judge_file(seen),
            _ => self.judge_special(seen, known.map(|name| name.ino)),
        }
    }

    /// Says whether a directory is new in DIR; makes it then.
    fn prepare_directory(&self, seen: &Seen<'_>) -> Result<bool> {
        let destination = &self.engine.destination;
        if seen.here.is_some_and(|here| here.kind == EntryKind::Directory) {
            return Ok(false);
        }
        if self.settings.is_dry || seen.scope == Scope::Walked {
            return Ok(false); // what was in it may have been known
        }
        self.ensure_begun()?;
        if seen.here.is_some() {
            self.clear_the_way(seen)?;
        }
        let is_new = destination.make_directory(seen.path)?;
        // Below a directory that somebody took away everything is known and nothing is there.
        Ok(is_new && seen.name.is_none())
    }

    /// What has the name of a directory goes if it is ours.
    fn clear_the_way(&self, seen: &Seen<'_>) -> Result<()> {
        let destination = &self.engine.destination;
        let gone = match (&seen.file, &seen.other, &seen.here) {
            (Some(record), ..) => {
                let record = EntryRecord { path: seen.path.clone(), ..record.clone() };
                destination.remove_published(&record)?
            }
            (None, Some(other), Some(here)) if here.is_of(other) => {
                destination.remove_other(seen.path, here)?
            }
            _ => return Err(in_the_way(seen.path)),
        };
        match gone {
            Removed::Gone => Ok(()),
            _ => Err(in_the_way(seen.path)),
        }
    }

    fn judge_file(&self, mut seen: Seen<'_>) -> Result<Judged> {
        let attributes = seen.attributes;
        let file = seen.file.take();
        let recorded =
            file.as_ref().filter(|record| record.version.fingerprint == attributes.fingerprint);
        if let (Some(record), Some(here)) = (recorded, &seen.here)
            && let EntryPhase::Published(placed) = record.phase
            && is_placed(here, placed)
        {
            let ino = record.version.ino;
            if let Some(identity) = attributes.identity {
                let (first, ino) = self.links.get_or_insert(identity, (seen.path.clone(), ino));
                if first != *seen.path && self.engine.destination.abilities().hard_links {
                    // Copied as two, by a pass that was cut off; or they became one at the source since.
                    return self.link_to(&seen, Some(record), first, ino);
                }
            }
            self.found(seen.path, record);
            if !is_unchanged(&seen) {
                self.renew_file(&seen)?;
            }
            return Ok(Judged { ino, decision: Decision::Nothing, target: None });
        }
        if let Some(identity) = attributes.identity.filter(|_| file.is_none())
            && let Some(judged) = self.judge_link(&seen, identity)?
        {
            return Ok(judged);
        }
        // What an earlier life has of a large file is used again; a small one is brought over faster than that.
        let is_begun = |record: &&EntryRecord| {
            record.part.is_some() && record.version.fingerprint.size >= RESUME_MIN
        };
        if let Some(record) = recorded.filter(is_begun) {
            let ino = record.version.ino;
            return Ok(Judged { ino, decision: Decision::Leave, target: None });
        }
        // One number for all names of a file: by it a later pass finds the first.
        let linked = attributes.identity.and_then(|identity| self.links.get(&identity));
        let own = linked.filter(|(first, _)| first == seen.path).map(|(_, ino)| ino);
        let ino = recorded.map(|record| record.version.ino).or(own);
        let ino = ino.unwrap_or_else(|| self.engine.tree.inos.next());
        let replace = match &seen.here {
            None => Replace::Never,
            Some(here) if self.is_ours(&seen, file.as_ref(), here)? => Replace::Only(here.identity),
            Some(_) => return Ok(Judged { ino, decision: Decision::Leave, target: None }),
        };
        if file.as_ref().is_some_and(|record| record.version.fingerprint != attributes.fingerprint)
        {
            self.engine.stats.files_changed.increment();
        }
        let is_new = file.is_none() && seen.here.is_none() && attributes.identity.is_none();
        if let Some(identity) = attributes.identity {
            let (first, ino) = self.links.get_or_insert(identity, (seen.path.clone(), ino));
            if first != *seen.path {
                return self.link_to(&seen, file.as_ref(), first, ino);
            }
        }
        Ok(Judged { ino, decision: Decision::Carry { replace, is_new }, target: None })
    }

    /// One of several names of a file: the first that is seen in a pass, or that has the record, is carried.
    fn judge_link(&self, seen: &Seen<'_>, identity: (u64, u64)) -> Result<Option<Judged>> {
        let catalog = self.engine.destination.catalog();
        if self.links.get(&identity).is_none()
            && let Some(name) = catalog.linked(identity)?
            && let Some(record) = catalog.entry_of_ino(name.ino)?
            && record.path != *seen.path
            && record.version.fingerprint == seen.attributes.fingerprint
        {
            // Unless that name is gone meanwhile.
            let is_there =
                self.tree.open_directory(&record.path.parent().unwrap_or_else(RelPath::root));
            let first = is_there.ok().flatten().and_then(|d| d.look_at(record.path.name()).ok());
            if first.is_some_and(|(first, _)| first.identity == Some(identity)) {
                self.links.get_or_insert(identity, (record.path, name.ino));
            }
        }
        let Some((first, ino)) = self.links.get(&identity) else {
            let ino = self.engine.tree.inos.next();
            let own = (seen.path.clone(), ino);
            let (first, ino) = self.links.get_or_insert(identity, own);
            if first == *seen.path {
                return Ok(None);
            }
            return self.link_to(seen, None, first, ino).map(Some);
        };
        if first == *seen.path {
            return Ok(None);
        }
        self.link_to(seen, None, first, ino).map(Some)
    }

    fn link_to(
        &self,
        seen: &Seen<'_>,
        file: Option<&EntryRecord>,
        first: RelPath,
        ino: u64,
    ) -> Result<Judged> {
        let judged = |decision| Judged { ino, decision, target: None };
        let Some(here) = &seen.here else {
            return Ok(judged(Decision::Link { first, replace: Replace::Never }));
        };
        let is_said = seen.other.as_ref().is_some_and(|o| o.link_of.as_ref() == Some(&first));
        let is_link =
            self.engine.destination.existing(&first)?.map(|e| e.identity) == Some(here.identity);
        let is_ours = is_said || self.is_ours(seen, file, here)?;
        Ok(judged(match (is_link, is_said) {
            (true, true) => Decision::Nothing,
            (true, false) => Decision::Said(OtherRecord {
                path: seen.path.clone(),
                kind: EntryKind::File,
                link_of: Some(first),
                losses: Vec::new(),
                placed: None,
            }),
            (false, _) if is_ours => {
                Decision::Link { first, replace: Replace::Only(here.identity) }
            }
            (false, _) => Decision::Leave,
        }))
    }

    /// Whether what has the name in DIR is something that this copy put there, as far as that can be told.
    fn is_ours(
        &self,
        seen: &Seen<'_>,
        file: Option<&EntryRecord>,
        here: &Existing,
    ) -> Result<bool> {
        if let Some(placed) = file.and_then(EntryRecord::placed) {
            return Ok(is_placed(here, placed));
        }
        let Some(other) = &seen.other else { return Ok(false) };
        match &other.link_of {
            Some(first) => {
                let record = self.engine.destination.catalog().entry(first)?;
                let placed = record.and_then(|record| record.placed());
                Ok(placed.is_some_and(|placed| is_placed(here, placed)))
            }
            None => Ok(here.is_of(other)),
        }
    }

    fn judge_special(&self, seen: Seen<'_>, known: Option<u64>) -> Result<Judged> {
        let ino = known.unwrap_or_else(|| self.engine.tree.inos.next());
        let recorded = seen.name.and_then(|name| name.target.clone());
        let is_same = known.is_some() && is_unchanged(&seen);
        let target = match seen.attributes.kind {
            EntryKind::Symlink if is_same && recorded.is_some() => recorded,
            EntryKind::Symlink => Some(seen.directory.readlink(seen.path.name())?),
            _ => None,
        };
        let judged = |decision| Ok(Judged { ino, decision, target: target.clone() });
        let Some(here) = &seen.here else {
            return judged(Decision::Carry { replace: Replace::Never, is_new: false });
        };
        let kind = seen.attributes.kind;
        let is_said = seen.other.as_ref().is_some_and(|other| here.is_of(other));
        let destination = &self.engine.destination;
        let is_alike = destination.is_alike(seen.path, here, seen.attributes, target.as_deref())?;
        match (is_alike, is_said) {
            (true, true) if is_same => judged(Decision::Nothing),
            (true, _) => {
                let metadata = self.metadata_of(&seen)?;
                let losses = self.renew(seen.path, &metadata)?;
                let now = destination.existing(seen.path)?;
                let placed = Some(now.unwrap_or(*here).placed());
                let (path, link_of) = (seen.path.clone(), None);
                judged(Decision::Said(OtherRecord { path, kind, link_of, losses, placed }))
            }
            (false, true) => {
                let replace = Replace::Only(here.identity);
                judged(Decision::Carry { replace, is_new: false })
            }
            (false, false) if self.is_ours(&seen, seen.file.as_ref(), here)? => {
                let replace = Replace::Only(here.identity);
                judged(Decision::Carry { replace, is_new: false })
            }
            (false, false) => judged(Decision::Leave),
        }
    }

    /// A file that is there.
    fn found(&self, path: &RelPath, record: &EntryRecord) {
        let stats = &self.engine.stats;
        stats.errors.succeeded(path);
        self.counts.unchanged.increment();
        stats.count_proof(record.proof.unwrap_or(ProofClass::Transfer));
        stats.carried.increment();
        stats.carried_bytes.add(record.version.fingerprint.size);
        stats.metadata_lost.add(u64::try_from(record.losses.len()).unwrap_or(0));
    }

    fn renew_file(&self, seen: &Seen<'_>) -> Result<()> {
        let metadata = self.metadata_of(seen)?;
        self.renew(seen.path, &metadata).map(drop)
    }

    fn renew(&self, path: &RelPath, metadata: &Metadata) -> Result<Vec<MetadataLoss>> {
        self.counts.renewed.increment();
        if self.settings.is_dry {
            return Ok(Vec::new());
        }
        self.ensure_begun()?;
        self.engine.destination.renew_metadata(path, metadata).map_err(Error::of_destination)
    }

    fn metadata_of(&self, seen: &Seen<'_>) -> Result<Metadata> {
        let xattrs = seen.directory.xattrs_of(seen.path.name())?;
        Ok(Metadata { attributes: seen.attributes.clone(), xattrs })
    }
}

/// Whether nothing of an entry was changed since its name was recorded.
fn is_unchanged(seen: &Seen<'_>) -> bool {
    let recorded = seen.name.and_then(|name| name.attributes.as_ref());
    recorded.is_some_and(|recorded| {
        let recorded = recorded.unpack();
        recorded.changed == seen.attributes.changed
            && recorded.fingerprint == seen.attributes.fingerprint
    })
}

fn is_placed(here: &Existing, placed: Placed) -> bool {
    here.kind == EntryKind::File && here.placed() == placed
}

fn in_the_way(path: &RelPath) -> Error {
    Error::new(Kind::Exists, "make directory")
        .at(path.as_path())
        .because("something else has its name in the destination")
        .hint("move it away")
        .of_destination()
}
