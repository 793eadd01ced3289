//! Extended attributes for readers: the source's, and while it is away those that are known of it.

use std::sync::Arc;

use crate::engine::node::{Body, Node, Xattrs};
use crate::engine::{Engine, on_disk};
use crate::error::{Kind, Result};

impl Engine {
    /// As [`Engine::xattrs`]. While the source does not answer, what it gave a published entry is read from DIR. Of anything else nothing
    /// is pretended.
    ///
    /// # Errors
    /// As [`Engine::xattrs`].
    pub async fn xattrs_at_hand(&self, node: &Node) -> Result<Arc<Xattrs>> {
        let away = match self.xattrs(node).await {
            Err(error) if matches!(error.kind(), Kind::Unreachable | Kind::Timeout) => error,
            answer => return answer,
        };
        let destination = Arc::clone(&self.destination);
        let (ino, path, kind) = (node.ino, node.path(), node.kind());
        let look = move || destination.kept_xattrs(ino, &path, kind);
        match on_disk("read extended attributes", look).await {
            // Not remembered: the source is asked again when it is back.
            Ok(Some(kept)) => Ok(Arc::new(kept)),
            Ok(None) => Err(away),
            Err(error) => Err(away.caused_by(error)),
        }
    }

    /// A directory was listed, or a symlink read: its own attributes are learnt too, in the background, so that a walk without the source
    /// can show it as it is. A file's come with its bytes.
    pub fn learn_xattrs(self: &Arc<Self>, node: &Arc<Node>) {
        let is_wanted = matches!(node.body, Body::Directory(_) | Body::Symlink(_))
            && self.source.traits().has_modes
            && self.known_xattrs(node).is_none();
        if !is_wanted {
            return;
        }
        let (engine, node) = (Arc::clone(self), Arc::clone(node));
        self.runtime.spawn(async move {
            if let Err(error) = engine.xattrs(&node).await {
                tracing::debug!(path = %node.path(), %error, "extended attributes");
            }
        });
    }
}
