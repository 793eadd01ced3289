//! A bucket, or what is below a prefix of its keys, of S3 or a server that speaks its language.
//!
//! Listings tell size, time and entity tag; checksums and versions come with HEAD; range requests name the entity tag they want, and the
//! version where one is known. Requests are signed with what the AWS tools would use. Keys become paths as `bucket` has it.

mod client;
mod credentials;
mod page;
mod settings;

use std::sync::Arc;

use tokio::task::spawn_blocking;

use self::client::Client;
use self::settings::{OPTIONS, Settings, place};
use super::Source;
use super::bucket::BucketSource;
use super::kinds::{Remote, SourceKind};
use crate::error::{Error, Kind, Result};

/// `s3://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["s3"],
    example: "s3://bucket/prefix",
    options: OPTIONS,
    display_name: |remote| place(&remote.url, &remote.options).map(|place| place.display_name()),
    open: |remote| Box::pin(open(remote)),
};

async fn open(remote: Remote) -> Result<Arc<dyn Source>> {
    let (place, client) = spawn_blocking(move || {
        let place = place(&remote.url, &remote.options)?;
        let settings = Settings::gather(&place, &remote.options);
        let client = settings.and_then(|settings| Client::new(place.bucket.clone(), settings));
        client.map_err(|error| error.at(place.display_name())).map(|client| (place, client))
    })
    .await
    .map_err(|lost| Error::new(Kind::Io, "open source").caused_by(lost))??;
    BucketSource::open(place.display_name(), &place.prefix, Box::new(client)).await
}
