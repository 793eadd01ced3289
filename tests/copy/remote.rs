//! A source on another machine: deletions, renames, plans, quotas.

use std::fs;
use std::os::unix::fs::MetadataExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

use crate::origin::{Behaviour, Origin, Page};
use crate::{Env, ended, eventually, exists};

const MIB: usize = 1 << 20;

fn bytes(number: u8, len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).map(|byte: u8| byte ^ number).collect()
}

/// A page that says its MD5.
fn summed(content: Vec<u8>) -> Page {
    let sum = STANDARD.encode(Md5::digest(&content));
    Page::of(content).header(&format!("Content-MD5: {sum}"))
}

/// Ten files in two directories, and their copy.
fn copied() -> (Env, Origin) {
    let (env, origin) = (Env::new(), Origin::start());
    for number in 0..5 {
        origin.put(&format!("/a/{number}"), summed(bytes(number, 1000)));
        origin.put(&format!("/b/{number}"), summed(bytes(number + 100, 2000)));
    }
    let first = env.copy_from(&origin.url(), &[]).expect(0);
    assert_eq!(first.count("/files/copied"), 10);
    (env, origin)
}

fn verify(env: &Env) {
    let verified = env.command(&["verify", "copy"]).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn a_first_copy_asks_for_a_file_once_and_looks_once_more_at_the_end() {
    let (env, origin) = (Env::new(), Origin::start());
    let files = 60;
    for number in 0..files {
        origin.put(&format!("/a/{number}"), Page::of(bytes(number, 300_000)));
    }
    origin.put("/a/empty", Page::of(""));
    origin.put("/large", Page::of(bytes(7, 9 * MIB + 1)));
    let first = env.copy_from(&origin.url(), &[]).expect(0);
    assert_eq!(first.count("/files/copied"), u64::from(files) + 2, "{}", first.summary);
    let (mut once, mut looks) = (0, 0);
    for number in 0..files {
        let path = format!("/a/{number}");
        assert_eq!(fs::read(env.dir().join(&path[1..])).unwrap(), bytes(number, 300_000));
        assert_eq!(origin.count("GET", &path), 1, "{path}");
        looks += origin.count("HEAD", &path);
        once += usize::from(origin.count("HEAD", &path) == 1);
    }
    // Until the server has shown that it keeps to ranges it is asked for attributes first, by all who begin at that moment.
    assert!(once >= usize::from(files) / 3, "{once} of {files} with one look; {looks} looks");
    assert_eq!(fs::read(env.dir().join("large")).unwrap(), bytes(7, 9 * MIB + 1));
    assert_eq!(origin.body_bytes(), u64::from(files) * 300_000 + 9 * (1 << 20) + 1);
    verify(&env);
}

#[test]
fn what_changes_after_its_first_bytes_is_copied_in_one_version() {
    let (env, origin) = (Env::new(), Origin::start());
    for number in 0..40 {
        origin.put(&format!("/a/{number}"), Page::of(bytes(number, 1000)));
    }
    let page = |word: u8| Page::of(bytes(word, 40 * MIB)).etag(&word.to_string());
    origin.put("/a/large", page(1).behaves(Behaviour::StallAt(MIB as u64 / 2)));
    let copy = env.start_from(&origin.url(), &[]);
    eventually("the file is asked for", || (origin.count("GET", "/a/large") > 0).then_some(()));
    origin.put("/a/large", page(2));
    origin.release();
    ended(copy).expect(0);
    assert!(fs::read(env.dir().join("a/large")).unwrap() == bytes(2, 40 * MIB));
    verify(&env);
}

#[test]
fn what_is_gone_at_a_server_stays_unless_its_deletion_is_asked_for() {
    let (env, origin) = copied();
    let dir = env.dir();
    origin.remove("/a/1");
    for number in 0..5 {
        origin.remove(&format!("/b/{number}"));
    }
    let kept = env.copy_from(&origin.url(), &[]).expect(0);
    assert_eq!((kept.count("/gone"), kept.count("/deleted")), (7, 0), "{}", kept.summary);
    assert!(exists(&dir.join("a/1")) && exists(&dir.join("b/4")));
    fs::write(dir.join("b/2"), "my own words").unwrap();
    fs::write(dir.join("b/mine"), "mine").unwrap();
    let dry = env.copy_from(&origin.url(), &["--delete", "--dry-run"]).expect(0);
    assert_eq!(dry.count("/deleted"), 7);
    assert!(exists(&dir.join("a/1")));
    let refused = env.copy_from(&origin.url(), &["--delete", "--max-delete", "6"]).expect(2);
    assert!(refused.stderr.contains("--max-delete 7"), "{}", refused.stderr);
    assert!(exists(&dir.join("a/1")));
    let deleted = env.copy_from(&origin.url(), &["--delete"]).expect(0);
    assert_eq!((deleted.count("/deleted"), deleted.count("/kept")), (5, 2), "{}", deleted.summary);
    assert!(!exists(&dir.join("a/1")) && !exists(&dir.join("b/4")) && exists(&dir.join("a/0")));
    assert_eq!(fs::read_to_string(dir.join("b/2")).unwrap(), "my own words");
    assert_eq!(fs::read_to_string(dir.join("b/mine")).unwrap(), "mine");
    assert!(exists(&dir.join(".lazycopy/receipt.json")));
    assert!(!exists(&dir.join("LAZYCOPY-INCOMPLETE.txt")));
}

#[test]
fn a_listing_that_fails_deletes_nothing() {
    let (env, origin) = copied();
    origin.remove("/a/1");
    origin.put("/b/", Page::of("").behaves(Behaviour::Status { code: 403, times: 1000 }));
    let failed = env.copy_from(&origin.url(), &["--delete"]).expect(1);
    assert_eq!((failed.count("/deleted"), failed.count("/gone")), (0, 1), "{}", failed.summary);
    assert!(exists(&env.dir().join("a/1")) && exists(&env.dir().join("b/1")));
    origin.remove("/b/");
    let deleted = env.copy_from(&origin.url(), &["--delete"]).expect(0);
    assert_eq!(deleted.count("/deleted"), 1);
    assert!(exists(&env.dir().join("b/1")));
}

#[test]
fn a_server_that_lists_nothing_any_more_deletes_nothing() {
    let (env, origin) = copied();
    for number in 0..5 {
        origin.remove(&format!("/a/{number}"));
        origin.remove(&format!("/b/{number}"));
    }
    env.copy_from(&origin.url(), &["--delete"]).expect(3);
    assert!(exists(&env.dir().join("a/1")) && exists(&env.dir().join("b/1")));
}

#[test]
fn a_file_with_the_same_checksum_under_another_name_does_not_travel() {
    let (env, origin) = copied();
    let inode = |name: &str| fs::metadata(env.dir().join(name)).unwrap().ino();
    let (one, two) = (inode("a/1"), inode("b/2"));
    origin.put("/c/moved", origin.remove("/a/1").etag("other"));
    origin.put("/a/renamed", origin.remove("/b/2"));
    let before = origin.body_bytes();
    let dry = env.copy_from(&origin.url(), &["--dry-run"]).expect(0);
    assert_eq!(dry.count("/files/renamed"), 2, "{}", dry.summary);
    let second = env.copy_from(&origin.url(), &["--delete"]).expect(0);
    assert_eq!(
        (second.count("/files/renamed"), second.count("/files/copied"), second.count("/deleted")),
        (2, 0, 0),
        "{}",
        second.summary
    );
    assert_eq!(origin.body_bytes(), before, "no byte travels");
    assert_eq!((inode("c/moved"), inode("a/renamed")), (one, two));
    assert!(!exists(&env.dir().join("a/1")) && !exists(&env.dir().join("b/2")));
    assert_eq!(fs::read(env.dir().join("c/moved")).unwrap(), bytes(1, 1000));
    verify(&env);
    let listed = origin.count("GET", "/a/");
    let third = env.copy_from(&origin.url(), &["--delete"]).expect(0);
    assert_eq!(origin.count("GET", "/a/"), listed + 1, "a pass lists each directory once");
    assert_eq!((third.count("/files/unchanged"), third.count("/deleted")), (10, 0));
    assert_eq!(origin.body_bytes(), before);
}

#[test]
fn an_etag_alone_is_no_checksum_and_a_lying_checksum_harms_nothing() {
    let (env, origin) = (Env::new(), Origin::start());
    origin.put("/one", Page::of(bytes(1, 1000)));
    origin.put("/two", summed(bytes(2, 1000)));
    env.copy_from(&origin.url(), &[]).expect(0);
    origin.remove("/one");
    origin.remove("/two");
    // The same ETag and size; of the other the same checksum, which is wrong.
    origin.put("/uno", Page::of(bytes(3, 1000)));
    let sum = STANDARD.encode(Md5::digest(bytes(2, 1000)));
    let liar = Page::of(bytes(4, 1000)).header(&format!("Content-MD5: {sum}"));
    origin.put("/due", liar);
    let ended = env.copy_from(&origin.url(), &[]);
    assert!([Some(0), Some(1)].contains(&ended.exit), "{}", ended.stderr);
    assert_eq!(fs::read(env.dir().join("uno")).unwrap(), bytes(3, 1000));
}

#[test]
fn a_plan_respects_the_filter_and_counts_requests() {
    let (env, origin) = (Env::new(), Origin::start());
    origin.put("/small", Page::of("small"));
    origin.put("/empty", Page::of(""));
    origin.put("/big", Page::of(bytes(0, 20 * MIB)));
    origin.put("/skip/one", Page::of("x"));
    origin.put("/notes.tmp", Page::of("x"));
    let dry =
        env.copy_from(&origin.url(), &["--dry-run", "--exclude", "skip", "--exclude", "*.tmp"]);
    let dry = dry.expect(0);
    assert_eq!((dry.count("/files/copied"), dry.count("/left_out")), (3, 2), "{}", dry.summary);
    assert_eq!(dry.count("/bytes/copied"), 20 * (1 << 20) + 5);
    assert!((3..=21).contains(&dry.count("/requests")), "{}", dry.summary);
    assert_eq!(origin.body_bytes(), 0);
    assert_eq!(origin.count("GET", "/skip/"), 0);
    assert!(!exists(&env.dir()));
    let only = env.copy_from(&origin.url(), &["--dry-run", "--include", "small"]).expect(0);
    assert_eq!((only.count("/files/copied"), only.count("/bytes/copied")), (1, 5));
}

#[test]
fn quotas_of_a_directory_of_this_machine_are_refused_before_the_start() {
    let env = Env::new();
    env.write("one", "one");
    for quota in [["--max-fetch", "1MiB"], ["--max-requests", "3"]] {
        let output = env.command(&["copy", quota[0], quota[1], "source", "copy"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{said}");
        assert!(said.contains("--max-fetch and --max-requests are for sources"), "{said}");
        assert!(!exists(&env.dir()));
    }
}

#[test]
fn a_copy_whose_quota_is_used_up_ends_by_itself_and_goes_on_the_next_time() {
    let (env, origin) = (Env::new(), Origin::start());
    for number in 0..8 {
        origin.put(&format!("/{number}"), Page::of(bytes(number, MIB)));
    }
    let url = origin.url();
    let cut = env.copy_from(&url, &["--max-fetch", "3MiB"]).expect(5);
    assert!(cut.stderr.contains("--max-fetch 3145728 is used up"), "{}", cut.stderr);
    let why = cut.summary["stopped_by"].as_str().unwrap_or_default();
    assert!(why.contains("--max-fetch 3145728"), "{}", cut.summary);
    assert_eq!(origin.body_bytes(), 3 << 20);
    assert!(exists(&env.dir().join("LAZYCOPY-INCOMPLETE.txt")));
    let again = env.copy_from(&url, &["--max-fetch", "3MiB"]).expect(5);
    assert_eq!((origin.body_bytes(), again.count("/bytes/copied")), (3 << 20, 0));
    // Exactly enough is enough.
    let whole = env.copy_from(&url, &["--max-fetch", "8MiB"]).expect(0);
    assert!(whole.summary["stopped_by"].is_null());
    assert_eq!(origin.body_bytes(), 8 << 20, "what was there did not travel again");
    for number in 0..8 {
        assert!(fs::read(env.dir().join(number.to_string())).unwrap() == bytes(number, MIB));
    }
    verify(&env);
}

#[test]
fn requests_are_counted_over_restarts() {
    let (env, origin) = (Env::new(), Origin::start());
    for number in 0..5 {
        origin.put(&format!("/{number}"), Page::of(bytes(number, 1000)));
    }
    let cut = env.copy_from(&origin.url(), &["--max-requests", "2"]).expect(5);
    assert!(cut.stderr.contains("--max-requests 2 is used up"), "{}", cut.stderr);
    assert_eq!(origin.body_bytes(), 2000);
    env.copy_from(&origin.url(), &["--max-requests", "5"]).expect(0);
    assert_eq!(origin.body_bytes(), 5000);
}
