//! Extended attributes: the source's, asked once; and our own, which are listed nowhere, so that no copy of a file takes them along.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{Errno, ReplyEmpty, ReplyXattr, Request};

use crate::core::in_flight::Operation;
use crate::engine::node::Xattrs;
use crate::error::Result;
use crate::vfs::errno::errno;
use crate::vfs::front::Front;

/// `1` for what is kept from eviction; set or removed, it does that.
const PIN: &str = "user.lazycopy.pin";

impl Front {
    /// Answers a question for an attribute of ours; gives the reply back for any other.
    pub(super) fn answer_own(
        &self,
        ino: u64,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) -> Option<ReplyXattr> {
        if name != PIN {
            return Some(reply);
        }
        match self.engine.node(ino) {
            Ok(node) if self.engine.pins().holds(&node.path()) => {
                Self::answer_xattr(Ok(b"1".to_vec()), size, reply);
            }
            Ok(_) => reply.error(Errno::ENODATA),
            Err(error) => reply.error(errno(&error)),
        }
        None
    }

    /// Sets an attribute of ours, or removes it (`None`); every other is the source's.
    pub(super) fn set_own(
        &self,
        request: &Request,
        ino: u64,
        name: &OsStr,
        value: Option<&[u8]>,
        reply: ReplyEmpty,
    ) {
        let is_pinned = match value {
            _ if name != PIN => return reply.error(Errno::EROFS),
            Some(b"1") => true,
            None | Some(b"0") => false,
            Some(_) => return reply.error(Errno::EINVAL),
        };
        let path = match self.engine.node(ino) {
            Ok(node) => node.path(),
            Err(error) => return reply.error(errno(&error)),
        };
        let note = self.note(Operation::Xattr, request, ino, (0, 0));
        let engine = Arc::clone(&self.engine);
        let work = async move { engine.pin(&path, is_pinned).await };
        self.park(note, work, move |result| match result {
            Ok(_is_news) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn answer_xattr(found: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
        match found {
            Err(error) => reply.error(errno(&error)),
            Ok(value) => match u32::try_from(value.len()) {
                Ok(len) if size == 0 => reply.size(len),
                Ok(len) if len <= size => reply.data(&value),
                Ok(_) => reply.error(Errno::ERANGE),
                Err(_) => reply.error(Errno::E2BIG),
            },
        }
    }

    pub(super) fn with_xattrs(
        &self,
        request: &Request,
        ino: u64,
        size: u32,
        reply: ReplyXattr,
        pick: impl FnOnce(&Xattrs) -> std::result::Result<Vec<u8>, Errno> + Send + 'static,
    ) {
        let answer = move |xattrs: &Xattrs, reply: ReplyXattr| match pick(xattrs) {
            Ok(value) => Self::answer_xattr(Ok(value), size, reply),
            Err(number) => reply.error(number),
        };
        let node = match self.engine.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        if let Some(xattrs) = self.engine.known_xattrs(&node) {
            return answer(&xattrs, reply);
        }
        let note = self.note(Operation::Xattr, request, ino, (0, 0));
        let engine = Arc::clone(&self.engine);
        let work = async move { engine.xattrs(&node).await };
        self.park(note, work, move |result| match result {
            Ok(xattrs) => answer(&xattrs, reply),
            Err(error) => reply.error(errno(&error)),
        });
    }
}
