//! Options that several subcommands share: how a tree is copied, and how a mount of it behaves.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};

use crate::cli::source_options::SourceArgs;
use crate::cli::{absolute, mount_options};
use crate::daemon::settings::{
    Durability, Existing, OnChange, PublishSettings, ReadSettings, Refresh, TreeSettings,
};
pub(crate) use crate::daemon::units::{parse_size, parse_time};
use crate::error::Result;
use crate::source::options::SourceOptions;
use crate::vfs::mount::MountOptions;

/// How a tree is copied.
#[derive(Debug, Args)]
pub(crate) struct CopyingArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Directory for the catalog and hashes of the copy; made if its parent exists, remembered in the copy [default: in the copy]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// What to do with files that the destination has already
    #[arg(long, env = "LAZYCOPY_EXISTING", hide_env_values = true, value_enum, default_value_t)]
    existing: Existing,
    /// Go into other file systems below a local SOURCE [default: one file system]
    #[arg(long, env = "LAZYCOPY_CROSS_MOUNTS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    cross_mounts: bool,
    /// Space of the destination that stays free, as 500MB or 2GiB; below it nothing more is kept [default: 5 %, 1GiB to 64GiB]
    #[arg(long, value_name = "SIZE", env = "LAZYCOPY_RESERVE", hide_env_values = true, value_parser = parse_size)]
    reserve: Option<u64>,
    /// Keep set-user-id, set-group-id and file capabilities in the copy [default: removed]
    #[arg(long, env = "LAZYCOPY_PRESERVE_PRIVILEGED", hide_env_values = true, value_parser = BoolishValueParser::new())]
    preserve_privileged: bool,
    /// Fail a file whose metadata cannot be kept [default: count a warning]
    #[arg(long, env = "LAZYCOPY_STRICT_METADATA", hide_env_values = true, value_parser = BoolishValueParser::new())]
    strict_metadata: bool,
    /// How surely a file is on the disk before it counts as verified
    #[arg(long, env = "LAZYCOPY_DURABILITY", hide_env_values = true, value_enum, default_value_t)]
    durability: Durability,
}

impl CopyingArgs {
    pub(crate) fn state_dir(&self) -> Result<Option<PathBuf>> {
        self.state_dir.as_ref().map(|path| absolute("use state directory", path)).transpose()
    }

    pub(crate) fn source_options(&self) -> Result<SourceOptions> {
        self.source.options()
    }

    pub(crate) fn cross_mounts(&self) -> bool {
        self.cross_mounts
    }

    pub(crate) fn publish(&self) -> PublishSettings {
        PublishSettings {
            existing: self.existing,
            preserve_privileged: self.preserve_privileged,
            strict_metadata: self.strict_metadata,
            durability: self.durability,
            reserve: self.reserve,
        }
    }
}

/// How a mount behaves.
#[derive(Debug, Args)]
pub(crate) struct ServingArgs {
    /// Mount options, comma-separated: allow_other, noexec, fsname=NAME [default: none; always nosuid,nodev]
    #[arg(short = 'o', value_name = "OPTS", env = "LAZYCOPY_OPTIONS", hide_env_values = true)]
    options: Vec<String>,
    /// Longest time that a read waits without progress, as 30s or 5m; 0 = for ever
    #[arg(long, value_name = "TIME", env = "LAZYCOPY_READ_TIMEOUT", hide_env_values = true, default_value = "30s", value_parser = parse_time)]
    read_timeout: Duration,
    /// What to do with files that change at the source after they were first seen
    #[arg(long, env = "LAZYCOPY_ON_CHANGE", hide_env_values = true, value_enum, default_value_t)]
    on_change: OnChange,
    /// Threads that take requests from the kernel, 1 to 64
    #[arg(long, hide = true, value_name = "N", env = "LAZYCOPY_FUSE_THREADS", hide_env_values = true, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub(crate) fuse_threads: usize,
}

impl ServingArgs {
    pub(crate) fn mount(&self) -> Result<MountOptions> {
        mount_options::parse(&self.options)
    }

    pub(crate) fn tree(&self, copying: &CopyingArgs, refresh: Option<Refresh>) -> TreeSettings {
        let cross_mounts = copying.cross_mounts();
        TreeSettings { refresh, cross_mounts, on_change: self.on_change }
    }

    pub(crate) fn reads(&self) -> ReadSettings {
        ReadSettings { timeout: Some(self.read_timeout).filter(|timeout| !timeout.is_zero()) }
    }
}
