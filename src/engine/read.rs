//! From backing files to readers.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::claims::{Claim, Waiter};
use crate::core::ids::Ids;
use crate::core::phase::Phase;
use crate::core::plan::ReadPlanner;
use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::engine::file::LazyFile;
use crate::engine::node::Node;
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::BackingFile;
use crate::sync::Ordering;

/// A demand chunk holds the blocks of one request, which never exceeds this.
const DEMAND_CHUNK: u64 = 16 << 20;
/// Patience with each step of a read that waits for ever.
pub(super) const FOR_EVER_LOOK: Duration = Duration::from_secs(30);
/// Times that a read is fetched and taken back again before it is served straight from the source.
const ROUNDS: u32 = 64;
/// Longest time between two looks at whether a read that waits makes progress.
const LOOK: Duration = Duration::from_millis(250);

/// Open handles.
#[derive(Debug, Default)]
pub struct Handles {
    ids: Ids,
    open: Table<u64, Arc<Handle>>,
}

/// One open file.
#[derive(Debug)]
pub struct Handle {
    /// The file.
    pub file: Arc<LazyFile>,
    planner: ReadPlanner,
    /// The plain file that it was when it was opened, if it was one.
    published: Option<Arc<BackingFile>>,
}

impl Handle {
    /// What its streams are about to read.
    pub(super) fn ahead(&self) -> Vec<ByteRange> {
        self.planner.ahead()
    }
}

impl Handles {
    pub(super) fn all(&self) -> Vec<Arc<Handle>> {
        self.open.values()
    }
}

/// The answer of a read that may not wait.
#[derive(Debug)]
pub enum TryRead {
    /// That many bytes are in the buffer.
    Hit(usize),
    /// Call [`Engine::read`].
    Miss,
}

impl Engine {
    /// Opens a file; fetches nothing. Returns the handle's number.
    ///
    /// # Errors
    /// `Stale` for an old version, `Invalid` for what is no regular file.
    pub fn open_file(self: &Arc<Self>, node: &Node) -> Result<u64> {
        let file = node.file()?;
        if file.is_stale() && file.phase.get() != Phase::Published {
            return Err(stale(file));
        }
        file.claims.forget_failures();
        file.open_handles.fetch_add(1, Ordering::Relaxed);
        self.cache.touch(file);
        let number = self.handles.ids.next();
        // Asked of the file itself: it may be evicted, and begun anew, at any time.
        let published = file.backing().filter(|backing| backing.published_path().is_some());
        let handle = Handle { file: Arc::clone(file), planner: ReadPlanner::default(), published };
        self.handles.open.insert(number, Arc::new(handle));
        self.seal_if_complete(file);
        Ok(number)
    }

