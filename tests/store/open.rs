//! Opening a destination: refusals, lock, sweep, marker, DIR's own mode.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use lazycopy::core::attributes::EntryKind;
use lazycopy::error::Kind;
use lazycopy::store::{Destination, DestinationOptions, MARKER_NAME};

use super::support::{
    CHILD_DIRECTORY, child, is_root, mark, metadata, open, part, parts_in, publish, rel, skip,
    start_until_ready,
};

fn refused(path: &Path) -> (Kind, String) {
    let error = Destination::open(path, DestinationOptions::default()).unwrap_err();
    (error.kind(), error.to_string())
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_missing_destination_is_made_but_not_its_parents() {
    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("new");
    let destination = open(&new);
    for private in ["", ".lazycopy", ".lazycopy/parts"] {
        assert_eq!(mode_of(&new.join(private)), 0o700, "{private:?}");
    }
    assert_eq!(destination.swept_parts(), 0);
    let (kind, message) = refused(&directory.path().join("no/such/parent"));
    assert_eq!(kind, Kind::NotFound);
    assert!(message.contains("directory that should hold it does not exist"), "{message}");
}

#[test]
fn what_is_no_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert_eq!(refused(&file).0, Kind::Invalid);
    let dangling = directory.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    assert_eq!(refused(&dangling).0, Kind::Exists);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_private_directory_that_is_not_ours_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (elsewhere, root) = (directory.path().join("elsewhere"), directory.path().join("root"));
    fs::create_dir(&elsewhere).unwrap();
    fs::create_dir(&root).unwrap();
    symlink(&elsewhere, root.join(".lazycopy")).unwrap();
    assert_eq!(refused(&root).0, Kind::Denied);
    fs::remove_file(root.join(".lazycopy")).unwrap();
    fs::create_dir(root.join(".lazycopy")).unwrap();
    symlink(&elsewhere, root.join(".lazycopy/parts")).unwrap();
    assert_eq!(refused(&root).0, Kind::Denied);
    fs::remove_file(root.join(".lazycopy/parts")).unwrap();
    symlink(elsewhere.join("lock"), root.join(".lazycopy/other")).unwrap();
    fs::rename(root.join(".lazycopy/other"), root.join(".lazycopy/lock")).unwrap();
    assert_eq!(refused(&root).0, Kind::Invalid);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    if !skip(is_root(), "root") {
        fs::remove_file(root.join(".lazycopy/lock")).unwrap();
        std::os::unix::fs::chown(root.join(".lazycopy"), Some(65534), None).unwrap();
        let (kind, message) = refused(&root);
        assert_eq!(kind, Kind::Denied);
        assert!(message.contains("belongs to user 65534"), "{message}");
    }
}

/// Not a test by itself: the child of the next one.
#[test]
fn child_that_holds_a_destination() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let destination = open(Path::new(&directory));
    let _parts: Vec<_> = (0..3).map(|_| part(&destination, b"half a file")).collect();
    println!("\nready");
    loop {
        std::thread::park();
    }
}

// L16, H3: a second instance deleted the first one's temp files. H19: nobody deleted those of a crash.
#[test]
fn a_second_process_is_refused_and_a_killed_one_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let hold = child("open::child_that_holds_a_destination", directory.path(), None);
    let mut holder = start_until_ready(hold);
    let (kind, message) = refused(directory.path());
    assert_eq!(kind, Kind::Busy);
    assert!(message.contains(&format!("in use by process {}", holder.id())), "{message}");
    assert_eq!(parts_in(directory.path()), 3);

    holder.kill().unwrap();
    holder.wait().unwrap();
    fs::create_dir(directory.path().join(".lazycopy/parts/not-a-part")).unwrap();
    fs::write(directory.path().join(".lazycopy/catalog"), "kept").unwrap();
    fs::write(directory.path().join("file"), "kept").unwrap();
    let destination = open(directory.path());
    assert_eq!(destination.swept_parts(), 3);
    assert_eq!(parts_in(directory.path()), 1);
    assert_eq!(fs::read(directory.path().join(".lazycopy/catalog")).unwrap(), b"kept");
    assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"kept");
    assert_eq!(refused(directory.path()).0, Kind::Busy);
}

