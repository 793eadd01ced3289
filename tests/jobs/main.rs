//! `lazycopy run`, the real program with real jobs, hooks and snapshots.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod ending;
mod file;
mod hooks;
mod running;
mod snapshots;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// No wait is longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// A directory with sources, a jobs file and what runs leave.
struct Env {
    base: tempfile::TempDir,
}

/// How a run ended, with all that it printed.
struct Ended {
    exit: Option<i32>,
    lines: Vec<Value>,
    stderr: String,
}

/// A run that goes on.
struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    lines: Vec<Value>,
}

impl Env {
    fn new() -> Self {
        let base = tempfile::Builder::new().prefix("lazycopy-jobs").tempdir_in("/var/tmp").unwrap();
        Self { base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// A file that has rested, so that nothing waits for it to be told from a later version.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let before = SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    }

    /// The source of a job, with a small file.
    fn source(&self, name: &str) {
        self.write(&format!("{name}/small"), name);
    }

    /// A source that takes four minutes at the rate of [`slow`].
    fn large_source(&self, name: &str) {
        self.source(name);
        self.write(&format!("{name}/large"), vec![7; 60 << 20]);
    }

    fn jobs(&self, text: &str) {
        fs::write(self.path("jobs.toml"), text).unwrap();
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazycopy"));
        command
            .args(args)
            .current_dir(self.base.path())
            .env("LAZYCOPY_RUNTIME_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("LAZYCOPY_RESERVE", "16MiB")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Running {
        let args = [&["run", "--json", "jobs.toml"], args].concat();
        let mut child = self.command(&args).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out, lines: Vec::new() }
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.start(args).ended()
    }

    /// The events of all runs, the oldest first.
    fn events(&self) -> Vec<Value> {
        let mut logs = self.run_files("jsonl");
        logs.sort();
        let text: String = logs.iter().map(|log| fs::read_to_string(log).unwrap()).collect();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn run_files(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("state/lazycopy/runs")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().unwrap() == extension).collect()
    }
}

impl Running {
    /// Reads on until a line of this type comes, of this job.
    fn until(&mut self, kind: &str, name: &str) -> &Value {
        loop {
            assert!(self.next_line(), "{kind} of {name} never came: {:#?}", self.lines);
            let last = self.lines.last().unwrap();
            if last["type"] == kind && last["name"] == name {
                return self.lines.last().unwrap();
            }
        }
    }

    fn next_line(&mut self) -> bool {
        let mut line = String::new();
        if self.out.read_line(&mut line).unwrap() == 0 {
            return false;
        }
        self.lines.push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")));
        true
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ended(mut self) -> Ended {
        let mut stderr = self.child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || std::io::read_to_string(&mut stderr).unwrap());
        while self.next_line() {}
        let status: ExitStatus = self.child.wait().unwrap();
        let lines = std::mem::take(&mut self.lines);
        Ended { exit: status.code(), lines, stderr: errors.join().unwrap() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its jobs end with it. After a test that went well nothing is left to be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Ended {
    #[track_caller]
    fn expect(self, exit: i32) -> Self {
        assert_eq!(self.exit, Some(exit), "{:#?} {}", self.lines.last(), self.stderr);
        self
    }

    fn summary(&self) -> &Value {
        let summary = self.lines.last().unwrap();
        assert_eq!(summary["type"], "summary");
        summary
    }

    /// What became of a job.
    fn job(&self, name: &str) -> &Value {
        let jobs = self.summary()["jobs"].as_array().unwrap();
        jobs.iter().find(|job| job["name"] == name).unwrap()
    }

    #[track_caller]
    fn expect_outcomes(&self, wanted: &[(&str, &str)]) {
        let jobs = self.summary()["jobs"].as_array().unwrap();
        let found: Vec<_> = jobs
            .iter()
            .map(|job| (job["name"].as_str().unwrap(), job["outcome"].as_str().unwrap()))
            .collect();
        assert_eq!(found, wanted, "{:#?}", self.summary());
    }
}

/// A job from `NAME` to `out-NAME`, with more keys.
fn job(name: &str, keys: &str) -> String {
    format!("[[job]]\nname = '{name}'\nsource = '{name}'\ndestination = 'out-{name}'\n{keys}\n")
}

/// A job that runs until it is stopped.
fn slow(name: &str) -> String {
    job(name, "limit = '256KiB/s'")
}

/// The processes that the run `pid` started.
fn children_of(pid: u32) -> Vec<i32> {
    let mark = format!("--child-of\0{pid}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&mark)
    })
    .collect()
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Looks until it is so.
#[track_caller]
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
