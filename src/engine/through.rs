//! Reads that are served straight from the source, unkept: the destination has no room, or cannot keep what it has.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::engine::file::LazyFile;
use crate::engine::read::FOR_EVER_LOOK;
use crate::engine::{Engine, jitter};
use crate::error::{Error, Kind, Result};

impl Engine {
    /// Serves a reader straight from the source. Takes a permit as any request does, so no more of them run at once, each with the
    /// bytes of its own request in memory; what fails for a moment is asked again within the deadline.
    pub(super) async fn read_through(&self, file: &LazyFile, want: ByteRange) -> Result<Vec<u8>> {
        let patience = self.settings.read_timeout.unwrap_or(FOR_EVER_LOOK);
        let begun = Instant::now();
        let permit = self.fetcher.permit(Priority::Demand);
        let _permit = within(patience, file, permit).await?;
        let mut attempt = 1;
        loop {
            let error = match self.ask_through(file, want, patience).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            if matches!(error.kind(), Kind::NotFound | Kind::Stale) {
                self.found_stale(file);
                return Err(error.kinded(Kind::Stale));
            }
            let wait = self.settings.retry.wait_after(attempt, &error, jitter());
            let Some(wait) = wait.filter(|wait| begun.elapsed() + *wait < patience) else {
                return Err(error);
            };
            self.stats.chunks_retried.increment();
            attempt += 1;
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask_through(
        &self,
        file: &LazyFile,
        want: ByteRange,
        patience: Duration,
    ) -> Result<Vec<u8>> {
        let asked = self.source.read(&file.path, want, file.fingerprint());
        let mut stream = within(patience, file, asked).await??;
        let mut bytes = Vec::with_capacity(usize::try_from(want.len()).unwrap_or(0));
        while let Some(piece) = within(patience, file, stream.next()).await? {
            let piece = piece?;
            self.stats.count_fetched(Priority::Demand, piece.len() as u64);
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
