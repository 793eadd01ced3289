//! What is known about an entry of a source.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a validator must have been unchanged before it tells versions apart.
pub const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What kind of thing an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe; shown, never opened.
    Fifo,
    /// A unix socket; shown, never opened.
    Socket,
    /// A character device; shown, never opened.
    CharDevice,
    /// A block device; shown, never opened.
    BlockDevice,
}

impl EntryKind {
    /// The word in reports and receipts.
    pub fn as_str(self) -> &'static str {
        match self {
            EntryKind::File => "file",
            EntryKind::Directory => "directory",
            EntryKind::Symlink => "symlink",
            EntryKind::Fifo => "fifo",
            EntryKind::Socket => "socket",
            EntryKind::CharDevice => "char-device",
            EntryKind::BlockDevice => "block-device",
        }
    }
}

/// Seconds and nanoseconds since 1970-01-01 UTC; seconds may be negative, `nanos < 1_000_000_000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds after `seconds`.
    pub nanos: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let seconds = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { seconds, nanos: 0 },
                    nanos => Self { seconds: seconds - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let base = if time.seconds < 0 {
            UNIX_EPOCH.checked_sub(whole)
        } else {
            UNIX_EPOCH.checked_add(whole)
        };
        base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(time.nanos))))
            .unwrap_or(UNIX_EPOCH)
    }
}

/// User and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ownership {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What tells two versions of a file of one size apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Validator {
    /// A file system's modification time.
    Modified(Timestamp),
    /// A strong HTTP entity tag with its quotes: usable with If-Match and If-Range.
    ETag(String),
    /// A weak entity tag (`W/"…"`): it can be compared, but no range request may rely on it (RFC 9110 13.1.5).
    WeakETag(String),
    /// The Last-Modified header as sent.
    LastModified(String),
    /// Nothing but the size.
    SizeOnly,
}

/// Says that a source file is still the same. Two fingerprints of one version are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Length in bytes.
    pub size: u64,
    /// What distinguishes versions of the same length.
    pub validator: Validator,
}

/// The source's own checksum of the whole content, raw digest bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256 (32 bytes).
    Sha256(Vec<u8>),
    /// MD5 (16 bytes).
    Md5(Vec<u8>),
    /// CRC-32C (4 bytes, big endian).
    Crc32c(Vec<u8>),
    /// BLAKE3 (32 bytes).
    Blake3(Vec<u8>),
    /// CRC-64/NVME (8 bytes, big endian).
    Crc64Nvme(Vec<u8>),
    /// CRC-32 as in gzip (4 bytes, big endian).
    Crc32(Vec<u8>),
}

impl fmt::Display for Checksum {
    /// The algorithm and the digest in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Checksum::Sha256(digest)
        | Checksum::Md5(digest)
        | Checksum::Crc32c(digest)
        | Checksum::Blake3(digest)
        | Checksum::Crc64Nvme(digest)
        | Checksum::Crc32(digest)) = self;
        f.write_str(match self {
            Checksum::Sha256(_) => "sha-256 ",
            Checksum::Md5(_) => "md5 ",
            Checksum::Crc32c(_) => "crc32c ",
            Checksum::Blake3(_) => "blake3 ",
            Checksum::Crc64Nvme(_) => "crc64nvme ",
            Checksum::Crc32(_) => "crc32 ",
        })?;
        digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether an extended attribute can be given to a copy, and so is shown at all. Labels of security modules belong to the machine.
pub fn is_copyable_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

/// Attributes of one entry; `None` = the source does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes (of a symlink: of its target). Below 2^63.
    pub size: u64,
    /// Permission bits `0..=0o7777`.
    pub mode: Option<u32>,
    /// Owner.
    pub ownership: Option<Ownership>,
    /// Last modification.
    pub modified: Option<Timestamp>,
    /// Last access.
    pub accessed: Option<Timestamp>,
    /// Last change of the inode.
    pub changed: Option<Timestamp>,
    /// Number of names; at least 1.
    pub link_count: u32,
    /// Device number of a device entry, as `st_rdev`; otherwise 0.
    pub device_number: u64,
    /// Allocated 512-byte units; below `size / 512` means holes.
    pub allocated_units: Option<u64>,
    /// Names with the same identity are hard links of one file: (device, inode) at the source.
    pub identity: Option<(u64, u64)>,
    /// Says which version this is.
    pub fingerprint: Fingerprint,
    /// Whether any change from now on must show in the fingerprint. Validators with whole seconds do not tell two changes within one
    /// second apart, so one that is younger than 2 s proves nothing yet (RFC 9110 8.8.2.2).
    pub is_settled: bool,
    /// The source's own checksum, where it gives one with the attributes.
    pub checksum: Option<Checksum>,
}

impl Attributes {
    /// What is known of a version at least: nothing but its kind and fingerprint; one name, settled.
    pub fn bare(kind: EntryKind, fingerprint: Fingerprint) -> Self {
        Self {
            kind,
            size: fingerprint.size,
            mode: None,
            ownership: None,
            modified: None,
            accessed: None,
            changed: None,
            link_count: 1,
            device_number: 0,
            allocated_units: None,
            identity: None,
            fingerprint,
            is_settled: true,
            checksum: None,
        }
    }

    /// Whether the source has allocated less than the size: it may hold holes.
    pub fn is_sparse(&self) -> bool {
        self.kind == EntryKind::File
            && self.allocated_units.is_some_and(|units| units < self.size.div_ceil(512))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_the_round_trip() {
        for time in [
            Timestamp { seconds: -1, nanos: 999_999_999 },
            Timestamp { seconds: -5, nanos: 0 },
            Timestamp { seconds: 0, nanos: 1 },
            Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 },
        ] {
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }

    #[test]
    fn labels_of_security_modules_stay_behind() {
        for name in ["security.selinux", "security.ima", "system.nfs4_acl", "security.apparmor", ""]
        {
            assert!(!is_copyable_xattr(name.as_bytes()), "{name}");
        }
        for name in ["user.x", "trusted.x", "security.capability", "system.posix_acl_default"] {
            assert!(is_copyable_xattr(name.as_bytes()), "{name}");
        }
    }
}
