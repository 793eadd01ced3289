//! The background copy: what it does, where it stands, how it ended.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::control::status::{JobPhase, PausedBy};
use crate::daemon::Outcome;
use crate::daemon::dissolve::{Step, cut_after};
use crate::daemon::settings::{AtEnd, Fill, InPlace};
use crate::daemon::start::{Examine, Started};
use crate::engine::hydrate::Hydration;
use crate::engine::stats::Stats;
use crate::engine::switch::SwitchState;
use crate::engine::{Engine, on_disk};
use crate::error::Result;
use crate::store::receipt::Copied;

/// One copy of one source into one destination.
#[derive(Debug)]
pub(super) struct Job {
    /// The same for the same source and destination, over restarts.
    pub(super) name: String,
    fill: Fill,
    phase: ArcSwap<JobPhase>,
    /// The phase in which everything was tried; it may change when something new comes.
    ended: watch::Sender<Option<JobPhase>>,
    /// Nothing more is copied after it was complete.
    is_final: bool,
    task: arc_swap::ArcSwapOption<AbortHandle>,
}

impl Job {
    /// Begins it: the whole tree if that was asked for, else only the comparison of what lies in the destination already.
    pub(super) fn start(started: &Started) -> Arc<Self> {
        let Started { engine, fill, examine, in_place, .. } = started;
        let dissolves = |in_place: &InPlace| matches!(in_place.at_end, AtEnd::Dissolve { .. });
        let (fill, examine) = (*fill, *examine);
        let first = match fill {
            Fill::OnDemand => JobPhase::Idle,
            Fill::Everything => JobPhase::Scanning,
        };
        let job = Arc::new(Self {
            name: engine.events().job().to_owned(),
            fill,
            phase: ArcSwap::from_pointee(first),
            ended: watch::Sender::new(None),
            is_final: in_place.as_ref().is_some_and(dissolves),
            task: arc_swap::ArcSwapOption::empty(),
        });
        engine.tell_phase(first.as_str());
        let task = tokio::spawn({
            let (job, engine) = (Arc::clone(&job), Arc::clone(engine));
            async move {
                let examined = async {
                    if examine == Examine::Later {
                        engine.check_existing_later().await;
                    }
                };
                match fill {
                    Fill::OnDemand => {
                        let adopted = async {
                            examined.await;
                            engine.adopt_candidates().await;
                        };
                        let ((), (), ()) =
                            tokio::join!(adopted, outgrow(&engine), obey_idle(&engine));
                    }
                    // What is found meanwhile is compared when its turn comes; what comes first finds its name taken and compares then.
                    Fill::Everything => drop(tokio::join!(examined, job.copy_all(&engine))),
                }
            }
        });
        job.task.store(Some(Arc::new(task.abort_handle())));
        job
    }

    /// The job of a copy without a mount, which does the work itself.
    pub(super) fn of_copy(engine: &Engine) -> Arc<Self> {
        Arc::new(Self {
            name: engine.events().job().to_owned(),
            fill: Fill::Everything,
            phase: ArcSwap::from_pointee(JobPhase::Scanning),
            ended: watch::Sender::new(None),
            is_final: false,
            task: arc_swap::ArcSwapOption::empty(),
        })
    }

    /// Where it stands from now on, for status and events.
    pub(super) fn set_phase(&self, engine: &Engine, phase: JobPhase) {
        self.phase.store(Arc::new(phase));
        engine.tell_phase(phase.as_str());
    }

