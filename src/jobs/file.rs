//! The shape of a jobs file: which tables and keys it has, and what they mean.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use crate::daemon::display_name;
use crate::daemon::settings::SourceSpec;
use crate::daemon::units::{Rate, parse_rate, parse_time};
use crate::error::Error;
use crate::jobs::apart;
use crate::jobs::fields::{At, Fields, Problems, argv, choice, flag, number, parsed, text};
use crate::jobs::options::{self, CopyOption};
use crate::jobs::plan::{Hooks, Job, Plan, Snapshot};

/// Time that a hook has, unless the file says otherwise.
const HOOK_TIMEOUT: Duration = Duration::from_secs(60);
const PARALLEL_MAX: u64 = 64;
const NAME_MAX: usize = 64;

/// `shown_as` is for messages; paths are relative to `file`.
pub(super) fn parse(shown_as: &Path, file: &Path, text: &str) -> Result<Plan, Vec<Error>> {
    let mut problems = Problems::new(shown_as, text);
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            problems.add(error.span().unwrap_or_default(), error.message());
            return Err(problems.into_errors());
        }
    };
    let base = file.parent().unwrap_or(Path::new("/"));
    let mut whole = Fields::new("the file", table.get_ref(), table.span());
    let run = section(&mut whole, &mut problems, "run");
    let mut plan = read_run(run, &mut problems, file);
    let defaults = section(&mut whole, &mut problems, "defaults").map(|mut fields| {
        let keys = Keys::read(&mut fields, &mut problems, base);
        fields.finish(&mut problems);
        keys
    });
    let defaults = defaults.unwrap_or_default();
    let jobs = read_jobs(&mut whole, &mut problems, base, &defaults);
    whole.finish(&mut problems);
    apart::check(&jobs, &mut problems);
    plan.jobs = jobs.into_iter().map(|at| at.value).collect();
    match problems.is_empty() {
        true => Ok(plan),
        false => Err(problems.into_errors()),
    }
}

/// The table `key`, if there is one.
fn section<'a, 'i>(
    whole: &mut Fields<'a, 'i>,
    problems: &mut Problems<'_>,
    key: &'static str,
) -> Option<Fields<'a, 'i>> {
    let value = whole.raw(key)?;
    match value.get_ref().as_table() {
        Some(table) => Some(Fields::new(format!("[{key}]"), table, value.span())),
        None => {
            problems.add(value.span(), format!("{key}: a table is wanted, as [{key}]"));
            None
        }
    }
}

fn read_run(fields: Option<Fields<'_, '_>>, problems: &mut Problems<'_>, file: &Path) -> Plan {
    let mut plan = Plan {
        file: file.to_owned(),
        parallel: 1,
        stop_on_error: false,
        limit: None,
        hooks: Hooks { timeout: HOOK_TIMEOUT, ..Hooks::default() },
        jobs: Vec::new(),
    };
    let Some(mut fields) = fields else { return plan };
    let base = file.parent().unwrap_or(Path::new("/"));
    let parallel = fields.take(problems, "parallel", |value| number(value, 1..=PARALLEL_MAX));
    plan.parallel = parallel.and_then(|at| usize::try_from(at.value).ok()).unwrap_or(1);
    plan.stop_on_error = fields.take(problems, "stop-on-error", flag).is_some_and(|at| at.value);
    plan.limit = fields.take(problems, "limit", rate).and_then(|at| at.value.0);
    plan.hooks = HookKeys::read(&mut fields, problems, base).into();
    fields.finish(problems);
    plan
}

fn read_jobs(
    whole: &mut Fields<'_, '_>,
    problems: &mut Problems<'_>,
    base: &Path,
    defaults: &Keys,
) -> Vec<At<Job>> {
    let Some(value) = whole.raw("job") else { return Vec::new() };
    let tables = value.get_ref().as_array().map(|array| array.iter());
    let Some(tables) = tables else {
        problems.add(value.span(), "job: a list of tables is wanted, each begins with [[job]]");
        return Vec::new();
    };
    let mut jobs: Vec<At<Job>> = Vec::new();
    for value in tables {
        let Some(table) = value.get_ref().as_table() else {
            problems.add(value.span(), "job: a table is wanted, as [[job]]");
            continue;
        };
        let fields = Fields::new("[[job]]", table, value.span());
        let Some(job) = read_job(fields, problems, base, defaults) else { continue };
        if jobs.iter().any(|other| other.value.name == job.value.name) {
            let why = format!("there are two jobs with the name `{}`", job.value.name);
            problems.add(job.place.clone(), why);
        }
        jobs.push(job);
    }
    jobs
}

