//! The file: what is wrong with it is said before anything is begun, and nobody else can have written it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use crate::{Env, exists, job};

fn refused(env: &Env, file: &str) -> String {
    let output = env.command(&["run", file]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(!exists(&env.path("out-a")) && !exists(&env.path("state")), "something was begun");
    stderr
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_nothing_is_begun() {
    let env = Env::new();
    env.source("a");
    env.jobs(&[job("a", ""), job("b", "max-job = 3\nverify = 'always'\n[runs]")].concat());
    let stderr = refused(&env, "jobs.toml");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(
        lines,
        [
            "lazycopy: read jobs.toml:10: unknown key `max-job` in [[job]] b: did you mean `max-jobs`?",
            "lazycopy: read jobs.toml:11: [[job]] b verify: `always` is none of none, after",
            "lazycopy: read jobs.toml:12: unknown key `runs` in the file: did you mean `run`?",
        ]
    );
}

#[test]
fn a_name_that_no_job_has_is_refused() {
    let env = Env::new();
    env.source("a");
    env.jobs(&job("a", ""));
    let output = env.command(&["run", "jobs.toml", "b"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("it has no job `b` (It has a)"), "{stderr}");
}

#[test]
fn check_says_what_would_run_and_begins_nothing() {
    let env = Env::new();
    env.source("a");
    env.jobs(&[job("a", ""), job("off", "enabled = false")].concat());
    let output = env.command(&["run", "--check", "jobs.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("nothing is wrong; 1 of 2 jobs would run"), "{stdout}");
    assert!(!exists(&env.path("out-a")) && !exists(&env.path("state")));
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let env = Env::new();
    env.source("a");
    let directory = env.path("d");
    fs::create_dir(&directory).unwrap();
    let file = directory.join("jobs.toml");
    fs::write(&file, job("a", "").replace("source = 'a'", "source = '../a'")).unwrap();
    symlink(&file, env.path("link.toml")).unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let check = |file: &str| env.command(&["run", "--check", file]).output().unwrap();
    for (of_file, of_directory) in [(0o646, 0o755), (0o664, 0o755), (0o644, 0o757), (0o644, 0o775)]
    {
        mode(&file, of_file);
        mode(&directory, of_directory);
        for path in ["d/jobs.toml", "link.toml"] {
            let stderr = refused(&env, path);
            assert!(stderr.contains("others can write to it"), "{stderr}");
            assert!(stderr.contains("chmod go-w"), "{stderr}");
        }
    }
    mode(&file, 0o644);
    mode(&directory, 0o1777);
    assert_eq!(check("link.toml").status.code(), Some(0), "a sticky directory keeps what is ours");
    if rustix::process::geteuid().is_root() {
        mode(&directory, 0o755);
        for path in [&file, &directory] {
            chown(path, Some(65534), None).unwrap();
            assert!(refused(&env, "link.toml").contains("another user (uid 65534)"));
            chown(path, Some(0), None).unwrap();
        }
        assert_eq!(check("link.toml").status.code(), Some(0));
    }
}
