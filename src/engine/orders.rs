//! Orders for one path of the tree: fetch it, forget it, ask the source for it. Each answers in one line what it changed.

use std::sync::Arc;

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::engine::file::LazyFile;
use crate::engine::node::Node;
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::EntryRecord;

/// Files of a directory that are fetched at once by order.
const AT_ONCE: usize = 16;

impl Engine {
    /// Fetches a file, or all files below a directory, in the background: it only begins here.
    ///
    /// # Errors
    /// As [`Engine::lookup`].
    pub async fn hydrate_path(self: &Arc<Self>, path: &RelPath) -> Result<String> {
        let node = self.lookup_path(path).await?;
        let message = match node.kind() {
            EntryKind::File => {
                let file = node.file()?;
                self.restore(file).await;
                let lacking = file.size().saturating_sub(file.claims.local_bytes());
                format!("hydrating: {lacking} of {} bytes to fetch", file.size())
            }
            EntryKind::Directory => "hydrating: everything below it".to_owned(),
            _ => return Ok("nothing to fetch: it has no bytes".to_owned()),
        };
        let engine = Arc::clone(self);
        self.runtime.spawn(async move { engine.fill_below(node).await });
        Ok(message)
    }

    async fn fill_below(self: Arc<Self>, node: Arc<Node>) {
        let mut directories = vec![node];
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(node) = directories.pop() {
            if let Ok(file) = node.file() {
                while tasks.len() >= AT_ONCE {
                    tasks.join_next().await;
                }
                tasks.spawn(Arc::clone(&self).fill(Arc::clone(file)));
                continue;
            }
            let listing = match self.list(node.ino).await {
                Ok(listing) => listing,
                Err(error) => {
                    self.stats.errors.remember(&node.path(), &error);
                    continue;
                }
            };
            for entry in listing.after(0) {
                if !matches!(entry.kind, EntryKind::File | EntryKind::Directory) {
                    continue;
                }
                match self.lookup(node.ino, entry.name).await {
                    Ok(node) => directories.push(node),
                    Err(error) => tracing::info!(%error, "not hydrated"),
                }
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn fill(self: Arc<Self>, file: Arc<LazyFile>) {
        match self.hydrate_file(&file, None, &mut None).await {
            Ok(_) => self.stats.errors.succeeded(&file.path),
            Err(error) => {
                self.stats.errors.failed(&file.path, Some(file.ino), &error);
                tracing::warn!(path = %file.path, %error, "not hydrated");
            }
        }
    }

    /// Forgets the local bytes of a file, or of all files below a directory. Published files go only from a cache of limited size.
    ///
    /// # Errors
    /// `Denied` for what is to be kept; `Busy` for what is in use: then the others went all the same.
    pub async fn evict_path(self: &Arc<Self>, path: &RelPath) -> Result<String> {
        self.lookup_path(path).await?;
        let (mut files, mut bytes, mut refused) = (0u64, 0u64, Vec::new());
        for path in self.recorded_below(path).await? {
            match self.forget_local(&path).await {
                Ok(0) => {}
                Ok(freed) => {
                    files += 1;
                    bytes += freed;
                }
                Err(error) => refused.push(error.at(path.as_path())),
            }
        }
        let stay = refused.len();
        match refused.into_iter().next() {
            None => Ok(format!("evicted: {files} files, {bytes} bytes")),
            Some(only) if stay == 1 && files == 0 => Err(only),
            Some(first) => Err(Error::new(first.kind(), "evict").at(path.as_path()).because(
                format!("{files} files, {bytes} bytes went; {stay} stay, the first: {first}"),
            )),
        }
    }

    /// The files at or below `path` that may have local bytes.
    async fn recorded_below(self: &Arc<Self>, path: &RelPath) -> Result<Vec<RelPath>> {
        // What landed since the last checkpoint is not recorded yet.
        let nodes = self.tree.nodes();
        let mut paths: Vec<RelPath> = nodes
            .iter()
            .filter_map(|node| node.file_in_use())
            .filter(|file| file.claims.local_bytes() > 0 && is_at_or_below(&file.path, path))
            .map(|file| file.path.clone())
            .collect();
        let (destination, top) = (Arc::clone(&self.destination), path.clone());
        let recorded = move || {
            let mut recorded = Vec::new();
            let note = |entry: EntryRecord| {
                recorded.push(entry.path);
                Ok(())
            };
            match top.is_root() {
                true => destination.catalog().entries(note)?,
                false => destination.catalog().entries_below(&top, note)?,
            }
            Ok(recorded)
        };
        paths.extend(on_disk("read catalog", recorded).await?);
        paths.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        paths.dedup();
        Ok(paths)
    }

    async fn forget_local(self: &Arc<Self>, path: &RelPath) -> Result<u64> {
        if self.pins.holds(path) {
            return Err(Error::new(Kind::Denied, "evict")
                .because("it is pinned")
                .hint("`lazycopy unpin` lets it go"));
        }
        let node = match self.lookup_path(path).await {
            Ok(node) => node,
            // Recorded, and gone at the source: what is here is the last copy.
            Err(error) if error.kind() == Kind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let Ok(file) = node.file() else { return Ok(0) };
        let file = Arc::clone(file);
        self.restore(&file).await;
        let engine = Arc::clone(self);
        on_disk("evict", move || engine.evict_file(&file)).await
    }

    /// Asks the source for a file, or for what a directory holds, now.
    ///
    /// # Errors
    /// What the source says.
    pub async fn refresh_path(self: &Arc<Self>, path: &RelPath) -> Result<String> {
        let node = self.lookup_path(path).await?;
        if node.kind() == EntryKind::Directory {
            let listing = self.within_deadline("list directory", self.relist(&node)).await?;
            return Ok(format!("refreshed: {} entries listed", listing.after(0).count()));
        }
        let (Some(parent), name) = (path.parent(), path.name()) else {
            return Err(Error::new(Kind::Invalid, "refresh").at(path.as_path()));
        };
        let parent = self.lookup_path(&parent).await?;
        let before = node.ino;
        let asked = self.source.stat(path);
        let attributes = match self.within_deadline("look at source", asked).await {
            Ok(attributes) => attributes,
            Err(error) => {
                if error.kind() == Kind::NotFound {
                    self.vanish(parent.ino, name);
                }
                return Err(error);
            }
        };
        let engine = Arc::clone(self);
        let name = name.to_owned();
        let observe = move || engine.observe(&parent, &name, &attributes);
        let node = on_disk("take in answer", observe).await?;
        Ok(match node.ino == before {
            true => "refreshed: unchanged".to_owned(),
            false => "refreshed: another version".to_owned(),
        })
    }
}

fn is_at_or_below(path: &RelPath, top: &RelPath) -> bool {
    path.as_path().starts_with(top.as_path())
}
