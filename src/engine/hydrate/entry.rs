//! One entry: fetched, then published.

use std::ffi::OsStr;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::core::attributes::EntryKind;
use crate::core::phase::Phase;
use crate::core::priority::Priority;
use crate::core::range::ByteRange;
use crate::engine::changes::changed;
use crate::engine::file::LazyFile;
use crate::engine::hydrate::RETRY_PAUSE;
use crate::engine::hydrate::first_look::UnderWay;
use crate::engine::limits::is_refused;
use crate::engine::node::Node;
use crate::engine::room::LOOK;
use crate::engine::switch::SwitchState;
use crate::engine::{Engine, fetch, limits};
use crate::error::{Error, Kind, Result};

/// Times that a file which changes or fails is begun again within one run.
const TRIES: u32 = 3;

/// Whether a file that failed is worth another try within one run.
fn may_go_better(error: &Error) -> bool {
    error.is_transient() || matches!(error.kind(), Kind::Stale | Kind::Corrupt | Kind::Io)
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// It is in the destination.
    Whole,
    /// An order came in between.
    Cut,
}

/// A worker's place in a lane. It is free when this is dropped: when there is nothing more to fetch, whatever is still to be done.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) lane: u64,
    pub(super) free: mpsc::UnboundedSender<u64>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.free.send(self.lane).is_err() {
            tracing::trace!(lane = self.lane, "its run has ended");
        }
    }
}

impl Engine {
    pub(super) async fn hydrate_entry(
        self: &Arc<Self>,
        directory: &Arc<Node>,
        name: &OsStr,
        slot: Slot,
    ) -> Result<Copied> {
        let mut slot = Some(slot);
        let mut tries = 0;
        loop {
            tries += 1;
            if !self.may_look_up(directory, name).await {
                return Ok(Copied::Cut);
            }
            let (mut node, under_way) = match self.first_look(directory, name).await {
                Some((node, under_way)) => (node, Some(under_way)),
                None => (self.lookup_as(Priority::Hydration, directory.ino, name).await?, None),
            };
            let path = directory.path().child(name)?;
            if !node.is_confirmed() {
                // Known from an earlier life only, and looked at while the source was away.
                let work = self.ask(directory, name, Priority::Hydration);
                node = self.within_deadline("look up", work).await?;
            }
            if self.changes.is_refused(node.ino) {
                return Err(changed(&path));
            }
            if node.kind() != EntryKind::File {
                return self.publish_special(&node, path).await.map(|()| Copied::Whole);
            }
            let file = node.file()?;
            match self.hydrate_file(file, under_way, &mut slot).await {
                // No fault of the file.
                Err(error) if error.kind() == Kind::NoSpace && error.is_of_destination() => {
                    self.room.ran_out(&error);
                    if !self.may_begin().await {
                        return Ok(Copied::Cut);
                    }
                    tries -= 1;
                }
                Err(error) if is_refused(&error) => {
                    if !self.has_quota_again().await {
                        return Ok(Copied::Cut);
                    }
                    tries -= 1;
                }
                Ok(Copied::Cut) => return Ok(Copied::Cut),
                Ok(Copied::Whole) if file.path == path => {
                    self.tree.leaving.insert(node.ino, ());
                    return Ok(Copied::Whole);
                }
                Ok(Copied::Whole) => {
                    return self.publish_link(&file.path, path).await.map(|()| Copied::Whole);
                }
                // It may have changed or failed on its way: the next look starts over.
                Err(error) if tries < TRIES && may_go_better(&error) => {
                    tracing::debug!(%path, tries, %error, "begun again");
                    // What a reader gave up after its own deadline is no verdict on the file.
                    tokio::time::sleep(RETRY_PAUSE * tries).await;
                    file.claims.forget_failures();
                }
                Err(error) => {
                    if error.kind() == Kind::Archived {
                        self.stats.bytes_skipped.add(file.size());
                    }
                    return Err(error);
                }
            }
        }
    }

    pub(crate) async fn hydrate_file(
        self: &Arc<Self>,
        file: &Arc<LazyFile>,
        under_way: Option<UnderWay>,
        slot: &mut Option<Slot>,
    ) -> Result<Copied> {
        self.restore(file).await;
        if file.phase.get() == Phase::Published {
            return Ok(Copied::Whole);
        }
        if self.adopt_if_candidate(file).await? {
            return Ok(Copied::Whole);
        }
        // Young files first rest until they are settled: fetched once instead of twice.
        let under_way = under_way.filter(|_| file.is_settled());
        self.settle(file).await?;
        self.ensure_layout(file).await?;
        if let Some(under_way) = under_way {
            self.take_under_way(file, under_way);
        }
        if self.fetch_all(file).await? == Copied::Cut {
            return Ok(Copied::Cut);
        }
        drop(slot.take());
        self.seal_if_complete(file);
        self.published(file).await.map(|()| Copied::Whole)
    }

