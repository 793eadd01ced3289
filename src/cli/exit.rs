//! Exit codes: a contract with scripts.

use std::process::ExitCode;

use crate::daemon::Outcome;
use crate::error::{Error, Kind};

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well; warnings were said.
    Ok,
    /// Some files failed.
    SomeFailed,
    /// Wrong usage, or refused before the start.
    Usage,
    /// The source cannot be reached.
    SourceUnreachable,
    /// Bytes were not what their proof says.
    VerificationFailed,
    /// Stopped before it was done.
    Stopped,
    /// Destination or mount in use.
    InUse,
    /// Not possible on this machine, or not built yet.
    NotSupported,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::SomeFailed => 1,
            Exit::Usage => 2,
            Exit::SourceUnreachable => 3,
            Exit::VerificationFailed => 4,
            Exit::Stopped => 5,
            Exit::InUse => 6,
            Exit::NotSupported => 7,
        }
    }

    /// What an error before or instead of the work means.
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            Kind::Unreachable | Kind::Timeout => Exit::SourceUnreachable,
            Kind::Corrupt => Exit::VerificationFailed,
            Kind::Busy => Exit::InUse,
            Kind::NotSupported => Exit::NotSupported,
            Kind::NotFound
            | Kind::Denied
            | Kind::Archived
            | Kind::Stale
            | Kind::Io
            | Kind::ReadOnly
            | Kind::NameTooLong
            | Kind::Limit
            | Kind::Invalid
            | Kind::Exists
            | Kind::NoSpace => Exit::Usage,
        }
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Clean => Exit::Ok,
            Outcome::SomeFailed => Exit::SomeFailed,
            Outcome::VerificationFailed => Exit::VerificationFailed,
            Outcome::Stopped => Exit::Stopped,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
