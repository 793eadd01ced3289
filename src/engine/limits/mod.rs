//! What may be asked of the source: how fast, how much, how often; and not at all while it keeps failing.
//!
//! Who reads goes first: it takes its bytes at once and counts them, and what runs in the background pays for that. Hydration buys its
//! bytes before it asks for them, so that what is on its way keeps to the rate too. A quota counts what is asked before it comes.
//!
//! | file | what |
//! |---|---|
//! | `ration` | what hydration buys before it asks |
//! | `telling` | what is told of all this |

mod ration;
mod telling;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use crate::core::breaker::{Admission, Breaker, FAILURES, Pass};
use crate::core::bucket::{Bucket, Take};
use crate::core::permits::{Acquired, Permits};
use crate::core::priority::Priority;
use crate::core::quota::{Most, Quota, Reserved, Used};
use crate::core::range::BLOCK_SIZE;
use crate::engine::events::{Event, Events};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::{Catalog, OrderedRate};
use crate::sync::{AtomicU64, Ordering};

pub(crate) use ration::Ration;

/// Longest time between two looks of what waits for a quota or for the source.
pub(super) const LOOK: Duration = Duration::from_secs(1);
const SECONDS_PER_DAY: u64 = 24 * 3600;

/// Limits, validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitSettings {
    /// Bytes per second that hydration takes; `None` = no limit. At least 1 KiB.
    pub rate: Option<u64>,
    /// Bytes that are fetched at most.
    pub max_fetch: Option<FetchLimit>,
    /// Requests for bytes, at most; at least 1.
    pub max_requests: Option<u64>,
    /// Requests that run at once, at most; `None` = as the kind of source has it. At least 1.
    pub max_connections: Option<usize>,
}

/// So many bytes, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimit {
    /// Bytes.
    pub bytes: u64,
    /// For how long they are meant.
    pub period: Period,
}

/// For how long a quota is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// For this copy, over restarts.
    Ever,
    /// Until midnight UTC.
    Day,
}

/// The limits of one engine.
///
/// # Concurrency
/// Any thread may call anything.
#[derive(Debug)]
pub struct Limits {
    settings: LimitSettings,
    bucket: Bucket,
    quota: Arc<Quota>,
    breaker: Arc<Breaker>,
    events: Arc<Events>,
    /// Who buys next.
    turns: Arc<Permits>,
    /// What the catalog knows.
    saved: ArcSwap<Used>,
    /// Until when the source asked to be left alone.
    resting: watch::Sender<Option<tokio::time::Instant>>,
    /// Told when who waits should look again.
    changed: Notify,
    /// Who waits for a quota. Relaxed: a number of itself.
    starving: AtomicU64,
}

impl Limits {
    /// Goes on from what earlier lives `used`, and from what was `ordered` in them.
    pub fn new(
        settings: LimitSettings,
        used: Used,
        ordered: Option<OrderedRate>,
        events: &Arc<Events>,
    ) -> Arc<Self> {
        let rate = ordered.map_or(settings.rate, |ordered| ordered.rate);
        let most = Most {
            bytes: settings.max_fetch.map(|limit| limit.bytes),
            is_daily: settings.max_fetch.is_some_and(|limit| limit.period == Period::Day),
            requests: settings.max_requests,
        };
        Arc::new(Self {
            settings,
            bucket: Bucket::new(rate, Instant::now()),
            quota: Quota::new(most, used),
            breaker: Arc::default(),
            events: Arc::clone(events),
            turns: Permits::new(1, 0),
            saved: ArcSwap::from_pointee(used),
            resting: watch::Sender::new(None),
            changed: Notify::new(),
            starving: AtomicU64::new(0),
        })
    }

    /// What it was built with.
    pub fn settings(&self) -> &LimitSettings {
        &self.settings
    }

    /// Changes the rate of hydration from now on; `None` = no limit.
    pub fn set_rate(&self, bytes_per_s: Option<u64>) {
        self.bucket.set_rate(bytes_per_s, Instant::now());
        self.changed.notify_waiters();
        self.tell_rate(bytes_per_s);
    }

    /// The rate as the catalog shall know it once somebody ordered it.
    pub(crate) fn ordered_rate(&self) -> OrderedRate {
        OrderedRate { rate: self.rate(), at_start: self.settings.rate }
    }

    /// The rate of hydration; `None` = no limit.
    pub fn rate(&self) -> Option<u64> {
        self.bucket.rate()
    }

