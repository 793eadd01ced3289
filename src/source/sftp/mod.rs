//! `sftp://`: a directory or file of a server that people reach by ssh.
//!
//! The way there is the system's own `ssh` ([`ssh`]); on it SFTP version 3 is spoken by our own reader of it (`packet`). The crates that
//! there are take names (and handles, which are bytes too) for UTF-8, believe the lengths that a server tells, or end the session when
//! somebody gives up waiting; what a reader needs of the protocol is small.
//!
//! Version 3 tells times in whole seconds and no inodes, so a version is size and modification time; see `reading` for how it is kept.
//! What is special (sockets, devices, FIFOs) is listed and never opened.

mod attributes;
mod complaint;
#[cfg(test)]
mod laws;
mod listing;
mod packet;
mod place;
mod pool;
mod reading;
mod session;
pub mod ssh;
mod wire;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;

use self::packet::{Answer, Request, Status, read_file_system};
use self::place::Place;
use self::pool::{CONNECTIONS, FileVersion, Lent, Pool, SWEEP};
use self::reading::Ask;
use self::session::Session;
use self::ssh::Target;
use super::http::origin::directory_attributes;
use super::kinds::{Remote, SourceKind};
use super::{ByteStream, Capacity, Entry, ListBatch, Source, Traits};
use crate::core::attributes::{Attributes, EntryKind, Fingerprint};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// `sftp://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["sftp"],
    example: "sftp://user@host/dir",
    options: ssh::OPTIONS,
    display_name: |remote| Place::parse(&remote.url).map(|place| place.display_name().to_owned()),
    open: |remote| {
        Box::pin(async { Ok(Arc::new(SftpSource::open(remote).await?) as Arc<dyn Source>) })
    },
};

/// Requests that may run at once on each connection.
const REQUESTS: usize = 16;

/// A source on a server.
#[derive(Debug)]
pub struct SftpSource {
    display_name: String,
    /// The path of the root, or of the file if it is one.
    root: Bytes,
    single: Option<OsString>,
    pool: Pool,
}

impl SftpSource {
    /// Connects, and finds out whether there is one file or a tree.
    ///
    /// # Errors
    /// As `Target::connect`; `NotFound`, `Denied`; `Invalid` if it is neither a directory nor a regular file.
    pub async fn open(remote: Remote) -> Result<Self> {
        let place = Place::parse(&remote.url)?;
        let display_name = place.display_name().to_owned();
        Self::find(place, remote).await.map_err(|error| error.at(display_name))
    }

    async fn find(place: Place, remote: Remote) -> Result<Self> {
        let target = Target::new(&place, &remote.options)?;
        let connect = move || -> futures_util::future::BoxFuture<'static, _> {
            let target = target.clone();
            Box::pin(async move { target.connect().await })
        };
        let pool = Pool::new(Box::new(connect), SWEEP);
        let Lent { session, .. } = pool.lend(None).await?;
        let found = stat(&session, Request::Stat(place.path.clone())).await;
        let single = match found?.kind {
            EntryKind::Directory => {
                // Found out now rather than at the first listing: may it be read at all?
                listing::open(&session, place.path.clone()).await?;
                None
            }
            EntryKind::File if !place.is_directory => Some(file_name(&place.path)?),
            _ => {
                return Err(Error::new(Kind::Invalid, "open source")
                    .because("neither a directory nor a regular file"));
            }
        };
        let display_name = place.display_name().to_owned();
        Ok(Self { display_name, root: place.path, single, pool })
    }

    /// Where the server has `path`.
    ///
    /// # Errors
    /// `NotFound` for another file than the only one; `NameTooLong`.
    fn place_of(&self, path: &RelPath) -> Result<Bytes> {
        match &self.single {
            Some(name) if path.as_path().as_os_str() == name => Ok(self.root.clone()),
            Some(_) => Err(Error::new(Kind::NotFound, "find")),
            None if path.is_root() => Ok(self.root.clone()),
            None => {
                let place = join(&self.root, path.as_bytes());
                if place.len() >= PATH_MAX {
                    return Err(Error::new(Kind::NameTooLong, "find")
                        .because("the path is longer than an SFTP server takes"));
                }
                Ok(place)
            }
        }
    }

    /// Asks on one connection, that where `file` is open if it is; once more on another if that one was cut: asking twice changes nothing,
    /// and the next connection has no such past.
    async fn ask<T, F: Future<Output = Result<T>>>(
        &self,
        file: Option<&FileVersion>,
        ask: impl Fn(Lent) -> F,
    ) -> Result<T> {
        let lent = self.lend(file).await?;
        let session = Arc::clone(&lent.session);
        match ask(lent).await {
            Err(error) if session.is_over() && error.kind() == Kind::Unreachable => {
                ask(self.lend(file).await?).await
            }
            answered => answered,
        }
    }

    /// A connection, of a source that was open before: why there is none says nothing of what is asked for now.
    async fn lend(&self, file: Option<&FileVersion>) -> Result<Lent> {
        self.pool.lend(file.cloned()).await.map_err(|error| {
            if error.is_transient() { error } else { error.kinded(Kind::Unreachable) }
        })
    }

    async fn stat_in_tree(&self, path: &RelPath) -> Result<Attributes> {
        if path.is_root() && self.single.is_some() {
            return Ok(directory_attributes(None));
        }
        let place = self.place_of(path)?;
        // The root may be a link to a directory, as SOURCE was typed; so may the only file.
        let follows = path.is_root() || self.single.is_some();
        self.ask(None, |lent| {
            let place = place.clone();
            async move {
                let request = if follows { Request::Stat(place) } else { Request::Lstat(place) };
                stat(&lent.session, request).await
            }
        })
        .await
    }

    async fn list_single(
        &self,
        name: &OsString,
        directory: &RelPath,
        batches: &mpsc::Sender<ListBatch>,
    ) -> Result<()> {
        if !directory.is_root() {
            return Err(Error::new(Kind::Invalid, "list directory").because("not a directory"));
        }
        let attributes = match self.stat_in_tree(&RelPath::root().child(name)?).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            attributes => attributes?,
        };
        let entry =
            Entry { name: name.clone(), kind: attributes.kind, attributes: Some(attributes) };
        // A receiver that is gone has all it wanted.
        drop(batches.send(ListBatch { entries: vec![entry], refused: 0 }).await);
        Ok(())
    }
}

