//! Reads `src/` and holds it to its laws: who may import whom, where locks, `unsafe` and FUSE may be named, and that `core` has no
//! clock, no tasks and no I/O. Comments, strings and test modules are not looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Every top-level module and what it may import. Everyone may use `error`, and everyone but `core` may use `sys`.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "main",
        &["cli", "jobs", "daemon", "vfs", "control", "engine", "store", "source", "core", "sync"],
    ),
    (
        "lib",
        &["cli", "jobs", "daemon", "vfs", "control", "engine", "store", "source", "core", "sync"],
    ),
    ("cli", &["jobs", "daemon", "vfs", "control", "engine", "store", "source", "core", "sync"]),
    ("jobs", &["daemon", "vfs", "control", "engine", "store", "source", "core", "sync"]),
    ("daemon", &["vfs", "control", "engine", "store", "source", "core", "sync"]),
    ("vfs", &["engine", "store", "source", "core", "sync"]),
    ("control", &["engine", "store", "source", "core", "sync"]),
    ("engine", &["store", "source", "core", "sync"]),
    ("store", &["core", "sync"]),
    ("source", &["core", "sync"]),
    ("core", &["sync"]),
    ("sync", &[]),
    ("error", &[]),
    ("sys", &[]),
];

/// Packages and parts of `std` that do I/O, start tasks or speak FUSE.
const IMPURE: &[&str] = &[
    "tokio",
    "libc",
    "fuser",
    "rustix",
    "reqwest",
    "hyper",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
];

/// Lock types, wherever they come from. A name that contains `Mutex` or `RwLock` (guards, variants) counts too.
const LOCKS: &[&str] = &["Condvar", "Semaphore", "parking_lot", "DashMap", "Barrier"];

/// One broken law.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: PathBuf,
    line: usize,
    law: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file.display(), self.line, self.law)
    }
}

#[test]
fn the_source_keeps_its_laws() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 5, "found only {} files below {}", files.len(), root.display());

    let sources: Vec<(PathBuf, Code)> = files
        .iter()
        .map(|path| {
            let text =
                fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.strip_prefix(&root).unwrap_or(path).to_owned(), Code::parse(&text))
        })
        .collect();
    let test_files: BTreeSet<PathBuf> =
        sources.iter().flat_map(|(file, code)| test_only_files(file, code)).collect();
    let findings: Vec<Finding> = sources
        .iter()
        .filter(|(file, _)| !test_files.iter().any(|test| file.starts_with(test)))
        .flat_map(|(file, code)| check(file, code))
        .collect();

    let report: String = findings.iter().map(|finding| format!("\n  {finding}")).collect();
    assert!(
        findings.is_empty(),
        "{} broken laws (the table is in tests/architecture.rs):{report}",
        findings.len()
    );
}

/// All `.rs` files below `directory`, sorted.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| entry.expect("a directory entry can be read").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

// ------------------------------------------------------------------------------------------------ the laws

