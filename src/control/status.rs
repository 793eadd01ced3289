//! The answers of the control socket, schema 1: names and units are a contract with scripts.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

pub(crate) use crate::core::path::{escape, exact};

/// Version of the answers' shape.
pub const SCHEMA: u32 = 1;

/// A path in JSON: readable in `path`; where it is not UTF-8, that is escaped and `path_b64` has the exact bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonPath {
    /// For people: bytes that are not UTF-8 as `\xHH`.
    pub path: String,
    /// Standard base64 of the raw bytes, only where `path` is not exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_b64: Option<String>,
}

impl JsonPath {
    /// Writes down `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().as_os_str();
        Self { path: escape(path), path_b64: exact(path) }
    }

    /// The exact path; `None` if `path_b64` is no base64.
    pub fn to_path_buf(&self) -> Option<PathBuf> {
        from_exact(&self.path, self.path_b64.as_deref())
    }
}

/// The path that [`escape`] and [`exact`] wrote down.
pub(crate) fn from_exact(text: &str, exact: Option<&str>) -> Option<PathBuf> {
    match exact {
        Some(exact) => {
            let bytes = BASE64_STANDARD.decode(exact).ok()?;
            Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
        }
        None => Some(PathBuf::from(text)),
    }
}

/// A point in time as the answers write it: RFC 3339, UTC, whole seconds.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Where a copy stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobPhase {
    /// Serves reads; nothing is fetched ahead.
    #[default]
    Idle,
    /// The source is being listed.
    Scanning,
    /// Fills in the background.
    Hydrating,
    /// `paused_by` says by what.
    Paused,
    /// Finishes what runs, starts nothing new.
    Draining,
    /// Everything is published.
    Complete,
    /// Ended before it was complete.
    Stopped,
    /// Ended by an error.
    Failed,
}

impl JobPhase {
    /// The word in the answers.
    pub fn as_str(self) -> &'static str {
        match self {
            JobPhase::Idle => "idle",
            JobPhase::Scanning => "scanning",
            JobPhase::Hydrating => "hydrating",
            JobPhase::Paused => "paused",
            JobPhase::Draining => "draining",
            JobPhase::Complete => "complete",
            JobPhase::Stopped => "stopped",
            JobPhase::Failed => "failed",
        }
    }
}

/// What holds hydration back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PausedBy {
    /// An order.
    User,
    /// Too little room at the destination.
    Space,
    /// The source is out of reach.
    Source,
}

/// Counts of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCounts {
    /// All that are known so far.
    pub total: u64,
    /// Plain files at the destination.
    pub published: u64,
    /// Some bytes are local.
    pub partial: u64,
    /// Given up.
    pub failed: u64,
    /// Changed at the source meanwhile.
    pub changed: u64,
    /// Deleted at the source after they were published; the copy is kept.
    #[serde(default)]
    pub deleted: u64,
    /// Listed, and gone when they were to be copied.
    #[serde(default)]
    pub vanished: u64,
    /// Metadata that could not be kept.
    pub warnings: u64,
}

/// Counts of published files by their proof.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofCounts {
    /// By the source's own checksum.
    pub source_checksum: u64,
    /// Bytes on disk = bytes received.
    pub transfer: u64,
    /// Found there, size and time alike.
    pub adopted_unverified: u64,
}

/// Counts of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteCounts {
    /// Of all files known so far.
    pub total: u64,
    /// Present at the destination.
    pub local: u64,
    /// Received from the source.
    pub fetched: u64,
    /// Given to readers.
    pub served: u64,
    /// Received in vain.
    pub wasted: u64,
}

/// Counts of chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkCounts {
    /// All so far.
    pub total: u64,
    /// Running.
    pub active: u64,
    /// Waiting for a permit.
    pub queued: u64,
    /// Ended well.
    pub done: u64,
    /// Ended badly.
    pub failed: u64,
    /// Attempts beyond the first.
    pub retried: u64,
}

/// What a copy in place shows besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlaceCounts {
    /// Every directory was listed.
    pub is_scanned: bool,
    /// Bytes that the copy still needs, as far as it is known.
    pub needed: u64,
    /// Bytes that are free at the destination.
    pub free: u64,
    /// Bytes of these that stay free.
    pub kept_free: u64,
    /// How long the last read took that had to wait, in ms; 0 = none had to.
    pub last_wait_ms: u64,
}

/// A cache of limited size, in bytes allocated on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCounts {
    /// Most that it takes.
    pub cap: u64,
    /// What it takes now, with what is reserved for running chunks.
    pub used: u64,
    /// What went from it in this session.
    pub evicted: u64,
}

/// One running chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveChunk {
    /// Its ChunkId.
    pub chunk: u64,
    /// The file, below the root.
    #[serde(flatten)]
    pub path: JsonPath,
    /// First byte.
    pub offset: u64,
    /// Bytes asked for.
    pub len: u64,
    /// Bytes that have come.
    pub landed: u64,
    /// `demand`, `readahead` or `hydration`.
    pub priority: String,
}

