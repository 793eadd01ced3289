//! Directory by directory: what the source has beside what the catalog and DIR have.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crossbeam::channel::{self, Receiver, Sender};

use crate::core::attributes::{Attributes, EntryKind};
use crate::core::filter::Scope;
use crate::core::path::RelPath;
use crate::engine::ROOT_INO;
use crate::engine::bulk::gone::find_gone;
use crate::engine::bulk::judge::{Decision, Seen};
use crate::engine::bulk::land::Landed;
use crate::engine::bulk::plan::{Batch, FileJob, LinkJob, Place, Plan};
use crate::engine::bulk::{Bulk, send};
use crate::error::Result;
use crate::source::local::tree::{LocalDirectory, LocalEntry, LocalListing};
use crate::store::catalog::{
    EntryRecord, KnownDirectory, NameChange, NameRecord, OtherRecord, Packed,
};
use crate::store::{Existing, RESERVED_NAMES};
use crate::sync::{AtomicU64, Ordering};

/// Files, and their bytes, of one batch.
const BATCH_FILES: usize = 32;
const BATCH_BYTES: u64 = 4 << 20;

/// One directory that is to be looked at.
#[derive(Debug)]
struct Job {
    path: RelPath,
    ino: u64,
    scope: Scope,
    /// Nothing can be known of it or lie there.
    is_new: bool,
}

/// The directories that are still to be looked at.
#[derive(Debug)]
pub(super) struct Queue {
    /// `None` says that there are no more.
    sender: Sender<Option<Job>>,
    receiver: Receiver<Option<Job>>,
    /// Queued or under way. AcqRel: who takes the last one off sees that nobody can add more.
    open: AtomicU64,
}

impl Queue {
    /// With the root in it.
    pub(super) fn new(scope: Scope) -> Self {
        let (sender, receiver) = channel::unbounded();
        let queue = Self { sender, receiver, open: AtomicU64::new(0) };
        queue.push(Job { path: RelPath::root(), ino: ROOT_INO, scope, is_new: false });
        queue
    }

    fn push(&self, job: Job) {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.say(Some(job));
    }

    fn next(&self) -> Option<Job> {
        self.receiver.recv().ok().flatten()
    }

    /// One is done; after the last one everybody learns that there are no more.
    fn done(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.say(None);
        }
    }

    /// Whoever hears that there are no more tells the next.
    fn say(&self, job: Option<Job>) {
        // It has a receiver of its own, and no bound.
        drop(self.sender.send(job));
    }
}

/// One thread's part of a scan.
pub(super) struct Scanner<'a> {
    bulk: &'a Bulk,
    queue: &'a Queue,
    batches: Sender<Batch>,
    landed: Sender<Landed>,
    /// Files are carried later: their directories do not stay open.
    is_plan: bool,
    plan: Plan,
}

/// What was looked up of one directory.
struct Looked {
    directory: Arc<LocalDirectory>,
    ino: u64,
    known: KnownDirectory,
    /// What has each name in DIR.
    here: Vec<Option<Existing>>,
    names: Vec<NameChange>,
    next_position: u64,
    /// It gets its metadata at the end.
    is_touched: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(
        bulk: &'a Bulk,
        queue: &'a Queue,
        batches: Sender<Batch>,
        landed: Sender<Landed>,
        is_plan: bool,
    ) -> Self {
        Self { bulk, queue, batches, landed, is_plan, plan: Plan::default() }
    }

    pub(super) fn run(mut self) -> Plan {
        while let Some(job) = self.queue.next() {
            if !self.bulk.is_over() {
                let scanned = self.scan(&job);
                if let Err(error) = scanned {
                    self.bulk.is_blind.store(true, Ordering::Relaxed);
                    self.bulk.failed(&job.path, &error);
                }
            }
            self.queue.done();
        }
        self.queue.say(None);
        self.plan
    }

