//! What the engine counts. Each number is counted where it is caused, once.

use std::time::Duration;

use crate::core::priority::Priority;
use crate::core::progress::Rate;
use crate::engine::errors::Errors;
use crate::store::catalog::ProofClass;
use crate::sync::{AtomicU64, Ordering};

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

/// What came for one priority.
#[derive(Debug, Default)]
pub struct Landed {
    /// Bytes that came from the source.
    pub bytes: Counter,
    /// Smoothed rate of `bytes`.
    pub rate: Rate,
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
    /// Files that a bulk copy published or found there, and their bytes: they are not in memory.
    pub carried: Counter,
    /// As above.
    pub carried_bytes: Counter,
    /// Files that an earlier life published, found as they were.
    pub files_restored: Counter,
    /// Groups of small files that were published together.
    pub groups_published: Counter,
    /// Files that changed at the source.
    pub files_changed: Counter,
    /// Entries that were listed and gone when they were to be copied.
    pub entries_vanished: Counter,
    /// Entries that are not copied because they are left out, a directory with all that is below it as one.
    pub files_skipped: Counter,
    /// Bytes of those that are files, as far as sizes are known.
    pub bytes_skipped: Counter,
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
    /// Bytes evicted from a cache of limited size.
    pub bytes_evicted: Counter,
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
    /// How long the last read took that had to wait, in ms; 0 = none had to, or less than one.
    pub last_wait_ms: Counter,
    /// Wake-ups of waiting readers.
    pub wake_ups: Counter,
    /// Smoothed rate of `bytes_fetched`.
    pub rate: Rate,
    /// `bytes_fetched` by priority, the most urgent first.
    by_priority: [Landed; Priority::ALL.len()],
    /// Checkpoints that recorded something.
    pub checkpoints: Counter,
    /// What went wrong.
    pub errors: Errors,
}

impl Stats {
    /// What came for one priority.
    pub fn landed_for(&self, priority: Priority) -> &Landed {
        &self.by_priority[priority as usize]
    }

    /// Counts bytes that came from the source.
    pub fn count_fetched(&self, priority: Priority, bytes: u64) {
        self.bytes_fetched.add(bytes);
        self.landed_for(priority).bytes.add(bytes);
    }

    /// Takes a sample for the rates, `now` after any fixed moment.
    pub fn sample_rates(&self, now: Duration) {
        self.rate.sample(now, self.bytes_fetched.get());
        for landed in &self.by_priority {
            landed.rate.sample(now, landed.bytes.get());
        }
    }

    /// Entries that could not be copied so far.
    pub fn entries_failed(&self) -> u64 {
        self.errors.entries_failed()
    }

    /// Counts a published file.
    pub fn count_proof(&self, proof: ProofClass) {
        self.proof(proof).increment();
    }

    /// A published file was evicted.
    pub fn uncount_proof(&self, proof: ProofClass) {
        self.proof(proof).sub(1);
    }

    fn proof(&self, proof: ProofClass) -> &Counter {
        match proof {
            ProofClass::SourceChecksum => &self.proof_source_checksum,
            ProofClass::Transfer => &self.proof_transfer,
            ProofClass::AdoptedUnverified => &self.proof_adopted_unverified,
        }
    }

    /// Files that are plain files in the destination.
    pub fn files_published(&self) -> u64 {
        self.proof_source_checksum.get()
            + self.proof_transfer.get()
            + self.proof_adopted_unverified.get()
    }
}
