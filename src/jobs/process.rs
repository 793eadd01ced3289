//! Child processes that never outlive us: they end when they are told to, at their time limit, and when this process dies.
//!
//! A child of our own program asks the kernel for a signal at our death (`--child-of`); any other program is started through
//! `lazycopy guarded`, which does that and then becomes the program.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Result};

/// Of this program, even after its file was replaced by another version.
const OURSELVES: &str = "/proc/self/exe";
/// How long a child that was told to end may take before it is killed: what a copy needs to save, and then some.
const SAVE_PATIENCE: Duration = Duration::from_secs(90);

/// Whether the run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    /// No.
    No,
    /// What runs saves and ends.
    Save,
    /// What runs is killed.
    Kill,
}

/// A child of our own program, not started yet.
pub(super) fn ourselves(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(OURSELVES);
    command
        .arg0("lazycopy")
        .args(["--child-of", &std::process::id().to_string()])
        .args(args)
        // Ctrl-C is for this process alone, which tells the others.
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null());
    command
}

/// Any other program, not started yet; it leads a process group of its own.
pub(super) fn guarded(argv: &[String]) -> Command {
    ourselves(
        [OsStr::new("guarded"), OsStr::new("--")].into_iter().chain(argv.iter().map(OsStr::new)),
    )
}

/// Waits for a child that is told to end when the run is.
pub(super) async fn until_ended(
    child: &mut Child,
    stop: &mut watch::Receiver<Stop>,
) -> Result<ExitStatus> {
    let pid = pid_of(child);
    let mut deadline = None;
    loop {
        let wanted = *stop.borrow_and_update();
        match wanted {
            Stop::No => {}
            Stop::Save if deadline.is_none() => {
                deadline = Some(Instant::now() + SAVE_PATIENCE);
                signal(pid, Signal::TERM);
            }
            Stop::Save => {}
            Stop::Kill => signal(pid, Signal::KILL),
        }
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let told = async {
            // Nobody is left who could tell anything: then only the end is waited for.
            if stop.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            status = child.wait() => return status.map_err(|error| Error::io("wait for process", error)),
            () = told => {}
            () = late => {
                signal(pid, Signal::KILL);
                deadline = Some(Instant::now() + SAVE_PATIENCE);
            }
        }
    }
}

/// Kills the program and everything that it started in its process group.
pub(super) fn kill_group(child: &Child) {
    if let Some(pid) = pid_of(child) {
        told(pid, rustix::process::kill_process_group(pid, Signal::KILL));
    }
}

/// `None` once its end was seen.
pub(super) fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)
}

fn signal(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        told(pid, rustix::process::kill_process(pid, signal));
    }
}

fn told(pid: Pid, result: rustix::io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(pid = pid.as_raw_nonzero(), %error, "not told to end");
    }
}
