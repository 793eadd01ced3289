//! Byte for byte, and attribute for attribute.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Env, Random, names, read_at, tool};
use crate::mapping::Mapping;
use crate::tree::{Compare, HUGE, Seen, assert_same, odd_sizes, plant, walk};

/// All regular files below `root`.
fn files(root: &Path) -> Vec<PathBuf> {
    let all = walk(root, Compare::Content);
    all.into_iter().filter(|(_, seen)| seen.kind == "file").map(|(path, _)| path).collect()
}

#[test]
fn sixteen_threads_at_random_offsets_of_cold_files_read_what_the_source_holds() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    let all = files(&env.source());
    let mounted = env.mount(&[]);
    let random = Random::new();
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (mut random, all, mounted, env) = (random.clone(), &all, &mounted, &env);
            for _ in 0..=thread * 7 {
                random.next();
            }
            scope.spawn(move || {
                for _ in 0..60 {
                    let path = &all[usize::try_from(random.below(all.len() as u64)).unwrap()];
                    let (source, ours) = (env.source().join(path), mounted.path(path));
                    let (source, ours) = (File::open(source).unwrap(), File::open(ours).unwrap());
                    let size = source.metadata().unwrap().len();
                    let offset = random.below(size + 10);
                    let len = usize::try_from(random.below(300_000)).unwrap();
                    let expected = read_at(&source, offset, len).unwrap();
                    let found = read_at(&ours, offset, len).unwrap();
                    let place = || format!("{} {offset}+{len}", path.display());
                    assert_eq!(expected.len(), found.len(), "{}", place());
                    assert!(expected == found, "{}", place());
                }
            });
        }
    });
    mounted.unmount();
}

#[test]
fn a_mapping_of_a_cold_file_shows_what_the_source_holds() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    let mounted = env.mount(&[]);
    for size in odd_sizes().into_iter().filter(|size| *size > 0) {
        let name = format!("size-{size}");
        let Some(mut mapping) = Mapping::of(&mounted.path(&name)) else { return };
        assert_eq!(mapping.len(), size);
        let expected = File::open(env.source().join(&name)).unwrap();
        // From the end, so that no readahead helps.
        for offset in (0..size).step_by(50_000).collect::<Vec<_>>().into_iter().rev() {
            let expected = read_at(&expected, offset, 5000).unwrap();
            assert!(mapping.read(offset, 5000) == expected, "{name} at {offset}");
        }
    }
    let expected = File::open(env.source().join(HUGE)).unwrap();
    let Some(mut mapping) = Mapping::of(&mounted.path(HUGE)) else { return };
    for offset in [0, (1 << 20) + 13, (2 << 30) - 100, 3 << 30, (4 << 30) + 1, (5 << 30) - 9] {
        let expected = read_at(&expected, offset, 2000).unwrap();
        assert!(mapping.read(offset, 2000) == expected, "{HUGE} at {offset}");
    }
    drop(mapping);
    mounted.unmount();
}

fn without(tree: &BTreeMap<PathBuf, Seen>, gone: &[&str]) -> BTreeMap<PathBuf, Seen> {
    let mut tree = tree.clone();
    tree.retain(|path, _| !gone.contains(&path.to_str().unwrap_or("")));
    tree
}

#[test]
fn archivers_take_cold_files_for_what_they_are_while_the_tree_hydrates() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    let expected = walk(&env.source(), Compare::Content);
    let mounted = env.mount(&["--hydrate"]);
    let copies = ["tar", "cp", "rsync"].map(|name| env.path(name));
    for copy in &copies {
        fs::create_dir(copy).unwrap();
    }
    let archive = env.path("archive.tar");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut tar = Command::new("tar");
            tool(tar.args(["-S", "-cf"]).arg(&archive).arg("-C").arg(&mounted.place).arg("."));
            tool(Command::new("tar").args(["-S", "-xf"]).arg(&archive).arg("-C").arg(&copies[0]));
        });
        scope.spawn(|| {
            let from = mounted.path(".");
            tool(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(&copies[1]));
        });
        scope.spawn(|| {
            // It would read every zero of the holes.
            let skip = format!("--exclude={HUGE}");
            let mut rsync = Command::new("rsync");
            rsync.args(["-aHAXS", &skip]).arg(mounted.path("")).arg(&copies[2]);
            tool(&mut rsync);
        });
    });
    // Holes stay holes in the archive.
    assert!(fs::metadata(&archive).unwrap().len() < 100 << 20);
    assert_same(&expected, &walk(&copies[0], Compare::Content), "tar -S");
    assert_same(&expected, &walk(&copies[1], Compare::Content), "cp --sparse=always");
    let expected = without(&expected, &[HUGE]);
    assert_same(&expected, &walk(&copies[2], Compare::Content), "rsync -aHAXS");
    mounted.until_complete();
    mounted.unmount();
}

#[test]
fn a_complete_copy_equals_its_source_in_everything() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    let expected = walk(&env.source(), Compare::Everything);
    let mounted = env.mount(&["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["files"]["failed"], 0, "{status:#}");
    assert_eq!(status["files"]["warnings"], 0, "{status:#}");
    assert_eq!(status["files"]["published"], status["files"]["total"], "{status:#}");
    assert_eq!(status["percent"], 100.0);
    // Through the mount and in DIR itself, before and after the mount is gone.
    assert_same(&expected, &walk(&env.destination(), Compare::Everything), "DIR");
    assert_same(
        &walk(&env.source(), Compare::Content),
        &walk(&mounted.place, Compare::Content),
        "mount",
    );
    mounted.unmount();
    assert_same(&expected, &walk(&env.destination(), Compare::Everything), "DIR at the end");
    let mut ours = names(&env.source());
    ours.insert(0, ".lazycopy".into());
    assert_eq!(names(&env.destination()), ours);
    let parts = fs::read_dir(env.destination().join(".lazycopy/parts")).unwrap().count();
    assert_eq!(parts, 0, "no part stays");
}

#[test]
fn the_mount_shows_attributes_links_and_xattrs_as_the_source_has_them() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    let mounted = env.mount(&[]);
    let expected = walk(&env.source(), Compare::Everything);
    assert_same(&expected, &walk(&mounted.place, Compare::Everything), "mount");
    mounted.unmount();
}

#[test]
fn the_marker_says_incomplete_until_the_copy_is_complete() {
    let Some(env) = Env::new() else { return };
    env.put("a", "content");
    let marker = env.destination().join("LAZYCOPY-INCOMPLETE.txt");
    let mounted = env.mount(&[]);
    let text = fs::read_to_string(&marker).unwrap();
    assert!(text.contains(env.source().to_str().unwrap()), "{text}");
    assert_eq!(names(&mounted.place), ["a"], "neither it nor our state is shown");
    mounted.unmount();
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    assert!(!marker.exists());
    mounted.unmount();
}
