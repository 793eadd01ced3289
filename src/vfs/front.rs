//! The FUSE callbacks. They only translate: what is in memory is answered at once, everything else is parked in a task that owns
//! the reply. No FUSE thread ever waits.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::core::in_flight::{InFlightGuard, Noted, Operation};
use crate::engine::Engine;
use crate::engine::node::Node;
use crate::error::{Kind, Result};
use crate::sync::{AtomicBool, Ordering};
use crate::vfs::attributes::Appearance;
use crate::vfs::errno::errno;
use crate::vfs::listing::{self, Shows};
use crate::vfs::reading::Opener;
use crate::vfs::xattrs::Wanted;

/// Requests that the kernel keeps in flight in the background. fuser's 16 let 64 stuck readers block every cached read.
const MAX_BACKGROUND: u16 = 4096;
const CONGESTION: u16 = 3072;
/// Largest read in one request: 256 pages.
const MAX_REQUEST: u32 = 1 << 20;

/// What statfs answers; kept up to date in the background.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatfsAnswer {
    /// Size of the source where known, in bytes.
    pub total_bytes: u64,
    /// What the destination can still take, in bytes.
    pub free_bytes: u64,
    /// Inodes of the source where known.
    pub total_inodes: u64,
    /// What the destination can still take.
    pub free_inodes: u64,
}

/// How a session behaves.
#[derive(Debug, Clone, Copy)]
pub struct FrontSettings {
    /// How attributes are shown.
    pub appearance: Appearance,
    /// The source has modes and ACLs: the kernel enforces them.
    pub has_acls: bool,
}

/// The file system as the kernel sees it.
#[derive(Debug)]
pub struct Front {
    pub(super) engine: Arc<Engine>,
    settings: FrontSettings,
    statfs: Arc<ArcSwap<StatfsAnswer>>,
    pub(super) opener: Arc<Opener>,
    /// Only what is open is served on. Relaxed: who asks a moment late is answered as before.
    names_closed: Arc<AtomicBool>,
}

/// Runs a callback; a panic in it is EIO for this request (its reply answers that when it is dropped) and nothing else.
fn guarded(what: &'static str, callback: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(callback)).is_err() {
        tracing::error!(what, "a callback panicked; its request was answered EIO");
    }
}

impl Front {
    /// A front for `engine`. `statfs` is filled by who watches the disks.
    pub fn new(
        engine: Arc<Engine>,
        settings: FrontSettings,
        statfs: Arc<ArcSwap<StatfsAnswer>>,
    ) -> Self {
        Self { engine, settings, statfs, opener: Arc::default(), names_closed: Arc::default() }
    }

    /// Once it is set, no name is looked up and nothing is opened any more: ENOTCONN, as if the daemon were gone.
    pub(super) fn names_closed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.names_closed)
    }

    fn is_closed_to_names(&self) -> bool {
        self.names_closed.load(Ordering::Relaxed)
    }

    pub(super) fn note(
        &self,
        operation: Operation,
        request: &Request,
        ino: u64,
        at: (u64, u64),
    ) -> InFlightGuard {
        let (offset, len) = at;
        let since_ms = self.engine.now_ms();
        let noted = Noted { request: 0, operation, ino, offset, len, since_ms, pid: request.pid() };
        self.engine.in_flight().note(noted)
    }

    /// Parks a request: `work` runs in a task, and its answer goes to `answer` there.
    pub(super) fn park<T: Send + 'static>(
        &self,
        note: InFlightGuard,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        self.engine.runtime().spawn(async move {
            answer(work.await);
            drop(note);
        });
    }
}

fn entry(appearance: &Appearance, result: &Result<Arc<Node>>, reply: ReplyEntry) {
    match result {
        Ok(node) => reply.entry(&appearance.ttl, &appearance.attr(node), Generation(0)),
        Err(error) => {
            if error.kind() != Kind::NotFound {
                tracing::debug!(%error, "lookup failed");
            }
            reply.error(errno(error));
        }
    }
}

