//! The way of a published file out of DIR: moved aside first, looked at where nobody else reaches it by its name, and only then removed. What
//! turns out to be somebody else's gets its name back; where that is taken again it stays aside, and nothing of ours ever removes it.
//!
//! Who still has our file open for writing while it leaves loses what he writes after the look: nothing short of a lease (fcntl(2),
//! F_SETLEASE) would tell, and no safe binding of that is at hand. What he wrote before is seen by the file's time of modification.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::core::attributes::Timestamp;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

use super::catalog::Placed;
use super::destination::{Disk, STATE_NAME};
use super::recovery::placed_of;
use super::root::{UNFINISHED_DIRECTORY, open_beneath, stat_entry, sync_directory};

/// Where files wait for the last look, in the private directory of DIR. Made with the first of them; no sweep ever looks into it.
pub(super) const LEAVING_NAME: &str = "leaving";

/// A file of a user that lost its name in the moment of an eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where it was; the root if that is not known any more.
    pub path: RelPath,
    /// Where it is.
    pub kept_as: PathBuf,
}

impl SetAside {
    /// What the user should know.
    pub fn error(&self) -> Error {
        Error::new(Kind::Exists, "evict")
            .at(self.path.as_path())
            .because(format!(
                "somebody changed it in that moment, and its name was taken again; that file is kept as {}",
                self.kept_as.display()
            ))
            .hint("move it to where you want it")
    }
}

/// What became of a file that was to leave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It was ours and is gone.
    Gone,
    /// It is somebody's, under its own name.
    Theirs,
    /// It is somebody's and could not get its name back.
    Aside(SetAside),
}

impl Disk {
    /// Takes what has the name `path` out of DIR if it is `placed`. `ino` is the recorded version of `path`, by which a later life finds it.
    pub(super) fn leave(&self, path: &RelPath, ino: u64, placed: Placed) -> Result<Left> {
        let failed = |errno| self.root.error("evict", path, errno);
        let parent = self.root.parent_of(path)?;
        let leaving = self.make_leaving().map_err(failed)?;
        let aside = self.name_aside(ino, placed);
        match rustix::fs::renameat(&parent, path.name(), &leaving, aside.as_str()) {
            Err(Errno::NOENT) => return Ok(Left::Gone),
            moved => moved.map_err(failed)?,
        }
        self.judge_aside(&leaving, &aside, path, placed).map_err(failed)
    }

    /// Ends what an earlier life began: the same look, and the same answer to it.
    pub(super) fn recover_leaving(&self) -> Result<Vec<SetAside>> {
        let failed = |errno| self.root.error("recover", &RelPath::root(), errno);
        let leaving = match self.open_leaving() {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            opened => opened.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&leaving).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        let mut set_aside = Vec::new();
        for name in names.iter().filter(|name| !matches!(name.as_str(), "." | "..")) {
            let Some((ino, placed)) = placed_in(name) else {
                tracing::warn!(name, "not made by lazycopy, left alone");
                continue;
            };
            let record = self.catalog.entry_of_ino(ino)?;
            let path = record.map_or_else(RelPath::root, |record| record.path);
            if let Left::Aside(left) =
                self.judge_aside(&leaving, name, &path, placed).map_err(failed)?
            {
                set_aside.push(left);
            }
        }
        Ok(set_aside)
    }

    /// Removes what was moved aside if it is `placed`. A rename changes neither its size nor its time of modification.
    fn judge_aside(
        &self,
        leaving: &OwnedFd,
        aside: &str,
        path: &RelPath,
        placed: Placed,
    ) -> Result<Left, Errno> {
        let Some(stat) = stat_entry(leaving.as_fd(), OsStr::new(aside))? else {
            return Ok(Left::Gone);
        };
        let is_ours = FileType::from_raw_mode(stat.st_mode).is_file()
            && stat.st_dev == self.state.device()
            && placed_of(&stat) == placed;
        if is_ours {
            rustix::fs::unlinkat(leaving, aside, AtFlags::empty())?;
            return Ok(Left::Gone);
        }
        match self.give_back(leaving, aside, path) {
            Ok(()) => {
                tracing::warn!(%path, "changed in the moment of its eviction; left alone");
                Ok(Left::Theirs)
            }
            Err(error) => {
                let state = self.root.shown_as().join(STATE_NAME);
                let kept_as = state.join(LEAVING_NAME).join(aside);
                tracing::warn!(%path, kept_as = %kept_as.display(), %error, "changed in the moment of its eviction, and it cannot have its name back");
                Ok(Left::Aside(SetAside { path: path.clone(), kept_as }))
            }
        }
    }

    /// The name again, if nobody has it.
    fn give_back(&self, leaving: &OwnedFd, aside: &str, path: &RelPath) -> Result<()> {
        let parent = self.root.parent_of(path)?;
        let given = if self.abilities.rename_no_replace {
            let flags = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(leaving, aside, &parent, path.name(), flags)
        } else {
            rustix::fs::linkat(leaving, aside, &parent, path.name(), AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(leaving, aside, AtFlags::empty()))
        };
        given
            .and_then(|()| sync_directory(parent.as_fd()))
            .map_err(|errno| self.root.error("give name back to", path, errno))
    }

    fn open_leaving(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        open_beneath(self.state.fd(), LEAVING_NAME.as_bytes(), flags)
    }

