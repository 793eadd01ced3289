//! Once a second: rates, free space for statfs, and operations that have waited long.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::JoinHandle;

use crate::daemon::report::Reporter;
use crate::engine::Engine;
use crate::vfs::front::StatfsAnswer;

const BEAT: Duration = Duration::from_secs(1);
/// An operation that waits longer is logged once.
const STUCK_MS: u64 = 10_000;

/// Starts watching, until the task is aborted.
pub(super) fn start(
    reporter: &Arc<Reporter>,
    statfs: &Arc<ArcSwap<StatfsAnswer>>,
) -> JoinHandle<()> {
    let (reporter, statfs) = (Arc::clone(reporter), Arc::clone(statfs));
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(BEAT);
        loop {
            beat.tick().await;
            let engine = reporter.engine();
            engine.sample_rate();
            warn_of_stuck(&reporter);
            engine.checkpoint_in_background();
            engine.tidy_in_background();
            match statfs_answer(engine).await {
                Some(answer) => statfs.store(Arc::new(answer)),
                None => tracing::debug!("free space unknown"),
            }
        }
    })
}

fn warn_of_stuck(reporter: &Reporter) {
    let engine = reporter.engine();
    let before = engine.now_ms().saturating_sub(STUCK_MS);
    for noted in engine.in_flight().newly_stuck(before) {
        reporter.log_waiting(&engine.explain(noted), "waits long");
    }
}

/// Size of the source where known, else of what is known of it; free = what the destination can take. Asked here, so that statfs
/// itself is answered from memory.
async fn statfs_answer(engine: &Arc<Engine>) -> Option<StatfsAnswer> {
    let space = tokio::time::timeout(BEAT, engine.look_at_space()).await.ok()?.ok()?;
    let source = tokio::time::timeout(BEAT, engine.source_capacity()).await.ok().flatten();
    let known = engine.stats().bytes_known.get();
    Some(StatfsAnswer {
        total_bytes: source.map_or(known, |source| source.total_bytes).max(space.free_bytes),
        free_bytes: space.free_bytes,
        total_inodes: source.map_or(space.total_inodes, |source| source.total_inodes),
        free_inodes: space.free_inodes,
    })
}
