//! What may be asked of the source, with a real kernel and real servers.

use std::fs;
use std::time::Duration;

use crate::common::nginx::Nginx;
use crate::harness::{BLOCK, Env, Mounted, errno, eventually, patterned, read};
use crate::origin::{Behaviour, Origin, Page};

fn page(size: u64) -> Page {
    Page::new(size, |at, len| patterned(1, at, len))
}

fn content(size: u64) -> Vec<u8> {
    patterned(1, 0, usize::try_from(size).unwrap())
}

fn said(env: &Env, words: &str) -> usize {
    env.log().lines().filter(|line| line.contains(words)).count()
}

fn limits(mounted: &Mounted<'_>, name: &str) -> serde_json::Value {
    mounted.status()["limits"][name].clone()
}

#[test]
fn beyond_max_fetch_reads_of_what_is_not_local_are_edquot_also_after_a_restart_and_it_is_said_once()
{
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for name in ["/a", "/b", "/c", "/d"] {
        origin.put(name, page(4 * BLOCK));
    }
    let options = ["--max-fetch", "1MiB", "--log-level", "info"];
    let mounted = env.mount_from(origin.url(), &options);
    assert!(read(mounted.path("a")).unwrap() == content(4 * BLOCK));
    assert!(read(mounted.path("b")).unwrap() == content(4 * BLOCK));
    assert_eq!(errno(read(mounted.path("c"))), libc::EDQUOT);
    assert_eq!(errno(read(mounted.path("d"))), libc::EDQUOT);
    assert!(read(mounted.path("a")).unwrap() == content(4 * BLOCK));
    assert_eq!(limits(&mounted, "fetch_bytes"), 1 << 20);
    assert_eq!(origin.body_bytes(), 1 << 20);
    assert_eq!(said(&env, "--max-fetch 1048576 is used up"), 1, "{}", env.log());
    mounted.unmount();
    let mounted = env.mount_from(origin.url(), &options);
    assert_eq!(errno(read(mounted.path("c"))), libc::EDQUOT);
    assert!(read(mounted.path("b")).unwrap() == content(4 * BLOCK));
    assert_eq!(origin.body_bytes(), 1 << 20);
    mounted.unmount();
    // A higher one lets it go on.
    let mounted = env.mount_from(origin.url(), &["--max-fetch", "2MiB"]);
    assert!(read(mounted.path("c")).unwrap() == content(4 * BLOCK));
    mounted.unmount();
}

#[test]
fn hydration_stops_exactly_at_max_fetch_and_says_by_what_it_is_paused() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for number in 0..40 {
        origin.put(&format!("/{number:02}"), page(BLOCK));
    }
    let mounted = env.mount_from(origin.url(), &["--hydrate", "--max-fetch", "2MiB"]);
    let status = mounted.until("paused by its limit", |status| {
        status["paused_by"] == "limit" && status["files"]["published"] == 16
    });
    assert_eq!(status["phase"], "paused", "{status:#}");
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    assert_eq!(origin.body_bytes(), 2 << 20);
    mounted.unmount();
}

#[test]
fn beyond_max_requests_nothing_is_asked_for() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for name in ["/a", "/b", "/c"] {
        origin.put(name, page(BLOCK));
    }
    let mounted = env.mount_from(origin.url(), &["--max-requests", "2"]);
    assert!(read(mounted.path("a")).unwrap() == content(BLOCK));
    assert!(read(mounted.path("b")).unwrap() == content(BLOCK));
    assert_eq!(errno(read(mounted.path("c"))), libc::EDQUOT);
    assert_eq!(origin.count("GET", "/c"), 0);
    assert_eq!(limits(&mounted, "requests"), 2);
    mounted.unmount();
}

#[test]
fn what_a_verification_reads_of_the_source_counts_too_and_stops_at_the_limit() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/a", page(4 * BLOCK));
    origin.put("/b", page(4 * BLOCK));
    // Twice what there is, but for one block.
    let most = (15 * BLOCK).to_string();
    let mounted = env.mount_from(origin.url(), &["--hydrate", "--max-fetch", &most]);
    mounted.until_complete();
    assert_eq!(limits(&mounted, "fetch_bytes"), 8 * BLOCK);
    let destination = env.destination();
    let url = origin.url();
    let args = ["verify".as_ref(), destination.as_os_str(), "--source".as_ref(), url.as_ref()];
    let verified = env.run(args);
    assert_ne!(verified.code, Some(0), "{verified:?}");
    assert!(format!("{verified:?}").contains("--max-fetch"), "{verified:?}");
    assert_eq!(limits(&mounted, "fetch_bytes"), 12 * BLOCK);
    assert_eq!(origin.body_bytes(), 12 * BLOCK);
    mounted.unmount();
}

