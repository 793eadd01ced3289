//! Inodes.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use once_cell::race::OnceBox;

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::flight::Flight;
use crate::core::path::RelPath;
use crate::core::slot::Slot;
use crate::engine::file::LazyFile;
use crate::engine::listing::Listing;
use crate::engine::{NEVER, ROOT_INO};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::{NameRecord, Packed};
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The source confirmed it in this life.
const CONFIRMED: u8 = 1;
/// The catalog does not have what is known of it.
const UNRECORDED: u8 = 1 << 1;
/// Its name means another version now.
const SUPERSEDED: u8 = 1 << 2;
/// It was known before it came into memory: the catalog may have bytes of it.
const EARLIER: u8 = 1 << 3;

/// The references of a node that is just leaving memory.
const LEAVING: u32 = u32::MAX;
/// As many references as can be counted. Who has that many is not known to have fewer ever again, and stays.
const MANY: u32 = LEAVING - 1;

/// What a path of the source is at one time. One inode number names one version of one file. There is one for each inode that somebody
/// looked up, perhaps a million: what only some need is made when they do.
#[derive(Debug)]
pub struct Node {
    /// Inode number, never given to anything else.
    pub ino: u64,
    /// What it is besides its attributes.
    pub body: Body,
    /// The directory in which it was first seen; `None` for the root.
    parent: Option<Arc<Node>>,
    /// The name under which it was first seen.
    name: Box<OsStr>,
    attributes: Slot<Packed>,
    /// When the attributes were last known to be right, in ms since the engine's start. Relaxed: a hint.
    checked_ms: AtomicU64,
    /// Lookups that the kernel has not forgotten. It leaves memory only when there are none.
    references: AtomicU32,
    /// What is said of it above.
    state: AtomicU8,
    pub(crate) xattrs: ArcSwapOption<Xattrs>,
}

/// Extended attributes in the source's order.
pub type Xattrs = Vec<(OsString, Vec<u8>)>;

/// The kinds of inodes that hold something.
#[derive(Debug)]
pub enum Body {
    /// A regular file; its bytes once somebody wants them.
    File(OnceBox<Arc<LazyFile>>),
    /// A directory.
    Directory(Box<Directory>),
    /// A symlink; where it leads, once that was asked.
    Symlink(ArcSwapOption<OsString>),
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
    /// Entries that listings of it took in. Relaxed: who waits for one sees that it moves.
    pub(crate) taken_in: AtomicU64,
}

impl Body {
    fn of(kind: EntryKind) -> Self {
        match kind {
            EntryKind::File => Self::File(OnceBox::new()),
            EntryKind::Directory => Self::Directory(Box::default()),
            EntryKind::Symlink => Self::Symlink(ArcSwapOption::empty()),
            _ => Self::Other,
        }
    }
}

impl Node {
    /// An inode that the source just showed.
    pub fn new(
        ino: u64,
        place: Option<(&Arc<Node>, &OsStr)>,
        attributes: &Attributes,
        now_ms: u64,
    ) -> Self {
        Self {
            ino,
            body: Body::of(attributes.kind),
            parent: place.map(|(parent, _)| Arc::clone(parent)),
            name: place.map_or(OsStr::new(""), |(_, name)| name).into(),
            attributes: Slot::new(Packed::new(attributes)),
            checked_ms: AtomicU64::new(now_ms),
            references: AtomicU32::new(0),
            state: AtomicU8::new(CONFIRMED | UNRECORDED),
            xattrs: ArcSwapOption::empty(),
        }
    }

