//! `lazycopy clone`: a copy in place, from its first moment to the plain directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::extremes::as_a_user;
use crate::harness::{
    Env, Ran, errno, eventually, is_running, names, patterned, read, read_at, tmpfs, tool, types_at,
};
use crate::mapping::Mapping;
use crate::origin::{Behaviour, Origin, Page};
use crate::tree::{Compare, assert_same, plant, walk};

const MIB: u64 = 1 << 20;
const MARKER: &str = "LAZYCOPY-INCOMPLETE.txt";
const OURS: &str = "fuse.lazycopy";

fn page(size: u64) -> Page {
    Page::new(size, |offset, len| patterned(1, offset, len))
}

fn whole(size: u64) -> Vec<u8> {
    patterned(1, 0, usize::try_from(size).unwrap())
}

/// The directory that becomes a copy.
fn dir(env: &Env) -> PathBuf {
    env.path("tree")
}

fn clone(env: &Env, source: impl AsRef<OsStr>, options: &[&str]) -> Ran {
    let dir = dir(env);
    let fixed: [&OsStr; 3] = ["clone".as_ref(), source.as_ref(), dir.as_os_str()];
    env.run(fixed.into_iter().chain(options.iter().map(OsStr::new)))
}

/// A clone that is usable.
fn begin(env: &Env, source: impl AsRef<OsStr>, options: &[&str]) -> Pid {
    let ran = clone(env, source, options);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert!(ran.out.contains("is usable now ("), "{ran:?}");
    assert_eq!(types_at(&dir(env)), [OURS], "{}", env.log());
    daemon(env)
}

/// A clone of which `clone --wait` waits for the end.
fn begin_and_wait(env: &Env, source: impl AsRef<OsStr>, options: &[&str]) -> Waiting {
    let dir = dir(env);
    let fixed: [&OsStr; 4] =
        ["clone".as_ref(), source.as_ref(), dir.as_os_str(), "--wait".as_ref()];
    let mut command = env.command(fixed.into_iter().chain(options.iter().map(OsStr::new)));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    daemon(env);
    Waiting(child)
}

struct Waiting(Child);

