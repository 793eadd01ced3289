//! Snapshots: the source of one moment, removed whatever happens; only our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::common::skip;
use crate::{Env, Running, children_of, eventually, exists, job};

/// A btrfs file system on a loop device, mounted at `m` below the base; gone when it is dropped.
struct Btrfs<'a> {
    env: &'a Env,
}

impl<'a> Btrfs<'a> {
    /// `None` where that cannot be made.
    fn mount(env: &'a Env) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("root, to mount btrfs");
            return None;
        }
        let image = env.path("btrfs.img");
        let file = fs::File::create(&image).unwrap();
        file.set_len(300 << 20).unwrap();
        fs::create_dir(env.path("m")).unwrap();
        let made = Command::new("mkfs.btrfs").arg("-q").arg(&image).output();
        if !made.is_ok_and(|made| made.status.success()) {
            skip("mkfs.btrfs");
            return None;
        }
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-o", "loop"]).arg(&image).arg(env.path("m")).output().unwrap();
        if !mounted.status.success() {
            skip("a kernel with btrfs and loop devices");
            return None;
        }
        let btrfs = Self { env };
        let mut create = Command::new("btrfs");
        let made = create.args(["subvolume", "create"]).arg(btrfs.subvolume()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Some(btrfs)
    }

    fn subvolume(&self) -> PathBuf {
        self.env.path("m/sub")
    }

    fn snapshots(&self) -> Vec<String> {
        let names = fs::read_dir(self.subvolume()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".lazycopy-snapshot-")).collect()
    }

    fn jobs(&self, keys: &str) {
        self.env.jobs(&format!(
            "[[job]]\nname = 'a'\nsource = 'm/sub/tree'\ndestination = 'out-a'\nsnapshot = 'btrfs'\n{keys}\n"
        ));
    }
}

impl Drop for Btrfs<'_> {
    fn drop(&mut self) {
        let umount = |how: &[&str]| {
            let done = Command::new("umount").args(how).arg(self.env.path("m")).status();
            done.is_ok_and(|status| status.success())
        };
        // After a failed test something may still use it.
        assert!(umount(&[]) || umount(&["-l"]), "btrfs stays mounted");
    }
}

fn ledger(env: &Env) -> Vec<PathBuf> {
    let entries = fs::read_dir(env.path("state/lazycopy/snapshots"));
    entries.map_or_else(|_| Vec::new(), |all| all.map(|entry| entry.unwrap().path()).collect())
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// A run whose copy has begun.
fn begun(env: &Env) -> Running {
    let mut running = env.start(&[]);
    running.until("progress", "a");
    running
}

#[test]
fn a_copy_has_what_the_snapshot_has_and_the_snapshot_is_removed() {
    let env = Env::new();
    let Some(btrfs) = Btrfs::mount(&env) else { return };
    env.write("m/sub/tree/large", vec![7; 60 << 20]);
    env.write("m/sub/tree/changed", "before");
    env.write("m/sub/tree/gone", "still there");
    btrfs.jobs("limit = '256KiB/s'");
    let running = begun(&env);
    assert_eq!(btrfs.snapshots().len(), 1, "the copy runs, so there is a snapshot");
    assert_eq!(ledger(&env).len(), 1);
    env.write("m/sub/tree/changed", "after");
    fs::remove_file(env.path("m/sub/tree/gone")).unwrap();
    env.write("m/sub/tree/new", "new");
    let limit = env.command(&["limit", "off", "out-a"]).output().unwrap();
    assert_eq!(limit.status.code(), Some(0), "{}", String::from_utf8_lossy(&limit.stderr));
    let ended = running.ended().expect(0);
    ended.expect_outcomes(&[("a", "complete")]);
    assert_eq!(text(&env.path("out-a/changed")), "before");
    assert_eq!(text(&env.path("out-a/gone")), "still there");
    assert!(!exists(&env.path("out-a/new")));
    assert_eq!((btrfs.snapshots().len(), ledger(&env).len()), (0, 0));
    // The copy is one of the source: without a snapshot, only what changed travels.
    let output = env.command(&["copy", "--json", "m/sub/tree", "out-a"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = String::from_utf8(output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&summary["files"]["copied"], &summary["files"]["unchanged"]),
        (&2.into(), &1.into())
    );
    assert_eq!(text(&env.path("out-a/changed")), "after");
}

#[test]
fn jobs_of_one_subvolume_do_not_copy_each_others_snapshots() {
    let env = Env::new();
    let Some(btrfs) = Btrfs::mount(&env) else { return };
    env.write("m/sub/file", "x");
    let of = |name: &str| {
        format!(
            "[[job]]\nname = '{name}'\nsource = 'm/sub'\ndestination = 'out-{name}'\nsnapshot = 'btrfs'\n"
        )
    };
    env.jobs(&format!("[run]\nparallel = 2\n{}{}", of("a"), of("b")));
    env.run(&[]).expect(0);
    for name in ["out-a", "out-b"] {
        let names = fs::read_dir(env.path(name)).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".lazycopy", "file"]);
    }
    assert_eq!((btrfs.snapshots().len(), ledger(&env).len()), (0, 0));
}

