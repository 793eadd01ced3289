//! Runs that are told to end, and those that just die.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::{Env, children_of, eventually, exists, job, slow};

/// What is copied is whole, and the next run brings the rest.
fn goes_on(env: &Env) {
    env.jobs(&job("a", "verify = 'after'"));
    env.run(&[]).expect(0);
    for name in ["small", "large"] {
        let (source, copy) = (env.path("a").join(name), env.path("out-a").join(name));
        assert!(fs::read(source).unwrap() == fs::read(copy).unwrap(), "{name}");
    }
}

#[test]
fn ctrl_c_has_all_jobs_save_and_the_same_command_goes_on() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let env = Env::new();
        for name in ["a", "b"] {
            env.large_source(name);
        }
        env.jobs(&format!("[run]\nparallel = 2\n{}{}{}", slow("a"), slow("b"), job("c", "")));
        let mut running = env.start(&[]);
        running.until("progress", "a");
        running.until("progress", "b");
        let pid = running.pid();
        running.signal(signal);
        let ended = running.ended().expect(5);
        ended.expect_outcomes(&[("a", "stopped"), ("b", "stopped"), ("c", "skipped")]);
        assert_eq!(ended.summary()["outcome"], "stopped");
        assert!(children_of(pid).is_empty(), "something still runs");
        goes_on(&env);
    }
}

#[test]
fn a_kill_of_the_run_leaves_nothing_running_and_the_next_goes_on() {
    let env = Env::new();
    for name in ["a", "b"] {
        env.large_source(name);
    }
    env.jobs(&format!("[run]\nparallel = 2\n{}{}", slow("a"), slow("b")));
    let mut running = env.start(&[]);
    running.until("progress", "a");
    running.until("progress", "b");
    let pid = running.pid();
    assert_eq!(children_of(pid).len(), 2);
    running.signal(Signal::KILL);
    eventually("all children have ended", || children_of(pid).is_empty());
    assert_eq!(running.ended().exit, None);
    goes_on(&env);
}

#[test]
fn a_kill_of_the_run_ends_its_hook() {
    let env = Env::new();
    env.source("a");
    env.script("wait", "touch begun; exec sleep 1000");
    env.jobs(&job("a", "on-complete = ['./wait']"));
    let running = env.start(&[]);
    eventually("the hook runs", || exists(&env.path("begun")));
    let hook = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let place = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let is_hook = place == env.base.path() && ["sleep", "wait"].contains(&name.trim());
        is_hook.then_some(pid)
    });
    let hook = hook.expect("the hook is found");
    running.signal(Signal::KILL);
    eventually("the hook has ended", || !exists(format!("/proc/{hook}/cwd").as_ref()));
    drop(running.ended());
}

#[test]
fn the_death_of_a_job_is_a_failure_and_harms_no_other() {
    let env = Env::new();
    env.large_source("a");
    env.source("b");
    env.jobs(&[slow("a"), job("b", "")].concat());
    let mut running = env.start(&[]);
    running.until("progress", "a");
    let [child] = children_of(running.pid())[..] else { panic!("not one child") };
    kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    let ended = running.ended().expect(1);
    ended.expect_outcomes(&[("a", "failed"), ("b", "complete")]);
    assert_eq!(ended.job("a")["message"], "its process was ended by signal 9");
    goes_on(&env);
}
