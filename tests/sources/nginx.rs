//! nginx: HTTP with index pages.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use tempfile::TempDir;

use crate::common::nginx::Nginx;
use crate::common::rel;
use crate::ground::{Can, Ground, remote};
use crate::local;

pub(crate) struct Web {
    nginx: Nginx,
    root: PathBuf,
    _base: TempDir,
}

pub(crate) async fn start() -> Option<Web> {
    let base = TempDir::new().unwrap();
    let root = base.path().join("tree");
    fs::create_dir(&root).unwrap();
    let nginx = Nginx::start(&root, "location /forbidden { deny all; }")?;
    Some(Web { nginx, root, _base: base })
}

#[async_trait]
impl Ground for Web {
    fn can(&self) -> Can {
        Can { any_bytes: true, empty_directories: true, plain_http: true }
    }

    fn directory(&self) -> PathBuf {
        self.root.clone()
    }

    fn port(&self) -> Option<u16> {
        Some(self.nginx.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        let port = port.unwrap_or(self.nginx.port);
        remote(&format!("http://127.0.0.1:{port}/"), &[]).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        local::put(&self.root, b"forbidden", b"secret");
        self.open(None).await.stat(&rel("forbidden")).await.err()
    }
}
