//! The task that owns which files are spooled.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval};

use super::file::Spool;
use super::{Joined, Owned, fill};
use crate::core::attributes::Fingerprint;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::http::answer::stale;
use crate::source::http::client::Answer;
use crate::source::http::origin::Origin;

/// What others ask of it.
#[derive(Debug)]
pub(super) enum Command {
    /// See [`super::Spools::find`].
    Find { path: RelPath, expected: Fingerprint, reply: Reply },
    /// See [`super::Spools::join`].
    Join { path: RelPath, expected: Option<Fingerprint>, given: Option<Box<Answer>>, reply: Reply },
    /// A request for a spool was answered.
    Opened { path: RelPath, result: Result<Joined> },
}

type Reply = oneshot::Sender<Result<Joined>>;

/// Somebody who waits for a spool to be opened.
#[derive(Debug)]
struct Waiter {
    expected: Option<Fingerprint>,
    reply: Reply,
}

#[derive(Debug)]
enum Entry {
    /// One request is under way for all waiters.
    Opening { waiters: Vec<Waiter>, _task: Owned },
    /// It can be read, and may be still filling.
    Open { spool: Arc<Spool>, idle_since: Option<Instant> },
}

#[derive(Debug)]
pub(super) struct Actor {
    origin: Arc<Origin>,
    commands: mpsc::Sender<Command>,
    entries: HashMap<RelPath, Entry>,
    count: watch::Sender<usize>,
}

impl Actor {
    pub(super) fn new(
        origin: Arc<Origin>,
        commands: mpsc::Sender<Command>,
        count: watch::Sender<usize>,
    ) -> Self {
        Self { origin, commands, entries: HashMap::new(), count }
    }

    /// Serves commands until it is aborted by its owner.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let step = (self.origin.limits.spool_idle / 4).max(Duration::from_millis(10));
        let mut ticks = interval(step);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.serve(command),
                    None => return,
                },
                _ = ticks.tick() => self.free_idle(),
            }
            self.count.send_if_modified(|count| {
                let is_new = *count != self.entries.len();
                *count = self.entries.len();
                is_new
            });
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Find { path, expected, reply } => {
                let waiter = Waiter { expected: Some(expected), reply };
                if let Some(waiter) = self.offer_existing(&path, waiter) {
                    waiter.answer(Ok(Joined::Absent));
                }
            }
            Command::Join { path, expected, given, reply } => {
                let waiter = Waiter { expected, reply };
                if let Some(waiter) = self.offer_existing(&path, waiter) {
                    self.open(path, given, waiter);
                }
            }
            Command::Opened { path, result } => self.opened(path, &result),
        }
    }

    /// Serves `waiter` by the entry of `path`; gives it back if there is none that can.
    fn offer_existing(&mut self, path: &RelPath, waiter: Waiter) -> Option<Waiter> {
        match self.entries.get_mut(path) {
            None => return Some(waiter),
            Some(Entry::Opening { waiters, .. }) => {
                waiters.push(waiter);
                return None;
            }
            Some(Entry::Open { spool, idle_since }) => {
                if !spool.has_failed() && !waiter.is_contradicted_by(spool) {
                    *idle_since = None;
                    waiter.answer(Ok(Joined::Spooled(Arc::clone(spool))));
                    return None;
                }
            }
        }
        // Of no use to anybody new; its readers keep it.
        self.entries.remove(path);
        Some(waiter)
    }

    fn open(&mut self, path: RelPath, given: Option<Box<Answer>>, waiter: Waiter) {
        if self.entries.len() >= self.origin.limits.spools && !self.free_longest_idle() {
            waiter.answer(Err(Error::new(Kind::Busy, "spool file")
                .because("too many files of a server without ranges are read at once")));
            return;
        }
        let (origin, commands) = (Arc::clone(&self.origin), self.commands.clone());
        let of = path.clone();
        let task = tokio::spawn(async move {
            let result = fill::open(origin, &of, given.map(|answer| *answer)).await;
            // The actor is gone only if the source is.
            drop(commands.send(Command::Opened { path: of, result }).await);
        });
        self.entries.insert(path, Entry::Opening { waiters: vec![waiter], _task: Owned(task) });
    }

    fn opened(&mut self, path: RelPath, result: &Result<Joined>) {
        let Slot::Occupied(slot) = self.entries.entry(path.clone()) else {
            return;
        };
        let Entry::Opening { waiters, .. } = slot.remove() else {
            return;
        };
        if let Ok(Joined::Spooled(spool)) = result {
            let entry = Entry::Open { spool: Arc::clone(spool), idle_since: None };
            self.entries.insert(path, entry);
        }
        for waiter in waiters {
            match result {
                Ok(Joined::Spooled(spool)) if waiter.is_contradicted_by(spool) => {
                    waiter.answer(Err(stale("spool file")));
                }
                result => waiter.answer(result.clone()),
            }
        }
    }

    /// Drops what had no reader for a while.
    fn free_idle(&mut self) {
        let (now, patience) = (Instant::now(), self.origin.limits.spool_idle);
        self.entries.retain(|_, entry| match entry {
            Entry::Opening { .. } => true,
            Entry::Open { spool, idle_since } => {
                if is_read(spool) {
                    *idle_since = None;
                    return true;
                }
                now.duration_since(*idle_since.get_or_insert(now)) < patience
            }
        });
    }

    /// Makes room by the spool that nobody has read for longest; `false` if all are read.
    fn free_longest_idle(&mut self) -> bool {
        let idle = self.entries.iter().filter_map(|(path, entry)| match entry {
            Entry::Open { spool, idle_since } if !is_read(spool) => {
                // Not noticed as idle yet: idle since just now.
                Some((idle_since.is_none(), *idle_since, path.clone()))
            }
            _ => None,
        });
        match idle.min() {
            Some((_, _, path)) => self.entries.remove(&path).is_some(),
            None => false,
        }
    }
}

/// Whether anybody but the actor holds it.
fn is_read(spool: &Arc<Spool>) -> bool {
    Arc::strong_count(spool) > 1
}

impl Waiter {
    fn is_contradicted_by(&self, spool: &Spool) -> bool {
        self.expected.as_ref().is_some_and(|expected| spool.contradicts(expected))
    }

    fn answer(self, result: Result<Joined>) {
        // One who waits no longer needs no answer.
        drop(self.reply.send(result));
    }
}
