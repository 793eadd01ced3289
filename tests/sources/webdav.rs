//! WebDAV beyond what every source promises: servers that answer oddly, and how often one is asked.

use std::ffi::OsStr;
use std::io::Write;
use std::time::Duration;

use lazycopy::core::attributes::{Checksum, Validator};
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use lazycopy::source::ListBatch;
use tokio::sync::mpsc;

use crate::common::scripted::{Request, Scripted, answer};
use crate::common::{list_all, pattern, read, rel};
use crate::ground::{Ground, remote};
use crate::nginx_dav;

fn multistatus(responses: &str) -> String {
    let document =
        format!("<?xml version=\"1.0\"?><multistatus xmlns=\"DAV:\">{responses}</multistatus>");
    answer("207 Multi-Status", "Content-Type: application/xml\r\n", &document)
}

fn directory(href: &str) -> String {
    format!(
        "<response><href>{href}</href><propstat><prop><resourcetype><collection/></resourcetype></prop><status>HTTP/1.1 200 OK</status></propstat></response>"
    )
}

fn file(href: &str, properties: &str) -> String {
    format!(
        "<response><href>{href}</href><propstat><prop><resourcetype/><getcontentlength>7</getcontentlength>{properties}</prop><status>HTTP/1.1 200 OK</status></propstat></response>"
    )
}

fn url(server: &Scripted) -> String {
    server.url("/").replacen("http", "webdav", 1)
}

/// Why a server that answers everything so is no source.
async fn refusal(answered: String) -> Error {
    let server = Scripted::fixed(move |_| answered.clone());
    remote(&url(&server), &[]).await.unwrap_err()
}

#[tokio::test]
async fn what_is_no_webdav_server_is_named_so() {
    let html = "<!DOCTYPE html><html>hello</html>";
    for (status, kind) in [
        ("200 OK", Kind::Invalid),
        ("204 No Content", Kind::Invalid),
        ("207 Multi-Status", Kind::Invalid),
        ("405 Method Not Allowed", Kind::NotSupported),
        ("501 Not Implemented", Kind::NotSupported),
    ] {
        let error = refusal(answer(status, "Content-Type: text/html\r\n", html)).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("try http(s)://"), "{error}");
    }
}

#[tokio::test]
async fn a_status_says_whether_asking_again_may_help() {
    for (status, kind) in [
        ("401 Unauthorized", Kind::Denied),
        ("403 Forbidden", Kind::Denied),
        ("404 Not Found", Kind::NotFound),
        ("429 Slow", Kind::Busy),
        ("503 Busy", Kind::Busy),
        ("502 Bad", Kind::Unreachable),
    ] {
        let error = refusal(answer(status, "Retry-After: 7\r\n", "")).await;
        assert_eq!(error.kind(), kind, "{status}");
        assert_eq!(error.requested_wait(), Some(Duration::from_secs(7)));
    }
    let denied = refusal(answer("401 Unauthorized", "", "")).await;
    assert!(denied.to_string().contains("-S password=@FILE"), "{denied}");
    let digest = "WWW-Authenticate: Digest realm=\"x\", nonce=\"y\"\r\n";
    let denied = refusal(answer("401 Unauthorized", digest, "")).await;
    assert!(denied.to_string().contains("Digest"), "{denied}");
}

#[tokio::test]
async fn a_document_that_grows_is_refused() {
    let bomb = "<!DOCTYPE m [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><multistatus xmlns=\"DAV:\">&b;</multistatus>";
    let error = refusal(answer("207 Multi-Status", "", bomb)).await;
    assert!(error.to_string().contains("document type"), "{error}");
    // Without an end: the connection is what ends.
    let server = Scripted::start(|_, connection| {
        connection.write_all(b"HTTP/1.1 207 Multi-Status\r\n\r\n<multistatus xmlns=\"DAV:\">")?;
        loop {
            connection.write_all(&[b' '; 65536])?;
        }
    });
    assert_eq!(remote(&url(&server), &[]).await.unwrap_err().kind(), Kind::Invalid);
}

