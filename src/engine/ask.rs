//! Asking the source about one name: once however many ask, and for no longer than it is worth.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use crate::core::flight::BoardedOne;
use crate::core::permits::{Acquired, Permit};
use crate::core::priority::Priority;
use crate::engine::Engine;
use crate::engine::node::Node;
use crate::error::{Kind, Result};

impl Engine {
    /// Asks the source about a name and takes in the answer. Of those who ask at the same time one does the work.
    pub(super) async fn ask(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        name: &OsStr,
        priority: Priority,
    ) -> Result<Arc<Node>> {
        match self.tree.stats_under_way.board((directory.ino, name.to_owned())) {
            BoardedOne::Join(signal) => {
                signal.await;
                if let Some(node) = self.known(directory.ino, name).filter(|node| !node.is_stale())
                {
                    return Ok(node);
                }
                // It failed for the one who led; our own answer may differ (a deadline, a cancellation).
                let attributes = self.stat(directory, name, priority).await?;
                self.observe(directory, name, &attributes)
            }
            BoardedOne::Lead(landing) => {
                // Somebody may have landed between our look and our boarding.
                let known = self.known(directory.ino, name);
                let is_news = |node: &Arc<Node>| {
                    node.is_confirmed() && !node.is_stale() && self.is_fresh(node.checked_ms())
                };
                if let Some(node) = known.filter(is_news) {
                    return Ok(node);
                }
                let asked = self.stat(directory, name, priority).await;
                let result = match asked {
                    Ok(attributes) => self.observe(directory, name, &attributes),
                    Err(error) => {
                        if error.kind() == Kind::NotFound {
                            self.vanish(directory.ino, name);
                        }
                        Err(error)
                    }
                };
                drop(landing);
                result
            }
        }
    }

    async fn stat(&self, directory: &Node, name: &OsStr, priority: Priority) -> Result<Attributes> {
        let path = directory.path().child(name)?;
        if !self.lists_attributes() && self.is_listed_directory(directory, name) {
            return Ok(made_up_directory());
        }
        let _permit = self.stat_permit(priority).await;
        let asked = self.patiently(|| self.source.stat(&path)).await;
        if asked.is_ok() {
            self.stat_permits.served();
        }
        asked
    }

    async fn stat_permit(&self, priority: Priority) -> Option<Permit> {
        match self.stat_permits.acquire(priority) {
            Acquired::Now(permit) => Some(permit),
            Acquired::Queued(mut ticket) => {
                ticket.signal().await;
                ticket.permit()
            }
        }
    }

    /// A right to one request that is neither for bytes nor for a name, where somebody asked for a number of connections. Whoever
    /// holds another permit must not wait for it.
    pub(super) async fn connection(&self) -> Option<Permit> {
        self.limits.settings().max_connections?;
        self.stat_permit(Priority::Demand).await
    }

    /// Only what this life has seen listed: a directory that is a file by now is asked for.
    fn is_listed_directory(&self, directory: &Node, name: &OsStr) -> bool {
        let Ok(directory) = directory.directory() else { return false };
        let listing = directory.listing.load();
        let listing = listing.as_deref().filter(|listing| listing.is_confirmed());
        let listed = listing.and_then(|listing| listing.find(name));
        listed.is_some_and(|listed| listed.kind == EntryKind::Directory)
    }

    /// Waits a moment for the source to confirm or correct what is known of `node`; then it goes on in the background.
    pub(super) async fn revalidate(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        node: &Arc<Node>,
        name: &OsStr,
    ) {
        let signal = match self.tree.revalidations.board(node.ino) {
            BoardedOne::Join(signal) => signal,
            BoardedOne::Lead(landing) => {
                let (engine, directory) = (Arc::clone(self), Arc::clone(directory));
                let (node, name) = (Arc::clone(node), name.to_owned());
                let BoardedOne::Join(signal) = self.tree.revalidations.board(node.ino) else {
                    return;
                };
                self.runtime.spawn(async move {
                    let asked = engine.stat(&directory, &name, Priority::Demand);
                    let deadline = engine.settings.metadata_deadline();
                    match tokio::time::timeout(deadline, asked).await {
                        Ok(answer) => engine.take_in(&directory, &node, &name, answer),
                        Err(_late) => node.touch(engine.now_ms()),
                    }
                    drop(landing);
                });
                signal
            }
        };
        if self.tree.is_slow() && node.is_confirmed() {
            return;
        }
        let patience = self.patience(node.is_confirmed());
        if tokio::time::timeout(patience, signal).await.is_err() {
            self.tree.set_slow(true);
        }
    }

    /// How long news of something known is waited for. What no answer of this life confirms may be old: that is worth the deadline,
    /// but not once for every name while the source is away.
    pub(super) fn patience(&self, is_confirmed: bool) -> std::time::Duration {
        if is_confirmed || self.tree.is_slow() {
            self.settings.grace
        } else {
            self.settings.metadata_deadline().saturating_sub(self.settings.grace)
        }
    }

    fn take_in(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        node: &Node,
        name: &OsStr,
        answer: Result<Attributes>,
    ) {
        match answer {
            Ok(attributes) => {
                self.tree.set_slow(false);
                if let Err(error) = self.observe(directory, name, &attributes) {
                    tracing::debug!(path = %node.path(), %error, "revalidation");
                }
            }
            Err(error) if error.kind() == Kind::NotFound => {
                self.tree.set_slow(false);
                tracing::info!(path = %node.path(), "gone at the source; what is local is kept");
                self.vanish(directory.ino, name);
            }
            // Unreachable is not deleted: what is known stays.
            Err(_) => node.touch(self.now_ms()),
        }
    }
}

/// What a directory of a source without modes looks like.
fn made_up_directory() -> Attributes {
    Attributes {
        link_count: 2,
        ..Attributes::bare(
            EntryKind::Directory,
            Fingerprint { size: 4096, validator: Validator::SizeOnly },
        )
    }
}
