//! A server that says exactly what a test wants, lies included.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Its number on this server, from 0.
    pub(crate) number: usize,
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// A header's value; the name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

type Script = dyn Fn(&Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// The server; each connection carries one request.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    is_over: Arc<AtomicBool>,
    seen: mpsc::Receiver<Request>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Serves every request by `script`, which writes the whole answer.
    pub(crate) fn start(
        script: impl Fn(&Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_over = Arc::new(AtomicBool::new(false));
        let (sender, seen) = mpsc::channel();
        let (ends, script): (_, Arc<Script>) = (Arc::clone(&is_over), Arc::new(script));
        let thread = thread::spawn(move || {
            for (number, connection) in listener.incoming().enumerate() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let (script, sender) = (Arc::clone(&script), sender.clone());
                let mut connection = connection.unwrap();
                thread::spawn(move || {
                    if let Some(request) = receive(&connection, number) {
                        drop(sender.send(request.clone()));
                        // A client that hangs up is part of many scripts.
                        drop(script(&request, &mut connection));
                    }
                });
            }
        });
        Self { port, is_over, seen, thread: Some(thread) }
    }

    /// Serves fixed answers: `answer` gives head and body as text.
    pub(crate) fn fixed(answer: impl Fn(&Request) -> String + Send + Sync + 'static) -> Self {
        Self::start(move |request, connection| {
            let answer = answer(request);
            let text = if request.is_head() {
                answer
                    .split_once("\r\n\r\n")
                    .map_or(answer.clone(), |(head, _)| format!("{head}\r\n\r\n"))
            } else {
                answer
            };
            connection.write_all(text.as_bytes())
        })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The requests since it was asked last.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.try_iter().collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// An answer whose Content-Length is right.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn receive(connection: &TcpStream, number: usize) -> Option<Request> {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Some(Request { number, method, target, headers })
}
