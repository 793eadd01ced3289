//! azurite: Azure's blobs, with keys and signatures that are checked. It keeps no versions.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use tempfile::NamedTempFile;

use crate::common::azure::{KEY, SAS, secret, url};
use crate::common::servers::Server;
use crate::ground::{Can, Ground, remote};

pub(crate) struct Azurite {
    pub(crate) server: Server,
    client: reqwest::Client,
}

pub(crate) async fn start() -> Option<Azurite> {
    let server = Server::start("azurite")?;
    drop(rustls::crypto::ring::default_provider().install_default());
    let azurite =
        Azurite { server, client: reqwest::Client::builder().no_proxy().build().unwrap() };
    azurite.ask("PUT", b"container", "restype=container&", &[], b"").await;
    // The tree is not all of the container.
    for key in [&b"other/x"[..], b"tre", b"tree.x"] {
        azurite.put_key(key, b"other").await;
    }
    Some(azurite)
}

impl Azurite {
    /// Asks for something about a container, or about a key in it.
    pub(crate) async fn ask(
        &self,
        method: &str,
        place: &[u8],
        query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> reqwest::Response {
        let url = url(self.server.port, place);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.client.request(method, format!("{url}?{query}{SAS}"));
        let mut request = request.body(body.to_vec()).header("content-length", body.len());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{status} {:?}", answer.text().await);
        answer
    }

    pub(crate) async fn put_key(&self, key: &[u8], bytes: &[u8]) {
        let place = [b"container/", key].concat();
        self.ask("PUT", &place, "", &[("x-ms-blob-type", "BlockBlob")], bytes).await;
    }

    pub(crate) fn endpoint(port: u16) -> String {
        format!("endpoint=http://127.0.0.1:{port}/devstoreaccount1")
    }

    pub(crate) fn options(port: u16) -> Vec<String> {
        static SECRET: OnceLock<NamedTempFile> = OnceLock::new();
        let secret = SECRET.get_or_init(|| secret(KEY));
        [Self::endpoint(port), format!("account-key=@{}", secret.path().display())].into()
    }

    pub(crate) async fn open_at(&self, url: &str) -> Result<Arc<dyn Source>, Error> {
        remote(url, &Self::options(self.server.port)).await
    }
}

fn in_tree(path: &[u8]) -> Vec<u8> {
    [b"tree/", path].concat()
}

fn in_container(path: &[u8]) -> Vec<u8> {
    [b"container/tree/", path].concat()
}

#[async_trait]
impl Ground for Azurite {
    fn can(&self) -> Can {
        Can { any_bytes: false, empty_directories: true, plain_http: true }
    }

    // It writes a slash instead of a backslash, as Azure does.
    fn can_hold(&self, name: &[u8]) -> bool {
        !name.contains(&b'\\')
    }

    async fn put(&self, path: &[u8], bytes: &[u8]) {
        self.put_key(&in_tree(path), bytes).await;
    }

    async fn make_directory(&self, path: &[u8]) {
        self.put_key(&in_tree(&[path, b"/"].concat()), b"").await;
    }

    /// Of blocks: the same zeros again and again.
    async fn put_sparse(&self, path: &str, size: u64, marks: &[(u64, Vec<u8>)]) -> bool {
        const ZEROS: u64 = 8 << 20;
        let key = in_container(path.as_bytes());
        let put = async |id: &str, bytes: &[u8]| {
            self.ask("PUT", &key, &format!("comp=block&blockid={id}&"), &[], bytes).await;
        };
        put("zeros000", &vec![0; usize::try_from(ZEROS).unwrap()]).await;
        let (mut list, mut at) = (String::new(), 0);
        let ends = marks.iter().map(|(offset, bytes)| (*offset, bytes.as_slice()));
        for (number, (offset, bytes)) in ends.chain([(size, &b""[..])]).enumerate() {
            list += &"<Latest>zeros000</Latest>"
                .repeat(usize::try_from((offset - at) / ZEROS).unwrap());
            let rest = usize::try_from((offset - at) % ZEROS).unwrap();
            let block = [vec![0; rest], bytes.to_vec()].concat();
            if !block.is_empty() {
                let id = format!("block{number:03}");
                put(&id, &block).await;
                list += &format!("<Latest>{id}</Latest>");
            }
            at = offset + bytes.len() as u64;
        }
        let list = format!("<?xml version=\"1.0\"?><BlockList>{list}</BlockList>");
        self.ask("PUT", &key, "comp=blocklist&", &[], list.as_bytes()).await;
        true
    }

    async fn remove(&self, path: &[u8]) {
        self.ask("DELETE", &in_container(path), "", &[], b"").await;
    }

    fn port(&self) -> Option<u16> {
        Some(self.server.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        // Something has to be there.
        self.put_key(b"tree/", b"").await;
        let port = port.unwrap_or(self.server.port);
        remote("az://container/tree", &Self::options(port)).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        let wrong = secret("d3Jvbmc=");
        let key = format!("account-key=@{}", wrong.path().display());
        let options = [Self::endpoint(self.server.port), key];
        remote("az://container/tree", &options).await.err()
    }
}
