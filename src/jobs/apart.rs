//! Jobs of one run must not write into each other's trees, nor read what is being written.

use std::path::{Component, Path, PathBuf};

use crate::daemon::settings::SourceSpec;
use crate::jobs::fields::{At, Problems};
use crate::jobs::plan::Job;

/// Every pair of jobs that are enabled.
pub(super) fn check(jobs: &[At<Job>], problems: &mut Problems<'_>) {
    let enabled = jobs.iter().filter(|job| job.value.is_enabled);
    let places: Vec<(&At<Job>, PathBuf, Option<PathBuf>)> =
        enabled.map(|job| (job, real(&job.value.destination), local_source(&job.value))).collect();
    for (index, (job, destination, source)) in places.iter().enumerate() {
        let name = &job.value.name;
        if source.as_ref().is_some_and(|source| destination.starts_with(source)) {
            let why = format!("[[job]] {name}: the destination lies inside the source");
            problems.add(job.place.clone(), why);
        }
        for (other_index, (other, other_destination, _)) in places.iter().enumerate() {
            let into = other_destination.display();
            let other_name = &other.value.name;
            let is_inside = |source: &Option<PathBuf>, of: &Path| {
                source.as_ref().is_some_and(|source| source.starts_with(of))
            };
            let why = if other_index < index && destination == other_destination {
                format!("it has the same destination as `{other_name}`, {into}")
            } else if other_index < index
                && (destination.starts_with(other_destination)
                    || other_destination.starts_with(destination))
            {
                format!("its destination and that of `{other_name}` lie inside each other, {into}")
            } else if is_inside(source, other_destination) {
                format!("its source lies inside the destination of `{other_name}`, {into}")
            } else {
                continue;
            };
            problems.add(job.place.clone(), format!("[[job]] {name}: {why}"));
        }
    }
}

fn local_source(job: &Job) -> Option<PathBuf> {
    match &job.source {
        SourceSpec::Local(path) => Some(real(path)),
        _ => None,
    }
}

/// Without links as far as it is there; what is not there yet as it is spelled.
fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let Ok(mut real) = std::fs::canonicalize(above) {
            for part in path.strip_prefix(above).unwrap_or(Path::new("")).components() {
                match part {
                    Component::ParentDir => drop(real.pop()),
                    Component::Normal(name) => real.push(name),
                    _ => {}
                }
            }
            return real;
        }
    }
    path.to_owned()
}
