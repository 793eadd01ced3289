//! What directories list, and the attributes of siblings ahead of who walks.
//!
//! A listing is asked for again when it is older than the refresh time; if the source does not answer within a moment, the old one is
//! answered. Entries keep their positions, so that a walk in progress neither skips nor repeats, also over a restart.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::core::attributes::EntryKind;
use crate::core::flight::Boarded;
use crate::core::priority::Priority;
use crate::engine::listing::{Draft, Listing};
use crate::engine::node::{Body, Directory, Node};
use crate::engine::recorder::Said;
use crate::engine::{Engine, NEVER, ROOT_INO, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};
use crate::store::RESERVED_NAMES;
use crate::sync::{Ordering, Signal};

/// Attributes asked for ahead of who walks a directory.
const PREFETCH_SIBLINGS: u64 = 32;
/// Batches of a listing in transit.
const LIST_BATCHES: usize = 16;
/// Names that a listing may be ahead of the catalog, at most twice that: it waits for the disk then.
const AHEAD: usize = 32 * 1024;

impl Engine {
    /// The listing as far as memory knows, fresh or not.
    pub fn known_listing(&self, ino: u64) -> Option<Arc<Listing>> {
        let listing = self.node(ino).ok()?.directory().ok()?.listing.load_full()?;
        listing.note_use(self.now_ms());
        Some(listing)
    }

