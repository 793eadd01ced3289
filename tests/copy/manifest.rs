//! A manifest of a tree is the tree.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::{Env, ended, exists};

impl Env {
    fn manifest(&self, options: &[&str]) -> String {
        let args = [&["manifest", "source", "-o", "m.jsonl"], options].concat();
        let output = self.command(&args).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{err}");
        fs::read_to_string(self.path("m.jsonl")).unwrap()
    }

    fn copy_manifest(&self, name: &str) -> crate::Ended {
        let spec = format!("manifest:{name}");
        ended(self.command(&["copy", "--json", &spec, "copy"]).spawn().unwrap())
    }
}

fn make(env: &Env) {
    fs::create_dir_all(env.source().join("a b/deep")).unwrap();
    fs::create_dir(env.source().join("empty")).unwrap();
    env.write("a b/deep/100%.bin", &"content ".repeat(30_000));
    env.write("a b/ümlaut", "");
    env.write("run", "#!/bin/sh");
    fs::set_permissions(env.source().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../run", env.source().join("a b/link")).unwrap();
}

#[test]
fn a_copy_of_a_manifest_is_the_tree_that_it_was_made_of() {
    let env = Env::new();
    make(&env);
    let text = env.manifest(&[]);
    assert_eq!(text.lines().count(), 8 - 1, "{text}");
    assert_eq!(text.matches("sha256").count(), 3, "{text}");
    let ended = env.copy_manifest("m.jsonl").expect(0);
    assert_eq!(ended.count("/files/failed"), 0);
    for name in ["a b/deep/100%.bin", "a b/ümlaut", "run"] {
        let (from, to) = (env.source().join(name), env.dir().join(name));
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{name}");
        let (from, to) = (fs::metadata(from).unwrap(), fs::metadata(to).unwrap());
        assert_eq!((from.mode(), from.mtime()), (to.mode(), to.mtime()), "{name}");
    }
    assert_eq!(fs::read_link(env.dir().join("a b/link")).unwrap().to_str(), Some("../run"));
    assert!(env.dir().join("empty").is_dir());
    let receipt = fs::read_to_string(env.dir().join(".lazycopy/receipt.json")).unwrap();
    assert_eq!(receipt.matches("\"sha256\"").count(), 3, "proven by the manifest: {receipt}");
}

#[test]
fn a_relative_manifest_goes_wherever_its_tree_goes() {
    let env = Env::new();
    make(&env);
    let text = env.manifest(&["--relative", "--checksum", "blake3"]);
    assert!(!text.contains("file:"), "{text}");
    fs::rename(env.source(), env.path("moved")).unwrap();
    fs::rename(env.path("m.jsonl"), env.path("moved/m.jsonl")).unwrap();
    env.copy_manifest("moved/m.jsonl").expect(0);
    let (from, to) = (env.path("moved/a b/deep/100%.bin"), env.dir().join("a b/deep/100%.bin"));
    assert!(fs::read(from).unwrap() == fs::read(to).unwrap());
}

#[test]
fn bytes_that_are_not_those_of_the_manifest_are_never_published() {
    let env = Env::new();
    make(&env);
    env.manifest(&[]);
    env.write("run", "#!/bin/zh");
    let ended = env.copy_manifest("m.jsonl").expect(1);
    assert_eq!(ended.count("/files/failed"), 1);
    assert!(!exists(&env.dir().join("run")));
    assert!(exists(&env.dir().join("a b/deep/100%.bin")));
}

#[test]
fn a_manifest_that_makes_no_sense_is_refused_with_its_line() {
    let env = Env::new();
    fs::write(env.path("m.jsonl"), "{\"path\":\"a\"}\n{\"path\":\"../b\"}\n").unwrap();
    let output = env.command(&["copy", "manifest:m.jsonl", "copy"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("m.jsonl") && err.contains("line 2: "), "{err}");
    assert!(!exists(&env.dir().join(".lazycopy")), "nothing was begun");
}
