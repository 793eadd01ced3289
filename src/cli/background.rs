//! Going to the background: the command runs itself again as a daemon and waits for its first word.
//!
//! The child's standard output is the pipe back, so no descriptor has to be handed over by number. Nothing forks: the child is
//! a fresh process, and takes its leave of the terminal before it has a second thread.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::cli::exit::Exit;
use crate::cli::logging::{self, LogArgs, LogPlace};
use crate::cli::{complain, finish, say};
use crate::daemon::readiness::{Readiness, StatusSource};
use crate::daemon::settings::MountSettings;
use crate::daemon::{self, Outcome};
use crate::error::{Error, Kind, Result};

/// Time for the child's first word.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a child that has closed the pipe to end.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(10);
/// The longest words, in bytes.
const WORDS_MAX: u64 = 64 * 1024;

/// A word of the child's.
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
    start_and_listen(args, place).map_or_else(|exit| exit, |_ready| Exit::Ok.into())
}

/// As [`start`], for who wants to know how it ends.
pub(crate) fn start_and_listen(args: &[OsString], place: &LogPlace) -> Result<Ready, ExitCode> {
    let begun = command(args, place).and_then(|mut command| {
        command.spawn().map_err(|error| Error::io("start the daemon", error))
    });
    match begun {
        Ok(child) => await_word(child, place, START_DEADLINE),
        Err(error) => {
            complain(&error.to_string());
            Err(Exit::of(&error).into())
        }
    }
}

/// A daemon that is ready.
#[derive(Debug)]
pub(crate) struct Ready {
    lines: Receiver<io::Result<Vec<u8>>>,
}

impl Ready {
    /// The lines that the daemon still says; the channel closes when it ends.
    pub(crate) fn lines(&self) -> &Receiver<io::Result<Vec<u8>>> {
        &self.lines
    }
}

/// Says what a daemon has said, and what exit code it means; `None` if it was nothing.
pub(crate) fn tell(line: io::Result<Vec<u8>>) -> Option<ExitCode> {
    let word: Word = serde_json::from_slice(&line.ok()?).ok()?;
    Some(tell_word(&word))
}

fn tell_word(word: &Word) -> ExitCode {
    if word.ok {
        say(&word.message);
        word.warnings.iter().for_each(|warning| complain(&format!("warning: {warning}")));
    } else {
        complain(&word.message);
    }
    ExitCode::from(word.exit)
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

fn await_word(mut child: Child, place: &LogPlace, deadline: Duration) -> Result<Ready, ExitCode> {
    let heard = match child.stdout.take() {
        Some(pipe) => Heard::within(deadline, lines_of(pipe)),
        None => Heard::Nothing,
    };
    match heard {
        Heard::Word(word, lines) => {
            let is_ready = word.exit == Exit::Ok.code();
            match tell_word(&word) {
                _ready if is_ready => Ok(Ready { lines }),
                exit => Err(exit),
            }
        }
        Heard::Nothing => {
            let how = how_it_ended(&mut child);
            complain(&format!("the daemon ended before it was ready ({how}); its log: {place}"));
            Err(Exit::SomeFailed.into())
        }
        Heard::Silence => {
            stop(&child);
            complain(&format!(
                "the daemon was not ready after {} s and was told to stop; its log: {place}",
                deadline.as_secs()
            ));
            Err(Exit::SomeFailed.into())
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
    /// And what may come after it.
    Word(Word, Receiver<io::Result<Vec<u8>>>),
    /// The pipe was closed without a word.
    Nothing,
    /// Not a sound until the deadline.
    Silence,
}

impl Heard {
    fn within(deadline: Duration, lines: Receiver<io::Result<Vec<u8>>>) -> Self {
        match lines.recv_timeout(deadline) {
            Ok(Ok(line)) => match serde_json::from_slice(&line) {
                Ok(word) => Heard::Word(word, lines),
                Err(_not_ours) => Heard::Nothing,
            },
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Heard::Nothing,
            Err(RecvTimeoutError::Timeout) => Heard::Silence,
        }
    }
}

fn lines_of(pipe: ChildStdout) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, lines) = channel::bounded(1);
    // Left behind when nobody listens any more; the process ends then.
    thread::spawn(move || {
        let lines = BufReader::new(pipe.take(WORDS_MAX)).split(b'\n');
        lines.map(|line| sender.send(line)).find(Result::is_err)
    });
    lines
}

/// The daemon's side of the pipe.
#[derive(Debug)]
pub(crate) struct Leave {
    pipe: Option<File>,
    place: LogPlace,
    speaks: Speaks,
}

/// What a daemon tells who started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// That it is ready.
    Once,
    /// And later, how the copy ended.
    UntilSettled,
}

