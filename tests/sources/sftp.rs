//! What only SFTP promises.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures_util::StreamExt;
use lazycopy::core::attributes::{EntryKind, Ownership, Timestamp};
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use rustix::fs::Mode;

use crate::common::proxy::Proxy;
use crate::common::servers::Server;
use crate::common::sshd::{know, options, programs_that_say, sftp_handles};
use crate::common::{list_all, pattern, read, rel};
use crate::ground::Ground;
use crate::sshd::{self, Sshd};

/// The options but `without`, and `with`.
fn changed(server: &Server, without: &str, with: &[String]) -> Vec<String> {
    let mut options = options(server);
    options.retain(|option| !option.starts_with(without));
    options.extend_from_slice(with);
    options
}

fn refused(result: Result<std::sync::Arc<dyn lazycopy::source::Source>, Error>) -> Error {
    result.map(|source| source.display_name().to_owned()).unwrap_err()
}

#[tokio::test]
async fn modes_owners_times_links_and_special_files_come_through() {
    let Some(sshd) = sshd::start().await else { return };
    let at = |name: &str| sshd.root().join(name);
    fs::write(at("file"), "0123456789").unwrap();
    fs::set_permissions(at("file"), PermissionsExt::from_mode(0o4751)).unwrap();
    chown(at("file"), Some(1234), Some(2345)).unwrap();
    let time = UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
    File::options().write(true).open(at("file")).unwrap().set_modified(time).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::set_permissions(at("dir"), PermissionsExt::from_mode(0o1700)).unwrap();
    symlink("does/not/exist", at("link")).unwrap();
    symlink("dir", at("to dir")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

    let source = sshd.open(None).await;
    let (all, refused) = list_all(&*source, "").await.unwrap();
    assert_eq!((all.len(), refused), (6, 0));
    for (name, kind) in [
        ("file", EntryKind::File),
        ("dir", EntryKind::Directory),
        ("link", EntryKind::Symlink),
        ("to dir", EntryKind::Symlink),
        ("fifo", EntryKind::Fifo),
        ("socket", EntryKind::Socket),
    ] {
        let listed = all[OsStr::new(name)].attributes.clone().unwrap();
        assert_eq!(listed.kind, kind, "{name}");
        assert_eq!(listed, source.stat(&rel(name)).await.unwrap(), "{name}");
        let mode = fs::symlink_metadata(at(name)).unwrap().mode();
        assert_eq!(listed.mode, Some(mode & 0o7777), "{name}");
    }
    let file = source.stat(&rel("file")).await.unwrap();
    assert_eq!(file.ownership, Some(Ownership { uid: 1234, gid: 2345 }));
    assert_eq!(file.modified, Some(Timestamp { seconds: 1_234_567_890, nanos: 0 }));
    assert!(file.is_settled && !all[OsStr::new("dir")].attributes.as_ref().unwrap().is_settled);
    assert_eq!(source.readlink(&rel("link")).await.unwrap(), "does/not/exist");
    assert_eq!(source.readlink(&rel("dir")).await.unwrap_err().kind(), Kind::Invalid);
    assert!(source.traits().has_modes);
    assert!(source.capacity().await.unwrap().total_bytes > 0);
}

#[tokio::test]
async fn a_url_names_a_tree_a_file_or_what_is_below_the_home_directory() {
    let Some(sshd) = sshd::start().await else { return };
    sshd.put(b"dir/fi le", b"content").await;
    symlink("dir", sshd.root().join("alias")).unwrap();
    let (server, port) = (&sshd.server, sshd.server.port);
    let options = options(server);
    for path in ["/dir", "/dir/", "/alias", "//dir"] {
        let source = sshd.open_at(&sshd.url(port, path), &options).await.unwrap();
        assert!(source.single_file().is_none(), "{path}");
        assert_eq!(list_all(&*source, "").await.unwrap().0.len(), 1, "{path}");
        let root = source.stat(&rel("")).await.unwrap();
        assert_eq!(root.kind, EntryKind::Directory, "{path}");
    }
    let file = sshd.open_at(&sshd.url(port, "/alias/fi%20le"), &options).await.unwrap();
    assert_eq!(file.single_file().unwrap(), "fi le");
    assert_eq!(list_all(&*file, "").await.unwrap().0.len(), 1);
    let version = file.stat(&rel("fi le")).await.unwrap().fingerprint;
    assert_eq!(read(&*file, "fi le", ByteRange::at(2, 5), &version).await.unwrap(), b"ntent");
    assert_eq!(file.stat(&rel("other")).await.unwrap_err().kind(), Kind::NotFound);
    for (path, kind) in [
        ("/nothing", Kind::NotFound),
        ("/dir/fi%20le/", Kind::Invalid),
        ("/dir/fi%20le/x", Kind::NotFound),
    ] {
        let error = refused(sshd.open_at(&sshd.url(port, path), &options).await);
        assert_eq!(error.kind(), kind, "{path}: {error}");
    }
    let home = sshd.open_at(&format!("sftp://127.0.0.1:{port}/~"), &options).await.unwrap();
    assert_eq!(home.stat(&rel("")).await.unwrap().kind, EntryKind::Directory);
    let user = rustix::process::geteuid();
    let there = home.stat(&rel("")).await.unwrap();
    assert_eq!(there.ownership.unwrap().uid, user.as_raw());
}

#[tokio::test]
async fn an_unknown_host_is_refused_and_taken_once_where_that_is_said() {
    let Some(sshd) = sshd::start().await else { return };
    let url = sshd.url(sshd.server.port, "");
    let known = sshd.server.directory().join("kn own%hosts");
    let keep = format!("known-hosts={}", known.display());
    let strict = changed(&sshd.server, "known-hosts", std::slice::from_ref(&keep));
    let error = refused(sshd.open_at(&url, &strict).await);
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("--accept-new"), "{error}");
    assert!(!known.exists());
    let accepting = [&strict[..], &["accept-new=true".to_owned()]].concat();
    sshd.open_at(&url, &accepting).await.unwrap();
    // From now on it is known.
    sshd.open_at(&url, &strict).await.unwrap();
}

