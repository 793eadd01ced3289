//! OpenSSH's server: SFTP.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;

use crate::common::servers::Server;
use crate::common::sshd::options;
use crate::ground::{Can, Ground, remote};

pub(crate) struct Sshd {
    pub(crate) server: Server,
}

pub(crate) async fn start() -> Option<Sshd> {
    let sshd = Sshd { server: Server::start("sshd")? };
    fs::create_dir(sshd.root()).unwrap();
    Some(sshd)
}

impl Sshd {
    /// The tree.
    pub(crate) fn root(&self) -> PathBuf {
        self.server.files().join("tr ee")
    }

    /// The URL of `path` in the tree, at a port.
    pub(crate) fn url(&self, port: u16, path: &str) -> String {
        let root = self.root();
        format!("sftp://127.0.0.1:{port}{}{path}", root.to_str().unwrap().replace(' ', "%20"))
    }

    pub(crate) async fn open_at(
        &self,
        url: &str,
        options: &[String],
    ) -> Result<Arc<dyn Source>, Error> {
        remote(url, options).await
    }
}

#[async_trait]
impl Ground for Sshd {
    fn can(&self) -> Can {
        Can { any_bytes: true, empty_directories: true, plain_http: false }
    }

    fn directory(&self) -> PathBuf {
        self.root()
    }

    fn port(&self) -> Option<u16> {
        Some(self.server.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        let url = self.url(port.unwrap_or(self.server.port), "");
        self.open_at(&url, &options(&self.server)).await.unwrap()
    }

    // Root may read everything, but not everybody is root.
    async fn forbidden(&self) -> Option<Error> {
        let mut options = options(&self.server);
        options[0] = format!("identity={}", self.server.directory().join("host_key").display());
        self.open_at(&self.url(self.server.port, ""), &options).await.err()
    }
}
