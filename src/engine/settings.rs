//! How an engine behaves.

use std::time::Duration;

use crate::core::filter::Filter;
use crate::core::retry::RetryPolicy;
use crate::engine::limits::LimitSettings;

/// What happens to files that lie in the destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExistingPolicy {
    /// Those with equal content are kept; anything else is a conflict.
    #[default]
    Adopt,
    /// Those with equal size and modification time are kept without reading them.
    AdoptFast,
    /// They are replaced.
    Overwrite,
    /// Any of them is an error before the start.
    Fail,
}

/// What happens when a file changes at the source after it was first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnChange {
    /// The new version takes its place, with an inode number of its own.
    #[default]
    Follow,
    /// What is here of the first version stays, and the file counts as failed.
    Fail,
}

/// Which of the files that are known so far is copied next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Directory by directory, as the source lists them.
    #[default]
    Listing,
    /// The smallest.
    SmallFirst,
    /// The largest.
    LargeFirst,
}

/// How workers are spread over source directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lanes {
    /// Over different ones first; several may work in one.
    #[default]
    Auto,
    /// At most one works in each.
    Directory,
}

/// What is copied in the background, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HydrateSettings {
    /// What comes first.
    pub order: Order,
    /// What is copied at all.
    pub filter: Filter,
    /// Most files that are fetched at once, at least 1; `None` = 64.
    pub max_jobs: Option<usize>,
    /// Where workers work.
    pub lanes: Lanes,
}

/// Settings of the engine, validated.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// A read without progress for this long fails; `None` = it waits for ever.
    pub read_timeout: Option<Duration>,
    /// A request to the source that yields nothing for this long has failed.
    pub stall: Duration,
    /// Attempts per chunk.
    pub retry: RetryPolicy,
    /// Age at which listings and attributes are asked for again; `None` = never.
    pub refresh: Option<Duration>,
    /// How long a lookup of something known waits for news before it answers from memory.
    pub grace: Duration,
    /// How long the source may take to answer at the start.
    pub start_deadline: Duration,
    /// Bytes of the destination that stay free; `None` = max(1 GiB, min(5 %, 64 GiB)).
    pub reserve: Option<u64>,
    /// Files that are in the destination already.
    pub existing: ExistingPolicy,
    /// Files that change at the source.
    pub on_change: OnChange,
    /// The background copy.
    pub hydrate: HydrateSettings,
    /// A checkpoint begins when so many bytes have landed since the last, whoever else asks for one.
    pub checkpoint_bytes: u64,
    /// What may be asked of the source.
    pub limits: LimitSettings,
    /// Somebody may read meanwhile: some requests are kept for that.
    pub has_readers: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            read_timeout: Some(Duration::from_secs(30)),
            stall: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            refresh: Some(Duration::from_secs(2)),
            grace: Duration::from_millis(5),
            start_deadline: Duration::from_secs(30),
            reserve: None,
            existing: ExistingPolicy::Adopt,
            on_change: OnChange::Follow,
            hydrate: HydrateSettings::default(),
            checkpoint_bytes: 256 << 20,
            limits: LimitSettings::default(),
            has_readers: true,
        }
    }
}

impl EngineSettings {
    /// Deadline of lookups and listings: they wait unkillably in the kernel, so they have one even where reads have none.
    pub fn metadata_deadline(&self) -> Duration {
        self.read_timeout.unwrap_or(Duration::from_secs(30))
    }

    /// How long a failed range answers its error at once.
    pub fn failure_memory(&self) -> Duration {
        self.read_timeout.unwrap_or(Duration::from_secs(30))
    }
}
