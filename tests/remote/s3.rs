//! Buckets.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::clouds::is_kept_out;
use crate::common::pattern;
use crate::common::s3::put;
use crate::common::scripted::{Scripted, answer};
use crate::common::servers::Server;
use crate::harness::{Env, Ran, errno, read, tool};

/// A tree with some of everything that a bucket can hold: path and bytes.
pub(crate) fn tree() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", Vec::new()),
        ("one", b"1".to_vec()),
        ("dir/a b+c%41&d", pattern(1000)),
        ("dir/ümlaut/日本", pattern(131_073)),
        ("dir/deep/er/leaf", b"leaf".to_vec()),
        ("large", pattern(3 << 20)),
    ]
}

/// An environment with the same tree as plain files, for comparison.
pub(crate) fn environment() -> Option<Env> {
    let env = Env::new()?;
    tree().iter().for_each(|(path, bytes)| drop(env.put(path, bytes)));
    fs::write(env.path("secret"), "SK\n").unwrap();
    Some(env)
}

fn options(env: &Env, port: u16) -> Vec<String> {
    [
        format!("endpoint=http://127.0.0.1:{port}"),
        "region=us-east-1".to_owned(),
        "access-key-id=AK".to_owned(),
        format!("secret-access-key=@{}", env.path("secret").display()),
    ]
    .into_iter()
    .flat_map(|option| ["-S".to_owned(), option])
    .collect()
}

fn assert_same(one: &Path, other: &Path) {
    tool(Command::new("diff").args(["-r", "-x", ".lazycopy"]).args([one, other]));
}

pub(crate) fn assert_ran(ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// The tree at `url`, by every way, is the tree of the environment.
pub(crate) fn every_way_gives_the_tree(env: &Env, url: &str, options: &[String]) {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let dir = |name: &str| env.path(name).to_str().unwrap().to_owned();

    let copied = env.run([&["copy", url, &dir("copied")], &options[..]].concat());
    assert_ran(&copied);
    assert_same(&env.source(), &env.path("copied"));
    // Run again it fetches nothing.
    let again = env.run([&["copy", url, &dir("copied"), "--json"], &options[..]].concat());
    assert_ran(&again);
    let summary: serde_json::Value =
        serde_json::from_str(again.out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&summary["bytes"]["copied"], &summary["files"]["unchanged"]),
        (&0.into(), &6.into()),
        "{summary}"
    );

    let mounted = env.mount_from(url, &options);
    assert_same(&env.source(), &mounted.place);
    mounted.unmount();

    let cloned = env.run([&["clone", url, &dir("cloned"), "--wait"], &options[..]].concat());
    assert_ran(&cloned);
    assert_same(&env.source(), &env.path("cloned"));
}

#[test]
fn a_bucket_of_moto_is_copied_mounted_and_cloned() {
    let Some(env) = environment() else { return };
    let Some(server) = Server::start("moto") else { return };
    put(server.port, "/bucket", "", b"");
    for (path, bytes) in tree() {
        put(server.port, &format!("/bucket/tr ee/{path}"), "", &bytes);
    }
    every_way_gives_the_tree(&env, "s3://bucket/tr ee", &options(&env, server.port));
}

#[test]
fn a_bucket_of_s3s_fs_is_copied_mounted_and_cloned() {
    let Some(env) = environment() else { return };
    let Some(server) = Server::start("s3s-fs") else { return };
    let bucket = server.files().join("bucket");
    tool(Command::new("cp").arg("-r").arg(env.source()).arg(&bucket));
    every_way_gives_the_tree(&env, "s3://bucket", &options(&env, server.port));
}

