//! What only Azure promises.

use std::ffi::OsStr;
use std::sync::Arc;

use lazycopy::core::attributes::{Checksum, EntryKind};
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use lazycopy::source::Source;

use crate::azurite::{self, Azurite};
use crate::common::azure::{SAS, secret};
use crate::common::scripted::{Request, Scripted, answer};
use crate::common::{list_all, read, read_until_error, rel};
use crate::ground::{Ground, remote};

#[tokio::test]
async fn checksums_come_with_the_listing_and_with_the_blob() {
    let Some(azurite) = azurite::start().await else { return };
    azurite.put(b"file", b"123456789").await;
    let source = azurite.open(None).await;
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
async fn an_archived_blob_is_listed_and_says_so() {
    let Some(azurite) = azurite::start().await else { return };
    azurite.put(b"cold", b"content").await;
    azurite
        .ask("PUT", b"container/tree/cold", "comp=tier&", &[("x-ms-access-tier", "Archive")], b"")
        .await;
    let source = azurite.open(None).await;
    let version = source.stat(&rel("cold")).await.unwrap().fingerprint;
    assert!(list_all(&*source, "").await.unwrap().0.contains_key(OsStr::new("cold")));
    let range = ByteRange::at(0, 7);
    let (bytes, result) = read_until_error(&*source, "cold", range, &version).await;
    let error = result.unwrap_err();
    assert_eq!((bytes.len(), error.kind()), (0, Kind::Archived), "{error:?}");
    assert!(error.to_string().contains("archived, restore it first"), "{error}");
}

#[tokio::test]
async fn a_signature_or_nobody_may_read_what_they_may() {
    let Some(azurite) = azurite::start().await else { return };
    azurite.put("a b/ü".as_bytes(), b"content").await;
    let endpoint = Azurite::endpoint(azurite.server.port);
    let content = async |container: &str, option: String| {
        let source = remote(&format!("az://{container}"), &[endpoint.clone(), option]).await?;
        let version = source.stat(&rel("tree/a b/ü")).await?.fingerprint;
        list_all(&*source, "tree/a b").await?;
        read(&*source, "tree/a b/ü", ByteRange::at(0, 7), &version).await
    };
    for text in [SAS.to_owned(), format!("?{SAS}")] {
        let token = secret(&text);
        let bytes =
            content("container", format!("sas-token=@{}", token.path().display())).await.unwrap();
        assert_eq!(bytes, b"content");
    }
    let forged = secret(&SAS.replace("sp=rwdlacx", "sp=rwdlacxy"));
    let error =
        content("container", format!("sas-token=@{}", forged.path().display())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(!format!("{error} {error:?}").contains("sig="), "{error:?}");
    // Azure says that it is not there to somebody who may not know.
    let error = content("container", "anonymous=true".to_owned()).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::NotFound | Kind::Denied), "{error:?}");
    let public = [("x-ms-blob-public-access", "container")];
    azurite.ask("PUT", b"public", "restype=container&", &public, b"").await;
    let kind = [("x-ms-blob-type", "BlockBlob")];
    azurite.ask("PUT", "public/tree/a b/ü".as_bytes(), "", &kind, b"content").await;
    assert_eq!(content("public", "anonymous=true".to_owned()).await.unwrap(), b"content");
}

#[tokio::test]
async fn a_backslash_is_no_slash() {
    let Some(azurite) = azurite::start().await else { return };
    azurite.put(b"back/slash", b"content").await;
    let source = azurite.open(None).await;
    for path in ["back\\slash", "back\\", "back/slash\\x"] {
        assert_eq!(source.stat(&rel(path)).await.unwrap_err().kind(), Kind::NotFound, "{path}");
    }
}

#[tokio::test]
async fn a_url_names_a_container_a_prefix_or_one_blob() {
    let Some(azurite) = azurite::start().await else { return };
    azurite.put(b"dir/one", b"1").await;
    azurite.put(b"dir/bl ob", b"content").await;
    azurite.put(b"dir/one/below", b"2").await;
    let whole = azurite.open_at("az://container").await.unwrap();
    assert!(list_all(&*whole, "").await.unwrap().0.contains_key(OsStr::new("tree")));
    let name = format!("az://127.0.0.1:{}/devstoreaccount1/", azurite.server.port);
    for key in ["container/tree/dir", "container/tree/dir/"] {
        let source = azurite.open_at(&format!("az://{key}")).await.unwrap();
        assert_eq!(source.display_name(), format!("{name}{key}"));
        let (all, refused) = list_all(&*source, "").await.unwrap();
        assert_eq!((all.len(), refused), (2, 1), "the blob beside a directory of its name");
        assert_eq!(all[OsStr::new("one")].kind, EntryKind::Directory);
    }
    let one = azurite.open_at("az://container/tree/dir/bl ob").await.unwrap();
    assert_eq!(one.single_file().unwrap(), "bl ob");
    let version = one.stat(&rel("bl ob")).await.unwrap().fingerprint;
    assert_eq!(read(&*one, "bl ob", ByteRange::at(0, 7), &version).await.unwrap(), b"content");
    for url in ["az://container/nothing", "az://container/tre/", "az://nocontainer/"] {
        assert_eq!(azurite.open_at(url).await.unwrap_err().kind(), Kind::NotFound, "{url}");
    }
}

