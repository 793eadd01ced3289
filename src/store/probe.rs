//! What a file system can do, found by doing it. Only whether a sync of all of it answers for each file is known by its name: no
//! failure of a disk can be provoked.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, FsWord, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::{Error, Kind, Result};

use super::root::{create_beneath, open_beneath, stat_entry};

/// Length of the sparse probe file: more than a file system with large clusters rounds up to.
const SPARSE_SIZE: u64 = 16 << 20;
/// A file of that length with one byte written must stay below this.
const SPARSE_LIMIT: u64 = 4 << 20;

/// What a destination's file system can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// A file written in one place takes room for that place only.
    pub holes: bool,
    /// renameat2 with RENAME_NOREPLACE.
    pub rename_no_replace: bool,
    /// renameat2 with RENAME_EXCHANGE.
    pub rename_exchange: bool,
    /// linkat.
    pub hard_links: bool,
    /// symlinkat.
    pub symlinks: bool,
    /// fsync of a directory.
    pub directory_sync: bool,
    /// syncfs fails if any byte of any file did not reach the disk.
    pub group_sync: bool,
    /// `user.*` extended attributes.
    pub user_xattrs: bool,
    /// POSIX access control lists.
    pub acls: bool,
    /// Times keep their nanoseconds.
    pub nanosecond_times: bool,
    /// preadv2 with RWF_NOWAIT.
    pub nowait_reads: bool,
    /// Names that differ only in case are different files.
    pub case_sensitive: bool,
    /// mkfifo.
    pub fifos: bool,
    /// mknod of a device; needs root.
    pub devices: bool,
}

/// An ability that is missing, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// What is missing.
    pub ability: &'static str,
    /// What happens instead.
    pub cost: &'static str,
}

impl Abilities {
    /// Each missing thing with its cost, most important first.
    pub fn missing(&self) -> Vec<Missing> {
        let all = [
            (
                self.holes,
                "sparse files",
                "nothing can be read before it is copied; a lazy copy is not possible here",
            ),
            (
                self.case_sensitive,
                "case-sensitive names",
                "of two names that differ only in case one can be kept",
            ),
            (
                self.rename_no_replace,
                "rename without replacing",
                "files are published by link and unlink, or over a placeholder",
            ),
            (
                self.rename_exchange,
                "exchanging rename",
                "a replaced file is checked just before it is replaced, not while",
            ),
            (
                self.directory_sync,
                "sync of directories",
                "names published just before a power cut may be gone after it",
            ),
            (
                self.group_sync,
                "sync of many files at once",
                "small files are made durable one by one, which is slower",
            ),
            (
                self.hard_links,
                "hard links",
                "each name of a hard-linked file becomes a file of its own",
            ),
            (self.symlinks, "symbolic links", "symbolic links are not kept"),
            (self.user_xattrs, "extended attributes", "extended attributes are not kept"),
            (
                self.acls,
                "access control lists",
                "a file with an access control list becomes accessible to its owner only",
            ),
            (self.nanosecond_times, "nanosecond times", "times are rounded"),
            (
                self.nowait_reads,
                "reads that never wait (RWF_NOWAIT)",
                "each read of local bytes takes a thread switch",
            ),
            (self.fifos, "named pipes", "named pipes are not kept"),
            (self.devices, "device nodes", "device nodes are not kept (they need root)"),
        ];
        all.into_iter()
            .filter(|(is_there, _, _)| !is_there)
            .map(|(_, ability, cost)| Missing { ability, cost })
            .collect()
    }

    /// Refuses a file system on which no lazy copy is possible.
    ///
    /// # Errors
    /// `NotSupported` without sparse files.
    pub fn require(&self, destination: &Path) -> Result<()> {
        if self.holes {
            return Ok(());
        }
        Err(Error::new(Kind::NotSupported, "use destination")
            .at(destination)
            .because("its file system does not keep holes in files, so a part of a file would take the room of all of it")
            .hint("use ext4, xfs, btrfs or tmpfs"))
    }
}