    fn scan(&mut self, job: &Job) -> Result<()> {
        let bulk = self.bulk;
        // A mount point that is left out is an empty directory.
        let Some(directory) = bulk.tree.open_directory(&job.path)? else {
            let destination = &bulk.engine.destination;
            if !bulk.settings.is_dry && destination.existing(&job.path)?.is_none() {
                bulk.ensure_begun()?;
                self.plan.finish.insert(job.path.clone());
                destination.make_directory(&job.path)?;
            }
            return Ok(());
        };
        let mut listing = directory.list()?;
        bulk.counts.directories.increment();
        bulk.engine.stats.names_refused.add(listing.refused);
        listing.entries.retain(|entry| !is_reserved(&job.path, entry));
        let mut looked = self.look(job, Arc::new(directory), &listing)?;
        self.find_gone(job, &mut looked, &listing)?;
        let mut files = Vec::new();
        let known = std::mem::take(&mut looked.known);
        let mut recorded = Recorded::new(known);
        let here = std::mem::take(&mut looked.here);
        for (index, entry) in listing.entries.into_iter().enumerate() {
            let here = here.get(index).copied().flatten();
            let path = job.path.child(&entry.name)?;
            let done =
                self.entry((job, &path), &mut looked, &mut recorded, (entry, here), &mut files);
            if let Err(error) = done {
                looked.is_touched = true;
                self.bulk.is_blind.store(true, Ordering::Relaxed);
                self.bulk.failed(&path, &error);
            }
            if is_full(&files) {
                self.send_batch(&looked, &mut files);
            }
        }
        self.send_batch(&looked, &mut files);
        self.end(job, looked);
        Ok(())
    }

    /// What the catalog and DIR have beside `listing`.
    fn look(
        &mut self,
        job: &Job,
        directory: Arc<LocalDirectory>,
        listing: &LocalListing,
    ) -> Result<Looked> {
        let (bulk, destination) = (self.bulk, &self.bulk.engine.destination);
        let mut known = KnownDirectory::default();
        let mut here = None;
        if !job.is_new {
            known = destination.catalog().directory(job.ino, &job.path)?;
            let names = listing.entries.iter().map(|entry| entry.name.as_os_str());
            here = destination.look_at(&job.path, names)?;
        }
        let mut is_touched = true;
        match &here {
            None if bulk.settings.is_dry || job.scope == Scope::Walked => {}
            None => {
                bulk.ensure_begun()?;
                destination.make_directory(&job.path)?;
            }
            Some(_) if job.scope == Scope::Walked => is_touched = false,
            // What was put into it or taken out since shows in its time.
            Some((own, _)) => {
                let source = directory.attributes()?;
                is_touched = source.modified != Some(own.modified)
                    || source.mode.is_some_and(|mode| mode & 0o1777 != own.mode & 0o1777);
            }
        }
        let next_position = known.next_position.unwrap_or(1);
        let here = here.map(|(_, found)| found).unwrap_or_default();
        let (ino, names) = (job.ino, Vec::new());
        Ok(Looked { directory, ino, known, here, names, next_position, is_touched })
    }

