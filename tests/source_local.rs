//! A local source on a real file system.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{list_all, pattern, read, rel};
use futures_util::StreamExt;
use lazycopy::core::attributes::EntryKind;
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Kind, Result};
use lazycopy::source::local::{LocalOptions, LocalSource};
use lazycopy::source::{Entry, Source};
use rustix::fs::{Mode, XattrFlags};
use tempfile::TempDir;
use tokio::sync::mpsc;

fn open(path: &Path) -> LocalSource {
    LocalSource::open(path, LocalOptions::default()).unwrap()
}

async fn list(source: &dyn Source, directory: &str) -> Result<BTreeMap<OsString, Entry>> {
    list_all(source, directory).await.map(|(all, _)| all)
}

#[tokio::test]
async fn every_kind_is_listed_with_its_attributes() {
    let tree = TempDir::new().unwrap();
    let at = |name: &str| tree.path().join(name);
    fs::write(at("file"), "0123456789").unwrap();
    fs::set_permissions(at("file"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink("does/not/exist", at("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RUSR).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::write(tree.path().join(OsStr::from_bytes(b"latin\xe9")), "x").unwrap();

    let source = open(tree.path());
    let all = list(&source, "").await.unwrap();
    drop(socket);
    let kind = |name: &str| all[OsStr::new(name)].kind;
    assert_eq!(all.len(), 7);
    assert_eq!(kind("directory"), EntryKind::Directory);
    assert_eq!(kind("link"), EntryKind::Symlink);
    assert_eq!(kind("fifo"), EntryKind::Fifo);
    assert_eq!(kind("socket"), EntryKind::Socket);
    assert!(all.contains_key(OsStr::from_bytes(b"latin\xe9")));
    let file = all[OsStr::new("file")].attributes.clone().unwrap();
    let status = fs::metadata(at("file")).unwrap();
    assert_eq!((file.size, file.mode), (10, Some(0o640)));
    assert_eq!(file.ownership.unwrap().uid, status.uid());
    let modified = file.modified.unwrap();
    assert_eq!(
        (modified.seconds, i64::from(modified.nanos)),
        (status.mtime(), status.mtime_nsec())
    );
    assert_eq!(file, source.stat(&rel("file")).await.unwrap());
    // L24: an empty file is a file.
    assert_eq!(source.stat(&rel("empty")).await.unwrap().size, 0);
    assert_eq!(source.readlink(&rel("link")).await.unwrap(), "does/not/exist");
    assert_eq!(source.readlink(&rel("file")).await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(source.stat(&rel("nothing")).await.unwrap_err().kind(), Kind::NotFound);
    assert!(source.capacity().await.unwrap().total_bytes > 0);
}

#[tokio::test]
async fn batches_cover_a_large_directory_once() {
    let tree = TempDir::new().unwrap();
    for index in 0..3000 {
        File::create(tree.path().join(format!("f{index}"))).unwrap();
    }
    let source = open(tree.path());
    let (sender, mut batches) = mpsc::channel(1);
    let listing = tokio::spawn(async move { source.list(&RelPath::root(), sender).await });
    let (mut count, mut names) = (0, std::collections::HashSet::new());
    while let Some(batch) = batches.recv().await {
        count += batch.entries.len();
        names.extend(batch.entries.into_iter().map(|entry| entry.name));
    }
    listing.await.unwrap().unwrap();
    assert_eq!((count, names.len()), (3000, 3000));
}

#[tokio::test]
async fn a_range_gives_exactly_its_bytes() {
    let tree = TempDir::new().unwrap();
    let content = pattern(700_001);
    fs::write(tree.path().join("file"), &content).unwrap();
    let source = open(tree.path());
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    for (start, end) in [(0, 1), (0, 700_001), (262_143, 262_145), (700_000, 700_001), (1, 524_289)]
    {
        let bytes = read(&source, "file", ByteRange::new(start, end), &version).await.unwrap();
        let wanted = &content[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
        assert!(bytes == wanted, "{start}..{end}");
    }
}

// L23
#[tokio::test]
async fn a_file_changed_before_the_read_is_stale() {
    let tree = TempDir::new().unwrap();
    let path = tree.path().join("file");
    fs::write(&path, pattern(1000)).unwrap();
    let source = open(tree.path());
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let error = read(&source, "file", ByteRange::at(0, 10), &version).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
}

// L23, L1
#[tokio::test]
async fn a_file_changed_under_a_read_yields_no_byte_of_the_other_version() {
    for change in ["rewrite", "truncate", "append"] {
        let tree = TempDir::new().unwrap();
        let path = tree.path().join("file");
        fs::write(&path, vec![b'a'; 600_000]).unwrap();
        let source = open(tree.path());
        let version = source.stat(&rel("file")).await.unwrap().fingerprint;
        let whole = ByteRange::at(0, 600_000);
        let mut stream = source.read(&rel("file"), whole, &version).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        let file = File::options().write(true).open(&path).unwrap();
        match change {
            "rewrite" => file.write_all_at(&[b'b'; 600_000], 0).unwrap(),
            "truncate" => file.set_len(300_000).unwrap(),
            _ => file.set_len(600_001).unwrap(),
        }
        file.set_modified(std::time::SystemTime::now()).unwrap();
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Stale, "{change}");
    }
}

#[tokio::test]
async fn a_replaced_file_is_stale() {
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("file"), "old").unwrap();
    let source = open(tree.path());
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    fs::remove_file(tree.path().join("file")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.path().join("file"), Mode::RUSR).unwrap();
    let error = read(&source, "file", ByteRange::at(0, 3), &version).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
}

#[tokio::test]
async fn holes_are_told_and_dense_files_have_none() {
    let tree = TempDir::new().unwrap();
    let file = File::create(tree.path().join("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&pattern(4096), 16 << 20).unwrap();
    fs::write(tree.path().join("dense"), pattern(100_000)).unwrap();
    file.sync_all().unwrap();
    let source = open(tree.path());
    let sparse = source.stat(&rel("sparse")).await.unwrap();
    assert!(sparse.is_sparse());
    let data = source.data_ranges(&rel("sparse"), &sparse.fingerprint).await.unwrap().unwrap();
    assert!(data.iter().any(|range| range.contains(ByteRange::at(16 << 20, 4096))));
    assert!(data.iter().map(|range| range.len()).sum::<u64>() < 1 << 20, "{data:?}");
    let dense = source.stat(&rel("dense")).await.unwrap();
    assert_eq!(source.data_ranges(&rel("dense"), &dense.fingerprint).await.unwrap(), None);
    file.write_all_at(b"x", 0).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let error = source.data_ranges(&rel("sparse"), &sparse.fingerprint).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
}

#[tokio::test]
async fn hard_links_share_an_identity_and_others_have_none() {
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("one"), "x").unwrap();
    fs::hard_link(tree.path().join("one"), tree.path().join("two")).unwrap();
    fs::write(tree.path().join("alone"), "x").unwrap();
    let source = open(tree.path());
    let one = source.stat(&rel("one")).await.unwrap();
    assert!(one.identity.is_some() && one.link_count == 2);
    assert_eq!(one.identity, source.stat(&rel("two")).await.unwrap().identity);
    assert_eq!(source.stat(&rel("alone")).await.unwrap().identity, None);
    assert_eq!(source.stat(&RelPath::root()).await.unwrap().identity, None);
}

#[tokio::test]
async fn extended_attributes_and_acls_come_raw() {
    let tree = TempDir::new().unwrap();
    let path = tree.path().join("file");
    fs::write(&path, "x").unwrap();
    symlink("file", tree.path().join("link")).unwrap();
    let set = rustix::fs::setxattr(&path, "user.note", b"a\0b", XattrFlags::empty());
    if set.is_err() {
        println!("skipped: no user attributes on this file system");
        return;
    }
    let has_acl = Command::new("setfacl")
        .args(["-m", "u:12345:rwx"])
        .arg(&path)
        .status()
        .is_ok_and(|status| status.success());
    let source = open(tree.path());
    let attributes: BTreeMap<_, _> =
        source.xattrs(&rel("file")).await.unwrap().into_iter().collect();
    assert_eq!(attributes[OsStr::new("user.note")], b"a\0b");
    assert_eq!(attributes.contains_key(OsStr::new("system.posix_acl_access")), has_acl);
    assert!(source.xattrs(&rel("link")).await.unwrap().is_empty(), "a link was followed");
    assert!(source.xattrs(&RelPath::root()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_symlink_in_the_tree_leads_nowhere() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let tree = TempDir::new().unwrap();
    symlink(outside.path(), tree.path().join("escape")).unwrap();
    symlink(outside.path().join("secret"), tree.path().join("file")).unwrap();
    let source = open(tree.path());
    let secret = open(outside.path()).stat(&rel("secret")).await.unwrap().fingerprint;
    assert_eq!(list(&source, "escape").await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(source.stat(&rel("escape/secret")).await.unwrap_err().kind(), Kind::NotFound);
    let one = ByteRange::at(0, 1);
    let error = read(&source, "escape/secret", one, &secret).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(read(&source, "file", one, &secret).await.unwrap_err().kind(), Kind::Stale);
}

#[tokio::test]
async fn a_source_that_is_a_link_is_followed_once() {
    let tree = TempDir::new().unwrap();
    fs::create_dir(tree.path().join("real")).unwrap();
    fs::write(tree.path().join("real/file"), "x").unwrap();
    symlink("real", tree.path().join("link")).unwrap();
    let source = open(&tree.path().join("link"));
    assert!(source.single_file().is_none());
    assert_eq!(list(&source, "").await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_file_is_a_tree_of_one_entry() {
    let tree = TempDir::new().unwrap();
    fs::write(tree.path().join("film"), "bytes").unwrap();
    fs::write(tree.path().join("other"), "bytes").unwrap();
    symlink("film", tree.path().join("link")).unwrap();
    for name in ["film", "link"] {
        let source = open(&tree.path().join(name));
        assert_eq!(source.single_file().unwrap(), name);
        let all = list(&source, "").await.unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), [name]);
        let file = source.stat(&rel(name)).await.unwrap();
        assert_eq!((file.kind, file.size), (EntryKind::File, 5));
        let bytes = read(&source, name, ByteRange::at(0, 5), &file.fingerprint).await.unwrap();
        assert_eq!(bytes, b"bytes");
        let root = source.stat(&RelPath::root()).await.unwrap();
        assert_eq!(root.kind, EntryKind::Directory);
        assert_eq!(source.stat(&rel("other")).await.unwrap_err().kind(), Kind::NotFound);
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_one_is_refused() {
    let tree = TempDir::new().unwrap();
    let fifo = tree.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR).unwrap();
    let refusal =
        |path: &Path| LocalSource::open(path, LocalOptions::default()).unwrap_err().kind();
    assert_eq!(refusal(&fifo), Kind::Invalid);
    assert_eq!(refusal(&tree.path().join("nothing")), Kind::NotFound);
}

/// A mount that is undone at the end of the test.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH) {
            println!("left mounted: {error}");
        }
    }
}

#[tokio::test]
async fn another_file_system_is_shown_empty_unless_asked_for() {
    let tree = TempDir::new().unwrap();
    let inside = tree.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("none", &inside, "tmpfs", flags, None).is_err() {
        println!("skipped: cannot mount here");
        return;
    }
    let _mounted = Mounted(&inside);
    fs::write(inside.join("file"), "x").unwrap();
    let source = open(tree.path());
    assert_eq!(list(&source, "").await.unwrap()[OsStr::new("inside")].kind, EntryKind::Directory);
    assert!(list(&source, "inside").await.unwrap().is_empty());
    assert_eq!(source.stat(&rel("inside/file")).await.unwrap_err().kind(), Kind::NotFound);
    let crossing = LocalSource::open(tree.path(), LocalOptions { cross_mounts: true }).unwrap();
    assert_eq!(list(&crossing, "inside").await.unwrap().len(), 1);
}
