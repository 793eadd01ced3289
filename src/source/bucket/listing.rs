//! Listing a directory: page after page, the next one on its way while this one is worked on.

use tokio::sync::mpsc;

use super::names::Names;
use super::objects::Bucket;
use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};

const OP: &str = "list directory";

/// See [`crate::source::Source::list`].
pub(super) async fn list(
    bucket: &Bucket,
    directory: &RelPath,
    batches: mpsc::Sender<ListBatch>,
) -> Result<()> {
    if bucket.single_file().is_some() {
        return list_single(bucket, directory, batches).await;
    }
    let prefix = bucket.directory_prefix(directory)?;
    let mut names = Names::new(directory.clone(), prefix.clone());
    let mut page = bucket.dialect.page(OP, &prefix, None).await?;
    loop {
        let batch = names.take(page.items)?;
        let Some(token) = page.next else {
            if send(&batches, batch).await {
                send(&batches, names.end()).await;
            }
            break;
        };
        let (goes_on, following) =
            tokio::join!(send(&batches, batch), bucket.dialect.page(OP, &prefix, Some(&token)));
        if !goes_on {
            return Ok(());
        }
        page = following?;
        if page.next.as_ref() == Some(&token) {
            return Err(Error::new(Kind::Invalid, OP)
                .because("endless listing: the server gives the same page again"));
        }
    }
    if !names.is_something() && !directory.is_root() {
        bucket.check_empty_directory(OP, directory).await?;
    }
    bucket.listed(directory, names.into_shadowed());
    Ok(())
}

/// Whether there is somebody who wants more.
async fn send(batches: &mpsc::Sender<ListBatch>, batch: ListBatch) -> bool {
    if batch.entries.is_empty() && batch.refused == 0 {
        return !batches.is_closed();
    }
    batches.send(batch).await.is_ok()
}

async fn list_single(
    bucket: &Bucket,
    directory: &RelPath,
    batches: mpsc::Sender<ListBatch>,
) -> Result<()> {
    let Some(name) = bucket.single_file().filter(|_| directory.is_root()) else {
        return Err(Error::new(Kind::Invalid, OP).because("not a directory"));
    };
    let attributes = match bucket.stat(&RelPath::root().child(name)?).await {
        Ok(attributes) => attributes,
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let entry = Entry { name: name.clone(), kind: EntryKind::File, attributes: Some(attributes) };
    send(&batches, ListBatch { entries: vec![entry], refused: 0 }).await;
    Ok(())
}
