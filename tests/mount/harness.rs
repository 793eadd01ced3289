//! Starts the real program on the real kernel, and takes everything away again, also after a panic.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// The size of a block.
pub(crate) const BLOCK: u64 = lazycopy::core::range::BLOCK_SIZE;

/// Calls `look` until it gives something.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(POLL);
    }
}

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) place: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// The mount table, the oldest first. Looks at no mountpoint.
pub(crate) fn mounts() -> Vec<Mount> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    table.split(|byte| *byte == b'\n').filter_map(mount_of).collect()
}

fn mount_of(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = words.iter().position(|word| *word == b"-")?;
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    Some(Mount {
        place: PathBuf::from(OsString::from_vec(unescape(words[4]))),
        kind: text(words[dash + 1]),
        source: text(words[dash + 2]),
    })
}

/// `\040` and its like (proc_pid_mountinfo(5)).
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        let code = word.get(at + 1..at + 4).and_then(|code| std::str::from_utf8(code).ok());
        match code.filter(|_| word[at] == b'\\').and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => (bytes.push(byte), at += 4),
            None => (bytes.push(word[at]), at += 1),
        };
    }
    bytes
}

/// Types of what is mounted at `place`, the lowest first.
pub(crate) fn types_at(place: &Path) -> Vec<String> {
    mounts().into_iter().filter(|mount| mount.place == place).map(|mount| mount.kind).collect()
}

pub(crate) fn tmpfs(at: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, None).unwrap();
}

