//! A tree with everything odd in it, and a comparison of trees.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::harness::{BLOCK, Random, name, read_at};

/// The file of 5 GiB that is nearly all hole.
pub(crate) const HUGE: &str = "huge.sparse";
/// Its data: offset and length.
const ISLANDS: [(u64, usize); 5] = [
    (0, 10),
    ((1 << 20) + 13, 70_000),
    ((2 << 30) - 100, 5_000),
    ((4 << 30) + 1, 300_000),
    ((5 << 30) - 9, 9),
];

/// Sizes around everything that is counted in blocks.
pub(crate) fn odd_sizes() -> Vec<u64> {
    let blocks = [1, 3, 9];
    let around = blocks.iter().flat_map(|n| [n * BLOCK - 1, n * BLOCK, n * BLOCK + 1]);
    [0, 1, 4095, 4096, 4097].into_iter().chain(around).chain([5 * (1 << 20) + 7]).collect()
}

fn fill(path: &Path, seed: u64, size: u64) {
    fs::write(path, Random::seeded(seed).bytes(usize::try_from(size).unwrap())).unwrap();
}

pub(crate) fn make_sparse(path: &Path, size: u64, islands: &[(u64, usize)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, len) in islands {
        file.write_all_at(&Random::seeded(*offset).bytes(*len), *offset).unwrap();
    }
    // Where delayed allocation has not decided yet, holes may look like data.
    file.sync_all().unwrap();
}

fn set_times(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Fills `root` with everything that a local source can hold.
pub(crate) fn plant(root: &Path) {
    for size in odd_sizes() {
        fill(&root.join(format!("size-{size}")), size + 1, size);
    }
    make_sparse(&root.join(HUGE), 5 << 30, &ISLANDS);
    make_sparse(&root.join("all-hole"), 3 * BLOCK + 5, &[]);
    make_sparse(&root.join("small.sparse"), 24 << 20, &[(5 * BLOCK - 3, 9), (20 << 20, 4096)]);

    let odd = root.join("odd names");
    fs::create_dir(&odd).unwrap();
    for bytes in
        [&b"\xff\xfe not UTF-8"[..], b" ", b"-rf", b"new\nline", b"tab\t*?\"'\\", b"%2e%2e"]
    {
        fill(&odd.join(name(bytes)), bytes.len() as u64, 100);
    }
    fill(&odd.join("n".repeat(255)), 255, 255);
    fill(&odd.join("ü — 名前"), 7, 777);

    let links = root.join("links");
    fs::create_dir(&links).unwrap();
    symlink("nowhere/at all", links.join("dangling")).unwrap();
    symlink("/etc/hostname", links.join("absolute")).unwrap();
    symlink("../odd names", links.join("to a directory")).unwrap();
    symlink("x".repeat(3000), links.join("long")).unwrap();
    fill(&links.join("first"), 11, BLOCK + 11);
    fs::hard_link(links.join("first"), links.join("second")).unwrap();
    fs::hard_link(links.join("first"), root.join("third")).unwrap();
    rustix::fs::mknodat(CWD, root.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::create_dir(root.join("empty")).unwrap();

    let mut deep = root.join("deep");
    for level in 0..30 {
        fs::create_dir(&deep).unwrap();
        fill(&deep.join("file"), level, 50);
        deep.push(format!("level {level}"));
    }

    fs::set_permissions(root.join("size-1"), Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(root.join("size-4095"), Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o1775)).unwrap();
    std::os::unix::fs::lchown(root.join("size-4096"), Some(1234), Some(4321)).unwrap();
    std::os::unix::fs::lchown(links.join("dangling"), Some(77), Some(88)).unwrap();
    for (key, value) in [("user.note", &b"kept\0exactly"[..]), ("user.empty", b"")] {
        rustix::fs::setxattr(root.join("size-4097"), key, value, XattrFlags::empty()).unwrap();
    }
    rustix::fs::setxattr(root.join("empty"), "user.d", b"x", XattrFlags::empty()).unwrap();
    let mut setfacl = Command::new("setfacl");
    // Where the tool is missing, ACLs are not part of the tree.
    let acl = setfacl.args(["-m", "u:1234:r,g:4321:rwx"]).arg(root.join("size-0")).status();
    println!("ACL: {acl:?}");
    set_times(&links.join("dangling"), 1_000_000_000, 5);
    set_times(&root.join("size-0"), 1, 999_999_999);
    set_times(&root.join("size-1"), -1_000, 1);
    set_times(&root.join("empty"), 1_234_567_890, 123_456_789);
    set_times(&links, 1_111_111_111, 111_111_111);
    set_times(&root.join("deep"), 1_222_222_222, 222_222_222);
    set_times(root, 1_333_333_333, 333_333_333);
}

/// What one entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: &'static str,
    pub(crate) size: u64,
    target: Option<PathBuf>,
    /// Of everything but zeros, with its offsets: the same whatever the holes are.
    content: Option<blake3::Hash>,
    /// Everything but the content.
    pub(crate) metadata: Option<Metadata>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    /// All names of the same inode.
    names: BTreeSet<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Where it holds data: start and end.
    data: Vec<(u64, u64)>,
}

/// How much of a tree is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Content,
    Everything,
}

