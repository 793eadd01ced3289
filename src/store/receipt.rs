//! `DIR/.lazycopy/receipt.json`: what a complete copy can show. Written entry by entry, so that a million of them need no memory; a crash
//! leaves no receipt or a whole one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags};
use serde::Serialize;
use serde_json::{Value, json};

use crate::core::attributes::{Checksum, EntryKind, Fingerprint, Timestamp, Validator};
use crate::core::path::{RelPath, escape, exact};
use crate::error::{Error, Result};
use crate::sync::{AtomicBool, Ordering};

use super::catalog::{EntryPhase, EntryRecord, OtherRecord, Placed, ProofClass};
use super::destination::Disk;
use super::root::{create_beneath, stat_entry, sync_directory};
use super::state::remove;
use super::{Destination, Existing, MetadataLoss};

/// In the private directory of DIR.
pub(super) const RECEIPT_NAME: &str = "receipt.json";
/// A receipt that is being written.
pub(super) const RECEIPT_DRAFT_NAME: &str = "receipt.new";
/// Shape of the receipt.
const SCHEMA: u32 = 1;
const STATEMENT: &str = "Each digest is the BLAKE3 hash of the bytes as they were proven when they were copied. This receipt proves the \
copy against rot and mistakes. It does not prove it against an attacker: whoever can write to this directory can write this receipt too.";

/// What is said of the whole copy.
#[derive(Debug, Clone)]
pub struct Copied {
    /// One source and destination, over restarts.
    pub job: String,
    /// When the last file came.
    pub ended: SystemTime,
    /// Entries that were left out on purpose.
    pub skipped: u64,
}

/// Whether a receipt lies there. Relaxed: the file itself decides; who changes the copy looks after its own earlier steps.
#[derive(Debug, Default)]
pub(super) struct HasReceipt(AtomicBool);

impl HasReceipt {
    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, is_there: bool) {
        self.0.store(is_there, Ordering::Relaxed);
    }
}

/// Counts at the end of the receipt.
#[derive(Debug, Default, Serialize)]
struct Totals {
    files: u64,
    bytes: u64,
    directories: u64,
    others: u64,
    proof: BTreeMap<&'static str, u64>,
    warnings: BTreeMap<&'static str, u64>,
}

impl Destination {
    /// Writes the receipt, durably. Every file that is published is in it with its proof; one that somebody changed since says so.
    ///
    /// # Errors
    /// What the catalog and the disk say; no receipt is left then.
    pub fn write_receipt(&self, copied: &Copied) -> Result<()> {
        let disk = &self.disk;
        let failed = |errno| Error::io("write receipt of", errno).at(disk.root.shown_as());
        let state = disk.state.fd();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let draft =
            create_beneath(state, RECEIPT_DRAFT_NAME.as_bytes(), flags, Mode::from_raw_mode(0o600))
                .map_err(failed)?;
        let mut writer = Writer::new(BufWriter::new(File::from(draft)), disk.root.shown_as());
        self.write_all_of_receipt(&mut writer, copied)?;
        let file = writer.to.into_inner().map_err(|error| {
            Error::io("write receipt of", error.into_error()).at(disk.root.shown_as())
        })?;
        rustix::fs::fsync(&file).map_err(failed)?;
        disk.receipt.set(true);
        rustix::fs::renameat(state, RECEIPT_DRAFT_NAME, state, RECEIPT_NAME).map_err(failed)?;
        sync_directory(state).map_err(failed)
    }

    /// Whether a receipt lies there. Answered from memory.
    pub fn has_receipt(&self) -> bool {
        self.disk.receipt.is_there()
    }

