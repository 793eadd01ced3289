//! The delta pass: only what changed travels; renames and deletions are mirrored.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::tree::{make_mixed, make_pipe, set_mode, set_xattr};
use crate::{Env, exists};

fn copied() -> Env {
    let env = Env::new();
    make_mixed(&env.source());
    env.copied(&[]);
    env
}

#[test]
fn only_new_and_changed_files_travel() {
    let env = copied();
    env.write("a/file 10", "changed");
    env.write("a/new", "new");
    fs::create_dir(env.source().join("more")).unwrap();
    env.write("more/one", "one");
    set_mode(&env.source().join("a/file 11"), 0o600);
    set_xattr(&env.source().join("a/file 12"), "user.note", b"later");
    rustix::fs::removexattr(env.source().join("a/file 5"), "user.note").unwrap();
    let second = env.copied(&[]);
    assert_eq!(second.count("/files/copied"), 3);
    assert_eq!(second.count("/bytes/copied"), 13);
    assert_eq!(second.count("/metadata_renewed"), 3);
}

#[test]
fn a_renamed_file_moves_without_its_bytes() {
    let env = copied();
    let inode = |name: &str| fs::metadata(env.dir().join(name)).unwrap().ino();
    let (one, two) = (inode("a/b/size 1048576"), inode("a/file 20"));
    let rename = |from: &str, to: &str| {
        fs::rename(env.source().join(from), env.source().join(to)).unwrap();
    };
    rename("a/b/size 1048576", "moved");
    rename("deep", "deeper");
    fs::create_dir(env.source().join("fresh")).unwrap();
    rename("a/file 20", "fresh/file 20");
    let second = env.copy(&["--delete"]).expect(0);
    assert_eq!((second.count("/files/renamed"), second.count("/files/copied")), (3, 0));
    crate::tree::assert_same(&env.source(), &env.dir());
    assert_eq!((inode("moved"), inode("fresh/file 20")), (one, two));
    let verified = env.command(&["verify", "copy"]).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn what_is_gone_stays_unless_its_deletion_is_asked_for() {
    let env = copied();
    fs::remove_file(env.source().join("a/file 1")).unwrap();
    fs::remove_file(env.source().join("a/link")).unwrap();
    fs::remove_file(env.source().join("another name")).unwrap();
    fs::remove_dir_all(env.source().join("a/b")).unwrap();
    let kept = env.copy(&[]).expect(0);
    assert!(kept.count("/gone") > 5);
    assert!(exists(&env.dir().join("a/file 1")) && exists(&env.dir().join("a/b/c")));
    let deleted = env.copied(&["--delete"]);
    assert_eq!(deleted.count("/deleted"), kept.count("/gone"));
    assert_eq!(env.copied(&["--delete"]).count("/deleted"), 0);
}

#[test]
fn what_the_user_changed_or_added_in_the_copy_is_never_deleted() {
    let env = copied();
    fs::write(env.dir().join("a/file 1"), "my own words").unwrap();
    fs::write(env.dir().join("a/b/mine"), "mine").unwrap();
    fs::remove_file(env.source().join("a/file 1")).unwrap();
    fs::remove_dir_all(env.source().join("a/b")).unwrap();
    let deleted = env.copy(&["--delete"]).expect(0);
    assert_eq!(deleted.count("/kept"), 2, "{}", deleted.summary);
    assert_eq!(fs::read_to_string(env.dir().join("a/file 1")).unwrap(), "my own words");
    assert_eq!(fs::read_to_string(env.dir().join("a/b/mine")).unwrap(), "mine");
    assert!(!exists(&env.dir().join("a/b/size 1")));
}

#[test]
fn a_users_own_link_or_pipe_in_place_of_ours_is_never_deleted() {
    let env = copied();
    let (source, dir) = (env.source(), env.dir());
    let link = |target: &str, path: &std::path::Path| std::os::unix::fs::symlink(target, path);
    for name in ["a/file 1", "a/link", "pipe", "another name"] {
        fs::remove_file(source.join(name)).unwrap();
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::remove_dir_all(source.join("deep")).unwrap();
    fs::remove_dir_all(dir.join("deep")).unwrap();
    fs::create_dir_all(env.path("elsewhere/1")).unwrap();
    fs::write(env.path("elsewhere/1/end"), "theirs").unwrap();
    link("my own", &dir.join("a/file 1")).unwrap();
    link("my own", &dir.join("a/link")).unwrap();
    link("../elsewhere", &dir.join("deep")).unwrap();
    fs::write(dir.join("another name"), "mine").unwrap();
    make_pipe(&dir.join("pipe"));
    let deleted = env.copy(&["--delete"]).expect(0);
    assert_eq!(deleted.count("/files/failed"), 0);
    for name in ["a/file 1", "a/link"] {
        assert_eq!(fs::read_link(dir.join(name)).unwrap().to_str(), Some("my own"));
    }
    assert!(exists(&dir.join("pipe")) && exists(&dir.join("another name")));
    assert_eq!(fs::read_link(dir.join("deep")).unwrap().to_str(), Some("../elsewhere"));
    assert_eq!(fs::read_to_string(env.path("elsewhere/1/end")).unwrap(), "theirs");
}

#[test]
fn a_users_own_link_is_not_replaced_by_what_the_source_has() {
    let env = copied();
    let (link, ours) = (env.source().join("a/link"), env.dir().join("a/link"));
    fs::remove_file(&ours).unwrap();
    std::os::unix::fs::symlink("my own", &ours).unwrap();
    let told = env.copy(&[]).expect(1);
    assert_eq!(told.count("/files/failed"), 1);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("changed", &link).unwrap();
    env.copy(&["--delete"]).expect(1);
    assert_eq!(fs::read_link(&ours).unwrap().to_str(), Some("my own"));
    // Ours again, it follows the source.
    fs::remove_file(&ours).unwrap();
    env.copied(&[]);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("changed again", &link).unwrap();
    env.copied(&[]);
    fs::remove_file(&link).unwrap();
    assert_eq!(env.copied(&["--delete"]).count("/deleted"), 1);
}

#[test]
fn too_many_deletions_are_refused_before_the_first() {
    let env = copied();
    fs::remove_dir_all(env.source().join("a")).unwrap();
    let refused = env.copy(&["--delete", "--max-delete", "10"]).expect(2);
    assert!(refused.stderr.contains("--max-delete"), "{}", refused.stderr);
    assert!(exists(&env.dir().join("a/file 1")));
    env.copied(&["--delete", "--max-delete", "1000"]);
}

#[test]
fn a_source_that_is_empty_or_away_deletes_nothing() {
    let env = copied();
    fs::rename(env.source(), env.path("elsewhere")).unwrap();
    let away = env.copy(&["--delete"]);
    assert!([Some(2), Some(3)].contains(&away.exit), "{:?} {}", away.exit, away.stderr);
    fs::create_dir(env.source()).unwrap();
    env.copy(&["--delete"]).expect(3);
    assert!(exists(&env.dir().join("a/file 1")));
    fs::remove_dir(env.source()).unwrap();
    fs::rename(env.path("elsewhere"), env.source()).unwrap();
    assert_eq!(env.copied(&["--delete"]).count("/files/copied"), 0);
}

#[test]
fn a_file_that_vanished_from_the_copy_is_brought_again() {
    let env = copied();
    fs::remove_file(env.dir().join("a/file 30")).unwrap();
    fs::remove_dir_all(env.dir().join("deep")).unwrap();
    let second = env.copied(&[]);
    assert_eq!(second.count("/files/copied"), 2);
}

#[test]
fn an_entry_that_became_another_kind_is_replaced() {
    let env = copied();
    let source = env.source();
    fs::remove_file(source.join("a/file 40")).unwrap();
    fs::create_dir(source.join("a/file 40")).unwrap();
    env.write("a/file 40/inside", "inside");
    fs::remove_file(source.join("a/link")).unwrap();
    env.write("a/link", "a file now");
    fs::remove_file(source.join("a/file 41")).unwrap();
    std::os::unix::fs::symlink("target", source.join("a/file 41")).unwrap();
    env.copied(&["--delete"]);
}

#[test]
fn what_the_filter_leaves_out_is_neither_copied_nor_deleted() {
    let env = copied();
    fs::write(env.dir().join("notes.tmp"), "mine").unwrap();
    env.write("a/skip.tmp", "skipped");
    fs::remove_file(env.source().join("a/file 50")).unwrap();
    let second = env.copy(&["--delete", "--exclude", "*.tmp", "--exclude", "file 50"]).expect(0);
    assert_eq!((second.count("/deleted"), second.count("/left_out")), (0, 1));
    assert!(exists(&env.dir().join("a/file 50")) && !exists(&env.dir().join("a/skip.tmp")));
}

#[test]
fn two_files_that_became_one_at_the_source_become_one_in_the_copy() {
    let env = copied();
    let (one, two) = (env.source().join("a/file 60"), env.source().join("a/file 61"));
    fs::remove_file(&two).unwrap();
    fs::hard_link(&one, &two).unwrap();
    let second = env.copied(&[]);
    assert_eq!((second.count("/files/linked"), second.count("/files/copied")), (1, 0));
    assert_eq!(fs::read_dir(env.dir().join(".lazycopy/parts")).unwrap().count(), 0);
    assert_eq!(env.copied(&[]).count("/files/linked"), 0);
}
