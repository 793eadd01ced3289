//! Laws of listing by a multistatus.

use std::os::unix::ffi::OsStrExt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;
use url::Url;

use super::*;
use crate::source::Entry;
use crate::source::http::spelling::Spelling;

const URL: &str = "http://h:8080/a%20b/d/";
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The entries that a document gives, and the number of names refused.
fn listed(document: &str, max_entries: usize) -> Result<(Vec<Entry>, u64)> {
    let (sender, mut batches) = mpsc::channel(1000);
    let mut sink = Sink::new(RelPath::root(), sender, Spelling::Bytes, max_entries);
    let base = Base::new(Url::parse(URL).unwrap());
    let parsed = Listing { base, date: None, tells_versions: true, is_ours: false }
        .read(document.as_bytes(), &mut sink);
    sink.finish(parsed)?;
    let (mut entries, mut refused) = (Vec::new(), 0);
    while let Ok(batch) = batches.try_recv() {
        refused += batch.refused;
        entries.extend(batch.entries);
    }
    Ok((entries, refused))
}

/// A document about the directory itself and `more`.
fn document(more: &str) -> String {
    format!(
        "<multistatus xmlns=\"DAV:\"><response><href>/a%20b/d/</href><propstat><prop><resourcetype><collection/></resourcetype></prop>\
         <status>HTTP/1.1 200 OK</status></propstat></response>{more}</multistatus>"
    )
}

fn response(href: &str, more: &str) -> String {
    format!("<response><href>{href}</href>{more}</response>")
}

fn names(more: &str) -> (Vec<String>, u64) {
    let (entries, refused) = listed(&document(more), 1000).unwrap();
    let name = |entry: Entry| {
        let slash = if entry.kind == EntryKind::Directory { "/" } else { "" };
        format!("{}{slash}", entry.name.display())
    };
    (entries.into_iter().map(name).collect(), refused)
}

#[test]
fn only_direct_children_are_entries() {
    let mut more = response("/a%20b/d/one", "") + &response("two/", "");
    for elsewhere in [
        "/a%20b/d/one/deeper",
        "/a%20b/",
        "/",
        "/other/x",
        "http://other/a%20b/d/x",
        "https://h:8080/a%20b/d/x",
        "//other/a%20b/d/x",
        "/a%20b/d/../x",
        "../x",
        "/a%20b/d/..",
        "/a%20b/d/%2e%2e",
        "/a%20b/d/a%2Fb",
        "/a%20b/d/nul%00",
        "x?y",
        "mailto:x",
    ] {
        more += &response(elsewhere, "");
    }
    assert_eq!(names(&more), (vec!["one".to_owned(), "two/".to_owned()], 15));
    let long = "x".repeat(256);
    assert_eq!(names(&response(&long, "")), (vec![], 1));
}

#[test]
fn a_name_has_one_entry_and_its_kind_is_what_the_server_says() {
    let is_file = "<propstat><prop><resourcetype/></prop></propstat>";
    let is_directory =
        "<propstat><prop><resourcetype><collection/></resourcetype></prop></propstat>";
    let more = response("f/", is_file)
        + &response("d", is_directory)
        + &response("/a%20b/d/d/", is_directory)
        + &response("g", "<status>HTTP/1.1 403 Forbidden</status>")
        + &response("gone", "<status>HTTP/1.1 404 Not Found</status>");
    assert_eq!(names(&more), (vec!["f".to_owned(), "d/".to_owned(), "g".to_owned()], 0));
}

