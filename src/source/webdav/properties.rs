//! What the properties of a thing say of it.

use http::HeaderValue;

use super::multistatus::Properties;
use crate::core::attributes::{Attributes, Checksum, EntryKind};
use crate::error::Result;
use crate::source::http::answer::{Version, possible_size};
use crate::source::http::origin::{directory_attributes, file_attributes};

impl Properties {
    /// What it is; `otherwise` if the server does not tell.
    pub(super) fn kind(&self, otherwise: EntryKind) -> EntryKind {
        match self.is_collection {
            Some(true) => EntryKind::Directory,
            Some(false) => EntryKind::File,
            None => otherwise,
        }
    }

    /// The attributes of a thing of `kind`, told at `date`; `None` if they are too few to know a version of a file by.
    ///
    /// # Errors
    /// `Invalid` for a size of 2^63 or more.
    pub(super) fn attributes(
        &self,
        kind: EntryKind,
        date: Option<&str>,
    ) -> Result<Option<Attributes>> {
        let (etag, modified) = (self.etag(), self.modified());
        if kind == EntryKind::Directory {
            let version = Version::told(etag, modified, date, None);
            return Ok(Some(directory_attributes(Some(&version))));
        }
        let length = self.length.as_deref().map(str::trim).filter(|length| is_number(length));
        // More digits than fit are as impossible as 2^63.
        let length = length.map(|length| length.parse().unwrap_or(u64::MAX));
        let (Some(size), true) = (length, etag.is_some() || modified.is_some()) else {
            return Ok(None);
        };
        let size = possible_size(size)?;
        let version = Version::told(etag, modified, date, Some(size));
        Ok(Some(Attributes { checksum: self.checksum(), ..file_attributes(&version, size) }))
    }

    /// The entity tag as GET has it: some servers leave out its quotes here.
    fn etag(&self) -> Option<String> {
        let tag = self.etag.as_deref()?.trim();
        let opaque = tag.strip_prefix("W/").unwrap_or(tag);
        let tag = match opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            Some(_) => tag.to_owned(),
            None if opaque.is_empty() || opaque.contains('"') => return None,
            None => format!("{}\"{opaque}\"", &tag[..tag.len() - opaque.len()]),
        };
        // One that fits into no header cannot be asked for.
        (tag.is_ascii() && HeaderValue::from_str(&tag).is_ok()).then_some(tag)
    }

    /// The time as Last-Modified has it.
    fn modified(&self) -> Option<String> {
        let time = httpdate::parse_http_date(self.modified.as_deref()?.trim()).ok()?;
        Some(httpdate::fmt_http_date(time))
    }

    /// The strongest checksum that can be checked here: `SHA1:` and `ADLER32:` cannot.
    fn checksum(&self) -> Option<Checksum> {
        let words = || self.checksums.as_deref().unwrap_or_default().split_ascii_whitespace();
        let find = |name: &str, bytes: usize| {
            words()
                .filter_map(|word| word.split_once(':'))
                .find(|(algorithm, _)| algorithm.eq_ignore_ascii_case(name))
                .and_then(|(_, digest)| digest_of(digest, bytes))
        };
        let sha256 = find("sha256", 32).or_else(|| find("sha-256", 32));
        sha256.map(Checksum::Sha256).or_else(|| find("md5", 16).map(Checksum::Md5))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The digest of `len` bytes in hexadecimal `text`.
fn digest_of(text: &str, len: usize) -> Option<Vec<u8>> {
    if text.len() != 2 * len || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..len).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16));
    pairs.collect::<std::result::Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::attributes::Validator;
    use crate::error::Kind;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn file(length: &str, etag: &str, modified: &str) -> Properties {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Properties {
            is_collection: Some(false),
            length: text(length),
            etag: text(etag),
            modified: text(modified),
            checksums: None,
        }
    }

    fn validator(etag: &str, modified: &str) -> Option<Validator> {
        let told = file("1", etag, modified).attributes(EntryKind::File, None).unwrap();
        told.map(|told| told.fingerprint.validator)
    }

    #[test]
    fn a_version_is_known_as_in_the_headers_of_the_file() {
        let tag = |tag: &str| Some(Validator::ETag(tag.into()));
        let date = Some(Validator::LastModified(DATE.into()));
        assert_eq!(validator(" \"x\" ", DATE), tag("\"x\""));
        assert_eq!(validator("x-1", DATE), tag("\"x-1\""));
        assert_eq!(validator("W/\"x\"", DATE), date);
        assert_eq!(validator("W/\"x\"", ""), Some(Validator::WeakETag("W/\"x\"".into())));
        assert_eq!(validator("", "Sunday, 06-Nov-94 08:49:37 GMT"), date);
        assert_eq!(validator("", DATE), date);
        for nothing in ["", "\"", "a\"b", "ü", "a\nb"] {
            assert_eq!(validator(nothing, "yesterday"), None, "{nothing}");
        }
    }

    #[test]
    fn a_length_is_a_number_below_2_63() {
        let size = |length: &str| {
            let told = file(length, "x", "").attributes(EntryKind::File, None);
            told.map(|told| told.map(|told| told.size))
        };
        assert_eq!(size(" 7 ").unwrap(), Some(7));
        assert_eq!(size("0").unwrap(), Some(0));
        for unknown in ["", "-1", "+1", "1.5", "0x1"] {
            assert_eq!(size(unknown).unwrap(), None, "{unknown}");
        }
        for impossible in ["9223372036854775808", "99999999999999999999999"] {
            assert_eq!(size(impossible).unwrap_err().kind(), Kind::Invalid, "{impossible}");
        }
    }

    #[test]
    fn the_strongest_checksum_that_can_be_checked_is_taken() {
        let checksum = |text: &str| {
            let told = Properties { checksums: Some(text.into()), ..file("1", "x", "") };
            told.attributes(EntryKind::File, None).unwrap().unwrap().checksum
        };
        let (md5, sha256) = ("0F".repeat(16), "a0".repeat(32));
        let sha1 = "SHA1:da39a3ee5e6b4b0d3255bfef95601890afd80709";
        let both = format!(" {sha1} MD5:{md5} ADLER32:00000001 ");
        assert_eq!(checksum(&both), Some(Checksum::Md5(vec![0x0f; 16])));
        let strong = format!("MD5:{md5} SHA256:{sha256}");
        assert_eq!(checksum(&strong), Some(Checksum::Sha256(vec![0xa0; 32])));
        for none in ["", sha1, "MD5:", "MD5:zz", &format!("MD5:{}g", &md5[1..]), ":"] {
            assert_eq!(checksum(none), None, "{none}");
        }
    }
}
