//! Whether hydration goes on: pause, resume, drain, stop. Readers never notice it.
//!
//! What was ordered is kept in the catalog and holds in the next life too, until [`Switch::resume`].

use std::sync::Arc;

use tokio::sync::watch;

use crate::engine::on_disk;
use crate::error::Result;
use crate::store::Destination;
use crate::store::catalog::Ordered;

/// What hydration may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwitchState {
    /// Whatever it finds to do.
    #[default]
    Running,
    /// Nothing new begins; what runs ends by itself.
    Paused,
    /// Nothing new begins; when what runs has ended it is [`SwitchState::Stopped`].
    Draining,
    /// Nothing runs.
    Stopped,
}

impl SwitchState {
    /// What the next life shall know of it.
    fn ordered(self) -> Ordered {
        match self {
            Self::Running => Ordered::Run,
            Self::Paused => Ordered::Pause,
            Self::Draining | Self::Stopped => Ordered::Stop,
        }
    }
}

/// The state, and how often anything was ordered: an order that changes nothing is an order too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Position {
    state: SwitchState,
    orders: u64,
}

/// The switch of one copy.
///
/// # Concurrency
/// Any thread may order and look; the last order counts.
#[derive(Debug)]
pub struct Switch {
    destination: Arc<Destination>,
    position: Arc<watch::Sender<Position>>,
}

impl Switch {
    /// As the last life left it. Blocking.
    pub(super) fn open(destination: &Arc<Destination>) -> Result<Self> {
        let state = match destination.catalog().ordered()? {
            Ordered::Run => SwitchState::Running,
            Ordered::Pause => SwitchState::Paused,
            Ordered::Stop => SwitchState::Stopped,
        };
        let position = Arc::new(watch::Sender::new(Position { state, orders: 0 }));
        Ok(Self { destination: Arc::clone(destination), position })
    }

    /// What hydration may do now.
    pub fn state(&self) -> SwitchState {
        self.position.borrow().state
    }

    /// Whether hydration may begin something.
    pub fn is_running(&self) -> bool {
        self.state() == SwitchState::Running
    }

    /// Begins nothing new; what runs ends by itself.
    ///
    /// # Errors
    /// As a durable write: it holds, but not over a restart.
    pub async fn pause(&self) -> Result<()> {
        self.order(SwitchState::Paused).await
    }

    /// Goes on, and tries again what failed.
    ///
    /// # Errors
    /// As [`Switch::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.order(SwitchState::Running).await
    }

    /// Finishes the chunks that run and publishes what is complete then, and begins nothing new.
    ///
    /// # Errors
    /// As [`Switch::pause`].
    pub async fn drain(&self) -> Result<()> {
        match self.state() {
            SwitchState::Stopped => Ok(()),
            _ => self.order(SwitchState::Draining).await,
        }
    }

    /// Ends the chunks of hydration now; what landed stays.
    ///
    /// # Errors
    /// As [`Switch::pause`].
    pub async fn stop(&self) -> Result<()> {
        self.order(SwitchState::Stopped).await
    }

    async fn order(&self, state: SwitchState) -> Result<()> {
        self.position.send_modify(|position| {
            *position = Position { state, orders: position.orders + 1 };
        });
        tracing::info!(?state, "hydration");
        let (destination, position) = (Arc::clone(&self.destination), Arc::clone(&self.position));
        // Of two that are recorded in the other order, both record the last.
        let last = move || position.borrow().state.ordered();
        on_disk("record order", move || destination.catalog().record_ordered(last)).await
    }

    /// What was to be finished is.
    #[expect(dead_code, reason = "its caller comes with the lanes")]
    pub(super) fn drained(&self) {
        self.position.send_if_modified(|position| {
            let is_drained = position.state == SwitchState::Draining;
            if is_drained {
                position.state = SwitchState::Stopped;
            }
            is_drained
        });
    }

    /// Waits for the next order, from now on, or for the end of a drain. The same order again counts too.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn changed(&self) {
        // The sender lives as long as we do.
        drop(self.position.subscribe().changed().await);
    }

    /// Waits until hydration may do what `wanted` says.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn until(&self, wanted: impl Fn(SwitchState) -> bool) {
        let mut position = self.position.subscribe();
        drop(position.wait_for(|position| wanted(position.state)).await);
    }

    /// How often anything was ordered.
    pub fn orders(&self) -> u64 {
        self.position.borrow().orders
    }

    /// Waits for an order after the first `seen`.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn ordered_since(&self, seen: u64) {
        let mut position = self.position.subscribe();
        drop(position.wait_for(|position| position.orders > seen).await);
    }
}