/// All laws that `code`, the text of src/`file`, breaks.
fn check(file: &Path, code: &Code) -> Vec<Finding> {
    let module = module_path(file);
    let top = module.first().cloned().unwrap_or_default();
    let mut findings = BTreeSet::new();
    let mut report = |token: &Token, law: String| {
        findings.insert(Finding { file: file.to_owned(), line: token.line, law });
    };

    match ARROWS.iter().find(|(name, _)| *name == top) {
        None => report(
            &Token { text: String::new(), line: 1 },
            format!(
                "arrow: module `{top}` is not in the table of arrows: give it a place there first"
            ),
        ),
        Some((_, allowed)) => {
            for (token, target) in imports(&code.tokens, &module) {
                let known = ARROWS.iter().any(|(name, _)| *name == target);
                let may = target == top
                    || target == "error"
                    || allowed.contains(&target.as_str())
                    || (target == "sys" && top != "core");
                if known && !may {
                    report(token, format!("arrow: `{top}` must not import `{target}`"));
                }
            }
        }
    }

    for (index, token) in code.tokens.iter().enumerate() {
        let name = token.text.as_str();
        let is_lock = LOCKS.contains(&name) || name.contains("Mutex") || name.contains("RwLock");
        if is_lock && top != "core" && top != "sync" {
            report(token, format!("locks: `{name}` outside src/core/ and src/sync.rs"));
        }
        if name == "unsafe" && top != "sys" {
            report(token, "unsafe: `unsafe` outside src/sys.rs".to_owned());
        }
        if name == "fuser" && top != "vfs" {
            report(token, "fuse: `fuser` outside src/vfs/".to_owned());
        }
        if top != "core" {
            continue;
        }
        let path = two_segments(&code.tokens, index);
        if (IMPURE.contains(&name) || IMPURE.contains(&path.as_str()))
            && !is_segment(&code.tokens, index)
        {
            let impure = if IMPURE.contains(&name) { name } else { &path };
            report(token, format!("purity: `{impure}` inside src/core/"));
        }
        if path == "Instant::now" || path == "SystemTime::now" {
            report(token, format!("clock: `{path}` inside src/core/: time is a parameter"));
        }
    }
    findings.into_iter().collect()
}

/// `a::b` where `a` is the token at `index`; empty if no path starts there.
fn two_segments(tokens: &[Token], index: usize) -> String {
    match (tokens.get(index + 1), tokens.get(index + 2)) {
        (Some(colons), Some(next)) if colons.text == "::" => {
            format!("{}::{}", tokens[index].text, next.text)
        }
        _ => String::new(),
    }
}

/// Whether the token is a later segment of a path or the field or method of a value, so that it names no package.
fn is_segment(tokens: &[Token], index: usize) -> bool {
    index > 0 && (tokens[index - 1].text == "::" && index > 1 && is_name(&tokens[index - 2].text))
        || index > 0 && tokens[index - 1].text == "."
}

/// The top-level modules that paths of this crate start with: `crate::x`, `$crate::x`, `lazycopy::x` (in main.rs), groups
/// `crate::{x, y::z}`, and `super::` chains that climb to the root.
fn imports<'a>(tokens: &'a [Token], module: &[String]) -> Vec<(&'a Token, String)> {
    // main.rs and lib.rs are roots themselves.
    let depth = if module == ["main"] || module == ["lib"] { 0 } else { module.len() };
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let starts_path = index == 0 || tokens[index - 1].text != "::";
        let mut next = index + 1;
        let at_root = match token.text.as_str() {
            "crate" => true,
            "lazycopy" => depth == 0 && starts_path,
            "super" if starts_path => {
                let mut climbed = 1;
                while text(tokens, next) == "::" && text(tokens, next + 1) == "super" {
                    climbed += 1;
                    next += 2;
                }
                climbed >= depth
            }
            _ => false,
        };
        if at_root && text(tokens, next) == "::" {
            found.extend(heads(tokens, next + 1));
        }
    }
    found
}