#[tokio::test]
async fn a_host_with_another_key_is_refused_always() {
    let Some(sshd) = sshd::start().await else { return };
    let url = sshd.url(sshd.server.port, "");
    let known = sshd.server.directory().join("other");
    let client = fs::read_to_string(sshd.server.directory().join("key.pub")).unwrap();
    fs::write(&known, format!("[127.0.0.1]:{} {client}", sshd.server.port)).unwrap();
    let keep = format!("known-hosts={}", known.display());
    for more in [vec![keep.clone()], vec![keep.clone(), "accept-new=true".to_owned()]] {
        let error = refused(sshd.open_at(&url, &changed(&sshd.server, "known-hosts", &more)).await);
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.to_string().contains("another key"), "{error}");
    }
}

#[tokio::test]
async fn an_alias_of_the_configuration_is_a_host() {
    let Some(sshd) = sshd::start().await else { return };
    sshd.put(b"file", b"content").await;
    let at = |name: &str| sshd.server.directory().join(name);
    know(&sshd.server, &at("known"), "the-real-name");
    fs::write(
        at("config"),
        format!(
            "Host my-alias\n  HostName 127.0.0.1\n  Port {}\n  HostKeyAlias the-real-name\n  IdentityFile {}\n  UserKnownHostsFile {}\n  StrictHostKeyChecking no\n  LogLevel QUIET\n",
            sshd.server.port,
            at("key").display(),
            at("known").display()
        ),
    )
    .unwrap();
    let url = format!("sftp://my-alias{}", sshd.root().display()).replace(' ', "%20");
    let options = [format!("ssh-config={}", at("config").display())];
    let source = sshd.open_at(&url, &options).await.unwrap();
    assert_eq!(source.stat(&rel("file")).await.unwrap().size, 7);
    // No configuration lets an unknown host in, or makes ssh silent.
    fs::write(at("known"), "").unwrap();
    let error = refused(sshd.open_at(&url, &options).await);
    assert!(error.to_string().contains("--accept-new"), "{error}");
}

#[tokio::test]
async fn each_way_not_to_get_there_is_told() {
    let Some(sshd) = sshd::start().await else { return };
    let options = options(&sshd.server);
    // A port that nobody has: bound, and not listened at.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refused(sshd.open_at(&sshd.url(nobody, ""), &options).await);
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("nothing answers at that port"), "{error}");
    let error = refused(sshd.open_at("sftp://nobody.invalid/x", &options).await);
    assert_eq!(error.kind(), Kind::Unreachable);
    let missing = changed(&sshd.server, "identity", &["identity=/nonexistent/key".to_owned()]);
    let error = refused(sshd.open_at(&sshd.url(sshd.server.port, ""), &missing).await);
    assert!(error.to_string().contains("/nonexistent/key"), "{error}");
    let other = sshd.server.directory().join("host_key");
    let other = changed(&sshd.server, "identity", &[format!("identity={}", other.display())]);
    let error = refused(sshd.open_at(&sshd.url(sshd.server.port, ""), &other).await);
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("identity"), "{error}");
}

