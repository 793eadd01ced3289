//! Trees behind ssh.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;

use crate::common::pattern;
use crate::common::servers::Server;
use crate::common::sshd::{options, programs_that_say};
use crate::harness::{Env, Ran, eventually, read, tool};

/// A tree with some of everything that SFTP tells. Nothing of it is younger than a minute: a version of this minute may have a twin.
fn plant(env: &Env) {
    for (path, bytes) in [
        ("empty", Vec::new()),
        ("one", b"1".to_vec()),
        ("dir/a b+c%41&d", pattern(1000)),
        ("dir/ümlaut/日本", pattern(131_073)),
        ("dir/deep/er/leaf", b"leaf".to_vec()),
        ("large", pattern(9 << 20)),
    ] {
        env.put(path, bytes);
    }
    let at = |name: &str| env.source().join(name);
    fs::create_dir(at("nothing in it")).unwrap();
    symlink("deep/er/leaf", at("dir/link")).unwrap();
    symlink("/nowhere at all", at("dangling")).unwrap();
    fs::set_permissions(at("one"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::set_permissions(at("dir/deep"), PermissionsExt::from_mode(0o750)).unwrap();
    chown(at("one"), Some(1234), Some(2345)).unwrap();
    let found = tool(Command::new("find").arg(env.source()).args(["-type", "f", "-print0"]));
    for (number, path) in found.split(|byte| *byte == 0).filter(|path| !path.is_empty()).enumerate()
    {
        let path = std::str::from_utf8(path).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(1_600_000_000 + number as u64);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
}

/// What every way of copying keeps, a line for each entry: kind, mode, owner, size and time of files, target of links, name.
fn told(root: &Path) -> String {
    let script = r#"cd "$1" && find . \( -path ./.lazycopy -o -name LAZYCOPY-INCOMPLETE.txt \) -prune -o -not -name . \( -type f -printf '%y %m %U %G %s %T@ %p\n' -o -type l -printf '%y %l %p\n' -o -printf '%y %m %p\n' \) | sort"#;
    let text = tool(Command::new("sh").args(["-c", script, "sh"]).arg(root));
    String::from_utf8(text).unwrap()
}

fn assert_same(one: &Path, other: &Path) {
    let diff = ["-r", "--no-dereference", "-x", ".lazycopy", "-x", "LAZYCOPY-INCOMPLETE.txt"];
    tool(Command::new("diff").args(diff).args([one, other]));
    assert_eq!(told(one), told(other));
}

fn assert_ran(ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

struct Remote {
    server: Server,
    url: String,
    options: Vec<String>,
}

/// The source of the environment behind an sshd.
fn remote(env: &Env) -> Option<Remote> {
    let server = Server::start("sshd")?;
    let url = format!("sftp://127.0.0.1:{}{}", server.port, env.source().display());
    let options = options(&server).into_iter().flat_map(|option| ["-S".to_owned(), option]);
    Some(Remote { options: options.collect(), server, url })
}

impl Remote {
    fn options(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).collect()
    }

    fn ssh_runs(&self) -> bool {
        !programs_that_say("ssh", &format!("Port={}", self.server.port)).is_empty()
    }

    fn until_no_ssh_runs(&self) {
        eventually("no ssh is left", || (!self.ssh_runs()).then_some(()));
    }
}

#[test]
fn a_tree_is_copied_mounted_and_cloned_with_its_modes_owners_times_and_links() {
    let Some(env) = Env::new() else { return };
    let Some(remote) = remote(&env) else { return };
    plant(&env);
    let (url, options) = (remote.url.as_str(), remote.options());
    let dir = |name: &str| env.path(name).to_str().unwrap().to_owned();

    let copied = env.run([&["copy", url, &dir("copied")], &options[..]].concat());
    assert_ran(&copied);
    assert_same(&env.source(), &env.path("copied"));
    // Run again it fetches nothing.
    let again = env.run([&["copy", url, &dir("copied"), "--json"], &options[..]].concat());
    assert_ran(&again);
    let summary: serde_json::Value =
        serde_json::from_str(again.out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&summary["bytes"]["copied"], &summary["files"]["unchanged"]),
        (&0.into(), &6.into()),
        "{summary}"
    );
    remote.until_no_ssh_runs();

    let mounted = env.mount_from(url, &options);
    assert_same(&env.source(), &mounted.place);
    assert!(remote.ssh_runs());
    mounted.unmount();
    remote.until_no_ssh_runs();

    let cloned = env.run([&["clone", url, &dir("cloned"), "--wait"], &options[..]].concat());
    assert_ran(&cloned);
    assert_same(&env.source(), &env.path("cloned"));
    remote.until_no_ssh_runs();
}

#[test]
fn a_single_file_is_copied_under_its_name() {
    let Some(env) = Env::new() else { return };
    let Some(remote) = remote(&env) else { return };
    plant(&env);
    let url = format!("{}/large", remote.url);
    let copied = env.path("copied");
    assert_ran(
        &env.run([&["copy", &url, copied.to_str().unwrap()], &remote.options()[..]].concat()),
    );
    assert!(fs::read(copied.join("large")).unwrap() == pattern(9 << 20));
}

#[test]
fn no_ssh_outlives_a_daemon_that_is_killed() {
    let Some(env) = Env::new() else { return };
    let Some(remote) = remote(&env) else { return };
    plant(&env);
    let mut mounted = env.mount_from(&remote.url, &remote.options());
    assert_eq!(read(mounted.path("dir/link")).unwrap(), b"leaf");
    assert!(remote.ssh_runs());
    mounted.signal(Signal::KILL);
    mounted.until_gone();
    remote.until_no_ssh_runs();
}

#[test]
fn a_host_that_is_unknown_is_refused_before_anything_is_made() {
    let Some(env) = Env::new() else { return };
    let Some(remote) = remote(&env) else { return };
    let known = env.path("known");
    let mut options = remote.options.clone();
    options[3] = format!("known-hosts={}", known.display());
    let copied = env.path("copied");
    let args = ["copy", &remote.url, copied.to_str().unwrap()].map(str::to_owned);
    let ran = env.run(args.iter().chain(&options));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("--accept-new") && !copied.exists(), "{ran:?}");
    let accepting = ["--accept-new".to_owned()];
    assert_ran(&env.run(args.iter().chain(&options).chain(&accepting)));
    assert!(fs::metadata(known).unwrap().len() > 0);
    // A password is nowhere.
    let ran = env.run(["copy", "sftp://me:hunter2@h/x", "/nonexistent/x"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(!format!("{ran:?}").contains("hunter2"), "{ran:?}");
}
