//! Where a bucket is and how it is asked: the URL, `-S`, the environment and the files of the AWS tools, in this order.

use std::env;
use std::fs;
use std::path::PathBuf;

use url::Url;

use crate::core::secret::Secret;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::settings::{ANONYMOUS, Place, endpoint_url, option, variable};
use crate::source::http::CA;
use crate::source::options::{OptionSpec, SourceOptions, Takes};

/// The region of whoever names none.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// What `-S` understands.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option(
        "endpoint",
        Takes::Text,
        "URL of the server [default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's, else AWS]",
    ),
    option(
        "region",
        Takes::Text,
        "region of the bucket [default: AWS_REGION, the profile's, else it is found out]",
    ),
    option(
        "path-style",
        Takes::Flag,
        "bucket in the path instead of the host name [default: true with an endpoint, else false]",
    ),
    option(
        "profile",
        Takes::Text,
        "profile of the AWS files, before the environment [default: AWS_PROFILE, else default]",
    ),
    ANONYMOUS,
    option(
        "access-key-id",
        Takes::Text,
        "key id, with secret-access-key [default: as the AWS tools find it]",
    ),
    option("secret-access-key", Takes::Secret, "its secret [default: as the AWS tools find it]"),
    option("session-token", Takes::Secret, "its session token [default: none]"),
    option("requester-pays", Takes::Flag, "take the costs of requests [default: false]"),
    CA,
];

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Nobody,
    Keys {
        id: String,
        secret: Secret,
        token: Option<Secret>,
    },
    /// As the AWS tools find it, in the profile that was asked for.
    Chain {
        profile: Option<String>,
    },
}

/// How a bucket is asked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) endpoint: Option<Url>,
    /// `None` = whatever the bucket's is.
    pub(super) region: Option<String>,
    pub(super) path_style: bool,
    pub(super) identity: Identity,
    pub(super) requester_pays: bool,
    pub(super) ca: Option<PathBuf>,
}

/// What an s3 URL names, on the server that the settings name. Blocks: it reads files.
pub(super) fn place(url: &str, options: &SourceOptions) -> Result<Place> {
    let place = Place::parse(url, "s3")?;
    Ok(place.at(Profile::of(options)?.endpoint(options)?, &[".amazonaws.com", ".amazonaws.com.cn"]))
}

impl Settings {
    /// Blocks: it reads files.
    pub(super) fn gather(place: &Place, options: &SourceOptions) -> Result<Self> {
        let profile = Profile::of(options)?;
        let endpoint = profile.endpoint(options)?;
        let region = options
            .text("region")?
            .or_else(|| variable("AWS_REGION"))
            .or_else(|| variable("AWS_DEFAULT_REGION"))
            .or_else(|| profile.get("region"));
        let has_style = options.text("path-style")?.is_some();
        Ok(Self {
            // A certificate for *.s3.amazonaws.com does not hold for a name with another dot.
            path_style: match has_style {
                true => options.flag("path-style")?,
                false => endpoint.is_some() || place.bucket.contains('.'),
            },
            endpoint,
            region,
            identity: identity(options, options.text("profile")?)?,
            requester_pays: options.flag("requester-pays")?,
            ca: options.path(CA.name)?,
        })
    }
}

fn identity(options: &SourceOptions, profile: Option<String>) -> Result<Identity> {
    if options.flag("anonymous")? {
        return Ok(Identity::Nobody);
    }
    let (id, secret) = (options.text("access-key-id")?, options.secret("secret-access-key")?);
    match (id, secret) {
        (Some(id), Some(secret)) => {
            Ok(Identity::Keys { id, secret, token: options.secret("session-token")? })
        }
        (None, None) => Ok(Identity::Chain { profile }),
        _ => Err(Error::new(Kind::Invalid, "use -S")
            .because("access-key-id and secret-access-key need each other")),
    }
}

/// The settings of one profile in the AWS configuration file that are no secrets.
#[derive(Debug, Default)]
struct Profile {
    lines: Vec<(String, String)>,
}

impl Profile {
    /// The profile that was asked for.
    fn of(options: &SourceOptions) -> Result<Self> {
        Ok(Self::read(options.text("profile")?.or_else(|| variable("AWS_PROFILE"))))
    }

    /// The server that somebody names instead of AWS.
    fn endpoint(&self, options: &SourceOptions) -> Result<Option<Url>> {
        let endpoint = options
            .text("endpoint")?
            .or_else(|| variable("AWS_ENDPOINT_URL_S3"))
            .or_else(|| variable("AWS_ENDPOINT_URL"))
            .or_else(|| self.get("endpoint_url"));
        endpoint.map(|text| endpoint_url(&text)).transpose()
    }

    /// The profile `name`, or the default one; nothing if there is no such file.
    fn read(name: Option<String>) -> Self {
        let set =
            |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = set("AWS_CONFIG_FILE").or_else(|| Some(set("HOME")?.join(".aws/config")));
        let text = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        Self::find(&text, name.as_deref().unwrap_or("default"))
    }

    fn find(text: &str, name: &str) -> Self {
        let mut is_ours = false;
        let mut lines = Vec::new();
        for line in text.lines() {
            if let Some(section) =
                line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
            {
                let section = section.trim();
                is_ours = section.strip_prefix("profile ").unwrap_or(section).trim() == name;
            } else if is_ours
                && let Some((key, value)) = line.split_once('=')
                // What is indented belongs to a group of settings.
                && !line.starts_with([' ', '\t'])
            {
                lines.push((key.trim().to_owned(), value.trim().to_owned()));
            }
        }
        Self { lines }
    }

    fn get(&self, key: &str) -> Option<String> {
        self.lines.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found_by_its_name() {
        let text = "[default]\nregion = eu-west-1\n[profile two]\nregion=eu-central-1 \nservices = x\ns3 =\n  region = no\nendpoint_url = http://h\n";
        let get = |name, key| Profile::find(text, name).get(key);
        assert_eq!(get("default", "region").unwrap(), "eu-west-1");
        assert_eq!(get("two", "region").unwrap(), "eu-central-1");
        assert_eq!(get("two", "endpoint_url").unwrap(), "http://h");
        assert_eq!(get("three", "region"), None);
    }
}
