//! The command line's end of the control socket: blocking calls with deadlines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::control::status::{StatusReport, StuckReport};
use crate::control::{ErrorBody, UnmountRequest};
use crate::error::{Error, Kind, Result};

/// Time for an answer from the daemon's memory.
const ANSWER: Duration = Duration::from_secs(12);
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

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<T> {
        let failed = |error| Error::io("ask daemon", error).at(&self.socket);
        let body = match method {
            Method::GET => Bytes::new(),
            _ => Bytes::from(serde_json::to_vec(body).map_err(|error| failed(error.into()))?),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "lazycopy")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let answered =
            runtime.block_on(async { timeout(deadline, exchange(&self.socket, request)).await });
        answered.unwrap_or_else(|_elapsed| {
            Err(Error::new(Kind::Timeout, "ask daemon")
                .at(&self.socket)
                .because(format!("no answer within {} s", deadline.as_secs())))
        })
    }
}

async fn exchange<T: DeserializeOwned>(socket: &Path, request: Request<Full<Bytes>>) -> Result<T> {
    let failed = |error| Error::io("ask daemon", error).at(socket);
    let broken = |error: hyper::Error| {
        Error::new(Kind::Unreachable, "ask daemon").at(socket).caused_by(error)
    };
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Dropped, and with it the connection, when the answer is there.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| Error::new(Kind::Unreachable, "ask daemon").at(socket).caused_by(error))?
        .to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| {
            Error::new(Kind::Corrupt, "read the daemon's answer").at(socket).caused_by(error)
        });
    }
    let refusal = serde_json::from_slice::<ErrorBody>(&body).unwrap_or_else(|_| ErrorBody {
        kind: Kind::Io.as_str().to_owned(),
        message: format!("it answered {status}"),
    });
    Err(Error::new(refusal.parsed_kind(), "ask daemon").because(refusal.message))
}
