//! What a directory holds, at one time: names, numbers and positions in little memory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::core::attributes::EntryKind;
use crate::engine::NEVER;
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// What a directory holds, at one time.
#[derive(Debug)]
pub struct Listing {
    /// All names, one after the other.
    names: Vec<u8>,
    /// In order of position.
    rows: Vec<Row>,
    /// Rows in order of their names.
    by_name: Vec<u32>,
    listed_ms: AtomicU64,
    used_ms: AtomicU64,
    next_position: u64,
    is_recorded: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    position: u64,
    ino: u64,
    /// Where its name begins in `names`.
    start: u32,
    len: u8,
    kind: EntryKind,
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Keeps its value as long as the name stays in the directory: a cookie for readdir. From 1 on.
    pub position: u64,
    /// Inode number when it was listed.
    pub ino: u64,
    /// Its name.
    pub name: &'a OsStr,
    /// What it is.
    pub kind: EntryKind,
}

impl Listing {
    /// The entries after position `after` (0 = from the start), in order of position.
    pub fn after(&self, after: u64) -> impl Iterator<Item = Listed<'_>> {
        let start = self.rows.partition_point(|row| row.position <= after);
        self.rows[start..].iter().map(|row| self.show(row))
    }

    /// The entry called `name`.
    pub fn find(&self, name: &OsStr) -> Option<Listed<'_>> {
        let bytes = name.as_bytes();
        let found = self.by_name.binary_search_by(|row| self.name(*row).cmp(bytes)).ok()?;
        Some(self.show(&self.rows[index(self.by_name[found])]))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn show(&self, row: &Row) -> Listed<'_> {
        let start = index(row.start);
        let name = OsStr::from_bytes(&self.names[start..start + usize::from(row.len)]);
        Listed { position: row.position, ino: row.ino, name, kind: row.kind }
    }

    fn name(&self, row: u32) -> &[u8] {
        self.show(&self.rows[index(row)]).name.as_bytes()
    }

    /// When the source listed it, in ms since the engine's start; [`NEVER`] if not in this life. Relaxed: a hint.
    pub(super) fn listed_ms(&self) -> u64 {
        self.listed_ms.load(Ordering::Relaxed)
    }

    /// Whether the source listed it in this life.
    pub fn is_confirmed(&self) -> bool {
        self.listed_ms() != NEVER
    }

    /// Whether nobody has used it for so long, or nobody can who does not ask for it anew.
    pub(super) fn is_idle(&self, now_ms: u64, idle_ms: u64) -> bool {
        let used_ms = self.used_ms.load(Ordering::Relaxed);
        used_ms == NEVER || now_ms.saturating_sub(used_ms) >= idle_ms
    }

    /// The kernel has forgotten its directory.
    pub(super) fn note_disuse(&self) {
        self.used_ms.store(NEVER, Ordering::Relaxed);
    }

    pub(super) fn note_use(&self, now_ms: u64) {
        self.used_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(super) fn next_position(&self) -> u64 {
        self.next_position
    }

    /// Whether the catalog has all of it.
    pub(super) fn is_recorded(&self) -> bool {
        self.is_recorded.load(Ordering::Acquire)
    }

    pub(super) fn set_recorded(&self) {
        self.is_recorded.store(true, Ordering::Release);
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A listing under way.
#[derive(Debug, Default)]
pub(super) struct Draft {
    names: Vec<u8>,
    rows: Vec<Row>,
}

impl Draft {
    pub(super) fn add(
        &mut self,
        position: u64,
        ino: u64,
        name: &OsStr,
        kind: EntryKind,
    ) -> Result<()> {
        let too_large = |why| Error::new(Kind::Limit, "list directory").because(why);
        let start = u32::try_from(self.names.len())
            .map_err(|large| too_large("more than 4 GiB of names").caused_by(large))?;
        let len = u8::try_from(name.len())
            .map_err(|large| too_large("a name of over 255 bytes").caused_by(large))?;
        self.names.extend_from_slice(name.as_bytes());
        self.rows.push(Row { position, ino, start, len, kind });
        Ok(())
    }

    /// Numbers may have been given to names meanwhile.
    pub(super) fn renumber(&mut self, number: impl Fn(&OsStr) -> Option<u64>) {
        for row in &mut self.rows {
            let start = index(row.start);
            let name = OsStr::from_bytes(&self.names[start..start + usize::from(row.len)]);
            row.ino = number(name).unwrap_or(row.ino);
        }
    }

    pub(super) fn finish(mut self, next_position: u64, listed_ms: u64, now_ms: u64) -> Listing {
        self.rows.sort_by_key(|row| row.position);
        self.rows.dedup_by_key(|row| row.position);
        self.rows.shrink_to_fit();
        self.names.shrink_to_fit();
        let by_name = (0..u32::try_from(self.rows.len()).unwrap_or(u32::MAX)).collect();
        let mut listing = Listing {
            names: self.names,
            rows: self.rows,
            by_name,
            listed_ms: AtomicU64::new(listed_ms),
            used_ms: AtomicU64::new(now_ms),
            next_position,
            is_recorded: AtomicBool::new(false),
        };
        let mut by_name = std::mem::take(&mut listing.by_name);
        by_name.sort_unstable_by(|one, other| listing.name(*one).cmp(listing.name(*other)));
        Listing { by_name, ..listing }
    }
}
