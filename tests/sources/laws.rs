//! The laws.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use futures_util::StreamExt;
use lazycopy::core::attributes::EntryKind;
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::error::Kind;
use lazycopy::source::ListBatch;
use tokio::sync::mpsc;

use crate::common::proxy::Proxy;
use crate::common::{list_all, part, pattern, read, read_until_error, rel};
use crate::ground::Ground;

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// Names that break careless servers and clients; all of them UTF-8. None begins with a dot: nginx leaves those out of its index.
const ODD_NAMES: [&str; 18] = [
    "plain",
    "a b",
    " lead",
    "100%",
    "%2e%2e",
    "a%2Fb",
    "#hash",
    "q?x=1",
    "a+b",
    "a:b",
    "a&b=c",
    "~t",
    "ümlaut",
    "日本語",
    "e\u{301}",
    "'\"<>;",
    "back\\slash",
    "-rf",
];

/// Names that are not UTF-8.
const BYTE_NAMES: [&[u8]; 2] = [b"latin\xe9", b"\xff\xfe"];

pub(crate) async fn a_listing_has_each_entry_once(ground: &impl Ground) {
    for (path, bytes) in
        [("one", "1"), ("a.b", "2"), ("dir/inner", "3"), ("dir/deep/er/leaf", "4"), ("dir2/x", "5")]
    {
        ground.put(path.as_bytes(), bytes.as_bytes()).await;
    }
    let mut expected = BTreeSet::from(["a.b", "dir", "dir2", "one"]);
    if ground.can().empty_directories {
        ground.make_directory(b"empty").await;
        expected.insert("empty");
    }
    let source = ground.open(None).await;
    let (all, refused) = list_all(&*source, "").await.unwrap();
    assert_eq!(refused, 0);
    assert_eq!(all.keys().map(|name| name.to_str().unwrap()).collect::<BTreeSet<_>>(), expected);
    for (name, kind) in [("one", EntryKind::File), ("dir", EntryKind::Directory)] {
        assert_eq!(all[OsStr::new(name)].kind, kind);
    }
    for (directory, names) in
        [("dir", vec!["deep", "inner"]), ("dir/deep", vec!["er"]), ("dir/deep/er", vec!["leaf"])]
    {
        let (all, _) = list_all(&*source, directory).await.unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), names, "{directory}");
    }
    if ground.can().empty_directories {
        assert!(list_all(&*source, "empty").await.unwrap().0.is_empty());
    }
    assert_eq!(list_all(&*source, "nothing").await.unwrap_err().kind(), Kind::NotFound);
    let not_a_directory = list_all(&*source, "one").await.unwrap_err().kind();
    assert!(matches!(not_a_directory, Kind::NotFound | Kind::Invalid), "{not_a_directory}");
}

pub(crate) async fn a_long_listing_comes_in_batches_and_whole(ground: &impl Ground) {
    // More than two pages of S3.
    const COUNT: usize = 2100;
    for number in 0..COUNT {
        ground.put(format!("long/entry-{number:04}").as_bytes(), b"").await;
    }
    let source = ground.open(None).await;
    assert_eq!(list_all(&*source, "long").await.unwrap().0.len(), COUNT);
    // Who has seen enough ends it.
    let (sender, mut batches) = mpsc::channel::<ListBatch>(1);
    let directory = rel("long");
    let (listed, first) = tokio::join!(source.list(&directory, sender), async {
        let first = batches.recv().await;
        drop(batches);
        first
    });
    listed.unwrap();
    assert!(!first.unwrap().entries.is_empty());
}

pub(crate) async fn attributes_are_those_of_the_bytes(ground: &impl Ground) {
    ground.put(b"dir/file", &pattern(12_345)).await;
    let source = ground.open(None).await;
    let file = source.stat(&rel("dir/file")).await.unwrap();
    assert_eq!((file.kind, file.size, file.fingerprint.size), (EntryKind::File, 12_345, 12_345));
    assert_eq!(file.link_count, 1);
    assert_eq!(source.stat(&rel("dir")).await.unwrap().kind, EntryKind::Directory);
    assert_eq!(source.stat(&RelPath::root()).await.unwrap().kind, EntryKind::Directory);
    assert!(source.single_file().is_none());
    // Asked twice, and asked by listing, it is the same version.
    let again = source.stat(&rel("dir/file")).await.unwrap();
    assert_eq!(again.fingerprint, file.fingerprint);
    let (all, _) = list_all(&*source, "dir").await.unwrap();
    if let Some(listed) = &all[OsStr::new("file")].attributes {
        assert_eq!((&listed.fingerprint, listed.modified), (&file.fingerprint, file.modified));
    }
    // One that says that it lists attributes may leave them out of an entry, but not the other way round.
    let has_attributes = all[OsStr::new("file")].attributes.is_some();
    assert!(source.traits().lists_attributes || !has_attributes);
    assert!(source.xattrs(&rel("dir/file")).await.unwrap().is_empty());
    assert_eq!(source.readlink(&rel("dir/file")).await.unwrap_err().kind(), Kind::Invalid);
}

