//! One flaw mended: good blocks are copied into a new part, bad ones fetched, the whole proven and renamed over the old file.

use std::sync::Arc;

use futures_util::StreamExt;

use crate::core::path::RelPath;
use crate::core::range::{BLOCK_SIZE, ByteRange, block_count};
use crate::engine::file::LazyFile;
use crate::engine::verify::{Event, Mending, Verification, left};
use crate::engine::{Engine, Notice, jitter, on_disk};
use crate::error::{Error, Kind, Result};
use crate::source::Source;
use crate::store::catalog::EntryRecord;
use crate::store::proof::{Difference, Flaw, Found};
use crate::store::publish::{Candidate, Vouched};
use crate::store::verify::hash_backing;
use crate::store::{BackingFile, Identity, Metadata, Replace};

const GO_ON: &str =
    "`lazycopy mount --hydrate` with the same SOURCE and --dest puts it there again";

impl Verification {
    /// Mends `found`; answers the bytes that were fetched.
    pub(super) async fn mend(self: &Arc<Self>, found: &Found, mending: Mending) -> Result<u64> {
        let Some(record) = found.record.clone() else {
            return Err(left(found, "only files are mended", GO_ON));
        };
        match &found.flaw {
            Flaw::OtherKind => {
                Err(left(found, "something else has its name", "move it away, then mend again"))
            }
            Flaw::Differs(difference) if found.is_part => self.forget(record, difference).await,
            Flaw::Differs(Difference { is_touched: true, .. }) if mending == Mending::Rot => {
                Err(left(
                    found,
                    "somebody wrote to it since it was copied; left alone",
                    "--repair-changed replaces it, and what was written is lost",
                ))
            }
            Flaw::Missing | Flaw::Unreadable(_) | Flaw::Differs(_) => self.mend_file(record).await,
        }
    }

    /// The catalog forgets bad blocks of a part.
    async fn forget(&self, record: EntryRecord, difference: &Difference) -> Result<u64> {
        let (destination, runs) = (Arc::clone(&self.destination), difference.blocks.clone());
        let forgotten = record.clone();
        on_disk("forget blocks", move || {
            let catalog = destination.catalog();
            let ino = forgotten.version.ino;
            catalog.clear_blocks(&forgotten.path, ino, &runs)
        })
        .await?;
        if let Some(engine) = &self.engine {
            engine.part_was_bad(&record).await;
        }
        let count = difference.blocks.iter().map(|run| run.end - run.start).sum();
        self.tell(Event::Forgotten(record.path, count)).await;
        Ok(0)
    }

    async fn mend_file(self: &Arc<Self>, record: EntryRecord) -> Result<u64> {
        if let Some(engine) = self.engine.as_ref().filter(|engine| engine.cache_fill().is_some()) {
            return self.evict(engine, record).await;
        }
        let (destination, wanted) = (Arc::clone(&self.destination), record.clone());
        let linked = on_disk("look at file", move || {
            let path = &wanted.path;
            let link_of = destination.catalog().other(path)?.and_then(|other| other.link_of);
            let now = destination.catalog().entry(path)?;
            if link_of.is_none() && now.is_some_and(|now| now != wanted) {
                return Err(Error::new(Kind::Stale, "mend")
                    .at(path.as_path())
                    .because("it has changed since it was proven"));
            }
            Ok(link_of)
        });
        if let Some(first) = linked.await? {
            return self.mend_link(first, record).await;
        }
        let source = self.source.open().await?;
        self.check_version(&*source, &record).await?;
        let (destination, at) = (Arc::clone(&self.destination), record.clone());
        let (old, part, missing) = on_disk("copy good blocks", move || {
            let old = match destination.open_published(&at.path) {
                Ok(old) => Some(old),
                Err(error) if error.kind() == Kind::NotFound => None,
                Err(error) => return Err(error),
            };
            let (part, missing) = destination.salvage(&at, old.as_ref())?;
            Ok((old, Arc::new(part), missing))
        })
        .await?;
        let mut fetched = 0;
        for run in missing {
            let range = ByteRange::new(run.start * BLOCK_SIZE, run.end * BLOCK_SIZE);
            let range = range.clip(part.size());
            fetched += self.fetch(&*source, &record, range, &part).await?;
        }
        let metadata = match &old {
            Some(_) => None,
            None => Some(Metadata {
                attributes: source.stat(&record.path).await?,
                xattrs: source.xattrs(&record.path).await?,
            }),
        };
        let (mender, of) = (Arc::clone(self), record.clone());
        let replaced = Arc::clone(&part);
        on_disk("publish mended file", move || mender.publish(&of, &replaced, old, metadata))
            .await?;
        if let Some(engine) = &self.engine {
            engine.was_mended(&record, part);
        }
        self.tell(Event::Mended(record.path, fetched)).await;
        Ok(fetched)
    }

