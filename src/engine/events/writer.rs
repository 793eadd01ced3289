//! The one thread that numbers events, writes them down and hands them to listeners.

use std::sync::Arc;
use std::time::SystemTime;

use crossbeam::channel::Receiver;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::event::{Event, Line, SCHEMA};
use super::{Counts, Message};
use crate::store::event_log::EventLog;
use crate::sync::Ordering;

/// Written at once, at most.
const BATCH_BYTES: usize = 256 * 1024;

pub(super) struct Writer {
    /// `None` where there can be none.
    pub(super) log: Option<EventLog>,
    pub(super) session: String,
    pub(super) job: String,
    /// Number of the next event.
    pub(super) next: u64,
    /// Whole lines that are not written yet, and how many.
    pub(super) buffer: Vec<u8>,
    pub(super) buffered: u64,
    /// The last write failed, and that was said.
    pub(super) has_failed: bool,
    pub(super) messages: Receiver<Message>,
    pub(super) listeners: Vec<mpsc::Sender<Arc<Line>>>,
    pub(super) new_listeners: Receiver<mpsc::Sender<Arc<Line>>>,
    pub(super) counts: Arc<Counts>,
}

impl Writer {
    /// Until nobody is left who could tell anything.
    pub(super) fn run(mut self) {
        self.next = self.log.as_ref().map_or(0, last_number) + 1;
        let messages = self.messages.clone();
        while let Ok(message) = messages.recv() {
            self.take(message);
            while self.buffer.len() < BATCH_BYTES
                && let Ok(message) = messages.try_recv()
            {
                self.take(message);
            }
            self.write();
        }
        self.tell_lost();
        self.write();
    }

    fn take(&mut self, message: Message) {
        // Who listens before something is told hears it.
        self.listeners.extend(self.new_listeners.try_iter());
        self.tell_lost();
        match message {
            Message::Tell(told) => self.tell(told.0, told.1),
            Message::Flush(done) => {
                self.write();
                let _is_awaited = done.try_send(()).is_ok();
            }
        }
    }

    fn tell_lost(&mut self) {
        let events = self.counts.lost.swap(0, Ordering::Relaxed);
        if events > 0 {
            self.tell(SystemTime::now(), Event::Lost { events });
        }
    }

    fn tell(&mut self, at: SystemTime, event: Event) {
        let line = Line {
            schema: SCHEMA,
            seq: self.next,
            time: humantime::format_rfc3339_millis(at).to_string(),
            session: self.session.clone(),
            job: self.job.clone(),
            event,
        };
        self.next += 1;
        if let Err(error) = serde_json::to_writer(&mut self.buffer, &line) {
            tracing::error!(%error, "event cannot be written as JSON");
        }
        self.buffer.push(b'\n');
        self.buffered += 1;
        if self.listeners.is_empty() {
            return;
        }
        let line = Arc::new(line);
        self.listeners.retain(|listener| {
            // A full one finds out by the numbers.
            !matches!(listener.try_send(Arc::clone(&line)), Err(TrySendError::Closed(_)))
        });
    }

    /// Writes what is gathered. What cannot be written is given up: the next lines are worth another try.
    fn write(&mut self) {
        if self.buffered == 0 {
            return;
        }
        let written = self.log.as_mut().map(|log| log.append(&self.buffer));
        match written {
            Some(Ok(())) => {
                if std::mem::take(&mut self.has_failed) {
                    tracing::info!("events are written again");
                }
            }
            Some(Err(error)) => {
                self.counts.unwritten.fetch_add(self.buffered, Ordering::Relaxed);
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::warn!(%error, "events are not written until this is over");
                }
            }
            None => {
                self.counts.unwritten.fetch_add(self.buffered, Ordering::Relaxed);
            }
        }
        self.buffer.clear();
        self.buffered = 0;
    }
}

/// The number of the last event that is written down; 0 before the first.
fn last_number(log: &EventLog) -> u64 {
    let last = log.last_line().unwrap_or_else(|error| {
        tracing::warn!(%error, "events of earlier lives are unreadable");
        None
    });
    let number = |text: Vec<u8>| serde_json::from_slice::<Line>(&text).ok().map(|line| line.seq);
    last.and_then(number).unwrap_or(0)
}