pub(crate) async fn every_range_is_exact(ground: &impl Ground) {
    let content = pattern(3 * MIB + 7);
    ground.put(b"large", &content).await;
    let source = ground.open(None).await;
    let version = source.stat(&rel("large")).await.unwrap().fingerprint;
    let end = version.size;
    let mut ranges =
        vec![(0, end), (0, 1), (end - 1, end), (end - 4097, end), (1, end - 1), (131_072, 262_144)];
    ranges.extend((0..40u64).map(|n| {
        let start = n * 7_919_017 % (end - 1);
        (start, (start + 1 + n * 104_729 % 300_000).min(end))
    }));
    for (start, end) in ranges {
        let range = ByteRange::new(start, end);
        let bytes = read(&*source, "large", range, &version).await.unwrap();
        assert!(bytes == part(&content, range), "{range}");
    }
    // Many at once.
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..16u64 {
        let (source, version, content) = (source.clone(), version.clone(), content.clone());
        readers.spawn(async move {
            let range = ByteRange::at(reader * 190_001, 100_003);
            assert!(
                read(&*source, "large", range, &version).await.unwrap() == part(&content, range)
            );
        });
    }
    readers.join_all().await;
}

// L24
pub(crate) async fn an_empty_file_is_empty(ground: &impl Ground) {
    ground.put(b"empty", b"").await;
    let source = ground.open(None).await;
    let file = source.stat(&rel("empty")).await.unwrap();
    assert_eq!((file.kind, file.size), (EntryKind::File, 0));
    let (all, _) = list_all(&*source, "").await.unwrap();
    assert_eq!(all[OsStr::new("empty")].kind, EntryKind::File);
}

pub(crate) async fn an_odd_name_is_itself(ground: &impl Ground) {
    let mut names: Vec<&[u8]> = ODD_NAMES.iter().map(|name| name.as_bytes()).collect();
    if ground.can().any_bytes {
        names.extend(BYTE_NAMES);
    }
    names.retain(|name| ground.can_hold(name));
    for name in &names {
        ground.put(&[b"o d%d/", *name].concat(), name).await;
        ground.put(&[b"deep/", *name, b"/", *name].concat(), b"inner").await;
    }
    let source = ground.open(None).await;
    let (all, refused) = list_all(&*source, "o d%d").await.unwrap();
    let expected: BTreeSet<OsString> =
        names.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    assert_eq!((all.keys().cloned().collect::<BTreeSet<_>>(), refused), (expected, 0));
    for name in &names {
        let path = [b"o d%d/", *name].concat();
        let file = source.stat(&rel(&path)).await.unwrap();
        let whole = ByteRange::at(0, file.size);
        assert_eq!(read(&*source, &path, whole, &file.fingerprint).await.unwrap(), *name);
        let directory = rel([b"deep/", *name].concat());
        assert_eq!(source.stat(&directory).await.unwrap().kind, EntryKind::Directory);
        let inner = directory.child(OsStr::from_bytes(name)).unwrap();
        assert_eq!(source.stat(&inner).await.unwrap().size, 5);
    }
}

pub(crate) async fn offsets_beyond_4_gib_are_exact(ground: &impl Ground) {
    let size = 5 * GIB + 3;
    let marks: Vec<(u64, Vec<u8>)> = [0, 2 * GIB - 5, 4 * GIB - 5, size - 10]
        .map(|offset| (offset, format!("at{offset:08x}").as_bytes()[..10].to_vec()))
        .into();
    if !ground.put_sparse("huge", size, &marks).await {
        println!("not tried: this server makes no file of 5 GiB here");
        return;
    }
    let source = ground.open(None).await;
    let version = source.stat(&rel("huge")).await.unwrap().fingerprint;
    assert_eq!(version.size, size);
    for (offset, bytes) in marks {
        let range = ByteRange::at(offset, 10);
        assert_eq!(read(&*source, "huge", range, &version).await.unwrap(), bytes, "{offset}");
    }
}

