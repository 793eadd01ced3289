//! A pass over a source on another machine: what it has beside what is recorded, before the bytes; deletions after them. The bytes are
//! the engine's own business, file by file.
//!
//! Everything is listed once: the engine goes on with the same listings. A file that is gone under one name and new under another is
//! known again by a strong checksum that the source tells of both. An ETag is no such thing: it belongs to one URL, and many servers make
//! it of time and size.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use crate::core::attributes::{Attributes, Checksum, EntryKind};
use crate::core::filter::Scope;
use crate::core::path::RelPath;
use crate::engine::bulk::gone::{
    Gone, count_removed, find_gone, in_order, refuse_too_many, remove,
};
use crate::engine::bulk::{BulkSettings, Counts};
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::bulk::Said;
use crate::store::catalog::{EntryPhase, EntryRecord};

/// Directories listed at once, of one level of the tree.
const LISTED_AT_ONCE: usize = 8;
/// New files among which renames are looked for: more of them are no renames, most likely.
const NEWS_MOST: usize = 100_000;
/// Deletions that are recorded at once.
const BATCH: usize = 4096;

/// One pass.
#[derive(Debug)]
pub struct RemotePass {
    engine: Arc<Engine>,
    settings: BulkSettings,
    counts: Arc<Counts>,
    gone: Vec<Gone>,
    news: Vec<News>,
    /// Something could not be looked at: what is missing is not known to be gone, and the copy is not complete.
    unknown: Vec<(RelPath, Error)>,
}

/// A directory that is to be looked at.
struct Visit {
    ino: u64,
    path: RelPath,
    scope: Scope,
}

/// A file that nothing is recorded of.
#[derive(Debug)]
struct News {
    directory: u64,
    name: OsString,
    path: RelPath,
}

/// What one directory holds.
#[derive(Default)]
struct Visited {
    directories: Vec<Visit>,
    gone: Vec<Gone>,
    news: Vec<News>,
    unknown: Vec<(RelPath, Error)>,
}

impl RemotePass {
    /// Nothing is looked at yet.
    pub fn new(engine: &Arc<Engine>, settings: BulkSettings, counts: &Arc<Counts>) -> Self {
        let (engine, counts) = (Arc::clone(engine), Arc::clone(counts));
        let (gone, news, unknown) = (Vec::new(), Vec::new(), Vec::new());
        Self { engine, settings, counts, gone, news, unknown }
    }

    /// Lists everything; a dry run looks at every file too. What could not be listed is in the engine's errors.
    ///
    /// # Errors
    /// If the root cannot be listed; `Limit` if more is gone than may be deleted.
    pub async fn look(&mut self) -> Result<()> {
        let scope = self.engine.settings.hydrate.filter.root();
        let mut level = vec![Visit { ino: ROOT_INO, path: RelPath::root(), scope }];
        while !level.is_empty() {
            let visits = stream::iter(std::mem::take(&mut level));
            let visited: Vec<_> = visits
                .map(|visit| async { (visit.path.clone(), self.visit(visit).await) })
                .buffer_unordered(LISTED_AT_ONCE)
                .collect()
                .await;
            for (path, visited) in visited {
                match visited {
                    Ok(visited) => {
                        level.extend(visited.directories);
                        self.gone.extend(visited.gone);
                        let room = NEWS_MOST.saturating_sub(self.news.len());
                        self.news.extend(visited.news.into_iter().take(room));
                        self.unknown.extend(visited.unknown);
                    }
                    Err(error) if path.is_root() => return Err(error),
                    Err(error) => self.unknown.push((path, error)),
                }
            }
        }
        match self.settings.delete {
            Some(most) if self.unknown.is_empty() && !self.settings.is_dry => {
                refuse_too_many(self.gone.len(), most)
            }
            _ => Ok(()),
        }
    }

