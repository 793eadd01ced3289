//! A finished copy proven again: rot is found where it is, and mended with nothing but the bad blocks.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::nginx::Nginx;
use crate::harness::{BLOCK, Env, Ran, inode, name, patterned, read, read_at, tool};
use crate::origin::{Behaviour, Origin, Page};

const MIB: u64 = 1 << 20;
/// First byte and one past the last.
type Range = (u64, u64);

const FILES: [(&str, u64); 5] = [
    ("one", 1000),
    ("edge", 2 * BLOCK),
    ("odd", 40 * BLOCK + 77),
    // More than one segment of 16 MiB.
    ("d/large", 20 * MIB + 5),
    ("empty", 0),
];
/// First and last bytes of files, blocks and segments.
const FLIPS: [(&str, u64); 8] = [
    ("one", 999),
    ("edge", 0),
    ("edge", BLOCK - 1),
    ("edge", BLOCK),
    ("odd", 40 * BLOCK + 76),
    ("d/large", 16 * MIB - 1),
    ("d/large", 16 * MIB),
    ("d/large", 7 * BLOCK + 5),
];
/// What these are in blocks, and what mending them takes.
const ROTTEN: [(&str, &[(u64, u64)]); 4] = [
    ("d/large", &[(7 * BLOCK, 8 * BLOCK), (127 * BLOCK, 129 * BLOCK)]),
    ("edge", &[(0, 2 * BLOCK)]),
    ("odd", &[(40 * BLOCK, 40 * BLOCK + 77)]),
    ("one", &[(0, 1000)]),
];
const ROTTEN_BYTES: u64 = 5 * BLOCK + 77 + 1000;

fn content(number: usize) -> Vec<u8> {
    let version = u8::try_from(number + 1).unwrap();
    patterned(version, 0, usize::try_from(FILES[number].1).unwrap())
}

fn put_all(env: &Env) {
    for (number, (name, _)) in FILES.iter().enumerate() {
        env.put(name, content(number));
    }
}

/// Changes something about a file and leaves its time of modification as it was: as rot does.
fn rot(path: &Path, change: impl FnOnce(&File)) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    change(&file);
    file.set_modified(modified).unwrap();
}

fn flip(path: &Path, offset: u64) {
    rot(path, |file| {
        let byte = read_at(file, offset, 1).unwrap()[0];
        file.write_at(&[byte ^ 1], offset).unwrap();
    });
}

fn verify(env: &Env, options: &[&str]) -> Ran {
    let destination = env.destination();
    let fixed = [OsStr::new("verify"), destination.as_os_str()];
    env.run(fixed.into_iter().chain(options.iter().map(OsStr::new)))
}

/// The lines of `verify --json`, progress left out.
fn lines(ran: &Ran) -> Vec<Value> {
    let lines = ran.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] != "progress").collect()
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap()
}

/// path -> (what, ranges)
fn differing(ran: &Ran) -> BTreeMap<String, (String, Vec<(u64, u64)>)> {
    let lines = lines(ran);
    let differing = lines.iter().filter(|line| line["event"] == "differs");
    differing
        .map(|line| {
            let ranges = serde_json::from_value(line["ranges"].clone()).unwrap();
            (text(line, "path").to_owned(), (text(line, "what").to_owned(), ranges))
        })
        .collect()
}

fn summary(ran: &Ran) -> Value {
    lines(ran).pop().unwrap_or_else(|| panic!("{ran:?}"))
}

/// Copies `source` whole, and leaves it mounted if asked.
fn copy<'a>(
    env: &'a Env,
    source: impl AsRef<OsStr>,
    is_live: bool,
) -> Option<crate::harness::Mounted<'a>> {
    let mounted = env.mount_from(source, &["--hydrate"]);
    mounted.until_complete();
    if is_live {
        return Some(mounted);
    }
    mounted.unmount();
    None
}

