//! DIR: opened once, locked, held by a descriptor, and everything else in this folder reached through it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::core::attributes::EntryKind;
use crate::core::budget::Budget;
use crate::core::ids::Ids;
use crate::core::path::RelPath;
use crate::core::pool::LruPool;
use crate::error::{Error, Kind, Result};

use super::Identity;
use super::backing::Descriptor;
use super::catalog::{CATALOG_NAME, Catalog};
use super::elsewhere::POINTER_NAME;
use super::metadata::{self, Metadata, MetadataLoss, Target};
use super::probe::{self, Abilities};
use super::receipt::HasReceipt;
use super::recovery::Recovery;
use super::root::{Root, UNFINISHED_DIRECTORY, open_beneath, stat_entry, sync_directory};
use super::state::StateDirectory;

/// Private state of a destination.
pub const STATE_NAME: &str = ".lazycopy";
/// Says that DIR is not complete, so that no backup takes it for a whole tree.
pub const MARKER_NAME: &str = "LAZYCOPY-INCOMPLETE.txt";
/// Names in DIR that belong to us: no entry of a source can be published under them.
pub const RESERVED_NAMES: [&str; 2] = [STATE_NAME, MARKER_NAME];

pub(super) const MARKER_FIRST_LINE: &str = "This copy is not complete.";

/// How surely a file is on the disk when it is called verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// Read back through the page cache, and synced before it has its name.
    #[default]
    Normal,
    /// Synced first, dropped from the page cache, and read back from the disk; each file by itself.
    Paranoid,
}

/// What the user decided about a destination.
#[derive(Debug, Clone)]
pub struct DestinationOptions {
    /// Whether setuid, setgid and security.capability are kept.
    pub preserve_privileged: bool,
    /// Whether metadata that cannot be kept is an error.
    pub strict_metadata: bool,
    /// How surely files are on the disk.
    pub durability: Durability,
    /// Taken off the modes that are made up where a source has none: files 0666, directories 0777.
    pub umask: u32,
    /// Where catalog and hash trees lie; `None` = where they did, at first in DIR itself. It is made if its parent exists.
    pub state_dir: Option<PathBuf>,
    /// Most descriptors of backing files that stay open; `None` = a quarter of the soft RLIMIT_NOFILE.
    pub descriptors: Option<usize>,
    /// Most bytes that parts and published files may take; `None` = no limit, and nothing is counted.
    pub keep: Option<u64>,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        Self {
            preserve_privileged: false,
            strict_metadata: false,
            durability: Durability::Normal,
            umask: 0o022,
            state_dir: None,
            descriptors: None,
            keep: None,
        }
    }
}

/// An open, locked destination. Clones share it; the lock is released with the last clone and backing file.
#[derive(Debug, Clone)]
pub struct Destination {
    pub(super) disk: Arc<Disk>,
    pub(super) recovery: Arc<Recovery>,
}

/// What all handles of one destination share.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) root: Root,
    /// Before the lock: it is closed under it.
    pub(super) catalog: Catalog,
    pub(super) state: StateDirectory,
    pub(super) abilities: Abilities,
    pub(super) options: DestinationOptions,
    pub(super) descriptors: LruPool<u64, Descriptor>,
    pub(super) ids: Ids,
    /// What files may take, if that is limited.
    pub(super) budget: Option<Arc<Budget>>,
    pub(super) receipt: HasReceipt,
    /// What the marker says; nobody marks what was only opened to be looked at.
    pub(super) marker: ArcSwapOption<String>,
    /// Tells names of this life from those of any other.
    pub(super) salt: u64,
    /// The lock of a DIR that is only looked at.
    pub(super) _viewed: Option<OwnedFd>,
}

