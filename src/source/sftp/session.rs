//! One connection to an SFTP server: any number of requests at once.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use super::packet::{
    self, Answer, Hello, Request, put_hello, read_hello, read_limits, take_packet,
};
use super::wire::{Ask, Handle, Opened, Waiter, Wire, cut};
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicU64, Ordering};

/// Requests on their way to the task that writes them.
const ASKS: usize = 64;
/// Open handles of one connection; servers take about 1000.
const HANDLES: usize = 64;
/// Bytes of one READ that every server answers.
const SAFE_READ: u64 = 32 << 10;
/// Bytes of one READ at most: more make no answer cheaper, and the first byte later.
const LONGEST_READ: u64 = 256 << 10;
/// Bytes that were asked for and not taken by their readers yet, of all of a connection's: twice what OpenSSH has under way at most.
const IN_FLIGHT: u64 = 4 << 20;

/// A connection, shared by who uses it. It ends when nobody has it any more.
#[derive(Debug)]
pub(super) struct Session {
    asks: mpsc::Sender<Ask>,
    closes: mpsc::Sender<Bytes>,
    hello: Hello,
    longest_read: AtomicU64,
    in_flight: Arc<AtomicU64>,
}

/// An answer that is to come.
pub(super) struct Pending(oneshot::Receiver<Result<Answer>>);

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// `Unreachable` if the connection ends before; `Corrupt` if it cannot be right.
    pub(super) async fn answer(self) -> Result<Answer> {
        self.0.await.unwrap_or_else(|_gone| Err(cut()))
    }
}

/// Bytes that were asked for; dropped when they are taken, or not wanted any more.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        // Relaxed: a number that bounds memory, and publishes nothing.
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Session {
    /// Greets the server. The wire is to be run by a task.
    ///
    /// # Errors
    /// `Unreachable` if the connection ends before; `NotSupported` if nobody speaks SFTP of version 3 there.
    pub(super) async fn greet<R, W>(mut reader: R, mut writer: W) -> Result<(Self, Wire<R, W>)>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut first = BytesMut::new();
        put_hello(&mut first);
        writer.write_all_buf(&mut first).await.map_err(|error| cut().caused_by(error))?;
        let mut incoming = BytesMut::new();
        let packet = loop {
            if let Some(packet) =
                take_packet(&mut incoming).map_err(|error| of_a_shell(&incoming, error))?
            {
                break packet;
            }
            let read = reader.read_buf(&mut incoming).await;
            if read.map_err(|error| cut().caused_by(error))? == 0 {
                return Err(cut());
            }
        };
        let hello = read_hello(packet)?;
        if hello.version != packet::VERSION {
            let why = format!("the server speaks version {} of SFTP, not 3", hello.version);
            return Err(Error::new(Kind::NotSupported, "open source").because(why));
        }
        Ok(Self::over(reader, writer, incoming, hello))
    }

    fn over<R, W>(reader: R, writer: W, incoming: BytesMut, hello: Hello) -> (Self, Wire<R, W>)
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (asks, wanted) = mpsc::channel(ASKS);
        let (closes, unused) = mpsc::channel(HANDLES);
        let wire = Wire::new((reader, writer), incoming, wanted, unused);
        let longest_read = AtomicU64::new(SAFE_READ);
        (Self { asks, closes, hello, longest_read, in_flight: Arc::default() }, wire)
    }

    /// Asks what the server takes, if it tells.
    ///
    /// # Errors
    /// `Unreachable` if the connection ends before.
    pub(super) async fn learn_limits(&self) -> Result<()> {
        if !self.hello.tells_limits {
            return Ok(());
        }
        if let Answer::Extended(answer) = self.ask(Request::Limits).await?
            && let Some(read_bytes) = read_limits(answer)
        {
            // Relaxed: a hint.
            self.longest_read.store(read_bytes.min(LONGEST_READ), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the connection has ended: whoever needs one takes another.
    pub(super) fn is_over(&self) -> bool {
        self.asks.is_closed()
    }

    /// Whether the server tells the size of its file system.
    pub(super) fn tells_file_system(&self) -> bool {
        self.hello.tells_file_system
    }

    /// Bytes of one READ.
    pub(super) fn longest_read(&self) -> u64 {
        self.longest_read.load(Ordering::Relaxed)
    }

    /// The server answered a READ with fewer bytes than it was asked for, though there are more.
    pub(super) fn reads_no_more_than(&self, bytes: u64) {
        self.longest_read.fetch_min(bytes.max(4096), Ordering::Relaxed);
    }

    /// Accounts for `bytes` that will be asked for.
    pub(super) fn take_share(&self, bytes: u64) -> Share {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        Share { of: Arc::clone(&self.in_flight), bytes }
    }

    /// The same, unless that makes too many.
    pub(super) fn try_take_share(&self, bytes: u64) -> Option<Share> {
        let share = self.take_share(bytes);
        (self.in_flight.load(Ordering::Relaxed) <= IN_FLIGHT).then_some(share)
    }

    /// Sends a request; its answer comes later. Requests that one caller sends are answered as if each waited for the one before.
    ///
    /// # Errors
    /// `Unreachable` if the connection has ended.
    pub(super) async fn begin(&self, request: Request) -> Result<Pending> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { request, waiter: Waiter::Answer(reply) };
        self.asks.send(ask).await.map_err(|_closed| cut())?;
        Ok(Pending(answer))
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Session::begin`] and [`Pending::answer`].
    pub(super) async fn ask(&self, request: Request) -> Result<Answer> {
        self.begin(request).await?.answer().await
    }

    /// Opens a file or directory, once there is a place for its handle.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Io`: what the server says; as [`Session::begin`].
    ///
    /// # Cancel safety
    /// What is opened although nobody waits for it any more is closed again.
    pub(super) async fn open(&self, op: &'static str, request: Request) -> Result<Handle> {
        let place = self.closes.clone().reserve_owned().await.map_err(|_closed| cut())?;
        let (reply, opened) = oneshot::channel();
        let ask = Ask { request, waiter: Waiter::Handle { reply, place } };
        self.asks.send(ask).await.map_err(|_closed| cut())?;
        match opened.await.unwrap_or_else(|_gone| Err(cut()))? {
            Opened::Handle(handle) => Ok(handle),
            Opened::Refused(answer) => Err(answer.unexpected(op)),
        }
    }
}

/// Where a shell says something first, that is no packet.
fn of_a_shell(incoming: &[u8], error: Error) -> Error {
    let is_text = incoming.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    if !is_text {
        return error;
    }
    Error::new(Kind::NotSupported, "open source")
        .because("the server sends text where SFTP is expected")
        .hint("the start files of its shell print something: let them be silent where there is no terminal")
}