fn expect_rot_is_mended(env: &Env, source: impl AsRef<OsStr>, is_live: bool) {
    let mounted = copy(env, source, is_live);
    let dir = env.destination();
    assert_eq!(verify(env, &[]).code, Some(0));
    fs::set_permissions(dir.join("odd"), PermissionsExt::from_mode(0o640)).unwrap();
    let before: Vec<_> = FILES.map(|(name, _)| fs::metadata(dir.join(name)).unwrap()).into();
    for (name, offset) in FLIPS {
        flip(&dir.join(name), offset);
    }
    let found = verify(env, &["--json"]);
    assert_eq!(found.code, Some(4), "{found:?}");
    let expected =
        ROTTEN.map(|(name, ranges)| (name.to_owned(), ("bytes".to_owned(), ranges.to_vec())));
    assert_eq!(differing(&found), expected.into());

    let mended = verify(env, &["--repair", "--json"]);
    assert_eq!(mended.code, Some(0), "{mended:?}");
    let counts = summary(&mended);
    assert_eq!((&counts["differing"], &counts["mended"]), (&4.into(), &4.into()), "{counts}");
    assert_eq!(counts["fetched"], ROTTEN_BYTES);
    for (number, (name, _)) in FILES.iter().enumerate() {
        let path = dir.join(name);
        assert!(read(&path).unwrap() == content(number), "{name}");
        let (now, then) = (fs::metadata(&path).unwrap(), &before[number]);
        let is_rotten = ROTTEN.iter().any(|(rotten, _)| rotten == name);
        assert_eq!(now.ino() != then.ino(), is_rotten, "{name}: whether the inode is new");
        assert_eq!(
            (now.mode(), now.mtime_nsec(), now.mtime()),
            (then.mode(), then.mtime_nsec(), then.mtime())
        );
        if let Some(mounted) = &mounted {
            assert!(read(mounted.path(name)).unwrap() == content(number), "{name} in the mount");
        }
    }
    assert_eq!(verify(env, &[]).code, Some(0));
    if let Some(mounted) = mounted {
        mounted.unmount();
    }
    assert_eq!(verify(env, &[]).code, Some(0));
    assert!(
        dir.join(".lazycopy/receipt.json").exists(),
        "what was mended is what the receipt says"
    );
}

#[test]
fn rot_is_found_where_it_is_and_mended_from_a_directory() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    expect_rot_is_mended(&env, env.source(), false);
}

#[test]
fn rot_is_found_and_mended_by_the_daemon_of_a_mounted_copy() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    expect_rot_is_mended(&env, env.source(), true);
}

#[test]
fn mending_from_nginx_fetches_the_bad_blocks_alone() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    let Some(nginx) = Nginx::start(&env.source(), "location / { autoindex on; }") else { return };
    expect_rot_is_mended(&env, nginx.url("/"), false);
}

#[test]
fn mending_asks_a_server_for_no_other_byte() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    for (number, (name, _)) in FILES.iter().enumerate() {
        origin.put(&format!("/{name}"), Page::of(content(number)));
    }
    copy(&env, origin.url(), false);
    for (name, offset) in FLIPS {
        flip(&env.destination().join(name), offset);
    }
    let before = origin.body_bytes();
    assert_eq!(verify(&env, &["--repair"]).code, Some(0));
    // The index of a directory is no file's byte; nothing lists one here.
    assert_eq!(origin.body_bytes() - before, ROTTEN_BYTES);
}

