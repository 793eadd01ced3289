//! Where log lines go. Writing one never blocks the caller: a full buffer drops lines instead.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::MultiProgress;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::error::{Error, Kind, Result};

/// Lines that wait for the disk; about 4 MiB.
const BUFFERED_LINES: usize = 16 * 1024;
/// Daily files that are kept.
const KEPT_FILES: usize = 7;

/// What is logged, and where.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// What to log: error, warn, info, debug or trace, also per module: info,lazycopy::vfs=trace [default: info, with -f on a
    /// terminal warn]
    #[arg(long, value_name = "LEVEL", env = "LAZYCOPY_LOG", hide_env_values = true)]
    log_level: Option<String>,
    /// Log file, not rotated [default: standard error with -f or under systemd, else one file a day, 7 kept, in
    /// $XDG_STATE_HOME/lazycopy/ or, for root, /var/log/lazycopy/]
    #[arg(long, value_name = "FILE", env = "LAZYCOPY_LOG_FILE", hide_env_values = true)]
    log: Option<PathBuf>,
}

const USUAL: &str = "info";
const QUIET: &str = "warn";

/// Decided before the start.
#[derive(Debug, Clone)]
pub(crate) struct LogSettings {
    level: Option<String>,
    file: Option<PathBuf>,
}

/// Where the lines of this process go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogPlace {
    /// Standard error.
    Stderr,
    /// This file, as it is.
    File(PathBuf),
    /// One file a day in this directory.
    Directory(PathBuf),
}

impl fmt::Display for LogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogPlace::Stderr => f.write_str("standard error"),
            LogPlace::File(path) => path.display().fmt(f),
            LogPlace::Directory(path) => write!(f, "{}/", path.display()),
        }
    }
}

impl LogArgs {
    /// Checks them.
    ///
    /// # Errors
    /// `Invalid` for a level that makes no sense.
    pub(crate) fn settings(&self) -> Result<LogSettings> {
        filter(self.log_level.as_deref().unwrap_or(QUIET))?;
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|error| Error::io("use log file", error).at(path))
        };
        let file = self.log.as_ref().map(absolute).transpose()?;
        Ok(LogSettings { level: self.log_level.clone(), file })
    }
}

fn filter(level: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(level).map_err(|error| {
        Error::new(Kind::Invalid, "read --log-level").because(format!("{level}: {error}"))
    })
}

impl LogSettings {
    /// The place for a daemon in the background.
    ///
    /// # Errors
    /// `Invalid` if no directory can be named.
    pub(crate) fn background_place(&self) -> Result<LogPlace> {
        match &self.file {
            Some(file) => Ok(LogPlace::File(file.clone())),
            None if stderr_is_journal() => Ok(LogPlace::Stderr),
            None => Ok(LogPlace::Directory(state_directory()?)),
        }
    }

    /// The place for a daemon in the foreground.
    pub(crate) fn foreground_place(&self) -> LogPlace {
        self.file.clone().map_or(LogPlace::Stderr, LogPlace::File)
    }
}

/// `$XDG_STATE_HOME/lazycopy`, or `/var/log/lazycopy` for root.
pub(crate) fn state_directory() -> Result<PathBuf> {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(state) = variable("XDG_STATE_HOME") {
        return Ok(state.join("lazycopy"));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/log/lazycopy"));
    }
    variable("HOME").map(|home| home.join(".local/state/lazycopy")).ok_or_else(|| {
        Error::new(Kind::Invalid, "find a place for the log")
            .because("neither XDG_STATE_HOME nor HOME is set")
            .hint("--log FILE names one")
    })
}

/// Whether standard error goes to journald: systemd.exec(5), `$JOURNAL_STREAM` names the stream's device and inode.
pub(crate) fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| {
        stream.to_str() == Some(format!("{}:{}", stderr.dev(), stderr.ino()).as_str())
    })
}

/// Makes `directory`, readable by this user only.
pub(crate) fn ensure_directory(directory: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        Error::io("make log directory", error).at(directory).hint("--log FILE names another place")
    })
}

/// Keeps the log going; dropping it writes what is buffered.
#[derive(Debug)]
pub(crate) struct LogGuard {
    _worker: WorkerGuard,
}

/// Starts logging for the rest of the process; lines on a terminal go above its progress bar.
///
/// # Errors
/// If the file or directory cannot be used.
pub(crate) fn start(
    settings: &LogSettings,
    place: &LogPlace,
    terminal: Option<&MultiProgress>,
) -> Result<LogGuard> {
    let (writer, worker) = match place {
        LogPlace::Stderr => match terminal {
            Some(terminal) => buffered(AboveBar(terminal.clone())),
            None => buffered(io::stderr()),
        },
        LogPlace::File(path) => buffered(open(path)?),
        LogPlace::Directory(path) => {
            ensure_directory(path)?;
            let daily = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .max_log_files(KEPT_FILES)
                .filename_prefix("lazycopy")
                .filename_suffix("log")
                .build(path)
                .map_err(|error| Error::io("open log", io::Error::other(error)).at(path))?;
            buffered(daily)
        }
    };
    // A line a file would push the progress bar off the screen.
    let usual = if terminal.is_some() { QUIET } else { USUAL };
    let level = settings.level.as_deref().unwrap_or(usual);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_thread_ids(true)
        .with_ansi(false)
        .with_timer(TimeAndProcess)
        .with_writer(writer)
        .finish();
    // Only a second start in one process fails, which then keeps the first log.
    drop(tracing::subscriber::set_global_default(subscriber));
    log_panics();
    Ok(LogGuard { _worker: worker })
}

fn open(path: &Path) -> Result<fs::File> {
    let file = fs::File::options().append(true).create(true).open(path);
    file.map_err(|error| Error::io("open log", error).at(path))
}

fn buffered(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("log")
        .finish(writer)
}

/// A daemon's standard error is nowhere: its panics belong into the log too.
fn log_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "panic");
        default(panic);
    }));
}

/// Several daemons share a file: each line says whose it is.
struct TimeAndProcess;

impl FormatTime for TimeAndProcess {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        write!(writer, " {}", std::process::id())
    }
}

/// Standard error with a progress bar on it.
struct AboveBar(MultiProgress);

impl Write for AboveBar {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_makes_no_sense_is_refused() {
        let args = |level: &str| LogArgs { log_level: Some(level.to_owned()), log: None };
        assert!(args("info,lazycopy::vfs=trace").settings().is_ok());
        assert_eq!(args("lazycopy=loud").settings().unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_named_file_is_where_lines_go() {
        let file = PathBuf::from("/x/log");
        let settings = LogSettings { level: None, file: Some(file.clone()) };
        assert_eq!(settings.foreground_place(), LogPlace::File(file.clone()));
        assert_eq!(settings.background_place().unwrap(), LogPlace::File(file));
    }
}
