//! A complete copy in place becomes the plain directory that it covers. By steps, each of which may be the last one: the same command goes on
//! from any of them, and ends alike.
//!
//! Whoever has a file open goes on reading it through us; whoever only stands in the directory has some time to go. The catalog is closed
//! and the lock is left when no name can be asked for any more, most often at once: until then lookups need it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::daemon::readiness::Readiness;
use crate::daemon::report::{Control, Reporter};
use crate::daemon::signals::{Order, Signals};
use crate::daemon::start::Started;
use crate::daemon::{Outcome, PATIENCE};
use crate::engine::on_disk;
use crate::error::Result;
use crate::vfs::busy::{BusyProcess, Use, who_is_busy};
use crate::vfs::holders::{Holder, holders};
use crate::vfs::mount::{UnmountMode, Unmounted, unmount_ours};
use crate::vfs::mountinfo::{self, MountEntry};

/// The kernel needs a moment to let go of what nobody uses.
const MOMENT: Duration = Duration::from_millis(100);
/// Between two attempts to take away a mount that another covers, and two looks at who is left.
const LOOK: Duration = Duration::from_secs(1);
/// Users that are named.
const NAMED: usize = 10;

/// What is done when everything is published, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The marker is gone.
    Unmarked,
    /// DIR has the metadata of the source's root.
    RootFinished,
    /// The receipt is written.
    Receipted,
    /// Everything that was written anywhere on the file system is on the disk.
    Synced,
    /// New opens find plain files.
    Detached,
    /// The catalog is closed, the lock left.
    Closed,
}

/// Where a test may cut it off.
pub(super) fn cut_after(step: Step) {
    crate::store::cut::cut_after(&format!("{step:?}"));
}

/// The end of a copy in place.
pub(super) struct Dissolving<'a> {
    pub(super) started: &'a mut Started,
    pub(super) signals: &'a mut Signals,
    pub(super) reporter: &'a Reporter,
    pub(super) readiness: &'a mut dyn Readiness,
    pub(super) control: &'a mut Option<Control>,
    /// Nobody is served any more.
    is_over: bool,
    /// The mount table when ours was still in it.
    mounts: Vec<MountEntry>,
}

impl<'a> Dissolving<'a> {
    pub(super) fn new(
        started: &'a mut Started,
        signals: &'a mut Signals,
        reporter: &'a Reporter,
        readiness: &'a mut dyn Readiness,
        control: &'a mut Option<Control>,
    ) -> Self {
        let mounts = Vec::new();
        Self { started, signals, reporter, readiness, control, is_over: false, mounts }
    }

    /// All of it. Whoever only stands in the directory is served for `linger`.
    pub(super) async fn run(mut self, linger: Duration, outcome: Outcome) {
        let is_ours = self.detach().await;
        let said = self.words();
        // Also where somebody else took it away: the copy is complete all the same.
        if !is_ours || self.ended_within(MOMENT).await {
            self.close().await;
            self.readiness.settled(outcome, &said, &[]);
            return;
        }
        let left = self.who_is_left(linger).await;
        left.iter().for_each(|line| tracing::info!("{line}"));
        self.readiness.settled(outcome, &said, &left);
        self.linger(linger).await;
        self.started.session.close_names();
        self.close().await;
        while self.started.engine.open_count() > 0 && !self.ended_within(LOOK).await {}
    }

    /// Takes our own mount away, as soon as no other covers it or lies in it. False if somebody else ended it first.
    async fn detach(&mut self) -> bool {
        let engine = Arc::clone(&self.started.engine);
        let synced = on_disk("sync destination", move || {
            engine.keep_open_files();
            engine.destination().sync()
        });
        let is_synced = match synced.await {
            Ok(()) => true,
            Err(error) => {
                let dir = self.started.place.destination.display();
                let line =
                    format!("{dir} stays mounted: {error}. The same command proves the copy again");
                tracing::error!("{line}");
                self.readiness.settled(Outcome::SomeFailed, &line, &[]);
                false
            }
        };
        cut_after(Step::Synced);
        let mut is_said = false;
        loop {
            // What is not surely on the disk is served on, until somebody takes it away.
            let detached = if is_synced { Some(self.try_detach().await) } else { None };
            match detached {
                Some(Ok(Unmounted::Done | Unmounted::AlreadyGone)) => break,
                Some(Err(error)) if !is_said => {
                    tracing::warn!(%error, "complete, and stays mounted until that is gone");
                    is_said = true;
                }
                Some(Err(_)) | None => {}
            }
            if self.ended_within(LOOK).await {
                return false;
            }
        }
        cut_after(Step::Detached);
        // What was opened since the last look.
        self.started.engine.keep_open_files();
        tracing::info!(path = %self.started.place.destination.display(), "dissolved");
        true
    }

