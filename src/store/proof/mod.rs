//! Proves the copy again from the bytes on disk: every published file against its recorded digest, and the recorded blocks of parts.
//! Finds, changes nothing. Called by the engine, in its own threads here: one shows records, some read and hash, the caller's collects.
//!
//! | file | what |
//! |---|---|
//! | `pipeline` | the threads and the order in which pieces of files pass through them |
//! | `target` | one file that is being proven: opened, read piece by piece, judged |
//! | `around` | everything that has no digest: directories, links, unfinished parts, files of somebody else |

mod around;
mod pipeline;
mod target;

use std::ops::{ControlFlow, Range};

use crate::core::path::RelPath;
use crate::core::range::{BLOCK_SIZE, ByteRange};
use crate::error::{Error, Result};

use super::Destination;
use super::catalog::{EntryRecord, ProofClass};

/// How a proof is run.
#[derive(Debug, Clone, Copy)]
pub struct ProofOptions {
    /// Threads that read and hash; at least 1.
    pub threads: usize,
    /// Whether they give way to everybody else (nice 19).
    pub is_background: bool,
}

/// What is wrong with one entry.
#[derive(Debug, Clone)]
pub enum Flaw {
    /// Nothing has its name.
    Missing,
    /// Something of another kind has its name.
    OtherKind,
    /// Its bytes cannot be read.
    Unreadable(Error),
    /// Its bytes are not those that were proven, or somebody has changed it since.
    Differs(Difference),
}

/// How a file differs from what was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Runs of blocks whose bytes differ or are missing, in rising order.
    pub blocks: Vec<Range<u64>>,
    /// Whether exactly these differ; else the block hashes are lost and any of them may.
    pub is_exact: bool,
    /// Length in bytes as recorded.
    pub recorded_size: u64,
    /// Length in bytes now.
    pub size: u64,
    /// Whether its time of modification is not what we placed: somebody wrote to it. Rot leaves the time as it is.
    pub is_touched: bool,
}

impl Difference {
    /// Whether somebody has changed it since, as far as length and time tell.
    pub fn is_changed(&self) -> bool {
        self.is_touched || self.size != self.recorded_size
    }

    /// The bytes that differ, are missing, or are too many.
    pub fn ranges(&self) -> Vec<ByteRange> {
        let bytes = |run: &Range<u64>| {
            ByteRange::new(run.start * BLOCK_SIZE, run.end * BLOCK_SIZE).clip(self.recorded_size)
        };
        let mut ranges: Vec<_> = self.blocks.iter().map(bytes).collect();
        if self.size > self.recorded_size {
            match ranges.last_mut().filter(|last| last.end == self.recorded_size) {
                Some(last) => last.end = self.size,
                None => ranges.push(ByteRange::new(self.recorded_size, self.size)),
            }
        }
        ranges
    }
}

/// One entry with a flaw.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it is.
    pub path: RelPath,
    /// What is recorded of it; `None` for what has no bytes of its own.
    pub record: Option<EntryRecord>,
    /// Whether it is an unfinished part rather than a file of DIR.
    pub is_part: bool,
    /// What is wrong.
    pub flaw: Flaw,
}

/// Counts of a proof, as far as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proven {
    /// Published files to look at, and their bytes.
    pub total_files: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Files looked at.
    pub files: u64,
    /// Bytes looked at.
    pub bytes: u64,
    /// Files whose bytes are proven, by the class of their first proof.
    pub source_checksum: u64,
    /// As above.
    pub transfer: u64,
    /// As above.
    pub adopted_unverified: u64,
    /// Directories, links and pipes that are there.
    pub others: u64,
    /// Unfinished parts looked at.
    pub parts: u64,
    /// Recorded blocks in them.
    pub part_blocks: u64,
    /// Of these, blocks without a hash: compared with the source before they are published.
    pub unhashed_blocks: u64,
    /// Files of DIR that the catalog does not know.
    pub unknown: u64,
    /// Entries with a flaw.
    pub flaws: u64,
}

impl Proven {
    fn count(&mut self, proof: Option<ProofClass>) {
        match proof {
            Some(ProofClass::SourceChecksum) => self.source_checksum += 1,
            Some(ProofClass::AdoptedUnverified) => self.adopted_unverified += 1,
            Some(ProofClass::Transfer) | None => self.transfer += 1,
        }
    }
}

/// Takes in what a proof finds, one after the other, and its counts after each step; `Break` ends it early.
pub type Observer<'a> = dyn FnMut(&Proven, Option<Found>) -> ControlFlow<()> + 'a;

impl Destination {
    /// Reads everything that is recorded back and compares. A file that a living daemon replaces meanwhile is left out.
    ///
    /// # Errors
    /// What the catalog says; `Io` if no thread can be had. What is wrong with files goes to `observer`.
    pub fn prove(&self, options: ProofOptions, observer: &mut Observer<'_>) -> Result<Proven> {
        let mut proven = self.count_published()?;
        if observer(&proven, None).is_break()
            || self.prove_files(options, &mut proven, observer)?.is_break()
            || self.prove_parts(&mut proven, observer)?.is_break()
            || self.look_at_others(&mut proven, observer)?.is_break()
        {
            return Ok(proven);
        }
        self.count_unknown(&mut proven)?;
        let _end = observer(&proven, None);
        Ok(proven)
    }
}

/// Blocks in rising order as runs.
fn runs(blocks: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_belongs_to_the_difference() {
        let difference = |blocks, size| Difference {
            blocks,
            is_exact: true,
            recorded_size: BLOCK_SIZE + 10,
            size,
            is_touched: false,
        };
        let ranges = |blocks, size| difference(blocks, size).ranges();
        let end = BLOCK_SIZE + 10;
        assert_eq!(ranges(runs([1]), end), [ByteRange::new(BLOCK_SIZE, end)]);
        assert_eq!(ranges(runs([1]), end + 5), [ByteRange::new(BLOCK_SIZE, end + 5)]);
        assert_eq!(ranges(runs([0, 1]), 3), [ByteRange::new(0, end)]);
        assert_eq!(ranges(Vec::new(), end + 1), [ByteRange::new(end, end + 1)]);
    }
}
