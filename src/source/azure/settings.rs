//! Where a container is and how it is asked: the URL, `-S`, the environment of Azure's tools, in this order.

use std::path::PathBuf;

use url::Url;

use crate::core::secret::Secret;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::settings::{ANONYMOUS, check_userless, endpoint_url, option, variable};
use crate::source::http::CA;
use crate::source::options::{OptionSpec, SourceOptions, Takes};

/// What `-S` understands.
pub(super) const OPTIONS: &[OptionSpec] = &[
    option(
        "account",
        Takes::Text,
        "storage account [default: the host of the URL, AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_CONNECTION_STRING, the endpoint's]",
    ),
    option(
        "endpoint",
        Takes::Text,
        "URL of the account's blobs [default: the connection string's, else https://ACCOUNT.blob.core.windows.net]",
    ),
    option(
        "account-key",
        Takes::Secret,
        "key of the account [default: the connection string's, AZURE_STORAGE_KEY, else a token]",
    ),
    option(
        "sas-token",
        Takes::Secret,
        "shared access signature [default: the connection string's, AZURE_STORAGE_SAS_TOKEN, else a token]",
    ),
    ANONYMOUS,
    CA,
];

/// What an az URL names, with what is said beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) account: String,
    /// Its path has no slash at its end.
    pub(super) endpoint: Url,
    pub(super) container: String,
    /// As typed, without slashes at its beginning.
    pub(super) prefix: String,
}

impl Place {
    /// Every account has its own containers, so it is part of the name; the name is a URL that can be typed.
    pub(super) fn display_name(&self) -> String {
        let host = self.endpoint.host_str().unwrap_or_default();
        let port = self.endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = self.endpoint.path().trim_end_matches('/');
        let container = &self.container;
        match self.prefix.as_str() {
            "" => format!("az://{host}{port}{path}/{container}"),
            prefix => format!("az://{host}{port}{path}/{container}/{prefix}"),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    Nobody,
    Key(Secret),
    Sas(Secret),
    /// A principal or a managed identity, as Azure's own tools find them.
    Chain,
}

/// How a container is asked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) identity: Identity,
    pub(super) ca: Option<PathBuf>,
}

impl Settings {
    /// Reads `az://container/prefix` or `az://ACCOUNT.blob.core.windows.net/container/prefix`. What follows the container is a key as it is.
    ///
    /// # Errors
    /// `Invalid` if it is no such URL, or nobody says which account.
    pub(super) fn place(url: &str, options: &SourceOptions) -> Result<Place> {
        let invalid = |why: &str| Error::new(Kind::Invalid, "open source").because(why);
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let (first, after) = rest.split_once('/').unwrap_or((rest, ""));
        check_userless(first)?;
        // Names of containers have no dots.
        let (host, key) = match first.contains('.') {
            true => (Some(first), after),
            false => (None, rest),
        };
        let (container, prefix) = key.split_once('/').unwrap_or((key, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-$".contains(c);
        if container.is_empty() || !container.chars().all(is_name) {
            return Err(invalid("not the name of a container: az://container/prefix"));
        }
        let said = options.text("endpoint")?;
        let connection = Connection::of_environment();
        let named = options
            .text("account")?
            .or_else(|| host?.split('.').next().map(str::to_owned))
            .or_else(|| variable("AZURE_STORAGE_ACCOUNT"))
            .or_else(|| connection.get("AccountName").map(str::to_owned));
        let connection = connection.of_account(named.as_deref());
        let endpoint = match (said, host) {
            (Some(said), _) => Some(said),
            (None, Some(host)) => Some(format!("https://{host}")),
            (None, None) => connection.endpoint(named.as_deref()),
        };
        let endpoint = endpoint.map(|text| endpoint_url(&text)).transpose()?;
        let account = named.or_else(|| endpoint.as_ref().and_then(account_of)).ok_or_else(|| {
            invalid("nobody says which storage account")
                .hint("-S account=NAME, AZURE_STORAGE_ACCOUNT, or az://NAME.blob.core.windows.net/container")
        })?;
        if account.is_empty() || !account.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(invalid("not the name of a storage account"));
        }
        let endpoint = match endpoint {
            Some(endpoint) => endpoint,
            None => endpoint_url(&format!("https://{account}.blob.core.windows.net"))?,
        };
        let prefix = prefix.trim_start_matches('/').to_owned();
        Ok(Place { account, endpoint, container: container.to_owned(), prefix })
    }

    /// Blocks: it reads files.
    pub(super) fn gather(place: &Place, options: &SourceOptions) -> Result<Self> {
        let identity = match said_identity(options)? {
            Some(identity) => identity,
            None => identity_of_environment(&place.account),
        };
        Ok(Self { identity, ca: options.path(CA.name)? })
    }
}

/// The account in the host of an endpoint, or in its path (as Azurite has it).
fn account_of(endpoint: &Url) -> Option<String> {
    let in_path = endpoint.path().trim_matches('/');
    let host = endpoint.host_str()?;
    let account = if in_path.is_empty() { host.split_once('.')?.0 } else { in_path };
    Some(account.to_owned())
}

/// Who is said to ask.
fn said_identity(options: &SourceOptions) -> Result<Option<Identity>> {
    let (key, sas) = (options.secret("account-key")?, options.secret("sas-token")?);
    match (options.flag("anonymous")?, key, sas) {
        (true, None, None) => Ok(Some(Identity::Nobody)),
        (false, Some(key), None) => Ok(Some(Identity::Key(key))),
        (false, None, Some(sas)) => Ok(Some(sas_identity(sas.reveal()))),
        (false, None, None) => Ok(None),
        _ => Err(Error::new(Kind::Invalid, "use -S")
            .because("of account-key, sas-token and anonymous there can be only one")),
    }
}

/// Tokens are handed out with and without the question mark.
fn sas_identity(token: &str) -> Identity {
    Identity::Sas(Secret::new(token.trim().trim_start_matches('?')))
}

/// Who asks for `account`: what the environment holds for another account is not sent there.
fn identity_of_environment(account: &str) -> Identity {
    let connection = Connection::of_environment().of_account(Some(account));
    let is_ours = variable("AZURE_STORAGE_ACCOUNT").is_none_or(|named| named == account);
    let ours = |name| variable(name).filter(|_| is_ours);
    if let Some(key) = connection.get("AccountKey") {
        return Identity::Key(Secret::new(key));
    }
    if let Some(sas) = connection.get("SharedAccessSignature") {
        return sas_identity(sas);
    }
    match (ours("AZURE_STORAGE_KEY"), ours("AZURE_STORAGE_SAS_TOKEN")) {
        (Some(key), _) => Identity::Key(Secret::new(key)),
        (None, Some(sas)) => sas_identity(&sas),
        (None, None) => Identity::Chain,
    }
}

/// A connection string: `AccountName=…;AccountKey=…;EndpointSuffix=…`. It has no `Debug`: it holds secrets.
#[derive(Default)]
struct Connection(Vec<(String, String)>);

impl Connection {
    fn of_environment() -> Self {
        variable("AZURE_STORAGE_CONNECTION_STRING")
            .map(|text| Self::parse(&text))
            .unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(key));
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Nothing, if it is of another account.
    fn of_account(self, account: Option<&str>) -> Self {
        let own = self.get("AccountName").map(str::to_owned);
        let own = own.or_else(|| account_of(&Url::parse(self.get("BlobEndpoint")?).ok()?));
        match (own, account) {
            (Some(own), Some(account)) if own != account => Self::default(),
            _ => self,
        }
    }

