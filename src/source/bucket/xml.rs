//! The XML that S3 and Azure speak.

use percent_encoding::percent_decode_str;
use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesStart, Event};

/// Calls `element` at the end of each one, with the names that lead to it and its text as it is: keys may begin with spaces.
pub(in crate::source) fn elements(
    text: &str,
    mut element: impl FnMut(&[&str], String),
) -> Result<(), String> {
    let (mut reader, mut path, mut content) = (Reader::from_str(text), Vec::new(), String::new());
    let mut is_encoded = false;
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        match event {
            Event::Start(start) => {
                path.push(start.local_name().as_ref().to_owned());
                content.clear();
                is_encoded = says_encoded(&start);
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
                let mut text = std::mem::take(&mut content);
                if std::mem::take(&mut is_encoded) {
                    let decoded = percent_decode_str(&text).decode_utf8();
                    text = decoded.map_err(|error| error.to_string())?.into_owned();
                }
                element(&names, text);
                path.pop();
            }
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err("it is cut".to_owned()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

/// Azure writes names that XML cannot hold in another way, and says so.
fn says_encoded(start: &BytesStart<'_>) -> bool {
    let attribute = start.try_get_attribute("Encoded").ok().flatten();
    attribute.is_some_and(|attribute| attribute.value.as_ref() == "true")
}
