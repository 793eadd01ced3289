//! `lazycopy copy`: a whole tree into a directory, without a mount; run again it brings what changed.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use indicatif::MultiProgress;
use serde_json::json;

use crate::cli::copying::CopyingArgs;
use crate::cli::exit::Exit;
use crate::cli::hydrate_options::HydrateArgs;
use crate::cli::limit_options::LimitArgs;
use crate::cli::logging::{self, LogArgs};
use crate::cli::progress::{Progress, View};
use crate::cli::{absolute, complain, complain_plain, say, text};
use crate::daemon::copy::{Summary, copy};
use crate::daemon::readiness::{Readiness, StatusSource};
use crate::daemon::settings::{CopySettings, SourceSpec};
use crate::error::Result;

/// Copy SOURCE into DIR and prove every byte. Run again it copies only what changed.
///
/// Stays in the foreground; Ctrl-C ends it, and the same command goes on. What is in DIR is whole; until all is there DIR holds
/// LAZYCOPY-INCOMPLETE.txt.
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// What to copy: a directory or file, file:///…, http(s)://…, {s3,gs,az}://bucket/prefix
    source: OsString,
    /// Directory that receives the contents of SOURCE; made if its parent exists
    dir: PathBuf,
    /// Delete in DIR what was copied before and is gone at the source; what was changed in DIR since stays [default: it stays]
    #[arg(long, env = "LAZYCOPY_DELETE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    delete: bool,
    /// Most entries that --delete takes away at once; if there are more, nothing is deleted and the exit code is 2
    #[arg(
        long,
        value_name = "N",
        env = "LAZYCOPY_MAX_DELETE",
        hide_env_values = true,
        default_value_t = 1000
    )]
    max_delete: u64,
    /// Say what would be done, and change nothing [default: do it]
    #[arg(short = 'n', long, env = "LAZYCOPY_DRY_RUN", hide_env_values = true, value_parser = BoolishValueParser::new())]
    dry_run: bool,
    /// Print one JSON object per line: progress (bytes, seconds), warnings, and the summary as the last [default: text]
    #[arg(long, env = "LAZYCOPY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new())]
    json: bool,
    /// Snapshot of SOURCE to read instead of it; the copy is one of SOURCE [default: SOURCE]
    #[arg(
        long,
        hide = true,
        value_name = "PATH",
        env = "LAZYCOPY_READ_FROM",
        hide_env_values = true
    )]
    read_from: Option<PathBuf>,
    #[command(flatten)]
    copying: CopyingArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    background: HydrateArgs,
    #[command(flatten)]
    log: LogArgs,
}

impl CopyArgs {
    fn settings(&self) -> Result<CopySettings> {
        Ok(CopySettings {
            source: SourceSpec::parse_with(&self.source, self.copying.source_options()?)?,
            read_from: self
                .read_from
                .as_ref()
                .map(|path| absolute("read from", path))
                .transpose()?,
            destination: absolute("use destination", &self.dir)?,
            state_dir: self.copying.state_dir()?,
            cross_mounts: self.copying.cross_mounts(),
            publish: self.copying.publish(),
            hydrate: self.background.settings()?,
            limits: self.limits.settings(),
            delete: self.delete.then_some(self.max_delete),
            is_dry: self.dry_run,
        })
    }
}

pub(crate) fn run(args: &CopyArgs) -> Result<Exit> {
    let settings = args.settings()?;
    let log = args.log.settings()?;
    let terminal = (std::io::stderr().is_terminal() && !args.json).then(MultiProgress::new);
    let place = log.foreground_place();
    let _log = logging::start(&log, &place, terminal.as_ref())?;
    let mut shown = Shown { terminal, progress: None, is_json: args.json };
    let (outcome, summary) = copy(settings, &mut shown)?;
    // The bar goes before the last words.
    drop(shown);
    let exit = Exit::from(outcome);
    match args.json {
        true => say_json(&summary, exit),
        false => say_text(&summary, exit),
    }
    Ok(exit)
}

/// The first line, then progress.
struct Shown {
    terminal: Option<MultiProgress>,
    progress: Option<Progress>,
    is_json: bool,
}

impl Readiness for Shown {
    fn ready(&mut self, line: &str, warnings: &[String], status: StatusSource) -> Result<()> {
        if self.is_json {
            for warning in warnings {
                say(&json!({"type": "warning", "message": warning}).to_string());
            }
        } else {
            complain_plain(line);
            warnings.iter().for_each(|warning| complain(&format!("warning: {warning}")));
        }
        self.progress = Some(match self.is_json {
            true => Progress::as_json(status),
            false => {
                let view = self.terminal.clone().map_or(View::Lines, View::Bar);
                Progress::start(status, view, "")
            }
        });
        Ok(())
    }
}

fn say_json(summary: &Summary, exit: Exit) {
    for (path, message) in &summary.errors {
        say(&json!({"type": "warning", "path": path, "message": message}).to_string());
    }
    let s = summary;
    say(&json!({
        "type": "summary", "schema": 1, "dry_run": s.is_dry, "exit": exit.code(),
        "files": {"copied": s.copied, "unchanged": s.unchanged, "renamed": s.renamed, "linked": s.linked, "failed": s.failed},
        "bytes": {"copied": s.copied_bytes},
        "specials": s.specials, "metadata_renewed": s.renewed, "directories": s.directories,
        "deleted": s.deleted, "gone": s.gone, "kept": s.kept, "left_out": s.left_out,
        "requests": s.requests, "warnings": s.warnings, "elapsed_s": s.elapsed_s,
        "stopped_by": s.stopped_by,
    })
    .to_string());
}

fn say_text(summary: &Summary, exit: Exit) {
    let s = summary;
    for (path, message) in &s.errors {
        complain(&format!("{path}: {message}"));
    }
    s.stopped_by.iter().for_each(|limit| complain(limit));
    let mut parts =
        vec![format!("{} files, {}", text::count(s.copied), text::bytes(s.copied_bytes))];
    let mut also = |number: u64, what: &str| {
        if number > 0 {
            parts.push(format!("{} {what}", text::count(number)));
        }
    };
    also(s.unchanged, "unchanged");
    also(s.renamed, "renamed");
    also(s.linked, "linked");
    also(s.specials, "links and special files");
    also(s.renewed, "with new metadata");
    also(s.deleted, if s.is_dry { "to delete" } else { "deleted" });
    also(s.gone, "gone at the source and kept (--delete takes them away)");
    also(s.kept, "kept although gone at the source: changed in DIR");
    also(s.left_out, "left out by the filter");
    also(s.failed, "failed");
    also(s.warnings, "warnings");
    let word = match (s.is_dry, exit) {
        (true, _) => "would copy",
        (_, Exit::Stopped) => "stopped; the same command goes on. Copied",
        (_, Exit::SomeFailed) => "not complete. Copied",
        _ => "complete. Copied",
    };
    let requests = match s.requests {
        0 => String::new(),
        requests => format!(", {} requests", text::count(requests)),
    };
    say(&format!("{word} {}{requests} in {:.1} s", parts.join(", "), s.elapsed_s));
}
