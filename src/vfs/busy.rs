//! Who keeps a mount busy, read from /proc alone: nothing is looked up through the mount, which may not answer.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Sender};
use rustix::fs::{Mode, OFlags};

use crate::vfs::mountinfo::{self, DeviceNumber, MountEntry};

/// Time for the whole search. `/proc/PID/maps` waits for a process that is stuck in a page fault.
const SEARCH_DEADLINE: Duration = Duration::from_secs(3);

/// In what way a process uses a mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Its current directory is inside.
    CurrentDirectory,
    /// Its root directory is inside.
    Root,
    /// It has this file open.
    Open(PathBuf),
    /// It has this file mapped, or runs it.
    Mapped(PathBuf),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::CurrentDirectory => f.write_str("current directory"),
            Use::Root => f.write_str("root directory"),
            Use::Open(path) => write!(f, "open {}", path.display()),
            Use::Mapped(path) => write!(f, "mapped {}", path.display()),
        }
    }
}

/// A process that keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BusyProcess {
    /// Process id.
    pub pid: u32,
    /// Its name (`comm`, at most 15 bytes): the full command line would wait for a stuck process.
    pub command: String,
    /// One way in which it uses the mount.
    pub what: Use,
}

impl fmt::Display for BusyProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}): {}", self.pid, self.command, self.what)
    }
}

/// What to look for.
#[derive(Debug, Clone)]
struct Wanted {
    mountpoint: PathBuf,
    number: DeviceNumber,
    ids: Vec<u64>,
}

/// The processes that use the mount `number` at `mountpoint`, as far as this user may see them and as found within three seconds. A
/// mount that was detached since `mounts` was read is found all the same.
pub fn who_is_busy(
    mountpoint: &Path,
    number: DeviceNumber,
    mounts: &[MountEntry],
) -> Vec<BusyProcess> {
    let ids = mounts.iter().filter(|mount| mount.device == number).map(|mount| mount.id).collect();
    let wanted = Wanted { mountpoint: mountpoint.to_owned(), number, ids };
    let deadline = Instant::now() + SEARCH_DEADLINE;
    let (sender, found) = channel::bounded(64);
    // Left behind if it gets stuck; sending fails once nobody listens, which ends it.
    let search =
        thread::Builder::new().name("busy".to_owned()).spawn(move || search(&wanted, &sender));
    if let Err(error) = search {
        tracing::warn!(err = %error, "no thread to search for users of the mount");
        return Vec::new();
    }
    let mut all = BTreeSet::new();
    while let Ok(process) = found.recv_deadline(deadline) {
        all.insert(process);
    }
    all.into_iter().collect()
}

/// All cheap questions first, so that one stuck process hides nobody else.
fn search(wanted: &Wanted, found: &Sender<BusyProcess>) -> Option<()> {
    let own = std::process::id();
    let pids: Vec<u32> = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .collect();
    for pid in &pids {
        for what in wanted.links_of(*pid) {
            found.send(describe(*pid, what)).ok()?;
        }
    }
    for pid in &pids {
        for path in wanted.mapped_by(*pid) {
            found.send(describe(*pid, Use::Mapped(path))).ok()?;
        }
    }
    Some(())
}

fn describe(pid: u32, what: Use) -> BusyProcess {
    let command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    BusyProcess { pid, command: String::from_utf8_lossy(&command).trim_end().to_owned(), what }
}

impl Wanted {
    fn is_inside(&self, path: &OsStr) -> bool {
        mountinfo::is_below(path, &self.mountpoint)
    }

    /// In a mount that was detached, paths begin at its root.
    fn shown(&self, path: PathBuf) -> PathBuf {
        if self.is_inside(path.as_os_str()) {
            return path;
        }
        path.strip_prefix("/").map_or_else(|_| path.clone(), |below| self.mountpoint.join(below))
    }

