//! Listing a directory by its index page.

use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Limits;
use super::answer::{check_identity, status_error};
use super::client::transport_error;
use super::index::{Format, Page, PageFeed, Sink, page, parse};
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
    let sink =
        Sink::new(directory.clone(), batches, origin.site.spelling, origin.limits.index_entries);
    let parse = move |page| parse(page, format, answer.url, sink);
    parse_arriving(&origin.limits, answer.response, parse).await
}

/// Parses a page on a blocking thread while it arrives.
///
/// # Errors
/// What keeps it from arriving whole; else as `parse`.
pub(in crate::source) async fn parse_arriving(
    limits: &Limits,
    response: Response,
    parse: impl FnOnce(Page) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (feed, page) = page();
    let parser = spawn_blocking(move || parse(page));
    // The feed's error is why the parser found the page cut.
    let fed = feed_page(limits, response, feed).await;
    let parsed = parser.await.map_err(|lost| Error::new(Kind::Io, OP).caused_by(lost))?;
    fed.and(parsed)
}

async fn feed_page(limits: &Limits, mut response: Response, feed: PageFeed) -> Result<()> {
    let mut size = 0;
    while let Some(piece) = next_piece(OP, &mut response, limits.index_stall).await? {
        size += piece.len() as u64;
        if size > limits.index_size_bytes {
            return Err(Error::new(Kind::Invalid, OP)
                .because(format!("endless listing: more than {} bytes", limits.index_size_bytes)));
        }
        if feed.piece(piece).await.is_err() {
            // The parser knows why it stopped.
            return Ok(());
        }
    }
    feed.end().await;
    Ok(())
}

/// What comes next of a page; `None` at its end.
///
/// # Errors
/// As [`transport_error`] has it; `Timeout` if nothing comes.
pub(in crate::source) async fn next_piece(
    op: &'static str,
    response: &mut Response,
    stall: Duration,
) -> Result<Option<Bytes>> {
    match timeout(stall, response.chunk()).await {
        Ok(piece) => piece.map_err(|error| transport_error(op, error)),
        Err(_elapsed) => Err(Error::new(Kind::Timeout, op)
            .because(format!("nothing came for {} s", stall.as_secs()))),
    }
}
