//! nginx's `autoindex_format json`: `[{"name":"…","type":"file"|"directory"|"other",…}, …]`.

use std::fmt;
use std::io::BufReader;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;

use super::malformed;
use super::page::Page;
use super::sink::{Halt, Sink};
use crate::core::attributes::EntryKind;

/// Gives every entry of the page to `sink`, one at a time.
pub(super) fn parse(page: Page, sink: &mut Sink) -> Result<(), Halt> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(1 << 16, page));
    let mut halt = None;
    let read = json.deserialize_seq(Items { sink, halt: &mut halt }).and_then(|()| json.end());
    match (halt, read) {
        (Some(halt), _) => Err(halt),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) if error.classify() == Category::Io => Err(Halt::page(error.into())),
        (None, Err(error)) => {
            Err(Halt::Failed(malformed(format!("not an index in JSON: {error}"))))
        }
    }
}

/// Hands items on as they are read; a page of millions is never in memory.
struct Items<'a> {
    sink: &'a mut Sink,
    halt: &'a mut Option<Halt>,
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Item>()? {
            if let Some(kind) = item.kind
                && let Err(halt) = self.sink.offer(item.name, kind)
            {
                *self.halt = Some(halt);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// One entry; without a kind it is something that nginx does not serve.
struct Item {
    name: Vec<u8>,
    kind: Option<EntryKind>,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry with name and type")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Item, A::Error> {
        let (mut name, mut kind) = (None, None);
        while let Some(Raw(key)) = fields.next_key()? {
            match key.as_slice() {
                b"name" => name = Some(fields.next_value::<Raw>()?.0),
                b"type" => {
                    kind = match fields.next_value::<Raw>()?.0.as_slice() {
                        b"file" => Some(EntryKind::File),
                        b"directory" => Some(EntryKind::Directory),
                        _ => None,
                    }
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        let name = name.ok_or_else(|| A::Error::missing_field("name"))?;
        Ok(Item { name, kind })
    }
}

/// A string that need not be UTF-8: nginx writes the bytes of a name as they are.
struct Raw(Vec<u8>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_bytes(RawVisitor)
    }
}

struct RawVisitor;

impl Visitor<'_> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Raw, E> {
        Ok(Raw(bytes.to_vec()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw(text.as_bytes().to_vec()))
    }
}
