//! Credentials as Google's own libraries find them, renewed when they end.

use reqsign_core::{Context, ProvideCredential, Signer};
use reqsign_google::{
    Credential, DefaultCredentialProvider, FileCredentialProvider, RequestSigner,
    ServiceAccountTokenCredentialProvider, TokenCredentialProvider,
};

use super::settings::Identity;
use crate::error::Result;
use crate::source::bucket::client::Signature;
use crate::source::bucket::machine;

const HINT: &str = "gcloud auth application-default login, GOOGLE_APPLICATION_CREDENTIALS or -S credentials=FILE; -S anonymous=true for a public bucket";

/// Signs as `identity`.
///
/// # Errors
/// `Io` if TLS cannot be set up.
pub(super) fn signature(identity: &Identity) -> Result<Signature<Credential>> {
    let requests = RequestSigner::new("storage");
    let signer = match identity {
        Identity::Nobody => None,
        Identity::Token(token) => {
            let token = TokenCredentialProvider::new(token.reveal());
            Some(Signer::new(Context::new(), token, requests))
        }
        Identity::File(path) => {
            let file = FileCredentialProvider::new(path.to_string_lossy());
            Some(Signer::new(machine()?, Exchanged(file), requests))
        }
        Identity::Chain => {
            Some(Signer::new(machine()?, Exchanged(DefaultCredentialProvider::new()), requests))
        }
    };
    Ok(Signature::new(signer, "Google", HINT))
}

/// Credentials, but instead of a service account a token of it. The signer keeps what it is given: for the account itself it would ask for a
/// token at each request.
#[derive(Debug)]
struct Exchanged<P>(P);

impl<P: ProvideCredential<Credential = Credential>> ProvideCredential for Exchanged<P> {
    type Credential = Credential;

    async fn provide_credential(
        &self,
        context: &Context,
    ) -> reqsign_core::Result<Option<Credential>> {
        let found = self.0.provide_credential(context).await?;
        match found {
            Some(Credential { service_account: Some(account), token: None, .. }) => {
                let account = ServiceAccountTokenCredentialProvider::new(account);
                account.provide_credential(context).await
            }
            found => Ok(found),
        }
    }
}
