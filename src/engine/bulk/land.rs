//! The publisher: takes steps with what the carriers bring.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::core::path::RelPath;
use crate::engine::bulk::Bulk;
use crate::engine::bulk::plan::Batch;
use crate::error::{Kind, Result};
use crate::store::bulk::{Content, Outcome, Ready, Said, Steps, What};
use crate::store::catalog::{NameChange, OtherRecord, ProofClass};

/// Files and bytes of one step.
const STEP_FILES: usize = 4096;
const STEP_BYTES: u64 = 256 << 20;
/// Names of one step: its commit holds them in memory.
const STEP_NAMES: usize = 16_384;
/// How long what was carried may wait for more.
const STEP_TIME: Duration = Duration::from_secs(1);

/// What scanners and carriers hand over.
#[derive(Debug, Default)]
pub(super) struct Landed {
    pub(super) ready: Vec<Ready>,
    pub(super) names: Vec<NameChange>,
    pub(super) others: Vec<OtherRecord>,
    /// Not carried this time.
    pub(super) again: Vec<Batch>,
    /// For the engine.
    pub(super) left: Vec<RelPath>,
}

impl Landed {
    pub(super) fn names(names: Vec<NameChange>) -> Self {
        Self { names, ..Self::default() }
    }

    pub(super) fn other(other: OtherRecord) -> Self {
        Self { others: vec![other], ..Self::default() }
    }
}

/// Takes the steps of one copy.
pub(super) struct Publisher<'a> {
    bulk: &'a Bulk,
    steps: Steps,
    said: Said,
    bytes: u64,
    since: Option<Instant>,
    again: Vec<Batch>,
    left: Vec<RelPath>,
}

impl<'a> Publisher<'a> {
    pub(super) fn new(bulk: &'a Bulk) -> Self {
        Self {
            bulk,
            steps: bulk.engine.destination.steps(),
            said: Said::default(),
            bytes: 0,
            since: None,
            again: Vec::new(),
            left: Vec::new(),
        }
    }

    /// Publishes until nobody sends any more, and all of it.
    pub(super) fn run(&mut self, lands: &Receiver<Landed>) -> Result<()> {
        loop {
            let received = match self.since {
                None => lands.recv().map_err(RecvTimeoutError::from),
                Some(since) => lands.recv_deadline(since + STEP_TIME),
            };
            match received {
                Ok(landed) => self.take(landed),
                Err(RecvTimeoutError::Timeout) => self.step()?,
                Err(RecvTimeoutError::Disconnected) => return self.finish(),
            }
            let is_full = self.said.ready.len() >= STEP_FILES
                || self.said.names.len() >= STEP_NAMES
                || self.bytes >= STEP_BYTES;
            if is_full {
                self.step()?;
            }
        }
    }

    pub(super) fn take(&mut self, landed: Landed) {
        let Landed { ready, names, others, again, left } = landed;
        self.again.extend(again);
        self.left.extend(left);
        if ready.is_empty() && names.is_empty() && others.is_empty() {
            return;
        }
        self.since.get_or_insert_with(Instant::now);
        for one in &ready {
            if let Content::File { version, .. } = &one.content {
                self.bytes += version.fingerprint.size;
            }
        }
        self.said.ready.extend(ready);
        self.said.names.extend(names);
        self.said.others.extend(others);
    }

    /// Entries that were taken out of DIR.
    pub(super) fn forget(&mut self, path: RelPath) {
        self.said.forgotten.push(path);
    }

    /// Everything so far is published, durably.
    pub(super) fn finish(&mut self) -> Result<()> {
        let said = &self.said;
        if !said.ready.is_empty()
            || !said.names.is_empty()
            || !said.others.is_empty()
            || !said.forgotten.is_empty()
        {
            self.step()?;
        }
        while self.steps.is_open() {
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let said = std::mem::take(&mut self.said);
        (self.bytes, self.since) = (0, None);
        let (outcomes, known) = self.steps.step(said)?;
        self.bulk.engine.count_known(known);
        outcomes.into_iter().for_each(|outcome| self.note(outcome));
        if self.steps.is_open() {
            // What was renamed is called published soon, also when nothing more comes.
            self.since = Some(Instant::now());
        }
        Ok(())
    }

    fn note(&mut self, outcome: Outcome) {
        let Outcome { path, what, result } = outcome;
        let (stats, counts) = (&self.bulk.engine.stats, &self.bulk.counts);
        match result {
            Ok(losses) => {
                stats.errors.succeeded(&path);
                stats.metadata_lost.add(u64::try_from(losses.len()).unwrap_or(0));
                let size = match what {
                    What::Special => return counts.specials.increment(),
                    What::Moved(size) => {
                        counts.renamed.increment();
                        stats.carried_bytes.add(size);
                        size
                    }
                    // Its bytes were counted as they came.
                    What::File(size) => {
                        counts.copied.increment();
                        counts.copied_bytes.add(size);
                        size
                    }
                };
                stats.count_proof(ProofClass::Transfer);
                stats.carried.increment();
                tracing::debug!(%path, size, "published");
            }
            Err(error) => {
                if let What::File(size) = what {
                    stats.carried_bytes.sub(size);
                }
                match error.kind() {
                    // Somebody else's file has its name, or came a moment ago: the engine compares.
                    Kind::Exists => self.left.push(path),
                    _ => self.bulk.failed(&path, &error),
                }
            }
        }
    }

    pub(super) fn take_again(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.again)
    }

    pub(super) fn take_left(&mut self) -> Vec<RelPath> {
        std::mem::take(&mut self.left)
    }
}
