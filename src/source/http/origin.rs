//! Questions about single entries: what is it, how long, which version.

use std::path::PathBuf;

use http::header::{ACCEPT_RANGES, HeaderMap};
use http::{Method, StatusCode};
use url::Url;

use super::Limits;
use super::answer::{
    ContentRange, Version, check_identity, checksum, content_length, possible_size, status_error,
    text,
};
use super::client::{Answer, Client, first_bytes_headers};
use super::site::Site;
use super::spool::{Joined, Spools};
use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicBool, Ordering};

/// The server, the place of the source on it, and what was learnt about it.
#[derive(Debug)]
pub(in crate::source) struct Origin {
    pub(in crate::source) client: Client,
    pub(in crate::source) site: Site,
    pub(in crate::source) limits: Limits,
    pub(super) spool_directory: PathBuf,
    /// Nothing says yet that the server keeps to ranges, or the last answer ignored one. Relaxed: a hint that decides who asks
    /// first; every answer is checked.
    doubts_ranges: AtomicBool,
}

/// What the server says about one URL.
#[derive(Debug)]
pub(super) enum Head {
    /// A directory.
    Directory,
    /// A file of known size.
    File { version: Version, size: u64, headers: HeaderMap },
    /// A file whose length only its body tells; the body is on its way.
    Unsized(Box<Answer>),
}

impl Origin {
    pub(super) fn new(
        client: Client,
        site: Site,
        limits: Limits,
        spool_directory: PathBuf,
    ) -> Self {
        Self { client, site, limits, spool_directory, doubts_ranges: AtomicBool::new(true) }
    }

    pub(super) fn doubts_ranges(&self) -> bool {
        self.doubts_ranges.load(Ordering::Relaxed)
    }

    pub(in crate::source) fn keeps_ranges(&self, keeps: bool) {
        self.doubts_ranges.store(!keeps, Ordering::Relaxed);
    }

    /// Asks for the body of the file `path`.
    ///
    /// # Errors
    /// As [`Client::send`]; `Stale` if it is a directory now. Any status is an answer.
    pub(super) async fn get(
        &self,
        op: &'static str,
        path: &RelPath,
        headers: HeaderMap,
    ) -> Result<Answer> {
        let url = self.site.file_url(path)?;
        let answer = self.client.send(op, Method::GET, url, headers).await?;
        if answer.is_directory {
            return Err(Error::new(Kind::Stale, op).because("it is a directory now"));
        }
        Ok(answer)
    }

    /// See [`crate::source::Source::stat`].
    pub(super) async fn stat(&self, path: &RelPath, spools: &Spools) -> Result<Attributes> {
        if path.is_root() {
            return match self.site.single_file() {
                Some(_) => Ok(directory_attributes(None)),
                None => self.stat_root().await,
            };
        }
        let asked = match self.head(self.site.file_url(path)?).await {
            // Not every server redirects to a directory that is named without its slash.
            Err(error) if error.kind() == Kind::NotFound && self.has_directory(path).await? => {
                return Ok(directory_attributes(None));
            }
            asked => asked?,
        };
        match asked {
            Head::Directory => Ok(directory_attributes(None)),
            Head::File { version, size, headers } => {
                Ok(Attributes { checksum: checksum(&headers), ..file_attributes(&version, size) })
            }
            Head::Unsized(answer) => match spools.join(path, None, Some(*answer)).await? {
                Joined::Spooled(spool) => {
                    let size = spool.whole_size().await?;
                    Ok(file_attributes(&spool.version, size))
                }
                Joined::RangesWork | Joined::Absent => Err(sizeless()),
            },
        }
    }

    async fn stat_root(&self) -> Result<Attributes> {
        let answer = self.ask_for_directory(&RelPath::root()).await?;
        let headers = answer.response.headers();
        if !answer.response.status().is_success() {
            return Err(status_error(answer.response.status(), headers, "stat"));
        }
        Ok(directory_attributes(Some(&Version::of(headers, None))))
    }

