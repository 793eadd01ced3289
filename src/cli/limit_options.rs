//! The limits of what is asked of a source, as flags that several subcommands share.

use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::daemon::units::parse_fetch;
pub(crate) use crate::daemon::units::{Rate, parse_rate};
use crate::engine::limits::{FetchLimit, LimitSettings};

/// Limits of what is asked of the source.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArgs {
    /// Most bytes per second that the background copy takes, as 20MB/s or 500KiB/s, or off: what is read goes first and counts [default: off]
    #[arg(long, value_name = "RATE", env = "LAZYCOPY_LIMIT", hide_env_values = true, value_parser = parse_rate)]
    limit: Option<Rate>,
    /// Most bytes that are fetched, as 50GB, or as 2GB/day (a day ends at midnight UTC): after that reads of what is not local fail with EDQUOT [default: no limit]
    #[arg(long, value_name = "SIZE[/day]", env = "LAZYCOPY_MAX_FETCH", hide_env_values = true, value_parser = parse_fetch)]
    max_fetch: Option<FetchLimit>,
    /// Most requests for bytes: after that reads of what is not local fail with EDQUOT [default: no limit]
    #[arg(long, value_name = "N", env = "LAZYCOPY_MAX_REQUESTS", hide_env_values = true, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    max_requests: Option<u64>,
    /// Most connections to the source at once [default: as the kind of source has it; http 32, local 16]
    #[arg(long, value_name = "N", env = "LAZYCOPY_MAX_CONNECTIONS", hide_env_values = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    max_connections: Option<usize>,
}

impl LimitArgs {
    /// What they come to.
    pub(crate) fn settings(&self) -> LimitSettings {
        LimitSettings {
            rate: self.limit.and_then(|rate| rate.0),
            max_fetch: self.max_fetch,
            max_requests: self.max_requests,
            max_connections: self.max_connections,
        }
    }
}
