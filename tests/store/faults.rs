//! Full disks, other users, failing calls.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lazycopy::core::attributes::{EntryKind, Fingerprint, Ownership, Validator};
use lazycopy::error::Kind;
use lazycopy::store::catalog::Version;
use lazycopy::store::{Candidate, Destination, DestinationOptions, MetadataLoss, Replace};

use super::support::{
    CHILD_DIRECTORY, child, is_root, mark, metadata, open, part, parts_in, rel, skip,
};

/// A small ext4 of its own; unmounted when dropped.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn new(size: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir(directory.path().join("disk")).unwrap();
        let disk = Self { directory };
        let done = run(Command::new("mkfs.ext4").args(["-qF", "-m", "0"]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()));
        done.then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.path()));
    }
}

fn run(command: &mut Command) -> bool {
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_is_no_space_and_damages_nothing() {
    let disk = is_root().then(|| SmallDisk::new(32 << 20)).flatten();
    if skip(disk.is_some(), "root, mkfs.ext4 and loop devices") {
        return;
    }
    let disk = disk.unwrap();
    let destination = open(&disk.path());
    let whole = part(&destination, &[1; 1 << 20]);
    let wanted = metadata(EntryKind::File, 0o644);
    destination.publish_file(&whole, &rel("whole"), &wanted, Replace::Never).unwrap();
    // A sparse part may be larger than the disk; what lands in it may not.
    let large = destination.create_part(1 << 30).unwrap();
    let block = vec![2; 1 << 20];
    let mut landed = 0u64;
    let error = loop {
        match large.write_at(landed << 20, &block) {
            Ok(()) => landed += 1,
            Err(error) => break error,
        }
        assert!(landed < 64, "32 MiB cannot hold this");
    };
    assert_eq!(error.kind(), Kind::NoSpace);
    let mut target = vec![0; 1 << 20];
    for index in 0..landed {
        assert_eq!(large.read_at(index << 20, &mut target).unwrap(), 1 << 20);
        assert_eq!(target, block);
    }
    assert!(destination.space().unwrap().free_bytes < 2 << 20);
    drop(large);
    let again = part(&destination, &block);
    destination.publish_file(&again, &rel("again"), &wanted, Replace::Never).unwrap();
    assert_eq!(fs::read(disk.path().join("whole")).unwrap(), vec![1; 1 << 20]);
    assert_eq!(destination.create_part(1 << 62).unwrap_err().kind(), Kind::Limit);
    drop((whole, again, destination));
}

#[test]
fn a_full_disk_still_takes_what_the_catalog_must_say() {
    let disk = is_root().then(|| SmallDisk::new(64 << 20)).flatten();
    if skip(disk.is_some(), "root, mkfs.ext4 and loop devices") {
        return;
    }
    let disk = disk.unwrap();
    let destination = open(&disk.path());
    let ballast = disk.path().join(".lazycopy/ballast");
    assert!((500_000..=1 << 20).contains(&fs::metadata(&ballast).unwrap().len()));
    let filler = destination.create_part(1 << 30).unwrap();
    let written = (0u64..).take_while(|at| filler.write_at(at << 12, &[1; 4096]).is_ok()).count();
    assert!(written > 1000 && destination.space().unwrap().free_bytes < 1 << 16);
    let fingerprint = Fingerprint { size: 1, validator: Validator::SizeOnly };
    let mut known = 0;
    while ballast.exists() {
        let entries: Vec<_> = (known..known + 200)
            .map(|ino| {
                let fingerprint = fingerprint.clone();
                (rel(&format!("file {ino}")), Version { ino, fingerprint, is_settled: true })
            })
            .collect();
        destination.catalog().know(&entries).unwrap();
        known += 200;
        assert!(known < 100_000, "the ballast was never needed");
    }
    assert_eq!(destination.catalog().entry_count().unwrap(), known);
    drop(filler);
    destination.catalog().flush().unwrap();
    assert!(ballast.exists(), "made again when there is room");
    drop(destination);
}

/// Something mounted over a directory until this is dropped.
struct Cover<'a>(&'a Path);

