//! An HTTP server in the test: files that are computed, an index as nginx writes it, and for each path a script of what goes wrong.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Gives `len` bytes of a file from an offset on.
type Content = Arc<dyn Fn(u64, usize) -> Vec<u8> + Send + Sync>;

/// How a path is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// As it should be.
    #[default]
    Right,
    /// Takes the request and says nothing, until [`Origin::release`].
    Silent,
    /// GET is [`Behaviour::Silent`], HEAD is right.
    SilentBodies,
    /// No byte of the file from this offset on, until [`Origin::release`].
    StallAt(u64),
    /// The connection is cut after so many bytes of the body, so often.
    CutAfter { bytes: u64, times: usize },
    /// 206 with bytes and Content-Range of another range.
    WrongRange,
    /// 200 with the whole file, whatever range is asked for.
    WithoutRanges,
    /// This status for GET, so often. 429 asks for a second of patience.
    Status { code: u16, times: usize },
    /// 404 for everything, though it is listed.
    Gone,
}

/// One file.
#[derive(Clone)]
pub(crate) struct Page {
    size: u64,
    content: Content,
    etag: Option<String>,
    /// One more line of the head.
    header: Option<String>,
    behaviour: Behaviour,
    latency: Duration,
}

impl Page {
    /// `size` bytes that `content` computes.
    pub(crate) fn new(
        size: u64,
        content: impl Fn(u64, usize) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let content = Arc::new(content);
        let etag = Some("\"1\"".to_owned());
        let (behaviour, latency) = (Behaviour::Right, Duration::ZERO);
        Self { size, content, etag, header: None, behaviour, latency }
    }

    /// Exactly these bytes.
    pub(crate) fn of(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Vec<u8> = bytes.into();
        Self::new(bytes.len() as u64, move |offset, len| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            bytes[start..(start + len).min(bytes.len())].to_vec()
        })
    }

    #[must_use]
    pub(crate) fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(format!("\"{etag}\""));
        self
    }

    /// Says also this of the file.
    #[must_use]
    pub(crate) fn header(mut self, header: &str) -> Self {
        self.header = Some(header.to_owned());
        self
    }

    #[must_use]
    pub(crate) fn behaves(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
        self
    }

    /// Each answer begins that much later.
    #[must_use]
    pub(crate) fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }
}

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Decoded.
    pub(crate) path: String,
    pub(crate) range: Option<Range<u64>>,
    if_match: Option<String>,
}

impl Asked {
    /// Whether `other` asks for the same.
    fn is_again(&self, other: &Self) -> bool {
        self.method == other.method && self.path == other.path
    }
}

#[derive(Default)]
struct State {
    pages: BTreeMap<String, Page>,
    /// Index pages that are answered as they are.
    indexes: BTreeMap<String, String>,
    /// A directory that holds itself.
    bottomless: Option<String>,
    asked: Vec<Asked>,
    /// Answers everything that is asked for the first time with 503.
    is_busy_at_first: bool,
    body_bytes: u64,
    running_heads: usize,
    most_heads_at_once: usize,
    released: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    over: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits for the release, or the end of the server.
    fn wait_for_release(&self) {
        let mut state = self.state();
        while !state.released && !self.over.load(Ordering::SeqCst) {
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// The server; it ends with its owner.
pub(crate) struct Origin {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Serves nothing yet.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if served.over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&served);
                // A client that hangs up ends its thread.
                thread::spawn(move || connection.and_then(|stream| serve(&shared, &stream)));
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    /// Puts a file at `path` (`/a/b`, not encoded), or replaces it.
    pub(crate) fn put(&self, path: &str, page: Page) {
        self.shared.state().pages.insert(path.to_owned(), page);
    }

    /// Takes a file away.
    pub(crate) fn remove(&self, path: &str) -> Page {
        self.shared.state().pages.remove(path).unwrap()
    }

    /// Changes how `path` is answered from now on.
    pub(crate) fn behave(&self, path: &str, behaviour: Behaviour) {
        self.shared.state().pages.get_mut(path).unwrap().behaviour = behaviour;
    }

    /// Answers the directory `path` (with a slash at its end) with exactly these links.
    pub(crate) fn put_index<T: AsRef<str>>(&self, path: &str, hrefs: impl IntoIterator<Item = T>) {
        let page = index_page(path, hrefs);
        self.shared.state().indexes.insert(path.to_owned(), page);
    }

    /// From now on 503 is the first answer to every method at every path.
    pub(crate) fn be_busy_at_first(&self) {
        self.shared.state().is_busy_at_first = true;
    }

    /// From now on `directory` holds what the root holds, itself included, without an end.
    pub(crate) fn put_bottomless(&self, directory: &str) {
        self.shared.state().bottomless = Some(directory.to_owned());
    }

    /// Lets everything that is silent or stalled go on.
    pub(crate) fn release(&self) {
        self.shared.state().released = true;
        self.shared.changed.notify_all();
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }

    pub(crate) fn count(&self, method: &str, path: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|asked| asked.method == method && asked.path == path).count()
    }

    /// HEAD requests for anything.
    pub(crate) fn heads(&self) -> usize {
        self.asked().iter().filter(|asked| asked.method == "HEAD").count()
    }

    /// Bytes of files that were sent.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.shared.state().body_bytes
    }

