//! Sizes, times and rates as people write them: on the command line and in jobs files.

use std::time::Duration;

use crate::engine::limits::{FetchLimit, Period};

/// Least rate that can be kept: below it a single block takes minutes.
pub const RATE_MIN: u64 = 1 << 10;

/// Reads a time: `0` needs no unit, everything else does.
///
/// # Errors
/// In words, with an example.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; for example 30s, 5m, 500ms"))
}

/// Reads a size in bytes, decimal or binary as its unit says.
///
/// # Errors
/// In words, with an example.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse_size::parse_size(text).map_err(|error| format!("{error}; for example 0, 500MB, 2GiB"))
}

/// Bytes per second; `None` = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// Reads a rate as `--limit` takes it.
///
/// # Errors
/// In words, with an example.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
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

/// Reads a quota as `--max-fetch` takes it.
///
/// # Errors
/// In words, with an example.
pub fn parse_fetch(text: &str) -> Result<FetchLimit, String> {
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
    fn sizes_are_decimal_or_binary_as_they_say() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("500MB"), Ok(500_000_000));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert!(parse_size("much").unwrap_err().contains("500MB"));
    }

    #[test]
    fn times_need_a_unit_except_zero() {
        assert_eq!(parse_time("0").unwrap(), Duration::ZERO);
        assert_eq!(parse_time("1m 30s").unwrap(), Duration::from_secs(90));
        for wrong in ["30", "", "-1s", "fast"] {
            assert!(parse_time(wrong).unwrap_err().contains("30s"), "{wrong}");
        }
    }

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
