//! Where the names of a page go: checked, without duplicates, in batches.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStringExt;

use tokio::sync::mpsc;

use super::malformed;
use crate::core::attributes::{Attributes, EntryKind};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::http::spelling::Spelling;
use crate::source::{Entry, ListBatch};

/// Entries per batch.
const BATCH: usize = 1024;
/// Refused names that one listing logs; the rest is counted.
const LOGGED_REFUSALS: u64 = 100;

/// Why a listing ends before its page.
#[derive(Debug)]
pub(in crate::source) enum Halt {
    /// The receiver of the batches is gone.
    NobodyListens,
    /// The page is no good.
    Failed(Error),
}

impl Halt {
    /// The page did not arrive whole; the task that feeds it knows why.
    pub(in crate::source) fn page(error: io::Error) -> Self {
        Self::Failed(
            Error::new(Kind::Unreachable, "list directory")
                .because("the page was cut")
                .caused_by(error),
        )
    }
}

/// Takes names and sends batches. Blocks while nobody receives.
#[derive(Debug)]
pub(in crate::source) struct Sink {
    directory: RelPath,
    batches: mpsc::Sender<ListBatch>,
    batch: ListBatch,
    spelling: Spelling,
    names: HashSet<OsString>,
    refused: u64,
    max_entries: usize,
}

impl Sink {
    /// A sink for the names of `directory`, written in `spelling`; there may be `max_entries`.
    pub(in crate::source) fn new(
        directory: RelPath,
        batches: mpsc::Sender<ListBatch>,
        spelling: Spelling,
        max_entries: usize,
    ) -> Self {
        Self {
            directory,
            batches,
            batch: ListBatch::default(),
            spelling,
            names: HashSet::new(),
            refused: 0,
            max_entries,
        }
    }

    /// Passes on `name`, unless it was there before or cannot be used.
    pub(super) fn offer(&mut self, name: Vec<u8>, kind: EntryKind) -> Result<(), Halt> {
        self.offer_with(name, kind, None)
    }

    /// As [`Sink::offer`], with what the page tells of it.
    pub(in crate::source) fn offer_with(
        &mut self,
        name: Vec<u8>,
        kind: EntryKind,
        attributes: Option<Attributes>,
    ) -> Result<(), Halt> {
        let name = OsString::from_vec(self.spelling.name(name));
        if let Err(refusal) = RelPath::check_name(&name) {
            self.refuse(&refusal);
        } else if self.names.contains(&name) {
            return Ok(());
        } else {
            if self.names.len() >= self.max_entries {
                return Err(Halt::Failed(malformed(format!(
                    "endless listing: more than {} entries",
                    self.max_entries
                ))));
            }
            self.names.insert(name.clone());
            self.batch.entries.push(Entry { name, kind, attributes });
        }
        if self.batch.entries.len() >= BATCH { self.send() } else { Ok(()) }
    }

    /// Counts a name that cannot be used.
    pub(in crate::source) fn refuse(&mut self, refusal: &Error) {
        self.refused += 1;
        self.batch.refused += 1;
        if self.refused <= LOGGED_REFUSALS {
            tracing::warn!(directory = %self.directory, err = %refusal, "name refused");
        }
    }

    fn send(&mut self) -> Result<(), Halt> {
        self.batches
            .blocking_send(mem::take(&mut self.batch))
            .map_err(|_closed| Halt::NobodyListens)
    }

    /// Sends what is left of a page that was `parsed`.
    ///
    /// # Errors
    /// Why the page is no good.
    pub(in crate::source) fn finish(mut self, parsed: Result<(), Halt>) -> Result<()> {
        let is_empty = self.batch.entries.is_empty() && self.batch.refused == 0;
        let sent = parsed.and_then(|()| if is_empty { Ok(()) } else { self.send() });
        match sent {
            Ok(()) | Err(Halt::NobodyListens) => Ok(()),
            Err(Halt::Failed(error)) => Err(error),
        }
    }
}
