//! One law for all sources: what any of them promises, against real servers on loopback.
//!
//! `laws.rs` has the laws; each other file is one server, which gives "a tree of these bytes, at this URL" as a [`ground::Ground`]. A new
//! kind of source is a new file with a `start`, and one line here.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod apache;
mod azure;
mod azurite;
#[path = "../common/mod.rs"]
mod common;
mod gcs;
mod google;
mod ground;
mod laws;
mod local;
mod manifest;
mod moto;
mod nginx;
mod nginx_dav;
mod s3;
mod s3s_fs;
mod webdav;
mod wsgidav;

/// Every law, on the ground that `$start` gives (`None` = the server is not here, which it says).
macro_rules! conforms {
    ($($ground:ident: $($law:ident)+;)+) => {$(
        mod $ground {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $law() {
                    let Some(ground) = crate::$ground::start().await else { return };
                    crate::laws::$law(&ground).await;
                }
            )+
        }
    )+};
}

/// The laws that need nothing but the source.
macro_rules! conform {
    ($($ground:ident)+) => {
        mod of {
            conforms! { $($ground:
                a_listing_has_each_entry_once
                a_long_listing_comes_in_batches_and_whole
                attributes_are_those_of_the_bytes
                every_range_is_exact
                an_empty_file_is_empty
                an_odd_name_is_itself
                offsets_beyond_4_gib_are_exact
                a_changed_file_is_stale
                a_missing_file_is_not_found
                what_is_forbidden_is_denied
                a_cut_connection_is_resumed
                a_wrong_length_is_never_accepted
                cancelling_leaves_no_connection_behind
            ; )+ }
        }
    };
}

conform! { local nginx manifest moto s3s_fs gcs azurite wsgidav nginx_dav apache }