// L23
pub(crate) async fn a_changed_file_is_stale(ground: &impl Ground) {
    let old = pattern(2 * MIB);
    ground.put(b"file", &old).await;
    let source = ground.open(None).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let whole = ByteRange::at(0, version.size);
    let mut running = source.read(&rel("file"), whole, &version).await.unwrap();
    let mut bytes = running.next().await.unwrap().unwrap().to_vec();
    let new: Vec<u8> = pattern(2 * MIB + 1).iter().map(|byte| byte ^ 0xff).collect();
    ground.put(b"file", &new).await;
    // What runs may end with the old version's bytes or with an error, never with another's.
    let ended = loop {
        match running.next().await {
            Some(Ok(piece)) => bytes.extend_from_slice(&piece),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    assert!(bytes == old[..bytes.len()], "bytes of another version");
    assert!(ended.is_err() || bytes.len() == old.len());
    for range in [ByteRange::at(0, 10), whole, ByteRange::at(version.size - 1, 1)] {
        let (bytes, result) = read_until_error(&*source, "file", range, &version).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Stale, "{range}: {error:?}");
        assert!(bytes.is_empty(), "{range}");
    }
    let now = source.stat(&rel("file")).await.unwrap().fingerprint;
    assert_ne!(now, version);
    let last = ByteRange::at(now.size - 1, 1);
    assert_eq!(read(&*source, "file", last, &now).await.unwrap(), new[new.len() - 1..]);
}

pub(crate) async fn a_missing_file_is_not_found(ground: &impl Ground) {
    ground.put(b"dir/file", b"content").await;
    let source = ground.open(None).await;
    for path in ["nothing", "dir/nothing", "nothing/at/all"] {
        assert_eq!(source.stat(&rel(path)).await.unwrap_err().kind(), Kind::NotFound, "{path}");
    }
    let version = source.stat(&rel("dir/file")).await.unwrap().fingerprint;
    ground.remove(b"dir/file").await;
    let (bytes, result) =
        read_until_error(&*source, "dir/file", ByteRange::at(0, 7), &version).await;
    assert!(bytes.is_empty());
    let kind = result.unwrap_err().kind();
    assert!(matches!(kind, Kind::NotFound | Kind::Stale), "{kind}");
    assert_eq!(source.stat(&rel("dir/file")).await.unwrap_err().kind(), Kind::NotFound);
}

pub(crate) async fn what_is_forbidden_is_denied(ground: &impl Ground) {
    match ground.forbidden().await {
        Some(error) => assert_eq!(error.kind(), Kind::Denied, "{error:?}"),
        None => println!("not tried: nothing can be forbidden here"),
    }
}

/// A wire to the server, if there is a server.
fn wire(ground: &impl Ground) -> Option<Proxy> {
    let wire = ground.port().map(Proxy::to);
    if wire.is_none() {
        println!("not tried: there is no connection");
    }
    wire
}

// L4
pub(crate) async fn a_cut_connection_is_resumed(ground: &impl Ground) {
    let content = pattern(4 * MIB);
    ground.put(b"file", &content).await;
    let Some(wire) = wire(ground) else { return };
    let source = ground.open(Some(wire.port)).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let (mut bytes, mut attempts) = (Vec::new(), 0);
    // As the engine does: from the first byte that is missing.
    while bytes.len() < content.len() {
        attempts += 1;
        assert!(attempts < 10);
        if attempts == 1 {
            wire.cut_once_after(MIB as u64);
        }
        let missing = ByteRange::new(bytes.len() as u64, version.size);
        let (more, result) = read_until_error(&*source, "file", missing, &version).await;
        bytes.extend(more);
        assert!(bytes == content[..bytes.len()]);
        if let Err(error) = result {
            assert!(error.is_transient(), "{error:?}");
        }
    }
    assert_eq!(wire.cuts(), 1);
    assert_eq!(attempts, 2, "resumed, not begun anew");
}

// L1, L19
pub(crate) async fn a_wrong_length_is_never_accepted(ground: &impl Ground) {
    if !ground.can().plain_http {
        println!("not tried: nobody can falsify a length here");
        return;
    }
    let content = pattern(MIB);
    ground.put(b"file", &content).await;
    let Some(wire) = wire(ground) else { return };
    let source = ground.open(Some(wire.port)).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    wire.shorten();
    for range in
        [ByteRange::at(0, 1000), ByteRange::at(5, 500_000), ByteRange::at(version.size - 9, 9)]
    {
        let (bytes, result) = read_until_error(&*source, "file", range, &version).await;
        let error = result.unwrap_err();
        assert!(error.is_transient() || error.kind() == Kind::Corrupt, "{error:?}");
        assert!((bytes.len() as u64) < range.len());
        assert!(bytes == part(&content, range)[..bytes.len()]);
    }
}

pub(crate) async fn cancelling_leaves_no_connection_behind(ground: &impl Ground) {
    // More than what fits into the buffers on its way.
    ground.put(b"file", &pattern(24 * MIB)).await;
    let Some(wire) = wire(ground) else { return };
    let source = ground.open(Some(wire.port)).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let whole = ByteRange::at(0, version.size);
    let before = wire.open();
    let mut running = Vec::new();
    for _ in 0..6 {
        let mut stream = source.read(&rel("file"), whole, &version).await.unwrap();
        assert!(!stream.next().await.unwrap().unwrap().is_empty());
        running.push(stream);
    }
    drop(running);
    // Those that wait for their answers too.
    for _ in 0..6 {
        let path = rel("file");
        let asked = source.read(&path, whole, &version);
        drop(tokio::time::timeout(std::time::Duration::ZERO, asked).await);
    }
    wire.until_open_at_most(before.max(1)).await;
    drop(source);
    wire.until_open_at_most(0).await;
}
