//! What was made and is not removed yet, written down so that it survives a crash: one file for each snapshot in `STATE/snapshots/`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{PREFIX, btrfs, program};
use crate::control::registry::process_start;
use crate::control::status::JsonPath;
use crate::error::{Error, Kind, Result};
use crate::jobs::record::make_private;

/// One snapshot in the ledger.
#[derive(Debug)]
pub(in crate::jobs) struct Entry {
    /// `STATE/snapshots/NAME.json`.
    file: PathBuf,
    written: Written,
}

/// What is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    name: String,
    kind: MadeBy,
    /// What is read; not known before a program has printed it.
    path: Option<JsonPath>,
    /// Removes it, `{path}` stands for the path; a snapshot that a program made has its own.
    remove: Option<Vec<String>>,
    /// The process that uses it.
    pid: u32,
    process_start: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MadeBy {
    Btrfs,
    Command,
}

impl Entry {
    pub(super) fn of_btrfs(state: &Path, name: String, path: &Path) -> Self {
        Self::new(state, name, MadeBy::Btrfs, Some(JsonPath::new(path)), None)
    }

    pub(super) fn of_command(state: &Path, name: String, remove: Option<Vec<String>>) -> Self {
        Self::new(state, name, MadeBy::Command, None, remove)
    }

    fn new(
        state: &Path,
        name: String,
        kind: MadeBy,
        path: Option<JsonPath>,
        remove: Option<Vec<String>>,
    ) -> Self {
        let pid = std::process::id();
        let process_start = process_start(pid).unwrap_or(0);
        let file = ledger(state).join(format!("{name}.json"));
        Self { file, written: Written { name, kind, path, remove, pid, process_start } }
    }

    pub(super) fn set_path(&mut self, path: &Path) {
        self.written.path = Some(JsonPath::new(path));
    }

    /// Durable when it returns: only then the snapshot may be made.
    pub(super) fn write(&self) -> Result<()> {
        let failed = |error| Error::io("write down snapshot", error).at(&self.file);
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        make_private(directory)?;
        let text = serde_json::to_vec(&self.written).map_err(|error| failed(error.into()))?;
        let unfinished = self.file.with_extension("new");
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&unfinished).map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&unfinished, &self.file).map_err(failed)?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// Removes the snapshot, then the note of it.
    pub(super) async fn remove(&self, log: &File) -> Result<()> {
        let Written { name, kind, path, remove, .. } = &self.written;
        let path = path.as_ref().and_then(JsonPath::to_path_buf);
        match (kind, path, remove) {
            (MadeBy::Btrfs, Some(path), _) => {
                if !name.starts_with(PREFIX) || path.file_name().is_none_or(|last| last != &**name)
                {
                    return Err(Error::new(Kind::Invalid, "remove snapshot")
                        .at(&path)
                        .because("it has not the name of a snapshot of ours"));
                }
                btrfs::remove(&path, log).await?;
            }
            (MadeBy::Command, path, Some(remove)) => {
                let path = path.unwrap_or_default();
                let path = path.to_string_lossy();
                let argv: Vec<_> = remove.iter().map(|arg| arg.replace("{path}", &path)).collect();
                program(&argv, log).await?;
            }
            (MadeBy::Btrfs, None, _) | (MadeBy::Command, _, None) => {}
        }
        match fs::remove_file(&self.file) {
            Ok(()) => Ok(()),
            // By another run, at the same time.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("forget snapshot", error).at(&self.file)),
        }
    }

    fn is_in_use(&self) -> bool {
        process_start(self.written.pid) == Some(self.written.process_start)
    }
}

fn ledger(state: &Path) -> PathBuf {
    state.join("snapshots")
}

/// Removes what processes left that have died. Says what could not be removed.
pub(in crate::jobs) async fn sweep(state: &Path, log: &File) -> Vec<String> {
    let directory = ledger(state);
    let entries = match left_in(&directory) {
        Ok(entries) => entries,
        Err(error) => return vec![error.to_string()],
    };
    let mut problems = Vec::new();
    for entry in entries.into_iter().filter(|entry| !entry.is_in_use()) {
        tracing::info!(snapshot = %entry.written.name, "left by a run that was killed");
        if let Err(error) = entry.remove(log).await {
            let name = &entry.written.name;
            problems.push(format!("{name}, left by an earlier run, is not removed: {error}"));
        }
    }
    problems
}

fn left_in(directory: &Path) -> Result<Vec<Entry>> {
    let failed = |error| Error::io("look for snapshots in", error).at(directory);
    let found = match fs::symlink_metadata(directory) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    // It says which programs are run.
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(Error::new(Kind::Denied, "look for snapshots in")
            .at(directory)
            .because("others can write to it"));
    }
    let mut entries = Vec::new();
    for found in fs::read_dir(directory).map_err(failed)? {
        let file = found.map_err(failed)?.path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let written = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match written {
            Some(written) => entries.push(Entry { file, written }),
            None => tracing::warn!(file = %file.display(), "is no note of a snapshot"),
        }
    }
    Ok(entries)
}
