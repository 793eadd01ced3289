//! What the engine counts. Each number is counted where it is caused, once.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::core::path::RelPath;
use crate::core::progress::Rate;
use crate::core::table::Table;
use crate::error::{Error, Kind};
use crate::sync::{AtomicU64, Ordering};

/// Errors kept for status.
const KEPT_ERRORS: u64 = 64;

/// A number that only grows (or follows a level with [`Counter::sub`]). Relaxed: for people.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes `n` off.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Follows a level that somebody else counts.
    pub fn set(&self, level: u64) {
        self.0.store(level, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a published file was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The source's own checksum fits the bytes on disk.
    SourceChecksum,
    /// The bytes on disk are those that were received, and the source did not change meanwhile.
    Transfer,
    /// Size and time fit; the bytes were not read.
    AdoptedUnverified,
}

/// All counters.
#[derive(Debug, Default)]
pub struct Stats {
    /// Regular files known, and their bytes.
    pub files_known: Counter,
    /// Bytes of known files.
    pub bytes_known: Counter,
    /// Files published in this session or adopted, by proof.
    pub proof_source_checksum: Counter,
    /// As above.
    pub proof_transfer: Counter,
    /// As above.
    pub proof_adopted_unverified: Counter,
    /// Files that changed at the source.
    pub files_changed: Counter,
    /// Entries that were listed and gone when they were to be copied.
    pub entries_vanished: Counter,
    /// Pieces of metadata that the destination cannot hold.
    pub metadata_lost: Counter,
    /// Not 0 once every directory was listed.
    pub scan_done: Counter,
    /// Names that cannot be used.
    pub names_refused: Counter,
    /// Bytes that came from the source.
    pub bytes_fetched: Counter,
    /// Bytes answered to readers by the daemon.
    pub bytes_served: Counter,
    /// Bytes fetched and thrown away.
    pub bytes_wasted: Counter,
    /// Chunks begun.
    pub chunks_begun: Counter,
    /// Chunks that landed whole.
    pub chunks_done: Counter,
    /// Chunks that failed for good.
    pub chunks_failed: Counter,
    /// Attempts after the first.
    pub chunks_retried: Counter,
    /// Reads answered at once, after a wait, with an error.
    pub reads_hit: Counter,
    /// As above.
    pub reads_waited: Counter,
    /// As above.
    pub reads_failed: Counter,
    /// Wake-ups of waiting readers.
    pub wake_ups: Counter,
    /// Smoothed rate of `bytes_fetched`.
    pub rate: Rate,
    /// Entries that failed until they are tried again.
    failed: Table<RelPath, ()>,
    errors_seen: Counter,
    errors: Table<u64, ErrorNote>,
}

/// One remembered error.
#[derive(Debug, Clone)]
pub struct ErrorNote {
    /// What it was about.
    pub path: RelPath,
    /// Its kind.
    pub kind: Kind,
    /// Its message.
    pub message: String,
    /// When.
    pub at: SystemTime,
}

impl Stats {
    /// Remembers an error for status; the oldest is forgotten.
    pub fn remember(&self, path: &RelPath, error: &Error) {
        let number = self.errors_seen.get();
        self.errors_seen.increment();
        let note = ErrorNote {
            path: path.clone(),
            kind: error.kind(),
            message: error.to_string(),
            at: SystemTime::now(),
        };
        self.errors.insert(number % KEPT_ERRORS, note);
    }

    /// An entry could not be copied: counted once however often it fails, until [`Stats::succeeded`].
    pub fn failed(&self, path: &RelPath, error: &Error) {
        self.failed.insert(path.clone(), ());
        self.remember(path, error);
    }

    /// An entry was copied after all.
    pub fn succeeded(&self, path: &RelPath) {
        self.failed.remove(path);
    }

    /// Entries that could not be copied so far.
    pub fn entries_failed(&self) -> u64 {
        self.failed.len() as u64
    }

    /// The remembered errors, oldest first.
    pub fn errors(&self) -> Vec<ErrorNote> {
        let mut notes: VecDeque<ErrorNote> = self.errors.values().into();
        notes.make_contiguous().sort_by_key(|note| note.at);
        notes.into()
    }

    /// Counts a published file.
    pub fn count_proof(&self, proof: Proof) {
        match proof {
            Proof::SourceChecksum => self.proof_source_checksum.increment(),
            Proof::Transfer => self.proof_transfer.increment(),
            Proof::AdoptedUnverified => self.proof_adopted_unverified.increment(),
        }
    }

    /// Files that are plain files in the destination.
    pub fn files_published(&self) -> u64 {
        self.proof_source_checksum.get()
            + self.proof_transfer.get()
            + self.proof_adopted_unverified.get()
    }
}
