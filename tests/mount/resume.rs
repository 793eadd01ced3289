//! The same command again goes on where it was.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use crate::harness::{Env, Random, inode, patterned};
use crate::origin::{Behaviour, Origin, Page};

const MIB: u64 = 1 << 20;

fn page(size: u64) -> Page {
    Page::new(size, |offset, len| patterned(1, offset, len))
}

#[test]
fn a_copy_that_was_ended_goes_on_without_fetching_again_what_it_had() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let size = 24 * MIB + 77;
    origin.put("/done", page(3 * MIB));
    origin.put("/big", page(size).behaves(Behaviour::StallAt(12 * MIB)));
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    let local =
        mounted.until("half of it is here", |status| {
            status["bytes"]["local"].as_u64() > Some(12 * MIB)
        })["bytes"]["local"]
            .as_u64()
            .unwrap();
    mounted.until_published(1);
    let before = (inode(&mounted.path("big")), inode(&mounted.path("done")));
    let published = fs::metadata(env.destination().join("done")).unwrap().ino();
    mounted.unmount();

    origin.behave("/big", Behaviour::Right);
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    let status = mounted.until_complete();
    let fetched = status["bytes"]["fetched"].as_u64().unwrap();
    // What was in a block that had not landed whole is asked for again.
    assert!(fetched <= size + 3 * MIB - local + 4 * MIB, "{fetched} fetched, {local} were here");
    assert_eq!(before, (inode(&mounted.path("big")), inode(&mounted.path("done"))));
    assert_eq!(fs::metadata(env.destination().join("done")).unwrap().ino(), published);
    mounted.unmount();
    let copied = fs::read(env.destination().join("big")).unwrap();
    assert!(copied == patterned(1, 0, copied.len()) && copied.len() as u64 == size);
}

#[test]
fn a_complete_copy_is_known_again_without_a_byte_from_the_source() {
    let Some(env) = Env::new() else { return };
    env.put("a/file", patterned(1, 0, 500_000));
    env.put("other", patterned(2, 0, 10));
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    mounted.unmount();
    let mounted = env.mount(&["--hydrate"]);
    let status = mounted.until_complete();
    assert_eq!(status["bytes"]["fetched"], 0, "{status:#}");
    assert_eq!(status["files"]["published"], 2);
    assert_eq!(fs::read(mounted.path("a/file")).unwrap(), patterned(1, 0, 500_000));
    mounted.unmount();
}

#[test]
fn a_file_changed_in_the_destination_between_two_lives_is_not_taken_for_ours() {
    let Some(env) = Env::new() else { return };
    env.put("file", patterned(1, 0, 500_000));
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    mounted.unmount();
    fs::write(env.destination().join("file"), patterned(9, 0, 500_000)).unwrap();
    let mounted = env.mount(&["--hydrate"]);
    mounted.until("it failed", |status| status["phase"] == "failed");
    assert_eq!(fs::read(mounted.path("file")).unwrap(), patterned(1, 0, 500_000));
    mounted.unmount();
    assert_eq!(fs::read(env.destination().join("file")).unwrap(), patterned(9, 0, 500_000));
}

#[test]
fn a_version_that_came_while_nobody_looked_replaces_ours() {
    let Some(env) = Env::new() else { return };
    env.put("file", patterned(1, 0, 500_000));
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    let before = inode(&mounted.path("file"));
    mounted.unmount();
    env.put("file", patterned(2, 0, 600_000));
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    assert_ne!(inode(&mounted.path("file")), before, "one number, one version");
    mounted.unmount();
    assert_eq!(fs::read(env.destination().join("file")).unwrap(), patterned(2, 0, 600_000));
}

// A checkpoint of the new version made the old one, which still has the name, somebody else's.
#[test]
fn a_version_that_was_begun_in_an_earlier_life_replaces_ours() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", page(3 * MIB).etag("1"));
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    mounted.until_complete();
    mounted.unmount();
    let next = || Page::new(12 * MIB, |offset, len| patterned(2, offset, len)).etag("2");
    origin.put("/file", next().behaves(Behaviour::StallAt(6 * MIB)));
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    mounted.until("some of it is here", |status| status["bytes"]["local"].as_u64() > Some(4 * MIB));
    mounted.unmount();
    origin.put("/file", next());
    let mounted = env.mount_from(origin.url(), &["--hydrate"]);
    mounted.until_complete();
    mounted.unmount();
    assert!(fs::read(env.destination().join("file")).unwrap() == patterned(2, 0, 12 << 20));
}

#[test]
fn a_killed_daemon_loses_no_published_file_and_shows_no_wrong_byte() {
    let Some(env) = Env::new() else { return };
    let mut random = Random::new();
    let mut sizes = BTreeMap::new();
    for number in 0..30 {
        let (name, size) = (format!("f{number}"), random.below(2 * MIB));
        env.put(&name, patterned(number, 0, usize::try_from(size).unwrap()));
        sizes.insert(name, (number, size));
    }
    for _ in 0..6 {
        let mut mounted = env.mount(&["--hydrate"]);
        let wanted = random.below(30);
        mounted.until("some are published", |status| {
            status["files"]["published"].as_u64() >= Some(wanted)
        });
        mounted.signal(Signal::KILL);
        mounted.until_gone();
        for (name, (version, size)) in &sizes {
            if let Ok(copied) = fs::read(env.destination().join(name)) {
                let expected = patterned(*version, 0, usize::try_from(*size).unwrap());
                assert!(copied == expected, "{name} in the destination after a kill");
            }
        }
    }
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    for (name, (version, size)) in &sizes {
        let expected = patterned(*version, 0, usize::try_from(*size).unwrap());
        assert!(fs::read(mounted.path(name)).unwrap() == expected, "{name} in the mount");
        assert!(fs::read(env.destination().join(name)).unwrap() == expected, "{name} copied");
    }
    mounted.unmount();
}
