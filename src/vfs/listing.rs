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
        shows: Shows,
        answer: impl FnOnce(&Engine, Result<Arc<Listing>>) + Send + 'static,
    ) {
        // A walk in progress goes on in the listing that it began with, fresh or not.
        let known = if offset > 0 { self.engine.known_listing(ino) } else { None };
        let known = known.map(Ok).or_else(|| self.engine.try_list(ino));
        if let Some(known) =
            known.as_ref().filter(|known| is_in_memory(&self.engine, ino, offset, known, shows))
        {
            return answer(&self.engine, known.clone());
        }
        let note = self.note(Operation::List, request, ino, (offset, 0));
        let (engine, teller) = (Arc::clone(&self.engine), Arc::clone(&self.engine));
        let work = async move {
            let listing = match known {
                Some(known) => known?,
                None => engine.list(ino).await?,
            };
            if shows == Shows::Attributes {
                let after = offset.saturating_sub(DOTS);
                engine.recall_listed(&engine.node(ino)?, &listing, after, AT_ONCE).await;
            }
            Ok(listing)
        };
        self.park(note, work, move |listing| answer(&teller, listing));
    }
}

/// What of its entries a listing shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shows {
    /// Their names.
    Names,
    /// Their names and attributes.
    Attributes,
}

/// Entries with attributes in one answer, at most.
const AT_ONCE: usize = 128;

/// Whether an answer needs nothing from the disk.
fn is_in_memory(
    engine: &Engine,
    ino: u64,
    offset: u64,
    listing: &Result<Arc<Listing>>,
    shows: Shows,
) -> bool {
    match listing {
        Ok(listing) if shows == Shows::Attributes => {
            let mut next = listing.after(offset.saturating_sub(DOTS)).take(AT_ONCE);
            next.all(|entry| engine.known(ino, entry.name).is_some())
        }
        _ => true,
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
        if reply.add(INodeNo(entry.ino), cookie, file_type(entry.kind), entry.name) {
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
    for entry in listing.after(offset.saturating_sub(DOTS)).take(AT_ONCE) {
        let cookie = entry.position + DOTS;
        let node = engine.known(ino, entry.name).filter(|node| node.refer());
        let (attr, ttl) = match &node {
            Some(node) => (appearance.attr(node), *ttl),
            // Its attributes could not be had: shown, and asked for again by the next lookup.
            None => (appearance.unknown(entry.ino, entry.kind), std::time::Duration::ZERO),
        };
        if reply.add(attr.ino, cookie, entry.name, &ttl, &attr, Generation(0)) {
            // Not shown: the kernel has not learnt of it.
            node.iter().for_each(|node| engine.forget(node.ino, 1));
            break;
        }
    }
    reply.ok();
}

fn dots(engine: &Engine, ino: u64) -> [(u64, u64, &'static str); 2] {
    let parent = engine.node(ino).map_or(ino, |node| node.parent_ino());
    [(1, ino, "."), (2, parent, "..")]
}