/// Probes the file system of the directory `directory` in a subdirectory that is removed again. For a destination that is open
/// see [`Destination::abilities`](super::Destination::abilities).
///
/// # Errors
/// `Denied`, `ReadOnly`, `NoSpace` or `Io` if nothing can be written there at all.
pub fn probe_directory(directory: &Path) -> Result<Abilities> {
    let failed = |errno| Error::io("probe directory", errno).at(directory);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(directory, flags, Mode::empty()).map_err(failed)?;
    let name = format!(".lazycopy-probe-{:08x}", random() >> 32);
    rustix::fs::mkdirat(&base, &name, Mode::from_raw_mode(0o700)).map_err(failed)?;
    let abilities = open_beneath(base.as_fd(), name.as_bytes(), flags)
        .map_err(failed)
        .and_then(|scratch| probe(scratch.as_fd()).map_err(|error| error.at(directory)));
    let removed = rustix::fs::unlinkat(&base, &name, AtFlags::REMOVEDIR).map_err(failed);
    let abilities = abilities?;
    removed?;
    Ok(abilities)
}

/// Probes in `scratch`, a directory of ours; what it makes there is removed again, by itself or, after a crash, by the sweep.
pub(super) fn probe(scratch: BorrowedFd<'_>) -> Result<Abilities> {
    Probe { scratch, prefix: format!("probe-{:016x}", random()) }
        .run()
        .map_err(|errno| Error::io("probe destination", errno))
}

/// A number that no other life draws: the standard library's hash keys come from the system's random numbers.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

struct Probe<'a> {
    scratch: BorrowedFd<'a>,
    prefix: String,
}

/// Suffixes of the names that a probe makes.
const NAMES: [&str; 9] =
    ["-file", "-other", "-new", "-link", "-symlink", "-fifo", "-device", "-case", "-CASE"];

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        for suffix in NAMES {
            match rustix::fs::unlinkat(self.scratch, self.name(suffix), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => tracing::warn!(err = %errno, "probe file could not be removed"),
            }
        }
    }
}

impl Probe<'_> {
    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn create(&self, suffix: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let name = self.name(suffix);
        create_beneath(self.scratch, name.as_bytes(), flags, Mode::from_raw_mode(0o600))
    }

    fn run(&self) -> Result<Abilities, Errno> {
        let file = self.create("-file")?;
        let nowait_reads = {
            rustix::io::pwrite(&file, b"probe", 0)?;
            can_read_without_waiting(&file)?
        };
        let (rename_no_replace, rename_exchange) = self.renames()?;
        Ok(Abilities {
            holes: keeps_holes(&file)?,
            rename_no_replace,
            rename_exchange,
            hard_links: self.links(),
            symlinks: rustix::fs::symlinkat("target", self.scratch, self.name("-symlink")).is_ok(),
            directory_sync: rustix::fs::fsync(self.scratch).is_ok(),
            group_sync: syncs_groups(&file)?,
            user_xattrs: rustix::fs::fsetxattr(
                &file,
                "user.lazycopy.probe",
                b"1",
                XattrFlags::empty(),
            )
            .is_ok(),
            acls: keeps_acls(&file),
            nanosecond_times: keeps_nanoseconds(&file)?,
            nowait_reads,
            case_sensitive: self.is_case_sensitive()?,
            fifos: self.makes_node("-fifo", FileType::Fifo, 0),
            devices: self.makes_node(
                "-device",
                FileType::CharacterDevice,
                rustix::fs::makedev(1, 3),
            ),
        })
    }

    /// Whether renameat2 knows NOREPLACE and EXCHANGE, and obeys them.
    fn renames(&self) -> Result<(bool, bool), Errno> {
        drop(self.create("-other")?);
        drop(self.create("-new")?);
        let rename = |flags| {
            let (from, to) = (self.name("-other"), self.name("-new"));
            rustix::fs::renameat_with(self.scratch, from, self.scratch, to, flags)
        };
        let no_replace = rename(RenameFlags::NOREPLACE) == Err(Errno::EXIST);
        let exchange = rename(RenameFlags::EXCHANGE).is_ok();
        Ok((no_replace, exchange))
    }

    fn links(&self) -> bool {
        let (from, to) = (self.name("-file"), self.name("-link"));
        rustix::fs::linkat(self.scratch, from, self.scratch, to, AtFlags::empty()).is_ok()
    }

    fn is_case_sensitive(&self) -> Result<bool, Errno> {
        drop(self.create("-case")?);
        let upper = self.name("-CASE");
        Ok(stat_entry(self.scratch, OsStr::new(&upper))?.is_none())
    }

    fn makes_node(&self, suffix: &str, kind: FileType, device: u64) -> bool {
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(self.scratch, self.name(suffix), kind, mode, device).is_ok()
    }
}

