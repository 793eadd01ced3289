//! What is recorded of one entry.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::core::attributes::{Checksum, EntryKind, Fingerprint, Timestamp, Validator};
use crate::core::path::RelPath;
use crate::store::metadata::MetadataLoss;

use super::codec::{Decoder, Encoder};
use super::packed::{decode_checksum, encode_checksum};

/// First byte of every entry without bytes of its own, and of those that were written before origins were.
const ENTRY_FORMAT: u8 = 1;
/// First byte of every entry: its origin comes last.
const ORIGIN_FORMAT: u8 = 2;
/// First byte of every entry without bytes of its own: what was placed comes last.
const PLACED_FORMAT: u8 = 2;

/// One version of one source file: the inode number names it for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its inode number, out of [`super::Catalog::reserve_inos`]. A later version of a path has a higher one.
    pub ino: u64,
    /// What says that the source still has it. Its size is the file's.
    pub fingerprint: Fingerprint,
    /// Whether the validator can no longer be the same for other bytes.
    pub is_settled: bool,
}

/// How a file was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ProofClass {
    /// The source's own checksum matched the bytes read back.
    SourceChecksum = 1,
    /// Bytes read back = bytes received, the source unchanged meanwhile.
    Transfer = 2,
    /// It lay in DIR before and was taken unseen.
    AdoptedUnverified = 3,
}

impl ProofClass {
    /// The word in reports and receipts.
    pub fn as_str(self) -> &'static str {
        match self {
            ProofClass::SourceChecksum => "source-checksum",
            ProofClass::Transfer => "transfer",
            ProofClass::AdoptedUnverified => "adopted-unverified",
        }
    }
}

/// A part by name and inode number. No device number: it changes over a reboot, and nothing of ours is on another device than DIR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name in `parts/`.
    pub name: String,
    /// Its inode on the destination's device.
    pub inode: u64,
}

/// A file in DIR as we put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its inode on the destination's device.
    pub inode: u64,
    /// Its length.
    pub size: u64,
    /// Its time of modification. With the size it tells an inode number that was given to somebody else.
    pub modified: Timestamp,
}

/// Where an entry stands, as far as disk tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPhase {
    /// Only its number and version are known.
    Absent,
    /// Some blocks of its part may be trusted: [`super::Catalog::blocks`].
    Filling,
    /// Every block of its part may be trusted.
    Sealed,
    /// The intent to publish: as Sealed, and from now on this inode may have the final name.
    Verified(Placed),
    /// It has the final name.
    Published(Placed),
    /// Could not be copied. A part may be there.
    Failed,
}

/// Everything recorded of one path, the block map apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRecord {
    /// Where it is, at the source and in DIR.
    pub path: RelPath,
    /// Which version of it.
    pub version: Version,
    /// Where that stands.
    pub phase: EntryPhase,
    /// The part with its bytes.
    pub part: Option<Part>,
    /// An earlier version that we published and that may still have the final name; it may be replaced.
    pub former: Option<Placed>,
    /// BLAKE3 of the whole content.
    pub digest: Option<[u8; 32]>,
    /// How it was proven.
    pub proof: Option<ProofClass>,
    /// The source's own checksum of it, where it gave one.
    pub checksum: Option<Checksum>,
    /// Metadata of the source that DIR could not keep; each kind once, in order.
    pub losses: Vec<MetadataLoss>,
    /// The intent is to put good bytes of this same version in the place of `former`.
    pub is_mend: bool,
    /// Whether its file lay in DIR before us: it is never evicted.
    pub is_adopted: bool,
    /// Whether the file of `former` was being evicted: what is left of it goes at the next start.
    pub is_evicted: bool,
    /// Its inode number at the source, where that has such: known again under another name.
    pub origin: Option<u64>,
}

impl EntryRecord {
    /// A version of which nothing is here.
    pub fn absent(path: RelPath, version: Version) -> Self {
        Self {
            path,
            version,
            phase: EntryPhase::Absent,
            part: None,
            former: None,
            digest: None,
            proof: None,
            checksum: None,
            losses: Vec::new(),
            is_mend: false,
            is_adopted: false,
            is_evicted: false,
            origin: None,
        }
    }

