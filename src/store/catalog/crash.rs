//! Power cuts at every sync of a scripted life, on a simulated disk: what was synced is there, of what was written since any part.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use redb::StorageBackend;

use super::*;
use crate::core::attributes::{EntryKind, Fingerprint, Timestamp, Validator};

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    /// The script begins a step.
    Begin(usize),
    /// The step was answered, and promised to be durable.
    Acked(usize),
}

#[derive(Debug, Default)]
struct Disk {
    first: Vec<u8>,
    now: Vec<u8>,
    log: Vec<Op>,
}

#[derive(Debug, Clone, Default)]
struct SimDisk(Arc<Mutex<Disk>>);

impl SimDisk {
    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { first: bytes.clone(), now: bytes, log: Vec::new() })))
    }

    fn note(&self, op: Op) {
        self.0.lock().unwrap().log.push(op);
    }

    fn syncs(&self) -> usize {
        self.0.lock().unwrap().log.iter().filter(|op| matches!(op, Op::Sync)).count()
    }

    /// What a cut in the window after `syncs` syncs leaves, and which steps were durable and begun by then.
    fn cut(&self, syncs: usize, rng: &mut TestRng) -> (Vec<u8>, Option<usize>, Option<usize>) {
        let disk = self.0.lock().unwrap();
        let mut bytes = disk.first.clone();
        let (mut done, mut acked, mut begun) = (0, None, None);
        for op in &disk.log {
            let is_open = done == syncs;
            match op {
                Op::Sync if is_open => break,
                Op::Sync => done += 1,
                Op::Acked(step) => acked = Some(*step),
                Op::Begin(step) => begun = Some(*step),
                _ if !is_open => apply(&mut bytes, op, usize::MAX),
                _ => match rng.next_u32() % 4 {
                    0 => {}
                    // Torn at a sector.
                    1 => apply(&mut bytes, op, 512 * (rng.next_u32() % 8) as usize),
                    _ => apply(&mut bytes, op, usize::MAX),
                },
            }
        }
        (bytes, acked, begun)
    }
}

fn apply(bytes: &mut Vec<u8>, op: &Op, most: usize) {
    match op {
        Op::SetLen(len) => bytes.resize(usize::try_from(*len).unwrap(), 0),
        Op::Write(offset, data) => {
            let start = usize::try_from(*offset).unwrap();
            let data = &data[..data.len().min(most)];
            if bytes.len() < start + data.len() {
                bytes.resize(start + data.len(), 0);
            }
            bytes[start..start + data.len()].copy_from_slice(data);
        }
        _ => {}
    }
}

impl StorageBackend for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = disk.now.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Op::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Op::Write(offset, data.to_vec()));
        Ok(())
    }
}

impl SimDisk {
    fn change(&self, op: Op) {
        let mut disk = self.0.lock().unwrap();
        apply(&mut disk.now, &op, usize::MAX);
        disk.log.push(op);
    }
}

fn open(disk: &SimDisk, trees: &Path) -> Result<Catalog> {
    let disk = disk.clone();
    let opener: Opener = Box::new(move |builder| builder.create_with_backend(disk.clone()));
    let trees = File::open(trees).unwrap().into();
    Catalog::from_parts(opener, Path::new("sim"), Ballast::new(None), trees)
}

/// A disk with a new catalog: before that there is no file of this name.
fn made(trees: &Path) -> SimDisk {
    let disk = SimDisk::default();
    drop(open(&disk, trees).unwrap());
    let bytes = disk.0.lock().unwrap().now.clone();
    SimDisk::holding(bytes)
}

/// A directory: what it lists, and what is recorded of each of its names.
type Directory = (Option<(Vec<ListedName>, u64)>, Vec<Option<NameRecord>>);
/// All that a catalog says.
type Snapshot = (Vec<(EntryRecord, Vec<Range<u64>>)>, Vec<Directory>, KnownFiles);

/// Inode numbers of the directories that the script knows.
const DIRECTORIES: Range<u64> = 1..4;
const NAMES_EACH: u64 = 6;

fn name_of(number: u64) -> OsString {
    format!("name {number}").into()
}

fn directory(catalog: &Catalog, ino: u64) -> Directory {
    let names = (0..NAMES_EACH).map(|number| catalog.name(ino, &name_of(number)).unwrap());
    (catalog.listing(ino).unwrap(), names.collect())
}

