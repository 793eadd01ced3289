//! The way of verified files to their final names: small ones in groups, large ones alone.
//!
//! A group is whatever has gathered while the last one was synced, and for as long again: where many files come, the disk syncs half of
//! the time at most, since who makes or writes a file waits for that. A file that comes alone is published alone and at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::core::path::RelPath;
use crate::core::permits::{Acquired, Permit, Permits};
use crate::core::priority::Priority;
use crate::core::table::Table;
use crate::engine::on_disk;
use crate::engine::stats::Stats;
use crate::error::{Error, Kind, Result};
use crate::store::catalog::{ProofClass, Version};
use crate::store::publish::{Candidate, Published, Vouched};
use crate::store::{BackingFile, Destination, Durability, FileHash, Identity, Metadata, Replace};

/// Files verified at once, and large ones published at once: more would only move the disk's head.
const AT_ONCE: usize = 4;
/// Longer files are published alone: their own sync is no longer small beside the group's.
const SMALL_BYTES: u64 = 16 << 20;
/// Files of one group: their descriptors are open at the same time.
const GROUP_FILES: usize = 128;
/// Bytes of one group, but for its last file: who waits for a sync waits for all of them.
const GROUP_BYTES: u64 = 32 << 20;
/// The longest that one group waits for more.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Files that wait for the next group; who comes later waits before it gets in.
const QUEUE_FILES: usize = 1024;

/// A verified file and what it shall become.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) part: Arc<BackingFile>,
    pub(crate) path: RelPath,
    pub(crate) metadata: Metadata,
    pub(crate) version: Version,
    pub(crate) hash: FileHash,
    pub(crate) proof: ProofClass,
    pub(crate) origin: Option<u64>,
}

impl Ready {
    fn candidate(&self, replace: Replace) -> Candidate<'_> {
        let Self { part, path, metadata, version, hash, proof, origin } = self;
        let vouched = Some(Vouched { version, hash, proof: *proof, origin: *origin });
        Candidate { file: part, path, metadata, replace, vouched }
    }
}

/// One that waits for its turn.
type Turn = (Arc<Ready>, Replace);

struct Queued {
    turn: Turn,
    answer: oneshot::Sender<Result<Published>>,
}

/// Publishes what is ready, and knows which names are ours.
#[derive(Debug)]
pub struct Publisher {
    permits: Arc<Permits>,
    /// Why a file was not published, the last time; by inode number.
    pub(crate) verdicts: Table<u64, Error>,
    places: Arc<Places>,
    /// `None` if every file is synced by itself.
    groups: Option<mpsc::Sender<Queued>>,
}

/// Where finished files go.
#[derive(Debug)]
struct Places {
    destination: Arc<Destination>,
    stats: Arc<Stats>,
    /// Final names that were published or adopted in this session, with their inode: a newer version may replace exactly that.
    ours: Table<RelPath, Identity>,
}

impl Publisher {
    /// Begins to take files. Groups are published by a task that ends with the publisher.
    pub(crate) fn start(destination: Arc<Destination>, stats: Arc<Stats>) -> Self {
        let may_group = destination.abilities().group_sync
            && destination.options().durability == Durability::Normal;
        let places = Arc::new(Places { destination, stats, ours: Table::default() });
        let groups = may_group.then(|| {
            let (sender, queue) = mpsc::channel(QUEUE_FILES);
            tokio::spawn(publish_groups(Arc::clone(&places), queue));
            sender
        });
        Self { permits: Permits::new(AT_ONCE, 0), verdicts: Table::default(), places, groups }
    }

    /// The right to read a file back and, if it is large, to publish it.
    pub(crate) async fn permit(&self) -> Option<Permit> {
        match self.permits.acquire(Priority::Hydration) {
            Acquired::Now(permit) => Some(permit),
            Acquired::Queued(mut ticket) => {
                ticket.signal().await;
                ticket.permit()
            }
        }
    }

