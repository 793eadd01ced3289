//! The control socket's orders for hydration, limits and paths, and the stream of events.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::control::orders::{
    Done, EventsRequest, LimitRequest, PathDone, PathOrder, PathsDone, PathsRequest, SwitchOrder,
    tree_path,
};
use crate::control::verify::Summary;
use crate::core::path::RelPath;
use crate::engine::events::{Event, Heard, Line, Step};
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};

/// Least rate, in bytes per second.
const RATE_MIN: u64 = 1024;
/// Events that wait for a client; it gets the others out of the log.
const WAITING: usize = 1024;
/// Lines sent at once, at most, in bytes.
const PIECE: usize = 64 * 1024;
/// Longest wait for the log.
const FLUSH: Duration = Duration::from_secs(5);

/// Says what hydration shall do.
pub(super) async fn switch(engine: &Arc<Engine>, order: SwitchOrder) -> Result<Done> {
    let running = engine.active_chunks();
    let running = running.iter().filter(|(chunk, _)| chunk.priority().is_background()).count();
    let by = "user".into();
    let (done, event) = match order {
        SwitchOrder::Pause => (engine.switch().pause().await, Event::Pause { by }),
        SwitchOrder::Resume => (engine.switch().resume().await, Event::Resume { by }),
        SwitchOrder::Drain => (engine.switch().drain().await, Event::Drain { by }),
        SwitchOrder::Stop => (engine.switch().stop().await, Event::Stop { by }),
    };
    engine.events().tell(event);
    done?;
    let tally = engine.tally();
    let settled = tally.files_published + engine.stats().entries_failed();
    let waiting = tally.files.saturating_sub(settled);
    let message = match order {
        SwitchOrder::Pause => format!("paused: {running} chunks finish, {waiting} files wait"),
        SwitchOrder::Resume => format!("resumed: {waiting} files to go"),
        SwitchOrder::Drain => format!("draining: {running} chunks finish, {waiting} files wait"),
        SwitchOrder::Stop => format!("stopped: {running} chunks cut off, {waiting} files wait"),
    };
    Ok(Done { message })
}

/// Changes the rate of hydration.
pub(super) async fn limit(engine: &Arc<Engine>, request: LimitRequest) -> Result<Done> {
    let value = request.bytes_per_s;
    if value.is_some_and(|rate| rate < RATE_MIN) {
        return Err(Error::new(Kind::Invalid, "limit")
            .because(format!("the least rate is {RATE_MIN} bytes per second"))
            .hint("`lazycopy pause` lets nothing through"));
    }
    let before = engine.limits().rate();
    engine.order_rate(value).await?;
    let shown = |rate: Option<u64>| rate.map_or("off".to_owned(), |rate| format!("{rate} bytes/s"));
    Ok(Done { message: format!("limit: {}, was {}", shown(value), shown(before)) })
}

/// Carries out an order for each path.
pub(super) async fn paths(
    engine: &Arc<Engine>,
    order: PathOrder,
    request: PathsRequest,
) -> PathsDone {
    let mut results = Vec::new();
    for path in request.paths {
        let done = match tree_path(&path) {
            Ok(in_tree) => one_path(engine, order, &in_tree).await,
            Err(error) => Err(error),
        };
        if let Ok(message) = &done {
            let order = order.as_str().into();
            let (path, message) = (path.clone(), message.clone());
            engine.events().tell(Event::Order { order, path, message });
        }
        results.push(PathDone::new(&path, done));
    }
    PathsDone { results }
}

async fn one_path(engine: &Arc<Engine>, order: PathOrder, path: &RelPath) -> Result<String> {
    let pin = async |is_pinned: bool| {
        // Nobody keeps what is not there.
        if is_pinned {
            engine.lookup_path(path).await?;
        }
        engine.pin(path, is_pinned).await
    };
    match order {
        PathOrder::Hydrate => engine.hydrate_path(path).await,
        PathOrder::Evict => engine.evict_path(path).await,
        PathOrder::Refresh => engine.refresh_path(path).await,
        PathOrder::Pin => Ok(match pin(true).await? {
            true => "pinned: not evicted".to_owned(),
            false => "pinned already".to_owned(),
        }),
        PathOrder::Unpin => Ok(match pin(false).await? {
            true => "unpinned: evicted like any other".to_owned(),
            false => "was not pinned itself".to_owned(),
        }),
    }
}