/// Whether mounts are possible. A failure where they must be (`REQUIRE_FUSE=1`).
pub(crate) fn fuse_is_there() -> bool {
    let there = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    let required = std::env::var_os("REQUIRE_FUSE").is_some_and(|set| set == "1");
    assert!(there || !required, "REQUIRE_FUSE=1, and there is no /dev/fuse or no privilege");
    if !there {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    there
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Directories of one test: a source, a mountpoint, a place for the destination, and a registry that no other test sees.
pub(crate) struct Env {
    base: PathBuf,
    destination: PathBuf,
    _directory: TempDir,
}

impl Env {
    /// `None` where nothing can be mounted.
    pub(crate) fn new() -> Option<Self> {
        if !fuse_is_there() {
            return None;
        }
        // Not on a tmpfs, which knows no RWF_NOWAIT.
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| OsString::from("/var/tmp"));
        let directory = tempfile::Builder::new().prefix("lazycopy-").tempdir_in(parent).unwrap();
        let base = fs::canonicalize(directory.path()).unwrap();
        let env = Self { destination: base.join("dest"), base, _directory: directory };
        for place in [env.source(), env.mountpoint()] {
            fs::create_dir(place).unwrap();
        }
        Some(env)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.path("source")
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.path("mnt")
    }

    pub(crate) fn destination(&self) -> PathBuf {
        self.destination.clone()
    }

    /// Copies are made somewhere else, on another file system perhaps.
    pub(crate) fn put_destination(&mut self, place: PathBuf) {
        self.destination = place;
    }

    /// Puts a file into the source.
    pub(crate) fn put(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.source().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazycopy"));
        command
            .args(args)
            .current_dir(&self.base)
            .env("LAZYCOPY_RUNTIME_DIR", self.path("run"))
            // Tests run on small and nearly full disks too.
            .env("LAZYCOPY_RESERVE", "0")
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let output = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn mount_args(&self, source: &OsStr, options: &[&str]) -> Vec<OsString> {
        let (mountpoint, destination) = (self.mountpoint(), self.destination());
        let fixed: [&OsStr; 5] = [
            "mount".as_ref(),
            source,
            mountpoint.as_os_str(),
            "--dest".as_ref(),
            destination.as_os_str(),
        ];
        let options = options.iter().map(OsStr::new);
        fixed.into_iter().chain(options).map(OsStr::to_owned).collect()
    }

    /// `mount SOURCE MOUNTPOINT --dest DEST OPTIONS`, which may fail.
    pub(crate) fn try_mount(&self, source: impl AsRef<OsStr>, options: &[&str]) -> Ran {
        self.run(self.mount_args(source.as_ref(), options))
    }

    /// Mounts the local source in the background.
    pub(crate) fn mount(&self, options: &[&str]) -> Mounted<'_> {
        self.mount_from(self.source(), options)
    }

    /// Mounts `source` in the background; the mount is really there when this returns.
    pub(crate) fn mount_from(&self, source: impl AsRef<OsStr>, options: &[&str]) -> Mounted<'_> {
        let ran = self.try_mount(source, options);
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", self.log());
        self.mounted(None)
    }

    /// Mounts the local source in the foreground.
    pub(crate) fn mount_in_foreground(&self, options: &[&str]) -> Mounted<'_> {
        self.mount_from_in_foreground(self.source(), options)
    }

    pub(crate) fn mount_from_in_foreground(
        &self,
        source: impl AsRef<OsStr>,
        options: &[&str],
    ) -> Mounted<'_> {
        let mut child = self.start_from_in_foreground(source.as_ref(), options);
        eventually("a mount in the foreground", || {
            assert!(child.try_wait().unwrap().is_none(), "ended: {}", self.log());
            // The registration comes after the mount.
            self.record().map(|_| ())
        });
        self.mounted(Some(child))
    }

    /// Begins to mount the local source in the foreground: there may be no mount yet when this returns.
    pub(crate) fn start_in_foreground(&self, options: &[&str]) -> Child {
        self.start_from_in_foreground(self.source().as_ref(), options)
    }

    fn start_from_in_foreground(&self, source: &OsStr, options: &[&str]) -> Child {
        let log = File::create(self.path("foreground.log")).unwrap();
        let mut command = self.command(self.mount_args(source, options));
        command.arg("-f").stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// What `mount -f` and the daemon have said.
    pub(crate) fn log(&self) -> String {
        let mut text = fs::read_to_string(self.path("foreground.log")).unwrap_or_default();
        for file in fs::read_dir(self.path("state/lazycopy")).into_iter().flatten().flatten() {
            text += &fs::read_to_string(file.path()).unwrap_or_default();
        }
        text
    }

    /// Names in the registry of daemons.
    pub(crate) fn registered(&self) -> Vec<OsString> {
        let entries = fs::read_dir(self.path("run")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    /// What the daemon of this test's mountpoint wrote down about itself.
    fn record(&self) -> Option<Value> {
        let mountpoint = self.mountpoint();
        let files = fs::read_dir(self.path("run")).ok()?.flatten();
        files
            .filter(|file| file.path().extension().is_some_and(|end| end == "json"))
            .filter_map(|file| serde_json::from_slice(&fs::read(file.path()).ok()?).ok())
            .find(|record: &Value| record["mountpoint"] == mountpoint.to_str().unwrap())
    }

    /// What is mounted by a command that was run before.
    pub(crate) fn mounted_now(&self) -> Mounted<'_> {
        self.mounted(None)
    }

    fn mounted(&self, foreground: Option<Child>) -> Mounted<'_> {
        let place = self.mountpoint();
        let top = types_at(&place);
        assert_eq!(top.last().map(String::as_str), Some("fuse.lazycopy"), "{}", self.log());
        let record = self.record().unwrap();
        let pid = i32::try_from(record["pid"].as_i64().unwrap()).unwrap();
        Mounted { env: self, place, pid: Pid::from_raw(pid).unwrap(), foreground }
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        while let Some(mount) =
            mounts().into_iter().rev().find(|mount| mount.place.starts_with(&self.base))
        {
            if rustix::mount::unmount(&mount.place, UnmountFlags::DETACH).is_err() {
                return;
            }
        }
    }
}

/// A mount and its daemon. Dropping it takes both away.
pub(crate) struct Mounted<'a> {
    pub(crate) env: &'a Env,
    /// The mountpoint.
    pub(crate) place: PathBuf,
    pid: Pid,
    foreground: Option<Child>,
}