    async fn try_detach(&mut self) -> Result<Unmounted> {
        let (mountpoint, number) = (self.started.place.mountpoint.clone(), self.started.number);
        let mounts = mountinfo::read()?;
        let unmount = move || unmount_ours(&mountpoint, number, UnmountMode::DetachAlone);
        let unmounted = on_disk("unmount", unmount).await?;
        self.mounts = mounts;
        Ok(unmounted)
    }

    /// What became of the copy.
    fn words(&self) -> String {
        let (dir, status) = (self.started.place.destination.display(), self.reporter.status_now());
        let proof = status.proof;
        let unverified = match proof.adopted_unverified {
            0 => String::new(),
            files => format!(", adopted unverified {files}"),
        };
        let line = format!(
            "{dir} is complete and a plain directory now: {} files, {} bytes; proof: source checksum {}, transfer {}{unverified}",
            status.files.published, status.bytes.total, proof.source_checksum, proof.transfer
        );
        tracing::info!("{line}");
        line
    }

    /// Serves everybody until nobody is left or `linger` is over. A place that we cannot detach is served as long as it is there.
    async fn linger(&mut self, linger: Duration) {
        let until = Instant::now() + linger;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && self.holders().await.is_empty() {
                return;
            }
            let patience = if left.is_zero() { LOOK } else { left };
            if self.ended_within(patience).await {
                return;
            }
        }
    }

    /// From here on a command that names this copy works on it itself.
    async fn close(&mut self) {
        let _nobody_begins = self.reporter.end_of_verifying().await;
        if let Some(control) = self.control.take() {
            control.shutdown(PATIENCE).await;
        }
        let destination = self.started.engine.destination();
        if let Err(error) = on_disk("close destination", move || destination.close()).await {
            tracing::warn!(%error, "the destination stays locked until this process ends");
        }
        cut_after(Step::Closed);
    }

    /// Whether nobody uses the mount any more, or a signal ended its use.
    async fn ended_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.is_over {
            tokio::select! {
                () = self.started.session.ended() => self.is_over = true,
                () = self.reporter.detached() => self.is_over = true,
                () = tokio::time::sleep_until(deadline.into()) => return false,
                order = self.signals.next() => match order {
                    Order::Explain => self.reporter.log_everything_waiting(),
                    Order::End => {
                        tracing::info!("told to end by a signal");
                        super::take_away(self.started).await;
                        self.is_over = true;
                    }
                },
            }
        }
        true
    }

    async fn holders(&self) -> Vec<Holder> {
        let number = self.started.number;
        on_disk("look at mounts", move || Ok(holders(number))).await.unwrap_or_default()
    }

    /// One line for each who still uses the mount, and what that means.
    async fn who_is_left(&self, linger: Duration) -> Vec<String> {
        let (mountpoint, number) = (self.started.place.mountpoint.clone(), self.started.number);
        let mounts = self.mounts.clone();
        let busy =
            on_disk("look at processes", move || Ok(who_is_busy(&mountpoint, number, &mounts)));
        let (busy, holders) = (busy.await.unwrap_or_default(), self.holders().await);
        let lines = holders
            .iter()
            .map(|holder| format!("still mounted at {holder}: served until it is unmounted there"));
        let mut lines: Vec<_> =
            lines.chain(busy.iter().map(|process| stays(process, linger))).collect();
        if lines.len() > NAMED {
            let more = lines.len() - NAMED;
            lines.truncate(NAMED);
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

fn stays(process: &BusyProcess, linger: Duration) -> String {
    match process.what {
        Use::CurrentDirectory | Use::Root => format!(
            "{process}: `cd \"$PWD\"` leads into the plain directory; without that it is cut off in {}",
            humantime::format_duration(linger)
        ),
        Use::Open(_) | Use::Mapped(_) => format!("{process}: served until it is closed"),
    }
}
