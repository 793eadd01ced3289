//! What the catalog promises while nothing fails.

use std::os::fd::AsFd;

use redb::WriteTransaction;

use super::*;
use crate::core::attributes::{Attributes, EntryKind, Fingerprint, Validator};
use crate::store::Durability;

/// A state directory without anything around it.
struct State(tempfile::TempDir);

impl State {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("trees")).unwrap();
        Self(directory)
    }

    fn open(&self) -> Result<Catalog> {
        let state = std::fs::File::open(self.0.path()).unwrap();
        let trees = std::fs::File::open(self.0.path().join("trees")).unwrap();
        Catalog::open(state.as_fd(), trees.as_fd(), self.0.path())
    }
}

fn version(ino: u64) -> Version {
    let fingerprint = Fingerprint { size: 1 << 40, validator: Validator::ETag("\"x\"".to_owned()) };
    Version { ino, fingerprint, is_settled: true }
}

fn path(name: &str) -> RelPath {
    record::path_of(name.as_bytes()).unwrap()
}

fn land(catalog: &Catalog, name: &str, ino: u64, part: u64, blocks: &[Range<u64>]) {
    let part = Part { name: format!("p{part}"), inode: part };
    let landed = Landed { path: &path(name), version: &version(ino), part, blocks };
    catalog.record_landed(&[landed]).unwrap();
}

fn blocks(catalog: &Catalog, name: &str) -> Vec<Range<u64>> {
    catalog.blocks(&catalog.entry(&path(name)).unwrap().unwrap()).unwrap()
}

fn one(run: Range<u64>) -> Vec<Range<u64>> {
    vec![run]
}

#[test]
fn another_source_is_refused_and_both_are_named() {
    let state = State::new();
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let job = state.open().unwrap().ensure_job("/one", now).unwrap();
    assert_eq!(job.created, now);
    let catalog = state.open().unwrap();
    assert_eq!(catalog.ensure_job("/one", SystemTime::now()).unwrap(), job);
    let error = catalog.ensure_job("/two", now).unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    let text = error.to_string();
    assert!(text.contains("/one") && text.contains("/two"), "{text}");
}

