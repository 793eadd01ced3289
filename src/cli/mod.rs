//! The command line: raw arguments become validated settings once, here and nowhere else.
//!
//! One file per subcommand; one error line on standard error; the exit codes of [`exit::Exit`].

mod background;
mod checksums;
mod clone;
mod copy;
mod copying;
mod doctor;
mod events;
pub mod exit;
mod forget;
mod guarded;
mod hydrate_options;
mod limit_options;
mod logging;
mod manifest;
mod mount;
mod mount_options;
mod orders;
mod progress;
mod run;
mod source_options;
mod status;
mod target;
mod text;
mod unmount;
mod verify;
mod watch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use rustix::process::Signal;

use crate::cli::exit::Exit;
use crate::control::orders::{PathOrder, SwitchOrder};
use crate::error::{Error, Result};

const EXIT_CODES: &str = "Exit codes: 0 ok · 1 some files failed · 2 wrong usage, or refused before the start · \
3 source unreachable · 4 verification failed · 5 stopped · 6 in use · 7 not supported here";

/// Use a copy before it is finished: a whole tree at once, filled as it is read.
#[derive(Debug, Parser)]
#[command(name = "lazycopy", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// This process is a daemon that goes to the background.
    #[arg(long, hide = true)]
    background_child: bool,
    /// This process ends when the one with this number does, which started it.
    #[arg(long, hide = true)]
    child_of: Option<i32>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::MountArgs>),
    Clone(Box<clone::CloneArgs>),
    Copy(Box<copy::CopyArgs>),
    Run(run::RunArgs),
    #[command(hide = true)]
    Guarded(guarded::GuardedArgs),
    Unmount(unmount::UnmountArgs),
    Status(status::StatusArgs),
    Events(events::EventsArgs),
    /// Begin nothing more in the background; what runs is finished. Reads are served in any case
    Pause(orders::SwitchArgs),
    /// Go on in the background, and try again what failed
    Resume(orders::SwitchArgs),
    /// Finish what runs in the background, then stop
    Drain(orders::SwitchArgs),
    /// End what runs in the background now; what landed is kept, reads are served in any case
    Stop(orders::SwitchArgs),
    /// Limit what the background takes of the source
    Limit(orders::LimitArgs),
    /// Fetch files, or all below directories, in the background
    Hydrate(orders::PathArgs),
    /// Forget the local bytes of files, or of all below directories: they are fetched again when they are read
    Evict(orders::PathArgs),
    /// Keep files, or all below directories, from eviction
    Pin(orders::PathArgs),
    /// Let what was pinned be evicted again
    Unpin(orders::PathArgs),
    /// Ask the source now for files, or for what directories hold
    Refresh(orders::PathArgs),
    Verify(verify::VerifyArgs),
    Forget(forget::ForgetArgs),
    Manifest(manifest::ManifestArgs),
    Doctor(doctor::DoctorArgs),
}

/// Runs the command line `args`, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if let Some(parent) = cli.child_of {
        // A copy saves; what we know nothing of is killed.
        let signal = match cli.command {
            Command::Guarded(_) => Signal::KILL,
            _ => Signal::TERM,
        };
        if let Err(error) = guarded::end_with(parent, signal) {
            return finish(Err(error)).into();
        }
    }
    let done = match &cli.command {
        Command::Mount(mount) if cli.background_child => return mount::run_child(mount),
        Command::Mount(mount) => return mount::run(mount, &args),
        Command::Clone(clone) if cli.background_child => return clone::run_child(clone),
        Command::Clone(clone) => return clone::run(clone, &args),
        Command::Copy(args) => copy::run(args),
        Command::Run(args) => run::run(args),
        Command::Guarded(args) => guarded::run(args),
        Command::Unmount(unmount) => unmount::run(unmount),
        Command::Status(status) => status::run(status),
        Command::Events(events) => events::run(events),
        Command::Pause(args) => orders::switch(SwitchOrder::Pause, args),
        Command::Resume(args) => orders::switch(SwitchOrder::Resume, args),
        Command::Drain(args) => orders::switch(SwitchOrder::Drain, args),
        Command::Stop(args) => orders::switch(SwitchOrder::Stop, args),
        Command::Limit(args) => orders::limit(args),
        Command::Hydrate(args) => orders::paths(PathOrder::Hydrate, args),
        Command::Evict(args) => orders::paths(PathOrder::Evict, args),
        Command::Pin(args) => orders::paths(PathOrder::Pin, args),
        Command::Unpin(args) => orders::paths(PathOrder::Unpin, args),
        Command::Refresh(args) => orders::paths(PathOrder::Refresh, args),
        Command::Verify(verify) => verify::run(verify),
        Command::Forget(forget) => forget::run(forget),
        Command::Manifest(args) => manifest::run(args),
        Command::Doctor(doctor) => doctor::run(doctor),
    };
    finish(done).into()
}

/// Says what went wrong, in one line, and what that means.
fn finish(done: Result<Exit>) -> Exit {
    done.unwrap_or_else(|error| {
        complain(&error.to_string());
        Exit::of(&error)
    })
}

/// The one error line. A standard error that is closed must not end the command another way.
fn complain(message: &str) {
    use std::io::Write;
    let line = message.replace('\n', " ");
    drop(writeln!(std::io::stderr(), "lazycopy: {line}"));
}

/// A line about the work, not about an error.
fn complain_plain(line: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn absolute(op: &'static str, path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(op, error).at(path))
}

/// Prints to standard output; a reader that left (`| head`) is no error.
fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stdout(), "{text}"));
}

fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            drop(error.print());
            Exit::Ok.into()
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            drop(error.print());
            Exit::Usage.into()
        }
        _ => {
            let text = error.to_string();
            // What is wrong is the first paragraph; the rest is help.
            let wrong: Vec<_> =
                text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            let wrong = wrong.join(" ");
            let wrong = wrong.strip_prefix("error: ").unwrap_or(&wrong);
            complain(&format!("{wrong} (`--help` tells what is possible)"));
            Exit::Usage.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_variable() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                if argument.is_positional() || ["help", "version"].contains(&name) {
                    continue;
                }
                let variable = argument.get_env().and_then(|variable| variable.to_str());
                assert!(
                    variable.is_some_and(|variable| variable.starts_with("LAZYCOPY_")),
                    "{} --{name}",
                    command.get_name()
                );
            }
        }
    }
}
