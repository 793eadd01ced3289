//! Orders for paths, the record of what happened, and one daemon for each destination: by the real program on a real mount.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use serde_json::Value;

use crate::harness::{Env, Mounted, Ran, patterned, read};

const PIN: &str = "user.lazycopy.pin";

fn order(env: &Env, mounted: &Mounted<'_>, order: &str, name: &str) -> Ran {
    let path = mounted.path(name);
    env.run([order.as_ref(), path.as_os_str()])
}

fn events(env: &Env, target: &Path) -> Vec<Value> {
    let told = env.run(["events".as_ref(), target.as_os_str()]);
    told.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn named<'a>(events: &'a [Value], event: &str, what: &str) -> Vec<&'a Value> {
    events.iter().filter(|told| told["event"] == event && told["what"] == what).collect()
}

#[test]
fn an_order_fetches_one_directory_and_nothing_beside_it() {
    let Some(env) = Env::new() else { return };
    let (one, other) = (patterned(1, 0, 300_000), patterned(2, 0, 300_000));
    env.put("a/b/one", &one);
    env.put("c/other", &other);
    let mounted = env.mount(&[]);
    let done = order(&env, &mounted, "hydrate", "a");
    assert!(done.out.contains("hydrating"), "{done:?}");
    mounted.until_published(1);
    assert_eq!(fs::read(env.destination().join("a/b/one")).unwrap(), one);
    assert!(!env.destination().join("c/other").exists());
    // What is published is kept: this is a copy.
    let refused = order(&env, &mounted, "evict", "a/b/one");
    assert!(refused.code == Some(1) && refused.err.contains("--keep SIZE"), "{refused:?}");
    assert_eq!(read(mounted.path("a/b/one")).unwrap(), one);
    let missing = order(&env, &mounted, "hydrate", "a/nothing");
    assert_eq!(missing.code, Some(1), "{missing:?}");
    mounted.unmount();
}

#[test]
fn bytes_that_were_evicted_by_order_come_again_and_are_right() {
    let Some(env) = Env::new() else { return };
    let content = patterned(3, 0, 3 << 20);
    env.put("d/film", &content);
    let mounted = env.mount(&["--keep", "64MiB"]);
    assert_eq!(read(mounted.path("d/film")).unwrap(), content);
    mounted.until_published(1);
    let done = order(&env, &mounted, "evict", "d");
    assert!(done.out.contains("evicted: 1 files, 3145728 bytes"), "{done:?}");
    assert!(!env.destination().join("d/film").exists());
    assert_eq!(read(mounted.path("d/film")).unwrap(), content);
    mounted.unmount();
}

#[test]
fn a_pin_is_an_attribute_that_is_listed_nowhere_and_outlives_the_daemon() {
    let Some(env) = Env::new() else { return };
    env.put("d/film", patterned(4, 0, 1 << 20));
    let mounted = env.mount(&["--keep", "64MiB"]);
    let film = mounted.path("d/film");
    let value = |path: &Path| {
        let mut value = [0u8; 8];
        rustix::fs::getxattr(path, PIN, &mut value[..]).map(|len| value[..len].to_vec())
    };
    assert_eq!(value(&film), Err(rustix::io::Errno::NODATA));
    rustix::fs::setxattr(&film, PIN, b"1", XattrFlags::empty()).unwrap();
    assert_eq!(value(&film).unwrap(), b"1");
    let mut names = vec![0u8; 4096];
    let len = rustix::fs::listxattr(&film, &mut names[..]).unwrap();
    assert!(!String::from_utf8_lossy(&names[..len]).contains("lazycopy"));
    // Nothing else may be set.
    let other = rustix::fs::setxattr(&film, "user.other", b"1", XattrFlags::empty());
    assert_eq!(other, Err(rustix::io::Errno::ROFS));
    read(&film).unwrap();
    mounted.until_published(1);
    mounted.unmount();
    let mounted = env.mount(&["--keep", "64MiB"]);
    assert_eq!(value(&mounted.path("d/film")).unwrap(), b"1");
    let pinned = order(&env, &mounted, "evict", "d/film");
    assert!(pinned.code == Some(1) && pinned.err.contains("pinned"), "{pinned:?}");
    rustix::fs::removexattr(mounted.path("d/film"), PIN).unwrap();
    assert_eq!(order(&env, &mounted, "evict", "d/film").code, Some(0));
    mounted.unmount();
}

