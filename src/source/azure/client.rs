//! What Azure is asked, and what its answers mean.

use async_trait::async_trait;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use reqsign_azure_storage::Credential;
use reqwest::{Client as Pool, Response};
use url::Url;

use super::credentials::signature;
use super::page::parse_page;
use super::settings::{Place, Settings};
use crate::core::attributes::Fingerprint;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::client::{Ask, ENCODED_KEY, Signature, page_text, send, url_below};
use crate::source::bucket::{Dialect, Found, Page, attributes_of};
use crate::source::http::answer::{stale, status_error, text};
use crate::source::http::client::{build, pool, range_headers};

/// The protocol: the first one in which names that XML cannot hold are listed is of February 2021.
const PROTOCOL: (&str, HeaderValue) = ("x-ms-version", HeaderValue::from_static("2021-12-02"));

const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");
const VERSION_ID: HeaderName = HeaderName::from_static("x-ms-version-id");
const RESOURCE_TYPE: HeaderName = HeaderName::from_static("x-ms-resource-type");
/// How directories were kept before there was that header.
const IS_FOLDER: HeaderName = HeaderName::from_static("x-ms-meta-hdi_isfolder");

/// Sends requests to one container.
#[derive(Debug)]
pub(super) struct Client {
    pool: Pool,
    /// The container's own URL; its path has no slash at its end.
    base: Url,
    signature: Signature<Credential>,
}

impl Client {
    /// Blocks if there is a file with certificates.
    ///
    /// # Errors
    /// `Io` if TLS cannot be set up; what is wrong with a setting.
    pub(super) fn new(place: &Place, settings: &Settings) -> Result<Self> {
        let mut base = place.endpoint.clone();
        base.set_path(&format!("{}/{}", base.path().trim_end_matches('/'), place.container));
        Ok(Self {
            pool: build(pool(settings.ca.as_deref())?)?,
            base,
            signature: signature(&settings.identity, &place.account)?,
        })
    }

    /// Asks about what lies at `path` below the container; an answer is a success, whole or in part.
    ///
    /// # Errors
    /// What the status or the code with it says.
    async fn ask(
        &self,
        op: &'static str,
        method: Method,
        (path, query): (&str, &[(&str, &str)]),
        mut headers: HeaderMap,
    ) -> Result<Response> {
        headers.insert(PROTOCOL.0, PROTOCOL.1);
        let url = url_below(&self.base, path, query);
        let response = send(&self.pool, &self.signature, Ask { op, method, url, headers }).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(error_of(op, response.status(), response.headers()))
    }

    async fn list(
        &self,
        op: &'static str,
        prefix: &str,
        marker: Option<&str>,
        more: (&str, &str),
    ) -> Result<Page> {
        let mut query = vec![("restype", "container"), ("comp", "list"), more];
        // Not everybody signs what is empty in the same way.
        query.extend(Some(("prefix", prefix)).filter(|_| !prefix.is_empty()));
        query.extend(marker.map(|marker| ("marker", marker)));
        let answer = self.ask(op, Method::GET, ("", &query), HeaderMap::new()).await?;
        parse_page(op, &page_text(op, answer).await?)
    }
}

fn path_of(key: &str) -> String {
    format!("/{}", utf8_percent_encode(key, ENCODED_KEY))
}

#[async_trait]
impl Dialect for Client {
    async fn has_any(&self, op: &'static str, prefix: &str) -> Result<bool> {
        let mut marker: Option<String> = None;
        // A page may be empty and not the last one.
        loop {
            let page = self.list(op, prefix, marker.as_deref(), ("maxresults", "1")).await?;
            if !page.items.is_empty() || page.next.is_none() || page.next == marker {
                return Ok(!page.items.is_empty());
            }
            marker = page.next;
        }
    }

    async fn page(&self, op: &'static str, prefix: &str, token: Option<&str>) -> Result<Page> {
        self.list(op, prefix, token, ("delimiter", "/")).await
    }

    async fn head(&self, op: &'static str, key: &str) -> Result<Option<Found>> {
        // The server takes it for a slash, and would answer about another blob.
        if key.contains('\\') {
            return Ok(None);
        }
        let answer = self.ask(op, Method::HEAD, (&path_of(key), &[]), HeaderMap::new()).await;
        let answer = match answer {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            answer => answer?,
        };
        let headers = answer.headers();
        if text(headers, &RESOURCE_TYPE) == Some("directory")
            || text(headers, &IS_FOLDER).is_some_and(|is| is.eq_ignore_ascii_case("true"))
        {
            return Ok(Some(Found::Directory));
        }
        let attributes = Box::new(attributes_of(op, headers)?);
        Ok(Some(Found::Object { attributes, version: self.version_name(headers) }))
    }

