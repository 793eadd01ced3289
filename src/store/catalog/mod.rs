//! The durable catalog of a destination: `DIR/.lazycopy/catalog.redb` (or in `--state-dir`) and the hash trees beside it. What it says of a block or a file
//! is true after a crash; what it does not say is not trusted. It decides nothing: [`super::checkpoint`], [`super::publish`] and
//! [`super::recovery`] keep the order of syncs and call it. Blocking: the engine calls it from `spawn_blocking`.
//!
//! | file | what |
//! |---|---|
//! | `record` | what is recorded of an entry, and its bytes (`codec`) |
//! | `bits` | block maps in segments of 4 KiB |
//! | `changes` | what is said of entries, each in one transaction |
//! | `history` | errors that are not made good, how surely files were written, whether the job shall go on |
//! | `lives` | the lives that a copy had; what is kept from eviction |
//! | `tables` | the tables, kept in step with each other |
//! | `database` | transactions; opened again after an error of the disk; `ballast` for a full one; `guard` against rotten pages |
//! | `name`, `packed` | what is recorded of a name, and attributes in few bytes |
//! | `names`, `directory` | the source's tree as it was seen last; all that is known of one directory |
//! | `trees` | block hashes, in files of their own: 2.5 GB for 10 TB |
//!
//! # Schema 1
//! | table | key | value |
//! |---|---|---|
//! | meta | `schema`, `source`, `created`, `durability`, `chunks`, `inos`, `files`, `bytes`, `examined`, `ordered`, `used-bytes`, `used-requests`, `used-day`, `shape` | u64 LE; the source as text; [`SourceShape`] |
//! | entries | path | [`EntryRecord`] |
//! | inos | inode number | path |
//! | blocks | (inode number, segment of 32 768 blocks) | a bit for each block, without zeros at the end; of entries that are Filling or Failed |
//! | unfinished | path | nothing; entries that recovery looks at |
//! | names | (inode number of the directory, name) | [`NameRecord`]; the root is the empty name in directory 0 |
//! | listings | inode number of a directory of which every name is recorded | the next position to give |
//! | orphans | inode number of a directory that is gone | nothing; its names are forgotten bit by bit |
//! | links | identity at the source of a file with several names | one of these |
//! | others | path | [`OtherRecord`] |
//! | uses | inode number | number of its last use; of a cache of limited size |
//! | lives | number | what a daemon's life came to, as JSON, the last [`LIVES_KEPT`] |
//! | pins | path | nothing; it and all below it are kept from eviction |
//! | errors | number | [`ErrorNote`], the last [`ERRORS_KEPT`] |

mod ballast;
mod bits;
mod changes;
mod codec;
#[cfg(test)]
mod crash;
mod database;
mod directory;
mod guard;
mod history;
#[cfg(test)]
mod laws;
mod lives;
mod name;
mod names;
mod packed;
mod record;
mod tables;
mod trees;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{ReadableTable, ReadableTableMetadata};
use rustix::fs::{Advice, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::core::hashes::BlockHash;
use crate::core::path::RelPath;
use crate::core::range::block_count;
use crate::error::{Error, Kind, Result};

use super::root::{create_beneath, stat_entry, sync_directory};
use ballast::Ballast;
use database::{Commit, Database, Failure, Opener, corrupt};
use tables::{
    BLOCKS, ENTRIES, ERRORS, INOS, LINKS, LISTINGS, META, NAMES, ORPHANS, OTHERS, Tables,
    UNFINISHED, decode_entry, decode_other, get_blocks, get_entry, get_other,
};
use trees::Trees;

pub(super) use ballast::BALLAST_NAME;
pub(super) use changes::{IntentEnd, Landed, Step, emptied, published, unmended};
pub use directory::KnownDirectory;
pub use history::{Ordered, OrderedRate};
pub use name::{ListedName, NameRecord, SourceShape};
pub use names::{KnownFiles, NameChange};
pub use packed::Packed;
pub use record::{
    EntryPhase, EntryRecord, ErrorNote, OtherRecord, Part, Placed, ProofClass, Version,
};

/// The schema that this version writes and reads.
const SCHEMA: u64 = 1;
/// Length of the error history.
pub const ERRORS_KEPT: u64 = 1000;
/// Length of the history of lives.
pub const LIVES_KEPT: u64 = 1000;
/// Its name in the state directory.
pub const CATALOG_NAME: &str = "catalog.redb";
/// A catalog that is being made.
pub(super) const DRAFT_NAME: &str = "catalog.new";

/// What is being copied here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The source as it is shown, without secrets.
    pub source: String,
    /// When the first life began, to the second.
    pub created: SystemTime,
}

