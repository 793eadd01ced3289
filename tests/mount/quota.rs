//! A destination whose quota is used up, on a real file system that has quotas by itself: a btrfs subvolume with a limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Env, eventually, patterned, read};

const MIB: u64 = 1 << 20;
const FILES: u8 = 12;

/// A btrfs of its own at `at`; unmounted when dropped.
struct Btrfs(PathBuf);

impl Btrfs {
    fn new(image: &Path, at: &Path) -> Option<Self> {
        fs::File::create(image).unwrap().set_len(1 << 30).unwrap();
        fs::create_dir(at).unwrap();
        let done = run(Command::new("mkfs.btrfs").arg("-q").arg(image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
        done.then(|| Self(at.to_owned()))
    }

    fn btrfs(&self, args: &[&str]) {
        assert!(run(Command::new("btrfs").args(args).current_dir(&self.0)), "btrfs {args:?}");
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn run(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

// EDQUOT is as ENOSPC, but no statvfs tells when it is over.
#[test]
fn a_quota_that_is_used_up_pauses_the_copy_and_no_reader() {
    let Some(env) = Env::new() else { return };
    let Some(disk) = Btrfs::new(&env.path("image"), &env.path("disk")) else {
        assert!(std::env::var_os("REQUIRE_TOOLS").is_none(), "required: btrfs-progs");
        eprintln!("skipped: needs btrfs-progs and loop devices");
        return;
    };
    disk.btrfs(&["quota", "enable", "."]);
    disk.btrfs(&["subvolume", "create", "dest"]);
    disk.btrfs(&["qgroup", "limit", "60M", "dest"]);
    std::os::unix::fs::symlink(disk.0.join("dest"), env.destination()).unwrap();
    let bytes = |number: u8| patterned(number, 0, usize::try_from(8 * MIB).unwrap());
    for number in 0..FILES {
        env.put(format!("f{number}"), bytes(number));
    }
    let mounted = env.mount(&["--hydrate"]);
    let status = eventually("a pause for want of space", || {
        Some(mounted.status()).filter(|status| status["paused_by"] == "space")
    });
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    for number in 0..FILES {
        assert!(read(mounted.path(format!("f{number}"))).unwrap() == bytes(number), "f{number}");
    }
    assert!(env.log().contains("quota"), "{}", env.log());
    // statvfs has shown room all the time.
    let still = mounted.status();
    assert_eq!((&still["paused_by"], &still["files"]["failed"]), (&"space".into(), &0.into()));
    // While the disk is busy it may be refused.
    eventually("the end of the limit", || {
        let mut lift = Command::new("btrfs");
        run(lift.args(["qgroup", "limit", "none", "dest"]).current_dir(&disk.0)).then_some(())
    });
    eventually("the end of the copy", || (mounted.status()["phase"] == "complete").then_some(()));
    assert_eq!(mounted.status()["errors"].as_array().unwrap().len(), 0);
    mounted.unmount();
    for number in 0..FILES {
        assert!(fs::read(env.destination().join(format!("f{number}"))).unwrap() == bytes(number));
    }
}
