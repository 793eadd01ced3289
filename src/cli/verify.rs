//! `lazycopy verify`: proves a copy again, compares it with its source, mends it, or hands its checksums to other tools.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::checksums::Checksums;
use crate::cli::exit::Exit;
use crate::cli::source_options::SourceArgs;
use crate::cli::target::Target;
use crate::cli::{absolute, complain, say, text};
use crate::control::client::Client;
use crate::control::status::JsonPath;
use crate::control::verify::{Summary, VerifyLine, VerifyOrder, VerifyTask};
use crate::daemon::settings::SourceSpec;
use crate::daemon::verify::{VerifySettings, verify};
use crate::error::{Error, Kind, Result};

/// Byte ranges shown of one file.
const RANGES_SHOWN: usize = 8;

/// Prove the copy in DIR again: every byte of it is read and compared with the digests that were recorded.
///
/// Lists what differs, by file and byte range, what is missing, and how many files are not of this copy. A copy that a daemon serves is
/// proven by the daemon, while it goes on. Exit code 4 if anything differs.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Directory that was given as --dest
    dir: PathBuf,
    /// Compare DIR with SOURCE, byte for byte, instead of with the digests; with --repair: fetch from SOURCE [default: the one that was copied]
    #[arg(long, value_name = "SOURCE", env = "LAZYCOPY_VERIFY_SOURCE", hide_env_values = true)]
    source: Option<std::ffi::OsString>,
    #[command(flatten)]
    source_args: SourceArgs,
    /// Mend what differs or is missing: good blocks are kept, bad ones (128 KiB each) fetched again [default: only tell]
    #[arg(long, env = "LAZYCOPY_REPAIR", hide_env_values = true, value_parser = BoolishValueParser::new())]
    repair: bool,
    /// As --repair, and also replace files that somebody wrote to since; what was written is lost [default: leave them]
    #[arg(long, env = "LAZYCOPY_REPAIR_CHANGED", hide_env_values = true, value_parser = BoolishValueParser::new())]
    repair_changed: bool,
    /// Print checksums as this tool does, for its -c in DIR: b3sum as recorded, sha256sum by reading [default: verify]
    #[arg(long, value_name = "FORMAT", env = "LAZYCOPY_EXPORT", hide_env_values = true, value_enum, conflicts_with_all = ["source", "repair", "repair_changed"])]
    export: Option<Export>,
    /// Print one JSON object a line: bytes; ranges as first byte and one past the last [default: text]
    #[arg(long, env = "LAZYCOPY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new(), conflicts_with = "export")]
    json: bool,
    /// Where the state of DIR is, if that has moved [default: where it was]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
}

/// Whose list of checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Export {
    /// BLAKE3
    B3sum,
    /// SHA-256
    Sha256sum,
}

impl VerifyArgs {
    fn task(&self) -> VerifyTask {
        match () {
            () if self.export.is_some() => VerifyTask::List,
            () if self.repair_changed => VerifyTask::RepairChanged,
            () if self.repair => VerifyTask::Repair,
            () if self.source.is_some() => VerifyTask::Compare,
            () => VerifyTask::Prove,
        }
    }
}

pub(crate) fn run(args: &VerifyArgs) -> Result<Exit> {
    let target = Target::find(&args.dir)?;
    let dir =
        target.daemon.as_ref().map_or_else(|| target.path.clone(), |found| found.record.dest());
    if let Some(export) = args.export {
        let mut checksums = Checksums::new(&dir, export);
        run_task(args, &target, |line| checksums.take(line))?;
        return Ok(checksums.finish());
    }
    let mut shown = Shown::new(args.json);
    run_task(args, &target, |line| shown.take(&line))?;
    Ok(shown.finish(&dir))
}

fn run_task(args: &VerifyArgs, target: &Target, mut show: impl FnMut(VerifyLine)) -> Result<()> {
    let options = args.source_args.options()?;
    let named = |source| SourceSpec::parse_with(source, options.clone());
    let source = args.source.as_deref().map(named).transpose()?;
    if let Some(daemon) = &target.daemon {
        // The daemon works elsewhere: it gets a path that means the same there.
        let source = source.map(|source| match source {
            SourceSpec::Local(path) => JsonPath::new(path),
            SourceSpec::Url(remote) => JsonPath::new(remote.url),
        });
        let order = VerifyOrder { task: args.task(), source, source_options: options.items() };
        return Client::new(&daemon.socket).verify(&order, show).map_err(|error| {
            // A daemon that does not answer is not a source that cannot be reached.
            match error.kind() {
                Kind::Unreachable | Kind::Timeout => error.kinded(Kind::Io),
                _ => error,
            }
        });
    }
    let settings = VerifySettings {
        destination: target.path.clone(),
        state_dir: args
            .state_dir
            .as_ref()
            .map(|path| absolute("use state directory", path))
            .transpose()?,
        source,
        options,
        task: args.task(),
    };
    let summary = verify(settings, &mut show)?;
    show(VerifyLine::Summary(summary));
    Ok(())
}

/// Shows what is found: lines on standard output, progress on a terminal.
struct Shown {
    json: bool,
    bar: ProgressBar,
    summary: Option<Summary>,
    began: Instant,
}

