//! What the settings of all buckets have in common.

use std::env;

use url::Url;

use crate::error::{Error, Kind, Result};
use crate::source::options::{OptionSpec, Takes};

/// `-S anonymous=true`.
pub(in crate::source) const ANONYMOUS: OptionSpec =
    option("anonymous", Takes::Flag, "sign nothing: for public buckets [default: false]");

pub(in crate::source) const fn option(
    name: &'static str,
    takes: Takes,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { name, takes, help }
}

/// What a variable of the environment holds, if anything.
pub(in crate::source) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// What a URL of a bucket names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Place {
    scheme: &'static str,
    pub(in crate::source) bucket: String,
    /// As typed, without slashes at its beginning.
    pub(in crate::source) prefix: String,
    /// The server, if it is not that of the service: buckets of one name on two servers are two.
    elsewhere: Option<Url>,
}

impl Place {
    /// Reads `SCHEME://bucket/prefix`. What follows the bucket is a key as it is: nothing in it is encoded.
    ///
    /// # Errors
    /// `Invalid` if there is no name of a bucket, or more than that.
    pub(in crate::source) fn parse(url: &str, scheme: &'static str) -> Result<Self> {
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_userless(bucket)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if bucket.is_empty() || !bucket.chars().all(is_name) {
            return Err(Error::new(Kind::Invalid, "open source")
                .because(format!("not the name of a bucket: {scheme}://bucket/prefix")));
        }
        let prefix = prefix.trim_start_matches('/').to_owned();
        Ok(Self { scheme, bucket: bucket.to_owned(), prefix, elsewhere: None })
    }

    /// The same on the server `endpoint`; one below a domain of the `service` is the service's own.
    pub(in crate::source) fn at(self, endpoint: Option<Url>, service: &[&str]) -> Self {
        let is_own = |url: &Url| {
            let host = url.host_str().unwrap_or_default();
            service.iter().any(|domain| host.ends_with(domain))
        };
        Self { elsewhere: endpoint.filter(|url| !is_own(url)), ..self }
    }

    pub(in crate::source) fn display_name(&self) -> String {
        let (scheme, bucket) = (self.scheme, &self.bucket);
        let name = match self.prefix.as_str() {
            "" => format!("{scheme}://{bucket}"),
            prefix => format!("{scheme}://{bucket}/{prefix}"),
        };
        match &self.elsewhere {
            None => name,
            Some(server) => format!("{name} at {}", server.as_str().trim_end_matches('/')),
        }
    }
}

/// # Errors
/// `Invalid` if a bucket's place in a URL holds credentials; never shows them.
pub(in crate::source) fn check_userless(authority: &str) -> Result<()> {
    if authority.contains('@') {
        return Err(Error::new(Kind::Invalid, "open source")
            .because("the URL of a bucket takes no credentials")
            .hint("they come from the environment, the service's own files, or -S KEY=@FILE"));
    }
    Ok(())
}

/// The URL of a server that was named in its stead.
///
/// # Errors
/// `Invalid` if it is more than a server; never shows it.
pub(in crate::source) fn endpoint_url(text: &str) -> Result<Url> {
    let invalid = |why: String| {
        Error::new(Kind::Invalid, "use endpoint of bucket")
            .because(why)
            .hint("as http://host:9000 or https://host")
    };
    let url = Url::parse(text).map_err(|error| invalid(format!("not a usable URL: {error}")))?;
    let has_credentials = !url.username().is_empty() || url.password().is_some();
    if !matches!(url.scheme(), "http" | "https") || has_credentials || url.query().is_some() {
        return Err(invalid("it takes no credentials and no query".to_owned()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_bucket_and_a_key_as_it_is() {
        let seen = |url| Place::parse(url, "s3").unwrap().display_name();
        assert_eq!(seen("s3://b"), "s3://b");
        assert_eq!(seen("S3://b/"), "s3://b");
        assert_eq!(seen("s3://b/a b/100%/ü?x#y"), "s3://b/a b/100%/ü?x#y");
        for url in ["s3://", "s3:///x", "s3://b:80/x", "s3://a b"] {
            assert_eq!(Place::parse(url, "s3").unwrap_err().kind(), Kind::Invalid, "{url}");
        }
        let error = Place::parse("s3://AKIA:hunter2@b/x", "s3").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_bucket_of_another_server_has_another_name() {
        let seen = |endpoint| {
            let place = Place::parse("s3://b/x", "s3").unwrap();
            place.at(Some(endpoint_url(endpoint).unwrap()), &[".amazonaws.com"]).display_name()
        };
        assert_eq!(seen("http://h:9000/"), "s3://b/x at http://h:9000");
        assert_eq!(seen("https://h/below"), "s3://b/x at https://h/below");
        assert_eq!(seen("https://s3.eu-west-1.amazonaws.com"), "s3://b/x");
    }

    #[test]
    fn an_endpoint_is_a_server_and_nothing_else() {
        assert!(endpoint_url("http://127.0.0.1:9000").is_ok());
        for text in ["127.0.0.1:9000", "ftp://h", "http://me:hunter2@h", "http://h/?x=hunter2"] {
            assert!(!endpoint_url(text).unwrap_err().to_string().contains("hunter2"), "{text}");
        }
    }
}
