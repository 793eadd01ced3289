//! Every kind of event of `docs/events.md` is told by the real program when it happens, with its words.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common;
use crate::harness::{BLOCK, Env, Mounted, errno, eventually, patterned, read};
use crate::origin::{Behaviour, Origin, Page};

const DOCUMENT: &str = include_str!("../../docs/events.md");
/// The fields whose words are looked at.
const WORDS: [&str; 4] = ["what", "by", "limit", "order"];

/// What each test here finds told: an event, one of its fields, words of it.
type Told = &'static [(&'static str, &'static str, &'static [&'static str])];

const COPY: Told = &[
    ("session", "what", &["begun", "ended"]),
    ("job", "phase", &["scanning", "failed"]),
    ("scan", "what", &["begun", "ended"]),
    ("chunk", "what", &["complete", "failed", "retried"]),
    ("file", "what", &["published", "failed", "skipped", "vanished"]),
];
const ORDERS: Told = &[
    ("pause", "by", &["user"]),
    ("resume", "by", &["user"]),
    ("drain", "by", &["user"]),
    ("stop", "by", &["user"]),
    ("limit", "limit", &["rate"]),
    ("limit", "what", &["set"]),
    ("order", "order", &["hydrate", "evict", "pin", "unpin", "refresh"]),
    ("verify", "what", &["begun", "ended"]),
    ("file", "what", &["changed", "deleted"]),
];
const BREAKER: Told = &[
    ("breaker", "what", &["opened", "probed", "closed"]),
    ("pause", "by", &["breaker"]),
    ("resume", "by", &["breaker"]),
];
const QUOTA: Told = &[
    ("limit", "limit", &["max-fetch", "max-requests"]),
    ("limit", "what", &["reached"]),
    ("pause", "by", &["limit"]),
];
const SPARED: Told = &[
    ("limit", "limit", &["max-connections"]),
    ("limit", "what", &["set", "lifted"]),
    ("pause", "by", &["source"]),
    ("resume", "by", &["source"]),
];
const SPACE: Told = &[
    ("space", "what", &["short", "back"]),
    ("pause", "by", &["space"]),
    ("resume", "by", &["space"]),
];
/// A run tells its own log; what is lost is told by the unit tests of the events.
const ELSEWHERE: Told = &[
    ("run", "what", &["begun", "ended"]),
    ("run-job", "what", &["begun", "ended"]),
    ("lost", "", &[]),
];

fn page(size: u64) -> Page {
    Page::new(size, |at, len| patterned(1, at, len))
}

/// What is told of a daemon's lives, in order; numbers go on without gaps.
fn events(env: &Env, target: &Path) -> Vec<Value> {
    let told = env.run(["events".as_ref(), target.as_os_str()]);
    let told: Vec<Value> =
        told.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told.iter().map(|line| line["seq"].as_u64().unwrap()).eq(1..=told.len() as u64));
    told
}

fn has_told(events: &[Value], told: &[(&'static str, &'static str, &'static [&'static str])]) {
    for (event, field, words) in told {
        for word in *words {
            let is_it = |line: &Value| line["event"] == *event && line[*field] == *word;
            let lines = || events.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
            assert!(events.iter().any(is_it), "{event}: {field} {word} is not told:\n{}", lines());
        }
    }
}

fn find<'a>(events: &'a [Value], event: &str, field: &str, word: &str) -> &'a Value {
    events.iter().find(|line| line["event"] == event && line[field] == word).unwrap()
}

/// Waits until something was told, so that what is next comes after it.
fn until_told(env: &Env, mounted: &Mounted<'_>, event: &str, field: &str, word: &str) {
    eventually(word, || {
        let told = events(env, &mounted.place);
        told.iter().any(|line| line["event"] == event && line[field] == word).then_some(())
    });
}

#[test]
fn every_documented_event_and_word_is_told_by_a_test() {
    let tests = [COPY, ORDERS, BREAKER, QUOTA, SPARED, SPACE, ELSEWHERE].into_iter().flatten();
    let events: BTreeSet<&str> = tests.clone().map(|(event, ..)| *event).collect();
    let told: BTreeSet<(&str, &str)> =
        tests.flat_map(|(event, _, words)| words.iter().map(|word| (*event, *word))).collect();
    for section in DOCUMENT.split("\n## ").skip(1) {
        let event = section.lines().next().unwrap();
        assert!(events.contains(event), "{event} is told by no test");
        for field in WORDS {
            let row = section.lines().find_map(|line| line.strip_prefix(&format!("| `{field}` |")));
            // Those of another event are looked at there.
            let words = row.filter(|row| !row.contains("as in")).unwrap_or_default();
            for word in words.split('`').skip(1).step_by(2) {
                assert!(told.contains(&(event, word)), "{event}: {field}: no test tells {word}");
            }
        }
    }
}

