//! What Google says in JSON: pages of listings, objects, and errors.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::core::attributes::{Attributes, Checksum, EntryKind, Fingerprint, Timestamp, Validator};
use crate::error::{Error, Kind, Result};
use crate::source::bucket::{Item, Object, Page};

/// What is asked for of an object.
pub(super) const FIELDS: &str = "kind,name,size,generation,timeCreated,md5Hash,crc32c";
/// What is asked for of a page.
pub(super) const PAGE_FIELDS: &str =
    "kind,prefixes,nextPageToken,items(name,size,generation,timeCreated,md5Hash,crc32c)";

/// The resource of an object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resource {
    pub(super) name: String,
    size: Option<String>,
    generation: Option<String>,
    time_created: Option<String>,
    md5_hash: Option<String>,
    crc32c: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    kind: String,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    items: Vec<Resource>,
    next_page_token: Option<String>,
}

impl Resource {
    /// # Errors
    /// `Invalid` if it is no object.
    pub(super) fn parse(op: &'static str, text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| not_understood(op, &error.to_string()))
    }

    /// Its attributes, if it tells enough to recognise its version.
    pub(super) fn attributes(&self) -> Option<Attributes> {
        let size = self.size()?;
        let created = humantime::parse_rfc3339(self.time_created.as_deref()?).ok();
        let validator = Validator::WeakETag(self.tag()?);
        Some(Attributes {
            modified: created.map(Timestamp::from),
            checksum: self.checksum(),
            ..Attributes::bare(EntryKind::File, Fingerprint { size, validator })
        })
    }

    /// Its generation, as [`tag_of_generation`] has it.
    pub(super) fn tag(&self) -> Option<String> {
        tag_of_generation(self.generation.as_deref()?)
    }

    fn size(&self) -> Option<u64> {
        let size = self.size.as_ref()?.parse().ok()?;
        i64::try_from(size).is_ok().then_some(size)
    }

    /// The stronger one. An object that was composed of others has no MD5.
    fn checksum(&self) -> Option<Checksum> {
        let decode = |text: &Option<String>, len: usize| {
            STANDARD.decode(text.as_ref()?).ok().filter(|digest| digest.len() == len)
        };
        let md5 = decode(&self.md5_hash, 16).map(Checksum::Md5);
        md5.or_else(|| decode(&self.crc32c, 4).map(Checksum::Crc32c))
    }
}

/// A page in its text.
///
/// # Errors
/// `Invalid` if it is none.
pub(super) fn parse_page(op: &'static str, text: &str) -> Result<Page> {
    let listing: Listing =
        serde_json::from_str(text).map_err(|error| not_understood(op, &error.to_string()))?;
    if listing.kind != "storage#objects" {
        return Err(not_understood(op, "it is no storage#objects"));
    }
    let object = |resource: Resource| {
        let (size, attributes) = (resource.size(), resource.attributes());
        Item::Object(Object { key: resource.name, size, attributes })
    };
    let objects = listing.items.into_iter().map(object);
    let mut items: Vec<Item> =
        objects.chain(listing.prefixes.into_iter().map(Item::Prefix)).collect();
    // Objects and prefixes are sent apart.
    items.sort_by(|one, other| one.key().cmp(other.key()));
    Ok(Page { items, next: listing.next_page_token.filter(|token| !token.is_empty()) })
}

fn not_understood(op: &'static str, why: &str) -> Error {
    Error::new(Kind::Invalid, op).because(format!("the server's answer is not understood: {why}"))
}

/// A generation as an entity tag: a weak one, so that nobody takes it for that of the server.
pub(super) fn tag_of_generation(generation: &str) -> Option<String> {
    let is_number = !generation.is_empty() && generation.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("W/\"{generation}\""))
}

/// The generation that a fingerprint names.
pub(super) fn generation_of(version: &Fingerprint) -> Option<&str> {
    match &version.validator {
        Validator::WeakETag(tag) => tag.strip_prefix("W/\"")?.strip_suffix('"'),
        _ => None,
    }
}

/// What went wrong, in Google's words.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Complaint {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    errors: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    reason: String,
}

impl Complaint {
    /// Nothing, if it makes no sense.
    pub(super) fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        struct Envelope {
            error: Complaint,
        }
        serde_json::from_str(text)
            .map_or_else(|_| Self::default(), |envelope: Envelope| envelope.error)
    }

    pub(super) fn reason(&self) -> &str {
        self.errors.first().map_or("", |error| &error.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"{"kind":"storage#objects","nextPageToken":"t=","prefixes":["a/","c/"],"items":[
        {"name":"b","size":"5","generation":"17","timeCreated":"2024-05-06T07:08:09.123Z",
         "md5Hash":"1B2M2Y8AsgTpgAmy7PhCfg==","crc32c":"AAAAAA==","more":{"x":1}},
        {"name":"composed","size":"9","generation":"18","timeCreated":"2024-05-06T07:08:09.123Z","crc32c":"4waSgw=="},
        {"name":"short","size":"9","timeCreated":"2024-05-06T07:08:09.123Z"}]}"#;

    #[test]
    fn a_page_is_read_in_the_order_of_keys() {
        let page = parse_page("x", PAGE).unwrap();
        assert_eq!(page.next.as_deref(), Some("t="));
        let keys: Vec<&str> = page.items.iter().map(Item::key).collect();
        assert_eq!(keys, ["a/", "b", "c/", "composed", "short"]);
        let attributes = |place: usize| match &page.items[place] {
            Item::Object(object) => object.attributes.clone(),
            Item::Prefix(_) => panic!(),
        };
        let one = attributes(1).unwrap();
        let version =
            Fingerprint { size: 5, validator: Validator::WeakETag("W/\"17\"".to_owned()) };
        assert_eq!((&one.fingerprint, generation_of(&version)), (&version, Some("17")));
        assert_eq!(one.modified.unwrap(), Timestamp { seconds: 1_714_979_289, nanos: 123_000_000 });
        assert!(matches!(one.checksum, Some(Checksum::Md5(_))));
        let crc = Checksum::Crc32c(vec![0xe3, 0x06, 0x92, 0x83]);
        assert_eq!(attributes(3).unwrap().checksum, Some(crc), "the check value of CRC-32C");
        assert!(attributes(4).is_none(), "without a generation it is to be asked for");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for text in ["", "{}", "<html>", "[]", r#"{"kind":"storage#buckets"}"#, &PAGE[..200]] {
            assert_eq!(parse_page("x", text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
        let empty = parse_page("x", r#"{"kind":"storage#objects"}"#).unwrap();
        assert!(empty.items.is_empty() && empty.next.is_none());
    }

    #[test]
    fn a_generation_is_a_number() {
        assert_eq!(tag_of_generation("17").unwrap(), "W/\"17\"");
        for text in ["", "a", "1\"", "1&x=2", "-1"] {
            assert!(tag_of_generation(text).is_none(), "{text}");
        }
    }
}
