//! What becomes of the limits and of the source, told once: to the log and as events.

use crate::core::breaker::{FAILURES, Turn};
use crate::core::quota::{Refused, UsedUp};
use crate::engine::events::{BreakerStep, Event, LimitStep};
use crate::engine::limits::{Limits, today};
use crate::error::Error;

impl Limits {
    /// The rate of hydration is another.
    pub(super) fn tell_rate(&self, value: Option<u64>) {
        tracing::info!(bytes_per_s = ?value, "limit");
        let (what, limit) = (LimitStep::Set, "rate".into());
        self.events.tell(Event::Limit { what, limit, value, used: None });
    }

    /// Says once that a quota is used up.
    pub(super) fn tell_refused(&self, refused: Refused) {
        if refused.is_first {
            tracing::warn!(
                "{}: the background stops; what is local is served",
                self.in_words(refused.what)
            );
            self.tell_quota(LimitStep::Reached, refused.what);
            self.events.tell(Event::Pause { by: "limit".into() });
        }
    }

    /// Says once that there is some left again.
    pub(super) fn tell_lifted(&self) {
        if let Some(what) = self.quota.take_lifted(today()) {
            tracing::info!("a new day: the background goes on");
            self.tell_quota(LimitStep::Lifted, what);
            self.events.tell(Event::Resume { by: "limit".into() });
        }
    }

    fn tell_quota(&self, what: LimitStep, of: UsedUp) {
        let (most, used) = (self.quota.most(), self.usage());
        let (limit, value, used) = match of {
            UsedUp::Bytes => ("max-fetch", most.bytes, used.bytes),
            UsedUp::Requests => ("max-requests", most.requests, used.requests),
        };
        self.events.tell(Event::Limit { what, limit: limit.into(), value, used: Some(used) });
    }

    pub(super) fn in_words(&self, what: UsedUp) -> String {
        let most = self.quota.most();
        match (what, most.bytes, most.requests) {
            (UsedUp::Bytes, Some(bytes), _) if most.is_daily => format!(
                "the limit --max-fetch {bytes}/day is used up until midnight UTC (the same command with a higher one goes on)"
            ),
            (UsedUp::Bytes, bytes, _) => format!(
                "the limit --max-fetch {} is used up (the same command with a higher one goes on)",
                bytes.unwrap_or(0)
            ),
            (UsedUp::Requests, _, requests) => format!(
                "the limit --max-requests {} is used up (the same command with a higher one goes on)",
                requests.unwrap_or(0)
            ),
        }
    }

    /// Says what became of the source.
    pub(crate) fn tell_turn(&self, turn: Turn) {
        let by = || "breaker".into();
        match turn {
            Turn::None => {}
            Turn::Opened => {
                if let Some((wait, error)) = self.source_failing() {
                    tracing::warn!(kind = %error.kind(), %error, ?wait, "the source failed {FAILURES} times in a row: reads of what is not local fail at once until it answers again");
                    self.tell_breaker(BreakerStep::Opened, FAILURES, Some(&error));
                    self.events.tell(Event::Pause { by: by() });
                }
            }
            Turn::Closed(failures) => {
                tracing::info!("the source answers again");
                self.tell_breaker(BreakerStep::Closed, failures, None);
                self.events.tell(Event::Resume { by: by() });
                self.changed.notify_waiters();
            }
        }
    }

    /// One request is let through to a source that failed.
    pub(super) fn tell_probed(&self) {
        let last = self.source_failing().map(|(_, error)| error);
        self.tell_breaker(BreakerStep::Probed, self.breaker.failures(), last.as_ref());
    }

    fn tell_breaker(&self, what: BreakerStep, failures: u32, last: Option<&Error>) {
        let (failures, message) = (u64::from(failures), last.map(ToString::to_string));
        self.events.tell(Event::Breaker { what, failures, message });
    }
}
