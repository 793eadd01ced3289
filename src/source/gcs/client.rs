//! What Google is asked, and what its answers mean.

use async_trait::async_trait;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use reqsign_google::Credential;
use reqwest::{Client as Pool, Response};
use url::Url;

use super::credentials::signature;
use super::resource::{
    Complaint, FIELDS, PAGE_FIELDS, Resource, generation_of, parse_page, tag_of_generation,
};
use super::settings::Settings;
use crate::core::attributes::Fingerprint;
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::client::{
    Ask, ENCODED, Signature, complaint_text, page_text, send, url_below,
};
use crate::source::bucket::{Dialect, Found, Page};
use crate::source::http::answer::{stale, status_error, text};
use crate::source::http::client::{build, pool, range_headers};

/// Names the version of the bytes that follow.
const GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");
/// How the bytes are stored.
const STORED_ENCODING: HeaderName = HeaderName::from_static("x-goog-stored-content-encoding");

/// Sends requests to one bucket.
#[derive(Debug)]
pub(super) struct Client {
    pool: Pool,
    /// The bucket's own URL; its path ends with a slash.
    base: Url,
    payer: Option<String>,
    signature: Signature<Credential>,
}

impl Client {
    /// Blocks if there is a file with certificates.
    ///
    /// # Errors
    /// `Io` if TLS cannot be set up; what is wrong with a setting.
    pub(super) fn new(bucket: &str, settings: Settings) -> Result<Self> {
        let mut base = settings.endpoint;
        base.set_path(&format!("{}/storage/v1/b/{bucket}/", base.path().trim_end_matches('/')));
        Ok(Self {
            pool: build(pool(settings.ca.as_deref())?)?,
            base,
            payer: settings.payer,
            signature: signature(&settings.identity)?,
        })
    }

    /// Asks about what lies at `path` below the bucket; an answer is a success, whole or in part.
    ///
    /// # Errors
    /// What the status or the complaint with it says.
    async fn ask(
        &self,
        op: &'static str,
        path: &str,
        mut query: Vec<(&str, &str)>,
        headers: HeaderMap,
    ) -> Result<Response> {
        query.extend(self.payer.as_deref().map(|project| ("userProject", project)));
        let url = url_below(&self.base, path, &query);
        let response =
            send(&self.pool, &self.signature, Ask { op, method: Method::GET, url, headers })
                .await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(op, response).await) }
    }

    async fn list(&self, op: &'static str, query: Vec<(&str, &str)>) -> Result<Page> {
        let answer = self.ask(op, "o", query, HeaderMap::new()).await?;
        parse_page(op, &page_text(op, answer).await?)
    }

    async fn resource(&self, op: &'static str, key: &str) -> Result<Resource> {
        let answer = self.ask(op, &place(key), vec![("fields", FIELDS)], HeaderMap::new()).await?;
        let resource = Resource::parse(op, &page_text(op, answer).await?)?;
        if resource.name == key {
            return Ok(resource);
        }
        Err(Error::new(Kind::Invalid, op).because("the server answers about another object"))
    }
}

fn place(key: &str) -> String {
    format!("o/{}", utf8_percent_encode(key, ENCODED))
}

#[async_trait]
impl Dialect for Client {
    async fn has_any(&self, op: &'static str, prefix: &str) -> Result<bool> {
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("prefix", prefix), ("maxResults", "1"), ("fields", PAGE_FIELDS)];
            query.extend(token.as_deref().map(|token| ("pageToken", token)));
            let page = self.list(op, query).await?;
            if !page.items.is_empty() || page.next.is_none() || page.next == token {
                return Ok(!page.items.is_empty());
            }
            token = page.next;
        }
    }

    async fn page(&self, op: &'static str, prefix: &str, token: Option<&str>) -> Result<Page> {
        let mut query = vec![("prefix", prefix), ("delimiter", "/"), ("fields", PAGE_FIELDS)];
        query.extend(token.map(|token| ("pageToken", token)));
        self.list(op, query).await
    }

    async fn head(&self, op: &'static str, key: &str) -> Result<Option<Found>> {
        let resource = match self.resource(op, key).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            resource => resource?,
        };
        let attributes = resource.attributes().ok_or_else(|| {
            Error::new(Kind::NotSupported, op)
                .because("the server does not tell the object's size and generation")
        })?;
        Ok(Some(Found::Object { attributes: Box::new(attributes), version: None }))
    }

    async fn get(
        &self,
        op: &'static str,
        key: &str,
        range: ByteRange,
        expected: &Fingerprint,
        _version: Option<&str>,
    ) -> Result<Response> {
        let generation = generation_of(expected).ok_or_else(|| stale(op))?;
        // No If-Match: the generation is the condition.
        let mut headers = range_headers(range, expected);
        // Else an object that is stored in gzip would come as what is in it.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let query = vec![("alt", "media"), ("generation", generation)];
        let mut answer = match self.ask(op, &place(key), query, headers).await {
            // That generation is gone, whatever is there now.
            Err(error) if error.kind() == Kind::NotFound => return Err(stale(op)),
            answer => answer?,
        };
        check_stored(op, answer.headers())?;
        let tag = match text(answer.headers(), &GENERATION).and_then(tag_of_generation) {
            Some(tag) => Some(tag),
            // An emulator that ignores generations. It has chosen the bytes by now: if there is no other version after that, they are right.
            None => self.resource(op, key).await?.tag(),
        };
        let tag = tag.ok_or_else(|| stale(op))?;
        let tag = HeaderValue::from_str(&tag).map_err(|_not_possible| stale(op))?;
        answer.headers_mut().insert(ETAG, tag);
        Ok(answer)
    }
}

