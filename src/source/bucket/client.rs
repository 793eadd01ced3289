//! One signed request, and the text of a short answer.

use std::time::Duration;

use http::Method;
use http::header::{HOST, HeaderMap};
use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqsign_core::{Signer, SigningCredential};
use reqwest::{Client as Pool, Response};
use tokio::time::timeout;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::source::http::client::{ask_within, transport_error};
use crate::sync::{AtomicBool, Ordering};

/// For the head of an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Without a byte of a page.
const STALL: Duration = Duration::from_secs(30);
/// Bytes of a page: 5000 keys of 1024 bytes, each of them three letters long at worst, and what is said of them.
const PAGE_SIZE_BYTES: usize = 32 << 20;
/// Bytes of a complaint.
const COMPLAINT_SIZE_BYTES: usize = 64 << 10;

/// Everything but unreserved letters (RFC 3986 2.3), as signatures want it.
pub(in crate::source) const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same, but the slashes of a key stay.
pub(in crate::source) const ENCODED_KEY: &AsciiSet = &ENCODED.remove(b'/');

/// What is asked of a server.
#[derive(Debug)]
pub(in crate::source) struct Ask {
    pub(in crate::source) op: &'static str,
    pub(in crate::source) method: Method,
    pub(in crate::source) url: Url,
    pub(in crate::source) headers: HeaderMap,
}

/// Signs requests, or leaves them as they are.
#[derive(Debug)]
pub(in crate::source) struct Signature<C: SigningCredential> {
    pub(in crate::source) signer: Option<Signer<C>>,
    /// Whose credentials they are, for errors.
    whose: &'static str,
    /// Where they are looked for.
    hint: &'static str,
    /// Relaxed: a hint for the kind of an error.
    has_signed: AtomicBool,
}

impl<C: SigningCredential> Signature<C> {
    pub(in crate::source) fn new(
        signer: Option<Signer<C>>,
        whose: &'static str,
        hint: &'static str,
    ) -> Self {
        Self { signer, whose, hint, has_signed: AtomicBool::new(false) }
    }

    /// Signs one request.
    ///
    /// # Errors
    /// `Denied` if there are no credentials, `Unreachable` if who gives them out does not answer, or there were some before: that they cannot be
    /// renewed now says nothing of what they may.
    async fn sign(&self, op: &'static str, request: &mut Parts) -> Result<()> {
        let Some(signer) = &self.signer else { return Ok(()) };
        match signer.sign(request, None).await {
            Ok(()) => {
                self.has_signed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                let may_pass = error.is_retryable() || self.has_signed.load(Ordering::Relaxed);
                Err(Error::new(if may_pass { Kind::Unreachable } else { Kind::Denied }, op)
                    .because(format!("no usable {} credentials: {error}", self.whose))
                    .hint(self.hint))
            }
        }
    }
}

/// Sends a request; any status is an answer.
///
/// # Errors
/// As [`ask_within`]; `Denied` or `Unreachable` if it cannot be signed. None of them shows a URL: a signature can be part of it.
///
/// # Cancel safety
/// Dropping it ends the request.
pub(in crate::source) async fn send<C: SigningCredential>(
    pool: &Pool,
    signature: &Signature<C>,
    ask: Ask,
) -> Result<Response> {
    let Ask { op, method, url, headers } = ask;
    let invalid = |error: String| Error::new(Kind::Invalid, op).because(error);
    let request = http::Request::builder().method(method).uri(url.as_str()).body(());
    let (mut head, ()) = request.map_err(|error| invalid(error.to_string()))?.into_parts();
    head.headers = headers;
    signature.sign(op, &mut head).await?;
    // The client adds it by itself.
    head.headers.remove(HOST);
    let url = Url::parse(&head.uri.to_string()).map_err(|error| invalid(error.to_string()))?;
    let send =
        || pool.request(head.method.clone(), url.clone()).headers(head.headers.clone()).send();
    ask_within(op, HEAD_TIMEOUT, send).await
}

/// `base` with `path` (encoded) and `query` (as it is) after it.
pub(in crate::source) fn url_below(base: &Url, path: &str, query: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path()));
    if !query.is_empty() {
        let pair = |(name, value): &(&str, &str)| {
            format!("{name}={}", utf8_percent_encode(value, ENCODED))
        };
        let pairs: Vec<String> = query.iter().map(pair).collect();
        url.set_query(Some(&pairs.join("&")));
    }
    url
}

/// The text of a page.
///
/// # Errors
/// As reading has them; `Invalid` if it is too long or no text.
pub(in crate::source) async fn page_text(op: &'static str, response: Response) -> Result<String> {
    body(op, response, PAGE_SIZE_BYTES).await
}

/// The text that comes with an answer that is no success; nothing if there is none.
pub(in crate::source) async fn complaint_text(op: &'static str, response: Response) -> String {
    body(op, response, COMPLAINT_SIZE_BYTES).await.unwrap_or_default()
}

async fn body(op: &'static str, mut response: Response, limit: usize) -> Result<String> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reqsign_core::{Context, ProvideCredential, SignRequest};

    use super::*;

    /// Is never valid for longer than it is asked for.
    #[derive(Debug, Clone)]
    struct Pass;

    impl SigningCredential for Pass {
        fn is_valid(&self) -> bool {
            false
        }

        fn is_valid_at(&self, _time: reqsign_core::time::Timestamp) -> bool {
            true
        }
    }

    #[derive(Debug)]
    struct Gate(Arc<AtomicBool>);

    impl ProvideCredential for Gate {
        type Credential = Pass;

        async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Pass>> {
            Ok(self.0.load(Ordering::SeqCst).then_some(Pass))
        }
    }

    #[derive(Debug)]
    struct Unchanged;

    impl SignRequest for Unchanged {
        type Credential = Pass;

        async fn sign_request(
            &self,
            _: &Context,
            _: &mut Parts,
            _: Option<&Pass>,
            _: Option<Duration>,
        ) -> reqsign_core::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_renewed_are_away_and_none_are_denied() {
        let is_open = Arc::new(AtomicBool::new(false));
        let signer = Signer::new(Context::new(), Gate(Arc::clone(&is_open)), Unchanged);
        let signature = Signature::new(Some(signer), "no", "hint");
        let mut head = http::Request::new(()).into_parts().0;
        assert_eq!(signature.sign("x", &mut head).await.unwrap_err().kind(), Kind::Denied);
        is_open.store(true, Ordering::SeqCst);
        signature.sign("x", &mut head).await.unwrap();
        is_open.store(false, Ordering::SeqCst);
        assert_eq!(signature.sign("x", &mut head).await.unwrap_err().kind(), Kind::Unreachable);
    }
}
