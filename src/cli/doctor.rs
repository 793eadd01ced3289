//! `lazycopy doctor`: what this machine can do, and what each missing thing costs.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::process::Resource;

use crate::cli::exit::Exit;
use crate::cli::{say, text};
use crate::error::Result;
use crate::source::kinds::ALL;
use crate::source::options::Takes;
use crate::store::probe::{self, Missing};
use crate::vfs::mount;

/// Bit of CAP_SYS_ADMIN in `/proc/self/status`: capabilities(7).
const CAP_SYS_ADMIN: u32 = 21;
/// First kernel with FUSE passthrough.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
/// Open files below which the descriptor pool gets small.
const FILES_WANTED: u64 = 4096;
/// Memory below which buffers get few, in bytes.
const MEMORY_WANTED: u64 = 256 << 20;

/// Check what this machine can do: exit code 0 if mounting works, 7 if not.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Also try what the file system of DIR can do; a probe file of a few KiB is made and removed [default: no probe]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_DEST", hide_env_values = true)]
    dest: Option<PathBuf>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Fine,
    /// Something is slower, or not possible.
    Costs,
    /// Mounting does not work.
    Fatal,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) verdict: Verdict,
    /// What was found, in one line.
    pub(crate) what: String,
    /// What it costs and what to do; empty if fine.
    pub(crate) advice: String,
}

impl Finding {
    pub(crate) fn fine(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fine, what: what.into(), advice: String::new() }
    }

    pub(crate) fn costs(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Costs, what: what.into(), advice: advice.into() }
    }

    pub(crate) fn fatal(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fatal, what: what.into(), advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Fine => "ok  ",
            Verdict::Costs => "warn",
            Verdict::Fatal => "FAIL",
        };
        write!(f, "{mark}  {}", self.what)?;
        if !self.advice.is_empty() {
            write!(f, "\n      {}", self.advice)?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<Exit> {
    let mut findings = vec![device(), helper(), allow_other(), kernel(), ssh()];
    findings.extend([open_files(), memory()].into_iter().flatten());
    if let Some(directory) = &args.dest {
        findings.extend(probe_destination(directory));
    }
    for finding in &findings {
        say(&finding.to_string());
    }
    say_sources();
    if findings.iter().any(|finding| finding.verdict == Verdict::Fatal) {
        say("mounting does not work here");
        return Ok(Exit::NotSupported);
    }
    say("mounting works");
    Ok(Exit::Ok)
}

/// What this program can copy from, and what it can be told of it.
fn say_sources() {
    say("sources: a directory or file of this machine, file:///…");
    for kind in ALL {
        say(&format!("sources: {}", kind.example));
        for option in kind.options {
            let value = match option.takes {
                Takes::Text => "TEXT",
                Takes::Flag => "true|false",
                Takes::Path => "FILE",
                Takes::Secret => "@FILE",
            };
            say(&format!("    -S {}={value}  {}", option.name, option.help));
        }
    }
}

/// What the destination's file system can do; a directory that is still to be made is as its parent.
fn probe_destination(directory: &Path) -> Vec<Finding> {
    let there = match std::path::absolute(directory) {
        Ok(absolute) if !absolute.exists() => {
            absolute.parent().map_or_else(|| absolute.clone(), Path::to_path_buf)
        }
        Ok(absolute) => absolute,
        Err(_) => directory.to_owned(),
    };
    let name = format!("destination {}", directory.display());
    let abilities = match probe::probe_directory(&there) {
        Ok(abilities) => abilities,
        Err(error) => {
            return vec![Finding::fatal(format!("{name} cannot be used"), error.to_string())];
        }
    };
    if let Err(error) = abilities.require(directory) {
        return vec![Finding::fatal(format!("{name} is unfit"), error.to_string())];
    }
    let missing = abilities.missing();
    if missing.is_empty() {
        return vec![Finding::fine(format!("{name} can do everything"))];
    }
    let lacks =
        |missing: Missing| Finding::costs(format!("{name}: no {}", missing.ability), missing.cost);
    missing.into_iter().map(lacks).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn device() -> Finding {
    match mount::open_device() {
        Ok(_device) => Finding::fine("/dev/fuse can be opened"),
        Err(error) => Finding::fatal("/dev/fuse cannot be opened", error.to_string()),
    }
}

/// The set-uid program that mounts for users who are not root.
fn helper() -> Finding {
    let found = find_program("fusermount3");
    let (missing, advice) = match found {
        Some((path, true)) => return Finding::fine(format!("{} is set-user-id", path.display())),
        Some((path, false)) => (
            format!("{} is not set-user-id root", path.display()),
            "only root can mount; repair it: chown root and chmod u+s, or install fuse3 again",
        ),
        None => (
            "fusermount3 is not installed".to_owned(),
            "only root can mount; install the package fuse3",
        ),
    };
    if is_root() { Finding::costs(missing, advice) } else { Finding::fatal(missing, advice) }
}

/// The program that leads to sftp sources.
fn ssh() -> Finding {
    match find_program("ssh") {
        Some((path, _)) => Finding::fine(format!("{} leads to sftp sources", path.display())),
        None => Finding::costs(
            "ssh is not installed",
            "sftp sources cannot be reached; install the package openssh-client",
        ),
    }
}

/// A program of `$PATH`, and whether it runs as root.
fn find_program(name: &str) -> Option<(PathBuf, bool)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).find_map(|directory| {
        let program = directory.join(name);
        let metadata = fs::metadata(&program).ok().filter(|metadata| metadata.is_file())?;
        Some((program, metadata.mode() & 0o4000 != 0 && metadata.uid() == 0))
    })
}

