//! The lines of a manifest by path: a table in an unlinked temporary file, so that a million of them take no memory.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::line::{Line, What};
use super::places::{Place, Places};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

/// The line's number and its JSON.
type Value = (u64, &'static [u8]);

/// By path.
const LINES: TableDefinition<&[u8], Value> = TableDefinition::new("lines");
const OP: &str = "read manifest";
/// Memory for pages of the table.
const CACHE_BYTES: usize = 32 << 20;

/// A line with its number, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) line: Line,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An entry with a line.
    Line(Box<Numbered>),
    /// A directory that only the paths below it speak of.
    Implied,
    /// Nothing.
    Nothing,
}

/// All lines. Every method may read the temporary file.
#[derive(Debug)]
pub(super) struct Index {
    lines: Database,
    /// Attributes of every file are in its line.
    pub(super) is_complete: bool,
    /// Bytes of some file are on a server.
    pub(super) is_remote: bool,
}

/// An error about line `number`.
pub(super) fn at_line(number: u64, why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, OP).because(format!("line {number}: {why}"))
}

fn broken(error: impl Into<redb::Error>) -> Error {
    Error::new(Kind::Io, OP).because("its temporary index").caused_by(error.into())
}

/// Whether the line alone tells everything about a file: its length, and something that tells versions apart.
pub(super) fn is_complete(line: &Line) -> bool {
    match &line.what {
        What::File(file) => file.size.is_some() && (file.etag.is_some() || file.checksum.is_some()),
        What::Directory | What::Symlink(_) => true,
    }
}

impl Index {
    /// Takes all lines in; `batches` gives them with the number of the first. Blocks.
    ///
    /// # Errors
    /// `Invalid` naming the line that makes no sense; what keeps the temporary file from being written.
    pub(super) fn build(
        directory: &Path,
        places: &Places,
        batches: impl Iterator<Item = (u64, Vec<Vec<u8>>)>,
    ) -> Result<Self> {
        let file = tempfile::tempfile_in(directory)
            .map_err(|error| Error::io("make temporary file", error).at(directory))?;
        let mut index = Self { lines: database(file)?, is_complete: true, is_remote: false };
        let mut transaction = index.lines.begin_write().map_err(broken)?;
        transaction.set_durability(Durability::None).map_err(broken)?;
        {
            let mut table = transaction.open_table(LINES).map_err(broken)?;
            let mut seen = Seen { is_complete: true, is_remote: false };
            for (first, lines) in batches {
                for (number, json) in (first..).zip(lines) {
                    seen.take(&mut table, places, number, &json)?;
                }
            }
            (index.is_complete, index.is_remote) = (seen.is_complete, seen.is_remote);
            check_directories(&table)?;
        }
        transaction.commit().map_err(broken)?;
        Ok(index)
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// `Io` if the temporary file cannot be read.
    pub(super) fn find(&self, path: &RelPath) -> Result<Found> {
        if path.is_root() {
            return Ok(Found::Implied);
        }
        let table = self.table()?;
        if let Some(found) = table.get(path.as_bytes()).map_err(broken)? {
            let (number, json) = found.value();
            return parse(number, json).map(|line| Found::Line(Box::new(line)));
        }
        let below = [path.as_bytes(), b"/"].concat();
        let mut range = table.range(below.as_slice()..).map_err(broken)?;
        match range.next().transpose().map_err(broken)? {
            Some((key, _)) if key.value().starts_with(&below) => Ok(Found::Implied),
            _ => Ok(Found::Nothing),
        }
    }

    /// Passes the entries of `directory` to `take` in the order of their bytes, with their lines if they have one, until it says that it has enough.
    ///
    /// # Errors
    /// As [`Index::find`]; `NotFound` and `Invalid` if it is no directory; what `take` says.
    pub(super) fn children(
        &self,
        directory: &RelPath,
        mut take: impl FnMut(&OsStr, Option<Numbered>) -> Result<bool>,
    ) -> Result<()> {
        match self.find(directory)? {
            Found::Implied => {}
            Found::Line(found) if found.line.what == What::Directory => {}
            Found::Line(_) => {
                return Err(Error::new(Kind::Invalid, "list directory").because("not a directory"));
            }
            Found::Nothing => return Err(Error::new(Kind::NotFound, "list directory")),
        }
        let mut below = directory.as_bytes().to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        let table = self.table()?;
        let mut from = below.clone();
        'runs: loop {
            for entry in table.range(from.as_slice()..).map_err(broken)? {
                let (key, value) = entry.map_err(broken)?;
                let Some(rest) = key.value().strip_prefix(below.as_slice()) else { return Ok(()) };
                let Some(slash) = rest.iter().position(|byte| *byte == b'/') else {
                    let (number, json) = value.value();
                    if !take(OsStr::from_bytes(rest), Some(parse(number, json)?))? {
                        return Ok(());
                    }
                    continue;
                };
                let own = [below.as_slice(), &rest[..slash]].concat();
                let has_line = table.get(own.as_slice()).map_err(broken)?.is_some();
                if !has_line && !take(OsStr::from_bytes(&rest[..slash]), None)? {
                    return Ok(());
                }
                // On behind all that is below it.
                from = [own.as_slice(), &[b'/' + 1]].concat();
                continue 'runs;
            }
            return Ok(());
        }
    }

