//! The open redb file: every transaction goes through here. After an error of the disk redb trusts nothing that it has in memory; then
//! the file is opened again. A full disk gets its ballast thrown off, once.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redb::{
    Builder, DatabaseError, Durability, ReadTransaction, ReadableDatabase, WriteTransaction,
};

use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicBool, Ordering};

use super::ballast::Ballast;
use super::guard::guarded;

/// redb would take 1 GiB.
const CACHE_BYTES: usize = 32 << 20;
/// How long others wait while one opens the file again.
const REOPEN_DEADLINE: Duration = Duration::from_secs(30);
const REOPEN_POLL: Duration = Duration::from_millis(2);

/// Opens the file itself; called again after an error of the disk.
pub(super) type Opener =
    Box<dyn Fn(&Builder) -> Result<redb::Database, DatabaseError> + Send + Sync>;

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commit {
    /// It is durable when the call returns.
    Durable,
    /// It becomes durable with the next durable one; recovery finds the same by itself if it is lost.
    Later,
}

/// The file, or the place where it will be again.
///
/// # Concurrency
/// Any thread may call anything. redb lets one writer in at a time; readers see the last commit.
pub(super) struct Database {
    opener: Opener,
    shown_as: PathBuf,
    ballast: Ballast,
    open: ArcSwapOption<redb::Database>,
    /// Its pages cannot be right: it is not touched any more. Relaxed: whoever sees it late finds out by himself.
    is_corrupt: AtomicBool,
    /// It is not opened again. Relaxed: whoever sees it late opens what is then closed with the process.
    is_closed: AtomicBool,
    /// Held by who opens the file. Release when set back; pairs with Acquire in `database`.
    is_opening: AtomicBool,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("shown_as", &self.shown_as).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the file at once.
    pub(super) fn open(opener: Opener, shown_as: &Path, ballast: Ballast) -> Result<Self> {
        let database = Self {
            opener,
            shown_as: shown_as.to_owned(),
            ballast,
            open: ArcSwapOption::empty(),
            is_corrupt: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            is_opening: AtomicBool::new(false),
        };
        database.database()?;
        Ok(database)
    }

    /// Runs `change` in a transaction of its own and commits it. `change` may run twice.
    pub(super) fn write<T>(
        &self,
        op: &'static str,
        commit: Commit,
        change: impl Fn(&WriteTransaction) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut is_retry = false;
        loop {
            let database = self.database()?;
            let Some(written) = guarded(|| write_once(&database, commit, &change)) else {
                return Err(self.give_up(Some(database)));
            };
            let failure = match written {
                Ok(value) => {
                    if commit == Commit::Durable {
                        self.ballast.restore();
                    }
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            if !self.may_retry(database, &failure) || is_retry {
                return Err(failure.into_error(op, &self.shown_as));
            }
            is_retry = true;
        }
    }

    /// Runs `look` on what was committed last. It may run twice.
    pub(super) fn read<T>(
        &self,
        op: &'static str,
        mut look: impl FnMut(&ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut is_retry = false;
        loop {
            let database = self.database()?;
            let mut look = || look(&database.begin_read()?);
            let Some(looked) = guarded(&mut look) else {
                return Err(self.give_up(Some(database)));
            };
            let failure = match looked {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            if !self.may_retry(database, &failure) || is_retry {
                return Err(failure.into_error(op, &self.shown_as));
            }
            is_retry = true;
        }
    }

    /// Closes the file for good, once those who use it at this moment are done.
    pub(super) fn close(&self) -> Result<()> {
        self.is_closed.store(true, Ordering::Relaxed);
        let Some(mut database) = self.open.swap(None) else { return Ok(()) };
        let deadline = Instant::now() + REOPEN_DEADLINE;
        while let Err(shared) = Arc::try_unwrap(database) {
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Busy, "close catalog").at(&self.shown_as));
            }
            std::thread::sleep(REOPEN_POLL);
            database = shared;
        }
        Ok(())
    }

    /// Rotten pages: what redb has in memory is not even let go, as it would write.
    fn give_up(&self, database: Option<Arc<redb::Database>>) -> Error {
        self.is_corrupt.store(true, Ordering::Relaxed);
        std::mem::forget((self.open.swap(None), database));
        corrupt("a page of it").into_error("read catalog", &self.shown_as)
    }

    /// Puts a file that failed away, and says whether trying again makes sense.
    fn may_retry(&self, database: Arc<redb::Database>, failure: &Failure) -> bool {
        if !failure.is_of_disk() {
            return false;
        }
        tracing::warn!(path = %self.shown_as.display(), %failure, "catalog is opened again");
        self.open.compare_and_swap(&database, None);
        drop(database);
        failure.is_earlier() || (failure.is_no_space() && self.ballast.release())
    }

    fn database(&self) -> Result<Arc<redb::Database>> {
        let deadline = Instant::now() + REOPEN_DEADLINE;
        loop {
            if self.is_corrupt.load(Ordering::Relaxed) {
                return Err(self.give_up(None));
            }
            if self.is_closed.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Stale, "use catalog")
                    .at(&self.shown_as)
                    .because("it is closed: the copy is complete and stands by itself"));
            }
            if let Some(database) = self.open.load_full() {
                return Ok(database);
            }
            let is_mine = self
                .is_opening
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
            if is_mine {
                let _ending = Opening(&self.is_opening);
                if let Some(database) = self.open.load_full() {
                    return Ok(database);
                }
                let open = || (self.opener)(Builder::new().set_cache_size(CACHE_BYTES));
                match guarded(open).ok_or_else(|| self.give_up(None))? {
                    Ok(database) => {
                        let database = Arc::new(database);
                        self.open.store(Some(Arc::clone(&database)));
                        return Ok(database);
                    }
                    // Somebody still reads from the one that failed.
                    Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {}
                    Err(error) => {
                        return Err(Failure::from(error).into_error("open catalog", &self.shown_as));
                    }
                }
            } else if Instant::now() >= deadline {
                return Err(Error::new(Kind::Busy, "open catalog").at(&self.shown_as));
            }
            std::thread::sleep(REOPEN_POLL);
        }
    }
}

