//! A page that is parsed on a blocking thread while it arrives in a task.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Pieces that wait for the parser.
const PIECES: usize = 16;

enum Part {
    Piece(Bytes),
    /// The page is whole. Without it, the end of the channel is the end of the request, not of the page.
    End,
}

/// The end that the arriving bytes are put in.
#[derive(Debug)]
pub(in super::super) struct PageFeed {
    parts: mpsc::Sender<Part>,
}

/// The end that a parser reads. Fails with `UnexpectedEof` if the feed ends before the page.
#[derive(Debug)]
pub(in crate::source) struct Page {
    parts: mpsc::Receiver<Part>,
    piece: Bytes,
    is_whole: bool,
}

/// Makes both ends.
pub(in super::super) fn page() -> (PageFeed, Page) {
    let (sender, parts) = mpsc::channel(PIECES);
    (PageFeed { parts: sender }, Page { parts, piece: Bytes::new(), is_whole: false })
}

/// The parser has stopped reading.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Unread;

impl PageFeed {
    /// Gives the next piece.
    ///
    /// # Errors
    /// If nobody reads on.
    pub(in super::super) async fn piece(&self, bytes: Bytes) -> Result<(), Unread> {
        self.parts.send(Part::Piece(bytes)).await.map_err(|_closed| Unread)
    }

    /// Says that the page is whole.
    pub(in super::super) async fn end(self) {
        // A parser that has stopped needs no end.
        drop(self.parts.send(Part::End).await);
    }
}

impl Read for Page {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_whole {
            match self.parts.blocking_recv() {
                Some(Part::Piece(piece)) => self.piece = piece,
                Some(Part::End) => self.is_whole = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}
