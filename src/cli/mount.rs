//! `lazycopy mount`: shows a source as a local tree, in the background unless told otherwise.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::BoolishValueParser;
use indicatif::MultiProgress;

use crate::cli::background::{self, Speaks};
use crate::cli::copying::{CopyingArgs, ServingArgs, parse_size, parse_time};
use crate::cli::exit::Exit;
use crate::cli::hydrate_options::HydrateArgs;
use crate::cli::limit_options::LimitArgs;
use crate::cli::logging::{self, LogArgs};
use crate::cli::progress::{Progress, View};
use crate::cli::{absolute, complain, finish, say};
use crate::daemon;
use crate::daemon::readiness::{Readiness, StatusSource};
use crate::daemon::settings::{Fill, KeepPlace, KeepSettings, MountSettings, Refresh, SourceSpec};
use crate::engine::cache::KEEP_MIN;
use crate::error::{Error, Kind, Result};

/// Limit of a cache that nobody gave one: 10 GiB.
const CACHE_DEFAULT: u64 = 10 << 30;

/// Show SOURCE at MOUNTPOINT at once; what is read is fetched, finished files become plain files in --dest.
///
/// Returns when the tree can be used; the daemon goes on in the background.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// What to copy: a directory or file, file:///…, http(s)://…, {s3,gs,az}://bucket/prefix
    source: OsString,
    /// Existing empty directory to show it at
    mountpoint: PathBuf,
    /// Directory for finished files; made if its parent exists [default: a cache of its own below $XDG_CACHE_HOME/lazycopy]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_DEST", hide_env_values = true)]
    dest: Option<PathBuf>,
    /// Most bytes that stay on the disk, as 500MB or 10GiB (at least 8MiB): what was used longest ago goes first; or all [default: all with --dest, else 10GiB]
    #[arg(long, value_name = "all|SIZE", env = "LAZYCOPY_KEEP", hide_env_values = true, value_parser = parse_keep)]
    keep: Option<Keep>,
    /// Fetch and publish the whole tree in the background [default: only what is read]
    #[arg(long, env = "LAZYCOPY_HYDRATE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    hydrate: bool,
    /// Stay in the foreground and show progress; Ctrl-C unmounts [default: background]
    #[arg(short, long, env = "LAZYCOPY_FOREGROUND", hide_env_values = true, value_parser = BoolishValueParser::new())]
    foreground: bool,
    /// Age at which a directory is listed again, as 2s or 10m, or never [default: 2s local, 60s remote]
    #[arg(long, value_name = "TIME", env = "LAZYCOPY_REFRESH", hide_env_values = true, value_parser = parse_refresh)]
    refresh: Option<Refresh>,
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

impl MountArgs {
    /// Checks everything that can be checked without looking at a disk.
    fn settings(&self) -> Result<MountSettings> {
        let fill = if self.hydrate { Fill::Everything } else { Fill::OnDemand };
        Ok(MountSettings {
            source: SourceSpec::parse_with(&self.source, self.copying.source_options()?)?,
            mountpoint: absolute("use mountpoint", &self.mountpoint)?,
            keep: self.keep_settings()?,
            state_dir: self.copying.state_dir()?,
            fill,
            hydrate: self.background.settings()?,
            mount: self.serving.mount()?,
            tree: self.serving.tree(&self.copying, self.refresh),
            reads: self.serving.reads(),
            publish: self.copying.publish(),
            limits: self.limits.settings(),
            fuse_threads: self.serving.fuse_threads,
            in_place: None,
        })
    }
}

/// `--keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    AtMost(u64),
}

impl MountArgs {
    fn keep_settings(&self) -> Result<KeepSettings> {
        let place = match &self.dest {
            Some(path) => KeepPlace::Destination(absolute("use destination", path)?),
            None => KeepPlace::CacheBelow(caches()?),
        };
        let limit = match (self.keep, &place) {
            (Some(Keep::All), _) | (None, KeepPlace::Destination(_)) => None,
            (Some(Keep::AtMost(bytes)), _) => Some(bytes),
            (None, KeepPlace::CacheBelow(_)) => Some(CACHE_DEFAULT),
        };
        let refused = |why: String| Error::new(Kind::Invalid, "use --keep").because(why);
        if limit.is_some_and(|bytes| bytes < KEEP_MIN) {
            return Err(refused(format!("the least that can be kept is {} MiB", KEEP_MIN >> 20)));
        }
        if limit.is_some() && self.hydrate {
            let why = "--hydrate copies everything, which a cache of limited size cannot keep";
            return Err(refused(why.to_owned()).hint("--dest DIR with --keep all keeps it"));
        }
        Ok(KeepSettings { place, limit })
    }
}

/// The directory that holds the caches of this user's sources.
fn caches() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let below = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let below =
        below.or_else(|| rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/cache")));
    below.map(|below| below.join("lazycopy")).ok_or_else(|| {
        Error::new(Kind::Invalid, "find a place for the cache")
            .because("neither XDG_CACHE_HOME nor HOME names a directory")
            .hint("--dest DIR names the directory for what is read")
    })
}

fn parse_keep(text: &str) -> Result<Keep, String> {
    match text {
        "all" => Ok(Keep::All),
        _ => parse_size(text).map(Keep::AtMost).map_err(|error| format!("{error}, all")),
    }
}

fn parse_refresh(text: &str) -> Result<Refresh, String> {
    match text {
        "never" => Ok(Refresh::Never),
        _ => parse_time(text).map(Refresh::After).map_err(|error| format!("{error}, never")),
    }
}

/// In the foreground, or as the parent of a daemon.
pub(crate) fn run(args: &MountArgs, raw: &[OsString]) -> ExitCode {
    if args.foreground {
        return finish(foreground(args)).into();
    }
    let checked = args.settings().and_then(|_| args.log.settings()?.background_place());
    match checked {
        Ok(place) => background::start(raw, &place),
        Err(error) => finish(Err(error)).into(),
    }
}

fn foreground(args: &MountArgs) -> Result<Exit> {
    let settings = args.settings()?;
    let log = args.log.settings()?;
    let terminal = std::io::stderr().is_terminal().then(MultiProgress::new);
    let place = log.foreground_place();
    let _log = logging::start(&log, &place, terminal.as_ref())?;
    let mut shown = Shown { terminal, progress: None };
    daemon::run(settings, &mut shown).map(Exit::from)
}

/// The daemon itself.
pub(crate) fn run_child(args: &MountArgs) -> ExitCode {
    background::run_child(args.settings(), &args.log, Speaks::Once)
}

/// The foreground's side: the first line, then progress.
struct Shown {
    terminal: Option<MultiProgress>,
    progress: Option<Progress>,
}

impl Readiness for Shown {
    fn ready(&mut self, line: &str, warnings: &[String], status: StatusSource) -> Result<()> {
        say(line);
        warnings.iter().for_each(|warning| complain(&format!("warning: {warning}")));
        if self.terminal.is_some() {
            complain("Ctrl-C unmounts");
        }
        let view = self.terminal.clone().map_or(View::Lines, View::Bar);
        self.progress = Some(Progress::start(status, view, ""));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_size_or_all() {
        assert_eq!(parse_keep("all"), Ok(Keep::All));
        assert_eq!(parse_keep("8MiB"), Ok(Keep::AtMost(8 << 20)));
        assert!(parse_keep("some").unwrap_err().ends_with("all"));
    }

    #[test]
    fn a_tree_is_refreshed_after_a_time_or_never() {
        assert_eq!(parse_refresh("never").unwrap(), Refresh::Never);
        assert!(parse_refresh("ever").unwrap_err().ends_with("never"));
    }
}