/// The catalog of one destination, open as long as the destination's lock is held.
///
/// # Concurrency
/// Any thread may call anything; changes take their turns, readers see the last one.
#[derive(Debug)]
pub struct Catalog {
    database: Database,
    trees: Trees,
    shown_as: PathBuf,
}

impl Catalog {
    /// Opens or makes the catalog in the locked state directory.
    pub(super) fn open(
        state: BorrowedFd<'_>,
        trees: BorrowedFd<'_>,
        shown_as: &Path,
    ) -> Result<Self> {
        let shown_as = shown_as.join(CATALOG_NAME);
        let failed = |errno| Error::io("open catalog", errno).at(&shown_as);
        let own = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|error| Error::io("open catalog", error).at(&shown_as))
        };
        let at = |name| -> Result<Self> {
            let opener = opener_of(own(state)?, name);
            Self::from_parts(opener, &shown_as, Ballast::new(None), own(trees)?)
        };
        if stat_entry(state, CATALOG_NAME.as_ref()).map_err(failed)?.is_none() {
            // redb cannot open what a cut leaves of its first sync.
            remove_draft(state).map_err(failed)?;
            drop(at(DRAFT_NAME)?);
            let draft = open_file(state, DRAFT_NAME, OFlags::empty()).map_err(failed)?;
            rustix::fs::fsync(draft).map_err(failed)?;
            rustix::fs::renameat(state, DRAFT_NAME, state, CATALOG_NAME).map_err(failed)?;
            sync_directory(state).map_err(failed)?;
        }
        let ballast = Ballast::new(Some(own(state)?));
        let opener = opener_of(own(state)?, CATALOG_NAME);
        Self::from_parts(opener, &shown_as, ballast, own(trees)?)
    }

    fn from_parts(
        opener: Opener,
        shown_as: &Path,
        ballast: Ballast,
        trees: OwnedFd,
    ) -> Result<Self> {
        let database = Database::open(opener, shown_as, ballast)?;
        let catalog = Self { database, trees: Trees::new(trees), shown_as: shown_as.to_owned() };
        catalog.check_schema()?;
        Ok(catalog)
    }

    fn check_schema(&self) -> Result<()> {
        let found = self.database.read("open catalog", |transaction| {
            match transaction.open_table(META) {
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
                Ok(meta) => get_number(&meta, "schema"),
            }
        })?;
        match found {
            Some(SCHEMA) => Ok(()),
            Some(newer) => Err(Error::new(Kind::NotSupported, "open catalog")
                .at(&self.shown_as)
                .because(format!("its schema is {newer}, this lazycopy knows {SCHEMA}"))
                .hint("use the lazycopy that wrote it, or another destination")),
            None => self.database.write("make catalog", Commit::Durable, |transaction| {
                // All tables, so that every reader finds them.
                drop(Tables::open(transaction)?);
                transaction.open_table(ERRORS)?;
                transaction.open_table(NAMES)?;
                transaction.open_table(LISTINGS)?;
                transaction.open_table(ORPHANS)?;
                transaction.open_table(LINKS)?;
                let mut meta = transaction.open_table(META)?;
                meta.insert("schema", SCHEMA.to_le_bytes().as_slice())?;
                Ok(())
            }),
        }
    }

    /// What is copied here, if that was said yet.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn job(&self) -> Result<Option<Job>> {
        self.database.read("read catalog", |transaction| read_job(&transaction.open_table(META)?))
    }

    /// Says that `source` (as it is shown, without secrets) is copied here; the first call of all lives counts.
    ///
    /// # Errors
    /// `Exists` if the destination holds a copy of another source.
    pub fn ensure_job(&self, source: &str, now: SystemTime) -> Result<Job> {
        let created = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let job = match self.job()? {
            Some(job) => job,
            None => self.database.write("begin job", Commit::Durable, |transaction| {
                let mut meta = transaction.open_table(META)?;
                meta.insert("source", source.as_bytes())?;
                meta.insert("created", created.to_le_bytes().as_slice())?;
                read_job(&meta)?.ok_or_else(|| corrupt("job"))
            })?,
        };
        if job.source != source {
            return Err(Error::new(Kind::Exists, "open destination")
                .at(self.shown_as.parent().and_then(Path::parent).unwrap_or(&self.shown_as))
                .because(format!("it holds a copy of {}, not of {source}", job.source))
                .hint("name that source, or another destination"));
        }
        Ok(job)
    }

    /// Takes `count` chunk numbers that no life of this destination had or will have.
    ///
    /// # Errors
    /// As a durable write.
    pub fn reserve_chunk_ids(&self, count: u64) -> Result<Range<u64>> {
        self.reserve("chunks", 1, count)
    }

    /// Takes `count` inode numbers; the first of all is 2, as 1 is the root.
    ///
    /// # Errors
    /// As a durable write.
    pub fn reserve_inos(&self, count: u64) -> Result<Range<u64>> {
        self.reserve("inos", 2, count)
    }

    fn reserve(&self, name: &'static str, first: u64, count: u64) -> Result<Range<u64>> {
        self.database.write("reserve numbers", Commit::Durable, |transaction| {
            let mut meta = transaction.open_table(META)?;
            let start = get_number(&meta, name)?.unwrap_or(first);
            let end = start.checked_add(count).ok_or_else(|| corrupt(name))?;
            meta.insert(name, end.to_le_bytes().as_slice())?;
            Ok(start..end)
        })
    }

    /// What is recorded of `path`.
    ///
    /// # Errors
    /// `Corrupt`, naming the record; `Io`.
    pub fn entry(&self, path: &RelPath) -> Result<Option<EntryRecord>> {
        self.database.read("read catalog", |transaction| {
            get_entry(&transaction.open_table(ENTRIES)?, path.as_bytes())
        })
    }

    /// What is recorded of the inode number `ino`.
    ///
    /// # Errors
    /// As [`Catalog::entry`].
    pub fn entry_of_ino(&self, ino: u64) -> Result<Option<EntryRecord>> {
        self.database.read("read catalog", |transaction| {
            let inos = transaction.open_table(INOS)?;
            let Some(path) = inos.get(ino)? else { return Ok(None) };
            get_entry(&transaction.open_table(ENTRIES)?, path.value())
        })
    }

    /// Number of entries.
    ///
    /// # Errors
    /// `Io`.
    pub fn entry_count(&self) -> Result<u64> {
        self.database
            .read("read catalog", |transaction| Ok(transaction.open_table(ENTRIES)?.len()?))
    }

    /// Shows all entries in the order of their paths' bytes, as of one moment.
    ///
    /// # Errors
    /// The first of `show`; as [`Catalog::entry`].
    pub fn entries(&self, mut show: impl FnMut(EntryRecord) -> Result<()>) -> Result<()> {
        self.walk(ENTRIES, |path, bytes| show(decode_entry(path, bytes)?).map_err(Failure::from))
    }

    fn walk(
        &self,
        table: redb::TableDefinition<'static, &'static [u8], &'static [u8]>,
        mut show: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<()> {
        let mut after: Vec<u8> = Vec::new();
        let mut is_first = true;
        // `read` may run twice: it goes on behind what was shown.
        self.database.read("read catalog", |transaction| {
            for row in transaction.open_table(table)?.range(after.clone().as_slice()..)? {
                let (path, bytes) = row?;
                if !is_first && path.value() == after {
                    continue;
                }
                (is_first, after) = (false, path.value().to_vec());
                show(path.value(), bytes.value())?;
            }
            Ok(())
        })
    }

    /// Shows the entry of `path` and all below it, as of one moment.
    ///
    /// # Errors
    /// The first of `show`; as [`Catalog::entry`].
    pub fn entries_below(
        &self,
        path: &RelPath,
        mut show: impl FnMut(EntryRecord) -> Result<()>,
    ) -> Result<()> {
        if let Some(entry) = self.entry(path)? {
            show(entry)?;
        }
        // `/` and the byte after it: all that begins with the path and a slash.
        let [from, to] = [b'/', b'/' + 1].map(|end| [path.as_bytes(), &[end]].concat());
        let mut found = Vec::new();
        self.database.read("read catalog", |transaction| {
            found.clear();
            let entries = transaction.open_table(ENTRIES)?;
            for row in entries.range(from.as_slice()..to.as_slice())? {
                let (path, bytes) = row?;
                found.push(decode_entry(path.value(), bytes.value())?);
            }
            Ok(())
        })?;
        found.into_iter().try_for_each(show)
    }

    /// As [`Catalog::entries_below`], the path itself left out, for entries without bytes of their own.
    ///
    /// # Errors
    /// As [`Catalog::entry`].
    pub fn others_below(&self, path: &RelPath) -> Result<Vec<OtherRecord>> {
        let [from, to] = [b'/', b'/' + 1].map(|end| [path.as_bytes(), &[end]].concat());
        self.database.read("read catalog", |transaction| {
            let others = transaction.open_table(OTHERS)?;
            let rows = others.range(from.as_slice()..to.as_slice())?;
            rows.map(|row| {
                let (path, bytes) = row?;
                decode_other(path.value(), bytes.value())
            })
            .collect()
        })
    }

    /// What is recorded of an entry without bytes of its own.
    ///
    /// # Errors
    /// As [`Catalog::entry`].
    pub fn other(&self, path: &RelPath) -> Result<Option<OtherRecord>> {
        self.database.read("read catalog", |transaction| {
            get_other(&transaction.open_table(OTHERS)?, path.as_bytes())
        })
    }

    /// As [`Catalog::entries`] for entries without bytes of their own.
    ///
    /// # Errors
    /// As there.
    pub fn others(&self, mut show: impl FnMut(OtherRecord) -> Result<()>) -> Result<()> {
        self.walk(OTHERS, |path, bytes| show(decode_other(path, bytes)?).map_err(Failure::from))
    }

    /// The entries that have parts or intents.
    pub(super) fn unfinished(&self) -> Result<Vec<EntryRecord>> {
        self.database.read("read catalog", |transaction| {
            let entries = transaction.open_table(ENTRIES)?;
            let mut found = Vec::new();
            for row in transaction.open_table(UNFINISHED)?.iter()? {
                found.extend(get_entry(&entries, row?.0.value())?);
            }
            Ok(found)
        })
    }

    /// The blocks of an entry's part, or of the published file, that may be trusted: runs in rising order.
    ///
    /// # Errors
    /// As [`Catalog::entry`].
    pub fn blocks(&self, record: &EntryRecord) -> Result<Vec<Range<u64>>> {
        let count = block_count(record.version.fingerprint.size);
        match record.phase {
            EntryPhase::Absent => Ok(Vec::new()),
            _ if count == 0 => Ok(Vec::new()),
            EntryPhase::Sealed | EntryPhase::Verified(_) | EntryPhase::Published(_) => {
                Ok(std::iter::once(0..count).collect())
            }
            EntryPhase::Filling | EntryPhase::Failed => {
                self.database.read("read catalog", |transaction| {
                    let blocks = transaction.open_table(BLOCKS)?;
                    get_blocks(&blocks, record.version.ino, count)
                })
            }
        }
    }

    /// The hashes of a run of trusted blocks. Fewer than asked for if they were not kept.
    ///
    /// # Errors
    /// `Io`.
    pub fn hashes(&self, record: &EntryRecord, blocks: Range<u64>) -> Result<Vec<BlockHash>> {
        if let (1, Some(digest)) = (block_count(record.version.fingerprint.size), record.digest) {
            return Ok(blocks.map(|_| digest).collect());
        }
        let read = self.trees.read(record.version.ino, blocks);
        read.map_err(|errno| Error::io("read block hashes", errno).at(record.path.as_path()))
    }

    /// Makes everything durable that was said before.
    ///
    /// # Errors
    /// As a durable write.
    pub fn flush(&self) -> Result<()> {
        self.database.write("flush catalog", Commit::Durable, |_| Ok(()))
    }

    /// Closes the file for good.
    pub(super) fn close(&self) -> Result<()> {
        self.database.close()
    }

    /// Writes hashes; to be synced, then their names.
    pub(super) fn write_hashes(
        &self,
        ino: u64,
        hashes: &[(u64, BlockHash)],
    ) -> Result<OwnedFd, Errno> {
        self.trees.write(ino, hashes)
    }

    /// As [`Catalog::sync_hash_names`] and the hashes themselves, all that were written.
    pub(super) fn sync_hash_files(&self) -> Result<(), Errno> {
        self.trees.sync_all()
    }

    pub(super) fn sync_hash_names(&self) -> Result<(), Errno> {
        self.trees.sync_names()
    }

    /// Removes hash trees that belong to no entry, and that nobody has written since the catalog was opened: those may be vouched for
    /// in a moment.
    pub(super) fn sweep_trees(&self) -> Result<u64> {
        let failed = |errno| Error::io("sweep block hashes", errno).at(&self.shown_as);
        let mut swept = 0;
        for ino in self.trees.inos().map_err(failed)? {
            let is_known = self.database.read("read catalog", |transaction| {
                Ok(transaction.open_table(INOS)?.get(ino)?.is_some())
            })?;
            if !is_known && self.trees.remove_unwritten(ino) {
                swept += 1;
            }
        }
        self.trees.set_swept();
        Ok(swept)
    }
}

