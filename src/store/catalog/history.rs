//! What is remembered of a job besides its entries: the errors that are not made good, how surely its files were written, and whether it
//! shall go on.

use redb::ReadableTable;

use crate::error::Result;
use crate::store::destination::Durability;

use super::database::{Commit, corrupt};
use super::tables::{ERRORS, META};
use super::{Catalog, ERRORS_KEPT, ErrorNote, get_number};

/// Name of the number in `meta`: 0 = normal, 1 = paranoid.
const DURABILITY: &str = "durability";
/// Name of the number in `meta`: 0 = run, 1 = pause, 2 = stop.
const ORDERED: &str = "ordered";

/// What a job was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordered {
    /// To go on, or nothing.
    Run,
    /// To pause.
    Pause,
    /// To stop.
    Stop,
}

impl Catalog {
    /// Replaces the error history, durably: `notes` oldest first, of which the last [`ERRORS_KEPT`] are kept.
    ///
    /// # Errors
    /// As a durable write.
    pub fn record_errors(&self, notes: &[ErrorNote]) -> Result<()> {
        let kept = usize::try_from(ERRORS_KEPT).unwrap_or(usize::MAX);
        let notes = &notes[notes.len().saturating_sub(kept)..];
        self.database.write("record errors", Commit::Durable, |transaction| {
            let mut errors = transaction.open_table(ERRORS)?;
            while errors.pop_first()?.is_some() {}
            for (number, note) in (0u64..).zip(notes) {
                errors.insert(number, note.encode().as_slice())?;
            }
            Ok(())
        })
    }

    /// The error history, oldest first.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn errors(&self) -> Result<Vec<ErrorNote>> {
        self.database.read("read catalog", |transaction| {
            let errors = transaction.open_table(ERRORS)?;
            let notes = errors.iter()?.map(|row| {
                let (number, note) = row?;
                ErrorNote::decode(note.value())
                    .ok_or_else(|| corrupt(format!("error note {}", number.value())))
            });
            notes.collect()
        })
    }

    /// Says how surely this life writes files. The least sure of all lives is what [`Catalog::durability`] answers.
    ///
    /// # Errors
    /// As a durable write.
    pub fn record_durability(&self, durability: Durability) -> Result<()> {
        let known = self.durability()?;
        if known.is_some_and(|known| known <= durability) {
            return Ok(());
        }
        self.database.write("record durability", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(DURABILITY, (durability as u64).to_le_bytes().as_slice())?;
            Ok(())
        })
    }

    /// Says what the job is told; asked when its turn comes, so that the last order is what stays.
    ///
    /// # Errors
    /// As a durable write.
    pub fn record_ordered(&self, last: impl Fn() -> Ordered) -> Result<()> {
        self.database.write("record order", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert(ORDERED, (last() as u64).to_le_bytes().as_slice())?;
            Ok(())
        })
    }

    /// What the job was told last.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn ordered(&self) -> Result<Ordered> {
        self.database.read("read catalog", |transaction| {
            match get_number(&transaction.open_table(META)?, ORDERED)? {
                None | Some(0) => Ok(Ordered::Run),
                Some(1) => Ok(Ordered::Pause),
                Some(2) => Ok(Ordered::Stop),
                Some(_) => Err(corrupt(ORDERED)),
            }
        })
    }

    /// How surely every file of this job was written, at least; `None` before its first life.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn durability(&self) -> Result<Option<Durability>> {
        self.database.read("read catalog", |transaction| {
            match get_number(&transaction.open_table(META)?, DURABILITY)? {
                None => Ok(None),
                Some(0) => Ok(Some(Durability::Normal)),
                Some(1) => Ok(Some(Durability::Paranoid)),
                Some(_) => Err(corrupt(DURABILITY)),
            }
        })
    }
}
