//! Opening and reading: hits at once, misses parked, published files handed to the kernel.

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, OpenAccMode, OpenFlags, ReplyData, ReplyLseek,
    ReplyOpen, Request,
};

use crate::core::in_flight::Operation;
use crate::core::open_mode::{Mode, OpenMode};
use crate::core::table::Table;
use crate::engine::Engine;
use crate::engine::node::Node;
use crate::engine::read::{Handle, TryRead};
use crate::sync::{AtomicBool, Ordering};
use crate::vfs::errno::errno;
use crate::vfs::front::Front;

thread_local! {
    /// Hit reads are answered from here: one buffer a FUSE thread, no allocation a read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kernel's registration of a published file.
type Backing = Arc<BackingId>;

/// Open files as the kernel has them.
#[derive(Debug, Default)]
pub(super) struct Opener {
    modes: Table<u64, Arc<OpenMode<Backing>>>,
    open: Table<u64, Open>,
    /// The kernel can read published files by itself, and let us so far.
    passthrough: AtomicBool,
}

/// One open file of the kernel's.
#[derive(Debug, Clone)]
struct Open {
    handle: Arc<Handle>,
    mode: Mode,
    modes: Arc<OpenMode<Backing>>,
}

impl Opener {
    /// The kernel offers to read published files by itself.
    pub(super) fn allow_passthrough(&self) {
        self.passthrough.store(true, Ordering::Relaxed);
    }

    /// The kernel has forgotten an inode: it has no handle open on it.
    pub(super) fn forget(&self, ino: u64) {
        if let Some(modes) = self.modes.get(&ino) {
            self.modes.remove_unused(&ino, &modes, 1);
        }
    }

    pub(super) fn release(&self, engine: &Engine, handle: u64) {
        if let Some(open) = self.open.remove(&handle) {
            open.modes.release(open.mode);
            engine.release(handle);
        }
    }

    fn open(&self, engine: &Arc<Engine>, node: &Node, reply: ReplyOpen) {
        let number = match engine.open_file(node) {
            Ok(number) => number,
            Err(error) => return reply.error(errno(&error)),
        };
        let Ok(handle) = engine.handle(number) else { return reply.error(Errno::EIO) };
        let modes = self.modes.get_or_insert(node.ino, Arc::default());
        if let Some(backing) = self.passthrough_for(engine, &handle, &modes, &reply) {
            let open = Open { handle, mode: Mode::Passthrough, modes };
            self.open.insert(number, open);
            return reply.opened_passthrough(FileHandle(number), FopenFlags::empty(), &backing);
        }
        if !modes.open_cached() {
            // Only while a first passthrough open fails next to one that succeeded.
            engine.release(number);
            return reply.error(Errno::EIO);
        }
        self.open.insert(number, Open { handle, mode: Mode::Cached, modes });
        reply.opened(FileHandle(number), FopenFlags::FOPEN_KEEP_CACHE);
    }

    /// The registration under which the kernel reads this file by itself, if that is possible now.
    fn passthrough_for(
        &self,
        engine: &Engine,
        handle: &Handle,
        modes: &OpenMode<Backing>,
        reply: &ReplyOpen,
    ) -> Option<Backing> {
        if !self.passthrough.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(backing) = modes.join_passthrough() {
            return Some(backing);
        }
        if !modes.may_start_passthrough() {
            return None;
        }
        let descriptor = engine.published_descriptor(handle)?;
        match reply.open_backing(&*descriptor) {
            Ok(backing) => modes.start_passthrough(Arc::new(backing)),
            Err(error) => {
                tracing::info!(%error, "passthrough is not possible; published files are served by the daemon");
                self.passthrough.store(false, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Front {
    /// Opens at once, or as soon as what an earlier life left of the file was looked for.
    pub(super) fn open_file(
        &self,
        request: &Request,
        ino: u64,
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let node = match self.engine.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        if !self.engine.needs_restoring(&node) {
            return self.opener.open(&self.engine, &node, reply);
        }
        let note = self.note(Operation::Open, request, ino, (0, 0));
        let (engine, opener) = (Arc::clone(&self.engine), Arc::clone(&self.opener));
        let work = async move {
            engine.prepare_open(&node).await?;
            Ok((engine, node))
        };
        self.park(note, work, move |prepared| match prepared {
            Ok((engine, node)) => opener.open(&engine, &node, reply),
            Err(error) => reply.error(errno(&error)),
        });
    }

    pub(super) fn read_now(
        &self,
        request: &Request,
        ino: u64,
        handle: u64,
        at: (u64, u32),
        reply: ReplyData,
    ) {
        let (offset, size) = at;
        let Some(open) = self.opener.open.get(&handle) else { return reply.error(Errno::EBADF) };
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(size as usize), 0);
            match self.engine.try_read(&open.handle, offset, &mut buffer[..size as usize]) {
                Ok(TryRead::Hit(bytes)) => {
                    tracing::trace!(ino, handle, offset, size, bytes, "read hit");
                    reply.data(&buffer[..bytes]);
                }
                Ok(TryRead::Miss) => {
                    self.park_read(request, ino, &open, (offset, u64::from(size)), reply);
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn park_read(
        &self,
        request: &Request,
        ino: u64,
        open: &Open,
        at: (u64, u64),
        reply: ReplyData,
    ) {
        let note = self.note(Operation::Read, request, ino, at);
        let number = note.request();
        let (offset, len) = at;
        tracing::trace!(req = number, ino, offset, len, pid = request.pid(), "read enter");
        let (engine, file) = (Arc::clone(&self.engine), Arc::clone(&open.handle.file));
        let work = async move {
            let since_ms = engine.now_ms();
            let read = engine.read(&file, offset, len).await;
            engine.stats().last_wait_ms.set(engine.now_ms().saturating_sub(since_ms));
            read
        };
        self.park(note, work, move |result| {
            let bytes = result.as_ref().map_or(0, Vec::len);
            match &result {
                Ok(bytes) => reply.data(bytes),
                Err(error) => reply.error(errno(error)),
            }
            let kind = result.err().map(|error| error.kind().as_str());
            tracing::trace!(req = number, ino, offset, len, bytes, kind, "read exit");
        });
    }

    pub(super) fn seek_now(
        &self,
        request: &Request,
        ino: u64,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(start) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let file = match self.engine.node(ino).and_then(|node| node.file().cloned()) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(&error)),
        };
        let note = self.note(Operation::Seek, request, ino, (start, 0));
        let engine = Arc::clone(&self.engine);
        let work = async move {
            engine.ensure_layout(&file).await?;
            Ok(file.seek(start, data))
        };
        self.park(note, work, move |result| match result {
            Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(errno(&error)),
        });
    }
}