fn read_job(
    mut fields: Fields<'_, '_>,
    problems: &mut Problems<'_>,
    base: &Path,
    defaults: &Keys,
) -> Option<At<Job>> {
    let name = fields.require(problems, "name", |value| parsed(value, parse_name));
    if let Some(name) = &name {
        fields.set_shown_as(format!("[[job]] {}", name.value));
    }
    let source = fields.require(problems, "source", |value| source(&text(value)?, base));
    let destination = fields.require(problems, "destination", |value| destination(value, base));
    let own = Keys::read(&mut fields, problems, base);
    let place = fields.place();
    fields.finish(problems);
    let keys = own.over(defaults);
    let snapshot = keys.snapshot(problems);
    let (name, source, destination) = (name?, source?, destination?);
    let (source, shown_source) = source.value;
    if snapshot != Snapshot::None && matches!(source, SourceSpec::Url(_)) {
        let why = format!("[[job]] {}: a snapshot is of a source on this machine", name.value);
        problems.add(place.clone(), why);
    }
    let job = Job {
        name: name.value,
        source,
        shown_source,
        destination: destination.value,
        options: keys.options,
        limit: keys.limit.and_then(|rate| rate.0),
        verify: keys.verify.unwrap_or(false),
        snapshot,
        snapshot_required: keys.snapshot_required.unwrap_or(true),
        hooks: keys.hooks.into(),
        is_enabled: keys.enabled.unwrap_or(true),
    };
    Some(At { value: job, place })
}

/// What a job and `[defaults]` may say.
#[derive(Debug, Default)]
struct Keys {
    options: Vec<CopyOption>,
    limit: Option<Rate>,
    verify: Option<bool>,
    snapshot: Option<At<String>>,
    snapshot_required: Option<bool>,
    snapshot_command: Option<At<Vec<String>>>,
    snapshot_remove: Option<At<Vec<String>>>,
    hooks: HookKeys,
    enabled: Option<bool>,
}

impl Keys {
    fn read(fields: &mut Fields<'_, '_>, problems: &mut Problems<'_>, base: &Path) -> Self {
        let options = options::read(fields, problems, base);
        let verify = fields.take(problems, "verify", |value| choice(value, &["none", "after"]));
        let snapshot =
            fields.take(problems, "snapshot", |value| choice(value, &["none", "btrfs", "command"]));
        Self {
            options,
            limit: fields.take(problems, "limit", rate).map(|at| at.value),
            verify: verify.map(|at| at.value == "after"),
            snapshot,
            snapshot_required: fields.take(problems, "snapshot-required", flag).map(|at| at.value),
            snapshot_command: fields.take(problems, "snapshot-command", |v| program(v, base)),
            snapshot_remove: fields.take(problems, "snapshot-remove", |v| program(v, base)),
            hooks: HookKeys::read(fields, problems, base),
            enabled: fields.take(problems, "enabled", flag).map(|at| at.value),
        }
    }

    fn over(self, defaults: &Self) -> Self {
        Self {
            options: options::with_defaults(self.options, &defaults.options),
            limit: self.limit.or(defaults.limit),
            verify: self.verify.or(defaults.verify),
            snapshot: self.snapshot.or_else(|| defaults.snapshot.clone()),
            snapshot_required: self.snapshot_required.or(defaults.snapshot_required),
            snapshot_command: self.snapshot_command.or_else(|| defaults.snapshot_command.clone()),
            snapshot_remove: self.snapshot_remove.or_else(|| defaults.snapshot_remove.clone()),
            hooks: self.hooks.over(&defaults.hooks),
            enabled: self.enabled.or(defaults.enabled),
        }
    }

