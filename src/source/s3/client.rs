//! One signed request, and what its status means.

use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client as Pool, Response};
use tokio::time::timeout;
use url::Url;

use super::credentials::Signature;
use super::page::Complaint;
use super::settings::{DEFAULT_REGION, Settings};
use crate::error::{Error, Kind, Result};
use crate::source::http::answer::{stale, status_error};
use crate::source::http::client::{ask_within, build, pool, transport_error};

/// For the head of an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a byte of a page.
const STALL: Duration = Duration::from_secs(30);
/// Bytes of a page: 1000 keys of 1024 bytes, each of them three letters long at worst, and what is said of them.
const PAGE_SIZE_BYTES: usize = 16 << 20;
/// Bytes of a complaint.
const COMPLAINT_SIZE_BYTES: usize = 64 << 10;

/// Everything but unreserved letters (RFC 3986 2.3), as signatures want it.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same, but the slashes of a key stay.
const ENCODED_KEY: &AsciiSet = &ENCODED.remove(b'/');

/// Sends requests to one bucket.
#[derive(Debug)]
pub(super) struct Client {
    pool: Pool,
    /// The bucket's own URL; its path ends with a slash.
    base: Url,
    bucket: String,
    settings: Settings,
    signature: Signature,
}

/// What is asked of the bucket.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) op: &'static str,
    pub(super) method: Method,
    /// An object; the bucket itself if empty.
    pub(super) key: &'a str,
    pub(super) query: &'a [(&'static str, &'a str)],
    pub(super) headers: HeaderMap,
}

impl Client {
    /// Blocks if there is a file with certificates.
    ///
    /// # Errors
    /// `Io` if TLS cannot be set up; what is wrong with a setting.
    pub(super) fn new(bucket: String, settings: Settings) -> Result<Self> {
        let pool = build(pool(settings.ca.as_deref())?)?;
        let region = settings.region.as_deref().unwrap_or(DEFAULT_REGION);
        let signature = Signature::new(&settings.identity, region)?;
        let base = base_url(&settings, &bucket, region)?;
        Ok(Self { pool, base, bucket, settings, signature })
    }

    /// The same for the region in which the bucket turned out to be.
    pub(super) fn in_region(&self, region: &str) -> Result<Self> {
        Ok(Self {
            pool: self.pool.clone(),
            base: base_url(&self.settings, &self.bucket, region)?,
            bucket: self.bucket.clone(),
            signature: self.signature.in_region(region),
            settings: Settings { region: Some(region.to_owned()), ..self.settings.clone() },
        })
    }

    /// Sends a request; an answer is a success, whole or in part.
    ///
    /// # Errors
    /// What the status or the complaint with it says.
    ///
    /// # Cancel safety
    /// Dropping it ends the request.
    pub(super) async fn send(&self, ask: Ask<'_>) -> Result<Response> {
        let op = ask.op;
        let response = self.answer(ask).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(op, response).await.error)
    }

    /// As [`Client::send`] for a first request, which also tells where else the bucket is.
    pub(super) async fn send_or_region(&self, ask: Ask<'_>) -> Result<Response, Refusal> {
        let op = ask.op;
        let response = self.answer(ask).await.map_err(|error| Refusal { error, region: None })?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(op, response).await) }
    }

    async fn answer(&self, ask: Ask<'_>) -> Result<Response> {
        let Ask { op, method, key, query, headers } = ask;
        let url = self.url(key, query);
        let invalid = |error: String| Error::new(Kind::Invalid, op).because(error);
        let request = http::Request::builder().method(method).uri(url.as_str()).body(());
        let (mut head, ()) = request.map_err(|error| invalid(error.to_string()))?.into_parts();
        head.headers = headers;
        if self.settings.requester_pays {
            head.headers.insert("x-amz-request-payer", HeaderValue::from_static("requester"));
        }
        self.signature.sign(op, &mut head).await?;
        // The client adds it by itself.
        head.headers.remove(http::header::HOST);
        let send = || {
            self.pool.request(head.method.clone(), url.clone()).headers(head.headers.clone()).send()
        };
        ask_within(op, HEAD_TIMEOUT, send).await
    }

    fn url(&self, key: &str, query: &[(&'static str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), utf8_percent_encode(key, ENCODED_KEY)));
        if !query.is_empty() {
            let pair = |(name, value): &(&str, &str)| {
                format!("{name}={}", utf8_percent_encode(value, ENCODED))
            };
            let pairs: Vec<String> = query.iter().map(pair).collect();
            url.set_query(Some(&pairs.join("&")));
        }
        url
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
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Where the bucket is, if the answer says so.
    pub(super) region: Option<String>,
}

/// What an answer that is no success means. HEAD has no body; then the status alone says it.
async fn refusal(op: &'static str, response: Response) -> Refusal {
    let (status, headers) = (response.status(), response.headers().clone());
    let text = body(op, response, COMPLAINT_SIZE_BYTES).await.unwrap_or_default();
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

/// The whole body of a short answer, as text.
///
/// # Errors
/// As reading has them; `Invalid` if it is longer than `limit` or no text.
pub(super) async fn body(op: &'static str, mut response: Response, limit: usize) -> Result<String> {
    let mut bytes = Vec::new();
    loop {
        match timeout(STALL, response.chunk()).await {
            Ok(Ok(Some(piece))) => bytes.extend_from_slice(&piece),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(transport_error(op, error)),
            Err(_elapsed) => {
                return Err(Error::new(Kind::Timeout, op)
                    .because(format!("nothing came for {} s", STALL.as_secs())));
            }
        }
        if bytes.len() > limit {
            return Err(Error::new(Kind::Invalid, op)
                .because(format!("the answer is longer than {limit} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|error| {
        Error::new(Kind::Invalid, op).because("the answer is no text").caused_by(error)
    })
}

/// The text of a page.
///
/// # Errors
/// As [`body`].
pub(super) async fn page_text(op: &'static str, response: Response) -> Result<String> {
    body(op, response, PAGE_SIZE_BYTES).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::options::SourceOptions;
    use crate::source::s3::settings::Place;

    fn client(url: &str, options: &[&str]) -> Client {
        let place = Place::parse(url).unwrap();
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
