//! What a link on an index page means.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};
use url::Url;

use crate::core::attributes::EntryKind;

/// What a page is about: a directory as a rule.
#[derive(Debug)]
pub(in crate::source) struct Base {
    url: Url,
    /// Decoded parts of its path.
    parts: Vec<Vec<u8>>,
}

/// A link that names a direct child; the name is decoded and not yet checked.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) struct Child {
    pub(in crate::source) name: Vec<u8>,
    /// A directory if there is a slash at the end of the link.
    pub(in crate::source) kind: EntryKind,
}

/// Where a link leads.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) enum Target {
    /// To the page's own place, with a slash at its end or without.
    Itself,
    Child(Child),
    /// Anywhere else.
    Elsewhere,
}

impl Base {
    pub(in crate::source) fn new(url: Url) -> Self {
        let parts = split(url.path().as_bytes()).map(decode).collect();
        Self { url, parts }
    }

    /// The child that `href` names; `None` for every other link (sorting, the parent, other places).
    pub(super) fn child(&self, href: &[u8]) -> Option<Child> {
        match self.target(href) {
            Target::Child(child) => Some(child),
            Target::Itself | Target::Elsewhere => None,
        }
    }

    /// What `href` names.
    pub(in crate::source) fn target(&self, href: &[u8]) -> Target {
        let href = href.trim_ascii();
        if href.iter().any(|byte| matches!(byte, b'?' | b'#')) {
            return Target::Elsewhere;
        }
        if href.starts_with(b"//") || has_scheme(href) {
            return match self.url.join(&ascii(href)) {
                Ok(url) if url.origin() == self.url.origin() => self.at(url.path().as_bytes()),
                _ => Target::Elsewhere,
            };
        }
        if href.starts_with(b"/") {
            return self.at(href);
        }
        let href = href.strip_prefix(b"./").unwrap_or(href);
        // Beside the last part of its path, which is empty for a directory (RFC 3986 5.2.3).
        let path = self.url.path();
        let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        self.at(&[directory.as_bytes(), href].concat())
    }

    /// What is at an absolute path.
    fn at(&self, path: &[u8]) -> Target {
        let (path, kind) = match path.strip_suffix(b"/") {
            Some(path) => (path, EntryKind::Directory),
            None => (path, EntryKind::File),
        };
        let parts: Vec<_> = split(path).collect();
        let (ours, more) = parts.split_at(parts.len().min(self.parts.len()));
        let is_ours = ours.len() == self.parts.len()
            && ours.iter().zip(&self.parts).all(|(one, two)| decode(one) == *two);
        match more {
            [] if is_ours => Target::Itself,
            [name] if is_ours && !matches!(*name, b"" | b"." | b"..") => {
                Target::Child(Child { name: decode(name), kind })
            }
            _ => Target::Elsewhere,
        }
    }
}

/// The parts of a path between slashes, without the empty ones at both ends.
fn split(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.split(|byte| *byte == b'/').filter(move |_| !path.is_empty())
}

fn decode(part: &[u8]) -> Vec<u8> {
    percent_decode(part).collect()
}

/// Whether a link begins with a scheme (RFC 3986 3.1).
fn has_scheme(href: &[u8]) -> bool {
    let Some(colon) = href.iter().position(|byte| *byte == b':') else {
        return false;
    };
    let scheme = &href[..colon];
    scheme.first().is_some_and(u8::is_ascii_alphabetic)
        && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

/// A link as text: bytes beyond ASCII escaped, which means the same.
fn ascii(href: &[u8]) -> String {
    let mut text = String::with_capacity(href.len());
    for byte in href {
        if byte.is_ascii_graphic() {
            text.push(char::from(*byte));
        } else {
            text.extend(percent_encode(&[*byte], NON_ALPHANUMERIC));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn child(href: &[u8]) -> Option<(Vec<u8>, bool)> {
        let base = Base::new(Url::parse("http://h:8080/a%20b/c/").unwrap());
        base.child(href).map(|child| (child.name, child.kind == EntryKind::Directory))
    }

    fn found(name: &[u8], is_directory: bool) -> Option<(Vec<u8>, bool)> {
        Some((name.to_vec(), is_directory))
    }

    #[test]
    fn direct_children_are_found_however_they_are_written() {
        for href in [
            "x%20y",
            "./x%20y",
            " x y\n",
            "/a%20b/c/x%20y",
            "/a b/c/x y",
            "http://h:8080/a%20b/c/x%20y",
            "//h:8080/a%20b/c/x%20y",
        ] {
            assert_eq!(child(href.as_bytes()), found(b"x y", false), "{href}");
        }
        assert_eq!(child(b"d/"), found(b"d", true));
        assert_eq!(child(b"/a%20b/c/d/"), found(b"d", true));
        assert_eq!(child(b"100%25%23%3F"), found(b"100%#?", false));
        assert_eq!(child(b"./a:b"), found(b"a:b", false));
        assert_eq!(child(b"a%3Ab"), found(b"a:b", false));
        assert_eq!(child(b"%FF\xfe"), found(b"\xff\xfe", false));
        assert_eq!(child(b"back\\slash"), found(b"back\\slash", false));
        let root = Base::new(Url::parse("http://h/").unwrap());
        assert_eq!(root.child(b"/x").map(|child| child.name), Some(b"x".to_vec()));
    }

    #[test]
    fn other_links_are_ignored() {
        for href in [
            "",
            "/",
            "?C=N;O=D",
            "#top",
            "x?raw",
            "../",
            "..",
            ".",
            "./",
            "/a%20b/",
            "/a%20b/c/",
            "/other/x",
            "a/b",
            "a/../..",
            "http://h/a%20b/c/x",
            "https://h:8080/a%20b/c/x",
            "http://evil/x",
            "javascript:alert(1)",
            "mailto:x",
            "//evil/a%20b/c/x",
            "http://h:8080/a%20b/c/../x",
            "data:,x",
        ] {
            assert_eq!(child(href.as_bytes()), None, "{href}");
        }
    }

    #[test]
    fn the_place_itself_is_known_with_a_slash_and_without() {
        for (url, hrefs) in [
            (
                "http://h/a%20b/c/",
                vec!["/a%20b/c/", "/a%20b/c", "http://h:80/a b/c/", "//h/a%20b/c", "./"],
            ),
            ("http://h/a%20b/c", vec!["/a%20b/c/", "/a%20b/c", "c", "./c", "c/"]),
            ("http://h/", vec!["/", "http://h", ""]),
        ] {
            let base = Base::new(Url::parse(url).unwrap());
            for href in hrefs {
                assert_eq!(base.target(href.as_bytes()), Target::Itself, "{url} {href}");
            }
        }
        let base = Base::new(Url::parse("http://h/a/c").unwrap());
        for href in ["/a/", "/a", "d", "../a/c", "/a/c/d/e", "http://other/a/c", "https://h/a/c"] {
            assert_eq!(base.target(href.as_bytes()), Target::Elsewhere, "{href}");
        }
    }

    proptest! {
        #[test]
        fn no_link_panics(href in proptest::collection::vec(any::<u8>(), 0..200)) {
            child(&href);
        }

        #[test]
        fn no_dressed_up_link_leads_out(href in "(http://h:8080|//h:8080|/|\\./)?(/a%20b/c/|\\.\\./|%2e%2e/|a|%2f|\\\\|:|%00|\\.){0,8}") {
            if let Some((name, _)) = child(href.as_bytes()) {
                prop_assert!(name != b"..".to_vec() || !href.contains(".."), "{href}");
            }
        }
    }
}
