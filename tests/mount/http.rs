//! A remote tree: what it costs, and what a server does wrong.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::nginx::Nginx;
use crate::harness::{BLOCK, Env, Random, errno, name, names, patterned, read, read_at, tool};
use crate::origin::{Behaviour, Origin, Page, encoded};
use crate::tree::{Compare, assert_same, odd_sizes, walk};

fn page(size: u64) -> Page {
    Page::new(size, |at, len| patterned(1, at, len))
}

fn content(size: u64) -> Vec<u8> {
    patterned(1, 0, usize::try_from(size).unwrap())
}

#[test]
fn names_cost_no_head_and_a_long_listing_asks_for_many_at_once() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for number in 0..200 {
        let slow = Page::of(vec![b'x'; number]).latency(Duration::from_millis(30));
        origin.put(&format!("/dir/file-{number:03}"), slow);
    }
    let mounted = env.mount_from(origin.url(), &[]);
    assert_eq!(names(&mounted.place), ["dir"]);
    // What the start asked for is not the listing's.
    let before = origin.heads();
    assert_eq!(names(&mounted.path("dir")).len(), 200);
    assert_eq!(origin.heads(), before, "{:?}", origin.asked());
    let listed = String::from_utf8(tool(Command::new("ls").arg("-l").arg(mounted.path("dir"))));
    let listed = listed.unwrap();
    assert!(listed.lines().any(|line| line.contains(" 77 ") && line.ends_with("file-077")));
    assert_eq!(origin.heads() - before, 200, "each is asked once");
    let at_once = origin.most_heads_at_once();
    println!("{at_once} HEAD at once");
    assert!((2..=33).contains(&at_once), "{at_once}");
    mounted.unmount();
}

#[test]
fn a_random_read_fetches_its_own_blocks_only() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/big", page(4 << 30));
    let mounted = env.mount_from(origin.url(), &[]);
    let file = File::open(mounted.path("big")).unwrap();
    let mut random = Random::new();
    for read in 1..=10u64 {
        let offset = random.below((4 << 30) - 4096);
        assert!(read_at(&file, offset, 100).unwrap() == patterned(1, offset, 100), "{offset}");
        // The kernel's own readahead may make it two blocks.
        assert!(origin.body_bytes() <= read * 2 * BLOCK, "{} after {read}", origin.body_bytes());
    }
    drop(file);
    mounted.unmount();
}

// L18
#[test]
fn a_server_that_ignores_ranges_is_read_once_and_right() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let size = 20 * BLOCK + 3;
    origin.put("/file", page(size).behaves(Behaviour::WithoutRanges));
    let mounted = env.mount_from(origin.url(), &[]);
    let path = mounted.path("file");
    std::thread::scope(|scope| {
        for reader in 0..16u64 {
            let path = &path;
            scope.spawn(move || {
                let offset = (reader * 7919 * 131) % (size - 5000);
                let found = read_at(&File::open(path).unwrap(), offset, 5000).unwrap();
                assert!(found == patterned(1, offset, 5000), "{offset}");
            });
        }
    });
    assert!(read(&path).unwrap() == content(size));
    assert_eq!(origin.count("GET", "/file"), 1, "{:?}", origin.asked());
    mounted.unmount();
}

#[test]
fn a_wrong_content_range_is_an_error_and_never_wrong_bytes() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", page(10 * BLOCK).behaves(Behaviour::WrongRange));
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "5s"]);
    let file = File::open(mounted.path("file")).unwrap();
    assert_eq!(errno(read_at(&file, 5 * BLOCK, 4096)), libc::EIO);
    drop(file);
    mounted.unmount();
}

// L1, L4: a short answer was the end of the file; a cut connection began from the start.
#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let size = 16 * BLOCK;
    origin.put("/file", page(size).behaves(Behaviour::CutAfter { bytes: 100_001, times: 2 }));
    let mounted = env.mount_from(origin.url(), &[]);
    assert!(read(mounted.path("file")).unwrap() == content(size));
    mounted.until_published(1);
    let again = origin.body_bytes() - size;
    assert!(again <= 2 * BLOCK, "{again} bytes sent twice");
    assert_eq!(mounted.status()["bytes"]["fetched"], size);
    mounted.unmount();
}

