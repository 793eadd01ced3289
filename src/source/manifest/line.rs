//! One line of a manifest.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

use crate::core::attributes::{Checksum, Timestamp};
use crate::core::path::{RelPath, exact};

/// Everything but unreserved letters (RFC 3986 2.3) and the slash.
const IN_URL_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
const MODE_BITS: u32 = 0o7777;

/// A line as JSON has it. Exactly one of `path` and `path_b64`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    path_b64: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    url: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    mtime: Option<Time<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    sha256: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    blake3: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    md5: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    crc32c: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    mode: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    etag: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    link: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    link_b64: Option<Cow<'a, str>>,
}

/// A time as JSON has it: text of RFC 3339 in UTC, or seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "a time is seconds since 1970 or text like 2024-01-31T12:00:00Z")]
enum Time<'a> {
    Whole(i64),
    Parts(f64),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

/// What a line says of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Below the manifest's root.
    pub path: RelPath,
    /// What it is.
    pub what: What,
    /// Permission bits `0..=0o7777`.
    pub mode: Option<u32>,
    /// Last modification.
    pub modified: Option<Timestamp>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory; it needs a line only if it is empty, or has a mode or a time.
    Directory,
    /// A symbolic link to this.
    Symlink(OsString),
    /// A regular file.
    File(FileLine),
}

/// What a line says of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileLine {
    /// Where its bytes are; relative to the manifest. Without it, the path itself.
    pub url: Option<String>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Of all its bytes; the strongest that is given.
    pub checksum: Option<Checksum>,
    /// The strong entity tag that the server must have for it, with its quotes.
    pub etag: Option<String>,
}

impl FileLine {
    /// Where its bytes are: a URL, or what is to be joined to that of the manifest.
    pub(super) fn reference(&self, path: &RelPath) -> Cow<'_, str> {
        match &self.url {
            Some(url) => Cow::Borrowed(url),
            // Dots at the beginning keep a colon from looking like a scheme.
            None => Cow::Owned(format!("./{}", url_path(path))),
        }
    }
}

/// `path` as a relative URL.
pub fn url_path(path: &RelPath) -> String {
    percent_encode(path.as_bytes(), IN_URL_PATH).to_string()
}

