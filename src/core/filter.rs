//! What of a tree is copied in the background, and what of it first: globs over paths, exact for names that are not UTF-8.
//!
//! A glob without `/` is compared with the name, at any depth; one with `/` with the whole path from the root. `*` and `?` never match a
//! slash, `**` does. What is left out is shown and readable all the same; it is only not copied ahead.

use std::path::Path;

use globset::{Glob, GlobBuilder, GlobSet};

use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

/// What file servers and clients leave lying about, seldom wanted in a copy: whole names, and the beginning of one.
const LITTER: [&str; 6] = [".snapshot", "~snapshot", ".zfs", "@eaDir", "#recycle", "lost+found"];
const LITTER_PREFIX: &str = ".nfs";

/// What is copied of a tree. Without any glob: everything but the litter of file servers.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Include,
    /// For each kind of litter, the include globs that name it.
    named: Vec<Include>,
    exclude: Globs,
    first: Globs,
}

/// What becomes of one entry in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// It is copied; a directory with all that is not left out below it.
    Copied,
    /// A directory that is not copied itself, but something below it may be.
    Walked,
    /// It is left out because of a glob, with all that is below it.
    Excluded,
    /// It is left out because it is litter that no glob names.
    Litter,
}

impl Scope {
    /// Whether the entry, with all below it, is left alone.
    pub fn is_left_out(self) -> bool {
        matches!(self, Self::Excluded | Self::Litter)
    }
}

impl Filter {
    /// The filter of these globs.
    ///
    /// # Errors
    /// `Invalid`, naming the option and the glob.
    pub fn new(include: &[String], exclude: &[String], first: &[String]) -> Result<Self> {
        let named = litter_words().map(|word| {
            let naming: Vec<_> =
                include.iter().filter(|glob| glob.contains(word)).cloned().collect();
            Include::new(&naming)
        });
        Ok(Self {
            include: Include::new(include)?,
            named: named.collect::<Result<_>>()?,
            exclude: Globs::new("--exclude", exclude)?,
            first: Globs::new("--first", first)?,
        })
    }

    /// The scope of the root.
    pub fn root(&self) -> Scope {
        if self.include.globs.is_empty() { Scope::Copied } else { Scope::Walked }
    }

    /// The scope of an entry, given that of the directory it lies in.
    pub fn below(&self, directory: Scope, path: &RelPath, is_directory: bool) -> Scope {
        if directory.is_left_out() {
            return directory;
        }
        if self.exclude.matches(path) {
            return Scope::Excluded;
        }
        if let Some(kind) = litter(path) {
            let named = self.named.get(kind).and_then(|named| named.scope(path, is_directory));
            return named.unwrap_or(Scope::Litter);
        }
        if directory == Scope::Copied {
            return Scope::Copied;
        }
        self.include.scope(path, is_directory).unwrap_or(Scope::Excluded)
    }

    /// The scope of any path, looked at from the root down.
    pub fn scope(&self, path: &RelPath, is_directory: bool) -> Scope {
        let mut at = RelPath::root();
        let mut scope = self.root();
        let depth = path.components().count();
        for (level, name) in path.components().enumerate() {
            let Ok(child) = at.child(name) else { return Scope::Excluded };
            at = child;
            scope = self.below(scope, &at, is_directory || level + 1 < depth);
        }
        scope
    }

    /// Whether the entry is to be copied before all others.
    pub fn is_first(&self, path: &RelPath) -> bool {
        self.first.matches(path)
    }

    /// Whether any entry may have to be copied before all others.
    pub fn has_first(&self) -> bool {
        !self.first.is_empty()
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        let texts = |filter: &Self| {
            [&filter.include.globs, &filter.exclude, &filter.first].map(|globs| globs.texts.clone())
        };
        texts(self) == texts(other)
    }
}

impl Eq for Filter {}

fn litter_words() -> impl Iterator<Item = &'static str> {
    LITTER.into_iter().chain([LITTER_PREFIX])
}

/// Which kind of litter it is, if it is any.
fn litter(path: &RelPath) -> Option<usize> {
    let name = path.name().as_encoded_bytes();
    LITTER
        .iter()
        .position(|word| name == word.as_bytes())
        .or_else(|| name.starts_with(LITTER_PREFIX.as_bytes()).then_some(LITTER.len()))
}