/// What every reader relies on: of a listing that counts as complete every name is there.
fn no_listing_lacks_a_name(directories: &[Directory]) {
    for (listing, names) in directories {
        let Some((listed, next)) = listing else { continue };
        for one in listed {
            assert!(one.position < *next);
            assert!(names.iter().flatten().any(|name| name.ino == one.ino));
        }
    }
}

fn snapshot(catalog: &Catalog) -> Snapshot {
    let directories: Vec<_> = DIRECTORIES.map(|ino| directory(catalog, ino)).collect();
    no_listing_lacks_a_name(&directories);
    (entries(catalog), directories, catalog.known_files().unwrap())
}

/// One step of what is learnt of the tree: names, a listing's end, a directory that goes, its names after it.
fn learn(catalog: &Catalog, step: u64) {
    let (directory, number) = (1 + step % 3, step % NAMES_EACH);
    let put = |number: u64| {
        let kind = if number == 5 { EntryKind::Directory } else { EntryKind::File };
        let ino = if number == 5 { 1 + (directory + 1) % 3 } else { 1000 + step };
        let mut record = NameRecord::listed(ino, kind, 1 + number);
        record.target = step.is_multiple_of(2).then(|| name_of(step));
        NameChange::Put { parent: directory, name: name_of(number), record }
    };
    let changes = match step % 4 {
        0 | 1 => vec![put(number), put((number + 1) % NAMES_EACH)],
        2 => {
            let mut all: Vec<_> = (0..NAMES_EACH).map(put).collect();
            all.push(NameChange::Complete { directory, next_position: NAMES_EACH + 1 });
            all
        }
        _ => vec![NameChange::Remove { parent: directory, name: name_of(5) }],
    };
    catalog.record_names(&changes).unwrap();
}

fn entries(catalog: &Catalog) -> Vec<(EntryRecord, Vec<Range<u64>>)> {
    let mut all = Vec::new();
    catalog
        .entries(|record| {
            all.push(record);
            Ok(())
        })
        .unwrap();
    all.into_iter()
        .map(|record| {
            let blocks = catalog.blocks(&record).unwrap();
            (record, blocks)
        })
        .collect()
}

fn path(index: u64) -> RelPath {
    record::path_of(format!("d{}/file {index}", index % 3).as_bytes()).unwrap()
}

fn version(ino: u64) -> Version {
    let fingerprint = Fingerprint { size: 5 << 32, validator: Validator::SizeOnly };
    Version { ino, fingerprint, is_settled: true }
}

fn part(ino: u64) -> Part {
    Part { name: format!("part-{ino}"), inode: ino + 1000 }
}

/// One step of a life. Whether it promised to be durable when it returned.
fn step(catalog: &Catalog, step: u64) -> bool {
    let file = step % 5;
    let (path, ino) = (path(file), 2 + file + step / 40 * 10);
    let placed = Placed { inode: ino + 1000, size: 5 << 32, modified: Timestamp::default() };
    match step % 8 {
        0..=2 => {
            let version = version(ino);
            let blocks = [step * 900..step * 900 + 1000, 100_000..100_000 + step];
            let landed =
                Landed { path: &path, version: &version, part: part(ino), blocks: &blocks };
            catalog.record_landed(&[landed]).unwrap();
        }
        3 => {
            let record = EntryRecord {
                phase: EntryPhase::Verified(placed),
                part: Some(part(ino)),
                digest: Some([9; 32]),
                proof: Some(ProofClass::Transfer),
                ..EntryRecord::absent(path, version(ino))
            };
            catalog.record_intents(&[record]).unwrap();
        }
        4 => {
            let file = (step - 1) % 5;
            let ino = 2 + file + (step - 1) / 40 * 10;
            let path = self::path(file);
            let end = if step.is_multiple_of(3) { IntentEnd::Back } else { IntentEnd::Published };
            catalog.end_intents(&[(&path, ino, end)]).unwrap();
            return false;
        }
        5 => catalog.clear_blocks(&path, ino, std::slice::from_ref(&(0..3000))).unwrap(),
        6 => {
            let found = catalog.unfinished().unwrap();
            catalog.record_recovered(&found).unwrap();
            return !found.is_empty();
        }
        _ => catalog.clear(&path, ino, ino + 1000).unwrap(),
    }
    true
}

/// Opens what a cut left and finds one of the allowed states, all of it.
fn check(bytes: Vec<u8>, trees: &Path, allowed: &[Snapshot], what: &str) -> SimDisk {
    let disk = SimDisk::holding(bytes);
    let catalog = open(&disk, trees).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = snapshot(&catalog);
    assert!(allowed.contains(&found), "{what}: none of {} states: {found:#?}", allowed.len());
    disk
}