impl Line {
    /// Reads the JSON of one line.
    ///
    /// # Errors
    /// What is wrong with it, for people; without the line's number.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        // serde takes a list for an object that has the same values.
        if json.trim_ascii_start().first() == Some(&b'[') {
            return Err("a line is one object: {…}".to_owned());
        }
        let written: Written = serde_json::from_slice(json).map_err(|error| reason(&error))?;
        let raw = one_of("path", written.path, written.path_b64)?.ok_or("it has no path")?;
        let (path, is_directory) = path_of(&raw)?;
        let target = one_of("link", written.link, written.link_b64)?;
        let checksum = [
            ("blake3", written.blake3, 32, Checksum::Blake3 as fn(Vec<u8>) -> Checksum),
            ("sha256", written.sha256, 32, Checksum::Sha256),
            ("md5", written.md5, 16, Checksum::Md5),
            ("crc32c", written.crc32c, 4, Checksum::Crc32c),
        ]
        .into_iter()
        .filter_map(|(name, text, bytes, make)| {
            text.map(|text| Ok(make(digest(name, &text, bytes)?)))
        })
        .collect::<Result<Vec<_>, String>>()?
        .into_iter()
        .next();
        let file = FileLine {
            url: written.url.map(Cow::into_owned),
            size: written.size.map(possible).transpose()?,
            checksum,
            etag: written.etag.map(|tag| strong(&tag)).transpose()?,
        };
        let is_bare = file == FileLine::default();
        let what = match (is_directory, target) {
            (true, None) if is_bare => What::Directory,
            (true, _) => {
                return Err(
                    "a directory (its path ends with /) has only a mode and an mtime".to_owned()
                );
            }
            (false, Some(target)) if is_bare => What::Symlink(link_target(target)?),
            (false, Some(_)) => {
                return Err("a symbolic link has only a mode and an mtime".to_owned());
            }
            (false, None) => What::File(file),
        };
        Ok(Self {
            path,
            what,
            mode: written.mode.map(|text| mode(&text)).transpose()?,
            modified: written.mtime.map(time).transpose()?,
        })
    }

    /// The line as JSON, without its end.
    pub fn to_json(&self) -> String {
        let mut raw = self.path.as_bytes().to_vec();
        let mut written = Written {
            mode: self.mode.map(|mode| Cow::Owned(format!("{mode:04o}"))),
            mtime: self.modified.map(written_time),
            ..Written::default()
        };
        match &self.what {
            What::Directory => raw.push(b'/'),
            What::Symlink(target) => (written.link, written.link_b64) = spell(target),
            What::File(file) => {
                written.url = file.url.as_deref().map(Cow::Borrowed);
                written.size = file.size;
                written.etag = file.etag.as_deref().map(Cow::Borrowed);
                let hex = |bytes: &[u8]| {
                    Some(Cow::Owned(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
                };
                match &file.checksum {
                    Some(Checksum::Blake3(digest)) => written.blake3 = hex(digest),
                    Some(Checksum::Sha256(digest)) => written.sha256 = hex(digest),
                    Some(Checksum::Md5(digest)) => written.md5 = hex(digest),
                    Some(Checksum::Crc32c(digest)) => written.crc32c = hex(digest),
                    // Of services; nobody has a tool that checks them.
                    Some(Checksum::Crc64Nvme(_) | Checksum::Crc32(_)) | None => {}
                }
            }
        }
        let raw = OsString::from_vec(raw);
        (written.path, written.path_b64) = spell(&raw);
        // Text and numbers: nothing that JSON cannot hold.
        serde_json::to_string(&written).unwrap_or_default()
    }
}

/// A serde error without its place: the line is one line, and the column is in its text.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    format!("{text} (column {})", error.column())
}

fn one_of(
    name: &str,
    text: Option<Cow<'_, str>>,
    base64: Option<Cow<'_, str>>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.into_owned().into_bytes())),
        (None, Some(base64)) => match BASE64_STANDARD.decode(&*base64) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(format!("{name}_b64 is no base64: {error}")),
        },
        (Some(_), Some(_)) => Err(format!("it has both {name} and {name}_b64")),
    }
}

/// The path, and whether it is that of a directory.
fn path_of(raw: &[u8]) -> Result<(RelPath, bool), String> {
    let (names, is_directory) = match raw.strip_suffix(b"/") {
        Some(names) => (names, true),
        None => (raw, false),
    };
    let path = names
        .split(|byte| *byte == b'/')
        .try_fold(RelPath::root(), |at, name| at.child(OsStr::from_bytes(name)))
        .map_err(|_refused| {
            "its path is not relative, plain names joined by / (no empty one, no . or .., at most 255 bytes each)"
        })?;
    Ok((path, is_directory))
}

fn link_target(raw: Vec<u8>) -> Result<OsString, String> {
    if raw.is_empty() || raw.contains(&0) || raw.len() >= 4096 {
        return Err("a link's target has 1 to 4095 bytes, none of them 0".to_owned());
    }
    Ok(OsString::from_vec(raw))
}

fn digest(name: &str, text: &str, bytes: usize) -> Result<Vec<u8>, String> {
    let wrong = || format!("{name} is {} hexadecimal digits", 2 * bytes);
    if text.len() != 2 * bytes || !text.is_ascii() {
        return Err(wrong());
    }
    let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_error| wrong());
    (0..text.len()).step_by(2).map(pair).collect()
}

fn possible(size: u64) -> Result<u64, String> {
    match i64::try_from(size) {
        Ok(_) => Ok(size),
        Err(_) => Err(format!("a size of {size} bytes is impossible")),
    }
}