/// The first names of the path or of the braced group of paths that starts at `start`.
fn heads(tokens: &[Token], start: usize) -> Vec<(&Token, String)> {
    if text(tokens, start) != "{" {
        return tokens.get(start).map(|token| (token, token.text.clone())).into_iter().collect();
    }
    let mut found = Vec::new();
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(start) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if depth == 1 && is_name(name) && matches!(text(tokens, index - 1), "{" | ",") => {
                found.push((token, name.to_owned()));
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

fn text(tokens: &[Token], index: usize) -> &str {
    tokens.get(index).map_or("", |token| token.text.as_str())
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// `source/http/mod.rs` is `[source, http]`, `source/local.rs` is `[source, local]`, `sync.rs` is `[sync]`.
fn module_path(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.len() > 1 && parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Files and folders that `file` declares as `#[cfg(test)] mod name;`, also under the name `FILE_name.rs` that a `#[path]` gives them here.
fn test_only_files(file: &Path, code: &Code) -> Vec<PathBuf> {
    let parent = file.parent().unwrap_or(Path::new(""));
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let folder = if matches!(&*stem, "mod" | "lib" | "main") {
        parent.to_owned()
    } else {
        file.with_extension("")
    };
    code.test_modules
        .iter()
        .flat_map(|name| {
            [
                folder.join(format!("{name}.rs")),
                folder.join(name),
                parent.join(format!("{stem}_{name}.rs")),
            ]
        })
        .collect()
}

// ------------------------------------------------------------------------------------------------ reading Rust

/// A name, a number, `::` or one other character.
#[derive(Debug, Clone)]
struct Token {
    text: String,
    line: usize,
}

/// The tokens of a file without comments, strings and items under `#[cfg(test)]` or `#[test]`.
#[derive(Debug)]
struct Code {
    tokens: Vec<Token>,
    /// Names of modules in other files that only tests have.
    test_modules: Vec<String>,
}

impl Code {
    fn parse(source: &str) -> Self {
        let all = tokens(&blank(source));
        let mut code = Self { tokens: Vec::new(), test_modules: Vec::new() };
        let mut index = 0;
        while index < all.len() {
            let Some(after) = test_attribute(&all, index) else {
                code.tokens.push(all[index].clone());
                index += 1;
                continue;
            };
            let end = item_end(&all, after);
            if let Some(at) = (after..end).find(|&at| all[at].text == "mod")
                && text(&all, at + 2) == ";"
            {
                code.test_modules.push(all[at + 1].text.clone());
            }
            index = end;
        }
        code
    }
}

/// If an attribute that is only true in tests starts at `index`: where it ends.
fn test_attribute(tokens: &[Token], index: usize) -> Option<usize> {
    if text(tokens, index) != "#" || text(tokens, index + 1) != "[" {
        return None;
    }
    let end = closing(tokens, index + 1)?;
    let body: Vec<&str> = tokens[index + 2..end].iter().map(|token| token.text.as_str()).collect();
    let is_test = match body.as_slice() {
        ["test"] | ["cfg", "(", "test", ")"] | [.., "::", "test"] => true,
        ["cfg", "(", "all", "(", rest @ ..] => {
            // `not(test)` and `any(test, …)` hold outside tests too.
            rest.contains(&"test")
                && !rest.windows(3).any(|w| w == ["not", "(", "test"])
                && !rest.contains(&"any")
        }
        _ => false,
    };
    is_test.then_some(end + 1)
}

/// Where the item that starts at `index` ends: after its `;` or its closing brace.
fn item_end(tokens: &[Token], index: usize) -> usize {
    let mut at = index;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => return closing(tokens, at).map_or(tokens.len(), |end| end + 1),
            "(" | "[" => at = closing(tokens, at).unwrap_or(tokens.len()),
            _ => {}
        }
        at += 1;
    }
    at
}

/// The index of the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(index);
        }
    }
    None
}

fn tokens(source: &str) -> Vec<Token> {
    let mut found = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c == '_' || c.is_alphanumeric();
            let length = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                found.push(Token { text: rest[..length].to_owned(), line: number + 1 });
            }
            rest = &rest[length..];
        }
    }
    found
}

