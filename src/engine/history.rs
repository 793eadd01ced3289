//! The lives that a copy had: one record each, kept in the catalog, of which the last 1000 are remembered.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, on_disk};
use crate::error::{Error, Result};
use crate::store::{Destination, DestinationOptions};
use crate::sync::Ordering;

/// One daemon's life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Its name, as in status and events.
    pub session: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; `null` while it runs, or if it was killed.
    pub ended_at: Option<String>,
    /// `clean`, `some-failed`, `verification-failed`, `stopped`; `null` while it runs, or if it was killed.
    pub outcome: Option<String>,
    /// Regular files known at its end.
    pub files: u64,
    /// Of these, plain files at the destination.
    pub files_published: u64,
    /// Entries that could not be copied.
    pub files_failed: u64,
    /// Bytes of all files known.
    pub bytes: u64,
    /// Bytes that it fetched.
    pub bytes_fetched: u64,
}

impl Engine {
    /// Records that this life has begun.
    pub async fn begin_life(self: &Arc<Self>) {
        let life = Life {
            session: self.events.session().to_owned(),
            started_at: now(),
            ..Life::default()
        };
        let engine = Arc::clone(self);
        let begin = move || {
            let number = engine.destination.catalog().begin_life(&text(&life))?;
            engine.life.store(number, Ordering::Relaxed);
            Ok(())
        };
        if let Err(error) = on_disk("record life", begin).await {
            tracing::warn!(%error, "not in the history");
        }
    }

    /// Records how this life ended.
    pub async fn end_life(self: &Arc<Self>, outcome: &'static str) {
        let (engine, tally) = (Arc::clone(self), self.tally());
        let end = move || {
            let number = engine.life.load(Ordering::Relaxed);
            let catalog = engine.destination.catalog();
            let begun = catalog.lives()?.into_iter().find(|(known, _)| *known == number);
            let Some((_, begun)) = begun else { return Ok(()) };
            let life = Life {
                ended_at: Some(now()),
                outcome: Some(outcome.to_owned()),
                files: tally.files,
                files_published: tally.files_published,
                files_failed: engine.stats.entries_failed(),
                bytes: tally.bytes,
                bytes_fetched: engine.stats.bytes_fetched.get(),
                ..serde_json::from_slice(&begun).unwrap_or_default()
            };
            catalog.end_life(number, &text(&life))
        };
        if let Err(error) = on_disk("record life", end).await {
            tracing::warn!(%error, "its end is not in the history");
        }
    }

    /// The lives that this copy had, the oldest first, this one last.
    ///
    /// # Errors
    /// What the catalog says.
    pub async fn history(self: &Arc<Self>) -> Result<Vec<Life>> {
        let engine = Arc::clone(self);
        on_disk("read history", move || recorded(&engine.destination)).await
    }
}

/// The lives of a copy that nobody serves, the oldest first; `None` if `directory` holds none. Changes nothing there. Blocking.
///
/// # Errors
/// `Busy` if somebody serves it after all; what the catalog says.
pub fn recorded_in(directory: &Path) -> Result<Option<Vec<Life>>> {
    if !Destination::is_known(directory) {
        return Ok(None);
    }
    let scratch = tempfile::tempdir().map_err(|error| {
        let error = Error::io("make directory for a copy of the catalog", error);
        error.at(std::env::temp_dir()).hint("TMPDIR names another place")
    })?;
    let options = DestinationOptions::default();
    recorded(&Destination::open_view(directory, scratch.path(), options)?).map(Some)
}

fn recorded(destination: &Destination) -> Result<Vec<Life>> {
    let lives = destination.catalog().lives()?;
    Ok(lives.iter().filter_map(|(_, life)| serde_json::from_slice(life).ok()).collect())
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn text(life: &Life) -> Vec<u8> {
    serde_json::to_vec(life).unwrap_or_else(|error| {
        tracing::error!(%error, "life cannot be written as JSON");
        Vec::new()
    })
}
