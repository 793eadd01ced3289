//! Directories as the kernel wants them. Cookies are stable positions: an entry keeps its own while others come and go.

use std::sync::Arc;

use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request};

use crate::core::in_flight::Operation;
use crate::engine::Engine;
use crate::engine::listing::Listing;
use crate::error::Result;
use crate::vfs::attributes::{Appearance, file_type};
use crate::vfs::front::Front;

impl Front {
    /// Answers with a listing: at once from memory, else when it is there.
    pub(super) fn with_listing(
        &self,
        request: &Request,
        ino: u64,
        offset: u64,
        answer: impl FnOnce(&Engine, Result<Arc<Listing>>) + Send + 'static,
    ) {
        // A walk in progress goes on in the listing that it began with, fresh or not.
        let known = if offset > 0 { self.engine.known_listing(ino) } else { None };
        if let Some(listing) = known.map(Ok).or_else(|| self.engine.try_list(ino)) {
            return answer(&self.engine, listing);
        }
        let note = self.note(Operation::List, request, ino, (offset, 0));
        let (engine, teller) = (Arc::clone(&self.engine), Arc::clone(&self.engine));
        let work = async move { engine.list(ino).await };
        self.park(note, work, move |listing| answer(&teller, listing));
    }
}

/// Cookies of `.` and `..`; those of entries follow.
const DOTS: u64 = 2;

/// Names and kinds after cookie `offset`, as many as fit.
pub(super) fn send(
    engine: &Engine,
    ino: u64,
    offset: u64,
    listing: &Listing,
    mut reply: ReplyDirectory,
) {
    for (cookie, number, name) in dots(engine, ino) {
        if offset < cookie && reply.add(INodeNo(number), cookie, FileType::Directory, name) {
            return reply.ok();
        }
    }
    for entry in listing.after(offset.saturating_sub(DOTS)) {
        let cookie = entry.position + DOTS;
        if reply.add(INodeNo(entry.ino), cookie, file_type(entry.kind), &entry.name) {
            break;
        }
    }
    reply.ok();
}

/// As [`send`], with attributes. Each entry but the dots counts as a lookup of the kernel's.
pub(super) fn send_plus(
    engine: &Engine,
    appearance: &Appearance,
    ino: u64,
    offset: u64,
    listing: &Listing,
    mut reply: ReplyDirectoryPlus,
) {
    let ttl = &appearance.ttl;
    for (cookie, number, name) in dots(engine, ino) {
        let Ok(node) = engine.node(number) else { continue };
        let attr = appearance.attr(&node);
        if offset < cookie && reply.add(INodeNo(number), cookie, name, ttl, &attr, Generation(0)) {
            return reply.ok();
        }
    }
    for entry in listing.after(offset.saturating_sub(DOTS)) {
        let cookie = entry.position + DOTS;
        let (attr, ttl) = match engine.known(ino, &entry.name) {
            Some(node) => (appearance.attr(&node), *ttl),
            // Its attributes could not be had: shown, and asked for again by the next lookup.
            None => (appearance.unknown(entry.ino, entry.kind), std::time::Duration::ZERO),
        };
        if reply.add(attr.ino, cookie, &entry.name, &ttl, &attr, Generation(0)) {
            break;
        }
    }
    reply.ok();
}

fn dots(engine: &Engine, ino: u64) -> [(u64, u64, &'static str); 2] {
    let parent = engine.node(ino).map_or(ino, |node| node.parent);
    [(1, ino, "."), (2, parent, "..")]
}