impl Waiting {
    fn end(self) -> Ran {
        let output = self.0.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn status(env: &Env) -> Value {
    let ran = env.run([OsStr::new("status"), OsStr::new("--json"), dir(env).as_os_str()]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    serde_json::from_str(&ran.out).unwrap()
}

/// It is registered as soon as it can be used.
fn daemon(env: &Env) -> Pid {
    let is_record = |name: &OsString| name.as_encoded_bytes().ends_with(b".json");
    let record = eventually("a registration", || env.registered().into_iter().find(is_record));
    let record = fs::read(env.path("run").join(record)).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    Pid::from_raw(i32::try_from(record["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

fn until_gone(pid: Pid) {
    eventually("the daemon's end", || (!is_running(pid)).then_some(()));
}

/// Nothing covers the directory any more.
fn until_dissolved(env: &Env) {
    eventually("a plain directory", || types_at(&dir(env)).is_empty().then_some(()));
}

fn unmounted(env: &Env, options: &[&str]) {
    let place = dir(env);
    let args = [OsStr::new("unmount"), place.as_os_str()];
    let ran = env.run(args.into_iter().chain(options.iter().map(OsStr::new)));
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

/// What every finished clone is: plain, proven, without a trace of the way there.
fn assert_finished(env: &Env) {
    let dir = dir(env);
    assert_eq!(types_at(&dir), [""; 0]);
    assert!(!dir.join(MARKER).exists());
    assert!(dir.join(".lazycopy/receipt.json").exists());
    let ran = env.run([OsStr::new("verify"), dir.as_os_str()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_clone_ends_as_a_plain_directory_with_everything_of_its_source() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    fs::set_permissions(env.source(), Permissions::from_mode(0o750)).unwrap();
    let expected = walk(&env.source(), Compare::Everything);
    let ran = clone(&env, env.source(), &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert!(
        ran.out.contains("is usable now (") && ran.out.contains("a plain directory now"),
        "{ran:?}"
    );
    assert_same(&expected, &walk(&dir(&env), Compare::Everything), "the plain directory");
    assert_finished(&env);
}

#[test]
fn every_byte_is_there_at_once_and_the_directory_is_private_until_it_is_whole() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(8 * MIB).behaves(Behaviour::StallAt(6 * MIB)));
    origin.put("/small", Page::of("small"));
    let pid = begin(&env, origin.url(), &[]);
    assert_eq!(read(dir(&env).join("small")).unwrap(), b"small");
    let file = File::open(dir(&env).join("stuck")).unwrap();
    assert!(read_at(&file, MIB, 4096).unwrap() == patterned(1, MIB, 4096));
    assert!(
        !names(&dir(&env)).contains(&OsString::from(MARKER)),
        "the mount shows the source only"
    );
    drop(file);
    unmounted(&env, &["--wait"]);
    assert!(!is_running(pid));

    let marker = fs::read_to_string(dir(&env).join(MARKER)).unwrap();
    assert!(
        marker.contains(&format!("lazycopy clone {} {}", origin.url(), dir(&env).display())),
        "{marker}"
    );
    assert_eq!(fs::metadata(dir(&env)).unwrap().mode() & 0o7777, 0o700);
    // The same command goes on.
    origin.behave("/stuck", Behaviour::Right);
    let ran = clone(&env, origin.url(), &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert!(read(dir(&env).join("stuck")).unwrap() == whole(8 * MIB));
    assert_eq!(fs::metadata(dir(&env)).unwrap().mode() & 0o7777, 0o755);
    assert_finished(&env);
}

// A daemon that used the path would find an empty directory in which it cannot write.
#[test]
fn the_daemon_never_uses_the_path_that_its_mount_covers() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(8 * MIB).behaves(Behaviour::StallAt(MIB)));
    for number in 0..50 {
        origin.put(&format!("/{number}"), page(100 * number));
    }
    let pid = begin(&env, origin.url(), &[]);
    tmpfs(&dir(&env));
    tool(Command::new("mount").args(["-o", "remount,ro"]).arg(dir(&env)));
    origin.release();
    origin.behave("/stuck", Behaviour::Right);
    eventually("complete", || (status(&env)["phase"] == "complete").then_some(()));
    // Ours cannot be taken away while another covers it, and that is not ours to take away.
    eventually("the reason in the log", || {
        env.log().contains("another file system was mounted over it").then_some(())
    });
    assert_eq!(types_at(&dir(&env)), [OURS, "tmpfs"]);
    assert_eq!(names(&dir(&env)), [""; 0]);
    unmount(dir(&env), UnmountFlags::empty()).unwrap();
    until_dissolved(&env);
    until_gone(pid);
    assert!(read(dir(&env).join("stuck")).unwrap() == whole(8 * MIB));
    assert_finished(&env);
}

#[test]
fn a_mount_inside_is_never_taken_away_with_ours() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(2 * MIB).behaves(Behaviour::StallAt(MIB)));
    origin.put("/sub/file", Page::of("file"));
    let pid = begin(&env, origin.url(), &[]);
    tmpfs(&dir(&env).join("sub"));
    origin.release();
    eventually("the reason in the log", || {
        env.log().contains("another file system is mounted inside").then_some(())
    });
    assert_eq!(types_at(&dir(&env).join("sub")), ["tmpfs"]);
    unmount(dir(&env).join("sub"), UnmountFlags::empty()).unwrap();
    until_dissolved(&env);
    until_gone(pid);
    assert_eq!(read(dir(&env).join("sub/file")).unwrap(), b"file");
    assert_finished(&env);
}

#[test]
fn an_open_file_is_served_on_whatever_becomes_of_the_plain_one() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(8 * MIB).behaves(Behaviour::StallAt(6 * MIB)));
    origin.put("/early", page(3 * MIB));
    let waiting = begin_and_wait(&env, origin.url(), &["--linger", "100ms"]);
    let pid = daemon(&env);
    let stuck = File::open(dir(&env).join("stuck")).unwrap();
    assert!(read_at(&stuck, 0, 5000).unwrap() == patterned(1, 0, 5000));
    eventually("a published file", || (status(&env)["files"]["published"] == 1).then_some(()));
    let early = File::open(dir(&env).join("early")).unwrap();
    origin.release();
    let ran = waiting.end();
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert!(ran.err.contains("served until it is closed"), "{ran:?}");
    until_dissolved(&env);

    // New opens find the plain file, which is another inode.
    let plain = File::open(dir(&env).join("stuck")).unwrap();
    assert_ne!(plain.metadata().unwrap().dev(), stuck.metadata().unwrap().dev());
    // The catalog is closed and the lock is left while they are open.
    eventually("the lock is left", || {
        let ran = env.run([OsStr::new("verify"), dir(&env).as_os_str()]);
        (env.registered().is_empty() && ran.code == Some(0)).then_some(())
    });
    assert_finished(&env);
    for name in ["stuck", "early"] {
        fs::remove_file(dir(&env).join(name)).unwrap();
    }
    assert!(is_running(pid));
    assert!(read_at(&stuck, 0, 8 << 20).unwrap() == whole(8 * MIB));
    assert!(read_at(&early, 0, 3 << 20).unwrap() == whole(3 * MIB));
    drop(stuck);
    drop(early);
    until_gone(pid);
}

#[test]
fn a_mapping_is_served_on_across_the_end() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(8 * MIB).behaves(Behaviour::StallAt(6 * MIB)));
    let pid = begin(&env, origin.url(), &["--linger", "0"]);
    let Some(mut mapping) = Mapping::of(&dir(&env).join("stuck")) else { return };
    assert!(mapping.read(100, 50) == patterned(1, 100, 50));
    origin.release();
    until_dissolved(&env);
    assert_eq!(mapping.len(), 8 * MIB);
    for offset in [0, MIB + 1, 6 * MIB - 10, 8 * MIB - 4096] {
        assert!(mapping.read(offset, 4096) == patterned(1, offset, 4096), "{offset}");
    }
    drop(mapping);
    until_gone(pid);
    assert_finished(&env);
}

#[test]
fn who_stands_in_the_directory_is_named_and_can_step_into_the_plain_one() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(2 * MIB).behaves(Behaviour::StallAt(MIB)));
    origin.put("/sub/file", Page::of("content"));
    let waiting = begin_and_wait(&env, origin.url(), &["--linger", "5s"]);
    let pid = daemon(&env);
    let stands = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir(&env).join("sub"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut lives = stands(r#"read x; cat file; cd "$PWD"; read x; cat file"#);
    let mut stays = stands("read x; cat file || echo cut off");
    origin.release();
    let ran = waiting.end();
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    for child in [&lives, &stays] {
        assert!(
            ran.err.contains(&format!("pid {} (sh): current directory", child.id())),
            "{ran:?}"
        );
    }
    assert!(ran.err.contains(r#"cd "$PWD""#) && ran.err.contains("in 5s"), "{ran:?}");
    writeln!(lives.stdin.as_mut().unwrap()).unwrap();
    until_gone(pid);
    for child in [&mut lives, &mut stays] {
        writeln!(child.stdin.as_mut().unwrap()).unwrap();
    }
    let said = |child: Child| child.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&said(lives)), "contentcontent");
    assert_eq!(String::from_utf8_lossy(&said(stays)), "cut off\n");
    assert_finished(&env);
}

#[test]
fn unmount_by_force_ends_the_time_of_who_stands_in_it() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(2 * MIB).behaves(Behaviour::StallAt(MIB)));
    let pid = begin(&env, origin.url(), &["--linger", "1h"]);
    let mut stands = Command::new("sleep").arg("1000").current_dir(dir(&env)).spawn().unwrap();
    origin.release();
    until_dissolved(&env);
    unmounted(&env, &["--force"]);
    assert!(!is_running(pid));
    stands.kill().unwrap();
    stands.wait().unwrap();
    assert_finished(&env);
}

