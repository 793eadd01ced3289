//! What happens, told as it happens: to an append-only log in the state directory, and to listeners.
//!
//! | file | what |
//! |---|---|
//! | [`event`] | the closed set of events and their shape |
//! | `telling` | what the engine tells where it happens |
//! | `writer` | the thread that numbers, writes and hands them out |
//!
//! Who tells never waits: not for the disk, not for a listener. What comes faster than it can be written is counted, and the log says how many.

pub mod event;
mod telling;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result};
use crate::store::event_log::EventLog;
use crate::sync::{AtomicBool, AtomicU64, Ordering};

pub use event::{BreakerStep, ChunkStep, Event, FileStep, LimitStep, Line, SpaceStep, Step, Word};
pub(crate) use telling::Attempts;
use writer::Writer;

/// Events that wait to be written.
const WAITING: usize = 8192;
/// Listeners that wait to be heard of.
const NEW_LISTENERS: usize = 64;
/// Longest wait for the thread at the end: a disk that hangs must not hold up anybody.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way of events out of an engine.
///
/// # Concurrency
/// Shared by all; each event gets its number from the one thread that writes, in the order in which it came to it.
#[derive(Debug)]
pub struct Events {
    session: String,
    job: String,
    /// `None` only while it is dropped.
    messages: Option<Sender<Message>>,
    listeners: Sender<mpsc::Sender<Arc<Line>>>,
    /// There is a log, or there was a listener. Relaxed: who begins to listen hears what comes later.
    is_heard: AtomicBool,
    counts: Arc<Counts>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

/// What did not go well. Relaxed: for people, and taken by the one thread that tells it.
#[derive(Debug, Default)]
struct Counts {
    /// Not told yet.
    lost: AtomicU64,
    lost_ever: AtomicU64,
    unwritten: AtomicU64,
}

enum Message {
    /// Boxed: places in the channel are reserved from the start.
    Tell(Box<(SystemTime, Event)>),
    /// Answered when everything before it was written, or could not be.
    Flush(Sender<()>),
}

impl Events {
    /// Starts the thread. The copy is the job of `source` and `destination`.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn start(log: Result<EventLog>, source: &str, destination: &Path) -> Result<Self> {
        let (events, writer, alive) = Self::prepare(log, source, destination);
        let run = move || {
            writer.run();
            drop(alive);
        };
        let thread = std::thread::Builder::new().name("events".to_owned()).spawn(run);
        thread.map_err(|error| Error::io("start thread", error))?;
        Ok(events)
    }

    /// All but the thread; the last is dropped when that ends.
    fn prepare(
        log: Result<EventLog>,
        source: &str,
        destination: &Path,
    ) -> (Self, Writer, Sender<()>) {
        let (messages, received) = bounded(WAITING);
        let (listeners, new_listeners) = bounded(NEW_LISTENERS);
        let (alive, ended) = bounded(0);
        let counts = Arc::<Counts>::default();
        let (session, job) = (new_session(), job_name(source, destination));
        let is_heard = AtomicBool::new(log.is_ok());
        let writer = Writer {
            log: log.inspect_err(|error| tracing::warn!(%error, "events are not written")).ok(),
            session: session.clone(),
            job: job.clone(),
            next: 1,
            buffer: Vec::new(),
            buffered: 0,
            has_failed: false,
            messages: received,
            listeners: Vec::new(),
            new_listeners,
            counts: Arc::clone(&counts),
        };
        let messages = Some(messages);
        let events = Self { session, job, messages, listeners, is_heard, counts, ended };
        (events, writer, alive)
    }

    /// Tells what happened. Never waits.
    pub fn tell(&self, event: Event) {
        self.tell_with(|| event);
    }

