//! Basic authentication from the URL or a netrc file.

use std::env;
use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

/// The Authorization header for `url`, whose userinfo is taken out. A netrc file is asked if the URL has none: `netrc`, else
/// `$NETRC`, else `~/.netrc`. Blocks.
pub(super) fn take(url: &mut Url, netrc: Option<PathBuf>) -> Option<HeaderValue> {
    let user: Vec<u8> = percent_decode_str(url.username()).collect();
    let password: Option<Vec<u8>> =
        url.password().map(|password| percent_decode_str(password).collect());
    if user.is_empty() && password.is_none() {
        let text = fs::read_to_string(netrc.or_else(netrc_path)?).ok()?;
        let (user, password) = look_up(&text, url.host_str()?)?;
        return basic(user.as_bytes(), password.as_bytes());
    }
    // Cannot fail: http and https URLs have hosts.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return None;
    }
    basic(&user, &password.unwrap_or_default())
}

/// The header for a user and a password (RFC 7617).
pub(in crate::source) fn basic(user: &[u8], password: &[u8]) -> Option<HeaderValue> {
    let pair = STANDARD.encode([user, b":", password].concat());
    hidden(&format!("Basic {pair}"))
}

/// A header that shows its value to nobody; `None` if it cannot be one.
pub(in crate::source) fn hidden(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    // Keeps it out of every Debug output.
    value.set_sensitive(true);
    Some(value)
}

fn netrc_path() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("NETRC").or_else(|| Some(set("HOME")?.join(".netrc")))
}

/// Login and password for `host` in a netrc file, as curl reads it: the first matching machine, or the default entry.
fn look_up(text: &str, host: &str) -> Option<(String, String)> {
    let mut words = Words { rest: text };
    let (mut is_ours, mut login, mut password) = (false, None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" | "default" if is_ours => break,
            "machine" => is_ours = words.next().is_some_and(|name| name.eq_ignore_ascii_case(host)),
            "default" => is_ours = true,
            "macdef" => words.skip_macro(),
            "login" => login = words.next().filter(|_| is_ours).or(login),
            "password" => password = words.next().filter(|_| is_ours).or(password),
            "account" => drop(words.next()),
            _ => {}
        }
    }
    is_ours.then(|| (login.unwrap_or_default(), password.unwrap_or_default()))
}

/// The words of a netrc file: split at white space, `"…"` with backslashes kept together, `#` starts a comment at a word's place.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// A macro ends at the first empty line.
    fn skip_macro(&mut self) {
        self.rest = self.rest.find("\n\n").map_or("", |end| &self.rest[end..]);
    }

    fn quoted(&mut self) -> String {
        let mut word = String::new();
        let mut letters = self.rest.char_indices();
        while let Some((_, letter)) = letters.next() {
            match letter {
                '"' => break,
                '\\' => match letters.next() {
                    Some((_, 'n')) => word.push('\n'),
                    Some((_, 't')) => word.push('\t'),
                    Some((_, escaped)) => word.push(escaped),
                    None => {}
                },
                letter => word.push(letter),
            }
        }
        self.rest = letters.as_str();
        word
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.is_empty() {
                return None;
            }
            if self.rest.starts_with('#') {
                self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
                continue;
            }
            if let Some(rest) = self.rest.strip_prefix('"') {
                self.rest = rest;
                return Some(self.quoted());
            }
            let end = self.rest.find(char::is_whitespace).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Some(word.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const NETRC: &str = "# mine\nmachine one.example login ann password p1\nmacdef init\nmachine evil login x\n\n\
        machine two.example\n  login bob\n  account z\n  password \"a \\\"b\\\\\"\ndefault login any password other";

    #[test]
    fn netrc_gives_the_machine_or_the_default() {
        let pair = |login: &str, password: &str| Some((login.to_owned(), password.to_owned()));
        assert_eq!(look_up(NETRC, "one.example"), pair("ann", "p1"));
        assert_eq!(look_up(NETRC, "TWO.example"), pair("bob", "a \"b\\"));
        assert_eq!(look_up(NETRC, "evil"), pair("any", "other"));
        assert_eq!(look_up("machine a login b password c", "x"), None);
        assert_eq!(look_up("machine", "x"), None);
    }

    #[test]
    fn the_url_goes_before_netrc_and_loses_its_secret() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(NETRC.as_bytes()).unwrap();
        let netrc = Some(file.path().to_owned());
        let mut url = Url::parse("http://us%40er:pa%3Ass@one.example/x").unwrap();
        let header = take(&mut url, netrc.clone()).unwrap();
        assert_eq!(url.as_str(), "http://one.example/x");
        assert_eq!(header, format!("Basic {}", STANDARD.encode("us@er:pa:ss")).as_str());
        assert!(!format!("{header:?}").contains("Basic"));
        let header = take(&mut url, netrc).unwrap();
        assert_eq!(header, format!("Basic {}", STANDARD.encode("ann:p1")).as_str());
    }
}
