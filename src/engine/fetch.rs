//! Chunk downloaders: from the source into backing files.
//!
//! A fetch task owns its lease. Whatever happens to who asked, it goes on; however it ends, all who wait are woken.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};

use crate::core::breaker::Pass;
use crate::core::claims::{Chunk, Lead, Lease};
use crate::core::ids::{ChunkId, Ids};
use crate::core::permits::{Acquired, Permit, Permits};
use crate::core::plan::{Pace, Reach};
use crate::core::priority::Priority;
use crate::core::quota::Reserved;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::engine::chunk_hasher::ChunkHasher;
use crate::engine::file::LazyFile;
use crate::engine::limits::{Limits, Ration};
use crate::engine::settings::EngineSettings;
use crate::engine::stats::Stats;
use crate::engine::switch::{Switch, SwitchState};
use crate::engine::{Engine, on_disk};
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
    pub(super) permits: Arc<Permits>,
    pub(super) limits: Arc<Limits>,
    /// Hands out chunk numbers.
    pub(crate) ids: Ids,
    /// Chunks that run, with the file they belong to.
    pub(super) active: Table<ChunkId, (Arc<Chunk>, Arc<LazyFile>)>,
    pace: Pace,
    stats: Arc<Stats>,
    stall: Duration,
    /// Ends chunks that nobody but hydration wants.
    switch: Arc<Switch>,
}

/// The right to one background request.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Permit,
    pub(super) ration: Ration,
}

/// What one chunk is fetched with.
pub(super) struct Means {
    pub(super) permit: Option<Permit>,
    pub(super) ration: Ration,
    pub(super) pass: Pass,
    /// What the first attempt need not ask for any more.
    pub(super) asked: Option<Asked>,
    pub(super) hasher: Option<ChunkHasher>,
}

/// A request under way.
pub(crate) struct Asked {
    range: ByteRange,
    begun: Instant,
    stream: ByteStream,
}

impl Asked {
    /// A request for `range` that began at `begun`, and is answered.
    pub(super) fn new(range: ByteRange, begun: Instant, stream: ByteStream) -> Self {
        Self { range, begun, stream }
    }

