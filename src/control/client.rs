//! The command line's end of the control socket: blocking calls with deadlines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::control::orders::{
    Done, EventsRequest, HistoryReport, LimitRequest, PathOrder, PathsDone, PathsRequest,
    SwitchOrder,
};
use crate::control::status::{StatusReport, StuckReport};
use crate::control::verify::{VerifyLine, VerifyOrder};
use crate::control::{ErrorBody, UnmountRequest};
use crate::error::{Error, Kind, Result};

/// Time for an answer from the daemon's memory.
const ANSWER: Duration = Duration::from_secs(12);
/// Time for an order that goes through many files.
const CARRY_OUT: Duration = Duration::from_secs(600);
/// Longest silence while something long goes on.
const WORD: Duration = Duration::from_secs(60);
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// One daemon's control socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Talks to `socket`; connects only when asked something.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The state of the copy.
    ///
    /// # Errors
    /// `Unreachable` if nobody serves the socket, `Timeout` if the daemon does not answer within 12 s.
    pub fn status(&self) -> Result<StatusReport> {
        self.ask(Method::GET, "/v1/status", &(), ANSWER)
    }

    /// Operations that have not ended.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn stuck(&self) -> Result<StuckReport> {
        self.ask(Method::GET, "/v1/stuck", &(), ANSWER)
    }

    /// Asks the daemon to unmount; returns when the mount is gone.
    ///
    /// # Errors
    /// `Busy` while it is in use; `Timeout` after `deadline`; otherwise as [`Client::status`].
    pub fn unmount(&self, request: UnmountRequest, deadline: Duration) -> Result<()> {
        let _done: serde_json::Value = self.ask(Method::POST, "/v1/unmount", &request, deadline)?;
        Ok(())
    }

    /// Says what hydration shall do.
    ///
    /// # Errors
    /// As [`Client::status`]; as a durable write.
    pub fn switch(&self, order: SwitchOrder) -> Result<Done> {
        self.ask(Method::POST, &format!("/v1/{}", order.as_str()), &(), ANSWER)
    }

    /// Changes the rate of hydration.
    ///
    /// # Errors
    /// As [`Client::status`]; `Invalid`.
    pub fn limit(&self, request: LimitRequest) -> Result<Done> {
        self.ask(Method::POST, "/v1/limit", &request, ANSWER)
    }

    /// Has an order carried out for each path.
    ///
    /// # Errors
    /// As [`Client::status`]; each path has its own in the answer.
    pub fn paths(&self, order: PathOrder, request: &PathsRequest) -> Result<PathsDone> {
        self.ask(Method::POST, &format!("/v1/{}", order.as_str()), request, CARRY_OUT)
    }

    /// The lives that the copy had.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn history(&self) -> Result<HistoryReport> {
        self.ask(Method::GET, "/v1/history", &(), ANSWER)
    }

    /// Shows each line of the log, and goes on with what comes if that is asked, until the daemon ends.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn events(&self, request: EventsRequest, mut show: impl FnMut(&[u8])) -> Result<()> {
        let path = format!("/v1/events?{}", request.query());
        self.stream(self.request(Method::GET, &path, &())?, |line| {
            show(line);
            Ok(())
        })
    }

    /// Has the copy proven again; `show` gets each line, the last one included.
    ///
    /// # Errors
    /// As [`Client::status`]; `Timeout` if the daemon says nothing for a minute; what keeps it from being done at all.
    pub fn verify(&self, order: &VerifyOrder, mut show: impl FnMut(VerifyLine)) -> Result<()> {
        let mut has_ended = false;
        self.stream(self.request(Method::POST, "/v1/verify", order)?, |line| {
            let line: VerifyLine = serde_json::from_slice(line).map_err(|error| {
                Error::new(Kind::Corrupt, "read the daemon's answer")
                    .at(&self.socket)
                    .caused_by(error)
            })?;
            line.error()?;
            has_ended |= line.is_last();
            show(line);
            Ok(())
        })?;
        match has_ended {
            true => Ok(()),
            false => Err(Error::new(Kind::Unreachable, "ask daemon")
                .at(&self.socket)
                .because("it ended before the copy was proven")),
        }
    }

    /// Reads an answer line by line, for as long as it goes on.
    fn stream(
        &self,
        request: Request<Full<Bytes>>,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let runtime = runtime().map_err(|error| self.failed(error))?;
        let late = |_elapsed| {
            Error::new(Kind::Timeout, "ask daemon")
                .at(&self.socket)
                .because(format!("no word for {} s", WORD.as_secs()))
        };
        runtime.block_on(async {
            let answer = timeout(ANSWER, begin(&self.socket, request)).await.map_err(late)??;
            let (response, _tasks) = answer;
            if !response.status().is_success() {
                return Err(refusal(&self.socket, response).await);
            }
            let mut body = response.into_body();
            let mut text = Vec::new();
            while let Some(frame) = timeout(WORD, body.frame()).await.map_err(late)? {
                let frame = frame.map_err(|error| {
                    Error::new(Kind::Unreachable, "ask daemon").at(&self.socket).caused_by(error)
                })?;
                text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).take(end).collect();
                    if !line.is_empty() {
                        take(&line)?; // else a sign of life
                    }
                }
            }
            Ok(())
        })
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("ask daemon", error).at(&self.socket)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Request<Full<Bytes>>> {
        let body = match method {
            Method::GET => Bytes::new(),
            _ => Bytes::from(serde_json::to_vec(body).map_err(|error| self.failed(error.into()))?),
        };
        Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "lazycopy")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.failed(std::io::Error::other(error)))
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<T> {
        let request = self.request(method, path, body)?;
        let runtime = runtime().map_err(|error| self.failed(error))?;
        let answered =
            runtime.block_on(async { timeout(deadline, exchange(&self.socket, request)).await });
        answered.unwrap_or_else(|_elapsed| {
            Err(Error::new(Kind::Timeout, "ask daemon")
                .at(&self.socket)
                .because(format!("no answer within {} s", deadline.as_secs())))
        })
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Sends a request; the connection lives as long as the tasks that come with the answer.
async fn begin(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> Result<(http::Response<Incoming>, JoinSet<Result<(), hyper::Error>>)> {
    let failed = |error| Error::io("ask daemon", error).at(socket);
    let broken = |error: hyper::Error| {
        Error::new(Kind::Unreachable, "ask daemon").at(socket).caused_by(error)
    };
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    Ok((response, tasks))
}

async fn exchange<T: DeserializeOwned>(socket: &Path, request: Request<Full<Bytes>>) -> Result<T> {
    // Dropped, and with them the connection, when the answer is there.
    let (response, _tasks) = begin(socket, request).await?;
    if !response.status().is_success() {
        return Err(refusal(socket, response).await);
    }
    let body = read_body(socket, response).await?;
    serde_json::from_slice(&body).map_err(|error| {
        Error::new(Kind::Corrupt, "read the daemon's answer").at(socket).caused_by(error)
    })
}

async fn read_body(socket: &Path, response: http::Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let body = body
        .map_err(|error| Error::new(Kind::Unreachable, "ask daemon").at(socket).caused_by(error))?;
    Ok(body.to_bytes())
}

/// The error that a daemon answered.
async fn refusal(socket: &Path, response: http::Response<Incoming>) -> Error {
    let status = response.status();
    let body = match read_body(socket, response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let refusal = serde_json::from_slice::<ErrorBody>(&body).unwrap_or_else(|_| ErrorBody {
        kind: Kind::Io.as_str().to_owned(),
        message: format!("it answered {status}"),
    });
    Error::new(refusal.parsed_kind(), "ask daemon").because(refusal.message)
}
