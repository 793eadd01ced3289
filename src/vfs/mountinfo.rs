//! What is mounted where, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)): the one way to look at a mount without touching it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file system type that our mounts show.
pub const FS_TYPE: &str = "fuse.lazycopy";

/// A file system's device number, as `MAJ:MIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Major; 0 for FUSE.
    pub major: u32,
    /// Minor; names the connection below `/sys/fs/fuse/connections`.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl DeviceNumber {
    /// Reads `MAJ:MIN`, decimal.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// One mount of this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Number of the mount; what `mnt_id` in a process' fdinfo says.
    pub id: u64,
    /// The mount that it lies on.
    pub parent: u64,
    /// The file system's device.
    pub device: DeviceNumber,
    /// Where it lies, unescaped.
    pub mountpoint: PathBuf,
    /// Type with subtype: `fuse.lazycopy`.
    pub fs_type: String,
    /// What is mounted, unescaped.
    pub source: OsString,
    /// Per-mount options: `rw,nosuid,nodev`.
    pub options: String,
}

impl MountEntry {
    /// Whether it is a mount of this program, of whichever process.
    pub fn is_lazycopy(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts of this process' namespace.
///
/// # Errors
/// `Io` and others if `/proc` is not readable.
pub fn read() -> Result<Vec<MountEntry>> {
    read_of("self")
}

/// All mounts of the namespace of `process`: its number in /proc, or `self`.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_of(process: &str) -> Result<Vec<MountEntry>> {
    let path = format!("/proc/{process}/mountinfo");
    let table = fs::read(&path).map_err(|error| Error::io("read mount table", error).at(&path))?;
    Ok(parse(&table))
}

/// Reads the lines of a mount table; lines that make no sense are left out.
pub fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// The uppermost mount at `mountpoint` (an absolute path without links): the one that a path lookup ends in.
pub fn top_at<'a>(mounts: &'a [MountEntry], mountpoint: &Path) -> Option<&'a MountEntry> {
    let here: Vec<_> = mounts.iter().filter(|mount| mount.mountpoint == mountpoint).collect();
    // Stacked mounts are each other's parents; the order of lines is no promise.
    here.iter().rev().find(|mount| here.iter().all(|other| other.parent != mount.id)).copied()
}

/// The mounts that lie somewhere on the mount `id`, which would go with it.
pub fn mounts_on(mounts: &[MountEntry], id: u64) -> Vec<&MountEntry> {
    let mut found: Vec<&MountEntry> = Vec::new();
    let mut parents = vec![id];
    while let Some(parent) = parents.pop() {
        for mount in mounts.iter().filter(|mount| mount.parent == parent && mount.id != parent) {
            parents.push(mount.id);
            found.push(mount);
        }
    }
    found
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // 36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let parent = text(fields.next()?)?.parse().ok()?;
    let device = DeviceNumber::parse(text(fields.next()?)?)?;
    let _root = fields.next()?;
    let mountpoint = PathBuf::from(unescape(fields.next()?));
    let options = text(fields.next()?)?.to_owned();
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = unescape(fields.next()?).into_string().ok()?;
    let source = unescape(fields.next()?);
    Some(MountEntry { id, parent, device, mountpoint, fs_type, source, options })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Undoes the kernel's escapes: `\` and three octal digits for space, tab, newline, `\` and `#` (fs/proc_namespace.c).
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(text).filter(|_| *first == b'\\');
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Whether `path` is `directory` or lies below it, by its bytes alone.
pub(crate) fn is_below(path: &OsStr, directory: &Path) -> bool {
    let directory = directory.as_os_str().as_bytes();
    match path.as_bytes().strip_prefix(directory) {
        Some(rest) => rest.is_empty() || rest[0] == b'/' || directory.ends_with(b"/"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:40 / /mnt/my\\040film rw,nosuid,nodev - fuse.lazycopy http://h/a\\040b\\134c rw,user_id=0\n\
        garbage\n\
        29 30 0:41 / /mnt/my\\040film rw - tmpfs  rw\n\
        31 22 0:42 / /a rw shared:2 master:3 - fuse x rw\n";

    #[test]
    fn escapes_optional_fields_and_empty_sources_are_read() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/my film"));
        assert_eq!(mounts[1].source, "http://h/a b\\c");
        assert_eq!(mounts[1].device.to_string(), "0:40");
        assert!(mounts[1].is_lazycopy() && !mounts[3].is_lazycopy());
        assert_eq!(mounts[2].source, "");
        assert_eq!(mounts[2].fs_type, "tmpfs");
        assert_eq!(mounts[3].fs_type, "fuse");
    }

    #[test]
    fn the_top_of_a_stack_is_the_mount_that_nothing_lies_on() {
        let mounts = parse(TABLE);
        assert_eq!(top_at(&mounts, Path::new("/mnt/my film")).unwrap().id, 29);
        assert!(top_at(&mounts, Path::new("/mnt")).is_none());
    }

    #[test]
    fn what_lies_on_a_mount_is_found_at_any_depth() {
        let table = b"1 1 8:1 / / rw - ext4 a rw\n2 1 0:9 / /m rw - fuse.lazycopy s rw\n\
            3 2 0:5 / /m/x rw - tmpfs t rw\n4 3 0:6 / /m/x/y rw - tmpfs t rw\n5 1 0:7 / /n rw - tmpfs t rw\n";
        let mounts = parse(table);
        let on = |id| mounts_on(&mounts, id).iter().map(|mount| mount.id).collect::<Vec<_>>();
        assert_eq!(on(2), [3, 4]);
        assert!(on(5).is_empty());
    }

    #[test]
    fn a_name_that_begins_alike_is_not_below() {
        assert!(is_below(OsStr::new("/m/a"), Path::new("/m")));
        assert!(is_below(OsStr::new("/m"), Path::new("/m")));
        assert!(is_below(OsStr::new("/m"), Path::new("/")));
        assert!(!is_below(OsStr::new("/mm"), Path::new("/m")));
    }

    proptest! {
        #[test]
        fn no_table_makes_the_parser_panic(table in prop::collection::vec(any::<u8>(), 0..400)) {
            let _mounts = parse(&table);
        }

        #[test]
        fn every_mountpoint_survives_the_kernels_escapes(name in prop::collection::vec(1u8..=255, 1..60)) {
            let mut escaped = Vec::new();
            for byte in &name {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    other => escaped.push(*other),
                }
            }
            let line = [b"5 1 0:9 / /".as_slice(), &escaped, b" rw - fuse.lazycopy s rw\n"].concat();
            let mounts = parse(&line);
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(mounts[0].mountpoint.as_os_str().as_bytes(), [b"/".as_slice(), &name].concat());
        }
    }
}
