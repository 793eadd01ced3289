//! What is recorded of one name in a directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::core::attributes::EntryKind;

use super::codec::{Decoder, Encoder};
use super::packed::{Packed, byte_of, kind_of};

/// First byte of every name.
const NAME_FORMAT: u8 = 1;

const ATTRIBUTES: u8 = 1;
const TARGET: u8 = 1 << 1;
const XATTRS: u8 = 1 << 2;
const FIRST: u8 = 1 << 3;
/// Above all of them.
const END: u8 = 1 << 4;

/// What a name meant when the source was asked last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRecord {
    /// Inode number. Names of one file have the same.
    pub ino: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Its place in the directory's listing, from 1 on; 0 = it was never listed.
    pub position: u64,
    /// Whether it is the name under which its inode was first seen. Of several names one is.
    pub is_first: bool,
    /// Its attributes, unless it was only listed by a source that does not list them.
    pub attributes: Option<Packed>,
    /// Where a symlink leads, if that was asked.
    pub target: Option<OsString>,
    /// Extended attributes, if they were asked for and are small.
    pub xattrs: Option<Vec<(OsString, Vec<u8>)>>,
}

/// One entry of a recorded listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedName {
    /// Its name.
    pub name: OsString,
    /// Its inode number.
    pub ino: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Its place in the listing, from 1 on.
    pub position: u64,
}

impl NameRecord {
    /// A name that was listed without attributes.
    pub fn listed(ino: u64, kind: EntryKind, position: u64) -> Self {
        let (attributes, target, xattrs) = (None, None, None);
        Self { ino, kind, position, is_first: true, attributes, target, xattrs }
    }

    /// The identity at the source of a file with several names.
    pub fn identity(&self) -> Option<(u64, u64)> {
        let attributes = self.attributes.as_ref().filter(|_| self.kind == EntryKind::File)?;
        attributes.unpack().identity
    }

    /// Regular files and bytes that it stands for: those of a file with several names count once.
    pub(super) fn counts(&self) -> (u64, u64) {
        match &self.attributes {
            Some(attributes) if self.kind == EntryKind::File && self.is_first => {
                (1, attributes.unpack().size)
            }
            _ => (0, 0),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let has = |is_there: bool, bit: u8| if is_there { bit } else { 0 };
        let mut to = Encoder::default();
        to.byte(NAME_FORMAT);
        to.byte(byte_of(self.kind));
        to.byte(
            has(self.attributes.is_some(), ATTRIBUTES)
                | has(self.target.is_some(), TARGET)
                | has(self.xattrs.is_some(), XATTRS)
                | has(self.is_first, FIRST),
        );
        to.number(self.ino);
        to.number(self.position);
        self.attributes.iter().for_each(|packed| to.bytes(packed.as_bytes()));
        self.target.iter().for_each(|target| to.bytes(target.as_bytes()));
        if let Some(xattrs) = &self.xattrs {
            to.number(u64::try_from(xattrs.len()).unwrap_or(u64::MAX));
            for (name, value) in xattrs {
                to.bytes(name.as_bytes());
                to.bytes(value);
            }
        }
        to.finish()
    }

    /// `None` if the bytes are no name.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let (kind, flags, ino, position) = begin(&mut from)?;
        let mut attributes = None;
        if flags & ATTRIBUTES != 0 {
            attributes = Some(Packed::from_bytes(from.bytes()?)?);
        }
        if attributes.as_ref().is_some_and(|attributes| attributes.kind() != kind) {
            return None;
        }
        let mut target = None;
        if flags & TARGET != 0 {
            target = Some(OsString::from_vec(from.bytes()?.to_vec()));
        }
        let mut xattrs = None;
        if flags & XATTRS != 0 {
            let count = from.number()?;
            let mut all = Vec::new();
            for _ in 0..count {
                let name = OsString::from_vec(from.bytes()?.to_vec());
                all.push((name, from.bytes()?.to_vec()));
            }
            xattrs = Some(all);
        }
        from.end()?;
        let is_first = flags & FIRST != 0;
        Some(Self { ino, kind, position, is_first, attributes, target, xattrs })
    }
}

/// What a listing shows of a name.
pub(super) fn decode_listed(name: &[u8], bytes: &[u8]) -> Option<ListedName> {
    let (kind, _, ino, position) = begin(&mut Decoder(bytes))?;
    Some(ListedName { name: OsStr::from_bytes(name).to_owned(), ino, kind, position })
}

