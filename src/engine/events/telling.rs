//! What the engine tells where it happens, in one line each.

use std::ffi::OsStr;
use std::time::Instant;

use crate::core::claims::Chunk;
use crate::core::json_path::JsonPath;
use crate::core::path::RelPath;
use crate::engine::Engine;
use crate::engine::events::{ChunkStep, Event, FileStep, LimitStep, SpaceStep, Step};
use crate::engine::file::LazyFile;
use crate::engine::stats::{Counter, Stats};
use crate::error::Error;
use crate::store::Space;
use crate::store::catalog::ProofClass;

/// The attempts to fetch one chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempts {
    /// Made so far, the one that runs included.
    pub(crate) made: u32,
    begun: Instant,
}

impl Attempts {
    /// The first begins.
    pub(crate) fn begin() -> Self {
        Self { made: 1, begun: Instant::now() }
    }
}

impl Engine {
    pub(crate) fn tell_chunk(
        &self,
        what: ChunkStep,
        file: &LazyFile,
        chunk: &Chunk,
        attempts: Attempts,
        error: Option<&Error>,
    ) {
        let elapsed = attempts.begun.elapsed();
        self.events.tell_with(|| Event::Chunk {
            what,
            chunk: chunk.id.0,
            path: JsonPath::new(file.path.as_path()),
            offset: chunk.range.start,
            len: chunk.range.len(),
            priority: chunk.priority().as_str().into(),
            attempt: attempts.made,
            duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            kind: error.map(|error| error.kind().as_str().into()),
            message: error.map(ToString::to_string),
        });
    }

    pub(crate) fn tell_published(&self, file: &LazyFile, proof: ProofClass) {
        let proof = match proof {
            ProofClass::SourceChecksum => "source-checksum",
            ProofClass::Transfer => "transfer",
            ProofClass::AdoptedUnverified => "adopted-unverified",
        };
        self.events.tell_with(|| Event::File {
            what: FileStep::Published,
            path: JsonPath::new(file.path.as_path()),
            bytes: Some(file.size()),
            proof: Some(proof.into()),
            kind: None,
            message: None,
        });
    }

    pub(crate) fn tell_file(&self, what: FileStep, path: &RelPath, error: Option<&Error>) {
        self.events.tell_with(|| Event::File {
            what,
            path: JsonPath::new(path.as_path()),
            bytes: None,
            proof: None,
            kind: error.map(|error| error.kind().as_str().into()),
            message: error.map(ToString::to_string),
        });
    }

    /// An entry in `directory` is not asked for.
    pub(crate) fn tell_skipped(&self, directory: &RelPath, name: &OsStr) {
        self.events.tell_with(|| Event::File {
            what: FileStep::Skipped,
            path: JsonPath::new(directory.as_path().join(name)),
            bytes: None,
            proof: None,
            kind: None,
            message: None,
        });
    }

    pub(crate) fn tell_scan(&self, what: Step) {
        let Stats { files_known, bytes_known, files_skipped, .. } = &*self.stats;
        let [files, bytes, skipped] = [files_known, bytes_known, files_skipped].map(Counter::get);
        self.events.tell(Event::Scan { what, files, bytes, skipped });
    }

    /// Fewer requests run at once than might, or all may again: `limit` of `most`.
    pub(crate) fn tell_connections(&self, limit: usize, most: usize) {
        let what = if limit == most { LimitStep::Lifted } else { LimitStep::Set };
        let value = Some(limit as u64);
        self.events.tell(Event::Limit { what, limit: "max-connections".into(), value, used: None });
    }

    /// The copy has another phase, named as in status.
    pub fn tell_phase(&self, phase: &'static str) {
        let tally = self.tally();
        self.events.tell(Event::Job {
            phase: phase.into(),
            files: tally.files,
            files_published: tally.files_published,
            files_failed: self.stats.entries_failed(),
            bytes: tally.bytes,
            bytes_local: tally.bytes_local,
        });
    }

    /// Tells if room has turned.
    pub(crate) fn tell_of_room(&self, space: &Space) {
        if !self.room.take_turned() {
            return;
        }
        let is_short = self.room.is_short();
        let what = if is_short { SpaceStep::Short } else { SpaceStep::Back };
        let (free_bytes, reserve_bytes) = (space.free_bytes, self.room.reserve(space));
        self.events.tell(Event::Space { what, free_bytes, reserve_bytes });
        let by = "space".into();
        self.events.tell(if is_short { Event::Pause { by } } else { Event::Resume { by } });
    }
}
