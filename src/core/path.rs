//! Validated relative paths.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::error::{Error, Kind, Result};

/// The longest name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;
/// The longest piece of a path that one system call gets, in bytes; above NAME_MAX, below PATH_MAX.
const PIECE_MAX: usize = 4000;

/// A path below the root of source and destination: components joined by `/`, each 1–255 bytes without slash or NUL, never `.` or `..`.
/// The root itself is empty. The same bytes name an entry at the source and below the destination.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(Arc<[u8]>);

impl RelPath {
    /// The root.
    pub fn root() -> Self {
        Self(Arc::from([]))
    }

    /// The entry `name` of this directory.
    ///
    /// # Errors
    /// `Invalid` or `NameTooLong` if `name` is no usable component.
    pub fn child(&self, name: &OsStr) -> Result<Self> {
        Self::check_name(name)?;
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !self.is_root() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        Ok(Self(Arc::from(bytes)))
    }

    /// The entry that `names` lead to from the root, one in the other.
    ///
    /// # Errors
    /// As [`RelPath::child`].
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a OsStr>) -> Result<Self> {
        let mut bytes = Vec::new();
        for name in names {
            Self::check_name(name)?;
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(name.as_bytes());
        }
        Ok(Self(Arc::from(bytes)))
    }

    /// Whether `name` can be one component of a path.
    ///
    /// # Errors
    /// `NameTooLong` above 255 bytes; `Invalid` for an empty name, `.`, `..`, a slash or NUL.
    pub fn check_name(name: &OsStr) -> Result<()> {
        let bytes = name.as_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Error::new(Kind::NameTooLong, "accept name")
                .at(Path::new(name))
                .because(format!("{} bytes; at most {NAME_MAX} are possible", bytes.len())));
        }
        let forbidden = bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|byte| matches!(byte, b'/' | 0));
        if forbidden {
            return Err(Error::new(Kind::Invalid, "accept name")
                .at(Path::new(name))
                .because("not a plain file name; it could lead out of the destination"));
        }
        Ok(())
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(Arc::from(&self.0[..cut])))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &OsStr {
        let start = self.0.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        OsStr::from_bytes(&self.0[start..])
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &OsStr> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(OsStr::from_bytes)
    }

    /// Cut between components into pieces that one system call takes (PATH_MAX is 4096 bytes): each is below the one before. One empty
    /// piece for the root.
    pub fn pieces(&self) -> impl Iterator<Item = &Path> {
        let mut rest = Some(&*self.0);
        std::iter::from_fn(move || {
            let bytes = rest?;
            let cut = match bytes.len() {
                0..=PIECE_MAX => None,
                _ => bytes[..PIECE_MAX].iter().rposition(|byte| *byte == b'/'),
            };
            let piece = &bytes[..cut.unwrap_or(bytes.len())];
            rest = cut.map(|cut| &bytes[cut + 1..]);
            Some(Path::new(OsStr::from_bytes(piece)))
        })
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// As a relative path; `""` for the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As an owned path.
    pub fn to_path_buf(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0.to_vec()))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_path(), f)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { self.as_path().display().fmt(f) }
    }
}

/// `path` with bytes that are not UTF-8 as `\xHH`.
pub fn escape(path: &OsStr) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("invariant: writing to a String does not fail");
        }
    }
    text
}

/// The exact bytes as standard base64, where the text is not exact.
pub fn exact(path: &OsStr) -> Option<String> {
    path.to_str().is_none().then(|| BASE64_STANDARD.encode(path.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let root = RelPath::root();
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert_eq!(root.child(OsStr::new(name)).unwrap_err().kind(), Kind::Invalid, "{name:?}");
        }
        let long = "x".repeat(256);
        assert_eq!(root.child(OsStr::new(&long)).unwrap_err().kind(), Kind::NameTooLong);
        assert!(root.child(OsStr::new(&long[..255])).is_ok());
    }

    #[test]
    fn pieces_are_short_enough_and_make_up_the_path() {
        let mut path = RelPath::root();
        assert_eq!(path.pieces().collect::<Vec<_>>(), [Path::new("")]);
        for depth in 0..100 {
            path = path.child(OsStr::new(&"x".repeat(1 + depth * 37 % 255))).unwrap();
            let pieces: Vec<_> = path.pieces().collect();
            assert!(pieces.iter().all(|piece| (1..=PIECE_MAX).contains(&piece.as_os_str().len())));
            assert_eq!(pieces.iter().collect::<PathBuf>(), path.as_path());
        }
        assert!(path.pieces().count() > 2);
    }

    #[test]
    fn parent_undoes_child() {
        let path = RelPath::root().child(OsStr::new("a")).unwrap();
        let path = path.child(OsStr::from_bytes(b"b\xff")).unwrap();
        assert_eq!(path.as_bytes(), b"a/b\xff");
        assert_eq!(path.name().as_bytes(), b"b\xff");
        assert_eq!(path.parent().unwrap().as_bytes(), b"a");
        assert!(path.parent().unwrap().parent().unwrap().is_root());
        assert!(RelPath::root().parent().is_none());
        assert_eq!(path.components().count(), 2);
        assert_eq!(RelPath::of_names(path.components()).unwrap(), path);
        assert!(RelPath::of_names([]).unwrap().is_root());
        assert!(RelPath::of_names([OsStr::new("a"), OsStr::new("..")]).is_err());
    }
}
