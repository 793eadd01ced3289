//! What is copied in the background and how, the same for every command that copies a whole tree.

use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::core::filter::Filter;
use crate::engine::settings::{HydrateSettings, Lanes, Order};
use crate::error::Result;

/// Flattened into the arguments of a command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Background copy")]
pub(crate) struct HydrateArgs {
    /// What is copied first of what is known so far
    #[arg(
        long,
        hide = true,
        env = "LAZYCOPY_ORDER",
        hide_env_values = true,
        value_enum,
        default_value_t
    )]
    order: OrderArg,
    /// Copy what matches before everything else: a name as '*.idx', or a path from the root as 'a/b/**'; may be repeated [default: none]
    #[arg(long, hide = true, value_name = "GLOB", env = "LAZYCOPY_FIRST", hide_env_values = true)]
    first: Vec<String>,
    /// Copy only what matches, and all below it; may be repeated [default: everything but .nfs*, .snapshot, ~snapshot, .zfs, @eaDir, #recycle, lost+found: these only where a glob names them]
    #[arg(
        long,
        hide = true,
        value_name = "GLOB",
        env = "LAZYCOPY_INCLUDE",
        hide_env_values = true
    )]
    include: Vec<String>,
    /// Do not copy what matches, nor anything below it; it is shown and can be read; may be repeated [default: none]
    #[arg(
        long,
        hide = true,
        value_name = "GLOB",
        env = "LAZYCOPY_EXCLUDE",
        hide_env_values = true
    )]
    exclude: Vec<String>,
    /// Most files that are fetched at once, 1 to 1024; as many as pay off are [default: 64]
    #[arg(long, hide = true, value_name = "N", env = "LAZYCOPY_MAX_JOBS", hide_env_values = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    max_jobs: Option<usize>,
    /// How the files that are fetched at once are spread over directories
    #[arg(
        long,
        hide = true,
        env = "LAZYCOPY_LANES",
        hide_env_values = true,
        value_enum,
        default_value_t
    )]
    lanes: LanesArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum OrderArg {
    /// Directory by directory.
    #[default]
    Listing,
    /// The smallest.
    SmallFirst,
    /// The largest.
    LargeFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum LanesArg {
    /// Different directories first, several in one if that pays off.
    #[default]
    Auto,
    /// Never two in one directory.
    Directory,
}

impl HydrateArgs {
    /// Checks them.
    ///
    /// # Errors
    /// `Invalid` for what is no glob.
    pub(crate) fn settings(&self) -> Result<HydrateSettings> {
        Ok(HydrateSettings {
            order: match self.order {
                OrderArg::Listing => Order::Listing,
                OrderArg::SmallFirst => Order::SmallFirst,
                OrderArg::LargeFirst => Order::LargeFirst,
            },
            filter: Filter::new(&self.include, &self.exclude, &self.first)?,
            max_jobs: self.max_jobs,
            lanes: match self.lanes {
                LanesArg::Auto => Lanes::Auto,
                LanesArg::Directory => Lanes::Directory,
            },
        })
    }
}
