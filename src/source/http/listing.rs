//! Listing a directory by its index page.

use http::header::HeaderMap;
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::answer::{check_identity, status_error};
use super::client::transport_error;
use super::index::{Format, PageFeed, Sink, page, parse};
use super::origin::Origin;
use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};

const OP: &str = "list directory";

/// See [`crate::source::Source::list`].
pub(super) async fn list(
    origin: &Origin,
    directory: &RelPath,
    batches: mpsc::Sender<ListBatch>,
) -> Result<()> {
    if let Some(name) = origin.site.single_file() {
        if !directory.is_root() {
            return Err(Error::new(Kind::Invalid, OP).because("not a directory"));
        }
        let entry = Entry { name: name.clone(), kind: EntryKind::File, attributes: None };
        // A receiver that is gone has all it wanted.
        drop(batches.send(ListBatch { entries: vec![entry], refused: 0 }).await);
        return Ok(());
    }
    let url = origin.site.directory_url(directory);
    let answer = origin.client.send(OP, Method::GET, url, HeaderMap::new()).await?;
    let (status, headers) = (answer.response.status(), answer.response.headers());
    if status != StatusCode::OK {
        return Err(status_error(status, headers, OP));
    }
    check_identity(headers, OP)?;
    let format = Format::of(headers).ok_or_else(|| {
        Error::new(Kind::Invalid, OP).because("the server gives no index of this directory")
    })?;
    let (feed, page) = page();
    let sink =
        Sink::new(directory.clone(), batches, origin.site.spelling, origin.limits.index_entries);
    let parser = spawn_blocking(move || parse(page, format, answer.url, sink));
    // The feed's error is why the parser found the page cut.
    let fed = feed_page(origin, answer.response, feed).await;
    let parsed = parser.await.map_err(|lost| Error::new(Kind::Io, OP).caused_by(lost))?;
    fed.and(parsed)
}

async fn feed_page(origin: &Origin, mut response: Response, feed: PageFeed) -> Result<()> {
    let mut size = 0;
    loop {
        let next = timeout(origin.limits.index_stall, response.chunk()).await;
        let piece = match next {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(transport_error(OP, error)),
            Err(_elapsed) => {
                return Err(Error::new(Kind::Timeout, OP).because(format!(
                    "nothing came for {} s",
                    origin.limits.index_stall.as_secs()
                )));
            }
        };
        size += piece.len() as u64;
        if size > origin.limits.index_size_bytes {
            return Err(Error::new(Kind::Invalid, OP).because(format!(
                "endless listing: more than {} bytes",
                origin.limits.index_size_bytes
            )));
        }
        if feed.piece(piece).await.is_err() {
            // The parser knows why it stopped.
            return Ok(());
        }
    }
    feed.end().await;
    Ok(())
}