    /// The listing if it is in memory and fresh.
    pub fn try_list(&self, ino: u64) -> Option<Result<Arc<Listing>>> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = node.directory() {
            return Some(Err(error));
        }
        let listing = self.known_listing(ino)?;
        let fresh = self.is_fresh(listing.listed_ms());
        fresh.then_some(Ok(listing))
    }

    /// The listing, asked from the source if memory and catalog have none or an old one. An old one is answered when the source does not
    /// answer within a moment, or at all.
    ///
    /// # Errors
    /// As [`crate::source::Source::list`]; `NotFound` only if the source says so; `Timeout` at the deadline.
    pub async fn list(self: &Arc<Self>, ino: u64) -> Result<Arc<Listing>> {
        let node = self.node(ino)?;
        let directory = node.directory()?;
        let known = self.remembered_listing(&node).await;
        if let Some(listing) = &known
            && self.is_fresh(listing.listed_ms())
        {
            return Ok(Arc::clone(listing));
        }
        match (directory.listing_flight.board(), known) {
            (Boarded::Lead(landing), known) => {
                let (engine, asked) = (Arc::clone(self), Arc::clone(&node));
                let work = self.runtime.spawn(async move {
                    let listed = engine.list_now(&asked).await;
                    drop(landing);
                    listed.map_err(|error| error.at(asked.path().as_path()))
                });
                self.first_of(directory, work, known).await
            }
            (Boarded::Join(_), Some(old)) if old.is_confirmed() => Ok(old),
            (Boarded::Join(signal), Some(old)) => {
                Ok(self.news_of(directory, signal, &old).await.unwrap_or(old))
            }
            (Boarded::Join(signal), None) => {
                let ended = async {
                    signal.await;
                    Ok(())
                };
                self.while_it_moves(directory, ended).await?;
                let failed = || Error::new(Kind::Unreachable, "list directory");
                let listing = directory.listing.load_full();
                listing.ok_or_else(|| failed().at(node.path().as_path()))
            }
        }
    }

    /// Asks the source what a directory holds, however fresh what is known is.
    ///
    /// # Errors
    /// As [`crate::source::Source::list`].
    pub(super) async fn relist(self: &Arc<Self>, node: &Arc<Node>) -> Result<Arc<Listing>> {
        loop {
            match node.directory()?.listing_flight.board() {
                // It began before we were asked.
                Boarded::Join(signal) => signal.await,
                Boarded::Lead(landing) => {
                    let (engine, asked) = (Arc::clone(self), Arc::clone(node));
                    let work = self.runtime.spawn(async move {
                        let listed = engine.list_now(&asked).await;
                        drop(landing);
                        listed
                    });
                    let died = |died| Error::new(Kind::Io, "list directory").caused_by(died);
                    return work
                        .await
                        .map_err(died)?
                        .map_err(|error| error.at(node.path().as_path()));
                }
            }
        }
    }

    /// What the source lists, or what is known if it does not answer in time or at all.
    async fn first_of(
        &self,
        directory: &Directory,
        work: JoinHandle<Result<Arc<Listing>>>,
        known: Option<Arc<Listing>>,
    ) -> Result<Arc<Listing>> {
        let work = async {
            work.await.unwrap_or_else(|died| Err(Error::new(Kind::Io, "list").caused_by(died)))
        };
        let Some(old) = known else { return self.while_it_moves(directory, work).await };
        match tokio::time::timeout(self.patience(old.is_confirmed()), work).await {
            Ok(Err(error)) if error.kind() == Kind::NotFound => Err(error),
            Ok(listed) => Ok(listed.unwrap_or(old)),
            Err(_late) => {
                self.tree.set_slow(true);
                Ok(old)
            }
        }
    }

    /// Waits for a listing under way: as with reads, the deadline is for one that does not move. A million entries take their time.
    async fn while_it_moves<T>(
        &self,
        directory: &Directory,
        listing: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let seen = || directory.taken_in.load(Ordering::Relaxed);
        let deadline = self.settings.metadata_deadline();
        let mut listing = std::pin::pin!(listing);
        loop {
            let before = seen();
            match tokio::time::timeout(deadline, &mut listing).await {
                Ok(listed) => return listed,
                Err(_late) if seen() != before => {}
                Err(late) => {
                    return Err(Error::new(Kind::Timeout, "list directory")
                        .because(format!("the source did not answer within {deadline:?}"))
                        .caused_by(late));
                }
            }
        }
    }

    /// What another's listing under way gives in time.
    async fn news_of(
        &self,
        directory: &Directory,
        signal: Signal,
        old: &Listing,
    ) -> Option<Arc<Listing>> {
        let patience = self.patience(old.is_confirmed());
        if tokio::time::timeout(patience, signal).await.is_err() {
            self.tree.set_slow(true);
        }
        directory.listing.load_full()
    }

    /// The listing as memory or the catalog has it.
    async fn remembered_listing(self: &Arc<Self>, node: &Arc<Node>) -> Option<Arc<Listing>> {
        if let Some(listing) = self.known_listing(node.ino) {
            return Some(listing);
        }
        let (engine, asked) = (Arc::clone(self), Arc::clone(node));
        let recalled = on_disk("look into catalog", move || engine.recall_listing(&asked));
        recalled.await.unwrap_or_else(|error| {
            tracing::warn!(path = %node.path(), %error, "listing unreadable");
            None
        })
    }

    /// Brings the recorded listing of a directory into memory. Blocking.
    fn recall_listing(&self, node: &Arc<Node>) -> Result<Option<Arc<Listing>>> {
        let directory = node.directory()?;
        let Some((names, next_position)) = self.destination.catalog().listing(node.ino)? else {
            return Ok(None);
        };
        let mut draft = Draft::default();
        for one in names {
            draft.add(one.position, one.ino, &one.name, one.kind)?;
        }
        let listing = Arc::new(draft.finish(next_position, NEVER, self.now_ms()));
        listing.set_recorded();
        let none: Option<Arc<Listing>> = None;
        let before = directory.listing.compare_and_swap(&none, Some(Arc::clone(&listing)));
        let kept = before.as_ref().map_or(listing, Arc::clone);
        self.tree.listed.insert(node.ino, Arc::clone(node));
        Ok(Some(kept))
    }

    async fn list_now(self: &Arc<Self>, node: &Arc<Node>) -> Result<Arc<Listing>> {
        let (sender, mut batches) = mpsc::channel::<ListBatch>(LIST_BATCHES);
        let (engine, path) = (Arc::clone(self), node.path());
        let asked = self.runtime.spawn(async move {
            let _connection = engine.connection().await;
            // What asks for patience has sent nothing yet.
            engine.patiently(|| engine.source.list(&path, sender.clone())).await
        });
        let old = node.directory()?.listing.load_full();
        let mut work = Listening::new(self, node, old);
        let (mut ahead, mut before) = (0, None);
        while let Some(batch) = batches.recv().await {
            self.stats.names_refused.add(batch.refused);
            ahead += batch.entries.len();
            let taken_in = batch.entries.len() as u64;
            work = on_disk("take in listing", move || {
                batch.entries.into_iter().try_for_each(|entry| work.take_in(entry))?;
                Ok(work)
            })
            .await?;
            node.directory()?.taken_in.fetch_add(taken_in, Ordering::Relaxed);
            if ahead >= AHEAD {
                ahead = 0;
                if let Some(earlier) = before.replace(self.recorder.until_recorded()) {
                    earlier.await;
                }
            }
        }
        match asked.await {
            Ok(Err(error)) if error.kind() == Kind::NotFound => {
                return Err(self.gone(node, error));
            }
            Ok(result) => result?,
            Err(died) => return Err(Error::new(Kind::Io, "list directory").caused_by(died)),
        }
        self.tree.set_slow(false);
        if node.ino == ROOT_INO {
            self.refresh_root(node).await;
        }
        self.learn_xattrs(node);
        on_disk("take in listing", move || work.finish()).await
    }

    /// A directory that is no longer there. The root's absence says nothing of what was in it: it is the source that is away.
    fn gone(self: &Arc<Self>, node: &Node, error: Error) -> Error {
        if node.ino == ROOT_INO {
            return error.kinded(Kind::Unreachable);
        }
        self.vanish(node.parent_ino(), node.name());
        error
    }

    async fn refresh_root(&self, root: &Node) {
        let path = root.path();
        let asked = self.source.stat(&path);
        if let Ok(attributes) = self.within_deadline("look at source", asked).await
            && root.refresh(&attributes, self.now_ms())
        {
            self.record_root();
        }
    }

    /// Where a listing tells no attributes, asks for those of the next siblings of a name that was looked up, from the second lookup
    /// in a directory on.
    pub(super) fn prefetch_siblings(self: &Arc<Self>, directory: &Arc<Node>, name: &OsStr) {
        if self.lists_attributes() {
            return;
        }
        let Body::Directory(known) = &directory.body else { return };
        let Directory { listing, lookups, prefetched_to, .. } = &**known;
        // No more than twice as many as were asked for: names of which somebody waits for the next come first.
        let window = (lookups.fetch_add(1, Ordering::Relaxed) * 2).min(PREFETCH_SIBLINGS);
        if window == 0 {
            return;
        }
        let Some(listing) = listing.load_full() else { return };
        let Some(at) = listing.find(name).map(|entry| entry.position) else { return };
        let until = at + window;
        let done = prefetched_to.load(Ordering::Relaxed);
        let from = done.max(at);
        // Half a window left: wait. Relaxed: two who prefetch the same meet in `ask`.
        if from + window / 2 > until {
            return;
        }
        prefetched_to.fetch_max(until, Ordering::Relaxed);
        for sibling in listing.after(from).take_while(|entry| entry.position <= until) {
            let name = sibling.name.to_owned();
            if self.known(directory.ino, &name).is_some() {
                continue;
            }
            let (engine, directory) = (Arc::clone(self), Arc::clone(directory));
            self.runtime.spawn(async move {
                let work = engine.ask(&directory, &name, Priority::Readahead);
                if let Err(error) = engine.within_deadline("prefetch attributes", work).await {
                    tracing::debug!(?name, %error, "prefetch attributes");
                }
            });
        }
    }
}