    /// What is recorded and not listed.
    fn find_gone(&mut self, job: &Job, looked: &mut Looked, listing: &LocalListing) -> Result<()> {
        let engine = &self.bulk.engine;
        let find = |name: &OsStr| {
            let found = listing.entries.binary_search_by(|entry| entry.name.as_os_str().cmp(name));
            found.ok().map(|index| listing.entries[index].kind)
        };
        let (catalog, filter) = (engine.destination.catalog(), &engine.settings.hydrate.filter);
        self.plan.gone.extend(find_gone((catalog, filter), &job.path, &looked.known, find)?);
        for (name, _) in &looked.known.names {
            if find(name).is_none() {
                let (parent, name) = (job.ino, name.clone());
                looked.names.push(NameChange::Remove { parent, name });
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        (job, path): (&Job, &RelPath),
        looked: &mut Looked,
        recorded: &mut Recorded,
        (entry, here): (LocalEntry, Option<Existing>),
        files: &mut Vec<FileJob>,
    ) -> Result<()> {
        let name = recorded.names.remove(&entry.name);
        let (attributes, origin) = match entry.found {
            Ok(found) => found,
            // It is there, so nothing of it is gone.
            Err(error) => {
                self.bulk.failed(path, &error);
                return Ok(());
            }
        };
        let filter = &self.bulk.engine.settings.hydrate.filter;
        let is_directory = attributes.kind == EntryKind::Directory;
        let scope = filter.below(job.scope, &job.path, &entry.name, is_directory);
        if scope.is_left_out() {
            self.bulk.counts.left_out.increment();
            let ino = name.as_ref().map_or_else(|| self.bulk.engine.tree.inos.next(), |n| n.ino);
            if name.is_none() {
                looked.put(entry.name, NameRecord::listed(ino, attributes.kind, 0), &attributes);
            }
            return Ok(());
        }
        if job.scope == Scope::Walked && scope == Scope::Copied {
            self.make_way(&job.path)?;
        }
        let seen = Seen {
            scope,
            path,
            attributes: &attributes,
            name: name.as_ref(),
            file: recorded.files.remove(&entry.name),
            other: recorded.others.remove(&entry.name),
            here,
            directory: &looked.directory,
        };
        let judged = self.bulk.judge(seen)?;
        let is_same = name.as_ref().is_some_and(|name| judged.is_as_recorded(name, &attributes));
        if !is_same {
            if attributes.kind == EntryKind::Directory {
                self.plan.finish.insert(path.clone());
            }
            let position = name.map_or(0, |name| name.position);
            let target = judged.target.clone();
            let record = NameRecord::listed(judged.ino, attributes.kind, position);
            looked.put(entry.name.clone(), NameRecord { target, ..record }, &attributes);
        }
        match judged.decision {
            Decision::Enter { is_new } => {
                looked.is_touched |= is_new;
                self.queue.push(Job { path: path.clone(), ino: judged.ino, scope, is_new });
            }
            Decision::Nothing => {}
            Decision::Link { first, replace } => {
                looked.is_touched = true;
                self.plan.links.push(LinkJob { first, path: path.clone(), replace });
            }
            Decision::Carry { replace, is_new } => {
                looked.is_touched = true;
                let ino = judged.ino;
                let name = entry.name;
                files.push(FileJob { name, attributes, origin, ino, replace, is_new });
            }
            Decision::Leave => {
                looked.is_touched = true;
                self.plan.left.push(path.clone());
            }
            Decision::Said(other) => {
                send(&self.landed, Landed::other(other));
            }
        }
        Ok(())
    }

    /// Directories that are there only for what is below them are made when that is found.
    fn make_way(&mut self, path: &RelPath) -> Result<()> {
        let mut missing = vec![path.clone()];
        while let Some(parent) = missing.last().and_then(RelPath::parent) {
            missing.push(parent);
        }
        for path in missing.into_iter().rev().filter(|path| !path.is_root()) {
            self.plan.finish.insert(path.clone());
            if !self.bulk.settings.is_dry {
                self.bulk.ensure_begun()?;
                self.bulk.engine.destination.make_directory(&path)?;
            }
        }
        Ok(())
    }

    fn send_batch(&mut self, looked: &Looked, files: &mut Vec<FileJob>) {
        if files.is_empty() {
            return;
        }
        let directory = match self.is_plan {
            true => Place::Path(looked.directory.path().clone()),
            false => Place::Open(Arc::clone(&looked.directory)),
        };
        let batch = Batch { directory, ino: looked.ino, files: std::mem::take(files) };
        // The carriers are gone only when the copy ends.
        drop(self.batches.send(batch));
    }

    fn end(&mut self, job: &Job, mut looked: Looked) {
        if looked.is_touched {
            self.plan.finish.insert(job.path.clone());
        }
        let is_recorded = looked.known.next_position == Some(looked.next_position);
        if self.bulk.settings.is_dry || (looked.names.is_empty() && is_recorded) {
            return;
        }
        let (directory, next_position) = (job.ino, looked.next_position);
        looked.names.push(NameChange::Complete { directory, next_position });
        send(&self.landed, Landed::names(looked.names));
    }
}

impl Looked {
    fn put(&mut self, name: OsString, mut record: NameRecord, attributes: &Attributes) {
        if record.position == 0 {
            record.position = self.take_position();
        }
        record.attributes = Some(Packed::new(attributes));
        self.names.push(NameChange::Put { parent: self.ino, name, record });
    }

    fn take_position(&mut self) -> u64 {
        self.next_position += 1;
        self.next_position - 1
    }
}

/// What is recorded, by name.
#[derive(Default)]
struct Recorded {
    names: HashMap<OsString, NameRecord>,
    files: HashMap<OsString, EntryRecord>,
    others: HashMap<OsString, OtherRecord>,
}

impl Recorded {
    fn new(known: KnownDirectory) -> Self {
        Self {
            names: known.names.into_iter().collect(),
            files: known.files.into_iter().collect(),
            others: known.others.into_iter().collect(),
        }
    }
}

fn is_full(files: &[FileJob]) -> bool {
    files.len() >= BATCH_FILES
        || files.iter().map(|file| file.attributes.size).sum::<u64>() >= BATCH_BYTES
}

/// Names in the root that belong to the destination; the start refuses a source that has them, unless they come later.
fn is_reserved(directory: &RelPath, entry: &LocalEntry) -> bool {
    directory.is_root() && RESERVED_NAMES.iter().any(|name| entry.name == *name)
}
