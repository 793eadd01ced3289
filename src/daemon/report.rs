//! Status and stuck reports, and the orders of the control socket.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::control::orders::{
    Done, EventsRequest, HistoryReport, LimitRequest, PathOrder, PathsDone, PathsRequest,
    SwitchOrder,
};
use crate::control::registry::{self, Registration, SessionRecord};
use crate::control::server::ControlServer;
use crate::control::status::{
    ActiveChunk, ByteCounts, CacheCounts, ChunkCounts, FailedCount, FileCounts, FileError,
    InPlaceCounts, JobPhase, JsonPath, LaneReport, LimitCounts, ProofCounts, RateCounts, SCHEMA,
    StatusReport, StuckOperation, StuckReport, timestamp,
};
use crate::control::verify::{VerifyLine, VerifyOrder};
use crate::control::{Controlled, UnmountRequest};
use crate::core::flight::{Boarded, Flight, Landing};
use crate::core::path::RelPath;
use crate::core::priority::Priority;
use crate::core::progress::Highest;
use crate::daemon::job::{Job, paused_by};
use crate::daemon::orders;
use crate::daemon::settings::SourceSpec;
use crate::daemon::start::{Place, Started};
use crate::daemon::verify::verify_served;
use crate::engine::Engine;
use crate::engine::report::{Tally, Waiting};
use crate::error::{Error, Kind, Result};
use crate::source::options::SourceOptions;
use crate::vfs::mount::{UnmountMode, unmount_ours};
use crate::vfs::mountinfo::DeviceNumber;

/// The kernel lets go of a file a moment after it was closed: busy only counts after that.
const LAST_CLOSE: Duration = Duration::from_millis(500);
/// Lanes that status shows.
const LANES_SHOWN: usize = 64;

/// Directories of which failed files are shown.
const FAILED_SHOWN: usize = 100;

/// Answers about one daemon.
#[derive(Debug)]
pub(super) struct Reporter {
    session: String,
    place: Place,
    /// Of the mount; a copy has none.
    number: Option<DeviceNumber>,
    engine: Arc<Engine>,
    job: ArcSwapOption<Job>,
    /// Told when the mount was taken away from those who use it.
    detached: Notify,
    /// Runs while the copy is proven again.
    verifying: Flight,
    progress: Highest,
    started: Instant,
    started_at: SystemTime,
}

/// The control socket and its entry in the registry.
pub(super) struct Control {
    server: ControlServer,
    _registration: Registration,
}

impl Control {
    pub(super) async fn shutdown(self, patience: std::time::Duration) {
        self.server.shutdown(patience).await;
    }
}

/// Opens the control socket.
pub(super) fn serve(reporter: &Arc<Reporter>, place: &Place) -> Result<Control> {
    let record = SessionRecord::of_this_process(
        reporter.session(),
        place.source.clone(),
        &place.mountpoint,
        &place.destination,
    )?;
    let (registration, listener) = registry::register(&record)?;
    let daemon: Arc<dyn Controlled> = Arc::clone(reporter) as Arc<dyn Controlled>;
    let server = ControlServer::start(listener, daemon)?;
    Ok(Control { server, _registration: registration })
}

impl Reporter {
    pub(super) fn new(started: &Started) -> Self {
        Self::of(&started.engine, &started.place, Some(started.number))
    }

    pub(super) fn of(engine: &Arc<Engine>, place: &Place, number: Option<DeviceNumber>) -> Self {
        Self {
            session: engine.events().session().to_owned(),
            place: place.clone(),
            number,
            engine: Arc::clone(engine),
            job: ArcSwapOption::empty(),
            detached: Notify::new(),
            verifying: Flight::default(),
            progress: Highest::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
        }
    }

    pub(super) fn set_job(&self, job: Arc<Job>) {
        self.job.store(Some(job));
    }

