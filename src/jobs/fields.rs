//! The tables of a jobs file, key by key: what is wrong is gathered with its line, its key and what is possible.

use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Kind};

/// Names that are alike enough to be a slip of the finger (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.8;

/// What is wrong with a file, in the order in which it was found.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    /// As the user named it.
    file: PathBuf,
    text: &'t str,
    found: Vec<(usize, String)>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(file: &Path, text: &'t str) -> Self {
        Self { file: file.to_owned(), text, found: Vec::new() }
    }

    /// `place` is where in the file it is, in bytes.
    pub(super) fn add(&mut self, place: Range<usize>, why: impl Into<String>) {
        let before = self.text.get(..place.start).unwrap_or(self.text);
        let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
        self.found.push((line, why.into()));
    }

    /// One error each, by lines.
    pub(super) fn into_errors(mut self) -> Vec<Error> {
        self.found.sort_by_key(|(line, _)| *line);
        let file = self.file.display();
        let of = |(line, why)| {
            Error::new(Kind::Invalid, "read").at(format!("{file}:{line}")).because(why)
        };
        self.found.into_iter().map(of).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Range<usize>,
}

/// One table, whose keys are asked for by name; those that nobody asked for are unknown.
pub(super) struct Fields<'a, 'i> {
    /// As people call it: `[run]`, `[[job]] photos`.
    shown_as: String,
    table: &'a DeTable<'i>,
    place: Range<usize>,
    known: Vec<&'static str>,
}

impl<'a, 'i> Fields<'a, 'i> {
    pub(super) fn new(
        shown_as: impl Into<String>,
        table: &'a DeTable<'i>,
        place: Range<usize>,
    ) -> Self {
        Self { shown_as: shown_as.into(), table, place, known: Vec::new() }
    }

    /// From now on it is called so.
    pub(super) fn set_shown_as(&mut self, shown_as: String) {
        self.shown_as = shown_as;
    }

    pub(super) fn place(&self) -> Range<usize> {
        self.place.clone()
    }

    /// The value as it stands there.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// The value, read; `None` if it is not there, or is a problem now.
    pub(super) fn take<T>(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<At<T>> {
        let found = self.raw(key)?;
        match read(found.get_ref()) {
            Ok(value) => Some(At { value, place: found.span() }),
            Err(why) => {
                problems.add(found.span(), format!("{} {key}: {why}", self.shown_as));
                None
            }
        }
    }

    /// As [`Fields::take`], and a problem if it is not there.
    pub(super) fn require<T>(
        &mut self,
        problems: &mut Problems<'_>,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<At<T>> {
        if !self.table.contains_key(key) {
            problems.add(self.place(), format!("{} has no {key}", self.shown_as));
        }
        self.take(problems, key, read)
    }

    /// Every key was asked for by now.
    pub(super) fn finish(mut self, problems: &mut Problems<'_>) {
        self.known.sort_unstable();
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let hint = match alike(name, self.known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("possible are {}", self.known.join(", ")),
            };
            let why = format!("unknown key `{name}` in {}: {hint}", self.shown_as);
            problems.add(key.span(), why);
        }
    }
}

/// The name that was most likely meant.
pub(super) fn alike<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let rated = names.map(|known| (strsim::jaro_winkler(name, known), known));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > ALIKE).then_some(best.1)
}

/// Text that is not empty.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value.as_str() {
        Some("") => Err("it is empty".to_owned()),
        // A path with it cannot be opened, a program not be started.
        Some(text) if text.contains('\0') => Err("it holds a NUL character".to_owned()),
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("a text in quotes is wanted, not {}", kind(value))),
    }
}

/// One text, or several.
pub(super) fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value.as_array() {
        Some(values) => values.iter().map(|value| text(value.get_ref())).collect(),
        None if value.is_str() => text(value).map(|text| vec![text]),
        None => Err(format!("a list of texts is wanted, as [\"a\", \"b\"], not {}", kind(value))),
    }
}

/// A program and its arguments.
pub(super) fn argv(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    const WANTED: &str = "a list of the program and its arguments is wanted, as [\"/usr/bin/logger\", \"-t\", \"copies\"]";
    let values = value.as_array().ok_or_else(|| format!("{WANTED}; no shell reads it"))?;
    match values.is_empty() {
        true => Err(WANTED.to_owned()),
        // Arguments may be empty, the program not.
        false => {
            let texts =
                values.iter().enumerate().map(|(index, value)| match value.get_ref().as_str() {
                    Some("") if index > 0 => Ok(String::new()),
                    _ => text(value.get_ref()),
                });
            texts.collect()
        }
    }
}

/// true or false.
pub(super) fn flag(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("true or false is wanted, not {}", kind(value)))
}

/// A whole number.
pub(super) fn number(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = value
        .as_integer()
        .and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
    number.filter(|number| range.contains(number)).ok_or_else(|| match *range.end() {
        u64::MAX => format!("a number of at least {} is wanted", range.start()),
        end => format!("a number from {} to {end} is wanted", range.start()),
    })
}

/// One of several words.
pub(super) fn choice(value: &DeValue<'_>, words: &[&str]) -> Result<String, String> {
    let text = text(value)?;
    match words.contains(&text.as_str()) {
        true => Ok(text),
        false => Err(format!("`{text}` is none of {}", words.join(", "))),
    }
}

/// Text that means something.
pub(super) fn parsed<T>(
    value: &DeValue<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    let text = text(value)?;
    parse(&text).map_err(|why| format!("`{text}`: {why}"))
}

fn kind(value: &DeValue<'_>) -> String {
    match value.type_str() {
        "table" => "a table".to_owned(),
        "array" => "a list".to_owned(),
        "boolean" => "true or false".to_owned(),
        "string" => "a text".to_owned(),
        "datetime" => "a date".to_owned(),
        _ => "a number".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let mut problems = Problems::new(Path::new("j.toml"), text);
        let table = DeTable::parse(text).unwrap();
        let mut fields = Fields::new("[run]", table.get_ref(), table.span());
        fields.take(&mut problems, "parallel", |value| number(value, 1..=64));
        fields.take(&mut problems, "exclude", texts);
        fields.take(&mut problems, "order", |value| choice(value, &["a", "b"]));
        fields.take(&mut problems, "on-error", argv);
        fields.finish(&mut problems);
        problems.into_errors().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_problem_names_line_key_and_what_is_possible() {
        assert_eq!(
            read("parallel = 0x10\nexclude = 'a'\non-error = ['x', '']"),
            Vec::<String>::new()
        );
        let found =
            read("parallel = 0\n\nexlude = []\norder = 'c'\nwhat = 1\non-error = 'rm -rf /'");
        assert_eq!(found.len(), 5, "{found:#?}");
        assert_eq!(found[0], "read j.toml:1: [run] parallel: a number from 1 to 64 is wanted");
        assert_eq!(
            found[1],
            "read j.toml:3: unknown key `exlude` in [run]: did you mean `exclude`?"
        );
        assert_eq!(found[2], "read j.toml:4: [run] order: `c` is none of a, b");
        assert_eq!(
            found[3],
            "read j.toml:5: unknown key `what` in [run]: possible are exclude, on-error, order, parallel"
        );
        assert!(found[4].contains("no shell reads it"));
    }
}
