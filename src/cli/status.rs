//! `lazycopy status`: what daemons say about themselves.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::target::Target;
use crate::cli::{complain, say, text, watch};
use crate::control::client::Client;
use crate::control::orders::HistoryReport;
use crate::control::registry::{self, Found, SessionRecord};
use crate::control::status::{DaemonsReport, SCHEMA, StuckReport};
use crate::engine::history::recorded_in;
use crate::error::{Error, Kind, Result};

/// Show how far a copy is.
///
/// Asks the daemon over its control socket (deadline 12 s); nothing is looked up through the mount.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Mountpoint or destination [default: every daemon of this user]
    target: Option<PathBuf>,
    /// Print JSON, schema 1: bytes, seconds, RFC 3339 times [default: text]
    #[arg(long, env = "LAZYCOPY_JSON", hide_env_values = true, value_parser = BoolishValueParser::new())]
    json: bool,
    /// List the operations that have not ended, oldest first, in milliseconds since they began [default: off]
    #[arg(long, env = "LAZYCOPY_STUCK", hide_env_values = true, value_parser = BoolishValueParser::new())]
    stuck: bool,
    /// Show it live, with keys to pause, resume and stop; looks twice a second [default: off]
    #[arg(long, env = "LAZYCOPY_WATCH", hide_env_values = true, conflicts_with_all = ["json", "stuck"], value_parser = BoolishValueParser::new())]
    watch: bool,
    /// List the daemons' lives: when each began and ended, and what it came to; the last 1000 of a copy, also of one that nobody serves [default: off]
    #[arg(long, env = "LAZYCOPY_HISTORY", hide_env_values = true, conflicts_with_all = ["watch", "stuck"], value_parser = BoolishValueParser::new())]
    history: bool,
}

pub(crate) fn run(args: &StatusArgs) -> Result<Exit> {
    if args.watch {
        return watch::run(args.target.as_deref());
    }
    match &args.target {
        Some(path) => {
            let target = Target::find(path)?;
            if args.history
                && target.daemon.is_none()
                && let Some(lives) = recorded_in(&target.path)?
            {
                let place = target.path.display().to_string();
                show_history(args, &place, None, &HistoryReport::new(lives));
                return Ok(Exit::Ok);
            }
            let daemon = target.daemon.as_ref().ok_or_else(|| target.nobody_serves())?;
            // A daemon that does not answer is not a source that cannot be reached.
            Ok(show_one(args, daemon).map_or_else(
                |error| {
                    complain(&not_answering(error, daemon).to_string());
                    Exit::SomeFailed
                },
                |()| Exit::Ok,
            ))
        }
        None => show_all(args),
    }
}

fn not_answering(error: Error, daemon: &Found) -> Error {
    match error.kind() {
        Kind::Timeout | Kind::Unreachable | Kind::NotFound => error.hint(format!(
            "the daemon is process {}; if it stays silent, `lazycopy unmount --force` {}",
            daemon.record.pid, daemon.record.mountpoint
        )),
        _ => error,
    }
}

fn show_one(args: &StatusArgs, daemon: &Found) -> Result<()> {
    let client = Client::new(&daemon.socket);
    if args.history {
        let SessionRecord { mountpoint, session, .. } = &daemon.record;
        show_history(args, mountpoint, Some(session), &client.history()?);
        return Ok(());
    }
    match (args.stuck, args.json) {
        (true, true) => print_json(&client.stuck()?),
        (true, false) => say(&stuck_text(daemon, &client.stuck()?)),
        (false, true) => print_json(&client.status()?),
        (false, false) => say(&text::status(&client.status()?)),
    }
    Ok(())
}

fn show_all(args: &StatusArgs) -> Result<Exit> {
    let daemons = registry::all();
    let mut exit = Exit::Ok;
    let mut silent = |daemon: &Found, error: Error| {
        complain(&not_answering(error, daemon).to_string());
        exit = Exit::SomeFailed;
    };
    if args.json && !args.stuck && !args.history {
        let mut report = DaemonsReport { schema: SCHEMA, daemons: Vec::new() };
        for daemon in &daemons {
            match Client::new(&daemon.socket).status() {
                Ok(status) => report.daemons.push(status),
                Err(error) => silent(daemon, error),
            }
        }
        print_json(&report);
        return Ok(exit);
    }
    if daemons.is_empty() && !args.json {
        say("no lazycopy daemon of this user runs");
    }
    for (index, daemon) in daemons.iter().enumerate() {
        if index > 0 && !args.json {
            say("");
        }
        if let Err(error) = show_one(args, daemon) {
            silent(daemon, error);
        }
    }
    Ok(exit)
}

fn print_json<T: Serialize>(report: &T) {
    match serde_json::to_string(report) {
        Ok(json) => say(&json),
        Err(error) => complain(&format!("write JSON: {error}")),
    }
}

fn show_history(args: &StatusArgs, place: &str, running: Option<&str>, report: &HistoryReport) {
    match args.json {
        true => print_json(report),
        false => say(&history_text(place, running, report)),
    }
}

/// Of all lives only the `running` one may still go on.
fn history_text(place: &str, running: Option<&str>, report: &HistoryReport) -> String {
    let mut lines = vec![format!("{place}: {} lives", report.lives.len())];
    for life in &report.lives {
        let is_ours = running == Some(life.session.as_str());
        let end = match (&life.ended_at, &life.outcome) {
            (Some(ended), Some(outcome)) => format!(
                "to {ended}  {outcome}: {} of {} files published, {} failed, {} fetched",
                text::count(life.files_published),
                text::count(life.files),
                text::count(life.files_failed),
                text::bytes(life.bytes_fetched)
            ),
            _ if is_ours => "runs".to_owned(),
            _ => "was killed".to_owned(),
        };
        lines.push(format!("{}  {end}", life.started_at));
    }
    lines.join("\n")
}

fn stuck_text(daemon: &Found, report: &StuckReport) -> String {
    let running = report.operations.len();
    let mut lines = vec![format!("{}: {running} operations under way", daemon.record.mountpoint)];
    for operation in &report.operations {
        let chunk = operation.chunk.map_or_else(String::new, |chunk| format!(" (chunk {chunk})"));
        lines.push(format!(
            "{:>9.1} s  {} #{} {} +{} {} bytes: waits for {}{chunk}, thread {}",
            std::time::Duration::from_millis(operation.since_ms).as_secs_f64(),
            operation.kind,
            operation.id,
            operation.path.path,
            operation.offset,
            operation.len,
            operation.waits_for,
            operation.thread
        ));
    }
    lines.join("\n")
}
