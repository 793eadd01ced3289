//! The daemon's end of the control socket. Bounded in every direction: connections, sizes, times.

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::control::orders::{EventsRequest, PathOrder, ROUTES, SwitchOrder};
use crate::control::verify::{VerifyLine, VerifyOrder};
use crate::control::{BODY_MAX, Controlled, ErrorBody, UnmountRequest};
use crate::error::{Error, Kind, Result};

/// Connections served at once; more wait in the socket's backlog.
const CONNECTIONS: usize = 16;
/// Time for a request to arrive, headers and body each.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Time to answer from memory.
const ANSWER: Duration = Duration::from_secs(10);
/// Bytes of request line and headers; hyper's least.
const HEAD_MAX: usize = 8192;

/// Longest time without a word while something long goes on.
const SILENCE: Duration = Duration::from_secs(10);
/// Lines of one answer that wait.
const LINES: usize = 64;

type Reply = Response<BoxBody<Bytes, Infallible>>;

/// A running server; dropping it stops it at once, [`ControlServer::shutdown`] lets answers out first.
#[derive(Debug)]
pub struct ControlServer {
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl ControlServer {
    /// Serves `daemon` on `listener`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// If the socket cannot be handed to the runtime.
    pub fn start(listener: StdListener, daemon: Arc<dyn Controlled>) -> Result<Self> {
        let failed = |error| Error::io("serve control socket", error);
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, daemon, stopped));
        Ok(Self { stop, accepting })
    }

    /// Takes no more connections, lets running answers out for at most `patience`, then ends.
    pub async fn shutdown(mut self, patience: Duration) {
        self.stop.send_replace(true);
        if timeout(patience, &mut self.accepting).await.is_err() {
            tracing::warn!("a control connection was cut");
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Aborting drops the connections with their set.
        self.accepting.abort();
    }
}

