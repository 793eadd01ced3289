//! s3s-fs: S3 over a directory, with signatures that are checked.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use tempfile::NamedTempFile;

use crate::common::servers::Server;
use crate::ground::{Can, Ground, remote};

pub(crate) struct S3sFs {
    server: Server,
    bucket: PathBuf,
    secret: NamedTempFile,
}

pub(crate) async fn start() -> Option<S3sFs> {
    let server = Server::start("s3s-fs")?;
    let bucket = server.files().join("bucket");
    fs::create_dir(&bucket).unwrap();
    let secret = NamedTempFile::new().unwrap();
    fs::write(secret.path(), "SK\n").unwrap();
    Some(S3sFs { server, bucket, secret })
}

impl S3sFs {
    async fn open_with(&self, port: u16, secret: &NamedTempFile) -> Result<Arc<dyn Source>, Error> {
        let options = [
            format!("endpoint=http://127.0.0.1:{port}"),
            "region=us-east-1".to_owned(),
            "access-key-id=AK".to_owned(),
            format!("secret-access-key=@{}", secret.path().display()),
        ];
        remote("s3://bucket", &options).await
    }
}

#[async_trait]
impl Ground for S3sFs {
    fn can(&self) -> Can {
        Can { any_bytes: false, empty_directories: false, plain_http: true }
    }

    async fn make_directory(&self, _path: &[u8]) {}

    // It reads all of a file to answer for any part of it.
    async fn put_sparse(&self, _path: &str, _size: u64, _marks: &[(u64, Vec<u8>)]) -> bool {
        false
    }

    fn directory(&self) -> PathBuf {
        self.bucket.clone()
    }

    fn port(&self) -> Option<u16> {
        Some(self.server.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        self.open_with(port.unwrap_or(self.server.port), &self.secret).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        let wrong = NamedTempFile::new().unwrap();
        fs::write(wrong.path(), "wrong").unwrap();
        self.open_with(self.server.port, &wrong).await.err()
    }
}
