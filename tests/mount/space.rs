//! A destination without room: no reader notices, and the copy goes on when there is room again.

use std::fs::{self, File};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common;
use crate::harness::{Env, Random, patterned, read_at};

const FILES: u8 = 8;
const SIZE: u64 = 10 << 20;

/// An ext4 of 100 MiB at the place of the destination.
struct SmallDisk<'a>(&'a Env);

impl<'a> SmallDisk<'a> {
    fn new(env: &'a Env) -> Option<Self> {
        let image = env.path("disk.img");
        File::create(&image).unwrap().set_len(100 << 20).unwrap();
        fs::create_dir(env.path("disk")).unwrap();
        let made = Command::new("mkfs.ext4").args(["-qF", "-m", "0"]).arg(&image).status();
        let mounted =
            Command::new("mount").args(["-o", "loop"]).arg(&image).arg(env.path("disk")).status();
        let is_there = [made, mounted].into_iter().all(|ran| ran.is_ok_and(|ran| ran.success()));
        is_there.then_some(Self(env))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path("disk")).status());
    }
}

#[test]
fn a_disk_that_fills_while_eight_read_pauses_and_goes_on_when_room_is_made() {
    let Some(mut env) = Env::new() else { return };
    env.put_destination(env.path("disk/dir"));
    let mut random = Random::new();
    for number in 1..=FILES {
        let size = usize::try_from(SIZE).unwrap();
        env.put(format!("file-{number}"), patterned(number, 0, size));
    }
    let Some(disk) = SmallDisk::new(&env) else { return common::skip("mkfs.ext4, loop devices") };
    let filler = env.path("disk/filler");
    fs::write(&filler, vec![1; 60 << 20]).unwrap();
    let mounted = env.mount(&["--hydrate"]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let mut random = Random::seeded(random.next());
            let (mounted, is_over) = (&mounted, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let number = u8::try_from(1 + random.below(u64::from(FILES))).unwrap();
                    let file = File::open(mounted.path(format!("file-{number}"))).unwrap();
                    let offset = random.below(SIZE - 300_000);
                    let found = read_at(&file, offset, 300_000).unwrap();
                    assert!(found == patterned(number, offset, 300_000), "{number} at {offset}");
                }
            });
        }
        let paused = mounted.until("a pause", |status| status["paused_by"] == "space");
        assert_eq!(paused["phase"], "paused");
        assert_eq!(paused["files"]["failed"], 0, "{paused:#}");
        fs::remove_file(&filler).unwrap();
        mounted.until_complete();
        is_over.store(true, Ordering::Relaxed);
    });
    mounted.unmount();
    for number in 1..=FILES {
        let copied = fs::read(env.destination().join(format!("file-{number}"))).unwrap();
        assert!(copied == patterned(number, 0, copied.len()) && copied.len() as u64 == SIZE);
    }
    drop(disk);
}
