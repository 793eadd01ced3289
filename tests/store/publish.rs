//! Publishing: nothing is clobbered, metadata is kept or counted, nothing leads out of DIR.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use lazycopy::core::attributes::{EntryKind, Ownership};
use lazycopy::error::Kind;
use lazycopy::store::{
    Candidate, Destination, DestinationOptions, Metadata, MetadataLoss, Replace,
};

use super::support::{is_root, metadata, open, part, parts_in, publish, rel, skip};

fn file_metadata() -> Metadata {
    metadata(EntryKind::File, 0o644)
}

// C3: rename replaced a target silently.
#[test]
fn publishing_never_clobbers_and_the_part_stays_usable() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    fs::write(directory.path().join("file"), "theirs").unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    symlink("nowhere", directory.path().join("link")).unwrap();
    let ours = part(&destination, b"ours");
    let read_only = metadata(EntryKind::File, 0o444);
    for name in ["file", "directory", "link", "file/below", "link/below"] {
        let error = destination.publish_file(&ours, &rel(name), &read_only, Replace::Never);
        assert_eq!(error.unwrap_err().kind(), Kind::Exists, "{name}");
    }
    assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"theirs");
    ours.write_at(0, b"OURS").unwrap();
    destination.publish_file(&ours, &rel("new"), &read_only, Replace::Never).unwrap();
    assert_eq!(fs::read(directory.path().join("new")).unwrap(), b"OURS");
    assert_eq!(parts_in(directory.path()), 0);
    let again = destination.publish_file(&ours, &rel("twice"), &read_only, Replace::Never);
    assert_eq!(again.unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn only_the_named_inode_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let path = directory.path().join("file");
    let former = publish(&destination, "file", b"former").identity;
    let bystander = publish(&destination, "other", b"other").identity;
    let next = part(&destination, b"next");
    let publish_next =
        |replace| destination.publish_file(&next, &rel("file"), &file_metadata(), replace);
    assert_eq!(publish_next(Replace::Only(bystander)).unwrap_err().kind(), Kind::Exists);
    assert_eq!(fs::read(&path).unwrap(), b"former");
    let published = publish_next(Replace::Only(former)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"next");
    assert_eq!(published.identity, next.identity());
    assert_eq!(fs::metadata(&path).unwrap().ino(), next.identity().inode);
    assert_eq!(parts_in(directory.path()), 0);
}

// H2, H37: a read met a closed store or descriptor.
#[test]
fn reads_go_on_while_a_file_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let options = DestinationOptions { descriptors: Some(2), ..DestinationOptions::default() };
    let destination = Destination::open(directory.path(), options).unwrap();
    for round in 0..30 {
        let file = part(&destination, &[round; 4096]);
        let descriptor = file.descriptor().unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        let mut target = [0; 4096];
                        assert_eq!(file.read_at(0, &mut target).unwrap(), 4096);
                        assert_eq!(target, [round; 4096]);
                        // Pushes the descriptor out of the pool.
                        drop((destination.create_part(1), destination.create_part(1)));
                    }
                });
            }
            let path = rel(&format!("file-{round}"));
            let published =
                destination.publish_file(&file, &path, &file_metadata(), Replace::Never);
            is_done.store(true, Ordering::Relaxed);
            published.unwrap();
        });
        let mut target = [0; 4096];
        assert_eq!(rustix::io::pread(&*descriptor, &mut target, 0).unwrap(), 4096);
        assert_eq!(file.read_at(0, &mut target).unwrap(), 4096);
        assert_eq!(file.write_at(0, b"x").unwrap_err().kind(), Kind::ReadOnly);
    }
}

#[test]
fn a_published_program_can_be_run_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let program = part(&destination, &fs::read("/bin/true").unwrap());
    let executable = metadata(EntryKind::File, 0o755);
    destination.publish_file(&program, &rel("true"), &executable, Replace::Never).unwrap();
    program.read_at(0, &mut [0; 16]).unwrap();
    assert!(Command::new(directory.path().join("true")).status().unwrap().success());
}