/// Who takes in a listing, batch by batch. Blocking.
struct Listening {
    engine: Arc<Engine>,
    node: Arc<Node>,
    old: Option<Arc<Listing>>,
    draft: Draft,
    next: u64,
    /// Nothing of it may be recorded yet.
    is_first: bool,
    /// Something of it is not as it was recorded.
    is_news: bool,
}

impl Listening {
    fn new(engine: &Arc<Engine>, node: &Arc<Node>, old: Option<Arc<Listing>>) -> Self {
        Self {
            engine: Arc::clone(engine),
            node: Arc::clone(node),
            next: old.as_ref().map_or(1, |old| old.next_position()),
            is_first: old.as_ref().is_none_or(|old| !old.is_recorded()),
            is_news: false,
            old,
            draft: Draft::default(),
        }
    }

    fn take_in(&mut self, entry: Entry) -> Result<()> {
        let Entry { name, kind, attributes } = entry;
        let is_root = self.node.ino == ROOT_INO;
        if is_root && RESERVED_NAMES.iter().any(|reserved| name == *reserved) {
            return Ok(());
        }
        let before = self.old.as_ref().and_then(|old| old.find(&name));
        let position = before.map_or(self.next, |before| before.position);
        let ino = match attributes {
            Some(attributes) => self.engine.observe(&self.node, &name, &attributes)?.ino,
            None => self.number(&name, kind, before.map(|before| (before.ino, before.kind))),
        };
        let is_as_before = before.is_some_and(|before| (before.ino, before.kind) == (ino, kind));
        if !is_as_before || self.is_first {
            self.engine.record_name(self.node.ino, &name, Some((position, ino, kind)));
            self.is_news = true;
        }
        if before.is_none() {
            self.next += 1;
            if self.old.is_some() {
                self.engine.changes.note_news(self.node.ino);
            }
        }
        self.draft.add(position, ino, &name, kind)
    }

    /// The number of a name that was listed without attributes: it had one before, or gets one now.
    fn number(&self, name: &OsStr, kind: EntryKind, before: Option<(u64, EntryKind)>) -> u64 {
        let tree = &self.engine.tree;
        if let Some(node) = tree.find(self.node.ino, name) {
            return node.ino;
        }
        let before = before.filter(|(_, known)| *known == kind).map(|(ino, _)| ino);
        let recorded = || {
            let found = self.engine.destination.catalog().name(self.node.ino, name);
            found.ok().flatten().filter(|found| found.kind == kind).map(|found| found.ino)
        };
        before.or_else(recorded).unwrap_or_else(|| tree.inos.next())
    }

    fn finish(self) -> Result<Arc<Listing>> {
        let Self { engine, node, old, mut draft, next, is_first, mut is_news } = self;
        // Somebody may have looked one up meanwhile.
        draft.renumber(|name| engine.tree.find(node.ino, name).map(|node| node.ino));
        let now = engine.now_ms();
        let listing = Arc::new(draft.finish(next, now, now));
        let gone: Vec<OsString> = old
            .iter()
            .flat_map(|old| old.after(0))
            .filter(|gone| listing.find(gone.name).is_none())
            .map(|gone| gone.name.to_owned())
            .collect();
        node.directory()?.listing.store(Some(Arc::clone(&listing)));
        engine.tree.listed.insert(node.ino, Arc::clone(&node));
        is_news |= is_first || !gone.is_empty();
        gone.iter().for_each(|name| engine.vanish(node.ino, name));
        if is_news {
            let said = Said::Complete { directory: node.ino, listing: Arc::downgrade(&listing) };
            engine.recorder.say(said);
        } else {
            listing.set_recorded();
        }
        Ok(listing)
    }
}
