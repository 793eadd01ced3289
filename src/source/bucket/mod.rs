//! What all buckets have in common: keys as paths, the walk over pages of a listing, objects and their ranges. What a service calls and does
//! in its own way is its [`Dialect`].
//!
//! Names come from listings, bytes from range requests that name the version they want. Whatever an answer claims is compared with what was
//! asked and what was known, before its first byte goes anywhere.
//!
//! # Keys as paths
//! A slash in a key ends a directory's name. A key that ends in `/` is its directory's marker: nothing else is shown of it. Where a key is
//! the name of a directory too (`a` beside `a/b`), the directory is shown. Objects that have no place in a tree (such an `a`, a marker
//! with bytes, an empty name or `..` between two slashes) are counted as refused names and logged; copy them under another key.

pub(in crate::source) mod client;
mod listing;
mod machine;
mod names;
mod objects;
pub(in crate::source) mod settings;
pub(in crate::source) mod xml;

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::stream;
use http::HeaderMap;
use reqwest::Response;
use tokio::sync::mpsc;

use self::objects::Bucket;
use super::{ByteStream, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Timestamp, Validator};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::Result;

pub(in crate::source) use self::machine::machine;
pub(in crate::source) use self::objects::attributes_of;

/// One bucket, in the words of its service. A key is as it is: encoding it is the dialect's.
#[async_trait]
pub(in crate::source) trait Dialect: fmt::Debug + Send + Sync {
    /// Whether any key begins with `prefix`: the first question, which may find out where the bucket really is.
    async fn look(&mut self, prefix: &str) -> Result<bool> {
        self.has_any("open source", prefix).await
    }

    /// Whether any key begins with `prefix`.
    async fn has_any(&self, op: &'static str, prefix: &str) -> Result<bool>;

    /// What is directly below `prefix`: the page that begins at `token`, or the first one.
    async fn page(&self, op: &'static str, prefix: &str, token: Option<&str>) -> Result<Page>;

    /// What has the name `key`; `None` if nothing has.
    async fn head(&self, op: &'static str, key: &str) -> Result<Option<Found>>;

    /// Asks for `range` of the version `expected`, which has the name `version` where that is known. An answer is a success; its ETag is the
    /// one that fingerprints have.
    async fn get(
        &self,
        op: &'static str,
        key: &str,
        range: ByteRange,
        expected: &Fingerprint,
        version: Option<&str>,
    ) -> Result<Response>;

    /// The name by which the version of an answer can be asked for when there is a newer one; its ETag alone does not do.
    fn version_name(&self, _answer: &HeaderMap) -> Option<String> {
        None
    }
}

/// What has a name in a bucket.
#[derive(Debug)]
pub(in crate::source) enum Found {
    Object {
        attributes: Box<Attributes>,
        /// See [`Dialect::version_name`].
        version: Option<String>,
    },
    /// Some services keep directories as such.
    Directory,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(in crate::source) struct Page {
    /// In the order of keys.
    pub(in crate::source) items: Vec<Item>,
    /// Where the next page begins.
    pub(in crate::source) next: Option<String>,
}

/// An object of a page.
#[derive(Debug, Default)]
pub(in crate::source) struct Object {
    pub(in crate::source) key: String,
    pub(in crate::source) size: Option<u64>,
    /// If the listing tells enough to recognise its version.
    pub(in crate::source) attributes: Option<Attributes>,
}

impl Object {
    /// An object as a listing has it.
    pub(in crate::source) fn listed(
        key: String,
        size: Option<u64>,
        etag: Option<&str>,
        modified: Option<SystemTime>,
    ) -> Self {
        let attributes = || {
            let etag = etag.map(str::trim).filter(|tag| !tag.is_empty())?;
            let etag = if etag.ends_with('"') { etag.to_owned() } else { format!("\"{etag}\"") };
            let size = size.filter(|size| i64::try_from(*size).is_ok())?;
            let fingerprint = Fingerprint { size, validator: Validator::ETag(etag) };
            Some(Attributes {
                // To the second, as HEAD tells it.
                modified: Some(Timestamp { nanos: 0, ..Timestamp::from(modified?) }),
                ..Attributes::bare(EntryKind::File, fingerprint)
            })
        };
        Self { attributes: attributes(), key, size }
    }
}

/// One thing of a page.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most of a page are objects")]
pub(in crate::source) enum Item {
    Object(Object),
    /// Keys that go on after this one, which ends in the delimiter.
    Prefix(String),
}

impl Item {
    pub(in crate::source) fn key(&self) -> &str {
        match self {
            Self::Object(object) => &object.key,
            Self::Prefix(prefix) => prefix,
        }
    }
}

/// A source in a bucket.
#[derive(Debug)]
pub(in crate::source) struct BucketSource {
    display_name: String,
    bucket: Bucket,
}

impl BucketSource {
    /// Finds out whether `key` is one object or a tree of them, and opens it.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable`, `Timeout`.
    pub(in crate::source) async fn open(
        display_name: String,
        key: &str,
        dialect: Box<dyn Dialect>,
    ) -> Result<Arc<dyn Source>> {
        let bucket = Bucket::open(dialect, key).await;
        let bucket = bucket.map_err(|error| error.at(&display_name))?;
        Ok(Arc::new(Self { display_name, bucket }))
    }
}

#[async_trait]
impl Source for BucketSource {
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