/// Paths of this many bytes are refused by servers (limits.h).
const PATH_MAX: usize = 4096;

/// The name of the file at `path`.
fn file_name(path: &[u8]) -> Result<OsString> {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let name = OsStr::from_bytes(name).to_owned();
    RelPath::check_name(&name).map(|()| name)
}

/// `name` in the directory `directory`.
fn join(directory: &[u8], name: &[u8]) -> Bytes {
    let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
    Bytes::from([directory, slash, name].concat())
}

/// Asks for attributes.
async fn stat(session: &Session, request: Request) -> Result<Attributes> {
    match session.ask(request).await? {
        Answer::Attributes(raw) => raw.read(),
        other => Err(other.unexpected("stat")),
    }
}

async fn readlink(session: &Session, place: Bytes) -> Result<OsString> {
    const OP: &str = "read link";
    match session.ask(Request::ReadLink(place)).await? {
        Answer::Names(names) => match names.into_iter().next() {
            Some(target) => Ok(OsString::from_vec(target.name.to_vec())),
            None => Err(Error::new(Kind::Corrupt, OP).because("the server names no target")),
        },
        Answer::Status(Status { code: Status::BAD_MESSAGE, .. }) => {
            Err(Error::new(Kind::Invalid, OP).because("not a symbolic link"))
        }
        other => Err(other.unexpected(OP)),
    }
}

#[async_trait]
impl Source for SftpSource {
    fn display_name(&self) -> &str {
        &self.display_name
    }

    fn traits(&self) -> Traits {
        Traits {
            lists_attributes: true,
            is_remote: true,
            has_modes: true,
            connections: CONNECTIONS * REQUESTS,
            refresh: Duration::from_secs(60),
        }
    }

    fn single_file(&self) -> Option<&OsString> {
        self.single.as_ref()
    }

    async fn list(&self, directory: &RelPath, batches: mpsc::Sender<ListBatch>) -> Result<()> {
        let listed = async {
            if let Some(name) = &self.single {
                return self.list_single(name, directory, &batches).await;
            }
            let place = self.place_of(directory)?;
            let (session, listing) = self
                .ask(None, |lent| {
                    let place = place.clone();
                    async move {
                        let listing = listing::open(&lent.session, place).await?;
                        Ok((lent.session, listing))
                    }
                })
                .await?;
            listing.send(&session, directory, &batches).await
        };
        listed.await.map_err(|error| error.at(directory.as_path()))
    }

    async fn stat(&self, path: &RelPath) -> Result<Attributes> {
        self.stat_in_tree(path).await.map_err(|error| error.at(path.as_path()))
    }

    async fn readlink(&self, path: &RelPath) -> Result<OsString> {
        let read = async {
            let place = self.place_of(path)?;
            self.ask(None, |lent| {
                let place = place.clone();
                async move { readlink(&lent.session, place).await }
            })
            .await
        };
        read.await.map_err(|error| error.at(path.as_path()))
    }

    async fn read(
        &self,
        path: &RelPath,
        range: ByteRange,
        expected: &Fingerprint,
    ) -> Result<ByteStream> {
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        let read = async {
            let file = FileVersion { path: self.place_of(path)?, version: expected.clone() };
            let read = |lent| {
                let (shown, returns) = (path.clone(), self.pool.returns());
                reading::read(lent, Ask { file: file.clone(), range, shown, returns })
            };
            self.ask(Some(&file), read).await
        };
        read.await.map_err(|error| error.at(path.as_path()))
    }

    async fn capacity(&self) -> Option<Capacity> {
        let Lent { session, .. } = self.lend(None).await.ok()?;
        if !session.tells_file_system() {
            return None;
        }
        match session.ask(Request::FileSystem(self.root.clone())).await.ok()? {
            Answer::Extended(answer) => {
                let (total_bytes, total_inodes) = read_file_system(answer)?;
                Some(Capacity { total_bytes, total_inodes })
            }
            _ => None,
        }
    }
}
