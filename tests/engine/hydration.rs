//! Laws of the background copy: who works where, and what pause, drain and stop leave behind.

use std::path::Path;
use std::sync::Arc;

use lazycopy::core::filter::Filter;
use lazycopy::engine::Engine;
use lazycopy::engine::hydrate::Hydration;
use lazycopy::engine::settings::{EngineSettings, HydrateSettings, Lanes, Order};
use lazycopy::engine::switch::SwitchState;
use lazycopy::store::{Destination, DestinationOptions};
use tokio::task::JoinHandle;

use super::forest::{Forest, Log, byte_at, eventually};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// How often a law that threads could break is tried; `ITERATIONS=100` for a long look.
fn repeats() -> usize {
    std::env::var("ITERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// A copy of a forest.
struct Copy {
    engine: Arc<Engine>,
    log: Arc<Log>,
    directory: tempfile::TempDir,
}

fn files(names: impl IntoIterator<Item = &'static str>, size: u64) -> Vec<(String, u64)> {
    names.into_iter().map(|name| (name.to_owned(), size)).collect()
}

fn numbered(prefix: &str, count: usize, size: u64) -> Vec<(String, u64)> {
    (0..count).map(|n| (format!("{prefix}{n:04}"), size)).collect()
}

fn jobs(max_jobs: usize) -> HydrateSettings {
    HydrateSettings { max_jobs: Some(max_jobs), ..HydrateSettings::default() }
}

async fn open_at(directory: &Path, forest: Forest, hydrate: HydrateSettings) -> Arc<Engine> {
    let settings = EngineSettings { reserve: Some(0), hydrate, ..EngineSettings::default() };
    let path = directory.to_owned();
    let destination = eventually("the lock of an earlier life is gone", || {
        Destination::open(&path, DestinationOptions::default()).ok()
    })
    .await;
    Engine::open(Arc::new(forest), Arc::new(destination), settings).await.unwrap().0
}

impl Copy {
    async fn new(forest: Forest, hydrate: HydrateSettings) -> Self {
        let (log, directory) = (forest.log(), tempfile::tempdir().unwrap());
        let engine = open_at(directory.path(), forest, hydrate).await;
        Self { engine, log, directory }
    }

    /// Begins to copy everything; gives the number of failures, and whether it was cut.
    fn start(&self) -> JoinHandle<(u64, bool)> {
        let engine = Arc::clone(&self.engine);
        tokio::spawn(async move {
            let mut hydration = Hydration::new(&engine);
            let failures = hydration.copy_tree().await.unwrap();
            (failures, hydration.is_cut())
        })
    }

    async fn until_running(&self, count: usize) {
        eventually("so many reads run", || (self.log.running() == count).then_some(())).await;
    }

    async fn until_published(&self, count: u64) {
        let published = || self.engine.stats().files_published();
        eventually("so many files are published", || (published() == count).then_some(())).await;
    }

    fn is_right(&self, name: &str, size: u64) {
        let bytes = std::fs::read(self.directory.path().join(name)).unwrap();
        assert_eq!(bytes.len() as u64, size, "{name}");
        assert!(
            (0..size).zip(&bytes).all(|(at, byte)| byte_at(at) == *byte),
            "{name}: wrong bytes"
        );
    }
}

// O10: 10 queued with a limit of 4 -> 4 active, 6 waiting; while paused nothing starts, and what has ended is reaped.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_starts_nothing_and_reaps_what_ends() {
    for _ in 0..repeats() {
        let copy = Copy::new(Forest::new(16, numbered("f", 10, 100 * KIB)), jobs(4)).await;
        let run = copy.start();
        copy.until_running(4).await;
        let lanes = copy.engine.busy_lanes();
        assert_eq!((lanes.len(), lanes[0].workers, lanes[0].path.is_root()), (1, 4, true));
        assert_eq!((copy.engine.active_chunks().len(), copy.log.begun().len()), (4, 4));
        copy.engine.switch().pause().await.unwrap();
        copy.log.pieces.add_permits(4);
        copy.until_published(4).await;
        assert_eq!((copy.log.begun().len(), copy.engine.active_chunks().len()), (4, 0));
        copy.log.open();
        copy.engine.switch().resume().await.unwrap();
        assert_eq!(run.await.unwrap(), (0, false));
        assert_eq!(copy.engine.stats().files_published(), 10);
        assert_eq!(copy.engine.stats().bytes_fetched.get(), 10 * 100 * KIB);
        assert_eq!(copy.engine.tally().bytes_local, copy.engine.tally().bytes);
        assert_eq!(copy.engine.stats().chunks_begun.get(), copy.engine.stats().chunks_done.get());
        assert!(copy.engine.busy_lanes().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_file_goes_on_in_the_middle() {
    let copy = Copy::new(Forest::new(2, files(["large"], 40 * MIB)), jobs(4)).await;
    let run = copy.start();
    copy.until_running(1).await;
    copy.engine.switch().pause().await.unwrap();
    copy.log.open();
    copy.until_running(0).await;
    eventually("the chunk is reaped", || copy.engine.active_chunks().is_empty().then_some(()))
        .await;
    let landed = copy.engine.stats().bytes_fetched.get();
    assert!(landed > 0 && landed < 40 * MIB, "{landed}");
    assert!(!run.is_finished());
    copy.engine.switch().resume().await.unwrap();
    assert_eq!(run.await.unwrap(), (0, false));
    assert_eq!(copy.engine.stats().bytes_fetched.get(), 40 * MIB);
    copy.is_right("large", 40 * MIB);
}

// O4: "graceful stop" killed the workers and saved nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_what_runs_and_loses_no_whole_block() {
    for _ in 0..repeats() {
        let names = ["a", "b", "c", "d"];
        let copy = Copy::new(Forest::new(16, files(names, MIB)), jobs(2)).await;
        let run = copy.start();
        copy.until_running(2).await;
        copy.log.pieces.add_permits(5);
        let local = || copy.engine.tally().bytes_local;
        eventually("five blocks landed", || (local() == 5 * 128 * KIB).then_some(())).await;
        copy.engine.switch().stop().await.unwrap();
        assert_eq!(run.await.unwrap(), (0, true));
        copy.until_running(0).await;
        eventually("no chunk runs", || copy.engine.active_chunks().is_empty().then_some(())).await;
        assert!(copy.engine.busy_lanes().is_empty());
        assert_eq!(local(), 5 * 128 * KIB);
        copy.log.open();
        copy.engine.switch().resume().await.unwrap();
        assert_eq!(copy.start().await.unwrap(), (0, false));
        names.iter().for_each(|name| copy.is_right(name, MIB));
        assert_eq!(copy.engine.stats().bytes_fetched.get(), 4 * MIB, "a byte came twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_the_chunk_that_a_reader_waits_for() {
    let copy = Copy::new(Forest::new(4, files(["a"], 256 * KIB)), jobs(2)).await;
    let run = copy.start();
    copy.until_running(1).await;
    let node = copy.engine.lookup(1, "a".as_ref()).await.unwrap();
    let file = Arc::clone(node.file().unwrap());
    let (engine, wanted) = (Arc::clone(&copy.engine), Arc::clone(&file));
    let reader = tokio::spawn(async move { engine.read(&wanted, 200 * KIB, 1000).await });
    let joined = || file.claims.running()[0].priority().as_str() == "demand";
    eventually("the reader has joined", || joined().then_some(())).await;
    copy.engine.switch().stop().await.unwrap();
    assert_eq!(run.await.unwrap(), (0, true));
    assert_eq!(copy.log.running(), 1);
    copy.log.open();
    assert_eq!(reader.await.unwrap().unwrap().len(), 1000);
    assert_eq!(copy.log.begun().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_runs_and_begins_nothing() {
    let copy = Copy::new(Forest::new(16, numbered("f", 10, 100 * KIB)), jobs(4)).await;
    let run = copy.start();
    copy.until_running(4).await;
    copy.engine.switch().drain().await.unwrap();
    assert_eq!(copy.engine.switch().state(), SwitchState::Draining);
    copy.log.open();
    assert_eq!(run.await.unwrap(), (0, true));
    assert_eq!((copy.log.begun().len(), copy.engine.stats().files_published()), (4, 4));
    copy.engine.switch().resume().await.unwrap();
    assert_eq!(copy.start().await.unwrap(), (0, false));
    assert_eq!(copy.log.begun().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ordered_holds_in_the_next_life() {
    let directory = tempfile::tempdir().unwrap();
    let forest = || Forest::new(4, files(["a"], 100));
    let engine = open_at(directory.path(), forest(), jobs(2)).await;
    assert_eq!(engine.switch().state(), SwitchState::Running);
    for (ordered, held) in [
        (SwitchState::Paused, SwitchState::Paused),
        (SwitchState::Stopped, SwitchState::Stopped),
        (SwitchState::Draining, SwitchState::Stopped),
        (SwitchState::Running, SwitchState::Running),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let engine = open_at(directory.path(), forest(), jobs(2)).await;
        let switch = engine.switch();
        match ordered {
            SwitchState::Paused => switch.pause().await.unwrap(),
            SwitchState::Stopped => switch.stop().await.unwrap(),
            SwitchState::Draining => switch.drain().await.unwrap(),
            SwitchState::Running => {
                switch.stop().await.unwrap();
                switch.resume().await.unwrap();
            }
        }
        drop(engine);
        let forest = forest();
        let log = forest.log();
        log.open();
        let engine = open_at(directory.path(), forest, jobs(2)).await;
        assert_eq!(engine.switch().state(), held);
        let copy = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { Hydration::new(&engine).copy_tree().await.unwrap() }
        });
        if held == SwitchState::Paused {
            assert!(log.begun().is_empty());
            engine.switch().resume().await.unwrap();
        }
        copy.await.unwrap();
        assert_eq!(log.begun().len(), usize::from(held != SwitchState::Stopped));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_spread_over_directories_before_two_meet() {
    let tree = ["a", "b", "c", "d"].into_iter().flat_map(|d| numbered(&format!("{d}/"), 6, KIB));
    let copy = Copy::new(Forest::new(32, tree), jobs(6)).await;
    let run = copy.start();
    copy.until_running(6).await;
    let mut workers: Vec<_> = copy.engine.busy_lanes().iter().map(|lane| lane.workers).collect();
    workers.sort_unstable();
    assert_eq!(workers.iter().sum::<usize>(), 6);
    assert!(copy.log.most_in_one() <= 6);
    copy.log.open();
    assert_eq!(run.await.unwrap(), (0, false));
}

// C1: many threads in one source directory.
#[tokio::test(flavor = "multi_thread")]
async fn one_worker_per_directory_means_never_two() {
    let tree = ["a", "b", "c"].into_iter().flat_map(|d| numbered(&format!("{d}/"), 30, KIB));
    let hydrate = HydrateSettings { lanes: Lanes::Directory, ..jobs(16) };
    let copy = Copy::new(Forest::new(32, tree), hydrate).await;
    let run = copy.start();
    copy.until_running(3).await;
    assert_eq!(copy.engine.busy_lanes().iter().map(|lane| lane.workers).max(), Some(1));
    assert_eq!(copy.engine.busy_lanes().len(), 3);
    copy.log.open();
    assert_eq!(run.await.unwrap(), (0, false));
    assert_eq!((copy.log.most_in_one(), copy.log.begun().len()), (1, 90));
}

async fn order_of(hydrate: HydrateSettings, sizes: &[(&str, u64)]) -> Vec<String> {
    let tree = sizes.iter().map(|(name, size)| ((*name).to_owned(), *size));
    let copy = Copy::new(Forest::new(8, tree), hydrate).await;
    copy.log.open();
    assert_eq!(copy.start().await.unwrap(), (0, false));
    copy.log.begun()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_is_that_which_was_asked_for() {
    let sizes = [("a", 300), ("b", 100), ("c", 400), ("d.idx", 500), ("e", 200)];
    let with = |order| HydrateSettings { order, ..jobs(1) };
    assert_eq!(order_of(with(Order::Listing), &sizes).await, ["a", "b", "c", "d.idx", "e"]);
    assert_eq!(order_of(with(Order::SmallFirst), &sizes).await, ["b", "e", "a", "c", "d.idx"]);
    assert_eq!(order_of(with(Order::LargeFirst), &sizes).await, ["d.idx", "c", "a", "e", "b"]);
    let filter = Filter::new(&[], &[], &["*.idx".to_owned()]).unwrap();
    let first = HydrateSettings { filter: filter.clone(), ..jobs(1) };
    assert_eq!(order_of(first, &sizes).await, ["d.idx", "a", "b", "c", "e"]);
    let both = HydrateSettings { filter, ..with(Order::SmallFirst) };
    assert_eq!(order_of(both, &sizes).await, ["d.idx", "b", "e", "a", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_is_shown_and_readable_and_not_walked() {
    let names = ["a.o", "a.c", "out/x/y", "sub/b.o", "sub/c", ".snapshot/x", "sub/.nfs01"];
    let filter = Filter::new(&[], &["*.o".to_owned(), "/out".to_owned()], &[]).unwrap();
    let hydrate = HydrateSettings { filter, ..jobs(4) };
    let copy = Copy::new(Forest::new(8, files(names, 1000)), hydrate).await;
    copy.log.open();
    assert_eq!(copy.start().await.unwrap(), (0, false));
    let mut begun = copy.log.begun();
    begun.sort();
    assert_eq!(begun, ["a.c", "sub/c"]);
    let mut listed = copy.log.listed();
    listed.sort();
    assert_eq!(listed, ["", "sub"]);
    assert_eq!(copy.engine.stats().files_skipped.get(), 5);
    let tally = copy.engine.tally();
    assert_eq!((tally.bytes_local, tally.bytes_wanted, tally.bytes), (2000, 2000, 5000));
    assert!(!copy.directory.path().join("out").exists());
    let out = lazycopy_path("out/x/y");
    let node = copy.engine.lookup_path(&out).await.unwrap();
    assert_eq!(copy.engine.read(node.file().unwrap(), 0, 1000).await.unwrap().len(), 1000);
}

fn lazycopy_path(path: &str) -> lazycopy::core::path::RelPath {
    let root = lazycopy::core::path::RelPath::root();
    path.split('/').fold(root, |at, name| at.child(name.as_ref()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_directories_with_something_included_are_made() {
    let names = ["a/1.jpg", "b/2.png", "c/d/3.jpg", "4.jpg"];
    let filter = Filter::new(&["*.jpg".to_owned()], &[], &[]).unwrap();
    let copy =
        Copy::new(Forest::new(8, files(names, 10)), HydrateSettings { filter, ..jobs(4) }).await;
    copy.log.open();
    assert_eq!(copy.start().await.unwrap(), (0, false));
    let exists = |name: &str| copy.directory.path().join(name).exists();
    assert_eq!(["a/1.jpg", "c/d/3.jpg", "4.jpg", "b"].map(exists), [true, true, true, false]);
    assert_eq!(copy.engine.stats().files_skipped.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn copying_starts_before_the_walk_ends() {
    let copy = Copy::new(Forest::new(8, files(["a/1", "b", "z/2"], 10)), jobs(4)).await;
    copy.log.slow.lock().unwrap().insert("z".to_owned());
    copy.log.pieces.add_permits(100);
    let run = copy.start();
    copy.until_published(2).await;
    assert!(!copy.engine.tally().is_scanned);
    copy.log.listings.add_permits(1);
    assert_eq!(run.await.unwrap(), (0, false));
    let tally = copy.engine.tally();
    assert!(tally.is_scanned);
    assert_eq!((tally.files, tally.files_published, tally.bytes), (3, 3, 30));
}

// O12: more than 20 directory levels threw.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_500_levels_is_copied() {
    let deep = format!("{}x", "d/".repeat(500));
    let copy = Copy::new(Forest::new(8, [(deep.clone(), 10)]), jobs(4)).await;
    copy.log.open();
    assert_eq!(copy.start().await.unwrap(), (0, false));
    assert_eq!((copy.log.listed().len(), copy.log.begun()), (501, vec![deep]));
}

#[tokio::test(flavor = "multi_thread")]
async fn demand_overtakes_all_that_waits() {
    let mut tree = numbered("background/", 200, 256 * KIB);
    tree.push(("wanted".to_owned(), MIB));
    let filter = Filter::new(&[], &["wanted".to_owned()], &[]).unwrap();
    let copy = Copy::new(Forest::new(8, tree), HydrateSettings { filter, ..jobs(64) }).await;
    let run = copy.start();
    // Half of the connections are for readers alone.
    copy.until_running(4).await;
    let node = copy.engine.lookup(1, "wanted".as_ref()).await.unwrap();
    let file = Arc::clone(node.file().unwrap());
    let mut readers = Vec::new();
    for n in 0..4u64 {
        let before = copy.log.begun().len();
        let (engine, file) = (Arc::clone(&copy.engine), Arc::clone(&file));
        readers.push(tokio::spawn(async move { engine.read(&file, n * 256 * KIB, 4096).await }));
        eventually("it is asked for", || (copy.log.begun().len() > before).then_some(())).await;
        assert_eq!(copy.log.begun()[before], "wanted", "something was begun before it");
    }
    assert_eq!(copy.log.begun().len(), 8);
    copy.log.open();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().len(), 4096);
    }
    assert_eq!(run.await.unwrap(), (0, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_tried_again_at_the_end_and_on_request() {
    let copy = Copy::new(Forest::new(8, files(["a", "d/b", "c"], 10)), jobs(4)).await;
    copy.log.open();
    copy.log.denied.lock().unwrap().insert("d/b".to_owned());
    let mut hydration = Hydration::new(&copy.engine);
    assert_eq!(hydration.copy_tree().await.unwrap(), 1);
    assert_eq!(copy.log.begun().iter().filter(|path| *path == "d/b").count(), 2);
    assert_eq!(copy.engine.stats().entries_failed(), 1);
    copy.log.denied.lock().unwrap().clear();
    assert_eq!(hydration.retry().await.unwrap(), 0);
    assert_eq!(copy.engine.stats().entries_failed(), 0);
    copy.is_right("d/b", 10);
}

// C4: 0-byte and short results under many workers.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_files_in_six_directories_are_right_whatever_the_number_of_workers() {
    for workers in [1, 2, 7, 64] {
        let tree: Vec<_> =
            (0..60u64).map(|n| (format!("d{}/f{n}", n % 6), n % 5 * 100_000)).collect();
        let bytes: u64 = tree.iter().map(|(_, size)| size).sum();
        let copy = Copy::new(Forest::new(16, tree.clone()), jobs(workers)).await;
        copy.log.open();
        assert_eq!(copy.start().await.unwrap(), (0, false));
        tree.iter().for_each(|(name, size)| copy.is_right(name, *size));
        assert_eq!(copy.engine.stats().bytes_fetched.get(), bytes);
        assert_eq!(copy.engine.stats().files_published(), 60);
    }
}