/// EAGAIN means "known, but it would wait".
fn can_read_without_waiting(file: &OwnedFd) -> Result<bool, Errno> {
    let mut byte = [0u8];
    let mut target = [IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, &mut target, 0, ReadWriteFlags::NOWAIT) {
        Ok(_) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::NOTSUP | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn keeps_holes(file: &OwnedFd) -> Result<bool, Errno> {
    match rustix::fs::ftruncate(file, SPARSE_SIZE) {
        Err(Errno::FBIG | Errno::NOSPC | Errno::INVAL) => return Ok(false),
        result => result?,
    }
    rustix::io::pwrite(file, b"x", SPARSE_SIZE / 2)?;
    // Delayed allocation: the blocks are counted when they are written.
    rustix::fs::fsync(file)?;
    let stat = rustix::fs::fstat(file)?;
    let taken = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    Ok(taken < SPARSE_LIMIT)
}

/// Sets the list that says what mode 0600 says, in the kernel's format (linux/posix_acl_xattr.h): version 2, then tag,
/// permissions and id of each entry.
fn keeps_acls(file: &OwnedFd) -> bool {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(0x01u16, 6u16), (0x04, 0), (0x20, 0)] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(u32::MAX.to_le_bytes());
    }
    rustix::fs::fsetxattr(file, "system.posix_acl_access", &list, XattrFlags::empty()).is_ok()
}

/// File systems whose syncfs passes every failed write on, from Linux 5.8 on (syncfs(2), "VERSIONS"). Those that keep their files on
/// another one, or on another machine, do not say what failed there. ext2 to ext4, xfs, btrfs, f2fs; tmpfs has no disk.
const TELLING: [FsWord; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994];

fn syncs_groups(file: &OwnedFd) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    let system = rustix::system::uname();
    let release = system.release().to_str().unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().ok());
    let kernel: (Option<u32>, Option<u32>) = (numbers.next().flatten(), numbers.next().flatten());
    Ok(TELLING.contains(&kind) && kernel >= (Some(5), Some(8)))
}

fn keeps_nanoseconds(file: &OwnedFd) -> Result<bool, Errno> {
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?;
    let stat = rustix::fs::fstat(file)?;
    Ok(i64::try_from(stat.st_mtime_nsec) == Ok(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let abilities = probe_directory(directory.path()).unwrap();
        assert!(abilities.holes && abilities.case_sensitive && abilities.rename_no_replace);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_holes_is_not_supported_and_everything_missing_has_a_cost() {
        let directory = tempfile::tempdir().unwrap();
        let found = probe_directory(directory.path()).unwrap();
        let none = Abilities {
            holes: false,
            rename_no_replace: false,
            rename_exchange: false,
            hard_links: false,
            symlinks: false,
            directory_sync: false,
            group_sync: false,
            user_xattrs: false,
            acls: false,
            nanosecond_times: false,
            nowait_reads: false,
            case_sensitive: false,
            fifos: false,
            devices: false,
        };
        assert_eq!(none.missing().len(), 14);
        assert_eq!(none.require(directory.path()).unwrap_err().kind(), Kind::NotSupported);
        assert!(found.require(directory.path()).is_ok());
        assert!(!found.missing().iter().any(|missing| missing.ability == "sparse files"));
    }
}
