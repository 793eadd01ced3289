//! A mount that a tiny file system in the test serves.
#![allow(dead_code, unreachable_pub, reason = "shared by several test crates, each using its part")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    ReplyAttr, ReplyEmpty, ReplyEntry, Request, Session, SessionACL,
};
use lazycopy::vfs::mount::{MountOptions, UnmountMode, Unmounted, mount, unmount_ours};
use lazycopy::vfs::mountinfo::{self, DeviceNumber};
use tempfile::TempDir;

/// A root directory with one empty file, `file`.
pub struct Tiny;

fn attributes(inode: INodeNo) -> FileAttr {
    let is_root = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: 0o755,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Tiny {
    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(1), &attributes(inode));
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            reply.entry(&Duration::from_secs(1), &attributes(INodeNo(2)), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// A served mount in a directory of its own; unmounted, and what is under it too, when dropped.
pub struct Served {
    base: TempDir,
    pub mountpoint: PathBuf,
    pub number: DeviceNumber,
    server: Option<std::thread::JoinHandle<()>>,
}

pub fn fuse_is_there() -> bool {
    let there = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(
        there || std::env::var_os("REQUIRE_FUSE").is_none(),
        "REQUIRE_FUSE is set, and there is no FUSE"
    );
    there
}

impl Served {
    pub fn start(under: impl FnOnce(&Path), options: &MountOptions) -> Option<Self> {
        if !fuse_is_there() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let base = tempfile::tempdir().unwrap();
        let mountpoint = fs::canonicalize(base.path()).unwrap().join("m nt");
        fs::create_dir(&mountpoint).unwrap();
        under(&mountpoint);
        let mounted = mount(&mountpoint, options).unwrap();
        let number = mounted.number;
        let session =
            Session::from_fd(Tiny, mounted.device, SessionACL::All, Config::default()).unwrap();
        let server = std::thread::spawn(move || {
            let _ended = session.run();
        });
        Some(Self { base, mountpoint, number, server: Some(server) })
    }

    pub fn unmount(&self, mode: UnmountMode) -> lazycopy::error::Result<Unmounted> {
        unmount_ours(&self.mountpoint, self.number, mode)
    }

    pub fn join(&mut self) {
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _gone = self.unmount(UnmountMode::Detach);
        while mountinfo::top_at(&mountinfo::read().unwrap(), &self.mountpoint).is_some() {
            rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        self.join();
        let _base = &self.base;
    }
}
