//! A few connections to one server, opened when they are needed, and files that were read in part and may be read on.
//!
//! One task keeps them. The first connection is kept for good; others come when all are busy, one after the other, and go when they have been
//! idle for a while. One that died is replaced when somebody asks. Who asks while none is open shares what comes of the attempt. A file
//! stays open for some seconds after a part of it was read: who reads it here and there then waits for one answer, not for two.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::session::Session;
use super::wire::Handle;
use crate::core::attributes::Fingerprint;
use crate::error::{Error, Kind, Result};

/// Connections at most.
pub(super) const CONNECTIONS: usize = 4;
/// Users of each connection from which on another one is worth its login.
const BUSY: usize = 2;
/// How often the idle are looked for; who is idle twice goes.
pub(super) const SWEEP: Duration = Duration::from_secs(5);
/// For how long no further connection is tried after one that failed beside others that work.
const REST: Duration = Duration::from_secs(60);
/// Users who wait to be told.
const ASKS: usize = 64;
/// Files that nobody reads now and that stay open, at most.
const IDLE_FILES: usize = 32;

/// Opens one connection.
pub(super) type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Session>> + Send + Sync>;

/// One version of a file of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileVersion {
    pub(super) path: Bytes,
    pub(super) version: Fingerprint,
}

/// A connection, for as long as somebody has it; and the file that was asked for, if it is open there.
#[derive(Debug)]
pub(super) struct Lent {
    // Closed before its connection can be.
    pub(super) handle: Option<Handle>,
    pub(super) session: Arc<Session>,
}

/// An open file that nobody reads.
#[derive(Debug)]
pub(super) struct IdleFile {
    pub(super) handle: Handle,
    pub(super) session: Arc<Session>,
    pub(super) file: FileVersion,
    /// It was idle when the idle were looked for last.
    pub(super) was_idle: bool,
}

#[derive(Debug)]
struct Wanted {
    file: Option<FileVersion>,
    reply: oneshot::Sender<Result<Lent>>,
}

/// The connections of one source. They end when it is dropped and nobody uses them any more.
#[derive(Debug)]
pub(super) struct Pool {
    wanted: mpsc::Sender<Wanted>,
    returned: mpsc::Sender<IdleFile>,
}

impl Pool {
    /// To be called on the runtime that shall keep the connections.
    pub(super) fn new(connect: Connect, sweep: Duration) -> Self {
        let (wanted, inbox) = mpsc::channel(ASKS);
        let (returned, idle) = mpsc::channel(IDLE_FILES);
        let keeper = Keeper {
            connect,
            open: Vec::new(),
            opening: JoinSet::new(),
            waiting: Vec::new(),
            idle: VecDeque::new(),
            rests_until: None,
        };
        tokio::spawn(keeper.run(inbox, idle, sweep));
        Self { wanted, returned }
    }

    /// The connection where `file` is open already, or else that with the fewest users. Having it is using it.
    ///
    /// # Errors
    /// As the attempt to open one has it.
    pub(super) async fn lend(&self, file: Option<FileVersion>) -> Result<Lent> {
        let (reply, lent) = oneshot::channel();
        let gone = || Error::new(Kind::Unreachable, "connect by ssh").because("it was closed");
        self.wanted.send(Wanted { file, reply }).await.map_err(|_closed| gone())?;
        lent.await.map_err(|_closed| gone())?
    }

    /// Where files go that may be read on. One that finds no room there is closed.
    pub(super) fn returns(&self) -> mpsc::Sender<IdleFile> {
        self.returned.clone()
    }
}

/// An open connection.
#[derive(Debug)]
struct Kept {
    session: Arc<Session>,
    /// Goes when it is idle.
    is_extra: bool,
    was_idle: bool,
}

struct Keeper {
    connect: Connect,
    open: Vec<Kept>,
    opening: JoinSet<Result<Session>>,
    waiting: Vec<Wanted>,
    /// The one that was idle for longest first.
    idle: VecDeque<IdleFile>,
    rests_until: Option<Instant>,
}