    /// What we may have put under the final name, whatever version it is.
    pub fn placed(&self) -> Option<Placed> {
        match self.phase {
            EntryPhase::Verified(placed) | EntryPhase::Published(placed) => Some(placed),
            _ => self.former,
        }
    }

    /// Whether recovery has to look at it.
    pub(super) fn is_unfinished(&self) -> bool {
        !matches!(self.phase, EntryPhase::Absent | EntryPhase::Published(_))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.byte(ORIGIN_FORMAT);
        let (phase, placed) = match self.phase {
            EntryPhase::Absent => (0, None),
            EntryPhase::Filling => (1, None),
            EntryPhase::Sealed => (2, None),
            EntryPhase::Verified(placed) => (3, Some(placed)),
            EntryPhase::Published(placed) => (4, Some(placed)),
            EntryPhase::Failed => (5, None),
        };
        to.byte(phase);
        let has = |is_there: bool, bit: u8| if is_there { 1 << bit } else { 0 };
        to.byte(
            has(self.version.is_settled, 0)
                | has(self.part.is_some(), 1)
                | has(self.former.is_some(), 2)
                | has(self.digest.is_some(), 3)
                | has(self.checksum.is_some(), 4)
                | has(self.is_mend, 5)
                | has(self.is_adopted, 6)
                | has(self.is_evicted, 7),
        );
        to.byte(self.proof.map_or(0, |proof| proof as u8));
        to.number(self.version.ino);
        encode_fingerprint(&mut to, &self.version.fingerprint);
        placed.iter().for_each(|placed| encode_placed(&mut to, placed));
        if let Some(part) = &self.part {
            to.bytes(part.name.as_bytes());
            to.number(part.inode);
        }
        self.former.iter().for_each(|placed| encode_placed(&mut to, placed));
        self.digest.iter().for_each(|digest| to.array(digest));
        self.checksum.iter().for_each(|checksum| encode_checksum(&mut to, checksum));
        to.byte(encode_losses(&self.losses));
        // No inode has number 0.
        to.number(self.origin.unwrap_or(0));
        to.finish()
    }

    /// `None` if the bytes are no entry.
    pub(super) fn decode(path: &[u8], bytes: &[u8]) -> Option<Self> {
        Self::decode_at(path_of(path)?, bytes)
    }

    /// As [`EntryRecord::decode`] of a path that is known already.
    pub(super) fn decode_at(path: RelPath, bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let has_origin = match from.byte()? {
            ENTRY_FORMAT => false,
            ORIGIN_FORMAT => true,
            _ => return None,
        };
        let phase = from.byte()?;
        let flags = from.byte()?;
        let proof = decode_proof(from.byte()?)?;
        let ino = from.number()?;
        let fingerprint = decode_fingerprint(&mut from)?;
        let phase = match phase {
            0 => EntryPhase::Absent,
            1 => EntryPhase::Filling,
            2 => EntryPhase::Sealed,
            3 => EntryPhase::Verified(decode_placed(&mut from)?),
            4 => EntryPhase::Published(decode_placed(&mut from)?),
            5 => EntryPhase::Failed,
            _ => return None,
        };
        let mut part = None;
        if flags & 2 != 0 {
            let name = from.text().filter(|name| is_plain(name))?;
            part = Some(Part { name, inode: from.number()? });
        }
        let former = if flags & 4 != 0 { Some(decode_placed(&mut from)?) } else { None };
        let digest = if flags & 8 != 0 { Some(from.array()?) } else { None };
        let checksum = if flags & 16 != 0 { Some(decode_checksum(&mut from)?) } else { None };
        let losses = decode_losses(from.byte()?)?;
        let origin = if has_origin { Some(from.number()?) } else { None };
        let origin = origin.filter(|inode| *inode != 0);
        from.end()?;
        let version = Version { ino, fingerprint, is_settled: flags & 1 != 0 };
        let [is_mend, is_adopted, is_evicted] = [32, 64, 128].map(|bit| flags & bit != 0);
        Some(Self {
            path,
            version,
            phase,
            part,
            former,
            digest,
            proof,
            checksum,
            losses,
            is_mend,
            is_adopted,
            is_evicted,
            origin,
        })
    }
}