impl Filesystem for Front {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "not offered by this kernel");
            }
        }
        if self.engine.lists_attributes() {
            for flag in [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO] {
                let _offered = config.add_capabilities(flag).is_ok();
            }
        }
        if self.settings.has_acls && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            tracing::warn!("this kernel does not enforce ACLs over FUSE; only modes are enforced");
        }
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.opener.allow_passthrough();
        }
        let failed = |nearest| io::Error::other(format!("INIT refused; nearest {nearest}"));
        config.set_max_background(MAX_BACKGROUND).map_err(failed)?;
        config.set_congestion_threshold(CONGESTION).map_err(failed)?;
        config
            .set_max_write(MAX_REQUEST)
            .map_err(|nearest| io::Error::other(nearest.to_string()))?;
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.is_closed_to_names() {
            return reply.error(Errno::ENOTCONN);
        }
        guarded("lookup", || {
            let appearance = self.settings.appearance;
            match self.engine.try_lookup(parent.0, name) {
                Some(Ok(node)) if !node.refer() => {}
                Some(known) => return entry(&appearance, &known, reply),
                None => {}
            }
            let note = self.note(Operation::Lookup, request, parent.0, (0, 0));
            let (engine, name) = (Arc::clone(&self.engine), name.to_owned());
            let work = async move { engine.lookup_for_kernel(parent.0, &name).await };
            self.park(note, work, move |result| entry(&appearance, &result, reply));
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        guarded("forget", || {
            self.opener.forget(ino.0);
            self.engine.forget(ino.0, lookups);
        });
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", || match self.engine.node(ino.0) {
            Ok(node) => {
                let appearance = &self.settings.appearance;
                reply.attr(&appearance.ttl, &appearance.attr(&node));
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        if self.is_closed_to_names() {
            return reply.error(Errno::ENOTCONN);
        }
        guarded("readlink", || {
            let note = self.note(Operation::Readlink, request, ino.0, (0, 0));
            let engine = Arc::clone(&self.engine);
            let work = async move {
                let node = engine.node(ino.0)?;
                let target = engine.readlink(&node).await?;
                engine.learn_xattrs(&node);
                Ok(target)
            };
            self.park(note, work, move |result| match result {
                Ok(target) => reply.data(target.as_encoded_bytes()),
                Err(error) => reply.error(errno(&error)),
            });
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.is_closed_to_names() {
            return reply.error(Errno::ENOTCONN);
        }
        guarded("open", || self.open_file(request, ino.0, flags, reply));
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", || self.read_now(request, ino.0, fh.0, (offset, size), reply));
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded("release", || {
            self.opener.release(&self.engine, fh.0);
            reply.ok();
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS); // once: the kernel does not ask again
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Not cached by the kernel: it would never ask again whether the source has something new.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        if self.is_closed_to_names() {
            return reply.error(Errno::ENOTCONN);
        }
        guarded("readdir", || {
            self.with_listing(request, ino.0, offset, Shows::Names, move |engine, listing| {
                match listing {
                    Ok(listing) => listing::send(engine, ino.0, offset, &listing, reply),
                    Err(error) => reply.error(errno(&error)),
                }
            });
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        if self.is_closed_to_names() {
            return reply.error(Errno::ENOTCONN);
        }
        guarded("readdirplus", || {
            let appearance = self.settings.appearance;
            self.with_listing(request, ino.0, offset, Shows::Attributes, move |engine, listing| {
                match listing {
                    Ok(listing) => {
                        listing::send_plus(engine, &appearance, ino.0, offset, &listing, reply);
                    }
                    Err(error) => reply.error(errno(&error)),
                }
            });
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const UNIT: u64 = 4096;
        let answer = **self.statfs.load();
        let (free, total) = (answer.free_bytes / UNIT, answer.total_bytes.div_ceil(UNIT));
        let unit = 4096;
        reply.statfs(total, free, free, answer.total_inodes, answer.free_inodes, unit, 255, unit);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok(); // default_permissions: the kernel has checked
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        guarded("getxattr", || {
            self.with_xattrs(request, ino.0, size, reply, Wanted::Value(name.to_owned()));
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || {
            self.with_xattrs(request, ino.0, size, reply, Wanted::Names);
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded("lseek", || self.seek_now(request, ino.0, offset, whence, reply));
    }

    // Everything that would change the tree. The mount itself is read-write, so these arrive.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
