//! The whole tree in the background, and then what comes later.
//!
//! | file | what |
//! |---|---|
//! | `run` | workers, spread over the directories that have something to copy |
//! | `walk`, `content` | directories are listed ahead of them; what each holds for the copy |
//! | `entry`, `first_look` | one file or other entry; one of which nothing is known yet |
//! | `place` | what is no file: links, special files, the metadata of directories |
//! | `again` | one more look before the end |
//! | [`board`] | which worker works where, for status |

mod again;
pub mod board;
mod content;
mod entry;
mod first_look;
mod place;
mod run;
mod walk;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use crate::core::path::RelPath;
use crate::engine::events::{Event, FileStep};
use crate::engine::node::Node;
use crate::engine::switch::SwitchState;
use crate::engine::{Engine, ROOT_INO};
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicU64, Ordering};
use run::Run;
use walk::Errand;

/// Pause before what failed is begun again; longer each time.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The copy of the whole tree, and of what comes later.
#[derive(Debug)]
pub struct Hydration {
    engine: Arc<Engine>,
    /// Directories that were copied or are under way: what comes later in them is told by [`Changes`](super::changes::Changes).
    begun: HashSet<u64>,
    failures: Arc<AtomicU64>,
    is_cut: bool,
}

impl Hydration {
    /// Nothing is copied yet.
    pub fn new(engine: &Arc<Engine>) -> Self {
        let failures = Arc::new(AtomicU64::new(0));
        Self { engine: Arc::clone(engine), begun: HashSet::new(), failures, is_cut: false }
    }

    /// Whether an order ended the last call before it was through. Then only [`Hydration::copy_tree`] goes on.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Copies everything that is not left out; what fails is tried once more at the end. Returns the number of entries that could not be
    /// copied; each is in status and log. Ends early if the [`Switch`](super::switch::Switch) says so.
    ///
    /// # Errors
    /// `Stale` if there is no root.
    pub async fn copy_tree(&mut self) -> Result<u64> {
        self.engine.changes.follow();
        self.begun.clear();
        let root = self.engine.node(ROOT_INO)?;
        tokio::select! {
            () = self.engine.wait_for_source(&root) => {}
            () = self.engine.switch.until(SwitchState::is_ending) => {
                self.is_cut = true;
                return Ok(0);
            }
        }
        let failures = self.run(vec![self.whole_tree(root)]).await;
        self.with_retry(failures).await
    }

    /// Everything is found and counted anew.
    fn whole_tree(&self, root: Arc<Node>) -> Errand {
        self.engine.board.walk.begin();
        self.engine.stats.files_skipped.set(0);
        self.engine.stats.bytes_skipped.set(0);
        Errand::All(root, self.engine.settings.hydrate.filter.root())
    }

    /// Copies what is new in directories that were copied before. As [`Hydration::copy_tree`].
    ///
    /// # Errors
    /// As there.
    pub async fn copy_news(&mut self) -> Result<u64> {
        let filter = &self.engine.settings.hydrate.filter;
        let errand = |ino: u64| {
            let node = self.engine.node(ino).ok()?;
            let scope = filter.scope(&node.path(), true);
            (!scope.is_left_out()).then_some(Errand::Again(node, scope))
        };
        let errands: Vec<_> =
            self.engine.changes.take_directories().into_iter().filter_map(errand).collect();
        let failures = self.run(errands).await;
        self.with_retry(failures).await
    }

    /// What failed in a run is tried once more at its end; a conflict stays one.
    async fn with_retry(&mut self, failures: u64) -> Result<u64> {
        if failures == 0 || self.is_cut {
            return Ok(failures);
        }
        // Of a worker that died nobody knows what it failed at.
        let unknown = failures.saturating_sub(self.engine.stats.entries_failed());
        let still = self.retry_those(|kind| kind != Kind::Exists.as_str()).await?;
        Ok(unknown + still)
    }

    /// Tries once more what could not be copied. As [`Hydration::copy_tree`].
    ///
    /// # Errors
    /// As there.
    pub async fn retry(&mut self) -> Result<u64> {
        self.retry_those(|_any| true).await
    }

