//! What the head of an HTTP answer says: version, ranges, checksums, and which error a status is.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderName,
    LAST_MODIFIED, RETRY_AFTER,
};

use crate::core::attributes::{Checksum, Fingerprint, SETTLE_TIME, Timestamp, Validator};
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// The longest wait that a server can ask for; more is cut.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The text of a header, if it is there once and is plain ASCII.
pub(in crate::source) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Which version of a file an answer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Version {
    etag: Option<String>,
    last_modified: Option<String>,
    /// When the server answered.
    date: Option<String>,
    /// Length of the whole file, where the answer tells it.
    pub(in crate::source) size: Option<u64>,
}

impl Version {
    /// The version that `headers` name, of a file of `size` bytes.
    pub(in crate::source) fn of(headers: &HeaderMap, size: Option<u64>) -> Self {
        let owned = |name| text(headers, name).filter(|text| !text.is_empty()).map(str::to_owned);
        let (last_modified, date) = (owned(&LAST_MODIFIED), owned(&DATE));
        Self { etag: owned(&ETAG), last_modified, date, size }
    }

    /// A version that a document names, of an answer that came at `date`.
    pub(in crate::source) fn told(
        etag: Option<String>,
        last_modified: Option<String>,
        date: Option<&str>,
        size: Option<u64>,
    ) -> Self {
        Self { etag, last_modified, date: date.map(str::to_owned), size }
    }

    /// Its fingerprint: strong entity tag, else modification time, else weak tag, else the size alone.
    pub(in crate::source) fn fingerprint(&self, size: u64) -> Fingerprint {
        let strong = self.etag.as_ref().filter(|tag| !tag.starts_with("W/"));
        let validator = match (strong, &self.last_modified, &self.etag) {
            (Some(tag), _, _) => Validator::ETag(tag.clone()),
            (None, Some(date), _) => Validator::LastModified(date.clone()),
            (None, None, Some(tag)) => Validator::WeakETag(tag.clone()),
            (None, None, None) => Validator::SizeOnly,
        };
        Fingerprint { size, validator }
    }

    /// Whether anything shows that this is another version than `expected`. What the answer leaves out counts as another: the
    /// server told it before.
    pub(in crate::source) fn contradicts(&self, expected: &Fingerprint) -> bool {
        let is_same = match &expected.validator {
            Validator::ETag(tag) | Validator::WeakETag(tag) => self.etag.as_ref() == Some(tag),
            Validator::LastModified(date) => self.last_modified.as_ref() == Some(date),
            Validator::SizeOnly => true,
            Validator::Modified(_) => false,
        };
        !is_same || self.size.is_some_and(|size| size != expected.size)
    }

    /// Whether `other` can be another answer about the same version.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let sizes_agree = match (self.size, other.size) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        self.etag == other.etag && self.last_modified == other.last_modified && sizes_agree
    }

    /// Whether a change after this answer must show in the validator: Date is at least 2 s after Last-Modified (RFC 9110 8.8.2.2), or
    /// there is nothing but the size, which never tells.
    pub(super) fn is_settled(&self) -> bool {
        if self.etag.is_none() && self.last_modified.is_none() {
            return true;
        }
        let time = |text: &Option<String>| httpdate::parse_http_date(text.as_deref()?).ok();
        match (time(&self.date), time(&self.last_modified)) {
            (Some(date), Some(modified)) => {
                date.duration_since(modified).is_ok_and(|age| age >= SETTLE_TIME)
            }
            _ => false,
        }
    }

    /// The modification time, if it parses.
    pub(super) fn modified(&self) -> Option<Timestamp> {
        let date = httpdate::parse_http_date(self.last_modified.as_deref()?).ok()?;
        Some(Timestamp::from(date))
    }
}

/// An error that says that the source has another version now.
pub(in crate::source) fn stale(op: &'static str) -> Error {
    Error::new(Kind::Stale, op).because("the source file was changed")
}

/// Content-Length of a body that is not encoded.
///
/// # Errors
/// `Invalid` for a size of 2^63 or more.
pub(in crate::source) fn content_length(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(length) = text(headers, &CONTENT_LENGTH).and_then(|text| text.parse().ok()) else {
        return Ok(None);
    };
    possible_size(length).map(Some)
}

/// # Errors
/// `Invalid` for a size of 2^63 or more.
pub(in crate::source) fn possible_size(size: u64) -> Result<u64> {
    if i64::try_from(size).is_ok() {
        Ok(size)
    } else {
        Err(Error::new(Kind::Invalid, "stat")
            .because(format!("a size of {size} bytes is impossible")))
    }
}

