//! The command line from outside: help, exit codes, messages for bad input.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output, Stdio};

struct Env {
    base: tempfile::TempDir,
}

impl Env {
    fn new() -> Self {
        Self { base: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazycopy"));
        command
            .args(args)
            .current_dir(self.base.path())
            .env("LAZYCOPY_RUNTIME_DIR", self.base.path().join("run"))
            .env("XDG_STATE_HOME", self.base.path().join("state"))
            .env("XDG_CACHE_HOME", self.base.path().join("cache"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        told(&self.command(args).output().unwrap())
    }

    /// Runs it, and expects this exit code and one error line that holds `message`.
    fn refuses(&self, args: &[&str], code: i32, message: &str) {
        let (exit, stdout, stderr) = self.run(args);
        assert_eq!(exit, Some(code), "{args:?}: {stderr}");
        assert_eq!(stdout, "", "{args:?}");
        assert!(
            stderr.starts_with("lazycopy: ") && stderr.lines().count() == 1,
            "{args:?}: {stderr}"
        );
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_of_every_command_states_defaults_and_units() {
    let env = Env::new();
    for (command, words) in [
        ("mount", ["default: 30s", "default: adopt", "2s local", "LAZYCOPY_DEST", "as 30s or 5m"]),
        ("unmount", ["deadline 30 s", "--wait", "--force", "LAZYCOPY_WAIT", "default: off"]),
        ("status", ["deadline 12 s", "--json", "--stuck", "milliseconds", "schema 1"]),
        ("doctor", ["--dest", "exit code 0", "LAZYCOPY_DEST", "few KiB", "default: no probe"]),
    ] {
        let (exit, help, _) = env.run(&[command, "--help"]);
        assert_eq!(exit, Some(0));
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(help.contains(word), "{command}: {word}\n{help}");
        }
    }
    let (exit, help, _) = env.run(&["--help"]);
    assert_eq!(exit, Some(0));
    assert!(help.contains("Exit codes: 0 ok"), "{help}");
    assert!(!help.contains("background-child"), "{help}");
}

#[test]
fn every_flag_states_its_default() {
    let env = Env::new();
    for command in ["mount", "unmount", "status", "doctor"] {
        let (_, help, _) = env.run(&[command, "--help"]);
        // An option starts at the margin with a dash; its text runs to the next one.
        let mut flag = String::new();
        let mut flags = Vec::new();
        for line in help.lines().skip_while(|line| *line != "Options:").skip(1) {
            if line.trim_start().starts_with('-') && line.len() - line.trim_start().len() <= 6 {
                flags.push(std::mem::take(&mut flag));
            }
            flag += line;
            flag += " ";
        }
        flags.push(flag);
        for flag in flags.iter().filter(|flag| !flag.is_empty() && !flag.contains("--help")) {
            assert!(flag.contains("[default: "), "{command}: {flag}");
            assert!(flag.contains("[env: LAZYCOPY_"), "{command}: {flag}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_2_and_one_line() {
    let env = Env::new();
    env.refuses(&["mount", "/s"], 2, "MOUNTPOINT");
    env.refuses(&["mont"], 2, "unrecognized subcommand 'mont'");
    env.refuses(&["mount", "/s", "/m", "--fast"], 2, "--fast");
    env.refuses(&["mount", "/s", "/m", "--keep", "much"], 2, "all");
    env.refuses(&["mount", "/s", "/m", "--exclude", "a["], 2, "--exclude a[");
    env.refuses(&["mount", "/s", "/m", "--max-jobs", "0"], 2, "1..=1024");
    env.refuses(&["mount", "/s", "/m", "--keep", "1MiB"], 2, "8 MiB");
    env.refuses(&["mount", "/s", "/m", "--hydrate"], 2, "--keep all");
    env.refuses(&["mount", "/s", "/m", "--dest", "/d", "--keep", "1GiB", "--hydrate"], 2, "--keep");
    env.refuses(&["mount", "/s", "/m", "--dest", "/d", "--read-timeout", "30"], 2, "time unit");
    env.refuses(&["mount", "/s", "/m", "--dest", "/d", "--existing", "keep"], 2, "adopt-fast");
    env.refuses(&["mount", "/s", "/m", "--dest", "/d", "--refresh", "ever"], 2, "never");
    env.refuses(&["mount", "/s", "/m", "--dest", "/d", "-o", "suid"], 2, "always nosuid,nodev");
    env.refuses(&["mount", "/s", "/m", "--dest", "/d", "-o", "cached"], 2, "possible: allow_other");
    env.refuses(
        &["mount", "/s", "/m", "--dest", "/d", "--log-level", "lazycopy=loud"],
        2,
        "--log-level",
    );
    env.refuses(&["mount", "", "/m", "--dest", "/d"], 2, "empty");
    env.refuses(&["mount", "gopher://host", "/m", "--dest", "/d"], 7, "not built yet");
    env.refuses(&["unmount", "/m", "--wait", "--force"], 2, "cannot be used with");
    let (exit, _, help) = env.run(&[]);
    assert_eq!(exit, Some(2));
    assert!(help.contains("Usage"), "{help}");
}

#[test]
fn what_is_not_ours_is_refused() {
    let env = Env::new();
    env.refuses(&["unmount", "/proc"], 2, "type proc");
    env.refuses(&["unmount", "."], 2, "nothing mounted");
    env.refuses(&["status", "."], 2, "no lazycopy daemon");
    env.refuses(&["status", "none/at/all"], 2, "No such file");
    let (exit, stdout, _) = env.run(&["status", "--json"]);
    assert_eq!((exit, stdout.trim()), (Some(0), r#"{"schema":1,"daemons":[]}"#));
}

#[test]
fn a_flag_can_come_from_its_variable_and_the_flag_wins() {
    let env = Env::new();
    let mut command = env.command(&["mount", "/s", "/m", "--dest", "/d"]);
    let (exit, _, stderr) = told(&command.env("LAZYCOPY_READ_TIMEOUT", "soon").output().unwrap());
    assert_eq!(exit, Some(2));
    assert!(stderr.contains("soon"), "{stderr}");
    let mut command = env.command(&["mount", "/s", "/m", "--dest", "/d", "--refresh", "ever"]);
    let (_, _, stderr) = told(&command.env("LAZYCOPY_REFRESH", "soon").output().unwrap());
    assert!(stderr.contains("ever") && !stderr.contains("soon"), "{stderr}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let env = Env::new();
    let mut child =
        env.command(&["doctor"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let (exit, _, stderr) = told(&child.wait_with_output().unwrap());
    assert!(matches!(exit, Some(0 | 7)), "{stderr}");
    assert!(!stderr.contains("panic"), "{stderr}");
}

#[test]
fn doctor_says_what_each_missing_thing_costs() {
    let env = Env::new();
    let (exit, stdout, _) = env.run(&["doctor"]);
    let works = stdout.contains("mounting works\n");
    assert_eq!(exit, Some(if works { 0 } else { 7 }), "{stdout}");
    for word in ["/dev/fuse", "fusermount3", "allow_other", "kernel", "open files", "memory"] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
}

#[test]
fn doctor_tries_the_destination_and_leaves_nothing_there() {
    let env = Env::new();
    let (_, stdout, _) = env.run(&["doctor", "--dest", "still/to/be/made"]);
    assert!(stdout.contains("destination still/to/be/made cannot be used"), "{stdout}");
    let (_, stdout, _) = env.run(&["doctor", "--dest", "new"]);
    assert!(stdout.contains("destination new"), "{stdout}");
    assert!(!stdout.contains("cannot be used"), "{stdout}");
    assert_eq!(std::fs::read_dir(env.base.path()).unwrap().count(), 0);
}
