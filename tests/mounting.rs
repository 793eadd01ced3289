//! Mounting and unmounting on the real kernel: a tiny file system does the handshake, nothing else of the program is in play.
//!
//! Without FUSE or root the tests skip themselves, or fail if `REQUIRE_FUSE=1`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod served;

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazycopy::error::Kind;
use lazycopy::vfs::busy::{Use, who_is_busy};
use lazycopy::vfs::mount::{MountOptions, UnmountMode, Unmounted, mount, unmount_ours};
use lazycopy::vfs::mountinfo;
use lazycopy::vfs::mountpoint::{check_mountpoint, clean_stale, is_dead};

use crate::served::{Served, fuse_is_there};

fn findmnt(field: &str, mountpoint: &Path) -> String {
    let output =
        Command::new("findmnt").args(["-n", "-o", field]).arg(mountpoint).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn tmpfs(at: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, None).unwrap();
}

fn sleeper(directory: &Path) -> Child {
    Command::new("sleep").arg("600").current_dir(directory).stdin(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_mount_table_shows_our_type_and_the_source_as_it_is() {
    let fsname = "http://host/a b,c\\d";
    let options =
        MountOptions { fsname: Some(fsname.to_owned()), noexec: true, ..Default::default() };
    let Some(served) = Served::start(|_| (), &options) else { return };
    assert_eq!(findmnt("FSTYPE", &served.mountpoint), "fuse.lazycopy");
    let shown = findmnt("OPTIONS", &served.mountpoint);
    for option in ["rw", "nosuid", "nodev", "noexec", "default_permissions"] {
        assert!(shown.split(',').any(|word| word == option), "{option} in {shown}");
    }
    let mounts = mountinfo::read().unwrap();
    let top = mountinfo::top_at(&mounts, &served.mountpoint).unwrap();
    assert_eq!(top.source, fsname);
    assert_eq!(top.device, served.number);
    assert!(fs::metadata(served.mountpoint.join("file")).unwrap().is_file());
}

// DESIGN §5: a second unmount took away the file system underneath.
#[test]
fn what_lies_underneath_stays() {
    let mut served = match Served::start(tmpfs, &MountOptions::default()) {
        Some(served) => served,
        None => return,
    };
    assert_eq!(served.unmount(UnmountMode::Normal).unwrap(), Unmounted::Done);
    served.join();
    assert_eq!(findmnt("FSTYPE", &served.mountpoint), "tmpfs");
    assert_eq!(served.unmount(UnmountMode::Detach).unwrap(), Unmounted::AlreadyGone);
    assert_eq!(findmnt("FSTYPE", &served.mountpoint), "tmpfs");
}

#[test]
fn a_file_system_mounted_over_ours_is_not_unmounted() {
    let Some(served) = Served::start(|_| (), &MountOptions::default()) else { return };
    tmpfs(&served.mountpoint);
    let refused = served.unmount(UnmountMode::Detach).unwrap_err();
    assert_eq!(refused.kind(), Kind::Busy);
    assert_eq!(findmnt("FSTYPE", &served.mountpoint), "fuse.lazycopy\ntmpfs");
}

// H11: an unmount with handles open waits for ever or fails without a reason.
#[test]
fn a_busy_mount_stays_and_names_who_uses_it() {
    let Some(served) = Served::start(|_| (), &MountOptions::default()) else { return };
    let child = sleeper(&served.mountpoint);
    let file = fs::File::open(served.mountpoint.join("file")).unwrap();
    let holder = Command::new("sleep").arg("600").stdin(file).spawn().unwrap();
    assert_eq!(served.unmount(UnmountMode::Normal).unwrap_err().kind(), Kind::Busy);
    let mounts = mountinfo::read().unwrap();
    let started = Instant::now();
    let busy = who_is_busy(&served.mountpoint, served.number, &mounts);
    assert!(started.elapsed() < Duration::from_secs(4));
    let of = |child: &Child| busy.iter().find(|process| process.pid == child.id()).unwrap();
    assert_eq!(of(&child).what, Use::CurrentDirectory);
    assert_eq!(of(&child).command, "sleep");
    assert_eq!(of(&holder).what, Use::Open(served.mountpoint.join("file")));
    end(child);
    end(holder);
    assert_eq!(served.unmount(UnmountMode::Normal).unwrap(), Unmounted::Done);
}

#[test]
fn a_mountpoint_in_use_by_a_living_mount_is_refused() {
    let Some(served) = Served::start(|_| (), &MountOptions::default()) else { return };
    let refused = check_mountpoint(&served.mountpoint).unwrap_err();
    assert_eq!(refused.kind(), Kind::Exists);
    assert!(refused.to_string().contains("already"), "{refused}");
    assert!(!is_dead(&served.mountpoint, &mountinfo::read().unwrap()));
}

// H23: a process that died stays mounted.
#[test]
fn a_dead_mount_of_ours_is_removed_at_the_next_start_and_a_foreign_one_never() {
    if !fuse_is_there() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let mountpoint = fs::canonicalize(base.path()).unwrap().join("m");
    fs::create_dir(&mountpoint).unwrap();
    // Descriptor closed at once: the kernel ends the connection.
    drop(mount(&mountpoint, &MountOptions::default()).unwrap());
    // A child that another test is starting may hold a copy of the descriptor until its exec.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_dead(&mountpoint, &mountinfo::read().unwrap()) {
        assert!(Instant::now() < deadline, "the mount never died");
        std::thread::yield_now();
    }
    assert_eq!(check_mountpoint(&mountpoint).unwrap(), mountpoint);
    assert!(mountinfo::top_at(&mountinfo::read().unwrap(), &mountpoint).is_none());

    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("other", &mountpoint, "fuse.other", flags, Some(data.as_c_str())).unwrap();
    drop(device);
    assert_eq!(clean_stale(&mountpoint).unwrap(), 0);
    let refused = check_mountpoint(&mountpoint).unwrap_err();
    assert!(refused.to_string().contains("fuse.other"), "{refused}");
    assert!(mountinfo::top_at(&mountinfo::read().unwrap(), &mountpoint).is_some());
    rustix::mount::unmount(&mountpoint, rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// Runs as an ordinary user, started by the test below.
#[test]
#[ignore = "the inner half of the_helper_mounts_and_unmounts_for_an_ordinary_user"]
fn inner_half_as_an_ordinary_user() {
    let mountpoint = PathBuf::from(std::env::var_os("MOUNTPOINT").unwrap());
    let fsname = "http://host/a b,c\\d".to_owned();
    let options = MountOptions { fsname: Some(fsname.clone()), ..Default::default() };
    let mounted = mount(&mountpoint, &options).unwrap();
    let mounts = mountinfo::read().unwrap();
    let top = mountinfo::top_at(&mounts, &mountpoint).unwrap();
    assert!(top.is_lazycopy());
    assert_eq!(top.source, fsname.as_str());
    assert!(top.options.contains("nosuid,nodev"));
    let unmounted = unmount_ours(&mountpoint, mounted.number, UnmountMode::Normal).unwrap();
    assert_eq!(unmounted, Unmounted::Done);
    assert!(mountinfo::top_at(&mountinfo::read().unwrap(), &mountpoint).is_none());
    let refused = mount(Path::new("/usr"), &options).unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    let other = MountOptions { allow_other: true, ..options };
    let refused = mount(&mountpoint, &other).unwrap_err();
    assert!(refused.to_string().contains("leave out -o allow_other"), "{refused}");
}

#[test]
fn the_helper_mounts_and_unmounts_for_an_ordinary_user() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !fuse_is_there() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mountpoint = fs::canonicalize(base.path()).unwrap().join("m");
    fs::create_dir(&mountpoint).unwrap();
    chown(&mountpoint, Some(65534), Some(65534)).unwrap();
    // A user may not be able to enter the build directory.
    let binary = base.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    // In a mount namespace of its own: a device that users may open, as udev makes it, and a known policy.
    let script = "mknod -m 666 $D/fuse c 10 229 && mount --bind $D/fuse /dev/fuse \
        && : > $D/fuse.conf && mount --bind $D/fuse.conf /etc/fuse.conf \
        && exec setpriv --reuid=65534 --regid=65534 --clear-groups \
           $D/test --exact inner_half_as_an_ordinary_user --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .env("D", base.path())
        .env("MOUNTPOINT", &mountpoint)
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
