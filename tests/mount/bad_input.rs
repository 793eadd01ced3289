//! Bad input gets a clear error and its exit code, and nothing is lost.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::harness::{BLOCK, Env, Ran, inode, names, patterned, read, tool, types_at};
use crate::origin::{Behaviour, Origin, Page};

/// It was refused with this code and one line that says `what`; nothing is mounted.
fn refused(env: &Env, ran: &Ran, code: i32, what: &str) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    assert!(ran.err.starts_with("lazycopy: ") && ran.err.contains(what), "{what}: {ran:?}");
    assert!(types_at(&env.mountpoint()).is_empty());
    assert!(env.registered().is_empty());
}

fn mount(env: &Env, source: &Path, mountpoint: &Path, destination: &Path) -> Ran {
    let (mount, dest) = (OsStr::new("mount"), OsStr::new("--dest"));
    env.run([mount, source.as_os_str(), mountpoint.as_os_str(), dest, destination.as_os_str()])
}

#[test]
fn a_source_that_cannot_be_had_is_refused() {
    let Some(env) = Env::new() else { return };
    refused(&env, &env.try_mount(env.path("none"), &[]), 2, "none");
    // Nobody listens there.
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    refused(&env, &env.try_mount(format!("http://{free}/"), &[]), 3, &free.to_string());
    for (source, code) in [("http://", 2), ("gopher://host/x", 7), ("", 2)] {
        refused(&env, &env.try_mount(source, &[]), code, "");
    }
    symlink("/etc", env.path("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        env.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    refused(&env, &env.try_mount(env.path("fifo"), &[]), 2, "fifo");
    assert!(!env.destination().exists(), "nothing was made for a source that is not there");
}

#[test]
fn a_source_that_is_forbidden_or_missing_on_its_server_is_refused() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", Page::of("x"));
    for code in [401, 403] {
        let forbidden = Behaviour::Status { code, times: 1000 };
        origin.put("/private/", Page::of("x").behaves(forbidden));
        let ran = env.try_mount(format!("{}private/", origin.url()), &[]);
        refused(&env, &ran, 2, &code.to_string());
    }
    refused(&env, &env.try_mount(format!("{}none", origin.url()), &[]), 2, "404");
    assert!(!env.destination().exists());
}

#[test]
fn a_mountpoint_that_cannot_be_used_is_refused() {
    let Some(env) = Env::new() else { return };
    let (source, destination) = (env.source(), env.destination());
    let attempt = |mountpoint: &Path| mount(&env, &source, mountpoint, &destination);
    refused(&env, &attempt(&env.path("none")), 2, "mkdir -p");
    fs::write(env.path("file"), "x").unwrap();
    refused(&env, &attempt(&env.path("file")), 2, "not a directory");
    fs::create_dir_all(env.path("full/x")).unwrap();
    refused(&env, &attempt(&env.path("full")), 2, "not empty");
    let mounted = env.mount(&[]);
    let twice = mount(&env, &source, &mounted.place, &env.path("other"));
    assert_eq!(twice.code, Some(2), "{twice:?}");
    assert!(twice.err.contains("already"), "{twice:?}");
    assert_eq!(types_at(&mounted.place), ["fuse.lazycopy"]);
    mounted.unmount();
}

#[test]
fn every_nesting_is_refused() {
    let Some(env) = Env::new() else { return };
    let base = env.path("");
    for name in ["s/d", "s/m", "d/s", "d/m", "m/s", "m/d"] {
        fs::create_dir_all(env.path("nest").join(name)).unwrap();
    }
    symlink(env.path("nest/s/m"), env.path("link")).unwrap();
    for (source, destination, mountpoint) in [
        ("nest/s", "nest/s/d", "mnt"),
        ("nest/s", "nest/s/new", "mnt"),
        ("nest/s", "nest/s", "mnt"),
        ("nest/s", "dest", "nest/s/m"),
        ("nest/d/s", "nest/d", "mnt"),
        ("source", "nest/d", "nest/d/m"),
        ("source", "mnt", "mnt"),
        ("source", "mnt/d", "mnt"),
        ("source", "dest", "source"),
        ("nest/s", "dest", "link"),
    ] {
        let at = |name: &str| base.join(name);
        let ran = mount(&env, &at(source), &at(mountpoint), &at(destination));
        // A mountpoint that holds something is refused for that.
        refused(&env, &ran, 2, "");
        let said = ["inside", "same directory", "not empty"];
        let is_said = said.iter().any(|said| ran.err.contains(said)) || destination == "mnt/d";
        assert!(is_said, "{source} {destination} {mountpoint}: {ran:?}");
    }
    // mnt/d could only be made inside the mount.
    assert!(!env.path("nest/s/new").exists());
}

#[test]
fn a_destination_that_cannot_be_used_is_refused() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let attempt = |destination: &Path| mount(&env, &env.source(), &env.mountpoint(), destination);
    refused(&env, &attempt(&env.path("none/below")), 2, "make the directory above it first");
    fs::write(env.path("a file"), "x").unwrap();
    refused(&env, &attempt(&env.path("a file")), 2, "a file");
    assert_eq!(fs::read(env.path("a file")).unwrap(), b"x");
    // Read-only, also for root.
    let place = env.path("read-only");
    fs::create_dir(&place).unwrap();
    crate::harness::tmpfs(&place);
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&place, flags, c"").unwrap();
    refused(&env, &attempt(&place), 2, "read-only");
}

