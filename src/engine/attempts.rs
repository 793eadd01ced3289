//! One chunk from its claim to its end: attempts, what stands in their way, and what becomes of who waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::claims::Lease;
use crate::core::permits::Permit;
use crate::core::phase::Phase;
use crate::core::priority::Priority;
use crate::core::retry::RetryPolicy;
use crate::engine::cache::FULL;
use crate::engine::events::{Attempts, ChunkStep};
use crate::engine::fetch::{Asked, Means};
use crate::engine::file::LazyFile;
use crate::engine::limits::Ration;
use crate::engine::{Engine, jitter};
use crate::error::{Error, Kind, Result};
use crate::store::BackingFile;

/// How a chunk ended that the source did not fail.
enum Ended {
    /// All of it came.
    Landed,
    /// All of it was here already: nobody was asked.
    Known,
    /// Not begun, or not finished, because something is in the way that is nobody's failure: `Limit`, or the source is not asked now.
    Refused(Error),
    /// Others go first, or it was stopped.
    Yielded,
}

impl Engine {
    /// Fetches one chunk to its end, with retries that resume where the last attempt stopped.
    pub(super) async fn run_chunk(
        self: &Arc<Self>,
        file: Arc<LazyFile>,
        mut lease: Lease,
        permit: Option<Permit>,
        ration: Ration,
        asked: Option<Asked>,
    ) {
        let chunk = Arc::clone(lease.chunk());
        let entry = (Arc::clone(&chunk), Arc::clone(&file));
        self.fetcher.active.insert(chunk.id, entry);
        self.stats.chunks_begun.increment();
        tracing::trace!(chunk = chunk.id.0, ino = file.ino, path = %file.path, range = %chunk.range, "chunk enter");
        let (mut part, mut attempts) = (None, Attempts::begin());
        let result = match self.limits.admit() {
            Ok(pass) => {
                let mut means = Means { permit, ration, pass, asked, hasher: None };
                let fetched = self.fetch_with_retries(
                    &file,
                    &mut lease,
                    &mut part,
                    &mut means,
                    &mut attempts,
                );
                let result = fetched.await;
                self.learn(means, &result);
                result
            }
            Err(error) => Ok(Ended::Refused(error)),
        };
        self.fetcher.active.remove(&chunk.id);
        tracing::trace!(chunk = chunk.id.0, ino = file.ino, ok = result.is_ok(), "chunk exit");
        match &result {
            Ok(Ended::Landed | Ended::Known) => {
                self.tell_chunk(ChunkStep::Complete, &file, &chunk, attempts, None);
            }
            Err(error) if !self.cache.is_full(error) => {
                self.tell_chunk(ChunkStep::Failed, &file, &chunk, attempts, Some(error));
            }
            Ok(Ended::Refused(_) | Ended::Yielded) | Err(_) => {}
        }
        self.end_chunk(&file, lease, part, result).await;
    }

    /// What the end of a chunk says of the source.
    fn learn(&self, means: Means, result: &Result<Ended>) {
        let turn = match result {
            Ok(Ended::Landed) => means.pass.answered(),
            Err(error) if is_answer(error) => means.pass.answered(),
            Err(error) if is_failure(error) && !self.source.is_away() => {
                means.pass.failed(error, Instant::now())
            }
            Ok(_) | Err(_) => return,
        };
        self.limits.tell_turn(turn);
    }

    async fn end_chunk(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        lease: Lease,
        part: Option<Arc<BackingFile>>,
        result: Result<Ended>,
    ) {
        let chunk = Arc::clone(lease.chunk());
        let error = match result {
            Ok(Ended::Landed | Ended::Known) => {
                self.stats.chunks_done.increment();
                lease.commit();
                self.note_landed(file, chunk.range.len());
                self.seal_if_complete(file);
                return;
            }
            Ok(Ended::Yielded) => None,
            Ok(Ended::Refused(error)) => Some(error),
            Err(error) if self.cache.is_full(&error) => Some(error),
            Err(error) => {
                self.give_back_room(part, &lease).await;
                if error.kind() == Kind::NoSpace {
                    self.room.ran_out(&error);
                }
                self.stats.chunks_failed.increment();
                self.note_landed(file, chunk.landed());
                self.note_failure(file, &error);
                let until = Instant::now() + self.settings.failure_memory();
                lease.fail(error.at(file.path.as_path()), until);
                return;
            }
        };
        self.stats.chunks_begun.sub(1); // it never really was
        self.note_landed(file, chunk.landed());
        self.give_back_room(part, &lease).await;
        match (chunk.priority(), error) {
            // Who waits for it reads straight through, or is told.
            (Priority::Demand, Some(error)) => {
                lease.fail(error.at(file.path.as_path()), Instant::now() + FULL);
            }
            // Who waits for it all the same looks again, and asks for it himself.
            _ => drop(lease),
        }
    }

