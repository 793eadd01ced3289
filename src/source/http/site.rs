//! Which URL an entry has.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use url::Url;

use super::spelling::Spelling;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

/// Everything but unreserved letters (RFC 3986 2.3).
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The URL of the source, without credentials. Its query, if any, goes with every request: it may be a signature.
#[derive(Debug, Clone)]
pub(in crate::source) struct Site {
    url: Url,
    shape: Shape,
    pub(in crate::source) spelling: Spelling,
}

/// What is at the URL of a source.
#[derive(Debug, Clone)]
enum Shape {
    /// A tree.
    Tree,
    /// The one file of this name.
    Single(OsString),
    /// Only a server: somebody else knows which file is where.
    Placed(Arc<dyn Places>),
}

/// Says where files are whose URLs do not follow from their paths.
pub trait Places: Send + Sync + std::fmt::Debug {
    /// The URL of the file `path`, of the server that was named with this. It may be asked at any time, and must not wait for a network.
    ///
    /// # Errors
    /// `NotFound` if it has none.
    fn url_of(&self, path: &RelPath) -> Result<Url>;
}

impl Site {
    /// A tree below `url`, which gets a slash at its end.
    pub(in crate::source) fn tree(mut url: Url) -> Self {
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Self { url, shape: Shape::Tree, spelling: Spelling::Bytes }
    }

    /// The one file at `url`.
    ///
    /// # Errors
    /// `Invalid` or `NameTooLong` if the URL's last part is no usable name.
    pub(in crate::source) fn single(url: Url) -> Result<Self> {
        let last = url.path().rsplit('/').next().unwrap_or_default();
        let name = OsString::from_vec(percent_decode_str(last).collect());
        RelPath::check_name(&name)?;
        Ok(Self { url, shape: Shape::Single(name), spelling: Spelling::Bytes })
    }

    /// Files of the server of `url`, each where `places` says.
    pub(super) fn placed(url: Url, places: Arc<dyn Places>) -> Self {
        Self { url, shape: Shape::Placed(places), spelling: Spelling::Bytes }
    }

    pub(in crate::source) fn single_file(&self) -> Option<&OsString> {
        match &self.shape {
            Shape::Single(name) => Some(name),
            Shape::Tree | Shape::Placed(_) => None,
        }
    }

    /// The URL of `path` taken as a file.
    ///
    /// # Errors
    /// `NotFound` for another name than that of a single file; as [`Places::url_of`].
    pub(in crate::source) fn file_url(&self, path: &RelPath) -> Result<Url> {
        match &self.shape {
            Shape::Tree => Ok(self.below(path, "")),
            Shape::Single(name) if path.as_bytes() == name.as_bytes() => Ok(self.url.clone()),
            Shape::Single(_) => Err(Error::new(Kind::NotFound, "find").at(path.as_path())),
            Shape::Placed(places) => places.url_of(path),
        }
    }

    /// The URL of `path` taken as a directory of a tree.
    pub(in crate::source) fn directory_url(&self, path: &RelPath) -> Url {
        self.below(path, if path.is_root() { "" } else { "/" })
    }

    fn below(&self, path: &RelPath, end: &str) -> Url {
        let mut text = self.url.path().to_owned();
        for (index, name) in path.components().enumerate() {
            if index > 0 {
                text.push('/');
            }
            text.extend(percent_encode(&self.spelling.written(name.as_bytes()), IN_SEGMENT));
        }
        text.push_str(end);
        let mut url = self.url.clone();
        url.set_path(&text);
        url
    }
}

/// A URL as people may see it: no user, no password, no values of a query.
pub(in crate::source) fn without_secrets(url: &Url) -> String {
    let mut url = url.clone();
    let has_query = url.query().is_some();
    url.set_query(None);
    url.set_fragment(None);
    // Only URLs without a host refuse these, and they have neither.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return url.scheme().to_owned();
    }
    if has_query { format!("{url}?…") } else { url.to_string() }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;

    fn site(url: &str) -> Site {
        Site::tree(Url::parse(url).unwrap())
    }

    #[test]
    fn every_odd_name_has_its_own_url() {
        let url = |name: &[u8]| {
            let path = RelPath::root().child(OsStr::new("a b")).unwrap();
            let path = path.child(OsStr::from_bytes(name)).unwrap();
            site("http://h/r%20t/?k=v").file_url(&path).unwrap().to_string()
        };
        assert_eq!(url(b"x"), "http://h/r%20t/a%20b/x?k=v");
        assert_eq!(url(b"100%#?&+"), "http://h/r%20t/a%20b/100%25%23%3F%26%2B?k=v");
        assert_eq!(url(b"%2e%2e"), "http://h/r%20t/a%20b/%252e%252e?k=v");
        assert_eq!(url(b"\xff\\"), "http://h/r%20t/a%20b/%FF%5C?k=v");
    }

    proptest! {
        #[test]
        fn no_name_leaves_the_source(name in proptest::collection::vec(any::<u8>(), 1..64)) {
            if let Ok(path) = RelPath::root().child(OsStr::from_bytes(&name)) {
                let url = site("http://h/root/").file_url(&path).unwrap();
                let last = url.path().strip_prefix("/root/").unwrap();
                prop_assert!(!last.contains('/'));
                prop_assert_eq!(percent_decode_str(last).collect::<Vec<u8>>(), name);
                prop_assert_eq!(url.query(), None);
            }
        }
    }

    #[test]
    fn the_name_people_see_has_no_secret() {
        let seen = |url: &str| without_secrets(&Url::parse(url).unwrap());
        assert_eq!(seen("https://me:pw@h:8443/d/?sig=abc#f"), "https://h:8443/d/?…");
        assert_eq!(seen("http://me@h/d/"), "http://h/d/");
    }

    #[test]
    fn a_single_file_answers_to_its_name_only() {
        let site = Site::single(Url::parse("http://h/d/a%20b.bin?sig=1").unwrap()).unwrap();
        assert_eq!(site.single_file().unwrap(), "a b.bin");
        let path = |name: &str| RelPath::root().child(OsStr::new(name)).unwrap();
        assert_eq!(site.file_url(&path("a b.bin")).unwrap().as_str(), "http://h/d/a%20b.bin?sig=1");
        assert_eq!(site.file_url(&path("other")).unwrap_err().kind(), Kind::NotFound);
        assert!(Site::single(Url::parse("http://h/d/..%2fx").unwrap()).is_err());
    }
}
