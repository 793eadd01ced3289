//! Jobs in sequence and at once, their outcomes, and the exit code of all.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::{Env, eventually, exists, job, slow};
use rustix::process::Signal;

#[test]
fn a_job_that_fails_does_not_keep_the_next_from_being_run() {
    let env = Env::new();
    env.source("a");
    env.source("c");
    env.jobs(&[job("a", ""), job("b", ""), job("c", "verify = 'after'")].concat());
    let ended = env.run(&[]).expect(2);
    ended.expect_outcomes(&[("a", "complete"), ("b", "failed"), ("c", "complete")]);
    assert_eq!(ended.summary()["outcome"], "failed");
    assert!(ended.job("b")["message"].as_str().unwrap().contains("No such file"));
    assert_eq!(fs::read_to_string(env.path("out-c/small")).unwrap(), "c");
    env.source("b");
    let ended = env.run(&[]).expect(0);
    assert_eq!(ended.summary()["outcome"], "complete");
    assert_eq!(ended.job("a")["files"]["unchanged"], 1);
    assert_eq!(ended.job("b")["files"]["copied"], 1);
}

#[test]
fn stop_on_error_begins_no_other() {
    let env = Env::new();
    env.source("a");
    env.source("c");
    env.jobs(&format!(
        "[run]\nstop-on-error = true\n{}{}{}",
        job("a", ""),
        job("b", ""),
        job("c", "")
    ));
    let ended = env.run(&[]).expect(2);
    ended.expect_outcomes(&[("a", "complete"), ("b", "failed"), ("c", "skipped")]);
    assert!(!exists(&env.path("out-c")));
}

#[test]
fn only_the_jobs_that_are_named_run_in_the_order_of_the_file() {
    let env = Env::new();
    for name in ["a", "b", "c"] {
        env.source(name);
    }
    env.jobs(&[job("a", ""), job("b", ""), job("c", "enabled = false")].concat());
    env.run(&["c", "a"]).expect(0).expect_outcomes(&[("a", "complete"), ("c", "complete")]);
    env.run(&[]).expect(0).expect_outcomes(&[("a", "complete"), ("b", "complete")]);
}

/// Names of jobs that run at the same time, at each beginning and end.
fn at_once(events: &[Value]) -> Vec<BTreeSet<String>> {
    let mut running = BTreeSet::new();
    let mut all = Vec::new();
    for event in events.iter().filter(|event| event["event"] == "run-job") {
        let name = event["name"].as_str().unwrap().to_owned();
        match event["what"].as_str().unwrap() {
            "begun" => assert!(running.insert(name)),
            _ => assert!(running.remove(&name)),
        }
        all.push(running.clone());
    }
    assert!(running.is_empty());
    all
}

#[test]
fn never_more_jobs_at_once_than_parallel() {
    let env = Env::new();
    let names = ["a", "b", "c", "d"];
    for name in names {
        env.source(name);
    }
    let jobs: String = names.iter().map(|name| job(name, "")).collect();
    for parallel in [1, 2] {
        env.jobs(&format!("[run]\nparallel = {parallel}\n{jobs}"));
        let ended = env.run(&[]).expect(0);
        let run = ended.summary()["run"].as_str().unwrap();
        let events: Vec<Value> =
            env.events().into_iter().filter(|event| event["session"] == run).collect();
        let most = at_once(&events).iter().map(BTreeSet::len).max();
        assert_eq!(most, Some(parallel), "{events:#?}");
        let numbers = events.iter().map(|event| event["seq"].as_u64().unwrap());
        assert!(numbers.eq(1..=10), "{events:#?}");
        assert_eq!((&events[0]["what"], &events[9]["what"]), (&"begun".into(), &"ended".into()));
        assert_eq!(events[9]["outcome"], "complete");
    }
}

#[test]
fn the_exit_code_is_the_worst_of_all() {
    let env = Env::new();
    env.source("a");
    env.jobs(&job("a", ""));
    env.run(&[]).expect(0);
    // Somebody else's directory has the name of a file: that one fails.
    env.write("a/new", "new");
    fs::create_dir_all(env.path("out-a/new/theirs")).unwrap();
    env.jobs(&[job("gone", ""), job("a", "")].concat());
    let ended = env.run(&[]).expect(1);
    ended.expect_outcomes(&[("gone", "failed"), ("a", "failed")]);
    assert_eq!((&ended.job("gone")["exit"], &ended.job("a")["exit"]), (&2.into(), &1.into()));
    assert_eq!(ended.job("a")["message"], "1 files failed");
}

