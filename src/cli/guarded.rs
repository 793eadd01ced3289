//! `lazycopy guarded`: becomes another program that ends when the process that started it dies. For `lazycopy run`; not shown to people.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::cli::exit::Exit;
use crate::error::{Error, Kind, Result};

/// Run a program that does not outlive its parent
#[derive(Debug, Args)]
pub(crate) struct GuardedArgs {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<OsString>,
}

/// Returns only if there is no such program.
pub(crate) fn run(args: &GuardedArgs) -> Result<Exit> {
    let Some((program, rest)) = args.argv.split_first() else { return Ok(Exit::Usage) };
    let error = Command::new(program).args(rest).exec();
    Err(Error::io("start", error).at(program))
}

/// Has the kernel send `signal` when the parent dies, which is process `parent`.
///
/// # Errors
/// `Busy` if it has died already: nobody would be told then.
pub(crate) fn end_with(parent: i32, signal: Signal) -> Result<()> {
    set_parent_process_death_signal(Some(signal))
        .map_err(|errno| Error::io("ask for a signal at the parent's death", errno))?;
    match getppid().map(Pid::as_raw_nonzero).map(i32::from) {
        Some(now) if now == parent => Ok(()),
        _ => Err(Error::new(Kind::Busy, "start").because("the process that started it has ended")),
    }
}