#[test]
fn a_mount_namespace_that_holds_the_mount_is_named_and_served() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(2 * MIB).behaves(Behaviour::StallAt(MIB)));
    origin.put("/file", Page::of("content"));
    let waiting = begin_and_wait(&env, origin.url(), &["--linger", "0"]);
    let pid = daemon(&env);
    let script = format!("echo ready; read x; cat {}", dir(&env).join("file").display());
    let mut holder = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
    origin.release();
    let ran = waiting.end();
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    let named = format!("in the mount namespace of pid {}", holder.id());
    assert!(ran.err.contains(&named), "{ran:?}");
    assert!(is_running(pid) && types_at(&dir(&env)).is_empty());
    writeln!(holder.stdin.as_mut().unwrap()).unwrap();
    let said = holder.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&said), "content");
    until_gone(pid);
    assert_finished(&env);
}

#[test]
fn killed_after_any_step_of_its_end_the_same_command_ends_alike() {
    let Some(env) = Env::new() else { return };
    for number in 0..20 {
        env.put(format!("d{}/f{number}", number % 3), patterned(1, 0, 5_000 * number));
    }
    fs::set_permissions(env.source(), Permissions::from_mode(0o751)).unwrap();
    let expected = walk(&env.source(), Compare::Everything);
    for step in ["Unmarked", "RootFinished", "Receipted", "Synced", "Detached", "Closed"] {
        let dir = dir(&env);
        let command =
            [OsStr::new("clone"), env.source().as_os_str(), dir.as_os_str(), OsStr::new("--wait")]
                .map(OsStr::to_owned);
        let cut = env.command(&command).env("LAZYCOPY_TEST_CUT_AFTER", step).output().unwrap();
        let said = String::from_utf8_lossy(&cut.stderr).into_owned();
        assert_eq!(cut.status.code(), Some(5), "{step}: {said}\n{}", env.log());
        assert!(said.contains("the same command goes on"), "{step}: {said}");
        let ran = env.run(&command);
        assert_eq!(ran.code, Some(0), "{step}: {ran:?}\n{}", env.log());
        assert_same(&expected, &walk(&dir, Compare::Everything), step);
        assert_finished(&env);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn killed_in_the_middle_the_same_command_goes_on_below_the_dead_mount() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/done", page(MIB));
    origin.put("/stuck", page(8 * MIB).behaves(Behaviour::StallAt(6 * MIB)));
    let pid = begin(&env, origin.url(), &[]);
    eventually("a published file", || (status(&env)["files"]["published"] == 1).then_some(()));
    kill_process(pid, Signal::KILL).unwrap();
    until_gone(pid);
    let dead = errno(fs::read_dir(dir(&env)));
    assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&dead), "{dead}");
    origin.behave("/stuck", Behaviour::Right);
    let bodies = origin.count("GET", "/done");
    let ran = clone(&env, origin.url(), &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert_eq!(origin.count("GET", "/done"), bodies, "what is published is not fetched again");
    assert!(read(dir(&env).join("stuck")).unwrap() == whole(8 * MIB));
    assert_finished(&env);
}

