//! What is shown of a run while it goes on: bars on a terminal, lines in a pipe, JSON for programs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::{complain, complain_plain, say, text};
use crate::control::status::StatusReport;
use crate::jobs::plan::{Job, Plan};
use crate::jobs::record::Record;
use crate::jobs::report::{JobOutcome, JobReport, SCHEMA};
use crate::jobs::run::{Audience, News};

/// Between two plain lines of a job.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two moves of a bar that hears nothing new.
const TICK: Duration = Duration::from_millis(500);
/// A bar's length in steps.
const STEPS: u64 = 1000;
/// Longer names are cut off before bars.
const NAME_WIDTH: usize = 16;

/// The outcome as people say it.
pub(super) fn outcome_words(outcome: JobOutcome) -> &'static str {
    match outcome {
        JobOutcome::CompleteWithWarnings => "complete with warnings",
        other => other.as_str(),
    }
}

pub(super) fn warning(text: &str) -> String {
    format!("warning: {text}")
}

/// One line about a job that is over.
fn ended(report: &JobReport) -> String {
    let JobReport { name, outcome, files, bytes, elapsed_s, .. } = report;
    let mut line = format!("{name}: {}", outcome_words(*outcome));
    if *outcome == JobOutcome::Skipped {
        return line;
    }
    if let Some(message) = &report.message {
        line += &format!(": {message}");
    }
    if files.copied + files.unchanged + files.failed == 0 && !outcome.is_complete() {
        return line;
    }
    line += &format!("; {} files, {}", text::count(files.copied), text::bytes(*bytes));
    if files.unchanged > 0 {
        line += &format!(", {} unchanged", text::count(files.unchanged));
    }
    format!("{line} in {elapsed_s:.1} s")
}

/// How far a copy is, for the rest of a short line.
fn brief(status: &StatusReport) -> String {
    let eta =
        status.eta_s.map_or_else(String::new, |left| format!("  ETA {}", text::seconds(left)));
    let paused =
        status.paused_by.map_or_else(String::new, |_| format!("  {}", text::phase(status)));
    format!(
        "{:5.1} %  {} of {}  {}/s{eta}{paused}",
        status.percent,
        text::bytes(status.bytes.local),
        text::bytes(status.bytes.total),
        text::bytes(status.rate_bytes_per_s)
    )
}

fn begun(job: &Job) -> String {
    format!("{}: {} -> {}", job.name, job.shown_source, job.destination.display())
}

/// Plain lines: what happens on standard error, how each job ended on standard output.
pub(super) struct Lines {
    last: BTreeMap<String, (Instant, String)>,
}

impl Lines {
    pub(super) fn begin(plan: &Plan, record: &Record) -> Self {
        complain_plain(&first_line(plan, record));
        Self { last: BTreeMap::new() }
    }

    /// A line that says nothing new is left out.
    fn progress(&mut self, job: &Job, status: &StatusReport) {
        let line = text::progress(status);
        let now = Instant::now();
        let (at, last) = self.last.entry(job.name.clone()).or_insert((now, String::new()));
        if now.duration_since(*at) >= LINE_INTERVAL && *last != line {
            complain_plain(&format!("{}: {line}", job.name));
            (*at, *last) = (now, line);
        }
    }
}

impl Audience for Lines {
    fn hear(&mut self, news: News<'_>) {
        match news {
            News::JobBegun(job) => complain_plain(&begun(job)),
            News::Progress(job, status) => self.progress(job, status),
            News::Step(job, what) => complain_plain(&format!("{}: {what}", job.name)),
            News::Warning(job, what) => complain(&warning(&format!("{}: {what}", job.name))),
            News::JobEnded(report) => say(&ended(report)),
        }
    }
}

/// A bar for each job that runs, and one for all.
pub(super) struct Screen {
    terminal: MultiProgress,
    running: BTreeMap<String, ProgressBar>,
    rates: BTreeMap<String, u64>,
    all: ProgressBar,
    jobs: usize,
    over: usize,
    width: usize,
}

impl Screen {
    pub(super) fn begin(plan: &Plan, record: &Record, terminal: MultiProgress) -> Self {
        complain_plain(&first_line(plan, record));
        let width = plan.jobs.iter().map(|job| job.name.len()).max().unwrap_or(0);
        let width = width.clamp("all".len(), NAME_WIDTH);
        // The last line does not fill its width: what a terminal echoes of Ctrl-C would be one more.
        let all = terminal.add(new_bar(width, "all", "{msg}"));
        all.enable_steady_tick(TICK);
        let (running, rates, jobs) = (BTreeMap::new(), BTreeMap::new(), plan.jobs.len());
        let screen = Self { terminal, running, rates, all, jobs, over: 0, width };
        screen.draw_all();
        screen
    }

