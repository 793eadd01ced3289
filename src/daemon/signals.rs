//! The signals that a daemon obeys.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

/// From its making on, none of them ends the process by itself; one that comes before anybody asks is kept.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Unmount and end.
    End,
    /// Log what waits.
    Explain,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            user1: listen(SignalKind::user_defined1())?,
        })
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// None is lost.
    pub(crate) async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.interrupt.recv() => Order::End,
            _ = self.terminate.recv() => Order::End,
            _ = self.hangup.recv() => Order::End,
            _ = self.user1.recv() => Order::Explain,
        }
    }

    /// Waits for the next order to end; the others are not worth an answer any more.
    pub(crate) async fn end(&mut self) {
        while self.next().await != Order::End {}
    }
}