fn allow_other() -> Finding {
    let config = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if is_root() || has_user_allow_other(&config) {
        return Finding::fine("-o allow_other is possible");
    }
    Finding::costs(
        "-o allow_other is not possible for this user",
        "a mount is seen by its user alone; add the line user_allow_other to /etc/fuse.conf",
    )
}

fn has_user_allow_other(config: &str) -> bool {
    config.lines().any(|line| line.trim() == "user_allow_other")
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let is_new = parse_release(&release).is_some_and(|release| release >= PASSTHROUGH_SINCE);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cost = "finished files are read at about 10 GB/s at most instead of the disk's own speed";
    let (major, minor) = PASSTHROUGH_SINCE;
    match (is_new, has_sys_admin(&status)) {
        (true, true) => Finding::fine(format!("kernel {release}: passthrough is possible")),
        (true, false) => Finding::costs(
            format!("kernel {release}: passthrough needs CAP_SYS_ADMIN"),
            format!("{cost}; run as root to have it"),
        ),
        (false, _) => Finding::costs(
            format!("kernel {release}: no passthrough before {major}.{minor}"),
            format!("{cost}; a newer kernel has it"),
        ),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn has_sys_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_SYS_ADMIN & 1 == 1)
}

fn open_files() -> Option<Finding> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let Some(maximum) = limit.maximum else {
        return Some(Finding::fine("open files: no limit"));
    };
    let what = format!("open files: at most {}", text::count(maximum));
    Some(if maximum < FILES_WANTED {
        Finding::costs(
            what,
            format!(
                "backing files are reopened more often; raise the hard limit to {FILES_WANTED} (ulimit -Hn)"
            ),
        )
    } else {
        Finding::fine(what)
    })
}

fn memory() -> Option<Finding> {
    let table = fs::read_to_string("/proc/meminfo").ok()?;
    let available = parse_available(&table)?;
    let what = format!("memory: {} available", text::bytes(available));
    Some(if available < MEMORY_WANTED {
        let advice = "fewer chunks run at once, so a source far away is read more slowly";
        Finding::costs(what, advice)
    } else {
        Finding::fine(what)
    })
}

fn parse_available(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read_as_it_means_it() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_release("5.4-rc1"), Some((5, 4)));
        assert_eq!(parse_release("unknown"), None);
        assert!(has_sys_admin("Name:\tx\nCapEff:\t0000000000200000\n"));
        assert!(!has_sys_admin("CapEff:\t00000000001fffff\n"));
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert!(has_user_allow_other("# x\nuser_allow_other\n"));
        assert!(!has_user_allow_other("#user_allow_other\n"));
    }

    #[test]
    fn every_finding_that_is_not_fine_says_what_to_do() {
        for finding in [device(), helper(), allow_other(), kernel(), ssh()] {
            assert_eq!(finding.verdict == Verdict::Fine, finding.advice.is_empty(), "{finding}");
        }
    }
}
