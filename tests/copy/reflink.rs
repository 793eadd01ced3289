//! Where extents can be cloned nothing is written, and every byte is proven all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Env;
use crate::tree::make_mixed;

/// A file system of its own at a path; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(env: &Env, make: &[&str]) -> Option<Self> {
        let (image, at) = (env.path("image"), env.path("disk"));
        fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
        fs::create_dir(&at).unwrap();
        let done = run(Command::new(make[0]).args(&make[1..]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        if !done {
            crate::common::skip(&format!("{} and loop devices", make[0]));
        }
        done.then(|| Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn run(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether every extent of the file belongs to others too.
fn is_shared(path: &Path) -> bool {
    let output = Command::new("filefrag").arg("-v").arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let extents: Vec<_> = text.lines().filter(|line| line.contains("..")).collect();
    !extents.is_empty() && extents.iter().all(|line| line.contains("shared"))
}

fn extents_are_shared_and_bytes_are_right(make: &[&str]) {
    let env = Env::new();
    let Some(disk) = Mounted::new(&env, make) else { return };
    fs::remove_dir(env.source()).unwrap();
    for name in ["source", "copy"] {
        fs::create_dir(disk.0.join(name)).unwrap();
        std::os::unix::fs::symlink(disk.0.join(name), env.path(name)).unwrap();
    }
    make_mixed(&disk.0.join("source"));
    let big = disk.0.join("source/big");
    fs::write(&big, crate::common::pattern(8 << 20)).unwrap();
    fs::File::open(&big).unwrap().sync_all().unwrap();
    env.copied(&[]);
    for name in ["big", "a/b/size 1048576", "a/b/size 131073"] {
        assert!(is_shared(&disk.0.join("copy").join(name)), "{name}");
    }
    let verified = env.command(&["verify", "copy"]).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
    // A later version takes nothing away from the first.
    fs::write(&big, "short").unwrap();
    env.copied(&[]);
}

#[test]
fn on_btrfs_extents_are_shared_and_bytes_are_right() {
    extents_are_shared_and_bytes_are_right(&["mkfs.btrfs", "-q"]);
}

#[test]
fn on_xfs_extents_are_shared_and_bytes_are_right() {
    extents_are_shared_and_bytes_are_right(&["mkfs.xfs", "-q"]);
}