#[test]
fn a_mount_beside_it_goes_on_with_a_clone_that_was_killed() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(8 * MIB).behaves(Behaviour::StallAt(6 * MIB)));
    let pid = begin(&env, origin.url(), &[]);
    kill_process(pid, Signal::KILL).unwrap();
    until_gone(pid);
    origin.behave("/stuck", Behaviour::Right);
    let dir = dir(&env);
    let url = origin.url();
    let mountpoint = env.mountpoint();
    let args = [
        OsStr::new("mount"),
        OsStr::new(&url),
        mountpoint.as_os_str(),
        OsStr::new("--hydrate"),
        OsStr::new("--dest"),
        dir.as_os_str(),
    ];
    let ran = env.run(args);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    let mounted = env.mounted_now();
    mounted.until_complete();
    mounted.unmount();
    assert!(read(dir.join("stuck")).unwrap() == whole(8 * MIB));
    assert_finished(&env);
}

#[test]
fn what_cannot_be_copied_keeps_the_mount_and_is_told() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/bad", page(MIB).behaves(Behaviour::Status { code: 403, times: usize::MAX }));
    origin.put("/good", Page::of("good"));
    let ran = clone(&env, origin.url(), &["--wait"]);
    assert_eq!(ran.code, Some(1), "{ran:?}\n{}", env.log());
    assert!(
        ran.err.contains("1 file could not be copied") && ran.err.contains("lazycopy unmount"),
        "{ran:?}"
    );
    assert_eq!(types_at(&dir(&env)), [OURS]);
    assert_eq!(read(dir(&env).join("good")).unwrap(), b"good");
    assert_eq!(status(&env)["phase"], "failed");
    unmounted(&env, &[]);
    assert!(dir(&env).join(MARKER).exists());
    origin.behave("/bad", Behaviour::Right);
    let ran = clone(&env, origin.url(), &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert!(read(dir(&env).join("bad")).unwrap() == whole(MIB));
    assert_finished(&env);
}

