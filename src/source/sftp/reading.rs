//! Reading a range of a file: several READs under way, their bytes given out in order.
//!
//! SFTP names no version, so the file's attributes are asked for before the first byte and after every piece: the server answers
//! requests for one file in the order in which they come (draft-ietf-secsh-filexfer-02, section 3). A piece is given out when
//! what it was read from still is the version that was wanted. That costs no time, as nobody waits for one answer before the next question.
//! A file that is open still from the last time is read when its name still leads to that version.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::packet::{Answer, Request, Status};
use super::pool::{FileVersion, IdleFile, Lent};
use super::session::{Pending, Session, Share};
use super::wire::Handle;
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::ByteStream;

const OP: &str = "read file";
/// Bytes of the first READ: a reader far away waits for no more than it asked for. They double from there.
const FIRST: u64 = 32 << 10;
/// Bytes under way for one reader at most; OpenSSH has no more under way for one connection (CHAN_SES_WINDOW_DEFAULT).
const WINDOW: u64 = 2 << 20;

/// A READ and the question after it.
struct Piece {
    range: ByteRange,
    bytes: Pending,
    version: Pending,
    _share: Share,
}

/// A file of which one version is being read.
struct Reading {
    handle: Handle,
    session: Arc<Session>,
    file: FileVersion,
    ahead: VecDeque<Piece>,
    /// What is still to be asked for.
    rest: ByteRange,
    step: u64,
    /// All of it came.
    is_done: bool,
}

/// What is read, and where.
pub(super) struct Ask {
    pub(super) file: FileVersion,
    pub(super) range: ByteRange,
    /// For errors.
    pub(super) shown: RelPath,
    /// Where the open file goes when it was read.
    pub(super) returns: mpsc::Sender<IdleFile>,
}

/// See [`crate::source::Source::read`].
pub(super) async fn read(lent: Lent, ask: Ask) -> Result<ByteStream> {
    let Ask { file, range, shown, returns } = ask;
    let Lent { handle, session } = lent;
    let path = file.path.clone();
    let (handle, named) = match handle {
        Some(handle) => (handle, Some(session.begin(Request::Stat(path)).await?)),
        None => (session.open(OP, Request::Open(path)).await?, None),
    };
    let is_whole = range == ByteRange::at(0, file.version.size);
    let mut reading = Reading {
        handle,
        session,
        file,
        ahead: VecDeque::new(),
        rest: range,
        step: FIRST,
        is_done: false,
    };
    let before = reading.session.begin(Request::Fstat(reading.handle.name())).await?;
    reading.ask_ahead().await?;
    if let Some(named) = named {
        reading.check(named).await?;
    }
    reading.check(before).await?;
    let returns = (!is_whole).then_some(returns);
    let pieces =
        stream::try_unfold(Finishing { reading: Some(reading), returns }, move |mut it| {
            let shown = shown.clone();
            async move {
                let Some(reading) = &mut it.reading else { return Ok(None) };
                let piece = reading.next().await.map_err(|error| error.at(shown.as_path()))?;
                Ok(piece.map(|piece| (piece, it)))
            }
        });
    Ok(pieces.boxed())
}

/// Gives the open file back once it was read, so that it can be read on; else it is closed.
struct Finishing {
    reading: Option<Reading>,
    returns: Option<mpsc::Sender<IdleFile>>,
}

impl Drop for Finishing {
    fn drop(&mut self) {
        if let (Some(reading), Some(returns)) = (self.reading.take(), &self.returns)
            && reading.is_done
        {
            let Reading { handle, session, file, .. } = reading;
            // Too many, or nobody keeps them any more: it is closed.
            drop(returns.try_send(IdleFile { handle, session, file, was_idle: false }));
        }
    }
}

impl Reading {
    /// Asks for more, as far as the window reaches; for one piece in any case.
    async fn ask_ahead(&mut self) -> Result<()> {
        let mut under_way: u64 = self.ahead.iter().map(|piece| piece.range.len()).sum();
        while !self.rest.is_empty() {
            let longest = self.session.longest_read();
            let len = self.rest.len().min(self.step).min(longest);
            let share = match self.ahead.is_empty() {
                true => Some(self.session.take_share(len)),
                false if under_way + len > WINDOW => None,
                false => self.session.try_take_share(len),
            };
            let Some(share) = share else { break };
            let range = ByteRange::at(self.rest.start, len);
            let piece = self.ask(range, share).await?;
            self.ahead.push_back(piece);
            under_way += len;
            self.rest = ByteRange::new(range.end, self.rest.end);
            self.step = (self.step * 2).min(longest.max(FIRST));
        }
        Ok(())
    }

    async fn ask(&self, range: ByteRange, share: Share) -> Result<Piece> {
        let len = u32::try_from(range.len())
            .map_err(|error| Error::new(Kind::Invalid, OP).caused_by(error))?;
        let handle = self.handle.name();
        let read = Request::Read { handle: handle.clone(), offset: range.start, len };
        let bytes = self.session.begin(read).await?;
        let version = self.session.begin(Request::Fstat(handle)).await?;
        Ok(Piece { range, bytes, version, _share: share })
    }

    /// Whether the open file is the version that is wanted.
    async fn check(&self, version: Pending) -> Result<()> {
        match version.answer().await? {
            Answer::Attributes(now) if now.are_of(&self.file.version) => Ok(()),
            Answer::Attributes(_) => {
                Err(Error::new(Kind::Stale, OP).because("the source file was changed"))
            }
            other => Err(other.unexpected(OP)),
        }
    }

    /// The next bytes; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(Piece { range, bytes, version, .. }) = self.ahead.pop_front() else {
            return Ok(None);
        };
        let answer = bytes.answer().await?;
        // Whatever came, of another version it means nothing.
        self.check(version).await?;
        let bytes = match answer {
            Answer::Data(bytes) => bytes,
            Answer::Status(Status { code: Status::EOF, .. }) => Bytes::new(),
            other => return Err(other.unexpected(OP)),
        };
        let corrupt = |why: String| Err(Error::new(Kind::Corrupt, OP).because(why));
        let came = ByteRange::at(range.start, bytes.len() as u64);
        if came.is_empty() {
            return corrupt(format!(
                "ends at {}, before its size of {}",
                range.start, self.file.version.size
            ));
        }
        if came.end > range.end {
            return corrupt(format!(
                "asked for {} bytes, the server sends {}",
                range.len(),
                came.len()
            ));
        }
        if came.end < range.end {
            // It gives less at once; the rest goes before what was asked for behind it.
            self.session.reads_no_more_than(came.len());
            let rest = ByteRange::new(came.end, range.end);
            let piece = self.ask(rest, self.session.take_share(rest.len())).await?;
            self.ahead.push_front(piece);
        }
        self.ask_ahead().await?;
        self.is_done = self.ahead.is_empty();
        Ok(Some(bytes))
    }
}