    /// In a cache of limited size a bad file goes, and is fetched again when somebody reads it.
    async fn evict(&self, engine: &Arc<Engine>, record: EntryRecord) -> Result<u64> {
        let (evicting, ino) = (Arc::clone(engine), record.version.ino);
        if !on_disk("evict bad file", move || evicting.evict_one(ino)).await? {
            return Err(Error::new(Kind::Busy, "mend")
                .at(record.path.as_path())
                .because("in a cache a bad file is evicted, and this one is in use")
                .hint("close it and mend again"));
        }
        engine.tell(Notice::ContentChanged { ino });
        let blocks = block_count(record.version.fingerprint.size);
        self.tell(Event::Forgotten(record.path, blocks)).await;
        Ok(0)
    }

    /// Proves the part and renames it over the old file and all its names. Blocking.
    fn publish(
        &self,
        record: &EntryRecord,
        part: &BackingFile,
        old: Option<BackingFile>,
        metadata: Option<Metadata>,
    ) -> Result<()> {
        let destination = &self.destination;
        let hash = hash_backing(part, part.size())?;
        if Some(hash.root) != record.digest {
            return Err(Error::new(Kind::Corrupt, "mend").at(record.path.as_path()).because(
                "with the source's bytes it is not what was proven either; left as it is",
            ));
        }
        let metadata = match (metadata, &old) {
            (Some(metadata), _) => metadata,
            (None, Some(old)) => destination.metadata_of(record, old)?,
            (None, None) => return Err(Error::new(Kind::NotFound, "mend")),
        };
        let former = old.as_ref().map(BackingFile::identity);
        let names = match former {
            Some(former) => destination.links_to(&record.path, former)?,
            None => Vec::new(),
        };
        let proof = record.proof.unwrap_or(crate::store::catalog::ProofClass::Transfer);
        destination.publish(Candidate {
            file: part,
            path: &record.path,
            metadata: &metadata,
            replace: former.map_or(Replace::Never, Replace::Only),
            vouched: Some(Vouched { version: &record.version, hash: &hash, proof, origin: None }),
        })?;
        destination.catalog().flush()?;
        // The old inode is still open, so its number is nobody else's.
        names.iter().try_for_each(|name| {
            former.map_or(Ok(()), |former| destination.relink(&record.path, name, former))
        })
    }

    /// A name that lost its link, or whose first name was mended before it.
    async fn mend_link(&self, first: RelPath, record: EntryRecord) -> Result<u64> {
        let (destination, name) = (Arc::clone(&self.destination), record.path.clone());
        let digest = record.digest;
        on_disk("link again", move || {
            let Some(old) = destination.existing(&name)? else {
                return destination.publish_hard_link(&first, &name, Replace::Never);
            };
            let whole = destination.open_published(&first)?;
            if whole.identity() == old.identity {
                return Ok(());
            }
            if Some(hash_backing(&whole, whole.size())?.root) != digest {
                return Err(Error::new(Kind::Corrupt, "mend")
                    .at(name.as_path())
                    .because(format!("{first}, which has the same content, is not whole")));
            }
            destination.relink(&first, &name, old.identity)
        })
        .await?;
        self.tell(Event::Mended(record.path, 0)).await;
        Ok(0)
    }

