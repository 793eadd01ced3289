//! RING 3: the control socket: what a daemon tells about itself and takes orders by, and how its user finds it.
//!
//! HTTP/1 with JSON over a unix socket, so that `curl --unix-socket` is a client too.

pub mod client;
pub mod orders;
pub mod registry;
pub mod server;
pub mod status;
pub mod verify;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::control::orders::{
    Done, EventsRequest, HistoryReport, LimitRequest, PathOrder, PathsDone, PathsRequest,
    SwitchOrder,
};
use crate::control::status::{StatusReport, StuckReport};
use crate::control::verify::{VerifyLine, VerifyOrder};
use crate::error::{Error, Kind, Result};

/// The longest request or error body, in bytes.
pub(crate) const BODY_MAX: usize = 64 * 1024;

/// What a daemon lets the control socket ask.
///
/// # Concurrency
/// Called from any task, several at once.
#[async_trait]
pub trait Controlled: Send + Sync + 'static {
    /// The state of the copy, from memory.
    async fn status(&self) -> StatusReport;

    /// All operations that have not ended, from memory.
    async fn stuck(&self) -> StuckReport;

    /// Proves the copy again, or what else `order` says; everything found goes to `lines`, the end is answered. A closed `lines` ends it.
    ///
    /// # Errors
    /// `Busy` while another runs; what keeps it from being done at all.
    async fn verify(
        &self,
        order: VerifyOrder,
        lines: mpsc::Sender<VerifyLine>,
    ) -> Result<VerifyLine>;

    /// Says what hydration shall do; answers what that changes. Reads are served in any case.
    ///
    /// # Errors
    /// As a durable write: then it holds, but not over a restart.
    async fn switch(&self, order: SwitchOrder) -> Result<Done>;

    /// Changes the rate of hydration.
    ///
    /// # Errors
    /// `Invalid` for a rate below 1 KiB/s.
    async fn limit(&self, request: LimitRequest) -> Result<Done>;

    /// Carries out an order for each path.
    async fn paths(&self, order: PathOrder, request: PathsRequest) -> PathsDone;

    /// Sends the events that were written, and goes on with what comes if that is asked; a closed `lines` ends it. Each piece is whole lines.
    ///
    /// # Errors
    /// If the log cannot be read.
    async fn events(&self, request: EventsRequest, lines: mpsc::Sender<Bytes>) -> Result<()>;

    /// The lives that this copy had.
    ///
    /// # Errors
    /// What the catalog says.
    async fn history(&self) -> Result<HistoryReport>;

    /// Takes the mount out of the tree; returns when it is gone. What then follows (saving, leaving the lock, ending the process) goes on
    /// after the answer: the client watches the process.
    ///
    /// # Errors
    /// `Busy` while it is in use, then nothing has changed; with `wait` a client asks again, so waiting here is optional.
    ///
    /// # Cancel safety
    /// Runs in a task of its own: a client that hangs up does not cancel it.
    async fn unmount(&self, request: UnmountRequest) -> Result<()>;
}

/// Body of `POST /v1/unmount`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnmountRequest {
    /// Try again until nobody uses it.
    pub wait: bool,
    /// Detach now; open handles lose the daemon.
    pub force: bool,
}

/// An error on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// [`Kind::as_str`].
    pub(crate) kind: String,
    /// One line for people.
    pub(crate) message: String,
}

impl ErrorBody {
    pub(crate) fn of(error: &Error) -> Self {
        Self { kind: error.kind().as_str().to_owned(), message: error.to_string() }
    }

    /// The kind that the other side meant; an unknown word is `Io`.
    pub(crate) fn parsed_kind(&self) -> Kind {
        const KINDS: [Kind; 15] = [
            Kind::NotFound,
            Kind::Denied,
            Kind::Stale,
            Kind::Timeout,
            Kind::Unreachable,
            Kind::Corrupt,
            Kind::Io,
            Kind::ReadOnly,
            Kind::NotSupported,
            Kind::NameTooLong,
            Kind::Busy,
            Kind::Limit,
            Kind::Invalid,
            Kind::Exists,
            Kind::NoSpace,
        ];
        KINDS.into_iter().find(|kind| kind.as_str() == self.kind).unwrap_or(Kind::Io)
    }
}
