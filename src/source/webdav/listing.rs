//! Listing a directory: its children leave in batches while the answer arrives.

use std::io::Read;

use http::header::DATE;
use tokio::sync::mpsc;

use super::multistatus::{Fault, Multistatus, Told};
use super::propfind::{Depth, ask, faulty, succeeded};
use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::ListBatch;
use crate::source::http::answer::text;
use crate::source::http::client::Answer;
use crate::source::http::index::{Base, Halt, Page, Sink, Target, malformed};
use crate::source::http::listing::parse_arriving;
use crate::source::http::origin::Origin;

const OP: &str = "list directory";
/// Letters of a link that a message shows.
const SHOWN: usize = 300;

/// See [`crate::source::Source::list`]. The attributes of files are left out where they are not what GET will say.
pub(super) async fn list(
    origin: &Origin,
    directory: &RelPath,
    tells_versions: bool,
    batches: mpsc::Sender<ListBatch>,
) -> Result<()> {
    let url = origin.site.directory_url(directory);
    let Answer { response, url, .. } = ask(OP, origin, url, Depth::Children).await?;
    let date = text(response.headers(), &DATE).map(str::to_owned);
    let mut sink =
        Sink::new(directory.clone(), batches, origin.site.spelling, origin.limits.index_entries);
    let parse = move |page: Page| {
        let listing = Listing { base: Base::new(url), date, tells_versions, is_ours: false };
        let parsed = listing.read(page, &mut sink);
        sink.finish(parsed)
    };
    parse_arriving(&origin.limits, response, parse).await
}

/// A directory that is being listed.
struct Listing {
    base: Base,
    date: Option<String>,
    tells_versions: bool,
    /// Something in it was about the directory or a child of it.
    is_ours: bool,
}

impl Listing {
    /// Gives every child to `sink`.
    fn read(mut self, page: impl Read, sink: &mut Sink) -> Result<(), Halt> {
        let mut document = Multistatus::new(page);
        loop {
            match document.next() {
                Ok(Some(told)) => self.pass_on(&told, sink)?,
                Ok(None) if self.is_ours => return Ok(()),
                // Not even the directory is in it: nothing shows that it is empty.
                Ok(None) => {
                    return Err(Halt::Failed(malformed(
                        "the server's answer is about other places than the directory that was asked for",
                    )));
                }
                Err(Fault::Cut(error)) => return Err(Halt::page(error)),
                Err(fault) => return Err(Halt::Failed(faulty(OP, fault))),
            }
        }
    }

    fn pass_on(&mut self, told: &Told, sink: &mut Sink) -> Result<(), Halt> {
        match self.base.target(told.href.as_bytes()) {
            Target::Itself => {
                self.is_ours = true;
                succeeded(OP, told).map_err(Halt::Failed)?;
                match told.properties.kind(EntryKind::Directory) {
                    EntryKind::Directory => Ok(()),
                    _ => {
                        Err(Halt::Failed(Error::new(Kind::Invalid, OP).because("not a directory")))
                    }
                }
            }
            Target::Child(child) => {
                self.is_ours = true;
                let kind = told.properties.kind(child.kind);
                match succeeded(OP, told) {
                    // It went while the server looked.
                    Err(error) if error.kind() == Kind::NotFound => Ok(()),
                    // It is there; who looks at it is told what is wrong.
                    Err(_) => sink.offer_with(child.name, kind, None),
                    Ok(()) if kind == EntryKind::File && !self.tells_versions => {
                        sink.offer_with(child.name, kind, None)
                    }
                    Ok(()) => {
                        let attributes = told.properties.attributes(kind, self.date.as_deref());
                        sink.offer_with(child.name, kind, attributes.ok().flatten())
                    }
                }
            }
            Target::Elsewhere => {
                let href: String = told.href.chars().take(SHOWN).collect();
                sink.refuse(
                    &Error::new(Kind::Invalid, "accept name")
                        .because(format!("{href:?} is no entry of this directory")),
                );
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
