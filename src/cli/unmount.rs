//! `lazycopy unmount`: ends a mount and its daemon, or clears what a dead one left.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::cli::exit::Exit;
use crate::cli::target::Target;
use crate::cli::{complain, say};
use crate::control::UnmountRequest;
use crate::control::client::Client;
use crate::control::registry::{Found, SessionRecord};
use crate::error::{Error, Kind, Result};
use crate::vfs::busy::who_is_busy;
use crate::vfs::mount::{UnmountMode, unmount_ours};
use crate::vfs::mountinfo::{self, DeviceNumber, MountEntry};
use crate::vfs::mountpoint::is_dead;

/// Time for a daemon to unmount, save and end.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time for a daemon to obey `--force` before it is done without it.
const FORCE_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at a process or a busy mount.
const POLL: Duration = Duration::from_millis(20);
/// Between two attempts to unmount what is busy.
const BUSY_POLL: Duration = Duration::from_millis(500);
/// Users of a mount that an error names.
const NAMED: usize = 10;

/// End a mount: returns when it is gone and its daemon has saved and ended (deadline 30 s).
///
/// A busy mount stays, and the error names who uses it. A dead mount of lazycopy is cleared; a mount of another program is
/// never touched.
#[derive(Debug, Args)]
pub(crate) struct UnmountArgs {
    /// Where it is mounted, or its destination
    mountpoint: PathBuf,
    /// Wait, without a deadline, until nobody uses it [default: fail when busy]
    #[arg(long, env = "LAZYCOPY_WAIT", hide_env_values = true, value_parser = BoolishValueParser::new())]
    wait: bool,
    /// Detach now: open files lose the daemon [default: off]
    #[arg(long, env = "LAZYCOPY_FORCE", hide_env_values = true, conflicts_with = "wait", value_parser = BoolishValueParser::new())]
    force: bool,
}

pub(crate) fn run(args: &UnmountArgs) -> Result<Exit> {
    let target = Target::find(&args.mountpoint)?;
    let mountpoint = match &target.daemon {
        Some(daemon) => daemon.record.mountpoint(),
        None => target.path.clone(),
    };
    // Our own current directory must not be what keeps it busy.
    std::env::set_current_dir("/").map_err(|error| Error::io("leave directory", error))?;
    let top = mountinfo::top_at(&target.mounts, &mountpoint);
    let job = Unmount { mountpoint: &mountpoint, args, mounts: &target.mounts };
    match (&target.daemon, top.filter(|top| top.is_lazycopy())) {
        (Some(daemon), Some(ours)) if !is_dead(&mountpoint, &target.mounts) => {
            job.by_daemon(daemon, ours.device)?;
        }
        (_, Some(ours)) => job.directly(ours.device)?,
        (Some(daemon), None) => {
            // A clone that has dissolved, for example, and serves who stayed in it.
            if args.force {
                let request = UnmountRequest { wait: false, force: true };
                let told = Client::new(&daemon.socket).unmount(request, FORCE_DEADLINE);
                told.or_else(|error| if daemon.record.is_alive() { Err(error) } else { Ok(()) })?;
            }
            job.await_end(&daemon.record)?;
        }
        (None, None) => return Err(job.nothing_of_ours(top)),
    }
    say(&format!("unmounted {}", mountpoint.display()));
    Ok(Exit::Ok)
}

struct Unmount<'a> {
    mountpoint: &'a Path,
    args: &'a UnmountArgs,
    mounts: &'a [MountEntry],
}

impl Unmount<'_> {
    fn by_daemon(&self, daemon: &Found, number: DeviceNumber) -> Result<()> {
        let client = Client::new(&daemon.socket);
        let request = UnmountRequest { wait: self.args.wait, force: self.args.force };
        let patience = if self.args.force { FORCE_DEADLINE } else { DEADLINE };
        loop {
            let Err(error) = client.unmount(request, patience) else { break };
            match error.kind() {
                Kind::Busy if self.args.wait => thread::sleep(BUSY_POLL),
                Kind::Busy => return Err(self.busy(number)),
                // An unmount that takes longer than one answer goes on by itself.
                Kind::Timeout if self.args.wait => {}
                // The daemon ended before its answer came: what counts is whether the mount is gone.
                Kind::Unreachable | Kind::NotFound if !daemon.record.is_alive() => {
                    return self.directly(number);
                }
                Kind::Timeout | Kind::Unreachable | Kind::NotFound if self.args.force => {
                    self.directly(number)?;
                    complain(&format!(
                        "the daemon, process {}, did not answer; it was detached and may still run",
                        daemon.record.pid
                    ));
                    return Ok(());
                }
                Kind::Timeout | Kind::Unreachable | Kind::NotFound => {
                    return Err(error.kinded(Kind::Busy).hint(format!(
                        "its process is {}; --force detaches the mount without it",
                        daemon.record.pid
                    )));
                }
                _ => return Err(error),
            }
        }
        self.await_end(&daemon.record)
    }

    /// Without a daemon to ask: it is dead, or another user's.
    fn directly(&self, number: DeviceNumber) -> Result<()> {
        let mode = if self.args.force || is_dead(self.mountpoint, self.mounts) {
            UnmountMode::Detach
        } else {
            UnmountMode::Normal
        };
        loop {
            match unmount_ours(self.mountpoint, number, mode) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == Kind::Busy && self.args.wait => {
                    thread::sleep(BUSY_POLL);
                }
                Err(error) if error.kind() == Kind::Busy => return Err(self.busy(number)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the daemon's process is gone, and with it its hold on the destination.
    fn await_end(&self, record: &SessionRecord) -> Result<()> {
        let started = Instant::now();
        while record.is_alive() {
            if !self.args.wait && started.elapsed() > DEADLINE {
                return Err(Error::new(Kind::Busy, "unmount").at(self.mountpoint).because(
                    format!(
                        "it is unmounted, but the daemon, process {}, is still saving after {} s",
                        record.pid,
                        DEADLINE.as_secs()
                    ),
                ));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn busy(&self, number: DeviceNumber) -> Error {
        let users = who_is_busy(self.mountpoint, number, self.mounts);
        let mut named: Vec<_> = users.iter().take(NAMED).map(ToString::to_string).collect();
        if users.len() > NAMED {
            named.push(format!("and {} more", users.len() - NAMED));
        }
        let who = if named.is_empty() {
            "by a process that this user may not see, or a mount on top of it".to_owned()
        } else {
            format!("by {}", named.join("; "))
        };
        Error::new(Kind::Busy, "unmount")
            .at(self.mountpoint)
            .because(format!("in use {who}"))
            .hint("--wait waits for them, --force takes it away from them")
    }

    fn nothing_of_ours(&self, top: Option<&MountEntry>) -> Error {
        let error = Error::new(Kind::Invalid, "unmount").at(self.mountpoint);
        match top {
            Some(top) => error
                .because(format!("a mount of type {} lies there, not one of lazycopy", top.fs_type))
                .hint("it is left alone; umount(8) is for others"),
            None => error.because("lazycopy has nothing mounted there"),
        }
    }
}