/// A tag as the header has it; quotes may be left out in a manifest.
fn strong(tag: &str) -> Result<String, String> {
    let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
    if tag.starts_with("W/") {
        return Err("a weak etag does not tell versions apart; leave it out".to_owned());
    }
    if bare.is_empty() || bare.bytes().any(|byte| byte == b'"' || !byte.is_ascii_graphic()) {
        return Err("an etag is plain letters, digits and signs without quotes".to_owned());
    }
    Ok(format!("\"{bare}\""))
}

fn mode(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= MODE_BITS => Ok(mode),
        _ => Err("a mode is octal digits in quotes, as \"0644\"".to_owned()),
    }
}

fn time(time: Time<'_>) -> Result<Timestamp, String> {
    let wrong = || "a time is seconds since 1970 or text like 2024-01-31T12:00:00Z".to_owned();
    match time {
        Time::Whole(seconds) => Ok(Timestamp { seconds, nanos: 0 }),
        Time::Parts(seconds) => {
            let distance = Duration::try_from_secs_f64(seconds.abs()).map_err(|_error| wrong())?;
            let time = match seconds < 0.0 {
                true => SystemTime::UNIX_EPOCH.checked_sub(distance),
                false => SystemTime::UNIX_EPOCH.checked_add(distance),
            };
            time.map(Timestamp::from).ok_or_else(wrong)
        }
        Time::Text(text) => {
            humantime::parse_rfc3339(&text).map(Timestamp::from).map_err(|_error| wrong())
        }
    }
}

/// Exact where it can be: text knows no time before 1970, whole seconds no parts.
fn written_time(time: Timestamp) -> Time<'static> {
    if time.nanos == 0 {
        return Time::Whole(time.seconds);
    }
    let system = SystemTime::from(time);
    match system.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => Time::Text(Cow::Owned(humantime::format_rfc3339_nanos(system).to_string())),
        Err(before) => Time::Parts(-before.duration().as_secs_f64()),
    }
}

