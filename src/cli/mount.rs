//! `lazycopy mount`: shows a source as a local tree, in the background unless told otherwise.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use indicatif::MultiProgress;

use crate::cli::background::{self, Leave};
use crate::cli::exit::Exit;
use crate::cli::hydrate_options::HydrateArgs;
use crate::cli::limit_options::LimitArgs;
use crate::cli::logging::{self, LogArgs};
use crate::cli::progress::Progress;
use crate::cli::{absolute, complain, finish, mount_options, say};
use crate::daemon;
use crate::daemon::readiness::{Readiness, StatusSource};
use crate::daemon::settings::{
    Durability, Existing, Fill, KeepPlace, KeepSettings, MountSettings, OnChange, PublishSettings,
    ReadSettings, Refresh, SourceSpec, TreeSettings,
};
use crate::engine::cache::KEEP_MIN;
use crate::error::{Error, Kind, Result};

/// Limit of a cache that nobody gave one: 10 GiB.
const CACHE_DEFAULT: u64 = 10 << 30;

/// Show SOURCE at MOUNTPOINT at once; what is read is fetched, finished files become plain files in --dest.
///
/// Returns when the tree can be used; the daemon goes on in the background.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// What to copy: a directory or file, file:///…, http://…, https://…
    source: OsString,
    /// Existing empty directory to show it at
    mountpoint: PathBuf,
    /// Directory for finished files; made if its parent exists [default: a cache of its own below $XDG_CACHE_HOME/lazycopy]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_DEST", hide_env_values = true)]
    dest: Option<PathBuf>,
    /// Most bytes that stay on the disk, as 500MB or 10GiB (at least 8MiB): what was used longest ago goes first; or all [default: all with --dest, else 10GiB]
    #[arg(long, value_name = "all|SIZE", env = "LAZYCOPY_KEEP", hide_env_values = true, value_parser = parse_keep)]
    keep: Option<Keep>,
    /// Directory for the catalog and hashes of --dest; made if its parent exists, remembered in --dest [default: in --dest]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// Fetch and publish the whole tree in the background [default: only what is read]
    #[arg(long, env = "LAZYCOPY_HYDRATE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    hydrate: bool,
    /// Stay in the foreground and show progress; Ctrl-C unmounts [default: background]
    #[arg(short, long, env = "LAZYCOPY_FOREGROUND", hide_env_values = true, value_parser = BoolishValueParser::new())]
    foreground: bool,
    /// Mount options, comma-separated: allow_other, noexec, fsname=NAME [default: none; always nosuid,nodev]
    #[arg(short = 'o', value_name = "OPTS", env = "LAZYCOPY_OPTIONS", hide_env_values = true)]
    options: Vec<String>,
    /// Longest time that a read waits without progress, as 30s or 5m; 0 = for ever
    #[arg(long, value_name = "TIME", env = "LAZYCOPY_READ_TIMEOUT", hide_env_values = true, default_value = "30s", value_parser = parse_time)]
    read_timeout: Duration,
    /// What to do with files that --dest has already
    #[arg(long, env = "LAZYCOPY_EXISTING", hide_env_values = true, value_enum, default_value_t)]
    existing: Existing,
    /// Go into other file systems below a local SOURCE [default: one file system]
    #[arg(long, env = "LAZYCOPY_CROSS_MOUNTS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    cross_mounts: bool,
    /// Age at which a directory is listed again, as 2s or 10m, or never [default: 2s local, 60s remote]
    #[arg(long, value_name = "TIME", env = "LAZYCOPY_REFRESH", hide_env_values = true, value_parser = parse_refresh)]
    refresh: Option<Refresh>,
    /// What to do with files that change at the source after they were first seen
    #[arg(long, env = "LAZYCOPY_ON_CHANGE", hide_env_values = true, value_enum, default_value_t)]
    on_change: OnChange,
    /// Space of --dest that stays free, as 500MB or 2GiB; below it nothing more is kept [default: 5 %, 1GiB to 64GiB]
    #[arg(long, value_name = "SIZE", env = "LAZYCOPY_RESERVE", hide_env_values = true, value_parser = parse_size)]
    reserve: Option<u64>,
    /// Keep set-user-id, set-group-id and file capabilities in --dest [default: removed]
    #[arg(long, env = "LAZYCOPY_PRESERVE_PRIVILEGED", hide_env_values = true, value_parser = BoolishValueParser::new())]
    preserve_privileged: bool,
    /// Fail a file whose metadata cannot be kept [default: count a warning]
    #[arg(long, env = "LAZYCOPY_STRICT_METADATA", hide_env_values = true, value_parser = BoolishValueParser::new())]
    strict_metadata: bool,
    /// How surely a file is on the disk before it counts as verified
    #[arg(long, env = "LAZYCOPY_DURABILITY", hide_env_values = true, value_enum, default_value_t)]
    durability: Durability,
    /// Threads that take requests from the kernel, 1 to 64
    #[arg(long, hide = true, value_name = "N", env = "LAZYCOPY_FUSE_THREADS", hide_env_values = true, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    fuse_threads: usize,
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
        let timeout = Some(self.read_timeout).filter(|timeout| !timeout.is_zero());
        Ok(MountSettings {
            source: SourceSpec::parse(&self.source)?,
            mountpoint: absolute("use mountpoint", &self.mountpoint)?,
            keep: self.keep_settings()?,
            state_dir: self
                .state_dir
                .as_ref()
                .map(|path| absolute("use state directory", path))
                .transpose()?,
            fill,
            hydrate: self.background.settings()?,
            mount: mount_options::parse(&self.options)?,
            tree: TreeSettings {
                refresh: self.refresh,
                cross_mounts: self.cross_mounts,
                on_change: self.on_change,
            },
            reads: ReadSettings { timeout },
            publish: PublishSettings {
                existing: self.existing,
                preserve_privileged: self.preserve_privileged,
                strict_metadata: self.strict_metadata,
                durability: self.durability,
                reserve: self.reserve,
            },
            limits: self.limits.settings(),
            fuse_threads: self.fuse_threads,
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

/// `0` needs no unit; everything else does.
fn parse_time(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; for example 30s, 5m, 500ms"))
}

pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse_size::parse_size(text).map_err(|error| format!("{error}; for example 0, 500MB, 2GiB"))
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
    let prepared = args.settings().and_then(|settings| {
        let log = args.log.settings()?;
        let place = log.background_place()?;
        Ok((settings, log, Leave::the_terminal(place.clone())?, place))
    });
    let (settings, log, mut leave, place) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return finish(Err(error)).into(),
    };
    let guard = match logging::start(&log, &place, None) {
        Ok(guard) => guard,
        Err(error) => {
            leave.failed(&error);
            return Exit::of(&error).into();
        }
    };
    let exit = daemon::run(settings, &mut leave).map_or_else(
        |error| {
            tracing::error!(err = %error, "daemon");
            leave.failed(&error);
            Exit::of(&error)
        },
        Exit::from,
    );
    // The last lines are written before the process ends.
    drop(guard);
    exit.into()
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
        self.progress = Some(Progress::start(status, self.terminal.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_or_binary_as_they_say() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("500MB"), Ok(500_000_000));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert!(parse_size("much").unwrap_err().contains("500MB"));
    }

    #[test]
    fn what_is_kept_is_a_size_or_all() {
        assert_eq!(parse_keep("all"), Ok(Keep::All));
        assert_eq!(parse_keep("8MiB"), Ok(Keep::AtMost(8 << 20)));
        assert!(parse_keep("some").unwrap_err().ends_with("all"));
    }

    #[test]
    fn times_need_a_unit_except_zero() {
        assert_eq!(parse_time("0").unwrap(), Duration::ZERO);
        assert_eq!(parse_time("1m 30s").unwrap(), Duration::from_secs(90));
        for wrong in ["30", "", "-1s", "fast"] {
            assert!(parse_time(wrong).unwrap_err().contains("30s"), "{wrong}");
        }
        assert_eq!(parse_refresh("never").unwrap(), Refresh::Never);
        assert!(parse_refresh("ever").unwrap_err().ends_with("never"));
    }
}
