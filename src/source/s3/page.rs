//! What S3 says in XML: pages of listings, and errors.

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;

use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Timestamp, Validator};
use crate::error::{Error, Kind, Result};

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    items: Vec<Item>,
    is_truncated: bool,
    next: Option<String>,
}

/// An object of a page.
#[derive(Debug, Default)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

/// One thing of a page, in the order of keys.
#[derive(Debug)]
pub(super) enum Item {
    Object(Object),
    /// Keys that go on after this one, which ends in the delimiter.
    Prefix(String),
}

impl Item {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Object(object) => &object.key,
            Self::Prefix(prefix) => prefix,
        }
    }
}

impl Page {
    /// # Errors
    /// `Invalid` if it is no page.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let invalid = |why: String| {
            Error::new(Kind::Invalid, "list directory")
                .because(format!("the server's answer is no listing: {why}"))
        };
        let (mut page, mut object, mut is_page) = (Self::default(), Object::default(), false);
        elements(text, |path, text| match *path {
            ["ListBucketResult"] => is_page = true,
            ["ListBucketResult", "IsTruncated"] => page.is_truncated = text.trim() == "true",
            ["ListBucketResult", "NextContinuationToken"] => page.next = Some(text),
            ["ListBucketResult", "Contents"] => {
                page.items.push(Item::Object(std::mem::take(&mut object)));
            }
            ["ListBucketResult", "CommonPrefixes", "Prefix"] => page.items.push(Item::Prefix(text)),
            ["ListBucketResult", "Contents", name] => match name {
                "Key" => object.key = text,
                "Size" => object.size = text.trim().parse().ok(),
                "ETag" => object.etag = Some(text.trim().to_owned()),
                "LastModified" => object.last_modified = Some(text.trim().to_owned()),
                _ => {}
            },
            _ => {}
        })
        .map_err(invalid)?;
        if !is_page {
            return Err(invalid("it has no ListBucketResult".to_owned()));
        }
        // Objects and prefixes are sent apart.
        page.items.sort_by(|one, other| one.key().cmp(other.key()));
        Ok(page)
    }

    /// Where the next page begins.
    ///
    /// # Errors
    /// `Invalid` if there is one that cannot be asked for.
    pub(super) fn next(&self) -> Result<Option<String>> {
        match (self.is_truncated, &self.next) {
            (false, _) => Ok(None),
            (true, Some(token)) => Ok(Some(token.clone())),
            (true, None) => Err(Error::new(Kind::Invalid, "list directory")
                .because("the server ends a listing in its middle: it knows no ListObjectsV2")),
        }
    }

    /// Whether nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Everything on it in the order of keys.
    pub(super) fn into_items(self) -> Vec<Item> {
        self.items
    }
}

/// Calls `element` at the end of each one, with the names that lead to it and its text as it is: keys may begin with spaces.
fn elements(text: &str, mut element: impl FnMut(&[&str], String)) -> Result<(), String> {
    let (mut reader, mut path, mut content) = (Reader::from_str(text), Vec::new(), String::new());
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        match event {
            Event::Start(start) => {
                path.push(start.local_name().as_ref().to_owned());
                content.clear();
            }
            Event::Empty(empty) => {
                path.push(empty.local_name().as_ref().to_owned());
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                element(&names, String::new());
                path.pop();
            }
            Event::Text(text) => content.push_str(&text),
            Event::CData(text) => content.push_str(&text),
            Event::GeneralRef(reference) => {
                match reference.resolve_char_ref().map_err(|error| error.to_string())? {
                    Some(letter) => content.push(letter),
                    None => content.push_str(
                        resolve_xml_entity(&reference).ok_or("an entity that nobody knows")?,
                    ),
                }
            }
            Event::End(_) => {
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                element(&names, std::mem::take(&mut content));
                path.pop();
            }
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err("it is cut".to_owned()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

impl Object {
    /// Its attributes, if the listing tells enough to recognise its version.
    pub(super) fn attributes(&self) -> Option<Attributes> {
        let etag = self.etag.as_deref().map(str::trim).filter(|tag| !tag.is_empty())?;
        let etag = if etag.ends_with('"') { etag.to_owned() } else { format!("\"{etag}\"") };
        let size = self.size.filter(|size| i64::try_from(*size).is_ok())?;
        let time = humantime::parse_rfc3339(self.last_modified.as_deref()?).ok()?;
        Some(Attributes {
            // To the second, as HEAD tells it.
            modified: Some(Timestamp { nanos: 0, ..Timestamp::from(time) }),
            ..Attributes::bare(
                EntryKind::File,
                Fingerprint { size, validator: Validator::ETag(etag) },
            )
        })
    }
}

/// What went wrong, in S3's words.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    pub(super) code: String,
    pub(super) region: Option<String>,
}

impl Complaint {
    /// Nothing, if it makes no sense.
    pub(super) fn parse(text: &str) -> Self {
        let mut complaint = Self::default();
        let parsed = elements(text, |path, text| match *path {
            ["Error", "Code"] => complaint.code = text,
            ["Error", "Region"] => complaint.region = Some(text),
            _ => {}
        });
        if parsed.is_ok() { complaint } else { Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix/>
<CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes>
<Contents><Key> a&amp;&#x62;+%41&#10;ü</Key><LastModified>2024-05-06T07:08:09.123Z</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e-2&quot;</ETag><Size>5</Size><StorageClass>GLACIER</StorageClass><Owner><ID>x</ID></Owner></Contents>
<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>
<Contents><Key>c</Key><Size>0</Size></Contents>
<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;o=k</NextContinuationToken></ListBucketResult>"#;

    #[test]
    fn a_page_is_read_in_the_order_of_keys() {
        let page = Page::parse(PAGE).unwrap();
        assert_eq!(page.next().unwrap().unwrap(), "t&o=k");
        let items = page.into_items();
        let keys: Vec<&str> = items.iter().map(Item::key).collect();
        assert_eq!(keys, [" a&b+%41\nü", "a/", "b/", "c"]);
        let Item::Object(object) = &items[0] else { panic!() };
        let attributes = object.attributes().unwrap();
        assert_eq!(attributes.modified.unwrap(), Timestamp { seconds: 1_714_979_289, nanos: 0 });
        let etag = "\"d41d8cd98f00b204e9800998ecf8427e-2\"".to_owned();
        assert_eq!(
            attributes.fingerprint,
            Fingerprint { size: 5, validator: Validator::ETag(etag) }
        );
        // A tag is none of the bytes: not even where it looks like one.
        assert_eq!(attributes.checksum, None);
        let Item::Object(object) = &items[3] else { panic!() };
        assert!(object.attributes().is_none(), "without a tag it is to be asked for");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for text in [
            "",
            "<html><body>hello</body></html>",
            "<Error><Code>x</Code></Error>",
            "{}",
            &PAGE[..400],
        ] {
            assert_eq!(Page::parse(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
        let endless = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
        assert!(Page::parse(endless).unwrap().next().is_err());
    }

    #[test]
    fn a_complaint_has_a_code() {
        let text = "<?xml version=\"1.0\"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-west-1</Region></Error>";
        let complaint = Complaint::parse(text);
        assert_eq!(
            (complaint.code.as_str(), complaint.region.as_deref()),
            ("AuthorizationHeaderMalformed", Some("eu-west-1"))
        );
        assert_eq!(Complaint::parse("oops").code, "");
    }
}
