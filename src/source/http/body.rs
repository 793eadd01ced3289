//! Reading a range: one request whose answer is checked before its first byte is passed on.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;

use super::answer::{
    ContentRange, Version, check_identity, content_length, possible_size, stale, status_error,
};
use super::client::{Answer, first_bytes_headers, range_headers, transport_error};
use super::origin::{Origin, file_attributes};
use super::spool::{Joined, Spool, Spools};
use crate::core::attributes::Fingerprint;
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::{ByteStream, FirstLook};

const OP: &str = "read file";

/// Bytes of a range, and the version that the server said they are of.
pub(super) struct Body {
    pub(super) bytes: ByteStream,
    pub(super) version: Fingerprint,
}

impl Body {
    fn spooled(spool: Arc<Spool>, range: ByteRange, expected: &Fingerprint) -> Self {
        let version = spool.version.fingerprint(expected.size);
        Self { bytes: Spool::stream(spool, range, expected.clone()), version }
    }
}

/// See [`crate::source::Source::read`].
pub(super) async fn read(
    origin: &Origin,
    spools: &Spools,
    path: &RelPath,
    range: ByteRange,
    expected: &Fingerprint,
) -> Result<Body> {
    if let Joined::Spooled(spool) = spools.find(path, expected).await? {
        return Ok(Body::spooled(spool, range, expected));
    }
    let is_whole = range.start == 0 && range.end == expected.size;
    if origin.doubts_ranges() && !is_whole {
        // One request finds out for all who read this file; if ranges are ignored, it is the spool's.
        match spools.join(path, Some(expected), None).await? {
            Joined::Spooled(spool) => return Ok(Body::spooled(spool, range, expected)),
            Joined::RangesWork | Joined::Absent => {}
        }
    }
    let answer = origin.get(OP, path, range_headers(range, expected)).await?;
    let (status, headers) = (answer.response.status(), answer.response.headers());
    let version = Version::of(headers, None).fingerprint(expected.size);
    match status {
        StatusCode::PARTIAL_CONTENT => {
            origin.keeps_ranges(true);
            check_identity(headers, OP)?;
            check_part(headers, range, expected)?;
            Ok(Body { bytes: exactly(answer.response, range.len(), path.clone()), version })
        }
        StatusCode::OK => {
            check_identity(headers, OP)?;
            let size = content_length(headers)?;
            if Version::of(headers, size).contradicts(expected) {
                return Err(stale(OP));
            }
            if is_whole {
                let bytes = exactly(answer.response, range.len(), path.clone());
                return Ok(Body { bytes, version });
            }
            origin.keeps_ranges(false);
            spool(spools, path, range, expected, answer).await
        }
        status => Err(status_error(status, headers, OP)),
    }
}

/// See [`crate::source::Source::first_look`].
pub(super) async fn first_look(
    origin: &Origin,
    path: &RelPath,
    most: u64,
) -> Result<Option<FirstLook>> {
    // Of a server that ignores ranges all of the file would be on its way.
    if origin.doubts_ranges() || most == 0 {
        return Ok(None);
    }
    let (op, url) = (OP, origin.site.file_url(path)?);
    let answer = origin.client.send(op, Method::GET, url, first_bytes_headers(most)).await?;
    let (status, headers) = (answer.response.status(), answer.response.headers());
    if answer.is_directory || status != StatusCode::PARTIAL_CONTENT {
        let error = status_error(status, headers, OP);
        return if error.is_transient() { Err(error) } else { Ok(None) };
    }
    let Some(ContentRange { range: Some(range), total: Some(total) }) = ContentRange::of(headers)
    else {
        return Ok(None);
    };
    if range != ByteRange::new(0, most.min(total)) || check_identity(headers, OP).is_err() {
        return Ok(None);
    }
    let attributes = file_attributes(&Version::of(headers, Some(total)), possible_size(total)?);
    check_part(headers, range, &attributes.fingerprint)?;
    let bytes = exactly(answer.response, range.len(), path.clone());
    Ok(Some(FirstLook { attributes, range, bytes }))
}

/// The server ignored the range: its answer becomes the spool's, unless there is one by now.
async fn spool(
    spools: &Spools,
    path: &RelPath,
    range: ByteRange,
    expected: &Fingerprint,
    answer: Answer,
) -> Result<Body> {
    match spools.join(path, Some(expected), Some(answer)).await? {
        Joined::Spooled(spool) => Ok(Body::spooled(spool, range, expected)),
        Joined::RangesWork | Joined::Absent => Err(Error::new(Kind::Busy, OP)
            .because("the server ignores ranges at one time and keeps to them at another")),
    }
}

/// Whether a 206 holds the bytes that were asked for, of the version that was asked for.
pub(in crate::source) fn check_part(
    headers: &HeaderMap,
    range: ByteRange,
    expected: &Fingerprint,
) -> Result<()> {
    let corrupt = |why: String| Err(Error::new(Kind::Corrupt, OP).because(why));
    let Some(ContentRange { range: Some(sent), total }) = ContentRange::of(headers) else {
        return corrupt("a part without a usable Content-Range".to_owned());
    };
    if Version::of(headers, total).contradicts(expected) {
        return Err(stale(OP));
    }
    if sent != range {
        return corrupt(format!("asked for {range}, the server sends {sent}"));
    }
    match content_length(headers)? {
        Some(length) if length > range.len() => {
            corrupt(format!("asked for {} bytes, the server sends {length}", range.len()))
        }
        _ => Ok(()),
    }
}

/// Streams a body that must have `length` bytes. A longer one is cut and `Corrupt`, a shorter one `Unreachable`.
pub(in crate::source) fn exactly(response: Response, length: u64, path: RelPath) -> ByteStream {
    let has_length = response.content_length().is_some();
    stream::try_unfold((response, length), move |(mut response, left)| {
        let path = path.clone();
        async move {
            if left == 0 && has_length {
                return Ok(None);
            }
            next(&mut response, left)
                .await
                .map(|piece| {
                    piece.map(|piece| {
                        let left = left - piece.len() as u64;
                        (piece, (response, left))
                    })
                })
                .map_err(|error| error.at(path.as_path()))
        }
    })
    .boxed()
}

/// The next piece of a body of which `left` bytes are to come; `None` at its end.
async fn next(response: &mut Response, left: u64) -> Result<Option<Bytes>> {
    let piece = response.chunk().await.map_err(|error| {
        let error = transport_error(OP, error);
        if error.is_transient() { error } else { error.kinded(Kind::Unreachable) }
    })?;
    match piece {
        Some(piece) if piece.len() as u64 <= left => Ok(Some(piece)),
        Some(_) => Err(Error::new(Kind::Corrupt, OP).because("the server sends more than asked")),
        None if left == 0 => Ok(None),
        None => Err(Error::new(Kind::Unreachable, OP)
            .because(format!("connection cut {left} bytes before the end"))),
    }
}
