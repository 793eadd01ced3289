//! The one error type of the crate and its closed set of kinds.
//!
//! Raised with the kind nearest the cause; `op` and `path` are added where they are first known.
//! `vfs::errno` maps kinds to errno numbers, `cli` maps start failures to exit codes; nobody else does.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What went wrong, as far as a caller can act on it. Closed: adding one means deciding its errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Definitely not there. Never used for "could not find out".
    NotFound,
    /// Refused by permissions, at the source or here.
    Denied,
    /// The source keeps it where nobody can read it until it is brought back.
    Archived,
    /// The source now has another version of this file.
    Stale,
    /// No progress within the deadline.
    Timeout,
    /// The source cannot be reached at the moment.
    Unreachable,
    /// The source answered bytes that cannot be right.
    Corrupt,
    /// Any other input or output failure.
    Io,
    /// An attempt to change a read-only tree.
    ReadOnly,
    /// Not possible with this source, destination or kernel.
    NotSupported,
    /// A name longer than 255 bytes or a path longer than the system takes.
    NameTooLong,
    /// Somebody else uses it, or the source asks us to slow down.
    Busy,
    /// A configured or granted limit is used up.
    Limit,
    /// Input that makes no sense.
    Invalid,
    /// Exists where nothing, or something else, was expected.
    Exists,
    /// The destination has no room left.
    NoSpace,
}

impl Kind {
    /// Whether the same request may succeed when it is asked again soon.
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::Timeout | Kind::Unreachable | Kind::Busy)
    }

    /// The word that `status --json` and log fields use.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::NotFound => "not-found",
            Kind::Denied => "denied",
            Kind::Archived => "archived",
            Kind::Stale => "stale",
            Kind::Timeout => "timeout",
            Kind::Unreachable => "unreachable",
            Kind::Corrupt => "corrupt",
            Kind::Io => "io",
            Kind::ReadOnly => "read-only",
            Kind::NotSupported => "not-supported",
            Kind::NameTooLong => "name-too-long",
            Kind::Busy => "busy",
            Kind::Limit => "limit",
            Kind::Invalid => "invalid",
            Kind::Exists => "exists",
            Kind::NoSpace => "no-space",
        }
    }

    fn of_io(error: &io::Error) -> Kind {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Kind::NotFound,
            Some(libc::EACCES | libc::EPERM) => Kind::Denied,
            Some(libc::ESTALE) => Kind::Stale,
            Some(libc::ETIMEDOUT) => Kind::Timeout,
            Some(
                libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::ECONNABORTED
                | libc::EPIPE
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENETDOWN
                | libc::ENOTCONN,
            ) => Kind::Unreachable,
            Some(libc::EROFS) => Kind::ReadOnly,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Kind::NotSupported,
            Some(libc::ENAMETOOLONG) => Kind::NameTooLong,
            Some(libc::EBUSY | libc::EAGAIN | libc::ETXTBSY) => Kind::Busy,
            Some(libc::EMFILE | libc::ENFILE) => Kind::Limit,
            Some(libc::EINVAL | libc::ELOOP | libc::EXDEV) => Kind::Invalid,
            Some(libc::EEXIST | libc::ENOTEMPTY | libc::EISDIR) => Kind::Exists,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Kind::NoSpace,
            Some(_) => Kind::Io,
            None => match error.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::PermissionDenied => Kind::Denied,
                io::ErrorKind::TimedOut => Kind::Timeout,
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => Kind::Unreachable,
                _ => Kind::Io,
            },
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What failed (`op`), on what (`path`), why (`source` or `why`), and what the user can do (`hint`).
///
/// Cheap to clone: one failed chunk tells all who waited for it.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    op: &'static str,
    path: Option<PathBuf>,
    // Boxed: with its results everywhere, an error stays below 128 bytes (clippy::result_large_err).
    why: Option<Box<str>>,
    hint: Option<Box<str>>,
    retry_after: Option<Duration>,
    is_destinations: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` in the operation `op` (a verb phrase: "list directory").
    pub fn new(kind: Kind, op: &'static str) -> Self {
        Self {
            kind,
            op,
            path: None,
            why: None,
            hint: None,
            retry_after: None,
            is_destinations: false,
            source: None,
        }
    }

    /// An error whose kind follows from an operating system error.
    pub fn io(op: &'static str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Self::new(Kind::of_io(&error), op).caused_by(error)
    }

    /// Replaces the kind, where the caller knows better than the cause.
    #[must_use]
    pub fn kinded(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Names what it failed on, unless that is known already.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    /// Says why, in words.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into().into_boxed_str());
        self
    }

    /// Says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into_boxed_str());
        self
    }

    /// Keeps the time that the source asked us to wait before the next attempt.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Says that the destination's disk is to blame: the source may still answer. What is not found there is no news of the source.
    #[must_use]
    pub fn of_destination(mut self) -> Self {
        self.is_destinations = true;
        if matches!(self.kind, Kind::NotFound | Kind::Stale) {
            self.kind = Kind::Io;
        }
        self
    }

    /// Whether the destination's disk is to blame.
    pub fn is_of_destination(&self) -> bool {
        self.is_destinations
    }

    /// Keeps the cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it failed on, if known.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The wait that the source asked for (`Retry-After`).
    pub fn requested_wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether asking again soon may help.
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        match &self.path {
            // The root of a tree.
            Some(path) if path.as_os_str().is_empty() => write!(f, " .")?,
            Some(path) => write!(f, " {}", path.display())?,
            None => {}
        }
        match (&self.why, &self.source) {
            (Some(why), _) => write!(f, ": {why}")?,
            (None, Some(source)) => write!(f, ": {source}")?,
            (None, None) => write!(f, ": {}", self.kind)?,
        }
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_a_name() {
        let error = Error::new(Kind::Busy, "stat").at("").because("503");
        assert_eq!(error.to_string(), "stat .: 503");
    }

    #[test]
    fn message_says_what_on_what_why_and_what_to_do() {
        let error = Error::io("open source", io::Error::from_raw_os_error(libc::EACCES))
            .at("/nas/film.mov")
            .hint("run as the owner");
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(
            error.to_string(),
            "open source /nas/film.mov: Permission denied (os error 13) (run as the owner)"
        );
    }

    #[test]
    fn unreachable_is_never_not_found() {
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EIO, libc::ESTALE] {
            let error = Error::io("stat", io::Error::from_raw_os_error(errno));
            assert_ne!(error.kind(), Kind::NotFound, "errno {errno}");
        }
    }
}
