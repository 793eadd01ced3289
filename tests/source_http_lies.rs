//! An HTTP source on a server that lies, cuts, stalls or knows no ranges.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::http::{open, options, refusal};
use common::scripted::{Request, Scripted, answer};
use common::{list_all, part, read, read_until_error, rel};
use lazycopy::core::attributes::{Checksum, Fingerprint, Validator};
use lazycopy::core::range::ByteRange;
use lazycopy::error::Kind;
use lazycopy::source::Source;
use lazycopy::source::http::{HttpOptions, HttpSource, Limits};
use tempfile::TempDir;

const BODY: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

fn version() -> Fingerprint {
    Fingerprint { size: BODY.len() as u64, validator: Validator::ETag("\"1\"".into()) }
}

/// A server that is honest to HEAD and answers GET by `lie`.
async fn liar(lie: impl Fn(&Request) -> String + Send + Sync + 'static) -> (Scripted, HttpSource) {
    let server = Scripted::fixed(move |request| {
        if request.is_head() {
            answer("200 OK", "ETag: \"1\"\r\nAccept-Ranges: bytes\r\n", BODY)
        } else {
            lie(request)
        }
    });
    let source = open(&server.url("/file")).await;
    assert_eq!(source.stat(&rel("file")).await.unwrap().fingerprint, version());
    server.requests();
    (server, source)
}

/// What reading bytes 10..20 of a lying server gives.
async fn read_liar(lie: &'static str) -> (Vec<u8>, Kind) {
    let (_server, source) = liar(move |_| lie.to_owned()).await;
    let range = ByteRange::new(10, 20);
    let (bytes, result) = read_until_error(&source, "file", range, &version()).await;
    (bytes, result.unwrap_err().kind())
}

#[tokio::test]
async fn a_lie_is_never_taken_for_bytes() {
    let lies = [
        ("bytes 9-18/36\r\nETag: \"1\"", Kind::Corrupt),
        ("bytes 10-20/36\r\nETag: \"1\"", Kind::Corrupt),
        ("bytes 10-18/36\r\nETag: \"1\"", Kind::Corrupt),
        ("nonsense\r\nETag: \"1\"", Kind::Corrupt),
        ("bytes 10-19/37\r\nETag: \"1\"", Kind::Stale),
        ("bytes 10-19/36\r\nETag: \"2\"", Kind::Stale),
        ("bytes 10-19/36", Kind::Stale),
        ("bytes 10-19/36\r\nETag: \"1\"\r\nContent-Encoding: gzip", Kind::Corrupt),
    ];
    for (headers, kind) in lies {
        let lie =
            answer("206 Partial Content", &format!("Content-Range: {headers}\r\n"), "abcdefghij");
        assert_eq!(read_liar(lie.leak()).await, (Vec::new(), kind), "{headers}");
    }
}

// L1, L19
#[tokio::test]
async fn a_short_body_is_an_error_after_its_bytes() {
    let head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-19/36\r\nETag: \"1\"\r\n";
    for more in [
        "Content-Length: 10\r\n\r\nabc",
        "Content-Length: 3\r\n\r\nabc",
        "Connection: close\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let (bytes, kind) = read_liar(format!("{head}{more}").leak()).await;
        assert_eq!((bytes.as_slice(), kind), (&b"abc"[..], Kind::Unreachable), "{more}");
    }
}

#[tokio::test]
async fn a_long_body_is_corrupt() {
    let head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-19/36\r\nETag: \"1\"\r\n";
    for more in [
        "Content-Length: 11\r\n\r\nabcdefghijk",
        "Connection: close\r\n\r\nabcdefghijk",
        "Transfer-Encoding: chunked\r\n\r\na\r\nabcdefghij\r\n1\r\nk\r\n0\r\n\r\n",
    ] {
        let (bytes, kind) = read_liar(format!("{head}{more}").leak()).await;
        assert_eq!(kind, Kind::Corrupt, "{more}");
        assert!(bytes.len() <= 10);
    }
}

#[tokio::test]
async fn a_status_says_whether_asking_again_may_help() {
    for (status, kind) in [
        ("503 Busy", Kind::Busy),
        ("429 Slow", Kind::Busy),
        ("502 Bad", Kind::Unreachable),
        ("404 No", Kind::NotFound),
        ("403 No", Kind::Denied),
        ("412 Changed", Kind::Stale),
        ("416 Range", Kind::Stale),
    ] {
        let (_server, source) = liar(move |_| answer(status, "Retry-After: 7\r\n", "sorry")).await;
        let error = read(&source, "file", ByteRange::new(10, 20), &version()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}");
        assert_eq!(error.requested_wait(), Some(Duration::from_secs(7)));
        assert_eq!(error.path().unwrap(), Path::new("file"));
    }
}

