//! Where a manifest may send its readers.

use std::path::PathBuf;

use url::{Origin, Url};

use super::line::{FileLine, Line};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A file of this machine.
    Local(PathBuf),
    /// A URL of a server.
    Web(Url),
}

/// The manifest's own place, and the origins that it may name besides.
#[derive(Debug, Clone)]
pub(super) struct Places {
    base: Url,
    allowed: Vec<Origin>,
}

impl Places {
    /// `allowed` are origins (`https://host`, `http://host:8080`), separated by commas.
    ///
    /// # Errors
    /// `Invalid` for an origin that is none.
    pub(super) fn new(base: Url, allowed: &str) -> Result<Self> {
        let names = allowed.split(',').map(str::trim).filter(|name| !name.is_empty());
        let allowed = names.map(origin).collect::<Result<_>>()?;
        Ok(Self { base, allowed })
    }

    /// Where the bytes of the file `file` at `path` are.
    ///
    /// # Errors
    /// What is wrong with its URL, for people; never shows one, as it may be signed.
    pub(super) fn of(&self, path: &RelPath, file: &FileLine) -> std::result::Result<Place, String> {
        let url = self
            .base
            .join(&file.reference(path))
            .map_err(|error| format!("its url makes no sense: {error}"))?;
        match url.scheme() {
            "file" if self.base.scheme() == "file" => {
                let path = url.to_file_path();
                path.map(Place::Local)
                    .map_err(|()| "its file: url names no path of this machine".to_owned())
            }
            "file" => {
                Err("a manifest from elsewhere may not name files of this machine".to_owned())
            }
            "http" | "https" if self.may_name(&url) => Ok(Place::Web(url)),
            "http" | "https" => {
                let origin = url.origin().ascii_serialization();
                Err(format!(
                    "{origin} is not where the manifest is from; allowed with --allow-origin {origin}"
                ))
            }
            other => Err(format!("{other}: urls are not possible; http, https and file are")),
        }
    }

    /// As [`Places::of`], for any line.
    ///
    /// # Errors
    /// As [`Places::of`].
    pub(super) fn check(&self, line: &Line) -> std::result::Result<Option<Place>, String> {
        match &line.what {
            super::line::What::File(file) => self.of(&line.path, file).map(Some),
            _ => Ok(None),
        }
    }

    fn may_name(&self, url: &Url) -> bool {
        let origin = url.origin();
        self.base.origin() == origin || self.allowed.contains(&origin)
    }
}

fn origin(name: &str) -> Result<Origin> {
    let url = Url::parse(name).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.path() == "/"
            && url.query().is_none()
            && url.username().is_empty()
    });
    url.map(|url| url.origin()).ok_or_else(|| {
        Error::new(Kind::Invalid, "use --allow-origin")
            .because(format!("{name} is no origin"))
            .hint("an origin is a scheme and a host: https://data.example.org")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(base: &str, allowed: &str, url: &str) -> std::result::Result<Place, String> {
        let places = Places::new(Url::parse(base).unwrap(), allowed).unwrap();
        let json = serde_json::json!({ "path": "a", "url": url }).to_string();
        places.check(&Line::parse(json.as_bytes()).unwrap()).map(Option::unwrap)
    }

    fn web(url: &str) -> std::result::Result<Place, String> {
        Ok(Place::Web(Url::parse(url).unwrap()))
    }

    #[test]
    fn a_manifest_names_its_own_scheme_and_host_only() {
        let base = "https://h/d/m.jsonl";
        assert_eq!(place(base, "", "x/y?sig=1"), web("https://h/d/x/y?sig=1"));
        assert_eq!(place(base, "", "/x"), web("https://h/x"));
        assert_eq!(place(base, "", "https://h:443/x"), web("https://h/x"));
        for url in ["http://h/x", "https://h:8443/x", "//other/x", "https://other/x?sig=secret"] {
            let error = place(base, "", url).unwrap_err();
            assert!(error.contains("--allow-origin"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert_eq!(place(base, "https://o, http://h", "http://h/x"), web("http://h/x"));
        assert!(place(base, "", "ftp://h/x").unwrap_err().contains("ftp"));
    }

    #[test]
    fn only_a_file_names_files() {
        assert_eq!(place("file:///d/m", "", "x%20y"), Ok(Place::Local("/d/x y".into())));
        assert_eq!(place("file:///d/m", "", "file:///e"), Ok(Place::Local("/e".into())));
        for allowed in ["", "https://h"] {
            assert!(place("https://h/m", allowed, "file:///etc/passwd").is_err());
        }
        assert!(place("file:///d/m", "", "https://h/x").is_err());
        assert_eq!(place("file:///d/m", "https://h", "https://h/x"), web("https://h/x"));
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        let base = || Url::parse("file:///m").unwrap();
        for wrong in ["h", "ftp://h", "https://h/path", "https://u@h", "*"] {
            assert_eq!(Places::new(base(), wrong).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }
}
