//! The limits of what is asked of a source, as flags that several subcommands share.

use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::engine::limits::{FetchLimit, LimitSettings, Period};

/// Least rate that can be kept: below it a single block takes minutes.
const RATE_MIN: u64 = 1 << 10;

/// Limits of what is asked of the source.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArgs {
    /// Most bytes per second that the background copy takes, as 20MB/s or 500KiB/s, or off: what is read goes first and counts [default: off]
    #[arg(long, hide = true, value_name = "RATE", env = "LAZYCOPY_LIMIT", hide_env_values = true, value_parser = parse_rate)]
    limit: Option<Rate>,
    /// Most bytes that are fetched, as 50GB, or as 2GB/day (a day ends at midnight UTC): after that reads of what is not local fail with EDQUOT [default: no limit]
    #[arg(long, hide = true, value_name = "SIZE[/day]", env = "LAZYCOPY_MAX_FETCH", hide_env_values = true, value_parser = parse_fetch)]
    max_fetch: Option<FetchLimit>,
    /// Most requests for bytes: after that reads of what is not local fail with EDQUOT [default: no limit]
    #[arg(long, hide = true, value_name = "N", env = "LAZYCOPY_MAX_REQUESTS", hide_env_values = true, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    max_requests: Option<u64>,
    /// Most connections to the source at once [default: as the kind of source has it; http 32, local 16]
    #[arg(long, hide = true, value_name = "N", env = "LAZYCOPY_MAX_CONNECTIONS", hide_env_values = true, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
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

/// Bytes per second; `None` = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate(pub(crate) Option<u64>);

/// Reads a rate as `--limit` takes it.
///
/// # Errors
/// In words, with an example.
pub(crate) fn parse_rate(text: &str) -> Result<Rate, String> {
    const EXAMPLES: &str = "for example 20MB/s, 500KiB/s, off";
    if text == "off" {
        return Ok(Rate(None));
    }
    let size = text.strip_suffix("/s").unwrap_or(text);
    let rate = parse_size::parse_size(size).map_err(|error| format!("{error}; {EXAMPLES}"))?;
    match rate {
        RATE_MIN.. => Ok(Rate(Some(rate))),
        _ => Err(format!("the least rate is 1KiB/s; {EXAMPLES}")),
    }
}

fn parse_fetch(text: &str) -> Result<FetchLimit, String> {
    let (size, period) = match text.strip_suffix("/day") {
        Some(size) => (size, Period::Day),
        None => (text, Period::Ever),
    };
    let bytes = parse_size::parse_size(size);
    let bytes = bytes.map_err(|error| format!("{error}; for example 50GB, 2GiB/day"))?;
    Ok(FetchLimit { bytes, period })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_size_per_second_or_off() {
        assert_eq!(parse_rate("20MB/s"), Ok(Rate(Some(20_000_000))));
        assert_eq!(parse_rate("1MiB"), Ok(Rate(Some(1 << 20))));
        assert_eq!(parse_rate("off"), Ok(Rate(None)));
        for wrong in ["", "0", "10", "fast", "20MB/h", "-1MB/s"] {
            assert!(parse_rate(wrong).unwrap_err().contains("20MB/s"), "{wrong}");
        }
    }

    #[test]
    fn a_quota_is_for_ever_or_for_a_day() {
        let limit = |bytes, period| Ok(FetchLimit { bytes, period });
        assert_eq!(parse_fetch("2GB/day"), limit(2_000_000_000, Period::Day));
        assert_eq!(parse_fetch("1GiB"), limit(1 << 30, Period::Ever));
        for wrong in ["", "/day", "1GB/week", "some"] {
            assert!(parse_fetch(wrong).unwrap_err().contains("2GiB/day"), "{wrong}");
        }
    }
}
