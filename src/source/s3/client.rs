//! What S3 is asked, and what its answers mean.

use async_trait::async_trait;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use reqsign_aws_v4::Credential;
use reqwest::{Client as Pool, Response};
use url::Url;

use super::credentials::{in_region, signature};
use super::page::{Complaint, Page};
use super::settings::{DEFAULT_REGION, Settings};
use crate::core::attributes::Fingerprint;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::client::{
    Ask, ENCODED_KEY, Signature, complaint_text, page_text, send, url_below,
};
use crate::source::bucket::{self, Dialect, Found, attributes_of};
use crate::source::http::answer::{stale, status_error};
use crate::source::http::client::{build, pool, range_headers};

/// Sends requests to one bucket.
#[derive(Debug)]
pub(super) struct Client {
    pool: Pool,
    /// The bucket's own URL; its path ends with a slash.
    base: Url,
    bucket: String,
    settings: Settings,
    signature: Signature<Credential>,
}

impl Client {
    /// Blocks if there is a file with certificates.
    ///
    /// # Errors
    /// `Io` if TLS cannot be set up; what is wrong with a setting.
    pub(super) fn new(bucket: String, settings: Settings) -> Result<Self> {
        let pool = build(pool(settings.ca.as_deref())?)?;
        let region = settings.region.as_deref().unwrap_or(DEFAULT_REGION);
        let signature = signature(&settings.identity, region)?;
        let base = base_url(&settings, &bucket, region)?;
        Ok(Self { pool, base, bucket, settings, signature })
    }

    /// The same for the region in which the bucket turned out to be.
    fn in_region(&self, region: &str) -> Result<Self> {
        Ok(Self {
            pool: self.pool.clone(),
            base: base_url(&self.settings, &self.bucket, region)?,
            bucket: self.bucket.clone(),
            signature: in_region(&self.signature, region),
            settings: Settings { region: Some(region.to_owned()), ..self.settings.clone() },
        })
    }

    /// Asks about an object, or the bucket itself if `key` is empty; an answer is a success, whole or in part.
    ///
    /// # Errors
    /// What the status or the complaint with it says, and perhaps where else the bucket is.
    async fn ask(
        &self,
        op: &'static str,
        method: Method,
        (key, query): (&str, &[(&str, &str)]),
        mut headers: HeaderMap,
    ) -> Result<Response, Refusal> {
        if self.settings.requester_pays {
            headers.insert("x-amz-request-payer", HeaderValue::from_static("requester"));
        }
        let ask = Ask { op, method, url: self.url(key, query), headers };
        let response = send(&self.pool, &self.signature, ask).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(op, response).await) }
    }

    async fn list(&self, op: &'static str, query: &[(&str, &str)]) -> Result<Page, Refusal> {
        let answer = self.ask(op, Method::GET, ("", query), HeaderMap::new()).await?;
        Ok(Page::parse(&page_text(op, answer).await?)?)
    }

    fn url(&self, key: &str, query: &[(&str, &str)]) -> Url {
        url_below(&self.base, &utf8_percent_encode(key, ENCODED_KEY).to_string(), query)
    }
}

/// The question whether anything begins with `prefix`.
fn first_key(prefix: &str) -> [(&'static str, &str); 3] {
    [("list-type", "2"), ("max-keys", "1"), ("prefix", prefix)]
}

#[async_trait]
impl Dialect for Client {
    async fn look(&mut self, prefix: &str) -> Result<bool> {
        const OP: &str = "open source";
        let page = match self.list(OP, &first_key(prefix)).await {
            Err(Refusal { region: Some(region), error }) if error.kind() != Kind::NotFound => {
                *self = self.in_region(&region)?;
                self.list(OP, &first_key(prefix)).await
            }
            page => page,
        };
        Ok(!page?.is_empty())
    }

    async fn has_any(&self, op: &'static str, prefix: &str) -> Result<bool> {
        Ok(!self.list(op, &first_key(prefix)).await?.is_empty())
    }

    async fn page(
        &self,
        op: &'static str,
        prefix: &str,
        token: Option<&str>,
    ) -> Result<bucket::Page> {
        // Not encoded: there are servers that say so and do not do so, and our reader of XML takes every letter.
        let mut query = vec![("delimiter", "/"), ("list-type", "2"), ("prefix", prefix)];
        query.extend(token.map(|token| ("continuation-token", token)));
        query.sort_unstable();
        self.list(op, &query).await?.into_page()
    }

    async fn head(&self, op: &'static str, key: &str) -> Result<Option<Found>> {
        let mode = ("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        let mut headers = HeaderMap::new();
        headers.insert(mode.0, mode.1);
        match self.ask(op, Method::HEAD, (key, &[]), headers).await {
            Ok(answer) => {
                let attributes = Box::new(attributes_of(op, answer.headers())?);
                let version = self.version_name(answer.headers());
                Ok(Some(Found::Object { attributes, version }))
            }
            Err(Refusal { error, .. }) if error.kind() == Kind::NotFound => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
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
            version.iter().map(|version| ("versionId", *version)).collect();
        let headers = range_headers(range, expected);
        Ok(self.ask(op, Method::GET, (key, &query), headers).await?)
    }

    fn version_name(&self, answer: &HeaderMap) -> Option<String> {
        let version = answer.get("x-amz-version-id")?.to_str().ok()?;
        // Written before the bucket had versions: the next takes its place.
        (version != "null").then(|| version.to_owned())
    }
}

fn base_url(settings: &Settings, bucket: &str, region: &str) -> Result<Url> {
    let invalid = || {
        Error::new(Kind::Invalid, "open source").because(format!("no host can be named {bucket}"))
    };
    let mut url = match &settings.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => {
            let domain =
                if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            Url::parse(&format!("https://s3.{region}.{domain}/"))
                .map_err(|_not_a_host| invalid())?
        }
    };
    let path = url.path().trim_end_matches('/').to_owned();
    if settings.path_style {
        url.set_path(&format!("{path}/{bucket}/"));
    } else {
        let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
        url.set_host(Some(&host)).map_err(|_not_a_host| invalid())?;
        url.set_path(&format!("{path}/"));
    }
    Ok(url)
}

/// A request that came to nothing.
#[derive(Debug)]
struct Refusal {
    error: Error,
    /// Where the bucket is, if the answer says so.
    region: Option<String>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, region: None }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        refusal.error
    }
}

