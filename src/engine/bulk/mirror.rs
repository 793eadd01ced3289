//! What comes beside the bytes: renames before them; links, deletions and directories after them.

use std::collections::BTreeSet;

use crate::core::attributes::{Attributes, EntryKind, SETTLE_TIME};
use crate::core::path::RelPath;
use crate::engine::bulk::gone::{Gone, count_removed, in_order, refuse_too_many, remove};
use crate::engine::bulk::land::{Landed, Publisher};
use crate::engine::bulk::plan::{Batch, FileJob, LinkJob, Move, Place, Plan};
use crate::engine::bulk::{Bulk, LOOK, TRIES};
use crate::error::{Error, Kind, Result};
use crate::store::bulk::{Content, Ready};
use crate::store::catalog::{NameChange, NameRecord, OtherRecord, Packed};
use crate::store::{Metadata, Replace};
use crate::sync::Ordering;

/// Said at once to the publisher.
const BATCH: usize = 4096;

impl Bulk {
    /// Refuses more deletions than are allowed, before any is done.
    pub(super) fn check_deletions(&self, plan: &Plan) -> Result<()> {
        match self.settings.delete {
            Some(most) if !self.is_blind() && !self.settings.is_dry => {
                refuse_too_many(plan.gone.len(), most)
            }
            _ => Ok(()),
        }
    }

    /// What was gone is not known where something could not be listed.
    pub(super) fn is_blind(&self) -> bool {
        self.is_blind.load(Ordering::Relaxed) || self.is_over()
    }

    /// Counts what a dry run found.
    pub(super) fn count_plan(&self, plan: &Plan) {
        for file in plan.batches.iter().flat_map(|batch| &batch.files) {
            match file.attributes.kind {
                EntryKind::File => {
                    self.counts.copied.increment();
                    self.counts.copied_bytes.add(file.attributes.size);
                }
                _ => self.counts.specials.increment(),
            }
        }
        self.counts.renamed.add(plan.moves.len() as u64);
        self.counts.linked.add(plan.links.len() as u64);
        let gone = match self.settings.delete {
            Some(_) if !self.is_blind() => &self.counts.deleted,
            _ => &self.counts.gone,
        };
        gone.add(plan.gone.len() as u64);
    }

    /// Files that have another name at the source get it in DIR too; no byte travels.
    pub(super) fn move_files(&self, publisher: &mut Publisher<'_>, plan: &mut Plan) -> Result<()> {
        let moves = std::mem::take(&mut plan.moves);
        if moves.is_empty() {
            return Ok(());
        }
        self.ensure_begun()?;
        for one in moves {
            let Move { record, path, parent, attributes } = one;
            for touched in [record.path.parent(), path.parent()] {
                plan.finish.extend(touched);
            }
            let (name, ino) = (path.name().to_owned(), record.version.ino);
            let renewed = self.renew_moved(&record.path, &path, &attributes);
            if let Err(error) = renewed {
                // Somebody took it away or changed it: it is carried like any other.
                tracing::debug!(%path, %error, "not renamed");
            }
            let put = NameChange::Put {
                parent,
                name,
                record: NameRecord {
                    attributes: Some(Packed::new(&attributes)),
                    ..NameRecord::listed(ino, EntryKind::File, 0)
                },
            };
            let content = Content::Moved { record: Box::new(record) };
            let ready = Ready { path, content, replace: Replace::Never };
            publisher.take(Landed { ready: vec![ready], names: vec![put], ..Landed::default() });
        }
        publisher.finish()
    }

    fn renew_moved(&self, from: &RelPath, path: &RelPath, attributes: &Attributes) -> Result<()> {
        let parent = path.parent().unwrap_or_else(RelPath::root);
        let Some(directory) = self.tree.open_directory(&parent)? else { return Ok(()) };
        let xattrs = directory.xattrs_of(path.name())?;
        let metadata = Metadata { attributes: attributes.clone(), xattrs };
        self.engine.destination.renew_metadata(from, &metadata).map(drop)
    }

    /// Waits until what changed a moment ago can be told from what changes next.
    pub(super) fn rest(&self, batches: &[Batch]) {
        tracing::debug!(batches = batches.len(), "young files rest");
        let until = std::time::Instant::now() + SETTLE_TIME;
        while std::time::Instant::now() < until && !self.is_over() {
            std::thread::sleep(LOOK);
        }
    }

    /// The same files as they are now. What does not rest is left to the engine.
    pub(super) fn look_again(
        &self,
        publisher: &mut Publisher<'_>,
        plan: &mut Plan,
        batch: Batch,
        tries: u32,
    ) -> Option<Batch> {
        let path = batch.directory.path().clone();
        let opened = self.tree.open_directory(&path);
        let directory = match opened {
            Ok(directory) => directory?,
            Err(error) => {
                self.failed(&path, &error);
                return None;
            }
        };
        let mut files = Vec::with_capacity(batch.files.len());
        for file in batch.files {
            let Ok(path) = path.child(&file.name) else { continue };
            match directory.look_at(&file.name) {
                Err(error) => self.failed(&path, &error),
                Ok((attributes, _))
                    if attributes.kind != file.attributes.kind || tries >= TRIES =>
                {
                    plan.left.push(path);
                }
                Ok((attributes, origin)) => {
                    let is_same = attributes.fingerprint == file.attributes.fingerprint;
                    let ino = if is_same { file.ino } else { self.engine.tree.inos.next() };
                    publisher.take(Landed::names(vec![NameChange::Put {
                        parent: batch.ino,
                        name: file.name.clone(),
                        record: NameRecord {
                            attributes: Some(Packed::new(&attributes)),
                            ..NameRecord::listed(ino, attributes.kind, 0)
                        },
                    }]));
                    files.push(FileJob { attributes, origin, ino, ..file });
                }
            }
        }
        let directory = Place::Path(path);
        (!files.is_empty()).then_some(Batch { directory, ino: batch.ino, files })
    }

