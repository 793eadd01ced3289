//! `lazycopy status`: what daemons say about themselves.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::target::Target;
use crate::cli::{complain, say, text};
use crate::control::client::Client;
use crate::control::registry::{self, Found};
use crate::control::status::{DaemonsReport, SCHEMA, StuckReport};
use crate::error::{Error, Kind, Result};
use crate::vfs::mountinfo::MountEntry;
use crate::vfs::mountpoint::is_dead;

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
}

pub(crate) fn run(args: &StatusArgs) -> Result<Exit> {
    match &args.target {
        Some(path) => {
            let target = Target::find(path)?;
            let daemon = target.daemon.as_ref().ok_or_else(|| nobody_serves(&target))?;
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

fn nobody_serves(target: &Target) -> Error {
    let error = Error::new(Kind::NotFound, "find the daemon of").at(&target.path);
    if !target.top().is_some_and(MountEntry::is_lazycopy) {
        return error.because("no lazycopy daemon of this user serves it");
    }
    if is_dead(&target.path, &target.mounts) {
        return error
            .because("its mount is dead: the daemon has ended without unmounting")
            .hint("`lazycopy unmount` clears it, and so does the next mount there");
    }
    error
        .because("it is mounted, but by a daemon that is not registered for this user")
        .hint("ask as the user who mounted it, with the same LAZYCOPY_RUNTIME_DIR")
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
    if args.json && !args.stuck {
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
