//! What a daemon is told to do, validated: raw arguments end in the command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::limits::LimitSettings;
use crate::engine::settings::HydrateSettings;
use crate::error::{Error, Kind, Result};
use crate::source::kinds::Remote;
use crate::source::manifest;
use crate::source::options::SourceOptions;
use crate::vfs::mount::MountOptions;

/// Everything that `lazycopy mount` decides before the start. Paths are absolute, and not yet looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSettings {
    /// What is copied.
    pub source: SourceSpec,
    /// Where it is shown.
    pub mountpoint: PathBuf,
    /// Where what is fetched lies, and how much of it.
    pub keep: KeepSettings,
    /// Where its catalog and hash trees are; `None` = where they were, at first in the destination itself.
    pub state_dir: Option<PathBuf>,
    /// What is fetched besides what is read.
    pub fill: Fill,
    /// How the whole tree is fetched, if it is.
    pub hydrate: HydrateSettings,
    /// The kernel's side.
    pub mount: MountOptions,
    /// How the tree follows its source.
    pub tree: TreeSettings,
    /// How reads behave.
    pub reads: ReadSettings,
    /// What becomes a plain file, and how.
    pub publish: PublishSettings,
    /// What may be asked of the source.
    pub limits: LimitSettings,
    /// Threads that take requests from the kernel; at least 1.
    pub fuse_threads: usize,
    /// The mountpoint is the destination itself.
    pub in_place: Option<InPlace>,
}

/// A copy that covers its own destination until it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InPlace {
    /// The destination as the user named it: for people.
    pub shown_as: PathBuf,
    /// What becomes of the mount of a complete copy.
    pub at_end: AtEnd,
}

/// What becomes of the mount of a complete copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// It is taken away; whoever stands in it is served for this long.
    Dissolve {
        /// How long.
        linger: Duration,
    },
    /// It stays.
    Stay,
}

/// Everything that `lazycopy copy` decides before the start. Paths are absolute, and not yet looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySettings {
    /// What is copied.
    pub source: SourceSpec,
    /// A snapshot of the source, which is read instead of it; an absolute path.
    pub read_from: Option<PathBuf>,
    /// DIR.
    pub destination: PathBuf,
    /// Where its catalog and hash trees are; `None` = where they were, at first in DIR itself.
    pub state_dir: Option<PathBuf>,
    /// Goes into other file systems below a local source.
    pub cross_mounts: bool,
    /// What becomes a plain file, and how.
    pub publish: PublishSettings,
    /// What is copied, and how.
    pub hydrate: HydrateSettings,
    /// What may be asked of the source.
    pub limits: LimitSettings,
    /// Take out of DIR what is gone at the source, at most so many entries; `None` = nothing.
    pub delete: Option<u64>,
    /// Only find out what would be done.
    pub is_dry: bool,
}

/// Where what is fetched lies, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepSettings {
    /// Where.
    pub place: KeepPlace,
    /// Most bytes; `None` = everything is kept. At least [`crate::engine::cache::KEEP_MIN`].
    pub limit: Option<u64>,
}

/// Where what is fetched lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepPlace {
    /// In this directory finished files become plain files.
    Destination(PathBuf),
    /// In a directory of its own, named after the source, below this one, which is made if it is missing.
    CacheBelow(PathBuf),
}

/// What is fetched besides what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    OnDemand,
    /// The whole tree, in the background.
    Everything,
}

/// How the tree follows its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSettings {
    /// When a listing is old; `None` = as the kind of source has it.
    pub refresh: Option<Refresh>,
    /// Goes into other file systems below a local source.
    pub cross_mounts: bool,
    /// What to do with files that change.
    pub on_change: OnChange,
}

/// What to do with files that change at the source after they were first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnChange {
    /// Copy the new version.
    #[default]
    Follow,
    /// Keep what is here of the first version; the file counts as failed.
    Fail,
}

/// When a listing is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// After this long.
    After(Duration),
    /// Never.
    Never,
}

/// How reads behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadSettings {
    /// Longest time without progress; `None` = wait for ever.
    pub timeout: Option<Duration>,
}