    /// What was used.
    pub fn usage(&self) -> Used {
        self.quota.used(today())
    }

    /// What the catalog shall know now, if there is a quota and news.
    pub(crate) fn unsaved(&self) -> Option<Used> {
        let used = self.usage();
        (self.quota.is_limited() && **self.saved.load() != used).then_some(used)
    }

    /// The catalog knows it.
    pub(crate) fn saved(&self, used: Used) {
        self.saved.store(Arc::new(used));
    }

    /// The quota that keeps hydration from going on, in words.
    pub fn used_up(&self) -> Option<String> {
        self.quota.used_up(BLOCK_SIZE, today()).map(|what| self.in_words(what))
    }

    /// Whether something in the background waits for a quota that is used up; who asks may end because of it, so it is told by then.
    pub fn keeps_waiting(&self) -> bool {
        let is_waiting = self.starving.load(Ordering::Relaxed) > 0;
        is_waiting
            && self.quota.left(BLOCK_SIZE, today()).is_err_and(|refused| {
                self.tell_refused(refused);
                true
            })
    }

    /// Why the source is not asked now, and for how long: it failed too often.
    pub fn source_failing(&self) -> Option<(Duration, Error)> {
        self.breaker.open_for(Instant::now())
    }

    /// Whether the source asked to be left alone for a while, and that is not over.
    pub fn is_resting(&self) -> bool {
        self.resting.borrow().is_some()
    }

    /// Asks the source for nothing for so long but what somebody waits for.
    pub(crate) fn rest(self: &Arc<Self>, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        let mut is_first = false;
        self.resting.send_modify(|resting| {
            is_first = resting.is_none();
            *resting = Some(resting.map_or(until, |before| before.max(until)));
        });
        if !is_first {
            return;
        }
        tracing::info!(?wait, "the source asks to be left alone: the background pauses");
        self.events.tell(Event::Pause { by: "source".into() });
        let limits = Arc::clone(self);
        tokio::spawn(async move {
            let until = || *limits.resting.borrow();
            while let Some(until) = until() {
                tokio::time::sleep_until(until).await;
                limits.resting.send_if_modified(|resting| {
                    resting.take_if(|until| *until <= tokio::time::Instant::now()).is_some()
                });
            }
            limits.events.tell(Event::Resume { by: "source".into() });
            limits.changed.notify_waiters();
        });
    }

    /// Whether nothing may be fetched that nobody waits for.
    pub(crate) fn is_stopped(&self) -> bool {
        !self.is_asked() || self.used_up().is_some()
    }

    /// A reader waits for what may be under way in the background.
    pub(crate) fn hurry(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until hydration may ask for more, and buys some of it.
    ///
    /// # Cancel safety
    /// What was bought is given back.
    pub(crate) async fn ration(self: &Arc<Self>) -> Ration {
        let left = self.until_allowed().await;
        let mut ration = Ration { limits: Arc::clone(self), bought: 0, most: left };
        if self.rate().is_some() {
            let _turn = match self.turns.acquire(Priority::Hydration) {
                Acquired::Now(turn) => Some(turn),
                Acquired::Queued(mut ticket) => {
                    ticket.signal().await;
                    ticket.permit()
                }
            };
            if let Some(bytes) = self.buy(left, || false).await {
                ration.bought = bytes;
                ration.most = bytes;
            }
        }
        ration
    }

    /// For who is waited for: everything at once.
    pub(crate) fn at_once(self: &Arc<Self>) -> Ration {
        Ration { limits: Arc::clone(self), bought: 0, most: u64::MAX }
    }

    /// Whether bytes or requests are counted or bought.
    pub(crate) fn is_metered(&self) -> bool {
        let LimitSettings { max_fetch, max_requests, .. } = self.settings;
        self.rate().is_some() || max_fetch.is_some() || max_requests.is_some()
    }

    /// Whether the source is asked for what nobody waits for, as far as it is well.
    pub(crate) fn is_asked(&self) -> bool {
        !self.is_resting() && self.breaker.is_ready(Instant::now())
    }

    /// Waits until the source may be asked for something that nobody waits for; returns how many bytes at most.
    pub(super) async fn until_allowed(&self) -> u64 {
        let mut starving = None;
        loop {
            self.until_asked_again().await;
            match self.quota.left(BLOCK_SIZE, today()) {
                Ok(left) => {
                    self.tell_lifted();
                    return left;
                }
                Err(refused) => {
                    self.tell_refused(refused);
                    starving.get_or_insert_with(|| Starving::new(&self.starving));
                }
            }
            drop(tokio::time::timeout(LOOK, self.changed.notified()).await);
        }
    }

    /// Waits while the source is not asked for anything that nobody waits for: it fails, or it asked for that.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn until_asked_again(&self) {
        loop {
            let changed = self.changed.notified();
            let now = Instant::now();
            let wait = match self.breaker.open_for(now) {
                Some((wait, _)) if !self.breaker.is_ready(now) => wait.min(LOOK).max(LOOK / 20),
                _ if self.is_resting() => LOOK,
                _ => return,
            };
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// Buys up to `most` bytes, waiting for them; `None` if they need not be bought (any more).
    async fn buy(&self, most: u64, is_urgent: impl Fn() -> bool) -> Option<u64> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is_urgent() {
                return None;
            }
            match self.bucket.take(most, Instant::now()) {
                Take::Unlimited => return None,
                Take::Taken(bytes) => return Some(bytes),
                Take::Wait(wait) => drop(tokio::time::timeout(wait, changed).await),
            }
        }
    }

