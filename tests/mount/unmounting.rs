//! The end of a mount, however it comes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

use crate::harness::{Env, Mounted, eventually, mounts, read, tmpfs, tool, types_at};
use crate::origin::{Behaviour, Origin, Page};

/// What must hold after every end: what was underneath is there, the process is gone, lock and registration too.
fn ended(env: &Env, mut mounted: Mounted<'_>) {
    mounted.until_gone();
    assert_eq!(types_at(&env.mountpoint()), ["tmpfs"], "what lay underneath stays");
    assert!(env.registered().is_empty(), "{:?}", env.registered());
    drop(mounted);
    assert_eq!(types_at(&env.mountpoint()), ["tmpfs"]);
    let again = env.mount(&[]);
    assert_eq!(read(again.path("file")).unwrap(), b"content");
    again.unmount();
    assert_eq!(types_at(&env.mountpoint()), ["tmpfs"]);
}

fn on_tmpfs() -> Option<Env> {
    let env = Env::new()?;
    env.put("file", "content");
    tmpfs(&env.mountpoint());
    Some(env)
}

#[test]
fn what_lies_underneath_stays_after_our_unmount() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    let ran = mounted.try_unmount(&[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!mounted.is_alive(), "unmount returns when the daemon has ended");
    ended(&env, mounted);
}

#[test]
fn what_lies_underneath_stays_after_umount() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    tool(Command::new("umount").arg(&mounted.place));
    ended(&env, mounted);
}

#[test]
fn what_lies_underneath_stays_after_a_lazy_umount() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    tool(Command::new("umount").arg("-l").arg(&mounted.place));
    ended(&env, mounted);
}

#[test]
fn what_lies_underneath_stays_after_sigterm_and_sigint() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let Some(env) = on_tmpfs() else { return };
        let mounted = env.mount(&[]);
        mounted.signal(signal);
        ended(&env, mounted);
    }
}

// It came between the word that the tree can be used and the listening: the daemon died, and its mount stayed.
#[test]
fn a_signal_right_after_the_start_unmounts() {
    let Some(env) = on_tmpfs() else { return };
    for _ in 0..20 {
        let mut mounted = env.mount(&[]);
        mounted.signal(Signal::TERM);
        mounted.until_gone();
        assert_eq!(types_at(&env.mountpoint()), ["tmpfs"]);
    }
}

#[test]
fn a_start_that_fails_late_leaves_nothing_mounted() {
    use std::os::unix::fs::PermissionsExt;
    let Some(env) = on_tmpfs() else { return };
    // A registry that others could write to is not used.
    fs::create_dir(env.path("run")).unwrap();
    fs::set_permissions(env.path("run"), fs::Permissions::from_mode(0o777)).unwrap();
    let ran = env.try_mount(env.source(), &[]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("LAZYCOPY_RUNTIME_DIR"), "{ran:?}");
    assert_eq!(types_at(&env.mountpoint()), ["tmpfs"]);
    fs::remove_dir(env.path("run")).unwrap();
    env.mount(&[]).unmount();
}

#[test]
fn ctrl_c_in_the_foreground_unmounts() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount_in_foreground(&[]);
    mounted.signal(Signal::INT);
    ended(&env, mounted);
}

// H11
#[test]
fn a_busy_mount_stays_and_the_error_names_who_uses_it() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    let file = File::open(mounted.path("file")).unwrap();
    let refused = mounted.try_unmount(&[]);
    assert_eq!(refused.code, Some(6), "{refused:?}");
    let pid = format!("pid {} ", std::process::id());
    assert!(refused.err.contains(&pid) && refused.err.contains("file"), "{refused:?}");
    assert!(mounted.is_alive());
    assert_eq!(read(mounted.path("file")).unwrap(), b"content", "it serves on");
    let forced = mounted.try_unmount(&["--force"]);
    assert_eq!(forced.code, Some(0), "{forced:?}");
    drop(file);
    ended(&env, mounted);
}

#[test]
fn unmount_wait_returns_when_the_last_user_has_left() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    let file = File::open(mounted.path("file")).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| mounted.try_unmount(&["--wait"]));
        // It has found it busy at least once when another one has.
        assert_eq!(mounted.try_unmount(&[]).code, Some(6));
        assert!(!waiting.is_finished());
        drop(file);
        assert_eq!(waiting.join().unwrap().code, Some(0));
    });
    ended(&env, mounted);
}

#[test]
fn a_signal_serves_open_files_on_for_a_while() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    let mut file = File::open(mounted.path("file")).unwrap();
    mounted.signal(Signal::TERM);
    eventually("out of the tree", || (types_at(&mounted.place) == ["tmpfs"]).then_some(()));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert_eq!(text, "content");
    drop(file);
    ended(&env, mounted);
}

// H10, H24: an end that waited for who never closes his file.
#[test]
fn a_second_signal_ends_the_daemon_although_files_are_open() {
    let Some(env) = on_tmpfs() else { return };
    let mut mounted = env.mount(&[]);
    let file = File::open(mounted.path("file")).unwrap();
    mounted.signal(Signal::TERM);
    eventually("out of the tree", || (types_at(&mounted.place) == ["tmpfs"]).then_some(()));
    mounted.signal(Signal::TERM);
    mounted.until_gone();
    drop(file);
    ended(&env, mounted);
}

#[test]
fn one_signal_is_enough_although_a_file_stays_open() {
    let Some(env) = on_tmpfs() else { return };
    let mut mounted = env.mount(&[]);
    let file = File::open(mounted.path("file")).unwrap();
    mounted.signal(Signal::TERM);
    mounted.until_gone();
    drop(file);
    ended(&env, mounted);
}

