//! What the destination looks like after a life that ended somehow: parts and intents of the catalog against what lies on the disk.
//! Decided first, recorded in one commit, and only then is anything removed; so it can be cut off and begun again at any point.

use std::collections::HashSet;
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::core::path::RelPath;
use crate::error::Result;

use super::Destination;
use super::aside::SetAside;
use super::catalog::{EntryPhase, EntryRecord, Placed, emptied, published, unmended};
use super::metadata::modified_of;
use super::root::sync_directory;
use super::state::sweep;

/// What was found at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Files that were renamed into place without being recorded; they count as published now.
    pub published: u64,
    /// Parts that can be opened again.
    pub resumed: u64,
    /// Entries whose part is gone: nothing of them is here.
    pub lost: u64,
    /// Names that somebody else took: left alone.
    pub conflicts: Vec<RelPath>,
    /// Files of `parts/` that nobody vouches for, removed.
    pub swept_parts: u64,
    /// Files of users that an eviction moved aside and that could not get their names back.
    pub set_aside: Vec<SetAside>,
}

/// Whether a published file is still what we put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Inode, length and time of modification are ours.
    Same,
    /// Somebody changed or replaced it: nothing that the catalog says of its bytes counts.
    Changed,
    /// Nothing has its name.
    Missing,
    /// The entry is not published.
    Unpublished,
}

/// What has a final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Final {
    Nothing,
    File(Placed),
    /// A directory, a symlink, something behind a symlink or another mount.
    Other,
}

/// What an unfinished entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As recorded.
    Keep,
    /// The rename had been done; its directory has to be synced before this is recorded.
    Published(EntryRecord),
    /// A mend had not been done: the file is published as before, its part is of no use.
    Unmended(EntryRecord),
    /// Its part is whole, the rename had not been done.
    Sealed(EntryRecord, Taken),
    /// No part.
    Absent(EntryRecord, Taken),
}

/// Whether somebody else's file has the final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    No,
    BySomebody,
}

/// Decides on one unfinished entry: whether its part is there, and what has its final name.
pub(super) fn judge(record: &EntryRecord, has_part: bool, at_name: Final) -> Verdict {
    let EntryPhase::Verified(intent) = record.phase else {
        return if has_part {
            Verdict::Keep
        } else {
            Verdict::Absent(emptied(record.clone()), Taken::No)
        };
    };
    // Looked at first: link and unlink leave both names for a moment.
    if at_name == Final::File(intent) {
        return Verdict::Published(published(record.clone(), intent));
    }
    if record.is_mend {
        return Verdict::Unmended(unmended(record.clone()));
    }
    let is_free = match at_name {
        Final::Nothing => true,
        Final::File(file) => record.former == Some(file),
        Final::Other => false,
    };
    let taken = if is_free { Taken::No } else { Taken::BySomebody };
    let back = EntryRecord { phase: EntryPhase::Sealed, ..record.clone() };
    if has_part {
        return Verdict::Sealed(back, taken);
    }
    Verdict::Absent(emptied(back), taken)
}

impl Destination {
    /// Brings catalog and disk together. Under the lock, before anything else is done with the destination.
    pub(super) fn recover(&self) -> Result<Recovery> {
        let disk = &self.disk;
        let set_aside = disk.recover_leaving()?;
        let mut recovery = Recovery { set_aside, ..Recovery::default() };
        let mut changed = Vec::new();
        let mut kept = HashSet::new();
        for record in disk.catalog.unfinished()? {
            let failed = |errno| disk.root.error("recover", &record.path, errno);
            let size = record.version.fingerprint.size;
            let has_part = match &record.part {
                Some(part) => self.has_part(part, size).map_err(failed)?,
                None => false,
            };
            let verdict = judge(&record, has_part, self.final_of(&record.path)?);
            if has_part && !matches!(verdict, Verdict::Published(_) | Verdict::Unmended(_)) {
                recovery.resumed += 1;
                kept.extend(record.part.iter().map(|part| part.name.clone()));
            }
            match verdict {
                Verdict::Keep => {}
                Verdict::Unmended(record) => changed.push(record),
                Verdict::Published(record) => {
                    let parent = disk.root.parent_of(&record.path)?;
                    sync_directory(parent.as_fd()).map_err(failed)?;
                    recovery.published += 1;
                    changed.push(record);
                }
                Verdict::Sealed(record, taken) => {
                    recovery.note(&record, taken);
                    changed.push(record);
                }
                Verdict::Absent(record, taken) => {
                    recovery.lost += 1;
                    recovery.note(&record, taken);
                    changed.push(record);
                }
            }
        }
        disk.catalog.record_recovered(&changed)?;
        recovery.swept_parts =
            sweep(disk.state.parts(), |name| name.to_str().is_some_and(|name| kept.contains(name)))
                .map_err(|errno| disk.root.error("sweep parts of", &RelPath::root(), errno))?;
        Ok(recovery)
    }

