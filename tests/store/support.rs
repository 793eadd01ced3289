//! What the store's tests share.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazycopy::core::attributes::{
    Attributes, EntryKind, Fingerprint, Ownership, Timestamp, Validator,
};
use lazycopy::core::path::RelPath;
use lazycopy::error::{Kind, Result};
use lazycopy::store::{BackingFile, Destination, DestinationOptions, Metadata, Published, Replace};

pub(crate) const MODIFIED: Timestamp = Timestamp { seconds: 1_500_000_000, nanos: 123_456_789 };

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn rel(path: &str) -> RelPath {
    path.split('/').fold(RelPath::root(), |at, name| at.child(OsStr::new(name)).unwrap())
}

pub(crate) fn open(directory: &Path) -> Destination {
    open_with(directory, &DestinationOptions::default())
}

/// Opens it once its lock is free: a child that another test starts at this moment holds a copy of every descriptor until its exec.
pub(crate) fn open_with(directory: &Path, options: &DestinationOptions) -> Destination {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Destination::open(directory, options.clone()) {
            Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => return opened.unwrap(),
        }
    }
}

pub(crate) fn metadata(kind: EntryKind, mode: u32) -> Metadata {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let attributes = Attributes {
        mode: Some(mode),
        ownership: Some(Ownership { uid, gid }),
        modified: Some(MODIFIED),
        ..Attributes::bare(kind, Fingerprint { size: 0, validator: Validator::SizeOnly })
    };
    Metadata { attributes, xattrs: Vec::new() }
}

pub(crate) fn part(destination: &Destination, bytes: &[u8]) -> BackingFile {
    let part = destination.create_part(u64::try_from(bytes.len()).unwrap()).unwrap();
    part.write_at(0, bytes).unwrap();
    part
}

pub(crate) fn publish(destination: &Destination, path: &str, bytes: &[u8]) -> Published {
    let part = part(destination, bytes);
    let metadata = metadata(EntryKind::File, 0o644);
    destination.publish_file(&part, &rel(path), &metadata, Replace::Never).unwrap()
}

pub(crate) fn mark(destination: &Destination, source: &str, go_on: &str) -> Result<()> {
    destination.set_marker(source, go_on);
    destination.mark_incomplete()
}

pub(crate) fn parts_in(directory: &Path) -> usize {
    std::fs::read_dir(directory.join(".lazycopy/parts")).unwrap().count()
}

/// Skips by returning true; `REQUIRE_TOOLS=1` makes that a failure.
pub(crate) fn skip(is_possible: bool, what: &str) -> bool {
    if !is_possible {
        assert!(std::env::var_os("REQUIRE_TOOLS").is_none(), "required, but missing: {what}");
        eprintln!("skipped: needs {what}");
    }
    !is_possible
}

/// Names the directory that a test in a process of its own works in.
pub(crate) const CHILD_DIRECTORY: &str = "LAZYCOPY_TEST_CHILD_DIRECTORY";

/// This test binary again, running only `test`, as user `uid` if given.
pub(crate) fn child(test: &str, directory: &Path, uid: Option<u32>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIRECTORY, directory).stdout(Stdio::piped());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command
}

/// Starts a child and returns when it has printed a line that ends in `ready`.
pub(crate) fn start_until_ready(mut command: Command) -> Child {
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the child ended early");
    child
}
