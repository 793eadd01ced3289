//! Reads that are served straight from the source, unkept: the destination has no room, or cannot keep what it has.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::engine::attempts::{is_answer, is_failure};
use crate::engine::file::LazyFile;
use crate::engine::read::FOR_EVER_LOOK;
use crate::engine::{Engine, jitter};
use crate::error::{Error, Kind, Result};

impl Engine {
    /// Serves a reader straight from the source. Takes a permit as any request does, so no more of them run at once, each with the
    /// bytes of its own request in memory; what fails for a moment is asked again within the deadline.
    pub(super) async fn read_through(&self, file: &LazyFile, want: ByteRange) -> Result<Vec<u8>> {
        let patience = self.settings.read_timeout.unwrap_or(FOR_EVER_LOOK);
        let permit = self.fetcher.permit(Priority::Demand);
        let _permit = within(patience, file, permit).await?;
        let at = |error: Error| error.at(file.path.as_path());
        let pass = self.limits.admit().map_err(at)?;
        let result = self.read_with_retries(file, want, patience).await;
        let turn = match &result {
            Ok(_) => pass.answered(),
            Err(error) if is_answer(error) => pass.answered(),
            Err(error) if is_failure(error) && !self.source.is_away() => {
                pass.failed(error, Instant::now())
            }
            Err(_) => return result,
        };
        self.limits.tell_turn(turn);
        result
    }

    async fn read_with_retries(
        &self,
        file: &LazyFile,
        want: ByteRange,
        patience: Duration,
    ) -> Result<Vec<u8>> {
        let begun = Instant::now();
        let mut tries = self.settings.retry.begin();
        loop {
            let began = Instant::now();
            let error = match self.ask_through(file, want, patience).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            self.spare_source(&error, began);
            if matches!(error.kind(), Kind::NotFound | Kind::Stale) {
                self.found_stale(file);
                return Err(error.kinded(Kind::Stale));
            }
            let wait = tries.wait_after(&error, jitter());
            let Some(wait) = wait.filter(|wait| begun.elapsed() + *wait < patience) else {
                return Err(error);
            };
            self.stats.chunks_retried.increment();
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask_through(
        &self,
        file: &LazyFile,
        want: ByteRange,
        patience: Duration,
    ) -> Result<Vec<u8>> {
        let mut reserved =
            self.limits.reserve(want.len()).map_err(|error| error.at(file.path.as_path()))?;
        let mut ration = self.limits.at_once();
        let asked = self.source.read(&file.path, want, file.fingerprint());
        let mut stream = within(patience, file, asked).await??;
        let mut bytes = Vec::with_capacity(usize::try_from(want.len()).unwrap_or(0));
        while let Some(piece) = within(patience, file, stream.next()).await? {
            let piece = piece?;
            self.stats.count_fetched(Priority::Demand, piece.len() as u64);
            reserved.came(piece.len() as u64);
            ration.pay(piece.len() as u64, || true).await;
            if (bytes.len() + piece.len()) as u64 > want.len() {
                return Err(Error::new(Kind::Corrupt, "read")
                    .at(file.path.as_path())
                    .because("the source sent more bytes than were asked for"));
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() as u64 != want.len() {
            return Err(Error::new(Kind::Unreachable, "read")
                .at(file.path.as_path())
                .because("the answer ended early"));
        }
        Ok(bytes)
    }
}

async fn within<T>(
    patience: Duration,
    file: &LazyFile,
    next: impl Future<Output = T>,
) -> Result<T> {
    tokio::time::timeout(patience, next).await.map_err(|late| {
        Error::new(Kind::Timeout, "read")
            .at(file.path.as_path())
            .because(format!("no byte arrived from the source for {patience:?}"))
            .caused_by(late)
    })
}
