//! What an sftp URL names: who, where, and which directory or file.

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use crate::error::{Error, Kind, Result};

/// Letters that a shell understands: user and host may end in a ProxyCommand of the configuration.
const OF_SHELLS: &str = "'\"`$\\;&<>|(){}*?[]!#,/ ";

/// Who asks whom for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `None` = as the configuration of ssh has it.
    pub(super) user: Option<String>,
    /// A name, an address, or an alias of the configuration.
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// Absolute, or relative to where the server starts: the home directory. No slash at its end but of the root itself.
    pub(super) path: Bytes,
    /// It was written like a directory.
    pub(super) is_directory: bool,
    display_name: String,
}

impl Place {
    /// Reads `sftp://[user@]host[:port]/dir`, or `/~/dir` for what is below the home directory. The path is percent-encoded; bytes that
    /// need not be are taken as they are.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        let user = user.map(check_user).transpose()?;
        let (host, port) = split_port(address)?;
        let host = check_host(host)?;
        let trimmed = path.trim_end_matches('/');
        let decoded = match trimmed.strip_prefix("/~") {
            Some("") => Bytes::from_static(b"."),
            Some(below) if below.starts_with('/') => decode(below.trim_start_matches('/'))?,
            _ if trimmed.is_empty() => Bytes::from_static(b"/"),
            _ => decode(trimmed)?,
        };
        let path_name = if trimmed.is_empty() { "/" } else { trimmed };
        let display_name = format!("sftp://{authority}{path_name}");
        let is_directory = path.ends_with('/') || path == "/~";
        Ok(Self { user, host, port, path: decoded, is_directory, display_name })
    }

    pub(super) fn display_name(&self) -> &str {
        &self.display_name
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, "open source").because(why)
}

fn decode(path: &str) -> Result<Bytes> {
    let path: Vec<u8> = percent_decode_str(path).collect();
    if path.contains(&0) {
        return Err(invalid("a path holds no NUL"));
    }
    Ok(Bytes::from(path))
}

fn check_user(user: &str) -> Result<String> {
    if user.contains(':') {
        return Err(invalid("an sftp URL takes no password, which everybody would see")
            .hint("use a key: ssh-copy-id, an agent, or -S identity=FILE"));
    }
    let user = percent_decode_str(user)
        .decode_utf8()
        .map_err(|_not_text| invalid("the user is not UTF-8"))?;
    // A domain's users may have its backslash in their names, as ssh allows it.
    let is_name = |c: char| !c.is_control() && (c == '\\' || !OF_SHELLS.contains(c));
    let is_ours = user.is_empty() || user.starts_with('-') || user.ends_with('\\');
    if is_ours || !user.chars().all(is_name) {
        return Err(invalid("not the name of a user: sftp://user@host/dir"));
    }
    Ok(user.into_owned())
}

fn split_port(address: &str) -> Result<(&str, Option<u16>)> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) =
                rest.split_once(']').ok_or_else(|| invalid("an address without its ]"))?;
            match port.strip_prefix(':') {
                _ if port.is_empty() => (host, None),
                Some(port) => (host, Some(port)),
                None => return Err(invalid("something else than a port behind ]")),
            }
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let number = |text: &str| {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        port.ok_or_else(|| {
            invalid("not a port: sftp://user@host:22/dir").hint("an IPv6 address is written [::1]")
        })
    };
    Ok((host, port.map(number).transpose()?))
}

fn check_host(host: &str) -> Result<String> {
    let is_name = |c: char| !c.is_control() && !c.is_whitespace() && !OF_SHELLS.contains(c);
    // What begins with a dash would be an option of ssh.
    if host.is_empty() || host.starts_with('-') || !host.chars().all(is_name) {
        return Err(invalid("not the name of a host: sftp://user@host/dir"));
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Place {
        Place::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn a_url_names_user_host_port_and_path() {
        let all = place("sftp://me%40corp@files.example.org:2222/srv/a%20b/100%/%ff?x#y/");
        assert_eq!(all.user.as_deref(), Some("me@corp"));
        assert_eq!((all.host.as_str(), all.port), ("files.example.org", Some(2222)));
        assert_eq!(&all.path[..], b"/srv/a b/100%/\xff?x#y");
        assert!(all.is_directory);
        assert_eq!(
            all.display_name(),
            "sftp://me%40corp@files.example.org:2222/srv/a%20b/100%/%ff?x#y"
        );
        let alias = place("SFTP://alias_1");
        assert_eq!((alias.user, alias.port, &alias.path[..]), (None, None, &b"/"[..]));
        assert_eq!(alias.display_name, "sftp://alias_1/");
        let six = place("sftp://[fe80::1%eth0]:22/x");
        assert_eq!((six.host.as_str(), six.port), ("fe80::1%eth0", Some(22)));
        assert_eq!(place("sftp://[::1]/x").port, None);
    }

    #[test]
    fn a_tilde_is_the_home_directory() {
        for (url, path) in [
            ("sftp://h/~", "."),
            ("sftp://h/~/", "."),
            ("sftp://h/~/a/b/", "a/b"),
            ("sftp://h/%7E/a", "/~/a"),
            ("sftp://h/~other/a", "/~other/a"),
            ("sftp://h//a//b", "//a//b"),
        ] {
            assert_eq!(place(url).path, path, "{url}");
        }
    }

    #[test]
    fn what_ssh_or_a_shell_could_take_for_something_else_is_refused() {
        for url in [
            "sftp://",
            "sftp:///x",
            "sftp://-oProxyCommand=x/y",
            "sftp://-l@h/",
            "sftp://me@-F/",
            "sftp://%2doProxyCommand=x@h/",
            "sftp://a b/",
            "sftp://a;b/",
            "sftp://`x`/",
            "sftp://$(x)@h/",
            "sftp://a%60x%60@h/",
            "sftp://@h/",
            "sftp://h:0/",
            "sftp://h:99999/",
            "sftp://h:/",
            "sftp://::1/",
            "sftp://[::1/",
            "sftp://[::1]x/",
            "sftp://h/a%00b",
        ] {
            let error = Place::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{url}");
        }
    }

    #[test]
    fn a_password_is_refused_unseen() {
        let error = Place::parse("sftp://me:hunter2@h/").unwrap_err();
        assert!(error.to_string().contains("key"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