#[test]
fn what_somebody_wrote_is_told_and_only_replaced_on_demand() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    env.put("kept", "as it was");
    env.put("gone", patterned(9, 0, 300_000));
    env.put("other", "a file");
    copy(&env, env.source(), false);
    let at = |name: &str| env.destination().join(name);
    rot(&at("odd"), |file| file.set_len(5 * BLOCK).unwrap());
    rot(&at("edge"), |file| file.set_len(2 * BLOCK + 10).unwrap());
    rot(&at("empty"), |file| file.set_len(1).unwrap());
    fs::write(at("kept"), "as I want").unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_file(at("other")).unwrap();
    std::os::unix::fs::symlink("kept", at("other")).unwrap();
    fs::write(at("mine"), "no business of lazycopy's").unwrap();

    let found = verify(&env, &["--json"]);
    let size = FILES[2].1;
    let expected: [(&str, &str, &[Range]); 6] = [
        ("edge", "changed", &[(2 * BLOCK, 2 * BLOCK + 10)]),
        ("empty", "changed", &[(0, 1)]),
        ("gone", "missing", &[]),
        ("kept", "changed", &[(0, 9)]),
        ("odd", "changed", &[(5 * BLOCK, size)]),
        ("other", "other-kind", &[]),
    ];
    let expected =
        expected.map(|(name, what, at)| (name.to_owned(), (what.to_owned(), at.to_vec())));
    assert_eq!(differing(&found), expected.into());
    assert_eq!(summary(&found)["unknown"], 1);

    let mended = verify(&env, &["--repair", "--json"]);
    assert_eq!(mended.code, Some(4), "{mended:?}");
    assert_eq!(summary(&mended)["fetched"], size - 5 * BLOCK + 300_000);
    assert_eq!(fs::read(at("kept")).unwrap(), b"as I want");
    assert_eq!(fs::read_link(at("other")).unwrap(), Path::new("kept"));
    assert!(read(at("odd")).unwrap() == content(2) && read(at("edge")).unwrap() == content(1));
    assert!(read(at("gone")).unwrap() == patterned(9, 0, 300_000));
    assert_eq!(fs::metadata(at("empty")).unwrap().len(), 0);

    fs::remove_file(at("other")).unwrap();
    let mended = verify(&env, &["--repair-changed", "--json"]);
    assert_eq!(mended.code, Some(0), "{mended:?}");
    assert_eq!(fs::read(at("kept")).unwrap(), b"as it was");
    assert_eq!(fs::read(at("other")).unwrap(), b"a file");
    assert_eq!(fs::read(at("mine")).unwrap(), b"no business of lazycopy's");
}

#[test]
fn holes_stay_holes_and_links_stay_links_when_they_are_mended() {
    let Some(env) = Env::new() else { return };
    let sparse = env.put("sparse", "");
    let file = OpenOptions::new().write(true).open(&sparse).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_at(&patterned(1, 0, 300_000), 32 * MIB).unwrap();
    drop(file);
    env.put("first", patterned(2, 0, 300_000));
    fs::hard_link(env.source().join("first"), env.source().join("second")).unwrap();
    copy(&env, env.source(), false);
    let at = |name: &str| env.destination().join(name);
    flip(&at("sparse"), 32 * MIB);
    flip(&at("sparse"), 50 * MIB);
    flip(&at("second"), 0);
    let found = differing(&verify(&env, &["--json"]));
    let ranges = vec![(32 * MIB, 32 * MIB + BLOCK), (50 * MIB, 50 * MIB + BLOCK)];
    assert_eq!(found["sparse"].1, ranges, "{found:?}");
    assert_eq!(verify(&env, &["--repair"]).code, Some(0));
    assert_eq!(inode(&at("first")), inode(&at("second")));
    assert!(read(at("second")).unwrap() == patterned(2, 0, 300_000));
    assert!(read(at("sparse")).unwrap() == read(&sparse).unwrap());
    let units = fs::metadata(at("sparse")).unwrap().blocks();
    assert!(units < 2 * MIB / 512, "{units} units for 300 000 bytes");
    assert_eq!(verify(&env, &[]).code, Some(0));
}

