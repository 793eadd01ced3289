//! The machine, as the chains of credentials need it: environment, files, commands, services that give out credentials.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use reqsign_core::{CommandExecute, CommandOutput, Context, FileRead, HttpSend, OsEnv};
use reqwest::Client as Pool;
use tokio::time::timeout;

use crate::error::Result;
use crate::source::http::client::{build, pool};

/// For one answer of a service that gives out credentials. Where there is none (IMDS outside of EC2) nobody may answer at all.
const TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a command that gives out credentials; some of them wait for a person at another machine.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// # Errors
/// `Io` if TLS cannot be set up.
pub(in crate::source) fn machine() -> Result<Context> {
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
        let mut command = tokio::process::Command::new(program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        let ended = timeout(COMMAND_TIMEOUT, command.output()).await;
        let late = |_| failed(format!("{program} did not end within {COMMAND_TIMEOUT:?}"));
        let output = ended.map_err(late)?.map_err(failed)?;
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