    pub(crate) fn most_heads_at_once(&self) -> usize {
        self.shared.state().most_heads_at_once
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        // Accepting ends with one more connection.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A page as nginx's autoindex writes it.
fn index_page<T: AsRef<str>>(path: &str, hrefs: impl IntoIterator<Item = T>) -> String {
    let mut page = format!(
        "<html>\r\n<head><title>Index of {path}</title></head>\r\n<body>\r\n<h1>Index of {path}</h1><hr><pre><a href=\"../\">../</a>\r\n"
    );
    for href in hrefs {
        let href = href.as_ref();
        let line = format!("<a href=\"{href}\">{href}</a>    12-Nov-2024 10:00    12\r\n");
        page.push_str(&line);
    }
    page + "</pre><hr></body>\r\n</html>\r\n"
}

/// A name as nginx writes it into a link.
pub(crate) fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").unwrap();
        }
    }
    text
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some(first) = rest.first() {
        let code = rest.get(1..3).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[3..];
            }
            None => {
                bytes.push(*first);
                rest = &rest[1..];
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn receive(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let mut words = line.split_ascii_whitespace();
    let method = words.next()?.to_owned();
    let path = decoded(words.next()?.split('?').next()?);
    let mut asked = Asked { method, path, range: None, if_match: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|len| *len > 0)?;
        let header = header.trim_end();
        if header.is_empty() {
            return Some(asked);
        }
        let (name, value) = header.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = range_of(value.trim()),
            "if-match" => asked.if_match = Some(value.trim().to_owned()),
            _ => {}
        }
    }
}

fn range_of(value: &str) -> Option<Range<u64>> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.saturating_add(1))
}

