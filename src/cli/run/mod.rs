//! `lazycopy run`: the jobs of a file.

mod shown;

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use indicatif::MultiProgress;
use serde_json::json;

use crate::cli::exit::Exit;
use crate::cli::logging::{self, LogArgs, LogPlace, state_directory};
use crate::cli::run::shown::{Json, Lines, Screen, outcome_words, warning};
use crate::cli::{complain, say, text};
use crate::error::Result;
use crate::jobs::plan::{self, Plan};
use crate::jobs::record::Record;
use crate::jobs::report::{JobOutcome, RunReport, SCHEMA};
use crate::jobs::run::{Audience, run as run_jobs};

/// Run the copies that a file describes, one after another or several at once (docs/jobs.md)
///
/// The whole file is checked before anything is begun. Each job ends complete, complete with warnings, failed, stopped or skipped; a
/// failed one does not keep the next from being run. Ctrl-C ends them all, and the same command goes on. The exit code is the worst of
/// all jobs, in this order: 4, 1, 2, 3, 7, 6, 5, 0. Events and log of each run are in $XDG_STATE_HOME/lazycopy/runs/ (for root
/// /var/log/lazycopy/runs/).
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// File that describes the jobs; nobody else may be able to write to it
    file: PathBuf,
    /// Jobs to run, in the order of the file [default: all that are enabled]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only say what is wrong with the file, or that nothing is [default: run]
    #[arg(long, env = "LAZYCOPY_CHECK", hide_env_values = true, value_parser = BoolishValueParser::new())]
    check: bool,
    /// Say what would be copied, and change nothing: no snapshots, no hooks [default: do it]
    #[arg(short = 'n', long, env = "LAZYCOPY_DRY_RUN", hide_env_values = true, value_parser = BoolishValueParser::new())]
    dry_run: bool,
    /// Print one JSON object per line: progress (bytes, seconds), warnings, jobs, and the summary as the last [default: text]
    #[arg(long, env = "LAZYCOPY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new())]
    json: bool,
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) fn run(args: &RunArgs) -> Result<Exit> {
    let mut plan = match plan::read(&args.file) {
        Ok(plan) => plan,
        Err(errors) => {
            errors.iter().for_each(|error| complain(&error.to_string()));
            return Ok(Exit::Usage);
        }
    };
    let all = plan.jobs.len();
    plan.select(&args.names)?;
    if args.check {
        say_checked(&plan, all, args.json);
        return Ok(Exit::Ok);
    }
    let log = args.log.settings()?;
    let state = state_directory()?;
    let mut record = match args.dry_run {
        true => Record::none(&state),
        false => Record::begin(&state)?,
    };
    if let LogPlace::File(path) = log.foreground_place() {
        record = record.logging_to(path);
    }
    let _log = logging::start(&log, &LogPlace::File(record.log().to_owned()), None)?;
    let terminal = (std::io::stderr().is_terminal() && !args.json).then(MultiProgress::new);
    let mut audience: Box<dyn Audience> = match terminal {
        _ if args.json => Box::new(Json::begin(&plan, &record)),
        Some(terminal) => Box::new(Screen::begin(&plan, &record, terminal)),
        None => Box::new(Lines::begin(&plan, &record)),
    };
    let report = run_jobs(&plan, record, args.dry_run, &mut *audience)?;
    // Bars go before the last words.
    drop(audience);
    match args.json {
        true => say_json(&report),
        false => say_text(&report, args.dry_run),
    }
    Ok(Exit::of_code(report.exit))
}

fn say_checked(plan: &Plan, all: usize, is_json: bool) {
    if is_json {
        let jobs: Vec<_> = plan
            .jobs
            .iter()
            .map(|job| json!({"name": job.name, "source": job.shown_source, "destination": job.destination.display().to_string()}))
            .collect();
        say(&json!({"type": "check", "schema": SCHEMA, "file": plan.file.display().to_string(), "parallel": plan.parallel, "jobs": jobs}).to_string());
        return;
    }
    let width = plan.jobs.iter().map(|job| job.name.len()).max().unwrap_or(0);
    for job in &plan.jobs {
        say(&format!("{:width$}  {} -> {}", job.name, job.shown_source, job.destination.display()));
    }
    let at_once = match plan.parallel {
        1 => "one after another".to_owned(),
        parallel => format!("{parallel} at once"),
    };
    let jobs = plan.jobs.len();
    say(&format!(
        "{}: nothing is wrong; {jobs} of {all} jobs would run, {at_once}",
        plan.file.display()
    ));
}

fn say_json(report: &RunReport) {
    let Ok(mut line) = serde_json::to_value(report) else { return };
    line["type"] = "summary".into();
    line["schema"] = SCHEMA.into();
    say(&line.to_string());
}

fn say_text(report: &RunReport, is_dry: bool) {
    report.warnings.iter().for_each(|text| complain(&warning(text)));
    let all = [
        JobOutcome::Complete,
        JobOutcome::CompleteWithWarnings,
        JobOutcome::Failed,
        JobOutcome::Stopped,
        JobOutcome::Skipped,
    ];
    let counted = all.into_iter().filter_map(|outcome| {
        let number = report.jobs.iter().filter(|job| job.outcome == outcome).count();
        (number > 0).then(|| format!("{number} {}", outcome_words(outcome)))
    });
    let counted: Vec<_> = counted.collect();
    let bytes = report.jobs.iter().map(|job| job.bytes).sum();
    let again = match report.outcome {
        JobOutcome::Stopped => "; the same command goes on",
        JobOutcome::Failed if !is_dry => &*format!("; log: {}", report.log),
        _ => "",
    };
    let copied = if is_dry { "to copy" } else { "copied" };
    say(&format!(
        "{}: {}. {} {copied} in {:.1} s{again}",
        if is_dry { "would run" } else { outcome_words(report.outcome) },
        counted.join(", "),
        text::bytes(bytes),
        report.elapsed_s
    ));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::cli::Cli;
    use crate::jobs::options::{OPTIONS, Takes};

    #[test]
    fn every_option_of_a_jobs_file_is_one_of_copy_and_takes_the_same() {
        for (name, takes) in OPTIONS {
            let values: Vec<String> = match takes {
                Takes::Flag => vec![String::new()],
                Takes::Choice(words) => words.iter().map(|word| format!("={word}")).collect(),
                Takes::Number(least, most) => vec![format!("={least}"), format!("={most}")],
                Takes::Size => vec!["=2GiB".to_owned()],
                Takes::Quota => vec!["=2GB/day".to_owned()],
                Takes::Globs => vec!["=*.x".to_owned()],
                Takes::Path => vec!["=/x".to_owned()],
                Takes::Pairs => vec!["=key=@/x".to_owned()],
                Takes::Texts => vec!["=https://h".to_owned()],
            };
            for value in values {
                let option = format!("--{name}{value}");
                let args = ["lazycopy", "copy", &option, "/a", "/b"];
                let parsed = Cli::command().try_get_matches_from(args);
                assert!(parsed.is_ok(), "{option}: {:?}", parsed.err().map(|e| e.to_string()));
            }
        }
    }

    #[test]
    fn copy_has_no_option_that_a_jobs_file_lacks() {
        let command = Cli::command();
        let copy = command.find_subcommand("copy").unwrap();
        // What the run itself decides.
        let ours = ["dry-run", "json", "log", "limit", "read-from", "help", "version"];
        for argument in copy.get_arguments() {
            let Some(name) = argument.get_long() else { continue };
            let is_known = OPTIONS.iter().any(|(known, _)| *known == name);
            assert!(is_known || ours.contains(&name), "--{name}");
        }
    }
}
