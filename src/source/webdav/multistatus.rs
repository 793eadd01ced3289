//! The answer to PROPFIND (RFC 4918 14.16), one response at a time while the document arrives.
//!
//! What is kept at any time is one response: an event, a text and the depth of nesting are bounded. A document type definition is
//! refused, so that no entity is known but XML's own.

use std::io::{self, BufReader, Read};
use std::mem;

use quick_xml::NsReader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::Event;
use quick_xml::name::{LocalName, Namespace, ResolveResult};

/// Bytes of one tag, text or comment.
const EVENT_SIZE_BYTES: usize = 256 << 10;
/// Bytes of a name, a tag, a date.
const TEXT_SIZE_BYTES: usize = 64 << 10;
/// Elements in each other.
const DEPTH: usize = 64;
/// Bytes that are asked of the document at once.
const PIECE_BYTES: usize = 32 << 10;

/// What one response tells of the thing that it names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// What it is about, as it was written.
    pub(super) href: String,
    /// A status of all of it, where it is not of its properties.
    pub(super) status: Option<u16>,
    pub(super) properties: Properties,
}

/// The properties that were asked for, as they were written, where the server has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Properties {
    pub(super) is_collection: Option<bool>,
    pub(super) length: Option<String>,
    pub(super) modified: Option<String>,
    pub(super) etag: Option<String>,
    /// `SHA1:… MD5:…` of ownCloud and its kin.
    pub(super) checksums: Option<String>,
}

impl Properties {
    fn take_from(&mut self, part: Self) {
        self.is_collection = self.is_collection.or(part.is_collection);
        self.length = self.length.take().or(part.length);
        self.modified = self.modified.take().or(part.modified);
        self.etag = self.etag.take().or(part.etag);
        self.checksums = self.checksums.take().or(part.checksums);
    }
}

/// Why a document ends before its end.
#[derive(Debug)]
pub(super) enum Fault {
    /// It did not arrive.
    Cut(io::Error),
    /// It is none.
    Malformed(String),
}

impl From<quick_xml::Error> for Fault {
    fn from(error: quick_xml::Error) -> Self {
        match error {
            quick_xml::Error::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                malformed("one piece of it is too long")
            }
            quick_xml::Error::Io(error) => Self::Cut(error.kind().into()),
            error => Self::Malformed(error.to_string()),
        }
    }
}

