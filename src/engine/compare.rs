//! Source and local file side by side, without writing anything.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::core::range::ByteRange;
use crate::engine::file::{LazyFile, holes};
use crate::engine::{Engine, jitter, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::BackingFile;
use crate::store::verify::first_nonzero;

/// Bytes compared per request to the source.
const COMPARE_BYTES: u64 = 16 << 20;
const COMPARE_STEP: usize = 16 << 20;
/// Requests of one comparison at once.
const COMPARE_REQUESTS: usize = 4;

impl Engine {
    /// The first offset at which the source's version of `file` and `local` differ; `None` = they are equal. Costs a full read of both,
    /// at the lowest priority.
    ///
    /// # Errors
    /// As [`crate::source::Source::read`], after retries.
    pub(crate) async fn first_difference(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        local: &Arc<BackingFile>,
    ) -> Result<Option<u64>> {
        self.first_difference_in(file, local, &[ByteRange::new(0, file.size())]).await
    }

    /// As [`Engine::first_difference`], looking only at `wanted`: ranges in rising order that do not meet.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn first_difference_in(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        local: &Arc<BackingFile>,
        wanted: &[ByteRange],
    ) -> Result<Option<u64>> {
        let whole = ByteRange::new(0, file.size());
        let data = match file.attributes.is_sparse() {
            true => self.data_ranges(file).await?.unwrap_or_else(|| vec![whole]),
            false => vec![whole],
        };
        let holes = common(&holes(&data, file.size()), wanted);
        if let Some(offset) = self.first_nonzero_in(local, holes).await? {
            return Ok(Some(offset));
        }
        let pieces = common(&data, wanted).into_iter().flat_map(|run| {
            let starts = (run.start..run.end).step_by(COMPARE_STEP);
            starts.map(move |start| ByteRange::at(start, COMPARE_BYTES).intersect(run))
        });
        let mut compared = stream::iter(pieces)
            .map(|range| self.compare_with_retries(file, local, range))
            .buffered(COMPARE_REQUESTS);
        while let Some(difference) = compared.next().await {
            if let Some(offset) = difference? {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    async fn data_ranges(&self, file: &LazyFile) -> Result<Option<Vec<ByteRange>>> {
        let asked = self.source.data_ranges(&file.path, file.fingerprint());
        self.within_deadline("look for holes", asked).await
    }

    /// Where the source has holes the local file has to hold zeros.
    async fn first_nonzero_in(
        &self,
        local: &Arc<BackingFile>,
        holes: Vec<ByteRange>,
    ) -> Result<Option<u64>> {
        let local = Arc::clone(local);
        on_disk("look at holes", move || {
            for hole in holes {
                if let Some(offset) = first_nonzero(&local, hole)? {
                    return Ok(Some(offset));
                }
            }
            Ok(None)
        })
        .await
    }

    async fn compare_with_retries(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        local: &Arc<BackingFile>,
        range: ByteRange,
    ) -> Result<Option<u64>> {
        let mut tries = self.settings.retry.begin();
        loop {
            let error = match self.compare_range(file, local, range).await {
                Ok(difference) => return Ok(difference),
                Err(error) => error,
            };
            let Some(wait) = tries.wait_after(&error, jitter()) else {
                return Err(error);
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn compare_range(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        local: &Arc<BackingFile>,
        range: ByteRange,
    ) -> Result<Option<u64>> {
        let mut slot = self.background_permit().await;
        let mut reserved = self.limits.reserve(range.len())?;
        let stall = self.settings.stall;
        let late = |late| Error::new(Kind::Timeout, "compare with source").caused_by(late);
        let asked = self.source.read(&file.path, range, file.fingerprint());
        let mut theirs = tokio::time::timeout(stall, asked).await.map_err(late)??;
        let mut offset = range.start;
        while let Some(piece) = tokio::time::timeout(stall, theirs.next()).await.map_err(late)? {
            let piece = piece?;
            self.stats.bytes_fetched.add(piece.len() as u64);
            reserved.came(piece.len() as u64);
            if let Some(slot) = &mut slot {
                slot.ration.pay(piece.len() as u64, || false).await;
            }
            let (local, at) = (Arc::clone(local), offset);
            offset += piece.len() as u64;
            let compare = move || difference(&local, at, &piece);
            if let Some(offset) = on_disk("compare with source", compare).await? {
                return Ok(Some(offset));
            }
        }
        if offset != range.end {
            return Err(Error::new(Kind::Unreachable, "compare with source")
                .at(file.path.as_path())
                .because("the answer ended early"));
        }
        Ok(None)
    }
}

/// What lies in both; each in rising order, none meeting another of its own.
fn common(ranges: &[ByteRange], others: &[ByteRange]) -> Vec<ByteRange> {
    let mut common = Vec::new();
    let mut first = 0;
    for range in ranges {
        first += others[first..].partition_point(|other| other.end <= range.start);
        let meeting = others[first..].iter().take_while(|other| other.start < range.end);
        common.extend(meeting.map(|other| other.intersect(*range)));
    }
    common
}

/// The first offset at which the file's bytes from `at` on are not `piece`.
fn difference(local: &BackingFile, at: u64, piece: &Bytes) -> Result<Option<u64>> {
    let mut mine = vec![0; piece.len()];
    let read = local.read_at(at, &mut mine)?;
    if mine[..read] == piece[..] {
        return Ok(None);
    }
    let same = mine[..read].iter().zip(piece).take_while(|(a, b)| a == b).count();
    Ok(Some(at + same as u64))
}