    async fn retry_those(&mut self, is_wanted: impl Fn(&str) -> bool) -> Result<u64> {
        let engine = Arc::clone(&self.engine);
        let filter = &engine.settings.hydrate.filter;
        let mut by_directory: BTreeMap<RelPath, Vec<OsString>> = BTreeMap::new();
        for path in engine.stats.errors.failed_paths(is_wanted) {
            let Some(directory) = path.parent() else {
                self.begun.clear();
                let all = self.whole_tree(engine.node(ROOT_INO)?);
                return Ok(self.run(vec![all]).await);
            };
            // A directory that leads to something is none of the files that are left out.
            let scopes = [true, false].map(|is_directory| filter.scope(&path, is_directory));
            if scopes.iter().any(|scope| !scope.is_left_out()) {
                by_directory.entry(directory).or_default().push(path.name().to_owned());
            }
        }
        tracing::info!(directories = by_directory.len(), "what failed is tried again");
        let failures = self.run_some(by_directory).await;
        Ok(failures.max(engine.stats.entries_failed()))
    }

    /// Copies single entries, whose directories are there. As [`Hydration::copy_tree`].
    pub async fn copy_paths(&mut self, paths: Vec<RelPath>) -> u64 {
        let mut by_directory: BTreeMap<RelPath, Vec<OsString>> = BTreeMap::new();
        for path in paths {
            let directory = path.parent().unwrap_or_else(RelPath::root);
            by_directory.entry(directory).or_default().push(path.name().to_owned());
        }
        self.run_some(by_directory).await
    }

    async fn run_some(&mut self, by_directory: BTreeMap<RelPath, Vec<OsString>>) -> u64 {
        let errand = |(directory, names)| Errand::Some(directory, names);
        self.run(by_directory.into_iter().map(errand).collect()).await
    }

    async fn run(&mut self, errands: Vec<Errand>) -> u64 {
        self.failures.store(0, Ordering::Release);
        let run = Run::new(&self.engine, &self.failures, &mut self.begun, errands);
        self.is_cut = run.copy_all().await;
        self.failures.load(Ordering::Acquire)
    }
}

impl Engine {
    /// Waits for a source that was away at the start: what it cannot answer now is no failure of the copy.
    async fn wait_for_source(&self, root: &Node) {
        let path = root.path();
        while !root.is_confirmed() {
            match self.within_deadline("look at source", self.source.stat(&path)).await {
                Err(error) if error.is_transient() => {
                    if !self.is_source_away.swap(true, Ordering::Relaxed) {
                        self.events.tell(Event::Pause { by: "source".into() });
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // Whatever else is wrong with it, the scan will say.
                _ => break,
            }
        }
        if self.is_source_away.swap(false, Ordering::Relaxed) {
            self.events.tell(Event::Resume { by: "source".into() });
        }
    }

    /// Whether the copy waits for its source.
    pub fn is_source_away(&self) -> bool {
        self.is_source_away.load(Ordering::Relaxed)
    }

    /// Takes down how it went with `path`; what it gave, if it went well.
    fn note<T>(&self, path: &RelPath, result: Result<T>, failures: &AtomicU64) -> Option<T> {
        match result {
            Ok(value) => {
                self.stats.errors.succeeded(path);
                Some(value)
            }
            Err(error) if error.kind() == Kind::NotFound => {
                self.stats.errors.succeeded(path);
                self.stats.entries_vanished.increment();
                self.tell_file(FileStep::Vanished, path, None);
                tracing::info!(%path, "vanished at the source");
                None
            }
            // Nothing here can bring it back: it is left out, as its user is told, and is no failure.
            Err(error) if error.kind() == Kind::Archived => {
                self.stats.errors.succeeded(path);
                self.stats.errors.remember(path, &error);
                self.stats.files_skipped.increment();
                tracing::warn!(%path, "archived at the source: left out");
                None
            }
            Err(error) => {
                self.note_failed(path, &error, failures);
                None
            }
        }
    }

    fn note_failed(&self, path: &RelPath, error: &Error, failures: &AtomicU64) {
        failures.fetch_add(1, Ordering::AcqRel);
        self.stats.errors.failed(path, None, error);
        self.tell_file(FileStep::Failed, path, Some(error));
        tracing::warn!(%path, kind = %error.kind(), %error, "not copied");
    }
}