// O15: 10 permanent failures in a row stopped everything for good.
#[test]
fn ten_failures_in_a_row_make_reads_fail_at_once_and_a_probe_makes_them_go_on() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let broken = Behaviour::Status { code: 500, times: usize::MAX };
    origin.put("/good", page(BLOCK));
    for number in 0..12 {
        origin.put(&format!("/{number:02}"), page(BLOCK).behaves(broken.clone()));
    }
    let mounted = env.mount_from(origin.url(), &[]);
    assert!(read(mounted.path("good")).unwrap() == content(BLOCK));
    for number in 0..10 {
        assert_eq!(errno(read(mounted.path(format!("{number:02}")))), libc::EIO);
        assert_eq!(origin.count("GET", &format!("/{number:02}")), 3, "{number}");
    }
    assert_eq!(errno(read(mounted.path("10"))), libc::EIO);
    assert_eq!(origin.count("GET", "/10"), 0);
    assert!(limits(&mounted, "source_failing").as_str().unwrap().contains("500"));
    assert!(read(mounted.path("good")).unwrap() == content(BLOCK));
    assert_eq!(said(&env, "failed 10 times in a row"), 1, "{}", env.log());
    for number in 0..12 {
        origin.behave(&format!("/{number:02}"), Behaviour::Right);
    }
    let bytes = eventually("a probe", || read(mounted.path("11")).ok());
    assert!(bytes == content(BLOCK));
    // Tried again at the next access.
    assert!(read(mounted.path("00")).unwrap() == content(BLOCK));
    assert!(limits(&mounted, "source_failing").is_null());
    mounted.unmount();
}

#[test]
fn answers_about_single_files_are_no_failures_of_the_source() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let denied = Behaviour::Status { code: 403, times: usize::MAX };
    for number in 0..12 {
        origin.put(&format!("/{number:02}"), page(BLOCK).behaves(denied.clone()));
    }
    origin.put("/good", page(BLOCK));
    let mounted = env.mount_from(origin.url(), &[]);
    for number in 0..12 {
        assert_eq!(errno(read(mounted.path(format!("{number:02}")))), libc::EACCES);
    }
    assert!(read(mounted.path("good")).unwrap() == content(BLOCK));
    mounted.unmount();
}

#[test]
fn a_server_that_asks_to_be_spared_is_spared_and_everything_is_copied() {
    let Some(env) = Env::new() else { return };
    let size = 300_000;
    for number in 0..60 {
        env.put(format!("{number:02}"), content(size));
    }
    // The zone belongs beside the server block; what follows it closes what the harness left open.
    let server = "limit_req zone=spare burst=4 nodelay; limit_req_status 503;\n}\n\
        limit_req_zone $server_name zone=spare:1m rate=60r/s;\nmap $host $unused {\ndefault 1;";
    let Some(nginx) = Nginx::start(&env.source(), server) else { return };
    let mounted = env.mount_from(nginx.url("/"), &["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["published"], 60, "{status:#}");
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    assert_eq!(status["chunks"]["failed"], 0, "{status:#}");
    let (now, most) = (&status["limits"]["connections"], &status["limits"]["max_connections"]);
    println!("connections {now} of {most}, retried {}", status["chunks"]["retried"]);
    assert_eq!(*most, 32);
    assert!(now.as_u64() < most.as_u64(), "{status:#}");
    assert!(nginx.access_log().iter().any(|line| line.contains(" 503 ")));
    mounted.unmount();
    for number in 0..60 {
        assert!(fs::read(env.destination().join(format!("{number:02}"))).unwrap() == content(size));
    }
}

#[test]
fn a_server_that_asks_to_be_spared_at_the_start_is_asked_again() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/a/file", page(BLOCK));
    origin.be_busy_at_first();
    for _ in 0..2 {
        let mounted = env.mount_from(origin.url(), &["--hydrate"]);
        mounted.until_complete();
        assert!(read(mounted.path("a/file")).unwrap() == content(BLOCK));
        assert_eq!(said(&env, "is away"), 0, "{}", env.log());
        mounted.unmount();
    }
}

#[test]
fn no_more_connections_are_used_than_were_asked_for() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for number in 0..20 {
        let slow = page(BLOCK).latency(Duration::from_millis(5));
        origin.put(&format!("/{number:02}"), slow);
    }
    let mounted = env.mount_from(origin.url(), &["--hydrate", "--max-connections", "1"]);
    let status = mounted.until_complete();
    assert_eq!(status["limits"]["max_connections"], 1, "{status:#}");
    assert!(origin.most_heads_at_once() <= 1, "{}", origin.most_heads_at_once());
    mounted.unmount();
}