#[test]
fn a_copy_tells_each_file_and_chunk_and_how_it_went() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let fails = |code, times| page(BLOCK).behaves(Behaviour::Status { code, times });
    origin.put("/good", page(3 * BLOCK));
    origin.put("/once", fails(500, 1));
    origin.put("/never", fails(500, usize::MAX));
    origin.put("/gone", page(BLOCK).behaves(Behaviour::Gone));
    origin.put("/left.out", page(BLOCK));
    origin.put("/.snapshot/old", page(BLOCK));
    let mounted = env.mount_from(origin.url(), &["--hydrate", "--exclude", "*.out"]);
    mounted.until("the end", |status| status["phase"] == "failed");
    mounted.unmount();
    let told = events(&env, &env.destination());
    has_told(&told, COPY);
    let skipped = told.iter().filter(|line| line["what"] == "skipped");
    let skipped: BTreeSet<&str> = skipped.map(|line| line["path"].as_str().unwrap()).collect();
    assert_eq!(skipped, BTreeSet::from([".snapshot", "left.out"]));
    let scans = told.iter().rev().find(|line| line["event"] == "scan" && line["what"] == "ended");
    assert_eq!(scans.unwrap()["skipped"], 2);
    let of = |path: &str, what: &str| {
        told.iter()
            .filter(|line| line["event"] == "chunk" && line["path"] == path && line["what"] == what)
            .count()
    };
    // Three attempts are two retries and a failure, each time that it is tried.
    assert_eq!((of("once", "retried"), of("once", "failed"), of("once", "complete")), (1, 0, 1));
    assert_eq!(of("never", "retried"), 2 * of("never", "failed"));
    assert_eq!(origin.count("GET", "/never"), 3 * of("never", "failed"));
    let failed = find(&told, "chunk", "what", "failed");
    assert_eq!((&failed["attempt"], &failed["kind"]), (&3.into(), &"unreachable".into()));
    let landed: u64 = told
        .iter()
        .filter(|line| line["event"] == "chunk" && line["what"] == "complete")
        .map(|line| line["len"].as_u64().unwrap())
        .sum();
    assert_eq!(landed, 4 * BLOCK);
}

