//! A name in memory, and what it means.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::core::shelf::Shelved;
use crate::engine::node::Node;

/// A name of a node.
#[derive(Debug, Clone)]
pub(super) enum Named {
    /// The one under which it was first seen: the node has it.
    First(Arc<Node>),
    /// Another.
    Another(Arc<Another>),
}

/// A further name of a node: a hard link.
#[derive(Debug)]
pub(super) struct Another {
    parent: u64,
    name: Box<OsStr>,
    node: Arc<Node>,
}

impl Named {
    pub(super) fn new(parent: u64, name: &OsStr, node: &Arc<Node>) -> Self {
        let node = Arc::clone(node);
        if (node.parent_ino(), node.name()) == (parent, name) {
            return Self::First(node);
        }
        Self::Another(Arc::new(Another { parent, name: name.into(), node }))
    }

    pub(super) fn into_node(self) -> Arc<Node> {
        match self {
            Self::First(node) => node,
            Self::Another(another) => Arc::clone(&another.node),
        }
    }

    fn node(&self) -> &Arc<Node> {
        match self {
            Self::First(node) => node,
            Self::Another(another) => &another.node,
        }
    }
}

impl Shelved for Named {
    type Key<'a> = (u64, &'a OsStr);

    fn key(&self) -> (u64, &OsStr) {
        match self {
            Self::First(node) => (node.parent_ino(), node.name()),
            Self::Another(another) => (another.parent, &another.name),
        }
    }

    fn is_at(&self, key: (u64, &OsStr)) -> bool {
        self.key() == key
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.node(), other.node())
    }

    fn holders(&self) -> usize {
        Arc::strong_count(self.node())
    }
}

impl Shelved for Arc<Node> {
    type Key<'a> = u64;

    fn key(&self) -> u64 {
        self.ino
    }

    fn is_at(&self, ino: u64) -> bool {
        self.ino == ino
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }

    fn holders(&self) -> usize {
        Arc::strong_count(self)
    }
}