    /// Asks whether the source may be asked.
    ///
    /// # Errors
    /// As it failed last, at once, while it is not asked.
    pub(crate) fn admit(&self) -> Result<Pass> {
        match self.breaker.admit(Instant::now()) {
            Admission::Go(pass) => {
                if pass.is_probe() {
                    self.tell_probed();
                }
                Ok(pass)
            }
            Admission::Closed(wait, last) => Err(Error::new(last.kind(), "read from source")
                .because(format!(
                    "the source failed {FAILURES} times in a row, the last time with: {last}; tried again in {} s",
                    wait.as_secs() + 1
                ))),
        }
    }

    /// Counts one request for `bytes` bytes before it is made.
    ///
    /// # Errors
    /// `Limit`, if it would exceed a quota.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reserved> {
        let reserved = self.quota.reserve(bytes, today()).map_err(|refused| {
            self.tell_refused(refused);
            Error::new(Kind::Limit, "read from source").because(self.in_words(refused.what))
        })?;
        self.tell_lifted();
        Ok(reserved)
    }
}

/// Whether a quota, and nothing else, stood in the way.
pub(super) fn is_refused(error: &Error) -> bool {
    error.kind() == Kind::Limit && !error.is_of_destination()
}

/// One that waits for a quota.
struct Starving<'a>(&'a AtomicU64);

impl<'a> Starving<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The rate that was ordered in an earlier life. A daemon that is started with another rate than that life was told anew. Blocking.
pub(super) fn ordered_rate(
    catalog: &Catalog,
    at_start: Option<u64>,
) -> Result<Option<OrderedRate>> {
    let ordered = catalog.rate()?;
    if ordered.is_some_and(|ordered| ordered.at_start != at_start) {
        catalog.record_rate(|| None)?;
        return Ok(None);
    }
    Ok(ordered)
}

/// The day in UTC, counted from 1970.
fn today() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / SECONDS_PER_DAY
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt;

    use super::*;
    use crate::engine::events::Heard;

    fn limits() -> Arc<Limits> {
        let log = Err(Error::new(Kind::NoSpace, "open"));
        let events = Arc::new(Events::start(log, "/source", Path::new("/destination")).unwrap());
        Limits::new(LimitSettings::default(), Used::default(), None, &events)
    }

    #[tokio::test]
    async fn while_the_source_rests_nothing_begins() {
        let limits = limits();
        assert!(limits.until_asked_again().now_or_never().is_some());
        limits.rest(Duration::from_secs(3600));
        assert!(limits.is_stopped() && limits.until_asked_again().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_rest_lasts_as_long_as_it_was_asked_for_and_both_ends_are_told_once() {
        let limits = limits();
        let mut listener = limits.events.listen(8).unwrap();
        let begun = Instant::now();
        [30, 100, 20].into_iter().for_each(|ms| limits.rest(Duration::from_millis(ms)));
        limits.until_allowed().await;
        assert!(begun.elapsed() >= Duration::from_millis(100));
        assert!(!limits.is_resting() && !limits.is_stopped());
        let mut told = Vec::new();
        while told.len() < 2 {
            let next = tokio::time::timeout(Duration::from_secs(60), listener.next());
            let Heard::Line(line) = next.await.unwrap().unwrap() else { panic!("missed") };
            told.push(line.event.clone());
        }
        let by = || "source".into();
        assert_eq!(told, [Event::Pause { by: by() }, Event::Resume { by: by() }]);
    }
}
