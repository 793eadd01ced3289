//! Mounting and unmounting, ours alone: FUSE libraries unmount whatever lies at the path.
//!
//! The kernel's device comes out as a descriptor; the FUSE handshake is the session's. Nothing here ever stats a mountpoint
//! that may be ours: that request would wait for this very process.

use std::ffi::CString;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::error::{Error, Kind, Result};
use crate::vfs::deadline::with_deadline;
use crate::vfs::mountinfo::{self, DeviceNumber};

/// How long the set-uid helper may take; it does two system calls.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest source name in the mount table, in bytes; the helper's option string must fit a page.
const FSNAME_MAX: usize = 1024;

/// How to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// The source shown in the mount table, without secrets; `None` = `lazycopy`.
    pub fsname: Option<String>,
    /// Other users may look in; permissions are checked by the kernel either way.
    pub allow_other: bool,
    /// Nothing in it can be executed.
    pub noexec: bool,
}

impl MountOptions {
    /// The name as the mount table can hold it: no control characters, not too long.
    fn shown_fsname(&self) -> String {
        let name = self.fsname.as_deref().unwrap_or("lazycopy");
        let mut shown: String =
            name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        shown.truncate(shown.floor_char_boundary(FSNAME_MAX));
        if shown.is_empty() { "lazycopy".to_owned() } else { shown }
    }

    /// Options for mount(2), after the descriptor.
    fn for_kernel(&self, device: &OwnedFd) -> String {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let mut text = format!(
            "fd={},rootmode=40000,user_id={},group_id={},subtype=lazycopy,default_permissions",
            device.as_raw_fd(),
            uid.as_raw(),
            gid.as_raw()
        );
        if self.allow_other {
            text.push_str(",allow_other");
        }
        text
    }

    /// Options for fusermount3, in which `,` and `\` of a value are escaped.
    fn for_helper(&self) -> String {
        let fsname = self.shown_fsname().replace('\\', "\\\\").replace(',', "\\,");
        let mut text = format!("fsname={fsname},subtype=lazycopy,nosuid,nodev,default_permissions");
        if self.allow_other {
            text.push_str(",allow_other");
        }
        if self.noexec {
            text.push_str(",noexec");
        }
        text
    }
}

/// A mount whose handshake is still to be done.
#[derive(Debug)]
pub struct Mounted {
    /// `/dev/fuse`, for the session.
    pub device: OwnedFd,
    /// Where it lies.
    pub mountpoint: PathBuf,
    /// Names it from now on, whatever else is mounted over it.
    pub number: DeviceNumber,
}

/// Mounts at `mountpoint`, an absolute path without links. Whoever looks in waits until the session's handshake.
///
/// # Errors
/// `NotSupported` without FUSE or its helper; `Denied` where policy forbids it; otherwise what mount(2) said.
pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<Mounted> {
    let device = match mount_directly(mountpoint, options) {
        Err(error) if error.kind() == Kind::Denied => mount_by_helper(mountpoint, options)?,
        other => other?,
    };
    let mounts = mountinfo::read()?;
    match mountinfo::top_at(&mounts, mountpoint) {
        Some(top) if top.is_lazycopy() => {
            Ok(Mounted { device, mountpoint: mountpoint.to_owned(), number: top.device })
        }
        // Dropping the descriptor ends the connection, wherever the mount has gone.
        _ => Err(Error::new(Kind::Busy, "mount")
            .at(mountpoint)
            .because("another file system was mounted over it at the same moment")),
    }
}

fn mount_directly(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(Kind::Denied, "mount").at(mountpoint));
    }
    let device = open_device()?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.noexec {
        flags |= MountFlags::NOEXEC;
    }
    let raw = CString::new(options.for_kernel(&device))
        .map_err(|error| Error::new(Kind::Invalid, "mount").caused_by(error))?;
    rustix::mount::mount(
        options.shown_fsname().as_str(),
        mountpoint,
        "fuse",
        flags,
        Some(raw.as_c_str()),
    )
    .map_err(|error| Error::io("mount", error).at(mountpoint))?;
    Ok(device)
}

/// Opens the kernel's FUSE device.
///
/// # Errors
/// `NotSupported`, with what to do about it.
pub fn open_device() -> Result<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
        Error::io("open", error).at("/dev/fuse").kinded(Kind::NotSupported).hint(
            "load the kernel module with `modprobe fuse`; in a container, pass --device /dev/fuse",
        )
    })
}

fn helper() -> Command {
    let mut command = Command::new("fusermount3");
    // Its messages are read, so they must not be translated.
    command.env("LC_ALL", "C").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn helper_missing(error: std::io::Error) -> Error {
    Error::io("run", error)
        .at("fusermount3")
        .kinded(Kind::NotSupported)
        .hint("install the package fuse3, or run as root")
}

fn mount_by_helper(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let failed = |error| Error::io("mount", error).at(mountpoint);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(HELPER_DEADLINE)).map_err(failed)?;
    // The helper's end travels as its standard input: no descriptor has to be made inheritable, so no other child gets it.
    // The command, and with it our copy of that end, is gone after this statement; then the helper's death ends the wait.
    let mut child = helper()
        .arg("-o")
        .arg(options.for_helper())
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .map_err(helper_missing)?;
    let received = receive_descriptor(&ours);
    if received.is_err() {
        // Ended by itself, or stuck: either way it has nothing more to say.
        drop(child.kill());
    }
    let said = finish(&mut child);
    received.map_err(failed)?.ok_or_else(|| refused_by_helper(mountpoint, &said))
}