    fn links_of(&self, pid: u32) -> Vec<Use> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let inside = |name: &str| match mount_id_of(&process.join(name)) {
            Some(id) => self.ids.contains(&id),
            None => {
                fs::read_link(process.join(name)).is_ok_and(|path| self.is_inside(path.as_os_str()))
            }
        };
        let mut uses = Vec::new();
        if inside("cwd") {
            uses.push(Use::CurrentDirectory);
        }
        if inside("root") && self.mountpoint != Path::new("/") {
            uses.push(Use::Root);
        }
        let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return uses };
        for descriptor in descriptors.flatten() {
            let number = descriptor.file_name();
            // A path longer than PATH_MAX cannot be read, and keeps a mount busy like any other.
            let path = fs::read_link(descriptor.path()).ok();
            let in_mount = match mount_id(&process.join("fdinfo").join(&number)) {
                Some(id) => self.ids.contains(&id),
                None => path.as_ref().is_some_and(|path| self.is_inside(path.as_os_str())),
            };
            if in_mount {
                let path = path.map(|path| self.shown(path));
                uses.push(Use::Open(path.unwrap_or_else(|| PathBuf::from("(a very long path)"))));
            }
        }
        uses
    }

    fn mapped_by(&self, pid: u32) -> Vec<PathBuf> {
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.split(|byte| *byte == b'\n').filter_map(|line| self.mapped_file(line)).collect()
    }

    /// `7f0000000000-7f0000001000 r--s 00000000 00:2b 2   /mnt/file`; the device is in hexadecimal.
    fn mapped_file(&self, line: &[u8]) -> Option<PathBuf> {
        let text = String::from_utf8_lossy(line);
        let mut fields = text.split_ascii_whitespace();
        let (major, minor) = fields.nth(3)?.split_once(':')?;
        let device = DeviceNumber {
            major: u32::from_str_radix(major, 16).ok()?,
            minor: u32::from_str_radix(minor, 16).ok()?,
        };
        let path = text.find('/').map_or("", |start| &text[start..]);
        (device == self.number).then(|| self.shown(PathBuf::from(path)))
    }
}

/// The mount that an open descriptor belongs to, which its path alone does not tell.
fn mount_id(fdinfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(fdinfo).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// The mount that a link of /proc leads into. The path that it shows is no help once the mount is detached. O_PATH: the file system
/// itself is not asked.
fn mount_id_of(link: &Path) -> Option<u64> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(link, flags, Mode::empty()).ok()?;
    mount_id(Path::new(&format!("/proc/self/fdinfo/{}", place.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let number = DeviceNumber { major: 0, minor: 43 };
        Wanted { mountpoint: PathBuf::from("/mnt/x"), number, ids: vec![77] }
    }

    #[test]
    fn a_mapping_is_known_by_its_device() {
        let line = b"7f00-7f01 r--s 00000000 00:2b 2                          /mnt/x/a b";
        assert_eq!(wanted().mapped_file(line).unwrap(), Path::new("/mnt/x/a b"));
        let other = b"7f00-7f01 r--s 00000000 08:2b 2                          /mnt/x/a b";
        assert_eq!(wanted().mapped_file(other), None);
        assert_eq!(wanted().mapped_file(b"7f00-7f01 rw-p 00000000 00:00 0"), None);
        let detached = b"7f00-7f01 r--s 00000000 00:2b 2                          /a b";
        assert_eq!(wanted().mapped_file(detached).unwrap(), Path::new("/mnt/x/a b"));
    }

    #[test]
    fn the_line_names_process_and_use() {
        let process =
            BusyProcess { pid: 7, command: "vlc".to_owned(), what: Use::Open("/m/a".into()) };
        assert_eq!(process.to_string(), "pid 7 (vlc): open /m/a");
        let process = BusyProcess { what: Use::CurrentDirectory, ..process };
        assert_eq!(process.to_string(), "pid 7 (vlc): current directory");
    }
}
