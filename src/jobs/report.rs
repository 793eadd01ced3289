//! What jobs and a run came to: names and units are a contract with scripts, and `docs/jobs.md` shows them.

use serde::Serialize;

use crate::core::path::escape;
use crate::jobs::plan::Job;

/// Version of the shape.
pub const SCHEMA: u32 = 1;
/// Exit codes of `lazycopy copy` and `verify`, the worst first: bytes that are wrong before bytes that are missing.
const WORST_FIRST: [u8; 7] = [4, 1, 2, 3, 7, 6, 5];
/// Some files failed; also what is no exit code at all.
pub(super) const FAILED: u8 = 1;
/// Refused before the start.
pub(super) const REFUSED: u8 = 2;
/// Stopped before it was done.
pub(super) const STOPPED: u8 = 5;
/// Not possible on this machine.
pub(super) const NOT_SUPPORTED: u8 = 7;

/// What a job or a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcome {
    /// Everything is there and proven.
    Complete,
    /// The same, and something else is not as it should be.
    CompleteWithWarnings,
    /// Something is missing or wrong.
    Failed,
    /// Told to end; the next run goes on.
    Stopped,
    /// Not begun.
    Skipped,
}

impl JobOutcome {
    /// The word in events and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::CompleteWithWarnings => "complete-with-warnings",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Skipped => "skipped",
        }
    }

    /// Whether the copy is whole.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Complete | Self::CompleteWithWarnings)
    }

    fn of(exit: u8, has_warnings: bool) -> Self {
        match (exit, has_warnings) {
            (0, false) => Self::Complete,
            (0, true) => Self::CompleteWithWarnings,
            (STOPPED, _) => Self::Stopped,
            _ => Self::Failed,
        }
    }
}

/// Counts of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FileCounts {
    /// Whose bytes travelled.
    pub copied: u64,
    /// That were there already.
    pub unchanged: u64,
    /// That could not be copied.
    pub failed: u64,
}

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobReport {
    /// Its name in the file.
    pub name: String,
    /// Without secrets.
    pub source: String,
    /// Absolute.
    pub destination: String,
    /// In a word.
    pub outcome: JobOutcome,
    /// As of `lazycopy copy`.
    pub exit: u8,
    /// Files.
    pub files: FileCounts,
    /// Bytes that travelled.
    pub bytes: u64,
    /// What is not as it should be, for people.
    pub warnings: Vec<String>,
    /// Why it failed, for people.
    pub message: Option<String>,
    /// Seconds.
    pub elapsed_s: f64,
}

impl JobReport {
    /// Of a job that is not begun.
    pub(super) fn skipped(job: &Job) -> Self {
        Self {
            name: job.name.clone(),
            source: job.shown_source.clone(),
            destination: escape(job.destination.as_os_str()),
            outcome: JobOutcome::Skipped,
            exit: 0,
            files: FileCounts::default(),
            bytes: 0,
            warnings: Vec::new(),
            message: None,
            elapsed_s: 0.0,
        }
    }

    /// Something ended with this exit code; the worst of all counts.
    pub(super) fn ended(&mut self, exit: u8) {
        self.exit = worst([self.exit, exit]);
        self.outcome = JobOutcome::of(self.exit, !self.warnings.is_empty());
    }

    /// Something is not as it should be.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
        if self.outcome == JobOutcome::Complete {
            self.outcome = JobOutcome::CompleteWithWarnings;
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// Its name.
    pub run: String,
    /// The jobs file.
    pub file: String,
    /// In a word; `skipped` never.
    pub outcome: JobOutcome,
    /// The worst of all jobs.
    pub exit: u8,
    /// In the order of the file.
    pub jobs: Vec<JobReport>,
    /// Of the run itself, for people.
    pub warnings: Vec<String>,
    /// Seconds.
    pub elapsed_s: f64,
    /// The text log.
    pub log: String,
}

impl RunReport {
    /// What the jobs come to together.
    pub(super) fn merge(&mut self, is_stopped: bool) {
        let stopped = if is_stopped { STOPPED } else { 0 };
        self.exit = worst(self.jobs.iter().map(|job| job.exit).chain([stopped]));
        let has_warnings =
            !self.warnings.is_empty() || self.jobs.iter().any(|job| !job.warnings.is_empty());
        self.outcome = JobOutcome::of(self.exit, has_warnings);
    }
}

/// The worst of several exit codes; 0 only if all are.
fn worst(exits: impl IntoIterator<Item = u8>) -> u8 {
    let rank = |exit: &u8| match exit {
        0 => usize::MAX,
        exit => {
            let failed = WORST_FIRST.iter().position(|known| *known == FAILED);
            WORST_FIRST.iter().position(|known| known == exit).or(failed).unwrap_or(0)
        }
    };
    let worst = exits.into_iter().min_by_key(rank).unwrap_or(0);
    if worst == 0 || WORST_FIRST.contains(&worst) { worst } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_exit_code_counts_and_an_unknown_one_is_a_failure() {
        assert_eq!(worst([]), 0);
        assert_eq!(worst([0, 0]), 0);
        for (index, exit) in WORST_FIRST.into_iter().enumerate() {
            assert_eq!(worst([0, exit]), exit);
            for better in &WORST_FIRST[index..] {
                assert_eq!(worst([*better, exit, 0]), exit);
            }
        }
        assert_eq!(worst([5, 101, 0]), 1);
        assert_eq!(worst([134]), 1);
    }
}
