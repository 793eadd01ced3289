//! Version 3 of the SFTP protocol (draft-ietf-secsh-filexfer-02), as far as a reader needs it: requests into bytes, bytes into answers.
//!
//! Names are bytes, as they are at the server. Whatever a server sends, reading it ends with an answer or an error, and takes no more memory
//! than what was sent.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{Error, Kind, Result};

/// The version that is spoken.
pub(super) const VERSION: u32 = 3;
/// The longest packet that is taken, in bytes without its length. OpenSSH sends at most 256 KiB.
pub(super) const MAX_PACKET: usize = 1 << 20;
/// Bytes of a packet's length.
pub(super) const LENGTH: usize = 4;

const INIT: u8 = 1;
const HELLO: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const STAT: u8 = 17;
const READLINK: u8 = 19;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED: u8 = 200;
const EXTENDED_REPLY: u8 = 201;

/// Open for reading.
const FOR_READING: u32 = 1;

/// What OpenSSH can do besides (its file PROTOCOL, section 4).
const LIMITS: &str = "limits@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";

/// One request.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Open(Bytes),
    OpenDirectory(Bytes),
    Close(Bytes),
    Read {
        handle: Bytes,
        offset: u64,
        len: u32,
    },
    ReadDirectory(Bytes),
    /// Follows no link.
    Lstat(Bytes),
    /// Follows links.
    Stat(Bytes),
    /// Of an open file.
    Fstat(Bytes),
    ReadLink(Bytes),
    Limits,
    FileSystem(Bytes),
}

impl Request {
    /// Appends it, as the request `id`.
    pub(super) fn put(&self, id: u32, out: &mut BytesMut) {
        let from = begin(out);
        let mut head = |kind: u8| {
            out.put_u8(kind);
            out.put_u32(id);
        };
        match self {
            Request::Open(path) => {
                head(OPEN);
                put_string(out, path);
                out.put_u32(FOR_READING);
                // No attributes.
                out.put_u32(0);
            }
            Request::Read { handle, offset, len } => {
                head(READ);
                put_string(out, handle);
                out.put_u64(*offset);
                out.put_u32(*len);
            }
            Request::Limits => {
                head(EXTENDED);
                put_string(out, LIMITS.as_bytes());
            }
            Request::FileSystem(path) => {
                head(EXTENDED);
                put_string(out, STATVFS.as_bytes());
                put_string(out, path);
            }
            Request::OpenDirectory(name) => put_one(out, OPENDIR, id, name),
            Request::Close(name) => put_one(out, CLOSE, id, name),
            Request::ReadDirectory(name) => put_one(out, READDIR, id, name),
            Request::Lstat(name) => put_one(out, LSTAT, id, name),
            Request::Stat(name) => put_one(out, STAT, id, name),
            Request::Fstat(name) => put_one(out, FSTAT, id, name),
            Request::ReadLink(name) => put_one(out, READLINK, id, name),
        }
        end(out, from);
    }
}

fn put_one(out: &mut BytesMut, kind: u8, id: u32, name: &[u8]) {
    out.put_u8(kind);
    out.put_u32(id);
    put_string(out, name);
}

/// Appends the first packet of all.
pub(super) fn put_hello(out: &mut BytesMut) {
    let from = begin(out);
    out.put_u8(INIT);
    out.put_u32(VERSION);
    end(out, from);
}

/// Leaves room for the length of a packet.
fn begin(out: &mut BytesMut) -> usize {
    out.put_u32(0);
    out.len()
}

fn end(out: &mut BytesMut, from: usize) {
    let len = u32::try_from(out.len() - from).unwrap_or(u32::MAX);
    out[from - LENGTH..from].copy_from_slice(&len.to_be_bytes());
}

fn put_string(out: &mut BytesMut, text: &[u8]) {
    out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text);
}

/// What a server says of itself first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) tells_limits: bool,
    pub(super) tells_file_system: bool,
}

/// Why there is nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: u32,
    /// In the server's words.
    pub(super) message: String,
}

impl Status {
    /// The end of a file or a directory.
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    /// OpenSSH's answer to a call that makes no sense, such as the target of what is no link.
    pub(super) const BAD_MESSAGE: u32 = 5;
    pub(super) const UNSUPPORTED: u32 = 8;

    /// The same as an error of `op`.
    pub(super) fn error(&self, op: &'static str) -> Error {
        let kind = match self.code {
            Self::NO_SUCH_FILE => Kind::NotFound,
            Self::PERMISSION_DENIED => Kind::Denied,
            Self::BAD_MESSAGE => Kind::Invalid,
            Self::UNSUPPORTED => Kind::NotSupported,
            0 => Kind::Corrupt,
            _ => Kind::Io,
        };
        let words = match self.message.as_str() {
            "" => format!("the server answers status {}", self.code),
            message => format!("the server says: {message}"),
        };
        Error::new(kind, op).because(words)
    }
}

/// Attributes as they were sent; what was left out is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RawAttributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    /// With the bits that tell the kind of file.
    pub(super) permissions: Option<u32>,
    /// Last access and last modification, in seconds since 1970.
    pub(super) times: Option<(u32, u32)>,
}

/// One name in a directory; what `ls -l` would print of it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) name: Bytes,
    pub(super) attributes: RawAttributes,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Status(Status),
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<Name>),
    Attributes(RawAttributes),
    /// To a request of OpenSSH's own.
    Extended(Bytes),
}

