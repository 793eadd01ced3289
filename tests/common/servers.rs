//! The servers of `scripts/servers.sh`, each on a port and in a directory of its own.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/servers.sh");

/// A running server; it ends with its owner, and with the test in any case.
pub(crate) struct Server {
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    directory: TempDir,
    child: Child,
}

impl Server {
    /// Starts the server `name`; `None` if it is not here, which is said (and a failure with `REQUIRE_SERVERS=1`: these come from registries
    /// that not every machine can reach).
    pub(crate) fn start(name: &str) -> Option<Self> {
        let listed = Command::new(SCRIPT).arg("list").output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let line = listed.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        if line.ends_with("not installed") {
            assert!(std::env::var_os("REQUIRE_SERVERS").is_none(), "{name} is missing");
            println!("skipped: {name} is missing (scripts/servers.sh install {name})");
            return None;
        }
        let started = (0..5).find_map(|_| Self::try_start(name));
        Some(started.unwrap_or_else(|| panic!("{name} does not start")))
    }

    fn try_start(name: &str) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        // Free now; if somebody takes it before the server does, that ends and another one is tried.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(SCRIPT)
            .args(["exec", name])
            .arg(directory.path())
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { port, directory, child };
        server.is_up().then_some(server)
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if self.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                println!("{}", self.log());
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Where it keeps its files.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where its own files are: keys, configuration.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
