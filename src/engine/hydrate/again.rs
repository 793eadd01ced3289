//! One more look at everything that was listed, before a copy ends: what came since is news.

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use crate::core::attributes::EntryKind;
use crate::core::filter::Scope;
use crate::engine::hydrate::Hydration;
use crate::engine::node::Node;
use crate::engine::{Engine, ROOT_INO};
use crate::error::Result;

/// Directories listed at once, of one level of the tree.
const LISTED_AT_ONCE: usize = 8;

impl Hydration {
    /// Lists every directory once more; then [`Engine::has_news`] says whether something came. What cannot be listed now was copied as it
    /// was, and is only logged.
    pub async fn look_again(&self) {
        let engine = &self.engine;
        let Ok(root) = engine.node(ROOT_INO) else { return };
        let mut level = vec![(root, engine.settings.hydrate.filter.root())];
        while !level.is_empty() && !engine.switch.state().is_ending() {
            let looks = stream::iter(level)
                .map(|(node, scope)| async move { engine.look_again_at(&node, scope).await });
            let found: Vec<_> = looks.buffer_unordered(LISTED_AT_ONCE).collect().await;
            level = found.into_iter().flatten().collect();
        }
    }
}

impl Engine {
    /// The directories in it, and what is to become of them.
    async fn look_again_at(
        self: &Arc<Self>,
        node: &Arc<Node>,
        scope: Scope,
    ) -> Vec<(Arc<Node>, Scope)> {
        let listed = self.list_again(node, scope).await;
        listed.unwrap_or_else(|error| {
            tracing::info!(path = %node.path(), %error, "not looked at again");
            Vec::new()
        })
    }

    async fn list_again(
        self: &Arc<Self>,
        node: &Arc<Node>,
        scope: Scope,
    ) -> Result<Vec<(Arc<Node>, Scope)>> {
        let relisted = self.within_deadline("list directory", self.relist(node)).await?;
        let path = node.path();
        let mut directories = Vec::new();
        for entry in relisted.after(0).filter(|entry| entry.kind == EntryKind::Directory) {
            let scope = self.settings.hydrate.filter.below(scope, &path, entry.name, true);
            if !scope.is_left_out() {
                directories.push((self.lookup(node.ino, entry.name).await?, scope));
            }
        }
        Ok(directories)
    }
}
