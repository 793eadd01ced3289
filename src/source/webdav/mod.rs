//! A tree, or one file, of a WebDAV server (RFC 4918).
//!
//! Names and attributes come from PROPFIND, bytes from GET as an HTTP source reads them: with its checks of versions, lengths and redirects,
//! its credentials, its spools for servers without ranges. Where PROPFIND turns out to name versions that GET does not know, versions come
//! from HEAD.

mod access;
mod listing;
mod multistatus;
mod properties;
mod propfind;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use self::access::{OPTIONS, Place};
use super::http::origin::Origin;
use super::http::site::Site;
use super::http::{self, HttpOptions, HttpSource, Limits};
use super::kinds::{Remote, SourceKind};
use super::{ByteStream, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, EntryKind, Fingerprint};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicBool, Ordering};

/// `webdav://`, `webdavs://`, and the same as `dav://` and `davs://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["webdav", "webdavs", "dav", "davs"],
    example: "webdav(s)://host/directory/",
    options: OPTIONS,
    display_name: |remote| Place::parse(&remote.url).map(|place| place.display_name),
    open: |remote| {
        Box::pin(async { Ok(Arc::new(WebdavSource::open(remote).await?) as Arc<dyn Source>) })
    },
};

/// Bytes of a listing: 10 000 000 entries of which a wordy server says 1.6 kB each.
const LISTING_SIZE_BYTES: u64 = 16 << 30;

/// A source behind WebDAV.
#[derive(Debug)]
pub struct WebdavSource {
    display_name: String,
    http: HttpSource,
    /// The server's PROPFIND and GET name versions in different ways. Relaxed: every answer is checked, this only says whom to ask.
    versions_by_head: AtomicBool,
}

impl WebdavSource {
    /// Finds out whether there is a file or a tree, and opens it.
    ///
    /// # Errors
    /// `Invalid` if it is no WebDAV URL or its server speaks no WebDAV; `NotFound`, `Denied`, `Unreachable`, `Timeout`.
    pub async fn open(remote: Remote) -> Result<Self> {
        let limits = Limits { index_size_bytes: LISTING_SIZE_BYTES, ..Limits::default() };
        Self::open_within(remote, limits).await
    }

    /// The same with other deadlines and bounds.
    ///
    /// # Errors
    /// As [`WebdavSource::open`].
    pub async fn open_within(remote: Remote, limits: Limits) -> Result<Self> {
        let display_name = Place::parse(&remote.url)?.display_name;
        let gathered = spawn_blocking(move || access::gather(&remote)).await;
        let (url, options) = gathered
            .map_err(|lost| Error::new(Kind::Io, "open source").caused_by(lost))?
            .map_err(|error| error.at(&display_name))?;
        let origin = find(url, HttpOptions { limits, ..options }).await;
        let origin = origin.map_err(|error| error.at(&display_name))?;
        let http = HttpSource::start((origin, display_name.clone()));
        Ok(Self { http, display_name, versions_by_head: AtomicBool::new(false) })
    }

    /// What PROPFIND tells of `path`; `None` if that is no version of a file that GET knows.
    async fn look(&self, path: &RelPath) -> Result<Option<Attributes>> {
        let origin = self.http.origin();
        let url = match path.is_root() {
            true => origin.site.directory_url(path),
            false => origin.site.file_url(path)?,
        };
        let attributes = propfind::look("stat", origin, url).await?.attributes()?;
        let asks_head = self.versions_by_head.load(Ordering::Relaxed);
        Ok(attributes.filter(|told| !asks_head || told.kind == EntryKind::Directory))
    }

    /// Whether GET denies a version that PROPFIND still tells.
    async fn is_denied_version(&self, path: &RelPath, expected: &Fingerprint) -> bool {
        let told = self.look(path).await;
        matches!(told, Ok(Some(told)) if told.fingerprint == *expected)
    }
}

/// Learns what is at `url`.
async fn find(url: url::Url, options: HttpOptions) -> Result<Origin> {
    let (url, mut origin) = http::opening::origin(url, options).await?;
    let root = propfind::look("open source", &origin, url.clone()).await?;
    let url = if http::opening::is_upgrade(&url, &root.url) { root.url.clone() } else { url };
    origin.site = match root.kind() {
        EntryKind::Directory => Site::tree(url),
        _ => Site::single(url)?,
    };
    Ok(origin)
}

#[async_trait]
impl Source for WebdavSource {
    fn display_name(&self) -> &str {
        &self.display_name
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: true,
            has_modes: false,
            connections: 32,
            refresh: Duration::from_secs(60),
        }
    }

    fn single_file(&self) -> Option<&OsString> {
        self.http.single_file()
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        if self.single_file().is_some() {
            return self.http.list(directory, batches).await;
        }
        let tells_versions = !self.versions_by_head.load(Ordering::Relaxed);
        listing::list(self.http.origin(), directory, tells_versions, batches)
            .await
            .map_err(|error| error.at(directory.as_path()))
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        if path.is_root() && self.single_file().is_some() {
            return self.http.stat(path).await;
        }
        match self.look(path).await.map_err(|error| error.at(path.as_path()))? {
            Some(attributes) => Ok(attributes),
            // What GET will say is told by HEAD.
            None => self.http.stat(path).await,
        }
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        let read = self.http.read(path, range, expected).await;
        if matches!(&read, Err(error) if error.kind() == Kind::Stale)
            && self.is_denied_version(path, expected).await
        {
            tracing::warn!(
                source = self.display_name,
                "the server's PROPFIND and GET tell different versions of {path}: HEAD is asked from now on"
            );
            self.versions_by_head.store(true, Ordering::Relaxed);
        }
        read
    }
}