/// An entry of DIR without bytes of its own: a directory, a symlink, a pipe, one more name of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherRecord {
    /// Where it is, at the source and in DIR.
    pub path: RelPath,
    /// What it is; a file is one more name of another.
    pub kind: EntryKind,
    /// The published file that it is a name of.
    pub link_of: Option<RelPath>,
    /// Metadata of the source that DIR could not keep; each kind once, in order.
    pub losses: Vec<MetadataLoss>,
    /// A symlink, pipe, socket or device as we put it there: anything else under its name is somebody else's.
    pub placed: Option<Placed>,
}

const KINDS: [EntryKind; 7] = [
    EntryKind::File,
    EntryKind::Directory,
    EntryKind::Symlink,
    EntryKind::Fifo,
    EntryKind::Socket,
    EntryKind::CharDevice,
    EntryKind::BlockDevice,
];

impl OtherRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.byte(PLACED_FORMAT);
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or(0);
        to.number(u64::try_from(kind).unwrap_or(0));
        to.byte(encode_losses(&self.losses));
        to.bytes(self.link_of.as_ref().map_or(&[], RelPath::as_bytes));
        to.byte(u8::from(self.placed.is_some()));
        self.placed.iter().for_each(|placed| encode_placed(&mut to, placed));
        to.finish()
    }

    /// `None` if the bytes are no such record.
    pub(super) fn decode(path: &[u8], bytes: &[u8]) -> Option<Self> {
        let path = path_of(path)?;
        let mut from = Decoder(bytes);
        let has_placed = match from.byte()? {
            ENTRY_FORMAT => false,
            PLACED_FORMAT => true,
            _ => return None,
        };
        let kind = *KINDS.get(usize::try_from(from.number()?).ok()?)?;
        let losses = decode_losses(from.byte()?)?;
        let link_of = path_of(from.bytes()?).filter(|path| !path.is_root());
        let placed = match has_placed && from.byte()? != 0 {
            true => Some(decode_placed(&mut from)?),
            false => None,
        };
        from.end()?;
        Some(Self { path, kind, link_of, losses, placed })
    }
}

/// A name that cannot lead out of `parts/`.
fn is_plain(name: &str) -> bool {
    RelPath::check_name(OsStr::new(name)).is_ok()
}

pub(super) fn path_of(bytes: &[u8]) -> Option<RelPath> {
    if bytes.is_empty() {
        return Some(RelPath::root());
    }
    let mut path = RelPath::root();
    for name in bytes.split(|byte| *byte == b'/') {
        path = path.child(OsStr::from_bytes(name)).ok()?;
    }
    Some(path)
}

fn decode_proof(byte: u8) -> Option<Option<ProofClass>> {
    Some(match byte {
        0 => None,
        1 => Some(ProofClass::SourceChecksum),
        2 => Some(ProofClass::Transfer),
        3 => Some(ProofClass::AdoptedUnverified),
        _ => return None,
    })
}

/// A bit for each kind, in the order of [`MetadataLoss::ALL`].
fn encode_losses(losses: &[MetadataLoss]) -> u8 {
    let bits = MetadataLoss::ALL.iter().enumerate();
    bits.filter(|(_, loss)| losses.contains(loss)).fold(0, |byte, (bit, _)| byte | 1 << bit)
}

fn decode_losses(byte: u8) -> Option<Vec<MetadataLoss>> {
    let bits = MetadataLoss::ALL.into_iter().enumerate();
    let losses: Vec<_> =
        bits.filter(|(bit, _)| byte & 1 << bit != 0).map(|(_, loss)| loss).collect();
    (encode_losses(&losses) == byte).then_some(losses)
}

