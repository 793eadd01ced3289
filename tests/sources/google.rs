//! What only Google Cloud Storage promises.

use std::ffi::OsStr;
use std::sync::Arc;

use lazycopy::core::attributes::{Checksum, EntryKind, Fingerprint};
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use lazycopy::source::Source;

use crate::common::azure::secret;
use crate::common::scripted::{Request, Scripted, answer};
use crate::common::{list_all, read, read_until_error, rel};
use crate::gcs;
use crate::ground::{Ground, remote};

#[tokio::test]
async fn checksums_come_with_the_listing_and_with_the_object() {
    let Some(gcs) = gcs::start().await else { return };
    gcs.put(b"file", b"123456789").await;
    let source = gcs.open(None).await;
    // MD5 of the check string of the CRC catalogue.
    let md5 = [
        0x25, 0xf9, 0xe7, 0x94, 0x32, 0x3b, 0x45, 0x38, 0x85, 0xf5, 0x18, 0x1f, 0x1b, 0x62, 0x4d,
        0x0b,
    ];
    let expected = Some(Checksum::Md5(md5.to_vec()));
    assert_eq!(source.stat(&rel("file")).await.unwrap().checksum, expected);
    let (all, _) = list_all(&*source, "").await.unwrap();
    assert_eq!(all[OsStr::new("file")].attributes.as_ref().unwrap().checksum, expected);
}

#[tokio::test]
async fn new_metadata_is_no_new_version() {
    let Some(gcs) = gcs::start().await else { return };
    gcs.put(b"file", b"123456789").await;
    let source = gcs.open(None).await;
    let before = source.stat(&rel("file")).await.unwrap();
    let path = "/storage/v1/b/bucket/o/tree%2Ffile";
    let body = r#"{"metadata":{"a":"b"}}"#;
    let patched = gcs.ask("PATCH", path, "application/json", body.as_bytes()).await;
    assert!(patched.text().await.unwrap().contains(r#""metageneration": "2""#));
    assert_eq!(source.stat(&rel("file")).await.unwrap().fingerprint, before.fingerprint);
    let whole = ByteRange::at(0, 9);
    assert_eq!(read(&*source, "file", whole, &before.fingerprint).await.unwrap(), b"123456789");
}

#[tokio::test]
async fn a_url_names_a_bucket_a_prefix_or_one_object() {
    let Some(gcs) = gcs::start().await else { return };
    gcs.put(b"dir/one", b"1").await;
    gcs.put(b"dir/ob ject", b"content").await;
    gcs.put(b"dir/one/below", b"2").await;
    let whole = gcs.open_at("gs://bucket").await.unwrap();
    assert!(list_all(&*whole, "").await.unwrap().0.contains_key(OsStr::new("tree")));
    for url in ["gs://bucket/tree/dir", "gs://bucket/tree/dir/"] {
        let source = gcs.open_at(url).await.unwrap();
        let server = format!("http://127.0.0.1:{}", gcs.server.port);
        assert_eq!(source.display_name(), format!("{url} at {server}"));
        let (all, refused) = list_all(&*source, "").await.unwrap();
        assert_eq!((all.len(), refused), (2, 1), "the object beside a directory of its name");
        assert_eq!(all[OsStr::new("one")].kind, EntryKind::Directory);
    }
    let one = gcs.open_at("gs://bucket/tree/dir/ob ject").await.unwrap();
    assert_eq!(one.single_file().unwrap(), "ob ject");
    let version = one.stat(&rel("ob ject")).await.unwrap().fingerprint;
    assert_eq!(read(&*one, "ob ject", ByteRange::at(0, 7), &version).await.unwrap(), b"content");
    for url in ["gs://bucket/nothing", "gs://bucket/nothing/", "gs://bucket/tre/", "gs://nobucket/"]
    {
        assert_eq!(gcs.open_at(url).await.unwrap_err().kind(), Kind::NotFound, "{url}");
    }
}

const OBJECT: &str = r#"{"kind":"storage#object","name":"file","size":"7","generation":"17",
    "timeCreated":"2020-01-01T00:00:00Z","crc32c":"AAAAAA=="}"#;

/// An answer of Google to everything but a question for bytes.
fn metadata(request: &Request) -> Option<String> {
    if request.target.contains("alt=media") {
        return None;
    }
    let is_list = request.target.starts_with("/storage/v1/b/bucket/o?");
    let page = format!(r#"{{"kind":"storage#objects","items":[{OBJECT}]}}"#);
    Some(answer(
        "200 OK",
        "Content-Type: application/json\r\n",
        if is_list { &page } else { OBJECT },
    ))
}

async fn open(server: &Scripted, more: &[&str]) -> Result<Arc<dyn Source>, Error> {
    let mut options = vec![format!("endpoint=http://127.0.0.1:{}", server.port)];
    options.extend(more.iter().map(|option| (*option).to_owned()));
    remote("gs://bucket", &options).await
}

/// What reading the file of [`metadata`] comes to where the server answers so; and what it was asked.
async fn reading(
    status: &'static str,
    headers: &'static str,
    body: &'static str,
) -> (Vec<u8>, Result<(), Error>, Request) {
    let server = Scripted::fixed(move |request| {
        metadata(request).unwrap_or_else(|| answer(status, headers, body))
    });
    let source = open(&server, &["anonymous=true"]).await.unwrap();
    let version = version(&*source).await;
    server.requests();
    let (bytes, result) = read_until_error(&*source, "file", ByteRange::at(0, 7), &version).await;
    let mut requests = server.requests();
    assert_eq!(
        requests.len(),
        1,
        "asked once: retries are not the source's, and versions are told"
    );
    (bytes, result, requests.remove(0))
}

async fn version(source: &dyn Source) -> Fingerprint {
    let (all, _) = list_all(source, "").await.unwrap();
    let listed = all[OsStr::new("file")].attributes.clone().unwrap().fingerprint;
    assert_eq!(source.stat(&rel("file")).await.unwrap().fingerprint, listed);
    listed
}

const PART: &str = "206 Partial Content";

#[tokio::test]
async fn bytes_are_asked_for_by_their_generation() {
    let ours = "Content-Range: bytes 0-6/7\r\nETag: \"something\"\r\nx-goog-generation: 17\r\nx-goog-stored-content-encoding: identity\r\n";
    let (bytes, result, asked) = reading(PART, ours, "content").await;
    assert_eq!((bytes.as_slice(), result.is_ok()), (&b"content"[..], true));
    assert!(asked.target.contains("generation=17"), "{}", asked.target);
    assert_eq!((asked.header("range"), asked.header("if-match")), (Some("bytes=0-6"), None));
    let other = "Content-Range: bytes 0-6/7\r\nx-goog-generation: 18\r\n";
    for (status, headers) in [
        (PART, other),
        ("404 Not Found", ""),
        ("412 Precondition Failed", ""),
        ("416 Range Not Satisfiable", ""),
    ] {
        let (bytes, result, _) = reading(status, headers, "CONTENT").await;
        assert_eq!((bytes.len(), result.unwrap_err().kind()), (0, Kind::Stale), "{status}");
    }
}

#[tokio::test]
async fn what_is_stored_in_gzip_comes_as_it_is_stored_or_not_at_all() {
    let stored = "Content-Range: bytes 0-6/7\r\nx-goog-generation: 17\r\nx-goog-stored-content-encoding: gzip\r\nContent-Encoding: gzip\r\n";
    let (bytes, result, asked) = reading(PART, stored, "content").await;
    assert_eq!((bytes.as_slice(), result.is_ok()), (&b"content"[..], true));
    assert_eq!(asked.header("accept-encoding"), Some("gzip"));
    let unpacked = "x-goog-generation: 17\r\nx-goog-stored-content-encoding: gzip\r\n";
    let (bytes, result, _) = reading("200 OK", unpacked, "CONTENT").await;
    assert_eq!((bytes.len(), result.unwrap_err().kind()), (0, Kind::Corrupt));
}

#[tokio::test]
async fn a_complaint_of_google_is_what_it_means() {
    let complaint = r#"{"error":{"code":403,"message":"me does not have storage.objects.get access","errors":[{"reason":"forbidden"}]}}"#;
    let (_, result, _) = reading("403 Forbidden", "", complaint).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("storage.objects.get access"), "{error}");
    let (_, result, _) = reading("429 Too Many Requests", "Retry-After: 3\r\n", "").await;
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.requested_wait().unwrap().as_secs()), (Kind::Busy, 3));
    let (_, result, _) = reading("401 Unauthorized", "", "").await;
    assert_eq!(result.unwrap_err().kind(), Kind::Denied);
}