    pub(super) fn session(&self) -> &str {
        &self.session
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Waits until nobody has the copy proven by us; as long as the answer is held, nobody begins.
    pub(super) async fn end_of_verifying(&self) -> Landing {
        loop {
            match self.verifying.board() {
                Boarded::Lead(landing) => return landing,
                Boarded::Join(running) => running.await,
            }
        }
    }

    /// Waits until somebody has detached the mount by force.
    pub(super) async fn detached(&self) {
        self.detached.notified().await;
    }

    /// The state of the copy, from memory.
    pub(super) fn status_now(&self) -> StatusReport {
        let (tally, job) = (self.engine.tally(), self.job.load_full());
        let switch = self.engine.switch().state();
        let phase = job.as_ref().map_or(JobPhase::Idle, |job| job.phase(tally.is_scanned, switch));
        let stats = self.engine.stats();
        let (free, kept_free) = self.engine.room_seen();
        let report = StatusReport {
            session: self.session.clone(),
            job: job.map(|job| job.name.clone()).unwrap_or_default(),
            source: self.place.source.clone(),
            started_at: timestamp(self.started_at),
            elapsed_s: self.started.elapsed().as_secs_f64(),
            percent: self.percent(&tally, phase),
            files: self.file_counts(&tally),
            proof: ProofCounts {
                source_checksum: stats.proof_source_checksum.get(),
                transfer: stats.proof_transfer.get(),
                adopted_unverified: stats.proof_adopted_unverified.get(),
            },
            bytes: ByteCounts {
                total: tally.bytes,
                local: tally.bytes_local,
                fetched: stats.bytes_fetched.get(),
                served: stats.bytes_served.get(),
                wasted: stats.bytes_wasted.get(),
            },
            rate_bytes_per_s: stats.rate.bytes_per_s(),
            rates: RateCounts {
                demand: stats.landed_for(Priority::Demand).rate.bytes_per_s(),
                readahead: stats.landed_for(Priority::Readahead).rate.bytes_per_s(),
                hydration: stats.landed_for(Priority::Hydration).rate.bytes_per_s(),
            },
            eta_s: (phase == JobPhase::Hydrating).then(|| self.engine.eta_s(&tally)).flatten(),
            in_place: self.place.is_in_place().then(|| InPlaceCounts {
                is_scanned: tally.is_scanned,
                needed: tally.bytes_left(),
                free,
                kept_free,
                last_wait_ms: stats.last_wait_ms.get(),
            }),
            chunks: self.chunk_counts(),
            active: self.active(),
            lanes: self.lanes(),
            errors: self.errors(),
            limits: Some(self.limits()),
            failed: self.failed(),
            cache: self.engine.cache_fill().map(|(cap, used)| CacheCounts {
                cap,
                used,
                evicted: stats.bytes_evicted.get(),
            }),
            ..StatusReport::of(&self.place.mountpoint, &self.place.destination)
        };
        report.in_phase(phase, paused_by(&self.engine, phase))
    }

    fn file_counts(&self, tally: &Tally) -> FileCounts {
        let stats = self.engine.stats();
        FileCounts {
            total: tally.files,
            published: tally.files_published,
            partial: tally.files_partial,
            failed: stats.entries_failed(),
            changed: stats.files_changed.get(),
            deleted: self.engine.changes().deleted_count(),
            vanished: stats.entries_vanished.get(),
            skipped: stats.files_skipped.get(),
            warnings: stats.metadata_lost.get() + stats.names_refused.get(),
        }
    }

    fn chunk_counts(&self) -> ChunkCounts {
        let stats = self.engine.stats();
        ChunkCounts {
            total: stats.chunks_begun.get(),
            active: self.engine.active_chunks().len() as u64,
            queued: self.engine.queued_chunks() as u64,
            done: stats.chunks_done.get(),
            failed: stats.chunks_failed.get(),
            retried: stats.chunks_retried.get(),
        }
    }

    fn limits(&self) -> LimitCounts {
        let limits = self.engine.limits();
        let (settings, used) = (limits.settings(), limits.usage());
        let (connections, max_connections) = self.engine.connections();
        LimitCounts {
            rate_bytes_per_s: limits.rate(),
            fetch_bytes: used.bytes,
            max_fetch_bytes: settings.max_fetch.map(|limit| limit.bytes),
            requests: used.requests,
            max_requests: settings.max_requests,
            connections: connections as u64,
            max_connections: max_connections as u64,
            used_up: limits.used_up(),
            source_failing: limits.source_failing().map(|(_, error)| error.to_string()),
        }
    }

    fn failed(&self) -> Vec<FailedCount> {
        let counts = self.engine.stats().errors.failed_by_place();
        let count = |((directory, kind), files): ((RelPath, String), u64)| FailedCount {
            path: JsonPath::new(directory.as_path()),
            kind,
            files,
        };
        counts.into_iter().take(FAILED_SHOWN).map(count).collect()
    }

    fn active(&self) -> Vec<ActiveChunk> {
        let active = self.engine.active_chunks();
        active
            .iter()
            .map(|(chunk, file)| ActiveChunk {
                chunk: chunk.id.0,
                path: JsonPath::new(file.path.as_path()),
                offset: chunk.range.start,
                len: chunk.range.len(),
                landed: chunk.landed(),
                priority: chunk.priority().as_str().to_owned(),
            })
            .collect()
    }

    fn lanes(&self) -> Vec<LaneReport> {
        let lanes = self.engine.busy_lanes().into_iter().take(LANES_SHOWN);
        lanes
            .map(|lane| LaneReport {
                path: JsonPath::new(lane.path.as_path()),
                workers: lane.workers as u64,
            })
            .collect()
    }

    /// Never less than it was, until there is something new to copy.
    fn percent(&self, tally: &Tally, phase: JobPhase) -> f64 {
        if phase == JobPhase::Complete {
            return 100.0;
        }
        // Full only when everything is published.
        let share = (tally.share * 100.0).clamp(0.0, 99.9);
        match phase {
            JobPhase::Idle => share,
            _ => self.progress.raise(share),
        }
    }

    fn errors(&self) -> Vec<FileError> {
        let errors = self.engine.stats().errors.recent();
        errors
            .iter()
            .map(|note| FileError {
                path: JsonPath::new(note.path.as_path()),
                kind: note.kind.clone(),
                message: note.message.clone(),
                at: timestamp(note.at),
            })
            .collect()
    }

    /// Everything that waits, into the log.
    pub(super) fn log_everything_waiting(&self) {
        let waiting = self.engine.waiting();
        tracing::info!(
            waiting = waiting.len(),
            active = self.engine.active_chunks().len(),
            "what waits now"
        );
        for one in waiting {
            self.log_waiting(&one, "waits");
        }
        for (chunk, file) in self.engine.active_chunks() {
            tracing::info!(chunk = chunk.id.0, ino = file.ino, path = %file.path, range = %chunk.range, landed = chunk.landed(), "chunk runs");
        }
    }

    pub(super) fn log_waiting(&self, one: &Waiting, what: &str) {
        let noted = &one.noted;
        let waited_ms = self.engine.now_ms().saturating_sub(noted.since_ms);
        tracing::warn!(
            req = noted.request, op = noted.operation.as_str(), ino = noted.ino, path = %one.path,
            offset = noted.offset, len = noted.len, pid = noted.pid, waited_ms, chunks = ?one.chunks, "{what}"
        );
    }

    fn stuck_operation(&self, one: &Waiting) -> StuckOperation {
        let noted = &one.noted;
        let waits_for = match one.chunks.first() {
            Some((chunk, landed)) => format!("chunk {chunk}, {landed} bytes landed"),
            None => "the source".to_owned(),
        };
        StuckOperation {
            id: noted.request,
            kind: noted.operation.as_str().to_owned(),
            ino: noted.ino,
            path: JsonPath::new(&one.path),
            offset: noted.offset,
            len: noted.len,
            waits_for,
            chunk: one.chunks.first().map(|(chunk, _)| *chunk),
            since_ms: self.engine.now_ms().saturating_sub(noted.since_ms),
            thread: u64::from(noted.pid),
        }
    }
}

#[async_trait]
impl Controlled for Reporter {
    async fn status(&self) -> StatusReport {
        self.status_now()
    }