// O5: "up to 3 retries" was 3 attempts.
#[test]
fn three_attempts_and_no_more() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/twice", page(1000).behaves(Behaviour::Status { code: 503, times: 2 }));
    origin.put("/always", page(1000).behaves(Behaviour::Status { code: 500, times: 1000 }));
    let mounted = env.mount_from(origin.url(), &[]);
    assert!(read(mounted.path("twice")).unwrap() == content(1000));
    assert_eq!(origin.count("GET", "/twice"), 3);
    assert_eq!(errno(read(mounted.path("always"))), libc::EIO);
    assert_eq!(origin.count("GET", "/always"), 3);
    let status = mounted.status();
    assert_eq!(status["chunks"]["retried"], 4, "{status:#}");
    assert_eq!(status["chunks"]["failed"], 1, "{status:#}");
    let failed = serde_json::json!([{"path": "", "kind": "unreachable", "files": 1}]);
    assert_eq!(status["failed"], failed, "{status:#}");
    mounted.unmount();
}

#[test]
fn what_is_listed_and_gone_is_enoent_or_estale_and_harms_nobody() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/never", page(1000).behaves(Behaviour::Gone));
    origin.put("/soon", page(10 * BLOCK));
    origin.put("/stays", page(1000));
    let mounted = env.mount_from(origin.url(), &[]);
    assert_eq!(names(&mounted.place), ["never", "soon", "stays"]);
    assert_eq!(errno(fs::metadata(mounted.path("never"))), libc::ENOENT);
    let file = File::open(mounted.path("soon")).unwrap();
    assert!(read_at(&file, 0, 100).unwrap() == patterned(1, 0, 100));
    origin.behave("/soon", Behaviour::Gone);
    assert_eq!(errno(read_at(&file, 8 * BLOCK, 100)), libc::ESTALE);
    assert_eq!(origin.count("GET", "/soon"), 2, "not asked again");
    assert!(read(mounted.path("stays")).unwrap() == content(1000));
    drop(file);
    mounted.unmount();
}

#[test]
fn a_remote_tree_is_copied_whole() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let odd = ["a b", "100%", "#1", "ü—名", "q?x=1&y", "a+b", "semi;colon", "back\\slash", "'\"<>"];
    for (number, name) in odd.iter().enumerate() {
        origin.put(&format!("/{name}/{name}"), page(number as u64 * 1000));
    }
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["published"], odd.len(), "{status:#}");
    for (number, name) in odd.iter().enumerate() {
        let expected = content(number as u64 * 1000);
        assert!(read(mounted.path(name).join(name)).unwrap() == expected, "{name}");
        assert!(read(env.destination().join(name).join(name)).unwrap() == expected, "{name}");
    }
    mounted.unmount();
}

#[test]
fn names_that_lead_out_are_refused_and_the_others_work() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/good", page(10));
    let long = "n".repeat(300);
    let evil = [
        "../evil",
        "..",
        "%2e%2e",
        "%2e%2e/",
        "%2e%2e%2fevil",
        "a%2Fb",
        "nul%00byte",
        "/etc/passwd",
        "//evil/x",
        ".",
        "%2e",
        &long,
        "good",
        "../../evil/",
    ];
    origin.put_index("/", evil);
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    assert_eq!(names(&mounted.place), ["good"]);
    mounted.until("the end", |status| status["phase"] == "complete" || status["phase"] == "failed");
    let status = mounted.status();
    assert!(status["files"]["warnings"].as_u64() > Some(0), "{status:#}");
    mounted.unmount();
    assert!(!env.path("evil").exists() && !env.path("passwd").exists());
    let found = names(&env.destination());
    assert!(
        found.iter().all(|name| [".lazycopy", "good"].iter().any(|known| name == known)),
        "{found:?}"
    );
    assert!(read(env.destination().join("good")).unwrap() == content(10));
}

#[test]
fn a_page_of_a_hundred_thousand_entries_is_listed_whole() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/big/file-077777", page(10));
    origin.put_index("/big/", (0..100_000).map(|number| format!("file-{number:06}")));
    let mounted = env.mount_from(origin.url(), &[]);
    let found = names(&mounted.path("big"));
    assert_eq!(found.len(), 100_000);
    assert_eq!(found[77_777], "file-077777");
    assert!(read(mounted.path("big/file-077777")).unwrap() == content(10));
    mounted.unmount();
}

