//! A manifest in a file, whose files are on nginx: each with a checksum, but for those that nobody has read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lazycopy::core::attributes::{Checksum, EntryKind, Validator};
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use lazycopy::source::Source;
use lazycopy::source::manifest::line::{FileLine, Line, What, url_path};
use lazycopy::source::manifest::{ManifestOptions, ManifestSource};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::nginx::Nginx;
use crate::common::{list_all, pattern, read, rel};
use crate::ground::{Can, Ground, remote};
use crate::local;

pub(crate) struct Listed {
    nginx: Nginx,
    base: TempDir,
    written: Mutex<Written>,
}

/// The manifest as it is.
#[derive(Default)]
struct Written {
    lines: BTreeMap<Vec<u8>, What>,
    /// Where its URLs lead; nothing is written before it is known.
    port: Option<u16>,
}

pub(crate) async fn start() -> Option<Listed> {
    let base = TempDir::new().unwrap();
    fs::create_dir(base.path().join("tree")).unwrap();
    let nginx = Nginx::start(&base.path().join("tree"), "location /forbidden { deny all; }")?;
    Some(Listed { nginx, base, written: Mutex::default() })
}

impl Listed {
    fn tree(&self) -> PathBuf {
        self.base.path().join("tree")
    }

    fn file(&self) -> PathBuf {
        self.base.path().join("manifest.jsonl")
    }

    fn change(&self, change: impl FnOnce(&mut Written)) {
        let mut written = self.written.lock().unwrap();
        change(&mut written);
        let Some(port) = written.port else { return };
        let mut text = String::new();
        for (path, what) in &written.lines {
            let path = rel(path);
            let what = match what.clone() {
                What::File(file) => {
                    let url = format!("http://127.0.0.1:{port}/{}", url_path(&path));
                    What::File(FileLine { url: Some(url), ..file })
                }
                other => other,
            };
            text += &Line { path, what, mode: None, modified: None }.to_json();
            text.push('\n');
        }
        let new = self.base.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file()).unwrap();
    }
}

#[async_trait]
impl Ground for Listed {
    fn can(&self) -> Can {
        Can { any_bytes: true, empty_directories: true, plain_http: true }
    }

    async fn put(&self, path: &[u8], bytes: &[u8]) {
        local::put(&self.tree(), path, bytes);
        let checksum = Some(Checksum::Sha256(Sha256::digest(bytes).to_vec()));
        let file = FileLine { size: Some(bytes.len() as u64), checksum, ..FileLine::default() };
        self.change(|written| drop(written.lines.insert(path.to_vec(), What::File(file))));
    }

    async fn make_directory(&self, path: &[u8]) {
        self.change(|written| drop(written.lines.insert(path.to_vec(), What::Directory)));
    }

    async fn put_sparse(&self, path: &str, size: u64, marks: &[(u64, Vec<u8>)]) -> bool {
        local::put_sparse(&self.tree(), path, size, marks);
        let file = What::File(FileLine { size: Some(size), ..FileLine::default() });
        self.change(|written| drop(written.lines.insert(path.into(), file)));
        true
    }

    async fn remove(&self, path: &[u8]) {
        fs::remove_file(self.tree().join(OsStr::from_bytes(path))).unwrap();
        self.change(|written| drop(written.lines.remove(path)));
    }

