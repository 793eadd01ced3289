//! The background copy as its user sees it.

use std::fs;

use serde_json::Value;

use crate::harness::{Env, eventually};

fn number(status: &Value, part: &str, field: &str) -> u64 {
    status[part][field].as_u64().unwrap()
}

// O2, O7: progress above 100 %, falling, or an estimate.
#[test]
fn progress_never_falls_and_never_passes_its_end() {
    let Some(env) = Env::new() else { return };
    let mut bytes = 0;
    for directory in 0..40usize {
        for file in 0..20usize {
            let content = vec![7; (directory * 331 + file * 7919) % 40_000];
            bytes += content.len() as u64;
            env.put(format!("d{directory}/e/f{file}"), content);
        }
    }
    env.put("large", vec![9; 30 << 20]);
    bytes += 30 << 20;
    let mounted = env.mount(&["--hydrate"]);
    let mut last: Option<Value> = None;
    let end = eventually("the end of the copy", || {
        let now = mounted.status();
        let percent = now["percent"].as_f64().unwrap();
        assert!(percent <= 100.0 && (percent < 100.0 || now["phase"] == "complete"), "{now:#}");
        assert!(number(&now, "bytes", "local") <= number(&now, "bytes", "total"), "{now:#}");
        if let Some(last) = &last {
            assert!(last["percent"].as_f64().unwrap() <= percent, "{last:#} {now:#}");
            for (part, field) in
                [("files", "total"), ("files", "published"), ("bytes", "total"), ("bytes", "local")]
            {
                assert!(number(last, part, field) <= number(&now, part, field), "{last:#} {now:#}");
            }
        }
        let lanes = now["lanes"].as_array().unwrap();
        assert!(lanes.iter().all(|lane| lane["path"].is_string() && lane["workers"].is_u64()));
        let is_complete = now["phase"] == "complete";
        last = Some(now.clone());
        is_complete.then_some(now)
    });
    assert_eq!(number(&end, "files", "total"), 801);
    assert_eq!(number(&end, "files", "published"), 801);
    for field in ["total", "local", "fetched"] {
        assert_eq!(number(&end, "bytes", field), bytes, "{field}");
    }
    assert_eq!(end["lanes"], Value::Array(vec![]));
    mounted.unmount();
}

#[test]
fn what_is_left_out_is_readable_and_counted_and_said() {
    let Some(env) = Env::new() else { return };
    for name in ["a.c", "a.o", "sub/b.c", "sub/b.o", "cache/x", "@eaDir/thumb", ".nfs0001"] {
        env.put(name, name);
    }
    let mounted = env.mount(&["--hydrate", "--exclude", "*.o", "--exclude", "/cache"]);
    let status = mounted.until_complete();
    assert_eq!(number(&status, "files", "skipped"), 5);
    assert_eq!(status["percent"], 100.0);
    for name in ["a.c", "sub/b.c"] {
        assert_eq!(fs::read(env.destination().join(name)).unwrap(), name.as_bytes());
    }
    for name in ["a.o", "sub/b.o", "cache", "@eaDir", ".nfs0001"] {
        assert!(!env.destination().join(name).exists(), "{name}");
    }
    let receipt = fs::read(env.destination().join(".lazycopy/receipt.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&receipt).unwrap()["skipped"], 5);
    assert_eq!(fs::read(mounted.path("@eaDir/thumb")).unwrap(), b"@eaDir/thumb");
    assert_eq!(fs::read(mounted.path("cache/x")).unwrap(), b"cache/x");
    mounted.unmount();
    let mounted = env.mount(&["--hydrate", "--include", "*", "--include", "@eaDir"]);
    mounted.until_complete();
    assert!(env.destination().join("@eaDir/thumb").exists());
    assert!(env.destination().join("a.o").exists() && !env.destination().join(".nfs0001").exists());
    mounted.unmount();
}