#[test]
fn no_dissolve_keeps_the_complete_copy_mounted() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let ran = clone(&env, env.source(), &["--wait", "--no-dissolve"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert_eq!(types_at(&dir(&env)), [OURS]);
    let second = clone(&env, env.source(), &[]);
    assert_eq!(second.code, Some(6), "{second:?}");
    let dir = dir(&env);
    let beside = env.run([
        OsStr::new("mount"),
        env.source().as_os_str(),
        env.mountpoint().as_os_str(),
        OsStr::new("--dest"),
        dir.as_os_str(),
    ]);
    assert_eq!(beside.code, Some(6), "{beside:?}");
    let ran = env.run([OsStr::new("verify"), dir.as_os_str()]);
    assert_eq!(ran.code, Some(0), "the daemon proves it: {ran:?}");
    unmounted(&env, &[]);
    assert_finished(&env);
}

#[test]
fn a_clone_that_is_refused_changes_nothing() {
    let Some(env) = Env::new() else { return };
    env.put("sub/file", "content");
    let dir = dir(&env);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o751)).unwrap();
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/file"), "something else").unwrap();
    let conflict = clone(&env, env.source(), &[]);
    assert_eq!(conflict.code, Some(2), "{conflict:?}");
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o751);
    assert!(types_at(&dir).is_empty());
    assert_eq!(fs::read(dir.join("sub/file")).unwrap(), b"something else");

    let try_one = |source: &Path, dir: &Path, log: Option<&Path>| {
        let mut command = env.command([OsStr::new("clone"), source.as_os_str(), dir.as_os_str()]);
        if let Some(log) = log {
            command.arg("--log").arg(log);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let source = env.source();
    assert!(try_one(&source, &source.join("copy"), None).contains("lies inside the source"));
    assert!(
        try_one(&source.join("sub"), &source, None).contains("source lies inside the destination")
    );
    assert!(try_one(&source, &source, None).contains("are the same directory"));
    let log = env.path("fresh/log");
    assert!(try_one(&source, &env.path("fresh"), Some(&log)).contains("the log lies inside"));
    assert!(
        try_one(&source, &env.path("no/such/parent"), None).contains("make"),
        "the parent must exist"
    );
    assert!(!env.path("fresh").exists());
    // With --existing overwrite it is a copy like any other.
    let ran = clone(&env, env.source(), &["--wait", "--existing", "overwrite"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert_eq!(fs::read(dir.join("sub/file")).unwrap(), b"content");
    assert_finished(&env);
}

#[test]
fn a_directory_that_is_a_mountpoint_itself_keeps_its_file_system() {
    let Some(env) = Env::new() else { return };
    env.put("file", patterned(1, 0, 100_000));
    fs::create_dir(dir(&env)).unwrap();
    tmpfs(&dir(&env));
    let ran = clone(&env, env.source(), &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert_eq!(types_at(&dir(&env)), ["tmpfs"]);
    assert!(fs::read(dir(&env).join("file")).unwrap() == patterned(1, 0, 100_000));
}

#[test]
fn an_ordinary_user_clones_into_a_directory_of_his_own() {
    let Some(env) = Env::new() else { return };
    env.put("open", "content");
    fs::create_dir(env.path("user")).unwrap();
    chown(env.path("user"), Some(65534), Some(65534)).unwrap();
    let said = as_a_user(
        &env,
        r#"cd "$D"
        trap '$D/lazycopy unmount --force user/tree >/dev/null 2>&1 || :' EXIT
        export LAZYCOPY_RESERVE=0
        $D/lazycopy clone source user/tree --wait --no-dissolve
        grep -o " $D"'/*user/tree .* fuse.lazycopy ' /proc/self/mountinfo
        $D/lazycopy unmount user/tree
        rm -r user/tree
        $D/lazycopy clone source user/tree --wait
        grep "user/tree" /proc/self/mountinfo || echo "plain: $(cat user/tree/open)"
        "#,
    );
    assert!(said.contains("fuse.lazycopy") && said.contains("plain: content"), "{said}");
}

#[test]
fn ctrl_c_and_a_closed_terminal_leave_it_running() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(2 * MIB).behaves(Behaviour::StallAt(MIB)));
    for signal in [Signal::INT, Signal::HUP] {
        let waiting = begin_and_wait(&env, origin.url(), &[]);
        let pid = daemon(&env);
        eventually("the first line is said once the signals are listened for", || {
            let status = fs::read_to_string(format!("/proc/{}/status", waiting.0.id())).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
            let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
            (caught & (1 << (signal.as_raw() - 1)) != 0).then_some(())
        });
        let parent = Pid::from_raw(i32::try_from(waiting.0.id()).unwrap()).unwrap();
        kill_process(parent, signal).unwrap();
        let ran = waiting.end();
        assert_eq!(ran.code, Some(5), "{ran:?}");
        assert!(
            ran.out.contains("it goes on in the background: lazycopy status --watch"),
            "{ran:?}"
        );
        assert!(is_running(pid));
        unmounted(&env, &[]);
    }
}

/// A copy without a mount into the same directory; its summary.
fn copy(env: &Env, source: impl AsRef<OsStr>, options: &[&str]) -> (Option<i32>, Value) {
    let dir = dir(env);
    let fixed: [&OsStr; 4] = ["copy".as_ref(), "--json".as_ref(), source.as_ref(), dir.as_os_str()];
    let ran = env.run(fixed.into_iter().chain(options.iter().map(OsStr::new)));
    let last = ran.out.lines().last().unwrap_or_else(|| panic!("{ran:?}"));
    (ran.code, serde_json::from_str(last).unwrap())
}

#[test]
fn a_copy_after_a_clone_knows_renamed_files_again() {
    let Some(env) = Env::new() else { return };
    env.put("dir/one", patterned(1, 0, 300_000));
    env.put("two", "two");
    let ran = clone(&env, env.source(), &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    let inode = |name: &str| fs::metadata(dir(&env).join(name)).unwrap().ino();
    let (one, two) = (inode("dir/one"), inode("two"));
    fs::rename(env.source().join("dir"), env.source().join("folder")).unwrap();
    fs::rename(env.source().join("two"), env.source().join("folder/zwei")).unwrap();
    let (code, summary) = copy(&env, env.source(), &["--delete"]);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!((&summary["files"]["renamed"], &summary["files"]["copied"]), (&2.into(), &0.into()));
    assert_eq!((inode("folder/one"), inode("folder/zwei")), (one, two));
    assert_finished(&env);
}

#[test]
fn what_is_new_at_the_source_before_the_end_is_copied_too() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/stuck", page(MIB).behaves(Behaviour::StallAt(MIB / 2)));
    origin.put("/dir/early", Page::of("early"));
    let pid = begin(&env, origin.url(), &["--read-timeout", "0"]);
    eventually("the end of the scan", || (status(&env)["phase"] == "hydrating").then_some(()));
    origin.put("/late", Page::of("late"));
    origin.put("/dir/late", Page::of("late"));
    origin.put("/new/late", Page::of("late"));
    origin.release();
    until_dissolved(&env);
    until_gone(pid);
    for name in ["late", "dir/late", "new/late"] {
        assert_eq!(read(dir(&env).join(name)).unwrap(), b"late", "{name}");
    }
    assert_finished(&env);
}

#[test]
fn who_waits_is_told_when_a_limit_is_used_up_and_a_higher_one_goes_on() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for number in 0..4 {
        origin.put(&format!("/{number}"), page(MIB));
    }
    let ran = begin_and_wait(&env, origin.url(), &["--max-fetch", "2MiB"]).end();
    assert_eq!(ran.code, Some(5), "{ran:?}\n{}", env.log());
    assert!(ran.err.contains("--max-fetch 2097152 is used up"), "{ran:?}");
    assert!(ran.err.contains("lazycopy unmount"), "{ran:?}");
    assert_eq!(types_at(&dir(&env)), [OURS], "what is local is served");
    unmounted(&env, &[]);
    let ran = clone(&env, origin.url(), &["--wait", "--max-fetch", "4MiB"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    assert_eq!(origin.body_bytes(), 4 * MIB, "nothing travels twice");
    assert_finished(&env);
}

#[test]
fn a_clone_goes_on_where_a_copy_left_and_a_copy_where_a_clone_was_killed() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for number in 0..6 {
        origin.put(&format!("/{number}"), page(MIB));
    }
    let (code, summary) = copy(&env, origin.url(), &["--max-fetch", "2MiB"]);
    assert_eq!(code, Some(5), "{summary}");
    let ran = begin_and_wait(&env, origin.url(), &["--max-fetch", "4MiB"]).end();
    assert_eq!(ran.code, Some(5), "{ran:?}\n{}", env.log());
    let pid = daemon(&env);
    kill_process(pid, Signal::KILL).unwrap();
    until_gone(pid);
    for word in ["verify", "forget"] {
        let refused = env.run([OsStr::new(word), dir(&env).as_os_str()]);
        assert_eq!(refused.code, Some(6), "{refused:?}");
        assert!(refused.err.contains("dead mount") && refused.err.contains("lazycopy unmount"));
    }
    let (code, summary) = copy(&env, origin.url(), &[]);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(origin.body_bytes(), 6 * MIB, "nothing travels twice");
    assert_finished(&env);
}

#[test]
fn a_clone_goes_on_where_a_copy_of_a_local_tree_was_told_to_end() {
    let Some(env) = Env::new() else { return };
    for number in 0..60 {
        env.put(format!("d{}/f{number}", number % 3), patterned(1, number, 100_000));
    }
    let (source, place) = (env.source(), dir(&env));
    let words = ["copy", "--limit", "400KB", "--max-jobs", "1"].map(OsStr::new);
    let args = words.into_iter().chain([source.as_os_str(), place.as_os_str()]);
    let mut child = env.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let published = || -> Vec<(PathBuf, u64)> {
        let found = (0..60).map(|number| place.join(format!("d{}/f{number}", number % 3)));
        found.filter_map(|path| Some((path.clone(), fs::metadata(path).ok()?.ino()))).collect()
    };
    eventually("a published file", || (!published().is_empty()).then_some(()));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    let before = published();
    let ran = clone(&env, &source, &["--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", env.log());
    for (path, inode) in before {
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "copied again: {}", path.display());
    }
    assert_same(
        &walk(&source, Compare::Everything),
        &walk(&place, Compare::Everything),
        "the plain directory",
    );
    assert_finished(&env);
}
