//! gcp-storage-emulator: buckets of Google in memory. It knows no old generations, does not say which one it sends, lists everything on one
//! page, and lets everybody in.

use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use crate::common::servers::Server;
use crate::ground::{Can, Ground, remote};

pub(crate) struct Gcs {
    pub(crate) server: Server,
    client: reqwest::Client,
}

pub(crate) async fn start() -> Option<Gcs> {
    let server = Server::start("gcs")?;
    drop(rustls::crypto::ring::default_provider().install_default());
    let gcs = Gcs { server, client: reqwest::Client::builder().no_proxy().build().unwrap() };
    // The tree is not all of the bucket.
    for key in [&b"other/x"[..], b"tre", b"tree.x"] {
        gcs.put_key(key, b"other").await;
    }
    Some(gcs)
}

impl Gcs {
    /// Asks for something of a server; what is sent is of the type `kind`.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> reqwest::Response {
        let url = format!("http://127.0.0.1:{}{path}", self.server.port);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.client.request(method, url).body(body.to_vec());
        let answer = request.header("content-type", kind).send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{path}: {status} {:?}", answer.text().await);
        answer
    }

    pub(crate) async fn put_key(&self, key: &[u8], bytes: &[u8]) {
        const PLACE: &str = "/upload/storage/v1/b/bucket/o?uploadType=";
        if bytes.is_empty() {
            // Without any body it fails.
            let name = serde_json::to_string(std::str::from_utf8(key).unwrap()).unwrap();
            let body = format!(
                "--b\r\nContent-Type: application/json\r\n\r\n{{\"name\":{name}}}\r\n--b\r\nContent-Type: text/plain\r\n\r\n\r\n--b--\r\n"
            );
            let kind = "multipart/related; boundary=b";
            self.ask("POST", &format!("{PLACE}multipart"), kind, body.as_bytes()).await;
            return;
        }
        let name = percent_encode(key, NON_ALPHANUMERIC);
        let path = format!("{PLACE}media&name={name}");
        self.ask("POST", &path, "application/octet-stream", bytes).await;
    }

    pub(crate) fn options(port: u16) -> Vec<String> {
        [format!("endpoint=http://127.0.0.1:{port}"), "anonymous=true".to_owned()].into()
    }

    pub(crate) async fn open_at(&self, url: &str) -> Result<Arc<dyn Source>, Error> {
        remote(url, &Self::options(self.server.port)).await
    }
}

fn in_tree(path: &[u8]) -> Vec<u8> {
    [b"tree/", path].concat()
}

#[async_trait]
impl Ground for Gcs {
    fn can(&self) -> Can {
        Can { any_bytes: false, empty_directories: true, plain_http: true }
    }

    async fn put(&self, path: &[u8], bytes: &[u8]) {
        self.put_key(&in_tree(path), bytes).await;
    }

    async fn make_directory(&self, path: &[u8]) {
        self.put_key(&in_tree(&[path, b"/"].concat()), b"").await;
    }

    // It keeps everything in memory.
    async fn put_sparse(&self, _path: &str, _size: u64, _marks: &[(u64, Vec<u8>)]) -> bool {
        false
    }

    async fn remove(&self, path: &[u8]) {
        let key = in_tree(path);
        let key = percent_encode(&key, NON_ALPHANUMERIC);
        self.ask("DELETE", &format!("/storage/v1/b/bucket/o/{key}"), "text/plain", b"").await;
    }

    fn port(&self) -> Option<u16> {
        Some(self.server.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        // Something has to be there.
        self.put_key(b"tree/", b"").await;
        let port = port.unwrap_or(self.server.port);
        remote("gs://bucket/tree", &Self::options(port)).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        None
    }
}