#[test]
fn a_cut_at_any_sync_leaves_exactly_what_some_commit_said_and_nothing_acknowledged_is_lost() {
    let seed = [23; 32];
    println!("seed {seed:?}");
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let trees = tempfile::tempdir().unwrap();
    let disk = made(trees.path());
    let catalog = open(&disk, trees.path()).unwrap();
    let mut states = vec![snapshot(&catalog)];
    disk.note(Op::Acked(0));
    for index in 1..=48usize {
        disk.note(Op::Begin(states.len()));
        if step(&catalog, index as u64) {
            disk.note(Op::Acked(states.len()));
        }
        states.push(snapshot(&catalog));
        // Not durable by itself: a cut may lose it, but never half of it, and never the earlier of two.
        disk.note(Op::Begin(states.len()));
        learn(&catalog, index as u64);
        states.push(snapshot(&catalog));
        disk.note(Op::Begin(states.len()));
        catalog.sweep_names(2).unwrap();
        states.push(snapshot(&catalog));
    }
    drop(catalog);
    let syncs = disk.syncs();
    let mut cuts = 0;
    for window in 0..=syncs {
        for round in 0..4 {
            let (bytes, acked, begun) = disk.cut(window, &mut rng);
            let last = begun.unwrap_or(0);
            let allowed = &states[acked.unwrap_or(0)..=last];
            let what = format!("cut {window}.{round} of {syncs}, steps {acked:?} to {last}");
            let recovering = check(bytes, trees.path(), allowed, &what);
            cuts += 1;
            // Another cut while that was recovering.
            let inner = recovering.syncs();
            if round == 0 && inner > 0 {
                let at = rng.next_u32() as usize % (inner + 1);
                let (bytes, ..) = recovering.cut(at, &mut rng);
                check(bytes, trees.path(), allowed, &format!("{what}, again at {at} of {inner}"));
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts at {syncs} syncs");
}

#[test]
fn a_number_that_was_handed_out_never_comes_again_after_a_cut() {
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]);
    let trees = tempfile::tempdir().unwrap();
    let disk = made(trees.path());
    let catalog = open(&disk, trees.path()).unwrap();
    let mut ends = Vec::new();
    for index in 0..6usize {
        ends.push(catalog.reserve_chunk_ids(1000).unwrap().end);
        disk.note(Op::Acked(index));
    }
    drop(catalog);
    for window in 0..=disk.syncs() {
        let (bytes, acked, _) = disk.cut(window, &mut rng);
        let catalog = open(&SimDisk::holding(bytes), trees.path()).unwrap();
        let next = catalog.reserve_chunk_ids(1).unwrap().start;
        assert!(acked.is_none_or(|step| next >= ends[step]), "cut {window}: {next}");
    }
}

/// Fails once, at one write, as a disk does.
#[derive(Debug, Clone)]
struct FailingDisk {
    disk: SimDisk,
    countdown: Arc<Mutex<i64>>,
}

impl FailingDisk {
    fn tick(&self) -> io::Result<()> {
        let mut countdown = self.countdown.lock().unwrap();
        *countdown -= 1;
        if *countdown == 0 { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.tick()?;
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.tick()?;
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.tick()?;
        self.disk.write(offset, data)
    }
}

#[test]
fn after_an_error_of_the_disk_the_catalog_is_opened_again() {
    let trees = tempfile::tempdir().unwrap();
    for failing in 1..40 {
        let countdown = Arc::new(Mutex::new(-1));
        let backend = FailingDisk { disk: SimDisk::default(), countdown: Arc::clone(&countdown) };
        let opener: Opener = Box::new(move |builder| builder.create_with_backend(backend.clone()));
        let directory = File::open(trees.path()).unwrap().into();
        let catalog =
            Catalog::from_parts(opener, Path::new("sim"), Ballast::new(None), directory).unwrap();
        let first = catalog.reserve_inos(7).unwrap();
        *countdown.lock().unwrap() = failing;
        let failed = catalog.know(&[(path(1), version(2))]);
        *countdown.lock().unwrap() = -1;
        // The next call works in any case, and nothing that was said before is lost.
        catalog.know(&[(path(2), version(3))]).unwrap();
        assert_eq!(catalog.reserve_inos(1).unwrap().start, first.end);
        assert!(catalog.entry(&path(2)).unwrap().is_some());
        assert!(failed.is_err() || catalog.entry(&path(1)).unwrap().is_some());
    }
}