/// # Errors
/// `Corrupt` if the body is not the file's bytes but an encoding of them.
pub(in crate::source) fn check_identity(headers: &HeaderMap, op: &'static str) -> Result<()> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(encoding) => Err(Error::new(Kind::Corrupt, op)
            .because(format!("the server encodes the file ({encoding:?}) although asked not to"))),
    }
}

/// A Content-Range header (RFC 9110 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) struct ContentRange {
    /// The bytes that the body holds; `None` in a 416.
    pub(in crate::source) range: Option<ByteRange>,
    /// Length of the whole file; `None` if the server does not know.
    pub(in crate::source) total: Option<u64>,
}

impl ContentRange {
    /// Parses the header; `None` if it is missing or makes no sense.
    pub(in crate::source) fn of(headers: &HeaderMap) -> Option<Self> {
        let (unit, rest) = text(headers, &CONTENT_RANGE)?.split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let total = match total {
            "*" => None,
            total => Some(digits(total)?),
        };
        let range = match range {
            "*" => None,
            range => {
                let (first, last) = range.split_once('-')?;
                let (first, last) = (digits(first)?, digits(last)?);
                if last < first || total.is_some_and(|total| last >= total) {
                    return None;
                }
                Some(ByteRange::new(first, last.checked_add(1)?))
            }
        };
        Some(Self { range, total })
    }
}

/// A number without the sign that `parse` would take.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The error that a status other than success is.
pub(in crate::source) fn status_error(
    status: StatusCode,
    headers: &HeaderMap,
    op: &'static str,
) -> Error {
    let kind = match status.as_u16() {
        404 | 410 => Kind::NotFound,
        401 | 403 | 407 => Kind::Denied,
        412 | 416 => Kind::Stale,
        408 | 504 => Kind::Timeout,
        425 | 429 | 503 => Kind::Busy,
        405 | 501 | 505 => Kind::NotSupported,
        500..=599 => Kind::Unreachable,
        _ => Kind::Invalid,
    };
    let error = Error::new(kind, op)
        .because(format!("the server answered {status}"))
        .retry_after(retry_after(headers, SystemTime::now()));
    match status {
        StatusCode::UNAUTHORIZED => error.hint("credentials come from the URL or ~/.netrc"),
        _ => error,
    }
}

/// The wait that the server asks for, in seconds or until a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let asked = text(headers, &RETRY_AFTER)?;
    let wait = match digits(asked) {
        Some(seconds) => Duration::from_secs(seconds),
        None => httpdate::parse_http_date(asked).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_WAIT))
}

