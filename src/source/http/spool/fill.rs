//! Filling a spool: one body from start to end, tried again from the start if it is cut.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderMap;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::file::{Progress, Spool};
use super::{Joined, Owned};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::http::answer::{Version, check_identity, content_length, stale, status_error};
use crate::source::http::client::{Answer, first_bytes_headers, transport_error};
use crate::source::http::origin::Origin;

const OP: &str = "spool file";
/// How often a body is asked for in all.
const ATTEMPTS: u32 = 3;
/// Bytes compared at once when a body comes again.
const COMPARED: usize = 64 * 1024;

/// Opens the spool of `path`, of the body `given` or of a new one; finds out whether the server keeps to ranges.
pub(super) async fn open(
    origin: Arc<Origin>,
    path: &RelPath,
    given: Option<Answer>,
) -> Result<Joined> {
    let answer = match given {
        Some(answer) => answer,
        None => origin.get(OP, path, first_bytes_headers(1)).await?,
    };
    match answer.response.status() {
        // 416: there is no first byte, so the range was looked at.
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            origin.keeps_ranges(true);
            return Ok(Joined::RangesWork);
        }
        StatusCode::OK => origin.keeps_ranges(false),
        status => return Err(status_error(status, answer.response.headers(), OP)),
    }
    let version = version_of(&answer)?;
    tracing::info!(path = %path, "the server ignores ranges: the file is read once, in order");
    let directory = origin.spool_directory.clone();
    let file = spawn_blocking(move || {
        tempfile::tempfile_in(&directory).map_err(|error| Error::io(OP, error).at(&directory))
    })
    .await
    .map_err(|lost| Error::new(Kind::Io, OP).caused_by(lost))??;
    let file = Arc::new(file);
    let (progress, landed) = watch::channel(Progress::default());
    let fill = Fill {
        origin,
        path: path.clone(),
        version: version.clone(),
        file: Arc::clone(&file),
        progress,
    };
    let task = Owned(tokio::spawn(fill.run(answer)));
    Ok(Joined::Spooled(Arc::new(Spool::new(path.clone(), version, file, landed, task))))
}

fn version_of(answer: &Answer) -> Result<Version> {
    let headers = answer.response.headers();
    check_identity(headers, OP)?;
    Ok(Version::of(headers, content_length(headers)?))
}

/// The work of filling one spool.
#[derive(Debug)]
struct Fill {
    origin: Arc<Origin>,
    path: RelPath,
    version: Version,
    file: Arc<File>,
    progress: watch::Sender<Progress>,
}

impl Fill {
    async fn run(self, first: Answer) {
        let mut result = self.pour(first).await;
        for attempt in 1..ATTEMPTS {
            let Err(error) = &result else { break };
            if !error.is_transient() {
                break;
            }
            tracing::debug!(path = %self.path, attempt, err = %error, "spool starts again");
            let own = self.origin.limits.spool_retry * (1 << (attempt - 1));
            // A server may ask for an hour; the readers' deadlines are shorter.
            let wait = error.requested_wait().unwrap_or(own).min(self.origin.limits.head_timeout);
            sleep(wait).await;
            result = self.again().await;
        }
        self.progress.send_modify(|progress| progress.end = Some(result));
    }

    async fn again(&self) -> Result<()> {
        let answer = self.origin.get(OP, &self.path, HeaderMap::new()).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(status_error(answer.response.status(), answer.response.headers(), OP));
        }
        if !self.version.is_same_as(&version_of(&answer)?) {
            return Err(stale(OP));
        }
        self.pour(answer).await
    }

    /// Takes a whole body.
    async fn pour(&self, mut answer: Answer) -> Result<()> {
        let mut offset = 0;
        loop {
            let stall = self.origin.limits.spool_stall;
            let piece = match timeout(stall, answer.response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(transport_error(OP, error)),
                Err(_elapsed) => {
                    return Err(Error::new(Kind::Timeout, OP)
                        .because(format!("nothing came for {} s", stall.as_secs())));
                }
            };
            let start = offset;
            offset += piece.len() as u64;
            if offset > self.origin.limits.spool_size_bytes {
                return Err(Error::new(Kind::Limit, OP).because(format!(
                    "longer than {} bytes",
                    self.origin.limits.spool_size_bytes
                )));
            }
            let (file, landed) = (Arc::clone(&self.file), self.progress.borrow().landed);
            spawn_blocking(move || keep(&file, &piece, start, landed))
                .await
                .map_err(|lost| Error::new(Kind::Io, OP).caused_by(lost))??;
            if offset > landed {
                self.progress.send_modify(|progress| progress.landed = offset);
            }
        }
        let is_short = self.version.size.is_some_and(|size| size > offset);
        if is_short || offset < self.progress.borrow().landed {
            return Err(Error::new(Kind::Unreachable, OP).because("connection cut"));
        }
        Ok(())
    }
}

/// Writes what is new of `piece`, which lies at `start`; what was read before must come again the same.
fn keep(file: &File, piece: &Bytes, start: u64, landed: u64) -> Result<()> {
    let known = usize::try_from(landed.saturating_sub(start)).unwrap_or(usize::MAX);
    let (old, new) = piece.split_at(known.min(piece.len()));
    let mut buffer = [0; COMPARED];
    let mut offset = start;
    for old in old.chunks(COMPARED) {
        let before = &mut buffer[..old.len()];
        file.read_exact_at(before, offset).map_err(|error| Error::io(OP, error))?;
        if before != old {
            return Err(stale(OP));
        }
        offset += old.len() as u64;
    }
    file.write_all_at(new, offset).map_err(|error| Error::io(OP, error))
}
