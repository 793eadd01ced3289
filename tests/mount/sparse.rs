//! What stat, lseek and df say of files that are not here yet.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use crate::harness::{BLOCK, Env, patterned, read_at};
use crate::tree::{Compare, HUGE, data_ranges, make_sparse, plant, walk};

// `tar -S` archives a file without blocks as zeros, unread.
#[test]
fn a_cold_dense_file_never_shows_fewer_blocks_than_bytes_nor_a_hole() {
    let Some(env) = Env::new() else { return };
    plant(&env.source());
    // Dense, though its source is all zeros and might be stored in any way.
    env.put("zeros", vec![0; 3 << 20]);
    let mounted = env.mount(&[]);
    for (path, seen) in walk(&env.source(), Compare::Content) {
        let source = fs::symlink_metadata(env.source().join(&path)).unwrap();
        if seen.kind != "file" || source.blocks() * 512 < source.len() {
            continue;
        }
        let path = mounted.path(path);
        let stat = fs::metadata(&path).unwrap();
        assert!(stat.blocks() >= stat.len().div_ceil(512), "{}", path.display());
        if stat.len() > 0 {
            let found = data_ranges(&File::open(&path).unwrap(), stat.len());
            assert_eq!(found, [(0, stat.len())], "{}", path.display());
        }
    }
    let status = mounted.status();
    assert_eq!(status["bytes"]["fetched"], 0, "looking fetches nothing: {status:#}");
    mounted.unmount();
}

#[test]
fn holes_of_the_source_are_shown_cold_and_warm_and_cost_no_fetch() {
    let Some(env) = Env::new() else { return };
    let source = env.source().join(HUGE);
    let island = 7 * BLOCK + 100;
    make_sparse(&source, 5 << 30, &[(island, 5000), (4 << 30, 10)]);
    let mounted = env.mount(&["--hydrate"]);
    let (source, path) = (File::open(source).unwrap(), mounted.path(HUGE));
    let file = File::open(&path).unwrap();
    let expected = data_ranges(&source, 5 << 30);
    assert_eq!(data_ranges(&file, 5 << 30), expected);
    let blocks = (source.metadata().unwrap().blocks(), file.metadata().unwrap().blocks());
    assert_eq!(blocks.0, blocks.1);
    assert_eq!(read_at(&file, island, 5000).unwrap(), read_at(&source, island, 5000).unwrap());
    let status = mounted.until_complete();
    assert!(status["bytes"]["fetched"].as_u64().unwrap() < 1 << 20, "{status:#}");
    let ours = File::open(env.destination().join(HUGE)).unwrap();
    assert_eq!(data_ranges(&ours, 5 << 30), expected);
    assert!(ours.metadata().unwrap().blocks() <= blocks.0 + 16);
    assert_eq!(data_ranges(&File::open(&path).unwrap(), 5 << 30), expected);
    drop(file);
    mounted.unmount();
}

#[test]
fn a_partly_fetched_file_shows_no_hole_where_nothing_is_yet() {
    let Some(env) = Env::new() else { return };
    let size = 64 * BLOCK;
    env.put("file", patterned(1, 0, usize::try_from(size).unwrap()));
    let mounted = env.mount(&[]);
    let file = File::open(mounted.path("file")).unwrap();
    read_at(&file, 30 * BLOCK, 10).unwrap();
    assert_eq!(data_ranges(&file, size), [(0, size)]);
    let stat = file.metadata().unwrap();
    assert!(stat.blocks() >= size / 512);
    drop(file);
    mounted.unmount();
}

#[test]
fn df_says_what_the_destination_has_left() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let mounted = env.mount(&[]);
    let free = |path: &std::path::Path| {
        let stat = rustix::fs::statvfs(path).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    // Others write to the same disk meanwhile.
    let near = |a: u64, b: u64| a.abs_diff(b) < 512 << 20;
    crate::harness::eventually("free space", || {
        near(free(&mounted.place), free(&env.destination())).then_some(())
    });
    let stat = rustix::fs::statvfs(&mounted.place).unwrap();
    assert!(stat.f_blocks * stat.f_frsize >= free(&mounted.place));
    assert_eq!(stat.f_namemax, 255);
    mounted.unmount();
}
