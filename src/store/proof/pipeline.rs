//! Files pass through: one thread shows them, some read and hash pieces of them, the caller's thread puts the pieces together.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};

use crate::core::hashes::BlockHash;
use crate::error::{Error, Kind, Result};
use crate::store::Destination;
use crate::store::catalog::{EntryPhase, EntryRecord};
use crate::store::destination::Disk;

use super::target::{Opener, SEGMENT, Sum, Target};
use super::{Flaw, Found, Observer, ProofOptions, Proven};

/// Pieces of work and results that wait.
const WAITING: usize = 256;
/// The least urgent (setpriority(2)).
const NICEST: i32 = 19;

/// A piece of work.
enum Task {
    /// All of a small file.
    Small { record: EntryRecord, is_link: bool },
    /// A segment of a large one.
    Segment { target: Arc<Target>, number: u64, index: u64 },
    /// A file that could not be opened.
    Flawed { record: EntryRecord, flaw: Flaw },
}

/// What came of one.
enum Done {
    File(Box<(EntryRecord, Option<Flaw>)>),
    Segment { target: Arc<Target>, number: u64, index: u64, sum: Result<Sum> },
}

/// A large file some segments of which are done.
struct Pending {
    values: Vec<Option<BlockHash>>,
    suspects: Vec<u64>,
    failed: Option<Error>,
    left: u64,
}

impl Destination {
    /// All published files, and copies of them under names that should have been hard links.
    pub(super) fn prove_files(
        &self,
        options: ProofOptions,
        proven: &mut Proven,
        observer: &mut Observer<'_>,
    ) -> Result<ControlFlow<()>> {
        let (give, tasks) = channel::bounded(WAITING);
        let (finish, results) = channel::bounded(WAITING);
        thread::scope(|scope| {
            let disk = &*self.disk;
            let named = |name: &str| thread::Builder::new().name(name.to_owned());
            let no_thread = |error| Error::io("start thread", error).kinded(Kind::Limit);
            for _ in 0..options.threads.max(1) {
                let (tasks, finish) = (tasks.clone(), finish.clone());
                let work = move || work(disk, options, &tasks, &finish);
                named("proof").spawn_scoped(scope, work).map_err(no_thread)?;
            }
            // Who works ends when nobody gives or takes any more.
            drop((tasks, finish));
            let show = move || self.show_all(&give);
            let showing = named("proof-show").spawn_scoped(scope, show).map_err(no_thread)?;
            let flow = collect(disk, results, proven, observer);
            let shown = showing.join().unwrap_or_else(|_panicked| {
                Err(Error::new(Kind::Io, "prove files").because("a thread panicked"))
            });
            if flow.is_continue() {
                shown?;
            }
            Ok(flow)
        })
    }

    fn show_all(&self, give: &Sender<Task>) -> Result<()> {
        let mut shower = Shower { disk: &self.disk, give, opener: Opener::default(), number: 0 };
        self.disk.catalog.entries(|record| match record.phase {
            EntryPhase::Published(_) => shower.show(record, false),
            _ => Ok(()),
        })?;
        self.copies_of_links(|record| shower.show(record, true))
    }
}

struct Shower<'a> {
    disk: &'a Disk,
    give: &'a Sender<Task>,
    opener: Opener,
    number: u64,
}

impl Shower<'_> {
    fn show(&mut self, record: EntryRecord, is_link: bool) -> Result<()> {
        let size = record.version.fingerprint.size;
        if size <= SEGMENT {
            return self.give(Task::Small { record, is_link });
        }
        let target = match self.opener.open(self.disk, record, is_link) {
            Ok(target) => Arc::new(target),
            Err(flawed) => {
                let (record, flaw) = *flawed;
                return self.give(Task::Flawed { record, flaw });
            }
        };
        self.number += 1;
        (0..Target::segments(size)).try_for_each(|index| {
            self.give(Task::Segment { target: Arc::clone(&target), number: self.number, index })
        })
    }

    fn give(&self, task: Task) -> Result<()> {
        let ended = |_closed| Error::new(Kind::Io, "prove files").because("it was ended");
        self.give.send(task).map_err(ended)
    }
}