#[test]
fn a_checksum_of_the_bucket_is_the_proof() {
    let Some(env) = environment() else { return };
    let Some(server) = Server::start("moto") else { return };
    put(server.port, "/bucket", "", b"");
    // The check value of CRC-32C, and later a wrong one, which moto believes.
    let algorithm = "x-amz-sdk-checksum-algorithm: CRC32C\r\nx-amz-checksum-crc32c:";
    put(server.port, "/bucket/right", &format!("{algorithm} 4waSgw==\r\n"), b"123456789");
    put(server.port, "/bucket/none", "", b"123456789");
    let copied = env.path("copied");
    let options = options(&env, server.port);
    let args = ["copy", "s3://bucket", copied.to_str().unwrap()].map(str::to_owned);
    assert_ran(&env.run(args.iter().chain(&options)));
    let status = env.run(["status", "--json", copied.to_str().unwrap()]);
    let receipt = find(&copied.join(".lazycopy"), "receipt");
    println!("{status:?}\n{receipt}");
    assert!(receipt.contains("crc32c"), "{receipt}");
    put(server.port, "/bucket/wrong", &format!("{algorithm} AAAAAA==\r\n"), b"123456789");
    is_kept_out(&env, "s3://bucket", &options, "crc32c");
}

/// The text of the file below `directory` whose name begins with `name`.
pub(crate) fn find(directory: &Path, name: &str) -> String {
    let files = fs::read_dir(directory).unwrap().flatten();
    files
        .filter(|file| file.file_name().to_string_lossy().starts_with(name))
        .map(|file| String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned())
        .collect()
}

/// A bucket with one file and one that is archived.
fn half_archived() -> Scripted {
    Scripted::fixed(|request| {
        let is_head = request.is_head();
        let object = |name: &str| request.target.starts_with(&format!("/bucket/{name}"));
        let times = "Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\nETag: \"x\"\r\n";
        let page = |items: &str| {
            answer("200 OK", "", &format!("<ListBucketResult>{items}</ListBucketResult>"))
        };
        let item = |name: &str| {
            format!(
                "<Contents><Key>{name}</Key><Size>7</Size><ETag>\"x\"</ETag><LastModified>2020-01-01T00:00:00Z</LastModified></Contents>"
            )
        };
        if request.target.contains("list-type=2") {
            let is_root =
                request.target.contains("prefix=&") || request.target.ends_with("prefix=");
            page(&if is_root { item("cold") + &item("warm") } else { String::new() })
        } else if object("cold") && !is_head {
            answer("403 Forbidden", "", "<Error><Code>InvalidObjectState</Code></Error>")
        } else if object("warm") || object("cold") {
            match request.header("range") {
                Some(_) => answer(
                    "206 Partial Content",
                    &format!("{times}Content-Range: bytes 0-6/7\r\n"),
                    "content",
                ),
                None => answer("200 OK", times, "content"),
            }
        } else {
            answer("404 Not Found", "", "")
        }
    })
}

#[test]
fn an_archived_object_is_listed_refused_and_left_out_of_the_copy() {
    let Some(env) = Env::new() else { return };
    let server = half_archived();
    let endpoint = format!("endpoint=http://127.0.0.1:{}", server.port);
    let options = ["-S", &endpoint, "-S", "anonymous=true", "--hydrate"];
    let mounted = env.mount_from("s3://bucket", &options);
    assert_eq!(fs::metadata(mounted.path("cold")).unwrap().len(), 7);
    assert_eq!(errno(read(mounted.path("cold"))), libc::EACCES);
    assert_eq!(read(mounted.path("warm")).unwrap(), b"content");
    let status = mounted.until_complete();
    assert_eq!(
        (&status["files"]["published"], &status["files"]["failed"]),
        (&1.into(), &0.into()),
        "{status:#}"
    );
    assert!(status["errors"].to_string().contains("archived, restore it first"), "{status:#}");
    mounted.unmount();
    // A copy says so and is no failure.
    let copied = env.path("copied");
    let ran = env.run([
        "copy",
        "s3://bucket",
        copied.to_str().unwrap(),
        "-S",
        &endpoint,
        "-S",
        "anonymous=true",
    ]);
    assert_ran(&ran);
    assert!(copied.join("warm").exists() && !copied.join("cold").exists());
}
