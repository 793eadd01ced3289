//! moto: S3 with everything, in memory.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tempfile::NamedTempFile;

use crate::common::s3::SIGNATURE;
use crate::common::servers::Server;
use crate::ground::{Can, Ground, remote};

const IN_KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

pub(crate) struct Moto {
    pub(crate) server: Server,
    client: reqwest::Client,
}

pub(crate) async fn start() -> Option<Moto> {
    let server = Server::start("moto")?;
    drop(rustls::crypto::ring::default_provider().install_default());
    let moto = Moto { server, client: reqwest::Client::builder().no_proxy().build().unwrap() };
    moto.ask("PUT", b"", "", &[], b"").await;
    // The tree is not all of the bucket.
    moto.ask("PUT", b"other/x", "", &[], b"other").await;
    moto.ask("PUT", b"tre", "", &[], b"other").await;
    moto.ask("PUT", b"tree.x", "", &[], b"other").await;
    Some(moto)
}

impl Moto {
    /// Asks for something about a key of the bucket.
    pub(crate) async fn ask(
        &self,
        method: &str,
        key: &[u8],
        query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> reqwest::Response {
        let key = percent_encode(key, IN_KEY);
        let url = format!("http://127.0.0.1:{}/bucket/{key}{query}", self.server.port);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.client.request(method, url).body(body.to_vec());
        let mut request = request.header("authorization", SIGNATURE);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{status} {:?}", answer.text().await);
        answer
    }

    pub(crate) fn options(port: u16) -> Vec<String> {
        static SECRET: OnceLock<NamedTempFile> = OnceLock::new();
        let secret = SECRET.get_or_init(|| {
            let file = NamedTempFile::new().unwrap();
            std::fs::write(file.path(), "SK\n").unwrap();
            file
        });
        [
            format!("endpoint=http://127.0.0.1:{port}"),
            "region=us-east-1".to_owned(),
            "access-key-id=AK".to_owned(),
            format!("secret-access-key=@{}", secret.path().display()),
        ]
        .into()
    }

    pub(crate) async fn open_at(&self, url: &str) -> Result<Arc<dyn Source>, Error> {
        remote(url, &Self::options(self.server.port)).await
    }
}

fn in_tree(path: &[u8]) -> Vec<u8> {
    [b"tree/", path].concat()
}

#[async_trait]
impl Ground for Moto {
    fn can(&self) -> Can {
        Can { any_bytes: false, empty_directories: true, plain_http: true }
    }

    async fn put(&self, path: &[u8], bytes: &[u8]) {
        self.ask("PUT", &in_tree(path), "", &[], bytes).await;
    }

    async fn make_directory(&self, path: &[u8]) {
        self.ask("PUT", &in_tree(&[path, b"/"].concat()), "", &[], b"").await;
    }

    // It keeps everything in memory.
    async fn put_sparse(&self, _path: &str, _size: u64, _marks: &[(u64, Vec<u8>)]) -> bool {
        false
    }

    async fn remove(&self, path: &[u8]) {
        self.ask("DELETE", &in_tree(path), "", &[], b"").await;
    }

    fn port(&self) -> Option<u16> {
        Some(self.server.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        // Something has to be there.
        self.ask("PUT", b"tree/", "", &[], b"").await;
        let port = port.unwrap_or(self.server.port);
        remote("s3://bucket/tree", &Self::options(port)).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        None
    }
}
