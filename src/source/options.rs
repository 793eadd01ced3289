//! `-S KEY=VALUE`: what a kind of source is told beside its URL.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::core::secret::Secret;
use crate::error::{Error, Kind, Result};

const OP: &str = "use -S";

/// What a value is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Any text.
    Text,
    /// `true` or `false`.
    Flag,
    /// The name of a file.
    Path,
    /// A secret: only as `@FILE`, because everybody on the machine sees a command line.
    Secret,
}

/// One option of a kind of source.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    /// Its key.
    pub name: &'static str,
    /// What its value is.
    pub takes: Takes,
    /// What it does and its default, in one line.
    pub help: &'static str,
}

/// A value as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    /// Absolute. Read whenever the source is opened, so that a secret can be renewed.
    File(PathBuf),
}

/// The options of one source. They hold no secret: those stay in their files until they are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceOptions(BTreeMap<String, Value>);

impl SourceOptions {
    /// Reads `KEY=VALUE` items; one item may hold several, a line each. `KEY=@FILE` takes the value from a file when it is needed.
    ///
    /// # Errors
    /// `Invalid` for an item without `=` or a key that is given twice; never shows a value.
    pub fn parse<T: AsRef<str>>(items: &[T]) -> Result<Self> {
        let mut options = BTreeMap::new();
        let lines = items.iter().flat_map(|item| item.as_ref().lines());
        for line in lines.map(str::trim).filter(|line| !line.is_empty()) {
            let Some((key, value)) = line.split_once('=') else {
                return Err(invalid("an option of the source is written KEY=VALUE"));
            };
            let value = match value.strip_prefix('@') {
                Some(path) => Value::File(absolute(path)?),
                None => Value::Text(value.to_owned()),
            };
            if options.insert(key.to_owned(), value).is_some() {
                return Err(invalid(format!("{key} is given twice")));
            }
        }
        Ok(Self(options))
    }

