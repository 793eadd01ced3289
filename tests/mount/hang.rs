//! A source that answers nothing harms only those who ask for what it keeps.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Env, eventually, patterned, read, read_at, tool};
use crate::origin::{Behaviour, Origin, Page};

const READERS: usize = 64;

fn pages(origin: &Origin, size: u64) {
    origin.put("/dir/local", Page::new(300_000, |at, len| patterned(1, at, len)));
    let mute = Page::new(size, |at, len| patterned(2, at, len));
    origin.put("/dir/mute", mute.behaves(Behaviour::SilentBodies));
    for number in 0..50 {
        origin.put(&format!("/dir/small-{number}"), Page::of(format!("{number}")));
    }
}

fn timed<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let answer = call();
    let took = started.elapsed();
    println!("{what}: {took:?}");
    assert!(took < Duration::from_millis(1000), "{what}: {took:?}");
    answer
}

#[test]
fn blocked_readers_delay_nobody_and_end_within_their_deadline() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    pages(&origin, 64 << 20);
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "2s"]);
    let directory = mounted.path("dir");
    tool(Command::new("ls").arg("-lR").arg(&mounted.place));
    assert_eq!(read(directory.join("local")).unwrap(), patterned(1, 0, 300_000));
    mounted.until_published(1);

    let blocked = AtomicUsize::new(READERS);
    std::thread::scope(|scope| {
        for reader in 0..READERS as u64 {
            let (file, blocked) = (File::open(directory.join("mute")).unwrap(), &blocked);
            scope.spawn(move || {
                let started = Instant::now();
                // Each its own block.
                let answer = file.read_at(&mut [0; 4096], reader << 20);
                let took = started.elapsed();
                blocked.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
                assert!(took > Duration::from_millis(1900), "{reader}: {took:?}");
                assert!(took < Duration::from_secs(3), "{reader}: {took:?}");
            });
        }
        eventually("all readers wait", || (mounted.stuck().len() >= READERS).then_some(()));
        timed("stat", || fs::metadata(directory.join("small-7")).unwrap());
        timed("read of a local file", || read(directory.join("local")).unwrap());
        timed("stat of the file that hangs", || fs::metadata(directory.join("mute")).unwrap());
        timed("ls -lR", || tool(Command::new("ls").arg("-lR").arg(&mounted.place)));
        let still = blocked.load(Ordering::SeqCst);
        assert_eq!(still, READERS, "all that ended while the readers were blocked");
    });
    mounted.unmount();
}

// The kernel asks a failed readahead page a second time; an application would wait twice.
#[test]
fn a_whole_file_read_by_a_stream_reader_ends_within_one_deadline() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    pages(&origin, 8 << 20);
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "2s"]);
    let started = Instant::now();
    let answer = read(mounted.path("dir/mute"));
    let took = started.elapsed();
    assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(took < Duration::from_secs(3), "{took:?}");
    mounted.unmount();
}

// L5: a notification woke one of many, and the one that had its data timed out.
#[test]
fn a_stall_answers_all_whose_bytes_are_there() {
    const SIZE: u64 = 1 << 20;
    const STALL: u64 = 400_000;
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    let stalls = Page::new(SIZE, |at, len| patterned(3, at, len));
    origin.put("/stalls", stalls.behaves(Behaviour::StallAt(STALL)));
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "3s"]);
    std::thread::scope(|scope| {
        for reader in 0..READERS as u64 {
            let path = mounted.path("stalls");
            scope.spawn(move || {
                // One request for the whole file would be answered as one.
                let file = open_direct(&path);
                let offset = reader * SIZE / READERS as u64;
                let answer = read_at(&file, offset, 4096);
                if offset + 4096 <= STALL {
                    assert_eq!(answer.unwrap(), patterned(3, offset, 4096), "{reader}");
                } else {
                    assert_eq!(
                        answer.unwrap_err().raw_os_error(),
                        Some(libc::ETIMEDOUT),
                        "{reader}"
                    );
                }
            });
        }
    });
    mounted.unmount();
}

/// Without the page cache: each read(2) is one request.
fn open_direct(path: &std::path::Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

#[test]
fn a_source_that_comes_back_is_read_again_after_a_timeout() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    pages(&origin, 1 << 20);
    let mounted = env.mount_from(origin.url(), &["--read-timeout", "1s"]);
    let path = mounted.path("dir/mute");
    assert_eq!(read(&path).unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    origin.behave("/dir/mute", Behaviour::Right);
    origin.release();
    assert_eq!(read(&path).unwrap(), patterned(2, 0, 1 << 20));
    mounted.unmount();
}

#[test]
fn a_hung_source_does_not_keep_us_from_unmounting() {
    let Some(env) = Env::new() else { return };
    let origin = Origin::start();
    pages(&origin, 1 << 20);
    let mut mounted = env.mount_from(origin.url(), &["--read-timeout", "1s", "--hydrate"]);
    mounted.until("hydrating", |status| !status["active"].as_array().unwrap().is_empty());
    let started = Instant::now();
    assert_eq!(mounted.try_unmount(&[]).code, Some(0));
    mounted.until_gone();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
