//! A path in JSON, exact where it is not UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::core::path::{escape, exact};

/// A path in JSON: readable in `path`; where it is not UTF-8, that is escaped and `path_b64` has the exact bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonPath {
    /// For people: bytes that are not UTF-8 as `\xHH`.
    pub path: String,
    /// Standard base64 of the raw bytes, only where `path` is not exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_b64: Option<String>,
}

impl JsonPath {
    /// Writes down `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().as_os_str();
        Self { path: escape(path), path_b64: exact(path) }
    }

    /// The exact path; `None` if `path_b64` is no base64.
    pub fn to_path_buf(&self) -> Option<PathBuf> {
        from_exact(&self.path, self.path_b64.as_deref())
    }
}

/// The path that [`escape`] and [`exact`] wrote down.
pub(crate) fn from_exact(text: &str, exact: Option<&str>) -> Option<PathBuf> {
    match exact {
        Some(exact) => {
            let bytes = BASE64_STANDARD.decode(exact).ok()?;
            Some(PathBuf::from(OsString::from_vec(bytes)))
        }
        None => Some(PathBuf::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_path_survives_json(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let path = PathBuf::from(OsString::from_vec(bytes));
            let json = serde_json::to_string(&JsonPath::new(&path)).unwrap();
            let back: JsonPath = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back.to_path_buf(), Some(path));
        }
    }
}
