//! All that is known of one directory, for who compares it with the source: read in the order of the names, without a look-up for each.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use redb::{ReadTransaction, TableDefinition};

use crate::core::path::RelPath;
use crate::error::Result;

use super::Catalog;
use super::database::{Failure, corrupt};
use super::name::NameRecord;
use super::names::unreadable;
use super::record::{EntryRecord, OtherRecord};
use super::tables::{ENTRIES, LISTINGS, NAMES, OTHERS, decode_other};

/// One directory as the catalog has it; everything in the order of the names' bytes.
#[derive(Debug, Default)]
pub struct KnownDirectory {
    /// The next position to give, if it was listed to the end.
    pub next_position: Option<u64>,
    /// Names that the source had.
    pub names: Vec<(OsString, NameRecord)>,
    /// Files; their paths are left out.
    pub files: Vec<(OsString, EntryRecord)>,
    /// Entries without bytes of their own.
    pub others: Vec<(OsString, OtherRecord)>,
    /// Names of directories in it that hold something.
    pub below: Vec<OsString>,
}

impl Catalog {
    /// What is known of the directory `path`, whose inode number is `ino`.
    ///
    /// # Errors
    /// `Corrupt`, naming the record; `Io`.
    pub fn directory(&self, ino: u64, path: &RelPath) -> Result<KnownDirectory> {
        self.database.read("read catalog", |transaction| {
            let mut known = KnownDirectory::default();
            let listings = transaction.open_table(LISTINGS)?;
            known.next_position = listings.get(ino)?.map(|next| next.value());
            let names = transaction.open_table(NAMES)?;
            for row in names.range((ino, b"".as_slice())..(ino + 1, b"".as_slice()))? {
                let (key, record) = row?;
                let name = OsStr::from_bytes(key.value().1).to_owned();
                let record = NameRecord::decode(record.value());
                known.names.push((name, record.ok_or_else(|| unreadable(key.value()))?));
            }
            children(transaction, ENTRIES, path, |name, key, bytes| {
                let Some(bytes) = bytes else {
                    known.below.push(name);
                    return Ok(());
                };
                let record = EntryRecord::decode_at(RelPath::root(), bytes);
                let unreadable = || corrupt(format!("entry {:?}", String::from_utf8_lossy(key)));
                known.files.push((name, record.ok_or_else(unreadable)?));
                Ok(())
            })?;
            children(transaction, OTHERS, path, |name, key, bytes| {
                match bytes {
                    Some(bytes) => known.others.push((name, decode_other(key, bytes)?)),
                    None => known.below.push(name),
                }
                Ok(())
            })?;
            known.below.sort_unstable();
            known.below.dedup();
            Ok(known)
        })
    }
}

/// Shows the rows of a table of paths that lie in the directory `path` itself. What lies deeper is jumped over: of that the name in
/// `path` is shown, without bytes.
fn children(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, &'static [u8], &'static [u8]>,
    path: &RelPath,
    mut show: impl FnMut(OsString, &[u8], Option<&[u8]>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let table = transaction.open_table(table)?;
    let mut prefix = path.as_bytes().to_vec();
    if !path.is_root() {
        prefix.push(b'/');
    }
    let mut rows = table.range(prefix.as_slice()..)?;
    while let Some(row) = rows.next() {
        let (key, bytes) = row?;
        let Some(rest) = key.value().strip_prefix(prefix.as_slice()) else { break };
        match rest.iter().position(|byte| *byte == b'/') {
            Some(slash) => {
                let name = &rest[..slash];
                show(OsStr::from_bytes(name).to_owned(), key.value(), None)?;
                let below = [&prefix, name, &[b'/' + 1]].concat();
                rows = table.range(below.as_slice()..)?;
            }
            None if rest.is_empty() => {}
            None => show(OsStr::from_bytes(rest).to_owned(), key.value(), Some(bytes.value()))?,
        }
    }
    Ok(())
}
