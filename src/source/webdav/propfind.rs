//! Asking for properties, and whether it is WebDAV that answers.

use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use url::Url;

use super::multistatus::{Fault, Multistatus, Properties, Told, is_success};
use crate::core::attributes::{Attributes, EntryKind};
use crate::error::{Error, Kind, Result};
use crate::source::http::answer::{check_identity, status_error, text};
use crate::source::http::client::{Answer, Message};
use crate::source::http::index::{Base, Target};
use crate::source::http::listing::next_piece;
use crate::source::http::origin::Origin;

/// What is asked for. Its answer is a fraction of that to `allprop`, which holds no checksums either.
const PROPERTIES: &str = concat!(
    r#"<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>"#,
    r#"<resourcetype/><getcontentlength/><getlastmodified/><getetag/>"#,
    r#"<checksums xmlns="http://owncloud.org/ns"/></prop></propfind>"#
);

/// Bytes of an answer about one thing.
const ONE_SIZE_BYTES: usize = 1 << 20;

/// How far a question goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Depth {
    Itself,
    Children,
}

/// Asks for the properties of what is at `url`.
///
/// # Errors
/// As [`crate::source::Source::stat`]; `Invalid` and `NotSupported` if the server speaks no WebDAV.
pub(super) async fn ask(
    op: &'static str,
    origin: &Origin,
    url: Url,
    depth: Depth,
) -> Result<Answer> {
    let depth = match depth {
        Depth::Itself => "0",
        Depth::Children => "1",
    };
    let headers = HeaderMap::from_iter([
        (HeaderName::from_static("depth"), HeaderValue::from_static(depth)),
        (CONTENT_TYPE, HeaderValue::from_static("application/xml; charset=utf-8")),
    ]);
    let method = Method::from_bytes(b"PROPFIND")
        .map_err(|error| Error::new(Kind::Invalid, op).caused_by(error))?;
    let message = Message { method, headers, body: PROPERTIES };
    let answer = origin.client.send_body(op, message, url).await?;
    if !answer.is_directory {
        check(op, &answer)?;
    }
    Ok(answer)
}

/// Whether an answer has a multistatus.
fn check(op: &'static str, answer: &Answer) -> Result<()> {
    let (status, headers) = (answer.response.status(), answer.response.headers());
    let no_webdav =
        |error: Error| error.hint("this is no WebDAV server, or not there: try http(s)://");
    match status {
        StatusCode::MULTI_STATUS => check_identity(headers, op),
        StatusCode::UNAUTHORIZED => Err(unauthorized(status_error(status, headers, op), headers)),
        StatusCode::FORBIDDEN => Err(status_error(status, headers, op)
            .hint("this user may not see it: give another one, or ask who runs the server")),
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            Err(no_webdav(status_error(status, headers, op)))
        }
        // Anything else that is neither a failure nor an answer to what was asked.
        _ if status.as_u16() < 400 => Err(no_webdav(
            Error::new(Kind::Invalid, op)
                .because(format!("the server answers PROPFIND with {status}, not with 207")),
        )),
        _ => Err(status_error(status, headers, op)),
    }
}

fn unauthorized(error: Error, headers: &HeaderMap) -> Error {
    let ways = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|way| way.to_str().ok());
    let ways: String = ways.collect::<Vec<_>>().join(", ").to_ascii_lowercase();
    let knows = |way: &str| ways.contains(way);
    if knows("digest") && !knows("basic") && !knows("bearer") {
        return error.hint("the server wants Digest authentication, which is not spoken here: let it take Basic over TLS");
    }
    error.hint("credentials come from the URL, ~/.netrc, -S user=NAME with -S password=@FILE, or -S token=@FILE")
}

/// The error that a fault of a document is.
pub(super) fn faulty(op: &'static str, fault: Fault) -> Error {
    match fault {
        Fault::Cut(error) => {
            Error::new(Kind::Unreachable, op).because("the answer was cut").caused_by(error)
        }
        Fault::Malformed(why) => Error::new(Kind::Invalid, op)
            .because(format!("the server's answer is no multistatus: {why}"))
            .hint("this is no WebDAV server, or not there: try http(s)://"),
    }
}

/// One thing that was looked at.
#[derive(Debug)]
pub(super) struct Looked {
    /// Where the answer came from.
    pub(super) url: Url,
    properties: Properties,
    /// When the server answered.
    date: Option<String>,
}

impl Looked {
    pub(super) fn kind(&self) -> EntryKind {
        let is_slashed = self.url.path().ends_with('/');
        self.properties.kind(if is_slashed { EntryKind::Directory } else { EntryKind::File })
    }

    /// As [`Properties::attributes`].
    ///
    /// # Errors
    /// As [`Properties::attributes`].
    pub(super) fn attributes(&self) -> Result<Option<Attributes>> {
        self.properties.attributes(self.kind(), self.date.as_deref())
    }
}

/// Looks at what is at `url`, a file or a directory.
///
/// # Errors
/// As [`ask`]; `Invalid` if the answer is about anything else.
pub(super) async fn look(op: &'static str, origin: &Origin, mut url: Url) -> Result<Looked> {
    let mut answer = ask(op, origin, url.clone(), Depth::Itself).await?;
    if answer.is_directory {
        // From the start again, so that every redirect on the way is checked.
        url.set_path(&format!("{}/", url.path()));
        answer = ask(op, origin, url, Depth::Itself).await?;
    }
    let Answer { mut response, url, .. } = answer;
    let date = text(response.headers(), &DATE).map(str::to_owned);
    let mut document = Vec::new();
    while let Some(piece) = next_piece(op, &mut response, origin.limits.index_stall).await? {
        document.extend_from_slice(&piece);
        if document.len() > ONE_SIZE_BYTES {
            return Err(Error::new(Kind::Invalid, op)
                .because(format!("endless answer: more than {ONE_SIZE_BYTES} bytes")));
        }
    }
    let told = itself(op, &document, &Base::new(url.clone()))?;
    succeeded(op, &told)?;
    Ok(Looked { url, properties: told.properties, date })
}

/// What a document tells of `base` itself.
fn itself(op: &'static str, document: &[u8], base: &Base) -> Result<Told> {
    let mut document = Multistatus::new(document);
    let mut found = None;
    while let Some(told) = document.next().map_err(|fault| faulty(op, fault))? {
        if base.target(told.href.as_bytes()) == Target::Itself {
            found.get_or_insert(told);
        }
    }
    found.ok_or_else(|| {
        Error::new(Kind::Invalid, op).because("the server's answer is not about what was asked for")
    })
}

/// # Errors
/// What the status of a whole response says.
pub(super) fn succeeded(op: &'static str, told: &Told) -> Result<()> {
    match told.status {
        Some(code) if !is_success(code) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
            Err(status_error(status, &HeaderMap::new(), op))
        }
        _ => Ok(()),
    }
}