#[test]
fn every_order_and_what_it_finds_is_told() {
    let Some(env) = Env::new() else { return };
    for name in ["a", "b", "c"] {
        env.put(name, patterned(1, 0, 300_000));
    }
    let mounted = env.mount(&["--hydrate", "--refresh", "50ms"]);
    mounted.until_complete();
    let target = mounted.place.clone();
    let switch = |order: &str| {
        let done = env.run([order.as_ref(), target.as_os_str()]);
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    ["pause", "drain", "stop", "resume"].into_iter().for_each(switch);
    assert_eq!(env.run(["limit".as_ref(), "5MiB".as_ref(), target.as_os_str()]).code, Some(0));
    let verified = env.run(["verify".as_ref(), env.destination().as_os_str()]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    fs::remove_file(env.source().join("b")).unwrap();
    env.put("a", patterned(2, 0, 300_001));
    // What fails is no event: evicting what is published.
    for order in ["hydrate", "pin", "unpin", "refresh"] {
        env.run([order.as_ref(), mounted.path("a").as_os_str()]);
    }
    mounted.until("the changes", |status| {
        status["files"]["changed"] == 1 && status["files"]["deleted"] == 1
    });
    mounted.unmount();
    // Only a cache lets go of files.
    let mounted = env.mount(&["--keep", "64MiB"]);
    read(mounted.path("c")).unwrap();
    assert_eq!(env.run(["evict".as_ref(), mounted.path("c").as_os_str()]).code, Some(0));
    mounted.unmount();
    let told = events(&env, &env.destination());
    has_told(&told, ORDERS);
    let limit = find(&told, "limit", "what", "set");
    assert_eq!((&limit["value"], &limit["used"]), (&(5 << 20).into(), &Value::Null));
    assert_eq!(find(&told, "verify", "what", "ended")["files"], 3);
}

#[test]
fn a_breaker_tells_that_it_opens_is_probed_and_closes() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for number in 0..11 {
        let broken = Behaviour::Status { code: 500, times: usize::MAX };
        origin.put(&format!("/{number:02}"), page(BLOCK).behaves(broken));
    }
    let mounted = env.mount_from(origin.url(), &[]);
    for number in 0..10 {
        assert_eq!(errno(read(mounted.path(format!("{number:02}")))), libc::EIO);
    }
    (0..11).for_each(|number| origin.behave(&format!("/{number:02}"), Behaviour::Right));
    eventually("a probe", || read(mounted.path("10")).ok());
    mounted.unmount();
    let told = events(&env, &env.destination());
    has_told(&told, BREAKER);
    let turns: Vec<(&str, u64)> = told
        .iter()
        .filter(|line| line["event"] == "breaker")
        .map(|line| (line["what"].as_str().unwrap(), line["failures"].as_u64().unwrap()))
        .collect();
    assert_eq!((turns[0], turns[turns.len() - 1]), (("opened", 10), ("closed", 10)), "{turns:?}");
    assert!(find(&told, "breaker", "what", "opened")["message"].as_str().unwrap().contains("500"));
}

#[test]
fn a_quota_that_is_used_up_is_told_once_with_its_name() {
    for (option, limit, value) in
        [("--max-fetch=512KiB", "max-fetch", 512 << 10), ("--max-requests=4", "max-requests", 4)]
    {
        let Some(env) = Env::new() else { return };
        let origin = Origin::start();
        (0..8).for_each(|number| origin.put(&format!("/{number}"), page(BLOCK)));
        let mounted = env.mount_from(origin.url(), &["--hydrate", option]);
        until_told(&env, &mounted, "pause", "by", "limit");
        mounted.unmount();
        let told = events(&env, &env.destination());
        has_told(&told, &QUOTA[1..]);
        let reached = told.iter().filter(|line| line["what"] == "reached").collect::<Vec<_>>();
        assert_eq!(reached.len(), 1, "{reached:?}");
        assert_eq!(reached[0]["limit"], limit);
        assert_eq!((&reached[0]["value"], &reached[0]["used"]), (&value.into(), &value.into()));
    }
}

#[test]
fn a_source_that_asks_to_be_left_alone_pauses_the_background_and_it_is_told() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    (0..100).for_each(|number| origin.put(&format!("/{number:03}"), page(1000)));
    let spare = Behaviour::Status { code: 429, times: 1 };
    origin.put("/000", page(1000).behaves(spare));
    // Two connections become one, and are two again soon.
    let mounted = env.mount_from(origin.url(), &["--hydrate", "--max-connections", "2"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["failed"], 0);
    mounted.unmount();
    let told = events(&env, &env.destination());
    has_told(&told, SPARED);
    let number = |event, field, word| find(&told, event, field, word)["seq"].as_u64().unwrap();
    assert!(number("pause", "by", "source") < number("resume", "by", "source"));
    let limits = told.iter().filter(|line| line["limit"] == "max-connections");
    let values: Vec<&Value> = limits.map(|line| &line["value"]).collect();
    assert_eq!(values, [1, 2]);
}

/// A tmpfs of 64 MiB at the place of the destination.
struct SmallDisk<'a>(&'a Env);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path("disk")).status());
    }
}

#[test]
fn too_little_room_is_told_and_that_there_is_some_again() {
    let Some(mut env) = Env::new() else { return };
    let place = env.path("disk");
    fs::create_dir(&place).unwrap();
    let mut tmpfs = Command::new("mount");
    tmpfs.args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&place);
    if !tmpfs.status().is_ok_and(|ran| ran.success()) {
        return common::skip("mount");
    }
    env.put_destination(place.join("dir"));
    for number in 0..4 {
        env.put(number.to_string(), patterned(1, 0, 100_000));
    }
    let disk = SmallDisk(&env);
    let filler = place.join("filler");
    fs::write(&filler, vec![1; 50 << 20]).unwrap();
    // 14 MiB are free: the log can be written, and nothing else may be.
    let mounted = env.mount(&["--hydrate", "--reserve", "20MiB"]);
    until_told(&env, &mounted, "pause", "by", "space");
    fs::remove_file(&filler).unwrap();
    mounted.until_complete();
    mounted.unmount();
    let told = events(&env, &env.destination());
    has_told(&told, SPACE);
    let short = find(&told, "space", "what", "short");
    assert_eq!(short["reserve_bytes"], 20 << 20);
    assert!(short["free_bytes"].as_u64() < short["reserve_bytes"].as_u64());
    drop(disk);
}