    async fn get(
        &self,
        op: &'static str,
        key: &str,
        range: ByteRange,
        expected: &Fingerprint,
        version: Option<&str>,
    ) -> Result<Response> {
        let query: Vec<(&str, &str)> =
            version.iter().map(|version| ("versionid", *version)).collect();
        let headers = range_headers(range, expected);
        match self.ask(op, Method::GET, (&path_of(key), &query), headers).await {
            // A version that was read and is gone: what is there now is another.
            Err(error) if error.kind() == Kind::NotFound && version.is_some() => Err(stale(op)),
            answer => answer,
        }
    }

    fn version_name(&self, answer: &HeaderMap) -> Option<String> {
        text(answer, &VERSION_ID).map(str::to_owned)
    }
}

/// What an answer that is no success means: its code says more than its status.
fn error_of(op: &'static str, status: StatusCode, headers: &HeaderMap) -> Error {
    let plain = status_error(status, headers, op);
    let Some(code) = text(headers, &ERROR_CODE) else {
        return match status {
            StatusCode::PRECONDITION_FAILED => stale(op),
            _ => plain,
        };
    };
    let said = plain.because(format!("the server answered {status}: {code}"));
    match code {
        "BlobArchived" | "BlobBeingRehydrated" => said
            .kinded(Kind::Archived)
            .because("archived, restore it first")
            .hint("az storage blob set-tier --tier hot brings it back"),
        "ConditionNotMet" | "TargetConditionNotMet" | "InvalidRange" => stale(op),
        "BlobNotFound" => said.kinded(Kind::NotFound),
        "ContainerNotFound" | "ResourceNotFound" | "ContainerBeingDeleted" => said
            .kinded(Kind::NotFound)
            .hint("no such container, or it is not public: see -S account= and the credentials"),
        "ServerBusy" => said.kinded(Kind::Busy),
        "OperationTimedOut" => said.kinded(Kind::Timeout),
        "InternalError" => said.kinded(Kind::Unreachable),
        "PublicAccessNotPermitted" | "NoAuthenticationInformation" => said
            .kinded(Kind::Denied)
            .hint("it is not public: give credentials instead of -S anonymous=true"),
        "AuthenticationFailed" | "InvalidAuthenticationInfo" => said.kinded(Kind::Denied).hint(
            "the key or token is not of this account, it has ended, or the clock of this machine is wrong",
        ),
        "AuthorizationPermissionMismatch" | "AuthorizationFailure" => said
            .kinded(Kind::Denied)
            .hint("who asks needs the role Storage Blob Data Reader, or a token that may read and list"),
        _ => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::options::SourceOptions;

    #[test]
    fn a_key_lies_below_its_container() {
        let options =
            SourceOptions::parse(&["anonymous=true", "endpoint=http://h:1/devstoreaccount1"])
                .unwrap();
        let place = Settings::place("az://c/x", &options).unwrap();
        let client = Client::new(&place, &Settings::gather(&place, &options).unwrap()).unwrap();
        let url = |path: &str| url_below(&client.base, path, &[("k", "v/=")]).to_string();
        assert_eq!(
            url(&path_of("a b/ü+%")),
            "http://h:1/devstoreaccount1/c/a%20b/%C3%BC%2B%25?k=v%2F%3D"
        );
        assert_eq!(url(""), "http://h:1/devstoreaccount1/c?k=v%2F%3D");
    }

    #[test]
    fn a_code_says_more_than_its_status() {
        let kind = |status: u16, code: &'static str| {
            let mut headers = HeaderMap::new();
            if !code.is_empty() {
                headers.insert(ERROR_CODE, HeaderValue::from_static(code));
            }
            error_of("x", StatusCode::from_u16(status).unwrap(), &headers).kind()
        };
        assert_eq!(kind(409, "BlobArchived"), Kind::Archived);
        assert_eq!(kind(409, "PublicAccessNotPermitted"), Kind::Denied);
        assert_eq!(kind(412, "ConditionNotMet"), Kind::Stale);
        assert_eq!(kind(412, ""), Kind::Stale);
        assert_eq!(kind(416, "InvalidRange"), Kind::Stale);
        assert_eq!(kind(503, "ServerBusy"), Kind::Busy);
        assert_eq!(kind(500, "OperationTimedOut"), Kind::Timeout);
        assert_eq!(kind(404, "BlobNotFound"), Kind::NotFound);
        assert_eq!(kind(403, "SomethingNew"), Kind::Denied);
    }
}
