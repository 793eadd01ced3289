//! Inodes.

use std::ffi::OsString;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::flight::Flight;
use crate::core::path::RelPath;
use crate::engine::file::LazyFile;
use crate::engine::listing::Listing;
use crate::error::{Error, Kind, Result};
use crate::store::catalog::EntryRecord;
use crate::sync::{AtomicU64, Ordering};

/// What a path of the source is at one time. One inode number names one version of one file.
#[derive(Debug)]
pub struct Node {
    /// Inode number, never given to anything else.
    pub ino: u64,
    /// Inode number of the directory in which it was first seen.
    pub parent: u64,
    /// The name under which it was first seen.
    pub path: RelPath,
    /// What it is besides its attributes.
    pub body: Body,
    attributes: ArcSwap<Attributes>,
    /// When the attributes were last known to be right, in ms since the engine's start. Relaxed: a hint.
    checked_ms: AtomicU64,
    /// Names that mean it. AcqRel: who takes the last sees what the others did.
    names: AtomicU64,
    /// Asking the source whether it is still the same.
    pub(crate) revalidating: Flight,
    pub(crate) link_target: ArcSwapOption<OsString>,
    pub(crate) xattrs: ArcSwapOption<Xattrs>,
}

/// Extended attributes in the source's order.
pub type Xattrs = Vec<(OsString, Vec<u8>)>;

/// The kinds of inodes that hold something.
#[derive(Debug)]
pub enum Body {
    /// A regular file.
    File(Arc<LazyFile>),
    /// A directory.
    Directory(Directory),
    /// Anything else.
    Other,
}

/// What is known of a directory's content.
#[derive(Debug, Default)]
pub struct Directory {
    pub(crate) listing: ArcSwapOption<Listing>,
    pub(crate) listing_flight: Flight,
    /// Lookups of names in it: neighbours are asked for ahead from the second on.
    pub(crate) lookups: AtomicU64,
    /// Position up to which attributes were asked for ahead.
    pub(crate) prefetched_to: AtomicU64,
}

impl Node {
    /// An inode that was just seen.
    pub fn new(ino: u64, parent: u64, path: RelPath, attributes: Attributes, now_ms: u64) -> Self {
        Self::with_record(ino, parent, path, attributes, now_ms, None)
    }

    /// As [`Node::new`], with what an earlier life recorded of this version.
    pub fn with_record(
        ino: u64,
        parent: u64,
        path: RelPath,
        attributes: Attributes,
        now_ms: u64,
        record: Option<EntryRecord>,
    ) -> Self {
        let body = match attributes.kind {
            EntryKind::File => {
                let file = LazyFile::new(ino, path.clone(), attributes.clone());
                Body::File(Arc::new(match record {
                    Some(record) => file.recorded(record),
                    None => file,
                }))
            }
            EntryKind::Directory => Body::Directory(Directory::default()),
            _ => Body::Other,
        };
        Self {
            ino,
            parent,
            path,
            body,
            attributes: ArcSwap::from_pointee(attributes),
            checked_ms: AtomicU64::new(now_ms),
            names: AtomicU64::new(0),
            revalidating: Flight::default(),
            link_target: ArcSwapOption::empty(),
            xattrs: ArcSwapOption::empty(),
        }
    }

    /// One more name means it.
    pub(super) fn gain_name(&self) {
        self.names.fetch_add(1, Ordering::AcqRel);
    }

    /// One name less means it; whether that was the last.
    pub(super) fn lose_name(&self) -> bool {
        self.names.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// The attributes as last seen.
    pub fn attributes(&self) -> Arc<Attributes> {
        self.attributes.load_full()
    }

    /// What it is.
    pub fn kind(&self) -> EntryKind {
        self.attributes.load().kind
    }

    /// Takes in what the source says of the same version now.
    pub fn refresh(&self, attributes: Attributes, now_ms: u64) {
        if let Body::File(file) = &self.body {
            file.confirm(&attributes);
        }
        if **self.attributes.load() != attributes {
            self.attributes.store(Arc::new(attributes));
            self.xattrs.store(None);
        }
        self.touch(now_ms);
    }

    /// It was just confirmed.
    pub fn touch(&self, now_ms: u64) {
        self.checked_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When it was last confirmed, in ms since the engine's start.
    pub fn checked_ms(&self) -> u64 {
        self.checked_ms.load(Ordering::Relaxed)
    }

    /// Whether `attributes` describe this version: for a file its fingerprint, else its kind.
    pub fn is_same_version(&self, attributes: &Attributes) -> bool {
        let mine = self.attributes.load();
        mine.kind == attributes.kind
            && (mine.kind != EntryKind::File || mine.fingerprint == attributes.fingerprint)
            && !self.is_stale()
    }

    /// Whether the source has another version of this file now.
    pub fn is_stale(&self) -> bool {
        matches!(&self.body, Body::File(file) if file.is_stale())
    }

    /// The file.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub fn file(&self) -> Result<&Arc<LazyFile>> {
        match &self.body {
            Body::File(file) => Ok(file),
            _ => Err(Error::new(Kind::Invalid, "use as a file").at(self.path.as_path())),
        }
    }

    /// The directory.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub fn directory(&self) -> Result<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Error::new(Kind::Invalid, "use as a directory").at(self.path.as_path())),
        }
    }
}

impl crate::engine::Engine {
    /// Target of a symlink; asked once.
    ///
    /// # Errors
    /// As [`crate::source::Source::readlink`]; `Timeout` at the deadline.
    pub async fn readlink(&self, node: &Node) -> Result<OsString> {
        if let Some(target) = node.link_target.load_full() {
            return Ok((*target).clone());
        }
        let target = self.within_deadline("read link", self.source.readlink(&node.path)).await?;
        node.link_target.store(Some(Arc::new(target.clone())));
        Ok(target)
    }

    /// Extended attributes if they were asked for before.
    pub fn known_xattrs(&self, node: &Node) -> Option<Arc<Xattrs>> {
        node.xattrs.load_full()
    }

    /// Extended attributes; asked once for each state of the attributes.
    ///
    /// # Errors
    /// As [`crate::source::Source::xattrs`]; `Timeout` at the deadline.
    pub async fn xattrs(&self, node: &Node) -> Result<Arc<Xattrs>> {
        if let Some(xattrs) = node.xattrs.load_full() {
            return Ok(xattrs);
        }
        let xattrs = self.within_deadline("read xattrs", self.source.xattrs(&node.path)).await?;
        let xattrs = Arc::new(xattrs);
        node.xattrs.store(Some(Arc::clone(&xattrs)));
        Ok(xattrs)
    }
}