/// One recent error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileError {
    /// The file, below the root.
    #[serde(flatten)]
    pub path: JsonPath,
    /// [`crate::error::Kind::as_str`].
    pub kind: String,
    /// One line.
    pub message: String,
    /// RFC 3339.
    pub at: String,
}

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// One daemon's life.
    pub session: String,
    /// One source and destination, over restarts.
    pub job: String,
    /// Without secrets.
    pub source: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Exact bytes, only where `mountpoint` is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint_b64: Option<String>,
    /// The destination.
    pub dest: String,
    /// Exact bytes, only where `dest` is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_b64: Option<String>,
    /// RFC 3339.
    pub started_at: String,
    /// Seconds since the start.
    pub elapsed_s: f64,
    /// Where the copy stands; `paused` whenever `paused_by` is set.
    pub phase: JobPhase,
    /// What holds hydration back.
    pub paused_by: Option<PausedBy>,
    /// Bytes local of bytes known, 0–100.
    pub percent: f64,
    /// Counts of files.
    pub files: FileCounts,
    /// Counts of proofs.
    pub proof: ProofCounts,
    /// Counts of bytes.
    pub bytes: ByteCounts,
    /// Moving average of what lands.
    pub rate_bytes_per_s: u64,
    /// Seconds left; `null` until known.
    pub eta_s: Option<u64>,
    /// Counts of chunks.
    pub chunks: ChunkCounts,
    /// Running chunks.
    pub active: Vec<ActiveChunk>,
    /// Recent errors, the newest last.
    pub errors: Vec<FileError>,
    /// Only in a copy in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place: Option<InPlaceCounts>,
    /// Only where not everything is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheCounts>,
}

impl StatusReport {
    /// A report about this mountpoint and destination with everything else empty.
    pub fn of(mountpoint: &Path, dest: &Path) -> Self {
        Self {
            schema: SCHEMA,
            mountpoint: escape(mountpoint.as_os_str()),
            mountpoint_b64: exact(mountpoint.as_os_str()),
            dest: escape(dest.as_os_str()),
            dest_b64: exact(dest.as_os_str()),
            ..Self::default()
        }
    }

    /// Sets phase and pause together: a pause shows as `paused`, whatever is paused.
    #[must_use]
    pub fn in_phase(mut self, phase: JobPhase, paused_by: Option<PausedBy>) -> Self {
        self.phase = if paused_by.is_some() { JobPhase::Paused } else { phase };
        self.paused_by = paused_by;
        self
    }
}

/// `status --json` without TARGET.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonsReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// One for each daemon of this user.
    pub daemons: Vec<StatusReport>,
}

/// One operation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckOperation {
    /// Number of the request.
    pub id: u64,
    /// `read`, `lookup`, `fetch`, …
    pub kind: String,
    /// FUSE inode number.
    pub ino: u64,
    /// The file, below the root.
    #[serde(flatten)]
    pub path: JsonPath,
    /// First byte, for reads.
    pub offset: u64,
    /// Bytes, for reads.
    pub len: u64,
    /// What it waits for, in words.
    pub waits_for: String,
    /// The chunk that it waits for.
    pub chunk: Option<u64>,
    /// Milliseconds since it began.
    pub since_ms: u64,
    /// Thread that took the request.
    pub thread: u64,
}

/// Answer of `GET /v1/stuck`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// One daemon's life.
    pub session: String,
    /// The oldest first.
    pub operations: Vec<StuckOperation>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_shows_as_paused_whatever_is_paused() {
        let report = StatusReport::of(Path::new("/m"), Path::new("/d"));
        let report = report.in_phase(JobPhase::Scanning, Some(PausedBy::Space));
        assert_eq!(report.phase, JobPhase::Paused);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["phase"], "paused");
        assert_eq!(json["paused_by"], "space");
        assert_eq!(json["eta_s"], serde_json::Value::Null);
    }

    #[test]
    fn schema_1_has_exactly_the_promised_fields() {
        let mut report = StatusReport::of(Path::new("/m"), Path::new("/d"));
        report.active.push(ActiveChunk {
            chunk: 1,
            path: JsonPath::new("a"),
            offset: 0,
            len: 1,
            landed: 0,
            priority: "demand".to_owned(),
        });
        let json = serde_json::to_value(&report).unwrap();
        let mut fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        fields.sort();
        assert_eq!(
            fields.join(" "),
            "active bytes chunks dest elapsed_s errors eta_s files job mountpoint paused_by percent phase proof rate_bytes_per_s schema session source started_at"
        );
        assert_eq!(
            json["active"][0],
            serde_json::json!({"chunk":1,"path":"a","offset":0,"len":1,"landed":0,"priority":"demand"})
        );
    }

    proptest! {
        #[test]
        fn every_path_survives_json(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
            let json = serde_json::to_string(&JsonPath::new(&path)).unwrap();
            let back: JsonPath = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back.to_path_buf(), Some(path));
        }
    }
}
