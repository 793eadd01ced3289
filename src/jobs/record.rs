//! What is written down of a run: its events, and a log of everything else, in `STATE/runs/`.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::engine::events::event::SCHEMA;
use crate::engine::events::{Event, Line, job_name, new_session};
use crate::error::{Error, Result};

/// Runs that are kept.
const KEPT: usize = 100;
const EVENTS: &str = "jsonl";
const LOG: &str = "log";

/// One run's files.
#[derive(Debug)]
pub struct Record {
    /// The state directory.
    pub(super) state: PathBuf,
    /// The name of the run.
    pub(super) id: String,
    /// `STATE/runs/RUN.jsonl`; `None` if nothing is written down.
    events: Option<File>,
    log: PathBuf,
    seq: u64,
}

impl Record {
    /// Begins the record of a run in the directory `state`; the oldest of others go.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn begin(state: &Path) -> Result<Self> {
        let directory = state.join("runs");
        make_private(&directory)?;
        let id = new_session();
        let path = directory.join(format!("{id}.{EVENTS}"));
        let events = File::options().append(true).create_new(true).mode(0o600).open(&path);
        let events = events.map_err(|error| Error::io("write run log", error).at(&path))?;
        remove_oldest(&directory);
        let log = directory.join(format!("{id}.{LOG}"));
        Ok(Self { state: state.to_owned(), id, events: Some(events), log, seq: 0 })
    }

    /// The record of a run that changes nothing.
    pub fn none(state: &Path) -> Self {
        let (state, id) = (state.to_owned(), new_session());
        Self { state, id, events: None, log: PathBuf::from("/dev/null"), seq: 0 }
    }

    /// Where logs go, of the run and all its processes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The log is elsewhere.
    #[must_use]
    pub fn logging_to(self, log: PathBuf) -> Self {
        Self { log, ..self }
    }

    /// Whether anything is written down.
    pub fn is_written(&self) -> bool {
        self.events.is_some()
    }

    /// Its name.
    pub fn run(&self) -> &str {
        &self.id
    }

    /// Opens the log for a process to write to.
    pub(super) fn open_log(&self) -> Result<File> {
        let file = File::options().append(true).create(true).mode(0o600).open(&self.log);
        file.map_err(|error| Error::io("open log", error).at(&self.log))
    }

    /// Writes down what happened to the copy of `source` into `destination`.
    pub(super) fn tell(&mut self, source: &str, destination: &Path, event: Event) {
        let Some(events) = &mut self.events else { return };
        self.seq += 1;
        let line = Line {
            schema: SCHEMA,
            seq: self.seq,
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            session: self.id.clone(),
            job: job_name(source, destination),
            event,
        };
        let written = serde_json::to_vec(&line).map_err(std::io::Error::from);
        let written = written.and_then(|mut text| {
            text.push(b'\n');
            events.write_all(&text)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "event is not written");
        }
    }
}

/// Makes a directory that only this user can enter.
pub(super) fn make_private(directory: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        Error::io("make directory", error).at(directory).hint("XDG_STATE_HOME names another place")
    })
}

/// Names begin with the time, so they are in order.
fn remove_oldest(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut runs: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == EVENTS))
        .collect();
    runs.sort();
    for path in runs.iter().rev().skip(KEPT) {
        for path in [path.clone(), path.with_extension(LOG)] {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "not removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_runs_are_kept() {
        let state = tempfile::tempdir().unwrap();
        let runs = state.path().join("runs");
        std::fs::create_dir(&runs).unwrap();
        for number in 0..KEPT + 5 {
            std::fs::write(runs.join(format!("0{number:05}.jsonl")), "").unwrap();
            std::fs::write(runs.join(format!("0{number:05}.log")), "").unwrap();
        }
        let record = Record::begin(state.path()).unwrap();
        record.open_log().unwrap();
        assert_eq!(std::fs::read_dir(&runs).unwrap().count(), 2 * KEPT);
        assert!(!runs.join("000005.log").exists() && runs.join("000006.log").exists());
    }
}