/// The checksum of the whole file: Repr-Digest (RFC 9530), Digest (RFC 3230), x-goog-hash, Content-MD5, x-amz-checksum-*. Only for
/// answers that are about the whole file. A checksum of checksums of parts, as S3 has it of multipart uploads, is none.
pub(in crate::source) fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    let listed = |name: &'static str| {
        let items = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        items.flat_map(|value| value.split(',')).filter_map(|item| item.trim().split_once('='))
    };
    let decode = |text: &str, len: usize| {
        STANDARD.decode(text.trim_matches(':')).ok().filter(|digest| digest.len() == len)
    };
    let find = |name: &str, len: usize| {
        listed("repr-digest")
            .chain(listed("digest"))
            .chain(listed("x-goog-hash"))
            .find(|(algorithm, _)| algorithm.eq_ignore_ascii_case(name))
            .and_then(|(_, digest)| decode(digest, len))
    };
    let md5 = || {
        find("md5", 16).or_else(|| {
            text(headers, &HeaderName::from_static("content-md5")).and_then(|text| decode(text, 16))
        })
    };
    let is_composite = text(headers, &HeaderName::from_static("x-amz-checksum-type"))
        .is_some_and(|kind| kind.eq_ignore_ascii_case("composite"));
    let amazon = |name: &'static str, len: usize| {
        let digest = text(headers, &HeaderName::from_static(name)).filter(|_| !is_composite);
        digest.and_then(|digest| decode(digest, len))
    };
    find("sha-256", 32)
        .or_else(|| amazon("x-amz-checksum-sha256", 32))
        .map(Checksum::Sha256)
        .or_else(|| md5().map(Checksum::Md5))
        .or_else(|| amazon("x-amz-checksum-crc64nvme", 8).map(Checksum::Crc64Nvme))
        .or_else(|| {
            find("crc32c", 4).or_else(|| amazon("x-amz-checksum-crc32c", 4)).map(Checksum::Crc32c)
        })
        .or_else(|| amazon("x-amz-checksum-crc32", 4).map(Checksum::Crc32))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn a_strong_tag_beats_a_date_beats_a_weak_tag() {
        let validator = |lines: &[(&'static str, &str)]| {
            Version::of(&headers(lines), None).fingerprint(1).validator
        };
        let date = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(validator(&[("etag", "\"x\""), date]), Validator::ETag("\"x\"".into()));
        assert_eq!(validator(&[("etag", "W/\"x\""), date]), Validator::LastModified(date.1.into()));
        assert_eq!(validator(&[("etag", "W/\"x\"")]), Validator::WeakETag("W/\"x\"".into()));
        assert_eq!(validator(&[]), Validator::SizeOnly);
    }

    // L23
    #[test]
    fn an_answer_without_the_expected_validator_is_another_version() {
        let expected = Fingerprint { size: 5, validator: Validator::ETag("\"x\"".into()) };
        let contradicts = |lines: &[(&'static str, &str)], size| {
            Version::of(&headers(lines), size).contradicts(&expected)
        };
        assert!(!contradicts(&[("etag", "\"x\"")], Some(5)));
        assert!(!contradicts(&[("etag", "\"x\"")], None));
        assert!(contradicts(&[("etag", "\"x\"")], Some(6)));
        assert!(contradicts(&[("etag", "\"y\"")], Some(5)));
        assert!(contradicts(&[], Some(5)));
    }

    #[test]
    fn content_range_is_exact_or_nothing() {
        let parse = |text| ContentRange::of(&headers(&[("content-range", text)]));
        let range = Some(ByteRange::new(5, 10));
        assert_eq!(parse("bytes 5-9/100"), Some(ContentRange { range, total: Some(100) }));
        assert_eq!(parse("bytes 5-9/*"), Some(ContentRange { range, total: None }));
        assert_eq!(parse("bytes */100"), Some(ContentRange { range: None, total: Some(100) }));
        for wrong in [
            "",
            "bytes",
            "bytes 9-5/100",
            "bytes 5-100/100",
            "bytes +5-9/100",
            "lines 5-9/100",
            "bytes -9/100",
            "bytes 0-18446744073709551615/*",
            "bytes 5-9",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn not_found_is_said_only_when_it_is_definite() {
        for code in 300..600 {
            let status = StatusCode::from_u16(code).unwrap();
            let kind = status_error(status, &HeaderMap::new(), "x").kind();
            assert_eq!(kind == Kind::NotFound, matches!(code, 404 | 410), "{code}");
            let may_pass =
                matches!(code, 408 | 425 | 429) || (code >= 500 && !matches!(code, 501 | 505));
            assert_eq!(kind.is_transient(), may_pass, "{code}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let wait = |text| retry_after(&headers(&[("retry-after", text)]), now);
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:40 GMT"), Some(Duration::from_secs(3)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("99999999999"), Some(LONGEST_WAIT));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn the_strongest_checksum_is_taken_and_nonsense_is_not() {
        let sha = STANDARD.encode([7; 32]);
        let md5 = STANDARD.encode([8; 16]);
        let repr = format!("sha-256=:{sha}:");
        let goog = format!("crc32c=AAAAAA==,md5={md5}");
        assert_eq!(
            checksum(&headers(&[("repr-digest", &repr), ("content-md5", &md5)])),
            Some(Checksum::Sha256(vec![7; 32]))
        );
        assert_eq!(checksum(&headers(&[("x-goog-hash", &goog)])), Some(Checksum::Md5(vec![8; 16])));
        assert_eq!(
            checksum(&headers(&[("x-goog-hash", "crc32c=AAAAAA==")])),
            Some(Checksum::Crc32c(vec![0; 4]))
        );
        assert_eq!(
            checksum(&headers(&[("content-md5", "short"), ("repr-digest", "sha-256")])),
            None
        );
    }

    #[test]
    fn a_checksum_of_parts_is_no_checksum_of_the_file() {
        let crc = ("x-amz-checksum-crc32c", "AAAAAA==");
        assert_eq!(checksum(&headers(&[crc])), Some(Checksum::Crc32c(vec![0; 4])));
        assert_eq!(checksum(&headers(&[crc, ("x-amz-checksum-type", "COMPOSITE")])), None);
        assert_eq!(checksum(&headers(&[("x-amz-checksum-crc32c", "AAAAAA==-2")])), None);
        let nvme = ("x-amz-checksum-crc64nvme", "AAAAAAAAAAE=");
        let full = ("x-amz-checksum-type", "FULL_OBJECT");
        let one = vec![0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(checksum(&headers(&[nvme, full])), Some(Checksum::Crc64Nvme(one)));
        let crc32 = ("x-amz-checksum-crc32", "AAAAAQ==");
        assert_eq!(checksum(&headers(&[crc32])), Some(Checksum::Crc32(vec![0, 0, 0, 1])));
        let multipart = ("etag", "\"d41d8cd98f00b204e9800998ecf8427e-2\"");
        assert_eq!(checksum(&headers(&[multipart])), None);
    }
}
