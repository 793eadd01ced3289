//! Depths, users and disks that are out of the ordinary.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};

use crate::common::nginx::Nginx;
use crate::harness::{Env, eventually, name, names, patterned, read, tool};
use crate::origin::{Origin, Page};

const LEVELS: usize = 300;
const LEVEL: &str = "a level of twenty byt";
/// Closed in the processes that other tests start meanwhile: one of them would keep the mount busy for its whole life.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn enter(from: &OwnedFd) -> OwnedFd {
    rustix::fs::openat(from, LEVEL, DIRECTORY, Mode::empty()).unwrap()
}

fn open_directory(path: &Path) -> OwnedFd {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).unwrap()
}

fn deepest(root: &Path) -> OwnedFd {
    (0..LEVELS).fold(open_directory(root), |at, _| enter(&at))
}

fn read_in(directory: &OwnedFd, name: &str) -> Vec<u8> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut File::from(file), &mut bytes).unwrap();
    bytes
}

// More than 20 directory levels threw; a path of more than 4096 bytes is no reason either.
#[test]
fn a_path_longer_than_path_max_is_shown_and_copied() {
    let Some(env) = Env::new() else { return };
    let mut at = open_directory(&env.source());
    for _ in 0..LEVELS {
        rustix::fs::mkdirat(&at, LEVEL, Mode::RWXU).unwrap();
        at = enter(&at);
    }
    let file = rustix::fs::openat(
        &at,
        "file",
        OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::RWXU,
    )
    .unwrap();
    std::io::Write::write_all(&mut File::from(file), b"content").unwrap();
    let mounted = env.mount(&[]);
    let held = deepest(&mounted.place);
    assert_eq!(read_in(&held, "file"), b"content");
    let refused = mounted.try_unmount(&[]);
    let pid = format!("pid {} ", std::process::id());
    assert!(refused.code == Some(6) && refused.err.contains(&pid), "{refused:?}");
    drop(held);
    mounted.unmount();
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    assert_eq!(read_in(&deepest(&env.destination()), "file"), b"content");
    mounted.unmount();
}

#[test]
fn a_remote_tree_without_a_bottom_serves_what_it_has_and_can_be_ended() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", Page::of("content"));
    origin.put_bottomless("/deeper/");
    let mounted = env.mount_from(origin.url(), &["--hydrate", "--read-timeout", "5s"]);
    assert_eq!(read(mounted.path("deeper/deeper/deeper/file")).unwrap(), b"content");
    assert!(mounted.status()["phase"] != "complete");
    eventually("some depth", || {
        env.destination().join("deeper/".repeat(20)).is_dir().then_some(())
    });
    mounted.unmount();
}

/// Runs a script as the user 65534, in a mount namespace where users may use FUSE.
pub(crate) fn as_a_user(env: &Env, script: &str) -> String {
    let base = env.path("");
    fs::set_permissions(&base, Permissions::from_mode(0o755)).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_lazycopy"), env.path("lazycopy")).unwrap();
    fs::write(env.path("script"), script).unwrap();
    let outer = "mknod -m 666 $D/fuse c 10 229 && mount --bind $D/fuse /dev/fuse \
        && : > $D/fuse.conf && mount --bind $D/fuse.conf /etc/fuse.conf \
        && exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -eu $D/script";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", outer])
        .current_dir("/")
        .env("D", env.path(""))
        .env("LAZYCOPY_RUNTIME_DIR", env.path("user/run"))
        .env("XDG_STATE_HOME", env.path("user/state"));
    String::from_utf8(tool(&mut command)).unwrap()
}