/// What becomes a plain file, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishSettings {
    /// What to do with files that the destination has already.
    pub existing: Existing,
    /// Keeps set-user-id, set-group-id and file capabilities.
    pub preserve_privileged: bool,
    /// Metadata that cannot be kept fails the file.
    pub strict_metadata: bool,
    /// How surely files are on the disk when they are called verified.
    pub durability: Durability,
    /// Bytes of the destination that stay free; `None` = max(1 GiB, min(5 %, 64 GiB)).
    pub reserve: Option<u64>,
}

/// What to do with files that the destination has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Existing {
    /// Keep those whose content proves equal; another size or type stops the start.
    #[default]
    Adopt,
    /// Keep those of equal size and time unread, counted as adopted-unverified.
    AdoptFast,
    /// Replace them.
    Overwrite,
    /// Stop before the start if there is any.
    Fail,
}

/// How surely files are on the disk when they are called verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Durability {
    /// Verify from memory what was written, then sync; small files together.
    #[default]
    Normal,
    /// Sync first, then verify what the disk itself gives back; each file by itself, slower.
    Paranoid,
}

/// Where the source is, as far as its spelling tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// An absolute path of this machine.
    Local(PathBuf),
    /// Elsewhere.
    Url(Remote),
}

impl SourceSpec {
    /// Reads SOURCE; a relative path is taken from the current directory.
    ///
    /// # Errors
    /// `Invalid` for a URL that makes no sense; `NotSupported` for a scheme that nobody here speaks.
    pub fn parse(text: &OsStr) -> Result<Self> {
        Self::parse_with(text, SourceOptions::default())
    }

    /// As [`SourceSpec::parse`], with what `-S` says.
    ///
    /// # Errors
    /// Also `Invalid` for an option that this kind of source does not have.
    pub fn parse_with(text: &OsStr, options: SourceOptions) -> Result<Self> {
        let invalid = |why: &str| Error::new(Kind::Invalid, "use source").because(why);
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        let scheme = text.to_str().and_then(split_scheme).map(str::to_ascii_lowercase);
        let local = match scheme.as_deref() {
            None => std::path::absolute(Path::new(text))
                .map_err(|error| Error::io("use source", error).at(text))?,
            Some("file") => {
                let url = url::Url::parse(text.to_str().unwrap_or_default())
                    .map_err(|error| invalid("not a URL").caused_by(error))?;
                url.to_file_path().map_err(|()| {
                    invalid("a file: URL names a path of this machine: file:///directory")
                })?
            }
            Some("manifest") => {
                let url = manifest::absolute(&text.to_string_lossy())?;
                return Remote::new(url, options).map(Self::Url);
            }
            Some(_) => return Remote::new(text.to_string_lossy(), options).map(Self::Url),
        };
        options.check("local", &[])?;
        Ok(Self::Local(local))
    }
}

/// The scheme of a URL; a plain path has none.
fn split_scheme(text: &str) -> Option<&str> {
    if text.starts_with("manifest:") {
        return Some("manifest");
    }
    let (scheme, _) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SourceSpec> {
        SourceSpec::parse(OsStr::new(text))
    }

    #[test]
    fn a_source_is_a_path_unless_it_is_spelled_like_a_url() {
        let local = |path: &str| SourceSpec::Local(PathBuf::from(path));
        assert_eq!(parse("/a b").unwrap(), local("/a b"));
        assert_eq!(parse("file:///a%20b").unwrap(), local("/a b"));
        assert_eq!(parse("/x/a://b").unwrap(), local("/x/a://b"));
        let SourceSpec::Local(relative) = parse("a").unwrap() else { panic!() };
        assert!(relative.is_absolute() && relative.ends_with("a"));
        let SourceSpec::Url(remote) = parse("HTTP://h/ü b").unwrap() else { panic!() };
        assert_eq!(remote.url, "HTTP://h/ü b");
    }

    #[test]
    fn what_is_not_built_yet_says_so() {
        for text in ["gopher://b/p", "x+y://u@h/d"] {
            assert_eq!(parse(text).unwrap_err().kind(), Kind::NotSupported, "{text}");
        }
        for text in ["", "http://", "file://host/x"] {
            assert_eq!(parse(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_local_source_has_no_options() {
        let options = SourceOptions::parse(&["endpoint=x"]).unwrap();
        let error = SourceSpec::parse_with(OsStr::new("/a"), options).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
    }

    #[test]
    fn credentials_of_a_url_do_not_reach_debug_output() {
        let source = parse("https://user:secret@h/").unwrap();
        assert!(!format!("{source:?}").contains("secret"));
    }
}