impl Answer {
    /// As an error of `op`: what it says, or that nobody asked for it.
    pub(super) fn unexpected(self, op: &'static str) -> Error {
        match self {
            Answer::Status(status) => status.error(op),
            _ => Error::new(Kind::Corrupt, op).because("the server answers something else"),
        }
    }
}

/// Takes one packet without its length from `incoming`, if all of it is there.
///
/// # Errors
/// `Corrupt` for a length that no packet has.
pub(super) fn take_packet(incoming: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(head) = incoming.first_chunk::<LENGTH>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if len == 0 || len > MAX_PACKET {
        return Err(malformed(format!("a packet of {len} bytes")));
    }
    if incoming.len() < LENGTH + len {
        // Room for the rest, so that it arrives in one piece.
        incoming.reserve(LENGTH + len - incoming.len());
        return Ok(None);
    }
    incoming.advance(LENGTH);
    Ok(Some(incoming.split_to(len).freeze()))
}

/// Reads the server's first packet.
///
/// # Errors
/// `Corrupt` if it is none.
pub(super) fn read_hello(packet: Bytes) -> Result<Hello> {
    let mut fields = Fields(packet);
    let mut read = || {
        if fields.u8()? != HELLO {
            return None;
        }
        let mut hello = Hello { version: fields.u32()?, ..Hello::default() };
        while !fields.0.is_empty() {
            let (name, _version) = (fields.string()?, fields.string()?);
            hello.tells_limits |= name == LIMITS;
            hello.tells_file_system |= name == STATVFS;
        }
        Some(hello)
    };
    read().ok_or_else(|| malformed("no first packet of an SFTP server"))
}

/// The number of the request that `packet` answers, and the answer; that may be malformed by itself.
///
/// # Errors
/// `Corrupt` if it answers none.
pub(super) fn read_answer(packet: Bytes) -> Result<(u32, Result<Answer>)> {
    let mut fields = Fields(packet);
    let (Some(kind), Some(id)) = (fields.u8(), fields.u32()) else {
        return Err(malformed("a packet without a number"));
    };
    let answer = match kind {
        STATUS => fields.status().map(Answer::Status),
        HANDLE => fields.string().map(Answer::Handle),
        DATA => fields.string().map(Answer::Data),
        NAME => fields.names().map(Answer::Names),
        ATTRS => fields.attributes().map(Answer::Attributes),
        EXTENDED_REPLY => Some(Answer::Extended(fields.0)),
        kind => return Err(malformed(format!("a packet of the unknown type {kind}"))),
    };
    Ok((id, answer.ok_or_else(|| malformed("an answer that ends too early"))))
}

/// Reads the answer to [`Request::Limits`]: bytes of one answer to a READ, if it says.
pub(super) fn read_limits(answer: Bytes) -> Option<u64> {
    let mut fields = Fields(answer);
    let (_packet, read) = (fields.u64()?, fields.u64()?);
    (read > 0).then_some(read)
}

/// Reads the answer to [`Request::FileSystem`]: all bytes and all inodes.
pub(super) fn read_file_system(answer: Bytes) -> Option<(u64, u64)> {
    let mut fields = Fields(answer);
    let (_block_size, fragment_size, blocks) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (_free, _available, inodes) = (fields.u64()?, fields.u64()?, fields.u64()?);
    Some((fragment_size.saturating_mul(blocks), inodes))
}

fn malformed(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, "read answer of SFTP server").because(what)
}

/// What is left of a packet; each method takes one field, or gives `None` if it is not there.
struct Fields(Bytes);

impl Fields {
    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    fn string(&mut self) -> Option<Bytes> {
        let len = usize::try_from(self.u32()?).ok()?;
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn status(&mut self) -> Option<Status> {
        let code = self.u32()?;
        // Early servers end here.
        let message = self.string().unwrap_or_default();
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let message = String::from_utf8_lossy(&message).chars().map(plain).take(300).collect();
        Some(Status { code, message })
    }

    fn names(&mut self) -> Option<Vec<Name>> {
        let count = self.u32()?;
        let mut names = Vec::new();
        for _ in 0..count {
            let (name, _long) = (self.string()?, self.string()?);
            names.push(Name { name, attributes: self.attributes()? });
        }
        Some(names)
    }

    fn attributes(&mut self) -> Option<RawAttributes> {
        const SIZE: u32 = 1;
        const OWNER: u32 = 2;
        const PERMISSIONS: u32 = 4;
        const TIMES: u32 = 8;
        const EXTENSIONS: u32 = 1 << 31;
        let flags = self.u32()?;
        let has = |flag: u32| flags & flag != 0;
        let mut read = RawAttributes::default();
        if has(SIZE) {
            read.size = Some(self.u64()?);
        }
        if has(OWNER) {
            read.owner = Some((self.u32()?, self.u32()?));
        }
        if has(PERMISSIONS) {
            read.permissions = Some(self.u32()?);
        }
        if has(TIMES) {
            read.times = Some((self.u32()?, self.u32()?));
        }
        if has(EXTENSIONS) {
            for _ in 0..self.u32()? {
                let _unknown = (self.string()?, self.string()?);
            }
        }
        Some(read)
    }
}

#[cfg(test)]
pub(super) mod tests;