    /// Removes hash trees that belong to no entry and that nobody has written since this destination was opened; how many. It takes as
    /// long as there are trees, and may run beside everything else.
    ///
    /// # Errors
    /// `Io`; `Corrupt`.
    pub fn sweep_trees(&self) -> Result<u64> {
        self.disk.catalog.sweep_trees()
    }

    /// Whether what `record` says of its published file still holds. One stat.
    ///
    /// # Errors
    /// `Io`; `Denied`.
    pub fn standing(&self, record: &EntryRecord) -> Result<Standing> {
        let EntryPhase::Published(placed) = record.phase else { return Ok(Standing::Unpublished) };
        Ok(match self.final_of(&record.path)? {
            Final::Nothing => Standing::Missing,
            Final::File(file) if file == placed => Standing::Same,
            Final::File(_) | Final::Other => Standing::Changed,
        })
    }

    /// Whether the final name of `record` holds what we last put there, of whatever version. One stat.
    ///
    /// # Errors
    /// `Io`; `Denied`.
    pub fn has_placed(&self, record: &EntryRecord) -> Result<bool> {
        let Some(placed) = record.placed() else { return Ok(false) };
        Ok(self.final_of(&record.path)? == Final::File(placed))
    }

    /// Shows every published entry whose file is no longer what we put there. One stat for each file.
    ///
    /// # Errors
    /// As [`Destination::standing`] and [`super::catalog::Catalog::entries`].
    pub fn changed_published(&self, mut show: impl FnMut(EntryRecord, Standing)) -> Result<()> {
        self.disk.catalog.entries(|record| {
            let standing = self.standing(&record)?;
            if matches!(standing, Standing::Changed | Standing::Missing) {
                show(record, standing);
            }
            Ok(())
        })
    }

    pub(super) fn final_of(&self, path: &RelPath) -> Result<Final> {
        let root = &self.disk.root;
        let device = self.disk.state.device();
        match root.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(handle) => {
                let stat =
                    rustix::fs::fstat(&handle).map_err(|errno| root.error("stat", path, errno))?;
                let is_ours =
                    FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_dev == device;
                Ok(if is_ours { Final::File(placed_of(&stat)) } else { Final::Other })
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Final::Nothing),
            // Whatever it is, it is not proven to be ours.
            Err(Errno::LOOP | Errno::XDEV | Errno::ACCESS) => Ok(Final::Other),
            Err(errno) => Err(root.error("stat", path, errno)),
        }
    }
}

impl Recovery {
    fn note(&mut self, record: &EntryRecord, taken: Taken) {
        if taken == Taken::BySomebody {
            tracing::warn!(path = %record.path, "its name was taken by somebody else; left alone");
            self.conflicts.push(record.path.clone());
        }
    }
}

