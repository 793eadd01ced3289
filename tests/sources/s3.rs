//! What only S3 promises.

use std::ffi::OsStr;
use std::io::Write;
use std::sync::Arc;

use lazycopy::core::attributes::{Checksum, EntryKind, Validator};
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use lazycopy::source::Source;
use tempfile::TempDir;

use crate::common::nginx::Nginx;
use crate::common::scripted::{Request, Scripted, answer};
use crate::common::{list_all, pattern, read, read_until_error, rel};
use crate::ground::{Ground, remote};
use crate::moto::{self, Moto};

#[tokio::test]
async fn an_old_version_is_read_on_by_its_id() {
    let Some(moto) = moto::start().await else { return };
    let versions = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    moto.ask("PUT", b"", "?versioning", &[], versions.as_bytes()).await;
    let (old, new) = (pattern(300_000), pattern(300_001));
    moto.put(b"file", &old).await;
    let source = moto.open(None).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    moto.put(b"file", &new).await;
    let whole = ByteRange::at(0, version.size);
    assert!(read(&*source, "file", whole, &version).await.unwrap() == old);
    // Deleted is not gone either.
    moto.remove(b"file").await;
    assert!(read(&*source, "file", whole, &version).await.unwrap() == old);
    assert_eq!(source.stat(&rel("file")).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn checksums_of_the_whole_object_are_proofs_and_others_are_not() {
    let Some(moto) = moto::start().await else { return };
    // The check value of CRC-32C of the CRC catalogue, and SHA-256 of the same.
    let body = b"123456789";
    let sha = "FeLwrdn/1oIXz6kLJfwAwX2vxn9MwDM4QjAB5SJlwiU=".to_owned();
    let crc = ("x-amz-checksum-crc32c", "4waSgw==");
    moto.ask("PUT", b"tree/crc", "", &[("x-amz-sdk-checksum-algorithm", "CRC32C"), crc], body)
        .await;
    let headers =
        [("x-amz-sdk-checksum-algorithm", "SHA256"), ("x-amz-checksum-sha256", sha.as_str())];
    moto.ask("PUT", b"tree/sha", "", &headers, body).await;
    moto.put(b"plain", body).await;
    let source = moto.open(None).await;
    let checksum = async |name| source.stat(&rel(name)).await.unwrap().checksum;
    assert_eq!(checksum("crc").await, Some(Checksum::Crc32c(vec![0xe3, 0x06, 0x92, 0x83])));
    assert!(matches!(checksum("sha").await, Some(Checksum::Sha256(_))));
    // Its tag is the MD5, but nobody can tell: with another encryption it would not be.
    assert_eq!(checksum("plain").await, None);
}

#[tokio::test]
async fn the_tag_of_a_multipart_upload_is_no_checksum_but_names_the_version() {
    let Some(moto) = moto::start().await else { return };
    let text = |answer: reqwest::Response| async { answer.text().await.unwrap() };
    let begun = text(moto.ask("POST", b"tree/parts", "?uploads", &[], b"").await).await;
    let id = begun.split("<UploadId>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    let (one, two) = (pattern(5 << 20), pattern(1000));
    let mut list = String::new();
    for (number, part) in [(1, &one), (2, &two)] {
        let answer = moto
            .ask("PUT", b"tree/parts", &format!("?partNumber={number}&uploadId={id}"), &[], part)
            .await;
        let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
        list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>");
    }
    let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
    moto.ask("POST", b"tree/parts", &format!("?uploadId={id}"), &[], list.as_bytes()).await;
    let source = moto.open(None).await;
    let file = source.stat(&rel("parts")).await.unwrap();
    assert!(matches!(&file.fingerprint.validator, Validator::ETag(tag) if tag.ends_with("-2\"")));
    assert_eq!(file.checksum, None);
    let seam = ByteRange::new((5 << 20) - 10, (5 << 20) + 10);
    let bytes = read(&*source, "parts", seam, &file.fingerprint).await.unwrap();
    assert!(bytes == [&one[one.len() - 10..], &two[..10]].concat());
}

#[tokio::test]
async fn a_directory_goes_before_an_object_of_its_name_and_that_is_counted() {
    let Some(moto) = moto::start().await else { return };
    for key in ["a", "a/b", "a!", "a.txt", "marker/", "marker-with-bytes/", "marker-with-bytes/x"] {
        let bytes: &[u8] = if key.starts_with("marker-with-bytes/") { b"bytes" } else { b"" };
        moto.ask("PUT", format!("tree/{key}").as_bytes(), "", &[], bytes).await;
    }
    let source = moto.open(None).await;
    // Asked before anything is listed, and after.
    for _ in 0..2 {
        assert_eq!(source.stat(&rel("a")).await.unwrap().kind, EntryKind::Directory);
        assert_eq!(source.stat(&rel("a.txt")).await.unwrap().kind, EntryKind::File);
        assert_eq!(source.stat(&rel("marker")).await.unwrap().kind, EntryKind::Directory);
        let (all, refused) = list_all(&*source, "").await.unwrap();
        let names: Vec<_> = all.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "a!", "a.txt", "marker", "marker-with-bytes"]);
        assert_eq!(all[OsStr::new("a")].kind, EntryKind::Directory);
        assert_eq!(refused, 1, "the object a");
        assert_eq!(list_all(&*source, "marker").await.unwrap().0.len(), 0);
        let (all, refused) = list_all(&*source, "marker-with-bytes").await.unwrap();
        assert_eq!((all.len(), refused), (1, 1));
    }
}

#[tokio::test]
async fn a_url_names_a_bucket_a_prefix_or_one_object() {
    let Some(moto) = moto::start().await else { return };
    moto.put(b"dir/one", b"1").await;
    moto.put(b"dir/ob ject", b"content").await;
    let whole = moto.open_at("s3://bucket").await.unwrap();
    assert!(whole.single_file().is_none());
    assert!(list_all(&*whole, "").await.unwrap().0.contains_key(OsStr::new("tree")));
    for url in ["s3://bucket/tree/dir", "s3://bucket/tree/dir/"] {
        let source = moto.open_at(url).await.unwrap();
        let server = format!("http://127.0.0.1:{}", moto.server.port);
        assert_eq!(source.display_name(), format!("{url} at {server}"));
        assert_eq!(list_all(&*source, "").await.unwrap().0.len(), 2);
    }
    let one = moto.open_at("s3://bucket/tree/dir/ob ject").await.unwrap();
    assert_eq!(one.single_file().unwrap(), "ob ject");
    assert_eq!(list_all(&*one, "").await.unwrap().0.len(), 1);
    let version = one.stat(&rel("ob ject")).await.unwrap().fingerprint;
    assert_eq!(read(&*one, "ob ject", ByteRange::at(0, 7), &version).await.unwrap(), b"content");
    assert_eq!(one.stat(&rel("one")).await.unwrap_err().kind(), Kind::NotFound);
    for url in ["s3://bucket/nothing", "s3://bucket/nothing/", "s3://bucket/tre/", "s3://nobucket/"]
    {
        assert_eq!(moto.open_at(url).await.unwrap_err().kind(), Kind::NotFound, "{url}");
    }
}

// An answer of S3 to everything that opening a tree asks.
fn listing(request: &Request) -> Option<String> {
    let page = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>file</Key><Size>7</Size>\
        <ETag>&quot;x&quot;</ETag><LastModified>2020-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>";
    let is_list = request.target.contains("list-type=2");
    is_list.then(|| answer("200 OK", "Content-Type: application/xml\r\n", page))
}

async fn open(server: &Scripted, more: &[&str]) -> Result<Arc<dyn Source>, Error> {
    let mut options =
        vec![format!("endpoint=http://127.0.0.1:{}", server.port), "anonymous=true".to_owned()];
    options.extend(more.iter().map(|option| (*option).to_owned()));
    remote("s3://bucket", &options).await
}

/// What reading the file of [`listing`] comes to where the server answers so.
async fn reading(status: &'static str, body: &'static str) -> Error {
    let server = Scripted::fixed(move |request| {
        listing(request).unwrap_or_else(|| answer(status, "Retry-After: 3\r\n", body))
    });
    let source = open(&server, &[]).await.unwrap();
    let (all, _) = list_all(&*source, "").await.unwrap();
    let file = all[OsStr::new("file")].attributes.clone().unwrap();
    let range = ByteRange::at(0, 7);
    let (bytes, result) = read_until_error(&*source, "file", range, &file.fingerprint).await;
    assert!(bytes.is_empty());
    let requests = server.requests();
    let reads: Vec<_> =
        requests.iter().filter(|request| !request.target.contains("list-type")).collect();
    assert_eq!(reads.len(), 1, "asked once: retries are not the source's");
    assert_eq!(reads[0].header("if-match"), Some("\"x\""));
    assert_eq!(reads[0].header("range"), Some("bytes=0-6"));
    result.unwrap_err()
}

#[tokio::test]
async fn a_complaint_of_s3_is_what_it_means() {
    let slow = reading("503 Slow Down", "<Error><Code>SlowDown</Code></Error>").await;
    assert_eq!((slow.kind(), slow.requested_wait().unwrap().as_secs()), (Kind::Busy, 3));
    let archived = reading("403 Forbidden", "<Error><Code>InvalidObjectState</Code></Error>").await;
    assert_eq!(archived.kind(), Kind::Archived);
    assert!(archived.to_string().contains("archived, restore it first"), "{archived}");
    let denied = reading("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>").await;
    assert_eq!(denied.kind(), Kind::Denied);
    let changed =
        reading("412 Precondition Failed", "<Error><Code>PreconditionFailed</Code></Error>").await;
    assert_eq!(changed.kind(), Kind::Stale);
    assert!(
        reading("500 Internal", "<Error><Code>InternalError</Code></Error>").await.is_transient()
    );
    assert_eq!(
        reading("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>").await.kind(),
        Kind::NotFound
    );
}

#[tokio::test]
async fn a_bucket_in_another_region_is_found_there() {
    for (status, headers, body) in [
        ("301 Moved Permanently", "x-amz-bucket-region: eu-west-9\r\n", ""),
        (
            "400 Bad Request",
            "",
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-9</Region></Error>",
        ),
    ] {
        let secret = tempfile::NamedTempFile::new().unwrap();
        secret.as_file().write_all(b"hunter2").unwrap();
        let server = Scripted::fixed(move |request| {
            let signed = request.header("authorization").unwrap_or_default();
            if signed.contains("/eu-west-9/s3/") {
                listing(request).unwrap()
            } else {
                answer(status, headers, body)
            }
        });
        let options = [
            format!("endpoint=http://127.0.0.1:{}", server.port),
            "access-key-id=AKIA".to_owned(),
            format!("secret-access-key=@{}", secret.path().display()),
            "requester-pays=true".to_owned(),
        ];
        let source = remote("s3://bucket", &options).await.unwrap();
        assert!(list_all(&*source, "").await.unwrap().0.contains_key(OsStr::new("file")));
        let requests = server.requests();
        assert_eq!(requests.len(), 3, "the wrong region is asked once");
        assert!(
            requests
                .iter()
                .all(|request| request.header("x-amz-request-payer") == Some("requester"))
        );
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_listing_that_cannot_be_right_is_refused() {
    let again = "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
    let endless = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    for page in [again, endless, "<html>hello", "{}"] {
        let server = Scripted::fixed(move |request| {
            if request.target.contains("delimiter") {
                answer("200 OK", "", page)
            } else {
                listing(request).unwrap()
            }
        });
        let source = open(&server, &[]).await.unwrap();
        assert_eq!(list_all(&*source, "").await.unwrap_err().kind(), Kind::Invalid, "{page}");
    }
}

// The size is real, the bytes are few: nginx is an S3 of whole objects as far as HEAD and GET go.
#[tokio::test]
async fn an_object_of_5_gib_is_read_beyond_4_gib() {
    const GIB: u64 = 1 << 30;
    let base = TempDir::new().unwrap();
    let root = base.path().join("bucket");
    std::fs::create_dir(&root).unwrap();
    let marks: Vec<(u64, Vec<u8>)> =
        [4 * GIB - 5, 5 * GIB - 7].map(|at| (at, at.to_string().into_bytes())).into();
    crate::local::put_sparse(&root, "huge", 5 * GIB + 3, &marks);
    let Some(nginx) = Nginx::start(base.path(), "location = /bucket/ { return 404; }") else {
        return;
    };
    let source = remote("s3://bucket/huge", &Moto::options(nginx.port)).await;
    // nginx lists nothing, so it is taken for one object.
    let source = source.unwrap();
    assert_eq!(source.single_file().unwrap(), "huge");
    let version = source.stat(&rel("huge")).await.unwrap().fingerprint;
    assert_eq!(version.size, 5 * GIB + 3);
    for (offset, bytes) in marks {
        let range = ByteRange::at(offset, bytes.len() as u64);
        assert_eq!(read(&*source, "huge", range, &version).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_hundred_thousand_keys_come_page_by_page_each_asked_for_ahead() {
    const PAGES: usize = 100;
    let server = Scripted::fixed(|request| {
        let token = request
            .target
            .split("continuation-token=")
            .nth(1)
            .and_then(|rest| rest.split('&').next());
        let number: usize = token.map_or(0, |token| token.parse().unwrap());
        let keys: String = (0..1000).map(|key| format!(
            "<Contents><Key>k{:06}</Key><Size>1</Size><ETag>&quot;e&quot;</ETag><LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>",
            number * 1000 + key
        )).collect();
        let next = match number + 1 {
            PAGES => "<IsTruncated>false</IsTruncated>".to_owned(),
            next => format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{next}</NextContinuationToken>"
            ),
        };
        answer("200 OK", "", &format!("<ListBucketResult>{next}{keys}</ListBucketResult>"))
    });
    let source = open(&server, &[]).await.unwrap();
    server.requests();
    let (sender, mut batches) = tokio::sync::mpsc::channel(1);
    let root = rel("");
    let begun = std::time::Instant::now();
    let (listed, count) = tokio::join!(source.list(&root, sender), async {
        let mut count = 0;
        while let Some(batch) = batches.recv().await {
            let batch: lazycopy::source::ListBatch = batch;
            count += batch.entries.len();
        }
        count
    });
    listed.unwrap();
    println!("{count} keys in {:?}", begun.elapsed());
    assert_eq!((count, server.requests().len()), (PAGES * 1000, PAGES));
}