    async fn visit(&self, visit: Visit) -> Result<Visited> {
        let Visit { ino, path, scope } = visit;
        let engine = &self.engine;
        let mut listing = engine.list(ino).await?;
        if !listing.is_confirmed() {
            // An answer that came too late to be waited for.
            listing = engine.relist(&engine.node(ino)?).await?;
        }
        self.counts.directories.increment();
        let (compared, at, listed) = (Arc::clone(engine), path.clone(), Arc::clone(&listing));
        let looked = on_disk("look into catalog", move || {
            let catalog = compared.destination.catalog();
            let known = catalog.directory(ino, &at)?;
            let filter = &compared.settings.hydrate.filter;
            let find = |name: &std::ffi::OsStr| listed.find(name).map(|entry| entry.kind);
            let gone = find_gone((catalog, filter), &at, &known, find)?;
            Ok((gone, known))
        });
        let (gone, known) = looked.await?;
        let mut visited = Visited { gone, ..Visited::default() };
        let mut files = Vec::new();
        for entry in listing.after(0) {
            let is_directory = entry.kind == EntryKind::Directory;
            let filter = &engine.settings.hydrate.filter;
            let scope = filter.below(scope, &path, entry.name, is_directory);
            if scope.is_left_out() {
                self.counts.left_out.increment();
                continue;
            }
            let name = entry.name.to_owned();
            let below = path.child(&name)?;
            match entry.kind {
                EntryKind::Directory => match engine.lookup(ino, &name).await {
                    Ok(node) => {
                        visited.directories.push(Visit { ino: node.ino, path: below, scope });
                    }
                    Err(error) => visited.unknown.push((below, error)),
                },
                EntryKind::File => {
                    if known.files.binary_search_by(|(known, _)| known.cmp(&name)).is_err() {
                        let (directory, name) = (ino, name.clone());
                        visited.news.push(News { directory, name, path: below.clone() });
                    }
                    files.push((name, below));
                }
                _ => self.counts.specials.increment(),
            }
        }
        if self.settings.is_dry {
            self.judge_all(ino, files, &mut visited).await;
        }
        Ok(visited)
    }

    /// What would travel of these files.
    async fn judge_all(&self, ino: u64, files: Vec<(OsString, RelPath)>, visited: &mut Visited) {
        let engine = &self.engine;
        let looked = stream::iter(files)
            .map(|(name, path)| async move { (engine.lookup(ino, &name).await, path) });
        let at_once = engine.source.traits().connections.max(1);
        let found: Vec<_> = looked.buffer_unordered(at_once).collect().await;
        for (node, path) in found {
            let judged = node.and_then(|node| {
                let attributes = node.attributes();
                Ok((engine.is_published(&path, &attributes)?, attributes.size))
            });
            match judged {
                Ok((true, _)) => self.counts.unchanged.increment(),
                Ok((false, size)) => {
                    self.counts.copied.increment();
                    self.counts.copied_bytes.add(size);
                    self.counts.requests.add(size.div_ceil(engine.reach().chunk.max(1)));
                }
                Err(error) => visited.unknown.push((path, error)),
            }
        }
    }

