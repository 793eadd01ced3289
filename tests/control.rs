//! The control socket and the commands that use it, against a daemon that the test plays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod served;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use lazycopy::control::client::Client;
use lazycopy::control::orders::{
    Done, EventsRequest, HistoryReport, LimitRequest, PathDone, PathOrder, PathsDone, PathsRequest,
    ROUTES, SwitchOrder, tree_path,
};
use lazycopy::control::registry::{self, Registration, SessionRecord};
use lazycopy::control::server::ControlServer;
use lazycopy::control::status::{
    JobPhase, JsonPath, SCHEMA, StatusReport, StuckOperation, StuckReport,
};
use lazycopy::control::verify::{Summary, VerifyLine, VerifyOrder, VerifyTask};
use lazycopy::control::{Controlled, UnmountRequest};
use lazycopy::engine::history::Life;
use lazycopy::error::{Error, Kind, Result};
use lazycopy::vfs::mount::{MountOptions, UnmountMode, unmount_ours};
use lazycopy::vfs::mountinfo::DeviceNumber;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::served::Served;

/// What the played daemon does when it is told to unmount.
struct Daemon {
    mountpoint: PathBuf,
    mounted: Option<DeviceNumber>,
    process: u32,
    unmounts: AtomicUsize,
    answers: bool,
}

#[async_trait]
impl Controlled for Daemon {
    async fn status(&self) -> StatusReport {
        if !self.answers {
            std::future::pending::<()>().await;
        }
        let mut report = StatusReport::of(&self.mountpoint, Path::new("/the/destination"))
            .in_phase(JobPhase::Hydrating, None);
        report.source = "http://host/tree".to_owned();
        report.percent = 12.5;
        report
    }

    async fn stuck(&self) -> StuckReport {
        let operation = StuckOperation {
            id: 7,
            kind: "read".to_owned(),
            ino: 2,
            path: JsonPath::new("film.mov"),
            offset: 4096,
            len: 512,
            waits_for: "the source".to_owned(),
            chunk: Some(3),
            since_ms: 12_300,
            thread: 99,
        };
        StuckReport { schema: SCHEMA, session: "s".to_owned(), operations: vec![operation] }
    }

    async fn verify(
        &self,
        order: VerifyOrder,
        lines: mpsc::Sender<VerifyLine>,
    ) -> Result<VerifyLine> {
        if order.task == VerifyTask::Compare {
            return Err(Error::new(Kind::Busy, "verify").because("another one"));
        }
        let mended = VerifyLine::Mended { path: JsonPath::new("film.mov"), fetched: 7 };
        drop(lines.send(mended).await);
        Ok(VerifyLine::Summary(Summary { clean: true, mended: 1, ..Summary::default() }))
    }

    async fn switch(&self, order: SwitchOrder) -> Result<Done> {
        Ok(Done { message: format!("{} done", order.as_str()) })
    }

    async fn limit(&self, request: LimitRequest) -> Result<Done> {
        match request.bytes_per_s {
            Some(0) => Err(Error::new(Kind::Invalid, "limit").because("too little")),
            rate => Ok(Done { message: format!("limit {rate:?}") }),
        }
    }

    async fn paths(&self, order: PathOrder, request: PathsRequest) -> PathsDone {
        let done = |path: &JsonPath| {
            let result = match tree_path(path) {
                Ok(path) if path.as_bytes() == b"kept" => {
                    Err(Error::new(Kind::Denied, "evict").because("it is to be kept"))
                }
                Ok(_) => Ok(format!("{} done", order.as_str())),
                Err(error) => Err(error),
            };
            PathDone::new(path, result)
        };
        PathsDone { results: request.paths.iter().map(done).collect() }
    }

    async fn events(&self, request: EventsRequest, lines: mpsc::Sender<Bytes>) -> Result<()> {
        let text = format!("{{\"seq\":{}}}\n{{\"follow\":{}}}\n", request.from, request.follow);
        drop(lines.send(Bytes::from(text)).await);
        Ok(())
    }

    async fn history(&self) -> Result<HistoryReport> {
        Ok(HistoryReport::new(vec![Life { session: "s".to_owned(), ..Life::default() }]))
    }