#[test]
fn a_refresh_shows_what_the_source_has_now() {
    let Some(env) = Env::new() else { return };
    env.put("d/one", "1");
    let mounted = env.mount(&["--refresh", "never"]);
    assert_eq!(fs::read_dir(mounted.path("d")).unwrap().count(), 1);
    env.put("d/two", "2");
    let done = order(&env, &mounted, "refresh", "d");
    assert!(done.out.contains("2 entries listed"), "{done:?}");
    mounted.unmount();
}

#[test]
fn what_happened_is_told_while_it_is_served_and_afterwards() {
    let Some(env) = Env::new() else { return };
    for number in 0..20 {
        env.put(format!("f{number}"), patterned(5, 0, 1000 + number));
    }
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    let told = events(&env, &mounted.path(""));
    assert_eq!(named(&told, "file", "published").len(), 20);
    assert_eq!(named(&told, "chunk", "complete").len(), 20);
    assert_eq!(named(&told, "session", "begun").len(), 1);
    mounted.unmount();
    let told = events(&env, &env.destination());
    assert!(told.iter().map(|line| line["seq"].as_u64().unwrap()).eq(1..=told.len() as u64));
    let last = told.last().unwrap();
    assert_eq!(
        (&last["event"], &last["what"], &last["outcome"]),
        (&"session".into(), &"ended".into(), &"clean".into())
    );
    assert!(told.iter().any(|line| line["event"] == "job" && line["phase"] == "complete"));
    // Nobody serves it, and its history can be read.
    let destination = env.destination();
    let args = ["status".as_ref(), "--history".as_ref(), destination.as_os_str()];
    let history = env.run(args);
    assert!(history.code == Some(0) && history.out.contains("clean: 20 of 20"), "{history:?}");
    // The next life goes on counting, and the history has both.
    let mounted = env.mount(&[]);
    let history = env.run(["status", "--history", "--json"]);
    let history: Value = serde_json::from_str(&history.out).unwrap();
    let lives = history["lives"].as_array().unwrap();
    assert_eq!(lives.len(), 2, "{history}");
    assert_eq!((&lives[0]["outcome"], &lives[0]["files_published"]), (&"clean".into(), &20.into()));
    assert_eq!(lives[1]["ended_at"], Value::Null);
    let number = told.len() as u64 + 1;
    assert_eq!(events(&env, &mounted.path(""))[told.len()]["seq"], number);
    mounted.unmount();
}

// LESSONS 4: a race to create gives exactly one. Here by processes: the destination's lock decides.
#[test]
fn of_ten_daemons_that_race_for_one_destination_one_serves_it() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let places: Vec<_> = (0..10).map(|n| env.path(&format!("mountpoint-{n}"))).collect();
    let racers: Vec<_> = places
        .iter()
        .map(|place| {
            fs::create_dir(place).unwrap();
            let mut command: Command = env.command(["mount"]);
            command.arg("--dest").arg(env.destination()).arg(env.source()).arg(place);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let codes: Vec<_> =
        racers.into_iter().map(|racer| racer.wait_with_output().unwrap().status.code()).collect();
    let winners: Vec<_> = (0..10).filter(|n| codes[*n] == Some(0)).collect();
    assert_eq!(winners.len(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 6))), "{codes:?}");
    assert_eq!(
        env.registered().iter().filter(|name| name.to_string_lossy().ends_with(".json")).count(),
        1
    );
    // Nobody forgets a copy that is being written.
    let forgotten = env.run(["forget".as_ref(), "--force".as_ref(), env.destination().as_os_str()]);
    assert_eq!(forgotten.code, Some(6), "{forgotten:?}");
    let unmounted = env.run(["unmount".as_ref(), places[winners[0]].as_os_str()]);
    assert_eq!(unmounted.code, Some(0), "{unmounted:?}");
}
