//! The mount is read-only, whatever is tried.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use crate::harness::{Env, names};
use crate::tree::{Compare, walk};

#[test]
fn every_call_that_would_change_the_tree_is_erofs() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    env.put("dir/below", "content");
    symlink("file", env.source().join("link")).unwrap();
    let before = walk(&env.source(), Compare::Everything);
    let mounted = env.mount(&[]);
    let (file, dir, new) = (mounted.path("file"), mounted.path("dir"), mounted.path("new"));
    let opened = File::open(&file).unwrap();
    let open =
        |path: &std::path::Path, flags| rustix::fs::openat(CWD, path, flags, Mode::RWXU).map(drop);
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    let io =
        |result: std::io::Result<()>| result.map_err(|error| Errno::from_io_error(&error).unwrap());
    let truncate = || io(File::options().write(true).open(&file).and_then(|f| f.set_len(0)));
    let owner = Some(rustix::fs::Uid::from_raw(7));
    let xattr = rustix::fs::XattrFlags::empty();
    let calls: Vec<(&str, Result<()>)> = vec![
        ("open O_WRONLY", open(&file, OFlags::WRONLY)),
        ("open O_RDWR", open(&file, OFlags::RDWR)),
        ("open O_TRUNC", open(&file, OFlags::WRONLY | OFlags::TRUNC)),
        ("open O_RDONLY O_TRUNC", open(&file, OFlags::RDONLY | OFlags::TRUNC)),
        ("open O_APPEND", open(&file, OFlags::WRONLY | OFlags::APPEND)),
        ("open O_CREAT", open(&new, OFlags::RDONLY | OFlags::CREATE)),
        ("open O_CREAT O_EXCL", open(&new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)),
        ("open O_TMPFILE", open(&dir, OFlags::WRONLY | OFlags::TMPFILE)),
        ("mkdir", rustix::fs::mkdirat(CWD, &new, Mode::RWXU)),
        ("mknod", rustix::fs::mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0)),
        ("mknod file", rustix::fs::mknodat(CWD, &new, FileType::RegularFile, Mode::RWXU, 0)),
        ("unlink", rustix::fs::unlinkat(CWD, &file, AtFlags::empty())),
        ("rmdir", rustix::fs::unlinkat(CWD, &dir, AtFlags::REMOVEDIR)),
        ("rename", rustix::fs::renameat(CWD, &file, CWD, &new)),
        (
            "rename exchange",
            rustix::fs::renameat_with(CWD, &file, CWD, &dir, RenameFlags::EXCHANGE),
        ),
        ("link", rustix::fs::linkat(CWD, &file, CWD, &new, AtFlags::empty())),
        ("symlink", rustix::fs::symlinkat("x", CWD, &new)),
        ("chmod", rustix::fs::chmodat(CWD, &file, Mode::RWXU, AtFlags::empty())),
        ("chown", rustix::fs::chownat(CWD, &file, owner, None, AtFlags::empty())),
        (
            "lchown",
            rustix::fs::chownat(CWD, mounted.path("link"), owner, None, AtFlags::SYMLINK_NOFOLLOW),
        ),
        ("utimensat", rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty())),
        ("futimens", rustix::fs::futimens(&opened, &times)),
        ("fchmod", io(opened.set_permissions(fs::Permissions::from_mode(0o777)))),
        ("truncate", truncate()),
        ("setxattr", rustix::fs::setxattr(&file, "user.x", b"y", xattr)),
        ("setxattr acl", rustix::fs::setxattr(&file, "system.posix_acl_access", &acl(), xattr)),
        ("removexattr", rustix::fs::removexattr(&file, "user.x")),
    ];
    for (call, result) in &calls {
        // The kernel itself may refuse before it asks us, but it may never succeed.
        let kernels = matches!(*call, "open O_TMPFILE") && *result == Err(Errno::OPNOTSUPP);
        assert!(*result == Err(Errno::ROFS) || kernels, "{call}: {result:?}");
    }
    // A descriptor for reading is refused by the kernel.
    let fallocated = rustix::fs::fallocate(&opened, FallocateFlags::empty(), 0, 100);
    assert!(fallocated.is_err(), "{fallocated:?}");
    assert!(rustix::fs::ftruncate(&opened, 0).is_err());
    drop(opened);

    assert_eq!(names(&mounted.place), ["dir", "file", "link"]);
    mounted.unmount();
    assert_eq!(before, walk(&env.source(), Compare::Everything), "the source is untouched");
}

/// An ACL with nothing but the three entries of a mode, 0777.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for tag in [1u16, 4, 32] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(7u16.to_le_bytes());
        bytes.extend(u32::MAX.to_le_bytes());
    }
    bytes
}

#[test]
fn reading_changes_no_time_of_the_source() {
    let Some(env) = Env::new() else { return };
    let path = env.put("file", "content");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let mounted = env.mount(&["--hydrate"]);
    mounted.until_complete();
    mounted.unmount();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    assert_eq!(fs::metadata(env.destination().join("file")).unwrap().modified().unwrap(), before);
}