#[test]
fn a_part_loses_exactly_its_bad_blocks() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let page = Page::new(24 * MIB, |offset, len| patterned(1, offset, len));
    origin.put("/big", page.behaves(Behaviour::StallAt(12 * MIB)));
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    mounted
        .until("half of it is here", |status| status["bytes"]["local"].as_u64() > Some(11 * MIB));
    mounted.unmount();
    let parts = env.destination().join(".lazycopy/parts");
    let part = fs::read_dir(parts).unwrap().next().unwrap().unwrap().path();
    flip(&part, 3 * BLOCK);
    let found = verify(&env, &["--json"]);
    assert_eq!(found.code, Some(4), "{found:?}");
    let expected = ("part".to_owned(), vec![(3 * BLOCK, 4 * BLOCK)]);
    assert_eq!(differing(&found), [("big".to_owned(), expected)].into());
    let recorded = summary(&found)["part_blocks"].as_u64().unwrap();
    assert!(recorded > 50, "{recorded}");
    assert_eq!(verify(&env, &["--repair"]).code, Some(0));
    let again = verify(&env, &["--json"]);
    assert_eq!((again.code, &summary(&again)["part_blocks"]), (Some(0), &(recorded - 1).into()));

    origin.behave("/big", Behaviour::Right);
    let before = origin.body_bytes();
    copy(&env, origin.url(), false);
    let fetched = origin.body_bytes() - before;
    assert!(fetched <= 24 * MIB - (recorded - 1) * BLOCK + BLOCK, "{fetched} fetched");
    assert!(read(env.destination().join("big")).unwrap() == patterned(1, 0, 24 << 20));
}

// The kernel's page cache belongs to the FUSE inode, which stays the same: the bytes are those of the same version.
#[test]
fn who_has_it_open_while_it_is_mended_reads_the_right_bytes_afterwards() {
    let Some(env) = Env::new() else { return };
    env.put("odd", content(2));
    let mounted = env.mount(&[]);
    let early = File::open(mounted.path("odd")).unwrap();
    assert!(read(mounted.path("odd")).unwrap() == content(2));
    mounted.until_published(1);
    let before = inode(&mounted.path("odd"));
    flip(&env.destination().join("odd"), 9 * BLOCK);
    // Out of the kernel's cache, and read again from what rotted.
    rustix::fs::fadvise(&early, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let rotten = read_at(&early, 9 * BLOCK, 100).unwrap();
    assert!(rotten != content(2)[9 * 128 * 1024..][..100], "the test reads something else");
    let mended = verify(&env, &["--repair"]);
    assert_eq!(mended.code, Some(0), "{mended:?}");
    crate::harness::eventually("the right bytes", || {
        let bytes = read_at(&early, 9 * BLOCK, 100).unwrap();
        (bytes == content(2)[9 * 128 * 1024..][..100]).then_some(())
    });
    assert!(read(mounted.path("odd")).unwrap() == content(2));
    assert_eq!(inode(&mounted.path("odd")), before, "one number, one version");
    drop(early);
    mounted.unmount();
}

#[test]
fn a_source_that_has_another_version_or_is_away_mends_nothing_and_harms_nothing() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    copy(&env, env.source(), false);
    for name in ["one", "edge"] {
        flip(&env.destination().join(name), 5);
    }
    let rotten = read(env.destination().join("one")).unwrap();
    env.put("one", patterned(7, 0, 1000));
    let mended = verify(&env, &["--repair", "--json"]);
    assert_eq!((mended.code, &summary(&mended)["mended"]), (Some(4), &1.into()), "{mended:?}");
    assert!(mended.out.contains("the source has another version now"), "{}", mended.out);
    assert_eq!(read(env.destination().join("one")).unwrap(), rotten);
    fs::rename(env.source(), env.path("away")).unwrap();
    assert_eq!(verify(&env, &["--repair"]).code, Some(4));
    assert_eq!(read(env.destination().join("one")).unwrap(), rotten);
    // The right bytes under another name of the source; its file has another time, so it is another version.
    env.put("one", content(0));
    assert_eq!(verify(&env, &["--repair"]).code, Some(4));
}