pub(super) fn encode_time(to: &mut Encoder, time: Timestamp) {
    to.signed(time.seconds);
    to.number(u64::from(time.nanos));
}

pub(super) fn decode_time(from: &mut Decoder<'_>) -> Option<Timestamp> {
    let seconds = from.signed()?;
    let nanos = u32::try_from(from.number()?).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Timestamp { seconds, nanos })
}

fn encode_placed(to: &mut Encoder, placed: &Placed) {
    to.number(placed.inode);
    to.number(placed.size);
    encode_time(to, placed.modified);
}

fn decode_placed(from: &mut Decoder<'_>) -> Option<Placed> {
    Some(Placed { inode: from.number()?, size: from.number()?, modified: decode_time(from)? })
}

pub(super) fn encode_fingerprint(to: &mut Encoder, fingerprint: &Fingerprint) {
    to.number(fingerprint.size);
    let (kind, text) = match &fingerprint.validator {
        Validator::Modified(time) => {
            to.byte(1);
            return encode_time(to, *time);
        }
        Validator::ETag(text) => (2, text.as_str()),
        Validator::WeakETag(text) => (3, text.as_str()),
        Validator::LastModified(text) => (4, text.as_str()),
        Validator::SizeOnly => return to.byte(0),
    };
    to.byte(kind);
    to.bytes(text.as_bytes());
}

pub(super) fn decode_fingerprint(from: &mut Decoder<'_>) -> Option<Fingerprint> {
    // No file system has more; sums of offsets then never overflow.
    let size = from.number().filter(|size| i64::try_from(*size).is_ok())?;
    let validator = match from.byte()? {
        0 => Validator::SizeOnly,
        1 => Validator::Modified(decode_time(from)?),
        2 => Validator::ETag(from.text()?),
        3 => Validator::WeakETag(from.text()?),
        4 => Validator::LastModified(from.text()?),
        _ => return None,
    };
    Some(Fingerprint { size, validator })
}

/// One line of the error history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorNote {
    /// What it was about.
    pub path: RelPath,
    /// The kind's word.
    pub kind: String,
    /// What was said, without secrets.
    pub message: String,
    /// When, to the millisecond.
    pub at: SystemTime,
}

