//! The first copy: everything that a tree can hold, and everything that can get in its way.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use crate::tree::{assert_same, looks, make_mixed, set_mode, state};
use crate::{Env, ended, eventually, exists};

#[test]
fn a_copy_is_the_source_in_everything() {
    let env = Env::new();
    make_mixed(&env.source());
    let ended = env.copied(&[]);
    assert_eq!(ended.count("/files/failed"), 0);
    assert_eq!(ended.count("/files/linked"), 2);
    let (source, copy) = (env.source().join("sparse"), env.dir().join("sparse"));
    let blocks = |path| fs::metadata(path).unwrap().blocks();
    assert!(blocks(&copy) <= blocks(&source) + 16, "a hole became data");
    assert!(exists(&env.dir().join(".lazycopy/receipt.json")));
    assert!(!exists(&env.dir().join("LAZYCOPY-INCOMPLETE.txt")));
    assert_eq!(fs::read_dir(env.dir().join(".lazycopy/parts")).unwrap().count(), 0);
    // What was copied is proven again by the catalog's own hashes.
    let verified = env.command(&["verify", "copy"]).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn a_very_large_file_has_all_its_names() {
    let env = Env::new();
    for directory in ["a", "b"] {
        fs::create_dir(env.source().join(directory)).unwrap();
    }
    let large = env.source().join("a/large");
    fs::File::create(&large).unwrap().set_len((1 << 30) + 1).unwrap();
    fs::hard_link(&large, env.source().join("a/again")).unwrap();
    fs::hard_link(&large, env.source().join("b/elsewhere")).unwrap();
    let copied = || {
        let ended = env.copy(&[]).expect(0);
        let look = |path: &str| fs::metadata(env.dir().join(path)).unwrap();
        let (large, again, elsewhere) = (look("a/large"), look("a/again"), look("b/elsewhere"));
        assert_eq!(large.len(), (1 << 30) + 1);
        assert_eq!((large.ino(), large.ino()), (again.ino(), elsewhere.ino()));
        for directory in ["a", "b"] {
            let source = fs::metadata(env.source().join(directory)).unwrap();
            assert_eq!(
                look(directory).modified().unwrap(),
                source.modified().unwrap(),
                "{directory}"
            );
        }
        ended
    };
    let first = copied();
    assert_eq!((first.count("/files/copied"), first.count("/files/failed")), (1, 0));
    // And again: nothing is new, and a name that went missing comes back.
    assert_eq!(copied().count("/files/copied"), 0);
    for name in ["a/again", "a/large", "b/elsewhere"] {
        fs::remove_file(env.dir().join(name)).unwrap();
        copied();
    }
}

#[test]
fn paranoid_copies_read_back_from_the_disk() {
    let env = Env::new();
    make_mixed(&env.source());
    env.copied(&["--durability", "paranoid"]);
}

#[test]
fn a_second_copy_does_nothing() {
    let env = Env::new();
    make_mixed(&env.source());
    let first = env.copied(&[]);
    let before = looks(&env.dir());
    let receipt = fs::metadata(env.dir().join(".lazycopy/receipt.json")).unwrap().ino();
    let second = env.copied(&[]);
    assert_eq!((second.count("/files/copied"), second.count("/metadata_renewed")), (0, 0));
    assert_eq!(second.count("/files/unchanged"), first.count("/files/copied"));
    assert_eq!(second.count("/specials"), 0);
    assert!(looks(&env.dir()) == before);
    let now = fs::metadata(env.dir().join(".lazycopy/receipt.json")).unwrap().ino();
    assert_eq!(now, receipt, "nothing has changed, so the receipt stays");
}

#[test]
fn somebody_elses_directory_in_place_of_a_file_is_told_and_the_rest_is_copied() {
    let env = Env::new();
    env.write("good", "good");
    env.copied(&[]);
    env.write("new", "new");
    env.write("other", "other");
    fs::create_dir_all(env.dir().join("new/theirs")).unwrap();
    let ended = env.copy(&[]).expect(1);
    assert_eq!((ended.count("/files/failed"), ended.count("/files/copied")), (1, 1));
    assert!(exists(&env.dir().join("new/theirs")));
    assert!(exists(&env.dir().join("LAZYCOPY-INCOMPLETE.txt")));
    fs::remove_dir_all(env.dir().join("new")).unwrap();
    env.copied(&[]);
}

#[test]
fn what_may_not_be_read_is_told_and_the_rest_is_copied() {
    if !rustix::process::geteuid().is_root() {
        return; // its owner may read everything below
    }
    let env = Env::new();
    make_mixed(&env.source());
    for name in ["secret", "a/secret"] {
        env.write(name, "for root alone");
        set_mode(&env.source().join(name), 0o600);
    }
    fs::create_dir(env.source().join("locked")).unwrap();
    env.write("locked/inside", "for root alone");
    set_mode(&env.source().join("locked"), 0o700);
    set_mode(&env.source().join("empty"), 0o755);
    set_mode(&env.source().join("a/b"), 0o755);
    set_mode(&env.source().join("a/file 7"), 0o644);
    fs::copy(env!("CARGO_BIN_EXE_lazycopy"), env.path("lazycopy")).unwrap();
    set_mode(&env.path(""), 0o777);
    let mut command = std::process::Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["./lazycopy", "copy", "--json", "--delete", "source", "copy"])
        .current_dir(env.path(""))
        .env("LAZYCOPY_RUNTIME_DIR", env.path("run"))
        .env("XDG_STATE_HOME", env.path("state"))
        .env("LAZYCOPY_RESERVE", "16MiB")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let first = ended(command.spawn().unwrap()).expect(1);
    assert_eq!(first.count("/files/failed"), 3, "{}", first.stderr);
    let dir = env.dir();
    assert!(!exists(&dir.join("secret")) && !exists(&dir.join("locked/inside")));
    let (source, copy) = (looks(&env.source()), looks(&dir));
    let readable = source.iter().filter(|(path, found)| {
        found.is_file() && !path.ends_with("secret") && !path.starts_with("locked")
    });
    for (path, wanted) in readable {
        assert!(copy.get(path).is_some_and(|found| wanted.same_bytes(found)), "{path:?}");
    }
    assert!(exists(&dir.join("LAZYCOPY-INCOMPLETE.txt")));
    assert!(!exists(&dir.join(".lazycopy/receipt.json")));
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_never_published_as_it_was() {
    let env = Env::new();
    fs::write(env.source().join("shrinks"), vec![7; 6 << 20]).unwrap();
    env.write("rests", "rests");
    std::thread::sleep(std::time::Duration::from_millis(2100)); // settled, so that it is begun at once
    let child = env.start(&["--limit", "512KiB"]);
    let half_done = || {
        let mut parts = fs::read_dir(env.dir().join(".lazycopy/parts")).ok()?;
        let size = |part: std::io::Result<fs::DirEntry>| Some(part.ok()?.metadata().ok()?.size());
        parts.find_map(|part| size(part).filter(|size| (1 << 20..6 << 20).contains(size)))
    };
    eventually("the first bytes", half_done);
    let file = fs::File::options().write(true).open(env.source().join("shrinks")).unwrap();
    file.set_len(1 << 19).unwrap();
    drop(file);
    let first = ended(child);
    assert!([Some(0), Some(1)].contains(&first.exit), "{}", first.stderr);
    let found = fs::read(env.dir().join("shrinks")).unwrap_or_default();
    assert!(found.is_empty() || found == vec![7; 1 << 19], "{} bytes", found.len());
    env.copied(&[]);
}

#[test]
fn a_kill_anywhere_loses_nothing_and_the_same_command_goes_on() {
    let env = Env::new();
    make_mixed(&env.source());
    for number in 0..2000 {
        fs::write(env.source().join(format!("small {number}")), number.to_string()).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_secs(2)); // settled, so that the kills meet the copying itself
    for delay_ms in [5, 20, 40, 60, 80, 120, 200, 300] {
        let mut child = env.start(&[]);
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        if !exists(&env.dir()) {
            continue;
        }
        // Whatever has its name is whole.
        let source = looks(&env.source());
        for (path, found) in looks(&env.dir()) {
            if found.is_file() {
                assert!(
                    source.get(&path).is_some_and(|wanted| wanted.same_bytes(&found))
                        || path.starts_with("LAZYCOPY-INCOMPLETE.txt"),
                    "{}",
                    path.display()
                );
            }
        }
    }
    env.copied(&[]);
}

#[test]
fn another_source_is_refused() {
    let env = Env::new();
    make_mixed(&env.source());
    env.copied(&[]);
    fs::create_dir(env.path("other")).unwrap();
    let output = env.command(&["copy", "other", "copy"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("it holds a copy of"));
}

#[test]
fn a_directory_in_use_is_refused_with_6() {
    let (env, mut first) = crate::orders::slow();
    let second = env.command(&["copy", "source", "copy"]).output().unwrap();
    assert_eq!(second.status.code(), Some(6), "{}", String::from_utf8_lossy(&second.stderr));
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&first),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(5), "told to end");
    env.copied(&[]);
}