#[test]
fn source_and_copy_are_compared_byte_by_byte() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    copy(&env, env.source(), false);
    let source = env.source();
    let compare = || verify(&env, &["--source", source.to_str().unwrap(), "--json"]);
    assert_eq!(compare().code, Some(0));
    flip(&env.source().join("d/large"), 3 * BLOCK);
    env.put("new", "only there");
    env.put("one", "shorter");
    fs::write(env.destination().join("mine"), "only here").unwrap();
    let compared = compare();
    assert_eq!(compared.code, Some(4));
    let what = differing(&compared);
    assert_eq!(what["d/large"], ("source-bytes".to_owned(), vec![(3 * BLOCK, 4 * BLOCK)]));
    assert_eq!(what["new"].0, "only-at-source");
    assert_eq!(what["mine"].0, "only-here");
    assert_eq!(what["one"].0, "size");
    assert_eq!(what.len(), 4);
}

#[test]
fn checksums_are_taken_by_the_tools_whose_form_they_have() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    for odd in
        [b"new\nline".as_slice(), b"back\\slash", b"carriage\rreturn", b"\xff\xfe", b" space "]
    {
        env.put(name(odd), odd);
    }
    copy(&env, env.source(), false);
    let list = |format: &str| {
        let destination = env.destination();
        let args: [&OsStr; 4] =
            ["verify".as_ref(), destination.as_os_str(), "--export".as_ref(), format.as_ref()];
        let output = env.command(args).output().unwrap();
        (output.status.code(), output.stdout)
    };
    let (code, sums) = list("sha256sum");
    assert_eq!(code, Some(0));
    fs::write(env.path("sums"), &sums).unwrap();
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--strict", "../sums"]).current_dir(env.destination());
    let checked = tool(&mut check);
    assert_eq!(
        checked.split(|byte| *byte == b'\n').filter(|line| line.ends_with(b": OK")).count(),
        FILES.len() + 5
    );
    // One name is not UTF-8, which b3sum cannot check: it is left out, and said.
    let (code, sums) = list("b3sum");
    assert_eq!(code, Some(1));
    let lines: Vec<&[u8]> =
        sums.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), FILES.len() + 4);
    for (number, (name, _)) in FILES.iter().enumerate() {
        let line = format!("{}  {name}", blake3::hash(&content(number)).to_hex());
        assert!(lines.contains(&line.as_bytes()), "{line}");
    }
    let escaped = format!("\\{}  new\\nline", blake3::hash(b"new\nline").to_hex());
    assert!(lines.contains(&escaped.as_bytes()));
}

