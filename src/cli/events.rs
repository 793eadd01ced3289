//! `lazycopy events`: what a daemon did, and does, one JSON object on each line.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::cli::exit::Exit;
use crate::cli::orders::the_daemon;
use crate::cli::target::Target;
use crate::control::client::Client;
use crate::control::orders::EventsRequest;
use crate::error::{Error, Result};
use crate::store::event_log::written_in;

/// Print what happened, one JSON object on each line (docs/events.md)
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Mountpoint or destination; a destination that nobody serves has its log, too [default: the only daemon of this user]
    target: Option<PathBuf>,
    /// Go on with what comes, until the daemon ends [default: off]
    #[arg(long, env = "LAZYCOPY_FOLLOW", hide_env_values = true, value_parser = BoolishValueParser::new())]
    follow: bool,
    /// First sequence number [default: the oldest that is kept]
    #[arg(
        long,
        value_name = "SEQ",
        env = "LAZYCOPY_FROM",
        hide_env_values = true,
        default_value_t = 0,
        hide_default_value = true
    )]
    from: u64,
}

pub(crate) fn run(args: &EventsArgs) -> Result<Exit> {
    let mut out = std::io::stdout().lock();
    // A reader that left (`| head`) is no error.
    let mut show = |line: &[u8]| {
        let shown = out.write_all(line).and_then(|()| out.write_all(b"\n"));
        if shown.and_then(|()| out.flush()).is_err() {
            std::process::exit(0);
        }
    };
    if let Some(path) = &args.target {
        let target = Target::find(path)?;
        if target.daemon.is_none()
            && let Some(files) = written_in(&target.path)?
        {
            for file in files {
                for line in BufReader::new(file).split(b'\n') {
                    let line = line.map_err(|error| Error::io("read events", error).at(path))?;
                    if number(&line).is_some_and(|number| number >= args.from) {
                        show(&line);
                    }
                }
            }
            return Ok(Exit::Ok);
        }
    }
    let daemon = the_daemon(args.target.as_deref())?;
    let request = EventsRequest { from: args.from, follow: args.follow };
    Client::new(&daemon.socket).events(request, show)?;
    Ok(Exit::Ok)
}

fn number(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(line).ok()?.get("seq")?.as_u64()
}