/// # Errors
/// `Corrupt` if the bytes come in another encoding than that in which they are stored.
fn check_stored(op: &'static str, headers: &HeaderMap) -> Result<()> {
    let name = |name| text(headers, name).unwrap_or("identity").to_ascii_lowercase();
    let is_as_stored = name(&CONTENT_ENCODING) == name(&STORED_ENCODING);
    if is_as_stored || !headers.contains_key(STORED_ENCODING) {
        return Ok(());
    }
    Err(Error::new(Kind::Corrupt, op)
        .because("the server sends the object in another encoding than it is stored in"))
}

/// What an answer that is no success means.
async fn refusal(op: &'static str, response: Response) -> Error {
    let (status, headers) = (response.status(), response.headers().clone());
    let complaint = Complaint::parse(&complaint_text(op, response).await);
    error_of(op, status, &headers, &complaint)
}

fn error_of(
    op: &'static str,
    status: StatusCode,
    headers: &HeaderMap,
    complaint: &Complaint,
) -> Error {
    if matches!(status, StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE) {
        return stale(op);
    }
    let mut why = format!("the server answered {status}");
    if !complaint.message.is_empty() {
        let line = complaint.message.lines().next().unwrap_or_default();
        why += &format!(
            ": {}",
            line.chars().filter(|c| !c.is_control()).take(300).collect::<String>()
        );
    }
    let said = status_error(status, headers, op).because(why);
    match (status.as_u16(), complaint.reason()) {
        (_, "rateLimitExceeded" | "userRateLimitExceeded" | "quotaExceeded") => {
            said.kinded(Kind::Busy)
        }
        (400, "required") if complaint.message.contains("requester pays") => {
            said.kinded(Kind::Denied).hint("-S requester-pays=PROJECT takes the costs")
        }
        (401, _) => said.hint("the token has ended or is none: renew the credentials"),
        (403, _) => said.hint("who asks needs storage.objects.list and storage.objects.get"),
        _ => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::options::SourceOptions;

    #[test]
    fn an_object_is_one_segment_of_a_path() {
        let options = SourceOptions::parse(&["anonymous=true", "endpoint=http://h:1/below/"]);
        let settings = Settings::gather(&options.unwrap()).unwrap();
        let client = Client::new("b.c", settings).unwrap();
        let url = url_below(&client.base, &place("a/b +%ü?"), &[("alt", "media")]);
        assert_eq!(
            url.as_str(),
            "http://h:1/below/storage/v1/b/b.c/o/a%2Fb%20%2B%25%C3%BC%3F?alt=media"
        );
    }

    #[test]
    fn a_complaint_says_more_than_its_status() {
        let kind = |status: u16, reason: &str, message: &str| {
            let text = format!(
                r#"{{"error":{{"code":{status},"message":"{message}","errors":[{{"reason":"{reason}"}}]}}}}"#
            );
            let status = StatusCode::from_u16(status).unwrap();
            error_of("x", status, &HeaderMap::new(), &Complaint::parse(&text)).kind()
        };
        assert_eq!(kind(403, "forbidden", "no"), Kind::Denied);
        assert_eq!(kind(403, "rateLimitExceeded", "slower"), Kind::Busy);
        assert_eq!(kind(429, "", ""), Kind::Busy);
        assert_eq!(kind(400, "required", "Bucket is a requester pays bucket"), Kind::Denied);
        assert_eq!(kind(416, "", ""), Kind::Stale);
        assert_eq!(kind(404, "notFound", ""), Kind::NotFound);
        assert_eq!(kind(503, "backendError", ""), Kind::Busy);
    }

    #[test]
    fn bytes_come_as_they_are_stored() {
        let check = |lines: &[(HeaderName, &'static str)]| {
            let lines = lines.iter();
            let lines = lines.map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            check_stored("x", &lines.collect()).is_ok()
        };
        assert!(check(&[]) && check(&[(CONTENT_ENCODING, "gzip")]));
        assert!(check(&[(STORED_ENCODING, "identity")]));
        assert!(check(&[(STORED_ENCODING, "gzip"), (CONTENT_ENCODING, "gzip")]));
        assert!(!check(&[(STORED_ENCODING, "gzip")]));
        assert!(!check(&[(STORED_ENCODING, "identity"), (CONTENT_ENCODING, "gzip")]));
    }
}