    /// The same and `key`, as if that were an item more; nothing more if `values` are none.
    ///
    /// # Errors
    /// `Invalid` if it is given already.
    pub fn with(mut self, key: &str, values: &[String]) -> Result<Self> {
        if values.is_empty() {
            return Ok(self);
        }
        match self.0.insert(key.to_owned(), Value::Text(values.join(","))) {
            None => Ok(self),
            Some(_) => Err(invalid(format!("{key} is given twice"))),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same as [`SourceOptions::parse`] reads it, from any directory.
    pub fn items(&self) -> Vec<String> {
        let item = |(key, value): (&String, &Value)| match value {
            Value::Text(text) => format!("{key}={text}"),
            Value::File(path) => format!("{key}=@{}", path.display()),
        };
        self.0.iter().map(item).collect()
    }

    /// Holds them to what a source `known` by its scheme understands.
    ///
    /// # Errors
    /// `Invalid` for an unknown key, a flag that is neither true nor false, or a secret on the command line.
    pub fn check(&self, scheme: &str, known: &[OptionSpec]) -> Result<()> {
        for (key, value) in &self.0 {
            let Some(spec) = known.iter().find(|spec| spec.name == key) else {
                return Err(
                    invalid(format!("{scheme} sources have no option {key}")).hint(possible(known))
                );
            };
            match (spec.takes, value) {
                (Takes::Secret, Value::Text(_)) => {
                    return Err(invalid(format!(
                        "{key} is a secret, and everybody sees a command line"
                    ))
                    .hint(format!("write it into a file that only you can read: -S {key}=@FILE")));
                }
                (Takes::Flag, Value::Text(text)) => drop(flag(key, text)?),
                (Takes::Flag | Takes::Path, Value::File(_)) => {
                    return Err(invalid(format!("{key} takes no @FILE")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The same from any directory: the files that it names are absolute.
    ///
    /// # Errors
    /// As [`absolute`](std::path::absolute); `Invalid` if that is not UTF-8.
    pub fn rooted(mut self, known: &[OptionSpec]) -> Result<Self> {
        for spec in known.iter().filter(|spec| spec.takes == Takes::Path) {
            if let Some(Value::Text(text)) = self.0.get_mut(spec.name) {
                let path = absolute(text)?.into_os_string().into_string();
                *text = path.map_err(|_path| {
                    invalid(format!("the name of the file for {} is not UTF-8", spec.name))
                })?;
            }
        }
        Ok(self)
    }

    /// The text of `key`, if it is given. Blocks if it is in a file.
    ///
    /// # Errors
    /// What keeps the file from being read.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::File(path)) => read(path).map(Some),
        }
    }

    /// The secret `key`, if it is given. Blocks.
    ///
    /// # Errors
    /// What keeps its file from being read.
    pub fn secret(&self, key: &str) -> Result<Option<Secret>> {
        Ok(self.text(key)?.map(Secret::new))
    }

    /// Whether `key` is given and true.
    ///
    /// # Errors
    /// `Invalid` if it is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.text(key)?.map_or(Ok(false), |text| flag(key, &text))
    }

    /// The file that `key` names, if it is given.
    ///
    /// # Errors
    /// As [`absolute`](std::path::absolute).
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>> {
        self.text(key)?.map(|text| absolute(&text)).transpose()
    }
}

/// Keys without values: for messages.
impl fmt::Display for SourceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.0.keys().map(String::as_str).collect();
        f.write_str(&keys.join(", "))
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, OP).because(why)
}

fn possible(known: &[OptionSpec]) -> String {
    let names: Vec<&str> = known.iter().map(|spec| spec.name).collect();
    if names.is_empty() {
        "it has none".to_owned()
    } else {
        format!("possible: {}", names.join(", "))
    }
}

fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(Path::new(path)).map_err(|error| Error::io(OP, error).at(path))
}

/// The text of a file without its last line feed.
fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::io("read option of source", error).at(path))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn flag(key: &str, text: &str) -> Result<bool> {
    match text {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(invalid(format!("{key} is true or false"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[OptionSpec] = &[
        OptionSpec { name: "endpoint", takes: Takes::Text, help: "" },
        OptionSpec { name: "anonymous", takes: Takes::Flag, help: "" },
        OptionSpec { name: "key", takes: Takes::Secret, help: "" },
    ];

    fn checked(items: &[&str]) -> Result<SourceOptions> {
        let options = SourceOptions::parse(items)?;
        options.check("s3", KNOWN).map(|()| options)
    }

    #[test]
    fn options_are_keys_with_values_one_a_line() {
        let options = checked(&["endpoint=http://h:1/?a=b", "anonymous=yes\n"]).unwrap();
        assert_eq!(options.text("endpoint").unwrap().unwrap(), "http://h:1/?a=b");
        assert!(options.flag("anonymous").unwrap() && !options.flag("other").unwrap());
        assert_eq!(
            checked(&["endpoint=x\nanonymous=no"]).unwrap().to_string(),
            "anonymous, endpoint"
        );
        assert_eq!(SourceOptions::parse(&options.items()).unwrap(), options);
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_showing_it() {
        for item in
            ["hunter2", "hunter=hunter2", "anonymous=hunter2", "key=hunter2", "anonymous=@hunter2"]
        {
            let error = checked(&[item]).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{item}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(checked(&["endpoint=a", "endpoint=b"]).is_err());
        assert!(
            checked(&["colour=red"]).unwrap_err().to_string().contains("endpoint, anonymous, key")
        );
    }

    // A daemon stands in another directory than who started it.
    #[test]
    fn a_file_is_that_of_the_directory_where_it_was_named() {
        let known = [OptionSpec { name: "ca", takes: Takes::Path, help: "" }];
        let rooted = |item| SourceOptions::parse(&[item]).unwrap().rooted(&known).unwrap();
        let here = std::env::current_dir().unwrap().join("ca.pem");
        assert_eq!(rooted("ca=ca.pem").items(), [format!("ca={}", here.display())]);
        assert_eq!(rooted("ca=/etc/ca.pem").items(), ["ca=/etc/ca.pem"]);
        assert_eq!(rooted("other=x").items(), ["other=x"]);
    }

    #[test]
    fn a_secret_comes_from_its_file_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let options = checked(&[&format!("key=@{}", file.path().display())]).unwrap();
        for word in ["hunter2\n", "hunter3\r\n"] {
            fs::write(file.path(), word).unwrap();
            assert_eq!(options.secret("key").unwrap().unwrap().reveal(), word.trim_end());
        }
        assert!(!format!("{options:?} {options}").contains("hunter"));
        assert_eq!(
            SourceOptions::parse(&["key=@/nonexistent"]).unwrap().secret("key").unwrap_err().kind(),
            Kind::NotFound
        );
    }
}
