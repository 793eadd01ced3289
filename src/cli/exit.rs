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

    /// The one with this number; what is none is a failure.
    pub fn of_code(code: u8) -> Self {
        match code {
            0 => Exit::Ok,
            2 => Exit::Usage,
            3 => Exit::SourceUnreachable,
            4 => Exit::VerificationFailed,
            5 => Exit::Stopped,
            6 => Exit::InUse,
            7 => Exit::NotSupported,
            _ => Exit::SomeFailed,
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
