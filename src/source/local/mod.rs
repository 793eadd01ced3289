//! A directory, or one regular file, of this machine.
//!
//! Everything is reached from one descriptor of the root with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`: no name in the tree,
//! and no change to it while it is read, leads outside. Only regular files and directories are ever opened; all system calls run
//! on the blocking pool.

mod attributes;
mod listing;
mod reading;
mod root;
pub mod tree;
mod xattrs;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};

use self::root::Root;
use self::tree::LocalTree;
use super::{ByteStream, Capacity, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, Fingerprint};
use crate::core::path::RelPath;
use crate::core::permits::{Acquired, Permits};
use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// How a local source is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalOptions {
    /// Descend into other file systems that are mounted inside the source.
    pub cross_mounts: bool,
}

/// A source on this machine.
#[derive(Debug)]
pub struct LocalSource {
    display_name: String,
    root: Arc<Root>,
    calls: Arc<Permits>,
}

/// System calls on the source that may block at once. Those into a file system that hangs never come back; the blocking pool, which
/// the destination needs too, must not fill up with them.
const CALLS: usize = 128;

/// Runs `work` where it may block, with a permit that it keeps until it has really ended, waited for or not.
async fn blocking<T: Send + 'static>(
    calls: &Arc<Permits>,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, JoinError> {
    let permit = match calls.acquire(Priority::Demand) {
        Acquired::Now(permit) => Some(permit),
        Acquired::Queued(mut ticket) => {
            ticket.signal().await;
            ticket.permit()
        }
    };
    spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    })
    .await
}

impl LocalSource {
    /// The name that the source at `path` will have when it is open.
    pub fn display_name_of(path: &Path) -> String {
        path.display().to_string()
    }

    /// Opens the directory or regular file `path`, which may be a symlink to one. Blocks; a dead network file system can keep it.
    ///
    /// # Errors
    /// `NotFound`, `Denied`; `Invalid` if it is neither a directory nor a regular file.
    pub fn open(path: &Path, options: LocalOptions) -> Result<Self> {
        let root = Root::open(path, options.cross_mounts)?;
        let calls = Permits::new(CALLS, 0);
        Ok(Self { display_name: Self::display_name_of(path), root: Arc::new(root), calls })
    }

    /// The same source under another name: what is read is a snapshot of it.
    #[must_use]
    pub fn shown_as(self, display_name: String) -> Self {
        Self { display_name, ..self }
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        op: &'static str,
        path: &RelPath,
        work: impl FnOnce(&Root, &RelPath) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        let path = path.clone();
        let work = move || work(&root, &path).map_err(|error| error.at(path.as_path()));
        blocking(&self.calls, work)
            .await
            .map_err(|lost| Error::new(Kind::Io, op).caused_by(lost))?
    }
}

#[async_trait]
impl Source for LocalSource {
    fn display_name(&self) -> &str {
        &self.display_name
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: false,
            has_modes: true,
            connections: 16,
            refresh: Duration::from_secs(2),
        }
    }

    fn single_file(&self) -> Option<&OsString> {
        self.root.single_file()
    }

    fn local_tree(&self) -> Option<LocalTree> {
        let is_tree = self.root.single_file().is_none();
        is_tree.then(|| LocalTree::new(Arc::clone(&self.root)))
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        self.blocking("list directory", directory, move |root, directory| {
            listing::list(root, directory, &batches)
        })
        .await
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.blocking("stat", path, Root::stat).await
    }

    async fn readlink(&self, path: &RelPath) -> Result<OsString> {
        self.blocking("read link", path, Root::readlink).await
    }

    async fn xattrs(&self, path: &RelPath) -> Result<Vec<(OsString, Vec<u8>)>> {
        self.blocking("read extended attributes", path, xattrs::read_all).await
    }

    async fn data_ranges(
        &self,
        path: &RelPath,
        expected: &Fingerprint,
    ) -> Result<Option<Vec<ByteRange>>> {
        let expected = expected.clone();
        self.blocking("find holes", path, move |root, path| {
            reading::data_ranges(root, path, &expected)
        })
        .await
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        let expected = expected.clone();
        let begin = move |root: &Root, path: &RelPath| reading::begin(root, path, range, expected);
        let begun = self.blocking("open file", path, begin).await?;
        Ok(reading::stream(Arc::clone(&self.calls), path.clone(), begun))
    }

    async fn capacity(&self) -> Option<Capacity> {
        self.blocking("stat file system", &RelPath::root(), |root, _| root.capacity()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A network file system that hangs keeps its calls for ever; the destination's work goes on beside them.
    #[tokio::test(flavor = "multi_thread")]
    async fn calls_that_hang_leave_the_blocking_pool_to_others() {
        let calls = Permits::new(CALLS, 0);
        let (wake, hang) = crossbeam::channel::bounded::<()>(0);
        for _ in 0..1000 {
            let hang = hang.clone();
            // Given up at once, as after a stall.
            let call = blocking(&calls, move || hang.recv().is_ok());
            drop(tokio::time::timeout(Duration::from_micros(1), call).await);
        }
        let other = tokio::time::timeout(Duration::from_secs(10), spawn_blocking(|| 7)).await;
        assert_eq!(other.unwrap().unwrap(), 7);
        drop(wake);
    }
}
