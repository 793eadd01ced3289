//! Finding out what the SOURCE argument names.

use std::env;
use std::sync::Arc;

use http::header::HeaderMap;
use http::{Method, StatusCode};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use url::Url;

use super::answer::status_error;
use super::client::Client;
use super::index::{Format, looks_like_index};
use super::origin::{Head, Origin};
use super::site::{Places, Site, without_secrets};
use super::spelling::Spelling;
use super::{HttpOptions, credentials};
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};

/// How much of a page is looked at to tell an index from a file.
const BEGINNING: usize = 4096;

/// Opens `spec`; gives the origin and its name for people.
pub(super) async fn open(spec: &str, options: HttpOptions) -> Result<(Origin, String)> {
    let (url, display_name) = parse(spec)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Error::new(Kind::NotSupported, "open source")
            .at(&display_name)
            .because("not an http or https URL"));
    }
    find(url, options)
        .await
        .map(|origin| (origin, display_name.clone()))
        .map_err(|error| error.at(&display_name))
}

/// The URL that is asked, and its name for people.
pub(in crate::source) fn parse(spec: &str) -> Result<(Url, String)> {
    let mut url = Url::parse(spec).map_err(|error| {
        // The text itself may hold a password.
        Error::new(Kind::Invalid, "open source").because(format!("not a usable URL: {error}"))
    })?;
    url.set_fragment(None);
    let display_name = without_secrets(&url);
    Ok((url, display_name))
}

/// Files of the server of `spec`, each where `places` says.
pub(super) async fn placed(
    spec: &str,
    places: Arc<dyn Places>,
    options: HttpOptions,
) -> Result<(Origin, String)> {
    let (url, display_name) = parse(spec)?;
    let (url, mut origin) = origin(url, options).await.map_err(|error| error.at(&display_name))?;
    origin.site = Site::placed(url, places);
    Ok((origin, display_name))
}

/// A tree at `url`, as long as nothing else is known; gives the URL without its credentials, too.
pub(in crate::source) async fn origin(mut url: Url, options: HttpOptions) -> Result<(Url, Origin)> {
    let HttpOptions { netrc, ca, authorization, limits, .. } = options;
    let (url, client) = spawn_blocking(move || {
        let authorization = authorization.or_else(|| credentials::take(&mut url, netrc));
        let client = Client::new(url.clone(), authorization, ca.as_deref(), limits.head_timeout)?;
        Ok::<_, Error>((url, client))
    })
    .await
    .map_err(|lost| Error::new(Kind::Io, "open source").caused_by(lost))??;
    let directory = options.spool_directory.unwrap_or_else(env::temp_dir);
    let origin = Origin::new(client, Site::tree(url.clone()), limits, directory);
    Ok((url, origin))
}

async fn find(url: Url, options: HttpOptions) -> Result<Origin> {
    let (url, mut origin) = origin(url, options).await?;
    if !url.path().ends_with('/') && !is_tree(&origin, &url).await? {
        origin.site = Site::single(url)?;
        return Ok(origin);
    }
    adopt_index(&mut origin).await?;
    Ok(origin)
}

/// Whether a redirect led to nothing but https.
pub(in crate::source) fn is_upgrade(asked: &Url, answered: &Url) -> bool {
    asked.scheme() != answered.scheme()
        && asked.host() == answered.host()
        && asked.path() == answered.path()
}

/// Whether a URL without a slash at its end is a tree all the same.
async fn is_tree(origin: &Origin, url: &Url) -> Result<bool> {
    let headers = match origin.head(url.clone()).await? {
        Head::Directory => return Ok(true),
        Head::File { headers, .. } => headers,
        Head::Unsized(answer) => answer.response.headers().clone(),
    };
    if Format::of(&headers) != Some(Format::Html) {
        return Ok(false);
    }
    let mut page =
        origin.client.send("open source", Method::GET, url.clone(), HeaderMap::new()).await?;
    let mut beginning = Vec::new();
    while beginning.len() < BEGINNING {
        match timeout(origin.limits.index_stall, page.response.chunk()).await {
            Ok(Ok(Some(piece))) => beginning.extend_from_slice(&piece),
            _ => break,
        }
    }
    Ok(looks_like_index(&beginning))
}

/// Makes sure that the tree's root has an index, and learns from its answer how the server wants to be asked.
async fn adopt_index(origin: &mut Origin) -> Result<()> {
    let url = origin.site.directory_url(&RelPath::root());
    let answer =
        origin.client.send("open source", Method::GET, url.clone(), HeaderMap::new()).await?;
    let (status, headers) = (answer.response.status(), answer.response.headers());
    if status != StatusCode::OK {
        return Err(status_error(status, headers, "open source"));
    }
    if Format::of(headers).is_none() {
        return Err(Error::new(Kind::Invalid, "open source")
            .because("the server gives no index of this directory")
            .hint("a URL of a file has no slash at its end"));
    }
    if is_upgrade(&url, &answer.url) {
        // Or every request would be redirected to https. Other redirects are followed anew each time, checks included.
        origin.site = Site::tree(answer.url.clone());
    }
    origin.site.spelling = Spelling::of(headers);
    Ok(())
}
