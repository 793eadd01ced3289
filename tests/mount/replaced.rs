//! A file that changes at the source while it is being read: two versions are never mixed.

use std::fs::{self, File};
use std::path::Path;

use crate::harness::{BLOCK, Env, Mounted, errno, eventually, inode, patterned, read, read_at};
use crate::origin::{Origin, Page};

const SIZE: u64 = 40 * BLOCK;
const OLD: u8 = 1;
const NEW: u8 = 2;

fn whole(version: u8) -> Vec<u8> {
    patterned(version, 0, usize::try_from(SIZE).unwrap())
}

/// Reads a spot: either the old bytes or ESTALE, never a new byte.
fn old_or_stale(file: &File, offset: u64) -> bool {
    match read_at(file, offset, 8192) {
        Ok(bytes) => {
            assert!(bytes == patterned(OLD, offset, 8192), "foreign bytes at {offset}");
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "at {offset}");
            false
        }
    }
}

/// Two handles with a part in the page cache; `replace` changes the source; then the law.
fn no_handle_sees_two_versions(mounted: &Mounted<'_>, path: &Path, replace: impl FnOnce()) {
    let first_number = inode(path);
    let (one, two) = (File::open(path).unwrap(), File::open(path).unwrap());
    assert!(old_or_stale(&one, 0) && old_or_stale(&two, 20 * BLOCK + 8));
    replace();
    // What is looked up again is another file.
    eventually("the new version", || (inode(path) != first_number).then_some(()));
    let new = File::open(path).unwrap();
    assert!(read_at(&new, 20 * BLOCK, 8192).unwrap() == patterned(NEW, 20 * BLOCK, 8192));
    for offset in (0..SIZE).step_by(usize::try_from(BLOCK / 2).unwrap()) {
        old_or_stale(&one, offset);
        old_or_stale(&two, offset);
        let found = read_at(&new, offset, 8192).unwrap();
        assert!(found == patterned(NEW, offset, 8192), "new handle at {offset}");
    }
    assert!(!old_or_stale(&one, SIZE - 8192), "what nobody has fetched is stale");
    assert!(read(path).unwrap() == whole(NEW));
    let status = mounted.status();
    assert_eq!(status["files"]["changed"], 1, "{status:#}");
}

#[test]
fn a_local_file_renamed_over_is_another_file() {
    let Some(env) = Env::new() else { return };
    env.put("file", whole(OLD));
    let mounted = env.mount(&["--refresh", "200ms"]);
    no_handle_sees_two_versions(&mounted, &mounted.path("file"), || {
        env.put("new", whole(NEW));
        fs::rename(env.source().join("new"), env.source().join("file")).unwrap();
    });
    // The old version was complete too, and may have been published before.
    let path = env.destination().join("file");
    eventually("the new version in DIR", || (read(&path).ok()? == whole(NEW)).then_some(()));
    mounted.unmount();
}

#[test]
fn a_remote_file_with_another_etag_is_another_file() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", Page::new(SIZE, |at, len| patterned(OLD, at, len)).etag("old"));
    let mounted = env.mount_from(origin.url(), &["--refresh", "200ms"]);
    no_handle_sees_two_versions(&mounted, &mounted.path("file"), || {
        origin.put("/file", Page::new(SIZE, |at, len| patterned(NEW, at, len)).etag("new"));
    });
    mounted.unmount();
}

// L23: the range itself tells, long before anybody looks the name up again.
#[test]
fn a_change_that_only_a_range_shows_is_estale_for_who_has_it_open() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    origin.put("/file", Page::new(SIZE, |at, len| patterned(OLD, at, len)).etag("old"));
    let mounted = env.mount_from(origin.url(), &["--refresh", "never"]);
    let file = File::open(mounted.path("file")).unwrap();
    assert!(old_or_stale(&file, 0));
    origin.put("/file", Page::new(SIZE, |at, len| patterned(NEW, at, len)).etag("new"));
    assert_eq!(errno(read_at(&file, SIZE - 8192, 8192)), libc::ESTALE);
    // And a new open finds the new one, although names are never asked for again by themselves.
    let found = eventually("the new version", || read(mounted.path("file")).ok());
    assert!(found == whole(NEW));
    drop(file);
    mounted.unmount();
}

#[test]
fn a_file_that_shrinks_at_the_source_never_reads_short_or_as_zeros() {
    let Some(env) = Env::new() else { return };
    env.put("file", whole(OLD));
    let mounted = env.mount(&["--refresh", "200ms"]);
    let file = File::open(mounted.path("file")).unwrap();
    assert!(old_or_stale(&file, 0));
    // In place: the same inode, another size and time.
    let half = patterned(NEW, 0, usize::try_from(SIZE / 2).unwrap());
    env.put("file", &half);
    assert_eq!(errno(read_at(&file, SIZE - 8192, 8192)), libc::ESTALE);
    let path = mounted.path("file");
    eventually("the new size", || (fs::metadata(&path).unwrap().len() == SIZE / 2).then_some(()));
    assert!(read(&path).unwrap() == half);
    drop(file);
    mounted.unmount();
}