impl Drop for Cover<'_> {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0));
    }
}

// A clone mounts over DIR itself.
#[test]
fn everything_works_while_another_mount_covers_the_destination() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let early = part(&destination, b"early");
    let is_covered = is_root()
        && run(Command::new("mount").args(["-t", "tmpfs", "cover"]).arg(directory.path()));
    if skip(is_covered, "root and tmpfs") {
        return;
    }
    let wanted = metadata(EntryKind::File, 0o444);
    let link = metadata(EntryKind::Symlink, 0o777);
    {
        let _cover = Cover(directory.path());
        let late = part(&destination, b"late");
        mark(&destination, "s", "c").unwrap();
        for (file, path) in [(&early, "early"), (&late, "d/late")] {
            destination.publish_file(file, &rel(path), &wanted, Replace::Never).unwrap();
        }
        destination.publish_symlink(&rel("link"), "t".as_ref(), &link, Replace::Never).unwrap();
        destination.open_published(&rel("d/late")).unwrap();
        destination.finish_root(Some(&metadata(EntryKind::Directory, 0o751))).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
    assert_eq!(fs::read(directory.path().join("early")).unwrap(), b"early");
    assert_eq!(fs::read(directory.path().join("d/late")).unwrap(), b"late");
    assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o7777, 0o751);
}

/// Not a test by itself: the child of the next one, without root's rights.
#[test]
fn child_without_rights() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let denied = |path: PathBuf| {
        let error = Destination::open(&path, DestinationOptions::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        assert!(error.to_string().contains("that you can"), "{error}");
    };
    denied(directory.join("readable"));
    denied(directory.join("unreadable"));
    denied(directory.join("readable/new"));

    let options = DestinationOptions { descriptors: Some(1), ..DestinationOptions::default() };
    let destination = Destination::open(&directory.join("mine"), options).unwrap();
    let mut wanted = metadata(EntryKind::File, 0o4070);
    wanted.attributes.ownership = Some(Ownership { uid: 0, gid: 0 });
    let file = part(&destination, b"secret");
    let published = destination.publish_file(&file, &rel("file"), &wanted, Replace::Never).unwrap();
    assert_eq!(published.losses, [MetadataLoss::Owner, MetadataLoss::Privileged]);
    assert_eq!(fs::metadata(directory.join("mine/file")).unwrap().mode() & 0o7777, 0o070);
    // Its mode forbids us to open it again, yet whoever reads it through us goes on.
    let other = part(&destination, b"x");
    let mut target = [0; 6];
    assert_eq!(file.read_at(0, &mut target).unwrap(), 6);
    assert_eq!(&target, b"secret");
    drop(other);

    let existing = metadata(EntryKind::File, 0o400);
    let part = part(&destination, b"read-only");
    let refused = destination.publish_file(&part, &rel("file"), &existing, Replace::Never);
    assert_eq!(refused.unwrap_err().kind(), Kind::Exists);
    drop(destination.create_part(1));
    part.write_at(0, b"READ").unwrap();
    destination.publish_file(&part, &rel("other"), &existing, Replace::Never).unwrap();
    println!("\npassed");
}

#[test]
fn without_rights_refusals_are_clear_and_losses_counted() {
    let directory = tempfile::tempdir().unwrap();
    let uid = is_root().then_some(65534);
    let make = |name: &str, mode: u32, is_theirs: bool| {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        if let (Some(uid), true) = (uid, is_theirs) {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    make("readable", 0o555, false);
    make("unreadable", 0o000, false);
    make("mine", 0o755, true);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = child("faults::child_without_rights", directory.path(), uid).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("passed"), "{text}");
}

/// Not a test by itself: publishes in a process whose system calls fail.
#[test]
fn child_whose_sync_fails() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let destination = open(directory);
    let file = part(&destination, b"x");
    destination.ensure_directory(&rel("d")).unwrap();
    // The file's own descriptor is the next to be synced, then the directory's.
    println!("\nstart");
    fs::read_link("/begin").unwrap_err();
    let wanted = metadata(EntryKind::File, 0o644);
    let result = destination.publish_file(&file, &rel("d/file"), &wanted, Replace::Never);
    assert_eq!(result.unwrap_err().kind(), Kind::Io);
    assert!(file.is_broken() && !directory.join("d/file").exists());
    let again = destination.publish_file(&file, &rel("d/file"), &wanted, Replace::Never);
    assert!(again.is_err() && !directory.join("d/file").exists());
    println!("\npassed");
}