#[test]
fn an_impossible_size_fails_alone() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/huge", page(1 << 63));
    origin.put("/large", page((1 << 63) - 1));
    origin.put("/good", page(10));
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "5s"]);
    assert_eq!(names(&mounted.place).len(), 3);
    assert!(fs::metadata(mounted.path("huge")).is_err());
    assert!(read(mounted.path("good")).unwrap() == content(10));
    // No file system here holds it; a clear error, not a crash.
    if let Ok(file) = File::open(mounted.path("large")) {
        let found = read_at(&file, 5, 100);
        assert!(found.as_ref().is_err() || *found.as_ref().unwrap() == patterned(1, 5, 100));
    }
    assert!(mounted.is_alive());
    mounted.unmount();
}

#[test]
fn one_remote_file_appears_under_its_name() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/dir/film one.mov", page(3 * BLOCK));
    let url = format!("{}{}", origin.url(), encoded("dir/film one.mov"));
    let mounted = env.mount_from(url, &["--hydrate"]);
    mounted.until_complete();
    assert_eq!(names(&mounted.place), ["film one.mov"]);
    assert!(read(mounted.path("film one.mov")).unwrap() == content(3 * BLOCK));
    mounted.unmount();
    assert!(read(env.destination().join("film one.mov")).unwrap() == content(3 * BLOCK));
}

fn plant_plain(root: &Path) {
    let mut random = Random::new();
    for size in odd_sizes() {
        let bytes = random.bytes(usize::try_from(size).unwrap());
        fs::write(root.join(format!("size-{size}")), bytes).unwrap();
    }
    fs::create_dir_all(root.join("deep/er/dir")).unwrap();
    for bytes in [&b"a b#%?c"[..], "ü—名".as_bytes(), b"not \xff UTF-8", b"plus+&;='"] {
        fs::write(root.join("deep/er/dir").join(name(bytes)), random.bytes(5000)).unwrap();
    }
    fs::write(root.join("deep").join("n".repeat(255)), "long").unwrap();
}

#[test]
fn a_tree_behind_nginx_is_byte_exact_cold_and_copied() {
    let Some(env) = Env::new() else { return };
    plant_plain(&env.source());
    let Some(nginx) = Nginx::start(&env.source(), "") else { return };
    let expected = walk(&env.source(), Compare::Content);
    let mounted = env.mount_from(nginx.url("/"), &[]);
    assert_same(&expected, &walk(&mounted.place, Compare::Content), "cold");
    mounted.unmount();
    fs::rename(env.destination(), env.path("first")).unwrap();
    let mounted = env.mount_from(nginx.url("/"), &["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    assert_same(&expected, &walk(&env.destination(), Compare::Content), "DIR");
    for size in odd_sizes() {
        let time = |root: &Path| {
            let stat = fs::metadata(root.join(format!("size-{size}"))).unwrap();
            std::os::unix::fs::MetadataExt::mtime(&stat)
        };
        assert_eq!(time(&env.source()), time(&env.destination()), "Last-Modified of {size}");
    }
    mounted.unmount();
}

// Named without its slash, which is how a lookup names everything.
#[test]
fn a_directory_that_nobody_listed_is_found_and_hydrated() {
    let Some(env) = Env::new() else { return };
    plant_plain(&env.source());
    let Some(nginx) = Nginx::start(&env.source(), "") else { return };
    // Those that do not redirect to the slash.
    let plain = "if (-d $request_filename) { rewrite [^/]$ /nothing break; }";
    let Some(silent) = Nginx::start(&env.source(), plain) else { return };
    for url in [nginx.url("/"), silent.url("/")] {
        let mounted = env.mount_from(url, &[]);
        let directory = mounted.path("deep/er/dir");
        let done = env.run(["hydrate".as_ref(), directory.as_os_str()]);
        assert!(done.code == Some(0) && done.out.contains("hydrating"), "{done:?}");
        mounted.until_published(4);
        assert_eq!(errno(fs::metadata(mounted.path("deep/no"))), libc::ENOENT);
        assert!(fs::metadata(mounted.path("deep/er")).unwrap().is_dir());
        mounted.unmount();
        fs::remove_dir_all(env.destination()).unwrap();
    }
}

#[test]
fn nginx_without_ranges_is_read_right() {
    let Some(env) = Env::new() else { return };
    plant_plain(&env.source());
    let Some(nginx) = Nginx::start(&env.source(), "max_ranges 0;") else { return };
    let expected = walk(&env.source(), Compare::Content);
    let mounted = env.mount_from(nginx.url("/"), &["--hydrate"]);
    assert_same(&expected, &walk(&mounted.place, Compare::Content), "mount");
    mounted.until_complete();
    assert_same(&expected, &walk(&env.destination(), Compare::Content), "DIR");
    mounted.unmount();
}
