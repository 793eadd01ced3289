//! Orders and answers of `verify`, one JSON object on each line: names and units are a contract with scripts.

use serde::{Deserialize, Serialize};

use crate::control::ErrorBody;
use crate::control::status::JsonPath;
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::engine::verify::{Contrast, Event, Mending, Task, Verified};
use crate::error::{Error, Result};
use crate::store::proof::{Flaw, Found, Proven};

/// Ranges told of one file; the rest is counted.
const RANGES: usize = 1000;

/// Body of `POST /v1/verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyOrder {
    /// What is to be done.
    pub task: VerifyTask,
    /// Another SOURCE than that of the copy, as it was typed; a path is absolute.
    pub source: Option<JsonPath>,
    /// Options of that SOURCE, `KEY=VALUE` or `KEY=@FILE`; never a secret itself.
    pub source_options: Vec<String>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyTask {
    /// Compare what is on the disk with the digests.
    #[default]
    Prove,
    /// And mend what rotted or is missing.
    Repair,
    /// And replace what somebody changed.
    RepairChanged,
    /// Compare with the source.
    Compare,
    /// Tell the digests.
    List,
}

impl From<VerifyTask> for Task {
    fn from(task: VerifyTask) -> Self {
        match task {
            VerifyTask::Prove => Task::Prove(Mending::No),
            VerifyTask::Repair => Task::Prove(Mending::Rot),
            VerifyTask::RepairChanged => Task::Prove(Mending::Everything),
            VerifyTask::Compare => Task::Compare,
            VerifyTask::List => Task::List,
        }
    }
}

/// One line of the answer; `event` says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum VerifyLine {
    /// How far it is.
    Progress {
        /// Files looked at, and all.
        files: u64,
        /// As above.
        total_files: u64,
        /// Bytes looked at, and all.
        bytes: u64,
        /// As above.
        total_bytes: u64,
    },
    /// Something is not as it should be.
    Differs {
        /// Below DIR.
        #[serde(flatten)]
        path: JsonPath,
        /// `missing`, `other-kind`, `unreadable`, `changed`, `bytes`, `part`, `only-here`, `only-at-source`, `size`, `source-bytes`, `source-changed`.
        what: String,
        /// Byte ranges, first byte and one past the last; the first 1000.
        ranges: Vec<(u64, u64)>,
        /// Number of all ranges.
        ranges_total: usize,
        /// Bytes in all ranges.
        bytes: u64,
        /// For people.
        message: String,
    },
    /// The source could not be read.
    SourceFailed {
        /// Below its root.
        #[serde(flatten)]
        path: JsonPath,
        /// For people.
        message: String,
    },
    /// A file was replaced by a whole one.
    Mended {
        /// Below DIR.
        #[serde(flatten)]
        path: JsonPath,
        /// Bytes that came from the source.
        fetched: u64,
    },
    /// Blocks of an unfinished file were forgotten.
    Forgotten {
        /// Below DIR.
        #[serde(flatten)]
        path: JsonPath,
        /// Blocks of 128 KiB.
        blocks: u64,
    },
    /// A flaw stays.
    NotMended {
        /// Below DIR.
        #[serde(flatten)]
        path: JsonPath,
        /// For people.
        message: String,
    },
    /// A published file and its BLAKE3, in hex.
    Digest {
        /// Below DIR.
        #[serde(flatten)]
        path: JsonPath,
        /// 64 digits.
        blake3: String,
    },
    /// How it ended: always the last line but an error.
    Summary(Summary),
    /// It could not be done: the last line.
    Failed {
        /// [`crate::error::Kind::as_str`].
        kind: String,
        /// For people.
        message: String,
    },
}

/// Counts at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether nothing differs any more.
    pub clean: bool,
    /// Published files looked at.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Proven by the source's own checksum at first.
    pub source_checksum: u64,
    /// By transfer.
    pub transfer: u64,
    /// Taken unread at first.
    pub adopted_unverified: u64,
    /// Directories, links and pipes that are there.
    pub others: u64,
    /// Unfinished files looked at.
    pub parts: u64,
    /// Recorded blocks in them.
    pub part_blocks: u64,
    /// Of these, without a hash.
    pub unhashed_blocks: u64,
    /// Files in DIR that are not of this copy.
    pub unknown: u64,
    /// Entries that differ from what was proven.
    pub differing: u64,
    /// Of these, mended.
    pub mended: u64,
    /// Bytes fetched for that.
    pub fetched: u64,
    /// Entries that differ from the source.
    pub contrasts: u64,
    /// Entries that the source would not let be compared.
    pub source_failures: u64,
}

impl From<Verified> for Summary {
    fn from(verified: Verified) -> Self {
        let Proven { files, bytes, others, parts, part_blocks, unhashed_blocks, unknown, .. } =
            verified.proven;
        let Proven { source_checksum, transfer, adopted_unverified, flaws, .. } = verified.proven;
        Self {
            clean: verified.is_clean(),
            files,
            bytes,
            source_checksum,
            transfer,
            adopted_unverified,
            others,
            parts,
            part_blocks,
            unhashed_blocks,
            unknown,
            differing: flaws,
            mended: verified.mended,
            fetched: verified.fetched,
            contrasts: verified.contrasts,
            source_failures: verified.source_failures,
        }
    }
}

