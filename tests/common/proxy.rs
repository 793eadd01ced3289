//! A wire between a source and a server, which can be cut, and which counts who holds its ends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const NEVER: u64 = u64::MAX;

struct Shared {
    server: u16,
    is_over: AtomicBool,
    /// Bytes of answers on one connection after which it is cut, once.
    cut_after: AtomicU64,
    /// Answers to ranges say that they are a byte shorter than they are.
    shortens: AtomicBool,
    open: AtomicUsize,
    cuts: AtomicUsize,
}

/// The wire; it ends with its owner.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A wire to the server at `port` of 127.0.0.1.
    pub(crate) fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server,
            is_over: AtomicBool::new(false),
            cut_after: AtomicU64::new(NEVER),
            shortens: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            cuts: AtomicUsize::new(0),
        });
        let served = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if served.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, client) = (Arc::clone(&served), client.unwrap());
                shared.open.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    // A server that refuses, or a client that leaves, ends the connection.
                    drop(carry(&shared, &client));
                    drop(client.shutdown(Shutdown::Both));
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    /// Cuts the next connection that has carried `bytes` of answers.
    pub(crate) fn cut_once_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// How often it was cut.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// From now on Content-Length of parts says a byte less than there is.
    pub(crate) fn shorten(&self) {
        self.shared.shortens.store(true, Ordering::SeqCst);
    }

    /// Connections that somebody holds.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Waits until at most `count` connections are held.
    pub(crate) async fn until_open_at_most(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.open() > count {
            assert!(Instant::now() < deadline, "{} connections left behind", self.open());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn carry(shared: &Arc<Shared>, client: &TcpStream) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", shared.server))?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || {
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Both));
    });
    let down = answers(shared, client, &server);
    drop(server.shutdown(Shutdown::Both));
    drop(client.shutdown(Shutdown::Both));
    drop(up.join());
    down
}

fn answers(shared: &Shared, mut client: &TcpStream, mut server: &TcpStream) -> std::io::Result<()> {
    let (mut piece, mut carried) = (vec![0; 64 << 10], 0u64);
    loop {
        let len = server.read(&mut piece)?;
        if len == 0 {
            return Ok(());
        }
        let limit = shared.cut_after.load(Ordering::SeqCst);
        if carried + len as u64 > limit {
            let left = usize::try_from(limit.saturating_sub(carried)).unwrap();
            client.write_all(&piece[..left])?;
            shared.cut_after.store(NEVER, Ordering::SeqCst);
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        carried += len as u64;
        let is_part = piece.starts_with(b"HTTP/1.") && piece[8..].starts_with(b" 206");
        if shared.shortens.load(Ordering::SeqCst) && is_part {
            client.write_all(&shortened(&piece[..len]))?;
        } else {
            client.write_all(&piece[..len])?;
        }
    }
}

/// The beginning of an answer with a Content-Length that is one too small.
fn shortened(piece: &[u8]) -> Vec<u8> {
    let head_end = piece.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(piece[..head_end].to_vec()).unwrap();
    let lines = head.split("\r\n").map(|line| match line.split_once(": ") {
        Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
            format!("{name}: {}", value.parse::<u64>().unwrap() - 1)
        }
        _ => line.to_owned(),
    });
    let head = lines.collect::<Vec<_>>().join("\r\n");
    [head.as_bytes(), &piece[head_end..]].concat()
}
