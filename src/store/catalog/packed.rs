//! Attributes in few bytes: as they lie in the catalog, and as the tree keeps them for each inode that somebody looked up.

use crate::core::attributes::{Attributes, Checksum, EntryKind, Ownership, Validator};

use super::codec::{Decoder, Encoder};
use super::record::{decode_fingerprint, decode_time, encode_fingerprint, encode_time};

const SETTLED: u64 = 1;
const MODE: u64 = 1 << 1;
const OWNERSHIP: u64 = 1 << 2;
const MODIFIED: u64 = 1 << 3;
const ACCESSED: u64 = 1 << 4;
const CHANGED: u64 = 1 << 5;
const ALLOCATED: u64 = 1 << 6;
const IDENTITY: u64 = 1 << 7;
const CHECKSUM: u64 = 1 << 8;
/// The fingerprint is size and time of modification, as they are said already.
const PLAIN: u64 = 1 << 9;
/// Above all of them.
const END: u64 = 1 << 10;

/// [`Attributes`], packed: a local file's take about 45 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// Packs.
    pub fn new(attributes: &Attributes) -> Self {
        let a = attributes;
        let is_plain = a.fingerprint.size == a.size
            && a.modified.is_some_and(|time| a.fingerprint.validator == Validator::Modified(time));
        let has = |is_there: bool, bit: u64| if is_there { bit } else { 0 };
        let mut to = Encoder::default();
        to.byte(byte_of(a.kind));
        to.number(
            has(a.is_settled, SETTLED)
                | has(a.mode.is_some(), MODE)
                | has(a.ownership.is_some(), OWNERSHIP)
                | has(a.modified.is_some(), MODIFIED)
                | has(a.accessed.is_some(), ACCESSED)
                | has(a.changed.is_some(), CHANGED)
                | has(a.allocated_units.is_some(), ALLOCATED)
                | has(a.identity.is_some(), IDENTITY)
                | has(a.checksum.is_some(), CHECKSUM)
                | has(is_plain, PLAIN),
        );
        to.number(a.size);
        to.number(u64::from(a.link_count));
        to.number(a.device_number);
        a.mode.iter().for_each(|mode| to.number(u64::from(*mode)));
        if let Some(Ownership { uid, gid }) = &a.ownership {
            to.number(u64::from(*uid));
            to.number(u64::from(*gid));
        }
        for time in [a.modified, a.accessed, a.changed].into_iter().flatten() {
            encode_time(&mut to, time);
        }
        a.allocated_units.iter().for_each(|units| to.number(*units));
        if let Some((device, inode)) = &a.identity {
            to.number(*device);
            to.number(*inode);
        }
        if !is_plain {
            encode_fingerprint(&mut to, &a.fingerprint);
        }
        a.checksum.iter().for_each(|checksum| encode_checksum(&mut to, checksum));
        Self(to.finish().into_boxed_slice())
    }

    /// What was packed.
    pub fn unpack(&self) -> Attributes {
        unpack(&self.0).expect("invariant: only bytes that can be unpacked are kept")
    }

    /// What it is, without unpacking the rest.
    pub fn kind(&self) -> EntryKind {
        let kind = self.0.first().copied().and_then(kind_of);
        kind.expect("invariant: only bytes that can be unpacked are kept")
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `None` if these are no packed attributes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        unpack(bytes)?;
        Some(Self(bytes.into()))
    }
}

fn unpack(bytes: &[u8]) -> Option<Attributes> {
    let mut from = Decoder(bytes);
    let kind = kind_of(from.byte()?)?;
    let flags = from.number().filter(|flags| *flags < END)?;
    let has = |bit: u64| flags & bit != 0;
    let size = from.number().filter(|size| i64::try_from(*size).is_ok())?;
    let link_count = small(&mut from)?;
    let device_number = from.number()?;
    let mode = if has(MODE) { Some(small(&mut from)?) } else { None };
    let ownership = match has(OWNERSHIP) {
        true => Some(Ownership { uid: small(&mut from)?, gid: small(&mut from)? }),
        false => None,
    };
    let mut time = |bit| if has(bit) { decode_time(&mut from).map(Some) } else { Some(None) };
    let (modified, accessed, changed) = (time(MODIFIED)?, time(ACCESSED)?, time(CHANGED)?);
    let allocated_units = if has(ALLOCATED) { Some(from.number()?) } else { None };
    let identity = if has(IDENTITY) { Some((from.number()?, from.number()?)) } else { None };
    let fingerprint = match has(PLAIN) {
        true => {
            crate::core::attributes::Fingerprint { size, validator: Validator::Modified(modified?) }
        }
        false => decode_fingerprint(&mut from)?,
    };
    let checksum = if has(CHECKSUM) { Some(decode_checksum(&mut from)?) } else { None };
    from.end()?;
    Some(Attributes {
        kind,
        size,
        mode,
        ownership,
        modified,
        accessed,
        changed,
        link_count,
        device_number,
        allocated_units,
        identity,
        fingerprint,
        is_settled: has(SETTLED),
        checksum,
    })
}

