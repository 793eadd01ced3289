//! Where else a mount is: bind mounts of it, and copies of it in other mount namespaces. Detaching it here leaves those.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use crate::vfs::mountinfo::{self, DeviceNumber};

/// One place where the mount still is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// A process of the namespace.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// Where the mount is in that namespace.
    pub mountpoint: PathBuf,
    /// Whether that is a namespace other than ours.
    pub is_elsewhere: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.mountpoint.display();
        match self.is_elsewhere {
            true => {
                write!(f, "{place} in the mount namespace of pid {} ({})", self.pid, self.command)
            }
            false => write!(f, "{place}, where it was bound to"),
        }
    }
}

/// The places of the mount `number`, as far as this user may see them; one process for each namespace. Blocking.
pub fn holders(number: DeviceNumber) -> Vec<Holder> {
    let mut seen = HashSet::new();
    let mut found = holders_in("self", std::process::id(), number, false);
    seen.extend(namespace("self"));
    for pid in pids() {
        let name = pid.to_string();
        // Where the namespace is hidden, its mount table may not be: better named twice than not at all.
        let is_new = namespace(&name).is_none_or(|namespace| seen.insert(namespace));
        if is_new {
            found.extend(holders_in(&name, pid, number, true));
        }
    }
    found
}

fn holders_in(process: &str, pid: u32, number: DeviceNumber, is_elsewhere: bool) -> Vec<Holder> {
    let mounts = mountinfo::read_of(process).unwrap_or_default();
    let ours = mounts.into_iter().filter(|mount| mount.device == number && mount.is_lazycopy());
    ours.map(|mount| {
        let command = fs::read(format!("/proc/{process}/comm")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).trim_end().to_owned();
        Holder { pid, command, mountpoint: mount.mountpoint, is_elsewhere }
    })
    .collect()
}

/// `mnt:[4026531841]`.
fn namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_nowhere_is_held_by_nobody() {
        assert_eq!(holders(DeviceNumber { major: 0, minor: u32::MAX }), []);
    }

    #[test]
    fn the_line_names_the_place_and_whose_it_is() {
        let holder = Holder {
            pid: 7,
            command: "dockerd".to_owned(),
            mountpoint: "/data".into(),
            is_elsewhere: true,
        };
        assert_eq!(holder.to_string(), "/data in the mount namespace of pid 7 (dockerd)");
    }
}