    fn make_leaving(&self) -> Result<OwnedFd, Errno> {
        match self.open_leaving() {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let mode = Mode::from_raw_mode(UNFINISHED_DIRECTORY);
        match rustix::fs::mkdirat(self.state.fd(), LEAVING_NAME, mode) {
            Ok(()) => sync_directory(self.state.fd())?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.open_leaving()
    }

    /// Says all that a later life has to know of it, and is no name of anything else.
    fn name_aside(&self, ino: u64, placed: Placed) -> String {
        let Placed { inode, size, modified: Timestamp { seconds, nanos } } = placed;
        let unique = self.part_name(self.ids.next());
        format!("{ino}.{inode}.{size}.{seconds}.{nanos}.{unique}")
    }
}

/// What [`Disk::name_aside`] has put into a name.
fn placed_in(name: &str) -> Option<(u64, Placed)> {
    let mut words = name.split('.');
    let ino = words.next()?.parse().ok()?;
    let inode = words.next()?.parse().ok()?;
    let size = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    let nanos = words.next()?.parse().ok()?;
    Some((ino, Placed { inode, size, modified: Timestamp { seconds, nanos } }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::core::attributes::{Fingerprint, Validator};
    use crate::store::catalog::{EntryPhase, EntryRecord, Version};
    use crate::store::{Destination, DestinationOptions};

    fn path() -> RelPath {
        RelPath::root().child("f".as_ref()).unwrap()
    }

    fn open(directory: &Path) -> Destination {
        Destination::open(directory, DestinationOptions::default()).unwrap()
    }

    /// A file `f` in DIR that the catalog knows as version 7, and where it is.
    fn published(directory: &Path) -> (Destination, Placed) {
        let destination = open(directory);
        fs::write(directory.join("f"), "ours").unwrap();
        let file = fs::File::options().write(true).open(directory.join("f")).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_500_000_000)).unwrap();
        let placed = placed_of(&rustix::fs::stat(directory.join("f")).unwrap());
        let fingerprint = Fingerprint { size: 4, validator: Validator::SizeOnly };
        let version = Version { ino: 7, fingerprint, is_settled: true };
        let phase = EntryPhase::Published(placed);
        let record = EntryRecord { phase, ..EntryRecord::absent(path(), version) };
        destination.disk.catalog.record_intents(&[record]).unwrap();
        (destination, placed)
    }

    fn asides(directory: &Path) -> Vec<PathBuf> {
        let found = fs::read_dir(directory.join(".lazycopy/leaving")).into_iter().flatten();
        found.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn what_was_written_or_replaced_in_the_moment_of_its_eviction_has_its_name_again() {
        let changes: [fn(&Path); 3] = [
            |file| fs::write(file, "theirs, longer").unwrap(),
            // The same length, and the same inode: only the time tells.
            |file| fs::write(file, "mine").unwrap(),
            |file| {
                fs::remove_file(file).unwrap();
                std::os::unix::fs::symlink("somewhere", file).unwrap();
            },
        ];
        for change in changes {
            let directory = tempfile::tempdir().unwrap();
            let (destination, placed) = published(directory.path());
            let file = directory.path().join("f");
            change(&file);
            let before = rustix::fs::lstat(&file).unwrap();
            assert_eq!(destination.disk.leave(&path(), 7, placed).unwrap(), Left::Theirs);
            let after = rustix::fs::lstat(&file).unwrap();
            assert_eq!((after.st_ino, after.st_size), (before.st_ino, before.st_size));
            assert!(asides(directory.path()).is_empty());
        }
    }

    #[test]
    fn what_is_ours_leaves_and_a_cut_in_between_changes_nothing() {
        for is_cut in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let (destination, placed) = published(directory.path());
            if is_cut {
                let leaving = destination.disk.make_leaving().unwrap();
                let name = destination.disk.name_aside(7, placed);
                let to = directory.path().join(".lazycopy/leaving").join(name);
                fs::rename(directory.path().join("f"), to).unwrap();
                drop((leaving, destination));
                assert!(open(directory.path()).recovery().set_aside.is_empty());
            } else {
                assert_eq!(destination.disk.leave(&path(), 7, placed).unwrap(), Left::Gone);
            }
            assert!(asides(directory.path()).is_empty() && !directory.path().join("f").exists());
        }
    }

    /// As a crash leaves it: `content` was moved aside in the belief that it was `placed`.
    fn cut_with(directory: &Path, destination: Destination, placed: Placed, content: &str) {
        drop(destination.disk.make_leaving().unwrap());
        let name = destination.disk.name_aside(7, placed);
        drop(destination);
        fs::remove_file(directory.join("f")).unwrap();
        fs::write(directory.join(".lazycopy/leaving").join(name), content).unwrap();
    }

    #[test]
    fn a_users_file_that_a_cut_left_aside_has_its_name_again_after_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let (destination, placed) = published(directory.path());
        cut_with(directory.path(), destination, placed, "theirs");
        let destination = open(directory.path());
        assert!(destination.recovery().set_aside.is_empty());
        assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"theirs");
        assert!(asides(directory.path()).is_empty());
    }

    #[test]
    fn a_users_file_whose_name_is_taken_again_is_kept_for_ever_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let (destination, placed) = published(directory.path());
        cut_with(directory.path(), destination, placed, "theirs");
        fs::write(directory.path().join("f"), "newer").unwrap();
        for _ in 0..2 {
            let destination = open(directory.path());
            let [left] = destination.recovery().set_aside.as_slice() else { panic!("not told") };
            assert_eq!((&left.path, fs::read(&left.kept_as).unwrap()), (&path(), b"theirs".into()));
            assert!(left.error().to_string().contains(left.kept_as.to_str().unwrap()));
            assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"newer");
        }
        for is_forced in [false, true] {
            crate::store::forget::forget(directory.path(), None, is_forced).unwrap_err();
        }
        assert_eq!(asides(directory.path()).len(), 1);
    }
}