    async fn fetch_with_retries(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        lease: &mut Lease,
        part: &mut Option<Arc<BackingFile>>,
        means: &mut Means,
        attempts: &mut Attempts,
    ) -> Result<Ended> {
        if file.is_stale() {
            return Err(Error::new(Kind::Stale, "read from source").at(file.path.as_path()));
        }
        // Before any part is made: what an earlier life left and what lands now lie in one file.
        self.restore(file).await;
        if file.phase.get() == Phase::Published {
            return Ok(Ended::Known);
        }
        let backing =
            file.ensure_backing(&self.destination).await.map_err(Error::of_destination)?;
        *part = Some(Arc::clone(&backing));
        file.phase.advance(Phase::Filling);
        file.note_request();
        let mut tries = self.settings.retry.begin();
        loop {
            let reserved = match self.limits.reserve(lease.remaining().len()) {
                Ok(reserved) => reserved,
                Err(refused) => return Ok(Ended::Refused(refused)),
            };
            let began = Instant::now();
            let attempt = async {
                let asked = self.fetcher.ask(file, lease, means.asked.take()).await?;
                // Only for a source that answers: one that does not takes nobody's place.
                self.make_room(file, &backing, lease).await?;
                self.fetcher.receive(file, &backing, lease, means, reserved, asked).await
            };
            let Err(error) = attempt.await else {
                if self.fetcher.permits.served() {
                    let (limit, most) = self.fetcher.permits.limits();
                    self.tell_connections(limit, most);
                }
                // What landed stays; the rest is begun again.
                let is_whole = lease.remaining().is_empty();
                return Ok(if is_whole { Ended::Landed } else { Ended::Yielded });
            };
            if self.fetcher.is_cut(lease.chunk()) {
                return Ok(Ended::Yielded);
            }
            // What did not reach the disk was hashed already: it is not asked for again under this lease.
            if error.is_of_destination() {
                return Err(error);
            }
            // A file that is gone is another version for who has it open.
            if matches!(error.kind(), Kind::NotFound | Kind::Stale) {
                self.found_stale(file);
                return Err(error.kinded(Kind::Stale));
            }
            self.spare_source(&error, began);
            let Some(wait) = tries.wait_after(&error, jitter()) else {
                return Err(error);
            };
            tracing::debug!(chunk = lease.chunk().id.0, path = %file.path, %error, ?wait, "retry");
            self.stats.chunks_retried.increment();
            self.tell_chunk(ChunkStep::Retried, file, lease.chunk(), *attempts, Some(&error));
            attempts.made += 1;
            if !self.pause(lease, means, wait).await {
                return Ok(Ended::Yielded);
            }
        }
    }

    /// Fewer requests at once, if the source asked for that.
    pub(super) fn spare_source(&self, error: &Error, began: Instant) {
        if error.kind() != Kind::Busy {
            return;
        }
        if !Arc::ptr_eq(&self.stat_permits, &self.fetcher.permits) {
            self.stat_permits.spare(began, Instant::now());
        }
        if let Some(limit) = self.fetcher.permits.spare(began, Instant::now()) {
            tracing::info!(limit, %error, "the source asks to be spared: fewer requests at once");
            self.tell_connections(limit, self.fetcher.permits.limits().1);
        }
        if let Some(wait) = error.requested_wait() {
            self.limits.rest(wait.min(self.settings.retry.cap));
        }
    }

    /// Asks again while the source asks for patience.
    pub(super) async fn patiently<T, F: Future<Output = Result<T>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T> {
        patiently(self.settings.retry, |error, began| self.spare_source(error, began), ask).await
    }

    /// Waits before the next attempt, and for a permit if too many are in use by then. `false`: it is not worth that, since nobody waits
    /// for the chunk, or it is stopped.
    async fn pause(&self, lease: &Lease, means: &mut Means, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.fetcher.cut(lease.chunk()) => return false,
        }
        if !means.permit.as_ref().is_some_and(Permit::is_over) {
            return true;
        }
        means.permit = None;
        if lease.chunk().priority() != Priority::Demand {
            return false;
        }
        means.permit = self.fetcher.permit(Priority::Demand).await;
        true
    }

    fn note_failure(&self, file: &LazyFile, error: &Error) {
        if error.kind() == Kind::Stale {
            return;
        }
        self.stats.errors.remember(&file.path, error);
        tracing::warn!(path = %file.path, ino = file.ino, kind = %error.kind(), %error, "chunk failed");
    }
}

/// Asks again while the source asks for patience, and tells each time.
///
/// # Errors
/// The last answer, if all patience of `retry` is used up; any other error at once.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(
    retry: RetryPolicy,
    tell: impl Fn(&Error, Instant),
    ask: impl Fn() -> F,
) -> Result<T> {
    let mut tries = retry.begin();
    loop {
        let began = Instant::now();
        let error = match ask().await {
            Err(error) if error.kind() == Kind::Busy => error,
            answered => return answered,
        };
        tell(&error, began);
        let Some(wait) = tries.wait_after(&error, jitter()) else {
            return Err(error);
        };
        tokio::time::sleep(wait).await;
    }
}

/// Whether the source is well, although it does not give the file.
pub(super) fn is_answer(error: &Error) -> bool {
    !error.is_of_destination()
        && matches!(error.kind(), Kind::NotFound | Kind::Stale | Kind::Denied | Kind::Archived)
}

/// Whether the source, and not the file alone, may be to blame.
pub(super) fn is_failure(error: &Error) -> bool {
    let is_its_own = matches!(
        error.kind(),
        Kind::Timeout | Kind::Unreachable | Kind::Busy | Kind::Io | Kind::Corrupt
    );
    is_its_own && !error.is_of_destination()
}