#[test]
fn a_dry_run_changes_nothing_at_all() {
    let env = Env::new();
    make_mixed(&env.source());
    let dry = env.copy(&["--dry-run"]).expect(0);
    assert!(!exists(&env.dir()), "nothing is made");
    let first = env.copied(&[]);
    assert_eq!(dry.count("/files/copied"), first.count("/files/copied"));
    env.write("new", "new");
    fs::remove_file(env.source().join("a/file 1")).unwrap();
    let before = state(&env.dir());
    let dry = env.copy(&["--dry-run", "--delete"]).expect(0);
    assert_eq!((dry.count("/files/copied"), dry.count("/deleted")), (1, 1));
    assert_eq!(state(&env.dir()), before);
    let done = env.copied(&["--delete"]);
    assert_eq!((done.count("/files/copied"), done.count("/deleted")), (1, 1));
}

#[test]
fn a_source_that_changes_while_it_is_copied_ends_in_one_version() {
    let env = Env::new();
    for number in 0..300 {
        env.write(&format!("f{number}"), &"a".repeat(10_000));
    }
    let child = env.start(&[]);
    for number in 0..300 {
        env.write(&format!("f{number}"), &"b".repeat(10_000));
    }
    let first = ended(child);
    assert!([Some(0), Some(1)].contains(&first.exit), "{}", first.stderr);
    for (path, found) in looks(&env.dir()) {
        if path.to_string_lossy().starts_with('f') {
            let text = fs::read_to_string(env.dir().join(&path)).unwrap();
            assert!(text == "a".repeat(10_000) || text == "b".repeat(10_000), "{path:?} {found:?}");
        }
    }
    env.copied(&[]);
    assert_same(&env.source(), &env.dir());
}
