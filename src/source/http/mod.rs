//! One file, or a tree behind an index, of an HTTP server.
//!
//! Names come from index pages, everything else from HEAD, bytes from range requests that name the version they want. A server
//! that ignores ranges is read once, in order, into a `spool`. Whatever an answer claims is compared with what was asked and
//! what was known, before its first byte goes anywhere.

pub(in crate::source) mod answer;
pub(in crate::source) mod body;
pub(in crate::source) mod client;
pub(in crate::source) mod credentials;
pub(in crate::source) mod index;
pub(in crate::source) mod listing;
pub(in crate::source) mod opening;
pub(in crate::source) mod origin;
mod redirect;
pub(in crate::source) mod site;
pub(in crate::source) mod spelling;
mod spool;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use http::HeaderValue;
use tokio::sync::mpsc;

use self::origin::Origin;
pub use self::site::Places;
use self::spool::Spools;
use super::kinds::{Remote, SourceKind};
use super::options::{OptionSpec, Takes};
use super::{ByteStream, FirstLook, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, Fingerprint};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::Result;

/// `http://` and `https://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["http", "https"],
    example: "http(s)://host/directory/",
    options: &[CA],
    display_name: |remote| HttpSource::display_name_of(&remote.url),
    open: |remote| {
        Box::pin(async { Ok(Arc::new(HttpSource::of(remote).await?) as Arc<dyn Source>) })
    },
};

/// `-S ca=FILE`.
pub(in crate::source) const CA: OptionSpec = OptionSpec {
    name: "ca",
    takes: Takes::Path,
    help: "PEM file with certificates of authorities that vouch for the server [default: those of the system alone]",
};

/// How an HTTP source is read.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// Where spools are written; the system's temporary directory if `None`.
    pub spool_directory: Option<PathBuf>,
    /// The netrc file; `$NETRC`, else `~/.netrc`, if `None`.
    pub netrc: Option<PathBuf>,
    /// Certificates of authorities (PEM) that are believed besides those of the system.
    pub ca: Option<PathBuf>,
    /// The Authorization header, where it comes from neither the URL nor netrc.
    pub authorization: Option<HeaderValue>,
    /// Deadlines and bounds.
    pub limits: Limits,
}

/// Deadlines and bounds of an HTTP source.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the head of an answer.
    pub head_timeout: Duration,
    /// Without a byte of an index page.
    pub index_stall: Duration,
    /// Bytes of an index page.
    pub index_size_bytes: u64,
    /// Entries of a directory.
    pub index_entries: usize,
    /// Without a byte for a spool.
    pub spool_stall: Duration,
    /// Before the first retry of a spool; doubled for the second.
    pub spool_retry: Duration,
    /// That a spool is kept after its last reader.
    pub spool_idle: Duration,
    /// Bytes of one spool.
    pub spool_size_bytes: u64,
    /// Spools at once.
    pub spools: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            index_stall: Duration::from_secs(30),
            index_size_bytes: 256 << 20,
            index_entries: 10_000_000,
            spool_stall: Duration::from_secs(10),
            spool_retry: Duration::from_secs(1),
            spool_idle: Duration::from_secs(60),
            spool_size_bytes: 1 << 40,
            spools: 16,
        }
    }
}

/// A source behind HTTP.
#[derive(Debug)]
pub struct HttpSource {
    display_name: String,
    origin: Arc<Origin>,
    spools: Spools,
}

impl HttpSource {
    /// The name that `url` will have when it is open: without secrets. Asks nobody.
    ///
    /// # Errors
    /// `Invalid` if it is no URL.
    pub fn display_name_of(url: &str) -> Result<String> {
        opening::parse(url).map(|(_, display_name)| display_name)
    }

    async fn of(remote: Remote) -> Result<Self> {
        let ca = remote.options.path(CA.name)?;
        Self::open(&remote.url, HttpOptions { ca, ..HttpOptions::default() }).await
    }

    /// Finds out whether `url` is a file or a tree, and opens it.
    ///
    /// # Errors
    /// `Invalid` if it is no http or https URL or a tree without an index; `NotFound`, `Denied`, `Unreachable`, `Timeout`.
    pub async fn open(url: &str, options: HttpOptions) -> Result<Self> {
        opening::open(url, options).await.map(Self::start)
    }

    /// A source at `origin`, about which nobody needs to be asked any more.
    pub(in crate::source) fn start((origin, display_name): (Origin, String)) -> Self {
        let origin = Arc::new(origin);
        let spools = Spools::start(Arc::clone(&origin));
        Self { display_name, origin, spools }
    }

    /// Files of the server of `url` that are where `places` says. Asks nobody.
    ///
    /// # Errors
    /// As [`HttpSource::display_name_of`]; what is wrong with the certificates in `options`.
    pub async fn placed(url: &str, places: Arc<dyn Places>, options: HttpOptions) -> Result<Self> {
        opening::placed(url, places, options).await.map(Self::start)
    }

    /// The server, for other questions than those of HTTP.
    pub(in crate::source) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// As [`Source::read`] of a range that is not empty; tells also which version the server said that the bytes are of.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub async fn read_and_tell(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<(ByteStream, Fingerprint)> {
        let body = body::read(&self.origin, &self.spools, path, range, expected).await;
        body.map(|body| (body.bytes, body.version)).map_err(|error| error.at(path.as_path()))
    }
}

#[async_trait]
impl Source for HttpSource {
    fn display_name(&self) -> &str {
        &self.display_name
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: false,
            is_remote: true,
            has_modes: false,
            connections: 32,
            refresh: Duration::from_secs(60),
        }
    }

    fn single_file(&self) -> Option<&OsString> {
        self.origin.site.single_file()
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        listing::list(&self.origin, directory, batches)
            .await
            .map_err(|error| error.at(directory.as_path()))
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.origin.stat(path, &self.spools).await.map_err(|error| error.at(path.as_path()))
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
        self.read_and_tell(path, range, expected).await.map(|(bytes, _version)| bytes)
    }

    async fn first_look(&self, path: &RelPath, most: u64) -> Result<Option<FirstLook>> {
        body::first_look(&self.origin, path, most).await.map_err(|error| error.at(path.as_path()))
    }
}