fn malformed(why: &str) -> Fault {
    Fault::Malformed(why.to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Multistatus,
    Response,
    Href,
    Status,
    Propstat,
    Prop,
    ResourceType,
    Collection,
    Length,
    Modified,
    ETag,
    Checksums,
    Checksum,
    Other,
}

impl Element {
    fn of(namespace: &ResolveResult<'_>, name: LocalName<'_>) -> Self {
        match (namespace, name.as_ref()) {
            (ResolveResult::Bound(Namespace("DAV:")), name) => match name {
                "multistatus" => Self::Multistatus,
                "response" => Self::Response,
                "href" => Self::Href,
                "status" => Self::Status,
                "propstat" => Self::Propstat,
                "prop" => Self::Prop,
                "resourcetype" => Self::ResourceType,
                "collection" => Self::Collection,
                "getcontentlength" => Self::Length,
                "getlastmodified" => Self::Modified,
                "getetag" => Self::ETag,
                _ => Self::Other,
            },
            (ResolveResult::Bound(Namespace("http://owncloud.org/ns")), "checksums") => {
                Self::Checksums
            }
            (ResolveResult::Bound(Namespace("http://owncloud.org/ns")), "checksum") => {
                Self::Checksum
            }
            _ => Self::Other,
        }
    }

    /// Whether it holds text and nothing else.
    fn is_text(self) -> bool {
        use Element::{Checksum, ETag, Href, Length, Modified, Status};
        matches!(self, Href | Status | Length | Modified | ETag | Checksum)
    }
}

/// What an event comes to.
enum Step {
    Opened(Element),
    OpenedAndClosed(Element),
    Closed,
    Nothing,
    End,
}

/// Reads a document.
pub(super) struct Multistatus<R: Read> {
    reader: NsReader<BufReader<Metered<R>>>,
    buffer: Vec<u8>,
    /// The elements that are open.
    path: Vec<Element>,
    text: String,
    told: Told,
    part: Properties,
    /// The status of `part`.
    part_status: Option<u16>,
    /// The document's one element is over.
    is_over: bool,
}

impl<R: Read> Multistatus<R> {
    pub(super) fn new(document: R) -> Self {
        let metered = Metered { document, left: EVENT_SIZE_BYTES };
        Self {
            reader: NsReader::from_reader(BufReader::with_capacity(PIECE_BYTES, metered)),
            buffer: Vec::new(),
            path: Vec::new(),
            text: String::new(),
            told: Told::default(),
            part: Properties::default(),
            part_status: None,
            is_over: false,
        }
    }

    /// The next response; `None` at the end of a whole document.
    pub(super) fn next(&mut self) -> Result<Option<Told>, Fault> {
        loop {
            let closed = match self.step()? {
                Step::Opened(element) => {
                    self.open(element)?;
                    None
                }
                Step::OpenedAndClosed(element) => {
                    self.open(element)?;
                    self.close()?
                }
                Step::Closed => self.close()?,
                Step::Nothing => None,
                Step::End if self.is_over => return Ok(None),
                Step::End => return Err(malformed("it is cut")),
            };
            if closed.is_some() {
                return Ok(closed);
            }
        }
    }

    fn step(&mut self) -> Result<Step, Fault> {
        self.buffer.clear();
        self.reader.get_mut().get_mut().left = EVENT_SIZE_BYTES;
        let (namespace, event) = self.reader.read_resolved_event_into(&mut self.buffer)?;
        let is_text = self.path.last().is_some_and(|element| element.is_text());
        let text: &str = match &event {
            Event::Start(start) => {
                return Ok(Step::Opened(Element::of(&namespace, start.local_name())));
            }
            Event::Empty(start) => {
                return Ok(Step::OpenedAndClosed(Element::of(&namespace, start.local_name())));
            }
            Event::End(_) => return Ok(Step::Closed),
            Event::Eof => return Ok(Step::End),
            Event::DocType(_) => {
                return Err(malformed("it has a document type definition, which is not believed"));
            }
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => return Ok(Step::Nothing),
            Event::Text(text) => text,
            Event::CData(text) => text,
            Event::GeneralRef(reference) => match reference.resolve_char_ref()? {
                Some(letter) => &letter.to_string(),
                None => {
                    resolve_xml_entity(reference).ok_or_else(|| malformed("an unknown entity"))?
                }
            },
        };
        if is_text {
            if self.text.len() + text.len() > TEXT_SIZE_BYTES {
                return Err(malformed("a text in it is too long"));
            }
            self.text.push_str(text);
        }
        Ok(Step::Nothing)
    }

    fn open(&mut self, element: Element) -> Result<(), Fault> {
        match (self.path.last(), element) {
            _ if self.is_over => return Err(malformed("it goes on after its end")),
            (None, Element::Multistatus) => {}
            (None, _) => return Err(malformed("it is no multistatus")),
            (Some(outer), _) if outer.is_text() => {
                return Err(malformed("there is an element in a text"));
            }
            _ if self.path.len() >= DEPTH => return Err(malformed("it is nested too deep")),
            _ => {}
        }
        self.path.push(element);
        Ok(())
    }

    /// Ends the innermost element; gives a response that is whole.
    fn close(&mut self) -> Result<Option<Told>, Fault> {
        use Element::{
            Checksum, Checksums, Collection, ETag, Href, Length, Modified, Multistatus, Prop,
            Propstat, ResourceType, Response, Status,
        };
        let text = mem::take(&mut self.text);
        let property = [Multistatus, Response, Propstat, Prop];
        match self.path.as_slice() {
            [Multistatus] => self.is_over = true,
            [Multistatus, Response] => {
                self.path.pop();
                let told = mem::take(&mut self.told);
                return match told.href.trim() {
                    "" => Err(malformed("a response is about nothing")),
                    _ => Ok(Some(told)),
                };
            }
            [Multistatus, Response, Href] if self.told.href.is_empty() => self.told.href = text,
            [Multistatus, Response, Href] => {
                return Err(malformed("a response is about more than one thing"));
            }
            [Multistatus, Response, Status] => self.told.status = Some(status(&text)),
            [Multistatus, Response, Propstat] => {
                let part = mem::take(&mut self.part);
                if self.part_status.take().is_none_or(is_success) {
                    self.told.properties.take_from(part);
                }
            }
            [Multistatus, Response, Propstat, Status] => self.part_status = Some(status(&text)),
            [outer @ .., ResourceType, Collection] if *outer == property => {
                self.part.is_collection = Some(true);
            }
            [outer @ .., Checksums, Checksum] if *outer == property => {
                let checksums = self.part.checksums.get_or_insert_default();
                if checksums.len() + text.len() < TEXT_SIZE_BYTES {
                    checksums.push(' ');
                    checksums.push_str(&text);
                }
            }
            [outer @ .., element] if *outer == property => match element {
                ResourceType => drop(self.part.is_collection.get_or_insert(false)),
                Length => self.part.length = Some(text),
                Modified => self.part.modified = Some(text),
                ETag => self.part.etag = Some(text),
                _ => {}
            },
            _ => {}
        }
        self.path.pop();
        Ok(None)
    }
}

/// The code of a status line; 0 if it has none.
fn status(line: &str) -> u16 {
    line.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Whether a status code means that what was asked for is there.
pub(super) fn is_success(code: u16) -> bool {
    (200..300).contains(&code)
}

/// Ends a document that gives too many bytes without an event.
struct Metered<R> {
    document: R,
    left: usize,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let len = buffer.len().min(self.left);
        let read = self.document.read(&mut buffer[..len])?;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