    /// As [`Events::tell`], where it happens often: what nobody will hear is not even made.
    pub fn tell_with(&self, make: impl FnOnce() -> Event) {
        let Some(messages) = &self.messages else { return };
        if !self.is_heard.load(Ordering::Relaxed) {
            return;
        }
        let message = || Message::Tell(Box::new((SystemTime::now(), make())));
        if messages.is_full() || messages.try_send(message()).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            self.counts.lost_ever.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hears everything that is told from now on; of what comes while `capacity` events wait, only how many they were.
    ///
    /// # Errors
    /// `Busy` if too many begin to listen at once.
    pub fn listen(&self, capacity: usize) -> Result<Listener> {
        let (sender, lines) = mpsc::channel(capacity.max(1));
        self.is_heard.store(true, Ordering::Relaxed);
        self.listeners.try_send(sender).map_err(|refused| {
            let why = match refused {
                TrySendError::Full(_) => "too many begin to listen at once",
                TrySendError::Disconnected(_) => "nothing more will be told",
            };
            Error::new(Kind::Busy, "listen to events").because(why)
        })?;
        Ok(Listener { lines, next: None, held: None })
    }

    /// Waits until what was told so far is written, at most `patience`; whether it is. Blocking.
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, answer) = bounded(1);
        let Some(messages) = &self.messages else { return false };
        let is_sent = messages.send_timeout(Message::Flush(done), patience).is_ok();
        is_sent && answer.recv_timeout(patience).is_ok()
    }

    /// Name of this life.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Name of this copy, the same over restarts.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Events that came faster than they could be written.
    pub fn lost(&self) -> u64 {
        self.counts.lost_ever.load(Ordering::Relaxed)
    }

    /// Events that were told to listeners and could not be written.
    pub fn unwritten(&self) -> u64 {
        self.counts.unwritten.load(Ordering::Relaxed)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.messages = None;
        // Closed, so an error, as soon as the thread has written the rest.
        let ended = self.ended.recv_timeout(PATIENCE);
        if ended == Err(crossbeam::channel::RecvTimeoutError::Timeout) {
            tracing::warn!("the disk hangs; the last events are not written");
        }
    }
}

/// What a listener hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The next event.
    Line(Arc<Line>),
    /// So many came while too many waited; the next event follows.
    Missed(u64),
}

/// One who hears events, in order.
#[derive(Debug)]
pub struct Listener {
    lines: mpsc::Receiver<Arc<Line>>,
    /// The number that should come next.
    next: Option<u64>,
    /// What came after those that were missed.
    held: Option<Arc<Line>>,
}

impl Listener {
    /// Waits for the next; `None` when nothing more will be told.
    ///
    /// # Cancel safety
    /// None is lost.
    pub async fn next(&mut self) -> Option<Heard> {
        if let Some(held) = self.held.take() {
            return Some(Heard::Line(held));
        }
        let line = self.lines.recv().await?;
        let expected = self.next.replace(line.seq + 1).unwrap_or(line.seq);
        match line.seq - expected {
            0 => Some(Heard::Line(line)),
            missed => {
                self.held = Some(line);
                Some(Heard::Missed(missed))
            }
        }
    }
}

/// A name for one life, unique on this machine.
pub fn new_session() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{:x}{:05x}-{:x}", now.as_secs(), now.subsec_micros(), std::process::id())
}

