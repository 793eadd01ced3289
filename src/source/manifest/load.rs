//! Reading the text of a manifest into its index, while it comes.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::index::{Index, at_line};
use super::places::Places;
use crate::core::attributes::Fingerprint;
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::core::table::Table;
use crate::error::{Error, Kind, Result};
use crate::source::Source;

const OP: &str = "read manifest";
/// Lines that are handed over at once, and how many such batches wait.
const BATCH: usize = 2000;
const BATCHES: usize = 4;
/// The longest line, in bytes.
const LONGEST_LINE: usize = 1 << 20;

/// A manifest that was read, and of which version it was.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) index: Index,
    pub(super) version: Fingerprint,
    /// What servers said of files whose lines tell no entity tag: all parts of a file have to be of one version.
    pub(super) told: Table<RelPath, Fingerprint>,
}

/// Reads all of the one file of `text`.
///
/// # Errors
/// As [`Source::stat`] and [`Source::read`]; `Invalid` naming the line that makes no sense.
pub(super) async fn load(
    text: &dyn Source,
    name: &RelPath,
    places: &Arc<Places>,
    directory: &Path,
) -> Result<Loaded> {
    let version = text.stat(name).await?.fingerprint;
    let (batches, mut received) = mpsc::channel(BATCHES);
    let (places, directory) = (Arc::clone(places), directory.to_owned());
    let building = spawn_blocking(move || {
        let batches = std::iter::from_fn(|| received.blocking_recv());
        Index::build(&directory, &places, batches)
    });
    let fed = feed(text, name, &version, batches).await;
    let built = building.await.map_err(|lost| Error::new(Kind::Io, OP).caused_by(lost))?;
    fed?;
    Ok(Loaded { index: built?, version, told: Table::default() })
}

/// Splits the text into lines. A receiver that is gone knows why.
async fn feed(
    text: &dyn Source,
    name: &RelPath,
    version: &Fingerprint,
    batches: mpsc::Sender<(u64, Vec<Vec<u8>>)>,
) -> Result<()> {
    if version.size == 0 {
        return Ok(());
    }
    let mut pieces = text.read(name, ByteRange::new(0, version.size), version).await?;
    let mut lines = Lines { rest: Vec::new(), whole: Vec::new(), number: 1 };
    while let Some(piece) = pieces.next().await {
        lines.take(&piece?)?;
        if lines.whole.len() >= BATCH && batches.send(lines.batch()).await.is_err() {
            return Ok(());
        }
    }
    let last = std::mem::take(&mut lines.rest);
    lines.whole.push(last);
    drop(batches.send(lines.batch()).await);
    Ok(())
}

/// Lines of a text that comes in pieces.
struct Lines {
    rest: Vec<u8>,
    whole: Vec<Vec<u8>>,
    /// Of the first line in `whole`.
    number: u64,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Result<()> {
        let mut parts = piece.split(|byte| *byte == b'\n');
        self.rest.extend_from_slice(parts.next().unwrap_or_default());
        for part in parts {
            self.whole.push(std::mem::replace(&mut self.rest, part.to_vec()));
        }
        if self.rest.len() > LONGEST_LINE {
            let number = self.number + self.whole.len() as u64;
            return Err(at_line(number, format!("longer than {LONGEST_LINE} bytes")));
        }
        Ok(())
    }

    fn batch(&mut self) -> (u64, Vec<Vec<u8>>) {
        let first = self.number;
        self.number += self.whole.len() as u64;
        (first, std::mem::take(&mut self.whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_the_text_is_cut() {
        let text = b"a\nbb\n\nccc\nd";
        for cut in 1..=text.len() {
            let mut lines = Lines { rest: Vec::new(), whole: Vec::new(), number: 1 };
            let mut all = Vec::new();
            for piece in text.chunks(cut) {
                lines.take(piece).unwrap();
                let (first, batch) = lines.batch();
                assert_eq!(first, all.len() as u64 + 1);
                all.extend(batch);
            }
            all.push(lines.rest);
            assert_eq!(all, text.split(|byte| *byte == b'\n').collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_with_its_number() {
        let mut lines = Lines { rest: Vec::new(), whole: Vec::new(), number: 1 };
        lines.take(b"a\nb\n").unwrap();
        let error = lines.take(&vec![b'x'; LONGEST_LINE + 1]).unwrap_err();
        assert!(error.to_string().contains("line 3: "), "{error}");
    }
}
