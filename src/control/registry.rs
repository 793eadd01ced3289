//! The daemons of this user: one socket and one record each, in a directory that only this user can enter.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::control::status::{escape, exact, from_exact, timestamp};
use crate::error::{Error, Kind, Result};

/// What a daemon writes down about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks after boot: tells a process from a later one with its number.
    pub process_start: u64,
    /// Name of this daemon's life.
    pub session: String,
    /// For people.
    pub mountpoint: String,
    /// Exact, where `mountpoint` is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint_b64: Option<String>,
    /// For people.
    pub dest: String,
    /// Exact, where `dest` is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_b64: Option<String>,
    /// Without secrets.
    pub source: String,
    /// RFC 3339.
    pub started_at: String,
}

impl SessionRecord {
    /// A record of this process.
    ///
    /// # Errors
    /// If `/proc/self/stat` cannot be read.
    pub fn of_this_process(
        session: impl Into<String>,
        source: impl Into<String>,
        mountpoint: &Path,
        dest: &Path,
    ) -> Result<Self> {
        let pid = std::process::id();
        let process_start = process_start(pid).ok_or_else(|| {
            Error::new(Kind::NotSupported, "register").because("/proc is not mounted")
        })?;
        Ok(Self {
            pid,
            process_start,
            session: session.into(),
            mountpoint: escape(mountpoint.as_os_str()),
            mountpoint_b64: exact(mountpoint.as_os_str()),
            dest: escape(dest.as_os_str()),
            dest_b64: exact(dest.as_os_str()),
            source: source.into(),
            started_at: timestamp(SystemTime::now()),
        })
    }

    /// The exact mountpoint.
    pub fn mountpoint(&self) -> PathBuf {
        from_exact(&self.mountpoint, self.mountpoint_b64.as_deref()).unwrap_or_default()
    }

    /// The exact destination.
    pub fn dest(&self) -> PathBuf {
        from_exact(&self.dest, self.dest_b64.as_deref()).unwrap_or_default()
    }

    /// Whether the process that wrote it still runs.
    pub fn is_alive(&self) -> bool {
        process_start(self.pid) == Some(self.process_start)
    }
}

/// When a process started, in clock ticks after boot; `None` if there is none, or only its remains.
pub fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; field 3 (state) follows the last one. proc_pid_stat(5)
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = String::from_utf8_lossy(&stat[after_name..]).into_owned();
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Where daemons of this user may be registered; the first is where new ones are.
///
/// `LAZYCOPY_RUNTIME_DIR` stands for all of them.
pub fn runtime_directories() -> Vec<PathBuf> {
    if let Some(only) = std::env::var_os("LAZYCOPY_RUNTIME_DIR") {
        return vec![PathBuf::from(only)];
    }
    let mut directories = Vec::new();
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
    {
        directories.push(runtime.join("lazycopy"));
    }
    let uid = rustix::process::geteuid();
    directories.push(if uid.is_root() {
        PathBuf::from("/run/lazycopy")
    } else {
        PathBuf::from(format!("/tmp/lazycopy-{}", uid.as_raw()))
    });
    directories
}

/// Keeps a daemon findable; dropping it removes socket and record.
#[derive(Debug)]
pub struct Registration {
    socket: PathBuf,
    record: PathBuf,
}

impl Registration {
    /// The control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for path in [&self.record, &self.socket] {
            remove(path);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), err = %error, "not removed"),
    }
}

/// Makes the control socket of this process and writes its record.
///
/// # Errors
/// `Denied` if the directory is not this user's alone; `Invalid` if the path is too long for a socket.
pub fn register(record: &SessionRecord) -> Result<(Registration, UnixListener)> {
    let directories = runtime_directories();
    let directory = directories.first().ok_or_else(|| Error::new(Kind::Invalid, "register"))?;
    register_in(directory, record)
}

/// As [`register`], in a directory of the caller's choice.
///
/// # Errors
/// As [`register`].
pub fn register_in(
    directory: &Path,
    record: &SessionRecord,
) -> Result<(Registration, UnixListener)> {
    ensure_private(directory)?;
    let socket = directory.join(format!("{}.sock", record.session));
    let listener = UnixListener::bind(&socket).map_err(|error| {
        Error::io("make control socket", error).at(&socket).hint(
            "LAZYCOPY_RUNTIME_DIR names another directory; a socket's path has at most 107 bytes",
        )
    })?;
    let registration =
        Registration { record: directory.join(format!("{}.json", record.session)), socket };
    write_record(&registration.record, record)?;
    Ok((registration, listener))
}