/// A server of a tree with one directory, whose listing is `entries`.
fn listing(entries: &'static str) -> Scripted {
    Scripted::fixed(move |request: &Request| match request.header("depth") {
        Some("1") => multistatus(&(directory("/") + entries)),
        _ => multistatus(&directory("/")),
    })
}

#[tokio::test]
async fn what_is_elsewhere_is_refused_and_counted() {
    let server = listing(
        "<response><href>/a</href></response><response><href>/a/deeper</href></response>\
         <response><href>http://other/b</href></response><response><href>/%2e%2e</href></response>",
    );
    let source = remote(&url(&server), &[]).await.unwrap();
    let (all, refused) = list_all(&*source, "").await.unwrap();
    assert_eq!((all.contains_key(OsStr::new("a")), all.len(), refused), (true, 1, 3));
}

#[tokio::test]
async fn a_checksum_of_owncloud_is_a_proof() {
    let md5 = "9a0364b9e99bb480dd25e1f0284c8555";
    let properties: &str = format!(
        "<getetag>\"1\"</getetag><checksums xmlns=\"http://owncloud.org/ns\"><checksum>SHA1:ab MD5:{md5} ADLER32:0</checksum></checksums>"
    )
    .leak();
    let server = Scripted::fixed(move |request: &Request| match request.header("depth") {
        Some("0") if request.target == "/" => multistatus(&directory("/")),
        Some("0") => multistatus(&file("/a", properties)),
        _ => multistatus(&(directory("/") + &file("/a", properties))),
    });
    let source = remote(&url(&server), &[]).await.unwrap();
    let (all, _) = list_all(&*source, "").await.unwrap();
    let listed = all[OsStr::new("a")].attributes.clone().unwrap();
    assert!(matches!(&listed.checksum, Some(Checksum::Md5(_))), "{listed:?}");
    assert_eq!(listed.checksum.unwrap().to_string(), format!("md5 {md5}"));
    assert_eq!(source.stat(&rel("a")).await.unwrap().fingerprint, listed.fingerprint);
}

// Some servers tell nothing but lengths, and those not of everything.
#[tokio::test]
async fn a_version_that_propfind_does_not_tell_is_asked_by_head() {
    let server = Scripted::fixed(|request: &Request| match request.method.as_str() {
        "PROPFIND" if request.target == "/" && request.header("depth") == Some("0") => {
            multistatus(&directory("/"))
        }
        "PROPFIND" if request.target == "/" => multistatus(&(directory("/") + &file("/a", ""))),
        "PROPFIND" => multistatus(&file(&request.target, "")),
        _ => answer("200 OK", "ETag: \"1\"\r\nAccept-Ranges: bytes\r\n", "content"),
    });
    let source = remote(&url(&server), &[]).await.unwrap();
    let (all, _) = list_all(&*source, "").await.unwrap();
    assert!(all[OsStr::new("a")].attributes.is_none());
    let told = source.stat(&rel("a")).await.unwrap();
    assert_eq!(told.size, 7);
    assert_eq!(told.fingerprint.validator, Validator::ETag("\"1\"".into()));
}

// The tag of PROPFIND is of the server's own, that of GET of what is behind it.
#[tokio::test]
async fn where_propfind_and_get_tell_other_versions_head_is_asked() {
    const TAG: &str = "<getetag>\"own\"</getetag>";
    let server = Scripted::fixed(|request: &Request| match request.method.as_str() {
        "PROPFIND" if request.target == "/a" => multistatus(&file("/a", TAG)),
        "PROPFIND" => multistatus(&(directory("/") + &file("/a", TAG))),
        "HEAD" => answer("200 OK", "ETag: \"behind\"\r\nAccept-Ranges: bytes\r\n", "content"),
        _ if request.header("if-match") != Some("\"behind\"") => answer("412 No", "", ""),
        _ => answer(
            "206 Partial Content",
            "ETag: \"behind\"\r\nContent-Range: bytes 0-6/7\r\n",
            "content",
        ),
    });
    let source = remote(&url(&server), &[]).await.unwrap();
    let own = source.stat(&rel("a")).await.unwrap().fingerprint;
    let whole = ByteRange::new(0, 7);
    assert_eq!(read(&*source, "a", whole, &own).await.unwrap_err().kind(), Kind::Stale);
    let behind = source.stat(&rel("a")).await.unwrap().fingerprint;
    assert_eq!(behind.validator, Validator::ETag("\"behind\"".into()));
    assert_eq!(read(&*source, "a", whole, &behind).await.unwrap(), b"content");
    let (all, _) = list_all(&*source, "").await.unwrap();
    assert!(all[OsStr::new("a")].attributes.is_none());
}

