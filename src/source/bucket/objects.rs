//! Questions about single objects, and their bytes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;

use http::StatusCode;
use http::header::HeaderMap;

use super::{Dialect, Found};
use crate::core::attributes::{Attributes, Fingerprint, Validator};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::error::{Error, Kind, Result};
use crate::source::ByteStream;
use crate::source::http::answer::{Version, checksum, content_length, stale};
use crate::source::http::body::{check_part, exactly};
use crate::source::http::origin::{directory_attributes, file_attributes};

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
    pub(super) dialect: Box<dyn Dialect>,
    /// What all keys of the tree begin with: nothing, or something that ends in a slash. The key itself of a single object.
    prefix: String,
    single: Option<OsString>,
    /// The objects in each listed directory that have the name of a directory.
    shadowed: Table<RelPath, Arc<BTreeSet<OsString>>>,
    versions: Table<RelPath, Arc<Known>>,
}

impl Bucket {
    /// Finds out whether `key` is an object or a tree.
    pub(super) async fn open(mut dialect: Box<dyn Dialect>, key: &str) -> Result<Self> {
        let directory = match key {
            "" => String::new(),
            key if key.ends_with('/') => key.to_owned(),
            key => format!("{key}/"),
        };
        let is_there = dialect.look(&directory).await;
        let mut opened = Self {
            dialect,
            prefix: directory,
            single: None,
            shadowed: Table::default(),
            versions: Table::default(),
        };
        match is_there {
            Ok(true) => return Ok(opened),
            // A bucket may be empty.
            Ok(false) if key.is_empty() => return Ok(opened),
            Ok(false) | Err(_) => {}
        }
        // Who may not list may still read an object.
        if !key.is_empty() && !key.ends_with('/') {
            match opened.dialect.head("open source", key).await? {
                Some(Found::Directory) => return Ok(opened),
                Some(Found::Object { .. }) => {
                    let name = OsString::from(key.rsplit('/').next().unwrap_or(key));
                    RelPath::check_name(&name)?;
                    (opened.single, opened.prefix) = (Some(name), key.to_owned());
                    return Ok(opened);
                }
                None => {}
            }
        }
        is_there?;
        Err(Error::new(Kind::NotFound, "open source")
            .because("no object has this key, or one below it"))
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

    /// Whether `path`, below which there is no key, is a directory nevertheless.
    ///
    /// # Errors
    /// `NotFound` if it is none.
    pub(super) async fn check_empty_directory(
        &self,
        op: &'static str,
        path: &RelPath,
    ) -> Result<()> {
        match self.dialect.head(op, &self.key(path)?).await? {
            Some(Found::Directory) => Ok(()),
            Some(Found::Object { .. }) | None => Err(not_there(op)),
        }
    }

    /// See [`crate::source::Source::stat`].
    pub(super) async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        const OP: &str = "stat";
        if path.is_root() {
            return Ok(directory_attributes(None));
        }
        let key = self.key(path)?;
        if self.single.is_some() {
            return match self.dialect.head(OP, &key).await? {
                Some(found) => Ok(self.learn(path, found)),
                None => Err(not_there(OP)),
            };
        }
        let known = path.parent().and_then(|parent| self.shadowed.get(&parent));
        let below = format!("{key}/");
        // Who may not list may still read an object; and there are servers that fail at the head of a directory.
        let (found, is_directory) = match known {
            Some(shadowed) if shadowed.contains(path.name()) => (Ok(None), Ok(true)),
            Some(_) => match self.dialect.head(OP, &key).await {
                Ok(Some(found)) => (Ok(Some(found)), Ok(false)),
                found => (found, self.dialect.has_any(OP, &below).await),
            },
            None => {
                tokio::join!(self.dialect.head(OP, &key), self.dialect.has_any(OP, &below))
            }
        };
        match (found, is_directory) {
            (_, Ok(true)) => Ok(directory_attributes(None)),
            (Ok(Some(found)), Ok(false)) => Ok(self.learn(path, found)),
            (Ok(Some(found)), Err(error)) if error.kind() == Kind::Denied => {
                Ok(self.learn(path, found))
            }
            (Ok(None), Ok(false)) => Err(not_there(OP)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// The attributes of what was found; remembers its version.
    fn learn(&self, path: &RelPath, found: Found) -> Attributes {
        match found {
            Found::Object { attributes, version } => {
                self.learn_version(path, &attributes.fingerprint.validator, version);
                *attributes
            }
            Found::Directory => directory_attributes(None),
        }
    }

    /// Remembers the name of a version: it can be read even when there is a newer one.
    fn learn_version(&self, path: &RelPath, validator: &Validator, version: Option<String>) {
        if let (Validator::ETag(etag), Some(version)) = (validator, version)
            && self.versions.len() < VERSIONS
        {
            self.versions.insert(path.clone(), Arc::new(Known { etag: etag.clone(), version }));
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
        let version = known.as_ref().map(|known| known.version.as_str());
        let answer = self.dialect.get(OP, &key, range, expected, version).await?;
        let headers = answer.headers();
        if known.is_none() {
            let found = Version::of(headers, None).fingerprint(expected.size);
            self.learn_version(path, &found.validator, self.dialect.version_name(headers));
        }
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => check_part(headers, range, expected)?,
            _ => {
                if Version::of(headers, content_length(headers)?).contradicts(expected) {
                    return Err(stale(OP));
                }
                if range.start != 0 || range.end != expected.size {
                    return Err(Error::new(Kind::NotSupported, OP)
                        .because("the server ignores ranges, as no bucket does"));
                }
            }
        }
        Ok(exactly(answer, range.len(), path.clone()))
    }
}

/// What the answer to a HEAD says of an object. Content-Encoding says nothing of its bytes: it is kept with an object as its writer set it, and
/// the bytes are sent as they are.
///
/// # Errors
/// `NotSupported` if it does not tell the size.
pub(in crate::source) fn attributes_of(
    op: &'static str,
    headers: &HeaderMap,
) -> Result<Attributes> {
    let size = content_length(headers)?.ok_or_else(|| {
        Error::new(Kind::NotSupported, op).because("the server does not tell the object's size")
    })?;
    let plain = file_attributes(&Version::of(headers, Some(size)), size);
    // The tag of an object is new with each content.
    let is_settled = plain.is_settled || matches!(plain.fingerprint.validator, Validator::ETag(_));
    Ok(Attributes { checksum: checksum(headers), is_settled, ..plain })
}

fn not_there(op: &'static str) -> Error {
    Error::new(Kind::NotFound, op)
}