/// The name of the copy of `source` into `destination`.
pub fn job_name(source: &str, destination: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(source.as_bytes());
    hasher.update(b"\0");
    hasher.update(destination.as_os_str().as_encoded_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Destination, DestinationOptions};

    fn paused(by: usize) -> Event {
        Event::Pause { by: by.to_string().into() }
    }

    fn log_in(directory: &Path) -> Result<EventLog> {
        Destination::open(directory, DestinationOptions::default()).unwrap().event_log()
    }

    fn no_log() -> Result<EventLog> {
        Err(Error::new(Kind::NoSpace, "open"))
    }

    fn start(log: Result<EventLog>) -> Events {
        Events::start(log, "/source", Path::new("/destination")).unwrap()
    }

    async fn hear(listener: &mut Listener, count: usize) -> Vec<Heard> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(30), listener.next());
            heard.push(next.await.expect("within the deadline").expect("more to come"));
        }
        heard
    }

    // LESSONS 4: listeners could miss or reorder events.
    #[tokio::test]
    async fn ten_listeners_each_hear_everything_in_order() {
        for _repeat in 0..100 {
            let events = start(no_log());
            let mut listeners: Vec<_> = (0..10).map(|_| events.listen(64).unwrap()).collect();
            std::thread::scope(|scope| {
                for teller in 0..4 {
                    let events = &events;
                    scope
                        .spawn(move || (0..15).for_each(|n| events.tell(paused(teller * 100 + n))));
                }
            });
            let first = hear(&mut listeners[0], 60).await;
            let numbers = first.iter().map(|heard| match heard {
                Heard::Line(line) => line.seq,
                Heard::Missed(_) => panic!("one was missed"),
            });
            assert!(numbers.eq(1..61), "{first:?}");
            for listener in &mut listeners[1..] {
                assert_eq!(hear(listener, 60).await, first);
            }
        }
    }

    #[tokio::test]
    async fn a_slow_listener_learns_how_many_it_missed() {
        let events = start(no_log());
        let (mut slow, mut quick) = (events.listen(4).unwrap(), events.listen(200).unwrap());
        (0..100).for_each(|n| events.tell(paused(n)));
        let all = hear(&mut quick, 100).await;
        assert_eq!(hear(&mut slow, 4).await, all[..4]);
        events.tell(paused(100));
        let last = hear(&mut quick, 1).await;
        assert_eq!(hear(&mut slow, 2).await, [Heard::Missed(96), last[0].clone()]);
    }

    // Nobody reads the channel: as with a disk that hangs.
    #[tokio::test]
    async fn telling_never_waits_and_what_is_lost_is_told() {
        let (events, writer, alive) = Events::prepare(no_log(), "", Path::new(""));
        let mut listener = events.listen(WAITING).unwrap();
        (0..WAITING + 10).for_each(|n| events.tell(paused(n)));
        assert_eq!(events.lost(), 10);
        assert!(!events.flush(Duration::from_millis(1)));
        drop(alive);
        std::thread::spawn(move || writer.run());
        let Heard::Line(line) = &hear(&mut listener, 1).await[0] else { panic!("missed") };
        assert_eq!(line.event, Event::Lost { events: 10 });
        hear(&mut listener, WAITING - 1).await;
    }

    // What telling costs, in counts: an event that nobody gets is not made, and nobody waits.
    #[tokio::test]
    async fn what_nobody_will_hear_is_not_made() {
        let mut made = 0;
        let (events, _writer, _alive) = Events::prepare(no_log(), "", Path::new(""));
        let mut tell = |events: &Events| {
            events.tell_with(|| {
                made += 1;
                paused(made)
            });
        };
        (0..1000).for_each(|_| tell(&events));
        assert_eq!(events.lost(), 0, "nobody listens: that is no loss");
        let _listener = events.listen(1).unwrap();
        (0..WAITING + 1000).for_each(|_| tell(&events));
        assert_eq!((made, events.lost()), (WAITING, 1000));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted_and_heard() {
        let directory = tempfile::tempdir().unwrap();
        let blocked = directory.path().join(".lazycopy/events.jsonl");
        let events = start(log_in(directory.path()));
        std::fs::create_dir(&blocked).unwrap();
        let mut listener = events.listen(8).unwrap();
        events.tell(paused(1));
        assert_eq!(hear(&mut listener, 1).await.len(), 1);
        assert!(events.flush(Duration::from_secs(30)));
        assert_eq!((events.unwritten(), events.lost()), (1, 0));
        std::fs::remove_dir(&blocked).unwrap();
        events.tell(paused(2));
        assert!(events.flush(Duration::from_secs(30)));
        assert_eq!(events.unwritten(), 1);
        let text = std::fs::read_to_string(&blocked).unwrap();
        let line: Line = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!((line.seq, line.event), (2, paused(2)));
    }

    #[test]
    fn numbers_go_on_in_the_next_life() {
        let directory = tempfile::tempdir().unwrap();
        let lives: Vec<String> = (0..3)
            .map(|life| {
                let events = start(log_in(directory.path()));
                (0..5).for_each(|n| events.tell(paused(life * 5 + n)));
                events.session().to_owned()
            })
            .collect();
        let text = std::fs::read_to_string(directory.path().join(".lazycopy/events.jsonl"));
        let text = text.unwrap();
        let lines: Vec<Line> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().map(|line| line.seq).eq(1..=15), "{text}");
        for (n, line) in lines.iter().enumerate() {
            assert_eq!((&line.event, &line.session), (&paused(n), &lives[n / 5]));
        }
    }
}