/// Waits until `holds`.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn ssh_of(sshd: &Sshd) -> BTreeSet<u32> {
    programs_that_say("ssh", &format!("Port={}", sshd.server.port))
}

#[tokio::test]
async fn cancelled_and_finished_reads_leave_no_handle_and_a_closed_source_no_ssh() {
    let Some(sshd) = sshd::start().await else { return };
    sshd.put(b"file", &pattern(8 << 20)).await;
    let source = sshd.open(None).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let held = || sftp_handles(&sshd.server, &sshd.root());
    assert_eq!(held(), Vec::<std::path::PathBuf>::new());
    let mut running = Vec::new();
    for _ in 0..10 {
        let whole = ByteRange::at(0, version.size);
        let mut stream = source.read(&rel("file"), whole, &version).await.unwrap();
        stream.next().await.unwrap().unwrap();
        running.push(stream);
    }
    assert_eq!(held().len(), 10);
    drop(running);
    until("all handles are closed", || held().is_empty()).await;
    let bytes = read(&*source, "file", ByteRange::at(5, 100_000), &version).await.unwrap();
    assert_eq!(bytes.len(), 100_000);
    let (sender, mut batches) = tokio::sync::mpsc::channel(1);
    let root = rel("");
    let (listed, ()) = tokio::join!(source.list(&root, sender), async {
        batches.recv().await.unwrap();
        drop(batches);
    });
    listed.unwrap();
    until("no handle is left", || held().is_empty()).await;
    let ours = ssh_of(&sshd);
    assert!((1..=4).contains(&ours.len()), "{ours:?}");
    for pid in &ours {
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let what = fs::read_link(fd.path()).unwrap_or_default();
            let what = what.to_str().unwrap();
            // Its pipes, its connection and what it opens itself; nothing of ours, and no terminal.
            let is_its_own = what.starts_with("pipe:") || what.starts_with("socket:");
            assert!(is_its_own || what == "/dev/null", "{what}");
        }
    }
    drop(source);
    until("no ssh is left", || ssh_of(&sshd).is_empty()).await;
}

#[tokio::test]
async fn many_reads_share_few_connections() {
    let Some(sshd) = sshd::start().await else { return };
    sshd.put(b"file", &pattern(1 << 20)).await;
    let wire = Proxy::to(sshd.server.port);
    let source = sshd.open(Some(wire.port)).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let whole = ByteRange::at(0, version.size);
    let content = pattern(1 << 20);
    let reads = (0..64).map(|_| read(&*source, "file", whole, &version));
    for bytes in futures_util::future::join_all(reads).await {
        assert!(bytes.unwrap() == content);
    }
    assert!((1..=4).contains(&wire.open()), "{}", wire.open());
}

#[tokio::test]
async fn a_lost_connection_is_replaced_and_one_that_cannot_be_had_says_nothing_of_files() {
    let Some(sshd) = sshd::start().await else { return };
    sshd.put(b"file", &pattern(1000)).await;
    let wire = Proxy::to(sshd.server.port);
    let source = sshd.open(Some(wire.port)).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    // The next answer does not come through; the one after, on another connection, does.
    wire.cut_once_after(0);
    assert_eq!(source.stat(&rel("file")).await.unwrap().fingerprint, version);
    assert_eq!(wire.cuts(), 1);
    // Nobody is let in any more: away, and never missing or denied.
    fs::write(sshd.server.directory().join("authorized_keys"), "").unwrap();
    wire.cut_once_after(0);
    let error = source.stat(&rel("file")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert!(error.to_string().contains("lets this user not in"), "{error}");
}

// A million entries would take minutes to make; the answers have 100 names each, so these are as good.
#[tokio::test]
async fn a_listing_comes_as_it_is_read() {
    let Some(sshd) = sshd::start().await else { return };
    for number in 0..5000 {
        File::create(sshd.root().join(format!("f{number:05}"))).unwrap();
    }
    let source = sshd.open(None).await;
    let (sender, mut batches) = tokio::sync::mpsc::channel(1);
    let root = rel("");
    let mut sizes = Vec::new();
    let (listed, ()) = tokio::join!(source.list(&root, sender), async {
        while let Some(batch) = batches.recv().await {
            sizes.push(batch.entries.len());
        }
    });
    listed.unwrap();
    assert_eq!(sizes.iter().sum::<usize>(), 5000);
    assert!(sizes.iter().all(|size| *size <= 1000) && sizes.len() >= 5, "{sizes:?}");
}