    async fn check_version(&self, source: &dyn Source, record: &EntryRecord) -> Result<()> {
        let asked = tokio::time::timeout(self.stall, source.stat(&record.path)).await;
        let now =
            asked.map_err(|late| Error::new(Kind::Timeout, "ask source").caused_by(late))??;
        if now.fingerprint == record.version.fingerprint {
            return Ok(());
        }
        Err(Error::new(Kind::Stale, "mend")
            .at(record.path.as_path())
            .because("the source has another version now; left as it is")
            .hint(GO_ON))
    }

    /// Fetches `range` into `part`, resuming after transient errors. Answers its length.
    async fn fetch(
        &self,
        source: &dyn Source,
        record: &EntryRecord,
        range: ByteRange,
        part: &Arc<BackingFile>,
    ) -> Result<u64> {
        let mut offset = range.start;
        let mut tries = self.retry.begin();
        while offset < range.end {
            let rest = ByteRange::new(offset, range.end);
            let Err(error) = self.fetch_once(source, record, rest, part, &mut offset).await else {
                break;
            };
            let Some(wait) = tries.wait_after(&error, jitter()) else {
                return Err(error);
            };
            tokio::time::sleep(wait).await;
        }
        Ok(range.len())
    }

    async fn fetch_once(
        &self,
        source: &dyn Source,
        record: &EntryRecord,
        range: ByteRange,
        part: &Arc<BackingFile>,
        offset: &mut u64,
    ) -> Result<()> {
        let late = |late| Error::new(Kind::Timeout, "fetch").caused_by(late);
        let mut asking = self.may_ask(range.len()).await?;
        let asked = source.read(&record.path, range, &record.version.fingerprint);
        let mut pieces = tokio::time::timeout(self.stall, asked).await.map_err(late)??;
        while let Some(piece) =
            tokio::time::timeout(self.stall, pieces.next()).await.map_err(late)?
        {
            let piece = piece?;
            let (part, at, len) = (Arc::clone(part), *offset, piece.len() as u64);
            asking.iter_mut().for_each(|asking| asking.reserved.came(len));
            on_disk("write fetched block", move || part.write_at(at, &piece)).await?;
            *offset += len;
        }
        if *offset == range.end {
            return Ok(());
        }
        Err(Error::new(Kind::Unreachable, "fetch")
            .at(record.path.as_path())
            .because("the answer ended early"))
    }
}

impl Engine {
    /// `part` holds the bytes of a published version now, in a new inode. The kernel may have bad pages of it.
    fn was_mended(&self, record: &EntryRecord, part: Arc<BackingFile>) {
        let identity: Identity = part.identity();
        self.publisher.note_ours(&record.path, identity);
        let ino = record.version.ino;
        // What is restored from now on is the new inode already.
        if let Some(file) = self.file_of(ino)
            && file.backing().is_some_and(|backing| backing.published_path().is_some())
        {
            file.set_backing(Some(part));
        }
        self.tell(Notice::ContentChanged { ino });
    }

    /// Blocks of a part were bad: what is in memory of it is not believed either.
    async fn part_was_bad(self: &Arc<Self>, record: &EntryRecord) {
        let Some(file) = self.file_of(record.version.ino) else { return };
        self.restore(&file).await;
        if file.backing().is_none_or(|backing| backing.published_path().is_some()) {
            return;
        }
        let error = Error::new(Kind::Corrupt, "prove part")
            .at(record.path.as_path())
            .because("recorded blocks on the destination's disk are not what was received");
        self.start_over(&file, &error);
        self.tell(Notice::ContentChanged { ino: file.ino });
    }

    fn file_of(&self, ino: u64) -> Option<Arc<LazyFile>> {
        let node = self.node(ino).ok()?;
        node.file_in_use().map(Arc::clone)
    }
}
