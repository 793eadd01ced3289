//! Credentials as the AWS tools find them, renewed when they end.

use reqsign_aws_v4::{
    Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign_core::{Context, Signer};

use super::settings::Identity;
use crate::error::Result;
use crate::source::bucket::client::Signature;
use crate::source::bucket::machine;

const HINT: &str =
    "from the environment, the AWS files, -S profile=NAME; -S anonymous=true for a public bucket";

/// Signs as `identity`, for `region`.
///
/// # Errors
/// `Io` if TLS cannot be set up.
pub(super) fn signature(identity: &Identity, region: &str) -> Result<Signature<Credential>> {
    let request_signer = RequestSigner::new("s3", region);
    let signer = match identity {
        Identity::Nobody => None,
        Identity::Keys { id, secret, token } => {
            let keys = StaticCredentialProvider::new(id, secret.reveal());
            let keys = match token {
                Some(token) => keys.with_session_token(token.reveal()),
                None => keys,
            };
            Some(Signer::new(Context::new(), keys, request_signer))
        }
        Identity::Chain { profile } => {
            let chain = DefaultCredentialProvider::builder();
            let chain = match profile {
                Some(profile) => chain.no_env().with_profile(profile),
                None => chain,
            };
            Some(Signer::new(machine()?, chain.build(), request_signer))
        }
    };
    Ok(Signature::new(signer, "AWS", HINT))
}

/// The same identity for another region; what it found out is kept.
pub(super) fn in_region(signature: &Signature<Credential>, region: &str) -> Signature<Credential> {
    let signer = signature.signer.clone();
    let signer = signer.map(|signer| signer.with_request_signer(RequestSigner::new("s3", region)));
    Signature::new(signer, "AWS", HINT)
}