#[test]
fn a_full_destination_is_refused_before_the_start() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let Some(place) = small_disk(&env) else { return };
    let filler = File::create(place.join("filler")).unwrap();
    let mut writing = &filler;
    while std::io::Write::write(&mut writing, &[1; 1 << 16]).is_ok() {}
    while std::io::Write::write(&mut writing, &[1; 512]).is_ok() {}
    let ran = mount(&env, &env.source(), &env.mountpoint(), &place);
    refused(&env, &ran, 2, "");
    assert!(ran.err.contains("full") || ran.err.contains("space"), "{ran:?}");
    assert!(place.join("filler").exists());
}

// ENOSPC of the destination never reaches a reader.
#[test]
fn a_destination_that_fills_up_serves_on() {
    let Some(env) = Env::new() else { return };
    let size = 20 << 20;
    for number in 1..=3u8 {
        env.put(format!("file-{number}"), patterned(number, 0, size));
    }
    let Some(place) = small_disk(&env) else { return };
    symlink(&place, env.destination()).unwrap();
    let mounted = env.mount(&["--hydrate"]);
    for number in 1..=3u8 {
        let found = read(mounted.path(format!("file-{number}")));
        assert!(found.unwrap() == patterned(number, 0, size), "file-{number}");
    }
    let published =
        names(&place).into_iter().filter(|name| name.to_string_lossy().starts_with("file"));
    for name in published {
        assert_eq!(fs::metadata(place.join(name)).unwrap().len(), size as u64);
    }
    mounted.unmount();
}

/// An ext4 file system of 32 MiB.
fn small_disk(env: &Env) -> Option<std::path::PathBuf> {
    let (image, place) = (env.path("image"), env.path("small"));
    fs::create_dir(&place).unwrap();
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    tool(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&place).output();
    let said = mounted.unwrap();
    if !said.status.success() {
        eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&said.stderr));
        return None;
    }
    Some(place)
}

// L16: a second process deleted the files of the first.
#[test]
fn a_destination_in_use_is_refused_with_who_holds_it() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let mounted = env.mount(&[]);
    let other = env.path("mnt2");
    fs::create_dir(&other).unwrap();
    let ran = mount(&env, &env.source(), &other, &env.destination());
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.err.contains(&mounted.pid().as_raw_nonzero().to_string()), "{ran:?}");
    assert!(types_at(&other).is_empty());
    assert_eq!(read(mounted.path("file")).unwrap(), b"content");
    mounted.unmount();
}

