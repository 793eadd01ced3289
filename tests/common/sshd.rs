//! What a client of the sshd of `scripts/servers.sh` needs.

use std::fs;
use std::path::Path;

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