    /// An inode as the catalog has it, not confirmed by the source yet. `None` if its attributes are not recorded.
    pub(super) fn recalled(
        place: Option<(&Arc<Node>, &OsStr)>,
        record: NameRecord,
    ) -> Option<Self> {
        let packed = record.attributes?;
        let body = match packed.kind() {
            EntryKind::Symlink => Body::Symlink(ArcSwapOption::from_pointee(record.target)),
            kind => Body::of(kind),
        };
        Some(Self {
            ino: record.ino,
            body,
            parent: place.map(|(parent, _)| Arc::clone(parent)),
            name: place.map_or(OsStr::new(""), |(_, name)| name).into(),
            attributes: Slot::new(packed),
            checked_ms: AtomicU64::new(NEVER),
            references: AtomicU32::new(0),
            state: AtomicU8::new(EARLIER),
            xattrs: ArcSwapOption::from_pointee(record.xattrs),
        })
    }

    /// The catalog may have bytes of it.
    #[must_use]
    pub(super) fn of_an_earlier_life(self) -> Self {
        self.state.fetch_or(EARLIER, Ordering::Relaxed);
        self
    }

    /// The name under which it was first seen; empty for the root.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Inode number of the directory in which it was first seen; the root is its own.
    pub fn parent_ino(&self) -> u64 {
        self.parent.as_ref().map_or(ROOT_INO, |parent| parent.ino)
    }