impl VerifyLine {
    pub(crate) fn failed(error: &Error) -> Self {
        let ErrorBody { kind, message } = ErrorBody::of(error);
        VerifyLine::Failed { kind, message }
    }

    /// The error that it tells.
    pub(crate) fn error(&self) -> Result<()> {
        let VerifyLine::Failed { kind, message } = self else { return Ok(()) };
        let body = ErrorBody { kind: kind.clone(), message: message.clone() };
        Err(Error::new(body.parsed_kind(), "verify").because(body.message))
    }

    /// Whether nothing comes after it.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, VerifyLine::Summary(_) | VerifyLine::Failed { .. })
    }
}

impl From<Event> for VerifyLine {
    fn from(event: Event) -> Self {
        let shown = |path: &RelPath| JsonPath::new(path.as_path());
        match event {
            Event::Progress(proven) => {
                let Proven { files, total_files, bytes, total_bytes, .. } = proven;
                VerifyLine::Progress { files, total_files, bytes, total_bytes }
            }
            Event::Found(found) => of_found(&found),
            Event::Contrast(path, contrast) => of_contrast(&path, &contrast),
            Event::SourceFailed(path, error) => {
                VerifyLine::SourceFailed { path: shown(&path), message: error.to_string() }
            }
            Event::Mended(path, fetched) => VerifyLine::Mended { path: shown(&path), fetched },
            Event::Forgotten(path, blocks) => VerifyLine::Forgotten { path: shown(&path), blocks },
            Event::NotMended(path, error) => {
                VerifyLine::NotMended { path: shown(&path), message: error.to_string() }
            }
            Event::Digest(path, digest) => {
                let blake3 = blake3::Hash::from_bytes(digest).to_hex().to_string();
                VerifyLine::Digest { path: shown(&path), blake3 }
            }
        }
    }
}

fn differs(path: &RelPath, what: &str, ranges: &[ByteRange], message: String) -> VerifyLine {
    VerifyLine::Differs {
        path: JsonPath::new(path.as_path()),
        what: what.to_owned(),
        ranges: ranges.iter().take(RANGES).map(|range| (range.start, range.end)).collect(),
        ranges_total: ranges.len(),
        bytes: ranges.iter().map(|range| range.len()).sum(),
        message,
    }
}

fn of_found(found: &Found) -> VerifyLine {
    let tell = |what, message: &str| differs(&found.path, what, &[], message.to_owned());
    match &found.flaw {
        Flaw::Missing => tell("missing", "missing"),
        Flaw::OtherKind => tell("other-kind", "something of another kind has its name"),
        Flaw::Unreadable(error) => tell("unreadable", &error.to_string()),
        Flaw::Differs(difference) if found.is_part => {
            let ranges = difference.ranges();
            differs(&found.path, "part", &ranges, "unfinished, recorded bytes differ".to_owned())
        }
        Flaw::Differs(difference) => {
            let ranges = difference.ranges();
            let what = if difference.is_changed() { "changed" } else { "bytes" };
            let mut words = vec![match (difference.is_changed(), ranges.is_empty()) {
                (true, true) => "changed by somebody since, its bytes are right".to_owned(),
                (true, false) => "changed by somebody since".to_owned(),
                (false, _) => "bytes differ".to_owned(),
            }];
            if difference.size != difference.recorded_size {
                let (now, then) = (difference.size, difference.recorded_size);
                words.push(format!("{now} bytes long instead of {then}"));
            }
            if !difference.is_exact {
                words.push("its block hashes are lost, so where is not known".to_owned());
            }
            differs(&found.path, what, &ranges, words.join(", "))
        }
    }
}

fn of_contrast(path: &RelPath, contrast: &Contrast) -> VerifyLine {
    let tell = |what, message: String| differs(path, what, &[], message);
    match contrast {
        Contrast::OnlyHere => tell("only-here", "not at the source".to_owned()),
        Contrast::OnlyAtSource => tell("only-at-source", "only at the source".to_owned()),
        Contrast::OtherKind => tell("other-kind", "something else at the source".to_owned()),
        Contrast::Size(here, there) => {
            tell("size", format!("{here} bytes here, {there} at the source"))
        }
        Contrast::Bytes(ranges, true) => {
            let message = "the source has another version now".to_owned();
            differs(path, "source-changed", ranges, message)
        }
        Contrast::Bytes(ranges, false) => {
            differs(path, "source-bytes", ranges, "bytes differ from the source".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_json_with_its_path() {
        let lines = [
            VerifyLine::Progress { files: 1, total_files: 2, bytes: 3, total_bytes: 4 },
            VerifyLine::Mended { path: JsonPath::new("a"), fetched: 7 },
            VerifyLine::Summary(Summary { clean: true, ..Summary::default() }),
            differs(&RelPath::root(), "bytes", &[ByteRange::new(1, 2)], "x".to_owned()),
        ];
        for line in lines {
            let json = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<VerifyLine>(&json).unwrap(), line, "{json}");
        }
    }
}
