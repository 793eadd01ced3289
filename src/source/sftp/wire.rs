//! The task behind a [`Session`](super::session::Session): it writes requests, reads answers, and gives each to who asked.
//!
//! Who gives up waiting disturbs nobody: a request that was not written yet never is, an answer that comes too late is dropped, and a handle
//! that nobody takes is closed.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::packet::{Answer, Request, read_answer, take_packet};
use crate::error::{Error, Kind, Result};

/// Requests that are written and not answered, at most.
const OUTSTANDING: usize = 1024;
/// Bytes of requests that wait to be written, about.
const UNWRITTEN: usize = 64 << 10;
/// Room for each read from the connection, in bytes: what a pipe holds.
const ROOM: usize = 64 << 10;
/// Bytes that are allocated at once for several of them; the pieces of a file are parts of these.
const BLOCK: usize = 4 * ROOM;
/// How long a server may be silent that owes answers. Its machine answers ssh itself sooner if it lives, so this is a disk that hangs.
const SILENCE: Duration = Duration::from_secs(120);

/// What somebody wants of the server.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) request: Request,
    pub(super) waiter: Waiter,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(super) enum Waiter {
    Answer(oneshot::Sender<Result<Answer>>),
    /// Who opens something; the place is for the request that closes it again.
    Handle {
        reply: oneshot::Sender<Result<Opened>>,
        place: OwnedPermit<Bytes>,
    },
    /// Nobody cares how closing ends.
    Nobody,
}

/// The answer to who opens something.
#[derive(Debug)]
pub(super) enum Opened {
    Handle(Handle),
    Refused(Answer),
}

/// An open file or directory of the server. Dropping it closes it there.
#[derive(Debug)]
pub(super) struct Handle {
    name: Bytes,
    place: Option<OwnedPermit<Bytes>>,
}

impl Handle {
    /// What requests call it.
    pub(super) fn name(&self) -> Bytes {
        self.name.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.send(self.name.clone());
        }
    }
}

impl Waiter {
    fn is_gone(&self) -> bool {
        match self {
            Waiter::Answer(reply) => reply.is_closed(),
            Waiter::Handle { reply, .. } => reply.is_closed(),
            Waiter::Nobody => false,
        }
    }

    /// Gives the answer to who is still there.
    fn tell(self, answer: Result<Answer>) {
        match self {
            Waiter::Answer(reply) => drop(reply.send(answer)),
            Waiter::Handle { reply, place } => {
                let opened = answer.map(|answer| match answer {
                    Answer::Handle(name) => Opened::Handle(Handle { name, place: Some(place) }),
                    other => Opened::Refused(other),
                });
                // Not taken, the handle is dropped with it, and so closed.
                drop(reply.send(opened));
            }
            Waiter::Nobody => {}
        }
    }
}

/// Both directions of a connection, and who waits for what.
#[derive(Debug)]
pub(super) struct Wire<R, W> {
    reader: R,
    writer: W,
    incoming: BytesMut,
    outgoing: BytesMut,
    asks: mpsc::Receiver<Ask>,
    closes: mpsc::Receiver<Bytes>,
    waiters: HashMap<u32, Waiter>,
    last_id: u32,
    /// When the server was heard, or began to owe an answer.
    heard: Instant,
    /// Nobody has the session any more.
    is_unused: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Wire<R, W> {
    pub(super) fn new(
        (reader, writer): (R, W),
        incoming: BytesMut,
        asks: mpsc::Receiver<Ask>,
        closes: mpsc::Receiver<Bytes>,
    ) -> Self {
        Self {
            reader,
            writer,
            incoming,
            outgoing: BytesMut::new(),
            asks,
            closes,
            waiters: HashMap::new(),
            last_id: 0,
            heard: Instant::now(),
            is_unused: false,
        }
    }

    /// Whether it ended because nobody has the session any more.
    pub(super) fn is_unused(&self) -> bool {
        self.is_unused
    }

    /// Serves until nobody has the session any more, or the connection ends; says why.
    pub(super) async fn run(&mut self) -> Error {
        loop {
            if let Err(why) = self.step().await {
                return why;
            }
        }
    }

    async fn step(&mut self) -> Result<()> {
        let has_room = self.outgoing.len() < UNWRITTEN && self.waiters.len() < OUTSTANDING;
        if self.incoming.capacity() - self.incoming.len() < ROOM {
            self.incoming.reserve(BLOCK);
        }
        tokio::select! {
            read = self.reader.read_buf(&mut self.incoming) => match read {
                Ok(0) => return Err(cut()),
                Ok(_) => self.answer()?,
                Err(error) => return Err(cut().caused_by(error)),
            },
            ask = self.asks.recv(), if has_room => match ask {
                Some(ask) => self.begin(ask),
                None => {
                    self.is_unused = true;
                    return Err(cut());
                }
            },
            Some(handle) = self.closes.recv() => {
                self.put(&Request::Close(handle), Waiter::Nobody);
            }
            written = self.writer.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => {
                written.map_err(|error| cut().caused_by(error))?;
            }
            () = sleep_until(self.heard + SILENCE), if !self.waiters.is_empty() => {
                let why = format!("the server answered nothing for {} s", SILENCE.as_secs());
                return Err(Error::new(Kind::Timeout, OP).because(why));
            }
        }
        Ok(())
    }

    /// Takes a request, and others that are there too.
    fn begin(&mut self, first: Ask) {
        let mut next = Some(first);
        while let Some(Ask { request, waiter }) = next {
            if !waiter.is_gone() {
                self.put(&request, waiter);
            }
            let has_room = self.outgoing.len() < UNWRITTEN && self.waiters.len() < OUTSTANDING;
            next = if has_room { self.asks.try_recv().ok() } else { None };
        }
    }

    fn put(&mut self, request: &Request, waiter: Waiter) {
        if self.waiters.is_empty() {
            self.heard = Instant::now();
        }
        // Those outstanding are few, but one of them may be very old.
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.waiters.contains_key(&self.last_id) {
                break;
            }
        }
        request.put(self.last_id, &mut self.outgoing);
        self.waiters.insert(self.last_id, waiter);
    }

    /// Gives out every answer that is there.
    fn answer(&mut self) -> Result<()> {
        self.heard = Instant::now();
        while let Some(packet) = take_packet(&mut self.incoming)? {
            let (id, answer) = read_answer(packet)?;
            let waiter = self.waiters.remove(&id).ok_or_else(|| {
                Error::new(Kind::Corrupt, OP).because("the server answers what nobody asked")
            })?;
            waiter.tell(answer);
        }
        Ok(())
    }

    /// Tells everybody that it is over.
    pub(super) fn end(mut self, why: &Error) {
        self.asks.close();
        let unwritten = std::iter::from_fn(|| self.asks.try_recv().ok());
        let waiting: Vec<Waiter> = unwritten.map(|ask| ask.waiter).collect();
        for waiter in self.waiters.into_values().chain(waiting) {
            waiter.tell(Err(why.clone()));
        }
    }
}

const OP: &str = "ask SFTP server";

/// The connection is gone.
pub(super) fn cut() -> Error {
    Error::new(Kind::Unreachable, OP).because("the connection was cut")
}
