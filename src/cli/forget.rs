//! `lazycopy forget`: DIR becomes a plain directory.

use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::cli::exit::Exit;
use crate::cli::target::Target;
use crate::cli::{absolute, say, text};
use crate::error::Result;
use crate::store::forget::forget;
use crate::vfs::mountpoint;

/// Remove lazycopy's own state from DIR: catalog, hashes, receipt, unfinished files. Finished files stay as they are.
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// Directory that was given as --dest
    dir: PathBuf,
    /// Also if the copy is not complete: what is unfinished is lost [default: refuse]
    #[arg(long, env = "LAZYCOPY_FORCE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    force: bool,
    /// Where the state of DIR is, if that has moved [default: where it was]
    #[arg(long, value_name = "DIR", env = "LAZYCOPY_STATE_DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &ForgetArgs) -> Result<Exit> {
    let target = Target::find(&args.dir)?;
    let dir = target.daemon.as_ref().map_or(target.path.clone(), |found| found.record.dest());
    mountpoint::check_not_dead(&dir)?;
    let state_dir =
        args.state_dir.as_ref().map(|path| absolute("use state directory", path)).transpose()?;
    let forgotten = forget(&dir, state_dir.as_deref(), args.force)?;
    let shown = dir.display();
    say(&match (forgotten.is_known, forgotten.parts) {
        (false, _) => format!("{shown} holds nothing of lazycopy's"),
        (true, 0) => format!("{shown} is a plain directory now"),
        (true, parts) => format!(
            "{shown} is a plain directory now; {} unfinished files ({}) are gone",
            text::count(parts),
            text::bytes(forgotten.part_bytes)
        ),
    });
    Ok(Exit::Ok)
}
