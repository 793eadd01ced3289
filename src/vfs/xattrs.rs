//! Extended attributes: the source's, asked once.

use std::sync::Arc;

use fuser::{Errno, ReplyXattr, Request};

use crate::core::in_flight::Operation;
use crate::engine::node::Xattrs;
use crate::error::Result;
use crate::vfs::errno::errno;
use crate::vfs::front::Front;

impl Front {
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
