//! What SFTP tells of an entry, in the crate's words.

use std::time::{Duration, SystemTime};

use super::packet::RawAttributes;
use crate::core::attributes::{
    Attributes, EntryKind, Fingerprint, Ownership, Timestamp, Validator,
};
use crate::error::{Error, Kind, Result};

/// How old a modification must be by our clock until the next one shows: times have whole seconds, and the server's clock may be slow.
const SETTLED: Duration = Duration::from_secs(60);

/// The kind that is in the bits of a mode (inode(7)).
fn kind_of(permissions: u32) -> EntryKind {
    match permissions & 0o170_000 {
        0o040_000 => EntryKind::Directory,
        0o120_000 => EntryKind::Symlink,
        0o010_000 => EntryKind::Fifo,
        0o140_000 => EntryKind::Socket,
        0o020_000 => EntryKind::CharDevice,
        0o060_000 => EntryKind::BlockDevice,
        _ => EntryKind::File,
    }
}

impl RawAttributes {
    /// Which version of a file of `size` bytes they name.
    fn fingerprint(&self, size: u64) -> Fingerprint {
        let validator = match self.modified() {
            Some(time) => Validator::Modified(time),
            None => Validator::SizeOnly,
        };
        Fingerprint { size, validator }
    }

    fn modified(&self) -> Option<Timestamp> {
        self.times.map(|(_, modified)| seconds(modified))
    }

    /// Whether they are of the regular file `expected`.
    pub(super) fn are_of(&self, expected: &Fingerprint) -> bool {
        let is_file = self.permissions.is_none_or(|bits| kind_of(bits) == EntryKind::File);
        is_file && self.size.is_some_and(|size| self.fingerprint(size) == *expected)
    }

    /// Whether the kind is told.
    pub(super) fn tell_kind(&self) -> bool {
        self.permissions.is_some()
    }

    /// All of them.
    ///
    /// # Errors
    /// `NotSupported` if the server does not tell the kind, or the size of a file; `Invalid` for a size of 2^63 or more.
    pub(super) fn read(&self) -> Result<Attributes> {
        let untold = |what: &str| {
            Error::new(Kind::NotSupported, "stat")
                .because(format!("the server does not tell the {what}"))
        };
        let permissions = self.permissions.ok_or_else(|| untold("kind of the entry"))?;
        let kind = kind_of(permissions);
        let size = match self.size {
            Some(size) => size,
            None if kind == EntryKind::File => return Err(untold("size of the file")),
            None => 0,
        };
        if i64::try_from(size).is_err() {
            return Err(Error::new(Kind::Invalid, "stat")
                .because(format!("a size of {size} bytes is impossible")));
        }
        Ok(Attributes {
            mode: Some(permissions & 0o7777),
            ownership: self.owner.map(|(uid, gid)| Ownership { uid, gid }),
            modified: self.modified(),
            accessed: self.times.map(|(accessed, _)| seconds(accessed)),
            is_settled: self.modified().is_none_or(|time| is_settled(time, SystemTime::now())),
            ..Attributes::bare(kind, self.fingerprint(size))
        })
    }
}

fn seconds(time: u32) -> Timestamp {
    Timestamp { seconds: i64::from(time), nanos: 0 }
}

/// Whether a file modified at `time` has rested for long enough. One from the future never has.
fn is_settled(time: Timestamp, now: SystemTime) -> bool {
    now.duration_since(SystemTime::from(time)).is_ok_and(|age| age >= SETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: RawAttributes = RawAttributes {
        size: Some(7),
        owner: Some((1000, 100)),
        permissions: Some(0o100_640),
        times: Some((1, 2)),
    };

    #[test]
    fn every_kind_mode_owner_and_time_comes_through() {
        let file = RAW.read().unwrap();
        assert_eq!((file.kind, file.size, file.mode), (EntryKind::File, 7, Some(0o640)));
        assert_eq!(file.ownership, Some(Ownership { uid: 1000, gid: 100 }));
        assert_eq!((file.accessed, file.modified), (Some(seconds(1)), Some(seconds(2))));
        assert!(file.is_settled && RAW.are_of(&file.fingerprint));
        for (bits, kind) in [
            (0o041_777, EntryKind::Directory),
            (0o120_777, EntryKind::Symlink),
            (0o010_600, EntryKind::Fifo),
            (0o140_600, EntryKind::Socket),
            (0o020_600, EntryKind::CharDevice),
            (0o060_600, EntryKind::BlockDevice),
        ] {
            let read = RawAttributes { permissions: Some(bits), size: None, ..RAW }.read().unwrap();
            assert_eq!((read.kind, read.mode), (kind, Some(bits & 0o7777)));
        }
    }

    #[test]
    fn another_size_time_or_kind_is_another_version() {
        let version = RAW.read().unwrap().fingerprint;
        for other in [
            RawAttributes { size: Some(8), ..RAW },
            RawAttributes { size: None, ..RAW },
            RawAttributes { times: Some((1, 3)), ..RAW },
            RawAttributes { times: None, ..RAW },
            RawAttributes { permissions: Some(0o010_640), ..RAW },
        ] {
            assert!(!other.are_of(&version), "{other:?}");
        }
        // Read, and given to somebody else: still the same content.
        let read = RawAttributes { times: Some((9, 2)), owner: None, permissions: None, ..RAW };
        assert!(read.are_of(&version));
    }

    #[test]
    fn what_is_not_told_is_not_made_up() {
        for raw in [
            RawAttributes { permissions: None, ..RAW },
            RawAttributes { size: None, ..RAW },
            RawAttributes { size: Some(1 << 63), ..RAW },
        ] {
            assert!(raw.read().is_err(), "{raw:?}");
        }
    }

    #[test]
    fn a_change_of_this_minute_may_have_a_twin() {
        let now = SystemTime::from(seconds(1_000_000));
        assert!(is_settled(seconds(999_940), now));
        for time in [999_941, 1_000_000, 1_000_001] {
            assert!(!is_settled(seconds(time), now), "{time}");
        }
    }
}