#[tokio::test]
async fn redirects_end_and_stay_in_their_scheme() {
    let to = |location: &'static str| {
        Scripted::fixed(move |_| answer("302 Found", &format!("Location: {location}\r\n"), ""))
    };
    for (location, kind) in [
        ("/loop", Kind::Invalid),
        ("ftp://127.0.0.1/x", Kind::Denied),
        ("file:///etc/passwd", Kind::Denied),
        ("https://elsewhere.invalid/x", Kind::Denied),
    ] {
        let server = to(location);
        assert_eq!(refusal(&server.url("/file")).await.kind(), kind, "{location}");
        assert!(server.requests().len() <= 11);
    }
}

#[tokio::test]
async fn credentials_are_dropped_where_the_port_changes() {
    let other = Scripted::fixed(|_| answer("200 OK", "", BODY));
    let location = format!("Location: {}\r\n", other.url("/moved"));
    let server = Scripted::fixed(move |_| answer("302 Found", &location, ""));
    let source = open(&format!("http://me:secret@127.0.0.1:{}/file", server.port)).await;
    assert_eq!(source.stat(&rel("file")).await.unwrap().size, 36);
    assert!(server.requests().iter().all(|request| request.header("authorization").is_some()));
    let moved = other.requests();
    assert!(!moved.is_empty());
    assert!(moved.iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_request_names_its_range_and_version() {
    let part = "Content-Range: bytes 10-19/36\r\nETag: \"1\"\r\n";
    let (server, source) = liar(move |_| answer("206 Partial Content", part, "abcdefghij")).await;
    read(&source, "file", ByteRange::new(10, 20), &version()).await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("range"), Some("bytes=10-19"));
    assert_eq!(requests[0].header("if-match"), Some("\"1\""));
    assert_eq!(requests[0].header("accept-encoding"), Some("identity"));
    assert!(requests[0].header("user-agent").unwrap().starts_with("lazycopy/"));
}

// L18
#[tokio::test]
async fn a_server_without_ranges_is_asked_once_for_all_readers() {
    let server = Scripted::fixed(|_| answer("200 OK", "ETag: \"1\"\r\n", BODY));
    let source = Arc::new(open(&server.url("/file")).await);
    source.stat(&rel("file")).await.unwrap();
    server.requests();
    let mut readers = tokio::task::JoinSet::new();
    for start in 0..35u64 {
        let source = Arc::clone(&source);
        readers.spawn(async move {
            let range = ByteRange::new(start, start + 1);
            let bytes = read(&*source, "file", range, &version()).await.unwrap();
            assert_eq!(bytes, part(BODY.as_bytes(), range));
        });
    }
    readers.join_all().await;
    assert_eq!(server.requests().len(), 1);
}

// L18
#[tokio::test]
async fn a_200_in_the_midst_of_206_becomes_the_spool() {
    let (server, source) = liar(|_| answer("200 OK", "ETag: \"1\"\r\n", BODY)).await;
    let range = ByteRange::new(10, 20);
    assert_eq!(read(&source, "file", range, &version()).await.unwrap(), b"abcdefghij");
    let range = ByteRange::new(30, 36);
    assert_eq!(read(&source, "file", range, &version()).await.unwrap(), b"uvwxyz");
    assert_eq!(server.requests().len(), 1);
    let (_server, source) = liar(|_| answer("200 OK", "ETag: \"2\"\r\n", BODY)).await;
    let error = read(&source, "file", range, &version()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
}

#[tokio::test]
async fn the_length_that_nobody_tells_is_learnt_by_reading_once() {
    let server = Scripted::fixed(|_| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{BODY}"));
    let source = open(&server.url("/file")).await;
    server.requests();
    let file = source.stat(&rel("file")).await.unwrap();
    assert_eq!(file.fingerprint, Fingerprint { size: 36, validator: Validator::SizeOnly });
    let bytes = read(&source, "file", ByteRange::new(10, 20), &file.fingerprint).await.unwrap();
    assert_eq!(bytes, b"abcdefghij");
    let gets = server.requests().iter().filter(|request| !request.is_head()).count();
    assert_eq!(gets, 1);
    let other = Fingerprint { size: 37, validator: Validator::SizeOnly };
    let error = read(&source, "file", ByteRange::new(10, 20), &other).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
}

#[tokio::test]
async fn a_spool_that_is_cut_starts_again_and_gives_the_same_bytes() {
    let server = Scripted::fixed(|request| match request.number {
        _ if request.is_head() => answer("200 OK", "ETag: \"1\"\r\n", BODY),
        number if number < 3 => format!(
            "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 36\r\n\r\n{}",
            &BODY[..number * 5]
        ),
        _ => answer("200 OK", "ETag: \"1\"\r\n", BODY),
    });
    let source = open(&server.url("/file")).await;
    let range = ByteRange::new(1, 36);
    assert_eq!(read(&source, "file", range, &version()).await.unwrap(), &BODY.as_bytes()[1..]);
}

#[tokio::test]
async fn a_spool_never_mixes_two_bodies() {
    let server = Scripted::fixed(|request| match request.number {
        _ if request.is_head() => answer("200 OK", "ETag: \"1\"\r\n", BODY),
        1 => format!("HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 36\r\n\r\n{}", &BODY[..20]),
        _ => answer("200 OK", "ETag: \"1\"\r\n", &BODY.to_uppercase()),
    });
    let source = open(&server.url("/file")).await;
    let range = ByteRange::new(1, 36);
    let (bytes, result) = read_until_error(&source, "file", range, &version()).await;
    assert_eq!(result.unwrap_err().kind(), Kind::Stale);
    assert_eq!(bytes, &BODY.as_bytes()[1..20]);
}

#[tokio::test]
async fn a_stalled_spool_ends_for_its_readers() {
    let server = Scripted::start(|request, connection| {
        let answer = answer("200 OK", "ETag: \"1\"\r\n", BODY);
        if request.is_head() {
            let (head, _) = answer.split_once("\r\n\r\n").unwrap();
            return connection.write_all(format!("{head}\r\n\r\n").as_bytes());
        }
        connection.write_all(&answer.as_bytes()[..answer.len() - 16])?;
        // Until the client gives up.
        std::io::copy(connection, &mut std::io::sink()).map(drop)
    });
    let source = open(&server.url("/file")).await;
    let early = ByteRange::new(1, 10);
    assert_eq!(read(&source, "file", early, &version()).await.unwrap().len(), 9);
    let late = ByteRange::new(30, 36);
    let error = read(&source, "file", late, &version()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
}

#[tokio::test]
async fn a_missing_head_and_a_checksum_are_understood() {
    let server = Scripted::fixed(|request| {
        if request.is_head() {
            return answer("405 No", "", "");
        }
        match request.header("range") {
            Some("bytes=0-0") => {
                answer("206 Part", "Content-Range: bytes 0-0/36\r\nETag: \"1\"\r\n", "0")
            }
            _ => answer("500 Wrong", "", ""),
        }
    });
    let source = open(&server.url("/file")).await;
    assert_eq!(source.stat(&rel("file")).await.unwrap().fingerprint, version());
    let server =
        Scripted::fixed(|_| answer("200 OK", "Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==\r\n", BODY));
    let file = open(&server.url("/file")).await.stat(&rel("file")).await.unwrap();
    assert_eq!(file.checksum, Some(Checksum::Md5(vec![0; 16])));
    let server = Scripted::fixed(|_| {
        "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n".to_owned()
    });
    assert_eq!(refusal(&server.url("/file")).await.kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_listing_that_stalls_or_is_cut_is_an_error() {
    let page = "<title>Index of /</title><a href=\"one\">one</a>";
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n";
    for (is_cut, kind) in [(true, Kind::Unreachable), (false, Kind::Timeout)] {
        let server = Scripted::start(move |_, connection| {
            connection.write_all(format!("{head}{page}").as_bytes())?;
            if is_cut {
                return Ok(());
            }
            std::io::copy(connection, &mut std::io::sink()).map(drop)
        });
        let source = open(&server.url("/")).await;
        assert_eq!(list_all(&source, "").await.unwrap_err().kind(), kind, "{is_cut}");
    }
}

#[tokio::test]
async fn an_evil_index_gives_only_its_harmless_names() {
    let page = "<title>Index of /</title><a href='../'>up</a><a href='..%2f..%2fetc'>x</a><a href='good'>x</a><a href='http://evil/x'>x</a>";
    let server = Scripted::fixed(move |_| answer("200 OK", "Content-Type: text/html\r\n", page));
    let (all, refused) = list_all(&open(&server.url("/")).await, "").await.unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn a_spool_without_readers_is_freed() {
    let server = Scripted::fixed(|_| answer("200 OK", "ETag: \"1\"\r\n", BODY));
    let spools = TempDir::new().unwrap();
    let limits = Limits { spool_idle: Duration::from_millis(20), spools: 1, ..options().limits };
    let options = HttpOptions { limits, spool_directory: Some(spools.path().into()), ..options() };
    let source = HttpSource::open(&server.url("/file"), options).await.unwrap();
    let range = ByteRange::new(1, 2);
    read(&source, "file", range, &version()).await.unwrap();
    server.requests();
    // Asked again once it is gone; until then served from the spool.
    let asked_again = async {
        while server.requests().is_empty() {
            read(&source, "file", range, &version()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked_again).await.unwrap();
    assert_eq!(fs::read_dir(spools.path()).unwrap().count(), 0, "a spool has a name");
}