impl Shown {
    fn new(json: bool) -> Self {
        let bar = if json || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let style = ProgressStyle::with_template("{bar:19} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("█▉▊▋▌▍▎▏·");
            ProgressBar::new(0).with_style(style)
        };
        Self { json, bar, summary: None, began: Instant::now() }
    }

    fn take(&mut self, line: &VerifyLine) {
        if let VerifyLine::Summary(summary) = line {
            self.summary = Some(*summary);
        }
        if let VerifyLine::Progress { files, total_files, bytes, total_bytes } = line {
            self.bar.set_length(*total_bytes);
            self.bar.set_position(*bytes);
            self.bar.set_message(format!(
                "{} of {}  {} of {} files",
                text::bytes(*bytes),
                text::bytes(*total_bytes),
                text::count(*files),
                text::count(*total_files)
            ));
            if !self.json {
                return;
            }
        }
        if self.json {
            match serde_json::to_string(line) {
                Ok(json) => say(&json),
                Err(error) => complain(&format!("write JSON: {error}")),
            }
            return;
        }
        self.bar.suspend(|| match line {
            VerifyLine::SourceFailed { path, message } => {
                complain(&format!("not compared: {}: {message}", path.path));
            }
            line => {
                if let Some(words) = words(line) {
                    say(&words);
                }
            }
        });
    }

    fn finish(self, dir: &Path) -> Exit {
        self.bar.finish_and_clear();
        let Some(summary) = self.summary else { return Exit::SomeFailed };
        if !self.json {
            say(&summary_text(dir, &summary, self.began.elapsed().as_secs_f64()));
        }
        match (summary.clean, summary.source_failures) {
            (false, _) => Exit::VerificationFailed,
            (true, 0) => Exit::Ok,
            (true, _) => Exit::SomeFailed,
        }
    }
}

/// A line for people; `None` where there is nothing to say. A path is shown so that one line stays one line.
fn words(line: &VerifyLine) -> Option<String> {
    let shown = |path: &JsonPath| path.path.replace('\n', "\\n");
    Some(match line {
        VerifyLine::Differs { path, what, ranges, ranges_total, bytes, message } => {
            let mut words = format!("{what:<15} {}: {message}", shown(path));
            if *ranges_total > 0 {
                words += &format!("; {} at", text::bytes(*bytes));
                for (start, end) in ranges.iter().take(RANGES_SHOWN) {
                    words += &format!(" {start}-{}", end.saturating_sub(1));
                }
                if *ranges_total > RANGES_SHOWN {
                    words += &format!(" and {} more ranges", ranges_total - RANGES_SHOWN);
                }
            }
            words
        }
        VerifyLine::Mended { path, fetched } => {
            format!("mended          {}: {} fetched", shown(path), text::bytes(*fetched))
        }
        VerifyLine::Forgotten { path, blocks } => {
            format!("forgotten       {}: {blocks} blocks are fetched again", shown(path))
        }
        VerifyLine::NotMended { message, .. } => format!("not mended      {message}"),
        _ => return None,
    })
}

fn summary_text(dir: &Path, summary: &Summary, seconds: f64) -> String {
    let count = text::count;
    let mut lines = Vec::new();
    let proven = summary.source_checksum + summary.transfer + summary.adopted_unverified;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    let rate = (summary.bytes as f64 / seconds.max(0.001)) as u64;
    let read = format!(
        "{} files, {} read, {}/s",
        count(summary.files),
        text::bytes(summary.bytes),
        text::bytes(rate)
    );
    if summary.contrasts > 0 || (proven == 0 && summary.files > 0) {
        lines.push(format!("equal     {read}"));
        lines.push(format!(
            "differing {} from the source; {} could not be compared",
            count(summary.contrasts),
            count(summary.source_failures)
        ));
        return lines.join("\n");
    }
    lines.push(format!("{}: {read}", dir.display()));
    lines.push(format!(
        "proven    {} files: source checksum {}, transfer {}, adopted unverified {}",
        count(proven),
        count(summary.source_checksum),
        count(summary.transfer),
        count(summary.adopted_unverified)
    ));
    if summary.parts > 0 {
        lines.push(format!(
            "parts     {} unfinished files, {} recorded blocks; {} of them are compared with the source before they are published",
            count(summary.parts),
            count(summary.part_blocks),
            count(summary.unhashed_blocks)
        ));
    }
    if summary.unknown > 0 {
        lines.push(format!("unknown   {} files are not of this copy", count(summary.unknown)));
    }
    lines.push(match (summary.differing, summary.mended) {
        (0, _) => "differing none".to_owned(),
        (differing, 0) => format!("differing {}", count(differing)),
        (differing, mended) => format!(
            "differing {}, mended {} ({} fetched), left {}",
            count(differing),
            count(mended),
            text::bytes(summary.fetched),
            count(differing.saturating_sub(mended))
        ),
    });
    lines.join("\n")
}

/// The error of a path that cannot be rebuilt from what a daemon sent.
pub(crate) fn no_path(path: &JsonPath) -> Error {
    Error::new(Kind::Corrupt, "read the daemon's answer").because(format!("path {}", path.path))
}
