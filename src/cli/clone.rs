//! `lazycopy clone`: a copy that is ready at once, in place.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use crossbeam::channel::{self, Receiver};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::background::{self, Ready, Speaks};
use crate::cli::copying::{CopyingArgs, ServingArgs, parse_time};
use crate::cli::exit::Exit;
use crate::cli::hydrate_options::HydrateArgs;
use crate::cli::limit_options::LimitArgs;
use crate::cli::logging::{LogArgs, LogPlace};
use crate::cli::progress::{Progress, View};
use crate::cli::target::Target;
use crate::cli::{absolute, complain, finish, say};
use crate::control::client::Client;
use crate::daemon::readiness::StatusSource;
use crate::daemon::settings::{
    AtEnd, Fill, InPlace, KeepPlace, KeepSettings, MountSettings, Refresh, SourceSpec,
};
use crate::error::{Error, Kind, Result};
use crate::vfs::mountpoint::check_nesting_in_place;

/// Copy SOURCE into DIR, which can be used at once: what is read comes first, everything else in the background.
///
/// Until everything is copied and proven, DIR is covered by a read-only mount of the whole tree; then that dissolves, and DIR is a plain
/// directory. Returns when DIR can be used; the daemon goes on in the background. On a terminal it shows how far it is, and Ctrl-C
/// leaves it running. Killed or rebooted: the same command goes on.
#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// What to copy: a directory or file, file:///…, http(s)://…, {s3,gs,az}://bucket/prefix
    source: OsString,
    /// Directory that becomes the copy; made if its parent exists
    dir: PathBuf,
    /// Return when everything is copied, with the exit code of that [default: when DIR can be used; on a terminal, when it is copied]
    #[arg(long, env = "LAZYCOPY_WAIT", hide_env_values = true, value_parser = BoolishValueParser::new())]
    wait: bool,
    /// Keep the complete copy mounted [default: take the mount away]
    #[arg(long, env = "LAZYCOPY_NO_DISSOLVE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    no_dissolve: bool,
    /// Time that programs get which stand in DIR without an open file when the mount is taken away, as 30s or 5m
    #[arg(long, value_name = "TIME", env = "LAZYCOPY_LINGER", hide_env_values = true, default_value = "60s", value_parser = parse_time)]
    linger: Duration,
    #[command(flatten)]
    copying: CopyingArgs,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    background: HydrateArgs,
    #[command(flatten)]
    log: LogArgs,
}

impl CloneArgs {
    /// Checks everything that can be checked without looking at a disk.
    fn settings(&self) -> Result<MountSettings> {
        let dir = absolute("use directory", &self.dir)?;
        let at_end = match self.no_dissolve {
            true => AtEnd::Stay,
            false => AtEnd::Dissolve { linger: self.linger },
        };
        Ok(MountSettings {
            source: SourceSpec::parse_with(&self.source, self.copying.source_options()?)?,
            mountpoint: dir.clone(),
            keep: KeepSettings { place: KeepPlace::Destination(dir), limit: None },
            state_dir: self.copying.state_dir()?,
            fill: Fill::Everything,
            hydrate: self.background.settings()?,
            mount: self.serving.mount()?,
            // It keeps the list of its scan.
            tree: self.serving.tree(&self.copying, Some(Refresh::Never)),
            reads: self.serving.reads(),
            publish: self.copying.publish(),
            limits: self.limits.settings(),
            fuse_threads: self.serving.fuse_threads,
            in_place: Some(InPlace { shown_as: self.dir.clone(), at_end }),
        })
    }

    fn log_place(&self) -> Result<LogPlace> {
        let place = self.log.settings()?.background_place()?;
        let path = match &place {
            LogPlace::Stderr => return Ok(place),
            LogPlace::File(path) | LogPlace::Directory(path) => path.clone(),
        };
        let dir = absolute("use directory", &self.dir)?;
        check_nesting_in_place(None, &dir, &[("log", path)])?;
        Ok(place)
    }
}

/// The parent of a daemon.
pub(crate) fn run(args: &CloneArgs, raw: &[OsString]) -> ExitCode {
    let place = match args.settings().and_then(|_| args.log_place()) {
        Ok(place) => place,
        Err(error) => return finish(Err(error)).into(),
    };
    let ready = match background::start_and_listen(raw, &place) {
        Ok(ready) => ready,
        Err(exit) => return exit,
    };
    let is_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    if !args.wait && !is_terminal {
        return Exit::Ok.into();
    }
    follow(args, &ready, if is_terminal { View::Clone } else { View::Lines }).unwrap_or_else(
        |error| {
            complain(&error.to_string());
            Exit::of(&error).into()
        },
    )
}

/// The daemon itself.
pub(crate) fn run_child(args: &CloneArgs) -> ExitCode {
    background::run_child(args.settings(), &args.log, Speaks::UntilSettled)
}

/// Shows how far it is until it is done, or the user has seen enough.
fn follow(args: &CloneArgs, ready: &Ready, view: View) -> Result<ExitCode> {
    let interrupts = interrupts()?;
    let watch = format!("lazycopy status --watch {}", args.dir.display());
    let progress =
        Progress::start(status_of(&args.dir), view, &format!("Ctrl-C leaves it running: {watch}"));
    let settled = channel::select! {
        recv(ready.lines()) -> line => Some(line),
        recv(interrupts) -> _ => None,
    };
    drop(progress);
    let Some(settled) = settled else {
        say(&format!("it goes on in the background: {watch}"));
        return Ok(if args.wait { Exit::Stopped } else { Exit::Ok }.into());
    };
    // A channel that closed without a word: unmounted, or killed.
    Ok(settled.ok().and_then(background::tell).unwrap_or_else(|| {
        let dir = args.dir.display();
        complain(&format!(
            "the daemon of {dir} ended before it was done; the same command goes on"
        ));
        Exit::Stopped.into()
    }))
}

/// Asks the daemon of `dir`, as soon as it can be found.
fn status_of(dir: &Path) -> StatusSource {
    let dir = dir.to_owned();
    let mut client: Option<Client> = None;
    Box::new(move || {
        if client.is_none() {
            let daemon = Target::find(&dir).ok().and_then(|target| target.daemon);
            client = daemon.map(|daemon| Client::new(daemon.socket));
        }
        client.as_ref()?.status().ok()
    })
}

/// One message for each signal that would end this process.
fn interrupts() -> Result<Receiver<()>> {
    let failed = |error| Error::io("listen for signals", error).kinded(Kind::Limit);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (sender, interrupts) = channel::bounded(1);
    let [mut interrupt, mut terminate, mut hangup] = {
        let _entered = runtime.enter();
        let listen = |kind| signal(kind).map_err(failed);
        [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        let _nobody_listens_any_more = sender.send(());
    });
    Ok(interrupts)
}
