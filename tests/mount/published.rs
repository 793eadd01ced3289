//! Finished files: plain files in DIR, read by the kernel itself where it can.

use std::fs::{self, File};

use crate::harness::{BLOCK, Env, patterned, read, read_at, tool};
use crate::mapping::Mapping;

const SIZE: u64 = 20 * BLOCK + 77;

fn whole() -> Vec<u8> {
    patterned(1, 0, usize::try_from(SIZE).unwrap())
}

fn served(status: &serde_json::Value) -> u64 {
    status["bytes"]["served"].as_u64().unwrap()
}

/// Linux 6.9 and later let the kernel read a backing file by itself.
fn kernel_has_passthrough() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // Where the kernel does not tell how it was built, its version counts.
    let built = "! test -e /proc/config.gz || zcat /proc/config.gz | grep -q FUSE_PASSTHROUGH=y";
    let built = std::process::Command::new("sh").args(["-c", built]).status().unwrap();
    version >= (6, 9) && built.success()
}

#[test]
fn a_published_file_is_read_without_the_daemon() {
    let Some(env) = Env::new() else { return };
    if !kernel_has_passthrough() {
        eprintln!("skipped: this kernel has no passthrough");
        return;
    }
    env.put("file", whole());
    let mounted = env.mount(&["--hydrate"]);
    let before = served(&mounted.until_complete());
    for _ in 0..3 {
        assert!(read(mounted.path("file")).unwrap() == whole());
    }
    let file = File::open(mounted.path("file")).unwrap();
    assert!(read_at(&file, SIZE - 100, 200).unwrap() == patterned(1, SIZE - 100, 100));
    assert_eq!(served(&mounted.status()), before);
    drop(file);
    mounted.unmount();
}

// Measured: a cached and a passthrough handle of one inode at once give EIO.
#[test]
fn a_file_that_is_published_while_it_is_open_never_gives_eio() {
    let Some(env) = Env::new() else { return };
    env.put("file", whole());
    let mounted = env.mount(&[]);
    let path = mounted.path("file");
    let early = File::open(&path).unwrap();
    assert!(read_at(&early, 0, 8).unwrap() == patterned(1, 0, 8));
    assert!(read(&path).unwrap() == whole());
    mounted.until_published(1);
    // Open while the early handle is still there, alone, and mixed.
    for _ in 0..3 {
        let late = File::open(&path).unwrap();
        assert!(read_at(&late, 8 * BLOCK, 5000).unwrap() == patterned(1, 8 * BLOCK, 5000));
        assert!(read_at(&early, 9 * BLOCK, 5000).unwrap() == patterned(1, 9 * BLOCK, 5000));
    }
    drop(early);
    let (one, two) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    for file in [&one, &two] {
        assert!(read_at(file, SIZE - 5000, 5000).unwrap() == patterned(1, SIZE - 5000, 5000));
    }
    drop((one, two));
    mounted.unmount();
}

#[test]
fn many_opens_and_closes_around_the_publication_never_fail() {
    let Some(env) = Env::new() else { return };
    for number in 0..20 {
        env.put(format!("file-{number}"), whole());
    }
    let mounted = env.mount(&["--hydrate"]);
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            let mounted = &mounted;
            scope.spawn(move || {
                for round in 0..60 {
                    let path = mounted.path(format!("file-{}", (round + thread) % 20));
                    let file = File::open(&path).unwrap();
                    let offset = (round as u64 * 7 + thread as u64) % 20 * BLOCK;
                    let bytes = read_at(&file, offset, 3000);
                    assert!(bytes.unwrap() == patterned(1, offset, 3000), "{}", path.display());
                }
            });
        }
    });
    mounted.until_complete();
    mounted.unmount();
}

#[test]
fn a_mapping_made_before_or_after_the_publication_shows_the_same() {
    let Some(env) = Env::new() else { return };
    env.put("file", whole());
    let mounted = env.mount(&[]);
    let map = || Mapping::of(&mounted.path("file"));
    let Some(mut before) = map() else { return };
    assert!(before.read(0, 100) == whole()[..100]);
    assert!(read(mounted.path("file")).unwrap() == whole());
    mounted.until_published(1);
    let size = whole().len();
    let mut after = map().unwrap();
    assert!(before.read(0, size) == whole() && after.read(0, size) == whole());
    drop((before, after));
    assert!(map().unwrap().read(0, size) == whole());
    mounted.unmount();
}

#[test]
fn what_is_published_is_read_although_the_source_is_gone() {
    let Some(env) = Env::new() else { return };
    env.put("file", whole());
    let mounted = env.mount(&["--hydrate", "--refresh", "100ms"]);
    mounted.until_complete();
    fs::remove_dir_all(env.source()).unwrap();
    // The name may go, as the source says so; DIR keeps the file.
    assert!(read(env.destination().join("file")).unwrap() == whole());
    mounted.unmount();
    assert!(read(env.destination().join("file")).unwrap() == whole());
}

#[test]
fn an_overlay_can_be_stacked_on_the_mount() {
    let Some(env) = Env::new() else { return };
    env.put("file", whole());
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| env.path(name));
    for directory in [&upper, &work, &merged] {
        fs::create_dir(directory).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        mounted.place.display(),
        upper.display(),
        work.display()
    );
    let mut mount = std::process::Command::new("mount");
    tool(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged));
    assert!(read(merged.join("file")).unwrap() == whole());
    fs::write(merged.join("file"), "changed above").unwrap();
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(read(mounted.path("file")).unwrap() == whole());
    mounted.unmount();
}