/// Replaces comments, strings and character literals by spaces; line breaks stay.
fn blank(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { c } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment, string or character literal that starts at `at` ends; `at` itself if none starts there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let peek = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\0');
    let find = |from: usize, stop: &dyn Fn(usize) -> bool| {
        (from..chars.len()).find(|&i| stop(i)).unwrap_or(chars.len())
    };
    match (chars[at], peek(1)) {
        ('/', '/') => find(at, &|i| chars[i] == '\n'),
        ('/', '*') => {
            let (mut depth, mut i) = (1, at + 2);
            while i < chars.len() && depth > 0 {
                match (chars[i], chars.get(i + 1)) {
                    ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
                    ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
            }
            i
        }
        ('"', _) => quoted_end(chars, at, '"'),
        ('r', '"' | '#')
            if at == 0
                || !(chars[at - 1].is_alphanumeric() && chars[at - 1] != 'b'
                    || chars[at - 1] == '_') =>
        {
            let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
            if peek(1 + hashes) != '"' {
                return at; // a raw identifier
            }
            let closes = |i: usize| {
                chars[i] == '"'
                    && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
            };
            (find(at + 2 + hashes, &closes) + 1 + hashes).min(chars.len())
        }
        // A lifetime has no closing quote behind its first character.
        ('\'', '\\') => quoted_end(chars, at, '\''),
        ('\'', _) if peek(2) == '\'' => at + 3,
        _ => at,
    }
}

/// Where a literal with escapes ends.
fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut i = at + 1;
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

// ------------------------------------------------------------------------------------------------ the laws of the laws

/// What is found in a planted file: the names of the laws and their lines.
fn planted(file: &str, source: &str) -> Vec<(usize, String)> {
    check(Path::new(file), &Code::parse(source))
        .into_iter()
        .map(|finding| (finding.line, finding.law.split(':').next().unwrap_or_default().to_owned()))
        .collect()
}

#[track_caller]
fn assert_caught(file: &str, source: &str, law: &str) {
    let found = planted(file, source);
    assert!(
        found.iter().any(|(_, name)| name == law),
        "{file}: {source:?}: wanted {law}, found {found:?}"
    );
}

#[track_caller]
fn assert_fine(file: &str, source: &str) {
    assert_eq!(planted(file, source), vec![], "{file}: {source:?}");
}

#[test]
fn an_arrow_outside_the_table_is_caught_in_every_spelling() {
    assert_caught("store/parts.rs", "use crate::source::Source;", "arrow");
    assert_caught("source/http/mod.rs", "fn f() -> crate::engine::Tree { todo }", "arrow");
    assert_caught(
        "vfs/mod.rs",
        "use crate::{\n    core::range::ByteRange,\n    control::Server,\n};",
        "arrow",
    );
    assert_caught("engine/tree.rs", "use super::super::vfs::Front;", "arrow");
    assert_caught("engine/mod.rs", "use super::daemon;", "arrow");
    assert_caught("core/claims.rs", "use crate::sys::pread;", "arrow");
    assert_caught("error.rs", "use crate::core::range::ByteRange;", "arrow");
    assert_caught("sync.rs", "macro_rules! m { () => { $crate::core::x() } }", "arrow");
    assert_caught("helpers/mod.rs", "fn f() {}", "arrow");
    assert_eq!(planted("store/parts.rs", "\n\nuse crate::vfs::x;"), vec![(3, "arrow".to_owned())]);
}

#[test]
fn arrows_of_the_table_are_fine() {
    assert_fine(
        "engine/tree.rs",
        "use crate::{core::{range::ByteRange, source}, store::Part, error::Result};",
    );
    assert_fine(
        "source/http/client.rs",
        "use super::super::local; use super::index; use crate::sys::x;",
    );
    assert_fine("main.rs", "fn main() { lazycopy::cli::run() }");
    assert_fine(
        "core/phase.rs",
        "use crate::sync::Mutex; use super::range::ByteRange; use crate::error::Kind;",
    );
    assert_fine("cli/mount.rs", "use crate::daemon; use crate::control::client::Client;");
}

#[test]
fn a_lock_outside_core_and_sync_is_caught() {
    assert_caught("engine/tree.rs", "use std::sync::{Arc, Mutex};", "locks");
    assert_caught("vfs/mod.rs", "let x: parking_lot::RwLock<u8>;", "locks");
    assert_caught("store/space.rs", "use tokio::sync::Semaphore;", "locks");
    assert_caught("control/mod.rs", "fn f(g: MutexGuard<'_, u8>) {}", "locks");
    assert_fine("sync.rs", "pub(crate) use parking_lot::{Mutex, RwLock};");
    assert_fine("core/claims.rs", "use crate::sync::Mutex;");
}

#[test]
fn unsafe_outside_sys_is_caught() {
    assert_caught("store/parts.rs", "fn f() { unsafe { g() } }", "unsafe");
    assert_caught("core/ids.rs", "unsafe impl Send for X {}", "unsafe");
    assert_fine("sys.rs", "#![allow(unsafe_code)] fn f() { unsafe { g() } }");
}

#[test]
fn fuse_outside_vfs_is_caught() {
    assert_caught("daemon.rs", "use fuser::Session;", "fuse");
    assert_caught("engine/mod.rs", "fn f() -> fuser::INodeNo {}", "fuse");
    assert_fine("vfs/mod.rs", "use fuser::Session;");
}

#[test]
fn io_tasks_and_clocks_inside_core_are_caught() {
    assert_caught("core/claims.rs", "use tokio::sync::oneshot;", "purity");
    assert_caught("core/claims.rs", "use libc::ENOENT;", "purity");
    assert_caught("core/claims.rs", "fn f() { std::fs::read(x); }", "purity");
    assert_caught("core/claims.rs", "std::thread::sleep(x);", "purity");
    assert_caught("core/progress.rs", "let t = std::time::Instant::now();", "clock");
    assert_caught("core/progress.rs", "let t = SystemTime::now();", "clock");
    assert_fine("core/progress.rs", "fn f(now: Instant) -> SystemTime { x.libc }");
    assert_fine("engine/mod.rs", "let t = Instant::now(); tokio::spawn(x);");
}

#[test]
fn comments_strings_and_tests_are_not_looked_at() {
    assert_fine(
        "core/ids.rs",
        "//! like `tokio::x`, unsafe\n/* Instant::now() /* fuser::x */ */ fn f() {}",
    );
    assert_fine(
        "core/ids.rs",
        r##"const A: &str = "unsafe \" fuser::"; const B: &str = r#"tokio " ::"#; const C: char = '"';"##,
    );
    assert_fine(
        "store/a.rs",
        "#[cfg(test)]\nmod tests { use crate::vfs::x; fn f() { unsafe {} } }",
    );
    assert_fine("core/a.rs", "#[cfg(all(test, not(lazycopy_loom)))]\nmod tests { use tokio::x; }");
    assert_fine(
        "core/a.rs",
        "#[cfg(test)]\nuse tokio::x;\n#[tokio::test]\nasync fn f() { tokio::x() }",
    );
    // What stands behind a test module, and code that is not only in tests, is looked at.
    assert_caught(
        "store/a.rs",
        "#[cfg(test)]\nmod tests { fn f<'a>(x: &'a u8) {} }\nfn f() { unsafe {} }",
        "unsafe",
    );
    assert_caught("core/a.rs", "#[cfg(not(test))]\nuse tokio::x;", "purity");
    assert_caught("core/a.rs", "#[cfg(all(unix, not(test)))]\nuse tokio::x;", "purity");
}

#[test]
fn files_that_only_tests_have_are_known() {
    let code = Code::parse(
        "#[cfg(test)]\nmod laws;\nmod other;\n#[cfg(all(test, x))]\n#[path = \"claims_model.rs\"]\nmod model;",
    );
    assert_eq!(code.test_modules, ["laws", "model"]);
    let of_folder = test_only_files(Path::new("engine/mod.rs"), &code);
    assert!(
        of_folder.contains(&PathBuf::from("engine/laws.rs"))
            && of_folder.contains(&PathBuf::from("engine/laws"))
    );
    let of_file = test_only_files(Path::new("core/claims.rs"), &code);
    assert!(
        of_file.contains(&PathBuf::from("core/claims/laws.rs"))
            && of_file.contains(&PathBuf::from("core/claims_model.rs"))
    );
}
