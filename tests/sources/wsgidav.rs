//! wsgidav: WebDAV over a directory, with users.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::core::range::ByteRange;
use lazycopy::error::{Error, Kind};
use lazycopy::source::Source;

use crate::common::servers::Server;
use crate::common::{list_all, read, rel};
use crate::ground::{Can, Ground, remote};
use crate::local;

pub(crate) struct Wsgidav {
    server: Server,
    root: PathBuf,
}

pub(crate) async fn start() -> Option<Wsgidav> {
    let server = Server::start("webdav")?;
    let root = server.files();
    Some(Wsgidav { server, root })
}

impl Wsgidav {
    fn private(&self, user: &str) -> String {
        format!("webdav://{user}127.0.0.1:{}/private", self.server.port)
    }
}

#[async_trait]
impl Ground for Wsgidav {
    fn can(&self) -> Can {
        Can { any_bytes: false, empty_directories: true, plain_http: true }
    }

    fn directory(&self) -> PathBuf {
        self.root.clone()
    }

    fn port(&self) -> Option<u16> {
        Some(self.server.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        let port = port.unwrap_or(self.server.port);
        remote(&format!("dav://127.0.0.1:{port}"), &[]).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        remote(&self.private(""), &[]).await.err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_is_let_in() {
    let Some(ground) = start().await else { return };
    let private = ground.server.directory().join("private");
    local::put(&private, b"d/file", b"content");
    let password = ground.server.directory().join("password");
    fs::write(&password, "hunter2\n").unwrap();
    let password = format!("password=@{}", password.display());
    for (user, options) in [
        ("me:hunter2@", vec![]),
        ("me@", vec![password.clone()]),
        ("", vec!["user=me".to_owned(), password.clone()]),
    ] {
        let source = remote(&ground.private(user), &options).await.unwrap();
        let (all, _) = list_all(&*source, "d").await.unwrap();
        let file = all[OsStr::new("file")].attributes.clone().unwrap();
        let whole = ByteRange::at(0, 7);
        assert_eq!(read(&*source, "d/file", whole, &file.fingerprint).await.unwrap(), b"content");
        assert!(!source.display_name().contains('@'), "{}", source.display_name());
    }
    let error = remote(&ground.private("me:wrong@"), &[]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("401"), "{error}");
    let error = remote(&ground.private("other@"), &[password]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_is_a_source() {
    let Some(ground) = start().await else { return };
    ground.put(b"d/a b", b"content").await;
    let url = format!("webdav://127.0.0.1:{}/d/a%20b", ground.server.port);
    let source = remote(&url, &[]).await.unwrap();
    assert_eq!(source.single_file().unwrap(), "a b");
    let file = source.stat(&rel("a b")).await.unwrap();
    assert_eq!((list_all(&*source, "").await.unwrap().0.len(), file.size), (1, 7));
    let part = ByteRange::new(2, 5);
    assert_eq!(read(&*source, "a b", part, &file.fingerprint).await.unwrap(), b"nte");
    assert_eq!(source.stat(&rel("d")).await.unwrap_err().kind(), Kind::NotFound);
    let nothing = remote(&format!("{url}c"), &[]).await.unwrap_err();
    assert_eq!(nothing.kind(), Kind::NotFound);
}
