//! `-S` and `--allow-origin`: what is said of a SOURCE beside its URL.

use clap::Args;

use crate::error::Result;
use crate::source::manifest::ALLOW_ORIGIN;
use crate::source::options::SourceOptions;

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
}

impl SourceArgs {
    pub(crate) fn options(&self) -> Result<SourceOptions> {
        SourceOptions::parse(&self.source_options)?.with(ALLOW_ORIGIN.name, &self.allow_origin)
    }
}
