//! The system's own `ssh` as the way to a server: keys, agent, known hosts, aliases, jump hosts and certificates work as their users have
//! them, and no secret is ever in this process.
//!
//! It is a child with three pipes, which ends when they close: with its `Session`, and with this process however that ends. It has no
//! terminal, stands in no directory that could be a mountpoint, and asks nobody anything.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::complaint;
use super::place::Place;
use super::session::Session;
use super::wire::Wire;
use crate::error::{Error, Kind, Result};
use crate::source::options::{OptionSpec, SourceOptions, Takes};

/// `-S accept-new=true`, and `--accept-new`.
pub const ACCEPT_NEW: OptionSpec = OptionSpec {
    name: "accept-new",
    takes: Takes::Flag,
    help: "take and keep the key of a host that is unknown; one that changed is refused all the same [default: false]",
};

const fn file(name: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { name, takes: Takes::Path, help }
}

const IDENTITY: OptionSpec =
    file("identity", "private key, the only one that is offered [default: as ssh finds them]");
const CONFIG: OptionSpec =
    file("ssh-config", "configuration of ssh [default: ~/.ssh/config and the system's]");
const KNOWN_HOSTS: OptionSpec =
    file("known-hosts", "keys of hosts [default: ~/.ssh/known_hosts, or as configured]");

/// What `-S` understands.
pub(super) const OPTIONS: &[OptionSpec] = &[ACCEPT_NEW, IDENTITY, CONFIG, KNOWN_HOSTS];

/// How long a connection may take from the first packet to the first answer of the SFTP server, logging in included.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long ssh gets to say why it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of its words that are kept.
const WORDS: usize = 16 << 10;

/// What is always said to ssh. It asks nobody; a dead peer is noticed after 15 s; nothing of the session is anybody else's, and errors
/// are told. Of an option that is given twice the first counts, so no configuration changes these (ssh_config(5)).
const ALWAYS: &[&str] = &[
    "BatchMode=yes",
    "ConnectTimeout=20",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "LogLevel=ERROR",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
];

/// Whom ssh asks, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    host: String,
    arguments: Vec<String>,
}

impl Target {
    /// The arguments of ssh for `place`.
    ///
    /// # Errors
    /// `Invalid` for a file whose name ssh would misread.
    pub(super) fn new(place: &Place, options: &SourceOptions) -> Result<Self> {
        let checking = match options.flag(ACCEPT_NEW.name)? {
            true => "StrictHostKeyChecking=accept-new",
            false => "StrictHostKeyChecking=yes",
        };
        let mut settings: Vec<String> =
            ALWAYS.iter().chain([&checking]).map(|&setting| setting.to_owned()).collect();
        if let Some(path) = options.path(KNOWN_HOSTS.name)? {
            settings.push(format!("UserKnownHostsFile={}", quoted(&path)?));
        }
        if let Some(path) = options.path(IDENTITY.name)? {
            // ssh would only say that nobody lets it in.
            fs::metadata(&path).map_err(|error| Error::io("use -S identity", error).at(&path))?;
            settings.push(format!("IdentityFile={}", quoted(&path)?));
            settings.push("IdentitiesOnly=yes".to_owned());
        }
        if let Some(port) = place.port {
            settings.push(format!("Port={port}"));
        }
        let options_of_ssh = settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]);
        let mut arguments: Vec<String> = options_of_ssh.collect();
        if let Some(path) = options.path(CONFIG.name)? {
            arguments.extend(["-F".to_owned(), text(&path)?.to_owned()]);
        }
        if let Some(user) = &place.user {
            arguments.extend(["-l".to_owned(), user.clone()]);
        }
        let host = place.host.clone();
        arguments.extend(["-s", "--", &host, "sftp"].map(str::to_owned));
        Ok(Self { host, arguments })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `Denied` for a host or a user that is not let in; `Unreachable`, `Timeout`; `NotSupported` without ssh here or SFTP there; `Invalid` for a
    /// configuration that makes no sense.
    ///
    /// # Cancel safety
    /// Dropping it ends ssh.
    pub(super) async fn connect(&self) -> Result<Session> {
        let (mut process, stdin, stdout) = Process::start(self)?;
        let greeting = timeout(DEADLINE, Session::greet(stdout, stdin));
        let greeted = tokio::select! {
            greeted = greeting => greeted,
            never = process.listen() => match never {},
        };
        let (session, wire) = match greeted {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) => return Err(process.explain(error).await),
            Err(_elapsed) => {
                let why = format!("no connection within {} s", DEADLINE.as_secs());
                return Err(Error::new(Kind::Timeout, "connect by ssh").because(why));
            }
        };
        tokio::spawn(serve(wire, process, self.host.clone()));
        match timeout(DEADLINE, session.learn_limits()).await {
            Ok(learned) => learned.map(|()| session),
            Err(_elapsed) => Err(Error::new(Kind::Timeout, "connect by ssh")
                .because("the SFTP server does not answer")),
        }
    }
}