    /// Fetches what is missing of a file.
    async fn fetch_all(self: &Arc<Self>, file: &Arc<LazyFile>) -> Result<Copied> {
        let whole = ByteRange::new(0, file.size());
        while !file.claims.is_complete() {
            if file.is_stale() {
                return Err(Error::new(Kind::Stale, "copy file").at(file.path.as_path()));
            }
            let orders = self.switch.orders();
            if !self.may_begin().await {
                self.until_idle(file).await;
                if file.claims.is_complete() {
                    break;
                }
                return Ok(Copied::Cut);
            }
            self.lead_all(file, whole).await;
            match self.recent_failure(file, whole) {
                Some(error) if error.kind() == Kind::NoSpace => {
                    file.claims.forget_failures();
                    self.room.ran_out(&error);
                    continue;
                }
                // What a reader was refused is no failure of the file: the next permit comes when there is a quota again.
                Some(error) if is_refused(&error) => {
                    file.claims.forget_failures();
                    continue;
                }
                Some(error) => return Err(error),
                None if self.room.is_short() => continue,
                None => {}
            }
            // A chunk that ended early while we waited for a permit has left something free behind us: that is begun first.
            if let Some(mut waiter) = file.claims.wait_while_running(whole) {
                tokio::select! {
                    () = waiter.signal() => {}
                    () = self.switch.ordered_since(orders) => {}
                }
            }
        }
        Ok(Copied::Whole)
    }

    /// Begins chunks as permits come, until nothing of the file is free or nothing may begin.
    async fn lead_all(self: &Arc<Self>, file: &Arc<LazyFile>, whole: ByteRange) {
        let mut rest = whole;
        // Looked at first: a permit may be long in coming.
        while file.claims.has_free(rest)
            && !self.room.is_short()
            && self.switch.is_running()
            && let Some(permit) = self.permit_unless_ending().await
            && self.switch.is_running()
            && let Some(led) = self.lead_with(file, rest, Priority::Hydration, permit)
        {
            rest = ByteRange::new(led.end, whole.end);
        }
    }

    /// A right to one request, unless an order ends what waits for it.
    pub(super) async fn permit_unless_ending(&self) -> Option<fetch::Slot> {
        tokio::select! {
            permit = self.background_permit() => permit,
            () = self.switch.until(SwitchState::is_ending) => None,
        }
    }

    /// Waits until there is some quota again. `false` = hydration is to end.
    async fn has_quota_again(&self) -> bool {
        let allowed = async {
            tokio::time::sleep(limits::LOOK).await; // what is left may be too little for what was refused
            self.limits.until_allowed().await;
        };
        tokio::select! {
            () = allowed => self.may_begin().await,
            () = self.switch.until(SwitchState::is_ending) => false,
        }
    }

    /// Waits until a name may be looked up, if the source has to be asked for it. `false` = hydration is to end.
    async fn may_look_up(self: &Arc<Self>, directory: &Node, name: &OsStr) -> bool {
        if matches!(self.try_lookup(directory.ino, name), Some(Ok(_))) {
            return true;
        }
        tokio::select! {
            () = self.limits.until_asked_again() => true,
            () = self.switch.until(SwitchState::is_ending) => false,
        }
    }

    /// Waits until the chunks that run now have ended.
    async fn until_idle(&self, file: &LazyFile) {
        for chunk in file.claims.running() {
            if let Some(mut waiter) = file.claims.wait_for(chunk.range)
                && !file.claims.running_in(chunk.range).is_empty()
            {
                waiter.signal().await;
            }
        }
    }

    /// Waits until a chunk may begin: while the destination has no room (the beat of the daemon looks), while the source is not asked,
    /// and while it is paused.
    /// `false` = hydration is to end.
    pub(super) async fn may_begin(&self) -> bool {
        loop {
            match self.switch.state() {
                SwitchState::Running if !self.room.is_short() && self.limits.is_asked() => {
                    return true;
                }
                SwitchState::Running => {
                    let ending = self.switch.until(SwitchState::is_ending);
                    drop(tokio::time::timeout(LOOK, ending).await);
                }
                SwitchState::Paused => {
                    self.switch.until(|state| state != SwitchState::Paused).await;
                }
                SwitchState::Draining | SwitchState::Stopped => return false,
            }
        }
    }

    fn recent_failure(&self, file: &LazyFile, range: ByteRange) -> Option<Error> {
        file.claims.failed(range, std::time::Instant::now())
    }
}
