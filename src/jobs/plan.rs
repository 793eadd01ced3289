//! A jobs file, read and checked as a whole before anything is begun.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::settings::SourceSpec;
use crate::error::{Error, Kind, Result};
use crate::jobs::fields::alike;
use crate::jobs::options::CopyOption;
use crate::jobs::{file, trust};

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The file, without links.
    pub file: PathBuf,
    /// Most jobs at once; at least 1.
    pub parallel: usize,
    /// Begin no other job after one has failed.
    pub stop_on_error: bool,
    /// Bytes per second of all jobs together.
    pub limit: Option<u64>,
    /// After the last job.
    pub hooks: Hooks,
    /// In the order of the file.
    pub jobs: Vec<Job>,
}

/// Programs to be told how it went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// After `complete` and `complete-with-warnings`.
    pub on_complete: Option<Vec<String>>,
    /// After `failed` and `stopped`.
    pub on_error: Option<Vec<String>>,
    /// How long each may take.
    pub timeout: Duration,
}

/// One copy.
#[derive(Debug, Clone)]
pub struct Job {
    /// Unique in the file; letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// What is copied.
    pub source: SourceSpec,
    /// The source for people, without secrets.
    pub shown_source: String,
    /// Absolute.
    pub destination: PathBuf,
    /// Other options of `lazycopy copy`.
    pub options: Vec<CopyOption>,
    /// Bytes per second.
    pub limit: Option<u64>,
    /// Prove the copy again afterwards.
    pub verify: bool,
    /// What is read instead of the source.
    pub snapshot: Snapshot,
    /// If there is no snapshot, nothing is copied.
    pub snapshot_required: bool,
    /// After this job.
    pub hooks: Hooks,
    /// Run unless jobs are named.
    pub is_enabled: bool,
}

/// What is read instead of the source, so that all of it is of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snapshot {
    /// Nothing.
    None,
    /// A snapshot of the subvolume that the source lies in.
    Btrfs,
    /// What a program prints the path of.
    Command {
        /// Makes it.
        make: Vec<String>,
        /// Takes it away.
        remove: Option<Vec<String>>,
    },
}

/// Reads and checks `file`.
///
/// # Errors
/// All that is wrong with it, in the order of its lines.
pub fn read(file: &Path) -> Result<Plan, Vec<Error>> {
    let trusted = trust::read(file).map_err(|error| vec![error])?;
    file::parse(file, &trusted.path, &trusted.text)
}

impl Plan {
    /// Keeps the jobs that are named, or those that are enabled if none is.
    ///
    /// # Errors
    /// `Invalid` for a name that no job has, or if nothing is left.
    pub fn select(&mut self, names: &[String]) -> Result<()> {
        let file = self.file.clone();
        let refused = || Error::new(Kind::Invalid, "run jobs of").at(&file);
        for name in names {
            if self.jobs.iter().any(|job| job.name == *name) {
                continue;
            }
            let known: Vec<&str> = self.jobs.iter().map(|job| job.name.as_str()).collect();
            let meant = alike(name, known.iter().copied());
            let meant = meant.map(|meant| format!("did you mean `{meant}`? "));
            return Err(refused().because(format!("it has no job `{name}`")).hint(format!(
                "{}It has {}",
                meant.unwrap_or_default(),
                known.join(", ")
            )));
        }
        let all = self.jobs.len();
        self.jobs.retain(|job| match names.is_empty() {
            true => job.is_enabled,
            false => names.contains(&job.name),
        });
        match (self.jobs.is_empty(), all) {
            (false, _) => Ok(()),
            (true, 0) => Err(refused().because("it has no [[job]]")),
            (true, _) => {
                Err(refused().because("no job is enabled").hint("name one, or set enabled = true"))
            }
        }
    }
}
