//! Extended attributes: the source's, asked once.

use std::ffi::OsString;
use std::sync::Arc;

use fuser::{Errno, ReplyXattr, Request};

use crate::core::attributes::is_copyable_xattr;
use crate::core::in_flight::Operation;
use crate::engine::node::Xattrs;
use crate::error::{Error, Kind};
use crate::vfs::errno::errno;
use crate::vfs::front::Front;

/// What a caller asks for.
#[derive(Debug)]
pub(super) enum Wanted {
    /// The names of all attributes.
    Names,
    /// The value of this one.
    Value(OsString),
}

impl Wanted {
    fn pick(&self, xattrs: &Xattrs) -> Result<Vec<u8>, Errno> {
        match self {
            Wanted::Names => {
                let names = xattrs.iter().flat_map(|(name, _)| [name.as_encoded_bytes(), b"\0"]);
                Ok(names.collect::<Vec<_>>().concat())
            }
            Wanted::Value(name) => {
                let found = xattrs.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone()).ok_or(Errno::ENODATA)
            }
        }
    }

    /// No source is asked for it: `ls -l` asks for the label of each file.
    fn is_never_shown(&self) -> bool {
        matches!(self, Wanted::Value(name) if !is_copyable_xattr(name.as_encoded_bytes()))
    }

    /// What is said where nothing is known. `ls -l` asks for the access control list of each file, known or not, and complains of an error:
    /// while the source is away such a list is "not supported", which is no claim that there is none.
    fn unknown(&self, error: &Error) -> Errno {
        match self {
            Wanted::Value(name)
                if error.kind() == Kind::Unreachable
                    && name.as_encoded_bytes().starts_with(b"system.posix_acl_") =>
            {
                Errno::EOPNOTSUPP
            }
            _ => errno(error),
        }
    }
}

impl Front {
    pub(super) fn with_xattrs(
        &self,
        request: &Request,
        ino: u64,
        size: u32,
        reply: ReplyXattr,
        wanted: Wanted,
    ) {
        let node = match self.engine.node(ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(&error)),
        };
        if wanted.is_never_shown() {
            return reply.error(Errno::ENODATA);
        }
        if let Some(xattrs) = self.engine.known_xattrs(&node) {
            return answer(wanted.pick(&xattrs), size, reply);
        }
        let note = self.note(Operation::Xattr, request, ino, (0, 0));
        let engine = Arc::clone(&self.engine);
        let work = async move { engine.xattrs_at_hand(&node).await };
        self.park(note, work, move |result| match result {
            Ok(xattrs) => answer(wanted.pick(&xattrs), size, reply),
            Err(error) => reply.error(wanted.unknown(&error)),
        });
    }
}

fn answer(found: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match found {
        Err(number) => reply.error(number),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            Ok(_) => reply.error(Errno::ERANGE),
            Err(_) => reply.error(Errno::E2BIG),
        },
    }
}
