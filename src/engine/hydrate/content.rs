//! What one listed directory holds for the copy: which entries, in which order.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::core::attributes::EntryKind;
use crate::core::filter::{Filter, Scope};
use crate::core::lanes::Rank;
use crate::core::path::RelPath;
use crate::engine::Engine;
use crate::engine::hydrate::walk::DirectoryJob;
use crate::engine::listing::{Listed, Listing};
use crate::engine::settings::Order;

/// The class of lanes whose next entry goes before all others, and that of the rest.
const FIRST: u8 = 0;
const LATER: u8 = 1;

/// The directories in a directory, one after the other.
#[derive(Debug)]
pub(super) enum Directories {
    Listed { listing: Arc<Listing>, next: u64 },
    Named(Vec<OsString>),
}

/// The other entries of a directory, in the order in which they are copied.
#[derive(Debug)]
pub(super) enum Entries {
    /// As they are listed, from one position on.
    Listed { listing: Arc<Listing>, next: u64 },
    /// By rank, the next at the end.
    Ranked { listing: Arc<Listing>, rows: Vec<(Rank, u64)> },
    /// Those that were asked for.
    Named(Vec<OsString>),
}

/// What one look through a listing finds.
#[derive(Debug, Default)]
pub(super) struct Digest {
    pub(super) first_directory: Option<u64>,
    pub(super) first_entry: Option<u64>,
    pub(super) directories: u64,
    pub(super) entries: u64,
    pub(super) rows: Vec<(Rank, u64)>,
    pub(super) skipped: u64,
    pub(super) skipped_bytes: u64,
}

/// Looks through listings: what of a directory is copied, and when.
struct Sieve<'a> {
    filter: &'a Filter,
    above: Scope,
    path: RelPath,
}

impl<'a> Sieve<'a> {
    fn new(filter: &'a Filter, job: &DirectoryJob) -> Self {
        Self { filter, above: job.scope, path: job.path() }
    }

    fn scope(&self, entry: &Listed<'_>) -> Scope {
        let is_directory = entry.kind == EntryKind::Directory;
        self.filter.below(self.above, &self.path, entry.name, is_directory)
    }

    /// The first position from `next` on that holds a directory to be walked (`true`) or another entry to be copied.
    fn find(&self, listing: &Listing, next: u64, wants_directory: bool) -> Option<u64> {
        let mut entries = listing.after(next.saturating_sub(1));
        let found = entries.find(|entry| {
            (entry.kind == EntryKind::Directory) == wants_directory
                && !self.scope(entry).is_left_out()
        });
        found.map(|entry| entry.position)
    }
}

fn at(listing: &Listing, position: u64) -> Option<Listed<'_>> {
    listing.after(position - 1).next().filter(|entry| entry.position == position)
}

impl Directories {
    /// The next one, and whether there is another; those that `is_known` are passed over.
    pub(super) fn next(
        &mut self,
        filter: &Filter,
        job: &DirectoryJob,
        is_known: impl Fn(u64) -> bool,
    ) -> Option<OsString> {
        match self {
            Self::Named(names) => names.pop(),
            Self::Listed { listing, next } => loop {
                let position = Sieve::new(filter, job).find(listing, *next, true)?;
                *next = position + 1;
                let entry = at(listing, position)?;
                if !is_known(entry.ino) {
                    return Some(entry.name.to_owned());
                }
            },
        }
    }
}

impl Entries {
    /// The rank of the next entry; `None` = there is none.
    pub(super) fn rank(&self) -> Option<Rank> {
        let plain = Rank { class: LATER, weight: 0 };
        match self {
            Self::Listed { next, .. } => (*next != u64::MAX).then_some(plain),
            Self::Ranked { rows, .. } => rows.last().map(|row| row.0),
            Self::Named(names) => (!names.is_empty()).then_some(plain),
        }
    }

    /// The next entry.
    pub(super) fn next(&mut self, filter: &Filter, job: &DirectoryJob) -> Option<OsString> {
        match self {
            Self::Named(names) => names.pop(),
            Self::Ranked { listing, rows } => {
                let (_, position) = rows.pop()?;
                at(listing, position).map(|entry| entry.name.to_owned())
            }
            Self::Listed { listing, next } => {
                let name = at(listing, *next).map(|entry| entry.name.to_owned());
                let following =
                    Sieve::new(filter, job).find(listing, next.saturating_add(1), false);
                *next = following.unwrap_or(u64::MAX);
                name
            }
        }
    }
}

impl Engine {
    /// Looks through a listing once.
    pub(super) fn digest(&self, job: &DirectoryJob, listing: &Listing) -> Digest {
        let settings = &self.settings.hydrate;
        let sieve = Sieve::new(&settings.filter, job);
        let is_ranked = settings.order != Order::Listing || settings.filter.has_first();
        let mut digest = Digest::default();
        for entry in listing.after(0) {
            let is_directory = entry.kind == EntryKind::Directory;
            match sieve.scope(&entry) {
                scope if scope.is_left_out() => {
                    digest.skipped += 1;
                    if job.is_counted {
                        self.tell_skipped(&sieve.path, entry.name);
                    }
                    if entry.kind == EntryKind::File {
                        digest.skipped_bytes += self.size_of(job, entry.name).unwrap_or(0);
                    }
                }
                _ if is_directory => {
                    digest.first_directory.get_or_insert(entry.position);
                    digest.directories += 1;
                }
                _ => {
                    digest.first_entry.get_or_insert(entry.position);
                    digest.entries += 1;
                    if is_ranked {
                        digest.rows.push((self.rank(&sieve, job, entry.name), entry.position));
                    }
                }
            }
        }
        // The next is taken from the end; of equals the first that is listed.
        digest.rows.sort_unstable_by(|one, other| other.cmp(one));
        digest
    }

    fn rank(&self, sieve: &Sieve<'_>, job: &DirectoryJob, name: &OsStr) -> Rank {
        let settings = &self.settings.hydrate;
        let size = || self.size_of(job, name);
        let weight = match settings.order {
            Order::Listing => 0,
            // Where a listing tells no sizes they are not known yet.
            Order::SmallFirst => size().unwrap_or(u64::MAX),
            Order::LargeFirst => size().map_or(u64::MAX, |size| u64::MAX - size),
        };
        let class = if settings.filter.is_first(&sieve.path, name) { FIRST } else { LATER };
        Rank { class, weight }
    }

    fn size_of(&self, job: &DirectoryJob, name: &OsStr) -> Option<u64> {
        self.known(job.node.ino, name).map(|node| node.attributes().size)
    }
}
