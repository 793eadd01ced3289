//! Seeing what goes on, and what hangs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{BLOCK, Env, eventually, patterned, read};
use crate::origin::{Behaviour, Origin, Page};

fn keys(value: &Value) -> String {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys.join(" ")
}

#[test]
fn status_keeps_to_schema_1() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let mounted = env.mount(&["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["schema"], 1);
    assert_eq!(
        keys(&status),
        "active bytes chunks dest elapsed_s errors eta_s files job lanes limits mountpoint paused_by percent phase proof rate_bytes_per_s rates schema session source started_at"
    );
    for (part, fields) in [
        ("files", "changed deleted failed partial published skipped total vanished warnings"),
        ("proof", "adopted_unverified source_checksum transfer"),
        ("bytes", "fetched local served total wasted"),
        ("chunks", "active done failed queued retried total"),
    ] {
        assert_eq!(keys(&status[part]), fields);
        assert!(status[part].as_object().unwrap().values().all(Value::is_u64), "{part}");
    }
    assert_eq!(status["mountpoint"], mounted.place.to_str().unwrap());
    assert_eq!(status["dest"], env.destination().to_str().unwrap());
    assert_eq!(status["source"], env.source().to_str().unwrap());
    assert_eq!(status["paused_by"], Value::Null);
    assert_eq!(status["proof"]["transfer"], 1);
    assert_eq!(status["bytes"]["total"], 7);
    assert_eq!(status["bytes"]["local"], 7);
    let everybody = env.run(["status", "--json"]);
    let everybody: Value = serde_json::from_str(&everybody.out).unwrap();
    assert_eq!(keys(&everybody), "daemons schema");
    assert_eq!(everybody["daemons"][0]["session"], status["session"]);
    let text = env.run(["status".as_ref(), env.destination().as_os_str()]);
    assert!(text.out.contains("complete"), "{text:?}");
    mounted.unmount();
    let after = env.run(["status", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&after.out).unwrap()["daemons"], Value::Array(vec![]));
}

#[test]
fn the_job_keeps_its_name_over_restarts_and_a_session_does_not() {
    let Some(env) = Env::new() else { return };
    let names = [(); 2].map(|()| {
        let mounted = env.mount(&[]);
        let status = mounted.status();
        mounted.unmount();
        (status["job"].clone(), status["session"].clone())
    });
    assert_eq!(names[0].0, names[1].0);
    assert_ne!(names[0].1, names[1].1);
}

#[test]
fn a_blocked_read_is_shown_with_its_path_offset_and_chunk() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let mute = Page::new(1 << 20, |at, len| patterned(1, at, len));
    origin.put("/dir/mute", mute.behaves(Behaviour::SilentBodies));
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "60s", "--log-level", "trace"]);
    let path = mounted.path("dir/mute");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = [0; 4096];
            File::open(path).unwrap().read_exact_at(&mut bytes, 3 * BLOCK).map(|()| bytes)
        });
        let one = eventually("a stuck read with its chunk", || {
            let all = mounted.stuck();
            all.into_iter().find(|one| one["kind"] == "read" && !one["chunk"].is_null())
        });
        assert_eq!(one["path"], "dir/mute");
        let (offset, len) = (one["offset"].as_u64().unwrap(), one["len"].as_u64().unwrap());
        assert!(offset <= 3 * BLOCK && 3 * BLOCK < offset + len, "{one}");
        assert!(one["waits_for"].as_str().unwrap().contains("chunk"), "{one}");
        let status = mounted.status();
        let active = status["active"].as_array().unwrap();
        assert!(active.iter().any(|chunk| chunk["chunk"] == one["chunk"]), "{status:#}");

        // For people.
        let text = env.run(["status".as_ref(), "--stuck".as_ref(), mounted.place.as_os_str()]);
        assert!(text.out.contains("dir/mute") && text.out.contains("chunk"), "{text:?}");

        // The log tells the same: an enter without an exit.
        mounted.signal(Signal::USR1);
        let request = one["id"].to_string();
        let enter = format!("read enter req={request} ");
        let log = eventually("the waiting read in the log", || {
            let log = env.log();
            let waits = |line: &&str| line.contains("waits") && line.contains("dir/mute");
            log.lines().any(|line| waits(&line)).then_some(log)
        });
        assert!(log.contains(&enter), "no {enter:?} in {log}");
        assert!(!log.contains(&format!("read exit req={request} ")), "{log}");

        origin.release();
        assert_eq!(reader.join().unwrap().unwrap()[..], patterned(1, 3 * BLOCK, 4096)[..]);
        let exit = format!("read exit req={request} ");
        eventually("the exit in the log", || env.log().contains(&exit).then_some(()));
        assert!(mounted.is_alive());
    });
    mounted.unmount();
}

// L14: a log that nobody reads must not stop the mount.
#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let Some(env) = Env::new() else { return };
    for number in 0..300 {
        env.put(format!("file-{number}"), "content");
    }
    let fifo = env.path("log");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    // Held open and never read.
    let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let mounted = env.mount(&["--log", fifo.to_str().unwrap(), "--log-level", "trace"]);
    for _ in 0..10 {
        for number in 0..300 {
            assert_eq!(read(mounted.path(format!("file-{number}"))).unwrap(), b"content");
        }
    }
    mounted.status();
    let mut mounted = mounted;
    assert_eq!(mounted.try_unmount(&["--force"]).code, Some(0));
    assert!(fs::read_dir(&mounted.place).unwrap().next().is_none());
    // What it still has to write must not keep it alive for ever.
    mounted.until_gone();
}