/// Serves a session until it ends, and takes ssh with it.
async fn serve(mut wire: Wire<ChildStdout, ChildStdin>, mut process: Process, host: String) {
    let why = tokio::select! {
        why = wire.run() => why,
        never = process.listen() => match never {},
    };
    if wire.is_unused() {
        return;
    }
    // Whatever it was: it says nothing of any file.
    let why = process.explain(why).await;
    let why = if why.is_transient() { why } else { why.kinded(Kind::Unreachable) };
    tracing::info!(host, %why, "a connection ended");
    wire.end(&why);
}

/// A path as a value of the configuration (ssh_config(5): quotes, and tokens after `%`).
fn quoted(path: &Path) -> Result<String> {
    let path = text(path)?;
    if path.contains(['"', '\\', '\n', '\r']) || path.contains("${") {
        return Err(Error::new(Kind::Invalid, "use -S")
            .at(path)
            .because("ssh takes no file with quotes, backslashes or ${ in its name"));
    }
    Ok(format!("\"{}\"", path.replace('%', "%%")))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(Kind::Invalid, "use -S").at(path).because("the name of the file is not UTF-8")
    })
}

/// A running ssh. Dropping it ends it.
#[derive(Debug)]
struct Process {
    child: Child,
    stderr: ChildStderr,
    said: BytesMut,
}

impl Process {
    fn start(target: &Target) -> Result<(Self, ChildStdin, ChildStdout)> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(Kind::NotSupported, "start ssh")
                .because("there is no program ssh here")
                .hint("install it: apt-get install openssh-client"),
            _ => Error::io("start ssh", error),
        };
        let mut child = Command::new("ssh")
            .args(&target.arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What ends this process by the keyboard lets it finish first.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::new(Kind::Io, "start ssh").because("it has no pipes"));
        };
        Ok((Self { child, stderr, said: BytesMut::new() }, stdin, stdout))
    }

    /// Keeps what it says, so that it can go on saying it.
    async fn listen(&mut self) -> Infallible {
        loop {
            match self.stderr.read_buf(&mut self.said).await {
                Ok(0) | Err(_) => std::future::pending().await,
                Ok(_) if self.said.len() > WORDS => {
                    drop(self.said.split_to(self.said.len() - WORDS))
                }
                Ok(_) => {}
            }
        }
    }

    /// Why the connection ended, in ssh's own words if it has any; else `error`.
    async fn explain(&mut self, error: Error) -> Error {
        if error.kind() != Kind::Unreachable {
            return error;
        }
        let ended = async {
            let _how = self.child.wait().await;
            let mut last = BytesMut::new();
            while matches!(self.stderr.read_buf(&mut last).await, Ok(1..)) {
                self.said.extend_from_slice(&last.split());
            }
        };
        // Another child of its own may hold its standard error; what it said so far is there.
        let _late = timeout(LAST_WORDS, ended).await;
        complaint::read(&String::from_utf8_lossy(&self.said)).unwrap_or(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(url: &str, items: &[&str]) -> Result<Vec<String>> {
        let options = SourceOptions::parse(items)?;
        options.check("sftp", OPTIONS)?;
        Target::new(&Place::parse(url)?, &options).map(|target| target.arguments)
    }

    #[test]
    fn a_host_is_known_or_refused_unless_somebody_says_otherwise() {
        let strict = arguments("sftp://h/", &[]).unwrap();
        assert!(strict.contains(&"StrictHostKeyChecking=yes".to_owned()));
        assert!(strict.contains(&"BatchMode=yes".to_owned()));
        assert_eq!(strict[strict.len() - 4..], ["-s", "--", "h", "sftp"]);
        let open = arguments("sftp://h/", &["accept-new=true"]).unwrap();
        assert!(open.contains(&"StrictHostKeyChecking=accept-new".to_owned()));
    }

    #[test]
    fn files_users_and_ports_reach_ssh_as_they_are() {
        let directory = tempfile::TempDir::new().unwrap();
        let key = directory.path().join("a k%y");
        fs::write(&key, "").unwrap();
        let identity = format!("identity={}", key.display());
        let items = [&identity, "known-hosts=/k", "ssh-config=/c %d"];
        let all = arguments("sftp://me@h:2222/", &items).unwrap();
        let key = format!("IdentityFile=\"{}\"", key.display().to_string().replace('%', "%%"));
        let file = "UserKnownHostsFile=\"/k\"";
        for argument in [&key, "IdentitiesOnly=yes", file, "Port=2222", "/c %d", "me"] {
            assert!(all.contains(&argument.to_owned()), "{argument} {all:?}");
        }
        for item in ["known-hosts=/a\"b", "known-hosts=/${HOME}/x", "known-hosts=/a\\b"] {
            assert_eq!(arguments("sftp://h/", &[item]).unwrap_err().kind(), Kind::Invalid);
        }
        let missing = arguments("sftp://h/", &["identity=/nonexistent/key"]).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/key"), "{missing}");
    }
}
