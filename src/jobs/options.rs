//! The keys of a job that are options of `lazycopy copy`, by the same names.

use std::path::Path;

use toml::de::DeValue;

use crate::core::filter::Filter;
use crate::daemon::units::{parse_fetch, parse_size};
use crate::jobs::fields::{Fields, Problems, choice, flag, number, parsed, text, texts};
use crate::source::options::SourceOptions;

/// What a key takes.
#[derive(Debug, Clone, Copy)]
pub enum Takes {
    /// true or false.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One glob or several.
    Globs,
    /// A number of at least the first and at most the second.
    Number(u64, u64),
    /// A size.
    Size,
    /// A size, for ever or for each day.
    Quota,
    /// A path, relative to the file.
    Path,
    /// `KEY=VALUE` once or several times; `KEY=@FILE` is relative to the file.
    Pairs,
    /// One text or several.
    Texts,
}

/// All of them but the rate, which is shared out.
pub const OPTIONS: [(&str, Takes); 22] = [
    ("include", Takes::Globs),
    ("exclude", Takes::Globs),
    ("first", Takes::Globs),
    ("order", Takes::Choice(&["listing", "small-first", "large-first"])),
    ("lanes", Takes::Choice(&["auto", "directory"])),
    ("max-jobs", Takes::Number(1, 1024)),
    ("max-connections", Takes::Number(1, 1024)),
    ("max-fetch", Takes::Quota),
    ("max-requests", Takes::Number(1, u64::MAX)),
    ("delete", Takes::Flag),
    ("max-delete", Takes::Number(0, u64::MAX)),
    ("existing", Takes::Choice(&["adopt", "adopt-fast", "overwrite", "fail"])),
    ("durability", Takes::Choice(&["normal", "paranoid"])),
    ("cross-mounts", Takes::Flag),
    ("preserve-privileged", Takes::Flag),
    ("strict-metadata", Takes::Flag),
    ("reserve", Takes::Size),
    ("state-dir", Takes::Path),
    ("source-option", Takes::Pairs),
    ("allow-origin", Takes::Texts),
    ("accept-new", Takes::Flag),
    ("log-level", Takes::Choice(&["error", "warn", "info", "debug", "trace"])),
];

/// An option as it is given to `lazycopy copy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOption {
    /// Without dashes.
    pub name: &'static str,
    /// A flag that is false has none.
    pub values: Vec<String>,
    is_flag: bool,
}

impl CopyOption {
    /// The arguments.
    pub fn arguments(&self) -> Vec<String> {
        let Self { name, values, is_flag } = self;
        values
            .iter()
            .map(|value| match is_flag {
                true => format!("--{name}"),
                false => format!("--{name}={value}"),
            })
            .collect()
    }

    /// The variable that must not say otherwise: a flag that is false has no other way to be.
    pub fn hidden_variable(&self) -> Option<String> {
        let is_off = self.is_flag && self.values.is_empty();
        is_off.then(|| format!("LAZYCOPY_{}", self.name.to_uppercase().replace('-', "_")))
    }
}

/// Those that a table has.
pub(super) fn read(
    fields: &mut Fields<'_, '_>,
    problems: &mut Problems<'_>,
    base: &Path,
) -> Vec<CopyOption> {
    let mut options = Vec::new();
    for (name, takes) in OPTIONS {
        let values = fields.take(problems, name, |value| values(takes, value, base));
        let is_flag = matches!(takes, Takes::Flag);
        options.extend(values.map(|at| CopyOption { name, values: at.value, is_flag }));
    }
    options
}

fn values(takes: Takes, value: &DeValue<'_>, base: &Path) -> Result<Vec<String>, String> {
    let one = match takes {
        Takes::Flag => return flag(value).map(|on| if on { vec![String::new()] } else { vec![] }),
        Takes::Globs => {
            let globs = texts(value)?;
            Filter::new(&globs, &[], &[]).map_err(|error| error.to_string())?;
            return Ok(globs);
        }
        Takes::Pairs => {
            let absolute = |pair: String| match pair.split_once("=@") {
                Some((key, path)) if !key.contains('=') => {
                    format!("{key}=@{}", base.join(path).display())
                }
                _ => pair,
            };
            let pairs: Vec<String> = texts(value)?.into_iter().map(absolute).collect();
            SourceOptions::parse(&pairs).map_err(|error| error.to_string())?;
            return Ok(pairs);
        }
        Takes::Texts => return texts(value),
        Takes::Choice(words) => choice(value, words)?,
        Takes::Number(least, most) => number(value, least..=most)?.to_string(),
        Takes::Size => parsed(value, |text| parse_size(text).map(|_| text.to_owned()))?,
        Takes::Quota => parsed(value, |text| parse_fetch(text).map(|_| text.to_owned()))?,
        Takes::Path => {
            let path = base.join(text(value)?);
            path.to_str().ok_or("the path is not UTF-8")?.to_owned()
        }
    };
    Ok(vec![one])
}

/// `own`, and what `defaults` says of the rest.
pub(super) fn with_defaults(mut own: Vec<CopyOption>, defaults: &[CopyOption]) -> Vec<CopyOption> {
    for default in defaults {
        if own.iter().all(|option| option.name != default.name) {
            own.push(default.clone());
        }
    }
    own
}