#[test]
fn numbers_never_repeat() {
    let state = State::new();
    let catalog = state.open().unwrap();
    assert_eq!(catalog.reserve_chunk_ids(1_000_000).unwrap(), 1..1_000_001);
    assert_eq!(catalog.reserve_inos(10).unwrap(), 2..12);
    drop(catalog);
    let catalog = state.open().unwrap();
    assert_eq!(catalog.reserve_chunk_ids(5).unwrap(), 1_000_001..1_000_006);
    assert_eq!(catalog.reserve_inos(1).unwrap(), 12..13);
    assert!(catalog.reserve_inos(u64::MAX).is_err());
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let state = State::new();
    let catalog = state.open().unwrap();
    let raise = |transaction: &WriteTransaction| {
        let newer = 7u64.to_le_bytes();
        transaction.open_table(META)?.insert("schema", newer.as_slice())?;
        Ok(())
    };
    catalog.database.write("raise schema", Commit::Durable, raise).unwrap();
    drop(catalog);
    for _ in 0..2 {
        let error = state.open().unwrap_err();
        assert_eq!(error.kind(), Kind::NotSupported);
        assert!(error.to_string().contains("schema is 7"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_catalog_is_corrupt_and_named() {
    let state = State::new();
    std::fs::write(state.0.path().join(CATALOG_NAME), vec![7; 100_000]).unwrap();
    let error = state.open().unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("catalog.redb"), "{error}");
}

#[test]
fn a_catalog_that_was_cut_off_while_it_was_made_is_made_again() {
    let state = State::new();
    std::fs::write(state.0.path().join(DRAFT_NAME), vec![7; 5000]).unwrap();
    assert_eq!(state.open().unwrap().entry_count().unwrap(), 0);
    assert!(!state.0.path().join(DRAFT_NAME).exists());
}

#[test]
fn a_record_that_cannot_be_read_is_corrupt_and_named() {
    let state = State::new();
    let catalog = state.open().unwrap();
    catalog.know(&[(path("good"), version(2))]).unwrap();
    let spoil = |transaction: &WriteTransaction| {
        let mut entries = transaction.open_table(ENTRIES)?;
        entries.insert(b"spoilt".as_slice(), b"junk".as_slice())?;
        Ok(())
    };
    catalog.database.write("spoil", Commit::Durable, spoil).unwrap();
    let error = catalog.entry(&path("spoilt")).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("spoilt"), "{error}");
    assert!(catalog.entry(&path("good")).unwrap().is_some());
    assert!(catalog.entries(|_| Ok(())).is_err());
}

#[test]
fn the_error_history_keeps_the_last_thousand() {
    let state = State::new();
    let catalog = state.open().unwrap();
    let note = |number: u64| ErrorNote {
        path: path("a/b"),
        kind: "timeout".to_owned(),
        message: format!("{number}"),
        at: UNIX_EPOCH + Duration::from_millis(number),
    };
    catalog.record_errors(&(0..7).map(note).collect::<Vec<_>>()).unwrap();
    catalog.record_errors(&(0..1010).map(note).collect::<Vec<_>>()).unwrap();
    drop(catalog);
    let errors = state.open().unwrap().errors().unwrap();
    assert_eq!(errors.len(), 1000);
    assert_eq!((errors.first(), errors.last()), (Some(&note(10)), Some(&note(1009))));
}

#[test]
fn the_least_sure_life_is_what_counts() {
    let state = State::new();
    let catalog = state.open().unwrap();
    assert_eq!(catalog.durability().unwrap(), None);
    for (life, counts) in [
        (Durability::Paranoid, Durability::Paranoid),
        (Durability::Normal, Durability::Normal),
        (Durability::Paranoid, Durability::Normal),
    ] {
        catalog.record_durability(life).unwrap();
        assert_eq!(catalog.durability().unwrap(), Some(counts));
    }
}

#[test]
fn block_maps_add_up_and_can_be_cleared() {
    let state = State::new();
    let catalog = state.open().unwrap();
    land(&catalog, "f", 2, 1, &[0..3, 40_000..70_000]);
    land(&catalog, "f", 2, 1, &[3..5, 70_000..70_001]);
    assert_eq!(blocks(&catalog, "f"), [0..5, 40_000..70_001]);
    catalog.clear_blocks(&path("f"), 2, std::slice::from_ref(&(4..60_000))).unwrap();
    drop(catalog);
    let catalog = state.open().unwrap();
    assert_eq!(blocks(&catalog, "f"), [0..4, 60_000..70_001]);
    catalog.clear(&path("f"), 2, 1).unwrap();
    assert!(blocks(&catalog, "f").is_empty());
    assert_eq!(catalog.entry(&path("f")).unwrap().unwrap().version.ino, 2);
}

#[test]
fn clearing_one_part_leaves_another_part_and_another_version_alone() {
    let state = State::new();
    let catalog = state.open().unwrap();
    land(&catalog, "f", 2, 1, std::slice::from_ref(&(0..100)));
    land(&catalog, "f", 2, 9, std::slice::from_ref(&(7..8)));
    catalog.clear(&path("f"), 2, 1).unwrap();
    assert_eq!(blocks(&catalog, "f"), one(7..8));
    land(&catalog, "f", 3, 9, std::slice::from_ref(&(1..2)));
    catalog.clear(&path("f"), 2, 9).unwrap();
    assert_eq!(blocks(&catalog, "f"), one(1..2));
    catalog.clear(&path("f"), 3, 9).unwrap();
    assert!(blocks(&catalog, "f").is_empty());
}

#[test]
fn another_part_starts_with_nothing() {
    let state = State::new();
    let catalog = state.open().unwrap();
    land(&catalog, "f", 2, 1, std::slice::from_ref(&(0..100)));
    land(&catalog, "f", 2, 9, std::slice::from_ref(&(7..8)));
    assert_eq!(blocks(&catalog, "f"), one(7..8));
}

#[test]
fn a_later_version_replaces_an_earlier_one_and_never_the_other_way_round() {
    let state = State::new();
    let catalog = state.open().unwrap();
    land(&catalog, "f", 2, 1, std::slice::from_ref(&(0..9)));
    land(&catalog, "f", 5, 4, std::slice::from_ref(&(1..2)));
    land(&catalog, "f", 2, 1, std::slice::from_ref(&(9..10)));
    assert_eq!(blocks(&catalog, "f"), one(1..2));
    assert!(catalog.entry_of_ino(2).unwrap().is_none());
    assert_eq!(catalog.entry_of_ino(5).unwrap().unwrap().path, path("f"));
    let old = EntryRecord::absent(path("f"), version(2));
    assert_eq!(catalog.record_intents(&[old]).unwrap(), [false]);
    catalog.know(&[(path("f"), version(2)), (path("g"), version(6))]).unwrap();
    assert_eq!(blocks(&catalog, "f"), one(1..2));
    assert_eq!(catalog.entry_count().unwrap(), 2);
    catalog.forget_entry(&path("f")).unwrap();
    assert!(catalog.entry(&path("f")).unwrap().is_none());
    assert!(catalog.entry_of_ino(5).unwrap().is_none());
}

#[test]
fn a_hundred_thousand_entries_open_at_once() {
    let state = State::new();
    let catalog = state.open().unwrap();
    let entries: Vec<_> = (2..100_002)
        .map(|ino| (path(&format!("directory {}/a file {ino}.bin", ino / 100)), version(ino)))
        .collect();
    catalog.know(&entries).unwrap();
    drop(catalog);
    let start = std::time::Instant::now();
    let catalog = state.open().unwrap();
    let unfinished = catalog.unfinished().unwrap().len();
    let opened = start.elapsed();
    let mut count = 0;
    catalog
        .entries(|_| {
            count += 1;
            Ok(())
        })
        .unwrap();
    println!("opened in {opened:?}, listed {count} entries after {:?}", start.elapsed());
    let bytes = std::fs::metadata(state.0.path().join(CATALOG_NAME)).unwrap().len();
    println!("{} bytes an entry", bytes / 100_000);
    assert_eq!((count, unfinished), (100_000, 0));
    assert!(opened < Duration::from_secs(1), "{opened:?}");
}

fn name(number: u64) -> std::ffi::OsString {
    format!("n{number}").into()
}

fn file_of(size: u64, ino: u64) -> NameRecord {
    let attributes = Packed::new(&test_attributes(EntryKind::File, size));
    let attributes = Some(attributes);
    NameRecord { attributes, ..NameRecord::listed(ino, EntryKind::File, 0) }
}

fn test_attributes(kind: EntryKind, size: u64) -> Attributes {
    Attributes::bare(kind, Fingerprint { size, validator: Validator::SizeOnly })
}

fn put(parent: u64, number: u64, record: NameRecord) -> NameChange {
    NameChange::Put { parent, name: name(number), record }
}

fn complete(directory: u64, next_position: u64) -> NameChange {
    NameChange::Complete { directory, next_position }
}

#[test]
fn a_directory_is_listed_only_when_all_of_it_was_said_and_in_its_order() {
    use EntryKind::{Directory, File};
    let state = State::new();
    let catalog = state.open().unwrap();
    let listed = |ino, kind, position| NameRecord::listed(ino, kind, position);
    catalog
        .record_names(&[put(1, 0, listed(9, File, 2)), put(1, 1, listed(4, Directory, 1))])
        .unwrap();
    assert_eq!(catalog.listing(1).unwrap(), None);
    // Of a name that was only looked up the listing knows nothing.
    catalog.record_names(&[complete(1, 3), put(1, 2, file_of(7, 5)), complete(4, 1)]).unwrap();
    drop(catalog);
    let catalog = state.open().unwrap();
    let (names, next) = catalog.listing(1).unwrap().unwrap();
    let shown: Vec<_> = names.iter().map(|one| (one.ino, one.position)).collect();
    assert_eq!((shown, next), (vec![(4, 1), (9, 2)], 3));
    assert_eq!(catalog.listing(4).unwrap(), Some((Vec::new(), 1)), "empty, and known to be");
    assert_eq!(catalog.listing(9).unwrap(), None);
    catalog.record_names(&[NameChange::Incomplete { directory: 1 }]).unwrap();
    assert_eq!(catalog.listing(1).unwrap(), None);
}

#[test]
fn what_is_not_said_again_of_the_same_inode_stays() {
    let state = State::new();
    let catalog = state.open().unwrap();
    let mut first = NameRecord { position: 3, ..file_of(7, 5) };
    first.xattrs = Some(vec![(name(1), b"v".to_vec())]);
    catalog.record_names(&[put(1, 0, first.clone())]).unwrap();
    // Looked up, then listed by a source that lists no attributes.
    catalog.record_names(&[put(1, 0, file_of(7, 5))]).unwrap();
    let again = NameRecord::listed(99, first.kind, 3);
    catalog.record_names(&[put(1, 0, again)]).unwrap();
    assert_eq!(catalog.name(1, &name(0)).unwrap().unwrap(), first);
    // Another version has nothing of it but its place.
    catalog.record_names(&[put(1, 0, file_of(8, 6))]).unwrap();
    let second = NameRecord { position: 3, ..file_of(8, 6) };
    assert_eq!(catalog.name(1, &name(0)).unwrap().unwrap(), second);
}

#[test]
fn files_are_counted_once_and_what_lay_in_a_directory_that_is_gone_is_forgotten_bit_by_bit() {
    use EntryKind::Directory;
    let state = State::new();
    let catalog = state.open().unwrap();
    let directory = |ino| NameRecord::listed(ino, Directory, 1);
    catalog
        .record_names(&[put(1, 0, directory(10)), put(10, 0, directory(11)), complete(11, 9)])
        .unwrap();
    for number in 1..=10 {
        catalog.record_names(&[put(11, number, file_of(number, 100 + number))]).unwrap();
    }
    let link = NameRecord { is_first: false, ..file_of(1, 101) };
    let known = catalog.record_names(&[put(1, 7, link)]).unwrap();
    assert_eq!(known, KnownFiles { files: 10, bytes: 55 });
    catalog.record_names(&[put(1, 0, file_of(1000, 12))]).unwrap();
    let mut rounds = 0;
    while catalog.sweep_names(3).unwrap().1 {
        rounds += 1;
        assert!(rounds < 20);
    }
    assert!(rounds >= 3, "bit by bit");
    drop(catalog);
    let catalog = state.open().unwrap();
    assert_eq!(catalog.known_files().unwrap(), KnownFiles { files: 1, bytes: 1000 });
    assert!(!catalog.has_names(10).unwrap() && !catalog.has_names(11).unwrap());
    assert_eq!(catalog.listing(11).unwrap(), None);
    assert!(catalog.name(1, &name(7)).unwrap().is_some());
}
