//! Opening HTTP sources.

use std::time::Duration;

use lazycopy::error::Error;
use lazycopy::source::http::{HttpOptions, HttpSource, Limits};

/// Deadlines short enough to be waited for.
pub(crate) fn options() -> HttpOptions {
    let limits = Limits {
        head_timeout: Duration::from_secs(5),
        index_stall: Duration::from_millis(300),
        spool_stall: Duration::from_millis(300),
        spool_retry: Duration::from_millis(10),
        ..Limits::default()
    };
    HttpOptions { netrc: Some("/nonexistent".into()), limits, ..HttpOptions::default() }
}

/// Opens a source that is there.
pub(crate) async fn open(url: &str) -> HttpSource {
    HttpSource::open(url, options()).await.unwrap()
}

/// Why a source is refused.
pub(crate) async fn refusal(url: &str) -> Error {
    HttpSource::open(url, options()).await.unwrap_err()
}
