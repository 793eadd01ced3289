//! Going to the background: the command runs itself again as a daemon and waits for its first word.
//!
//! The child's standard output is the pipe back, so no descriptor has to be handed over by number. Nothing forks: the child is
//! a fresh process, and takes its leave of the terminal before it has a second thread.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::cli::exit::Exit;
use crate::cli::logging::{self, LogPlace};
use crate::cli::{complain, say};
use crate::daemon::readiness::{Readiness, StatusSource};
use crate::error::{Error, Kind, Result};

/// Time for the child's first word.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a child that has closed the pipe to end.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(10);
/// The longest first word, in bytes.
const WORD_MAX: u64 = 64 * 1024;

/// The child's first and only word.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    ok: bool,
    message: String,
    #[serde(default)]
    warnings: Vec<String>,
    exit: u8,
}

/// Starts `args` (the program's name first) again as a daemon; returns when it is ready, has failed, or is silent for too long.
pub(crate) fn start(args: &[OsString], place: &LogPlace) -> ExitCode {
    let begun = command(args, place).and_then(|mut command| {
        command.spawn().map_err(|error| Error::io("start the daemon", error))
    });
    match begun {
        Ok(child) => await_word(child, place, START_DEADLINE),
        Err(error) => {
            complain(&error.to_string());
            Exit::of(&error).into()
        }
    }
}

fn command(args: &[OsString], place: &LogPlace) -> Result<Command> {
    let program = std::env::current_exe().map_err(|error| Error::io("find this program", error))?;
    let mut command = Command::new(program);
    command
        .arg("--background-child")
        .args(args.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(child_stderr(place)?);
    Ok(command)
}

/// Last words that are no log lines (a crash of the runtime) must not be lost.
fn child_stderr(place: &LogPlace) -> Result<Stdio> {
    let path = match place {
        LogPlace::Stderr => return Ok(Stdio::inherit()),
        LogPlace::File(path) => path.clone(),
        LogPlace::Directory(directory) => {
            logging::ensure_directory(directory)?;
            directory.join("stderr.log")
        }
    };
    let file = File::options().append(true).create(true).open(&path);
    Ok(file.map_err(|error| Error::io("open log", error).at(&path))?.into())
}

fn await_word(mut child: Child, place: &LogPlace, deadline: Duration) -> ExitCode {
    let word = match child.stdout.take() {
        Some(pipe) => read_word(pipe, deadline),
        None => Heard::Nothing,
    };
    match word {
        Heard::Word(word) => {
            if word.ok {
                say(&word.message);
                word.warnings.iter().for_each(|warning| complain(&format!("warning: {warning}")));
            } else {
                complain(&word.message);
            }
            ExitCode::from(word.exit)
        }
        Heard::Nothing => {
            let how = how_it_ended(&mut child);
            complain(&format!("the daemon ended before it was ready ({how}); its log: {place}"));
            Exit::SomeFailed.into()
        }
        Heard::Silence => {
            stop(&child);
            complain(&format!(
                "the daemon was not ready after {} s and was told to stop; its log: {place}",
                deadline.as_secs()
            ));
            Exit::SomeFailed.into()
        }
    }
}

/// A closed pipe does not prove that the process is gone.
fn how_it_ended(child: &mut Child) -> String {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.to_string(),
            Err(error) => return error.to_string(),
            Ok(None) if started.elapsed() < END_DEADLINE => thread::sleep(POLL),
            Ok(None) => {
                stop(child);
                return format!("process {} lives on, and was told to stop", child.id());
            }
        }
    }
}

/// Asks for an orderly end: nothing half-mounted may stay.
fn stop(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process(pid, Signal::TERM)
    {
        complain(&format!("stop process {}: {error}", child.id()));
    }
}

enum Heard {
    Word(Word),
    /// The pipe was closed without a word.
    Nothing,
    /// Not a sound until the deadline.
    Silence,
}

