//! Programs that are told how it went: no shell, one JSON object on standard input, a time limit. A hook that fails harms nothing.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tokio::sync::watch;

use crate::error::Error;
use crate::jobs::plan::Hooks;
use crate::jobs::process::{Stop, guarded, kill_group};
use crate::jobs::report::{JobOutcome, JobReport, RunReport, SCHEMA};

/// What a hook reads.
#[derive(Debug, Serialize)]
pub(super) struct Object<'a> {
    schema: u32,
    /// `job` or `run`.
    what: &'static str,
    run: &'a str,
    file: &'a str,
    log: &'a str,
    #[serde(flatten)]
    of: Of<'a>,
}

/// Whose hook it is.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Of<'a> {
    Job { job: &'a JobReport },
    Run { outcome: JobOutcome, exit: u8, elapsed_s: f64, jobs: &'a [JobReport] },
}

impl<'a> Object<'a> {
    /// For a hook of a job.
    pub(super) fn of_job(run: &'a str, file: &'a str, log: &'a str, job: &'a JobReport) -> Self {
        Self { schema: SCHEMA, what: "job", run, file, log, of: Of::Job { job } }
    }

    /// For a hook of the run.
    pub(super) fn of_run(report: &'a RunReport) -> Self {
        let RunReport { run, file, log, outcome, exit, elapsed_s, jobs, .. } = report;
        let of = Of::Run { outcome: *outcome, exit: *exit, elapsed_s: *elapsed_s, jobs };
        Self { schema: SCHEMA, what: "run", run, file, log, of }
    }
}

impl Hooks {
    /// The program for this outcome and its name among the keys.
    fn after(&self, outcome: JobOutcome) -> Option<(&'static str, &[String])> {
        let (key, argv) = match outcome {
            JobOutcome::Complete | JobOutcome::CompleteWithWarnings => {
                ("on-complete", &self.on_complete)
            }
            JobOutcome::Failed | JobOutcome::Stopped => ("on-error", &self.on_error),
            JobOutcome::Skipped => return None,
        };
        argv.as_deref().map(|argv| (key, argv))
    }

    /// Runs the hook for `outcome`, if there is one; what it prints goes to `log`. Says what went wrong with it.
    pub(super) async fn run(
        &self,
        outcome: JobOutcome,
        object: &Object<'_>,
        directory: &Path,
        log: Result<File, Error>,
        stop: &mut watch::Receiver<Stop>,
    ) -> Option<String> {
        let (key, argv) = self.after(outcome)?;
        tracing::info!(hook = key, program = %argv[0], "begins");
        let failed = run(argv, object, directory, log, self.timeout, stop).await.err();
        tracing::info!(hook = key, program = %argv[0], failed, "ended");
        failed.map(|why| format!("{key}: {} {why}", argv[0]))
    }
}

async fn run(
    argv: &[String],
    object: &Object<'_>,
    directory: &Path,
    log: Result<File, Error>,
    timeout: Duration,
    stop: &mut watch::Receiver<Stop>,
) -> Result<(), String> {
    let not_started = |error: std::io::Error| format!("was not started: {error}");
    let text = serde_json::to_vec(object).map_err(|error| not_started(error.into()))?;
    let log = log.map_err(|error| format!("was not started: {error}"))?;
    let mut command = guarded(argv);
    command.current_dir(directory).stdin(Stdio::piped());
    command.stdout(log.try_clone().map_err(not_started)?).stderr(log);
    let mut child = command.spawn().map_err(not_started)?;
    let killed = async {
        // Told once, it saves nothing: only the second time ends it.
        if stop.wait_for(|stop| *stop == Stop::Kill).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = speak_and_wait(&mut child, &text) => ended,
        () = tokio::time::sleep(timeout) => {
            Err(format!("was killed after {}", humantime::format_duration(timeout)))
        }
        () = killed => Err("was killed: the run was told twice to end".to_owned()),
    };
    if ended.is_err() {
        kill_group(&child);
    }
    ended
}

async fn speak_and_wait(child: &mut Child, text: &[u8]) -> Result<(), String> {
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to know closes it.
        let _wants_to_know = stdin.write_all(text).await.is_ok();
    }
    let status = child.wait().await.map_err(|error| format!("was lost: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("failed ({status}); what it said is in the log")),
    }
}