/// Globs of one option.
#[derive(Debug, Clone, Default)]
struct Globs {
    texts: Vec<String>,
    /// Compared with the name.
    names: GlobSet,
    /// Compared with the path.
    paths: GlobSet,
}

impl Globs {
    fn new(option: &str, texts: &[String]) -> Result<Self> {
        let (mut names, mut paths) = (GlobSet::builder(), GlobSet::builder());
        for text in texts {
            let (glob, is_path) = read(text);
            let set = if is_path { &mut paths } else { &mut names };
            set.add(build(option, text, glob)?);
        }
        let whole = |set: globset::GlobSetBuilder| {
            set.build().map_err(|error| refused(option, "the globs together", &error))
        };
        Ok(Self { texts: texts.to_vec(), names: whole(names)?, paths: whole(paths)? })
    }

    fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    fn matches(&self, path: &RelPath) -> bool {
        self.names.is_match(Path::new(path.name())) || self.paths.is_match(path.as_path())
    }
}

/// Globs of what is copied, and the directories that lead to it.
#[derive(Debug, Clone, Default)]
struct Include {
    globs: Globs,
    /// Directories in which, or below which, something may match.
    ways: GlobSet,
    /// Any directory is one.
    is_anywhere: bool,
}

impl Include {
    fn new(texts: &[String]) -> Result<Self> {
        let globs = Globs::new("--include", texts)?;
        let mut ways = GlobSet::builder();
        let mut is_anywhere = false;
        for text in texts {
            let (glob, is_path) = read(text);
            // Such a glob cannot be cut at its slashes.
            if !is_path || glob.contains(['{', '[', '\\']) {
                is_anywhere = true;
                continue;
            }
            for (slash, _) in glob.match_indices('/') {
                let way = &glob[..slash];
                if way.ends_with("**") {
                    let below = if way.contains('/') { way } else { "**" };
                    ways.add(build("--include", text, below)?);
                    break;
                }
                ways.add(build("--include", text, way)?);
            }
        }
        let ways = ways.build().map_err(|error| refused("--include", "its globs", &error))?;
        Ok(Self { globs, ways, is_anywhere })
    }

    fn scope(&self, path: &RelPath, is_directory: bool) -> Option<Scope> {
        if self.globs.matches(path) {
            return Some(Scope::Copied);
        }
        let leads = is_directory
            && !self.globs.is_empty()
            && (self.is_anywhere || self.ways.is_match(path.as_path()));
        leads.then_some(Scope::Walked)
    }
}

/// A glob as it is compared, and whether with the whole path.
fn read(text: &str) -> (&str, bool) {
    let is_path = text.trim_end_matches('/').contains('/');
    (text.strip_prefix("./").unwrap_or(text).trim_matches('/'), is_path)
}

fn build(option: &str, text: &str, glob: &str) -> Result<Glob> {
    if glob.is_empty() {
        return Err(Error::new(Kind::Invalid, "use glob").because(format!("{option} is empty")));
    }
    let built = GlobBuilder::new(glob).literal_separator(true).backslash_escape(true).build();
    built.map_err(|error| refused(option, text, &error))
}

