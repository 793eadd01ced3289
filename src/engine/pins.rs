//! What is kept from eviction by order. Kept in the catalog, so over restarts.

use std::sync::Arc;

use crate::core::path::RelPath;
use crate::core::table::Table;
use crate::engine::{Engine, on_disk};
use crate::error::Result;

/// Files and directories that stay, with all below them.
#[derive(Debug, Default)]
pub struct Pins {
    pinned: Table<RelPath, ()>,
}

impl Pins {
    /// As earlier lives left them.
    pub(super) fn new(pinned: Vec<RelPath>) -> Self {
        let pins = Self::default();
        for path in pinned {
            pins.pinned.insert(path, ());
        }
        pins
    }

    /// Whether nothing is pinned.
    pub(super) fn is_empty(&self) -> bool {
        self.pinned.is_empty()
    }

    /// Whether `path` or a directory above it is pinned.
    pub fn holds(&self, path: &RelPath) -> bool {
        if self.pinned.is_empty() {
            return false;
        }
        let mut above = Some(path.clone());
        while let Some(path) = above {
            if self.pinned.get(&path).is_some() {
                return true;
            }
            above = path.parent();
        }
        false
    }
}

impl Engine {
    /// What is kept from eviction.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Keeps `path` and all below it from eviction, or no more. Says whether that is news.
    ///
    /// # Errors
    /// As a durable write; then nothing has changed.
    pub async fn pin(self: &Arc<Self>, path: &RelPath, is_pinned: bool) -> Result<bool> {
        let (destination, recorded) = (Arc::clone(&self.destination), path.clone());
        let record = move || destination.catalog().pin(&recorded, is_pinned);
        let is_news = on_disk("record pin", record).await?;
        match is_pinned {
            true => self.pins.pinned.insert(path.clone(), ()),
            false => self.pins.pinned.remove(path),
        };
        // What was pinned may have been more than the cache holds.
        if !is_pinned && let Err(error) = self.keep_cap().await {
            tracing::warn!(%error, "cache");
        }
        Ok(is_news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_what_is_below_it_and_nothing_beside_it() {
        let path = |text: &str| {
            text.split('/').fold(RelPath::root(), |path, name| path.child(name.as_ref()).unwrap())
        };
        let pins = Pins::new(vec![path("a/b")]);
        assert!(pins.holds(&path("a/b")) && pins.holds(&path("a/b/c/d")));
        assert!(!pins.holds(&path("a")) && !pins.holds(&path("a/bc")));
        assert!(!pins.holds(&RelPath::root()));
        assert!(Pins::new(vec![RelPath::root()]).holds(&path("x")));
    }
}