async fn accept(
    listener: UnixListener,
    daemon: Arc<dyn Controlled>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
            Some(ended) = connections.join_next() => {
                log_panic(ended);
                continue;
            }
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((stream, _)) if is_allowed(&stream) => {
                connections.spawn(serve(stream, Arc::clone(&daemon), stopped.clone()));
            }
            Ok(_) => tracing::warn!("control connection of another user refused"),
            Err(error) => {
                // Out of descriptors, most likely: not a reason to spin.
                tracing::warn!(err = %error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(err = %error, "control connection");
    }
}

/// Only the daemon's own user and root; the directory's mode says the same, and is not ours alone to keep.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn serve(
    stream: UnixStream,
    daemon: Arc<dyn Controlled>,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let daemon = Arc::clone(&daemon);
        async move { Ok::<_, Infallible>(answer(request, daemon).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = async { drop(stopped.wait_for(|stop| *stop).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(err = %error, "control connection");
    }
}

async fn answer(request: Request<Incoming>, daemon: Arc<dyn Controlled>) -> Reply {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let answered = match (&method, path.as_str()) {
        (&Method::GET, "/v1/status") => from_memory(daemon.status()).await,
        (&Method::GET, "/v1/stuck") => from_memory(daemon.stuck()).await,
        (&Method::GET, "/v1/events") => Ok(events(&request, daemon)),
        (&Method::GET, "/v1/history") => Ok(reply_of(daemon.history().await)),
        (&Method::POST, "/v1/unmount") => unmount(request, daemon).await,
        (&Method::POST, "/v1/verify") => verify(request, daemon).await,
        (&Method::POST, "/v1/limit") => limit(request, daemon).await,
        (&Method::POST, path) if is_route(path) => carry_out(path, request, daemon).await,
        (_, path) if is_route(path) => Err(refused(
            StatusCode::METHOD_NOT_ALLOWED,
            Kind::Invalid,
            format!("{method} is not possible here"),
        )),
        (_, path) => Err(unknown(path)),
    };
    answered.unwrap_or_else(|refusal| refusal)
}

fn is_route(path: &str) -> bool {
    ROUTES.iter().any(|(_, route)| *route == path)
}

fn unknown(path: &str) -> Reply {
    refused(StatusCode::NOT_FOUND, Kind::NotFound, format!("no {path} here"))
}

/// The orders that have their names in the path.
async fn carry_out(
    path: &str,
    request: Request<Incoming>,
    daemon: Arc<dyn Controlled>,
) -> Result<Reply, Reply> {
    let name = path.trim_start_matches("/v1/");
    if let Some(order) = SwitchOrder::ALL.into_iter().find(|order| order.as_str() == name) {
        return Ok(reply_of(daemon.switch(order).await));
    }
    let Some(order) = PathOrder::ALL.into_iter().find(|order| order.as_str() == name) else {
        return Err(refused(
            StatusCode::METHOD_NOT_ALLOWED,
            Kind::Invalid,
            "POST is not possible here".to_owned(),
        ));
    };
    let paths = read_order(request).await?;
    // A task of its own: a client's death must not leave half of it.
    let done = tokio::spawn(async move { daemon.paths(order, paths).await }).await;
    Ok(reply_of(done.map_err(|died| Error::new(Kind::Io, "carry out order").caused_by(died))))
}

async fn limit(request: Request<Incoming>, daemon: Arc<dyn Controlled>) -> Result<Reply, Reply> {
    let order = read_order(request).await?;
    Ok(reply_of(daemon.limit(order).await))
}

fn reply_of<T: Serialize>(done: Result<T>) -> Reply {
    match done {
        Ok(done) => json(StatusCode::OK, &done),
        Err(error) => json(status_of(&error), &ErrorBody::of(&error)),
    }
}

fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        Kind::Busy => StatusCode::CONFLICT,
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Denied | Kind::Archived => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Answers with the lines of the log, and what comes.
fn events(request: &Request<Incoming>, daemon: Arc<dyn Controlled>) -> Reply {
    let query = request.uri().query().unwrap_or_default();
    let wanted = match EventsRequest::parse(query) {
        Ok(wanted) => wanted,
        Err(error) => return json(status_of(&error), &ErrorBody::of(&error)),
    };
    let (lines, received) = mpsc::channel(LINES);
    tokio::spawn(async move {
        if let Err(error) = daemon.events(wanted, lines).await {
            tracing::warn!(%error, "events not told");
        }
    });
    ndjson(received)
}

async fn from_memory<T: Serialize>(report: impl Future<Output = T>) -> Result<Reply, Reply> {
    match timeout(ANSWER, report).await {
        Ok(report) => Ok(json(StatusCode::OK, &report)),
        Err(_elapsed) => Err(refused(
            StatusCode::SERVICE_UNAVAILABLE,
            Kind::Timeout,
            "the daemon does not answer".to_owned(),
        )),
    }
}

async fn unmount(request: Request<Incoming>, daemon: Arc<dyn Controlled>) -> Result<Reply, Reply> {
    let order: UnmountRequest = read_order(request).await?;
    // A task of its own: the client's death must not leave half an unmount.
    match tokio::spawn(async move { daemon.unmount(order).await }).await {
        Ok(Ok(())) => Ok(json(StatusCode::OK, &serde_json::json!({ "unmounted": true }))),
        Ok(Err(error)) => {
            let status = match error.kind() {
                Kind::Busy => StatusCode::CONFLICT,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Err(json(status, &ErrorBody::of(&error)))
        }
        Err(error) => {
            Err(refused(StatusCode::INTERNAL_SERVER_ERROR, Kind::Io, format!("unmount: {error}")))
        }
    }
}

/// Answers with one JSON line for each thing found; the last one says how it ended.
async fn verify(request: Request<Incoming>, daemon: Arc<dyn Controlled>) -> Result<Reply, Reply> {
    let order: VerifyOrder = read_order(request).await?;
    let (lines, received) = mpsc::channel(LINES);
    // A task of its own: what it mends is not left half done by a client's death. It sees that nobody listens any more.
    tokio::spawn(async move {
        let last = match daemon.verify(order, lines.clone()).await {
            Ok(last) => last,
            Err(error) => VerifyLine::failed(&error),
        };
        drop(lines.send(last).await);
    });
    let (texts, received_texts) = mpsc::channel(LINES);
    tokio::spawn(write_lines(received, texts));
    Ok(ndjson(received_texts))
}

/// Each thing on a line of its own.
async fn write_lines<T: Serialize>(mut lines: mpsc::Receiver<T>, texts: mpsc::Sender<Bytes>) {
    while let Some(line) = lines.recv().await {
        let mut text = serde_json::to_vec(&line).unwrap_or_else(|error| {
            tracing::error!(err = %error, "line cannot be written as JSON");
            b"{}".to_vec()
        });
        text.push(b'\n');
        if texts.send(Bytes::from(text)).await.is_err() {
            return; // nobody listens: who sends finds its channel closed
        }
    }
}

/// An answer that goes on as long as there are lines; an empty one now and then is a sign of life.
fn ndjson(texts: mpsc::Receiver<Bytes>) -> Reply {
    let frames = stream::unfold(texts, |mut texts| async move {
        let text = match timeout(SILENCE, texts.recv()).await {
            Ok(text) => text?,
            Err(_elapsed) => Bytes::from_static(b"\n"),
        };
        Some((Ok(Frame::data(text)), texts))
    });
    let mut reply = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let lines = http::HeaderValue::from_static("application/x-ndjson");
    reply.headers_mut().insert(http::header::CONTENT_TYPE, lines);
    reply
}

/// The order in a request's body; an empty one is the default.
async fn read_order<T: DeserializeOwned + Default>(request: Request<Incoming>) -> Result<T, Reply> {
    let body = read_body(request).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|error| {
        refused(StatusCode::BAD_REQUEST, Kind::Invalid, format!("the request: {error}"))
    })
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Reply> {
    let body = Limited::new(request.into_body(), BODY_MAX);
    match timeout(ARRIVAL, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Limit,
            format!("the request: {error}"),
        )),
        Err(_elapsed) => Err(refused(
            StatusCode::REQUEST_TIMEOUT,
            Kind::Timeout,
            "the request did not arrive".to_owned(),
        )),
    }
}

fn refused(status: StatusCode, kind: Kind, message: String) -> Reply {
    json(status, &ErrorBody { kind: kind.as_str().to_owned(), message })
}

fn json<T: Serialize>(status: StatusCode, body: &T) -> Reply {
    let (status, text) = match serde_json::to_vec(body) {
        Ok(text) => (status, text),
        Err(error) => {
            tracing::error!(err = %error, "answer cannot be written as JSON");
            (StatusCode::INTERNAL_SERVER_ERROR, b"{}".to_vec())
        }
    };
    let mut reply = Response::new(Full::new(Bytes::from(text)).boxed());
    *reply.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    reply.headers_mut().insert(http::header::CONTENT_TYPE, json);
    reply
}
