//! The source away between two lives: the mount comes up, what is local is served, nothing is taken for deleted.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::{self, nginx::Nginx};
use crate::harness::{
    BLOCK, Env, Mounted, Ran, errno, eventually, inode, names, patterned, read, tool,
};

const BIG: u64 = 20 * BLOCK + 5;

fn content(name: &str) -> Vec<u8> {
    let version = name.bytes().fold(7u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let size = if name.ends_with("big") { usize::try_from(BIG).unwrap() } else { 300 };
    patterned(version, 0, size)
}

/// Files, directories, one of them empty, a symlink, a hard link.
fn plant(env: &Env) {
    for name in ["small", "dir/inner", "dir/big", "dir/deep/er/leaf", "unread"] {
        env.put(name, content(name));
    }
    fs::create_dir(env.source().join("empty")).unwrap();
    fs::set_permissions(env.source().join("dir/inner"), fs::Permissions::from_mode(0o604)).unwrap();
}

fn warned(ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let warnings: Vec<&str> = ran.err.lines().filter(|line| line.contains("is away")).collect();
    assert_eq!(warnings.len(), 1, "{}", ran.err);
}

/// What was walked and read before is all there; the rest is EIO, and never ENOENT.
fn serves_what_it_knows(mounted: &Mounted<'_>, numbers: &[(&str, u64)]) {
    for (name, number) in numbers {
        assert_eq!(inode(&mounted.path(name)), *number, "{name} has another number");
    }
    assert_eq!(names(&mounted.path("empty")).len(), 0);
    assert_eq!(names(&mounted.path("dir")), ["big", "deep", "inner"]);
    for name in ["small", "dir/inner", "dir/deep/er/leaf"] {
        assert!(read(mounted.path(name)).unwrap() == content(name), "{name}");
    }
    let begun = Instant::now();
    assert_eq!(errno(read(mounted.path("unread"))), libc::EIO);
    assert_eq!(errno(fs::metadata(mounted.path("never seen"))), libc::EIO);
    assert!(begun.elapsed().as_secs() < 40, "{:?}", begun.elapsed());
}

fn walk_and_read(mounted: &Mounted<'_>) -> Vec<(&'static str, u64)> {
    for directory in ["", "dir", "dir/deep", "dir/deep/er", "empty"] {
        names(&mounted.path(directory));
    }
    for name in ["small", "dir/inner", "dir/deep/er/leaf"] {
        assert!(read(mounted.path(name)).unwrap() == content(name));
    }
    let all = ["small", "dir", "dir/inner", "dir/big", "dir/deep/er", "empty", "unread"];
    let numbers = all.map(|name| (name, inode(&mounted.path(name)))).to_vec();
    mounted.until_published(3);
    numbers
}

/// Ends a daemon as a crash would, when its catalog has had the time to learn what was seen.
fn kill(mut mounted: Mounted<'_>) {
    std::thread::sleep(std::time::Duration::from_secs(3));
    mounted.signal(Signal::KILL);
    mounted.until_gone();
}

#[test]
fn a_server_that_is_down_is_no_reason_not_to_come_up_and_is_used_when_it_is_back() {
    let Some(env) = Env::new() else { return };
    plant(&env);
    let Some(mut nginx) = Nginx::start(&env.source(), "") else { return };
    let url = nginx.url("/");
    let mounted = env.mount_from(&url, &[]);
    let numbers = walk_and_read(&mounted);
    kill(mounted);

    nginx.stop();
    let ran = env.try_mount(&url, &[]);
    warned(&ran);
    let mounted = env.mounted_now();
    serves_what_it_knows(&mounted, &numbers);
    assert!(env.log().contains("is away"), "{}", env.log());
    nginx.start_again();
    eventually("the source is used again", || {
        (read(mounted.path("unread")).ok()? == content("unread")).then_some(())
    });
    assert!(read(mounted.path("dir/big")).unwrap() == content("dir/big"));
    assert_eq!(errno(fs::metadata(mounted.path("never seen"))), libc::ENOENT);
    mounted.unmount();

    // And a destination that knows nothing of it stays out.
    nginx.stop();
    fs::remove_dir_all(env.destination()).unwrap();
    let ran = env.try_mount(&url, &[]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
}

#[test]
fn a_local_source_that_is_gone_or_empty_is_away_and_nothing_counts_as_deleted() {
    let Some(env) = Env::new() else { return };
    plant(&env);
    symlink("dir/inner", env.source().join("link")).unwrap();
    fs::hard_link(env.source().join("small"), env.source().join("other name")).unwrap();
    let mounted = env.mount(&[]);
    let numbers = walk_and_read(&mounted);
    assert_eq!(fs::read_link(mounted.path("link")).unwrap(), Path::new("dir/inner"));
    fs::metadata(mounted.path("other name")).unwrap();
    kill(mounted);

    fs::rename(env.source(), env.path("elsewhere")).unwrap();
    for is_empty in [false, true] {
        if is_empty {
            fs::create_dir(env.source()).unwrap();
        }
        warned(&env.try_mount(env.source(), &[]));
        let mounted = env.mounted_now();
        serves_what_it_knows(&mounted, &numbers);
        assert_eq!(fs::read_link(mounted.path("link")).unwrap(), Path::new("dir/inner"));
        assert_eq!(inode(&mounted.path("other name")), inode(&mounted.path("small")));
        assert!(read(mounted.path("other name")).unwrap() == content("small"));
        let inner = fs::metadata(mounted.path("dir/inner")).unwrap();
        assert_eq!((inner.mode() & 0o7777, inner.len()), (0o604, 300));
        if is_empty {
            fs::remove_dir(env.source()).unwrap();
            fs::rename(env.path("elsewhere"), env.source()).unwrap();
            eventually("the source is used again", || {
                (read(mounted.path("unread")).ok()? == content("unread")).then_some(())
            });
        }
        mounted.unmount();
    }
}

#[test]
fn a_single_file_comes_up_without_its_source() {
    let Some(env) = Env::new() else { return };
    let source = env.put("one", content("one"));
    let mounted = env.mount_from(&source, &[]);
    assert_eq!(names(&mounted.place), ["one"]);
    assert!(read(mounted.path("one")).unwrap() == content("one"));
    mounted.until_published(1);
    mounted.unmount();
    fs::remove_file(&source).unwrap();
    warned(&env.try_mount(&source, &[]));
    let mounted = env.mounted_now();
    assert_eq!(names(&mounted.place), ["one"]);
    assert!(read(mounted.path("one")).unwrap() == content("one"));
    mounted.unmount();
}

#[test]
fn a_copy_begun_while_the_source_is_away_goes_on_when_it_is_back() {
    let Some(env) = Env::new() else { return };
    plant(&env);
    let mounted = env.mount(&[]);
    names(&mounted.place);
    mounted.unmount();
    fs::rename(env.source(), env.path("elsewhere")).unwrap();
    warned(&env.try_mount(env.source(), &["--hydrate"]));
    let mounted = env.mounted_now();
    fs::rename(env.path("elsewhere"), env.source()).unwrap();
    mounted.until_complete();
    mounted.unmount();
    for name in ["small", "dir/inner", "dir/big", "dir/deep/er/leaf", "unread"] {
        assert!(fs::read(env.destination().join(name)).unwrap() == content(name), "{name}");
    }
}

/// What a tool that must not complain printed.
fn quietly(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

// Listing and copying tools ask for attributes that no reader ever asked for while the source was there.
#[test]
fn what_is_local_is_listed_and_copied_without_a_complaint_while_the_source_is_away() {
    let Some(env) = Env::new() else { return };
    plant(&env);
    symlink("inner", env.source().join("dir/link")).unwrap();
    let inner = env.source().join("dir/inner");
    let has_acls = Command::new("setfacl").args(["-m", "u:12345:r"]).arg(&inner).status();
    if !has_acls.is_ok_and(|status| status.success()) {
        return common::skip("setfacl on a file system with ACLs");
    }
    tool(Command::new("setfattr").args(["-n", "user.of", "-v", "inner"]).arg(&inner));
    let dir = env.source().join("dir");
    tool(Command::new("setfattr").args(["-n", "user.of", "-v", "dir"]).arg(&dir));
    tool(Command::new("setfacl").args(["-d", "-m", "u:12345:rx"]).arg(&dir));
    let mounted = env.mount(&[]);
    walk_and_read(&mounted);
    assert!(read(mounted.path("dir/big")).unwrap() == content("dir/big"));
    fs::read_link(mounted.path("dir/link")).unwrap();
    mounted.until_published(4);
    kill(mounted);

    fs::rename(env.source(), env.path("elsewhere")).unwrap();
    warned(&env.try_mount(env.source(), &[]));
    let mounted = env.mounted_now();
    let listed = quietly(Command::new("ls").arg("-lR").arg(&mounted.place));
    assert!(listed.contains("unread"), "{listed}");
    let (from, original) = (mounted.path("dir"), env.path("elsewhere/dir"));
    let copies = ["cp", "tar", "rsync"].map(|name| env.path(name));
    quietly(Command::new("cp").arg("-a").args([&from, &copies[0]]));
    fs::create_dir(&copies[1]).unwrap();
    let archive = env.path("archive.tar");
    let flags = ["--xattrs", "--xattrs-include=*", "--acls"];
    quietly(Command::new("tar").args(flags).arg("-C").arg(&from).arg("-cf").arg(&archive).arg("."));
    quietly(Command::new("tar").args(flags).arg("-C").arg(&copies[1]).arg("-xf").arg(&archive));
    let inside = [from.join(""), copies[2].join("")];
    quietly(Command::new("rsync").arg("-aAX").args(inside));
    for copy in &copies {
        for place in ["", "inner", "big", "deep/er/leaf"] {
            let shown = |root: &Path| {
                let at = if place.is_empty() { root.to_owned() } else { root.join(place) };
                let mut all = Command::new("getfattr");
                let both = quietly(all.args(["--absolute-names", "-d", "-m-"]).arg(&at))
                    + &quietly(Command::new("getfacl").arg("-cpn").arg(&at));
                both.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
            };
            assert_eq!(shown(copy), shown(&original), "{} {place}", copy.display());
        }
    }
    // Of what never came here nothing is pretended.
    let names = rustix::fs::listxattr(mounted.path("unread"), &mut [0u8; 1000][..]);
    assert_eq!(names, Err(rustix::io::Errno::IO));
    mounted.unmount();
}

/// Takes every connection into its queue until that is full; from then on the kernel drops what asks for one, without a word.
struct BlackHole {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    fn at(port: u16) -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, sockopt};
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        // Not for the daemon that is started next.
        let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &address).unwrap();
        listen(&socket, 0).unwrap();
        let listener = TcpListener::from(socket);
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
            queued.push(stream);
            assert!(queued.len() < 50, "the queue has no end");
        }
        Self { _listener: listener, _queued: queued }
    }
}

#[test]
fn a_server_that_swallows_every_packet_keeps_nobody_from_what_is_local() {
    let Some(env) = Env::new() else { return };
    plant(&env);
    let Some(mut nginx) = Nginx::start(&env.source(), "") else { return };
    let url = nginx.url("/");
    let mounted = env.mount_from(&url, &["--read-timeout", "3s"]);
    let numbers = walk_and_read(&mounted);
    kill(mounted);

    nginx.stop();
    let hole = BlackHole::at(nginx.port);
    let ran = env.try_mount(&url, &["--read-timeout", "3s"]);
    warned(&ran);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    let mounted = env.mounted_now();
    serves_what_it_knows(&mounted, &numbers);
    quietly(Command::new("ls").arg("-lR").arg(&mounted.place));
    drop(hole);
    nginx.start_again();
    eventually("the source is used again", || {
        (read(mounted.path("unread")).ok()? == content("unread")).then_some(())
    });
    mounted.unmount();
}