/// What an answer that is no success means. HEAD has no body; then the status alone says it.
async fn refusal(op: &'static str, response: Response) -> Refusal {
    let (status, headers) = (response.status(), response.headers().clone());
    let text = complaint_text(op, response).await;
    let complaint = Complaint::parse(&text);
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let region = header("x-amz-bucket-region").or(complaint.region);
    let error = error_of(op, status, &headers, &complaint.code);
    Refusal { error, region }
}

fn error_of(op: &'static str, status: StatusCode, headers: &HeaderMap, code: &str) -> Error {
    let plain = status_error(status, headers, op);
    if code.is_empty() {
        return match status {
            StatusCode::PRECONDITION_FAILED => stale(op),
            StatusCode::MOVED_PERMANENTLY => elsewhere(plain),
            _ => plain,
        };
    }
    let said = plain.because(format!("the server answered {status}: {code}"));
    match code {
        "InvalidObjectState" => said
            .kinded(Kind::Archived)
            .because("archived, restore it first")
            .hint("aws s3api restore-object brings it back for some days"),
        "PreconditionFailed" | "InvalidRange" => stale(op),
        // A version that was read and is gone: what is there now is another.
        "NoSuchVersion" => stale(op),
        "NoSuchKey" | "NoSuchBucket" => said.kinded(Kind::NotFound),
        "SlowDown"
        | "ServiceUnavailable"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded" => said.kinded(Kind::Busy),
        "RequestTimeout" => said.kinded(Kind::Timeout),
        "InternalError" => said.kinded(Kind::Unreachable),
        "RequestTimeTooSkewed" => {
            said.kinded(Kind::Denied).hint("the clock of this machine is wrong")
        }
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            said.kinded(Kind::Denied).hint("the credentials have ended: renew them")
        }
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => said.kinded(Kind::Denied),
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
            said.kinded(Kind::Denied).hint("the keys are not those of this server")
        }
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => elsewhere(said),
        _ => said,
    }
}

fn elsewhere(error: Error) -> Error {
    error
        .kinded(Kind::Invalid)
        .hint("the bucket is in another region: -S region=NAME, or it has another -S endpoint=URL")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::bucket::settings::Place;
    use crate::source::options::SourceOptions;

    fn client(url: &str, options: &[&str]) -> Client {
        let place = Place::parse(url, "s3").unwrap();
        let options = [&["anonymous=true", "region=eu-west-1"], options].concat();
        let settings = Settings::gather(&place, &SourceOptions::parse(&options).unwrap()).unwrap();
        Client::new(place.bucket, settings).unwrap()
    }

    #[test]
    fn a_bucket_has_its_host_unless_its_name_or_the_server_forbids_it() {
        let url =
            |url, options: &[&str]| client(url, options).url("a b/ü+", &[("k", "v/=")]).to_string();
        let tail = "a%20b/%C3%BC%2B?k=v%2F%3D";
        assert_eq!(
            url("s3://one/x", &[]),
            format!("https://one.s3.eu-west-1.amazonaws.com/{tail}")
        );
        assert_eq!(
            url("s3://o.ne", &[]),
            format!("https://s3.eu-west-1.amazonaws.com/o.ne/{tail}")
        );
        let endpoint = "endpoint=http://h:9000/below/";
        assert_eq!(url("s3://one", &[endpoint]), format!("http://h:9000/below/one/{tail}"));
        assert_eq!(
            url("s3://one", &[endpoint, "path-style=no"]),
            format!("http://one.h:9000/below/{tail}")
        );
        let moved = client("s3://one", &[]).in_region("cn-north-1").unwrap();
        assert_eq!(moved.base.as_str(), "https://one.s3.cn-north-1.amazonaws.com.cn/");
    }

    #[test]
    fn a_complaint_says_more_than_its_status() {
        let kind = |status: u16, code| {
            error_of("x", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), code).kind()
        };
        assert_eq!(kind(403, "InvalidObjectState"), Kind::Archived);
        assert_eq!(kind(403, ""), Kind::Denied);
        assert_eq!(kind(412, ""), Kind::Stale);
        assert_eq!(kind(416, "InvalidRange"), Kind::Stale);
        assert_eq!(kind(503, "SlowDown"), Kind::Busy);
        assert_eq!(kind(400, "RequestTimeout"), Kind::Timeout);
        assert_eq!(kind(404, "NoSuchKey"), Kind::NotFound);
        assert_eq!(kind(404, "NoSuchVersion"), Kind::Stale);
        assert_eq!(kind(301, ""), Kind::Invalid);
        assert_eq!(kind(400, "SomethingNew"), Kind::Invalid);
    }
}