    /// Links, deletions, and the directories' own metadata, in this order.
    pub(super) fn mirror(&self, publisher: &mut Publisher<'_>, plan: &mut Plan) -> Result<()> {
        if !self.is_over() {
            let links = std::mem::take(&mut plan.links);
            let links = leave_links(links, &mut plan.left);
            self.make_links(publisher, links)?;
        }
        let gone = std::mem::take(&mut plan.gone);
        if self.settings.delete.is_none() || self.is_blind() {
            self.counts.gone.add(gone.len() as u64);
            if self.settings.delete.is_some() && !gone.is_empty() {
                tracing::warn!(
                    gone = gone.len(),
                    "nothing was deleted: not everything of the source could be looked at"
                );
            }
        } else if !gone.is_empty() {
            self.ensure_begun()?;
            self.delete(publisher, gone, &mut plan.finish)?;
        }
        if !self.is_over() {
            self.finish_directories(publisher, &plan.finish)?;
        }
        publisher.finish()
    }

    fn make_links(&self, publisher: &mut Publisher<'_>, links: Vec<LinkJob>) -> Result<()> {
        if links.is_empty() {
            return Ok(());
        }
        self.ensure_begun()?;
        let destination = &self.engine.destination;
        for LinkJob { first, path, replace } in links {
            tracing::debug!(%first, %path, ?replace, "one more name");
            let made = destination.link_later(&first, &path, replace);
            match made {
                Ok(()) => {
                    self.counts.linked.increment();
                    self.engine.stats.errors.succeeded(&path);
                    publisher.take(Landed::other(OtherRecord {
                        path,
                        kind: EntryKind::File,
                        link_of: Some(first),
                        losses: Vec::new(),
                        placed: None,
                    }));
                }
                Err(error) => self.failed(&path, &error.of_destination()),
            }
        }
        publisher.finish()
    }

    /// Only what is of this copy and was not changed since. A directory goes when nothing is left in it.
    fn delete(
        &self,
        publisher: &mut Publisher<'_>,
        gone: Vec<Gone>,
        finish: &mut BTreeSet<RelPath>,
    ) -> Result<()> {
        for (count, one) in in_order(gone).into_iter().enumerate() {
            if self.is_over() {
                break;
            }
            let path = one.path();
            finish.extend(path.parent());
            if matches!(one, Gone::Directory(_)) {
                finish.remove(path);
            }
            match remove(&self.engine.destination, &one) {
                Ok(removed) if count_removed(&self.counts, path, removed) => {
                    publisher.forget(path.clone());
                }
                Ok(_) => {}
                Err(error) => self.failed(path, &error),
            }
            if count % BATCH == BATCH - 1 {
                publisher.finish()?;
            }
        }
        publisher.finish()
    }

    /// Deepest first. The root is finished last, by itself.
    fn finish_directories(
        &self,
        publisher: &mut Publisher<'_>,
        finish: &BTreeSet<RelPath>,
    ) -> Result<()> {
        for path in finish.iter().rev().filter(|path| !path.is_root()) {
            if self.is_over() {
                return Ok(());
            }
            self.ensure_begun()?;
            tracing::debug!(%path, "directory gets its metadata");
            match self.finish_directory(path) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    let losses = u64::try_from(record.losses.len()).unwrap_or(0);
                    self.engine.stats.metadata_lost.add(losses);
                    publisher.take(Landed::other(record));
                }
                Err(error) => self.failed(path, &error),
            }
        }
        Ok(())
    }

    /// `None` if the source does not have it any more.
    fn finish_directory(&self, path: &RelPath) -> Result<Option<OtherRecord>> {
        let destination = &self.engine.destination;
        let metadata = match self.tree.open_directory(path) {
            Ok(Some(directory)) => {
                Metadata { attributes: directory.attributes()?, xattrs: directory.xattrs()? }
            }
            // A mount point that is left out.
            Ok(None) => return Ok(None),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Invalid) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let losses = destination.finish_directory_later(path, &metadata);
        let losses = losses.map_err(Error::of_destination)?;
        let (path, kind) = (path.clone(), EntryKind::Directory);
        Ok(Some(OtherRecord { path, kind, link_of: None, losses, placed: None }))
    }
}

/// The links whose first name is here; those of a file that is left to the engine are left with it.
fn leave_links(links: Vec<LinkJob>, left: &mut Vec<RelPath>) -> Vec<LinkJob> {
    let firsts: BTreeSet<RelPath> = left.iter().cloned().collect();
    let (leave, make): (Vec<_>, Vec<_>) =
        links.into_iter().partition(|link| firsts.contains(&link.first));
    left.extend(leave.into_iter().map(|link| link.path));
    make
}
