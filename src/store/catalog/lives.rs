//! What is kept over all lives besides entries: the lives themselves, and what is kept from eviction.

use redb::{ReadableTable, ReadableTableMetadata};

use crate::core::path::RelPath;
use crate::error::Result;

use super::database::{Commit, corrupt};
use super::record::path_of;
use super::tables::{LIVES, PINS};
use super::{Catalog, LIVES_KEPT};

impl Catalog {
    /// Records a life that begins; the oldest beyond [`LIVES_KEPT`] is forgotten. Returns its number.
    ///
    /// # Errors
    /// As a durable write.
    pub fn begin_life(&self, life: &[u8]) -> Result<u64> {
        self.database.write("record life", Commit::Durable, |transaction| {
            let mut lives = transaction.open_table(LIVES)?;
            let number = lives.last()?.map_or(0, |(number, _)| number.value()) + 1;
            lives.insert(number, life)?;
            while lives.len()? > LIVES_KEPT {
                lives.pop_first()?;
            }
            Ok(number)
        })
    }

    /// Records what life `number` came to.
    ///
    /// # Errors
    /// As a durable write.
    pub fn end_life(&self, number: u64, life: &[u8]) -> Result<()> {
        self.database.write("record life", Commit::Durable, |transaction| {
            transaction.open_table(LIVES)?.insert(number, life)?;
            Ok(())
        })
    }

    /// The lives with their numbers, the oldest first.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn lives(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        self.database.read("read catalog", |transaction| {
            let lives = match transaction.open_table(LIVES) {
                // Made by the first life.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                lives => lives?,
            };
            let lives = lives.iter()?.map(|row| {
                let (number, life) = row?;
                Ok((number.value(), life.value().to_vec()))
            });
            lives.collect()
        })
    }

    /// Keeps `path` and all below it from eviction, or no more. Says whether that is news.
    ///
    /// # Errors
    /// As a durable write.
    pub fn pin(&self, path: &RelPath, is_pinned: bool) -> Result<bool> {
        self.database.write("record pin", Commit::Durable, |transaction| {
            let mut pins = transaction.open_table(PINS)?;
            let was_pinned = match is_pinned {
                true => pins.insert(path.as_bytes(), ())?.is_some(),
                false => pins.remove(path.as_bytes())?.is_some(),
            };
            Ok(was_pinned != is_pinned)
        })
    }

    /// What is kept from eviction.
    ///
    /// # Errors
    /// `Corrupt`; `Io`.
    pub fn pins(&self) -> Result<Vec<RelPath>> {
        self.database.read("read catalog", |transaction| {
            let pins = match transaction.open_table(PINS) {
                // Made by the first pin.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                pins => pins?,
            };
            let pins = pins.iter()?.map(|row| {
                let (path, _nothing) = row?;
                path_of(path.value()).ok_or_else(|| corrupt("pin"))
            });
            pins.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Destination, DestinationOptions};

    // LESSONS 4: the history had no bound.
    #[test]
    fn the_history_has_a_bound_and_forgets_the_oldest() {
        let directory = tempfile::tempdir().unwrap();
        let opened = Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        let catalog = opened.catalog();
        assert!(catalog.lives().unwrap().is_empty());
        for number in 1..=LIVES_KEPT + 5 {
            assert_eq!(catalog.begin_life(&number.to_le_bytes()).unwrap(), number);
        }
        catalog.end_life(LIVES_KEPT + 5, b"ended").unwrap();
        let lives = catalog.lives().unwrap();
        assert!(lives.iter().map(|(number, _)| *number).eq(6..=LIVES_KEPT + 5));
        assert_eq!(lives.last().unwrap().1, b"ended");
    }

    #[test]
    fn a_pin_is_remembered_and_told_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = RelPath::root().child("a".as_ref()).unwrap();
        let open = || Destination::open(directory.path(), DestinationOptions::default()).unwrap();
        let opened = open();
        assert_eq!(opened.catalog().pins().unwrap(), []);
        assert!(opened.catalog().pin(&path, true).unwrap());
        assert!(!opened.catalog().pin(&path, true).unwrap());
        drop(opened);
        let opened = open();
        assert_eq!(opened.catalog().pins().unwrap(), std::slice::from_ref(&path));
        assert!(opened.catalog().pin(&path, false).unwrap());
        assert!(!opened.catalog().pin(&path, false).unwrap());
    }
}
