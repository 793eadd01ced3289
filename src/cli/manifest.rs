//! `lazycopy manifest`: a list of a source that is a source itself.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use url::Url;

use crate::cli::exit::Exit;
use crate::cli::source_options::SourceArgs;
use crate::cli::{absolute, complain, text};
use crate::daemon::manifest::{Base, Counts, ManifestSettings, Sums, write};
use crate::daemon::settings::SourceSpec;
use crate::error::{Error, Result};

/// Write a manifest of SOURCE: its files with lengths, times and checksums, as JSON lines. `manifest:FILE` is a source again.
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    /// Directory, file or URL
    source: OsString,
    /// Write to FILE, which appears when it is whole [default: standard output]
    #[arg(short, long, value_name = "FILE", env = "LAZYCOPY_OUTPUT", hide_env_values = true)]
    output: Option<PathBuf>,
    /// Checksums of the files [default: sha256 of a SOURCE on this machine, told of others]
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        env = "LAZYCOPY_CHECKSUM",
        hide_env_values = true
    )]
    checksum: Option<ChecksumKind>,
    /// URL at which the contents of SOURCE are, or will be [default: SOURCE's own]
    #[arg(
        long,
        value_name = "URL",
        env = "LAZYCOPY_BASE",
        hide_env_values = true,
        conflicts_with = "relative"
    )]
    base: Option<Url>,
    /// Name files relative to the manifest, which is to lie in the root of the tree [default: by whole URLs]
    #[arg(long, env = "LAZYCOPY_RELATIVE", hide_env_values = true, value_parser = BoolishValueParser::new())]
    relative: bool,
    /// Go into other file systems below a local SOURCE [default: one file system]
    #[arg(long, env = "LAZYCOPY_CROSS_MOUNTS", hide_env_values = true, value_parser = BoolishValueParser::new())]
    cross_mounts: bool,
    #[command(flatten)]
    source_args: SourceArgs,
}

/// Which checksums a manifest has.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ChecksumKind {
    /// What SOURCE tells; no file is read
    Told,
    /// SHA-256; every file is read
    Sha256,
    /// BLAKE3, the fastest; every file is read
    Blake3,
}

impl ManifestArgs {
    fn settings(&self) -> Result<ManifestSettings> {
        let options = self.source_args.options()?;
        let source = SourceSpec::parse_with(&self.source, options)?;
        let sums = match (self.checksum, &source) {
            (Some(ChecksumKind::Told), _) | (None, SourceSpec::Url(_)) => Sums::Told,
            (Some(ChecksumKind::Sha256), _) | (None, SourceSpec::Local(_)) => Sums::Sha256,
            (Some(ChecksumKind::Blake3), _) => Sums::Blake3,
        };
        let base = match (&self.base, self.relative) {
            (Some(url), _) => Base::Url(directory(url)),
            (None, true) => Base::Relative,
            (None, false) => Base::Source,
        };
        Ok(ManifestSettings { source, cross_mounts: self.cross_mounts, base, sums })
    }
}

/// With a slash at its end, or the last name would be replaced.
fn directory(url: &Url) -> Url {
    let mut url = url.clone();
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    url
}

pub(crate) fn run(args: &ManifestArgs) -> Result<Exit> {
    let settings = args.settings()?;
    let counts = match &args.output {
        None => write_to(settings, std::io::stdout().lock())?,
        Some(path) => write_file(settings, &absolute("write manifest", path)?)?,
    };
    let mut line = format!(
        "{} files, {}, {} directories and links",
        text::count(counts.files),
        text::bytes(counts.bytes),
        text::count(counts.others)
    );
    if counts.left_out > 0 {
        line += &format!(
            "; {} left out (pipes, sockets, devices, impossible names)",
            text::count(counts.left_out)
        );
    }
    complain(&line);
    Ok(if counts.failed == 0 { Exit::Ok } else { Exit::SomeFailed })
}

fn write_to(settings: ManifestSettings, to: impl Write) -> Result<Counts> {
    write(settings, &mut BufWriter::new(to), &mut |error| complain(&error.to_string()))
}

fn write_file(settings: ManifestSettings, path: &Path) -> Result<Counts> {
    let failed = |error| Error::io("write manifest", error).at(path);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed)?;
    let counts = write_to(settings, file.as_file_mut())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(counts)
}
