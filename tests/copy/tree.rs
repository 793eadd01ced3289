//! Trees: made, and compared in everything that a copy has to keep.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything about one entry that a copy has to keep.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Looks {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path with the same inode.
    same_as: Option<PathBuf>,
    device: u64,
}

impl Looks {
    pub(crate) fn is_file(&self) -> bool {
        self.kind == "file"
    }

    pub(crate) fn same_bytes(&self, other: &Self) -> bool {
        self.kind == other.kind && self.size == other.size && self.content == other.content
    }
}

/// All of a tree except what belongs to lazycopy.
pub(crate) fn looks(root: &Path) -> BTreeMap<PathBuf, Looks> {
    let mut all = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(at) = pending.pop() {
        let mut entries: Vec<_> = fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let below = path.strip_prefix(root).unwrap().to_owned();
            if below == Path::new(".lazycopy") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                pending.push(path.clone());
            }
            all.insert(below.clone(), look(&path, &below, &meta, &mut inodes));
        }
    }
    all
}

fn look(
    path: &Path,
    below: &Path,
    meta: &fs::Metadata,
    inodes: &mut BTreeMap<u64, PathBuf>,
) -> Looks {
    let kind = meta.file_type();
    let (kind, content) = if kind.is_file() {
        ("file", blake3::hash(&fs::read(path).unwrap()).as_bytes().to_vec())
    } else if kind.is_symlink() {
        ("symlink", fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
    } else if kind.is_dir() {
        ("directory", Vec::new())
    } else if kind.is_fifo() {
        ("fifo", Vec::new())
    } else if kind.is_socket() {
        ("socket", Vec::new())
    } else {
        ("device", Vec::new())
    };
    let is_several = meta.nlink() > 1 && !meta.is_dir();
    let first = inodes.entry(meta.ino()).or_insert_with(|| below.to_owned());
    Looks {
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        size: if kind == "directory" { 0 } else { meta.len() },
        content,
        xattrs: xattrs(path, kind),
        same_as: is_several.then(|| first.clone()),
        device: if kind == "device" { meta.rdev() } else { 0 },
        kind,
    }
}

fn xattrs(path: &Path, kind: &str) -> BTreeMap<OsString, Vec<u8>> {
    if !["file", "directory"].contains(&kind) {
        return BTreeMap::new();
    }
    let mut names = vec![0; 65_536];
    let len = rustix::fs::listxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (OsString::from_vec(name.to_vec()), value)
        })
        .collect()
}

/// Compares two trees, naming the first entry that differs.
pub(crate) fn assert_same(source: &Path, copy: &Path) {
    let (source, mut copy) = (looks(source), looks(copy));
    for (path, wanted) in &source {
        let found = copy.remove(path).unwrap_or_else(|| panic!("{} is missing", path.display()));
        assert_eq!(found, *wanted, "{}", path.display());
    }
    assert!(copy.is_empty(), "more than the source has: {:?}", copy.keys());
}

/// Everything of a directory that a program which changes nothing leaves alone, its private state included.
pub(crate) fn state(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path, (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()));
    }
    all
}

/// A tree with something of everything. As root also a device and a foreign owner.
pub(crate) fn make_mixed(root: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    for directory in ["a/b/c", "empty", "a-b", "deep/1/2/3/4/5/6/7/8/9"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for number in 0..150usize {
        write(&format!("a/file {number}"), &crate::common::pattern(number * 97));
    }
    for size in [0, 1, 131_071, 131_072, 131_073, 1 << 20, (3 << 20) + 7] {
        write(&format!("a/b/size {size}"), &crate::common::pattern(size));
    }
    write("a-b/x", b"sorts beside a/b");
    write("deep/1/2/3/4/5/6/7/8/9/end", b"end");
    let odd = std::ffi::OsStr::from_bytes(b"odd\n\xff\\name");
    fs::write(root.join(odd), b"odd").unwrap();
    std::os::unix::fs::symlink("../nowhere", root.join("a/link")).unwrap();
    fs::hard_link(root.join("a/file 3"), root.join("another name")).unwrap();
    fs::hard_link(root.join("a/file 3"), root.join("a/b/c/third name")).unwrap();
    make_pipe(&root.join("pipe"));
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"in the middle", 5_000_000).unwrap();
    sparse.set_len(64 << 20).unwrap();
    set_xattr(&root.join("a/file 5"), "user.note", b"kept");
    set_xattr(&root.join("empty"), "user.note", b"of a directory");
    for (name, mode) in [("a/file 7", 0o600), ("a/b", 0o751), ("a/file 8", 0o444), ("empty", 0o700)]
    {
        set_mode(&root.join(name), mode);
    }
    for name in ["a/file 9", "a/b/c", "deep"] {
        set_modified(&root.join(name), 1_000_000_000, 123_456_789);
    }
}

pub(crate) fn make_pipe(path: &Path) {
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o640));
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

pub(crate) fn set_modified(path: &Path, seconds: i64, nanos: i64) {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}