const BLOB: &str = "<Blob><Name>file</Name><Properties><Last-Modified>Wed, 01 Jan 2020 00:00:00 GMT</Last-Modified>\
    <Etag>x</Etag><Content-Length>7</Content-Length></Properties></Blob>";

fn page(items: &str, next: &str) -> String {
    let text = format!(
        "\u{feff}<EnumerationResults><Blobs>{items}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
    );
    answer("200 OK", "Content-Type: application/xml\r\n", &text)
}

async fn open(server: &Scripted) -> Result<Arc<dyn Source>, Error> {
    let endpoint = format!("endpoint=http://127.0.0.1:{}", server.port);
    remote("az://container", &[endpoint, "account=me".to_owned(), "anonymous=true".to_owned()])
        .await
}

#[tokio::test]
async fn an_old_version_is_read_on_by_its_id() {
    const ID: &str = "2024-05-06T07%3A08%3A09.1234567Z";
    let about = "Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\nETag: \"x\"\r\nx-ms-version-id: 2024-05-06T07:08:09.1234567Z\r\n";
    let is_purged = |request: &Request| request.header("range") == Some("bytes=1-6");
    let server = Scripted::fixed(move |request| match request.method.as_str() {
        "GET" if request.target.contains("comp=list") => page(BLOB, ""),
        "HEAD" => answer("200 OK", about, "content"),
        _ if !request.target.ends_with(&format!("?versionid={ID}")) || is_purged(request) => {
            answer("404 Not Found", "x-ms-error-code: BlobNotFound\r\n", "")
        }
        _ => answer(
            "206 Partial Content",
            &format!("{about}Content-Range: bytes 0-6/7\r\n"),
            "content",
        ),
    });
    let source = open(&server).await.unwrap();
    list_all(&*source, "").await.unwrap();
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    assert_eq!(read(&*source, "file", ByteRange::at(0, 7), &version).await.unwrap(), b"content");
    let last = server.requests().pop().unwrap();
    assert_eq!(last.header("if-match"), Some("\"x\""));
    assert!(last.header("x-ms-version").is_some());
    let (_, gone) = read_until_error(&*source, "file", ByteRange::at(1, 6), &version).await;
    assert_eq!(gone.unwrap_err().kind(), Kind::Stale);
}

#[tokio::test]
async fn a_directory_that_is_kept_as_such_may_be_empty() {
    let server = Scripted::fixed(|request| {
        let is_root = !request.target.contains("prefix=");
        match request.method.as_str() {
            "HEAD" if request.target.ends_with("/empty") => answer(
                "200 OK",
                "Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\nETag: \"x\"\r\nx-ms-resource-type: directory\r\n",
                "",
            ),
            "HEAD" => answer("404 Not Found", "x-ms-error-code: BlobNotFound\r\n", ""),
            _ if is_root => {
                page(&format!("<BlobPrefix><Name>empty/</Name></BlobPrefix>{BLOB}"), "")
            }
            _ => page("", ""),
        }
    });
    let source = open(&server).await.unwrap();
    for _ in 0..2 {
        assert_eq!(source.stat(&rel("empty")).await.unwrap().kind, EntryKind::Directory);
        assert_eq!(list_all(&*source, "empty").await.unwrap().0.len(), 0);
        assert_eq!(list_all(&*source, "nothing").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(list_all(&*source, "").await.unwrap().0.len(), 2);
    }
}

#[tokio::test]
async fn pages_go_on_at_their_markers_and_may_be_empty() {
    let server = Scripted::fixed(|request| match request.target.split("marker=").nth(1) {
        None => page("", "one"),
        Some("one") => page("<BlobPrefix><Name>a/</Name></BlobPrefix>", "two%21"),
        Some("two%2521") => page(BLOB, ""),
        Some(other) => panic!("{other}"),
    });
    let source = open(&server).await.unwrap();
    assert_eq!(server.requests().len(), 2, "until something is there");
    let (all, _) = list_all(&*source, "").await.unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "file"]);
    assert_eq!(source.stat(&RelPath::root()).await.unwrap().kind, EntryKind::Directory);
}

#[tokio::test]
async fn a_listing_that_cannot_be_right_is_refused() {
    for text in [
        "<EnumerationResults><Blobs/><NextMarker>t</NextMarker></EnumerationResults>",
        "<EnumerationResults><Blobs>",
        "<html>hello",
        "{}",
    ] {
        let server = Scripted::fixed(move |request| match request.target.contains("delimiter") {
            true => answer("200 OK", "", text),
            false => page(BLOB, ""),
        });
        let source = open(&server).await.unwrap();
        assert_eq!(list_all(&*source, "").await.unwrap_err().kind(), Kind::Invalid, "{text}");
    }
}
