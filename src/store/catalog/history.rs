//! What is remembered of a job besides its entries: the errors that are not made good, how surely its files were written, and whether it
//! shall go on.

use redb::ReadableTable;

use crate::core::quota::Used;
use crate::error::Result;
use crate::store::destination::Durability;

use super::database::{Commit, corrupt};
use super::tables::{ERRORS, META};
use super::{Catalog, ERRORS_KEPT, ErrorNote, get_number};

/// Name of the number in `meta`: 0 = normal, 1 = paranoid.
const DURABILITY: &str = "durability";
/// Name of the number in `meta`: 0 = run, 1 = pause, 2 = stop.
const ORDERED: &str = "ordered";
/// Names of the numbers in `meta` of the rate that was ordered and of the one that the daemon was started with; 0 = no limit.
const RATE: [&str; 2] = ["rate-ordered", "rate-at-start"];
/// Names of the numbers in `meta` of what was used of the limits.
const USED: [&str; 3] = ["used-bytes", "used-requests", "used-day"];

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

/// A rate that somebody ordered, in bytes per second; `None` = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderedRate {
    /// What was ordered.
    pub rate: Option<u64>,
    /// What the daemon had been started with.
    pub at_start: Option<u64>,
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

    /// Says what was used of the limits, by all lives.
    ///
    /// # Errors
    /// As a durable write.
    pub fn record_used(&self, used: Used) -> Result<()> {
        self.database.write("record use", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            for (name, number) in USED.into_iter().zip([used.bytes, used.requests, used.day]) {
                meta.insert(name, number.to_le_bytes().as_slice())?;
            }
            Ok(())
        })
    }

    /// What was used of the limits, by all lives.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn used(&self) -> Result<Used> {
        self.database.read("read catalog", |transaction| {
            let meta = transaction.open_table(META)?;
            let number = |name| get_number(&meta, name).map(|number| number.unwrap_or(0));
            let [bytes, requests, day] = USED;
            Ok(Used { bytes: number(bytes)?, requests: number(requests)?, day: number(day)? })
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

    /// Says which rate was ordered, asked when its turn comes; `None` = that of the start holds.
    ///
    /// # Errors
    /// As a durable write.
    pub fn record_rate(&self, last: impl Fn() -> Option<OrderedRate>) -> Result<()> {
        self.database.write("record rate", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            let numbers = last().map(|OrderedRate { rate, at_start }| [rate, at_start]);
            for (index, name) in RATE.into_iter().enumerate() {
                match numbers {
                    Some(numbers) => {
                        let number = numbers[index].unwrap_or(0);
                        meta.insert(name, number.to_le_bytes().as_slice())?;
                    }
                    None => drop(meta.remove(name)?),
                }
            }
            Ok(())
        })
    }

    /// The rate that was ordered last.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn rate(&self) -> Result<Option<OrderedRate>> {
        self.database.read("read catalog", |transaction| {
            let meta = transaction.open_table(META)?;
            let Some(rate) = get_number(&meta, RATE[0])? else { return Ok(None) };
            let at_start = get_number(&meta, RATE[1])?.unwrap_or(0);
            let limit = |number: u64| (number > 0).then_some(number);
            Ok(Some(OrderedRate { rate: limit(rate), at_start: limit(at_start) }))
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