    fn print(&self, line: &str) {
        if self.terminal.println(line).is_err() {
            complain_plain(line);
        }
    }

    fn progress(&mut self, job: &Job, status: &StatusReport) {
        self.rates.insert(job.name.clone(), status.rate_bytes_per_s);
        if let Some(bar) = self.running.get(&job.name) {
            bar.set_position(steps(status));
            bar.set_message(brief(status));
        }
        self.draw_all();
    }

    /// How much there is to copy is known of those jobs only that run: each counts the same.
    fn draw_all(&self) {
        let parts: u64 = self.running.values().map(ProgressBar::position).sum();
        let over = u64::try_from(self.over).unwrap_or(0) * STEPS;
        let jobs = u64::try_from(self.jobs).unwrap_or(1).max(1);
        self.all.set_position((over + parts) / jobs);
        let rate = self.rates.values().sum();
        self.all.set_message(format!(
            "{} of {} jobs over, {} running  {}/s",
            self.over,
            self.jobs,
            self.running.len(),
            text::bytes(rate)
        ));
    }
}

impl Audience for Screen {
    fn hear(&mut self, news: News<'_>) {
        match news {
            News::JobBegun(job) => {
                let bar = new_bar(self.width, &job.name, "{wide_msg}");
                let bar = self.terminal.insert_before(&self.all, bar);
                bar.set_message("begins");
                bar.enable_steady_tick(TICK);
                self.running.insert(job.name.clone(), bar);
                self.draw_all();
            }
            News::Progress(job, status) => self.progress(job, status),
            News::Step(job, what) => {
                if let Some(bar) = self.running.get(&job.name) {
                    bar.set_message(what);
                }
            }
            News::Warning(job, what) => self.print(&warning(&format!("{}: {what}", job.name))),
            News::JobEnded(report) => {
                if let Some(bar) = self.running.remove(&report.name) {
                    bar.disable_steady_tick();
                    self.terminal.remove(&bar);
                }
                self.rates.remove(&report.name);
                self.over += 1;
                self.print(&ended(report));
                self.draw_all();
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.all.disable_steady_tick();
        self.terminal.remove(&self.all);
        if let Err(error) = self.terminal.clear() {
            tracing::debug!(%error, "bars stay on the terminal");
        }
    }
}

/// Not drawn before it is on the screen.
fn new_bar(width: usize, name: &str, rest: &str) -> ProgressBar {
    let name: String = name.chars().take(width).collect();
    let style = ProgressStyle::with_template(&format!("{{prefix:{width}}} {{bar:12}} {rest}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏·");
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::hidden());
    bar.with_style(style).with_prefix(name)
}

fn steps(status: &StatusReport) -> u64 {
    let (local, total) = (u128::from(status.bytes.local), u128::from(status.bytes.total));
    let steps = (local * u128::from(STEPS)).checked_div(total).unwrap_or(0);
    u64::try_from(steps).unwrap_or(STEPS).min(STEPS)
}

/// One object on each line.
pub(super) struct Json;

impl Json {
    pub(super) fn begin(plan: &Plan, record: &Record) -> Self {
        let names: Vec<&str> = plan.jobs.iter().map(|job| job.name.as_str()).collect();
        say(&json!({
            "type": "run", "schema": SCHEMA, "run": record.run(), "file": plan.file.display().to_string(),
            "parallel": plan.parallel, "jobs": names, "log": record.log().display().to_string(),
        })
        .to_string());
        Self
    }
}

impl Audience for Json {
    fn hear(&mut self, news: News<'_>) {
        let line = match news {
            News::JobBegun(job) => json!({
                "type": "job-begun", "name": job.name, "source": job.shown_source,
                "destination": job.destination.display().to_string(),
            }),
            News::Progress(job, status) => {
                let mut line = serde_json::to_value(status).unwrap_or(Value::Null);
                line["type"] = "progress".into();
                line["name"] = job.name.as_str().into();
                line
            }
            News::Step(job, what) => json!({"type": "step", "name": job.name, "message": what}),
            News::Warning(job, what) => {
                json!({"type": "warning", "name": job.name, "message": what})
            }
            News::JobEnded(report) => {
                let mut line = serde_json::to_value(report).unwrap_or(Value::Null);
                line["type"] = "job-ended".into();
                line
            }
        };
        say(&line.to_string());
    }
}

fn first_line(plan: &Plan, record: &Record) -> String {
    let jobs = plan.jobs.len();
    let at_once = match plan.parallel.min(jobs) {
        1 => String::new(),
        parallel => format!(", {parallel} at once"),
    };
    let s = if jobs == 1 { "" } else { "s" };
    let log = match record.is_written() {
        true => format!("; log: {}", record.log().display()),
        false => "; nothing is changed".to_owned(),
    };
    format!("{jobs} job{s} of {}{at_once}{log}", plan.file.display())
}