fn receipt(env: &Env) -> Value {
    let text = fs::read(env.destination().join(".lazycopy/receipt.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_complete_copy_has_a_receipt_and_an_incomplete_one_has_none() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    env.put(name(b"\xff"), "x");
    std::os::unix::fs::symlink("one", env.source().join("link")).unwrap();
    fs::set_permissions(env.source().join("one"), PermissionsExt::from_mode(0o4755)).unwrap();
    copy(&env, env.source(), false);
    let receipt_now = receipt(&env);
    assert_eq!(receipt_now["schema"], 1);
    assert_eq!(receipt_now["source"], env.source().to_str().unwrap());
    assert_eq!(receipt_now["tool"], format!("lazycopy {}", env!("CARGO_PKG_VERSION")));
    assert!(text(&receipt_now, "statement").contains("not prove it against an attacker"));
    for time in ["started_at", "ended_at"] {
        assert!(text(&receipt_now, time).ends_with('Z'));
    }
    assert_eq!(text(&receipt_now, "job").len(), 16);
    let entries = receipt_now["entries"].as_array().unwrap();
    let entry = |path: &str| entries.iter().find(|entry| entry["path"] == path).unwrap();
    let one = entry("one");
    let stat = fs::metadata(env.destination().join("one")).unwrap();
    let mtime = format!("{}.{:09}", stat.mtime(), stat.mtime_nsec());
    assert_eq!(
        (&one["kind"], &one["size"], &one["mode"]),
        (&"file".into(), &1000.into(), &"0755".into())
    );
    assert_eq!(
        (&one["mtime"], &one["fingerprint"]["mtime"]),
        (&mtime.clone().into(), &mtime.into())
    );
    assert_eq!(one["fingerprint"]["size"], 1000);
    assert_eq!(text(one, "digest"), blake3::hash(&content(0)).to_hex().as_str());
    assert_eq!((&one["proof"], &one["source_checksum"]), (&"transfer".into(), &Value::Null));
    assert_eq!(one["warnings"], serde_json::json!(["privileged"]));
    assert_eq!(entry("\\xff")["path_b64"], "/w==");
    assert_eq!(
        (&entry("link")["kind"], &entry("d")["kind"]),
        (&"symlink".into(), &"directory".into())
    );
    let totals = &receipt_now["totals"];
    let proof = serde_json::json!({"source-checksum": 0, "transfer": 6, "adopted-unverified": 0});
    assert_eq!((&totals["files"], &totals["proof"]), (&6.into(), &proof));
    assert_eq!(totals["warnings"], serde_json::json!({"privileged": 1}));

    // The same again; what was lost is still known. Then a new version comes.
    let mounted = env.mount(&["--hydrate", "--refresh", "100ms"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["warnings"], 1);
    let said = env.run([OsStr::new("status"), mounted.place.as_os_str()]).out;
    assert!(said.contains("complete with 1 warning"), "{said}");
    assert_eq!(receipt(&env)["entries"], receipt_now["entries"]);
    env.put("odd", patterned(8, 0, 100));
    crate::harness::eventually("the new version", || {
        (read(mounted.path("odd")).ok()? == patterned(8, 0, 100)).then_some(())
    });
    // Complete again: another receipt, never the old one beside the new file.
    crate::harness::eventually("another receipt", || {
        let text = fs::read(env.destination().join(".lazycopy/receipt.json")).ok()?;
        let receipt: Value = serde_json::from_slice(&text).unwrap();
        let odd = receipt["entries"].as_array().unwrap().iter().find(|e| e["path"] == "odd");
        (odd.unwrap()["size"] == 100).then_some(())
    });
    mounted.unmount();
}

#[test]
fn in_a_cache_a_rotten_file_goes_and_comes_again() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    let mounted = env.mount(&["--keep", "64MiB"]);
    for (number, (name, _)) in FILES.iter().enumerate() {
        assert!(read(mounted.path(name)).unwrap() == content(number), "{name}");
    }
    mounted.until_published(FILES.len() as u64);
    let copy = env.destination().join("odd");
    flip(&copy, 77);
    let held = fs::File::open(mounted.path("odd")).unwrap();
    assert_ne!(verify(&env, &["--repair"]).code, Some(0), "somebody reads it");
    assert!(copy.exists());
    drop(held);
    // The kernel tells that it is closed when it likes.
    crate::harness::eventually("it is mended", || {
        (verify(&env, &["--repair"]).code == Some(0)).then_some(())
    });
    let odd = FILES.iter().position(|(name, _)| *name == "odd").unwrap();
    assert!(read(mounted.path("odd")).unwrap() == content(odd));
    mounted.until_published(FILES.len() as u64);
    assert!(fs::read(&copy).unwrap() == content(odd));
    assert_eq!(verify(&env, &[]).code, Some(0));
    mounted.unmount();
}

fn has_receipt(env: &Env) -> bool {
    env.destination().join(".lazycopy/receipt.json").exists()
}

fn has_marker(env: &Env) -> bool {
    env.destination().join("LAZYCOPY-INCOMPLETE.txt").exists()
}

#[test]
fn a_complete_copy_stays_complete_on_demand_until_there_is_news() {
    type News = fn(&Env);
    let news: [(&str, News, &str); 4] = [
        ("another version", |env| drop(env.put("odd", patterned(8, 0, 100))), "odd"),
        ("a new file that is listed", |env| drop(env.put("d/new", "new")), "d"),
        ("a new file that is looked up", |env| drop(env.put("new", "new")), "new"),
        ("a new directory", |env| fs::create_dir(env.source().join("dir")).unwrap(), ""),
    ];
    for (what, change, look_at) in news {
        let Some(env) = Env::new() else { return };
        put_all(&env);
        copy(&env, env.source(), false);
        let before = receipt(&env);
        // Nobody knows of the news of the last one before the start.
        if what == "a new directory" {
            change(&env);
        }
        let mounted = env.mount(&["--refresh", "100ms"]);
        if what != "a new directory" {
            for (number, (name, _)) in FILES.iter().enumerate() {
                assert!(read(mounted.path(name)).unwrap() == content(number), "{what}: {name}");
            }
            crate::harness::names(&mounted.path("d"));
            assert!(has_receipt(&env) && !has_marker(&env), "{what}: there is no news yet");
            assert_eq!(receipt(&env), before);
            change(&env);
        }
        crate::harness::eventually(what, || {
            let path = mounted.path(look_at);
            drop(fs::read_dir(&path).map(Iterator::count));
            drop(read(&path));
            // The receipt is looked at first: it goes last.
            let is_over = !has_receipt(&env);
            assert!(!is_over || has_marker(&env), "{what}: neither receipt nor marker");
            is_over.then_some(())
        });
        let marker = fs::read_to_string(env.destination().join("LAZYCOPY-INCOMPLETE.txt")).unwrap();
        assert!(marker.contains("lazycopy mount --hydrate --dest"), "{marker}");
        mounted.unmount();
        // Incomplete it stays, until it is copied again.
        let mounted = env.mount(&[]);
        assert!(has_marker(&env) && !has_receipt(&env), "{what}");
        mounted.unmount();
        copy(&env, env.source(), false);
        assert!(has_receipt(&env) && !has_marker(&env), "{what}");
    }
}

#[test]
fn a_marker_that_was_left_beside_a_receipt_counts() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    copy(&env, env.source(), false);
    // As a crash leaves it between the two steps.
    let marker = env.destination().join("LAZYCOPY-INCOMPLETE.txt");
    fs::write(&marker, "This copy is not complete.\n").unwrap();
    let mounted = env.mount(&[]);
    assert!(has_marker(&env) && !has_receipt(&env));
    mounted.unmount();
    // A cache lets go of what it holds: it is never complete.
    copy(&env, env.source(), false);
    let mounted = env.mount(&["--keep", "1GiB"]);
    assert!(has_marker(&env) && !has_receipt(&env));
    mounted.unmount();
}

fn forget(env: &Env, options: &[&str]) -> Ran {
    let destination = env.destination();
    let fixed = [OsStr::new("forget"), destination.as_os_str()];
    env.run(fixed.into_iter().chain(options.iter().map(OsStr::new)))
}

#[test]
fn forgetting_leaves_a_plain_directory_and_waits_for_its_daemon() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    let mounted = copy(&env, env.source(), true).unwrap();
    let held = forget(&env, &["--force"]);
    assert_eq!(held.code, Some(6), "{held:?}");
    assert!(held.err.contains(&mounted.pid().as_raw_nonzero().to_string()), "{held:?}");
    mounted.unmount();
    assert_eq!(forget(&env, &[]).code, Some(0));
    let left: Vec<OsString> = crate::harness::names(&env.destination());
    assert_eq!(left, ["d", "edge", "empty", "odd", "one"]);
    assert_eq!(forget(&env, &[]).code, Some(0), "nothing to forget is no error");
    assert_eq!(verify(&env, &[]).code, Some(2));
    assert_eq!(left, crate::harness::names(&env.destination()), "verify makes nothing");
}