fn refused_by_helper(mountpoint: &Path, said: &str) -> Error {
    let said = said.trim().trim_start_matches("fusermount3: ");
    let error = Error::new(Kind::Denied, "mount").at(mountpoint).because(said);
    if said.contains("user_allow_other") {
        error.hint("leave out -o allow_other, or add the line user_allow_other to /etc/fuse.conf")
    } else if said.contains("/dev/fuse") {
        error.kinded(Kind::NotSupported).hint("`lazycopy doctor` tells what is missing")
    } else {
        error.hint("a user can mount only on a directory of their own")
    }
}

/// Collects a helper that is about to end, and what it said.
fn finish(child: &mut Child) -> String {
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take()
        && let Err(error) = (&mut stderr).take(4096).read_to_end(&mut said)
    {
        tracing::debug!(err = %error, "helper's message lost");
    }
    if let Err(error) = child.wait() {
        tracing::debug!(err = %error, "helper not collected");
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// The descriptor that the helper sends; `None` if it ended without one.
fn receive_descriptor(socket: &UnixStream) -> std::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8];
    loop {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket.as_fd(), &mut buffers, &mut ancillary, flags) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmountMode {
    /// Only when nobody uses it.
    Normal,
    /// Take it out of the tree now; whoever has something open keeps it for as long as it is served.
    Detach,
    /// As `Detach`, but only if nothing is mounted inside, which would go with it.
    DetachAlone,
}

impl UnmountMode {
    fn detaches(self) -> bool {
        self != UnmountMode::Normal
    }
}

/// What [`unmount_ours`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// It was there and is gone.
    Done,
    /// It was not there any more.
    AlreadyGone,
}

/// Unmounts the file system `number` from `mountpoint`, and never any other.
///
/// # Errors
/// `Busy` when it is in use, or when another file system was mounted over it; otherwise what umount2(2) said.
pub fn unmount_ours(
    mountpoint: &Path,
    number: DeviceNumber,
    mode: UnmountMode,
) -> Result<Unmounted> {
    let mounts = mountinfo::read()?;
    let ours = |mount: &&mountinfo::MountEntry| {
        mount.device == number && mount.is_lazycopy() && mount.mountpoint == mountpoint
    };
    if !mounts.iter().any(|mount| ours(&mount)) {
        return Ok(Unmounted::AlreadyGone);
    }
    let Some(top) = mountinfo::top_at(&mounts, mountpoint).filter(ours) else {
        return Err(Error::new(Kind::Busy, "unmount")
            .at(mountpoint)
            .because("another file system was mounted over it")
            .hint("unmount that one first"));
    };
    if mode == UnmountMode::DetachAlone
        && let Some(inside) = mountinfo::mounts_on(&mounts, top.id).first()
    {
        return Err(Error::new(Kind::Busy, "unmount")
            .at(&inside.mountpoint)
            .because("another file system is mounted inside")
            .hint("unmount that one first"));
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    if mode.detaches() {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(Unmounted::Done),
        Err(Errno::PERM) => unmount_by_helper(mountpoint, mode).map(|()| Unmounted::Done),
        Err(error) => Err(Error::io("unmount", error).at(mountpoint)),
    }
}

fn unmount_by_helper(mountpoint: &Path, mode: UnmountMode) -> Result<()> {
    let mut command = helper();
    command.arg("-u");
    if mode.detaches() {
        command.arg("-z");
    }
    let child = command.arg("--").arg(mountpoint).stdin(Stdio::null()).spawn();
    let child = child.map_err(helper_missing)?;
    let output = with_deadline(HELPER_DEADLINE, move || child.wait_with_output());
    let failed = |kind| Error::new(kind, "unmount").at(mountpoint);
    let output = match output {
        Some(output) => output.map_err(|error| Error::io("unmount", error).at(mountpoint))?,
        None => return Err(failed(Kind::Timeout).because("fusermount3 does not return")),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let kind = if said.contains("busy") { Kind::Busy } else { Kind::Denied };
    Err(failed(kind).because(said.trim().trim_start_matches("fusermount3: ")))
}

/// Bytes of a mountpoint that no C string can hold.
pub(crate) fn check_text(path: &Path) -> Result<()> {
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(Error::new(Kind::Invalid, "use path").at(path).because("it holds a NUL byte"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_sees_commas_and_backslashes_of_a_name_escaped() {
        let options = MountOptions {
            fsname: Some("http://h/a,b\\c,suid".to_owned()),
            allow_other: true,
            noexec: true,
        };
        assert_eq!(
            options.for_helper(),
            "fsname=http://h/a\\,b\\\\c\\,suid,subtype=lazycopy,nosuid,nodev,default_permissions,allow_other,noexec"
        );
    }

    #[test]
    fn a_name_fits_the_mount_table() {
        let name = |fsname: &str| {
            MountOptions { fsname: Some(fsname.to_owned()), ..Default::default() }.shown_fsname()
        };
        assert_eq!(name("a\nb"), "a?b");
        assert_eq!(name(""), "lazycopy");
        assert!(name(&"ü".repeat(5000)).len() <= FSNAME_MAX);
    }

    #[test]
    fn what_is_not_mounted_is_already_gone() {
        let number = DeviceNumber { major: 0, minor: u32::MAX };
        let unmounted = unmount_ours(Path::new("/"), number, UnmountMode::Detach).unwrap();
        assert_eq!(unmounted, Unmounted::AlreadyGone);
    }
}
