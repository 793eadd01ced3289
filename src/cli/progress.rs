//! Live progress of `mount -f` and `clone`: bars on a terminal, plain lines elsewhere.

use std::io::Write;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::text;
use crate::control::status::StatusReport;
use crate::daemon::readiness::StatusSource;

/// Between two looks of a bar.
const BAR_INTERVAL: Duration = Duration::from_millis(250);
/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two lines for programs.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// The bar's length in steps.
const STEPS: u64 = 1000;

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts showing what `status` says. `hint` is the last line on a terminal, if it is not empty.
    pub(crate) fn start(mut status: StatusSource, view: View, hint: &str) -> Self {
        let (stop, stopped) = channel::bounded(1);
        let hint = hint.to_owned();
        let show = move || match view {
            View::Bar(terminal) => {
                let bar = terminal.add(new_bar("{bar:19} {wide_msg}"));
                repeat(&stopped, BAR_INTERVAL, || {
                    if let Some(report) = status() {
                        draw(&bar, text::progress(&report), &report);
                    }
                });
                bar.finish_and_clear();
            }
            View::Clone => {
                let lines = CloneLines::new(&hint);
                repeat(&stopped, BAR_INTERVAL, || {
                    if let Some(report) = status() {
                        lines.draw(&report);
                    }
                });
                lines.clear();
            }
            View::Lines => {
                let mut last = String::new();
                repeat(&stopped, LINE_INTERVAL, || {
                    if let Some(report) = status() {
                        print_line(&mut last, &report);
                    }
                });
            }
        };
        Self::of(stop, show)
    }

    /// Starts printing what `status` says on standard output, one JSON object per line.
    pub(crate) fn as_json(mut status: StatusSource) -> Self {
        let (stop, stopped) = channel::bounded(1);
        let show = move || {
            repeat(&stopped, JSON_INTERVAL, || {
                if let Some(report) = status()
                    && let Ok(mut line) = serde_json::to_value(&report)
                {
                    line["type"] = "progress".into();
                    drop(writeln!(std::io::stdout(), "{line}"));
                }
            });
        };
        Self::of(stop, show)
    }

    fn of(stop: Sender<()>, show: impl FnOnce() + Send + 'static) -> Self {
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(show);
        let thread = thread.map_err(|error| tracing::warn!(err = %error, "no progress shown")).ok();
        Self { stop: Some(stop), thread }
    }
}

/// How progress is shown.
#[derive(Debug)]
pub(crate) enum View {
    /// One bar on this terminal.
    Bar(MultiProgress),
    /// What `clone` shows on a terminal.
    Clone,
    /// Plain lines on standard error.
    Lines,
}

/// Scan, space and copy: one line each.
#[derive(Debug)]
struct CloneLines {
    terminal: MultiProgress,
    scan: ProgressBar,
    space: ProgressBar,
    copy: ProgressBar,
    hint: ProgressBar,
}

impl CloneLines {
    fn new(hint: &str) -> Self {
        let terminal = MultiProgress::new();
        let add = |template| terminal.add(new_bar(template));
        let (scan, space) = (add("scan    {wide_msg}"), add("space   {wide_msg}"));
        let copy = add("copy    {bar:19} {wide_msg}");
        let last = add("{wide_msg}");
        last.set_message(hint.to_owned());
        Self { scan, space, copy, hint: last, terminal }
    }

    fn draw(&self, report: &StatusReport) {
        self.scan.set_message(text::scan(report));
        self.space.set_message(text::space(report));
        draw(&self.copy, text::copy(report), report);
        self.hint.tick();
    }

    fn clear(&self) {
        if let Err(error) = self.terminal.clear() {
            tracing::debug!(%error, "lines stay on the terminal");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("progress ended by a panic");
        }
    }
}

/// Calls `step` every `interval` until the other end of `stopped` is gone.
fn repeat(stopped: &channel::Receiver<()>, interval: Duration, mut step: impl FnMut()) {
    loop {
        step();
        match stopped.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn new_bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏·");
    ProgressBar::new(STEPS).with_style(style)
}

fn draw(bar: &ProgressBar, message: String, report: &StatusReport) {
    let (local, total) = (u128::from(report.bytes.local), u128::from(report.bytes.total));
    let steps = (local * u128::from(STEPS)).checked_div(total).unwrap_or(0);
    bar.set_position(u64::try_from(steps).unwrap_or(STEPS).min(STEPS));
    bar.set_message(message);
}

/// A line that says nothing new is left out.
fn print_line(last: &mut String, report: &StatusReport) {
    let line = text::progress(report);
    if line != *last {
        // Nobody reads it any more: not a reason to stop serving.
        drop(writeln!(std::io::stderr(), "{line}"));
        *last = line;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    #[test]
    fn dropping_it_ends_it_at_once() {
        let status = || Some(StatusReport::of(Path::new("/m"), Path::new("/d")));
        let started = Instant::now();
        drop(Progress::start(Box::new(status), View::Lines, ""));
        assert!(started.elapsed() < LINE_INTERVAL / 2);
    }

    #[test]
    fn the_bar_never_leaves_its_length() {
        let bar = ProgressBar::hidden();
        bar.set_length(STEPS);
        let mut report = StatusReport::of(Path::new("/m"), Path::new("/d"));
        draw(&bar, String::new(), &report);
        assert_eq!(bar.position(), 0);
        report.bytes.local = u64::MAX;
        report.bytes.total = 1;
        draw(&bar, String::new(), &report);
        assert_eq!(bar.position(), STEPS);
    }
}