    /// Closes a handle. What it asked for goes on; what it planned ahead stops.
    pub fn release(&self, handle: u64) {
        if let Some(handle) = self.handles.open.remove(&handle) {
            self.cache.touch(&handle.file);
            handle.file.open_handles.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The open handle of that number.
    ///
    /// # Errors
    /// `Invalid` if there is none.
    pub fn handle(&self, number: u64) -> Result<Arc<Handle>> {
        self.handles.open.get(&number).ok_or_else(|| Error::new(Kind::Invalid, "find open file"))
    }

    /// Files open now.
    pub fn open_count(&self) -> usize {
        self.handles.open.len()
    }

    /// Reads into `buffer` what is here, without ever waiting.
    ///
    /// # Errors
    /// `Stale` if this version cannot be had any more.
    pub fn try_read(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<TryRead> {
        let file = &handle.file;
        let want = ByteRange::at(offset, buffer.len() as u64).clip(file.size());
        if want.is_empty() {
            return Ok(TryRead::Hit(0));
        }
        let published = file.phase.get() == Phase::Published;
        if file.is_stale() && !published {
            return Err(stale(file));
        }
        if !published {
            let plan = handle.planner.on_read(want, file.size(), self.reach());
            if let Some(plan) = plan
                && !self.room.is_short()
                && !file.claims.covers(plan)
            {
                self.fetch_ahead(file, plan, Arc::downgrade(handle));
            }
        }
        let Some(since) = file.claims.covered_since(want) else {
            return Ok(TryRead::Miss);
        };
        let buffer = &mut buffer[..usize::try_from(want.len()).unwrap_or(usize::MAX)];
        let Some(backing) = file.backing() else {
            buffer.fill(0); // present without a backing file: holes
            return Ok(if file.claims.still_covers(want, since) {
                self.hit(buffer.len())
            } else {
                TryRead::Miss
            });
        };
        match backing.try_read_at(want.start, buffer) {
            Ok(Some(read)) if read == buffer.len() && file.claims.still_covers(want, since) => {
                Ok(self.hit(read))
            }
            _ => Ok(TryRead::Miss),
        }
    }

    fn hit(&self, bytes: usize) -> TryRead {
        self.stats.reads_hit.increment();
        self.stats.bytes_served.add(bytes as u64);
        TryRead::Hit(bytes)
    }

    /// Learns where a sparse file holds data, once.
    ///
    /// # Errors
    /// `Stale`; `Timeout` at the deadline.
    pub async fn ensure_layout(&self, file: &LazyFile) -> Result<()> {
        self.within_deadline("find holes", file.ensure_layout(&*self.source)).await
    }

    /// As [`Engine::ensure_layout`] for a reader: its deadline counts once, and who asks again meanwhile is told at once.
    async fn layout_for_read(&self, file: &LazyFile, want: ByteRange) -> Result<()> {
        let late = file.claims.failed(want, Instant::now());
        if let Some(error) = late.filter(|error| error.kind() == Kind::Timeout) {
            return Err(error);
        }
        loop {
            match self.ensure_layout(file).await {
                Err(error) if error.kind() == Kind::Timeout => {
                    if self.settings.read_timeout.is_some() {
                        let until = Instant::now() + self.settings.failure_memory();
                        file.claims.remember_failure(want, error.clone(), until);
                        return Err(error);
                    }
                }
                known => return known,
            }
        }
    }

    /// Reads `len` bytes at `offset`, fetching what is missing; fewer only at the end of the file.
    ///
    /// # Errors
    /// `Timeout` after the deadline without progress, `Stale`, or what the source answered.
    ///
    /// # Cancel safety
    /// Dropping it harms nobody: what it asked for goes on.
    pub async fn read(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>> {
        let want = ByteRange::at(offset, len).clip(file.size());
        let result = self.read_range(file, want).await;
        match &result {
            Ok(bytes) => {
                self.stats.reads_waited.increment();
                self.stats.bytes_served.add(bytes.len() as u64);
            }
            Err(error) => {
                self.stats.reads_failed.increment();
                tracing::debug!(path = %file.path, range = %want, %error, "read failed");
            }
        }
        result
    }

    async fn read_range(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        want: ByteRange,
    ) -> Result<Vec<u8>> {
        self.restore(file).await;
        // What it waits for stays until it was copied out.
        let _pin = self.cache.is_limited().then(|| file.claims.pin(want));
        for round in 0.. {
            self.layout_for_read(file, want).await?;
            if file.is_stale() && file.phase.get() != Phase::Published {
                return Err(stale(file));
            }
            let has_room = !self.room.is_short() && round < ROUNDS;
            if !has_room && !file.claims.covers(want) {
                return self.read_through(file, want).await;
            }
            match self.claim(file, want) {
                Claim::Covered => {
                    let Some(since) = file.claims.covered_since(want) else { continue };
                    match self.copy_out(file, want).await {
                        Ok(bytes) if file.claims.still_covers(want, since) => return Ok(bytes),
                        Ok(_) => {}
                        Err(error) if error.is_of_destination() => {
                            tracing::warn!(path = %file.path, %error, "served from the source");
                            return self.read_through(file, want).await;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Claim::Failed(error) if error.is_of_destination() => {
                    return self.read_through(file, want).await;
                }
                Claim::Failed(error) => return Err(error),
                Claim::Pending { leases, waiter } => {
                    for lease in leases {
                        self.start_fetch(file, lease, Priority::Demand);
                    }
                    self.wait(file, waiter).await?;
                }
            }
        }
        self.read_through(file, want).await
    }

    fn claim(&self, file: &LazyFile, want: ByteRange) -> Claim {
        let ids = &self.fetcher.ids;
        // Claims live behind an Arc so that leases can outlast who asked.
        file.claims.claim(want, Priority::Demand, DEMAND_CHUNK, ids, Instant::now())
    }

    /// Waits until the waiter is woken; fails when nothing arrives for the deadline.
    async fn wait(&self, file: &LazyFile, mut waiter: Waiter) -> Result<()> {
        if tracing::enabled!(tracing::Level::TRACE) {
            let running = file.claims.running_in(waiter.want());
            let chunks: Vec<u64> = running.iter().map(|chunk| chunk.id.0).collect();
            tracing::trace!(ino = file.ino, want = %waiter.want(), ?chunks, "read waits");
        }
        let patience = self.settings.read_timeout.unwrap_or(FOR_EVER_LOOK);
        let look = (patience / 4).min(LOOK);
        // Side by side, not added: what lands in the chunk is lacking no longer.
        let life = |waiter: &Waiter| (file.claims.signs_of_life(waiter.want()), waiter.lacking());
        let (mut before, mut since) = (life(&waiter), Instant::now());
        loop {
            if tokio::time::timeout(look, waiter.signal()).await.is_ok() {
                self.stats.wake_ups.increment();
                return Ok(());
            }
            let now = life(&waiter);
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() >= patience && self.settings.read_timeout.is_some() {
                let error = Error::new(Kind::Timeout, "read")
                    .at(file.path.as_path())
                    .because(format!("no byte arrived from the source for {patience:?}"));
                let until = Instant::now() + self.settings.failure_memory();
                file.claims.remember_failure(waiter.want(), error.clone(), until);
                return Err(error);
            }
        }
    }

    /// Copies bytes out of the backing file; holes where there is none.
    async fn copy_out(&self, file: &Arc<LazyFile>, want: ByteRange) -> Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(want.len()).unwrap_or(usize::MAX)];
        let Some(backing) = file.backing() else { return Ok(buffer) };
        if let Ok(Some(read)) = backing.try_read_at(want.start, &mut buffer)
            && read == buffer.len()
        {
            return Ok(buffer);
        }
        let read = on_disk("read backing file", move || {
            let read = backing.read_at(want.start, &mut buffer)?;
            Ok((read, buffer))
        });
        let patience = self.settings.read_timeout.unwrap_or(FOR_EVER_LOOK);
        let (read, buffer) = tokio::time::timeout(patience, read)
            .await
            .map_err(|late| {
                Error::new(Kind::Timeout, "read backing file")
                    .at(file.path.as_path())
                    .because(format!("the destination's disk did not answer for {patience:?}"))
                    .caused_by(late)
            })?
            .map_err(Error::of_destination)?;
        if read < buffer.len() {
            return Err(Error::new(Kind::Io, "read backing file")
                .at(file.path.as_path())
                .because("it is shorter than it should be; somebody truncated it")
                .of_destination());
        }
        Ok(buffer)
    }

    /// Keeps what is open readable, whatever becomes of the names in the destination. Blocking.
    pub fn keep_open_files(&self) {
        for handle in self.handles.all() {
            for backing in handle.published.iter().cloned().chain(handle.file.backing()) {
                if let Err(error) = backing.keep_open() {
                    tracing::warn!(path = %handle.file.path, %error, "an open file cannot be held");
                }
            }
        }
    }

    /// The descriptor of a published file, for the kernel to read by itself. It stays the one that the handle has, whatever becomes of
    /// the file: what it occupies counts until the handle is closed.
    pub fn published_descriptor(&self, handle: &Handle) -> Option<Arc<OwnedFd>> {
        handle.published.as_ref().and_then(|published| published.descriptor().ok())
    }
}

fn stale(file: &LazyFile) -> Error {
    Error::new(Kind::Stale, "read")
        .at(file.path.as_path())
        .because("the file has changed at the source since it was opened")
        .hint("open it again")
}
