//! A disk whose power can be cut without touching it: an ext4 image on xfs, copied by reflink at some moment and mounted again elsewhere.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What making one needs.
pub(crate) const NEEDS: &str = "root, mkfs.xfs, mkfs.ext4 and loop devices";

/// How long the last user of a cut may take to leave it.
const IN_USE: Duration = Duration::from_secs(60);

/// The disk, mounted; it goes with its owner.
pub(crate) struct CutDisk {
    directory: tempfile::TempDir,
    cuts: Cell<u32>,
}

impl CutDisk {
    /// A disk of `mebibytes`. `None` where it cannot be made.
    pub(crate) fn new(mebibytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let disk = Self { directory, cuts: Cell::new(0) };
        let (outer, inner) = (disk.at("outer.img"), disk.at("outer/disk.img"));
        // Room for the blocks that differ between the disk and one copy of it.
        fs::File::create(&outer).unwrap().set_len((3 * mebibytes + 300) << 20).unwrap();
        let is_outer =
            run(Command::new("mkfs.xfs").arg("-q").arg(&outer)) && mount(&outer, &disk.at("outer"));
        if !is_outer {
            return None;
        }
        fs::File::create(&inner).unwrap().set_len(mebibytes << 20).unwrap();
        let is_inner =
            run(Command::new("mkfs.ext4").arg("-qF").arg(&inner)) && mount(&inner, &disk.path());
        is_inner.then_some(disk)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.at("disk")
    }

    /// The path of what a power cut at this moment leaves, mounted until the next call.
    pub(crate) fn cut(&self) -> PathBuf {
        let image = |number: u32| self.at(&format!("outer/cut-{number}.img"));
        let (number, at) = (self.cuts.get(), self.at("cut"));
        // Never over an image that somebody may still have mounted: a loop device writes late.
        self.cuts.set(number + 1);
        let (last, image) = (image(number), image(number + 1));
        if last.exists() {
            let deadline = Instant::now() + IN_USE;
            while !run(Command::new("umount").arg(&at)) {
                assert!(Instant::now() < deadline, "the last cut is in use for ever");
                std::thread::sleep(Duration::from_millis(20));
            }
            fs::remove_file(last).unwrap();
        }
        let copied = Command::new("cp")
            .arg("--reflink=always")
            .arg(self.at("outer/disk.img"))
            .arg(&image)
            .status();
        assert!(copied.unwrap().success() && mount(&image, &at));
        at
    }
}

impl Drop for CutDisk {
    fn drop(&mut self) {
        for name in ["cut", "disk", "outer"] {
            run(Command::new("umount").arg(self.at(name)));
        }
    }
}

fn run(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn mount(image: &Path, at: &Path) -> bool {
    fs::create_dir_all(at).unwrap();
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))
}