    fn snapshot(&self, problems: &mut Problems<'_>) -> Snapshot {
        let Some(kind) = &self.snapshot else { return Snapshot::None };
        match kind.value.as_str() {
            "btrfs" => Snapshot::Btrfs,
            "command" => match &self.snapshot_command {
                Some(make) => Snapshot::Command {
                    make: make.value.clone(),
                    remove: self.snapshot_remove.as_ref().map(|at| at.value.clone()),
                },
                None => {
                    let why = "snapshot: `command` needs snapshot-command, a program that prints the path to read from";
                    problems.add(kind.place.clone(), why);
                    Snapshot::None
                }
            },
            _ => Snapshot::None,
        }
    }
}

/// What a job, `[defaults]` and `[run]` may say.
#[derive(Debug, Default, Clone)]
struct HookKeys {
    on_complete: Option<Vec<String>>,
    on_error: Option<Vec<String>>,
    timeout: Option<Duration>,
}

impl HookKeys {
    fn read(fields: &mut Fields<'_, '_>, problems: &mut Problems<'_>, base: &Path) -> Self {
        let on_complete = fields.take(problems, "on-complete", |value| program(value, base));
        let on_error = fields.take(problems, "on-error", |value| program(value, base));
        let timeout = fields.take(problems, "hook-timeout", |value| parsed(value, hook_timeout));
        Self {
            on_complete: on_complete.map(|at| at.value),
            on_error: on_error.map(|at| at.value),
            timeout: timeout.map(|at| at.value),
        }
    }

    fn over(self, defaults: &Self) -> Self {
        Self {
            on_complete: self.on_complete.or_else(|| defaults.on_complete.clone()),
            on_error: self.on_error.or_else(|| defaults.on_error.clone()),
            timeout: self.timeout.or(defaults.timeout),
        }
    }
}

impl From<HookKeys> for Hooks {
    fn from(keys: HookKeys) -> Self {
        let HookKeys { on_complete, on_error, timeout } = keys;
        Self { on_complete, on_error, timeout: timeout.unwrap_or(HOOK_TIMEOUT) }
    }
}

fn rate(value: &DeValue<'_>) -> Result<Rate, String> {
    parsed(value, parse_rate)
}

fn hook_timeout(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("a hook needs some time".to_owned()),
        timeout => Ok(timeout),
    }
}

/// A program with a `/` in its name is relative to the file; another is looked for in PATH.
fn program(value: &DeValue<'_>, base: &Path) -> Result<Vec<String>, String> {
    let mut argv = argv(value)?;
    if argv[0].contains('/') {
        argv[0] = base.join(&argv[0]).to_str().ok_or("the path is not UTF-8")?.to_owned();
    }
    Ok(argv)
}

/// It becomes part of file names.
fn parse_name(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match name.len() <= NAME_MAX && name.chars().all(is_plain) && !name.starts_with(['.', '-']) {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "a name has up to {NAME_MAX} letters, digits, `.`, `_` and `-`, and begins with a letter or digit"
        )),
    }
}

/// The source and its name for people.
fn source(text: &str, base: &Path) -> Result<(SourceSpec, String), String> {
    let beside = text
        .strip_prefix("manifest:")
        .filter(|place| !place.is_empty() && !place.contains("://") && !is_url(place));
    let text = match beside {
        Some(place) => &format!("manifest:{}", base.join(place).display()),
        None => text,
    };
    // What is wrong with it may be a secret: it is not repeated.
    let spec = SourceSpec::parse(text.as_ref()).map_err(|error| error.to_string())?;
    let spec = match spec {
        SourceSpec::Local(_) if !is_url(text) => SourceSpec::Local(base.join(text)),
        spec => spec,
    };
    let shown = display_name(&spec).map_err(|error| error.to_string())?;
    Ok((spec, shown))
}

fn is_url(text: &str) -> bool {
    text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:"))
}