    /// Gives files that only have another name at the source that name in DIR. The engine then finds the right bytes there, and proves it.
    ///
    /// # Errors
    /// What the source says of a file that is new.
    pub async fn rename(&mut self) -> Result<()> {
        let mut gone = HashMap::new();
        for (index, one) in self.gone.iter().enumerate() {
            if let Gone::File(record) = one
                && matches!(record.phase, EntryPhase::Published(_))
                && let Some(checksum) = record.checksum.as_ref().filter(|sum| is_strong(sum))
            {
                gone.insert((record.version.fingerprint.size, checksum.to_string()), index);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        let engine = Arc::clone(&self.engine);
        let asked = stream::iter(std::mem::take(&mut self.news)).map(|one| {
            let engine = Arc::clone(&engine);
            async move { (engine.lookup(one.directory, &one.name).await, one) }
        });
        let at_once = engine.source.traits().connections.max(1);
        let mut asked = std::pin::pin!(asked.buffer_unordered(at_once));
        let mut moved = std::collections::HashSet::new();
        while let Some((node, news)) = asked.next().await {
            let Ok(node) = node else { continue }; // who copies it will say
            let Some(index) = key(&node.attributes()).and_then(|key| gone.remove(&key)) else {
                continue;
            };
            if let Gone::File(record) = &self.gone[index]
                && self.rename_one((**record).clone(), news.path).await
            {
                moved.insert(index);
            }
        }
        let mut index = 0;
        self.gone.retain(|_| {
            index += 1;
            !moved.contains(&(index - 1))
        });
        Ok(())
    }

    async fn rename_one(&self, record: EntryRecord, path: RelPath) -> bool {
        if self.settings.is_dry {
            self.counts.renamed.increment();
            return true;
        }
        let (destination, to) = (Arc::clone(&self.engine.destination), path.clone());
        let renamed = on_disk("rename file", move || {
            destination.mark_incomplete()?;
            destination.move_published(&record, &to)?;
            destination.existing(&to)
        });
        match renamed.await {
            Ok(Some(existing)) => {
                self.engine.candidates.note(path, existing);
                self.counts.renamed.increment();
                true
            }
            Ok(None) => true,
            // Somebody changed it, or has put something in its way: the bytes travel.
            Err(error) => {
                tracing::debug!(%path, %error, "not renamed");
                false
            }
        }
    }

    /// Deletes what is gone, if that was asked for and nothing failed; says it otherwise. To be called when everything is copied.
    ///
    /// # Errors
    /// As a durable write of the catalog.
    pub async fn mirror(self) -> Result<()> {
        let Self { engine, settings, counts, gone, unknown, .. } = self;
        let is_blind = !unknown.is_empty();
        // What was copied instead is what an earlier life had listed there.
        for (path, error) in unknown.iter().filter(|(_, error)| error.kind() != Kind::NotFound) {
            engine.stats.errors.failed(path, None, error);
            tracing::warn!(%path, %error, "not looked at");
        }
        let has_failed = is_blind || engine.stats.entries_failed() > 0;
        if settings.is_dry || settings.delete.is_none() || has_failed || gone.is_empty() {
            let is_asked = settings.delete.is_some() && !has_failed;
            let count = if is_asked { &counts.deleted } else { &counts.gone };
            count.add(gone.len() as u64);
            if settings.delete.is_some() && has_failed && !gone.is_empty() {
                tracing::warn!(
                    gone = gone.len(),
                    "nothing was deleted: not everything of the source could be looked at"
                );
            }
            return Ok(());
        }
        let deleting = Arc::clone(&engine);
        let delete = move || delete(&deleting, &counts, gone);
        on_disk("delete in destination", delete).await
    }
}

fn delete(engine: &Engine, counts: &Counts, gone: Vec<Gone>) -> Result<()> {
    let destination = &engine.destination;
    destination.mark_incomplete()?;
    let mut steps = destination.steps();
    for batch in in_order(gone).chunks(BATCH) {
        let mut forgotten = Vec::with_capacity(batch.len());
        for one in batch {
            let path = one.path();
            match remove(destination, one) {
                Ok(removed) if count_removed(counts, path, removed) => forgotten.push(path.clone()),
                Ok(_) => {}
                Err(error) => engine.stats.errors.failed(path, None, &error),
            }
        }
        let (_, known) = steps.step(Said { forgotten, ..Said::default() })?;
        engine.count_known(known);
    }
    Ok(())
}

/// What tells a file's content without reading it.
fn key(attributes: &Attributes) -> Option<(u64, String)> {
    let checksum = attributes.checksum.as_ref().filter(|sum| is_strong(sum))?;
    Some((attributes.size, checksum.to_string()))
}

/// 32 bits are the same for other bytes sooner or later.
fn is_strong(checksum: &Checksum) -> bool {
    matches!(checksum, Checksum::Blake3(_) | Checksum::Sha256(_) | Checksum::Md5(_))
}
