//! Listing a directory of the server.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::packet::{Answer, Name, Request, Status};
use super::session::{Pending, Session};
use super::wire::Handle;
use super::{join, stat};
use crate::core::attributes::Attributes;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};

const OP: &str = "list directory";
/// Requests under way: small directories end with the second, and each answer of OpenSSH has 100 names.
const FIRST_AHEAD: usize = 2;
const MOST_AHEAD: usize = 16;
/// Names that are asked for one by one at once, where a server tells too little of them.
const ASKED_AT_ONCE: usize = 16;
/// Answers without a name, one after the other, until a listing counts as endless.
const EMPTY_ANSWERS: usize = 100;

/// A directory whose listing has begun.
#[derive(Debug)]
pub(super) struct Listing {
    handle: Handle,
    /// Where the server has it.
    path: Bytes,
}

/// Opens the directory `path` of the server.
pub(super) async fn open(session: &Session, path: Bytes) -> Result<Listing> {
    let handle = session.open(OP, Request::OpenDirectory(path.clone())).await?;
    Ok(Listing { handle, path })
}

impl Listing {
    /// Sends all entries; ends early when nobody receives them.
    pub(super) async fn send(
        self,
        session: &Session,
        shown: &RelPath,
        batches: &mpsc::Sender<ListBatch>,
    ) -> Result<()> {
        let mut ahead: VecDeque<Pending> = VecDeque::new();
        let (mut wanted, mut empty) = (FIRST_AHEAD, 0);
        loop {
            while ahead.len() < wanted {
                ahead.push_back(session.begin(Request::ReadDirectory(self.handle.name())).await?);
            }
            let Some(next) = ahead.pop_front() else { return Ok(()) };
            let names = match next.answer().await? {
                Answer::Names(names) => names,
                Answer::Status(Status { code: Status::EOF, .. }) => return Ok(()),
                // The directory is open, so nothing is missing that was asked for.
                other => return Err(not_gone(other.unexpected(OP))),
            };
            empty = if names.is_empty() { empty + 1 } else { 0 };
            if empty > EMPTY_ANSWERS {
                return Err(Error::new(Kind::Invalid, OP)
                    .because("endless listing: the server gives no names and no end"));
            }
            let batch = self.batch(session, shown, names).await?;
            let is_something = !batch.entries.is_empty() || batch.refused > 0;
            if is_something && batches.send(batch).await.is_err() {
                return Ok(());
            }
            wanted = (wanted * 2).min(MOST_AHEAD);
        }
    }

    async fn batch(
        &self,
        session: &Session,
        shown: &RelPath,
        names: Vec<Name>,
    ) -> Result<ListBatch> {
        let mut batch = ListBatch::default();
        let is_other = |name: &Name| !matches!(&name.name[..], b"." | b"..");
        let (told, untold): (Vec<Name>, Vec<Name>) =
            names.into_iter().filter(is_other).partition(|name| name.attributes.tell_kind());
        let mut take = |name: &[u8], attributes| -> Result<()> {
            let name = OsStr::from_bytes(name).to_owned();
            match RelPath::check_name(&name) {
                Ok(()) => batch.entries.push(entry(name, attributes)?),
                Err(refusal) => {
                    tracing::warn!(directory = %shown, err = %refusal, "name refused");
                    batch.refused += 1;
                }
            }
            Ok(())
        };
        for name in told {
            take(&name.name, name.attributes.read())?;
        }
        let asked = untold.into_iter().map(|name| async move {
            let path = join(&self.path, &name.name);
            (name, stat(session, Request::Lstat(path)).await)
        });
        let mut asked = stream::iter(asked).buffered(ASKED_AT_ONCE);
        while let Some((name, attributes)) = asked.next().await {
            match attributes {
                // It vanished meanwhile.
                Err(error) if error.kind() == Kind::NotFound => {}
                attributes => take(&name.name, attributes)?,
            }
        }
        Ok(batch)
    }
}

fn entry(name: OsString, attributes: Result<Attributes>) -> Result<Entry> {
    let attributes = attributes.map_err(|error| error.at(&name))?;
    Ok(Entry { name, kind: attributes.kind, attributes: Some(attributes) })
}

fn not_gone(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => error.kinded(Kind::Io),
        _ => error,
    }
}
