//! RING 1: the destination's disk. Blocking code: the engine calls it from `spawn_blocking`, except [`BackingFile::try_read_at`],
//! which never waits.
//!
//! | file | what |
//! |---|---|
//! | [`destination`] | opens DIR: state directory, lock, marker, directories |
//! | [`probe`] | what the destination's file system can do, found by doing |
//! | [`backing`] | one file's bytes on disk, before and after it is published |
//! | [`metadata`], [`publish`], [`special`] | owner, xattrs, times, mode; and the rename into place |
//! | [`bulk`] | many small files at once, for a copy without a mount |
//! | [`catalog`] | what is durably known: entries, block maps, intents, numbers |
//! | [`checkpoint`], [`recovery`] | data before the record that vouches for it; and what an earlier life left |
//! | `elsewhere`, [`forget`] | a state directory outside DIR; how DIR becomes a plain directory again |
//! | [`evict`], `aside` | what goes again from a cache of limited size; the way of a file out of DIR |
//! | [`existing`], [`kept_xattrs`] | what lies in DIR already; the extended attributes that it has kept |
//! | [`event_log`] | the file that events are written to |
//! | [`receipt`] | what a complete copy can show |
//! | [`space`], [`verify`], [`checksum`] | free space; hashes of what is on disk, and the source's checksums of it |
//! | `view`, [`cut`] | DIR only looked at, for plans; where a test ends it all |
//! | [`proof`], [`mend`] | the copy proven again, at any later time; good blocks of a bad file used again |
//!
//! Everything below DIR is reached from a descriptor of DIR with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//! RESOLVE_NO_XDEV)`: a clone covers DIR's path with its own mount, and a symlink planted in DIR must lead nowhere.

mod aside;
pub mod backing;
pub mod bulk;
pub mod catalog;
pub mod checkpoint;
pub mod checksum;
pub mod cut;
pub mod destination;
mod elsewhere;
pub mod event_log;
pub mod evict;
pub mod existing;
pub mod forget;
pub mod kept_xattrs;
pub mod mend;
pub mod metadata;
mod place;
pub mod probe;
pub mod proof;
pub mod publish;
pub mod receipt;
pub mod recovery;
mod root;
pub mod space;
pub mod special;
mod state;
pub mod verify;
mod view;

pub use aside::SetAside;
pub use backing::BackingFile;
pub use catalog::Catalog;
pub use checkpoint::Checkpoint;
pub use destination::{
    Destination, DestinationOptions, Durability, MARKER_NAME, RESERVED_NAMES, STATE_NAME,
};
pub use evict::{Kept, KeptAs, Leaving, LeavingFrom};
pub use existing::Existing;
pub use metadata::{Metadata, MetadataLoss};
pub use probe::{Abilities, Missing};
pub use publish::{Candidate, Published, Replace, Vouched};
pub use recovery::{Recovery, Standing};
pub use space::Space;
pub use verify::{BlockHash, BlockHasher, FileHash};

/// Names one inode: device and inode number. Both are reused after the last link and descriptor are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl Identity {
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}