#[test]
fn what_is_not_about_the_directory_does_not_show_that_it_is_empty() {
    let about = |more: &str| {
        let document = format!("<multistatus xmlns=\"DAV:\">{more}</multistatus>");
        listed(&document, 10).map(|(entries, _)| entries.len())
    };
    assert_eq!(about("").unwrap_err().kind(), Kind::Invalid);
    assert_eq!(about(&response("/other/", "")).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(about(&response("/a%20b/d", "")).unwrap(), 0);
    assert_eq!(about(&response("x", "")).unwrap(), 1);
    let status = |code: &str| {
        about(
            &response(".", "")
                .replace("<href>.", "<href>./")
                .replace("</response>", &format!("<status>HTTP/1.1 {code} x</status></response>")),
        )
    };
    assert_eq!(status("404").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(status("403").unwrap_err().kind(), Kind::Denied);
    let is_file = "<propstat><prop><resourcetype/></prop></propstat>";
    let error = about(&response("/a%20b/d", is_file)).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn an_endless_listing_is_an_error() {
    let more: String = (0..100).map(|n| response(&format!("f{n}"), "")).collect();
    assert_eq!(listed(&document(&more), 100).unwrap().0.len(), 100);
    let error = listed(&document(&more), 99).unwrap_err();
    assert!(error.to_string().contains("endless listing"), "{error}");
}

/// The ways in which servers write one and the same.
#[derive(Debug, Clone)]
struct Style {
    prefix: &'static str,
    place: &'static str,
    is_lower: bool,
    is_split: bool,
    text: u8,
    space: &'static str,
}

fn style() -> impl Strategy<Value = Style> {
    let places =
        vec!["", "./", "/a%20b/d/", "/%61%20b/d/", "http://h:8080/a%20b/d/", "//h:8080/a%20b/d/"];
    (
        prop::sample::select(vec!["", "D:", "lp1:", "x-y:"]),
        prop::sample::select(places),
        any::<bool>(),
        any::<bool>(),
        0u8..3,
        prop::sample::select(vec!["", "\n", "\r\n  ", "<!-- > --><?p i?>"]),
    )
        .prop_map(|(prefix, place, is_lower, is_split, text, space)| Style {
            prefix,
            place,
            is_lower,
            is_split,
            text,
            space,
        })
}

impl Style {
    fn tag(&self, name: &str, content: &str) -> String {
        let Self { prefix, space, .. } = self;
        format!("{space}<{prefix}{name}>{content}</{prefix}{name}>{space}")
    }

    fn text(&self, text: &str) -> String {
        match self.text {
            0 => text.replace('&', "&amp;").replace('<', "&lt;"),
            1 => format!("<![CDATA[{text}]]>"),
            _ => text.chars().map(|letter| format!("&#x{:x};", u32::from(letter))).collect(),
        }
    }

    fn href(&self, name: &[u8], is_directory: bool) -> String {
        let name = percent_encode(name, IN_SEGMENT).to_string();
        let name = if self.is_lower { lower_escapes(&name) } else { name };
        match name.as_str() {
            "" => "/a%20b/d/".to_owned(),
            name => format!("{}{name}{}", self.place, if is_directory { "/" } else { "" }),
        }
    }

    fn response(&self, name: &[u8], is_directory: bool, size: u64, tag: &str) -> String {
        let kind = if is_directory { self.tag("collection", "") } else { String::new() };
        let kind = self.tag("resourcetype", &kind);
        let rest =
            self.tag("getcontentlength", &size.to_string()) + &self.tag("getetag", &self.text(tag));
        let ok = self.tag("status", "HTTP/1.1 200 OK");
        let part = |properties: &str| self.tag("propstat", &(self.tag("prop", properties) + &ok));
        let missing = self.tag("prop", &self.tag("getlastmodified", "never"))
            + &self.tag("status", "HTTP/1.1 404 Not Found");
        let parts = match self.is_split {
            true => self.tag("propstat", &missing) + &part(&rest) + &part(&kind),
            false => part(&(kind + &rest)),
        };
        let href = self.tag("href", &self.text(&self.href(name, is_directory)));
        self.tag("response", &(href + &parts))
    }

    fn document(&self, responses: &str) -> String {
        let Self { prefix, space, .. } = self;
        let binding = match prefix.strip_suffix(':') {
            Some(prefix) => format!("xmlns:{prefix}"),
            None => "xmlns".to_owned(),
        };
        format!(
            "<?xml version=\"1.0\"?>{space}<{prefix}multistatus {binding}='DAV:'>{responses}</{prefix}multistatus>\n"
        )
    }
}

/// `%C3` as `%c3`.
fn lower_escapes(text: &str) -> String {
    let mut out = String::new();
    let mut left = 0u8;
    for letter in text.chars() {
        left = if letter == '%' { 3 } else { left };
        out.push(if left > 0 { letter.to_ascii_lowercase() } else { letter });
        left = left.saturating_sub(1);
    }
    out
}

proptest! {
    #[test]
    fn a_document_in_any_spelling_gives_its_entries(
        styles in proptest::collection::vec(style(), 8),
        things in proptest::collection::btree_map(
            proptest::collection::vec(any::<u8>(), 1..12),
            (any::<bool>(), 0u64..1 << 40, "\"[!#-;?-Z^-~]{0,9}\""),
            0..7,
        ),
    ) {
        let style = &styles[0];
        let mut responses = style.response(b"", true, 0, "");
        let mut expected = Vec::new();
        for ((name, (is_directory, size, tag)), style) in things.iter().zip(&styles[1..]) {
            // Only one prefix is bound.
            let style = Style { prefix: styles[0].prefix, ..style.clone() };
            responses += &style.response(name, *is_directory, *size, tag);
            if RelPath::check_name(std::ffi::OsStr::from_bytes(name)).is_ok() {
                expected.push((name.clone(), *is_directory, *size, tag.clone()));
            }
        }
        let (entries, refused) = listed(&style.document(&responses), 1000).unwrap();
        prop_assert_eq!(refused, (things.len() - expected.len()) as u64);
        prop_assert_eq!(entries.len(), expected.len());
        for (entry, (name, is_directory, size, tag)) in entries.iter().zip(expected) {
            prop_assert_eq!(entry.name.as_bytes(), name);
            let attributes = entry.attributes.as_ref().unwrap();
            prop_assert_eq!(attributes.kind == EntryKind::Directory, is_directory);
            prop_assert_eq!(attributes.size, if is_directory { 0 } else { size });
            if !is_directory {
                let validator = crate::core::attributes::Validator::ETag(tag);
                prop_assert_eq!(&attributes.fingerprint.validator, &validator);
            }
        }
    }

    #[test]
    fn no_link_leads_out(href in "(http://h:8080|//h:8080|/|\\./)?(/a%20b/d/|\\.\\./|%2e%2e/|a|%2f|\\\\|:|%00|\\.|é){0,8}") {
        let document = document(&response(&href, ""));
        if let Ok((entries, _)) = listed(&document, 10) {
            for entry in entries {
                RelPath::check_name(&entry.name).unwrap();
            }
        }
    }
}
