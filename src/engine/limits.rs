//! What may be asked of the source: how fast, how much, how often, how much at once.

use crate::sync::{AtomicU64, Ordering};

/// Limits, validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitSettings {
    /// Bytes per second that hydration takes; `None` = no limit. At least 1 KiB.
    pub rate: Option<u64>,
    /// Bytes that are fetched at most.
    pub max_fetch: Option<FetchLimit>,
    /// Requests for bytes, at most; at least 1.
    pub max_requests: Option<u64>,
    /// Requests that run at once, at most; `None` = as the kind of source has it. At least 1.
    pub max_connections: Option<usize>,
}

/// So many bytes, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimit {
    /// Bytes.
    pub bytes: u64,
    /// For how long they are meant.
    pub period: Period,
}

/// For how long a quota is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// For this copy, over restarts.
    Ever,
    /// Until midnight UTC.
    Day,
}

/// What was used of the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes fetched in the current period.
    pub bytes: u64,
    /// Requests for bytes in the current period.
    pub requests: u64,
}

/// The limits of one engine.
///
/// # Concurrency
/// Any thread may call anything.
#[derive(Debug)]
pub struct Limits {
    settings: LimitSettings,
    /// 0 = none. Relaxed: who sees it late keeps to the old one a moment longer.
    rate: AtomicU64,
}

impl Limits {
    /// Nothing is used yet.
    pub fn new(settings: LimitSettings) -> Self {
        Self { settings, rate: AtomicU64::new(settings.rate.unwrap_or(0)) }
    }

    /// What it was built with.
    pub fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// Changes the rate of hydration from now on; `None` = no limit.
    pub fn set_rate(&self, bytes_per_s: Option<u64>) {
        self.rate.store(bytes_per_s.unwrap_or(0), Ordering::Relaxed);
    }

    /// The rate of hydration; `None` = no limit.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// What was used.
    pub fn usage(&self) -> Usage {
        Usage::default()
    }
}