impl Keeper {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Wanted>,
        mut returned: mpsc::Receiver<IdleFile>,
        sweep: Duration,
    ) {
        let mut sweeps = interval(sweep);
        // Two looks are apart, however late the first is.
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_idle = self.open.len() > 1 || !self.idle.is_empty();
            tokio::select! {
                wanted = inbox.recv() => match wanted {
                    Some(wanted) => self.serve(wanted),
                    None => return,
                },
                Some(opened) = self.opening.join_next() => self.opened(opened),
                Some(file) = returned.recv() => self.keep(file),
                _ = sweeps.tick(), if has_idle => self.sweep(),
            }
        }
    }

    /// Who uses `kept` now.
    fn users(&self, kept: &Kept) -> usize {
        let idle = self.idle.iter().filter(|file| Arc::ptr_eq(&file.session, &kept.session));
        Arc::strong_count(&kept.session) - 1 - idle.count()
    }

    fn forget_the_dead(&mut self) {
        self.open.retain(|kept| !kept.session.is_over());
        self.idle.retain(|file| !file.session.is_over());
    }

    fn serve(&mut self, wanted: Wanted) {
        self.forget_the_dead();
        if let Some(file) = &wanted.file
            && let Some(at) = self.idle.iter().position(|idle| idle.file == *file)
            && let Some(IdleFile { handle, session, .. }) = self.idle.remove(at)
        {
            // Not taken, it is closed.
            drop(wanted.reply.send(Ok(Lent { handle: Some(handle), session })));
            return;
        }
        // Of those that are equally busy the eldest, so that the others become idle.
        let Some(best) = self.open.iter().min_by_key(|kept| self.users(kept)) else {
            self.waiting.retain(|waiting| !waiting.reply.is_closed());
            self.waiting.push(wanted);
            if self.opening.is_empty() {
                self.opening.spawn((self.connect)());
            }
            return;
        };
        let is_busy = self.users(best) >= BUSY;
        // Who has gone meanwhile needs none.
        drop(wanted.reply.send(Ok(Lent { handle: None, session: Arc::clone(&best.session) })));
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        if is_busy && !rests && self.opening.is_empty() && self.open.len() < CONNECTIONS {
            self.opening.spawn((self.connect)());
        }
    }

    fn keep(&mut self, file: IdleFile) {
        self.idle.push_back(file);
        if self.idle.len() > IDLE_FILES {
            self.idle.pop_front();
        }
    }

    fn opened(&mut self, opened: Result<Result<Session>, JoinError>) {
        let died = |error: JoinError| Error::new(Kind::Io, "connect by ssh").caused_by(error);
        match opened.map_err(died).and_then(|opened| opened) {
            Ok(session) => {
                let session = Arc::new(session);
                for waiting in self.waiting.drain(..) {
                    let lent = Lent { handle: None, session: Arc::clone(&session) };
                    drop(waiting.reply.send(Ok(lent)));
                }
                self.forget_the_dead();
                let is_extra = !self.open.is_empty();
                self.open.push(Kept { session, is_extra, was_idle: false });
            }
            Err(error) => {
                if self.waiting.is_empty() {
                    tracing::info!(%error, "no further connection; those that are open go on");
                    self.rests_until = Some(Instant::now() + REST);
                }
                for waiting in self.waiting.drain(..) {
                    drop(waiting.reply.send(Err(error.clone())));
                }
            }
        }
    }

    /// Whatever is idle and was so at the look before goes.
    fn sweep(&mut self) {
        self.forget_the_dead();
        self.idle.retain_mut(|file| !std::mem::replace(&mut file.was_idle, true));
        let users: Vec<usize> = self.open.iter().map(|kept| self.users(kept)).collect();
        let mut users = users.into_iter();
        self.open.retain_mut(|kept| {
            let is_idle = users.next() == Some(0);
            let goes = kept.is_extra && is_idle && kept.was_idle;
            kept.was_idle = is_idle;
            !goes
        });
    }
}