#[tokio::test]
async fn every_request_carries_the_token_and_the_project_that_pays() {
    let server = Scripted::fixed(|request| {
        let bytes = "Content-Range: bytes 0-6/7\r\nx-goog-generation: 17\r\n";
        metadata(request).unwrap_or_else(|| answer(PART, bytes, "content"))
    });
    let token = secret("hunter2");
    let token = format!("token=@{}", token.path().display());
    let source = open(&server, &[&token, "requester-pays=me"]).await.unwrap();
    let version = version(&*source).await;
    read(&*source, "file", ByteRange::at(0, 7), &version).await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    for request in requests {
        assert_eq!(request.header("authorization"), Some("Bearer hunter2"), "{request:?}");
        assert!(request.target.contains("userProject=me"), "{request:?}");
    }
    assert!(!format!("{source:?}").contains("hunter2"));
}

#[tokio::test]
async fn an_empty_page_is_not_the_last_one() {
    let server = Scripted::fixed(|request| {
        let page = match request.target.split("pageToken=").nth(1) {
            None => r#"{"kind":"storage#objects","nextPageToken":"one"}"#.to_owned(),
            Some("one") => {
                r#"{"kind":"storage#objects","prefixes":["a/"],"nextPageToken":"two"}"#.to_owned()
            }
            Some(_) => format!(r#"{{"kind":"storage#objects","items":[{OBJECT}]}}"#),
        };
        answer("200 OK", "", &page)
    });
    let source = open(&server, &["anonymous=true"]).await.unwrap();
    assert_eq!(server.requests().len(), 2, "until something is there");
    let (all, _) = list_all(&*source, "").await.unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "file"]);
}

#[tokio::test]
async fn a_listing_that_cannot_be_right_is_refused() {
    let again = r#"{"kind":"storage#objects","nextPageToken":"t"}"#;
    for page in [again, "{}", "<html>hello", r#"{"kind":"storage#buckets"}"#] {
        let server = Scripted::fixed(move |request| match request.target.contains("delimiter") {
            true => answer("200 OK", "", page),
            false => metadata(request).unwrap(),
        });
        let source = open(&server, &["anonymous=true"]).await.unwrap();
        assert_eq!(list_all(&*source, "").await.unwrap_err().kind(), Kind::Invalid, "{page}");
    }
}
