//! What an engine tells, schema 1: names and units are a contract with scripts, and `docs/events.md` shows each of them.
//!
//! Every field is always there; what does not apply is `null`. Times are RFC 3339 in UTC, sizes bytes, durations milliseconds.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::core::json_path::JsonPath;

/// Version of the events' shape.
pub const SCHEMA: u32 = 1;

/// A word out of a small set.
pub type Word = Cow<'static, str>;

/// One event with when, where and in which order it was told: one line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// [`SCHEMA`].
    pub schema: u32,
    /// 1, 2, 3 … over all lives of a destination, without gaps.
    pub seq: u64,
    /// With milliseconds.
    pub time: String,
    /// One daemon's life.
    pub session: String,
    /// One source + destination.
    pub job: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened; `event` says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A daemon's life.
    Session {
        /// Which end of it.
        what: Step,
        /// Of the program.
        version: Word,
        /// Process id.
        pid: u32,
        /// Without secrets.
        source: String,
        /// `None` where nothing is mounted.
        mountpoint: Option<String>,
        /// DIR.
        dest: String,
        /// `clean`, `some-failed`, `verification-failed`, `stopped`, `died`; `None` at the beginning.
        outcome: Option<Word>,
    },
    /// The copy has another phase.
    Job {
        /// As in status.
        phase: Word,
        /// Regular files known.
        files: u64,
        /// Of these, plain files at the destination.
        files_published: u64,
        /// Entries that could not be copied.
        files_failed: u64,
        /// Bytes known.
        bytes: u64,
        /// Of these, at the destination.
        bytes_local: u64,
    },
    /// Several jobs, run by `lazycopy run`.
    Run {
        /// Which end of it.
        what: Step,
        /// Its name.
        run: String,
        /// Number of jobs.
        jobs: u64,
        /// `complete`, `complete-with-warnings`, `failed`, `stopped`; `None` at the beginning.
        outcome: Option<Word>,
    },
    /// One job of `lazycopy run`.
    RunJob {
        /// Which end of it.
        what: Step,
        /// Its name in the file.
        name: String,
        /// Without secrets.
        source: String,
        /// DIR.
        dest: String,
        /// `complete`, `complete-with-warnings`, `failed`, `stopped`; `None` at the beginning.
        outcome: Option<Word>,
        /// Exit code; `None` at the beginning.
        exit: Option<u8>,
        /// For people.
        warnings: Vec<String>,
        /// Why it failed, for people.
        message: Option<String>,
    },
    /// The source is listed.
    Scan {
        /// Which end of it.
        what: Step,
        /// Regular files known by then.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// Entries that are left out, a directory with all that is below it as one.
        skipped: u64,
    },
    /// A request to the source for a range of a file.
    Chunk {
        /// How it went.
        what: ChunkStep,
        /// Its number.
        chunk: u64,
        /// Below the source's root.
        #[serde(flatten)]
        path: JsonPath,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// `demand`, `readahead`, `hydration`.
        priority: Word,
        /// Attempts made so far, the first included.
        attempt: u32,
        /// From the first attempt on, waits included.
        duration_ms: u64,
        /// Kind of the error; `None` if it is complete.
        kind: Option<Word>,
        /// For people; `None` if it is complete.
        message: Option<String>,
    },
    /// What became of a file or another entry of the tree.
    File {
        /// What.
        what: FileStep,
        /// Below the source's root.
        #[serde(flatten)]
        path: JsonPath,
        /// Its size, where that is known.
        bytes: Option<u64>,
        /// How it was proven: `source-checksum`, `transfer`, `adopted-unverified`; `None` unless it was published.
        proof: Option<Word>,
        /// Kind of the error; `None` unless it failed.
        kind: Option<Word>,
        /// For people.
        message: Option<String>,
    },
    /// Nothing more is begun in the background.
    Pause {
        /// `user`, `space`, `source`, `limit`, `breaker`.
        by: Word,
    },
    /// Work in the background goes on.
    Resume {
        /// As in `pause`: whose pause is over.
        by: Word,
    },
    /// What runs in the background is finished, nothing more is begun.
    Drain {
        /// As in `pause`.
        by: Word,
    },
    /// What ran in the background was cut off.
    Stop {
        /// As in `pause`.
        by: Word,
    },
    /// A limit.
    Limit {
        /// What of it.
        what: LimitStep,
        /// `rate`, `max-fetch`, `max-requests`, `max-connections`.
        limit: Word,
        /// Bytes per second, bytes or requests; `None` = no limit.
        value: Option<u64>,
        /// Of it, used up.
        used: Option<u64>,
    },
    /// The breaker of a source.
    Breaker {
        /// What of it.
        what: BreakerStep,
        /// Failures in a row.
        failures: u64,
        /// The last of them, for people.
        message: Option<String>,
    },
    /// Room at the destination.
    Space {
        /// Which way it turned.
        what: SpaceStep,
        /// Free for this user.
        free_bytes: u64,
        /// To be kept free.
        reserve_bytes: u64,
    },
    /// The copy is proven again.
    Verify {
        /// Which end of it.
        what: Step,
        /// Files looked at.
        files: u64,
        /// Entries that differ.
        differing: u64,
        /// Of these, mended.
        mended: u64,
        /// Why it was given up; `None` otherwise.
        message: Option<String>,
    },
    /// An order for one path: `hydrate`, `evict`, `pin`, `unpin`, `refresh`.
    Order {
        /// Which.
        order: Word,
        /// Below the source's root.
        #[serde(flatten)]
        path: JsonPath,
        /// What it changed, for people.
        message: String,
    },
    /// Events that came faster than they could be written: they are in no log, and have no number.
    Lost {
        /// How many.
        events: u64,
    },
}

/// One end of something that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// It begins.
    Begun,
    /// It is over.
    Ended,
}

/// How a chunk went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChunkStep {
    /// All of it landed.
    Complete,
    /// Given up.
    Failed,
    /// An attempt failed; there will be another.
    Retried,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileStep {
    /// A plain file at the destination.
    Published,
    /// Could not be copied.
    Failed,
    /// Another version at the source.
    Changed,
    /// Listed, and gone when it was to be copied.
    Vanished,
    /// Gone at the source after it was published; the copy is kept.
    Deleted,
    /// Not asked for.
    Skipped,
}

/// What of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitStep {
    /// It has another value.
    Set,
    /// It is used up.
    Reached,
    /// There is some left again.
    Lifted,
}

/// What of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerStep {
    /// The source is asked no more.
    Opened,
    /// It is asked once.
    Probed,
    /// It answers again.
    Closed,
}

/// Which way room turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpaceStep {
    /// Less than the reserve.
    Short,
    /// Enough again.
    Back,
}
