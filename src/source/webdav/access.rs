//! Where a WebDAV source is, and who asks.

use http::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::source::http::credentials::{basic, hidden};
use crate::source::http::site::without_secrets;
use crate::source::http::{CA, HttpOptions, opening};
use crate::source::kinds::Remote;
use crate::source::options::{OptionSpec, SourceOptions, Takes};

const OP: &str = "open source";
const USER: &str = "user";
const PASSWORD: &str = "password";
const TOKEN: &str = "token";

/// What such a source can be told.
pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: USER,
        takes: Takes::Text,
        help: "who asks, with password [default: as in the URL, else in ~/.netrc]",
    },
    OptionSpec { name: PASSWORD, takes: Takes::Secret, help: "its password [default: as user]" },
    OptionSpec {
        name: TOKEN,
        takes: Takes::Secret,
        help: "bearer token, in place of user and password [default: none]",
    },
    CA,
];

/// What a URL of WebDAV says.
#[derive(Debug)]
pub(super) struct Place {
    /// The same in http or https, with its credentials.
    url: Url,
    /// Its name for people.
    pub(super) display_name: String,
}

impl Place {
    /// Reads `webdav://host/directory/` and its likes.
    ///
    /// # Errors
    /// `Invalid` if it is no URL.
    pub(super) fn parse(spec: &str) -> Result<Self> {
        let (scheme, rest) = spec.split_once(':').unwrap_or_default();
        let scheme = scheme.to_ascii_lowercase();
        let web = if scheme.ends_with('s') { "https" } else { "http" };
        // Of a third slash the web's URLs make nothing, and a directory would be taken for the host.
        if !rest.starts_with("//") || rest.starts_with("///") {
            return Err(Error::new(Kind::Invalid, OP)
                .because("not a usable URL: it is written webdav(s)://host/directory/"));
        }
        let (url, _) = opening::parse(&format!("{web}:{rest}"))?;
        let shown = without_secrets(&url);
        let display_name = format!("{scheme}{}", shown.strip_prefix(web).unwrap_or_default());
        Ok(Self { url, display_name })
    }
}

/// The URL that is asked, without credentials, and how. Blocks: it reads files.
///
/// # Errors
/// `Invalid` for a user who is said in two ways or in half; what keeps a file from being read.
pub(super) fn gather(remote: &Remote) -> Result<(Url, HttpOptions)> {
    let mut url = Place::parse(&remote.url)?.url;
    let authorization = authorization(&mut url, &remote.options)?;
    let ca = remote.options.path(CA.name)?;
    Ok((url, HttpOptions { ca, authorization, ..HttpOptions::default() }))
}

/// What the options say of who asks; the URL's own credentials stay in it where they are all there is.
fn authorization(url: &mut Url, options: &SourceOptions) -> Result<Option<HeaderValue>> {
    let invalid = |why: &str| {
        Error::new(Kind::Invalid, OP)
            .because(why)
            .hint("-S token=@FILE, or -S user=NAME with -S password=@FILE, or a user in the URL")
    };
    let (user, password) = (options.text(USER)?, options.secret(PASSWORD)?);
    let (is_named, has_password) = (!url.username().is_empty(), url.password().is_some());
    let header = if let Some(token) = options.secret(TOKEN)? {
        if user.is_some() || password.is_some() || is_named || has_password {
            return Err(invalid("a token and a user are given, and one of them can ask"));
        }
        hidden(&format!("Bearer {}", token.reveal()))
    } else if user.is_none() && password.is_none() {
        return Ok(None);
    } else if user.is_some() && is_named || password.is_some() && has_password {
        return Err(invalid("the URL and -S both say who asks"));
    } else {
        let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let named = is_named.then(|| decode(url.username()));
        let user = user.map(String::into_bytes).or(named);
        let user = user.ok_or_else(|| invalid("a password is given, and no user"))?;
        let password = password.map(|password| password.reveal().as_bytes().to_vec());
        let password = password.or_else(|| url.password().map(decode));
        basic(&user, &password.ok_or_else(|| invalid("a user is given, and no password"))?)
    };
    // Cannot fail: http and https URLs have hosts.
    let _hostless = url.set_username("").and_then(|()| url.set_password(None));
    header.map(Some).ok_or_else(|| invalid("the token is not one that a header can hold"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn each_scheme_has_its_own_name_and_no_secret_in_it() {
        for (spec, url, name) in [
            ("webdav://h/d", "http://h/d", "webdav://h/d"),
            (
                "WEBDAVS://me:pw@H:8443/d/?s=1#f",
                "https://me:pw@h:8443/d/?s=1",
                "webdavs://h:8443/d/?…",
            ),
            ("dav://h:80", "http://h/", "dav://h/"),
            ("davs://h/a b%2F", "https://h/a%20b%2F", "davs://h/a%20b%2F"),
        ] {
            let place = Place::parse(spec).unwrap();
            assert_eq!((place.url.as_str(), place.display_name.as_str()), (url, name));
        }
        for wrong in ["webdav:", "webdav:/h/d", "webdav://", "webdav:///d", "webdav://h:x/"] {
            assert_eq!(Place::parse(wrong).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }

    fn asked(url: &str, items: &[&str]) -> Result<(String, Option<String>)> {
        let mut url = Url::parse(url).unwrap();
        let header = authorization(&mut url, &SourceOptions::parse(items).unwrap())?;
        assert!(header.iter().all(HeaderValue::is_sensitive));
        Ok((url.into(), header.map(|header| header.to_str().unwrap().to_owned())))
    }

    #[test]
    fn who_asks_is_said_in_one_way_and_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"pa:ss\n").unwrap();
        let password = &*format!("password=@{}", file.path().display());
        let token = &*format!("token=@{}", file.path().display());
        let (plain, me) = ("http://h/", "http://me@h/");
        let basic = ("http://h/".to_owned(), Some("Basic bWU6cGE6c3M=".to_owned()));
        assert_eq!(asked(plain, &["user=me", password]).unwrap(), basic);
        assert_eq!(asked(me, &[password]).unwrap(), basic);
        assert_eq!(asked("http://:pa%3Ass@h/", &["user=me"]).unwrap(), basic);
        assert_eq!(asked(plain, &[token]).unwrap().1.unwrap(), "Bearer pa:ss");
        assert_eq!(asked("http://me:pw@h/", &[]).unwrap(), ("http://me:pw@h/".to_owned(), None));
        for (url, items) in [
            (plain, &["user=me"][..]),
            (plain, &[password]),
            (me, &["user=me", password]),
            ("http://me:pw@h/", &[password]),
            (me, &[token]),
            (plain, &[token, password]),
        ] {
            let error = asked(url, items).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{items:?}");
            assert!(!error.to_string().contains("pa:ss"), "{error}");
        }
    }
}
