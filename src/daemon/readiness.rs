//! How a daemon tells whoever started it that the tree can be used.

use crate::control::status::StatusReport;
use crate::daemon::Outcome;
use crate::error::Result;

/// Reads the state of the copy from memory; may be called from any thread, often. `None` once the daemon ends.
pub type StatusSource = Box<dyn FnMut() -> Option<StatusReport> + Send>;

/// Whoever waits for the start.
pub trait Readiness: Send {
    /// Called once, as soon as a reader sees the tree. `line` says what there is and where, in one line for people; each of
    /// `warnings` what is not as it should be.
    ///
    /// # Errors
    /// If nobody waits any more: the start was given up, so unmount and end.
    fn ready(&mut self, line: &str, warnings: &[String], status: StatusSource) -> Result<()>;

    /// Called later: what was to be copied is copied, or cannot be for now. The daemon may go on serving; only the first call is heard.
    fn settled(&mut self, _outcome: Outcome, _line: &str, _warnings: &[String]) {}
}