#[test]
fn a_snapshot_that_a_killed_run_left_is_removed_by_the_next() {
    let env = Env::new();
    let Some(btrfs) = Btrfs::mount(&env) else { return };
    env.write("m/sub/tree/large", vec![7; 60 << 20]);
    btrfs.jobs("limit = '256KiB/s'");
    let running = begun(&env);
    let pid = running.pid();
    running.signal(Signal::KILL);
    drop(running.ended());
    eventually("all children have ended", || children_of(pid).is_empty());
    assert_eq!((btrfs.snapshots().len(), ledger(&env).len()), (1, 1));
    // By any other jobs file.
    env.source("b");
    env.jobs(&job("b", ""));
    env.run(&[]).expect(0);
    assert_eq!((btrfs.snapshots().len(), ledger(&env).len()), (0, 0));
    btrfs.jobs("");
    env.run(&[]).expect(0);
    assert_eq!(fs::read(env.path("out-a/large")).unwrap().len(), 60 << 20);
}

#[test]
fn without_its_snapshot_nothing_is_copied_unless_the_job_says_so() {
    let env = Env::new();
    // Not on btrfs, whatever the machine has.
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(shm.path().join("file"), "x").unwrap();
    let keys = |more: &str| {
        format!(
            "[[job]]\nname = 'a'\nsource = '{}'\ndestination = 'out-a'\nsnapshot = 'btrfs'\n{more}\n",
            shm.path().display()
        )
    };
    env.jobs(&keys(""));
    let ended = env.run(&[]).expect(7);
    let message = ended.job("a")["message"].as_str().unwrap();
    assert!(
        message.contains("not lie on btrfs") && message.contains("snapshot-required = false"),
        "{message}"
    );
    assert!(!exists(&env.path("out-a")));
    env.jobs(&keys("snapshot-required = false"));
    let ended = env.run(&[]).expect(0);
    ended.expect_outcomes(&[("a", "complete-with-warnings")]);
    let warning = ended.job("a")["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("copied without a snapshot"), "{warning}");
    assert_eq!(text(&env.path("out-a/file")), "x");
}

#[test]
fn a_program_makes_a_snapshot_and_another_takes_it_away() {
    let env = Env::new();
    env.write("a/file", "before");
    env.script("make", "cp -a \"$1\" \"$2\"; echo noise >&2; printf 'made\\n%s\\n' \"$PWD/$2\"");
    env.script("remove", "rm -r \"$1\"; echo \"$1\" >> removed");
    let keys = "snapshot = 'command'\nsnapshot-command = ['./make', '{source}', '{name}']\nsnapshot-remove = ['./remove', '{path}']\non-complete = ['true']";
    env.jobs(&job("a", keys));
    env.run(&[]).expect(0);
    let removed = text(&env.path("removed"));
    assert!(removed.contains("/.lazycopy-snapshot-a-"), "{removed}");
    assert!(!exists(Path::new(removed.trim())));
    assert_eq!(text(&env.path("out-a/file")), "before");
    assert_eq!(ledger(&env).len(), 0);
    // One that prints no path made nothing that could be read.
    env.script("make", "echo relative");
    env.script("remove", "echo \"[$1]\" >> removed");
    env.write("a/new", "new");
    let ended = env.run(&[]).expect(2);
    let message = ended.job("a")["message"].as_str().unwrap();
    assert!(message.contains("it printed no absolute path"), "{message}");
    assert!(text(&env.path("removed")).ends_with("[]\n"), "told to take away what may be there");
    assert!(!exists(&env.path("out-a/new")));
}

#[test]
fn what_has_not_our_name_is_never_removed() {
    let env = Env::new();
    env.source("a");
    env.jobs(&job("a", ""));
    env.run(&[]).expect(0);
    let ledger = env.path("state/lazycopy/snapshots");
    fs::create_dir_all(&ledger).unwrap();
    let name = ".lazycopy-snapshot-a-1";
    for (file, path) in [("one", env.path("a")), ("two", env.path("a").join(name))] {
        fs::create_dir_all(&path).unwrap();
        let note = serde_json::json!({
            "name": name, "kind": "btrfs", "path": {"path": path}, "remove": null, "pid": 1, "process_start": 0,
        });
        fs::write(ledger.join(format!("{file}.json")), note.to_string()).unwrap();
    }
    let ended = env.run(&[]).expect(0);
    let warnings = ended.summary()["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(exists(&env.path("a/small")) && exists(&env.path("a").join(name)));
}