#[test]
fn metadata_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let mut wanted = metadata(EntryKind::File, 0o1640);
    if is_root() {
        wanted.attributes.ownership = Some(Ownership { uid: 1234, gid: 5678 });
    }
    let has_xattrs = destination.abilities().user_xattrs;
    if has_xattrs {
        wanted.xattrs.push((OsString::from("user.colour"), b"blue\0green".to_vec()));
    }
    let file = part(&destination, b"x");
    let path = directory.path().join("d/file");
    let published =
        destination.publish_file(&file, &rel("d/file"), &wanted, Replace::Never).unwrap();
    assert_eq!(published.losses, []);
    assert_eq!(fs::metadata(directory.path().join("d")).unwrap().mode() & 0o7777, 0o700);
    let directory_metadata =
        Metadata { xattrs: wanted.xattrs.clone(), ..metadata(EntryKind::Directory, 0o1751) };
    let losses = destination.finish_directory(&rel("d"), &directory_metadata).unwrap();
    assert_eq!(losses, []);
    for (path, mode) in [(&path, 0o1640), (&directory.path().join("d"), 0o1751)] {
        let stat = fs::metadata(path).unwrap();
        assert_eq!(
            (stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec()),
            (mode, 1_500_000_000, 123_456_789)
        );
        if has_xattrs {
            let mut value = [0; 32];
            let len = rustix::fs::getxattr(path, "user.colour", &mut value).unwrap();
            assert_eq!(&value[..len], b"blue\0green");
        }
    }
    if is_root() {
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1234, 5678));
    }
}

#[test]
fn privileges_are_stripped_and_counted_unless_they_are_asked_for() {
    for preserve_privileged in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let options = DestinationOptions { preserve_privileged, ..DestinationOptions::default() };
        let destination = Destination::open(directory.path(), options).unwrap();
        let mut wanted = metadata(EntryKind::File, 0o6755);
        let has_capability = is_root() && destination.abilities().user_xattrs;
        if has_capability {
            // VFS_CAP_REVISION_2 with CAP_NET_RAW permitted (linux/capability.h).
            let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            wanted.xattrs.push((OsString::from("security.capability"), capability.to_vec()));
        }
        let file = part(&destination, b"x");
        let published =
            destination.publish_file(&file, &rel("file"), &wanted, Replace::Never).unwrap();
        let path = directory.path().join("file");
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        let mut value = [0; 64];
        let capability = rustix::fs::getxattr(&path, "security.capability", &mut value);
        if preserve_privileged {
            assert_eq!((mode, published.losses), (0o6755, vec![]));
            assert_eq!(capability.is_ok(), has_capability);
        } else {
            assert_eq!((mode, published.losses), (0o755, vec![MetadataLoss::Privileged]));
            assert!(capability.is_err());
        }
    }
}

#[test]
fn strict_metadata_refuses_before_anything_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let options = DestinationOptions { strict_metadata: true, ..DestinationOptions::default() };
    let destination = Destination::open(directory.path(), options).unwrap();
    let file = part(&destination, b"x");
    let wanted = metadata(EntryKind::File, 0o4755);
    let refused = destination.publish_file(&file, &rel("file"), &wanted, Replace::Never);
    assert_eq!(refused.unwrap_err().kind(), Kind::NotSupported);
    assert!(!directory.path().join("file").exists());
    destination.publish_file(&file, &rel("file"), &file_metadata(), Replace::Never).unwrap();
}

fn setfacl_of(entry: &str) -> Option<Vec<u8>> {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").ok()?;
    let done = Command::new("setfacl").args(["-m", entry]).arg(file.path()).status().ok()?;
    let mut value = [0; 256];
    let len = rustix::fs::getxattr(file.path(), "system.posix_acl_access", &mut value).ok()?;
    done.success().then(|| value[..len].to_vec())
}

