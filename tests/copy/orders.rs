//! What a running copy is told: pause, resume, limit, stop.

use std::process::Child;

use serde_json::Value;

use crate::{Env, ended, eventually};

const FILES: u64 = 60;
const BYTES: u64 = 100_000;

/// A copy that is slow enough to be told something, and has begun.
pub(crate) fn slow() -> (Env, Child) {
    let env = Env::new();
    for number in 0..FILES {
        env.write(&format!("{number:02}"), &"x".repeat(100_000));
    }
    let child = env.start(&["--limit", "200KB", "--max-jobs", "2"]);
    eventually("the first bytes", || status(&env).filter(|status| fetched(status) > 0).map(|_| ()));
    (env, child)
}

pub(crate) fn status(env: &Env) -> Option<Value> {
    let output = env.command(&["status", "--json", "copy"]).output().unwrap();
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

fn fetched(status: &Value) -> u64 {
    status["bytes"]["fetched"].as_u64().unwrap_or(0)
}

fn order(env: &Env, words: &[&str]) {
    let output = env.command(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_paused_copy_begins_no_file_and_publishes_what_is_ready_and_goes_on_when_told() {
    let (env, child) = slow();
    order(&env, &["pause", "copy"]);
    // What was begun ends soon now.
    order(&env, &["limit", "off", "copy"]);
    let at_rest = eventually("rest", || {
        let status = status(&env)?;
        let published = status["files"]["published"].as_u64()?;
        (status["phase"] == "paused" && fetched(&status) == published * BYTES).then_some(published)
    });
    assert!((1..FILES).contains(&at_rest), "{at_rest}");
    for _ in 0..10 {
        let now = status(&env).unwrap();
        assert_eq!(fetched(&now), at_rest * BYTES, "nothing begins: {now:#}");
    }
    order(&env, &["resume", "copy"]);
    let ended = ended(child).expect(0);
    assert_eq!(ended.count("/files/copied"), FILES);
    crate::tree::assert_same(&env.source(), &env.dir());
}

#[test]
fn a_limit_holds_until_it_is_lifted() {
    let (env, child) = slow();
    order(&env, &["limit", "1KiB", "copy"]);
    assert!(status(&env).is_some_and(|status| fetched(&status) < FILES * BYTES));
    order(&env, &["limit", "off", "copy"]);
    assert_eq!(ended(child).expect(0).count("/files/copied"), FILES);
}

#[test]
fn a_stopped_copy_ends_with_5_and_the_same_command_goes_on() {
    for word in ["stop", "drain"] {
        let (env, child) = slow();
        order(&env, &[word, "copy"]);
        // It may have ended by now.
        env.command(&["limit", "off", "copy"]).output().unwrap();
        let first = ended(child).expect(5);
        assert!(env.dir().join("LAZYCOPY-INCOMPLETE.txt").exists(), "{word}");
        let second = env.copied(&[]);
        assert_eq!(first.count("/files/copied") + second.count("/files/copied"), FILES, "{word}");
    }
}

#[test]
fn a_stopped_copy_of_a_server_is_not_called_complete() {
    let (env, origin) = (Env::new(), crate::origin::Origin::start());
    for number in 0..8 {
        let page = crate::origin::Page::of(vec![number; 1 << 20]);
        origin.put(&format!("/{number}"), page);
    }
    let child = env.start_from(&origin.url(), &["--limit", "500KB"]);
    eventually("the first bytes", || status(&env).filter(|status| fetched(status) > 0).map(|_| ()));
    order(&env, &["stop", "copy"]);
    ended(child).expect(5);
    assert!(env.dir().join("LAZYCOPY-INCOMPLETE.txt").exists());
    assert!(!env.dir().join(".lazycopy/receipt.json").exists());
    env.copy_from(&origin.url(), &[]).expect(0);
    for number in 0..8u8 {
        let found = std::fs::read(env.dir().join(number.to_string())).unwrap();
        assert!(found == vec![number; 1 << 20]);
    }
}

#[test]
fn the_bytes_of_a_large_file_count_as_they_come() {
    let env = Env::new();
    let size = 8 << 20;
    env.write("large", &"x".repeat(size));
    // A second of the first pieces comes at once.
    let child = env.start(&["--limit", "1MiB"]);
    let part = eventually("a part of it", || {
        let status = status(&env)?;
        let here = status["bytes"]["local"].as_u64().filter(|here| *here > 0)?;
        (status["files"]["published"] == 0).then_some(here)
    });
    assert!(part < size as u64, "{part}");
    order(&env, &["limit", "off", "copy"]);
    let ended = ended(child).expect(0);
    assert_eq!(ended.count("/files/copied"), 1);
}

#[test]
fn a_very_large_file_goes_on_where_it_was_stopped() {
    use std::os::unix::fs::FileExt;

    let env = Env::new();
    let (size, piece, pieces) = ((1u64 << 30) + 4097, 2u64 << 20, 8);
    let file = std::fs::File::create(env.source().join("large")).unwrap();
    file.set_len(size).unwrap();
    for number in 0..pieces {
        let bytes = vec![u8::try_from(number).unwrap() + 1; usize::try_from(piece).unwrap()];
        file.write_all_at(&bytes, number * (size / pieces)).unwrap();
    }
    drop(file);
    let child = env.start(&["--limit", "2MiB"]);
    let some = |status: Value| (fetched(&status) >= 2 * piece).then_some(());
    eventually("a quarter of it", || status(&env).and_then(some));
    order(&env, &["stop", "copy"]);
    let first = ended(child).expect(5).count("/bytes/copied");
    assert!((2 * piece..pieces * piece).contains(&first), "{first}");
    let second = env.copied(&[]).count("/bytes/copied");
    // What is kept of a chunk that is cut short are whole blocks.
    let again = (first + second).checked_sub(pieces * piece);
    assert!(again.is_some_and(|again| again < 32 * (128 << 10)), "{first} + {second}");
}
