//! Credentials as Azure's own tools find them, renewed when they end.

use reqsign_azure_storage::{
    AzureCliCredentialProvider, AzurePipelinesCredentialProvider,
    ClientCertificateCredentialProvider, ClientSecretCredentialProvider, Credential,
    ImdsCredentialProvider, RequestSigner, StaticCredentialProvider,
    WorkloadIdentityCredentialProvider,
};
use reqsign_core::{Context, ProvideCredentialChain, Signer};

use super::settings::Identity;
use crate::error::Result;
use crate::source::bucket::client::Signature;
use crate::source::bucket::machine;

const HINT: &str = "az login, AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, a service principal or -S account-key=@FILE; -S anonymous=true for a public container";

/// Signs as `identity` for `account`.
///
/// # Errors
/// `Io` if TLS cannot be set up.
pub(super) fn signature(identity: &Identity, account: &str) -> Result<Signature<Credential>> {
    let fixed = |given| Some(Signer::new(Context::new(), given, RequestSigner::new()));
    let signer = match identity {
        Identity::Nobody => None,
        Identity::Key(key) => {
            fixed(StaticCredentialProvider::new_shared_key(account, key.reveal()))
        }
        Identity::Sas(token) => fixed(StaticCredentialProvider::new_sas_token(token.reveal())),
        Identity::Chain => Some(Signer::new(machine()?, chain(), RequestSigner::new())),
    };
    Ok(Signature::new(signer, "Azure", HINT))
}

/// What was said on purpose goes first; the service that perhaps nobody has here goes last.
fn chain() -> ProvideCredentialChain<Credential> {
    ProvideCredentialChain::new()
        .push(ClientSecretCredentialProvider::new())
        .push(ClientCertificateCredentialProvider::new())
        .push(WorkloadIdentityCredentialProvider::new())
        .push(AzurePipelinesCredentialProvider::new())
        .push(AzureCliCredentialProvider::new())
        .push(ImdsCredentialProvider::new())
}