fn opener_of(state: OwnedFd, name: &'static str) -> Opener {
    // Only a draft is made: a catalog that vanished is not silently begun anew.
    let is_draft = name == DRAFT_NAME;
    let flags = if is_draft { OFlags::CREATE } else { OFlags::empty() };
    Box::new(move |builder| {
        let file = open_file(state.as_fd(), name, flags).map_err(std::io::Error::from)?;
        // redb would begin an empty file anew.
        let is_empty = || rustix::fs::fstat(&file).map(|stat| stat.st_size == 0);
        if !is_draft && is_empty().map_err(std::io::Error::from)? {
            return Err(redb::StorageError::Corrupted("it is empty".to_owned()).into());
        }
        builder.create_file(file.into())
    })
}

fn open_file(state: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW;
    let file = create_beneath(state, name.as_bytes(), flags, mode_of(flags))?;
    // After a failed sync the page cache may hold, as clean, what the disk never got.
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(file)
}

/// openat2(2) refuses a mode where nothing can be made.
fn mode_of(flags: OFlags) -> Mode {
    if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() }
}

fn remove_draft(state: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::fs::unlinkat(state, DRAFT_NAME, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn get_number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<u64>, Failure> {
    let Some(found) = meta.get(name)? else { return Ok(None) };
    let bytes = <[u8; 8]>::try_from(found.value());
    bytes.map(|bytes| Some(u64::from_le_bytes(bytes))).or(Err(corrupt(name)))
}

fn read_job(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<Job>, Failure> {
    let Some(source) = meta.get("source")? else { return Ok(None) };
    let source = std::str::from_utf8(source.value()).or(Err(corrupt("source")))?.to_owned();
    let created = get_number(meta, "created")?.unwrap_or(0);
    let created = UNIX_EPOCH.checked_add(Duration::from_secs(created));
    Ok(Some(Job { source, created: created.ok_or_else(|| corrupt("created"))? }))
}