fn serve(shared: &Shared, stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(mut asked) = receive(&mut reader) {
        let is_head = asked.method == "HEAD";
        let bottomless = shared.state().bottomless.clone();
        if let Some(directory) = &bottomless
            && format!("{}/", asked.path).ends_with(directory.as_str())
        {
            redirect(stream, &asked.path)?;
            continue;
        }
        while let Some(directory) = &bottomless
            && let Some(rest) = asked.path.strip_prefix(directory.as_str())
        {
            asked.path = format!("/{rest}");
        }
        let page = {
            let mut state = shared.state();
            let is_new = !state.asked.iter().any(|earlier| earlier.is_again(&asked));
            state.asked.push(asked.clone());
            if is_new && state.is_busy_at_first {
                drop(state);
                be_busy(stream)?;
                continue;
            }
            if is_head {
                state.running_heads += 1;
                state.most_heads_at_once = state.most_heads_at_once.max(state.running_heads);
            }
            state.pages.get(&asked.path).cloned()
        };
        let goes_on = match page {
            Some(page) => Answer { shared, stream, asked: &asked, page: &page }.give(),
            None => {
                shared.state().running_heads -= usize::from(is_head);
                give_index(shared, stream, &asked).map(|()| true)
            }
        };
        if !goes_on? {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
    Ok(())
}

fn be_busy(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
}

/// As nginx does for a directory without its slash.
fn redirect(mut stream: &TcpStream, path: &str) -> std::io::Result<()> {
    let place = encoded(path);
    let answer = format!(
        "HTTP/1.1 301 Moved Permanently\r\nLocation: {place}/\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(answer.as_bytes())
}

fn give_index(shared: &Shared, mut stream: &TcpStream, asked: &Asked) -> std::io::Result<()> {
    let directory = format!("{}/", asked.path);
    let page = {
        let state = shared.state();
        let places = || state.pages.keys().chain(state.indexes.keys());
        if places().any(|path| path.starts_with(&directory)) {
            return redirect(stream, &asked.path);
        }
        let below: Vec<&String> =
            state.pages.keys().filter(|path| path.starts_with(&asked.path)).collect();
        match state.indexes.get(&asked.path) {
            Some(page) => Some(page.clone()),
            None if asked.path.ends_with('/') && (asked.path == "/" || !below.is_empty()) => {
                let mut links: Vec<String> = below
                    .iter()
                    .map(|path| &path[asked.path.len()..])
                    .map(|rest| match rest.split_once('/') {
                        Some((directory, _)) => format!("{}/", encoded(directory)),
                        None => encoded(rest),
                    })
                    .collect();
                links.extend(state.bottomless.iter().map(|place| place[1..].to_owned()));
                links.dedup();
                Some(index_page(&asked.path, links))
            }
            None => None,
        }
    };
    let Some(page) = page else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
        page.len()
    );
    stream.write_all(head.as_bytes())?;
    if asked.method == "HEAD" { Ok(()) } else { stream.write_all(page.as_bytes()) }
}

/// One answer about a file.
struct Answer<'a> {
    shared: &'a Shared,
    stream: &'a TcpStream,
    asked: &'a Asked,
    page: &'a Page,
}

impl Answer<'_> {
    /// Whether the connection goes on.
    fn give(&self) -> std::io::Result<bool> {
        thread::sleep(self.page.latency);
        let is_head = self.asked.method == "HEAD";
        match &self.page.behaviour {
            Behaviour::Silent => self.shared.wait_for_release(),
            Behaviour::SilentBodies if !is_head => self.shared.wait_for_release(),
            _ => {}
        }
        // It runs until its answer begins: who has all of that may ask the next before we come to count.
        self.shared.state().running_heads -= usize::from(is_head);
        match &self.page.behaviour {
            Behaviour::Gone => return self.status("404 Not Found"),
            Behaviour::Status { code, times } if !is_head => {
                let (code, times) = (*code, *times);
                if times > 0 {
                    self.next_time(Behaviour::Status { code, times: times - 1 });
                    let wait = if code == 429 { "\r\nRetry-After: 1" } else { "" };
                    return self.status(&format!("{code} Scripted{wait}"));
                }
            }
            _ => {}
        }
        if let (Some(wanted), Some(etag)) = (&self.asked.if_match, &self.page.etag)
            && wanted != etag
        {
            return self.status("412 Precondition Failed");
        }
        let whole = 0..self.page.size;
        let ranged = match self.page.behaviour {
            Behaviour::WithoutRanges => None,
            _ => self.asked.range.clone().filter(|_| !is_head),
        };
        let mut range = ranged.clone().unwrap_or(whole);
        if ranged.is_some() && range.start >= self.page.size {
            let total = self.page.size;
            return self
                .status(&format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{total}"));
        }
        range.end = range.end.min(self.page.size);
        if self.page.behaviour == Behaviour::WrongRange && !is_head {
            range = range.start + 8..(range.end + 8).min(self.page.size);
        }
        self.head(ranged.is_some(), &range)?;
        if is_head { Ok(true) } else { self.body(range) }
    }

    fn next_time(&self, behaviour: Behaviour) {
        self.shared.state().pages.get_mut(&self.asked.path).unwrap().behaviour = behaviour;
    }

    fn status(&self, line: &str) -> std::io::Result<bool> {
        let mut stream = self.stream;
        stream.write_all(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
        Ok(true)
    }

    fn head(&self, is_part: bool, range: &Range<u64>) -> std::io::Result<()> {
        let mut head = String::from(if is_part {
            "HTTP/1.1 206 Partial Content\r\n"
        } else {
            "HTTP/1.1 200 OK\r\n"
        });
        if is_part {
            let (first, last) = (range.start, range.end - 1);
            write!(head, "Content-Range: bytes {first}-{last}/{}\r\n", self.page.size).unwrap();
        }
        if self.page.behaviour != Behaviour::WithoutRanges {
            head += "Accept-Ranges: bytes\r\n";
        }
        if let Some(etag) = &self.page.etag {
            write!(head, "ETag: {etag}\r\n").unwrap();
        }
        if let Some(header) = &self.page.header {
            write!(head, "{header}\r\n").unwrap();
        }
        write!(
            head,
            "Content-Type: application/octet-stream\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Date: Sun, 06 Nov 2022 08:49:37 GMT\r\nContent-Length: {}\r\n\r\n",
            range.end - range.start
        )
        .unwrap();
        let mut stream = self.stream;
        stream.write_all(head.as_bytes())
    }

    fn body(&self, range: Range<u64>) -> std::io::Result<bool> {
        const PIECE: u64 = 64 * 1024;
        let (mut at, mut stream) = (range.start, self.stream);
        let stop = match self.page.behaviour {
            Behaviour::CutAfter { bytes, times } if times > 0 => {
                self.next_time(Behaviour::CutAfter { bytes, times: times - 1 });
                (range.start + bytes).min(range.end)
            }
            Behaviour::StallAt(offset) => offset.clamp(range.start, range.end),
            _ => range.end,
        };
        while at < range.end {
            if at == stop {
                if !matches!(self.page.behaviour, Behaviour::StallAt(_)) {
                    return Ok(false);
                }
                self.shared.wait_for_release();
            }
            let end = if at < stop { stop } else { range.end };
            let len = (end - at).min(PIECE);
            let bytes = (self.page.content)(at, usize::try_from(len).unwrap());
            stream.write_all(&bytes)?;
            self.shared.state().body_bytes += len;
            at += len;
        }
        Ok(true)
    }
}
