//! What is no file: more names of files, symlinks, special files, and the metadata of directories.

use std::sync::Arc;

use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::engine::node::Node;
use crate::engine::{Engine, ROOT_INO, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::verify::compare_files;
use crate::store::{Metadata, Replace};

impl Engine {
    async fn metadata_of(&self, node: &Node) -> Result<Metadata> {
        let path = node.path();
        let asked = self.source.xattrs(&path);
        let xattrs = self.within_deadline("read xattrs", asked).await?;
        Ok(Metadata { attributes: node.attributes(), xattrs })
    }

    /// Gives a directory its own metadata, when all that is in it is there.
    pub(super) async fn place_directory(&self, node: &Node) -> Result<()> {
        let metadata = self.metadata_of(node).await?;
        let (destination, path) = (Arc::clone(&self.destination), node.path());
        let finish = move || destination.finish_directory(&path, &metadata);
        let losses = on_disk("finish directory", finish).await.map_err(Error::of_destination)?;
        self.stats.metadata_lost.add(losses.len() as u64);
        Ok(())
    }

    /// Removes the marker and gives DIR itself the metadata of the source's root.
    ///
    /// # Errors
    /// What the destination says.
    pub async fn finish_root(&self) -> Result<()> {
        let root = self.node(ROOT_INO)?;
        let metadata = match self.source.single_file() {
            Some(_) => None,
            None => Some(self.metadata_of(&root).await?),
        };
        let destination = Arc::clone(&self.destination);
        let losses = on_disk("finish destination", move || {
            destination.remove_marker()?;
            destination.finish_root(metadata.as_ref())
        })
        .await?;
        self.stats.metadata_lost.add(losses.len() as u64);
        Ok(())
    }

    /// Publishes one more name of a published file. A file that has the name already is kept if it is the same or equal.
    pub(super) async fn publish_link(&self, first: &RelPath, path: RelPath) -> Result<()> {
        let (destination, first) = (Arc::clone(&self.destination), first.clone());
        let lost = on_disk("publish hard link", move || {
            let link = |replace| destination.publish_hard_link(&first, &path, replace);
            let error = match link(Replace::Never) {
                Ok(()) => return Ok(0),
                Err(error) if error.kind() == Kind::Exists => error,
                Err(error) => return Err(error),
            };
            let identity = |path| destination.existing(path).map(|found| found.map(|e| e.identity));
            let here = identity(&path)?;
            if identity(&first)? == here {
                return destination.note_existing_link(&first, &path).map(|()| 0);
            }
            let (one, other) =
                (destination.open_published(&first)?, destination.open_published(&path)?);
            let known = destination.catalog().other(&path)?.and_then(|known| known.link_of);
            match (compare_files(&one, &other)?, here) {
                // Our link, to what had the first name before somebody took that away.
                (None, Some(here)) if known.as_ref() == Some(&first) => {
                    link(Replace::Only(here)).map(|()| 0)
                }
                // Equal bytes under a name of their own: kept; only the link is lost.
                (None, _) => destination.note_existing_link(&first, &path).map(|()| 1),
                (Some(_), _) => Err(error),
            }
        })
        .await
        .map_err(Error::of_destination)?;
        self.stats.metadata_lost.add(lost);
        Ok(())
    }

    pub(super) async fn publish_special(
        self: &Arc<Self>,
        node: &Node,
        path: RelPath,
    ) -> Result<()> {
        let metadata = self.metadata_of(node).await?;
        let target = match node.kind() {
            EntryKind::Symlink => Some(self.readlink(node).await?),
            _ => None,
        };
        let destination = Arc::clone(&self.destination);
        let losses = on_disk("publish entry", move || {
            let mut replace = Replace::Never;
            if let Some(here) = destination.existing(&path)? {
                let target = target.as_deref();
                if destination.is_alike(&path, &here, &metadata.attributes, target)? {
                    return destination.note_existing(&path, &here).map(|()| 0);
                }
                let known = destination.catalog().other(&path)?;
                if known.is_some_and(|known| here.is_of(&known)) {
                    replace = Replace::Only(here.identity);
                }
            }
            let published = match target {
                Some(target) => destination.publish_symlink(&path, &target, &metadata, replace),
                None => destination.publish_node(&path, &metadata, replace),
            };
            Ok(published?.map(|published| published.losses.len()).unwrap_or(1)) // 1: not possible here
        })
        .await
        .map_err(Error::of_destination)?;
        self.stats.metadata_lost.add(losses as u64);
        Ok(())
    }
}