fn read_word(pipe: ChildStdout, deadline: Duration) -> Heard {
    let (sender, heard) = channel::bounded(1);
    // Left behind after the deadline; the process ends then.
    thread::spawn(move || {
        let mut line = Vec::new();
        let read = BufReader::new(pipe.take(WORD_MAX)).read_until(b'\n', &mut line);
        drop(sender.send(read.map(|_| line)));
    });
    match heard.recv_timeout(deadline) {
        Ok(Ok(line)) => serde_json::from_slice(&line).map_or(Heard::Nothing, Heard::Word),
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Heard::Nothing,
        Err(RecvTimeoutError::Timeout) => Heard::Silence,
    }
}

/// The daemon's side of the pipe.
#[derive(Debug)]
pub(crate) struct Leave {
    pipe: Option<File>,
    place: LogPlace,
}

impl Leave {
    /// Makes this process a daemon: a session of its own, no standard output. Relative paths are to be resolved before.
    ///
    /// # Errors
    /// If the system refuses; nothing has been said then.
    pub(crate) fn the_terminal(place: LogPlace) -> Result<Self> {
        let failed = |error: rustix::io::Errno| Error::io("go to the background", error);
        let pipe: OwnedFd =
            rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(failed)?;
        let null = PathBuf::from("/dev/null");
        let nowhere = File::options()
            .write(true)
            .open(&null)
            .map_err(|error| Error::io("go to the background", error).at(&null))?;
        rustix::stdio::dup2_stdout(&nowhere).map_err(failed)?;
        let left = Self { pipe: Some(File::from(pipe)), place };
        rustix::process::setsid().map_err(failed)?;
        // So that it keeps no file system busy by standing in it.
        rustix::process::chdir("/").map_err(failed)?;
        Ok(left)
    }

    /// Tells why there is no daemon, unless it was ready already.
    pub(crate) fn failed(&mut self, error: &Error) {
        let (message, warnings) = (error.to_string(), Vec::new());
        let word = Word { ok: false, message, warnings, exit: Exit::of(error).code() };
        if let Err(error) = self.speak(&word) {
            tracing::debug!(err = %error, "nobody waits for the start any more");
        }
    }

    fn speak(&mut self, word: &Word) -> Result<()> {
        let Some(mut pipe) = self.pipe.take() else { return Ok(()) };
        let failed = |error| Error::io("tell that it is ready", error).kinded(Kind::Busy);
        let mut line = serde_json::to_vec(word).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        pipe.write_all(&line).map_err(failed)
    }
}

impl Readiness for Leave {
    fn ready(&mut self, line: &str, warnings: &[String], _status: StatusSource) -> Result<()> {
        tracing::info!("{line}");
        let message = format!("{line}\nlog: {}", self.place);
        self.speak(&Word { ok: true, message, warnings: warnings.to_vec(), exit: Exit::Ok.code() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(script: &str, deadline: Duration) -> (Heard, Child) {
        let mut child =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let pipe = child.stdout.take().unwrap();
        (read_word(pipe, deadline), child)
    }

    // H6: readiness was awaited from a call that never returned.
    #[test]
    fn a_silent_child_is_not_waited_for_for_ever() {
        let started = Instant::now();
        let (heard, mut child) = heard("exec sleep 600", Duration::from_millis(100));
        assert!(matches!(heard, Heard::Silence));
        assert!(started.elapsed() < Duration::from_secs(10));
        stop(&child);
        assert!(!child.wait().unwrap().success());
    }

    // O: death is never success.
    #[test]
    fn a_child_that_dies_without_a_word_is_noticed_at_once() {
        for script in ["exit 0", "echo garbage", "kill -9 $$"] {
            let (heard, mut child) = heard(script, Duration::from_secs(30));
            assert!(matches!(heard, Heard::Nothing), "{script}");
            assert!(how_it_ended(&mut child).contains("status") || script.contains("kill"));
        }
    }

    #[test]
    fn a_word_is_heard_while_the_child_lives_on() {
        let script = r#"echo '{"ok":true,"message":"there","exit":0}'; exec sleep 600"#;
        let (heard, mut child) = heard(script, Duration::from_secs(30));
        let Heard::Word(word) = heard else { panic!() };
        assert!(word.ok && word.message == "there");
        stop(&child);
        child.wait().unwrap();
    }
}
