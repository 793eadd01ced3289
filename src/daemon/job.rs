//! The background copy: what it does, where it stands, how it ended.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::task::AbortHandle;

use crate::control::status::{JobPhase, PausedBy};
use crate::daemon::Outcome;
use crate::daemon::settings::Fill;
use crate::daemon::start::{Examine, Place, Started, write_marker};
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
    task: arc_swap::ArcSwapOption<AbortHandle>,
}

impl Job {
    /// Begins it: the whole tree if that was asked for, else only the comparison of what lies in the destination already.
    pub(super) fn start(started: &Started) -> Arc<Self> {
        let Started { engine, place, fill, examine, .. } = started;
        let (fill, examine) = (*fill, *examine);
        let first = match fill {
            Fill::OnDemand => JobPhase::Idle,
            Fill::Everything => JobPhase::Scanning,
        };
        let job = Arc::new(Self {
            name: name(place),
            fill,
            phase: ArcSwap::from_pointee(first),
            task: arc_swap::ArcSwapOption::empty(),
        });
        let task = tokio::spawn({
            let (job, engine) = (Arc::clone(&job), Arc::clone(engine));
            let place = place.clone();
            async move {
                let examined = async {
                    if examine == Examine::Later {
                        engine.check_existing_later().await;
                    }
                };
                match fill {
                    Fill::OnDemand => {
                        examined.await;
                        engine.adopt_candidates().await;
                        obey_idle(&engine).await;
                    }
                    // What is found meanwhile is compared when its turn comes; what comes first finds its name taken and compares then.
                    Fill::Everything => drop(tokio::join!(examined, job.copy_all(&engine, &place))),
                }
            }
        });
        job.task.store(Some(Arc::new(task.abort_handle())));
        job
    }

    /// The whole tree, and then, as long as it is mounted, what comes later and what failed.
    async fn copy_all(&self, engine: &Arc<Engine>, place: &Place) {
        let mut hydration = Hydration::new(engine);
        let mut work = Work::Tree;
        loop {
            until_ordered_to_go_on(engine).await;
            let copied = match work {
                Work::Tree => hydration.copy_tree().await,
                Work::News => hydration.copy_news().await,
                Work::Failed => hydration.retry().await,
            };
            work = if hydration.is_cut() {
                Work::Tree
            } else if engine.has_news() {
                Work::News
            } else {
                self.end(engine, copied).await;
                let work = next_work(engine).await;
                if let Err(error) = write_marker(&engine.destination, place).await {
                    tracing::warn!(%error, "the copy is not marked as incomplete");
                }
                work
            };
            self.phase.store(Arc::new(JobPhase::Hydrating));
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
                self.phase.store(Arc::new(JobPhase::Complete));
                tracing::info!(files = engine.stats().files_published(), "complete");
            }
            Ok(now) => {
                self.phase.store(Arc::new(JobPhase::Failed));
                tracing::warn!(failed = failed.max(now), "ended; not everything could be copied");
            }
            Err(error) => {
                self.phase.store(Arc::new(JobPhase::Failed));
                tracing::error!(%error, "copy ended");
            }
        }
    }

    /// The last steps: DIR itself, then what it can show.
    async fn finish(&self, engine: &Arc<Engine>) -> Result<()> {
        engine.finish_root().await?;
        let (destination, job) = (engine.destination(), self.name.clone());
        let skipped = engine.stats().files_skipped.get();
        on_disk("write receipt", move || {
            destination.write_receipt(&Copied { job, ended: SystemTime::now(), skipped })
        })
        .await
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
    } else if engine.is_source_away() {
        Some(PausedBy::Source)
    } else {
        engine.is_short_of_room().then_some(PausedBy::Space)
    }
}

fn name(place: &Place) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(place.source.as_bytes());
    hasher.update(b"\0");
    hasher.update(place.destination.as_os_str().as_encoded_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}