fn small(from: &mut Decoder<'_>) -> Option<u32> {
    u32::try_from(from.number()?).ok()
}

pub(super) fn encode_checksum(to: &mut Encoder, checksum: &Checksum) {
    let (kind, digest) = match checksum {
        Checksum::Sha256(digest) => (1, digest),
        Checksum::Md5(digest) => (2, digest),
        Checksum::Crc32c(digest) => (3, digest),
        Checksum::Blake3(digest) => (6, digest),
        Checksum::Crc64Nvme(digest) => (4, digest),
        Checksum::Crc32(digest) => (5, digest),
    };
    to.byte(kind);
    to.bytes(digest);
}

pub(super) fn decode_checksum(from: &mut Decoder<'_>) -> Option<Checksum> {
    let kind = from.byte()?;
    let digest = from.bytes()?.to_vec();
    match kind {
        1 => Some(Checksum::Sha256(digest)),
        2 => Some(Checksum::Md5(digest)),
        3 => Some(Checksum::Crc32c(digest)),
        6 => Some(Checksum::Blake3(digest)),
        4 => Some(Checksum::Crc64Nvme(digest)),
        5 => Some(Checksum::Crc32(digest)),
        _ => None,
    }
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

pub(super) fn byte_of(kind: EntryKind) -> u8 {
    (0u8..).zip(KINDS).find(|(_, known)| *known == kind).map_or(u8::MAX, |(byte, _)| byte)
}

pub(super) fn kind_of(byte: u8) -> Option<EntryKind> {
    KINDS.get(usize::from(byte)).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::attributes::Timestamp;
    use crate::store::catalog::record::tests::fingerprint;

    fn time() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0u32..1_000_000_000)
            .prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
    }

    fn checksum() -> impl Strategy<Value = Checksum> {
        prop_oneof![
            any::<Vec<u8>>().prop_map(Checksum::Sha256),
            any::<Vec<u8>>().prop_map(Checksum::Md5),
            any::<Vec<u8>>().prop_map(Checksum::Crc32c),
            any::<Vec<u8>>().prop_map(Checksum::Blake3),
            any::<Vec<u8>>().prop_map(Checksum::Crc64Nvme),
            any::<Vec<u8>>().prop_map(Checksum::Crc32),
        ]
    }

    pub(in crate::store::catalog) fn attributes() -> impl Strategy<Value = Attributes> {
        let times = (
            prop::option::of(time()),
            prop::option::of(time()),
            prop::option::of(time()),
            any::<bool>(),
        );
        let numbers = (0usize..7, 0u64..1 << 63, any::<Option<u32>>(), any::<u32>(), any::<u64>());
        let places =
            (any::<Option<(u32, u32)>>(), any::<Option<u64>>(), any::<Option<(u64, u64)>>());
        (numbers, times, places, fingerprint(), prop::option::of(checksum()), any::<bool>())
            .prop_map(|(numbers, times, places, fingerprint, checksum, is_settled)| {
                let (kind, size, mode, link_count, device_number) = numbers;
                let (modified, accessed, changed, is_plain) = times;
                let (ownership, allocated_units, identity) = places;
                let plain = modified.filter(|_| is_plain).map(|time| {
                    crate::core::attributes::Fingerprint {
                        size,
                        validator: Validator::Modified(time),
                    }
                });
                Attributes {
                    kind: KINDS[kind],
                    size,
                    mode,
                    ownership: ownership.map(|(uid, gid)| Ownership { uid, gid }),
                    modified,
                    accessed,
                    changed,
                    link_count,
                    device_number,
                    allocated_units,
                    identity,
                    fingerprint: plain.unwrap_or(fingerprint),
                    is_settled,
                    checksum,
                }
            })
    }

    proptest! {
        #[test]
        fn attributes_survive_the_round_trip(attributes in attributes()) {
            let packed = Packed::new(&attributes);
            prop_assert_eq!(packed.kind(), attributes.kind);
            prop_assert_eq!(packed.unpack(), attributes);
            prop_assert_eq!(Packed::from_bytes(packed.as_bytes()), Some(packed));
        }

        #[test]
        fn arbitrary_or_cut_bytes_are_no_attributes(attributes in attributes(), bytes: Vec<u8>, cut: prop::sample::Index) {
            drop(Packed::from_bytes(&bytes));
            let packed = Packed::new(&attributes);
            let bytes = packed.as_bytes();
            prop_assert_eq!(Packed::from_bytes(&bytes[..cut.index(bytes.len())]), None);
            prop_assert_eq!(Packed::from_bytes(&[bytes, &[0]].concat()), None);
        }
    }
}
