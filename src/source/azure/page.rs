//! What Azure says in XML: pages of listings.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::core::attributes::Checksum;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::xml::elements;
use crate::source::bucket::{Item, Object, Page};

/// What is said of a blob.
#[derive(Debug, Default)]
struct Blob {
    name: String,
    size: Option<u64>,
    etag: Option<String>,
    last_modified: Option<String>,
    md5: Option<String>,
    is_directory: bool,
}

impl Blob {
    fn is(&mut self, property: &str, text: String) {
        match property {
            "Content-Length" => self.size = text.trim().parse().ok(),
            "Etag" => self.etag = Some(text),
            "Last-Modified" => self.last_modified = Some(text),
            "Content-MD5" => self.md5 = Some(text),
            "ResourceType" => self.is_directory = text.trim() == "directory",
            _ => {}
        }
    }
}

impl From<Blob> for Item {
    fn from(blob: Blob) -> Self {
        let time = |text: String| httpdate::parse_http_date(text.trim()).ok();
        let modified = blob.last_modified.and_then(time);
        let mut object = Object::listed(blob.name, blob.size, blob.etag.as_deref(), modified);
        if let Some(attributes) = &mut object.attributes {
            attributes.checksum = blob.md5.as_deref().and_then(md5);
        }
        Item::Object(object)
    }
}

fn md5(text: &str) -> Option<Checksum> {
    STANDARD.decode(text.trim()).ok().filter(|digest| digest.len() == 16).map(Checksum::Md5)
}

/// A page in its text.
///
/// # Errors
/// `Invalid` if it is none.
pub(super) fn parse_page(op: &'static str, text: &str) -> Result<Page> {
    let invalid = |why: String| {
        Error::new(Kind::Invalid, op).because(format!("the server's answer is no listing: {why}"))
    };
    let (mut page, mut blob, mut is_page) = (Page::default(), Blob::default(), false);
    // Servers begin with a mark that is no XML.
    elements(text.trim_start_matches('\u{feff}'), |path, text| match *path {
        ["EnumerationResults"] => is_page = true,
        ["EnumerationResults", "NextMarker"] => {
            page.next = Some(text).filter(|next| !next.is_empty())
        }
        ["EnumerationResults", "Blobs", "BlobPrefix", "Name"] => {
            page.items.push(Item::Prefix(text))
        }
        ["EnumerationResults", "Blobs", "Blob", "Name"] => blob.name = text,
        ["EnumerationResults", "Blobs", "Blob", "Properties", property] => blob.is(property, text),
        ["EnumerationResults", "Blobs", "Blob"] => {
            let blob = std::mem::take(&mut blob);
            // Where directories are kept as such, there is a prefix for each of them too.
            if !blob.is_directory {
                page.items.push(blob.into());
            }
        }
        _ => {}
    })
    .map_err(invalid)?;
    if !is_page {
        return Err(invalid("it has no EnumerationResults".to_owned()));
    }
    page.items.sort_by(|one, other| one.key().cmp(other.key()));
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::attributes::{Fingerprint, Timestamp, Validator};

    const PAGE: &str = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\
        <EnumerationResults ServiceEndpoint=\"http://h/\" ContainerName=\"c\"><Prefix/><Delimiter>/</Delimiter><Blobs>\
        <Blob><Name>b &amp;c</Name><Properties><Last-Modified>Mon, 06 May 2024 07:08:09 GMT</Last-Modified><Etag>0x8D</Etag>\
        <Content-Length>5</Content-Length><Content-MD5>1B2M2Y8AsgTpgAmy7PhCfg==</Content-MD5><AccessTier>Archive</AccessTier></Properties></Blob>\
        <BlobPrefix><Name>a/</Name></BlobPrefix>\
        <Blob><Name Encoded=\"true\">z%EF%BF%BE%25</Name><Properties><Content-Length>0</Content-Length></Properties></Blob>\
        <Blob><Name>a</Name><Properties><Content-Length>0</Content-Length><ResourceType>directory</ResourceType></Properties></Blob>\
        </Blobs><NextMarker>2!t=</NextMarker></EnumerationResults>";

    #[test]
    fn a_page_is_read_in_the_order_of_keys() {
        let page = parse_page("x", PAGE).unwrap();
        assert_eq!(page.next.as_deref(), Some("2!t="));
        let keys: Vec<&str> = page.items.iter().map(Item::key).collect();
        assert_eq!(keys, ["a/", "b &c", "z\u{fffe}%"], "a directory is a prefix, once");
        let Item::Object(object) = &page.items[1] else { panic!() };
        let attributes = object.attributes.as_ref().unwrap();
        assert_eq!(attributes.modified.unwrap(), Timestamp { seconds: 1_714_979_289, nanos: 0 });
        let validator = Validator::ETag("\"0x8D\"".to_owned());
        assert_eq!(attributes.fingerprint, Fingerprint { size: 5, validator });
        assert!(matches!(attributes.checksum, Some(Checksum::Md5(_))));
        let Item::Object(object) = &page.items[2] else { panic!() };
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
            assert_eq!(parse_page("x", text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
        let last = "<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";
        assert_eq!(parse_page("x", last).unwrap().next, None);
    }
}
