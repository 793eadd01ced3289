//! Chunk downloaders: from the source into backing files.
//!
//! A fetch task owns its lease. Whatever happens to who asked, it goes on; however it ends, all who wait are woken.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};

use crate::core::claims::{Chunk, Lead, Lease};
use crate::core::ids::{ChunkId, Ids};
use crate::core::permits::{Acquired, Permit, Permits};
use crate::core::plan::{Pace, Reach};
use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::engine::cache::FULL;
use crate::engine::chunk_hasher::ChunkHasher;
use crate::engine::events::{Attempts, ChunkStep};
use crate::engine::file::LazyFile;
use crate::engine::settings::EngineSettings;
use crate::engine::stats::Stats;
use crate::engine::switch::{Switch, SwitchState};
use crate::engine::{Engine, jitter, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::{ByteStream, Source};
use crate::store::BackingFile;

/// Bytes gathered before they are written, at most.
const WRITE_BYTES: usize = 256 * 1024;
/// How long gathered bytes wait for more when nobody waits for them.
const GATHER: Duration = Duration::from_millis(5);
/// Permits that only demand may use.
const RESERVED_FOR_DEMAND: usize = 8;

/// Requests to one source.
#[derive(Debug)]
pub struct Fetcher {
    source: Arc<dyn Source>,
    permits: Arc<Permits>,
    /// Hands out chunk numbers.
    pub(crate) ids: Ids,
    /// Chunks that run, with the file they belong to.
    active: Table<ChunkId, (Arc<Chunk>, Arc<LazyFile>)>,
    pace: Pace,
    stats: Arc<Stats>,
    stall: Duration,
    /// Ends chunks that nobody but hydration wants.
    switch: Arc<Switch>,
}

/// A request under way.
struct Asked {
    range: ByteRange,
    begun: Instant,
    stream: ByteStream,
}

/// What was gathered from a stream, and why gathering ended.
struct Gathered {
    pieces: Vec<Bytes>,
    bytes: usize,
    end: Option<Result<()>>,
}

impl Fetcher {
    /// Nothing runs yet.
    pub fn new(
        source: Arc<dyn Source>,
        settings: &EngineSettings,
        stats: Arc<Stats>,
        switch: Arc<Switch>,
        first_chunk: u64,
    ) -> Self {
        let connections = source.traits().connections.max(2);
        let reserved = RESERVED_FOR_DEMAND.min(connections / 2);
        Self {
            permits: Permits::new(connections, reserved),
            pace: Pace::new(connections - reserved),
            ids: Ids::starting_at(first_chunk),
            active: Table::default(),
            stall: settings.stall,
            switch,
            source,
            stats,
        }
    }

    /// How far ahead and in what pieces to fetch now.
    pub fn reach(&self) -> Reach {
        self.pace.reach()
    }

    /// The chunks that run, with their files.
    pub fn active(&self) -> Vec<(Arc<Chunk>, Arc<LazyFile>)> {
        self.active.values()
    }

    /// Requests that wait for a permit.
    pub fn queued(&self) -> usize {
        self.permits.queued()
    }

    pub(super) async fn permit(&self, priority: Priority) -> Option<Permit> {
        match self.permits.acquire(priority) {
            Acquired::Now(permit) => Some(permit),
            Acquired::Queued(mut ticket) => {
                ticket.signal().await;
                ticket.permit()
            }
        }
    }

    /// Asks once for what remains of the lease.
    async fn ask(&self, file: &LazyFile, lease: &Lease) -> Result<Asked> {
        let range = lease.remaining();
        let begun = Instant::now();
        let asked = self.source.read(&file.path, range, file.fingerprint());
        let stream = self.moving(asked, lease).await??;
        Ok(Asked { range, begun, stream })
    }

    /// Lands what comes.
    async fn receive(
        &self,
        file: &Arc<LazyFile>,
        backing: &Arc<BackingFile>,
        lease: &mut Lease,
        hasher: &mut Option<ChunkHasher>,
        asked: Asked,
    ) -> Result<()> {
        let Asked { range, begun, mut stream } = asked;
        let mut first_byte = None;
        while !lease.remaining().is_empty() && !self.is_cut(lease.chunk()) {
            let gathered = self.gather(&mut stream, lease).await;
            let waited = *first_byte.get_or_insert_with(|| begun.elapsed());
            self.land(file, backing, lease, hasher, gathered.pieces, gathered.bytes).await?;
            match gathered.end {
                Some(Err(error)) => return Err(error),
                Some(Ok(())) if !lease.remaining().is_empty() => {
                    return Err(Error::new(Kind::Unreachable, "read from source").because(
                        format!("the answer ended {} bytes early", lease.remaining().len()),
                    ));
                }
                _ => {}
            }
            if lease.remaining().is_empty() {
                self.pace.observe(waited, begun.elapsed().saturating_sub(waited), range.len());
            }
        }
        Ok(())
    }

    /// Waits for `next`, but no longer than a stall, nor than its chunk may go on.
    async fn moving<T>(&self, next: impl Future<Output = T>, lease: &Lease) -> Result<T> {
        let next = tokio::time::timeout(self.stall, next);
        let next = tokio::select! {
            next = next => next,
            () = self.cut(lease.chunk()) => {
                return Err(Error::new(Kind::Busy, "read from source").because("it was stopped"));
            }
        };
        next.map_err(|late| {
            let range = lease.remaining();
            Error::new(Kind::Timeout, "read from source")
                .because(format!("nothing came for {:?} while reading {range}", self.stall))
                .caused_by(late)
        })
    }

    /// Whether the chunk is to end now. One that a reader waits for goes on.
    fn is_cut(&self, chunk: &Chunk) -> bool {
        self.switch.state() == SwitchState::Stopped && chunk.priority() == Priority::Hydration
    }

    /// Waits until the chunk is to end now.
    async fn cut(&self, chunk: &Chunk) {
        if chunk.priority() == Priority::Hydration {
            self.switch.until(|state| state == SwitchState::Stopped).await;
        }
        if !self.is_cut(chunk) {
            std::future::pending::<()>().await;
        }
    }

    /// Takes what is ready, up to a write's worth; waits for a first piece, and a moment for more unless somebody waits for what is here.
    async fn gather(&self, stream: &mut ByteStream, lease: &Lease) -> Gathered {
        let mut gathered = Gathered { pieces: Vec::new(), bytes: 0, end: None };
        while gathered.bytes < WRITE_BYTES && gathered.end.is_none() {
            let next = match stream.next().now_or_never() {
                Some(ready) => ready,
                None if gathered.bytes == 0 => match self.moving(stream.next(), lease).await {
                    Ok(next) => next,
                    Err(stalled) => Some(Err(stalled)),
                },
                None if lease.is_awaited() => break,
                None => match tokio::time::timeout(GATHER, stream.next()).await {
                    Ok(next) => next,
                    Err(_nothing_more) => break,
                },
            };
            match next {
                Some(Ok(piece)) if piece.is_empty() => lease.beat(),
                Some(Ok(piece)) => {
                    gathered.bytes += piece.len();
                    gathered.pieces.push(piece);
                }
                Some(Err(error)) => gathered.end = Some(Err(error)),
                None => gathered.end = Some(Ok(())),
            }
        }
        gathered
    }

    async fn land(
        &self,
        file: &Arc<LazyFile>,
        backing: &Arc<BackingFile>,
        lease: &mut Lease,
        hasher: &mut Option<ChunkHasher>,
        pieces: Vec<Bytes>,
        bytes: usize,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let remaining = lease.remaining();
        if bytes as u64 > remaining.len() {
            return Err(Error::new(Kind::Corrupt, "read from source")
                .at(file.path.as_path())
                .because("the source sent more bytes than were asked for"));
        }
        let mut own = hasher
            .take()
            .unwrap_or_else(|| ChunkHasher::new(lease.chunk().range.start, file.size()));
        let (file, backing) = (Arc::clone(file), Arc::clone(backing));
        let (written, own) = on_disk("write backing file", move || {
            let written = file.write(&backing, remaining.start, &pieces, &mut own);
            Ok((written, own))
        })
        .await
        .map_err(Error::of_destination)?;
        *hasher = Some(own);
        written.map_err(Error::of_destination)?;
        self.stats.count_fetched(lease.chunk().priority(), bytes as u64);
        if lease.landed(bytes as u64) {
            return Ok(());
        }
        // Not the source's doing: the file is begun anew, and who waited looks again.
        let error = Error::new(Kind::Io, "keep what is read");
        Err(error.because("its bytes were taken back").of_destination())
    }
}

impl Engine {
    /// How far ahead and in what pieces to fetch now.
    pub(crate) fn reach(&self) -> Reach {
        self.cache.limit(self.fetcher.reach())
    }

    /// Fetches a claimed chunk in a task of its own.
    pub(crate) fn start_fetch(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        lease: Lease,
        priority: Priority,
    ) {
        let (engine, file) = (Arc::clone(self), Arc::clone(file));
        self.runtime.spawn(async move {
            let permit = engine.fetcher.permit(priority).await;
            engine.run_chunk(file, lease, permit).await;
        });
    }

    /// Fetches what is missing in `range`, chunk by chunk as permits come, in a task of its own. Claims nothing before it has a
    /// permit, and stops when `wanted` is gone.
    pub(crate) fn fetch_ahead<T: Send + Sync + 'static>(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        range: ByteRange,
        wanted: Weak<T>,
    ) {
        let (engine, file) = (Arc::clone(self), Arc::clone(file));
        self.runtime.spawn(async move {
            let (mut rest, refused) = (range, engine.cache.refused());
            while !rest.is_empty() && engine.cache.refused() == refused {
                let Some(permit) = engine.fetcher.permit(Priority::Readahead).await else { return };
                if wanted.strong_count() == 0 || file.is_stale() {
                    return;
                }
                let Some(led) = engine.lead_with(&file, rest, Priority::Readahead, permit) else {
                    return;
                };
                rest = ByteRange::new(led.end, rest.end);
            }
        });
    }

    /// Leads the first free part of `range` with a permit in hand; `None` if there is none. Returns the chunk's range.
    pub(crate) fn lead_with(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        range: ByteRange,
        priority: Priority,
        permit: Permit,
    ) -> Option<ByteRange> {
        let chunk_bytes = self.reach().chunk;
        let now = Instant::now();
        match file.claims.lead(range, priority, chunk_bytes, &self.fetcher.ids, now) {
            Lead::Lease(lease) => {
                let led = lease.chunk().range;
                let (engine, file) = (Arc::clone(self), Arc::clone(file));
                self.runtime.spawn(async move {
                    engine.run_chunk(file, lease, Some(permit)).await;
                });
                Some(led)
            }
            Lead::Running | Lead::Failed(_) | Lead::Covered => None,
        }
    }

    /// Waits for a background permit.
    pub(crate) async fn background_permit(&self) -> Option<Permit> {
        self.fetcher.permit(Priority::Hydration).await
    }

    /// Fetches one chunk to its end, with retries that resume where the last attempt stopped.
    async fn run_chunk(
        self: &Arc<Self>,
        file: Arc<LazyFile>,
        mut lease: Lease,
        permit: Option<Permit>,
    ) {
        let chunk = Arc::clone(lease.chunk());
        let entry = (Arc::clone(&chunk), Arc::clone(&file));
        self.fetcher.active.insert(chunk.id, entry);
        self.stats.chunks_begun.increment();
        tracing::trace!(chunk = chunk.id.0, ino = file.ino, path = %file.path, range = %chunk.range, "chunk enter");
        let (mut part, mut attempts) = (None, Attempts::begin());
        let fetched = self.fetch_with_retries(&file, &mut lease, &mut part, &mut attempts);
        let result = fetched.await;
        drop(permit);
        self.fetcher.active.remove(&chunk.id);
        tracing::trace!(chunk = chunk.id.0, ino = file.ino, ok = result.is_ok(), "chunk exit");
        match result {
            Ok(()) if self.fetcher.is_cut(&chunk) && !lease.remaining().is_empty() => {
                self.stats.chunks_begun.sub(1); // what landed stays; the rest is begun again
                self.note_landed(&file, chunk.landed());
            }
            Ok(()) => {
                self.stats.chunks_done.increment();
                self.tell_chunk(ChunkStep::Complete, &file, &chunk, attempts, None);
                lease.commit();
                self.note_landed(&file, chunk.range.len());
                self.seal_if_complete(&file);
            }
            Err(error) if self.cache.is_full(&error) => {
                self.stats.chunks_begun.sub(1); // it never really was
                self.note_landed(&file, chunk.landed());
                self.give_back_room(part, &lease).await;
                match chunk.priority() {
                    // Who waits for it reads straight through.
                    Priority::Demand => lease.fail(error, Instant::now() + FULL),
                    Priority::Readahead | Priority::Hydration => drop(lease),
                }
            }
            Err(error) => {
                self.give_back_room(part, &lease).await;
                if error.kind() == Kind::NoSpace {
                    self.room.ran_out(&error);
                }
                self.stats.chunks_failed.increment();
                self.tell_chunk(ChunkStep::Failed, &file, &chunk, attempts, Some(&error));
                self.note_landed(&file, chunk.landed());
                self.note_failure(&file, &error);
                let until = Instant::now() + self.settings.failure_memory();
                lease.fail(error.at(file.path.as_path()), until);
            }
        }
    }

    async fn fetch_with_retries(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        lease: &mut Lease,
        part: &mut Option<Arc<BackingFile>>,
        attempts: &mut Attempts,
    ) -> Result<()> {
        if file.is_stale() {
            return Err(Error::new(Kind::Stale, "read from source").at(file.path.as_path()));
        }
        // Before any part is made: what an earlier life left and what lands now lie in one file.
        self.restore(file).await;
        if file.phase.get() == crate::core::phase::Phase::Published {
            return Ok(()); // all of it was here
        }
        let backing =
            file.ensure_backing(&self.destination).await.map_err(Error::of_destination)?;
        *part = Some(Arc::clone(&backing));
        file.phase.advance(crate::core::phase::Phase::Filling);
        file.note_request();
        let mut hasher = None;
        loop {
            let attempt_now = async {
                let asked = self.fetcher.ask(file, lease).await?;
                // Only for a source that answers: one that does not takes nobody's place.
                self.make_room(file, &backing, lease).await?;
                self.fetcher.receive(file, &backing, lease, &mut hasher, asked).await
            };
            let Err(error) = attempt_now.await else {
                return Ok(());
            };
            if self.fetcher.is_cut(lease.chunk()) {
                return Ok(());
            }
            // What did not reach the disk was hashed already: it is not asked for again under this lease.
            if error.is_of_destination() {
                return Err(error);
            }
            // A file that is gone is another version for who has it open.
            let gone = matches!(error.kind(), Kind::NotFound | Kind::Stale);
            if gone {
                self.found_stale(file);
                return Err(error.kinded(Kind::Stale));
            }
            let Some(wait) = self.settings.retry.wait_after(attempts.made, &error, jitter()) else {
                return Err(error);
            };
            tracing::debug!(chunk = lease.chunk().id.0, path = %file.path, attempt = attempts.made, %error, "retry");
            self.stats.chunks_retried.increment();
            self.tell_chunk(ChunkStep::Retried, file, lease.chunk(), *attempts, Some(&error));
            attempts.made += 1;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.fetcher.cut(lease.chunk()) => return Ok(()),
            }
        }
    }

    fn note_failure(&self, file: &LazyFile, error: &Error) {
        if error.kind() == Kind::Stale {
            return;
        }
        self.stats.errors.remember(&file.path, error);
        tracing::warn!(path = %file.path, ino = file.ino, kind = %error.kind(), %error, "chunk failed");
    }
}