#[test]
fn an_acl_is_kept_or_the_file_is_for_its_owner_only() {
    let list = setfacl_of("u:1234:rw");
    if skip(list.is_some(), "setfacl and a file system with ACLs in /var/tmp") {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let destination = open(directory.path());
    let acl = |value| (OsString::from("system.posix_acl_access"), value);
    let kept = Metadata { xattrs: vec![acl(list.unwrap())], ..metadata(EntryKind::File, 0o664) };
    let file = part(&destination, b"x");
    let published = destination.publish_file(&file, &rel("kept"), &kept, Replace::Never).unwrap();
    assert_eq!(published.losses, []);
    let shown =
        Command::new("getfacl").arg("-cnp").arg(directory.path().join("kept")).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("user:1234:rw-"));

    let lost =
        Metadata { xattrs: vec![acl(b"no list".to_vec())], ..metadata(EntryKind::File, 0o664) };
    let file = part(&destination, b"x");
    let published = destination.publish_file(&file, &rel("lost"), &lost, Replace::Never).unwrap();
    assert_eq!(published.losses, [MetadataLoss::Acl]);
    assert_eq!(fs::metadata(directory.path().join("lost")).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_default_acl_of_the_destination_is_not_inherited() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let set =
        Command::new("setfacl").args(["-d", "-m", "u:1234:rwx"]).arg(directory.path()).status();
    if skip(set.is_ok_and(|status| status.success()), "setfacl and a file system with ACLs") {
        return;
    }
    let destination = open(directory.path());
    publish(&destination, "d/file", b"x");
    destination.finish_directory(&rel("d"), &metadata(EntryKind::Directory, 0o775)).unwrap();
    for name in ["d", "d/file", ".lazycopy/parts"] {
        let shown =
            Command::new("getfacl").arg("-cnp").arg(directory.path().join(name)).output().unwrap();
        assert!(!String::from_utf8_lossy(&shown.stdout).contains("1234"), "{name}");
    }
}

#[test]
fn a_planted_symlink_never_leads_outside() {
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    destination.ensure_directory(&rel("a/b")).unwrap();
    fs::remove_dir(directory.path().join("a/b")).unwrap();
    symlink(outside.path(), directory.path().join("a/b")).unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o710)).unwrap();
    let file = part(&destination, b"x");
    let wanted = file_metadata();
    let directory_metadata = metadata(EntryKind::Directory, 0o777);
    let link = metadata(EntryKind::Symlink, 0o777);
    let fifo = metadata(EntryKind::Fifo, 0o644);
    let below = rel("a/b/file");
    let refused = [
        destination.publish_file(&file, &below, &wanted, Replace::Never).map(drop),
        destination.ensure_directory(&rel("a/b")),
        destination.ensure_directory(&rel("a/b/c/d")),
        destination.finish_directory(&rel("a/b"), &directory_metadata).map(drop),
        destination.publish_symlink(&below, OsStr::new("t"), &link, Replace::Never).map(drop),
        destination.publish_node(&below, &fifo, Replace::Never).map(drop),
        destination.publish_hard_link(&below, &rel("new"), Replace::Never),
        destination.open_published(&below).map(drop),
    ];
    for (case, result) in refused.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), Kind::Exists, "case {case}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(fs::metadata(outside.path()).unwrap().mode() & 0o777, 0o710);
}

#[test]
fn a_directory_that_somebody_removed_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    for (round, gone) in ["a/b/c", "a/b", "a"].into_iter().enumerate() {
        publish(&destination, &format!("a/b/c/{round}"), b"x");
        fs::remove_dir_all(directory.path().join(gone)).unwrap();
    }
    publish(&destination, "a/b/c/d/file", b"x");
    assert_eq!(fs::read(directory.path().join("a/b/c/d/file")).unwrap(), b"x");
}

#[test]
fn many_threads_make_the_same_directories() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let destination = &destination;
            scope.spawn(move || {
                for round in 0..10 {
                    publish(destination, &format!("a/{round}/b/file-{thread}"), b"x");
                }
            });
        }
    });
    let mut entries = 0;
    destination.walk_existing(|_, _| entries += 1).unwrap();
    assert_eq!(entries, 1 + 10 + 10 + 40);
}

#[test]
fn our_own_names_cannot_be_published() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let file = part(&destination, b"x");
    for name in [".lazycopy", ".lazycopy/lock", ".lazycopy/parts/x", "LAZYCOPY-INCOMPLETE.txt"] {
        let refused = destination.publish_file(&file, &rel(name), &file_metadata(), Replace::Never);
        assert_eq!(refused.unwrap_err().kind(), Kind::Invalid, "{name}");
        assert_eq!(destination.existing(&rel(name)).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(destination.ensure_directory(&rel(name)).unwrap_err().kind(), Kind::Invalid);
    }
    publish(&destination, "below/.lazycopy", b"an ordinary name there");
}

