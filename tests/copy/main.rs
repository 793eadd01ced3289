//! `lazycopy copy`, the real program on real trees.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod delta;
mod first;
mod manifest;
mod orders;
#[path = "../common/origin.rs"]
mod origin;
mod reflink;
mod remote;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A source and a place for its copy.
struct Env {
    base: tempfile::TempDir,
}

/// How the program ended.
struct Ended {
    exit: Option<i32>,
    summary: Value,
    stderr: String,
}

impl Ended {
    /// A number of the summary, by its path.
    fn count(&self, path: &str) -> u64 {
        self.summary.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| {
            panic!("{path} in {}: {}", self.summary, self.stderr);
        })
    }

    fn expect(self, exit: i32) -> Self {
        assert_eq!(self.exit, Some(exit), "{} {}", self.summary, self.stderr);
        self
    }
}

impl Env {
    fn new() -> Self {
        // Not below a tmpfs: holes and times as on a disk.
        let base = tempfile::Builder::new().prefix("lazycopy-copy").tempdir_in("/var/tmp").unwrap();
        fs::create_dir(base.path().join("source")).unwrap();
        Self { base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    fn dir(&self) -> PathBuf {
        self.path("copy")
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.source().join(name), content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazycopy"));
        command
            .args(args)
            .current_dir(self.base.path())
            .env("LAZYCOPY_RUNTIME_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("LAZYCOPY_RESERVE", "16MiB")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, options: &[&str]) -> Child {
        self.start_from("source", options)
    }

    fn start_from(&self, source: &str, options: &[&str]) -> Child {
        let args = [&["copy", "--json"], options, &[source, "copy"]].concat();
        self.command(&args).spawn().unwrap()
    }

    fn copy_from(&self, source: &str, options: &[&str]) -> Ended {
        ended(self.start_from(source, options))
    }

    fn copy(&self, options: &[&str]) -> Ended {
        ended(self.start(options))
    }

    /// A copy of all, which must be right.
    fn copied(&self, options: &[&str]) -> Ended {
        let ended = self.copy(options).expect(0);
        tree::assert_same(&self.source(), &self.dir());
        ended
    }
}

fn ended(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or("null");
    let summary = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { exit: output.status.code(), summary, stderr }
}

/// Looks until there is something, for a while.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