    async fn unmount(&self, request: UnmountRequest) -> Result<()> {
        self.unmounts.fetch_add(1, Ordering::SeqCst);
        let mode = if request.force { UnmountMode::Detach } else { UnmountMode::Normal };
        if let Some(number) = self.mounted {
            unmount_ours(&self.mountpoint, number, mode)?;
        }
        let process = self.process.to_string();
        Command::new("kill").arg(process).status().map_err(|error| Error::io("kill", error))?;
        Ok(())
    }
}

/// A daemon that is registered, answers, and whose process is a `sleep`.
struct Played {
    base: TempDir,
    registration: Option<Registration>,
    server: Option<ControlServer>,
    runtime: tokio::runtime::Runtime,
    daemon: Arc<Daemon>,
    process: Child,
}

impl Played {
    fn start(served: Option<&Served>, answers: bool) -> Self {
        let base = tempfile::tempdir().unwrap();
        let process = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let mountpoint = served
            .map_or_else(|| PathBuf::from("/the/mountpoint"), |served| served.mountpoint.clone());
        let record = SessionRecord {
            pid: process.id(),
            process_start: registry::process_start(process.id()).unwrap(),
            ..SessionRecord::of_this_process("s", "x", &mountpoint, Path::new("/the/destination"))
                .unwrap()
        };
        let (registration, listener) =
            registry::register_in(&base.path().join("run"), &record).unwrap();
        let daemon = Arc::new(Daemon {
            mountpoint,
            mounted: served.map(|served| served.number),
            process: process.id(),
            unmounts: AtomicUsize::new(0),
            answers,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = {
            let _inside = runtime.enter();
            ControlServer::start(listener, Arc::clone(&daemon) as Arc<dyn Controlled>).unwrap()
        };
        Self {
            base,
            registration: Some(registration),
            server: Some(server),
            runtime,
            daemon,
            process,
        }
    }

    fn socket(&self) -> &Path {
        self.registration.as_ref().unwrap().socket()
    }

    /// Sends bytes as they are; returns what comes back.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may hang up before it has read everything.
        let _sent = stream.write_all(request);
        if !request.ends_with(b"\r\n\r\n") {
            // A whole request is answered; who hangs up before that may get no answer.
            let _end = stream.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn command(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lazycopy"))
            .args(args)
            .env("LAZYCOPY_RUNTIME_DIR", self.base.path().join("run"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown(Duration::from_secs(1)));
        }
        let _dead = self.process.kill();
        let _collected = self.process.wait();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_client_gets_what_the_daemon_says() {
    let played = Played::start(None, true);
    let client = Client::new(played.socket());
    let status = client.status().unwrap();
    assert_eq!((status.schema, status.phase), (1, JobPhase::Hydrating));
    assert_eq!(client.stuck().unwrap().operations[0].chunk, Some(3));
}

#[test]
fn what_is_found_comes_line_by_line_and_an_error_ends_it() {
    let played = Played::start(None, true);
    let client = Client::new(played.socket());
    let mut lines = Vec::new();
    client.verify(&VerifyOrder::default(), |line| lines.push(line)).unwrap();
    assert!(matches!(lines[0], VerifyLine::Mended { fetched: 7, .. }), "{lines:?}");
    assert!(matches!(lines[1], VerifyLine::Summary(Summary { clean: true, .. })), "{lines:?}");
    let order = VerifyOrder { task: VerifyTask::Compare, ..VerifyOrder::default() };
    let error = client.verify(&order, |line| panic!("{line:?}")).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
}

#[test]
fn what_is_not_there_is_404_and_the_wrong_verb_405_both_in_json() {
    let played = Played::start(None, true);
    let unknown = played.raw(b"GET /v1/no HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    assert!(unknown.contains(r#"{"kind":"not-found","message":"no /v1/no here"}"#), "{unknown}");
    let verb = played.raw(b"POST /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(verb.starts_with("HTTP/1.1 405"), "{verb}");
}

#[test]
fn every_route_answers_its_verb_and_refuses_the_other() {
    let played = Played::start(None, true);
    for (method, path) in ROUTES {
        if path == "/v1/unmount" {
            continue; // ends the played daemon
        }
        let ask = |method: &str| {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            played.raw(head.as_bytes())
        };
        let answer = ask(method);
        assert!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        let other = if method == "GET" { "POST" } else { "GET" };
        assert!(ask(other).starts_with("HTTP/1.1 405"), "{other} {path}");
    }
}

#[test]
fn orders_say_what_they_changed_and_errors_keep_their_kind() {
    let played = Played::start(None, true);
    let client = Client::new(played.socket());
    for order in SwitchOrder::ALL {
        assert_eq!(client.switch(order).unwrap().message, format!("{} done", order.as_str()));
    }
    let limited = client.limit(LimitRequest { bytes_per_s: Some(7) }).unwrap();
    assert_eq!(limited.message, "limit Some(7)");
    let refused = client.limit(LimitRequest { bytes_per_s: Some(0) }).unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
    let paths = ["a/b", "kept", "../x"].map(JsonPath::new).to_vec();
    for order in PathOrder::ALL {
        let done = client.paths(order, &PathsRequest { paths: paths.clone() }).unwrap();
        let kinds: Vec<_> = done
            .results
            .iter()
            .map(|done| done.result().map(str::to_owned).map_err(|error| error.kind()))
            .collect();
        let expected = Ok(format!("{} done", order.as_str()));
        assert_eq!(kinds, [expected, Err(Kind::Denied), Err(Kind::Invalid)]);
    }
    let mut lines = Vec::new();
    let request = EventsRequest { from: 3, follow: true };
    client.events(request, |line| lines.push(String::from_utf8_lossy(line).into_owned())).unwrap();
    assert_eq!(lines, [r#"{"seq":3}"#, r#"{"follow":true}"#]);
    assert_eq!(client.history().unwrap().lives.len(), 1);
}

#[test]
fn without_a_target_the_only_daemon_is_meant() {
    let played = Played::start(None, true);
    let paused = played.command(&["pause"]);
    assert_eq!(said(&paused), "pause done\n");
    assert_eq!(said(&played.command(&["limit", "20MB"])), "limit Some(20000000)\n");
    assert_eq!(said(&played.command(&["limit", "off", "/the/destination"])), "limit None\n");
    let nobody = played.command(&["stop", "/nowhere"]);
    assert_eq!(nobody.status.code(), Some(2), "{}", said(&nobody));
    // Another one of the same user.
    let record = SessionRecord {
        session: "t".to_owned(),
        pid: played.daemon.process,
        process_start: registry::process_start(played.daemon.process).unwrap(),
        ..SessionRecord::of_this_process("t", "x", Path::new("/other"), Path::new("/d")).unwrap()
    };
    let _other = registry::register_in(&played.base.path().join("run"), &record).unwrap();
    let several = played.command(&["pause"]);
    assert_eq!(several.status.code(), Some(2), "{}", said(&several));
    for place in ["there are 2", "/the/mountpoint", "/other", "TARGET"] {
        assert!(said(&several).contains(place), "{}", said(&several));
    }
    let outside = played.command(&["pin", "/tmp"]);
    assert_eq!(outside.status.code(), Some(1));
    assert!(said(&outside).contains("not lie in a mount of lazycopy"), "{}", said(&outside));
}

#[test]
fn watching_without_a_terminal_says_what_to_use() {
    let played = Played::start(None, true);
    let watched = played.command(&["status", "--watch"]);
    assert_eq!(watched.status.code(), Some(2));
    assert!(said(&watched).contains("--json"), "{}", said(&watched));
}

#[test]
fn requests_that_are_too_large_or_make_no_sense_are_refused() {
    let played = Played::start(None, true);
    let mut large = b"POST /v1/unmount HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n".to_vec();
    large.resize(large.len() + 1_000_000, b' ');
    assert!(played.raw(&large).starts_with("HTTP/1.1 413"));
    let head = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(100_000));
    let answer = played.raw(head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 414") || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let wrong = played.raw(b"POST /v1/unmount HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 12\r\n\r\n{\"forse\":true");
    assert!(wrong.starts_with("HTTP/1.1 400"), "{wrong}");
    assert_eq!(played.daemon.unmounts.load(Ordering::SeqCst), 0);
    assert!(Client::new(played.socket()).status().is_ok());
}

#[test]
fn connections_that_ask_nothing_do_not_keep_others_out_for_long() {
    let played = Played::start(None, true);
    let idle: Vec<_> = (0..20).map(|_| UnixStream::connect(played.socket()).unwrap()).collect();
    // Idle ones are cut after 5 s, 16 at a time; a client has 12 s.
    assert!(Client::new(played.socket()).status().is_ok());
    drop(idle);
}

// H7: a client without a deadline hangs for ever.
#[test]
fn a_daemon_that_says_nothing_is_not_waited_for_for_ever() {
    let played = Played::start(None, false);
    let started = Instant::now();
    let error = Client::new(played.socket()).status().unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn nobody_behind_the_socket_is_unreachable() {
    let mut played = Played::start(None, true);
    let socket = played.socket().to_owned();
    played.runtime.block_on(played.server.take().unwrap().shutdown(Duration::from_secs(1)));
    assert_eq!(Client::new(socket).status().unwrap_err().kind(), Kind::Unreachable);
}

#[test]
fn status_finds_the_daemon_by_mountpoint_and_destination_and_all_of_them_without() {
    let played = Played::start(None, true);
    for target in ["/the/mountpoint", "/the/x/../destination"] {
        let output = played.command(&["status", target]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    let text = said(&played.command(&["status"]));
    assert!(text.contains("/the/mountpoint shows http://host/tree"), "{text}");
    assert!(text.contains("hydrating, 12.5 %"), "{text}");
    let json = played.command(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["daemons"][0]["phase"], "hydrating");
    let stuck = said(&played.command(&["status", "--stuck"]));
    assert!(
        stuck.contains(
            "12.3 s  read #7 film.mov +4096 512 bytes: waits for the source (chunk 3), thread 99"
        ),
        "{stuck}"
    );
}

#[test]
fn unmount_returns_when_mount_and_process_are_gone() {
    let Some(mut served) = Served::start(|_| (), &MountOptions::default()) else { return };
    let mut played = Played::start(Some(&served), true);
    let target = served.mountpoint.to_str().unwrap().to_owned();
    let json = played.command(&["status", "--json", &target]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["mountpoint"], target.as_str());
    let output = played.command(&["unmount", &target]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(played.process.try_wait().unwrap().is_some(), "the process still runs");
    served.join();
    let again = played.command(&["unmount", &target]);
    assert_eq!(again.status.code(), Some(2));
    assert!(said(&again).contains("nothing mounted"), "{}", said(&again));
}

// H11
#[test]
fn a_busy_unmount_names_the_process_and_wait_waits_for_it() {
    let Some(served) = Served::start(|_| (), &MountOptions::default()) else { return };
    let played = Played::start(Some(&served), true);
    let target = served.mountpoint.to_str().unwrap();
    let mut user =
        Command::new("sleep").arg("600").current_dir(&served.mountpoint).spawn().unwrap();
    let busy = played.command(&["unmount", target]);
    assert_eq!(busy.status.code(), Some(6), "{}", said(&busy));
    let named = format!("pid {} (sleep): current directory", user.id());
    assert!(said(&busy).contains(&named), "{}", said(&busy));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| played.command(&["unmount", "--wait", target]));
        while played.daemon.unmounts.load(Ordering::SeqCst) < 3 {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        user.kill().unwrap();
        user.wait().unwrap();
        assert_eq!(waiting.join().unwrap().status.code(), Some(0));
    });
}

#[test]
fn force_takes_a_busy_mount_away() {
    let Some(served) = Served::start(|_| (), &MountOptions::default()) else { return };
    let played = Played::start(Some(&served), true);
    let target = served.mountpoint.to_str().unwrap();
    let mut user =
        Command::new("sleep").arg("600").current_dir(&served.mountpoint).spawn().unwrap();
    let forced = played.command(&["unmount", "--force", target]);
    assert_eq!(forced.status.code(), Some(0), "{}", said(&forced));
    user.kill().unwrap();
    user.wait().unwrap();
}

// H10, H23: the daemon is gone, the mount stays.
#[test]
fn what_a_dead_daemon_left_mounted_is_told_and_cleared() {
    if !served::fuse_is_there() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let mountpoint = fs::canonicalize(base.path()).unwrap().join("m");
    fs::create_dir(&mountpoint).unwrap();
    drop(lazycopy::vfs::mount::mount(&mountpoint, &MountOptions::default()).unwrap());
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_lazycopy"))
            .args(args)
            .arg(&mountpoint)
            .env("LAZYCOPY_RUNTIME_DIR", base.path().join("run"))
            .output()
            .unwrap()
    };
    let status = run(&["status"]);
    assert_eq!(status.status.code(), Some(2));
    assert!(said(&status).contains("its mount is dead"), "{}", said(&status));
    let unmount = run(&["unmount"]);
    assert_eq!(unmount.status.code(), Some(0), "{}", said(&unmount));
    assert!(fs::read_dir(&mountpoint).is_ok());
}