fn begin(from: &mut Decoder<'_>) -> Option<(EntryKind, u8, u64, u64)> {
    if from.byte()? != NAME_FORMAT {
        return None;
    }
    let kind = kind_of(from.byte()?)?;
    let flags = from.byte().filter(|flags| *flags < END)?;
    Some((kind, flags, from.number()?, from.number()?))
}

/// How the source looked when it was last open, for as long as it is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceShape {
    /// Its listings carry attributes.
    pub lists_attributes: bool,
    /// It is another machine.
    pub is_remote: bool,
    /// Its entries carry owners and modes.
    pub has_modes: bool,
    /// Requests that may run at once.
    pub connections: u64,
    /// How long its listings are fresh, in ms.
    pub refresh_ms: u64,
    /// Its name, if it is one file.
    pub single_file: Option<OsString>,
}

impl SourceShape {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.byte(
            u8::from(self.lists_attributes)
                | u8::from(self.is_remote) << 1
                | u8::from(self.has_modes) << 2
                | u8::from(self.single_file.is_some()) << 3,
        );
        to.number(self.connections);
        to.number(self.refresh_ms);
        self.single_file.iter().for_each(|name| to.bytes(name.as_bytes()));
        to.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let flags = from.byte().filter(|flags| *flags < 1 << 4)?;
        let (connections, refresh_ms) = (from.number()?, from.number()?);
        let mut single_file = None;
        if flags & 8 != 0 {
            single_file = Some(OsString::from_vec(from.bytes()?.to_vec()));
        }
        from.end()?;
        Some(Self {
            lists_attributes: flags & 1 != 0,
            is_remote: flags & 2 != 0,
            has_modes: flags & 4 != 0,
            connections,
            refresh_ms,
            single_file,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packed::tests::attributes;
    use super::*;

    fn name() -> impl Strategy<Value = OsString> {
        any::<Vec<u8>>().prop_map(OsString::from_vec)
    }

    fn record() -> impl Strategy<Value = NameRecord> {
        let xattrs = prop::option::of(prop::collection::vec((name(), any::<Vec<u8>>()), 0..4));
        let numbers = (any::<u64>(), any::<u64>(), any::<bool>(), any::<bool>());
        (numbers, attributes(), prop::option::of(name()), xattrs).prop_map(
            |((ino, position, is_first, has_attributes), attributes, target, xattrs)| NameRecord {
                ino,
                kind: attributes.kind,
                position,
                is_first,
                attributes: has_attributes.then(|| Packed::new(&attributes)),
                target,
                xattrs,
            },
        )
    }

    proptest! {
        #[test]
        fn a_name_survives_the_round_trip(record in record()) {
            let bytes = record.encode();
            let listed = decode_listed(b"n", &bytes).unwrap();
            prop_assert_eq!((listed.ino, listed.kind, listed.position), (record.ino, record.kind, record.position));
            prop_assert_eq!(NameRecord::decode(&bytes), Some(record));
        }

        #[test]
        fn a_cut_or_longer_name_is_refused_and_arbitrary_bytes_never_panic(
            record in record(), cut: prop::sample::Index, mut bytes: Vec<u8>
        ) {
            let whole = record.encode();
            prop_assert_eq!(NameRecord::decode(&whole[..cut.index(whole.len())]), None);
            prop_assert_eq!(NameRecord::decode(&[whole.as_slice(), &[0]].concat()), None);
            drop(NameRecord::decode(&bytes));
            drop(SourceShape::decode(&bytes));
            bytes.splice(..0, [NAME_FORMAT, 0, 15]);
            drop(NameRecord::decode(&bytes));
            drop(decode_listed(b"n", &bytes));
        }

        #[test]
        fn a_shape_survives_the_round_trip(flags: [bool; 3], connections: u64, refresh_ms: u64, single in prop::option::of(name())) {
            let [lists_attributes, is_remote, has_modes] = flags;
            let shape = SourceShape {
                lists_attributes, is_remote, has_modes, connections, refresh_ms, single_file: single,
            };
            prop_assert_eq!(SourceShape::decode(&shape.encode()), Some(shape));
        }
    }
}