#[test]
fn an_unfinished_copy_is_only_forgotten_by_force() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let page = Page::new(8 * MIB, |offset, len| patterned(1, offset, len));
    origin.put("/big", page.behaves(Behaviour::StallAt(4 * MIB)));
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    mounted
        .until("a part of it is here", |status| status["bytes"]["local"].as_u64() > Some(2 * MIB));
    mounted.unmount();
    let refused = forget(&env, &[]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("1 unfinished files with"), "{refused:?}");
    assert_eq!(verify(&env, &[]).code, Some(0), "nothing was changed");
    assert_eq!(forget(&env, &["--force"]).code, Some(0));
    assert!(crate::harness::names(&env.destination()).is_empty());
}

#[test]
fn the_state_can_lie_elsewhere_and_is_found_again() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    let state = env.path("elsewhere");
    let with_state = ["--hydrate", "--state-dir", state.to_str().unwrap()];
    let mounted = env.mount(&with_state);
    mounted.until_complete();
    mounted.unmount();
    assert!(state.join("catalog.redb").exists());
    assert!(!env.destination().join(".lazycopy/catalog.redb").exists());
    flip(&env.destination().join("odd"), 77);
    assert_eq!(verify(&env, &["--repair"]).code, Some(0), "found without the flag");
    let mounted = env.mount(&["--hydrate"]);
    assert_eq!(mounted.until_complete()["bytes"]["fetched"], 0);
    mounted.unmount();

    let away = env.path("away");
    fs::rename(&state, &away).unwrap();
    for options in [&["--hydrate"][..], &with_state[..]] {
        let refused = env.try_mount(env.source(), options);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.err.contains("elsewhere"), "{refused:?}");
    }
    fs::remove_dir(&state).ok();
    assert_eq!(verify(&env, &[]).code, Some(2));
    assert_eq!(verify(&env, &["--state-dir", away.to_str().unwrap()]).code, Some(0), "it moved");
    assert_eq!(forget(&env, &[]).code, Some(0));
    assert!(!away.exists());
}