    fn table(&self) -> Result<redb::ReadOnlyTable<&'static [u8], Value>> {
        let transaction = self.lines.begin_read().map_err(broken)?;
        transaction.open_table(LINES).map_err(broken)
    }
}

fn database(file: File) -> Result<Database> {
    redb::Builder::new().set_cache_size(CACHE_BYTES).create_file(file).map_err(broken)
}

fn parse(number: u64, json: &[u8]) -> Result<Numbered> {
    let line = Line::parse(json).map_err(|why| at_line(number, why))?;
    Ok(Numbered { number, line })
}

/// What the lines so far have in common.
struct Seen {
    is_complete: bool,
    is_remote: bool,
}

impl Seen {
    fn take(
        &mut self,
        table: &mut Table<'_, &'static [u8], Value>,
        places: &Places,
        number: u64,
        json: &[u8],
    ) -> Result<()> {
        if json.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let line = Line::parse(json).map_err(|why| at_line(number, why))?;
        match places.check(&line).map_err(|why| at_line(number, why))? {
            Some(Place::Web(_)) => {
                self.is_remote = true;
                self.is_complete &= is_complete(&line);
            }
            Some(Place::Local(_)) => self.is_complete = false,
            None => {}
        }
        let before = table.insert(line.path.as_bytes(), (number, json)).map_err(broken)?;
        match before.map(|before| before.value().0) {
            Some(first) => Err(at_line(
                number,
                format!("{} is in line {first} already", line.path.as_path().display()),
            )),
            None => Ok(()),
        }
    }
}

