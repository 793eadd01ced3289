//! Questions about single objects, and their bytes. Content-Encoding says nothing of these: it is kept with an object as its writer set it, and
//! the bytes are sent as they are.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use tokio::task::spawn_blocking;

use super::client::{Ask, Client, Refusal, page_text};
use super::page::Page;
use super::settings::{Place, Settings};
use crate::core::attributes::{Attributes, Fingerprint, Validator};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::error::{Error, Kind, Result};
use crate::source::ByteStream;
use crate::source::http::answer::{Version, checksum, content_length, stale};
use crate::source::http::body::{check_part, exactly};
use crate::source::http::client::range_headers;
use crate::source::http::origin::{directory_attributes, file_attributes};
use crate::source::options::SourceOptions;

/// Directories of which it is remembered which objects have the name of a directory; of more it is asked each time.
const REMEMBERED: usize = 100_000;
/// Files of which the version is remembered; of more, reads rely on the entity tag alone.
const VERSIONS: usize = 100_000;

/// The name of a version, for the entity tag with which it came.
#[derive(Debug)]
struct Known {
    etag: String,
    version: String,
}

/// A bucket, seen from the source's root.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) client: Client,
    /// What all keys of the tree begin with: nothing, or something that ends in a slash. The key itself of a single object.
    prefix: String,
    single: Option<OsString>,
    /// The objects in each listed directory that have the name of a directory.
    shadowed: Table<RelPath, Arc<BTreeSet<OsString>>>,
    versions: Table<RelPath, Arc<Known>>,
}

impl Bucket {
    /// Finds the bucket's region, and whether there is an object or a tree.
    pub(super) async fn open(place: Place, options: SourceOptions) -> Result<Self> {
        let bucket = place.bucket.clone();
        let (place, client) = spawn_blocking(move || {
            let settings = Settings::gather(&place, &options)?;
            Client::new(bucket, settings).map(|client| (place, client))
        })
        .await
        .map_err(|lost| Error::new(Kind::Io, "open source").caused_by(lost))??;
        let mut opened = Self {
            client,
            prefix: place.prefix.clone(),
            single: None,
            shadowed: Table::default(),
            versions: Table::default(),
        };
        let key = place.prefix.as_str();
        let directory = match key {
            "" => String::new(),
            key if key.ends_with('/') => key.to_owned(),
            key => format!("{key}/"),
        };
        let listed = opened.look(&directory).await;
        match listed {
            Ok(true) => {}
            // A bucket may be empty.
            Ok(false) if directory.is_empty() => {}
            // Who may not list may still read an object.
            listed => {
                let may_be_object = !key.is_empty() && !key.ends_with('/');
                let is_object = may_be_object && opened.head("open source", key).await?.is_some();
                if is_object {
                    let name = OsString::from(key.rsplit('/').next().unwrap_or(key));
                    RelPath::check_name(&name)?;
                    opened.single = Some(name);
                    return Ok(opened);
                }
                listed?;
                return Err(Error::new(Kind::NotFound, "open source")
                    .because("no object has this key, or one below it"));
            }
        }
        opened.prefix = directory;
        Ok(opened)
    }

    /// Whether there is anything below `prefix`; the first question, which may lead to another region.
    async fn look(&mut self, prefix: &str) -> Result<bool> {
        let query = first_page(prefix);
        let ask = || Ask {
            op: "open source",
            method: Method::GET,
            key: "",
            query: &query,
            headers: HeaderMap::new(),
        };
        let answer = match self.client.send_or_region(ask()).await {
            Err(Refusal { region: Some(region), error }) if error.kind() != Kind::NotFound => {
                let elsewhere = self.client.in_region(&region)?;
                let answer = elsewhere.send(ask()).await;
                self.client = elsewhere;
                answer
            }
            answer => answer.map_err(|refusal| refusal.error),
        };
        let page = Page::parse(&page_text("open source", answer?).await?)?;
        Ok(!page.is_empty())
    }

    pub(super) fn single_file(&self) -> Option<&OsString> {
        self.single.as_ref()
    }

    /// The key of `path` taken as an object.
    ///
    /// # Errors
    /// `NotFound` if there can be no such key.
    fn key(&self, path: &RelPath) -> Result<String> {
        let not_found = || Error::new(Kind::NotFound, "find").at(path.as_path());
        match &self.single {
            Some(name) if path.as_path().as_os_str() == name.as_os_str() => Ok(self.prefix.clone()),
            Some(_) => Err(not_found()),
            // Keys are UTF-8.
            None => {
                let path = path.as_path().to_str().ok_or_else(not_found)?;
                Ok(format!("{}{path}", self.prefix))
            }
        }
    }

    /// What the keys in the directory `path` begin with.
    pub(super) fn directory_prefix(&self, path: &RelPath) -> Result<String> {
        if path.is_root() {
            return Ok(self.prefix.clone());
        }
        self.key(path).map(|key| format!("{key}/"))
    }