    fn write_all_of_receipt(&self, writer: &mut Writer<'_>, copied: &Copied) -> Result<()> {
        let catalog = &self.disk.catalog;
        let job = catalog.job()?;
        writer.head(&json!({
            "schema": SCHEMA,
            "statement": STATEMENT,
            "tool": concat!("lazycopy ", env!("CARGO_PKG_VERSION")),
            "source": job.as_ref().map(|job| job.source.as_str()),
            "job": copied.job,
            "started_at": job.as_ref().map(|job| rfc3339(job.created)),
            "ended_at": rfc3339(copied.ended),
            "skipped": copied.skipped,
        }))?;
        let mut totals = Totals::default();
        for class in
            [ProofClass::SourceChecksum, ProofClass::Transfer, ProofClass::AdoptedUnverified]
        {
            totals.proof.insert(class.as_str(), 0);
        }
        let mut looker = self.looker();
        catalog.entries(|record| match record.phase {
            EntryPhase::Published(placed) => {
                let now = looker.own(&record.path)?;
                writer.entry(&file_entry(&record, placed, now, &mut totals))
            }
            _ => Ok(()),
        })?;
        catalog.others(|other| {
            let now = looker.own(&other.path)?;
            writer.entry(&other_entry(&other, now, &mut totals))
        })?;
        writer.end(&totals)
    }
}

impl Disk {
    /// Takes the receipt away, durably. It is no error if there is none.
    pub(super) fn remove_receipt(&self) -> Result<()> {
        let state = self.state.fd();
        remove(state, RECEIPT_NAME)
            .map_err(|errno| Error::io("remove receipt of", errno).at(self.root.shown_as()))?;
        self.receipt.set(false);
        // A draft that was cut off.
        let _gone = rustix::fs::unlinkat(state, RECEIPT_DRAFT_NAME, AtFlags::empty());
        Ok(())
    }

    /// Another version is about to be published, so a receipt does not hold any more: DIR is marked first.
    pub(super) fn will_change(&self, intents: &[EntryRecord]) -> Result<()> {
        if !self.receipt.is_there() {
            return Ok(());
        }
        for intent in intents {
            let known = self.catalog.entry(&intent.path)?;
            let is_same = known.is_some_and(|known| {
                matches!(known.phase, EntryPhase::Published(_)) && known.digest == intent.digest
            });
            if !is_same {
                return self.mark_incomplete();
            }
        }
        Ok(())
    }

    /// Whether a receipt of an earlier life lies there.
    pub(super) fn look_for_receipt(&self) {
        let found = stat_entry(self.state.fd().as_fd(), RECEIPT_NAME.as_ref());
        self.receipt.set(!matches!(found, Ok(None)));
    }
}

/// A JSON object with one line for each entry.
struct Writer<'a> {
    to: BufWriter<File>,
    shown_as: &'a Path,
    has_entries: bool,
}

impl<'a> Writer<'a> {
    fn new(to: BufWriter<File>, shown_as: &'a Path) -> Self {
        Self { to, shown_as, has_entries: false }
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.to
            .write_all(bytes)
            .map_err(|error| Error::io("write receipt of", error).at(self.shown_as))
    }

    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.to, value).map_err(|error| {
            Error::io("write receipt of", std::io::Error::from(error)).at(self.shown_as)
        })
    }

    fn head(&mut self, head: &Value) -> Result<()> {
        let text = head.to_string();
        // The object goes on with its entries.
        self.raw(text.trim_end_matches('}').as_bytes())?;
        self.raw(b",\"entries\":[")
    }

    fn entry(&mut self, entry: &Value) -> Result<()> {
        self.raw(if self.has_entries { b",\n" } else { b"\n" })?;
        self.has_entries = true;
        self.json(entry)
    }

    fn end(&mut self, totals: &Totals) -> Result<()> {
        self.raw(b"\n],\"totals\":")?;
        self.json(totals)?;
        self.raw(b"}\n")
    }
}

