//! What a client of the sshd of `scripts/servers.sh` needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::servers::Server;

/// `-S` options that lead to `server`, at any port: nothing of the user's own configuration.
pub(crate) fn options(server: &Server) -> Vec<String> {
    let at = |name: &str| server.directory().join(name).display().to_string();
    know(server, Path::new(&at("known_hosts")), "*");
    [
        ("identity", at("key")),
        ("known-hosts", at("known_hosts")),
        ("ssh-config", "/dev/null".to_owned()),
    ]
    .map(|(key, value)| format!("{key}={value}"))
    .into()
}

/// Writes down the server's key as that of `hosts`.
pub(crate) fn know(server: &Server, known_hosts: &Path, hosts: &str) {
    let key = fs::read_to_string(server.directory().join("host_key.pub")).unwrap();
    // Of those that read it meanwhile none sees half of it.
    let new = known_hosts.with_extension("new");
    fs::write(&new, format!("{hosts} {key}")).unwrap();
    fs::rename(new, known_hosts).unwrap();
}

/// The processes of the program `name` that have `argument` among their arguments.
pub(crate) fn programs_that_say(name: &str, argument: &str) -> BTreeSet<u32> {
    let is_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next() == Some(name.as_bytes()) && words.any(|word| word == argument.as_bytes())
    };
    processes().filter(is_it).collect()
}

/// What the processes that `server` made have open below `directory`.
pub(crate) fn sftp_handles(server: &Server, directory: &Path) -> Vec<PathBuf> {
    let mut ours = BTreeSet::from([server.pid()]);
    let parents: Vec<(u32, u32)> =
        processes().filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    // Children come after their parents in most cases, and after a second look in all.
    for _ in 0..4 {
        let more = parents.iter().filter(|(_, parent)| ours.contains(parent));
        let more: Vec<u32> = more.map(|(pid, _)| *pid).collect();
        ours.extend(more);
    }
    let open = ours.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter());
    let places = open.flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    places.filter(|place| place.starts_with(directory)).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
