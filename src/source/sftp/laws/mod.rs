//! What a session promises, whatever its server does: here the server is the test.

mod pool;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::packet::tests::put_answer;
use super::packet::{Answer, RawAttributes, Request, Status, take_packet};
use super::pool::{FileVersion, IdleFile, Lent};
use super::reading::{self, Ask};
use super::session::Session;
use super::wire::Wire;
use crate::core::attributes::Fingerprint;
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::ByteStream;

const DEADLINE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// A request as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Open(u32),
    Close(u32, Bytes),
    Read { id: u32, offset: u64, len: u32 },
    Fstat(u32),
    Other(u32),
}

/// The other end of a session.
struct Server {
    end: DuplexStream,
    incoming: BytesMut,
}

type Reader = ReadHalf<DuplexStream>;
type Writer = WriteHalf<DuplexStream>;

const HELLO: &[u8] = b"\0\0\0\x05\x02\0\0\0\x03";

/// A connection whose server has greeted with `hello`.
async fn connect(hello: &[u8]) -> (Result<(Session, Wire<Reader, Writer>)>, Server) {
    let (client, end) = duplex(1 << 16);
    let mut server = Server { end, incoming: BytesMut::new() };
    server.end.write_all(hello).await.unwrap();
    let (reader, writer) = split(client);
    (Session::greet(reader, writer).await, server)
}

fn run(wire: Wire<Reader, Writer>) {
    tokio::spawn(async move {
        let mut wire = wire;
        let why = wire.run().await;
        wire.end(&why);
    });
}

/// A session and its server.
async fn pair() -> (Arc<Session>, Server) {
    let (greeted, mut server) = connect(HELLO).await;
    let (session, wire) = greeted.unwrap();
    run(wire);
    // The client's own greeting.
    server.packet().await.unwrap();
    (Arc::new(session), server)
}

impl Server {
    async fn packet(&mut self) -> Option<Bytes> {
        loop {
            if let Some(packet) = take_packet(&mut self.incoming).unwrap() {
                return Some(packet);
            }
            let read = timeout(DEADLINE, self.end.read_buf(&mut self.incoming));
            if read.await.expect("the client asks").unwrap() == 0 {
                return None;
            }
        }
    }

    /// The next request; `None` if the client is gone.
    async fn next(&mut self) -> Option<Asked> {
        let mut packet = self.packet().await?;
        let (kind, id) = (packet.get_u8(), packet.get_u32());
        let mut string = || {
            let len = usize::try_from(packet.get_u32()).unwrap();
            packet.split_to(len)
        };
        Some(match kind {
            3 => Asked::Open(id),
            4 => Asked::Close(id, string()),
            5 => {
                string();
                Asked::Read { id, offset: packet.get_u64(), len: packet.get_u32() }
            }
            8 => Asked::Fstat(id),
            _ => Asked::Other(id),
        })
    }

    async fn say(&mut self, id: u32, answer: &Answer) {
        let mut out = BytesMut::new();
        put_answer(&mut out, id, answer);
        // A client that is gone by now wants no answer; that it is gone shows at the next request.
        match self.end.write_all_buf(&mut out).await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
    }
}

fn handle() -> Answer {
    // As OpenSSH's: bytes that are no text.
    Answer::Handle(Bytes::from_static(b"\0\0\0\xff"))
}

fn version(size: u64, modified: u32) -> Answer {
    Answer::Attributes(RawAttributes {
        size: Some(size),
        owner: None,
        permissions: Some(0o100_644),
        times: Some((0, modified)),
    })
}

fn fingerprint(size: u64, modified: u32) -> Fingerprint {
    let Answer::Attributes(raw) = version(size, modified) else { unreachable!() };
    raw.read().unwrap().fingerprint
}

/// The bytes at `range` of the file that all servers here have.
fn content(offset: u64, len: u64) -> Bytes {
    (offset..offset + len).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect()
}

async fn read(session: &Arc<Session>, size: u64) -> Result<ByteStream> {
    read_range(session, size, ByteRange::at(0, size)).await
}

async fn read_range(session: &Arc<Session>, size: u64, range: ByteRange) -> Result<ByteStream> {
    let lent = Lent { handle: None, session: Arc::clone(session) };
    reading::read(lent, ask(size, range, mpsc::channel(1).0)).await
}

fn ask(size: u64, range: ByteRange, returns: mpsc::Sender<IdleFile>) -> Ask {
    let file = FileVersion { path: Bytes::from_static(b"/f"), version: fingerprint(size, 1) };
    Ask { file, range, shown: RelPath::root(), returns }
}

async fn collect(stream: ByteStream) -> (Vec<u8>, Option<Error>) {
    let (mut bytes, mut stream) = (Vec::new(), stream);
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (bytes, Some(error)),
        }
    }
    (bytes, None)
}