fn refused(option: &str, text: &str, error: &globset::Error) -> Error {
    Error::new(Kind::Invalid, "use glob")
        .because(format!("{option} {text}: {}", error.kind()))
        .hint("for example '*.jpg', 'cache', 'photos/2024/**'")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn path(bytes: impl AsRef<[u8]>) -> RelPath {
        let names = bytes.as_ref().split(|byte| *byte == b'/').map(OsStr::from_bytes);
        names.fold(RelPath::root(), |at, name| at.child(name).unwrap())
    }

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let owned =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(include), &owned(exclude), &[]).unwrap()
    }

    fn is_copied(filter: &Filter, at: impl AsRef<[u8]>) -> bool {
        filter.scope(&path(at), false) == Scope::Copied
    }

    #[test]
    fn a_glob_without_a_slash_is_a_name_at_any_depth_and_one_with_a_slash_a_path_from_the_root() {
        let names = filter(&[], &["*.o", "build"]);
        for out in ["x.o", "a/b/x.o", "build/x", "a/build/x/y"] {
            assert!(!is_copied(&names, out), "{out}");
        }
        assert!(is_copied(&names, "a/x.c") && is_copied(&names, "rebuild/x"));
        for rooted in ["/build", "./build/"] {
            let paths = filter(&[], &[rooted]);
            assert!(!is_copied(&paths, "build/x") && is_copied(&paths, "a/build/x"), "{rooted}");
        }
        let paths = filter(&[], &["/build", "a/*/c", "d/**/z"]);
        assert!(is_copied(&paths, "a/build/x") && is_copied(&paths, "a/b/b/c"));
        for out in ["build", "a/b/c", "a/b/c/d", "d/z", "d/1/2/z"] {
            assert!(!is_copied(&paths, out), "{out}");
        }
    }

    #[test]
    fn what_is_included_is_all_that_is_copied_and_exclude_wins() {
        let jpg = filter(&["*.jpg", "docs"], &["private", "docs/*.tmp"]);
        for copied in ["a.jpg", "x/y/a.jpg", "docs/a/b", "x/docs/b", "x/docs/b.tmp"] {
            assert!(is_copied(&jpg, copied), "{copied}");
        }
        for out in ["a.png", "private/a.jpg", "x/private/a.jpg", "docs/b.tmp"] {
            assert!(!is_copied(&jpg, out), "{out}");
        }
        assert_eq!(jpg.scope(&path("x/y"), true), Scope::Walked);
    }

    #[test]
    fn only_directories_that_lead_to_what_is_included_are_walked() {
        let deep = filter(&["photos/2024/*.jpg", "a/**/z"], &[]);
        let walked = |at: &str| deep.scope(&path(at), true) == Scope::Walked;
        assert!(walked("photos") && walked("photos/2024"));
        assert!(!walked("videos") && !walked("photos/2023") && !walked("photos/2024/x"));
        assert!(walked("a") && walked("a/b") && walked("a/b/c") && !walked("b/a"));
        assert!(is_copied(&deep, "a/b/c/z") && is_copied(&deep, "photos/2024/1.jpg"));
        assert!(filter(&["{a/b,c}/d"], &[]).scope(&path("x"), true) == Scope::Walked);
        assert!(filter(&["**/b/c"], &[]).scope(&path("x/y"), true) == Scope::Walked);
    }

    #[test]
    fn litter_is_copied_only_when_a_glob_names_it() {
        let litter = [
            "a/.nfs0001",
            ".snapshot/x",
            "~snapshot/x",
            ".zfs/x",
            "@eaDir/x",
            "#recycle/x",
            "lost+found/x",
        ];
        for out in litter {
            for plain in [filter(&[], &[]), filter(&["*"], &[]), filter(&["**/*"], &[])] {
                assert_eq!(plain.scope(&path(out), false), Scope::Litter, "{out}");
            }
        }
        let named = filter(&["*", "@eaDir", ".nfs*", ".snapshot/daily/**"], &["@eaDir/tmp"]);
        assert!(is_copied(&named, "b/@eaDir/x") && is_copied(&named, "a/.nfs0001"));
        assert!(is_copied(&named, ".snapshot/daily/x") && is_copied(&named, "plain"));
        assert!(!is_copied(&named, "@eaDir/tmp") && !is_copied(&named, ".zfs/x"));
        assert!(is_copied(&filter(&[], &[]), "nfs") && is_copied(&filter(&[], &[]), "x.snapshot"));
    }

    #[test]
    fn names_that_are_not_utf_8_are_compared_byte_by_byte() {
        let globs = filter(&[], &["*.\u{fc}"]);
        assert!(is_copied(&globs, b"a.\xfc"), "latin-1 is not utf-8");
        assert!(!is_copied(&globs, "a.\u{fc}"));
        let any = filter(&["a*z"], &[]);
        assert!(is_copied(&any, b"a\xff\xfez") && !is_copied(&any, b"a\xff\xfe"));
    }

    #[test]
    fn what_is_no_glob_is_refused_by_name() {
        let text = Filter::new(&[], &["a[".to_owned()], &[]).unwrap_err().to_string();
        assert!(text.contains("--exclude a["), "{text}");
        assert!(Filter::new(&[String::new()], &[], &[]).is_err());
        assert!(Filter::new(&["/".to_owned()], &[], &[]).is_err());
    }
}
