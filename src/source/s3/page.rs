//! What S3 says in XML: pages of listings, and errors.

use crate::error::{Error, Kind, Result};
use crate::source::bucket::xml::elements;
use crate::source::bucket::{self, Item, Object};

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    items: Vec<Item>,
    is_truncated: bool,
    next: Option<String>,
}

/// What is said of an object.
#[derive(Debug, Default)]
struct Contents {
    key: String,
    size: Option<u64>,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl From<Contents> for Item {
    fn from(said: Contents) -> Self {
        let modified = said.last_modified.and_then(|time| humantime::parse_rfc3339(&time).ok());
        Item::Object(Object::listed(said.key, said.size, said.etag.as_deref(), modified))
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
        let (mut page, mut object, mut is_page) = (Self::default(), Contents::default(), false);
        elements(text, |path, text| match *path {
            ["ListBucketResult"] => is_page = true,
            ["ListBucketResult", "IsTruncated"] => page.is_truncated = text.trim() == "true",
            ["ListBucketResult", "NextContinuationToken"] => page.next = Some(text),
            ["ListBucketResult", "Contents"] => {
                page.items.push(std::mem::take(&mut object).into());
            }
            ["ListBucketResult", "CommonPrefixes", "Prefix"] => page.items.push(Item::Prefix(text)),
            ["ListBucketResult", "Contents", name] => match name {
                "Key" => object.key = text,
                "Size" => object.size = text.trim().parse().ok(),
                "ETag" => object.etag = Some(text),
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
    fn next(&self) -> Result<Option<String>> {
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

    /// The same for all who read pages.
    ///
    /// # Errors
    /// As [`Page::next`].
    pub(super) fn into_page(self) -> Result<bucket::Page> {
        Ok(bucket::Page { next: self.next()?, items: self.items })
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
    use crate::core::attributes::{Fingerprint, Timestamp, Validator};

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
        let items = page.into_page().unwrap().items;
        let keys: Vec<&str> = items.iter().map(Item::key).collect();
        assert_eq!(keys, [" a&b+%41\nü", "a/", "b/", "c"]);
        let Item::Object(object) = &items[0] else { panic!() };
        let attributes = object.attributes.as_ref().unwrap();
        assert_eq!(attributes.modified.unwrap(), Timestamp { seconds: 1_714_979_289, nanos: 0 });
        let etag = "\"d41d8cd98f00b204e9800998ecf8427e-2\"".to_owned();
        assert_eq!(
            attributes.fingerprint,
            Fingerprint { size: 5, validator: Validator::ETag(etag) }
        );
        // A tag is none of the bytes: not even where it looks like one.
        assert_eq!(attributes.checksum, None);
        let Item::Object(object) = &items[3] else { panic!() };
        assert!(object.attributes.is_none(), "without a tag it is to be asked for");
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
