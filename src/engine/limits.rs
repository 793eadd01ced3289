//! What may be asked of the source: how fast, how much, how often; and not at all while it keeps failing.
//!
//! Who reads goes first: it takes its bytes at once and counts them, and what runs in the background pays for that. Hydration buys its
//! bytes before it asks for them, so that what is on its way keeps to the rate too. A quota counts what is asked before it comes.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::core::breaker::{Admission, Breaker, FAILURES, Pass, Turn};
use crate::core::bucket::{Bucket, Take};
use crate::core::permits::{Acquired, Permits};
use crate::core::priority::Priority;
use crate::core::quota::{Most, Quota, Refused, Reserved, Used, UsedUp};
use crate::core::range::BLOCK_SIZE;
use crate::error::{Error, Kind};
use crate::sync::{AtomicU64, Ordering};

/// Longest time between two looks of what waits for a quota or for the source.
const LOOK: Duration = Duration::from_secs(1);
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
    /// Who buys next.
    turns: Arc<Permits>,
    /// What the catalog knows.
    saved: ArcSwap<Used>,
    /// Told when who waits should look again.
    changed: Notify,
    /// Who waits for a quota. Relaxed: a number of itself.
    starving: AtomicU64,
}

impl Limits {
    /// Goes on from what earlier lives `used`.
    pub fn new(settings: LimitSettings, used: Used) -> Arc<Self> {
        let most = Most {
            bytes: settings.max_fetch.map(|limit| limit.bytes),
            is_daily: settings.max_fetch.is_some_and(|limit| limit.period == Period::Day),
            requests: settings.max_requests,
        };
        Arc::new(Self {
            settings,
            bucket: Bucket::new(settings.rate, Instant::now()),
            quota: Quota::new(most, used),
            breaker: Arc::default(),
            turns: Permits::new(1, 0),
            saved: ArcSwap::from_pointee(used),
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
        tracing::info!(?bytes_per_s, "limit");
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

    /// Whether something in the background waits for a quota that is used up.
    pub fn keeps_waiting(&self) -> bool {
        self.starving.load(Ordering::Relaxed) > 0 && self.used_up().is_some()
    }

    /// Why the source is not asked now, and for how long: it failed too often.
    pub fn source_failing(&self) -> Option<(Duration, Error)> {
        self.breaker.open_for(Instant::now())
    }

    /// Whether nothing may be fetched that nobody waits for.
    pub(crate) fn is_stopped(&self) -> bool {
        !self.breaker.is_ready(Instant::now()) || self.used_up().is_some()
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

    /// Waits until the source may be asked for something that nobody waits for; returns how many bytes at most.
    async fn until_allowed(&self) -> u64 {
        let mut starving = None;
        loop {
            let changed = self.changed.notified();
            let now = Instant::now();
            let wait = match self.breaker.open_for(now) {
                Some((wait, _)) if !self.breaker.is_ready(now) => wait.min(LOOK).max(LOOK / 20),
                _ => match self.quota.left(BLOCK_SIZE, today()) {
                    Ok(left) => return left,
                    Err(refused) => {
                        self.tell(refused);
                        starving.get_or_insert_with(|| Starving::new(&self.starving));
                        LOOK
                    }
                },
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
    pub(crate) fn admit(&self) -> Result<Pass, Error> {
        match self.breaker.admit(Instant::now()) {
            Admission::Go(pass) => Ok(pass),
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
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Reserved, Error> {
        self.quota.reserve(bytes, today()).map_err(|refused| {
            self.tell(refused);
            Error::new(Kind::Limit, "read from source").because(self.in_words(refused.what))
        })
    }

    /// Says once that a quota is used up.
    fn tell(&self, refused: Refused) {
        if refused.is_first {
            tracing::warn!(
                "{}: the background stops; what is local is served",
                self.in_words(refused.what)
            );
        }
    }

    fn in_words(&self, what: UsedUp) -> String {
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
        match turn {
            Turn::None => {}
            Turn::Opened => {
                if let Some((wait, error)) = self.source_failing() {
                    tracing::warn!(kind = %error.kind(), %error, ?wait, "the source failed {FAILURES} times in a row: reads of what is not local fail at once until it answers again");
                }
            }
            Turn::Closed => {
                tracing::info!("the source answers again");
                self.changed.notify_waiters();
            }
        }
    }
}

/// What hydration has bought for one request, and what it may ask for. Dropping it gives back what was not used.
#[derive(Debug)]
pub(crate) struct Ration {
    limits: Arc<Limits>,
    bought: u64,
    most: u64,
}

impl Ration {
    /// Bytes that may be asked for.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// Gives back what is beyond `most`.
    pub(crate) fn cut(&mut self, most: u64) {
        self.most = self.most.min(most);
        let beyond = self.bought.saturating_sub(most);
        self.bought -= beyond;
        self.limits.bucket.give_back(beyond);
    }

    /// `bytes` have come. What was not bought is bought now: at once if somebody waits for it, else it is waited for, and nothing more is
    /// taken from the source until then.
    pub(crate) async fn pay(&mut self, bytes: u64, is_urgent: impl Fn() -> bool) {
        let covered = self.bought.min(bytes);
        self.bought -= covered;
        let mut due = bytes - covered;
        while due > 0 {
            match self.limits.buy(due, &is_urgent).await {
                Some(paid) => due -= paid,
                None => {
                    self.limits.bucket.spend(due, Instant::now());
                    due = 0;
                }
            }
        }
    }
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

impl Drop for Ration {
    fn drop(&mut self) {
        self.limits.bucket.give_back(self.bought);
    }
}

/// The day in UTC, counted from 1970.
fn today() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / SECONDS_PER_DAY
}