fn destination(value: &DeValue<'_>, base: &Path) -> Result<PathBuf, String> {
    let text = text(value)?;
    if text.contains("://") {
        return Err("a directory of this machine is wanted".to_owned());
    }
    std::path::absolute(base.join(text)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Plan, Vec<String>> {
        let read = parse(Path::new("jobs.toml"), Path::new("/etc/copies/jobs.toml"), text);
        read.map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn jobs_take_what_they_do_not_say_from_the_defaults() {
        let plan = read(
            "[run]\nparallel = 2\nlimit = '1MB/s'\n[defaults]\nexclude = '*.tmp'\ndelete = true\nhook-timeout = '5s'\n\
             [[job]]\nname = 'a'\nsource = 'from'\ndestination = '/to/a'\ndelete = false\non-error = ['./tell', 'x']\n\
             [[job]]\nname = 'b'\nsource = 'https://u:secret@h/x/'\ndestination = 'b'\nverify = 'after'\n",
        );
        let plan = plan.unwrap();
        assert_eq!((plan.parallel, plan.limit), (2, Some(1_000_000)));
        let [a, b] = &plan.jobs[..] else { panic!() };
        assert_eq!(a.source, SourceSpec::Local(PathBuf::from("/etc/copies/from")));
        let arguments = |job: &Job| -> Vec<String> {
            job.options.iter().flat_map(CopyOption::arguments).collect()
        };
        assert_eq!(arguments(a), ["--exclude=*.tmp"]);
        let hidden: Vec<_> = a.options.iter().filter_map(CopyOption::hidden_variable).collect();
        assert_eq!(hidden, ["LAZYCOPY_DELETE"]);
        assert_eq!(arguments(b), ["--exclude=*.tmp", "--delete"]);
        let tell = a.hooks.on_error.as_ref().unwrap();
        assert_eq!(tell[0], "/etc/copies/./tell");
        assert_eq!(a.hooks.timeout, Duration::from_secs(5));
        assert!(b.verify && !a.verify);
        assert_eq!(b.destination, Path::new("/etc/copies/b"));
        assert!(!b.shown_source.contains("secret"), "{}", b.shown_source);
    }

    #[test]
    fn a_manifest_is_beside_the_file() {
        let plan = read("[[job]]\nname = 'a'\nsource = 'manifest:m.jsonl'\ndestination = 'b'\n");
        assert_eq!(plan.unwrap().jobs[0].shown_source, "manifest:/etc/copies/m.jsonl");
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let found = read(
            "[run]\nparalel = 2\n[[job]]\nname = 'a b'\nsource = ''\n[[job]]\nname = 'c'\nsource = 'gopher://b/p'\n\
             destination = '/to'\nsnapshot = 'command'\nmax-jobs = 'many'\n[jobs]\n",
        );
        let found = found.unwrap_err();
        let lines: Vec<&str> = found.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
        let places = [2, 3, 4, 5, 8, 10, 11, 12].map(|line| format!("jobs.toml:{line}:"));
        assert_eq!(lines, places, "{found:#?}");
        assert!(found[0].contains("did you mean `parallel`"), "{}", found[0]);
        assert!(found[1].contains("[[job]] has no destination"), "{}", found[1]);
        assert!(found[7].contains("did you mean `job`"), "{}", found[7]);
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let found = read("[run]\nparallel = = 2\n").unwrap_err();
        assert!(found[0].starts_with("read jobs.toml:2: "), "{found:?}");
    }

    #[test]
    fn destinations_must_be_apart() {
        let job = |name: &str, source: &str, destination: &str| {
            format!(
                "[[job]]\nname = '{name}'\nsource = '{source}'\ndestination = '{destination}'\n"
            )
        };
        let apart = [job("a", "/no/a", "/no/x"), job("b", "/no/b", "/no/xy")].concat();
        assert_eq!(read(&apart).unwrap().jobs.len(), 2);
        for (a, b) in [
            (("/no/a", "/no/x"), ("/no/b", "/no/x/")),
            (("/no/a", "/no/x"), ("/no/b", "/no/y/../x/y")),
            (("/no/a", "/no/x/y"), ("/no/b", "/no/x")),
            (("/no/a", "/no/x"), ("/no/x/y", "/no/z")),
            (("/no/a", "/no/x"), ("/no/b", "/no/b/y")),
        ] {
            let text = [job("a", a.0, a.1), job("b", b.0, b.1)].concat();
            let found = read(&text).unwrap_err();
            assert_eq!(found.len(), 1, "{found:#?}");
            assert!(found[0].starts_with("read jobs.toml:5: "), "{found:?}");
        }
    }
}