impl Leave {
    /// Makes this process a daemon: a session of its own, no standard output. Relative paths are to be resolved before.
    ///
    /// # Errors
    /// If the system refuses; nothing has been said then.
    pub(crate) fn the_terminal(place: LogPlace, speaks: Speaks) -> Result<Self> {
        let failed = |error: rustix::io::Errno| Error::io("go to the background", error);
        let pipe: OwnedFd =
            rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(failed)?;
        let null = PathBuf::from("/dev/null");
        let nowhere = File::options()
            .write(true)
            .open(&null)
            .map_err(|error| Error::io("go to the background", error).at(&null))?;
        rustix::stdio::dup2_stdout(&nowhere).map_err(failed)?;
        let left = Self { pipe: Some(File::from(pipe)), place, speaks };
        rustix::process::setsid().map_err(failed)?;
        // So that it keeps no file system busy by standing in it.
        rustix::process::chdir("/").map_err(failed)?;
        Ok(left)
    }

    /// Tells why there is no daemon, if anybody still listens.
    pub(crate) fn failed(&mut self, error: &Error) {
        let (message, warnings) = (error.to_string(), Vec::new());
        let word = Word { ok: false, message, warnings, exit: Exit::of(error).code() };
        if let Err(error) = self.speak(&word) {
            tracing::debug!(err = %error, "nobody listens any more");
        }
    }

    fn speak(&mut self, word: &Word) -> Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
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
        let word = Word { ok: true, message, warnings: warnings.to_vec(), exit: Exit::Ok.code() };
        self.speak(&word)?;
        if self.speaks == Speaks::Once {
            self.pipe = None;
        }
        Ok(())
    }

    fn settled(&mut self, outcome: Outcome, line: &str, warnings: &[String]) {
        let exit = Exit::from(outcome).code();
        let (message, warnings) = (line.to_owned(), warnings.to_vec());
        let word = Word { ok: outcome == Outcome::Clean, message, warnings, exit };
        if let Err(error) = self.speak(&word) {
            tracing::debug!(err = %error, "nobody listens any more");
        }
        self.pipe = None;
    }
}

/// The daemon itself; `settings` are those that its parent has checked.
pub(crate) fn run_child(
    settings: Result<MountSettings>,
    log: &LogArgs,
    speaks: Speaks,
) -> ExitCode {
    let prepared = settings.and_then(|settings| {
        let log = log.settings()?;
        let place = log.background_place()?;
        Ok((settings, log, Leave::the_terminal(place.clone(), speaks)?, place))
    });
    let (settings, log, mut leave, place) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return finish(Err(error)).into(),
    };
    let guard = match logging::start(&log, &place, None) {
        Ok(guard) => guard,
        Err(error) => {
            leave.failed(&error);
            return Exit::of(&error).into();
        }
    };
    let exit = daemon::run(settings, &mut leave).map_or_else(
        |error| {
            tracing::error!(err = %error, "daemon");
            leave.failed(&error);
            Exit::of(&error)
        },
        Exit::from,
    );
    // The last lines are written before the process ends.
    drop(guard);
    exit.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(script: &str, deadline: Duration) -> (Heard, Child) {
        let mut child =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let pipe = child.stdout.take().unwrap();
        (Heard::within(deadline, lines_of(pipe)), child)
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
        let Heard::Word(word, _lines) = heard else { panic!() };
        assert!(word.ok && word.message == "there");
        stop(&child);
        child.wait().unwrap();
    }
}