impl ErrorNote {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.bytes(self.path.as_bytes());
        to.bytes(self.kind.as_bytes());
        to.bytes(self.message.as_bytes());
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        to.number(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        to.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let path = path_of(from.bytes()?)?;
        let (kind, message) = (from.text()?, from.text()?);
        let at = UNIX_EPOCH.checked_add(Duration::from_millis(from.number()?))?;
        from.end()?;
        Some(Self { path, kind, message, at })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0u32..1_000_000_000)
            .prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
    }

    fn placed() -> impl Strategy<Value = Placed> {
        (any::<u64>(), any::<u64>(), time()).prop_map(|(inode, size, modified)| Placed {
            inode,
            size,
            modified,
        })
    }

    pub(in crate::store::catalog) fn fingerprint() -> impl Strategy<Value = Fingerprint> {
        let validator = prop_oneof![
            Just(Validator::SizeOnly),
            time().prop_map(Validator::Modified),
            any::<String>().prop_map(Validator::ETag),
            any::<String>().prop_map(Validator::WeakETag),
            any::<String>().prop_map(Validator::LastModified),
        ];
        (0..1u64 << 63, validator).prop_map(|(size, validator)| Fingerprint { size, validator })
    }

    fn phase() -> impl Strategy<Value = EntryPhase> {
        prop_oneof![
            Just(EntryPhase::Absent),
            Just(EntryPhase::Filling),
            Just(EntryPhase::Sealed),
            Just(EntryPhase::Failed),
            placed().prop_map(EntryPhase::Verified),
            placed().prop_map(EntryPhase::Published),
        ]
    }

    fn proof() -> impl Strategy<Value = Option<ProofClass>> {
        (0u8..4).prop_map(|byte| decode_proof(byte).unwrap())
    }

    fn record() -> impl Strategy<Value = EntryRecord> {
        let part = prop::option::of(
            ("[a-z0-9-]{1,30}", any::<u64>()).prop_map(|(name, inode)| Part { name, inode }),
        );
        let version = (any::<u64>(), fingerprint(), any::<bool>())
            .prop_map(|(ino, fingerprint, is_settled)| Version { ino, fingerprint, is_settled });
        let digest = any::<Option<[u8; 32]>>();
        let noted = (prop::option::of(checksum()), losses(), any::<[bool; 3]>(), 0..u64::MAX);
        (version, phase(), part, prop::option::of(placed()), digest, proof(), noted).prop_map(
            |(version, phase, part, former, digest, proof, (checksum, losses, flags, origin))| {
                EntryRecord {
                    path: path_of(b"a/b\xff").unwrap(),
                    version,
                    phase,
                    part,
                    former,
                    digest,
                    proof,
                    checksum,
                    losses,
                    is_mend: flags[0],
                    is_adopted: flags[1],
                    is_evicted: flags[2],
                    origin: (origin > 0).then_some(origin),
                }
            },
        )
    }

    fn checksum() -> impl Strategy<Value = Checksum> {
        prop_oneof![
            any::<Vec<u8>>().prop_map(Checksum::Sha256),
            any::<Vec<u8>>().prop_map(Checksum::Md5),
            any::<Vec<u8>>().prop_map(Checksum::Crc32c),
        ]
    }

    fn losses() -> impl Strategy<Value = Vec<MetadataLoss>> {
        prop::sample::subsequence(MetadataLoss::ALL.to_vec(), 0..=MetadataLoss::ALL.len())
    }

    fn other() -> impl Strategy<Value = OtherRecord> {
        let link_of =
            prop::option::of("[a-z]{1,9}".prop_map(|path| path_of(path.as_bytes()).unwrap()));
        let placed = prop::option::of(placed());
        (prop::sample::select(KINDS.to_vec()), link_of, losses(), placed).prop_map(
            |(kind, link_of, losses, placed)| OtherRecord {
                path: path_of(b"c/\xfe").unwrap(),
                kind,
                link_of,
                losses,
                placed,
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_survives_the_round_trip(record in record()) {
            let bytes = record.encode();
            prop_assert_eq!(EntryRecord::decode(record.path.as_bytes(), &bytes), Some(record));
        }

        #[test]
        fn another_record_survives_the_round_trip(record in other()) {
            let bytes = record.encode();
            prop_assert_eq!(OtherRecord::decode(record.path.as_bytes(), &bytes), Some(record));
        }

        #[test]
        fn arbitrary_bytes_never_panic(path: Vec<u8>, mut bytes: Vec<u8>) {
            drop(EntryRecord::decode(&path, &bytes));
            drop(ErrorNote::decode(&bytes));
            drop(OtherRecord::decode(&path, &bytes));
            bytes.splice(..0, [ORIGIN_FORMAT, 3, 63, 2]);
            drop(EntryRecord::decode(b"a", &bytes));
        }

        #[test]
        fn a_cut_or_longer_record_is_refused(record in record(), cut: prop::sample::Index) {
            let mut bytes = record.encode();
            prop_assert_eq!(EntryRecord::decode(b"a", &bytes[..cut.index(bytes.len())]), None);
            bytes.push(0);
            prop_assert_eq!(EntryRecord::decode(b"a", &bytes), None);
        }
    }

    #[test]
    fn a_recorded_name_that_leads_elsewhere_is_refused() {
        for path in ["..", "a//b", "/a", "a/", "a/../b", "a\0"] {
            assert!(path_of(path.as_bytes()).is_none(), "{path:?}");
        }
        let version = Version {
            ino: 1,
            fingerprint: Fingerprint { size: 1, validator: Validator::SizeOnly },
            is_settled: true,
        };
        let mut record = EntryRecord::absent(path_of(b"a").unwrap(), version);
        record.part = Some(Part { name: "../lock".to_owned(), inode: 1 });
        assert_eq!(EntryRecord::decode(b"a", &record.encode()), None);
    }
}