// H23
#[test]
fn the_next_mount_clears_what_a_killed_daemon_left() {
    let Some(env) = on_tmpfs() else { return };
    let mut mounted = env.mount(&[]);
    mounted.signal(Signal::KILL);
    mounted.until_gone();
    assert_eq!(types_at(&mounted.place), ["tmpfs", "fuse.lazycopy"], "dead, and still there");
    let status = env.run(["status".as_ref(), mounted.place.as_os_str()]);
    assert_eq!(status.code, Some(2), "{status:?}");
    assert!(status.err.contains("dead"), "{status:?}");
    let again = env.mount(&[]);
    assert_eq!(types_at(&again.place), ["tmpfs", "fuse.lazycopy"]);
    assert_eq!(read(again.path("file")).unwrap(), b"content");
    again.unmount();
    drop(mounted);
    assert_eq!(types_at(&env.mountpoint()), ["tmpfs"]);
    assert!(env.registered().is_empty(), "{:?}", env.registered());
}

#[test]
fn unmount_clears_a_dead_mount() {
    let Some(env) = on_tmpfs() else { return };
    let mut mounted = env.mount(&[]);
    mounted.signal(Signal::KILL);
    mounted.until_gone();
    let ran = mounted.try_unmount(&[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ended(&env, mounted);
}

// H19: temp files of a crash stayed for ever.
#[test]
fn a_kill_while_it_copies_leaves_no_part_behind_for_long_and_loses_nothing_published() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/done", Page::of("published"));
    let stalls = Page::new(1 << 20, |_, len| vec![7; len]);
    origin.put("/half", stalls.behaves(Behaviour::StallAt(300_000)));
    let mut mounted = env.mount_from(origin.url(), &["--hydrate"]);
    mounted.until("half of it", |status| {
        status["files"]["published"] == 1 && status["bytes"]["fetched"].as_u64() > Some(200_000)
    });
    mounted.signal(Signal::KILL);
    mounted.until_gone();
    let parts = env.destination().join(".lazycopy/parts");
    assert_eq!(fs::read_dir(&parts).unwrap().count(), 1);
    assert_eq!(read(env.destination().join("done")).unwrap(), b"published");
    assert!(!env.destination().join("half").exists());
    assert!(env.destination().join("LAZYCOPY-INCOMPLETE.txt").exists());
    origin.release();
    let again = env.mount_from(origin.url(), &["--hydrate"]);
    again.until_complete();
    assert_eq!(fs::read_dir(&parts).unwrap().count(), 0);
    assert_eq!(read(env.destination().join("half")).unwrap(), vec![7; 1 << 20]);
    again.unmount();
}

fn mount_foreign(kind: &str, at: &Path) -> File {
    use std::os::fd::AsRawFd;
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).unwrap();
    rustix::mount::mount("other", at, kind, MountFlags::empty(), Some(data.as_c_str())).unwrap();
    device
}

#[test]
fn a_foreign_mount_is_never_touched_dead_or_alive() {
    let Some(env) = on_tmpfs() else { return };
    let place = env.mountpoint();
    // Alive, and not empty.
    fs::write(place.join("theirs"), "x").unwrap();
    let refused = env.try_mount(env.source(), &[]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("not empty"), "{refused:?}");
    let unmounted = env.run(["unmount".as_ref(), place.as_os_str()]);
    assert_eq!(unmounted.code, Some(2), "{unmounted:?}");
    assert!(unmounted.err.contains("tmpfs"), "{unmounted:?}");
    let forced = env.run(["unmount".as_ref(), "--force".as_ref(), place.as_os_str()]);
    assert_eq!(forced.code, Some(2), "{forced:?}");
    assert_eq!(read(place.join("theirs")).unwrap(), b"x");

    // Dead, of another program.
    drop(mount_foreign("fuse.other", &place));
    eventually("its death", || {
        let dead = fs::metadata(&place).unwrap_err();
        (dead.raw_os_error() == Some(libc::ENOTCONN)).then_some(())
    });
    for arguments in [vec!["unmount"], vec!["unmount", "--force"]] {
        let ran = env.run(arguments.iter().map(std::ffi::OsStr::new).chain([place.as_os_str()]));
        assert_eq!(ran.code, Some(2), "{ran:?}");
    }
    let refused = env.try_mount(env.source(), &[]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.err.contains("fuse.other"), "{refused:?}");
    assert_eq!(types_at(&place), ["tmpfs", "fuse.other"]);
    rustix::mount::unmount(&place, UnmountFlags::DETACH).unwrap();
}

#[test]
fn a_mount_on_top_of_ours_is_not_taken_for_ours() {
    let Some(env) = on_tmpfs() else { return };
    let mounted = env.mount(&[]);
    tmpfs(&mounted.place);
    let refused = mounted.try_unmount(&[]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert_eq!(types_at(&mounted.place), ["tmpfs", "fuse.lazycopy", "tmpfs"]);
    rustix::mount::unmount(&mounted.place, UnmountFlags::empty()).unwrap();
    let ran = mounted.try_unmount(&[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ended(&env, mounted);
}

#[test]
fn the_mount_table_names_the_source_without_its_password() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", Page::of("content"));
    let url = origin.url().replace("http://", "http://user:hunter2@");
    let mounted = env.mount_from(&url, &[]);
    assert_eq!(read(mounted.path("file")).unwrap(), b"content");
    let table = mounts();
    let ours = table.iter().find(|mount| mount.place == mounted.place).unwrap();
    assert_eq!(ours.source, origin.url());
    let place = mounted.place.clone();
    let status = mounted.status().to_string();
    let marker = env.destination().join("LAZYCOPY-INCOMPLETE.txt");
    let said = status + &env.log() + &fs::read_to_string(marker).unwrap();
    assert!(!said.contains("hunter2"), "{said}");
    mounted.unmount();
    assert!(types_at(&place).is_empty());
}