    fn port(&self) -> Option<u16> {
        Some(self.nginx.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        let port = port.unwrap_or(self.nginx.port);
        self.change(|written| written.port = Some(port));
        let options = ManifestOptions {
            allowed_origins: format!("http://127.0.0.1:{port}"),
            refresh: Some(Duration::ZERO),
            ..ManifestOptions::default()
        };
        let spec = format!("manifest:{}", self.file().display());
        Arc::new(ManifestSource::open(&spec, options).await.unwrap())
    }

    async fn forbidden(&self) -> Option<Error> {
        local::put(&self.tree(), b"forbidden", b"secret");
        let file = What::File(FileLine { size: Some(6), ..FileLine::default() });
        self.change(|written| drop(written.lines.insert(b"forbidden".to_vec(), file)));
        self.open(None).await.stat(&rel("forbidden")).await.err()
    }
}

async fn open(spec: &str) -> Result<Arc<dyn Source>, Error> {
    remote(&format!("manifest:{spec}"), &[]).await
}

fn write(directory: &Path, text: &str) -> String {
    let path = directory.join("m.jsonl");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_a_server_names_files_beside_it() {
    let Some(ground) = start().await else { return };
    let content = pattern(100_000);
    local::put(&ground.tree(), b"d/data file", &content);
    let line = r#"{"path":"x","url":"data%20file","size":100000,"mode":"0600","mtime":5}"#;
    local::put(&ground.tree(), b"d/m.jsonl", line.as_bytes());
    let source = open(&format!("http://127.0.0.1:{}/d/m.jsonl", ground.nginx.port)).await.unwrap();
    let file = source.stat(&rel("x")).await.unwrap();
    assert_eq!((file.mode, file.modified.unwrap().seconds), (Some(0o600), 5));
    assert!(matches!(file.fingerprint.validator, Validator::ETag(_)), "the server's own");
    let whole = ByteRange::at(0, file.size);
    assert!(read(&*source, "x", whole, &file.fingerprint).await.unwrap() == content);
    assert!(source.traits().is_remote && !source.traits().lists_attributes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_in_a_file_names_files_of_this_machine() {
    let base = TempDir::new().unwrap();
    fs::create_dir(base.path().join("data")).unwrap();
    fs::write(base.path().join("data/a"), "content").unwrap();
    let spec = write(
        base.path(),
        "{\"path\":\"d/x\",\"url\":\"data/a\",\"md5\":\"9a0364b9e99bb480dd25e1f0284c8555\"}\n{\"path\":\"d/l\",\"link\":\"x\"}\n",
    );
    // Through a link: what is relative is beside the manifest itself.
    std::os::unix::fs::symlink(&spec, base.path().join("data/link")).unwrap();
    let source = open(base.path().join("data/link").to_str().unwrap()).await.unwrap();
    assert!(!source.traits().is_remote);
    let file = source.stat(&rel("d/x")).await.unwrap();
    assert!(matches!(file.checksum, Some(Checksum::Md5(_))));
    let bytes = read(&*source, "d/x", ByteRange::new(2, 7), &file.fingerprint).await.unwrap();
    assert_eq!(bytes, b"ntent");
    assert_eq!(source.readlink(&rel("d/l")).await.unwrap(), "x");
    let (all, _) = list_all(&*source, "d").await.unwrap();
    assert_eq!(all[OsStr::new("l")].kind, EntryKind::Symlink);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_not_there_names_its_line() {
    let base = TempDir::new().unwrap();
    fs::write(base.path().join("a"), "content").unwrap();
    let spec = write(base.path(), "\n{\"path\":\"a\",\"size\":8}\n");
    let error = open(&spec).await.unwrap().stat(&rel("a")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("line 2: it says 8 bytes, and there are 7"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_manifest_is_said_at_the_start_with_its_line() {
    let base = TempDir::new().unwrap();
    let spec = write(base.path(), "{\"path\":\"a\"}\n{\"path\":\"b\",\"url\":\"https://h/b\"}\n");
    let error = open(&spec).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    let text = error.to_string();
    assert!(text.contains("line 2: ") && text.contains("--allow-origin https://h"), "{text}");
    let directory = open(base.path().to_str().unwrap()).await.unwrap_err();
    assert!(directory.to_string().contains("directory"), "{directory}");
    let nothing = open(base.path().join("nothing").to_str().unwrap()).await.unwrap_err();
    assert_eq!(nothing.kind(), Kind::NotFound);
}

// The line tells a length and a checksum only: the parts of a file must all be of the version that the first part was of.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_two_versions_are_never_given_for_one() {
    let Some(ground) = start().await else { return };
    ground.put(b"file", &[b'a'; 100_000]).await;
    let source = ground.open(None).await;
    let version = source.stat(&rel("file")).await.unwrap().fingerprint;
    let first = read(&*source, "file", ByteRange::new(0, 50_000), &version).await.unwrap();
    assert!(first.iter().all(|byte| *byte == b'a'));
    // Behind the manifest's back, of the same length.
    local::put(&ground.tree(), b"file", &[b'b'; 100_000]);
    // nginx tells versions apart by size and whole seconds.
    let file = fs::File::options().write(true).open(ground.tree().join("file")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let second = read(&*source, "file", ByteRange::new(50_000, 100_000), &version).await;
    let error = second.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_lines_are_a_tree() {
    let base = TempDir::new().unwrap();
    let sum = "0".repeat(32);
    let line = |n: u32| {
        format!(
            "{{\"path\":\"{:03}/{n}\",\"url\":\"https://h/{n}\",\"size\":{n},\"md5\":\"{sum}\"}}\n",
            n % 200
        )
    };
    let spec = write(base.path(), &(0..100_000).map(line).collect::<String>());
    let allowed = ["allow-origin=https://h".to_owned()];
    let source = remote(&format!("manifest:{spec}"), &allowed).await.unwrap();
    assert!(source.traits().lists_attributes);
    assert_eq!(list_all(&*source, "").await.unwrap().0.len(), 200);
    let (all, _) = list_all(&*source, "007").await.unwrap();
    assert_eq!(all.len(), 500);
    let told = all[OsStr::new("70007")].attributes.clone().unwrap();
    assert_eq!(told, source.stat(&rel("007/70007")).await.unwrap());
    assert_eq!(told.size, 70_007);
}
