//! One job from its snapshot to its hook.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crate::daemon::settings::SourceSpec;
use crate::engine::events::{Event, Step};
use crate::error::{Kind, Result};
use crate::jobs::copying::{self, Ended, Said};
use crate::jobs::hooks::Object;
use crate::jobs::plan::{Job, Snapshot};
use crate::jobs::process::{Stop, ourselves};
use crate::jobs::report::{FileCounts, JobReport, NOT_SUPPORTED, REFUSED, STOPPED};
use crate::jobs::run::{News, Run};
use crate::jobs::snapshot::{self, Made};

/// Warnings of one job that are kept; the rest is in the log.
const WARNINGS: usize = 20;

impl Run<'_> {
    /// Runs job number `index`.
    pub(super) async fn job(&self, index: usize) -> JobReport {
        let began = Instant::now();
        let job = &self.plan.jobs[index];
        let mut report = JobReport::skipped(job);
        self.hear(News::JobBegun(job));
        self.tell_job(Step::Begun, &report);
        tracing::info!(job = %job.name, source = %job.shown_source, dest = %job.destination.display(), "begins");
        if let Err(error) = self.copy_and_verify(index, &mut report).await {
            report.message = Some(error.to_string());
            report.ended(if error.kind() == Kind::NotSupported { NOT_SUPPORTED } else { REFUSED });
        }
        report.elapsed_s = began.elapsed().as_secs_f64();
        if !self.is_dry {
            self.run_hook_of(job, &mut report).await;
        }
        tracing::info!(job = %job.name, outcome = report.outcome.as_str(), exit = report.exit, message = report.message, "ended");
        self.tell_job(Step::Ended, &report);
        self.hear(News::JobEnded(&report));
        report
    }

    async fn copy_and_verify(&self, index: usize, report: &mut JobReport) -> Result<()> {
        let job = &self.plan.jobs[index];
        let log = self.stage.borrow().record.open_log()?;
        let snapshot = tokio::select! {
            made = self.snapshot(job, report, &log) => made?,
            () = self.stopped(Stop::Save) => {
                // What there is of it is removed by the next run.
                report.ended(STOPPED);
                return Ok(());
            }
        };
        let read_from = snapshot.as_ref().map(|made| made.read_from.as_path());
        let copied = self.copy(index, read_from, report).await;
        if let Some(made) = snapshot {
            let removed = tokio::select! {
                removed = made.remove(&log) => removed.map_err(|error| error.to_string()),
                () = self.stopped(Stop::Kill) => Err("the run was told twice to end".to_owned()),
            };
            if let Err(why) = removed {
                self.warn(job, report, format!("the snapshot stays until the next run: {why}"));
            }
        }
        self.take_end(copied?, report);
        if job.verify && report.outcome.is_complete() && !self.is_dry {
            self.hear(News::Step(job, "proving the copy again"));
            let ended = self.verify(job, report).await?;
            self.take_end(ended, report);
        }
        Ok(())
    }

    fn take_end(&self, ended: Ended, report: &mut JobReport) {
        report.message = report.message.take().or(ended.message);
        report.ended(ended.exit);
    }

    /// What the job asks for. Without it nothing is copied, unless the job says that it may.
    async fn snapshot(
        &self,
        job: &Job,
        report: &mut JobReport,
        log: &File,
    ) -> Result<Option<Made>> {
        let (Snapshot::Btrfs | Snapshot::Command { .. }, SourceSpec::Local(source), false) =
            (&job.snapshot, &job.source, self.is_dry)
        else {
            return Ok(None);
        };
        self.hear(News::Step(job, "taking a snapshot"));
        let (state, run) = {
            let record = &self.stage.borrow().record;
            (record.state.clone(), record.run().to_owned())
        };
        let order = snapshot::Order { state: &state, job: &job.name, run: &run, source, log };
        match snapshot::make(&job.snapshot, &order).await {
            Err(error) if !job.snapshot_required => {
                let why = format!("copied without a snapshot: {error}");
                self.warn(job, report, why);
                Ok(None)
            }
            made => made,
        }
    }

    async fn copy(
        &self,
        index: usize,
        read_from: Option<&Path>,
        report: &mut JobReport,
    ) -> Result<Ended> {
        let job = &self.plan.jobs[index];
        let mut command = ourselves(["copy", "--json"]);
        for variable in job.options.iter().filter_map(|option| option.hidden_variable()) {
            command.env_remove(variable);
        }
        let rate = self.stage.borrow_mut().shares.begin(index, job.limit);
        let log = self.stage.borrow().record.log().to_owned();
        let args = copy_args(job, rate, read_from, &log, self.is_dry);
        let mut warnings = Vec::new();
        let said = |said: Said| match said {
            Said::Progress(status) => self.hear(News::Progress(job, &status)),
            Said::Warning(warning) => {
                self.hear(News::Warning(job, &warning));
                if warnings.len() < WARNINGS {
                    warnings.push(warning);
                }
            }
            Said::Summary(summary) => {
                let copying::Files { copied, unchanged, failed } = summary.files;
                report.files = FileCounts { copied, unchanged, failed };
                report.bytes = summary.bytes.copied;
                if failed > 0 {
                    report.message = Some(format!("{failed} files failed"));
                }
                if summary.warnings > 0 {
                    report.warn(format!("{} pieces of metadata were not kept", summary.warnings));
                }
            }
            Said::Verified(_) => {}
        };
        let begun = |pid| self.stage.borrow_mut().shares.set_pid(index, pid);
        let errors = self.stage.borrow().record.open_log()?;
        let ended = copying::run(command, &args, errors, &mut self.stop.clone(), begun, said).await;
        self.stage.borrow_mut().shares.end(index);
        warnings.into_iter().for_each(|warning| report.warn(warning));
        ended
    }

    async fn verify(&self, job: &Job, report: &mut JobReport) -> Result<Ended> {
        let command = ourselves(["verify", "--json"]);
        let args = [OsString::from("--"), job.destination.clone().into_os_string()];
        let errors = self.stage.borrow().record.open_log()?;
        let mut differing = 0;
        let said = |said: Said| {
            if let Said::Verified(verified) = said {
                differing = verified.differing;
            }
        };
        let ended =
            copying::run(command, &args, errors, &mut self.stop.clone(), |_pid| {}, said).await?;
        if differing > 0 {
            let why = format!(
                "{differing} entries differ from what was copied; `lazycopy verify` lists them"
            );
            report.message = Some(why);
        }
        Ok(ended)
    }

    async fn run_hook_of(&self, job: &Job, report: &mut JobReport) {
        let (run, log, file) = {
            let record = &self.stage.borrow().record;
            let log = record.open_log();
            (record.run().to_owned(), log, self.plan.file.display().to_string())
        };
        let Some(directory) = self.plan.file.parent() else { return };
        let path = self.stage.borrow().record.log().display().to_string();
        let object = Object::of_job(&run, &file, &path, report);
        let mut stop = self.stop.clone();
        let failed = job.hooks.run(report.outcome, &object, directory, log, &mut stop).await;
        if let Some(warning) = failed {
            self.warn(job, report, warning);
        }
    }

    fn warn(&self, job: &Job, report: &mut JobReport, warning: String) {
        tracing::warn!(job = %job.name, warning, "not as it should be");
        self.hear(News::Warning(job, &warning));
        report.warn(warning);
    }

    fn hear(&self, news: News<'_>) {
        self.stage.borrow_mut().audience.hear(news);
    }

    fn tell_job(&self, what: Step, report: &JobReport) {
        let is_over = what == Step::Ended;
        let event = Event::RunJob {
            what,
            name: report.name.clone(),
            source: report.source.clone(),
            dest: report.destination.clone(),
            outcome: is_over.then(|| report.outcome.as_str().into()),
            exit: is_over.then_some(report.exit),
            warnings: report.warnings.clone(),
            message: report.message.clone(),
        };
        let destination = Path::new(&report.destination);
        self.stage.borrow_mut().record.tell(&report.source, destination, event);
    }
}

fn copy_args(
    job: &Job,
    rate: Option<u64>,
    read_from: Option<&Path>,
    log: &Path,
    is_dry: bool,
) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        job.options.iter().flat_map(|option| option.arguments()).map(OsString::from).collect();
    let mut valued = |name: &str, value: &std::ffi::OsStr| {
        args.push(name.into());
        args.push(value.to_owned());
    };
    valued("--log", log.as_os_str());
    if let Some(rate) = rate {
        valued("--limit", rate.to_string().as_ref());
    }
    if let Some(path) = read_from {
        valued("--read-from", path.as_os_str());
        // What other jobs leave there at the moment shows as an empty directory.
        valued("--exclude", format!("{}*", snapshot::PREFIX).as_ref());
    }
    if is_dry {
        args.push("--dry-run".into());
    }
    args.push("--".into());
    args.push(match &job.source {
        SourceSpec::Local(path) => path.clone().into_os_string(),
        SourceSpec::Url(remote) => remote.url.as_str().into(),
    });
    args.push(job.destination.clone().into_os_string());
    args
}