impl Destination {
    /// Opens DIR, making it (0700 until [`Destination::finish_root`]) if it is missing; takes its lock, probes what it can do, opens the catalog and recovers
    /// what an earlier life left: [`Destination::recovery`].
    ///
    /// # Errors
    /// `NotFound` if DIR's parent is missing; `Invalid` if DIR is no directory; `Denied` or `ReadOnly` if it cannot be written to or its
    /// private directory is not ours; `Busy` if another process holds it; `NotSupported` if its file system cannot keep holes, or a newer
    /// version wrote the catalog; `Corrupt` if that cannot be read.
    pub fn open(root: &Path, options: DestinationOptions) -> Result<Self> {
        let (root, is_new) = open_root(root)?;
        let state = StateDirectory::open(&root, options.state_dir.as_deref())?;
        let abilities = probe::probe(state.parts())?;
        abilities.require(root.shown_as())?;
        if is_new {
            state.remember_own_mode(&root, 0o777 & !options.umask)?;
            set_root_mode(&root, UNFINISHED_DIRECTORY)?;
        }
        let descriptors = LruPool::new(options.descriptors.unwrap_or_else(default_descriptors));
        let salt = probe::random();
        let ids = Ids::default();
        let (own, shown_as) = state.catalog(&root);
        let catalog = Catalog::open(own, state.trees(), &shown_as)?;
        let unit = rustix::fs::fstatvfs(root.fd())
            .map_err(|errno| root.error("stat destination", &RelPath::root(), errno))?
            .f_frsize;
        let budget = options.keep.map(|cap| Budget::new(cap, unit));
        let receipt = HasReceipt::default();
        let disk = Disk {
            root,
            catalog,
            state,
            abilities,
            options,
            descriptors,
            ids,
            budget,
            receipt,
            marker: ArcSwapOption::empty(),
            salt,
            _viewed: None,
        };
        disk.look_for_receipt();
        let opened = Self { disk: Arc::new(disk), recovery: Arc::default() };
        let recovery = opened.recover()?;
        tracing::info!(path = %opened.shown_as().display(), ?recovery, "destination opened");
        Ok(Self { recovery: Arc::new(recovery), ..opened })
    }

    /// As [`Destination::open`] for a DIR that is a destination already; nothing is made in any other.
    ///
    /// # Errors
    /// `NotFound` if it is none.
    pub fn open_known(root: &Path, options: DestinationOptions) -> Result<Self> {
        if !Self::is_known(root) {
            return Err(Error::new(Kind::NotFound, "open destination")
                .at(root)
                .because("no copy of lazycopy's is recorded here")
                .hint("name the DIR that was given as --dest"));
        }
        Self::open(root, options)
    }