fn file_entry(
    record: &EntryRecord,
    placed: Placed,
    now: Option<Existing>,
    totals: &mut Totals,
) -> Value {
    let proof = record.proof.unwrap_or(ProofClass::Transfer);
    let is_same = now.is_some_and(|now| {
        (now.kind, now.size, now.modified) == (EntryKind::File, placed.size, placed.modified)
    });
    let mut warnings = words(&record.losses);
    if !is_same {
        warnings.push("changed-since");
    }
    totals.files += 1;
    totals.bytes += placed.size;
    *totals.proof.entry(proof.as_str()).or_default() += 1;
    totals.warn(&warnings);
    let mut entry = base(&record.path, EntryKind::File, now, warnings);
    let digest = record.digest.map(|digest| hex(&digest));
    entry["size"] = json!(placed.size);
    entry["mtime"] = time(placed.modified);
    entry["digest"] = json!(digest);
    entry["fingerprint"] = fingerprint(&record.version.fingerprint);
    entry["source_checksum"] = record.checksum.as_ref().map_or(Value::Null, checksum);
    entry["proof"] = json!(proof.as_str());
    entry
}

fn other_entry(other: &OtherRecord, now: Option<Existing>, totals: &mut Totals) -> Value {
    match other.kind {
        EntryKind::Directory => totals.directories += 1,
        _ => totals.others += 1,
    }
    let mut warnings = words(&other.losses);
    if now.is_none_or(|now| now.kind != other.kind) {
        warnings.push("changed-since");
    }
    totals.warn(&warnings);
    let mut entry = base(&other.path, other.kind, now, warnings);
    if let Some(first) = &other.link_of {
        entry["link_of"] = path_of(first);
    }
    entry
}

impl Totals {
    fn warn(&mut self, warnings: &[&'static str]) {
        warnings.iter().for_each(|warning| *self.warnings.entry(warning).or_default() += 1);
    }
}

fn base(path: &RelPath, kind: EntryKind, now: Option<Existing>, warnings: Vec<&str>) -> Value {
    let mut entry = path_of(path);
    entry["kind"] = json!(kind.as_str());
    entry["mode"] = now.map_or(Value::Null, |now| json!(format!("{:04o}", now.mode)));
    entry["mtime"] = now.map_or(Value::Null, |now| time(now.modified));
    entry["warnings"] = json!(warnings);
    entry
}

fn words(losses: &[MetadataLoss]) -> Vec<&'static str> {
    losses.iter().map(|loss| loss.as_str()).collect()
}

/// Readable in `path`; exact in `path_b64` where that is not UTF-8.
fn path_of(path: &RelPath) -> Value {
    let name = path.as_path().as_os_str();
    let mut value = json!({ "path": escape(name) });
    if let Some(exact) = exact(name) {
        value["path_b64"] = json!(exact);
    }
    value
}

fn fingerprint(fingerprint: &Fingerprint) -> Value {
    let mut value = json!({ "size": fingerprint.size });
    match &fingerprint.validator {
        Validator::Modified(modified) => value["mtime"] = time(*modified),
        Validator::ETag(tag) | Validator::WeakETag(tag) => value["etag"] = json!(tag),
        Validator::LastModified(text) => value["last_modified"] = json!(text),
        Validator::SizeOnly => {}
    }
    value
}

fn checksum(checksum: &Checksum) -> Value {
    let (kind, bytes) = match checksum {
        Checksum::Sha256(bytes) => ("sha256", bytes),
        Checksum::Md5(bytes) => ("md5", bytes),
        Checksum::Crc32c(bytes) => ("crc32c", bytes),
        Checksum::Blake3(bytes) => ("blake3", bytes),
        Checksum::Crc64Nvme(bytes) => ("crc64nvme", bytes),
        Checksum::Crc32(bytes) => ("crc32", bytes),
    };
    json!({ "kind": kind, "hex": hex(bytes) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970 with nine digits after the point, as text: no number of JSON holds them.
fn time(time: Timestamp) -> Value {
    let Timestamp { seconds, nanos } = time;
    json!(format!("{seconds}.{nanos:09}"))
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
