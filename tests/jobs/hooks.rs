//! Hooks: what they get, and that they harm nothing.

use std::fs;

use serde_json::Value;

use crate::{Env, eventually, exists, job};

fn told(env: &Env, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(env.path(name)).unwrap()).unwrap()
}

#[test]
fn hooks_get_one_object_and_their_arguments_as_they_are() {
    let env = Env::new();
    env.source("a");
    env.script("tell", "printf %s \"$2\" > \"$1.argument\"; cat > \"$1\"; echo said by a hook");
    let on = |name: &str| {
        format!(
            "on-complete = ['./tell', '{name} done', '$HOME; *']\non-error = ['./tell', '{name} failed', '']"
        )
    };
    env.jobs(&format!("[run]\n{}\n{}{}", on("run"), job("a", &on("a")), job("b", &on("b"))));
    let ended = env.run(&[]).expect(2);
    let a = told(&env, "a done");
    assert_eq!((&a["what"], &a["schema"]), (&"job".into(), &1.into()));
    assert_eq!(&a["job"], ended.job("a"));
    assert_eq!(fs::read_to_string(env.path("a done.argument")).unwrap(), "$HOME; *");
    assert_eq!(&told(&env, "b failed")["job"], ended.job("b"));
    let run = told(&env, "run failed");
    assert_eq!(run["what"], "run");
    for key in ["run", "file", "log", "outcome", "exit", "jobs"] {
        assert_eq!(run[key], ended.summary()[key], "{key}");
    }
    for never in ["a failed", "b done", "run done"] {
        assert!(!exists(&env.path(never)), "{never}");
    }
    let log = fs::read_to_string(&env.run_files("log")[0]).unwrap();
    assert!(log.contains("said by a hook"), "{log}");
}

#[test]
fn a_hook_that_fails_is_a_warning_and_harms_nothing() {
    let env = Env::new();
    for name in ["a", "b", "c"] {
        env.source(name);
    }
    env.jobs(
        &[
            job("a", "on-complete = ['false']"),
            job("b", "on-complete = ['./not-there']"),
            // It does not read what it gets.
            job("c", "on-complete = ['true']"),
        ]
        .concat(),
    );
    let ended = env.run(&[]).expect(0);
    ended.expect_outcomes(&[
        ("a", "complete-with-warnings"),
        ("b", "complete-with-warnings"),
        ("c", "complete"),
    ]);
    assert_eq!(ended.summary()["outcome"], "complete-with-warnings");
    let warning = ended.job("a")["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("on-complete: false failed"), "{warning}");
    let event = env.events().into_iter().find(|event| event["outcome"] == "complete-with-warnings");
    assert_eq!(event.unwrap()["warnings"][0], warning);
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_all_that_it_started() {
    let env = Env::new();
    env.source("a");
    env.script("hang", "sleep 1000 & echo $! > started; wait");
    env.jobs(&job("a", "on-complete = ['./hang']\nhook-timeout = '1s'"));
    let ended = env.run(&[]).expect(0);
    let warning = ended.job("a")["warnings"][0].as_str().unwrap();
    assert!(warning.ends_with("was killed after 1s"), "{warning}");
    if let Ok(pid) = fs::read_to_string(env.path("started")) {
        let state = format!("/proc/{}/stat", pid.trim());
        eventually("what it started has ended", || {
            fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "))
        });
    }
}
