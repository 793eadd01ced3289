//! How a server writes the bytes of a name that is not UTF-8.

use std::borrow::Cow;

use http::header::{HeaderMap, SERVER};

use super::answer::text;

/// The way in which names are written in URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) enum Spelling {
    /// The bytes themselves.
    Bytes,
    /// `python3 -m http.server`: a byte that is no UTF-8 is written as the surrogate U+DC00 + byte (PEP 383), and that in turn in
    /// three bytes. It does not understand the byte itself.
    Surrogates,
}

impl Spelling {
    /// The spelling of the server that sent `headers`.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match text(headers, &SERVER) {
            Some(server) if server.starts_with("SimpleHTTP/") => Self::Surrogates,
            _ => Self::Bytes,
        }
    }

    /// The name that the server writes as `written`.
    pub(super) fn name(self, written: Vec<u8>) -> Vec<u8> {
        if self == Self::Bytes {
            return written;
        }
        let mut name = Vec::with_capacity(written.len());
        let mut rest = written.as_slice();
        while let Some((&first, after)) = rest.split_first() {
            // U+DC80 to U+DCFF are ED B2 80 to ED B3 BF.
            if let [0xed, second @ (0xb2 | 0xb3), third @ 0x80..=0xbf, after @ ..] = rest {
                name.push(((second & 1) << 6) | (third & 0x3f) | 0x80);
                rest = after;
            } else {
                name.push(first);
                rest = after;
            }
        }
        name
    }

    /// The bytes in which the server writes `name`.
    pub(super) fn written(self, name: &[u8]) -> Cow<'_, [u8]> {
        if self == Self::Bytes || std::str::from_utf8(name).is_ok() {
            return Cow::Borrowed(name);
        }
        let mut written = Vec::with_capacity(name.len() + 8);
        for part in name.utf8_chunks() {
            written.extend_from_slice(part.valid().as_bytes());
            for byte in part.invalid() {
                written.extend_from_slice(&[0xed, 0xb0 | (byte >> 6), 0x80 | (byte & 0x3f)]);
            }
        }
        Cow::Owned(written)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn python_writes_a_byte_as_a_surrogate() {
        let spelling = Spelling::Surrogates;
        assert_eq!(spelling.written(b"latin\xe9").as_ref(), b"latin\xed\xb3\xa9");
        assert_eq!(
            spelling.written(b"\x80\xbf\xff").as_ref(),
            b"\xed\xb2\x80\xed\xb2\xbf\xed\xb3\xbf"
        );
        assert_eq!(spelling.written("ü".as_bytes()).as_ref(), "ü".as_bytes());
        assert_eq!(Spelling::Bytes.written(b"latin\xe9").as_ref(), b"latin\xe9");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(name in proptest::collection::vec(any::<u8>(), 0..32)) {
            for spelling in [Spelling::Bytes, Spelling::Surrogates] {
                prop_assert_eq!(&spelling.name(spelling.written(&name).into_owned()), &name);
            }
        }
    }
}
