//! Signatures: credentials as the AWS tools find them, renewed when they end.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use reqsign_aws_v4::{
    Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign_core::{CommandExecute, CommandOutput, Context, FileRead, HttpSend, OsEnv, Signer};
use reqwest::Client as Pool;

use super::settings::Identity;
use crate::error::{Error, Kind, Result};
use crate::source::http::client::{build, pool};

/// For one answer of a service that gives out credentials. Where there is none (IMDS outside of EC2) nobody may answer at all.
const TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Signs requests, or leaves them as they are.
#[derive(Debug, Clone)]
pub(super) struct Signature(Option<Signer<Credential>>);

impl Signature {
    /// Signs as `identity`, for `region`.
    ///
    /// # Errors
    /// `Io` if TLS cannot be set up.
    pub(super) fn new(identity: &Identity, region: &str) -> Result<Self> {
        let request_signer = RequestSigner::new("s3", region);
        let signer = match identity {
            Identity::Nobody => return Ok(Self(None)),
            Identity::Keys { id, secret, token } => {
                let keys = StaticCredentialProvider::new(id, secret.reveal());
                let keys = match token {
                    Some(token) => keys.with_session_token(token.reveal()),
                    None => keys,
                };
                Signer::new(Context::new(), keys, request_signer)
            }
            Identity::Chain { profile } => {
                let chain = DefaultCredentialProvider::builder();
                let chain = match profile {
                    Some(profile) => chain.no_env().with_profile(profile),
                    None => chain,
                };
                Signer::new(surroundings()?, chain.build(), request_signer)
            }
        };
        Ok(Self(Some(signer)))
    }

    /// The same identity for another region; what it found out is kept.
    pub(super) fn in_region(&self, region: &str) -> Self {
        let signer = self.0.clone();
        Self(signer.map(|signer| signer.with_request_signer(RequestSigner::new("s3", region))))
    }

    /// Signs one request.
    ///
    /// # Errors
    /// `Denied` if there are no credentials, `Unreachable` if who gives them out does not answer.
    pub(super) async fn sign(&self, op: &'static str, request: &mut Parts) -> Result<()> {
        let Some(signer) = &self.0 else { return Ok(()) };
        signer.sign(request, None).await.map_err(|error| {
            let kind = if error.is_retryable() { Kind::Unreachable } else { Kind::Denied };
            Error::new(kind, op)
                .because(format!("no usable AWS credentials: {error}"))
                .hint("from the environment, the AWS files, -S profile=NAME; -S anonymous=true for a public bucket")
        })
    }
}

/// The machine, as the chain of credentials needs it.
fn surroundings() -> Result<Context> {
    let client = build(pool(None)?.connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT))?;
    Ok(Context::new()
        .with_env(OsEnv)
        .with_file_read(Files)
        .with_command_execute(Commands)
        .with_http_send(Services(client)))
}

fn failed(error: impl std::fmt::Display) -> reqsign_core::Error {
    reqsign_core::Error::unexpected(error.to_string())
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let path = path.to_owned();
        let read = tokio::task::spawn_blocking(move || std::fs::read(path));
        read.await.map_err(failed)?.map_err(failed)
    }
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute(
        &self,
        program: &str,
        args: &[&str],
    ) -> reqsign_core::Result<CommandOutput> {
        let mut command = std::process::Command::new(program);
        command.args(args).stdin(std::process::Stdio::null());
        let run = tokio::task::spawn_blocking(move || command.output());
        let output = run.await.map_err(failed)?.map_err(failed)?;
        Ok(CommandOutput {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }
}

#[derive(Debug)]
struct Services(Pool);

impl HttpSend for Services {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let request =
            reqwest::Request::try_from(request).map_err(|error| failed(error.without_url()))?;
        let response =
            self.0.execute(request).await.map_err(|error| failed(error.without_url()))?;
        let mut answer = http::Response::new(Bytes::new());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        *answer.body_mut() = response.bytes().await.map_err(|error| failed(error.without_url()))?;
        Ok(answer)
    }
}