/// One thread's life.
fn work(disk: &Disk, options: ProofOptions, tasks: &Receiver<Task>, finish: &Sender<Done>) {
    if options.is_background {
        // Of this thread alone, as Linux has it.
        let _nicer = rustix::process::setpriority_process(None, NICEST);
    }
    let (mut opener, mut buffer) = (Opener::default(), Vec::new());
    for task in tasks {
        let done = match task {
            Task::Small { record, is_link } => {
                let (record, flaw) = prove_small(disk, record, is_link, &mut opener, &mut buffer);
                Done::File(Box::new((record, flaw)))
            }
            Task::Segment { target, number, index } => {
                let sum = target.sum(disk, index, &mut buffer);
                Done::Segment { target, number, index, sum }
            }
            Task::Flawed { record, flaw } => Done::File(Box::new((record, Some(flaw)))),
        };
        if finish.send(done).is_err() {
            return;
        }
    }
}

fn prove_small(
    disk: &Disk,
    record: EntryRecord,
    is_link: bool,
    opener: &mut Opener,
    buffer: &mut Vec<u8>,
) -> (EntryRecord, Option<Flaw>) {
    let target = match opener.open(disk, record, is_link) {
        Ok(target) => target,
        Err(flawed) => {
            let (record, flaw) = *flawed;
            return (record, Some(flaw));
        }
    };
    let flaw = match target.sum(disk, 0, buffer) {
        Ok(Sum { value, suspects }) => target.judge(disk, &[value], suspects),
        Err(error) => Some(Flaw::Unreadable(error)),
    };
    (target.record, flaw)
}

/// Puts pieces together and tells what came of each file.
fn collect(
    disk: &Disk,
    results: Receiver<Done>,
    proven: &mut Proven,
    observer: &mut Observer<'_>,
) -> ControlFlow<()> {
    let mut pending: HashMap<u64, Pending> = HashMap::new();
    for done in results {
        let ended = match done {
            Done::File(file) => {
                let (record, flaw) = *file;
                proven.bytes += record.version.fingerprint.size;
                Some((record, flaw))
            }
            Done::Segment { target, number, index, sum } => {
                proven.bytes += target.segment(index).len();
                let segments = Target::segments(target.record.version.fingerprint.size);
                let file = pending.entry(number).or_insert_with(|| Pending::new(segments));
                file.take(index, sum);
                if file.left > 0 {
                    None
                } else {
                    let flaw = pending.remove(&number).and_then(|file| file.judge(disk, &target));
                    Some((target.record.clone(), flaw))
                }
            }
        };
        let found = ended.and_then(|(record, flaw)| tell(disk, proven, record, flaw));
        observer(proven, found)?;
    }
    ControlFlow::Continue(())
}

fn tell(
    disk: &Disk,
    proven: &mut Proven,
    record: EntryRecord,
    flaw: Option<Flaw>,
) -> Option<Found> {
    proven.files += 1;
    let Some(flaw) = flaw else {
        proven.count(record.proof);
        return None;
    };
    if !Target::is_current(disk, &record) {
        return None; // another version took its place while it was read
    }
    proven.flaws += 1;
    Some(Found { path: record.path.clone(), record: Some(record), is_part: false, flaw })
}

impl Pending {
    fn new(segments: u64) -> Self {
        let count = usize::try_from(segments).unwrap_or(usize::MAX);
        Self { values: vec![None; count], suspects: Vec::new(), failed: None, left: segments }
    }

    fn take(&mut self, index: u64, sum: Result<Sum>) {
        self.left -= 1;
        match sum {
            Ok(sum) => {
                if let Some(value) =
                    usize::try_from(index).ok().and_then(|at| self.values.get_mut(at))
                {
                    *value = sum.value;
                }
                self.suspects.extend(sum.suspects);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn judge(mut self, disk: &Disk, target: &Target) -> Option<Flaw> {
        if let Some(error) = self.failed {
            return Some(Flaw::Unreadable(error));
        }
        self.suspects.sort_unstable();
        target.judge(disk, &self.values, self.suspects)
    }
}
