//! A file of which nothing is known: what it is and its first bytes, in one question instead of two.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

use crate::core::attributes::Fingerprint;
use crate::core::claims::Lead;
use crate::core::flight::BoardedOne;
use crate::core::priority::Priority;
use crate::core::range::BLOCK_SIZE;
use crate::engine::Engine;
use crate::engine::fetch::{Asked, Slot};
use crate::engine::file::LazyFile;
use crate::engine::node::Node;
use crate::source::FirstLook;

/// First bytes that are on their way, and the right to the request that brings them.
pub(crate) struct UnderWay {
    version: Fingerprint,
    slot: Slot,
    asked: Asked,
}

impl Engine {
    /// Asks what a name is, and for its first bytes. `None` = it has to be looked up: something is known of it, or the source cannot do
    /// this, or what it answered is no news yet.
    pub(super) async fn first_look(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        name: &OsStr,
    ) -> Option<(Arc<Node>, UnderWay)> {
        // What is counted or bought has to be known before it is asked for.
        if self.lists_attributes() || self.limits.is_metered() {
            return None;
        }
        let path = directory.path().child(name).ok()?;
        if self.candidates.has(&path) || self.recall(directory, name).0.is_some() {
            return None;
        }
        // Before boarding: whoever waits for this answer must not wait for a permit of the background.
        let slot = self.permit_unless_ending().await?;
        let BoardedOne::Lead(landing) =
            self.tree.stats_under_way.board((directory.ino, name.to_owned()))
        else {
            return None;
        };
        if self.known(directory.ino, name).is_some() || !self.switch.is_running() {
            return None;
        }
        let begun = Instant::now();
        let asked = self.source.first_look(&path, self.reach().chunk);
        let FirstLook { attributes, range, bytes } =
            match self.within_deadline("look up", asked).await {
                Ok(looked) => looked?,
                // Whether it is worth another try is decided where it is looked up.
                Err(error) => {
                    self.spare_source(&error, begun);
                    return None;
                }
            };
        let node = self.observe(directory, name, &attributes).ok()?;
        drop(landing);
        let (version, asked) = (attributes.fingerprint, Asked::new(range, begun, bytes));
        Some((node, UnderWay { version, slot, asked }))
    }

    /// Receives what is under way, unless it is of another version than the file, or somebody else has fetched some of it meanwhile.
    pub(super) fn take_under_way(self: &Arc<Self>, file: &Arc<LazyFile>, under_way: UnderWay) {
        let UnderWay { version, slot, asked } = under_way;
        if *file.fingerprint() != version {
            return;
        }
        let range = asked.range();
        let (ids, now) = (&self.fetcher.ids, Instant::now());
        let whole_blocks = range.len().next_multiple_of(BLOCK_SIZE);
        if let Lead::Lease(lease) =
            file.claims.lead(range, Priority::Hydration, whole_blocks, ids, now)
        {
            self.start_chunk(file, lease, slot, Some(asked));
        }
    }
}