    async fn stuck(&self) -> StuckReport {
        let operations =
            self.engine.waiting().iter().map(|one| self.stuck_operation(one)).collect();
        StuckReport { schema: SCHEMA, session: self.session.clone(), operations }
    }

    async fn verify(
        &self,
        order: VerifyOrder,
        lines: mpsc::Sender<VerifyLine>,
    ) -> Result<VerifyLine> {
        let source = order.source.map(|source| {
            let path = source.to_path_buf();
            let path = path.ok_or_else(|| Error::new(Kind::Invalid, "use source"))?;
            let options = SourceOptions::parse(&order.source_options)?;
            SourceSpec::parse_with(path.as_os_str(), options)
        });
        let Boarded::Lead(_landing) = self.verifying.board() else {
            return Err(Error::new(Kind::Busy, "verify")
                .at(&self.place.destination)
                .because("it is being verified already"));
        };
        let source = source.transpose()?;
        let events = self.engine.events();
        events.tell(orders::verify_begun());
        let verified = verify_served(&self.engine, source, order.task, lines).await;
        events.tell(orders::verify_ended(&verified));
        verified.map(VerifyLine::Summary)
    }

    async fn switch(&self, order: SwitchOrder) -> Result<Done> {
        orders::switch(&self.engine, order).await
    }

    async fn limit(&self, request: LimitRequest) -> Result<Done> {
        orders::limit(&self.engine, request).await
    }

    async fn paths(&self, order: PathOrder, request: PathsRequest) -> PathsDone {
        orders::paths(&self.engine, order, request).await
    }

    async fn events(&self, request: EventsRequest, lines: mpsc::Sender<Bytes>) -> Result<()> {
        orders::events(&self.engine, request, lines).await
    }

    async fn history(&self) -> Result<HistoryReport> {
        self.engine.history().await.map(HistoryReport::new)
    }

    async fn unmount(&self, request: UnmountRequest) -> Result<()> {
        let mode = if request.force { UnmountMode::Detach } else { UnmountMode::Normal };
        let Some(number) = self.number else {
            return Err(Error::new(Kind::NotSupported, "unmount")
                .at(&self.place.destination)
                .because("it is a copy, nothing is mounted")
                .hint("Ctrl-C in its terminal ends it"));
        };
        let mountpoint = self.place.mountpoint.clone();
        let patient_until = Instant::now() + LAST_CLOSE;
        loop {
            let mountpoint = mountpoint.clone();
            let unmount = move || unmount_ours(&mountpoint, number, mode).map(drop);
            match crate::engine::on_disk("unmount", unmount).await {
                Err(error) if error.kind() == Kind::Busy && Instant::now() < patient_until => {
                    tokio::time::sleep(LAST_CLOSE / 10).await;
                }
                result => break result?,
            }
        }
        if request.force {
            self.detached.notify_one();
        }
        Ok(())
    }
}
