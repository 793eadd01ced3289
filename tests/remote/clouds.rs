//! Buckets of Google and containers of Azure.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;

use crate::common::azure;
use crate::common::servers::Server;
use crate::harness::{Env, errno, read};
use crate::s3::{assert_ran, environment, every_way_gives_the_tree, find, tree};

/// Asks an emulator of Google for something.
pub(crate) fn ask_google(port: u16, method: &str, path: &str, kind: &str, body: &[u8]) {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(body).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.split(' ').nth(1) == Some("200"), "{path}: {answer}");
}

/// Puts an object into the bucket that the emulator has.
pub(crate) fn put_google(port: u16, key: &str, body: &[u8]) {
    const PLACE: &str = "/upload/storage/v1/b/bucket/o?uploadType=";
    if body.is_empty() {
        // Without any body it fails.
        let body = format!(
            "--b\r\nContent-Type: application/json\r\n\r\n{{\"name\":\"{key}\"}}\r\n--b\r\nContent-Type: text/plain\r\n\r\n\r\n--b--\r\n"
        );
        let kind = "multipart/related; boundary=b";
        return ask_google(port, "POST", &format!("{PLACE}multipart"), kind, body.as_bytes());
    }
    let name = percent_encode(key.as_bytes(), NON_ALPHANUMERIC);
    let path = format!("{PLACE}media&name={name}");
    ask_google(port, "POST", &path, "application/octet-stream", body);
}

fn google(port: u16) -> Vec<String> {
    [
        "-S".to_owned(),
        format!("endpoint=http://127.0.0.1:{port}"),
        "-S".to_owned(),
        "anonymous=true".to_owned(),
    ]
    .into()
}

/// The container of azurite, and its key in a file.
fn azurite(env: &Env) -> Option<(Server, Vec<String>)> {
    let server = Server::start("azurite")?;
    azure::put(server.port, "container", "restype=container&", "", b"");
    fs::write(env.path("key"), azure::KEY).unwrap();
    let options = [
        format!("endpoint=http://127.0.0.1:{}/devstoreaccount1", server.port),
        format!("account-key=@{}", env.path("key").display()),
    ];
    let options = options.into_iter().flat_map(|option| ["-S".to_owned(), option]).collect();
    Some((server, options))
}

#[test]
fn a_bucket_of_google_is_copied_mounted_and_cloned() {
    let Some(env) = environment() else { return };
    let Some(server) = Server::start("gcs") else { return };
    for (path, bytes) in tree() {
        put_google(server.port, &format!("tr ee/{path}"), &bytes);
    }
    every_way_gives_the_tree(&env, "gs://bucket/tr ee", &google(server.port));
}

#[test]
fn a_container_of_azure_is_copied_mounted_and_cloned() {
    let Some(env) = environment() else { return };
    let Some((server, options)) = azurite(&env) else { return };
    for (path, bytes) in tree() {
        azure::put(server.port, &format!("container/tr ee/{path}"), "", "", &bytes);
    }
    every_way_gives_the_tree(&env, "az://container/tr ee", &options);
}

/// The file `right` in `url` is proven by its checksum.
fn is_proven(env: &Env, url: &str, options: &[String]) {
    let copied = env.path("copied");
    let args = ["copy", url, copied.to_str().unwrap()].map(str::to_owned);
    assert_ran(&env.run(args.iter().chain(options)));
    assert_eq!(fs::read(copied.join("right")).unwrap(), b"123456789");
    let receipt = find(&copied.join(".lazycopy"), "receipt");
    assert!(receipt.contains("source-checksum") && receipt.contains("md5"), "{receipt}");
}

/// The file `wrong`, which came later and has the same bytes, is kept out by its checksum.
pub(crate) fn is_kept_out(env: &Env, url: &str, options: &[String], kind: &str) {
    let copied = env.path("copied");
    let args = ["copy", url, copied.to_str().unwrap(), "--json"].map(str::to_owned);
    let ran = env.run(args.iter().chain(options));
    assert!(matches!(ran.code, Some(1 | 4)), "{ran:?}");
    let summary: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(summary["files"]["failed"], 1, "{summary}");
    assert!(copied.join("right").exists() && !copied.join("wrong").exists(), "{summary}");
    assert!(ran.err.contains(&format!("the source says its checksum is {kind}")), "{ran:?}");
}

#[test]
fn a_checksum_of_google_is_the_proof_or_the_end_of_a_file() {
    let Some(env) = Env::new() else { return };
    let Some(server) = Server::start("gcs") else { return };
    put_google(server.port, "right", b"123456789");
    is_proven(&env, "gs://bucket", &google(server.port));
    put_google(server.port, "wrong", b"123456789");
    let wrong = br#"{"md5Hash":"AAAAAAAAAAAAAAAAAAAAAA=="}"#;
    ask_google(server.port, "PATCH", "/storage/v1/b/bucket/o/wrong", "application/json", wrong);
    is_kept_out(&env, "gs://bucket", &google(server.port), "md5");
}

#[test]
fn a_checksum_of_azure_is_the_proof_or_the_end_of_a_file() {
    let Some(env) = Env::new() else { return };
    let Some((server, options)) = azurite(&env) else { return };
    azure::put(server.port, "container/right", "", "", b"123456789");
    is_proven(&env, "az://container", &options);
    azure::put(server.port, "container/wrong", "", "", b"123456789");
    let wrong = "x-ms-blob-content-md5: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    azure::put(server.port, "container/wrong", "comp=properties&", wrong, b"");
    is_kept_out(&env, "az://container", &options, "md5");
}

#[test]
fn an_archived_blob_is_listed_refused_and_left_out_of_the_copy() {
    let Some(env) = Env::new() else { return };
    let Some((server, options)) = azurite(&env) else { return };
    azure::put(server.port, "container/cold", "", "", b"content");
    azure::put(server.port, "container/cold", "comp=tier&", "x-ms-access-tier: Archive\r\n", b"");
    azure::put(server.port, "container/warm", "", "", b"content");
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    let copied = env.path("copied");
    let ran =
        env.run([&["copy", "az://container", copied.to_str().unwrap()], &options[..]].concat());
    assert_ran(&ran);
    assert!(copied.join("warm").exists() && !copied.join("cold").exists());
    options.push("--hydrate");
    let mounted = env.mount_from("az://container", &options);
    assert_eq!(fs::metadata(mounted.path("cold")).unwrap().len(), 7);
    assert_eq!(errno(read(mounted.path("cold"))), libc::EACCES);
    let status = mounted.until_complete();
    assert!(status["errors"].to_string().contains("archived, restore it first"), "{status:#}");
    mounted.unmount();
}
