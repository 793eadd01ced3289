//! What DIR has of this copy and the source has not: found, counted, and taken out where that was asked for.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use crate::core::attributes::EntryKind;
use crate::core::filter::Filter;
use crate::core::path::RelPath;
use crate::engine::bulk::Counts;
use crate::error::{Error, Kind, Result};
use crate::store::Destination;
use crate::store::bulk::Removed;
use crate::store::catalog::{Catalog, EntryPhase, EntryRecord, KnownDirectory, OtherRecord};

/// Something that DIR has of this copy, and the source has not.
#[derive(Debug, Clone)]
pub(super) enum Gone {
    File(Box<EntryRecord>),
    Other(OtherRecord),
    /// A directory; what was in it is listed too.
    Directory(RelPath),
}

impl Gone {
    pub(super) fn path(&self) -> &RelPath {
        match self {
            Gone::File(record) => &record.path,
            Gone::Other(record) => &record.path,
            Gone::Directory(path) => path,
        }
    }
}

/// What is `known` of the directory `path` and not listed: `find` answers what a listed name is.
pub(super) fn find_gone(
    (catalog, filter): (&Catalog, &Filter),
    path: &RelPath,
    known: &KnownDirectory,
    find: impl Fn(&OsStr) -> Option<EntryKind>,
) -> Result<Vec<Gone>> {
    let mut gone = Vec::new();
    let is_left_out = |path: &RelPath, is_directory| filter.scope(path, is_directory).is_left_out();
    for (name, record) in &known.files {
        if find(name).is_none_or(|kind| kind == EntryKind::Directory) {
            let path = path.child(name)?;
            if !is_left_out(&path, false) {
                gone.push(Gone::File(Box::new(EntryRecord { path, ..record.clone() })));
            }
        }
    }
    let mut below: BTreeSet<&OsString> = known.below.iter().collect();
    for (name, record) in &known.others {
        match (record.kind, find(name)) {
            (EntryKind::Directory, _) => {
                below.insert(name);
            }
            (_, None | Some(EntryKind::Directory)) if !is_left_out(&record.path, false) => {
                gone.push(Gone::Other(record.clone()));
            }
            _ => {}
        }
    }
    for name in below {
        if find(name) == Some(EntryKind::Directory) {
            continue;
        }
        let path = path.child(name)?;
        catalog.entries_below(&path, |record| {
            if record.path != path && !is_left_out(&record.path, false) {
                gone.push(Gone::File(Box::new(record)));
            }
            Ok(())
        })?;
        for record in catalog.others_below(&path)? {
            if is_left_out(&record.path, record.kind == EntryKind::Directory) {
                continue;
            }
            gone.push(match record.kind {
                EntryKind::Directory => Gone::Directory(record.path),
                _ => Gone::Other(record),
            });
        }
        if !is_left_out(&path, true) {
            gone.push(Gone::Directory(path));
        }
    }
    Ok(gone)
}

/// Refuses more deletions than are allowed, before any is done.
pub(super) fn refuse_too_many(gone: usize, most: u64) -> Result<()> {
    let gone = u64::try_from(gone).unwrap_or(u64::MAX);
    if gone <= most {
        return Ok(());
    }
    Err(Error::new(Kind::Limit, "delete in destination")
        .because(format!("{gone} entries are gone at the source, more than the {most} that may be deleted at once; nothing was deleted"))
        .hint(format!("if that is right: --max-delete {gone}")))
}

/// Further names of a file before its first, by which they are known; directories last, deepest first.
pub(super) fn in_order(gone: Vec<Gone>) -> Vec<Gone> {
    let (others, rest): (Vec<_>, Vec<_>) =
        gone.into_iter().partition(|one| matches!(one, Gone::Other(_)));
    let (mut directories, files): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|one| matches!(one, Gone::Directory(_)));
    // A directory sorts before what is in it.
    directories.sort_by(|a, b| b.path().cmp(a.path()));
    directories.dedup_by(|a, b| a.path() == b.path());
    others.into_iter().chain(files).chain(directories).collect()
}

/// Takes one out of DIR, if it is of this copy and was not changed since. A directory goes when nothing is left in it. Blocking.
pub(super) fn remove(destination: &Destination, gone: &Gone) -> Result<Removed> {
    match gone {
        Gone::File(record) if matches!(record.phase, EntryPhase::Published(_)) => {
            destination.remove_published(record)
        }
        // Its part is swept at the next start.
        Gone::File(_) => Ok(Removed::Gone),
        Gone::Directory(path) => destination.remove_directory(path),
        Gone::Other(record) => remove_other(destination, record),
    }
    .map_err(Error::of_destination)
}

fn remove_other(destination: &Destination, record: &OtherRecord) -> Result<Removed> {
    let now = match destination.existing(&record.path) {
        // Behind a link that somebody put there.
        Err(error) if error.kind() == Kind::Exists => None,
        now => now?,
    };
    let Some(now) = now else { return Ok(Removed::Gone) };
    let is_ours = match &record.link_of {
        // One more name: the bytes stay under the others. Whether it still is one cannot be told once the first is gone: then it stays.
        Some(first) => {
            let first = destination.catalog().entry(first)?.and_then(|entry| entry.placed());
            now.kind == EntryKind::File && first == Some(now.placed())
        }
        None => now.is_of(record),
    };
    match is_ours {
        true => destination.remove_other(&record.path, &now),
        false => Ok(Removed::Changed),
    }
}

/// Counts what became of one; `true` if it is to be forgotten.
pub(super) fn count_removed(counts: &Counts, path: &RelPath, removed: Removed) -> bool {
    match removed {
        Removed::Gone => {
            counts.deleted.increment();
            return true;
        }
        Removed::Changed => {
            tracing::warn!(%path, "gone at the source, and kept: it was changed in the destination");
        }
        Removed::NotEmpty => {
            tracing::warn!(%path, "gone at the source, and kept: it holds something that is not of this copy");
        }
    }
    counts.kept.increment();
    false
}
