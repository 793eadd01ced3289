//! Orders to a daemon: `pause`, `resume`, `drain`, `stop`, `limit`; and for paths inside a mount: `hydrate`, `evict`, `pin`, `unpin`, `refresh`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::exit::Exit;
use crate::cli::limit_options::{Rate, parse_rate};
use crate::cli::target::Target;
use crate::cli::{complain, say};
use crate::control::client::Client;
use crate::control::orders::{LimitRequest, PathOrder, PathsRequest, SwitchOrder};
use crate::control::registry::{self, Found};
use crate::control::status::JsonPath;
use crate::error::{Error, Kind, Result};
use crate::vfs::mountinfo::{self, MountEntry};
use crate::vfs::mountpoint::locate;

/// Whom an order is for.
#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// Mountpoint or destination [default: the only daemon of this user]
    target: Option<PathBuf>,
}

/// A rate, and for whom.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Bytes per second as 20MB or 500KiB, at least 1KiB; off = no limit
    #[arg(value_parser = parse_rate)]
    rate: Rate,
    /// Mountpoint or destination [default: the only daemon of this user]
    target: Option<PathBuf>,
}

/// What an order is for.
#[derive(Debug, Args)]
pub(crate) struct PathArgs {
    /// Files or directories inside a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) fn switch(order: SwitchOrder, args: &SwitchArgs) -> Result<Exit> {
    let daemon = the_daemon(args.target.as_deref())?;
    say(&Client::new(&daemon.socket).switch(order)?.message);
    Ok(Exit::Ok)
}

pub(crate) fn limit(args: &LimitArgs) -> Result<Exit> {
    let daemon = the_daemon(args.target.as_deref())?;
    let request = LimitRequest { bytes_per_s: args.rate.0 };
    say(&Client::new(&daemon.socket).limit(request)?.message);
    Ok(Exit::Ok)
}

/// Every path is tried; each has its line.
pub(crate) fn paths(order: PathOrder, args: &PathArgs) -> Result<Exit> {
    let mounts = mountinfo::read()?;
    let mut exit = Exit::Ok;
    for path in &args.paths {
        let done = one_path(order, path, &mounts);
        match done {
            Ok(message) => say(&format!("{}: {message}", path.display())),
            Err(error) => {
                complain(&error.to_string());
                exit = Exit::SomeFailed;
            }
        }
    }
    Ok(exit)
}

fn one_path(order: PathOrder, path: &Path, mounts: &[MountEntry]) -> Result<String> {
    let (daemon, in_tree) = served(path, mounts)?;
    let request = PathsRequest { paths: vec![in_tree] };
    let done = Client::new(&daemon.socket).paths(order, &request)?;
    let wrong = || Error::new(Kind::Corrupt, "read the daemon's answer").at(path);
    done.results.first().ok_or_else(wrong)?.result().map(str::to_owned)
}

/// The daemon whose mount a path lies in, and the path below its root. Nothing is opened through the mount.
fn served(path: &Path, mounts: &[MountEntry]) -> Result<(Found, JsonPath)> {
    let located = locate(path, mounts)?;
    let above = located.ancestors().find_map(|above| mountinfo::top_at(mounts, above));
    let nothing = || Error::new(Kind::Invalid, "find in a mount").at(path);
    let mount = above.filter(|mount| mount.is_lazycopy()).ok_or_else(|| {
        nothing()
            .because("it does not lie in a mount of lazycopy")
            .hint("name it by its path below the mountpoint, not in the destination")
    })?;
    let daemon = registry::find(&mount.mountpoint).ok_or_else(|| {
        nothing()
            .because("no daemon of this user serves the mount")
            .hint("ask as the user who mounted it, with the same LAZYCOPY_RUNTIME_DIR")
    })?;
    let below = located.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    Ok((daemon, JsonPath::new(below)))
}

/// The daemon that TARGET means; without one the only one there is.
pub(crate) fn the_daemon(target: Option<&Path>) -> Result<Found> {
    if let Some(path) = target {
        let target = Target::find(path)?;
        return match &target.daemon {
            Some(daemon) => Ok(daemon.clone()),
            None => Err(target.nobody_serves()),
        };
    }
    let mut daemons = registry::all();
    match daemons.len() {
        1 => Ok(daemons.remove(0)),
        0 => Err(Error::new(Kind::NotFound, "find a daemon")
            .because("no lazycopy daemon of this user runs")),
        several => {
            let places: Vec<_> =
                daemons.into_iter().map(|daemon| daemon.record.mountpoint).collect();
            Err(Error::new(Kind::Invalid, "find a daemon")
                .because(format!("there are {several}: {}", places.join(", ")))
                .hint("name one of them as TARGET"))
        }
    }
}
