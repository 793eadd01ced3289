//! The background copy: what it does, where it stands, how it ended.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::task::AbortHandle;

use crate::control::status::JobPhase;
use crate::daemon::Outcome;
use crate::daemon::settings::Fill;
use crate::daemon::start::{Examine, Place, Started, write_marker};
use crate::engine::hydrate::Hydration;
use crate::engine::stats::Stats;
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
                    }
                    // What is found meanwhile is compared when its turn comes; what comes first finds its name taken and compares then.
                    Fill::Everything => drop(tokio::join!(examined, job.copy_all(&engine, &place))),
                }
            }
        });
        job.task.store(Some(Arc::new(task.abort_handle())));
        job
    }

    /// The job of a copy without a mount, which does the work itself.
    pub(super) fn of_copy(place: &Place) -> Arc<Self> {
        Arc::new(Self {
            name: name(place),
            fill: Fill::Everything,
            phase: ArcSwap::from_pointee(JobPhase::Scanning),
            task: arc_swap::ArcSwapOption::empty(),
        })
    }

    /// Where that stands.
    pub(super) fn set_phase(&self, phase: JobPhase) {
        self.phase.store(Arc::new(phase));
    }

    /// The whole tree, and then, as long as it is mounted, what comes later.
    async fn copy_all(&self, engine: &Arc<Engine>, place: &Place) {
        let mut hydration = Hydration::new(engine);
        let mut copied = hydration.copy_tree().await;
        loop {
            if !engine.has_news() {
                self.end(engine, copied).await;
                engine.news().await;
            }
            self.phase.store(Arc::new(JobPhase::Hydrating));
            if let Err(error) = write_marker(&engine.destination, place).await {
                tracing::warn!(%error, "the copy is not marked as incomplete");
            }
            copied = hydration.copy_news().await;
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
    pub(super) async fn finish(&self, engine: &Arc<Engine>) -> Result<()> {
        engine.finish_root().await?;
        let (destination, job) = (engine.destination(), self.name.clone());
        on_disk("write receipt", move || {
            destination.write_receipt(&Copied { job, ended: SystemTime::now() })
        })
        .await
    }

    /// Where it stands.
    pub(super) fn phase(&self, is_scanned: bool) -> JobPhase {
        match **self.phase.load() {
            JobPhase::Scanning if is_scanned => JobPhase::Hydrating,
            phase => phase,
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

fn name(place: &Place) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(place.source.as_bytes());
    hasher.update(b"\0");
    hasher.update(place.destination.as_os_str().as_encoded_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}
