//! What is different where the mountpoint is the destination.

use std::sync::Arc;

use crate::control::registry;
use crate::control::status::JobPhase;
use crate::daemon::Outcome;
use crate::daemon::reach;
use crate::daemon::settings::{AtEnd, InPlace, MountSettings};
use crate::daemon::start::{Place, Started};
use crate::engine::on_disk;
use crate::error::{Error, Kind, Result};
use crate::store::Destination;
use crate::vfs::mountpoint;

/// The place of a copy in place, and whether it was begun before. Nothing is changed but a dead mount of ours taken away.
pub(super) fn check_place(settings: &MountSettings) -> Result<(Place, bool)> {
    let here = mountpoint::check_in_place(&settings.mountpoint)?;
    let is_begun = reach::is_begun(&here);
    let source = reach::local_place(&settings.source, is_begun)?;
    let registry = registry::runtime_directories().into_iter().next();
    let others: Vec<_> =
        [("state directory", settings.state_dir.clone()), ("control socket", registry)]
            .into_iter()
            .filter_map(|(word, path)| Some((word, path?)))
            .collect();
    mountpoint::check_nesting_in_place(source.as_deref(), &here, &others)?;
    Ok((Place { source: String::new(), mountpoint: here.clone(), destination: here }, is_begun))
}

/// The last look at DIR by its path: from now on it leads into the mount.
pub(super) async fn cover(destination: &Arc<Destination>, place: &Place) -> Result<()> {
    let (destination, path) = (Arc::clone(destination), place.mountpoint.clone());
    let conceal = move || {
        if !destination.is_at(&path)? {
            return Err(Error::new(Kind::Busy, "mount")
                .at(&path)
                .because("another directory was put in its place at the same moment"));
        }
        destination.conceal()
    };
    on_disk("conceal destination", conceal).await
}

/// What there is and where, for people.
pub(super) fn first_line(started: &Started, in_place: &InPlace) -> String {
    let listed_at = humantime::format_rfc3339_seconds(started.listed_at).to_string();
    format!(
        "{} is usable now ({:.1} s), read-only until complete. Source {}, listed {}",
        in_place.shown_as.display(),
        started.began.elapsed().as_secs_f64(),
        started.place.source,
        // Without the date.
        listed_at.split_once('T').map_or(listed_at.as_str(), |(_, time)| time)
    )
}

/// What becomes of the mount of a copy in place that has tried everything.
pub(super) fn at_end(started: &Started, phase: JobPhase) -> Option<AtEnd> {
    let in_place = started.in_place.as_ref()?;
    (phase == JobPhase::Complete).then_some(in_place.at_end)
}

/// What a copy in place says that can fetch nothing more for now.
pub(super) fn waits(started: &Started, limit: &str) -> String {
    let dir = started.place.destination.display();
    format!(
        "{dir} is not complete: {limit}. It stays mounted; what is local is served. To go on: `lazycopy unmount {dir}`, then the same command with a higher limit"
    )
}

/// What a copy in place says that stays mounted.
pub(super) fn stays(started: &Started, phase: JobPhase) -> (String, Outcome) {
    let dir = started.place.destination.display();
    if phase == JobPhase::Complete {
        return (format!("{dir} is complete; it stays mounted (--no-dissolve)"), Outcome::Clean);
    }
    let line = format!(
        "{dir} stays mounted: {} could not be copied. `lazycopy status {dir}` names the last; what they still need is read from the source. \
         To try again: `lazycopy unmount {dir}`, then the same command",
        match started.engine.stats().entries_failed() {
            0 => "its end".to_owned(),
            1 => "1 file".to_owned(),
            failed => format!("{failed} files"),
        }
    );
    (line, Outcome::SomeFailed)
}