/// Serves a file of `size` bytes; `data` answers READs, `modified` says its time after so many READs.
async fn serve(
    mut server: Server,
    size: u64,
    modified: impl Fn(usize) -> u32,
    data: impl Fn(u64, u64) -> Answer,
) {
    let mut reads = 0;
    while let Some(asked) = server.next().await {
        match asked {
            Asked::Open(id) => server.say(id, &handle()).await,
            Asked::Fstat(id) => server.say(id, &version(size, modified(reads))).await,
            Asked::Read { id, offset, len } => {
                reads += 1;
                server.say(id, &data(offset, u64::from(len))).await;
            }
            Asked::Close(id, _) | Asked::Other(id) => {
                server.say(id, &Answer::Status(Status { code: 0, message: String::new() })).await;
            }
        }
    }
}

#[tokio::test]
async fn many_reads_are_under_way_before_the_first_is_answered_and_come_out_in_order() {
    const WANTED: usize = 12;
    let (session, mut server) = pair().await;
    let size = 4 * MIB;
    let served = tokio::spawn(async move {
        let (mut held, mut most) = (Vec::new(), 0);
        while let Some(asked) = server.next().await {
            match asked {
                Asked::Open(id) => server.say(id, &handle()).await,
                Asked::Fstat(id) => server.say(id, &version(size, 1)).await,
                Asked::Read { id, offset, len } => held.push((id, offset, u64::from(len))),
                Asked::Close(..) => break,
                Asked::Other(_) => unreachable!(),
            }
            most = most.max(held.len());
            // Once so many are under way, and from then on; the last first.
            if most >= WANTED {
                while let Some((id, offset, len)) = held.pop() {
                    server.say(id, &Answer::Data(content(offset, len))).await;
                }
            }
        }
        most
    });
    let (bytes, error) = collect(read(&session, size).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert!(bytes == content(0, size));
    assert!(served.await.unwrap() >= WANTED);
}

#[tokio::test]
async fn a_reader_who_does_not_read_has_no_more_than_a_window_under_way() {
    let (session, mut server) = pair().await;
    let size = 64 * MIB;
    let (readers, most) = (20, 4 * MIB + 20 * (32 << 10));
    let counted = tokio::spawn(async move {
        let (mut bytes, mut closed) = (0, 0);
        while closed < readers {
            match server.next().await.unwrap() {
                Asked::Open(id) => server.say(id, &handle()).await,
                Asked::Fstat(id) => server.say(id, &version(size, 1)).await,
                Asked::Read { len, .. } => bytes += u64::from(len),
                Asked::Close(..) => closed += 1,
                Asked::Other(_) => unreachable!(),
            }
        }
        bytes
    });
    let mut streams = Vec::new();
    for _ in 0..readers {
        streams.push(read(&session, size).await.unwrap());
    }
    drop(streams);
    let bytes = timeout(DEADLINE, counted).await.unwrap().unwrap();
    assert!(bytes <= most, "{bytes}");
}

#[tokio::test]
async fn a_handle_that_nobody_waits_for_any_more_is_closed() {
    let (session, mut server) = pair().await;
    let path = || Bytes::from_static(b"/f");
    // Given up while the server opens it, and right after.
    let opening = session.open("open", Request::Open(path()));
    let asked = tokio::select! {
        _ = opening => unreachable!(),
        asked = server.next() => asked.unwrap(),
    };
    let Asked::Open(id) = asked else { panic!("{asked:?}") };
    server.say(id, &handle()).await;
    let Some(Asked::Close(id, name)) = server.next().await else { panic!() };
    assert_eq!(&name[..], b"\0\0\0\xff");
    server.say(id, &Answer::Status(Status { code: 0, message: String::new() })).await;
    // And the session goes on.
    let (answer, ()) = tokio::join!(session.ask(Request::Stat(path())), async {
        let Some(Asked::Other(id)) = server.next().await else { panic!() };
        server.say(id, &version(7, 1)).await;
    });
    assert_eq!(answer.unwrap(), version(7, 1));
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_not_written() {
    let (session, mut server) = pair().await;
    let ask = |name: &'static [u8]| session.begin(Request::Stat(Bytes::from_static(name)));
    // The task that writes has not run yet.
    drop(ask(b"/a").now_or_never().unwrap().unwrap());
    let kept = ask(b"/b").now_or_never().unwrap().unwrap();
    let packet = server.packet().await.unwrap();
    assert!(packet.ends_with(b"/b"), "{packet:?}");
    drop(kept);
}

#[tokio::test]
async fn a_cut_connection_tells_all_who_wait() {
    let (session, mut server) = pair().await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(session.begin(Request::Stat(Bytes::from_static(b"/"))).await.unwrap());
    }
    for _ in 0..3 {
        server.next().await.unwrap();
    }
    drop(server);
    for pending in waiting {
        let error = timeout(DEADLINE, pending.answer()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
    }
    assert!(session.is_over());
    let error = session.open("open", Request::Open(Bytes::new())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
}

// L23
#[tokio::test]
async fn bytes_of_another_version_are_never_given_out() {
    // Changed before the first byte, or while the third piece was read.
    for (changes_at, pieces) in [(0, 0), (3, 2)] {
        let (session, server) = pair().await;
        let size = 4 * MIB;
        let modified = move |reads: usize| if reads >= changes_at { 2 } else { 1 };
        let data = |offset, len| Answer::Data(content(offset, len));
        tokio::spawn(serve(server, size, modified, data));
        let (bytes, error) = match read(&session, size).await {
            Ok(stream) => collect(stream).await,
            Err(error) => (Vec::new(), Some(error)),
        };
        assert_eq!(error.unwrap().kind(), Kind::Stale);
        // Pieces of 32 and 32 KiB: a server that says nothing of itself gives no more.
        assert_eq!(bytes.len(), pieces * (32 << 10));
        assert!(bytes == content(0, bytes.len() as u64));
    }
}

// L1, L19
#[tokio::test]
async fn a_server_that_gives_less_at_once_is_asked_for_the_rest() {
    for most in [1, 1000, 20_000] {
        let (session, server) = pair().await;
        let size = 100_001;
        let data = move |offset, len: u64| Answer::Data(content(offset, len.min(most)));
        let served = tokio::spawn(serve(server, size, |_| 1, data));
        let part = if most == 1 { 3000 } else { size };
        let range = ByteRange::at(size - part, part);
        let (bytes, error) = collect(read_range(&session, size, range).await.unwrap()).await;
        assert!(error.is_none(), "{error:?}");
        assert!(bytes == content(range.start, part), "{most}");
        drop(session);
        timeout(DEADLINE, served).await.unwrap().unwrap();
    }
}

// L1, L19
#[tokio::test]
async fn a_wrong_length_is_never_accepted() {
    let eof = || Answer::Status(Status { code: Status::EOF, message: String::new() });
    let refused = || Answer::Status(Status { code: 4, message: "Failure".to_owned() });
    type Data = Box<dyn Fn(u64, u64) -> Answer + Send>;
    let lies: [(Data, Kind); 5] = [
        (Box::new(|_, _| Answer::Data(Bytes::new())), Kind::Corrupt),
        (Box::new(|offset, len| Answer::Data(content(offset, len + 1))), Kind::Corrupt),
        (Box::new(move |_, _| eof()), Kind::Corrupt),
        (Box::new(move |_, _| refused()), Kind::Io),
        (Box::new(|_, _| handle()), Kind::Corrupt),
    ];
    for (data, kind) in lies {
        let (session, server) = pair().await;
        let size = 100_000;
        tokio::spawn(serve(server, size, |_| 1, data));
        let (bytes, error) = collect(read(&session, size).await.unwrap()).await;
        assert_eq!((error.unwrap().kind(), bytes.len()), (kind, 0));
    }
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_session_and_tells_who_waits() {
    // An answer to nobody's question, an unknown kind of packet, an impossible length.
    for bytes in
        [&b"\0\0\0\x05\x69\0\0\x09\x09"[..], b"\0\0\0\x05\x07\0\0\0\x01", b"\xff\xff\xff\xff"]
    {
        let (session, mut server) = pair().await;
        let pending = session.begin(Request::Stat(Bytes::from_static(b"/"))).await.unwrap();
        server.next().await.unwrap();
        server.end.write_all(bytes).await.unwrap();
        let error = timeout(DEADLINE, pending.answer()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(session.is_over());
    }
}

#[tokio::test]
async fn a_server_that_is_none_is_told_from_one_that_is() {
    let text = connect(b"Welcome to h!\nLast login: today\n").await.0.unwrap_err();
    assert_eq!(text.kind(), Kind::NotSupported);
    assert!(text.to_string().contains("shell"), "{text}");
    let two = connect(b"\0\0\0\x05\x02\0\0\0\x02").await.0.unwrap_err();
    assert_eq!(two.kind(), Kind::NotSupported);
    assert_eq!(connect(b"\0\0\0\x05\x65\0\0\0\x03").await.0.unwrap_err().kind(), Kind::Corrupt);
    let (extended, _server) =
        connect(b"\0\0\0\x21\x02\0\0\0\x03\0\0\0\x13statvfs@openssh.com\0\0\0\x012").await;
    assert!(extended.unwrap().0.tells_file_system());
}