    /// Remembers what a whole listing found out about `directory`.
    pub(super) fn listed(&self, directory: &RelPath, shadowed: BTreeSet<OsString>) {
        if self.shadowed.len() < REMEMBERED || self.shadowed.get(directory).is_some() {
            self.shadowed.insert(directory.clone(), Arc::new(shadowed));
        }
    }

    /// See [`crate::source::Source::stat`].
    pub(super) async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        if path.is_root() {
            return Ok(directory_attributes(None));
        }
        let key = self.key(path)?;
        if self.single.is_some() {
            let file = self.head("stat", &key).await?.ok_or_else(|| not_there("stat"))?;
            return Ok(self.attributes(path, file));
        }
        let known = path.parent().and_then(|parent| self.shadowed.get(&parent));
        let below = format!("{key}/");
        // Who may not list may still read an object; and there are servers that fail at the head of a directory.
        let (file, is_directory) = match known {
            Some(shadowed) if shadowed.contains(path.name()) => (Ok(None), Ok(true)),
            Some(_) => match self.head("stat", &key).await {
                Ok(Some(file)) => (Ok(Some(file)), Ok(false)),
                file => (file, self.is_directory(&below).await),
            },
            None => tokio::join!(self.head("stat", &key), self.is_directory(&below)),
        };
        match (file, is_directory) {
            (_, Ok(true)) => Ok(directory_attributes(None)),
            (Ok(Some(file)), Ok(false)) => Ok(self.attributes(path, file)),
            (Ok(Some(file)), Err(error)) if error.kind() == Kind::Denied => {
                Ok(self.attributes(path, file))
            }
            (Ok(None), Ok(false)) => Err(not_there("stat")),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Whether any key begins with `prefix`.
    pub(super) async fn is_directory(&self, prefix: &str) -> Result<bool> {
        let query = first_page(prefix);
        let ask = Ask {
            op: "stat",
            method: Method::GET,
            key: "",
            query: &query,
            headers: HeaderMap::new(),
        };
        let page = page_text("stat", self.client.send(ask).await?).await?;
        Ok(!Page::parse(&page)?.is_empty())
    }

    /// The head of an object; `None` if there is none of that key.
    async fn head(&self, op: &'static str, key: &str) -> Result<Option<HeaderMap>> {
        let mode = ("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        let mut headers = HeaderMap::new();
        headers.insert(mode.0, mode.1);
        let ask = Ask { op, method: Method::HEAD, key, query: &[], headers };
        match self.client.send(ask).await {
            Ok(answer) => {
                content_length(answer.headers())?.ok_or_else(|| {
                    Error::new(Kind::NotSupported, op)
                        .because("the server does not tell the object's size")
                })?;
                Ok(Some(answer.headers().clone()))
            }
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn attributes(&self, path: &RelPath, headers: HeaderMap) -> Attributes {
        let size = content_length(&headers).ok().flatten().unwrap_or(0);
        let version = Version::of(&headers, Some(size));
        let plain = file_attributes(&version, size);
        self.learn_version(path, &headers);
        // The tag of an object is new with each content.
        let is_settled =
            plain.is_settled || matches!(plain.fingerprint.validator, Validator::ETag(_));
        Attributes { checksum: checksum(&headers), is_settled, ..plain }
    }

    /// Remembers the version that `headers` name: it can be read even when there is a newer one.
    fn learn_version(&self, path: &RelPath, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        if let (Some(etag), Some(version)) = (text("etag"), text("x-amz-version-id"))
            // Written before the bucket had versions: the next takes its place.
            && version != "null"
            && self.versions.len() < VERSIONS
        {
            let known = Known { etag: etag.to_owned(), version: version.to_owned() };
            self.versions.insert(path.clone(), Arc::new(known));
        }
    }

    /// See [`crate::source::Source::read`].
    pub(super) async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        const OP: &str = "read file";
        let key = self.key(path)?;
        let known = self.versions.get(path).filter(
            |known| matches!(&expected.validator, Validator::ETag(tag) if *tag == known.etag),
        );
        let query: Vec<(&str, &str)> =
            known.iter().map(|known| ("versionId", known.version.as_str())).collect();
        let headers = range_headers(range, expected);
        let ask = Ask { op: OP, method: Method::GET, key: &key, query: &query, headers };
        let answer = self.client.send(ask).await?;
        let headers = answer.headers();
        if known.is_none() {
            self.learn_version(path, headers);
        }
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => check_part(headers, range, expected)?,
            _ => {
                if Version::of(headers, content_length(headers)?).contradicts(expected) {
                    return Err(stale(OP));
                }
                if range.start != 0 || range.end != expected.size {
                    return Err(Error::new(Kind::NotSupported, OP)
                        .because("the server ignores ranges, as S3 never does"));
                }
            }
        }
        Ok(exactly(answer, range.len(), path.clone()))
    }
}

/// The question whether anything begins with `prefix`.
fn first_page(prefix: &str) -> [(&'static str, &str); 3] {
    [("list-type", "2"), ("max-keys", "1"), ("prefix", prefix)]
}

pub(super) fn not_there(op: &'static str) -> Error {
    Error::new(Kind::NotFound, op)
}