#[test]
fn equal_files_are_adopted_and_not_fetched_again() {
    let Some(env) = Env::new() else { return };
    let whole = patterned(1, 0, usize::try_from(3 * BLOCK + 5).unwrap());
    let source = env.put("dir/file", &whole);
    fs::set_permissions(source, Permissions::from_mode(0o604)).unwrap();
    let path = env.destination().join("dir/file");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &whole).unwrap();
    fs::write(env.destination().join("foreign"), "mine").unwrap();
    let number = inode(&path);
    let mounted = env.mount(&["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["proof"]["transfer"], 1, "{status:#}");
    assert!(read(mounted.path("dir/file")).unwrap() == whole);
    assert_eq!(names(&mounted.place), ["dir"], "the mount shows the source alone");
    mounted.unmount();
    assert_eq!(inode(&path), number, "the same file");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o604);
    assert_eq!(read(env.destination().join("foreign")).unwrap(), b"mine");
}

#[test]
fn other_sizes_and_types_stop_before_the_start_with_a_list() {
    let Some(env) = Env::new() else { return };
    for name in ["one", "two", "three"] {
        env.put(name, "content");
    }
    let place = env.destination();
    fs::create_dir(&place).unwrap();
    fs::write(place.join("one"), "longer content").unwrap();
    fs::create_dir(place.join("two")).unwrap();
    let ran = env.try_mount(env.source(), &[]);
    refused(&env, &ran, 2, "one");
    assert!(ran.err.contains("two") && !ran.err.contains("three"), "{ran:?}");
    assert!(ran.err.contains("--existing overwrite"), "{ran:?}");
    assert_eq!(read(place.join("one")).unwrap(), b"longer content");
    assert!(place.join("two").is_dir());
}

#[test]
fn a_file_that_differs_after_all_is_kept_reported_and_served_from_the_source() {
    let Some(env) = Env::new() else { return };
    let size = usize::try_from(2 * BLOCK).unwrap();
    env.put("file", patterned(1, 0, size));
    env.put("other", "content");
    let path = env.destination().join("file");
    fs::create_dir(env.destination()).unwrap();
    let mut theirs = patterned(1, 0, size);
    theirs[size - 3] ^= 1;
    fs::write(&path, &theirs).unwrap();
    let mounted = env.mount_in_foreground(&["--hydrate"]);
    assert!(read(mounted.path("file")).unwrap() == patterned(1, 0, size));
    let status = mounted.until("the end", |status| status["phase"] == "failed");
    assert!(status["files"]["failed"].as_u64() >= Some(1), "{status:#}");
    let errors = status["errors"].as_array().unwrap();
    assert!(
        errors.iter().any(|error| error["path"] == "file" && error["kind"] == "exists"),
        "{status:#}"
    );
    assert!(read(mounted.path("file")).unwrap() == patterned(1, 0, size));
    assert_eq!(read(env.destination().join("other")).unwrap(), b"content");
    let exit = mounted.unmount_and_wait();
    assert_eq!(exit.code(), Some(1), "{}", env.log());
    assert!(read(&path).unwrap() == theirs, "left alone");
}

#[test]
fn existing_fail_refuses_any_and_overwrite_replaces_what_the_source_has() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    fs::create_dir(env.destination()).unwrap();
    let path = env.destination().join("file");
    fs::write(&path, "content").unwrap();
    refused(&env, &env.try_mount(env.source(), &["--existing", "fail"]), 2, "file");
    fs::write(&path, "something quite different").unwrap();
    fs::write(env.destination().join("foreign"), "mine").unwrap();
    let mounted = env.mount(&["--existing", "overwrite", "--hydrate"]);
    mounted.until_complete();
    mounted.unmount();
    assert_eq!(read(&path).unwrap(), b"content");
    assert_eq!(read(env.destination().join("foreign")).unwrap(), b"mine");
}

#[test]
fn adopt_fast_trusts_size_and_time_and_says_so() {
    let Some(env) = Env::new() else { return };
    let source = env.put("file", "content");
    env.put("older", "content");
    fs::create_dir(env.destination()).unwrap();
    for name in ["file", "older"] {
        fs::write(env.destination().join(name), "content").unwrap();
    }
    let time = fs::metadata(source).unwrap().modified().unwrap();
    File::open(env.destination().join("file")).unwrap().set_modified(time).unwrap();
    let other = time - std::time::Duration::from_nanos(1);
    File::open(env.destination().join("older")).unwrap().set_modified(other).unwrap();
    let mounted = env.mount(&["--existing", "adopt-fast", "--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["proof"]["adopted_unverified"], 1, "{status:#}");
    assert_eq!(status["proof"]["transfer"], 1, "{status:#}");
    mounted.unmount();
}

#[test]
fn a_source_that_holds_our_own_names_is_refused() {
    for name in [".lazycopy", "LAZYCOPY-INCOMPLETE.txt"] {
        let Some(env) = Env::new() else { return };
        env.put(name, "x");
        refused(&env, &env.try_mount(env.source(), &[]), 2, name);
        // Further down it is a name like any other.
        fs::remove_file(env.source().join(name)).unwrap();
        env.put(format!("dir/{name}"), "x");
        let mounted = env.mount(&["--hydrate"]);
        mounted.until_complete();
        mounted.unmount();
        assert_eq!(read(env.destination().join("dir").join(name)).unwrap(), b"x");
    }
}

#[test]
fn an_unreadable_file_fails_alone() {
    let Some(env) = Env::new() else { return };
    env.put("good", "content");
    // For root nothing is unreadable but what no file system gives: a directory on another one is not entered either.
    fs::create_dir(env.source().join("other disk")).unwrap();
    crate::harness::tmpfs(&env.source().join("other disk"));
    fs::write(env.source().join("other disk/inside"), "x").unwrap();
    let mounted = env.mount(&["--hydrate"]);
    mounted.until("the end", |status| status["phase"] == "complete" || status["phase"] == "failed");
    assert_eq!(read(env.destination().join("good")).unwrap(), b"content");
    assert!(!env.destination().join("other disk/inside").exists(), "one file system");
    mounted.unmount();
    let mounted = env.mount(&["--cross-mounts"]);
    assert_eq!(read(mounted.path("other disk/inside")).unwrap(), b"x");
    mounted.unmount();
}

#[test]
fn a_source_of_one_file_appears_under_its_name() {
    let Some(env) = Env::new() else { return };
    let path = env.put("film.mov", "content");
    let mounted = env.mount_from(&path, &["--hydrate"]);
    mounted.until_complete();
    assert_eq!(names(&mounted.place), ["film.mov"]);
    mounted.unmount();
    assert_eq!(read(env.destination().join("film.mov")).unwrap(), b"content");
}
