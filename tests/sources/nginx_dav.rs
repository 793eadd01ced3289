//! nginx with its WebDAV module: PROPFIND tells no entity tags, GET does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use tempfile::TempDir;

use crate::common::nginx::Nginx;
use crate::common::{rel, skip};
use crate::ground::{Can, Ground, remote};
use crate::local;

const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so";

pub(crate) struct Dav {
    pub(crate) nginx: Nginx,
    pub(crate) root: PathBuf,
    _base: TempDir,
}

pub(crate) async fn start() -> Option<Dav> {
    if !Path::new(MODULE).exists() {
        skip("nginx's WebDAV module");
        return None;
    }
    let base = TempDir::new().unwrap();
    let root = base.path().join("tree");
    fs::create_dir(&root).unwrap();
    let server = "dav_ext_methods PROPFIND OPTIONS;\nlocation /forbidden { deny all; }";
    let nginx = Nginx::start(&root, server)?;
    Some(Dav { nginx, root, _base: base })
}

impl Dav {
    pub(crate) fn url(&self, port: u16) -> String {
        format!("webdav://127.0.0.1:{port}/")
    }
}

#[async_trait]
impl Ground for Dav {
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
        remote(&self.url(port.unwrap_or(self.nginx.port)), &[]).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        local::put(&self.root, b"forbidden", b"secret");
        self.open(None).await.stat(&rel("forbidden")).await.err()
    }
}