impl Mounted<'_> {
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.place.join(name)
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn status(&self) -> Value {
        let ran =
            self.env.run([OsStr::new("status"), OsStr::new("--json"), self.place.as_os_str()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        serde_json::from_str(&ran.out).unwrap()
    }

    pub(crate) fn stuck(&self) -> Vec<Value> {
        let ran = self.env.run([
            OsStr::new("status"),
            OsStr::new("--stuck"),
            OsStr::new("--json"),
            self.place.as_os_str(),
        ]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let report: Value = serde_json::from_str(&ran.out).unwrap();
        report["operations"].as_array().unwrap().clone()
    }

    /// Polls status until `wanted` holds; the status then.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            last = self.status();
            if wanted(&last) {
                return last;
            }
            std::thread::sleep(POLL);
        }
        panic!("never: {what}; {last}\n{}", self.env.log())
    }

    pub(crate) fn until_complete(&self) -> Value {
        let ended = |status: &Value| status["phase"] == "complete" || status["phase"] == "failed";
        let status = self.until("complete", ended);
        assert_eq!(status["phase"], "complete", "{status:#}\n{}", self.env.log());
        status
    }

    pub(crate) fn until_published(&self, files: u64) -> Value {
        self.until("published", |status| status["files"]["published"] == files)
    }

    pub(crate) fn is_alive(&self) -> bool {
        is_running(self.pid)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    pub(crate) fn until_gone(&mut self) {
        eventually("the daemon's end", || {
            if let Some(child) = &mut self.foreground {
                drop(child.try_wait());
            }
            (!self.is_alive()).then_some(())
        });
    }

    /// `lazycopy unmount OPTIONS`.
    pub(crate) fn try_unmount(&self, options: &[&str]) -> Ran {
        let args = [OsStr::new("unmount"), self.place.as_os_str()];
        self.env.run(args.into_iter().chain(options.iter().map(OsStr::new)))
    }

    pub(crate) fn unmount(self) {
        let ran = self.try_unmount(&[]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }

    /// Exit code of a daemon in the foreground, after it was unmounted.
    pub(crate) fn unmount_and_wait(mut self) -> ExitStatus {
        let ran = self.try_unmount(&[]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        self.foreground.as_mut().unwrap().wait().unwrap()
    }

    fn is_mounted(&self) -> bool {
        types_at(&self.place).last().is_some_and(|kind| kind == "fuse.lazycopy")
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log\n{}", self.env.log());
        }
        if self.is_mounted() {
            let ran = self.try_unmount(&[]);
            if ran.code != Some(0) {
                eprintln!("unmounted with force: {ran:?}");
                self.try_unmount(&["--force"]);
            }
        }
        while self.is_mounted() {
            if rustix::mount::unmount(&self.place, UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_running(self.pid) && Instant::now() < deadline {
            if let Some(child) = &mut self.foreground {
                drop(child.try_wait());
            }
            std::thread::sleep(POLL);
        }
        if is_running(self.pid) {
            let _gone_meanwhile = kill_process(self.pid, Signal::KILL);
        }
        if let Some(child) = &mut self.foreground {
            drop(child.wait());
        }
    }
}

/// Whether a process runs; its remains do not count.
pub(crate) fn is_running(pid: Pid) -> bool {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let Ok(stat) = fs::read(path) else { return false };
    let state = stat.iter().rposition(|byte| *byte == b')').and_then(|at| stat.get(at + 2));
    !matches!(state, Some(b'Z' | b'X') | None)
}

/// Numbers that look random and come from a seed.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A new seed, printed so that a failure can be repeated with `SEED=…`.
    pub(crate) fn new() -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(0)
        });
        println!("SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(len).collect()
    }
}

/// Content in which every 8 bytes say which version and which offset they belong to.
pub(crate) fn patterned(version: u8, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 16);
    let first = offset / 8;
    let words = len as u64 / 8 + 2;
    for word in first..first + words {
        bytes.extend_from_slice(&((u64::from(version) << 56) | word).to_be_bytes());
    }
    let skip = usize::try_from(offset % 8).unwrap();
    bytes.drain(..skip);
    bytes.truncate(len);
    bytes
}

/// As read(2) of a range; fewer bytes only at the end of the file.
pub(crate) fn read_at(file: &File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut read = 0;
    while read < len {
        match file.read_at(&mut bytes[read..], offset + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// Reads a file to its end.
pub(crate) fn read(path: impl AsRef<Path>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// errno of a call that must fail.
pub(crate) fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<OsString> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// A name from bytes.
pub(crate) fn name(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

pub(crate) fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Runs a tool that must succeed; what it printed.
pub(crate) fn tool(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output.stdout
}
