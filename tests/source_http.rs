//! An HTTP source on real servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::http::{open, options, refusal};
use common::nginx::Nginx;
use common::{list_all, part, pattern, read, read_until_error, rel};
use lazycopy::core::attributes::{EntryKind, Validator};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::error::Kind;
use lazycopy::source::Source;
use lazycopy::source::http::{HttpOptions, HttpSource};
use tempfile::TempDir;

/// Names that break careless servers and clients.
const ODD_NAMES: [&[u8]; 11] = [
    b"plain",
    b"a b",
    b"100%",
    b"%2e%2e",
    b"#hash",
    b"q?x=1",
    b"a:b",
    b"\xc3\xbcml",
    b"latin\xe9",
    b"'\"&<>;",
    b"back\\slash",
];

fn odd_tree() -> TempDir {
    let tree = TempDir::new().unwrap();
    for name in ODD_NAMES {
        fs::write(tree.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::create_dir(tree.path().join("sub dir")).unwrap();
    fs::write(tree.path().join("sub dir/inner"), "inner").unwrap();
    fs::write(tree.path().join("empty"), "").unwrap();
    fs::write(tree.path().join("large"), pattern(1_000_000)).unwrap();
    tree
}

/// Lists, stats and reads all of [`odd_tree`].
async fn check_odd_tree(source: &dyn Source) {
    let (all, refused) = list_all(source, "").await.unwrap();
    assert_eq!((all.len(), refused), (ODD_NAMES.len() + 3, 0), "{:?}", all.keys());
    for name in ODD_NAMES {
        assert_eq!(all[OsStr::from_bytes(name)].kind, EntryKind::File);
        let file = source.stat(&rel(name)).await.unwrap();
        assert_eq!((file.kind, file.size), (EntryKind::File, name.len() as u64));
        let whole = ByteRange::at(0, file.size);
        assert_eq!(read(source, name, whole, &file.fingerprint).await.unwrap(), name);
    }
    assert_eq!(all[OsStr::new("sub dir")].kind, EntryKind::Directory);
    assert_eq!(source.stat(&rel("sub dir")).await.unwrap().kind, EntryKind::Directory);
    assert_eq!(list_all(source, "sub dir").await.unwrap().0.len(), 1);
    assert_eq!(source.stat(&rel("sub dir/inner")).await.unwrap().size, 5);
    // L24
    assert_eq!(source.stat(&rel("empty")).await.unwrap().size, 0);
    assert_eq!(source.stat(&rel("nothing")).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(source.stat(&RelPath::root()).await.unwrap().kind, EntryKind::Directory);
    check_ranges(source, "large", &pattern(1_000_000)).await;
    check_first_looks(source).await;
}

/// A first look is a stat and a read, or nothing.
async fn check_first_looks(source: &dyn Source) {
    let large = pattern(1_000_000);
    for (most, name, content) in [
        (1 << 20, "large", &large[..]),
        (1_000_000, "large", &large[..]),
        (131_072, "large", &large[..131_072]),
        (1 << 20, "sub dir/inner", &b"inner"[..]),
    ] {
        let Some(look) = source.first_look(&rel(name), most).await.unwrap() else { continue };
        let stat = source.stat(&rel(name)).await.unwrap();
        assert_eq!(look.attributes.fingerprint, stat.fingerprint);
        assert_eq!(look.attributes.modified, stat.modified);
        assert_eq!(look.range, ByteRange::new(0, content.len() as u64));
        let pieces: Vec<_> = futures_util::TryStreamExt::try_collect(look.bytes).await.unwrap();
        assert!(pieces.concat() == content);
    }
    for name in ["empty", "sub dir", "nothing"] {
        assert!(source.first_look(&rel(name), 1 << 20).await.unwrap().is_none(), "{name}");
    }
}

async fn check_ranges(source: &dyn Source, path: &str, content: &[u8]) {
    let version = source.stat(&rel(path)).await.unwrap().fingerprint;
    assert_eq!(version.size, content.len() as u64);
    let end = version.size;
    let ranges = [(end - 1, end), (0, 1), (500_000, 700_001), (0, end), (131_072, 262_144)];
    for (start, end) in ranges {
        let range = ByteRange::new(start, end);
        let bytes = read(source, path, range, &version).await.unwrap();
        assert!(bytes == part(content, range), "{path} {range}");
    }
}

#[tokio::test]
async fn an_nginx_tree_is_read_name_by_name() {
    let tree = odd_tree();
    let Some(nginx) = Nginx::start(tree.path(), "") else { return };
    let source = open(&nginx.url("/")).await;
    assert!(source.single_file().is_none());
    check_odd_tree(&source).await;
    let file = source.stat(&rel("plain")).await.unwrap();
    assert!(matches!(file.fingerprint.validator, Validator::ETag(_)));
    assert!(source.first_look(&rel("plain"), 1).await.unwrap().is_some());
    let modified = fs::metadata(tree.path().join("plain")).unwrap().modified().unwrap();
    let seconds = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(file.modified.unwrap().seconds, i64::try_from(seconds).unwrap());
}

#[tokio::test]
async fn an_nginx_tree_in_json_is_the_same() {
    let tree = odd_tree();
    let Some(nginx) = Nginx::start(tree.path(), "autoindex_format json;") else { return };
    check_odd_tree(&open(&nginx.url("/")).await).await;
}

// L18
#[tokio::test]
async fn an_nginx_without_ranges_is_spooled() {
    let tree = odd_tree();
    let Some(nginx) = Nginx::start(tree.path(), "max_ranges 0;") else { return };
    check_odd_tree(&open(&nginx.url("/")).await).await;
}

/// `python3 -m http.server`, which knows no ranges.
struct Python {
    port: u16,
    child: Child,
}

impl Python {
    fn start(root: &Path) -> Option<Self> {
        let mut child = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(root)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_or_else(
                |_| {
                    common::skip("python3");
                    None
                },
                Some,
            )?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split(' ').skip_while(|word| *word != "port").nth(1).unwrap();
        Some(Self { port: port.parse().unwrap(), child })
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// L18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_tree_is_spooled_for_many_readers() {
    let tree = odd_tree();
    let content = pattern(5_000_000);
    fs::write(tree.path().join("large"), pattern(1_000_000)).unwrap();
    fs::create_dir(tree.path().join("sub dir/deep")).unwrap();
    fs::write(tree.path().join("sub dir/deep/big"), &content).unwrap();
    fs::remove_file(tree.path().join("sub dir/inner")).unwrap();
    let Some(python) = Python::start(tree.path()) else { return };
    let source = Arc::new(open(&format!("http://127.0.0.1:{}/", python.port)).await);
    let path = "sub dir/deep/big";
    let version = source.stat(&rel(path)).await.unwrap().fingerprint;
    assert!(matches!(version.validator, Validator::LastModified(_)));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..16u64 {
        let (source, version, content) = (Arc::clone(&source), version.clone(), content.clone());
        readers.spawn(async move {
            for step in 0..8 {
                let start = (reader * 7919 + step * 611_953) % 4_900_000;
                let range = ByteRange::at(start, 100_000);
                let bytes = read(&*source, path, range, &version).await.unwrap();
                assert!(bytes == part(&content, range), "{range}");
            }
        });
    }
    readers.join_all().await;
    fs::remove_dir_all(tree.path().join("sub dir/deep")).unwrap();
    fs::write(tree.path().join("sub dir/inner"), "inner").unwrap();
    check_odd_tree(&*source).await;
}

#[tokio::test]
async fn the_url_decides_between_file_and_tree() {
    let tree = odd_tree();
    fs::write(tree.path().join("page.html"), "<html><title>My page</title><a href=x>").unwrap();
    let Some(nginx) = Nginx::start(tree.path(), "") else { return };
    let source = open(&nginx.url("/sub%20dir")).await;
    assert!(source.single_file().is_none());
    assert_eq!(list_all(&source, "").await.unwrap().0.len(), 1);
    for (path, name) in [("/a%20b", "a b"), ("/page.html", "page.html")] {
        let source = open(&nginx.url(path)).await;
        assert_eq!(source.single_file().unwrap(), name);
        let (all, _) = list_all(&source, "").await.unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), [name]);
        let size = source.stat(&rel(name)).await.unwrap().size;
        assert_eq!(size, fs::metadata(tree.path().join(name)).unwrap().len());
        assert_eq!(source.stat(&rel("plain")).await.unwrap_err().kind(), Kind::NotFound);
    }
    assert_eq!(refusal(&nginx.url("/nothing")).await.kind(), Kind::NotFound);
    assert_eq!(refusal(&nginx.url("/nothing/")).await.kind(), Kind::NotFound);
    assert_eq!(refusal("http://127.0.0.1:1/x").await.kind(), Kind::Unreachable);
    assert_eq!(refusal("http:///").await.kind(), Kind::Invalid);
}

#[tokio::test]
async fn credentials_open_the_door_and_are_never_shown() {
    let tree = odd_tree();
    let password = tree.path().join("htpasswd");
    fs::write(&password, "me:{PLAIN}se@cret\n").unwrap();
    let server = format!("auth_basic x; auth_basic_user_file {};", password.display());
    let Some(nginx) = Nginx::start(tree.path(), &server) else { return };
    let error = refusal(&nginx.url("/?key=hidden")).await;
    assert_eq!(error.kind(), Kind::Denied);
    assert!(!error.to_string().contains("hidden"), "{error}");
    let url = format!("http://me:se%40cret@127.0.0.1:{}/", nginx.port);
    let source = open(&url).await;
    assert_eq!(source.display_name(), nginx.url("/"));
    assert!(list_all(&source, "").await.unwrap().0.len() > 5);
    assert!(!format!("{source:?}").contains("cret"));
    let netrc = tree.path().join("netrc");
    fs::write(&netrc, "machine 127.0.0.1 login me password se@cret").unwrap();
    let options = HttpOptions { netrc: Some(netrc), ..options() };
    assert!(HttpSource::open(&nginx.url("/plain"), options).await.is_ok());
}

// L23
#[tokio::test]
async fn a_changed_file_is_stale_by_every_validator() {
    for server in ["", "etag off;", "etag off; add_header Last-Modified '';"] {
        let tree = TempDir::new().unwrap();
        let path = tree.path().join("file");
        fs::write(&path, pattern(1000)).unwrap();
        let Some(nginx) = Nginx::start(tree.path(), server) else { return };
        let source = open(&nginx.url("/")).await;
        let old = source.stat(&rel("file")).await.unwrap().fingerprint;
        fs::write(&path, pattern(1001)).unwrap();
        let past = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
        for range in [ByteRange::at(0, 10), ByteRange::at(0, 1000), ByteRange::at(999, 1)] {
            let (bytes, result) = read_until_error(&source, "file", range, &old).await;
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Kind::Stale, "{server:?} {range}: {error:?}");
            assert!(bytes.is_empty());
        }
        let new = source.stat(&rel("file")).await.unwrap().fingerprint;
        assert_ne!(old, new);
        assert_eq!(read(&source, "file", ByteRange::at(1000, 1), &new).await.unwrap().len(), 1);
    }
}

/// A certificate for 127.0.0.1 that nobody has signed: its files, or nothing without openssl.
fn certificate(directory: &Path) -> Option<String> {
    let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        common::skip("openssl");
        return None;
    }
    Some(format!(
        "ssl_certificate {}; ssl_certificate_key {};",
        certificate.display(),
        key.display()
    ))
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_for_good() {
    let tree = odd_tree();
    let Some(files) = certificate(tree.path()) else { return };
    // The first listener speaks HTTP; this one is next to it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("listen 127.0.0.1:{port} ssl; {files}");
    let Some(_nginx) = Nginx::start(tree.path(), &server) else { return };
    let error = refusal(&format!("https://127.0.0.1:{port}/plain")).await;
    assert_eq!(error.kind(), Kind::Denied, "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_a_hundred_thousand_entries_comes_in_batches() {
    // In memory where possible: a disk takes ten seconds for this.
    let tree = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    for number in 0..100_000 {
        fs::File::create(tree.path().join(format!("entry-{number}"))).unwrap();
    }
    let Some(nginx) = Nginx::start(tree.path(), "") else { return };
    let source = open(&nginx.url("/")).await;
    let begun = std::time::Instant::now();
    let (all, _) = list_all(&source, "").await.unwrap();
    println!("100 000 entries in {:?}", begun.elapsed());
    assert_eq!(all.len(), 100_000);
}

/// A measurement, not a law: `cargo test --release --test source_http -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints a rate"]
async fn rate_of_16_connections() {
    use futures_util::StreamExt;
    let tree = TempDir::new().unwrap();
    let size = 1u64 << 30;
    fs::File::create(tree.path().join("file")).unwrap().set_len(size).unwrap();
    let Some(nginx) = Nginx::start(tree.path(), "") else { return };
    let source = Arc::new(open(&nginx.url("/")).await);
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let begun = std::time::Instant::now();
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..16 {
        let (source, version) = (Arc::clone(&source), version.clone());
        readers.spawn(async move {
            let (mut pieces, mut bytes) = (0u64, 0u64);
            for chunk in 0..16 {
                let range = ByteRange::at((reader * 16 + chunk) << 22, 1 << 22);
                let mut stream = source.read(&rel("file"), range, &version).await.unwrap();
                while let Some(piece) = stream.next().await {
                    bytes += piece.unwrap().len() as u64;
                    pieces += 1;
                }
            }
            (bytes, pieces)
        });
    }
    let read = readers.join_all().await;
    let (bytes, pieces) = read.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(bytes, size);
    println!("{bytes} bytes, {} a piece, {:?}", bytes / pieces, begun.elapsed());
}