/// The copy begins to be proven again.
pub(super) fn verify_begun() -> Event {
    Event::Verify { what: Step::Begun, files: 0, differing: 0, mended: 0, message: None }
}

/// It was proven again, or could not be.
pub(super) fn verify_ended(verified: &Result<Summary>) -> Event {
    let Summary { files, differing, mended, .. } = verified.as_ref().copied().unwrap_or_default();
    let message = verified.as_ref().err().map(ToString::to_string);
    Event::Verify { what: Step::Ended, files, differing, mended, message }
}

/// The part of a line that tells its place.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

/// What a client of the log has got.
struct Sent {
    next: u64,
    lines: mpsc::Sender<Bytes>,
}

/// Sends what is written, and what comes. Whoever is slow gets the rest out of the log.
pub(super) async fn events(
    engine: &Arc<Engine>,
    request: EventsRequest,
    lines: mpsc::Sender<Bytes>,
) -> Result<()> {
    let listener = if request.follow { Some(engine.events().listen(WAITING)?) } else { None };
    let session = engine.events().session().to_owned();
    let mut sent = written(engine, Sent { next: request.from, lines }).await?;
    let Some(mut listener) = listener else { return Ok(()) };
    loop {
        let heard = tokio::select! {
            heard = listener.next() => heard,
            () = sent.lines.closed() => return Ok(()),
        };
        match heard {
            None => return Ok(()),
            Some(Heard::Line(line)) => {
                if sent.pass(&line).await.is_err() || is_last(&line, &session) {
                    return Ok(());
                }
            }
            Some(Heard::Missed(_)) => {
                sent = written(engine, sent).await?;
            }
        }
    }
}

fn is_last(line: &Line, session: &str) -> bool {
    line.session == session && matches!(line.event, Event::Session { what: Step::Ended, .. })
}

impl Sent {
    /// Sends a line that was not sent yet.
    async fn pass(&mut self, line: &Line) -> Result<(), mpsc::error::SendError<Bytes>> {
        if line.seq < self.next {
            return Ok(());
        }
        self.next = line.seq + 1;
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        self.lines.send(Bytes::from(text)).await
    }

    /// As [`Sent::pass`] for what is in a file. Blocking.
    fn pass_file(&mut self, file: File) -> std::io::Result<()> {
        let mut reader = BufReader::with_capacity(PIECE, file);
        let (mut line, mut piece) = (Vec::new(), Vec::new());
        loop {
            line.clear();
            let is_end = reader.read_until(b'\n', &mut line)? == 0;
            if !is_end && line.ends_with(b"\n") {
                let number = serde_json::from_slice::<Numbered>(&line);
                if let Ok(Numbered { seq }) = number
                    && seq >= self.next
                {
                    self.next = seq + 1;
                    piece.extend_from_slice(&line);
                }
            }
            if piece.len() >= PIECE || (is_end && !piece.is_empty()) {
                let full = Bytes::from(std::mem::take(&mut piece));
                if self.lines.blocking_send(full).is_err() {
                    return Ok(()); // nobody listens any more
                }
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

/// Sends what is written and was not sent yet.
async fn written(engine: &Arc<Engine>, mut sent: Sent) -> Result<Sent> {
    let engine = Arc::clone(engine);
    on_disk("read events", move || {
        engine.events().flush(FLUSH);
        for file in engine.destination().event_log()?.files()? {
            sent.pass_file(file).map_err(|error| Error::io("read events", error))?;
        }
        Ok(sent)
    })
    .await
}
