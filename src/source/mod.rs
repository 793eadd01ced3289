//! RING 1: where bytes come from. A [`Source`] is read, never written.
//!
//! Nothing outside this folder knows what kind of source it has. Paths are relative to the source's root and made
//! of validated names; attributes say what the source knows and leave out what it does not. Retries, deadlines, permits and
//! priorities are the engine's: a source asks once and reports what happened.
//!
//! | file | what |
//! |---|---|
//! | [`local`] | a directory or file of this machine |
//! | [`azure`] | a container of Azure's blob storage |
//! | `bucket` | what all buckets have in common |
//! | [`gcs`] | a bucket of Google Cloud Storage |
//! | [`http`] | a file, or a tree behind an index, of a web server |
//! | [`manifest`] | a list of files with their places and checksums |
//! | [`s3`] | a bucket of S3 or a server like it |
//! | [`sftp`] | a directory or file of a server that ssh reaches |
//! | [`webdav`] | a tree of a WebDAV server |
//! | [`kinds`] | the kinds of remote sources, found by the scheme of a URL |
//! | [`options`] | `-S KEY=VALUE` |
//! | [`reconnecting`] | a source that is away and is opened when it is back |

pub mod azure;
pub(in crate::source) mod bucket;
pub mod gcs;
pub mod http;
pub mod kinds;
pub mod local;
pub mod manifest;
pub mod options;
pub mod reconnecting;
pub mod s3;
pub mod sftp;
pub mod webdav;

use std::ffi::OsString;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use crate::core::attributes::{Attributes, EntryKind, Fingerprint};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// One name in a directory. `attributes` is `None` where the listing does not tell them (an HTTP index rounds sizes);
/// then `kind` alone is known and [`Source::stat`] gives the rest.
#[derive(Debug, Clone)]
pub struct Entry {
    /// A single validated component (see [`RelPath::child`]).
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// All attributes, if the listing tells them.
    pub attributes: Option<Attributes>,
}

/// Part of a listing. A name that cannot be used (`..`, a slash, NUL, longer than 255 bytes) is refused and counted, never passed on.
#[derive(Debug, Clone, Default)]
pub struct ListBatch {
    /// Usable entries in the source's order.
    pub entries: Vec<Entry>,
    /// Number of refused names in this batch, each logged once.
    pub refused: u64,
}

/// The bytes of a range in order, in pieces of any size. An empty piece is a sign of life: the bytes are not there yet, but on their way
/// (a server without ranges is read from the start), so whoever watches for stalls starts anew. Ends after exactly the range's bytes or with an error;
/// bytes that were yielded belong to the version that `expected` named.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// What a file is, and its first bytes.
pub struct FirstLook {
    /// As [`Source::stat`] has them, but without a checksum.
    pub attributes: Attributes,
    /// The bytes that come, from the first on; not empty.
    pub range: ByteRange,
    /// As of [`Source::read`].
    pub bytes: ByteStream,
}

impl std::fmt::Debug for FirstLook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { attributes, range, bytes: _ } = self;
        let mut shown = formatter.debug_struct("FirstLook");
        shown.field("attributes", attributes).field("range", range).finish_non_exhaustive()
    }
}

/// What a kind of source can do; decided once when it is opened.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// Listings carry attributes, so READDIRPLUS costs nothing.
    pub lists_attributes: bool,
    /// Names a remote machine: refresh after 60 s instead of 2 s, prefetch siblings' attributes.
    pub is_remote: bool,
    /// Entries carry owners, modes and, perhaps, extended attributes.
    pub has_modes: bool,
    /// Requests that may run at once.
    pub connections: usize,
    /// How long a listing is taken to be fresh.
    pub refresh: Duration,
}

/// A tree (or one file) that is being copied. What a method answers by itself is right for sources that have nothing of that kind; who wraps
/// another source passes all of them on.
///
/// # Concurrency
/// All methods may be called at once from any task. Cancelling (dropping) a future or a stream ends its request.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The source as the user typed it, without secrets: for messages, status and the mount table.
    fn display_name(&self) -> &str;

    /// What it can do.
    fn traits(&self) -> Traits;

    /// `Some(name)` if the source is one file rather than a tree. Then the root directory is synthetic: listing it gives this
    /// one entry, and the root's own attributes are made up (0755/0700).
    fn single_file(&self) -> Option<&OsString> {
        None
    }

    /// The same tree for threads that read all of it, where it is a directory of this machine.
    fn local_tree(&self) -> Option<local::tree::LocalTree> {
        None
    }

    /// Lists a directory, sending batches in the source's order; returns when all are sent. A receiver that is gone ends it early
    /// with `Ok`.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable`, `Invalid` (not a directory, or an endless or malformed listing); `Busy` only before the first
    /// batch.
    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()>;

    /// Attributes of one entry; symlinks are not followed.
    ///
    /// # Errors
    /// `NotFound` only when it definitely is not there; `Denied`; `Unreachable`; `Timeout`; `Invalid` (a size of 2^63 or more).
    async fn stat(&self, path: &RelPath) -> Result<Attributes>;

    /// The target of a symlink, byte for byte.
    ///
    /// # Errors
    /// As [`Source::stat`].
    async fn readlink(&self, path: &RelPath) -> Result<OsString> {
        Err(Error::new(Kind::Invalid, "read link")
            .at(path.as_path())
            .because("not a symbolic link"))
    }

    /// Extended attributes including POSIX ACLs (`system.posix_acl_access`, `system.posix_acl_default`) as raw values; empty where the
    /// source has none.
    ///
    /// # Errors
    /// As [`Source::stat`].
    async fn xattrs(&self, _path: &RelPath) -> Result<Vec<(OsString, Vec<u8>)>> {
        Ok(Vec::new())
    }

    /// The ranges of a sparse file that hold data, in order; everything else within `attributes.size` is a hole that reads as
    /// zeros. `None` = no holes are known.
    ///
    /// # Errors
    /// As [`Source::stat`]; `Stale` if the file is no longer the version `expected`.
    async fn data_ranges(
        &self,
        _path: &RelPath,
        _expected: &Fingerprint,
    ) -> Result<Option<Vec<ByteRange>>> {
        Ok(None)
    }

    /// Reads `range` of the version `expected`. The range is not empty and lies within the size in `expected`.
    ///
    /// # Errors
    /// From the call or as the stream's last item: `Stale` if the source has another version now (never a byte of that one), `Corrupt`
    /// if the answer cannot be right, `Unreachable`/`Busy`/`Timeout` if asking again may help (with the source's `Retry-After`), else as
    /// [`Source::stat`].
    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream>;

    /// [`Source::stat`] and [`Source::read`] of a file's first `most` bytes (all of a smaller one) in one question, of a name of which nothing
    /// is known. `None` = it has to be asked in the ordinary way: that would cost no more, or it is no file that has bytes.
    ///
    /// # Errors
    /// As [`Source::read`], as far as asking again may help.
    async fn first_look(&self, _path: &RelPath, _most: u64) -> Result<Option<FirstLook>> {
        Ok(None)
    }

    /// Whether it is known to be away, so that what it fails to answer says nothing new.
    fn is_away(&self) -> bool {
        false
    }

    /// Total and free bytes of the source's file system, where it has one.
    async fn capacity(&self) -> Option<Capacity> {
        None
    }
}

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// All bytes.
    pub total_bytes: u64,
    /// All inodes.
    pub total_inodes: u64,
}
