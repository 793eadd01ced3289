//! A bucket, or what is below a prefix of its keys, of S3 or a server that speaks its language.
//!
//! Names come from listings, which tell size, time and entity tag; checksums and versions come with HEAD; bytes come from range requests
//! that name the entity tag they want, and the version where one is known. Requests are signed with what the AWS tools would use.
//!
//! # Keys as paths
//! A slash in a key ends a directory's name. A key that ends in `/` is its directory's marker: nothing else is shown of it. Where a key is
//! the name of a directory too (`a` beside `a/b`), the directory is shown. Objects that have no place in a tree (such an `a`, a marker
//! with bytes, an empty name or `..` between two slashes) are counted as refused names and logged; copy them under another key.

mod client;
mod credentials;
mod listing;
mod names;
mod objects;
mod page;
mod settings;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::mpsc;

use self::objects::Bucket;
use self::settings::{OPTIONS, Place};
use super::kinds::{Remote, SourceKind};
use super::{ByteStream, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, Fingerprint};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::Result;

/// `s3://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["s3"],
    example: "s3://bucket/prefix",
    options: OPTIONS,
    display_name: |remote| Place::parse(&remote.url).map(|place| place.display_name()),
    open: |remote| {
        Box::pin(async { Ok(Arc::new(S3Source::open(remote).await?) as Arc<dyn Source>) })
    },
};

/// A source in a bucket.
#[derive(Debug)]
pub struct S3Source {
    display_name: String,
    bucket: Arc<Bucket>,
}

impl S3Source {
    /// Finds the bucket and whether there is one object or a tree, and opens it.
    ///
    /// # Errors
    /// `Invalid` if it is no s3 URL; `NotFound`, `Denied`, `Unreachable`, `Timeout`.
    pub async fn open(remote: Remote) -> Result<Self> {
        let place = Place::parse(&remote.url)?;
        let display_name = place.display_name();
        let bucket = Bucket::open(place, remote.options).await;
        let bucket = Arc::new(bucket.map_err(|error| error.at(&display_name))?);
        Ok(Self { display_name, bucket })
    }
}

#[async_trait]
impl Source for S3Source {
    fn display_name(&self) -> &str {
        &self.display_name
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: true,
            has_modes: false,
            connections: 64,
            refresh: Duration::from_secs(60),
        }
    }

    fn single_file(&self) -> Option<&OsString> {
        self.bucket.single_file()
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        listing::list(&self.bucket, directory, batches)
            .await
            .map_err(|error| error.at(directory.as_path()))
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.bucket.stat(path).await.map_err(|error| error.at(path.as_path()))
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        self.bucket.read(path, range, expected).await.map_err(|error| error.at(path.as_path()))
    }
}
