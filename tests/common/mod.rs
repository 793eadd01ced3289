//! What several test programs need.

#![allow(dead_code, reason = "no test program uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub(crate) mod azure;
pub(crate) mod http;
pub(crate) mod nginx;
pub(crate) mod proxy;
pub(crate) mod s3;
pub(crate) mod scripted;
pub(crate) mod servers;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use futures_util::StreamExt;
use lazycopy::core::attributes::Fingerprint;
use lazycopy::core::path::RelPath;
use lazycopy::core::range::ByteRange;
use lazycopy::error::Result;
use lazycopy::source::{Entry, ListBatch, Source};
use tokio::sync::mpsc;

/// A path from text or bytes.
pub(crate) fn rel(path: impl AsRef<[u8]>) -> RelPath {
    path.as_ref()
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .fold(RelPath::root(), |at, name| at.child(OsStr::from_bytes(name)).unwrap())
}

/// The whole listing of a directory and the number of names refused.
pub(crate) async fn list_all(
    source: &dyn Source,
    directory: &str,
) -> Result<(BTreeMap<OsString, Entry>, u64)> {
    let (sender, mut batches) = mpsc::channel::<ListBatch>(4);
    let directory = rel(directory);
    let collect = async {
        let (mut all, mut refused) = (BTreeMap::new(), 0);
        while let Some(batch) = batches.recv().await {
            refused += batch.refused;
            for entry in batch.entries {
                let twice = all.insert(entry.name.clone(), entry);
                assert!(twice.is_none(), "listed twice: {twice:?}");
            }
        }
        (all, refused)
    };
    let (listed, all) = tokio::join!(source.list(&directory, sender), collect);
    listed.map(|()| all)
}

/// The bytes that a read yields, and the error that ended it.
pub(crate) async fn read_until_error(
    source: &dyn Source,
    path: impl AsRef<[u8]>,
    range: ByteRange,
    expected: &Fingerprint,
) -> (Vec<u8>, Result<()>) {
    let mut bytes = Vec::new();
    let mut stream = match source.read(&rel(path), range, expected).await {
        Ok(stream) => stream,
        Err(error) => return (bytes, Err(error)),
    };
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (bytes, Err(error)),
        }
    }
    (bytes, Ok(()))
}

/// The bytes of a read that succeeds.
pub(crate) async fn read(
    source: &dyn Source,
    path: impl AsRef<[u8]>,
    range: ByteRange,
    expected: &Fingerprint,
) -> Result<Vec<u8>> {
    let (bytes, result) = read_until_error(source, path, range, expected).await;
    result.map(|()| bytes)
}

/// `len` bytes in which every place can be told from its neighbours.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let byte = |at: usize| (at * 31 + at / 251) % 256;
    (0..len).map(|at| u8::try_from(byte(at)).unwrap()).collect()
}

/// The part of `content` that `range` names.
pub(crate) fn part(content: &[u8], range: ByteRange) -> &[u8] {
    &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

/// Says that a test cannot run here; a failure where the tools must be there (`REQUIRE_TOOLS=1`).
pub(crate) fn skip(tool: &str) {
    assert!(std::env::var_os("REQUIRE_TOOLS").is_none_or(|set| set != "1"), "{tool} is missing");
    println!("skipped: {tool} is missing");
}
