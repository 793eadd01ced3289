//! What a law needs of a server.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use lazycopy::source::kinds::Remote;
use lazycopy::source::options::SourceOptions;

use crate::local;

/// What sources may differ in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Can {
    /// Names are bytes, not only UTF-8.
    pub(crate) any_bytes: bool,
    /// There are directories without anything in them.
    pub(crate) empty_directories: bool,
    /// Answers are HTTP in the clear, so that a wire can falsify them.
    pub(crate) plain_http: bool,
}

/// A tree on a server; paths have no slash at their beginning.
#[async_trait]
pub(crate) trait Ground: Send + Sync {
    fn can(&self) -> Can;

    /// Whether there can be such a name.
    fn can_hold(&self, _name: &[u8]) -> bool {
        true
    }

    /// The directory of this machine that is the tree; where there is none, the ground itself has all that follows here.
    fn directory(&self) -> PathBuf {
        panic!("the tree is no directory of this machine")
    }

    /// Puts a file there, or replaces it at once by another.
    async fn put(&self, path: &[u8], bytes: &[u8]) {
        local::put(&self.directory(), path, bytes);
    }

    /// Makes an empty directory, where there are such.
    async fn make_directory(&self, path: &[u8]) {
        fs::create_dir_all(self.directory().join(OsStr::from_bytes(path))).unwrap();
    }

    /// Puts a file of zeros there that has `marks` at these offsets; whether the server can.
    async fn put_sparse(&self, path: &str, size: u64, marks: &[(u64, Vec<u8>)]) -> bool {
        local::put_sparse(&self.directory(), path, size, marks);
        true
    }

    async fn remove(&self, path: &[u8]) {
        fs::remove_file(self.directory().join(OsStr::from_bytes(path))).unwrap();
    }

    /// The port of the server, if there is one.
    fn port(&self) -> Option<u16>;

    /// Opens the tree, at the server's own port or at that of a wire to it.
    async fn open(&self, port: Option<u16>) -> Arc<dyn Source>;

    /// What is said to somebody who may not have it; `None` if nothing can be forbidden here.
    async fn forbidden(&self) -> Option<Error>;
}

/// Opens `url` as the program does.
pub(crate) async fn remote(url: &str, options: &[String]) -> Result<Arc<dyn Source>, Error> {
    Remote::new(url, SourceOptions::parse(options)?)?.open().await
}