    /// Publishes one file, alone or in the company of those that are ready with it. A large one keeps the permit meanwhile.
    ///
    /// # Errors
    /// As [`Destination::publish`].
    pub(crate) async fn publish(
        &self,
        ready: &Arc<Ready>,
        replace: Replace,
        permit: Option<Permit>,
    ) -> Result<Published> {
        let turn = (Arc::clone(ready), replace);
        match &self.groups {
            Some(groups) if ready.part.size() <= SMALL_BYTES => {
                drop(permit);
                let ended =
                    || Error::new(Kind::Io, "publish file").because("the publisher has ended");
                let (answer, answered) = oneshot::channel();
                groups.send(Queued { turn, answer }).await.map_err(|_lost| ended())?;
                answered.await.map_err(|lost| ended().caused_by(lost))?
            }
            _ => {
                let places = Arc::clone(&self.places);
                let published = on_disk("publish file", move || places.publish_one(&turn)).await;
                drop(permit);
                published
            }
        }
    }

    /// The inode of ours that has this final name.
    pub(crate) fn ours(&self, path: &RelPath) -> Option<Identity> {
        self.places.ours.get(path)
    }

    pub(crate) fn forget_ours(&self, path: &RelPath) {
        self.places.ours.remove(path);
    }

    pub(crate) fn note_ours(&self, path: &RelPath, identity: Identity) {
        self.places.ours.insert(path.clone(), identity);
    }
}

/// Takes what has gathered, publishes it, and looks again.
async fn publish_groups(places: Arc<Places>, mut queue: mpsc::Receiver<Queued>) {
    let mut until = Instant::now();
    while let Some(first) = queue.recv().await {
        let group = gather(first, &mut queue, until).await;
        let (turns, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|Queued { turn, answer }| (turn, answer)).unzip();
        let begun = Instant::now();
        let work = Arc::clone(&places);
        let published = on_disk("publish files", move || Ok(work.publish_all(&turns))).await;
        match published {
            Ok(published) => {
                for (answer, published) in answers.into_iter().zip(published) {
                    // Who asked may be gone; the file is published all the same.
                    drop(answer.send(published));
                }
            }
            // Each is told by the end of its channel.
            Err(error) => tracing::error!(%error, "group not published"),
        }
        let now = Instant::now();
        until = now + now.duration_since(begun).min(LONGEST_PAUSE);
    }
}

/// One group: `first`, what waits behind it, and what comes before `until`.
async fn gather(first: Queued, queue: &mut mpsc::Receiver<Queued>, until: Instant) -> Vec<Queued> {
    let mut bytes = first.turn.0.part.size();
    let mut group = vec![first];
    while group.len() < GROUP_FILES && bytes < GROUP_BYTES {
        let next = match queue.try_recv() {
            Ok(next) => Some(next),
            Err(_none) => timeout_at(until, queue.recv()).await.ok().flatten(),
        };
        let Some(next) = next else { break };
        bytes += next.turn.0.part.size();
        group.push(next);
    }
    group
}

impl Places {
    fn publish_one(&self, (ready, replace): &Turn) -> Result<Published> {
        self.settled(ready, self.destination.publish(ready.candidate(*replace)))
    }

    fn publish_all(&self, group: &[Turn]) -> Vec<Result<Published>> {
        // Alone, a sync of its own is quicker than one of the whole file system.
        if let [only] = group {
            return vec![self.publish_one(only)];
        }
        let candidates: Vec<_> =
            group.iter().map(|(ready, replace)| ready.candidate(*replace)).collect();
        self.stats.groups_published.increment();
        let published = self.destination.publish_group(&candidates).into_iter();
        group
            .iter()
            .zip(published)
            .map(|((ready, _), result)| self.settled(ready, result))
            .collect()
    }

    /// Known as ours before anybody is told.
    fn settled(&self, ready: &Ready, published: Result<Published>) -> Result<Published> {
        let published = published?;
        self.ours.insert(ready.path.clone(), published.identity);
        Ok(published)
    }
}
