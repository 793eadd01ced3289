//! A container, or what is below a prefix of its names, of Azure's blob storage.
//!
//! Listings tell size, time, entity tag and MD5; range requests name the entity tag they want, and the version where the account keeps them.
//! Keys become paths as `bucket` has it.

mod client;
mod credentials;
mod page;
mod settings;

use std::sync::Arc;

use tokio::task::spawn_blocking;

use self::client::Client;
use self::settings::{OPTIONS, Settings};
use super::Source;
use super::bucket::BucketSource;
use super::kinds::{Remote, SourceKind};
use crate::error::{Error, Kind, Result};

/// `az://`.
pub const KIND: SourceKind = SourceKind {
    schemes: &["az"],
    example: "az://container/prefix",
    options: OPTIONS,
    display_name: |remote| {
        Settings::place(&remote.url, &remote.options).map(|place| place.display_name())
    },
    open: |remote| Box::pin(open(remote)),
};

async fn open(remote: Remote) -> Result<Arc<dyn Source>> {
    let (place, client) = spawn_blocking(move || {
        let place = Settings::place(&remote.url, &remote.options)?;
        let settings = Settings::gather(&place, &remote.options);
        let client = settings.and_then(|settings| Client::new(&place, &settings));
        client.map_err(|error| error.at(place.display_name())).map(|client| (place, client))
    })
    .await
    .map_err(|lost| Error::new(Kind::Io, "open source").caused_by(lost))??;
    BucketSource::open(place.display_name(), &place.prefix, Box::new(client)).await
}
