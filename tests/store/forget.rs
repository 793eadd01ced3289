//! What is ours goes, what is not stays; and a state directory belongs to one destination.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lazycopy::error::Kind;
use lazycopy::store::forget::forget;
use lazycopy::store::{Destination, DestinationOptions};

use super::support::{mark, open, publish};

fn open_with(directory: &Path, state: &Path) -> lazycopy::error::Result<Destination> {
    let state_dir = Some(state.to_owned());
    Destination::open(directory, DestinationOptions { state_dir, ..Default::default() })
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| PathBuf::from(entry.unwrap().file_name())).collect()
}

#[test]
fn a_directory_of_our_name_that_is_not_ours_is_left_alone() {
    let base = tempfile::tempdir().unwrap();
    let precious = base.path().join("precious");
    fs::create_dir_all(precious.join("trees")).unwrap();
    fs::write(precious.join("catalog.redb"), "precious").unwrap();
    fs::write(precious.join("lock"), "").unwrap();
    for make in [
        &|at: &Path| symlink(&precious, at).unwrap(),
        &|at: &Path| fs::write(at, "a file").unwrap(),
        &|at: &Path| {
            fs::create_dir(at).unwrap();
            fs::write(at.join("catalog.redb"), "no lock beside it").unwrap();
        },
        &|at: &Path| {
            fs::create_dir(at).unwrap();
            fs::write(at.join("lock"), "").unwrap();
            fs::write(at.join("notes.txt"), "somebody's").unwrap();
        },
        &|at: &Path| {
            fs::create_dir_all(at.join("parts/somebody's")).unwrap();
            fs::write(at.join("lock"), "").unwrap();
        },
        &|at: &Path| {
            fs::create_dir(at).unwrap();
            fs::write(at.join("lock"), "").unwrap();
            symlink(&precious, at.join("trees")).unwrap();
        },
    ] as [&dyn Fn(&Path); 6]
    {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join(".lazycopy");
        make(&state);
        let before = state.is_dir().then(|| names(&state));
        let error = forget(directory.path(), None, true).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        assert_eq!(before, state.is_dir().then(|| names(&state)), "{error}");
        assert_eq!(names(&precious).len(), 3);
    }
}

#[test]
fn forgetting_gives_back_the_mode_and_takes_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o751)).unwrap();
    let destination = Destination::open(directory.path(), DestinationOptions::default()).unwrap();
    destination.conceal().unwrap();
    publish(&destination, "d/f", b"content");
    mark(&destination, "source", "go on").unwrap();
    assert_eq!(forget(directory.path(), None, true).unwrap_err().kind(), Kind::Busy);
    drop(destination);
    assert_eq!(forget(directory.path(), None, false).unwrap_err().kind(), Kind::Exists);
    assert!(forget(directory.path(), None, true).unwrap().is_known);
    assert_eq!(names(directory.path()), [PathBuf::from("d")]);
    assert_eq!(fs::metadata(directory.path()).unwrap().permissions().mode() & 0o7777, 0o751);
    assert_eq!(fs::read(directory.path().join("d/f")).unwrap(), b"content");
    // Somebody's file of the marker's name is no marker.
    fs::write(directory.path().join("LAZYCOPY-INCOMPLETE.txt"), "mine").unwrap();
    assert!(!forget(directory.path(), None, true).unwrap().is_known);
    assert_eq!(names(directory.path()).len(), 2);
}

#[test]
fn a_state_directory_serves_one_destination_and_never_a_fresh_start() {
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| base.path().join(name);
    let refused = |directory: &str, state: &str| {
        let error = open_with(&at(directory), &at(state)).unwrap_err();
        assert!(matches!(error.kind(), Kind::Invalid | Kind::NotFound), "{error}");
        assert!(!at(directory).join(".lazycopy/catalog.redb").exists() || directory == "own");
    };
    drop(open_with(&at("one"), &at("state")).unwrap());
    assert!(at("state/catalog.redb").exists() && at("state/trees").exists());
    assert!(at("one/.lazycopy/parts").exists() && !at("one/.lazycopy/trees").exists());
    drop(open(&at("one")));

    refused("two", "state");
    // The failed attempt has left nothing that hinders another.
    drop(open_with(&at("two"), &at("state-2")).unwrap());
    refused("one", "state-2");
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/file"), "somebody's").unwrap();
    refused("three", "full");
    refused("three", "no/such/place");
    drop(open(&at("own")));
    refused("own", "state-3");

    // A copy of DIR is not DIR.
    let copied = std::process::Command::new("cp").arg("-a").args([at("one"), at("copy")]).status();
    assert!(copied.unwrap().success());
    refused("copy", "state");
    // A missing one, or what lies there while its disk is not mounted, is no fresh start.
    fs::rename(at("state"), at("away")).unwrap();
    let plain = || Destination::open(&at("one"), DestinationOptions::default()).unwrap_err();
    assert_eq!(plain().kind(), Kind::NotFound);
    fs::create_dir(at("state")).unwrap();
    assert_eq!(plain().kind(), Kind::Invalid);
    assert_eq!(names(&at("state")), [] as [PathBuf; 0]);
    // It may move.
    drop(open_with(&at("one"), &at("away")).unwrap());
    drop(open(&at("one")));
    assert!(forget(&at("one"), None, false).unwrap().is_known);
    assert!(!at("away").exists() && at("state").exists());
}