/// Not a test by itself: publishes a group while one of its syncs fails.
#[test]
fn child_whose_group_sync_fails() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let destination = open(directory);
    let files: Vec<_> = ["a", "d/b"].map(|path| (part(&destination, b"x"), rel(path))).into();
    destination.ensure_directory(&rel("d")).unwrap();
    let wanted = metadata(EntryKind::File, 0o444);
    let replace = Replace::Never;
    let group: Vec<_> = files
        .iter()
        .map(|(file, path)| Candidate { file, path, metadata: &wanted, replace, vouched: None })
        .collect();
    println!("\nstart");
    fs::read_link("/begin").unwrap_err();
    for result in destination.publish_group(&group) {
        assert_eq!(result.unwrap_err().kind(), Kind::Io);
    }
    assert!(files.iter().all(|(file, _)| file.is_broken()));
    assert!(!directory.join("a").exists() && !directory.join("d/b").exists());
    drop(files);
    assert_eq!(parts_in(directory), 0);
    println!("\npassed");
}

/// Runs a child under strace, which makes one call fail; what the child said and its syncs.
fn traced(test: &str, inject: Option<&str>) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("trace");
    let target = directory.path().join("destination");
    let inner = child(test, &target, None);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=fsync,syncfs,readlink"]).arg("-o").arg(&log);
    command.args(inject.iter().flat_map(|inject| ["-e", inject]));
    command.arg(inner.get_program()).args(inner.get_args());
    let output = command.env(CHILD_DIRECTORY, &target).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, fs::read_to_string(&log).unwrap_or_default())
}

/// How often `call` was made before and after the child began, in a run in which all succeed.
fn calls(test: &str, call: &str) -> (usize, usize) {
    let (_, log) = traced(test, None);
    let begin = log.lines().position(|line| line.contains("/begin")).unwrap_or(0);
    let count =
        |lines: &[&str]| lines.iter().filter(|line| line.contains(&format!("{call}("))).count();
    let lines: Vec<_> = log.lines().collect();
    (count(&lines[..begin]), count(&lines[begin..]))
}

#[test]
fn a_group_whose_sync_fails_is_not_published_at_all() {
    if skip(run(Command::new("strace").arg("-V").stdout(Stdio::null())), "strace") {
        return;
    }
    let test = "faults::child_whose_group_sync_fails";
    let (before, after) = calls(test, "fsync");
    if skip(before > 0 && after >= 2, "strace that may trace") {
        return;
    }
    // Everything once, then both directories.
    let failing = [("syncfs", 1), ("fsync", before + 1), ("fsync", before + 2)];
    for (call, number) in failing {
        let inject = format!("inject={call}:error=EIO:when={number}");
        let (text, log) = traced(test, Some(&inject));
        assert!(text.contains("passed"), "{inject}: {text}\n{log}");
    }
}

// After one failed fsync the kernel reports the pages clean: asking again would succeed and lie.
#[test]
fn a_failed_sync_publishes_nothing_and_is_final() {
    let has_strace = run(Command::new("strace").arg("-V").stdout(Stdio::null()));
    if skip(has_strace, "strace") {
        return;
    }
    let test = "faults::child_whose_sync_fails";
    let (before, after) = calls(test, "fsync");
    if skip(before > 0 && after >= 2, "strace that may trace") {
        return;
    }
    for failing in [before + 1, before + 2] {
        let inject = format!("inject=fsync:error=EIO:when={failing}");
        let (text, log) = traced(test, Some(&inject));
        assert!(text.contains("passed"), "sync {failing}: {text}\n{log}");
    }
}
