//! Names from an index page: the HTML of nginx, Apache and `python3 -m http.server`, or nginx's JSON.
//!
//! The parser runs on a blocking thread and reads the page through a bounded channel while it arrives.

mod href;
mod html;
mod json;
mod page;
mod sink;

use http::header::{CONTENT_TYPE, HeaderMap};

pub(in crate::source) use self::href::{Base, Target};
pub(in crate::source) use self::page::Page;
pub(super) use self::page::{PageFeed, page};
pub(in crate::source) use self::sink::{Halt, Sink};
use super::answer::text;
use crate::error::{Error, Kind, Result};

/// How an index page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Links in a page for people.
    Html,
    /// `autoindex_format json`.
    Json,
}

impl Format {
    /// The format that the Content-Type names, if it can be an index.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let media_type = text(headers, &CONTENT_TYPE)?.split(';').next()?.trim();
        match media_type.to_ascii_lowercase().as_str() {
            "text/html" | "application/xhtml+xml" => Some(Self::Html),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Reads a page that came from `url` and gives its names to `sink`. Blocks.
///
/// # Errors
/// `Invalid` if it is malformed or endless; what stopped the page, if it did not arrive whole.
pub(super) fn parse(page: Page, format: Format, url: url::Url, mut sink: Sink) -> Result<()> {
    let parsed = match format {
        Format::Html => html::parse(page, &Base::new(url), &mut sink),
        Format::Json => json::parse(page, &mut sink),
    };
    sink.finish(parsed)
}

/// Whether the beginning of an HTML page is that of an index: all three servers say so in the title.
pub(super) fn looks_like_index(beginning: &[u8]) -> bool {
    let text = String::from_utf8_lossy(beginning).to_ascii_lowercase();
    text.contains("<title>index of ") || text.contains("<title>directory listing for ")
}

/// An error about the page itself.
pub(in crate::source) fn malformed(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, "list directory").because(why)
}

#[cfg(test)]
mod tests;