    /// Waits until everything was tried: `Complete`, or `Failed`.
    ///
    /// # Cancel safety
    /// It can be waited for again.
    pub(super) async fn ended(&self) -> JobPhase {
        let mut ended = self.ended.subscribe();
        loop {
            let now = *ended.borrow_and_update();
            if let Some(phase) = now {
                return phase;
            }
            if ended.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The whole tree, and then, as long as it is mounted, what comes later and what failed.
    async fn copy_all(&self, engine: &Arc<Engine>) {
        let mut hydration = Hydration::new(engine);
        let (mut work, mut has_looked_again) = (Work::Tree, false);
        loop {
            until_ordered_to_go_on(engine).await;
            let copied = match work {
                Work::Tree => hydration.copy_tree().await,
                Work::News => hydration.copy_news().await,
                Work::Failed => hydration.retry().await,
            };
            let may_end = !hydration.is_cut() && !engine.has_news();
            if may_end && self.is_final && !std::mem::replace(&mut has_looked_again, true) {
                hydration.look_again().await;
            }
            work = if hydration.is_cut() {
                Work::Tree
            } else if engine.has_news() {
                Work::News
            } else {
                self.end(engine, copied).await;
                let phase = **self.phase.load();
                self.ended.send_replace(Some(phase));
                if self.is_final && phase == JobPhase::Complete {
                    return;
                }
                let work = next_work(engine).await;
                self.ended.send_replace(None);
                mark_incomplete(engine).await;
                work
            };
            self.set_phase(engine, JobPhase::Hydrating);
        }
    }

    async fn end(&self, engine: &Arc<Engine>, copied: Result<u64>) {
        let finished = match copied {
            Ok(0) if engine.stats().entries_failed() == 0 => self.finish(engine).await.map(|()| 0),
            other => other,
        };
        let failed = engine.stats().entries_failed();
        match finished {
            Ok(0) if failed == 0 => {
                self.set_phase(engine, JobPhase::Complete);
                tracing::info!(files = engine.stats().files_published(), "complete");
            }
            Ok(now) => {
                self.set_phase(engine, JobPhase::Failed);
                tracing::warn!(failed = failed.max(now), "ended; not everything could be copied");
            }
            Err(error) => {
                self.set_phase(engine, JobPhase::Failed);
                tracing::error!(%error, "copy ended");
            }
        }
    }

    /// The last steps: DIR itself, then what it can show.
    pub(super) async fn finish(&self, engine: &Arc<Engine>) -> Result<()> {
        let destination = engine.destination();
        on_disk("remove marker", move || destination.remove_marker()).await?;
        cut_after(Step::Unmarked);
        engine.finish_root().await?;
        cut_after(Step::RootFinished);
        let (destination, job) = (engine.destination(), self.name.clone());
        let skipped = engine.stats().files_skipped.get();
        on_disk("write receipt", move || {
            destination.write_receipt(&Copied { job, ended: SystemTime::now(), skipped })
        })
        .await?;
        cut_after(Step::Receipted);
        Ok(())
    }

    /// Where it stands; a pause is told by [`paused_by`].
    pub(super) fn phase(&self, is_scanned: bool, switch: SwitchState) -> JobPhase {
        match (**self.phase.load(), switch) {
            (JobPhase::Scanning | JobPhase::Hydrating, SwitchState::Draining) => JobPhase::Draining,
            (JobPhase::Scanning | JobPhase::Hydrating, SwitchState::Stopped) => JobPhase::Stopped,
            (JobPhase::Scanning, _) if is_scanned => JobPhase::Hydrating,
            (phase, _) => phase,
        }
    }

    /// Ends the background task; what landed stays.
    pub(super) fn stop(&self) {
        if let Some(task) = self.task.swap(None) {
            task.abort();
        }
    }

    /// What this life comes to.
    pub(super) fn outcome(&self, stats: &Stats) -> Outcome {
        let phase = **self.phase.load();
        if phase == JobPhase::Failed || stats.entries_failed() > 0 {
            return Outcome::SomeFailed;
        }
        match self.fill {
            Fill::Everything if phase != JobPhase::Complete => Outcome::Stopped,
            _ => Outcome::Clean,
        }
    }
}

/// A copy that was complete at the start is marked when there is news: nobody copies it.
async fn outgrow(engine: &Arc<Engine>) {
    engine.news().await;
    tracing::info!("the source has something new: the copy is complete no more");
    mark_incomplete(engine).await;
}

async fn mark_incomplete(engine: &Arc<Engine>) {
    let destination = engine.destination();
    if let Err(error) = on_disk("write marker", move || destination.mark_incomplete()).await {
        tracing::error!(%error, "the copy is not marked as incomplete");
    }
}

/// What a run copies.
#[derive(Debug, Clone, Copy)]
enum Work {
    Tree,
    News,
    Failed,
}

/// Waits while an order holds that ends what runs. What was to be finished is, when this is called.
async fn until_ordered_to_go_on(engine: &Engine) {
    let switch = engine.switch();
    while switch.state().is_ending() {
        switch.drained();
        switch.until(|state| state != SwitchState::Stopped).await;
    }
}

/// Waits for something to do: news of the source, or the order to go on after something failed.
async fn next_work(engine: &Arc<Engine>) -> Work {
    let switch = engine.switch();
    loop {
        let orders = switch.orders();
        switch.drained();
        tokio::select! {
            () = engine.news() => return Work::News,
            () = switch.ordered_since(orders) => {}
        }
        if switch.is_running() && engine.stats().entries_failed() > 0 {
            return Work::Failed;
        }
    }
}

/// Without a copy in the background there is nothing to finish.
async fn obey_idle(engine: &Engine) {
    loop {
        engine.switch().until(|state| state == SwitchState::Draining).await;
        engine.switch().drained();
    }
}

/// What holds a copy back that is not finished.
pub(super) fn paused_by(engine: &Engine, phase: JobPhase) -> Option<PausedBy> {
    match phase {
        JobPhase::Scanning | JobPhase::Hydrating => {}
        _ => return None,
    }
    if engine.switch().state() == SwitchState::Paused {
        Some(PausedBy::User)
    } else if engine.is_source_away()
        || engine.limits().source_failing().is_some()
        || engine.limits().is_resting()
    {
        Some(PausedBy::Source)
    } else if engine.is_short_of_room() {
        Some(PausedBy::Space)
    } else {
        engine.limits().used_up().map(|_| PausedBy::Limit)
    }
}
