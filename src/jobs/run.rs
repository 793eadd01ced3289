//! All jobs of a run: in sequence, or several at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::control::status::StatusReport;
use crate::daemon::signals::{Order, Signals};
use crate::engine::events::{Event, Step};
use crate::error::{Error, Result};
use crate::jobs::hooks::Object;
use crate::jobs::plan::{Job, Plan};
use crate::jobs::process::Stop;
use crate::jobs::record::Record;
use crate::jobs::report::{JobOutcome, JobReport, RunReport};
use crate::jobs::shares::{self, Shares};
use crate::jobs::snapshot;

/// What happens while a run goes on.
#[derive(Debug)]
pub enum News<'a> {
    /// A job begins.
    JobBegun(&'a Job),
    /// How far its copy is.
    Progress(&'a Job, &'a StatusReport),
    /// What it does besides copying, in words.
    Step(&'a Job, &'static str),
    /// Something is not as it should be.
    Warning(&'a Job, &'a str),
    /// A job is over.
    JobEnded(&'a JobReport),
}

/// Whoever looks on.
pub trait Audience {
    /// Something happens.
    fn hear(&mut self, news: News<'_>);
}

/// What the futures of all jobs share; they run on one thread, and none keeps it over a wait.
pub(super) struct Stage<'a> {
    pub(super) audience: &'a mut dyn Audience,
    pub(super) record: Record,
    pub(super) shares: Shares,
}

/// A run that goes on.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    /// Nothing is changed.
    pub(super) is_dry: bool,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) stage: RefCell<Stage<'a>>,
}

/// Runs all jobs of `plan`; blocks until the last is over. Only for the main thread: when it ends, so do the processes of the jobs.
///
/// # Errors
/// Whatever keeps the run from starting; what becomes of jobs is in the report.
pub fn run(
    plan: &Plan,
    record: Record,
    is_dry: bool,
    audience: &mut dyn Audience,
) -> Result<RunReport> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("start runtime", error))?;
    runtime.block_on(async {
        let signals = Signals::listen()?;
        let (stopper, stop) = watch::channel(Stop::No);
        let shares = Shares::new(plan.limit);
        let stage = RefCell::new(Stage { audience, record, shares });
        Run { plan, is_dry, stop, stage }.live(signals, &stopper).await
    })
}

impl Run<'_> {
    async fn live(&self, mut signals: Signals, stopper: &watch::Sender<Stop>) -> Result<RunReport> {
        let began = Instant::now();
        let log = self.stage.borrow().record.open_log()?;
        let mut report = self.new_report();
        self.tell_run(Step::Begun, None);
        let told = self.tell_shares();
        let RunReport { jobs, warnings, .. } = &mut report;
        let work = async {
            self.sweep(warnings, &log).await;
            self.all_jobs(jobs).await;
        };
        let watch = async {
            loop {
                match signals.next().await {
                    Order::End => stopper.send_modify(|stop| {
                        *stop = if *stop == Stop::No { Stop::Save } else { Stop::Kill };
                    }),
                    Order::Explain => tracing::info!(shares = ?self.stage.borrow().shares, "runs"),
                }
            }
        };
        tokio::pin!(watch);
        tokio::select! {
            () = work => {}
            () = &mut watch => {}
            () = told => {}
        }
        report.merge(*self.stop.borrow() != Stop::No);
        report.elapsed_s = began.elapsed().as_secs_f64();
        if !self.is_dry {
            let hook = self.run_hook(&report);
            let warning = tokio::select! {
                warning = hook => warning,
                () = watch => None,
            };
            report.warnings.extend(warning);
            report.merge(*self.stop.borrow() != Stop::No);
        }
        self.tell_run(Step::Ended, Some(report.outcome));
        Ok(report)
    }

    /// Removes snapshots that a killed run has left; that can be given up at any time.
    async fn sweep(&self, warnings: &mut Vec<String>, log: &File) {
        if self.is_dry {
            return;
        }
        let state = self.stage.borrow().record.state.clone();
        tokio::select! {
            found = snapshot::sweep(&state, log) => warnings.extend(found),
            () = self.stopped(Stop::Save) => {}
        }
    }

    /// Waits until the run is told to end in this way, or a harder one.
    pub(super) async fn stopped(&self, how: Stop) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop >= how).await.is_err() {
            // Nobody is left who could tell.
            std::future::pending().await
        }
    }

    /// Begins as many as may run at once; a failed one keeps others from beginning only if that is asked for.
    async fn all_jobs(&self, reports: &mut [JobReport]) {
        let mut waiting: VecDeque<usize> = (0..self.plan.jobs.len()).collect();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.plan.parallel
                && *self.stop.borrow() == Stop::No
                && let Some(index) = waiting.pop_front()
            {
                running.push(async move { (index, self.job(index).await) });
            }
            let Some((index, report)) = running.next().await else { break };
            if report.outcome == JobOutcome::Failed && self.plan.stop_on_error {
                waiting.clear();
            }
            if let Some(place) = reports.get_mut(index) {
                *place = report;
            }
        }
        for report in reports.iter().filter(|report| report.outcome == JobOutcome::Skipped) {
            self.stage.borrow_mut().audience.hear(News::JobEnded(report));
        }
    }

    /// Tells every process its share of the limit, whenever that changes.
    async fn tell_shares(&self) {
        let mut look = tokio::time::interval(shares::LOOK);
        loop {
            look.tick().await;
            let untold = self.stage.borrow().shares.untold();
            for untold in untold {
                match tokio::task::spawn_blocking(move || untold.tell()).await {
                    Ok(Ok(())) => self.stage.borrow_mut().shares.told(untold),
                    // It is not ready to hear it yet, or has just ended.
                    Ok(Err(error)) => tracing::debug!(%error, "share is not told yet"),
                    Err(died) => tracing::warn!(%died, "share is not told"),
                }
            }
        }
    }

    async fn run_hook(&self, report: &RunReport) -> Option<String> {
        let directory = self.plan.file.parent()?;
        let log = self.stage.borrow().record.open_log();
        let object = Object::of_run(report);
        let mut stop = self.stop.clone();
        self.plan.hooks.run(report.outcome, &object, directory, log, &mut stop).await
    }

    fn new_report(&self) -> RunReport {
        let record = &self.stage.borrow().record;
        RunReport {
            run: record.run().to_owned(),
            file: self.plan.file.display().to_string(),
            outcome: JobOutcome::Skipped,
            exit: 0,
            jobs: self.plan.jobs.iter().map(JobReport::skipped).collect(),
            warnings: Vec::new(),
            elapsed_s: 0.0,
            log: record.log().display().to_string(),
        }
    }

    fn tell_run(&self, what: Step, outcome: Option<JobOutcome>) {
        let jobs = u64::try_from(self.plan.jobs.len()).unwrap_or(u64::MAX);
        let mut stage = self.stage.borrow_mut();
        let run = stage.record.run().to_owned();
        let outcome = outcome.map(|outcome| outcome.as_str().into());
        stage.record.tell("", &self.plan.file, Event::Run { what, run, jobs, outcome });
    }
}