    /// Whether a copy was begun in the directory `root` before.
    pub fn is_known(root: &Path) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::open(root, flags, Mode::empty()) else { return false };
        open_beneath(directory.as_fd(), STATE_NAME.as_bytes(), flags)
            .is_ok_and(|state| has_catalog(state.as_fd()))
    }

    /// What the destination's file system can do.
    pub fn abilities(&self) -> &Abilities {
        &self.disk.abilities
    }

    /// The options it was opened with.
    pub fn options(&self) -> &DestinationOptions {
        &self.disk.options
    }

    /// What its files take and may take, if that is limited.
    pub fn budget(&self) -> Option<&Arc<Budget>> {
        self.disk.budget.as_ref()
    }

    /// DIR as the user named it: for messages, never for access.
    pub fn shown_as(&self) -> &Path {
        self.disk.root.shown_as()
    }

    /// What an earlier life left, and what became of it.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Number of parts of an earlier life that were removed at the start.
    pub fn swept_parts(&self) -> u64 {
        self.recovery.swept_parts
    }

    /// What the marker says, from now on: `source` without secrets, and `go_on`, the exact command that goes on with this copy.
    pub fn set_marker(&self, source: &str, go_on: &str) {
        let meaning = match self.disk.budget {
            None => {
                "Files that are here are whole; files that are missing here were not copied yet.\n\
                 lazycopy removes this file when the copy is complete."
            }
            // It never will be: the marker stays, lest a backup takes what happens to be here for the source.
            Some(_) => {
                "It is a cache of limited size: files that are here are whole, and go again when room is needed."
            }
        };
        let text =
            format!("{MARKER_FIRST_LINE}\n\nSource: {source}\nTo go on: {go_on}\n\n{meaning}\n");
        self.disk.marker.store(Some(Arc::new(text)));
    }

    /// Puts the marker into DIR, durably, and then takes a receipt away. May be called by several at once.
    ///
    /// # Errors
    /// `Exists` if something that is not our marker has its name; else as a write. The receipt then stays.
    pub fn mark_incomplete(&self) -> Result<()> {
        self.disk.mark_incomplete()
    }

    /// Whether a receipt shows that the copy was complete when somebody looked last, and nobody has found out more since.
    ///
    /// # Errors
    /// As statat(2).
    pub fn is_complete(&self) -> Result<bool> {
        let root = &self.disk.root;
        let marker = stat_entry(root.fd(), MARKER_NAME.as_ref())
            .map_err(|errno| root.error("look for marker in", &RelPath::root(), errno))?;
        Ok(marker.is_none() && self.has_receipt())
    }

    /// Makes DIR 0700 until [`Destination::finish_root`], as a clone needs it: no backup takes it for a whole tree.
    ///
    /// # Errors
    /// As fchmod(2) and a write.
    pub fn conceal(&self) -> Result<()> {
        let disk = &self.disk;
        disk.state.remember_own_mode(&disk.root, disk.root_mode()?)?;
        set_root_mode(&disk.root, UNFINISHED_DIRECTORY)
    }

    /// Whether `path` leads to the directory that is open here. Never to be asked while a mount of ours covers it.
    ///
    /// # Errors
    /// As stat(2).
    pub fn is_at(&self, path: &Path) -> Result<bool> {
        let failed = |errno| Error::io("stat destination", errno).at(path);
        let there = rustix::fs::stat(path).map_err(failed)?;
        let open = rustix::fs::fstat(self.disk.root.fd()).map_err(failed)?;
        Ok(Identity::of(&there) == Identity::of(&open))
    }

    /// Waits until everything that was written to its file system is on the disk.
    ///
    /// # Errors
    /// As syncfs(2).
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(self.disk.root.fd())
            .map_err(|errno| self.disk.root.own_error("sync file system of destination", errno))
    }

    /// Closes the catalog and leaves the lock, while files that are open here can still be read. Everything else fails from now on.
    ///
    /// # Errors
    /// `Busy` if somebody still uses the catalog; as flock(2).
    pub fn close(&self) -> Result<()> {
        self.disk.catalog.close()?;
        self.disk.state.leave_lock(&self.disk.root)
    }

    /// Takes the marker away, durably. It is no error if there is none.
    ///
    /// # Errors
    /// As unlink(2) and fsync(2).
    pub fn remove_marker(&self) -> Result<()> {
        self.disk.state.remove_marker(&self.disk.root)
    }

    /// Makes sure that the directory `path` and all above it exist. What is made is 0700 until [`Destination::finish_directory`], and
    /// durable in its parent.
    ///
    /// # Errors
    /// `Exists` if something else has its name or a symlink stands in the way; `Invalid` for a reserved name; else as mkdir(2).
    pub fn ensure_directory(&self, path: &RelPath) -> Result<()> {
        self.disk.check_path(path)?;
        self.disk.root.ensure_directory(path).map(drop)
    }

    /// Gives an existing directory its metadata, durably. To be called when its children are there, deepest first.
    ///
    /// # Errors
    /// `NotSupported` if something cannot be kept and metadata is strict; else as the system calls.
    pub fn finish_directory(
        &self,
        path: &RelPath,
        metadata: &Metadata,
    ) -> Result<Vec<MetadataLoss>> {
        self.disk.check_path(path)?;
        let disk = &self.disk;
        let directory = disk.root.directory(path)?;
        let losses = metadata::apply(disk, &Target::Open(directory.as_fd()), path, metadata)?;
        sync_directory(directory.as_fd())
            .map_err(|errno| disk.root.error("sync directory", path, errno))?;
        disk.catalog.note_other(path, EntryKind::Directory, None, Some(&losses), None)?;
        Ok(losses)
    }

    /// Gives DIR itself the metadata of the source's root, durably; without it, or where it names no mode, DIR gets its own mode back
    /// if that was taken. The last step of a copy.
    ///
    /// # Errors
    /// As [`Destination::finish_directory`].
    pub fn finish_root(&self, metadata: Option<&Metadata>) -> Result<Vec<MetadataLoss>> {
        let disk = &self.disk;
        let own_mode = disk.state.own_mode(&disk.root)?;
        let losses = match metadata {
            Some(metadata) => {
                let mut metadata = metadata.clone();
                if metadata.attributes.mode.is_none() {
                    metadata.attributes.mode = Some(own_mode.map_or_else(|| disk.root_mode(), Ok)?);
                }
                let target = Target::Open(disk.root.fd());
                metadata::apply(disk, &target, &RelPath::root(), &metadata)?
            }
            None => {
                if let Some(mode) = own_mode {
                    set_root_mode(&disk.root, mode)?;
                }
                Vec::new()
            }
        };
        sync_directory(disk.root.fd())
            .map_err(|errno| disk.root.error("sync destination", &RelPath::root(), errno))?;
        disk.state.forget_own_mode(&disk.root)?;
        Ok(losses)
    }
}

