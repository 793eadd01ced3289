//! A source that is away and is opened as soon as it is there again.
//!
//! Until then it looks as it did when it was last open, and every question to it is answered `Unreachable` at once. One task tries to
//! open it, with growing pauses; an attempt that hangs is waited for, so that there is never more than one.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{ByteStream, Capacity, FirstLook, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, Fingerprint};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// Before the second attempt; doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Tries once to open the source.
pub type Opener = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Source>>> + Send + Sync>;

/// How a source looked when it was last open.
#[derive(Debug, Clone)]
pub struct Appearance {
    /// Its name for people.
    pub display_name: String,
    /// What it can do.
    pub traits: Traits,
    /// Its name if it is one file.
    pub single_file: Option<OsString>,
}

/// A source that is away.
#[derive(Debug)]
pub struct Reconnecting {
    appearance: Appearance,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    real: ArcSwapOption<Opened>,
    /// Why the last attempt failed.
    why: ArcSwap<Error>,
}

#[derive(Debug)]
struct Opened(Arc<dyn Source>);

impl Reconnecting {
    /// A source that just failed to open with `why`. To be called on the runtime that shall try again.
    pub fn new(appearance: Appearance, why: Error, open: Opener) -> Self {
        let shared =
            Arc::new(Shared { real: ArcSwapOption::empty(), why: ArcSwap::from_pointee(why) });
        let tries = keep_trying(Arc::clone(&shared), appearance.clone(), open);
        let task = tokio::spawn(tries).abort_handle();
        Self { appearance, shared, task }
    }

    fn real(&self) -> Result<Arc<dyn Source>> {
        if let Some(opened) = self.shared.real.load().as_deref() {
            return Ok(Arc::clone(&opened.0));
        }
        let why = self.shared.why.load();
        // Whatever it was: it says nothing of what is asked for now.
        Err(Error::new(Kind::Unreachable, "ask source")
            .at(&self.appearance.display_name)
            .because(format!("it is away: {}", **why)))
    }
}

impl Drop for Reconnecting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_trying(shared: Arc<Shared>, appearance: Appearance, open: Opener) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match open().await.and_then(|real| check_shape(&appearance, real)) {
            Ok(real) => {
                tracing::info!(source = appearance.display_name, "the source is there again");
                shared.real.store(Some(Arc::new(Opened(real))));
                return;
            }
            Err(error) => {
                tracing::debug!(source = appearance.display_name, %error, "still away");
                shared.why.store(Arc::new(error));
            }
        }
    }
}

/// What was promised to the kernel while it was away has to hold.
fn check_shape(appearance: &Appearance, real: Arc<dyn Source>) -> Result<Arc<dyn Source>> {
    let (before, now) = (&appearance.traits, real.traits());
    let is_same = real.single_file() == appearance.single_file.as_ref()
        && (before.has_modes, before.lists_attributes) == (now.has_modes, now.lists_attributes);
    if is_same {
        return Ok(real);
    }
    Err(Error::new(Kind::Invalid, "open source")
        .at(&appearance.display_name)
        .because("another kind of source has its name now")
        .hint("unmount and mount it again"))
}

#[async_trait]
impl Source for Reconnecting {
    fn display_name(&self) -> &str {
        &self.appearance.display_name
    }

    fn traits(&self) -> Traits {
        self.appearance.traits
    }

    fn single_file(&self) -> Option<&OsString> {
        self.appearance.single_file.as_ref()
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        self.real()?.list(directory, batches).await
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.real()?.stat(path).await
    }

    async fn readlink(&self, path: &RelPath) -> Result<OsString> {
        self.real()?.readlink(path).await
    }

    async fn xattrs(&self, path: &RelPath) -> Result<Vec<(OsString, Vec<u8>)>> {
        match self.real() {
            // Known although nobody answers: this kind of source has none.
            Err(_away) if !self.appearance.traits.has_modes => Ok(Vec::new()),
            real => real?.xattrs(path).await,
        }
    }

    async fn data_ranges(
        &self,
        path: &RelPath,
        expected: &Fingerprint,
    ) -> Result<Option<Vec<ByteRange>>> {
        self.real()?.data_ranges(path, expected).await
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        self.real()?.read(path, range, expected).await
    }

    async fn first_look(&self, path: &RelPath, most: u64) -> Result<Option<FirstLook>> {
        self.real()?.first_look(path, most).await
    }

    fn is_away(&self) -> bool {
        self.shared.real.load().is_none()
    }

    async fn capacity(&self) -> Option<Capacity> {
        self.real().ok()?.capacity().await
    }
}