/// How a file of ours is known again.
pub(super) fn placed_of(stat: &Stat) -> Placed {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Placed { inode: stat.st_ino, size, modified: modified_of(stat) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::core::attributes::{Fingerprint, Timestamp, Validator};
    use crate::error::Kind;
    use crate::store::catalog::{Part, Version};
    use crate::store::{BackingFile, DestinationOptions};

    fn version(ino: u64, size: u64) -> Version {
        let fingerprint = Fingerprint { size, validator: Validator::SizeOnly };
        Version { ino, fingerprint, is_settled: true }
    }

    fn path(name: &str) -> RelPath {
        RelPath::root().child(name.as_ref()).unwrap()
    }

    fn placed(inode: u64) -> Placed {
        Placed { inode, size: 4, modified: Timestamp { seconds: 1, nanos: 2 } }
    }

    /// The intent to publish inode 7, maybe over inode 5 of an earlier version.
    fn intent(former: Option<Placed>) -> EntryRecord {
        EntryRecord {
            phase: EntryPhase::Verified(placed(7)),
            part: Some(Part { name: "p".to_owned(), inode: 7 }),
            former,
            ..EntryRecord::absent(path("f"), version(2, 4))
        }
    }

    #[test]
    fn a_publication_cut_anywhere_is_whole_or_not_there() {
        for former in [None, Some(placed(5))] {
            let before = former.map_or(Final::Nothing, Final::File);
            let ours = Final::File(placed(7));
            // (part, final name) after a cut: before the rename, after it, between link and unlink, and without the part's name.
            for (has_part, at_name) in
                [(true, before), (false, ours), (true, ours), (false, before)]
            {
                let verdict = judge(&intent(former), has_part, at_name);
                match &verdict {
                    Verdict::Published(record) => {
                        assert_eq!(at_name, ours);
                        assert_eq!(record.phase, EntryPhase::Published(placed(7)));
                    }
                    Verdict::Sealed(record, taken) => {
                        assert!(has_part && at_name == before && *taken == Taken::No);
                        assert_eq!((record.phase, record.former), (EntryPhase::Sealed, former));
                    }
                    Verdict::Absent(record, taken) => {
                        assert!(!has_part && at_name == before && *taken == Taken::No);
                        assert_eq!((record.phase, record.former), (EntryPhase::Absent, former));
                    }
                    Verdict::Keep | Verdict::Unmended(_) => panic!("{has_part} {at_name:?}"),
                }
                // A second crash: with the verdict recorded nothing is decided anew, without it the same again.
                assert_eq!(judge(&intent(former), has_part, at_name), verdict);
                if let Verdict::Sealed(record, _) = verdict {
                    assert_eq!(judge(&record, has_part, at_name), Verdict::Keep);
                }
            }
        }
    }

    #[test]
    fn a_mend_cut_anywhere_leaves_the_new_file_or_the_record_of_the_old_one() {
        let mend = EntryRecord { is_mend: true, ..intent(Some(placed(5))) };
        for (has_part, at_name, now) in [
            (true, Final::File(placed(5)), placed(5)),
            (true, Final::Nothing, placed(5)),
            (false, Final::File(placed(7)), placed(7)),
            (true, Final::File(placed(7)), placed(7)),
            (true, Final::Other, placed(5)),
        ] {
            let verdict = judge(&mend, has_part, at_name);
            let (Verdict::Published(record) | Verdict::Unmended(record)) = verdict else {
                panic!("{has_part} {at_name:?}: {verdict:?}");
            };
            assert_eq!(record.phase, EntryPhase::Published(now));
            assert!(record.part.is_none() && record.former.is_none() && !record.is_mend);
        }
    }

    #[test]
    fn a_name_that_somebody_took_is_a_conflict() {
        let touched = Placed { size: 5, ..placed(7) };
        for at_name in [Final::Other, Final::File(placed(9)), Final::File(touched)] {
            for has_part in [true, false] {
                match judge(&intent(Some(placed(5))), has_part, at_name) {
                    Verdict::Sealed(_, taken) | Verdict::Absent(_, taken) => {
                        assert_eq!(taken, Taken::BySomebody);
                    }
                    verdict => panic!("{verdict:?}"),
                }
            }
        }
    }

    fn open(directory: &Path) -> Destination {
        Destination::open(directory, DestinationOptions::default()).unwrap()
    }

    /// Four parts with intents: `a`, `b`, `c`, `d`. Their handles are as after a kill: they remove nothing.
    fn four_intents(destination: &Destination) -> Vec<(String, BackingFile)> {
        let parts = (2u64..).zip(["a", "b", "c", "d"]).map(|(ino, name)| {
            let part = destination.create_part(4).unwrap();
            part.write_at(0, b"ours").unwrap();
            part.keep();
            let stat = rustix::fs::fstat(&*part.descriptor().unwrap()).unwrap();
            let file = destination.disk.part_name(ino - 1);
            let record = EntryRecord {
                phase: EntryPhase::Verified(placed_of(&stat)),
                part: Some(Part { name: file.clone(), inode: stat.st_ino }),
                ..EntryRecord::absent(path(name), version(ino, 4))
            };
            assert_eq!(destination.disk.catalog.record_intents(&[record]).unwrap(), [true]);
            (file, part)
        });
        parts.collect()
    }

    #[test]
    fn every_intent_finds_its_end_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let parts = directory.path().join(".lazycopy/parts");
        let destination = open(directory.path());
        let files = four_intents(&destination);
        fs::write(parts.join("nobody's"), "").unwrap();
        fs::write(directory.path().join(".lazycopy/trees/99"), "").unwrap();
        // a: nothing done. b: renamed. c: the part is gone. d: somebody took the name.
        fs::rename(parts.join(&files[1].0), directory.path().join("b")).unwrap();
        fs::remove_file(parts.join(&files[2].0)).unwrap();
        fs::write(directory.path().join("d"), "theirs").unwrap();
        drop((files, destination));

        let destination = open(directory.path());
        let recovery = destination.recovery().clone();
        let expected = Recovery {
            published: 1,
            resumed: 2,
            lost: 1,
            conflicts: vec![path("d")],
            swept_parts: 1,
            set_aside: Vec::new(),
        };
        assert_eq!(recovery, expected);
        assert_eq!(destination.sweep_trees().unwrap(), 1);
        let entry = |name| destination.catalog().entry(&path(name)).unwrap().unwrap();
        for name in ["a", "d"] {
            assert_eq!(entry(name).phase, EntryPhase::Sealed);
            let mut target = [0; 4];
            let part = destination.reopen_part(&entry(name)).unwrap();
            assert_eq!((part.read_at(0, &mut target).unwrap(), &target), (4, b"ours"));
        }
        assert_eq!(destination.standing(&entry("b")).unwrap(), Standing::Same);
        assert_eq!(entry("c").phase, EntryPhase::Absent);
        assert_eq!(destination.reopen_part(&entry("c")).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(fs::read(directory.path().join("d")).unwrap(), b"theirs");
        drop(destination);
        // And once more: nothing changes.
        let again = open(directory.path());
        let settled = Recovery { resumed: 2, ..Recovery::default() };
        assert_eq!(*again.recovery(), settled);
    }
}