#[test]
fn links_pipes_sockets_and_devices_are_published_with_their_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let at = |name: &str| directory.path().join(name);
    let target = OsStr::new("../no where/\u{fc}");
    let link = metadata(EntryKind::Symlink, 0o777);
    let published = destination
        .publish_symlink(&rel("d/link"), target, &link, Replace::Never)
        .unwrap()
        .unwrap();
    assert_eq!(published.losses, []);
    assert_eq!(fs::read_link(at("d/link")).unwrap().as_os_str(), target);
    assert_eq!(fs::symlink_metadata(at("d/link")).unwrap().mtime_nsec(), 123_456_789);
    let again = destination.publish_symlink(&rel("d/link"), target, &link, Replace::Never);
    assert_eq!(again.unwrap_err().kind(), Kind::Exists);

    for (name, kind) in [("fifo", EntryKind::Fifo), ("socket", EntryKind::Socket)] {
        let published =
            destination.publish_node(&rel(name), &metadata(kind, 0o640), Replace::Never).unwrap();
        assert_eq!(published.unwrap().losses, []);
        let stat = fs::symlink_metadata(at(name)).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.mtime_nsec()), (0o640, 123_456_789));
        assert_eq!(stat.file_type().is_fifo(), kind == EntryKind::Fifo);
        assert_eq!(stat.file_type().is_socket(), kind == EntryKind::Socket);
    }
    let mut null = metadata(EntryKind::CharDevice, 0o666);
    null.attributes.device_number = rustix::fs::makedev(1, 3);
    let device = destination.publish_node(&rel("null"), &null, Replace::Never).unwrap();
    assert_eq!(device.is_some(), destination.abilities().devices);
    if device.is_some() {
        assert_eq!(fs::symlink_metadata(at("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
        let error = destination.open_published(&rel("null")).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
    }
    assert_eq!(destination.open_published(&rel("fifo")).unwrap_err().kind(), Kind::Exists);
    assert_eq!(parts_in(directory.path()), 0);
}

#[test]
fn hard_links_share_the_inode() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let identity = publish(&destination, "first", b"x").identity;
    destination.publish_hard_link(&rel("first"), &rel("d/second"), Replace::Never).unwrap();
    let stat = fs::metadata(directory.path().join("d/second")).unwrap();
    assert_eq!((stat.ino(), stat.nlink()), (identity.inode, 2));
    let error =
        destination.publish_hard_link(&rel("first"), &rel("d/second"), Replace::Never).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    let error =
        destination.publish_hard_link(&rel("none"), &rel("third"), Replace::Never).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

// C2, L24: empty files failed.
#[test]
fn empty_files_and_names_that_are_not_utf8_are_ordinary() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let name = OsString::from_vec(b"\xff\n".to_vec());
    let path = lazycopy::core::path::RelPath::root().child(&name).unwrap();
    let file = destination.create_part(0).unwrap();
    destination.publish_file(&file, &path, &file_metadata(), Replace::Never).unwrap();
    assert_eq!(fs::metadata(directory.path().join(&name)).unwrap().len(), 0);
    assert_eq!(destination.open_published(&path).unwrap().size(), 0);
}

// O: more than 20 directory levels threw.
#[test]
fn paths_longer_than_the_system_takes_are_published_and_walked() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let long = "n".repeat(200);
    let deep = vec![long.as_str(); 45].join("/");
    let file = publish(&destination, &format!("{deep}/file"), b"deep");
    let found = destination.existing(&rel(&format!("{deep}/file"))).unwrap().unwrap();
    assert_eq!(found.identity, file.identity);
    let reopened = destination.open_published(&rel(&format!("{deep}/file"))).unwrap();
    let mut target = [0; 4];
    reopened.read_at(0, &mut target).unwrap();
    assert_eq!(&target, b"deep");
    let mut entries = 0;
    destination.walk_existing(|_, _| entries += 1).unwrap();
    assert_eq!(entries, 46);
}

#[test]
fn an_adopted_file_is_read_only_and_stays_when_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    let path = directory.path().join("theirs");
    fs::write(&path, "theirs").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let adopted = destination.open_published(&rel("theirs")).unwrap();
    assert_eq!(adopted.published_path(), Some(rel("theirs")));
    assert_eq!(adopted.write_at(0, b"x").unwrap_err().kind(), Kind::ReadOnly);
    drop(adopted);
    let mut text = String::new();
    fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "theirs");
}

#[test]
fn a_group_is_published_as_its_files_would_be() {
    let directory = tempfile::tempdir().unwrap();
    let destination = open(directory.path());
    fs::write(directory.path().join("file-3"), "theirs").unwrap();
    let files: Vec<_> = (0u8..20)
        .map(|byte| (part(&destination, &[byte; 100]), rel(&format!("file-{byte}"))))
        .collect();
    let wanted = file_metadata();
    let group: Vec<_> = files
        .iter()
        .map(|(file, path)| Candidate {
            file,
            path,
            metadata: &wanted,
            replace: Replace::Never,
            vouched: None,
        })
        .collect();
    let results = destination.publish_group(&group);
    for ((byte, result), (file, path)) in (0u8..).zip(results).zip(&files) {
        if byte == 3 {
            assert_eq!(result.unwrap_err().kind(), Kind::Exists);
            assert_eq!(file.published_path(), None);
        } else {
            assert_eq!(result.unwrap().identity, file.identity());
            let bytes = fs::read(directory.path().join(path.as_path())).unwrap();
            assert_eq!(bytes, [byte; 100]);
        }
    }
    assert_eq!(fs::read(directory.path().join("file-3")).unwrap(), b"theirs");
    assert_eq!(parts_in(directory.path()), 1);
}
