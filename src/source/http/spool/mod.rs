//! Files of servers that ignore ranges: read once, in order, into an unlinked temporary file that all readers share.
//!
//! A task owns which files are spooled; everybody else sends it messages. Each spool has a task that fills it and ends with
//! its last owner.

mod actor;
mod file;
mod fill;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::actor::{Actor, Command};
pub(super) use self::file::Spool;
use super::client::Answer;
use super::origin::Origin;
use crate::core::attributes::Fingerprint;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

/// Messages that wait for the actor.
const COMMANDS: usize = 64;

/// What became of the wish to read a file by its spool.
#[derive(Debug, Clone)]
pub(super) enum Joined {
    /// Here it is.
    Spooled(Arc<Spool>),
    /// The server keeps to ranges: no spool is needed.
    RangesWork,
    /// The file has no spool.
    Absent,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Owned(JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The spools of one source.
#[derive(Debug)]
pub(super) struct Spools {
    commands: mpsc::Sender<Command>,
    /// How many there are: most sources have none, and then nobody asks.
    count: watch::Receiver<usize>,
    _actor: Owned,
}

impl Spools {
    /// Starts the task that owns them. Must be called within a runtime.
    pub(super) fn start(origin: Arc<Origin>) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (counter, count) = watch::channel(0);
        let actor = Actor::new(origin, commands.clone(), counter);
        Self { commands, count, _actor: Owned(tokio::spawn(actor.run(inbox))) }
    }

    /// The spool of the version `expected` of `path`, if there is one.
    ///
    /// # Errors
    /// As [`Spools::join`].
    pub(super) async fn find(&self, path: &RelPath, expected: &Fingerprint) -> Result<Joined> {
        if *self.count.borrow() == 0 {
            return Ok(Joined::Absent);
        }
        let expected = expected.clone();
        self.ask(|reply| Command::Find { path: path.clone(), expected, reply }).await
    }

    /// The spool of `path`; made of the body of `given`, else of a new request, if there is none.
    ///
    /// # Errors
    /// `Stale` if the server has another version than `expected`; `Busy` if there are too many spools; as
    /// [`crate::source::Source::read`].
    pub(super) async fn join(
        &self,
        path: &RelPath,
        expected: Option<&Fingerprint>,
        given: Option<Answer>,
    ) -> Result<Joined> {
        let (expected, given) = (expected.cloned(), given.map(Box::new));
        self.ask(|reply| Command::Join { path: path.clone(), expected, given, reply }).await
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<Joined>>) -> Command,
    ) -> Result<Joined> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Kind::Io, "spool file").because("the source is being closed");
        self.commands.send(command(reply)).await.map_err(|_closed| gone())?;
        answer.await.map_err(|_closed| gone())?
    }
}