/// A file has nothing below it. In the order of paths, what lies in one directory comes in few runs.
fn check_directories(table: &impl ReadableTable<&'static [u8], Value>) -> Result<()> {
    let mut last_parent: Vec<u8> = Vec::new();
    for entry in table.iter().map_err(broken)? {
        let (key, value) = entry.map_err(broken)?;
        let path = key.value();
        let parent =
            path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |end| &path[..end]);
        if parent == last_parent.as_slice() {
            continue;
        }
        last_parent = parent.to_vec();
        let ends = parent.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([parent.len()]).filter(|end| *end > 0) {
            let Some(above) = table.get(&parent[..end]).map_err(broken)? else { continue };
            let above = parse(above.value().0, above.value().1)?;
            if above.line.what != What::Directory {
                let name = above.line.path.as_path().display();
                return Err(at_line(
                    value.value().0,
                    format!("it is below {name}, which line {} says is no directory", above.number),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use url::Url;

    use super::*;

    fn build(lines: &[&str]) -> Result<Index> {
        let places = Places::new(Url::parse("http://h/m").unwrap(), "").unwrap();
        let lines = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        Index::build(&std::env::temp_dir(), &places, [(1, lines)].into_iter())
    }

    fn rel(path: &str) -> RelPath {
        path.split('/')
            .filter(|name| !name.is_empty())
            .fold(RelPath::root(), |at, name| at.child(OsStr::new(name)).unwrap())
    }

    fn names(index: &Index, directory: &str) -> BTreeMap<String, bool> {
        let mut all = BTreeMap::new();
        let take = |name: &OsStr, line: Option<Numbered>| {
            let twice = all.insert(name.to_str().unwrap().to_owned(), line.is_some());
            assert_eq!(twice, None, "{name:?}");
            Ok(true)
        };
        index.children(&rel(directory), take).unwrap();
        all
    }

    #[test]
    fn directories_are_what_paths_say() {
        // "a-b" and "a.d" sort between "a" and "a/b".
        let index = build(&[
            r#"{"path":"a/b"}"#,
            r#"{"path":"a-b"}"#,
            "",
            r#"{"path":"a.d/x"}"#,
            r#"{"path":"a/","mode":"0700"}"#,
            r#"{"path":"e/"}"#,
            r#"{"path":"z/y/x"}"#,
        ])
        .unwrap();
        let expected = [("a", true), ("a-b", true), ("a.d", false), ("e", true), ("z", false)];
        assert_eq!(names(&index, ""), expected.map(|(name, has)| (name.to_owned(), has)).into());
        assert_eq!(names(&index, "a").len(), 1);
        assert!(names(&index, "e").is_empty());
        assert_eq!(index.find(&rel("z/y")).unwrap(), Found::Implied);
        assert_eq!(index.find(&rel("z/")).unwrap(), Found::Implied);
        assert_eq!(index.find(&rel("zz")).unwrap(), Found::Nothing);
        let Found::Line(found) = index.find(&rel("a")).unwrap() else { panic!() };
        assert_eq!((found.number, found.line.mode), (5, Some(0o700)));
        let kind = |path| index.children(&rel(path), |_, _| Ok(true)).unwrap_err().kind();
        assert_eq!((kind("nothing"), kind("a-b")), (Kind::NotFound, Kind::Invalid));
        assert!(names(&build(&[]).unwrap(), "").is_empty());
    }

    #[test]
    fn every_error_names_the_line() {
        for (lines, why) in [
            (vec![r#"{"path":"a"}"#, "", r#"{"path":"b"#], "line 3: "),
            (vec![r#"{"path":"a"}"#, r#"{"path":"a"}"#], "line 2: a is in line 1 already"),
            (vec![r#"{"path":"a/"}"#, r#"{"path":"a"}"#], "line 2: a is in line 1 already"),
            (
                vec![r#"{"path":"a/b/c/d"}"#, r#"{"path":"a-x"}"#, r#"{"path":"a"}"#],
                "line 1: it is below a, which line 3",
            ),
            (vec![r#"{"path":"l","link":"x"}"#, r#"{"path":"l/b"}"#], "line 2: it is below l"),
            (vec![r#"{"path":"a","url":"file:///x"}"#], "line 1: a manifest from elsewhere"),
        ] {
            let error = build(&lines).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    proptest! {
        // The listings together are the paths, each once.
        #[test]
        fn a_walk_finds_every_path_once(
            paths in prop::collection::btree_set("[a.0-]{1,2}(/[a.0-]{1,2}){0,3}", 0..24),
        ) {
            let usable = |path: &&String| path.split('/').all(|name| name != "." && name != "..");
            let is_file = |path: &&String| !paths.iter().any(|other| other.starts_with(&format!("{path}/")));
            let files: Vec<&String> = paths.iter().filter(usable).filter(is_file).collect();
            let lines: Vec<String> = files.iter().map(|path| format!(r#"{{"path":"{path}"}}"#)).collect();
            let index = build(&lines.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
            let mut found = Vec::new();
            let mut directories = vec![String::new()];
            while let Some(directory) = directories.pop() {
                for (name, is_file) in names(&index, &directory) {
                    let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                    if is_file { found.push(path) } else { directories.push(path) }
                }
            }
            found.sort();
            prop_assert_eq!(found, files.into_iter().cloned().collect::<Vec<_>>());
        }
    }
}