#[test]
fn a_damaged_catalog_says_what_to_do_and_that_works() {
    let Some(env) = Env::new() else { return };
    put_all(&env);
    copy(&env, env.source(), false);
    let catalog = env.destination().join(".lazycopy/catalog.redb");
    let whole = fs::read(&catalog).unwrap();
    let middle = whole.len() / 2;
    let scratched = |from: usize| [&whole[..from], &vec![0xa5; whole.len() - from]].concat();
    let cut = [vec![0; whole.len()], whole[..middle].to_vec(), Vec::new()];
    // redb panics at pages that are no pages. From the second page on: what lies in the second half alone may be free.
    for damaged in cut.into_iter().chain([64, 512, 8192].map(scratched)) {
        fs::write(&catalog, &damaged).unwrap();
        for ran in [env.try_mount(env.source(), &["--hydrate"]), verify(&env, &[])] {
            assert_eq!(ran.code, Some(4), "{ran:?}");
            assert!(ran.err.contains("lazycopy forget --force"), "{ran:?}");
            assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
        }
    }
    // Where it may be free: either nothing is wrong, or it is said.
    fs::write(&catalog, scratched(middle)).unwrap();
    let ran = verify(&env, &[]);
    match ran.code {
        Some(0) => {}
        Some(4) => assert!(ran.err.contains("lazycopy forget --force"), "{ran:?}"),
        _ => panic!("{ran:?}"),
    }
    let before = inode(&env.destination().join("odd"));
    assert_eq!(forget(&env, &["--force"]).code, Some(0));
    copy(&env, env.source(), false);
    assert_eq!(inode(&env.destination().join("odd")), before, "kept, not copied again");
    assert_eq!(verify(&env, &[]).code, Some(0));
}