#[test]
fn a_copy_that_is_wrong_is_found_by_verify_and_is_the_worst() {
    let env = Env::new();
    env.write("a/file", vec![1; 300_000]);
    env.jobs(&[job("gone", ""), job("a", "verify = 'after'")].concat());
    env.run(&[]).expect(2);
    // The disk rots: the bytes change, and nothing else does.
    let path = env.path("out-a/file");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, vec![2; 300_000]).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    let ended = env.run(&[]);
    let message = ended.job("a")["message"].as_str().unwrap_or_default();
    assert_eq!(ended.job("a")["exit"], 4, "{:#?}", ended.summary());
    assert!(message.contains("1 entries differ"), "{message}");
    assert_eq!(ended.exit, Some(4));
}

#[test]
fn a_dry_run_changes_nothing() {
    let env = Env::new();
    env.source("a");
    env.jobs(&job(
        "a",
        "on-complete = ['touch', 'hooked']\nsnapshot = 'command'\nsnapshot-command = ['false']",
    ));
    let ended = env.run(&["--dry-run"]).expect(0);
    assert_eq!(ended.job("a")["files"]["copied"], 1);
    for left in ["out-a", "hooked", "state"] {
        assert!(!exists(&env.path(left)), "{left}");
    }
}

#[test]
fn jobs_that_run_share_the_limit() {
    let env = Env::new();
    for name in ["a", "b"] {
        env.large_source(name);
    }
    env.jobs(&format!(
        "[run]\nparallel = 2\nlimit = '2MiB/s'\n{}{}",
        job("a", ""),
        job("b", "limit = '512KiB/s'")
    ));
    let running = env.start(&[]);
    let rate = |name: &str| {
        let dir = format!("out-{name}");
        let output = env.command(&["status", "--json", &dir]).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["limits"]["rate_bytes_per_s"].as_u64()
    };
    eventually("equal shares", || rate("a") == Some(1 << 20) && rate("b") == Some(512 << 10));
    // One ends: the other gets its share.
    let b = env.command(&["status", "--json"]).output().unwrap();
    let all: Value = serde_json::from_slice(&b.stdout).unwrap();
    assert_eq!(all["daemons"].as_array().unwrap().len(), 2);
    let child = crate::children_of(running.pid()).into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("out-b")
    });
    let child = rustix::process::Pid::from_raw(child.unwrap()).unwrap();
    rustix::process::kill_process(child, Signal::TERM).unwrap();
    eventually("the whole limit", || rate("a") == Some(2 << 20));
    running.signal(Signal::INT);
    running.ended().expect(5).expect_outcomes(&[("a", "stopped"), ("b", "stopped")]);
}

#[test]
fn a_destination_in_use_is_named_with_6() {
    let env = Env::new();
    env.large_source("a");
    env.jobs(&slow("a"));
    let mut running = env.start(&[]);
    running.until("progress", "a");
    let ended = env.run(&[]).expect(6);
    ended.expect_outcomes(&[("a", "failed")]);
    let message = ended.job("a")["message"].as_str().unwrap();
    assert!(message.contains("out-a"), "{message}");
    running.signal(Signal::TERM);
    running.ended().expect(5);
}

#[test]
fn a_secret_of_a_source_is_nowhere() {
    let env = Env::new();
    env.script("tell", "cat > told");
    env.jobs(
        "[[job]]\nname = 'a'\nsource = 'http://user:geheim@127.0.0.1:1/'\ndestination = 'out-a'\non-error = ['./tell']\n",
    );
    let ended = env.run(&[]).expect(3);
    let told = fs::read_to_string(env.path("told")).unwrap();
    assert!(told.contains("127.0.0.1:1"), "{told}");
    let mut all = vec![told, ended.stderr.clone(), format!("{:?}", ended.lines)];
    for extension in ["jsonl", "log"] {
        all.extend(env.run_files(extension).iter().map(|path| fs::read_to_string(path).unwrap()));
    }
    assert_eq!(all.len(), 5);
    for text in all {
        assert!(!text.contains("geheim"), "{text}");
    }
}
