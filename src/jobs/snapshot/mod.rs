//! A source of one moment: a snapshot is made before a job, read instead of the source, and removed afterwards, also after a crash.
//!
//! Before it is made it is written down in `STATE/snapshots/`; what a dead process left there is removed at the next run. Only what is
//! written down and has our name is ever removed.

mod btrfs;
mod ledger;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::error::{Error, Kind, Result};
use crate::jobs::plan::Snapshot;
use crate::jobs::process::{guarded, kill_group};

pub(super) use ledger::{Entry, sweep};

/// How long making or removing one may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longer than any path.
const ANSWER_MAX: u64 = 64 * 1024;
/// What the names of all snapshots begin with.
pub(super) const PREFIX: &str = ".lazycopy-snapshot-";

/// A snapshot that is there.
#[derive(Debug)]
pub(super) struct Made {
    /// What is read instead of the source.
    pub(super) read_from: PathBuf,
    entry: Entry,
}

/// For whom a snapshot is made.
#[derive(Debug)]
pub(super) struct Order<'a> {
    /// The state directory.
    pub(super) state: &'a Path,
    pub(super) job: &'a str,
    pub(super) run: &'a str,
    pub(super) source: &'a Path,
    pub(super) log: &'a File,
}

/// Makes what `snapshot` asks for; `None` if it asks for nothing.
///
/// # Errors
/// `NotSupported` if that is not possible here; whatever the programs that do it say. Nothing is left then.
pub(super) async fn make(snapshot: &Snapshot, order: &Order<'_>) -> Result<Option<Made>> {
    let name = format!("{PREFIX}{}-{}", order.job, order.run);
    match snapshot {
        Snapshot::None => Ok(None),
        Snapshot::Btrfs => btrfs::make(name, order).await.map(Some),
        Snapshot::Command { make, remove } => by_command(name, make, remove, order).await.map(Some),
    }
}

impl Made {
    /// Removes it.
    ///
    /// # Errors
    /// As the programs that do it; then the next run tries again.
    pub(super) async fn remove(self, log: &File) -> Result<()> {
        self.entry.remove(log).await
    }
}

async fn by_command(
    name: String,
    make: &[String],
    remove: &Option<Vec<String>>,
    order: &Order<'_>,
) -> Result<Made> {
    let fill = |argv: &[String]| -> Vec<String> {
        let source = order.source.to_string_lossy();
        argv.iter().map(|arg| arg.replace("{name}", &name).replace("{source}", &source)).collect()
    };
    let (make, remove) = (fill(make), remove.as_deref().map(fill));
    let mut entry = Entry::of_command(order.state, name, remove);
    entry.write()?;
    let made = match program(&make, order.log).await {
        Ok(answer) => named_path(&answer, &make[0]),
        Err(error) => Err(error),
    };
    match made {
        Ok(path) => {
            entry.set_path(&path);
            entry.write()?;
            Ok(Made { read_from: path, entry })
        }
        Err(error) => {
            // It may have come half the way.
            if let Err(left) = entry.remove(order.log).await {
                tracing::warn!(error = %left, "snapshot is not removed; the next run tries again");
            }
            Err(error)
        }
    }
}

/// The last line that is not empty.
fn named_path(answer: &str, program: &str) -> Result<PathBuf> {
    let line = answer.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let path = PathBuf::from(line);
    let wrong = |why: &str| {
        Error::new(Kind::Invalid, "make snapshot")
            .at(program)
            .because(why)
            .hint("its last line on standard output must be the absolute path to read from")
    };
    match () {
        () if !path.is_absolute() => Err(wrong("it printed no absolute path")),
        () if !path.exists() => Err(wrong(&format!("it printed {line}, which is not there"))),
        () => Ok(path),
    }
}

/// Runs a program to its end; what it prints on standard output. What it says on standard error goes to `log`.
async fn program(argv: &[String], log: &File) -> Result<String> {
    let failed = |error: std::io::Error| Error::io("run", error).at(&argv[0]);
    tracing::info!(?argv, "snapshot");
    let mut command = guarded(argv);
    command.stdout(Stdio::piped()).stderr(log.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let mut answer = Vec::new();
    let out = child.stdout.take();
    let listen = async {
        if let Some(out) = out {
            out.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        }
        child.wait().await
    };
    let ended = tokio::time::timeout(PATIENCE, listen).await;
    let why = match ended {
        Ok(Ok(status)) if status.success() => {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        Ok(Ok(status)) => format!("it failed ({status}); what it said is in the log"),
        Ok(Err(error)) => return Err(failed(error)),
        Err(_late) => {
            kill_group(&child);
            format!("it was killed after {} s", PATIENCE.as_secs())
        }
    };
    Err(Error::new(Kind::Io, "run").at(&argv[0]).because(why))
}