    pub(super) fn range(&self) -> ByteRange {
        self.range
    }
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
        limits: Arc<Limits>,
        first_chunk: u64,
    ) -> Self {
        let most = limits.settings().max_connections.unwrap_or(usize::MAX);
        let connections = source.traits().connections.max(2).min(most);
        let wanted = if settings.has_readers { RESERVED_FOR_DEMAND } else { 0 };
        let reserved = wanted.min(connections / 2);
        Self {
            permits: Permits::new(connections, reserved),
            pace: Pace::new(connections - reserved),
            ids: Ids::starting_at(first_chunk),
            active: Table::default(),
            stall: settings.stall,
            switch,
            limits,
            source,
            stats,
        }
    }

    /// How far ahead and in what pieces to fetch now.
    pub fn reach(&self) -> Reach {
        self.pace.reach()
    }

    /// Bytes that one connection brings in the time of a round trip; zero before the first measurement.
    pub(super) fn trip_bytes(&self) -> u64 {
        self.pace.trip_bytes()
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

    /// Asks once for what remains of the lease, unless that is what was `asked` for already.
    pub(super) async fn ask(
        &self,
        file: &LazyFile,
        lease: &Lease,
        asked: Option<Asked>,
    ) -> Result<Asked> {
        let range = lease.remaining();
        if let Some(asked) = asked.filter(|asked| asked.range == range) {
            return Ok(asked);
        }
        let begun = Instant::now();
        let asked = self.source.read(&file.path, range, file.fingerprint());
        let stream = self.moving(asked, lease).await??;
        Ok(Asked::new(range, begun, stream))
    }

    /// Lands what comes, and takes no more than may come.
    pub(super) async fn receive(
        &self,
        file: &Arc<LazyFile>,
        backing: &Arc<BackingFile>,
        lease: &mut Lease,
        means: &mut Means,
        mut reserved: Reserved,
        asked: Asked,
    ) -> Result<()> {
        let Asked { range, begun, mut stream } = asked;
        let mut first_byte = None;
        while !lease.remaining().is_empty() && !self.is_cut(lease.chunk()) {
            let gathered = self.gather(&mut stream, lease).await;
            let waited = *first_byte.get_or_insert_with(|| begun.elapsed());
            let bytes = gathered.bytes as u64;
            if bytes == lease.remaining().len() {
                means.permit = None; // nothing more travels: the next request need not wait for the disk
            }
            reserved.came(bytes);
            self.land(file, backing, lease, &mut means.hasher, gathered.pieces, gathered.bytes)
                .await?;
            if bytes > 0 {
                self.limits.tell_turn(means.pass.answers());
                let chunk = lease.chunk();
                means.ration.pay(bytes, || chunk.priority() != Priority::Hydration).await;
            }
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
    pub(super) fn is_cut(&self, chunk: &Chunk) -> bool {
        self.switch.state() == SwitchState::Stopped && chunk.priority() == Priority::Hydration
    }

    /// Waits until the chunk is to end now.
    pub(super) async fn cut(&self, chunk: &Chunk) {
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
        // Who copies the file waits as well, but for all of it.
        let is_urgent = || lease.is_awaited() && lease.chunk().priority() != Priority::Hydration;
        while gathered.bytes < WRITE_BYTES && gathered.end.is_none() {
            let next = match stream.next().now_or_never() {
                Some(ready) => ready,
                None if gathered.bytes == 0 => match self.moving(stream.next(), lease).await {
                    Ok(next) => next,
                    Err(stalled) => Some(Err(stalled)),
                },
                None if is_urgent() => break,
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
            let ration = engine.limits.at_once();
            engine.run_chunk(file, lease, permit, ration, None).await;
        });
    }

    /// Fetches a claimed chunk, with the right to it in hand, in a task of its own.
    pub(super) fn start_chunk(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        lease: Lease,
        slot: Slot,
        asked: Option<Asked>,
    ) {
        let Slot { permit, ration } = slot;
        let (engine, file) = (Arc::clone(self), Arc::clone(file));
        self.runtime.spawn(async move {
            engine.run_chunk(file, lease, Some(permit), ration, asked).await;
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
                if wanted.strong_count() == 0 || file.is_stale() || engine.limits.is_stopped() {
                    return;
                }
                let slot = Slot { permit, ration: engine.limits.at_once() };
                let Some(led) = engine.lead_with(&file, rest, Priority::Readahead, slot) else {
                    return;
                };
                rest = ByteRange::new(led.end, rest.end);
            }
        });
    }

    /// Leads the first free part of `range` with the right to it in hand; `None` if there is none. Returns the chunk's range.
    pub(crate) fn lead_with(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        range: ByteRange,
        priority: Priority,
        slot: Slot,
    ) -> Option<ByteRange> {
        let mut slot = slot;
        let chunk_bytes = self.reach().chunk.min(slot.ration.most());
        let now = Instant::now();
        match file.claims.lead(range, priority, chunk_bytes, &self.fetcher.ids, now) {
            Lead::Lease(lease) => {
                let led = lease.chunk().range;
                slot.ration.cut(led.len());
                self.start_chunk(file, lease, slot, None);
                Some(led)
            }
            Lead::Running | Lead::Failed(_) | Lead::Covered => None,
        }
    }

    /// Waits until hydration may make one more request.
    pub(crate) async fn background_permit(&self) -> Option<Slot> {
        // First the bytes: who waits for those takes no permit from readahead.
        let ration = self.limits.ration().await;
        let permit = self.fetcher.permit(Priority::Hydration).await?;
        Some(Slot { permit, ration })
    }
}
