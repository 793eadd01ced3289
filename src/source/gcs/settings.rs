//! How a bucket is asked: `-S`, then the environment.

use std::path::PathBuf;

use url::Url;

use crate::core::secret::Secret;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::settings::{ANONYMOUS, Place, endpoint_url, option, variable};
use crate::source::http::CA;
use crate::source::options::{OptionSpec, SourceOptions, Takes};

const GOOGLE: &str = "https://storage.googleapis.com";

/// What `-S` understands.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option(
        "endpoint",
        Takes::Text,
        "URL of the server [default: STORAGE_EMULATOR_HOST, which is asked without credentials, else Google]",
    ),
    option(
        "credentials",
        Takes::Path,
        "JSON file of a service account, a user or a federation [default: application default credentials]",
    ),
    option("token", Takes::Secret, "an access token [default: application default credentials]"),
    ANONYMOUS,
    option(
        "requester-pays",
        Takes::Text,
        "project that takes the costs of requests [default: none]",
    ),
    CA,
];

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Nobody,
    Token(Secret),
    File(PathBuf),
    /// As Google's own libraries find it.
    Chain,
}

/// How a bucket is asked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) endpoint: Url,
    pub(super) identity: Identity,
    /// The project that pays instead of the bucket's.
    pub(super) payer: Option<String>,
    pub(super) ca: Option<PathBuf>,
}

/// What a gs URL names, on the server that the settings name.
pub(super) fn place(url: &str, options: &SourceOptions) -> Result<Place> {
    let server = Server::named(options)?;
    Ok(Place::parse(url, "gs")?.at(Some(server.url), &[".googleapis.com"]))
}

impl Settings {
    /// Blocks: it reads files.
    pub(super) fn gather(options: &SourceOptions) -> Result<Self> {
        let server = Server::named(options)?;
        let default = if server.is_emulator { Identity::Nobody } else { Identity::Chain };
        Ok(Self {
            endpoint: server.url,
            identity: identity(options)?.unwrap_or(default),
            payer: options.text("requester-pays")?,
            ca: options.path(CA.name)?,
        })
    }
}

/// Who is asked.
struct Server {
    url: Url,
    is_emulator: bool,
}

impl Server {
    fn named(options: &SourceOptions) -> Result<Self> {
        if let Some(chosen) = options.text("endpoint")? {
            return Ok(Self { url: endpoint_url(&chosen)?, is_emulator: false });
        }
        match variable("STORAGE_EMULATOR_HOST") {
            None => Ok(Self { url: endpoint_url(GOOGLE)?, is_emulator: false }),
            Some(host) if host.contains("://") => {
                Ok(Self { url: endpoint_url(&host)?, is_emulator: true })
            }
            Some(host) => {
                Ok(Self { url: endpoint_url(&format!("http://{host}"))?, is_emulator: true })
            }
        }
    }
}

/// Who is said to ask.
fn identity(options: &SourceOptions) -> Result<Option<Identity>> {
    let (token, file) = (options.secret("token")?, options.path("credentials")?);
    match (options.flag("anonymous")?, token, file) {
        (true, None, None) => Ok(Some(Identity::Nobody)),
        (false, Some(token), None) => Ok(Some(Identity::Token(token))),
        (false, None, Some(file)) => Ok(Some(Identity::File(file))),
        (false, None, None) => Ok(None),
        _ => Err(Error::new(Kind::Invalid, "use -S")
            .because("of token, credentials and anonymous there can be only one")),
    }
}
