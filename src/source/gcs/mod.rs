//! A bucket, or what is below a prefix of its names, of Google Cloud Storage: its JSON API.
//!
//! Listings tell everything: size, time, generation, checksums. A generation is a version of an object's bytes, so a fingerprint is one, as
//! a weak entity tag (the server's own tags change with metadata too), and ranges are asked for by it. Keys become paths as `bucket`
//! has it.

mod client;
mod credentials;
mod resource;
mod settings;

use std::sync::Arc;

use tokio::task::spawn_blocking;

use self::client::Client;
use self::settings::{OPTIONS, Settings, place};
use super::Source;
use super::bucket::BucketSource;
use super::kinds::{Remote, SourceKind};
use crate::error::{Error, Kind, Result};

/// `gs://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["gs"],
    example: "gs://bucket/prefix",
    options: OPTIONS,
    display_name: |remote| place(&remote.url, &remote.options).map(|place| place.display_name()),
    open: |remote| Box::pin(open(remote)),
};

async fn open(remote: Remote) -> Result<Arc<dyn Source>> {
    let (place, client) = spawn_blocking(move || {
        let place = place(&remote.url, &remote.options)?;
        let settings = Settings::gather(&remote.options);
        let client = settings.and_then(|settings| Client::new(&place.bucket, settings));
        client.map_err(|error| error.at(place.display_name())).map(|client| (place, client))
    })
    .await
    .map_err(|lost| Error::new(Kind::Io, "open source").caused_by(lost))??;
    BucketSource::open(place.display_name(), &place.prefix, Box::new(client)).await
}