fn write_record(path: &Path, record: &SessionRecord) -> Result<()> {
    let failed = |error| Error::io("write", error).at(path);
    let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    // Complete under its name, or not there.
    let unfinished = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed)?;
    file.write_all(&text).map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

/// Makes the directory, or checks that nobody else can have put anything there.
fn ensure_private(directory: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(directory);
    made.map_err(|error| Error::io("make directory", error).at(directory))?;
    if is_private(directory)? {
        return Ok(());
    }
    Err(Error::new(Kind::Denied, "use directory")
        .at(directory)
        .because("it must be a directory of this user with mode 0700")
        .hint("remove it, or name another with LAZYCOPY_RUNTIME_DIR"))
}

fn is_private(directory: &Path) -> Result<bool> {
    let metadata = fs::symlink_metadata(directory)
        .map_err(|error| Error::io("look at directory", error).at(directory))?;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    Ok(metadata.is_dir() && own && metadata.mode() & 0o077 == 0)
}

/// A daemon that runs.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it wrote down.
    pub record: SessionRecord,
    /// Its control socket.
    pub socket: PathBuf,
}

/// The daemons of this user that run, oldest first. What dead ones left is removed.
pub fn all() -> Vec<Found> {
    let mut found: Vec<_> = runtime_directories().iter().flat_map(|path| all_in(path)).collect();
    found.sort_by(|a, b| a.record.session.cmp(&b.record.session));
    found
}

/// As [`all`], in one directory.
pub fn all_in(directory: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    // A directory that others can write to holds nothing to believe.
    if !is_private(directory).unwrap_or(false) {
        return found;
    }
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let socket = path.with_extension("sock");
        let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match record {
            Some(record) => {
                let record: SessionRecord = record;
                if record.is_alive() {
                    found.push(Found { record, socket });
                } else {
                    remove(&path);
                    remove(&socket);
                }
            }
            None => tracing::debug!(path = %path.display(), "not a record"),
        }
    }
    found
}

/// The daemon that serves `target`, its mountpoint or destination; the path is compared as it is, nothing is looked up through
/// it. Of several the newest.
pub fn find(target: &Path) -> Option<Found> {
    all().into_iter().rev().find(|found| found.is_at(target))
}

impl Found {
    /// Whether `target` is its mountpoint or destination.
    pub fn is_at(&self, target: &Path) -> bool {
        self.record.mountpoint() == target || self.record.dest() == target
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record(session: &str) -> SessionRecord {
        SessionRecord::of_this_process(session, "/s", Path::new("/m"), Path::new("/d")).unwrap()
    }

    #[test]
    fn a_registration_is_found_until_it_is_dropped() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("run");
        let (registration, _listener) = register_in(&directory, &record("a")).unwrap();
        let found = all_in(&directory);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].socket, registration.socket());
        assert!(found[0].is_at(Path::new("/m")) && found[0].is_at(Path::new("/d")));
        assert!(!found[0].is_at(Path::new("/m/x")));
        drop(registration);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_daemon_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("run");
        // This process' number, but of another life: a reused pid.
        let dead = SessionRecord { process_start: 1, ..record("dead") };
        let (registration, _listener) = register_in(&directory, &dead).unwrap();
        let names = [registration.record.clone(), registration.socket.clone()];
        let left = fs::read(&names[0]).unwrap();
        drop(registration);
        let _socket = UnixListener::bind(&names[1]).unwrap();
        fs::write(&names[0], left).unwrap();
        assert!(all_in(&directory).is_empty());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_neither_used_nor_believed() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("run");
        let (_registration, _listener) = register_in(&directory, &record("a")).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(all_in(&directory).is_empty());
        assert_eq!(register_in(&directory, &record("b")).unwrap_err().kind(), Kind::Denied);
        let link = base.path().join("link");
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        assert!(register_in(&link, &record("b")).is_err());
    }

    #[test]
    fn a_path_that_is_not_utf8_comes_back_exact() {
        use std::os::unix::ffi::OsStrExt;
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/m\xff"));
        let record = SessionRecord::of_this_process("s", "/s", odd, Path::new("/d")).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        let back: SessionRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(back.mountpoint(), odd);
    }
}
