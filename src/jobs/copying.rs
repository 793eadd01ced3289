//! A child that copies or proves: what it prints line by line, and how it ended.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

use crate::control::status::StatusReport;
use crate::control::verify::{Summary as Verified, VerifyLine};
use crate::error::{Error, Result};
use crate::jobs::process::{Stop, until_ended};
use crate::jobs::report::{FAILED, STOPPED};

/// What an error line of this program begins with.
const ERROR_LINE: &str = "lazycopy: ";

/// A line that a child printed.
#[derive(Debug)]
pub(super) enum Said {
    /// How far it is.
    Progress(Box<StatusReport>),
    /// Something is not as it should be; told of a path, or of the whole.
    Warning(String),
    /// The last line of a copy.
    Summary(Summary),
    /// The last line of a proof.
    Verified(Verified),
}

/// What a copy came to; `lazycopy copy --json` prints it.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Summary {
    pub(super) files: Files,
    pub(super) bytes: Bytes,
    pub(super) warnings: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Files {
    pub(super) copied: u64,
    pub(super) unchanged: u64,
    pub(super) failed: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Bytes {
    pub(super) copied: u64,
}

/// How a child ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    /// As an exit code.
    pub(super) exit: u8,
    /// Its error line, or what became of it.
    pub(super) message: Option<String>,
}

/// Starts `command`, shows each line that it prints, and waits until it has ended. What it says on standard error goes to `log`.
///
/// # Errors
/// If it cannot be started.
pub(super) async fn run(
    mut command: Command,
    args: &[OsString],
    mut log: std::fs::File,
    stop: &mut watch::Receiver<Stop>,
    mut begun: impl FnMut(Option<u32>),
    mut said: impl FnMut(Said),
) -> Result<Ended> {
    let failed = |error| Error::io("start process", error);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    begun(child.id());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut is_summed_up = false;
    let mut error_line = None;
    let show = each_line(out, |line| {
        if let Some(line) = parse(line) {
            is_summed_up |= matches!(line, Said::Summary(_) | Said::Verified(_));
            said(line);
        }
    });
    let keep = each_line(err, |line| {
        if let Some(error) = line.strip_prefix(ERROR_LINE) {
            error_line = Some(error.to_owned());
        }
        if let Err(error) = writeln!(log, "{line}") {
            tracing::debug!(%error, "line is not logged");
        }
    });
    let (status, (), ()) = tokio::join!(until_ended(&mut child, stop), show, keep);
    Ok(judge(status?, is_summed_up, error_line))
}

/// Death is never success, and neither is silence.
fn judge(status: ExitStatus, is_summed_up: bool, error_line: Option<String>) -> Ended {
    let (exit, message) = match (status.code(), status.signal()) {
        (Some(0), _) if is_summed_up => (0, None),
        (Some(0), _) => (FAILED, Some("it ended without a summary".to_owned())),
        (Some(code), _) => (u8::try_from(code).unwrap_or(FAILED), error_line),
        // A proof has nothing to save and so no use for these.
        (None, Some(libc::SIGINT | libc::SIGTERM | libc::SIGHUP)) => (STOPPED, None),
        (None, signal) => {
            let signal = signal.map_or_else(String::new, |number| format!(" by signal {number}"));
            (FAILED, Some(format!("its process was ended{signal}")))
        }
    };
    Ended { exit, message }
}

fn parse(line: &str) -> Option<Said> {
    let value: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let Some(kind) = text("type") else {
        return match serde_json::from_value(value).ok()? {
            VerifyLine::Summary(summary) => Some(Said::Verified(summary)),
            _ => None,
        };
    };
    match kind {
        "warning" => {
            let message = text("message").unwrap_or_default();
            Some(Said::Warning(match text("path") {
                Some(path) => format!("{path}: {message}"),
                None => message.to_owned(),
            }))
        }
        "progress" => {
            serde_json::from_value(value).ok().map(|status| Said::Progress(Box::new(status)))
        }
        "summary" => serde_json::from_value(value).ok().map(Said::Summary),
        _ => None,
    }
}

/// Every line until the other end is closed; what is not UTF-8 is replaced.
async fn each_line(from: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&str)) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) => take(String::from_utf8_lossy(&line).trim_end_matches('\n')),
            Err(error) => {
                tracing::warn!(%error, "a process is not heard any more");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn death_is_never_success() {
        let status = |raw| ExitStatus::from_raw(raw);
        let exit = |status, summed| judge(status, summed, None).exit;
        assert_eq!(exit(status(0), true), 0);
        assert_eq!(exit(status(0), false), FAILED);
        assert_eq!(exit(status(5 << 8), true), STOPPED);
        assert_eq!(exit(status(101 << 8), true), 101);
        for killed in [libc::SIGKILL, libc::SIGSEGV, libc::SIGABRT] {
            let ended = judge(status(killed), true, Some("x".to_owned()));
            assert_eq!(ended.exit, FAILED);
            assert!(ended.message.unwrap().contains(&killed.to_string()));
        }
    }
}