#[test]
fn the_lock_goes_with_the_last_user() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let file = part(&destination, b"x");
    drop(destination);
    assert_eq!(refused(directory.path()).0, Kind::Busy);
    drop(file);
    assert_eq!(open(directory.path()).swept_parts(), 0);
}

#[test]
fn the_marker_says_how_to_go_on_and_never_replaces_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let marker = directory.path().join(MARKER_NAME);
    let destination = open(directory.path());
    mark(&destination, "/src", "lazycopy clone /src /dst").unwrap();
    mark(&destination, "/src", "lazycopy copy /src /dst").unwrap();
    let text = fs::read_to_string(&marker).unwrap();
    assert!(text.contains("Source: /src\n") && text.contains("lazycopy copy /src /dst"), "{text}");
    destination.remove_marker().unwrap();
    destination.remove_marker().unwrap();
    assert!(!marker.exists());

    fs::write(&marker, "my own notes").unwrap();
    assert_eq!(mark(&destination, "/src", "x").unwrap_err().kind(), Kind::Exists);
    assert_eq!(fs::read(&marker).unwrap(), b"my own notes");
    fs::remove_file(&marker).unwrap();
    symlink(directory.path().join("victim"), &marker).unwrap();
    assert_eq!(mark(&destination, "/src", "x").unwrap_err().kind(), Kind::Exists);
    assert!(!directory.path().join("victim").exists());
}

#[test]
fn a_concealed_destination_gets_its_mode_back_even_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o2751)).unwrap();
    for _ in 0..2 {
        let destination = open(directory.path());
        destination.conceal().unwrap();
        assert_eq!(mode_of(directory.path()), 0o700);
        drop(destination);
    }
    let destination = open(directory.path());
    assert!(destination.finish_root(None).unwrap().is_empty());
    assert_eq!(mode_of(directory.path()), 0o2751);

    let finished = metadata(EntryKind::Directory, 0o1755);
    destination.finish_root(Some(&finished)).unwrap();
    assert_eq!(mode_of(directory.path()), 0o1755);
    assert_eq!(fs::metadata(directory.path()).unwrap().mtime_nsec(), 123_456_789);
}

#[test]
fn a_new_destination_ends_with_an_ordinary_mode() {
    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("new");
    let destination = open(&new);
    destination.finish_root(None).unwrap();
    assert_eq!(mode_of(&new), 0o755);
}

#[test]
fn the_walk_shows_everything_but_our_own_and_enters_no_symlink() {
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "").unwrap();
    let destination = open(directory.path());
    mark(&destination, "s", "c").unwrap();
    publish(&destination, "a/b/file", b"12345");
    symlink(outside.path(), directory.path().join("a/link")).unwrap();
    fs::create_dir(directory.path().join("a/.lazycopy")).unwrap();
    let mut seen = Vec::new();
    destination
        .walk_existing(|path, existing| {
            seen.push((path.to_string(), existing.kind, existing.size));
        })
        .unwrap();
    seen.retain(|(path, ..)| path != "a" && path != "a/b" && path != "a/.lazycopy");
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    let target_len = u64::try_from(outside.path().as_os_str().len()).unwrap();
    let expected = [
        ("a/b/file".to_owned(), EntryKind::File, 5),
        ("a/link".to_owned(), EntryKind::Symlink, target_len),
    ];
    assert_eq!(seen, expected);
    assert_eq!(destination.existing(&rel("a/b/file")).unwrap().unwrap().size, 5);
    assert!(destination.existing(&rel("a/none")).unwrap().is_none());
    assert!(destination.existing(&rel("a/b/file/below")).unwrap().is_none());
    assert_eq!(destination.existing(&rel("a/link/secret")).unwrap_err().kind(), Kind::Exists);
    assert_eq!(destination.existing_target(&rel("a/link")).unwrap(), outside.path());
}

#[test]
fn space_is_what_statvfs_says() {
    let directory = tempfile::tempdir().unwrap();
    let space = open(directory.path()).space().unwrap();
    assert!(space.total_bytes >= space.free_bytes && space.free_bytes > 0);
    assert_eq!(space.name_max, 255);
}