    /// Where it was first seen.
    pub fn path(&self) -> RelPath {
        let mut names = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(&*at.name);
            at = parent;
        }
        RelPath::of_names(names.into_iter().rev()).expect("invariant: names of nodes were checked")
    }

    /// The attributes as last seen.
    pub fn attributes(&self) -> Attributes {
        self.attributes.get().unpack()
    }

    pub(super) fn packed(&self) -> Packed {
        self.attributes.get()
    }

    /// What it is.
    pub fn kind(&self) -> EntryKind {
        self.attributes.get().kind()
    }

    /// Takes in what the source says of the same version now; whether anything of it is news.
    pub fn refresh(&self, attributes: &Attributes, now_ms: u64) -> bool {
        if let Body::File(file) = &self.body
            && let Some(file) = file.get()
        {
            file.confirm(attributes);
        }
        let changed = self.attributes.get().unpack().changed;
        let is_news = self.attributes.replace(Packed::new(attributes));
        if is_news {
            // A change of extended attributes changes the time of the inode's change; reading changes others only.
            if attributes.changed.is_none() || changed != attributes.changed {
                self.xattrs.store(None);
            }
            self.state.fetch_or(UNRECORDED, Ordering::AcqRel);
        }
        self.state.fetch_or(CONFIRMED, Ordering::Relaxed);
        self.touch(now_ms);
        is_news
    }

    /// It was just looked at.
    pub fn touch(&self, now_ms: u64) {
        self.checked_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When it was last looked at, in ms since the engine's start; [`NEVER`] if not in this life.
    pub fn checked_ms(&self) -> u64 {
        self.checked_ms.load(Ordering::Relaxed)
    }

    /// Whether the source confirmed it in this life.
    pub fn is_confirmed(&self) -> bool {
        self.has(CONFIRMED)
    }

    /// Whether the catalog lacks something that is known of it.
    pub fn is_unrecorded(&self) -> bool {
        self.has(UNRECORDED)
    }

    /// Something new is known of it; the catalog is told later.
    pub(super) fn set_unrecorded(&self) {
        self.state.fetch_or(UNRECORDED, Ordering::AcqRel);
    }

    /// What is known from now on is news again. Taken before what is recorded is read.
    pub(super) fn begin_recording(&self) {
        self.state.fetch_and(!UNRECORDED, Ordering::AcqRel);
    }

    fn has(&self, bit: u8) -> bool {
        self.state.load(Ordering::Acquire) & bit != 0
    }

    /// Whether `attributes` describe this version: for a file its fingerprint, else its kind.
    pub fn is_same_version(&self, attributes: &Attributes) -> bool {
        let mine = self.attributes.get();
        mine.kind() == attributes.kind
            && (mine.kind() != EntryKind::File
                || mine.unpack().fingerprint == attributes.fingerprint)
            && !self.is_stale()
    }

    /// Whether the source has another version of this file now.
    pub fn is_stale(&self) -> bool {
        self.has(SUPERSEDED)
            || matches!(&self.body, Body::File(file) if file.get().is_some_and(|file| file.is_stale()))
    }

    /// Its name means another version from now on.
    pub(super) fn supersede(&self) {
        self.state.fetch_or(SUPERSEDED, Ordering::AcqRel);
    }

    /// The kernel learns of it once more; `false` if it is just leaving memory: then it has to be looked up anew.
    pub fn refer(&self) -> bool {
        let more = |now: u32| (now != LEAVING).then(|| MANY.min(now + 1));
        self.references.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// The kernel forgot `count` lookups; whether these were the last.
    pub(super) fn unrefer(&self, count: u64) -> bool {
        let count = u32::try_from(count).unwrap_or(MANY);
        let less = |now: u32| (now < MANY).then(|| now.saturating_sub(count));
        let before = self.references.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        before.is_ok_and(|before| before <= count)
    }

    /// From now on the kernel cannot learn of it, unless [`Node::stay`] is called; `false` if the kernel knows it.
    pub(super) fn leave(&self) -> bool {
        let left =
            self.references.compare_exchange(0, LEAVING, Ordering::AcqRel, Ordering::Acquire);
        left.is_ok()
    }

    pub(super) fn stay(&self) {
        self.references.store(0, Ordering::Release);
    }

    /// The file, made now if nobody wanted its bytes before.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub fn file(&self) -> Result<&Arc<LazyFile>> {
        let Body::File(file) = &self.body else {
            return Err(Error::new(Kind::Invalid, "use as a file").at(self.path().as_path()));
        };
        let file = file.get_or_init(|| {
            let file = LazyFile::new(self.ino, self.path(), self.attributes());
            let is_earlier = self.has(EARLIER);
            Box::new(Arc::new(if is_earlier { file.of_an_earlier_life() } else { file }))
        });
        if self.has(SUPERSEDED) {
            file.mark_stale();
        }
        Ok(file)
    }

    /// The file if somebody wants its bytes.
    pub fn file_in_use(&self) -> Option<&Arc<LazyFile>> {
        match &self.body {
            Body::File(file) => file.get(),
            _ => None,
        }
    }

    /// Its bytes are recorded under another of its names: they are published there.
    pub(super) fn set_file_path(&self, path: &RelPath) {
        if let Body::File(file) = &self.body {
            let made = LazyFile::new(self.ino, path.clone(), self.attributes());
            // Somebody who was quicker wants bytes that are not here yet.
            drop(file.set(Box::new(Arc::new(made.of_an_earlier_life()))));
        }
    }

    /// The directory.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub fn directory(&self) -> Result<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Error::new(Kind::Invalid, "use as a directory").at(self.path().as_path())),
        }
    }
}

impl crate::engine::Engine {
    /// Target of a symlink; asked once.
    ///
    /// # Errors
    /// As [`crate::source::Source::readlink`]; `Timeout` at the deadline.
    pub async fn readlink(&self, node: &Node) -> Result<OsString> {
        let Body::Symlink(known) = &node.body else {
            return Err(Error::new(Kind::Invalid, "read link").at(node.path().as_path()));
        };
        if let Some(target) = known.load_full() {
            return Ok((*target).clone());
        }
        let path = node.path();
        let target = self.within_deadline("read link", self.source.readlink(&path)).await?;
        known.store(Some(Arc::new(target.clone())));
        self.record(node);
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
        let path = node.path();
        let xattrs = self.within_deadline("read xattrs", self.source.xattrs(&path)).await?;
        let xattrs = if xattrs.is_empty() { Arc::clone(&self.no_xattrs) } else { Arc::new(xattrs) };
        node.xattrs.store(Some(Arc::clone(&xattrs)));
        self.record(node);
        Ok(xattrs)
    }
}
