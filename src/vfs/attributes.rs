//! What stat shows.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use crate::core::attributes::{Attributes, EntryKind};
use crate::engine::node::Node;

/// How attributes are shown.
#[derive(Debug, Clone, Copy)]
pub struct Appearance {
    /// Everything belongs to this user and group; `None` = as the source has it.
    pub owner: Option<(u32, u32)>,
    /// Mode of files where the source has none.
    pub file_mode: u16,
    /// Mode of directories where the source has none.
    pub directory_mode: u16,
    /// How long the kernel may answer names and attributes by itself.
    pub ttl: Duration,
    /// Shown as owner where the source has none.
    pub fallback_owner: (u32, u32),
    /// Shown as time where the source has none.
    pub started_at: SystemTime,
}

impl Appearance {
    /// What is shown of an entry of which only the kind is known.
    pub(crate) fn unknown(&self, ino: u64, kind: EntryKind) -> FileAttr {
        let (uid, gid) = self.owner.unwrap_or(self.fallback_owner);
        FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: self.started_at,
            mtime: self.started_at,
            ctime: self.started_at,
            crtime: self.started_at,
            kind: file_type(kind),
            perm: 0,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The attributes of a node. `st_blocks` never says that a file without holes has any: `tar -S` would archive zeros.
    pub(crate) fn attr(&self, node: &Node) -> FileAttr {
        let attributes = node.attributes();
        let source_owner = attributes.ownership.map(|owner| (owner.uid, owner.gid));
        let (uid, gid) = self.owner.or(source_owner).unwrap_or(self.fallback_owner);
        let modified = attributes.modified.map_or(self.started_at, SystemTime::from);
        FileAttr {
            ino: INodeNo(node.ino),
            size: attributes.size,
            blocks: blocks(&attributes),
            atime: attributes.accessed.map_or(modified, SystemTime::from),
            mtime: modified,
            ctime: attributes.changed.map_or(modified, SystemTime::from),
            crtime: modified,
            kind: file_type(attributes.kind),
            perm: self.mode(&attributes),
            nlink: attributes.link_count,
            uid,
            gid,
            rdev: u32::try_from(attributes.device_number).unwrap_or(0),
            blksize: 128 * 1024,
            flags: 0,
        }
    }

    fn mode(&self, attributes: &Attributes) -> u16 {
        let made_up = match attributes.kind {
            EntryKind::Directory => self.directory_mode,
            EntryKind::Symlink => 0o777,
            _ => self.file_mode,
        };
        attributes.mode.map_or(made_up, |mode| u16::try_from(mode & 0o7777).unwrap_or(made_up))
    }
}

fn blocks(attributes: &Attributes) -> u64 {
    let dense = attributes.size.div_ceil(512);
    match attributes.allocated_units {
        Some(allocated) if attributes.is_sparse() => allocated,
        Some(allocated) => allocated.max(dense),
        None => dense,
    }
}

pub(crate) fn file_type(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::File => FileType::RegularFile,
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::Fifo => FileType::NamedPipe,
        EntryKind::Socket => FileType::Socket,
        EntryKind::CharDevice => FileType::CharDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
    }
}
