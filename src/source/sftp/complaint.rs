//! What ssh means by its last words.

use crate::error::{Error, Kind};

const OP: &str = "connect by ssh";

/// Something that ssh says (OpenSSH 6 to 10), what it is, and what to do.
struct Complaint {
    sign: &'static str,
    kind: Kind,
    why: &'static str,
    hint: &'static str,
}

const fn complaint(
    sign: &'static str,
    kind: Kind,
    why: &'static str,
    hint: &'static str,
) -> Complaint {
    Complaint { sign, kind, why, hint }
}

/// The first that is found counts: the cause of others goes before them.
const KNOWN: &[Complaint] = &[
    complaint(
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        Kind::Denied,
        "the host has another key than known_hosts says: somebody may sit in between",
        "if the host really has a new key: ssh-keygen -R HOST, then --accept-new once",
    ),
    complaint(
        "REVOKED HOST KEY",
        Kind::Denied,
        "the key of the host is revoked",
        "ask who runs the host",
    ),
    complaint(
        "key is known for",
        Kind::Denied,
        "the host is unknown: its key is not in known_hosts",
        "--accept-new takes and keeps it at the first time, or connect with ssh once and look at it",
    ),
    complaint(
        "Host key verification failed",
        Kind::Denied,
        "the key of the host cannot be verified",
        "connect with ssh once, or --accept-new for a host that is new",
    ),
    complaint(
        "Too many authentication failures",
        Kind::Denied,
        "the host was offered too many keys",
        "-S identity=FILE offers one only",
    ),
    complaint(
        "Permission denied",
        Kind::Denied,
        "the host lets this user not in",
        "nothing is ever asked for: it takes a key without passphrase, an agent (ssh-add), or -S identity=FILE, for the user of the URL",
    ),
    complaint(
        "Bad configuration option",
        Kind::Invalid,
        "ssh does not understand its configuration",
        "repair it, or -S ssh-config=FILE",
    ),
    complaint(
        "Bad owner or permissions",
        Kind::Invalid,
        "ssh does not trust its configuration",
        "only its owner may write it",
    ),
    complaint(
        "Can't open user config file",
        Kind::Invalid,
        "ssh cannot read its configuration",
        "-S ssh-config=FILE names it",
    ),
    complaint(
        "subsystem request failed",
        Kind::NotSupported,
        "the host offers no SFTP",
        "its sshd_config lacks the line Subsystem sftp internal-sftp",
    ),
    complaint(
        "Unable to negotiate",
        Kind::NotSupported,
        "the host and ssh have no cipher or key in common",
        "ssh says which; allow it in ~/.ssh/config",
    ),
    complaint(
        "Could not resolve hostname",
        Kind::Unreachable,
        "nobody knows a host of that name",
        "is it spelled right, and is the network there?",
    ),
    complaint(
        "Connection refused",
        Kind::Unreachable,
        "the host is there, but nothing answers at that port",
        "is sshd running, and is it this port?",
    ),
    complaint("timed out", Kind::Timeout, "the host does not answer", "is it on, and reachable?"),
    complaint("No route to host", Kind::Unreachable, "no route to the host", "is it on?"),
    complaint("unreachable", Kind::Unreachable, "the network is unreachable", "is it there?"),
    complaint(
        "not responding",
        Kind::Unreachable,
        "the host stopped answering",
        "is it on, and reachable?",
    ),
];

/// The error that ssh means by `said`; `None` if it said nothing.
pub(super) fn read(said: &str) -> Option<Error> {
    let known = KNOWN.iter().find(|known| said.contains(known.sign));
    let words = words(said, known.map(|known| known.sign));
    match known {
        Some(Complaint { kind, why, hint, .. }) => {
            Some(Error::new(*kind, OP).because(format!("{why}; ssh says: {words}")).hint(*hint))
        }
        None if words.is_empty() => None,
        None => Some(Error::new(Kind::Unreachable, OP).because(format!("ssh says: {words}"))),
    }
}

/// The line of `said` that has `sign`, or else its last lines, without frames and control characters.
fn words(said: &str, sign: Option<&str>) -> String {
    let is_word = |line: &&str| line.chars().any(char::is_alphanumeric);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(is_word).collect();
    let chosen = match sign.and_then(|sign| lines.iter().find(|line| line.contains(sign))) {
        Some(line) => line.trim_matches(['@', ' ']).to_owned(),
        None => lines[lines.len().saturating_sub(3)..].join("; "),
    };
    chosen.chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_is_told_from_the_others() {
        for (said, kind, word) in [
            (
                "No ED25519 host key is known for [h]:22 and you have requested strict checking.\r\nHost key verification failed.\r\n",
                Kind::Denied,
                "--accept-new",
            ),
            (
                "@@@@@@@@@\r\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n@@@@@@@@@\r\nIT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r\nHost key verification failed.\r\n",
                Kind::Denied,
                "ssh-keygen -R",
            ),
            ("me@h: Permission denied (publickey).\r\n", Kind::Denied, "identity"),
            ("ssh: connect to host h port 22: Connection refused\r\n", Kind::Unreachable, "port"),
            ("ssh: connect to host h port 22: Connection timed out\r\n", Kind::Timeout, "answer"),
            (
                "ssh: Could not resolve hostname h: Name or service not known\r\n",
                Kind::Unreachable,
                "spelled",
            ),
            ("subsystem request failed on channel 0\r\n", Kind::NotSupported, "SFTP"),
            (
                "kex_exchange_identification: read: Connection reset by peer\r\n",
                Kind::Unreachable,
                "reset",
            ),
        ] {
            let error = read(said).unwrap();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains(['\r', '\n']), "{error}");
        }
        assert!(read("\r\n@@@\r\n").is_none());
    }
}