/// Everything below `root`, by path; `""` is the root. What copies put there for themselves is left out.
pub(crate) fn walk(root: &Path, compare: Compare) -> BTreeMap<PathBuf, Seen> {
    let mut all = BTreeMap::new();
    let mut inodes: BTreeMap<(u64, u64), BTreeSet<PathBuf>> = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let stat = fs::symlink_metadata(&full).unwrap();
        if stat.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                let below = path.join(entry.unwrap().file_name());
                if below != Path::new(".lazycopy") {
                    stack.push(below);
                }
            }
        } else {
            inodes.entry((stat.dev(), stat.ino())).or_default().insert(path.clone());
        }
        let seen = look(&full, &stat, compare);
        all.insert(path, seen);
    }
    if compare == Compare::Everything {
        for same in inodes.values() {
            for path in same {
                let seen = all.get_mut(path).unwrap();
                seen.metadata.as_mut().unwrap().names = same.clone();
            }
        }
    }
    all
}

fn look(path: &Path, stat: &fs::Metadata, compare: Compare) -> Seen {
    let kind = stat.file_type();
    let kind = match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "fifo",
        () => "other",
    };
    let file = (kind == "file").then(|| File::open(path).unwrap());
    let size = if kind == "directory" { 0 } else { stat.len() };
    let metadata = (compare == Compare::Everything).then(|| Metadata {
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        modified: (stat.mtime(), stat.mtime_nsec()),
        names: BTreeSet::new(),
        xattrs: xattrs(path),
        data: file.as_ref().map(|file| data_ranges(file, size)).unwrap_or_default(),
    });
    Seen {
        kind,
        size,
        target: (kind == "link").then(|| fs::read_link(path).unwrap()),
        content: file.map(|file| content(&file, size)),
        metadata,
    }
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    let mut names = vec![0; 65536];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return BTreeMap::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|key| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, key, &mut value).unwrap();
            value.truncate(len);
            (OsString::from_vec(key.to_owned()), value)
        })
        .collect()
}

/// Where a file holds data, as SEEK_DATA and SEEK_HOLE say.
pub(crate) fn data_ranges(file: &File, size: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => panic!("SEEK_DATA {at}: {error}"),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        ranges.push((start, end.min(size)));
        at = end;
    }
    ranges
}

fn content(file: &File, size: u64) -> blake3::Hash {
    const PAGE: usize = 4096;
    let mut hasher = blake3::Hasher::new();
    let mut done = 0;
    for (start, end) in data_ranges(file, size) {
        let mut at = (start / PAGE as u64 * PAGE as u64).max(done);
        while at < end {
            let bytes = read_at(file, at, 64 * PAGE).unwrap();
            assert!(!bytes.is_empty(), "ends at {at}, not at {size}");
            for (page, offset) in bytes.chunks(PAGE).zip((at..).step_by(PAGE)) {
                if page.iter().any(|byte| *byte != 0) {
                    hasher.update(&offset.to_le_bytes());
                    hasher.update(page);
                }
            }
            at += bytes.len() as u64;
        }
        done = at;
    }
    hasher.finalize()
}

/// Compares two trees entry by entry, so that a difference is readable.
pub(crate) fn assert_same(
    expected: &BTreeMap<PathBuf, Seen>,
    found: &BTreeMap<PathBuf, Seen>,
    what: &str,
) {
    let names = |tree: &BTreeMap<PathBuf, Seen>| tree.keys().cloned().collect::<BTreeSet<_>>();
    let (ours, theirs) = (names(expected), names(found));
    assert_eq!(ours, theirs, "{what}: names");
    for (path, seen) in expected {
        assert_eq!(seen, &found[path], "{what}: {}", path.display());
    }
}