impl Disk {
    /// See [`Destination::mark_incomplete`].
    pub(super) fn mark_incomplete(&self) -> Result<()> {
        if let Some(text) = &*self.marker.load() {
            let draft = self.part_name(self.ids.next());
            self.state.write_marker(&self.root, &draft, MARKER_FIRST_LINE, text)?;
        }
        self.remove_receipt()
    }

    /// Refuses the names in DIR that are ours.
    pub(super) fn check_path(&self, path: &RelPath) -> Result<()> {
        let first = path.components().next();
        if first.is_some_and(|first| RESERVED_NAMES.iter().any(|reserved| first == *reserved)) {
            return Err(Error::new(Kind::Invalid, "use path")
                .at(self.root.shown_as().join(path.as_path()))
                .because("this name is reserved for lazycopy's own state")
                .hint("exclude it from the copy"));
        }
        Ok(())
    }

    /// The directory that `path` shall be put into, made if it is missing.
    pub(super) fn ensure_parent(&self, path: &RelPath) -> Result<OwnedFd> {
        self.check_path(path)?;
        let parent = path.parent().ok_or_else(|| {
            self.root
                .error("publish", path, Errno::INVAL)
                .because("the root is no entry of the destination")
        })?;
        self.root.ensure_directory(&parent)
    }

    fn root_mode(&self) -> Result<u32> {
        rustix::fs::fstat(self.root.fd())
            .map(|stat| stat.st_mode & 0o7777)
            .map_err(|errno| self.root.error("stat destination", &RelPath::root(), errno))
    }

    /// A name that no other part has or had.
    pub(super) fn part_name(&self, id: u64) -> String {
        format!("{:016x}-{id}", self.salt)
    }
}

/// Whether a private directory holds a catalog, or says where it is.
fn has_catalog(state: BorrowedFd<'_>) -> bool {
    [CATALOG_NAME, POINTER_NAME]
        .iter()
        .any(|name| matches!(stat_entry(state, name.as_ref()), Ok(Some(_))))
}

fn default_descriptors() -> usize {
    // No limit means the kernel's own, which is far above what helps.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(65_536);
    usize::try_from(limit / 4).unwrap_or(usize::MAX)
}

fn set_root_mode(root: &Root, mode: u32) -> Result<()> {
    rustix::fs::fchmod(root.fd(), Mode::from_raw_mode(mode))
        .map_err(|errno| root.error("change mode of destination", &RelPath::root(), errno))
}

/// Opens DIR or makes it; the flag tells whether it was made.
fn open_root(path: &Path) -> Result<(Root, bool)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(path, flags, Mode::empty());
    let (fd, is_new) = match open() {
        Err(Errno::NOENT) => {
            make_root(path)?;
            (open(), true)
        }
        result => (result, false),
    };
    let fd = fd.map_err(|errno| {
        let error = Error::io("open destination", errno).at(path);
        match errno {
            Errno::NOTDIR => error
                .kinded(Kind::Invalid)
                .because("not a directory")
                .hint("name a directory, or a name that does not exist yet"),
            Errno::ACCESS => error.hint("choose a directory that you can read and write"),
            _ => error,
        }
    })?;
    Ok((Root::new(fd, path.to_owned()), is_new))
}

fn make_root(path: &Path) -> Result<()> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(UNFINISHED_DIRECTORY)).map_err(|errno| {
        let error = Error::io("make destination", errno).at(path);
        match errno {
            Errno::NOENT => error
                .because("the directory that should hold it does not exist")
                .hint("make that directory first"),
            Errno::EXIST => error.because("it is a symbolic link that leads nowhere"),
            Errno::ACCESS | Errno::ROFS => error.hint("choose a place that you can write to"),
            _ => error,
        }
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(parent, flags, Mode::empty())
        .and_then(|parent| sync_directory(parent.as_fd()))
        .map_err(|errno| Error::io("sync parent of destination", errno).at(path))
}