/// As text, or in base64 if it is not UTF-8.
fn spell(raw: &OsStr) -> (Option<Cow<'_, str>>, Option<Cow<'_, str>>) {
    match exact(raw) {
        Some(base64) => (None, Some(Cow::Owned(base64))),
        None => (raw.to_str().map(Cow::Borrowed), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<Line, String> {
        Line::parse(json.as_bytes())
    }

    fn file(json: &str) -> FileLine {
        match parse(json).unwrap().what {
            What::File(file) => file,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_says_what_it_says() {
        let line = parse(r#"{"path":"a b/c","url":"x?sig=1","size":5,"mtime":"2024-01-31T12:00:00.5Z","md5":"900150983cd24fb0d6963f7d28e17f72","sha256":"BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD","mode":"0640","etag":"abc"}"#).unwrap();
        assert_eq!(line.path.as_bytes(), b"a b/c");
        assert_eq!((line.mode, line.modified.unwrap().nanos), (Some(0o640), 500_000_000));
        let What::File(file) = line.what else { panic!() };
        assert_eq!((file.size, file.url.as_deref()), (Some(5), Some("x?sig=1")));
        assert!(matches!(file.checksum, Some(Checksum::Sha256(_))), "the strongest");
        assert_eq!(file.etag.as_deref(), Some("\"abc\""));
        assert_eq!(parse(r#"{"path":"d/"}"#).unwrap().what, What::Directory);
        assert_eq!(
            parse(r#"{"path":"l","link":"../x"}"#).unwrap().what,
            What::Symlink("../x".into())
        );
        assert_eq!(parse(r#"{"path_b64":"/w==","size":1}"#).unwrap().path.as_bytes(), b"\xff");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_says_why() {
        for (json, why) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("[]", "one object"),
            (r#" ["a","b"]"#, "one object"),
            (r#"{"size":1}"#, "no path"),
            (r#"{"path":"a","path_b64":"YQ=="}"#, "both path and path_b64"),
            (r#"{"path_b64":"?"}"#, "no base64"),
            (r#"{"path":"/a"}"#, "not relative"),
            (r#"{"path":"a//b"}"#, "not relative"),
            (r#"{"path":"../a"}"#, "not relative"),
            (r#"{"path":""}"#, "not relative"),
            (r#"{"path":"/"}"#, "not relative"),
            (r#"{"path":"a","sha265":"00"}"#, "unknown field `sha265`"),
            (r#"{"path":"a","sha256":"00"}"#, "sha256 is 64"),
            (r#"{"path":"a","crc32c":"zzzzzzzz"}"#, "crc32c is 8"),
            (r#"{"path":"a","size":-1}"#, "invalid value"),
            (r#"{"path":"a","size":9223372036854775808}"#, "impossible"),
            (r#"{"path":"a","mode":"rw"}"#, "octal"),
            (r#"{"path":"a","mode":"+644"}"#, "octal"),
            (r#"{"path":"a","mode":644}"#, "invalid type"),
            (r#"{"path":"a","etag":"W/\"x\""}"#, "weak"),
            (r#"{"path":"a","mtime":"yesterday"}"#, "a time is"),
            (r#"{"path":"a","mtime":{}}"#, "a time is"),
            (r#"{"path":"a/","size":1}"#, "only a mode"),
            (r#"{"path":"a","link":"b","size":1}"#, "only a mode"),
            (r#"{"path":"a","link":""}"#, "target"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn without_a_url_the_path_is_the_place() {
        let reference = |json| file(json).reference(&parse(json).unwrap().path).into_owned();
        assert_eq!(reference(r#"{"path":"a b/c:d?#%"}"#), "./a%20b/c%3Ad%3F%23%25");
        assert_eq!(reference(r#"{"path":"a","url":"b"}"#), "b");
    }

    fn lines() -> impl Strategy<Value = Line> {
        let name = prop::collection::vec(1u8.., 1..6);
        let names = prop::collection::vec(name, 1..4);
        let path = names.prop_filter_map("no names", |names| {
            names
                .iter()
                .try_fold(RelPath::root(), |at, name| at.child(OsStr::from_bytes(name)))
                .ok()
        });
        let checksum = prop_oneof![
            prop::collection::vec(any::<u8>(), 32).prop_map(Checksum::Sha256),
            prop::collection::vec(any::<u8>(), 32).prop_map(Checksum::Blake3),
            prop::collection::vec(any::<u8>(), 16).prop_map(Checksum::Md5),
            prop::collection::vec(any::<u8>(), 4).prop_map(Checksum::Crc32c),
        ];
        let file = (
            prop::option::of("[a-z/.:?=]{1,20}"),
            prop::option::of(0..u64::MAX >> 1),
            prop::option::of(checksum),
            prop::option::of("\"[a-f0-9-]{1,9}\""),
        );
        let file = file.prop_map(|(url, size, checksum, etag)| {
            What::File(FileLine { url, size, checksum, etag })
        });
        let target = prop::collection::vec(1u8.., 1..9);
        let what = prop_oneof![
            Just(What::Directory),
            target.prop_map(|raw| What::Symlink(OsString::from_vec(raw))),
            file
        ];
        let modified = (0..4_000_000_000i64, 0..1_000_000_000u32)
            .prop_map(|(seconds, nanos)| Timestamp { seconds, nanos });
        (path, what, prop::option::of(0..=MODE_BITS), prop::option::of(modified))
            .prop_map(|(path, what, mode, modified)| Line { path, what, mode, modified })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(line in lines()) {
            let json = line.to_json();
            prop_assert!(!json.contains('\n'));
            prop_assert_eq!(Line::parse(json.as_bytes()), Ok(line), "{}", json);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(Line::parse(&bytes));
        }
    }
}
