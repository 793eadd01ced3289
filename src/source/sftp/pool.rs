//! A few connections to one server, opened when they are needed.
//!
//! One task keeps them. The first is kept for good; others come when all are busy, one after the other, and go when they have been idle for
//! a while. One that died is replaced when somebody asks. Who asks while none is open shares what comes of the attempt.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::session::Session;
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

/// Opens one connection.
pub(super) type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Session>> + Send + Sync>;

type Wanted = oneshot::Sender<Result<Arc<Session>>>;

/// The connections of one source. They end when it is dropped and nobody uses them any more.
#[derive(Debug)]
pub(super) struct Pool {
    wanted: mpsc::Sender<Wanted>,
}

impl Pool {
    /// To be called on the runtime that shall keep the connections.
    pub(super) fn new(connect: Connect, sweep: Duration) -> Self {
        let (wanted, inbox) = mpsc::channel(ASKS);
        let keeper = Keeper {
            connect,
            open: Vec::new(),
            opening: JoinSet::new(),
            waiting: Vec::new(),
            rests_until: None,
        };
        tokio::spawn(keeper.run(inbox, sweep));
        Self { wanted }
    }

    /// The connection with the fewest users. Having it is using it.
    ///
    /// # Errors
    /// As the attempt to open one has it.
    pub(super) async fn session(&self) -> Result<Arc<Session>> {
        let (reply, session) = oneshot::channel();
        let gone = || Error::new(Kind::Unreachable, "connect by ssh").because("it was closed");
        self.wanted.send(reply).await.map_err(|_closed| gone())?;
        session.await.map_err(|_closed| gone())?
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

impl Kept {
    /// Who has it besides us.
    fn users(&self) -> usize {
        Arc::strong_count(&self.session) - 1
    }
}

struct Keeper {
    connect: Connect,
    open: Vec<Kept>,
    opening: JoinSet<Result<Session>>,
    waiting: Vec<Wanted>,
    rests_until: Option<Instant>,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Wanted>, sweep: Duration) {
        let mut sweeps = interval(sweep);
        // Two looks are apart, however late the first is.
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                wanted = inbox.recv() => match wanted {
                    Some(wanted) => self.serve(wanted),
                    None => return,
                },
                Some(opened) = self.opening.join_next() => self.opened(opened),
                _ = sweeps.tick(), if self.open.len() > 1 => self.sweep(),
            }
        }
    }

    fn serve(&mut self, wanted: Wanted) {
        self.open.retain(|kept| !kept.session.is_over());
        // Of those that are equally busy the eldest, so that the others become idle.
        let Some(best) = self.open.iter().min_by_key(|kept| kept.users()) else {
            self.waiting.retain(|waiting| !waiting.is_closed());
            self.waiting.push(wanted);
            if self.opening.is_empty() {
                self.opening.spawn((self.connect)());
            }
            return;
        };
        let is_busy = best.users() >= BUSY;
        // Who has gone meanwhile needs none.
        drop(wanted.send(Ok(Arc::clone(&best.session))));
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        if is_busy && !rests && self.opening.is_empty() && self.open.len() < CONNECTIONS {
            self.opening.spawn((self.connect)());
        }
    }

    fn opened(&mut self, opened: Result<Result<Session>, JoinError>) {
        let died = |error: JoinError| Error::new(Kind::Io, "connect by ssh").caused_by(error);
        match opened.map_err(died).and_then(|opened| opened) {
            Ok(session) => {
                let session = Arc::new(session);
                for waiting in self.waiting.drain(..) {
                    drop(waiting.send(Ok(Arc::clone(&session))));
                }
                self.open.retain(|kept| !kept.session.is_over());
                let is_extra = !self.open.is_empty();
                self.open.push(Kept { session, is_extra, was_idle: false });
            }
            Err(error) => {
                if self.waiting.is_empty() {
                    tracing::info!(%error, "no further connection; those that are open go on");
                    self.rests_until = Some(Instant::now() + REST);
                }
                for waiting in self.waiting.drain(..) {
                    drop(waiting.send(Err(error.clone())));
                }
            }
        }
    }

    fn sweep(&mut self) {
        self.open.retain_mut(|kept| {
            let is_idle = kept.users() == 0;
            let goes = kept.session.is_over() || (kept.is_extra && is_idle && kept.was_idle);
            kept.was_idle = is_idle;
            !goes
        });
    }
}
