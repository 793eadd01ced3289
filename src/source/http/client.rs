//! Sending one request and following its redirects.

use std::error::Error as StdError;
use std::fs;
use std::path::Path;
use std::time::Duration;

use http::Method;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
    IF_UNMODIFIED_SINCE, LOCATION, RANGE,
};
use percent_encoding::percent_decode_str;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client as Pool, Response};
use tokio::time::timeout;
use url::Url;

use super::answer::text;
use super::redirect::{self, Hop, MAX_REDIRECTS, PrivateAddress, PublicResolver, Reach};
use crate::core::attributes::{Fingerprint, Validator};
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections that are kept for the next requests.
const IDLE_CONNECTIONS: usize = 64;

/// Sends requests of one source.
#[derive(Debug)]
pub(in crate::source) struct Client {
    any: Pool,
    /// Follows the redirects of public servers; its own pool, so that no connection to a private address is used again.
    public: Pool,
    origin: Url,
    authorization: Option<HeaderValue>,
    has_proxy: bool,
    head_timeout: Duration,
}

/// The head of an answer; its body is still to come.
#[derive(Debug)]
pub(in crate::source) struct Answer {
    pub(in crate::source) response: Response,
    /// Where it came from in the end.
    pub(in crate::source) url: Url,
    /// The server redirects to the same path with a slash: it is a directory. Such a redirect is not followed.
    pub(in crate::source) is_directory: bool,
}

/// What is asked, wherever.
#[derive(Debug)]
pub(in crate::source) struct Message {
    pub(in crate::source) method: Method,
    pub(in crate::source) headers: HeaderMap,
    pub(in crate::source) body: &'static str,
}

impl Client {
    /// A client that gives `authorization` to the host and port of `origin` only. Blocks if there is a file `ca`.
    ///
    /// # Errors
    /// `Io` if TLS cannot be set up; what is wrong with `ca`.
    pub(super) fn new(
        origin: Url,
        authorization: Option<HeaderValue>,
        ca: Option<&Path>,
        head_timeout: Duration,
    ) -> Result<Self> {
        let proxies =
            ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        Ok(Self {
            any: build(pool(ca)?)?,
            public: build(pool(ca)?.dns_resolver(PublicResolver))?,
            origin,
            authorization,
            has_proxy: proxies.iter().any(|name| std::env::var_os(name).is_some()),
            head_timeout,
        })
    }

    /// Sends a request without a body and follows redirects. Any status but a redirect is an answer.
    ///
    /// # Errors
    /// `Unreachable`, `Timeout`; `Denied` for a redirect that is not allowed, `Invalid` for too many.
    ///
    /// # Cancel safety
    /// Dropping it ends the request.
    pub(super) async fn send(
        &self,
        op: &'static str,
        method: Method,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Answer> {
        self.send_body(op, Message { method, headers, body: "" }, url).await
    }

    /// As [`Client::send`], of a message that changes nothing: it may be sent more than once.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(in crate::source) async fn send_body(
        &self,
        op: &'static str,
        message: Message,
        url: Url,
    ) -> Result<Answer> {
        let (mut url, mut reach) = (url, Reach::Any);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(op, &message, &url, reach).await?;
            let location = text(response.headers(), &LOCATION);
            let (true, Some(location)) = (is_redirect(&response), location) else {
                return Ok(Answer { response, url, is_directory: false });
            };
            let next = url.join(location).map_err(|error| {
                Error::new(Kind::Invalid, op).because(format!("redirected to nowhere: {error}"))
            })?;
            if names_directory(&next, &url) {
                return Ok(Answer { response, url, is_directory: true });
            }
            reach = redirect::check(&Hop {
                from: &url,
                is_from_public: reach == Reach::PublicOnly || self.may_be_public(&response),
                to: &next,
                has_credentials: self.authorization.is_some(),
            })?;
            url = next;
        }
        Err(Error::new(Kind::Invalid, op).because(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// A proxy hides who answered.
    fn may_be_public(&self, response: &Response) -> bool {
        self.has_proxy
            || response.remote_addr().is_none_or(|address| redirect::is_public(address.ip()))
    }

    async fn ask(
        &self,
        op: &'static str,
        message: &Message,
        url: &Url,
        reach: Reach,
    ) -> Result<Response> {
        let pool = match reach {
            Reach::Any => &self.any,
            Reach::PublicOnly => &self.public,
        };
        let Message { method, body, .. } = message;
        let mut headers = message.headers.clone();
        if let Some(authorization) = &self.authorization
            && redirect::is_same_origin(url, &self.origin)
        {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let ask = || {
            let request = pool.request(method.clone(), url.clone()).headers(headers.clone());
            if body.is_empty() { request.send() } else { request.body(*body).send() }
        };
        ask_within(op, self.head_timeout, ask).await
    }
}

/// Asks for the head of an answer; once more on a new connection where the server closed the one that was kept.
///
/// # Errors
/// As [`transport_error`] has it; `Timeout`.
pub(in crate::source) async fn ask_within<F: Future<Output = reqwest::Result<Response>>>(
    op: &'static str,
    deadline: Duration,
    ask: impl Fn() -> F,
) -> Result<Response> {
    let once_or_twice = async {
        match ask().await {
            // The server closed a kept connection while the request was on its way (nginx does so after a 412); a new one
            // has no such past. Asking twice changes nothing: GET, HEAD and PROPFIND are all that is ever asked.
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                ask().await
            }
            answered => answered,
        }
    };
    match timeout(deadline, once_or_twice).await {
        Ok(answered) => answered.map_err(|error| transport_error(op, error)),
        Err(_elapsed) => Err(Error::new(Kind::Timeout, op)
            .because(format!("no answer within {} s", deadline.as_secs()))),
    }
}

/// Headers that ask for `range` of the version `expected` and of no other.
pub(in crate::source) fn range_headers(range: ByteRange, expected: &Fingerprint) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value: &str| {
        // A validator came in a header, so it fits into one.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(RANGE, &format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
    match &expected.validator {
        Validator::ETag(tag) => set(IF_MATCH, tag),
        Validator::LastModified(date) => set(IF_UNMODIFIED_SINCE, date),
        Validator::WeakETag(_) | Validator::SizeOnly | Validator::Modified(_) => {}
    }
    headers
}

/// Headers that ask for the first `most >= 1` bytes of whatever version there is; of one byte, the cheapest way to learn what a server does.
pub(super) fn first_bytes_headers(most: u64) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("bytes=0-{}", most - 1));
    value.map(|value| (RANGE, value)).into_iter().collect()
}