#[tokio::test]
async fn batches_leave_while_the_document_is_still_coming() {
    const FIRST: usize = 3000;
    let (go_on, waits) = std::sync::mpsc::channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    let server = Scripted::start(move |request, connection| {
        if request.header("depth") == Some("0") {
            return connection.write_all(multistatus(&directory("/")).as_bytes());
        }
        let start = format!(
            "HTTP/1.1 207 Multi-Status\r\n\r\n<multistatus xmlns=\"DAV:\">{}",
            directory("/")
        );
        let entries = |from: usize, to: usize| {
            (from..to).map(|n| file(&format!("/f{n}"), "")).collect::<String>()
        };
        connection.write_all((start + &entries(0, FIRST)).as_bytes())?;
        // The rest is sent when somebody has seen the beginning.
        let _seen = waits.lock().unwrap().recv_timeout(Duration::from_secs(20));
        connection.write_all((entries(FIRST, FIRST + 5) + "</multistatus>").as_bytes())
    });
    let source = remote(&url(&server), &[]).await.unwrap();
    let (sender, mut batches) = mpsc::channel::<ListBatch>(4);
    let root = rel("");
    let (listed, count) = tokio::join!(source.list(&root, sender), async {
        let mut count = batches.recv().await.unwrap().entries.len();
        assert!(count < FIRST);
        go_on.send(()).unwrap();
        while let Some(batch) = batches.recv().await {
            count += batch.entries.len();
        }
        count
    });
    listed.unwrap();
    assert_eq!(count, FIRST + 5);
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let other = Scripted::fixed(|_| multistatus(&directory("/moved/")));
    let location = format!("Location: {}\r\n", other.url("/moved/"));
    let server = Scripted::fixed(move |_| answer("302 Found", &location, ""));
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "hunter2").unwrap();
    let option = format!("token=@{}", token.path().display());
    remote(&url(&server), &[option]).await.unwrap();
    let asked = server.requests();
    assert_eq!(asked[0].header("authorization"), Some("Bearer hunter2"));
    let moved = other.requests();
    assert_eq!((moved[0].method.as_str(), moved[0].header("depth")), ("PROPFIND", Some("0")));
    assert!(moved[0].header("authorization").is_none());
}

#[tokio::test]
async fn the_directory_is_asked_again_where_a_slash_is_missing() {
    let server = Scripted::fixed(|request: &Request| match request.target.as_str() {
        "/d" => answer("301 Moved Permanently", "Location: /d/\r\n", ""),
        _ => multistatus(&directory(&request.target)),
    });
    let source = remote(&format!("{}d", url(&server)), &[]).await.unwrap();
    assert!(source.single_file().is_none());
    assert!(list_all(&*source, "").await.unwrap().0.is_empty());
    assert_eq!(server.requests().last().unwrap().target, "/d/");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_and_one_request_a_read_are_all_that_is_asked() {
    const FILES: usize = 20;
    let Some(ground) = nginx_dav::start().await else { return };
    let content = pattern(50_000);
    for n in 0..FILES {
        ground.put(format!("d/f{n}").as_bytes(), &content).await;
    }
    let source = ground.open(None).await;
    let (all, _) = list_all(&*source, "d").await.unwrap();
    for (name, entry) in &all {
        let version = entry.attributes.clone().unwrap().fingerprint;
        let path = format!("d/{}", name.display());
        for range in [ByteRange::new(0, 50_000), ByteRange::new(7, 40_000)] {
            read(&*source, &path, range, &version).await.unwrap();
        }
    }
    drop(source);
    let log = ground.nginx.access_log();
    let count = |method: &str| log.iter().filter(|line| line.starts_with(method)).count();
    assert_eq!((count("PROPFIND"), count("GET"), log.len()), (2, 2 * FILES, 2 + 2 * FILES));
}
