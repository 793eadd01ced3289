//! `-S`, `--allow-origin` and `--accept-new`: what is said of a SOURCE beside its URL.

use clap::Args;

use crate::error::Result;
use crate::source::manifest::ALLOW_ORIGIN;
use crate::source::options::SourceOptions;
use crate::source::sftp::ssh::ACCEPT_NEW;

/// How a source is asked.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Option of a remote SOURCE, once for each; KEY=@FILE takes the value, as a secret, from a file [default: none; `lazycopy doctor` lists them]
    #[arg(
        short = 'S',
        long = "source-option",
        value_name = "KEY=VALUE",
        env = "LAZYCOPY_SOURCE_OPTIONS",
        hide_env_values = true
    )]
    source_options: Vec<String>,
    /// Origin besides its own that a manifest may name, as https://host; once for each [default: none]
    #[arg(
        long,
        value_name = "ORIGIN",
        env = "LAZYCOPY_ALLOW_ORIGIN",
        hide_env_values = true,
        value_delimiter = ','
    )]
    allow_origin: Vec<String>,
    /// Take and keep the key of an sftp host that is not in known_hosts; one that changed is refused all the same [default: refuse it]
    #[arg(long, env = "LAZYCOPY_ACCEPT_NEW", hide_env_values = true)]
    accept_new: bool,
}

impl SourceArgs {
    pub(crate) fn options(&self) -> Result<SourceOptions> {
        let accepts_new: Vec<String> =
            self.accept_new.then(|| true.to_string()).into_iter().collect();
        SourceOptions::parse(&self.source_options)?
            .with(ALLOW_ORIGIN.name, &self.allow_origin)?
            .with(ACCEPT_NEW.name, &accepts_new)
    }
}