#[test]
fn an_ordinary_user_mounts_copies_and_unmounts_and_what_he_may_not_read_fails_alone() {
    let Some(env) = Env::new() else { return };
    env.put("open", "content");
    let secret = env.put("secret", "for root alone");
    fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(env.path("user")).unwrap();
    fs::create_dir(env.path("user/mnt")).unwrap();
    for path in ["user", "user/mnt"] {
        chown(env.path(path), Some(65534), Some(65534)).unwrap();
    }
    let said = as_a_user(
        &env,
        r#"cd "$D"
        trap '$D/lazycopy unmount --force user/mnt >/dev/null 2>&1 || :' EXIT
        $D/lazycopy mount source user/mnt --dest user/dest --hydrate
        grep -q " $D"'/*user/mnt .* fuse.lazycopy ' /proc/self/mountinfo || findmnt -t fuse.lazycopy
        echo "read: $(cat user/mnt/open)"
        cat user/mnt/secret 2>/dev/null && echo LEAK
        for try in $(seq 500); do
            $D/lazycopy status --json user/mnt > user/status
            grep -q '"phase":"failed"' user/status && break
        done
        cat user/status
        $D/lazycopy unmount user/mnt
        trap - EXIT
        echo "copied: $(cat user/dest/open)"
        ls user/mnt
        "#,
    );
    assert!(said.contains("read: content") && said.contains("copied: content"), "{said}");
    assert!(said.contains("\"phase\":\"failed\"") && said.contains("denied"), "{said}");
    assert!(!said.contains("LEAK") && !said.contains("for root alone"), "{said}");
}

#[test]
fn names_that_differ_only_in_case_meet_on_a_disk_that_folds_case_and_none_is_lost() {
    let Some(env) = Env::new() else { return };
    env.put("Name", "upper");
    env.put("name", "lower");
    let (image, disk) = (env.path("image"), env.path("disk"));
    fs::create_dir(&disk).unwrap();
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    tool(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "casefold"]).arg(&image));
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk).output();
    if !mounted.unwrap().status.success() {
        eprintln!("skipped: this kernel folds no case");
        return;
    }
    let place = disk.join("dest");
    fs::create_dir(&place).unwrap();
    tool(Command::new("chattr").arg("+F").arg(&place));
    std::os::unix::fs::symlink(&place, env.destination()).unwrap();
    let mounted = env.mount(&["--hydrate"]);
    let status = mounted
        .until("the end", |status| status["phase"] == "complete" || status["phase"] == "failed");
    // In the mount they are two; on the disk one of them, whole, and the other one is reported.
    assert_eq!(status["phase"], "failed", "{status:#}");
    assert_eq!(read(mounted.path("Name")).unwrap(), b"upper");
    assert_eq!(read(mounted.path("name")).unwrap(), b"lower");
    let found = read(place.join("NAME")).unwrap();
    assert!(found == b"upper" || found == b"lower");
    mounted.unmount();
}

// nginx's ETag is mtime and size: a rewrite within the second keeps it.
#[test]
fn a_rewrite_within_the_second_of_the_etag_is_not_mixed_and_not_missed() {
    let Some(env) = Env::new() else { return };
    let size = 3 << 20;
    let path = env.put("file", patterned(1, 0, size));
    let Some(nginx) = Nginx::start(&env.source(), "") else { return };
    let mounted = env.mount_from(nginx.url("/"), &["--refresh", "500ms"]);
    let time = std::time::SystemTime::now();
    File::open(&path).unwrap().set_modified(time).unwrap();
    assert!(read(mounted.path("file")).unwrap() == patterned(1, 0, size));
    fs::write(&path, patterned(2, 0, size)).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    // Sooner or later DIR holds the last version, whole.
    let place = env.destination().join("file");
    eventually("the last version in DIR", || {
        let shown = read(mounted.path("file")).ok()?;
        let whole = [patterned(1, 0, size), patterned(2, 0, size)];
        assert!(whole.contains(&shown), "two versions in one file");
        (read(&place).ok()? == whole[1]).then_some(())
    });
    mounted.unmount();
}

#[test]
fn names_of_any_bytes_survive_mount_status_and_copy() {
    let Some(env) = Env::new() else { return };
    let odd: Vec<Vec<u8>> =
        (1..=255u8).filter(|byte| *byte != b'/').map(|byte| vec![b'x', byte, b'y']).collect();
    for bytes in &odd {
        fs::write(env.source().join(name(bytes)), bytes).unwrap();
    }
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    let mut expected: Vec<_> = odd.iter().map(|bytes| name(bytes).as_os_str().to_owned()).collect();
    expected.sort();
    assert_eq!(names(&mounted.place), expected);
    mounted.unmount();
    for bytes in &odd {
        assert_eq!(read(env.destination().join(name(bytes))).unwrap(), *bytes);
    }
}
