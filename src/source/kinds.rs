//! The kinds of remote sources: which there are, and which one a URL is of.
//!
//! A new kind is a folder here with its own `KIND`, and one line in [`ALL`].

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::options::{OptionSpec, SourceOptions};
use super::{Source, azure, gcs, http, manifest, s3, webdav};
use crate::error::{Error, Kind, Result};

/// Every kind that this program speaks.
pub const ALL: &[&SourceKind] =
    &[&http::KIND, &s3::KIND, &gcs::KIND, &azure::KIND, &webdav::KIND, &manifest::KIND];

/// A source that is being opened.
pub type Opening = BoxFuture<'static, Result<Arc<dyn Source>>>;

/// A kind of remote source.
pub struct SourceKind {
    /// The schemes of its URLs, in lower case.
    pub schemes: &'static [&'static str],
    /// How such a URL looks, for help and errors.
    pub example: &'static str,
    /// What it can be told with `-S`.
    pub options: &'static [OptionSpec],
    /// The name of a source for people, without secrets, if its URL makes sense. Asks nobody.
    pub display_name: fn(&Remote) -> Result<String>,
    /// Opens a source.
    pub open: fn(Remote) -> Opening,
}

impl fmt::Debug for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceKind").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

/// Where a remote source is, and how it is read.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    /// The URL as it was typed; it may hold credentials, so it is never shown.
    pub url: String,
    /// What else was said of it.
    pub options: SourceOptions,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Remote {
    /// A source whose URL and options make sense.
    ///
    /// # Errors
    /// `NotSupported` for a scheme that nobody here speaks; `Invalid` for a URL or an option that makes no sense.
    pub fn new(url: impl Into<String>, options: SourceOptions) -> Result<Self> {
        let remote = Self { url: url.into(), options };
        let kind = remote.kind()?;
        remote.options.check(remote.scheme(), kind.options)?;
        (kind.display_name)(&remote)?;
        Ok(remote)
    }

    /// The name of the source for people, whether it is there or not.
    ///
    /// # Errors
    /// As [`Remote::new`].
    pub fn display_name(&self) -> Result<String> {
        (self.kind()?.display_name)(self)
    }

    /// Opens it.
    ///
    /// # Errors
    /// As its kind has it: `NotFound`, `Denied`, `Unreachable`, `Timeout`, `Invalid`.
    pub async fn open(self) -> Result<Arc<dyn Source>> {
        (self.kind()?.open)(self).await
    }

    fn scheme(&self) -> &str {
        self.url.split_once(':').map_or("", |(scheme, _)| scheme)
    }

    fn kind(&self) -> Result<&'static SourceKind> {
        let scheme = self.scheme().to_ascii_lowercase();
        ALL.iter().copied().find(|kind| kind.schemes.contains(&scheme.as_str())).ok_or_else(|| {
            let examples: Vec<&str> = ALL.iter().map(|kind| kind.example).collect();
            Error::new(Kind::NotSupported, "use source")
                .because(format!("{scheme}: sources are not built yet"))
                .hint(format!("possible: a directory or file, file:///…, {}", examples.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_scheme_belongs_to_one_kind() {
        let all: Vec<&str> = ALL.iter().flat_map(|kind| kind.schemes).copied().collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
        for kind in ALL {
            let names: BTreeSet<_> = kind.options.iter().map(|option| option.name).collect();
            assert_eq!(names.len(), kind.options.len(), "{kind:?}");
            assert!(kind.options.iter().all(|option| !option.help.is_empty()), "{kind:?}");
        }
    }

    #[test]
    fn what_nobody_speaks_says_what_is_possible() {
        let error = Remote::new("gopher://h/", SourceOptions::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotSupported);
        assert!(error.to_string().contains("http"), "{error}");
    }
}