    /// Whether `path` is a directory of a tree.
    async fn has_directory(&self, path: &RelPath) -> Result<bool> {
        if self.site.single_file().is_some() {
            return Ok(false);
        }
        let answer = self.ask_for_directory(path).await?;
        let status = answer.response.status();
        match status_error(status, answer.response.headers(), "stat") {
            _ if status.is_success() => Ok(true),
            error if error.is_transient() => Err(error),
            _ => Ok(false),
        }
    }

    /// Asks for the head of a directory's page.
    async fn ask_for_directory(&self, path: &RelPath) -> Result<Answer> {
        let url = self.site.directory_url(path);
        let answer = self.client.send("stat", Method::HEAD, url.clone(), HeaderMap::new()).await?;
        match is_without_head(&answer) {
            true => self.client.send("stat", Method::GET, url, HeaderMap::new()).await,
            false => Ok(answer),
        }
    }

    /// Asks what `url` is, by HEAD; where that does not do, by asking for the first byte.
    ///
    /// # Errors
    /// As [`crate::source::Source::stat`].
    pub(super) async fn head(&self, url: Url) -> Result<Head> {
        let answer = self.client.send("stat", Method::HEAD, url.clone(), HeaderMap::new()).await?;
        if answer.is_directory {
            return Ok(Head::Directory);
        }
        let status = answer.response.status();
        let headers = answer.response.headers();
        if !status.is_success() && !is_without_head(&answer) {
            return Err(status_error(status, headers, "stat"));
        }
        if status == StatusCode::OK {
            check_identity(headers, "stat")?;
            if text(headers, &ACCEPT_RANGES).is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"))
            {
                self.keeps_ranges(true);
            }
            // A length of 0 is what some servers say of bodies that they have yet to make.
            if let Some(size) = content_length(headers)?.filter(|size| *size > 0) {
                let version = Version::of(headers, Some(size));
                return Ok(Head::File { version, size, headers: headers.clone() });
            }
        }
        self.ask_for_first_byte(url).await
    }

    async fn ask_for_first_byte(&self, url: Url) -> Result<Head> {
        let answer = self.client.send("stat", Method::GET, url, first_bytes_headers(1)).await?;
        if answer.is_directory {
            return Ok(Head::Directory);
        }
        let headers = answer.response.headers();
        let (size, headers) = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                let total = ContentRange::of(headers).and_then(|range| range.total);
                // Checksums in this answer are about one byte.
                (possible_size(total.ok_or_else(sizeless)?)?, HeaderMap::new())
            }
            StatusCode::OK => {
                check_identity(headers, "stat")?;
                match content_length(headers)? {
                    Some(size) => (size, headers.clone()),
                    None => return Ok(Head::Unsized(Box::new(answer))),
                }
            }
            status => return Err(status_error(status, headers, "stat")),
        };
        let version = Version::of(answer.response.headers(), Some(size));
        Ok(Head::File { version, size, headers })
    }
}

/// Whether the server, or the signature in the URL, has no HEAD.
fn is_without_head(answer: &Answer) -> bool {
    match answer.response.status().as_u16() {
        405 | 501 => true,
        403 => answer.url.query().is_some(),
        _ => false,
    }
}

fn sizeless() -> Error {
    Error::new(Kind::NotSupported, "stat").because("the server does not tell the file's size")
}

pub(in crate::source) fn file_attributes(version: &Version, size: u64) -> Attributes {
    Attributes {
        modified: version.modified(),
        is_settled: version.is_settled(),
        ..Attributes::bare(EntryKind::File, version.fingerprint(size))
    }
}

pub(in crate::source) fn directory_attributes(version: Option<&Version>) -> Attributes {
    Attributes {
        modified: version.and_then(Version::modified),
        link_count: 2,
        ..Attributes::bare(
            EntryKind::Directory,
            Fingerprint { size: 0, validator: Validator::SizeOnly },
        )
    }
}