/// Connections as every source over HTTP wants them: no redirect is followed, nothing is encoded. Blocks if there is a file `ca`.
///
/// # Errors
/// What is wrong with `ca`.
pub(in crate::source) fn pool(ca: Option<&Path>) -> Result<reqwest::ClientBuilder> {
    // An error says that somebody installed a provider before, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let identity = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
    let builder = Pool::builder()
        .user_agent(concat!("lazycopy/", env!("CARGO_PKG_VERSION")))
        .default_headers(identity)
        .redirect(Policy::none())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS);
    let Some(path) = ca else { return Ok(builder) };
    let pem = fs::read(path).map_err(|error| Error::io("read -S ca", error).at(path))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| {
        Error::new(Kind::Invalid, "read -S ca")
            .at(path)
            .because(format!("no PEM certificates: {error}"))
    })?;
    Ok(builder.tls_certs_merge(certificates))
}

/// # Errors
/// `Io` if TLS cannot be set up.
pub(in crate::source) fn build(builder: reqwest::ClientBuilder) -> Result<Pool> {
    builder.build().map_err(|error| Error::new(Kind::Io, "set up HTTP client").caused_by(error))
}

/// Whether `next` is `url` with a slash at its end, whichever letters the server writes encoded.
fn names_directory(next: &Url, url: &Url) -> bool {
    let bytes = |path| percent_decode_str(path).collect::<Vec<u8>>();
    next.path().strip_suffix('/').is_some_and(|path| bytes(path) == bytes(url.path()))
}

fn is_redirect(response: &Response) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A failure below HTTP, without the URL: that can hold secrets.
pub(in crate::source) fn transport_error(op: &'static str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut kind = match () {
        () if error.is_timeout() => Kind::Timeout,
        () if error.is_builder() => Kind::Invalid,
        () => Kind::Unreachable,
    };
    let mut cause: &(dyn StdError + 'static) = &error;
    while let Some(deeper) = below(cause) {
        cause = deeper;
        let is_bad_certificate = matches!(
            cause.downcast_ref::<rustls::Error>(),
            Some(rustls::Error::InvalidCertificate(_))
        );
        if is_bad_certificate || cause.is::<PrivateAddress>() {
            kind = Kind::Denied;
        }
    }
    let why = cause.to_string();
    Error::new(kind, op).because(why).caused_by(error)
}

/// The cause of an error. An `io::Error` hides what it wraps from `source()`.
fn below<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}