    fn endpoint(&self, account: Option<&str>) -> Option<String> {
        if let Some(endpoint) = self.get("BlobEndpoint") {
            return Some(endpoint.to_owned());
        }
        let protocol = self.get("DefaultEndpointsProtocol").unwrap_or("https");
        Some(format!("{protocol}://{}.blob.{}", account?, self.get("EndpointSuffix")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str, options: &[&str]) -> Result<Place> {
        Settings::place(url, &SourceOptions::parse(options).unwrap())
    }

    #[test]
    fn a_url_names_a_container_and_perhaps_its_account() {
        let seen = |url, options: &[&str]| place(url, options).unwrap().display_name();
        let account = ["account=me"];
        assert_eq!(seen("az://c", &account), "az://me.blob.core.windows.net/c");
        let name = "az://me.blob.core.windows.net/c/a b/100%/ü?x#y";
        assert_eq!(seen("az://c/a b/100%/ü?x#y", &account), name);
        assert_eq!(seen(name, &[]), name, "a name can be typed");
        assert_eq!(place(name, &[]).unwrap().account, "me");
        let azurite =
            place("az://c/x/", &["endpoint=http://127.0.0.1:9/devstoreaccount1/"]).unwrap();
        assert_eq!(azurite.account, "devstoreaccount1");
        assert_eq!(azurite.display_name(), "az://127.0.0.1:9/devstoreaccount1/c/x/");
        for url in ["az://", "az:///x", "az://c:80/x", "az://a b", "az://me.blob.core.windows.net/"]
        {
            assert_eq!(place(url, &account).unwrap_err().kind(), Kind::Invalid, "{url}");
        }
        let error = place("az://me:hunter2@c/x", &account).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_connection_string_is_of_one_account() {
        let text = "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=aGk=;EndpointSuffix=core.chinacloudapi.cn";
        let ours = || Connection::parse(text).of_account(Some("me"));
        assert_eq!(ours().get("accountkey"), Some("aGk="));
        assert_eq!(ours().endpoint(Some("me")).unwrap(), "https://me.blob.core.chinacloudapi.cn");
        let other = Connection::parse(text).of_account(Some("you"));
        assert!(other.get("AccountKey").is_none() && other.endpoint(Some("you")).is_none());
        let sas = "BlobEndpoint=https://me.blob.core.windows.net;SharedAccessSignature=sv=1&sig=x";
        let sas = Connection::parse(sas);
        assert_eq!(sas.get("SharedAccessSignature"), Some("sv=1&sig=x"));
        assert!(sas.of_account(Some("you")).get("SharedAccessSignature").is_none());
    }
}
