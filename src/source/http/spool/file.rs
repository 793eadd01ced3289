//! One spooled file and its readers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Owned;
use crate::core::attributes::{Fingerprint, Validator};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::ByteStream;
use crate::source::http::answer::{Version, stale};

const OP: &str = "read spooled file";
/// Bytes per item of a reader's stream.
const PIECE: u64 = 256 * 1024;
/// How often a waiting reader is told that the spool moves.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How far a spool has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// Bytes from the start that can be read. Never falls.
    pub(super) landed: u64,
    /// How it ended, if it has.
    pub(super) end: Option<Result<()>>,
}

/// A file that is being, or was, read from start to end.
#[derive(Debug)]
pub(in super::super) struct Spool {
    pub(in super::super) version: Version,
    path: RelPath,
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
    _fill: Owned,
}

impl Spool {
    pub(super) fn new(
        path: RelPath,
        version: Version,
        file: Arc<File>,
        progress: watch::Receiver<Progress>,
        fill: Owned,
    ) -> Self {
        Self { version, path, file, progress, _fill: fill }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.progress.borrow().end, Some(Err(_)))
    }

    /// Whether it shows another version than `expected`.
    pub(super) fn contradicts(&self, expected: &Fingerprint) -> bool {
        let progress = self.progress.borrow();
        let is_other_size =
            matches!(progress.end, Some(Ok(()))) && progress.landed != expected.size;
        self.version.contradicts(expected) || is_other_size
    }

    /// Waits until the body is whole; gives its length.
    ///
    /// # Errors
    /// Why it never will be.
    pub(in super::super) async fn whole_size(&self) -> Result<u64> {
        let mut progress = self.progress.clone();
        let last = progress.wait_for(|progress| progress.end.is_some()).await.map_err(abandoned)?;
        match &last.end {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(last.landed),
        }
    }

    /// Streams `range` as it lands. While it waits and the spool moves, an empty piece a second says so.
    pub(in super::super) fn stream(
        spool: Arc<Self>,
        range: ByteRange,
        expected: Fingerprint,
    ) -> ByteStream {
        let progress = spool.progress.clone();
        let reader = Reader { spool, progress, expected, left: range, seen: 0 };
        stream::try_unfold(reader, |mut reader| async move {
            match reader.next().await {
                Ok(None) => Ok(None),
                Ok(Some(piece)) => Ok(Some((piece, reader))),
                Err(error) => Err(error.at(reader.spool.path.as_path())),
            }
        })
        .boxed()
    }
}

fn abandoned(closed: watch::error::RecvError) -> Error {
    Error::new(Kind::Unreachable, OP).because("the transfer was given up").caused_by(closed)
}

struct Reader {
    spool: Arc<Spool>,
    progress: watch::Receiver<Progress>,
    expected: Fingerprint,
    left: ByteRange,
    /// Bytes landed when the last sign of life was given.
    seen: u64,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let start = self.left.start;
        // Where nothing but its length tells a version, the length has to be known first.
        let must_be_whole =
            self.spool.version.size.is_none() && self.expected.validator == Validator::SizeOnly;
        let Some(landed) = self.wait(start, must_be_whole).await? else {
            return Ok(Some(Bytes::new()));
        };
        let piece = ByteRange::at(start, PIECE).clip(self.left.end).clip(landed);
        let file = Arc::clone(&self.spool.file);
        let bytes = spawn_blocking(move || read_exactly(&file, piece))
            .await
            .map_err(|lost| Error::new(Kind::Io, OP).caused_by(lost))??;
        self.left = ByteRange::new(piece.end, self.left.end);
        Ok(Some(bytes))
    }

    /// Waits until the byte at `start` can be read; gives how many bytes from the start of the file can be. `None` is a sign of life:
    /// not yet, but the spool moves.
    async fn wait(&mut self, start: u64, must_be_whole: bool) -> Result<Option<u64>> {
        loop {
            let ready = self.progress.wait_for(|progress| {
                progress.end.is_some() || (!must_be_whole && progress.landed > start)
            });
            let ready = match timeout(SIGN_OF_LIFE, ready).await {
                Ok(ready) => Some(ready.map_err(abandoned)?.clone()),
                Err(_elapsed) => None,
            };
            if let Some(ready) = ready {
                return self.usable(&ready).map(Some);
            }
            let landed = self.progress.borrow().landed;
            if landed != self.seen {
                self.seen = landed;
                return Ok(None);
            }
        }
    }

    /// How many bytes from the start can be read, at least one of them wanted.
    fn usable(&self, progress: &Progress) -> Result<u64> {
        match &progress.end {
            Some(Ok(())) if progress.landed != self.expected.size => Err(stale(OP)),
            Some(Err(error)) if progress.landed <= self.left.start => Err(error.clone()),
            _ if progress.landed <= self.left.start => Err(stale(OP)),
            _ => Ok(progress.landed),
        }
    }
}

fn read_exactly(file: &File, range: ByteRange) -> Result<Bytes> {
    let len = usize::try_from(range.len())
        .map_err(|error| Error::new(Kind::Invalid, OP).caused_by(error))?;
    let mut piece = vec![0; len];
    file.read_exact_at(&mut piece, range.start).map_err(|error| Error::io(OP, error))?;
    Ok(Bytes::from(piece))
}
