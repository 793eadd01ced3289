//! Listing a local directory.

use std::ffi::{OsStr, OsString};
use std::mem;
use std::os::unix::ffi::OsStrExt;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::Dir;
use tokio::sync::mpsc;

use super::attributes::of_file_type;
use super::root::{Root, stat_at};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};

/// Entries per batch.
const BATCH: usize = 1024;

/// Sends the entries of `directory`; ends early when nobody receives them. Blocks.
pub(super) fn list(
    root: &Root,
    directory: &RelPath,
    batches: &mpsc::Sender<ListBatch>,
) -> Result<()> {
    if let Some(name) = root.single_file() {
        return list_single(root, directory, name, batches);
    }
    let Some(opened) = root.open_directory(directory)? else {
        return Ok(());
    };
    let failed = |error| Error::io("list directory", error);
    let stream = Dir::read_from(&opened).map_err(failed)?;
    let mut batch = ListBatch::default();
    for item in stream {
        let item = item.map_err(failed)?;
        let name = OsStr::from_bytes(item.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if let Err(refusal) = RelPath::check_name(name) {
            tracing::warn!(directory = %directory, err = %refusal, "name refused");
            batch.refused += 1;
        } else if let Some(entry) = entry(opened.as_fd(), name, item.file_type()) {
            batch.entries.push(entry);
        }
        if batch.entries.len() >= BATCH && batches.blocking_send(mem::take(&mut batch)).is_err() {
            return Ok(());
        }
    }
    if !batch.entries.is_empty() || batch.refused > 0 {
        // A receiver that is gone has all it wanted.
        drop(batches.blocking_send(batch));
    }
    Ok(())
}

/// The entry `name`; `None` if it vanished since the directory was read.
fn entry(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    file_type: rustix::fs::FileType,
) -> Option<Entry> {
    match stat_at(directory, name) {
        Ok(attributes) => Some(Entry {
            name: name.to_owned(),
            kind: attributes.kind,
            attributes: Some(attributes),
        }),
        Err(error) if error.kind() == Kind::NotFound => None,
        Err(error) => {
            tracing::debug!(path = ?name, err = %error, "listed without attributes");
            Some(Entry { name: name.to_owned(), kind: of_file_type(file_type), attributes: None })
        }
    }
}

fn list_single(
    root: &Root,
    directory: &RelPath,
    name: &OsString,
    batches: &mpsc::Sender<ListBatch>,
) -> Result<()> {
    if !directory.is_root() {
        return Err(Error::new(Kind::Invalid, "list directory").because("not a directory"));
    }
    let attributes = match root.stat(&RelPath::root().child(name)?) {
        Ok(attributes) => attributes,
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let entry = Entry { name: name.clone(), kind: attributes.kind, attributes: Some(attributes) };
    // A receiver that is gone has all it wanted.
    drop(batches.blocking_send(ListBatch { entries: vec![entry], refused: 0 }));
    Ok(())
}