/// Ends the turn of who opens the file, however that ends.
struct Opening<'a>(&'a AtomicBool);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn write_once<T>(
    database: &redb::Database,
    commit: Commit,
    change: &impl Fn(&WriteTransaction) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut transaction = database.begin_write()?;
    match commit {
        Commit::Durable => transaction.set_quick_repair(true),
        Commit::Later => {
            let set = transaction.set_durability(Durability::None);
            set.map_err(|error| Failure::Redb(Box::new(error.into())))?;
        }
    }
    let value = change(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Why a transaction did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    /// redb's reason.
    Redb(Box<redb::Error>),
    /// Ours.
    Ours(Error),
}

/// A record that cannot be one.
pub(super) fn corrupt(record: impl Into<String>) -> Failure {
    let why = format!("{} cannot be read", record.into());
    Failure::Ours(Error::new(Kind::Corrupt, "read catalog").because(why).hint(START_ANEW))
}

const START_ANEW: &str = "`lazycopy forget --force DIR`, then the same command again: files that are there are compared with the source and kept";

impl Failure {
    fn io(&self) -> Option<&io::Error> {
        match self {
            Failure::Redb(error) => match &**error {
                redb::Error::Io(error) => Some(error),
                _ => None,
            },
            Failure::Ours(_) => None,
        }
    }

    fn is_earlier(&self) -> bool {
        matches!(self, Failure::Redb(error) if matches!(**error, redb::Error::PreviousIo))
    }

    fn is_of_disk(&self) -> bool {
        self.io().is_some() || self.is_earlier()
    }

    fn is_no_space(&self) -> bool {
        let errno = self.io().and_then(io::Error::raw_os_error);
        matches!(errno, Some(libc::ENOSPC | libc::EDQUOT))
    }

    fn into_error(self, op: &'static str, shown_as: &Path) -> Error {
        let error = match self {
            Failure::Ours(error) => return error.at(shown_as),
            Failure::Redb(error) => *error,
        };
        let failed = |kind| Error::new(kind, op).at(shown_as);
        match error {
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                failed(Kind::Corrupt).because(error.to_string()).hint(START_ANEW)
            }
            redb::Error::Io(error) => Error::io(op, error).at(shown_as),
            redb::Error::Corrupted(why) => failed(Kind::Corrupt).because(why).hint(START_ANEW),
            redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. } => {
                failed(Kind::Corrupt).because(error.to_string()).hint(START_ANEW)
            }
            redb::Error::UpgradeRequired(format) => failed(Kind::NotSupported)
                .because(format!("its file format is {format}"))
                .hint("use the lazycopy that wrote it, or another destination"),
            redb::Error::DatabaseAlreadyOpen => {
                failed(Kind::Busy).because("somebody else has it open")
            }
            other => failed(Kind::Io).because(other.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Redb(error) => error.fmt(f),
            Failure::Ours(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Ours(error)
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Failure::Redb(Box::new(error.into()))
            }
        }
    )*};
}

from_redb!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError
);
