//! The composition root: start checks, builds everything, signals, order of shutdown.
//!
//! | file | what |
//! |---|---|
//! | [`settings`], [`readiness`] | what it is told; whom it tells that it is ready |
//! | [`copy`] | a copy without a mount |
//! | `reach` | the source, or what is known of it while it is away |
//! | `start` | checks before the start, in the order in which they harm nobody |
//! | `job` | the background copy and its phase |
//! | `clone` | what is different where the mountpoint is the destination |
//! | `dissolve` | a copy in place becomes the plain directory that it covers |
//! | `report` | status and stuck reports; what the control socket asks |
//! | `orders` | the control socket's orders for hydration, limits and paths; events |
//! | `signals` | what SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for |
//! | [`units`] | sizes, times and rates as people write them |
//! | [`verify`] | the copy proven again, without or beside a daemon |
//! | [`manifest`] | a list of a source, to be a source itself |
//! | `watch` | once a second: rates, free space, operations that hang |

mod clone;
pub mod copy;
mod dissolve;
mod job;
pub mod manifest;
mod orders;
mod reach;
pub mod readiness;
mod report;
pub mod settings;
pub(crate) mod signals;
mod start;
pub mod units;
pub mod verify;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::core::path::escape;
use crate::daemon::dissolve::Dissolving;
use crate::daemon::job::Job;
pub use crate::daemon::reach::display_name;
use crate::daemon::readiness::Readiness;
use crate::daemon::report::Reporter;
use crate::daemon::settings::{AtEnd, MountSettings};
use crate::daemon::signals::{Order, Signals};
use crate::daemon::start::Started;
use crate::engine::Engine;
use crate::engine::events::{Event, Step};
use crate::error::{Error, Result};
use crate::vfs::mount::{UnmountMode, Unmounted, unmount_ours};

/// How long open handles are served after the mount was taken out of the tree.
const LINGER: Duration = Duration::from_secs(10);
/// How long the last checkpoint may take.
const SAVE_DEADLINE: Duration = Duration::from_secs(20);
/// How long control connections and tasks get to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a daemon's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing failed.
    Clean,
    /// Some files could not be copied, or conflict with what was there.
    SomeFailed,
    /// A file was not what its proof says.
    VerificationFailed,
    /// Ended before a copy that was asked for was complete.
    Stopped,
}

impl Outcome {
    /// The word in events and history.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Clean => "clean",
            Outcome::SomeFailed => "some-failed",
            Outcome::VerificationFailed => "verification-failed",
            Outcome::Stopped => "stopped",
        }
    }
}

/// Mounts, serves until it is unmounted, saves. Blocks the caller for that long; makes its own threads.
///
/// # Errors
/// Whatever keeps it from starting, before `readiness` is told; nothing is left mounted then.
pub fn run(settings: MountSettings, readiness: &mut dyn Readiness) -> Result<Outcome> {
    start::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("worker")
        .build()
        .map_err(|error| Error::io("start runtime", error))?;
    let (started, outcome) = runtime.block_on(async {
        let (mut started, signals) = start::start(settings).await?;
        let outcome = live(&mut started, signals, readiness).await;
        Ok::<_, Error>((started, outcome))
    })?;
    // The order matters: nothing more for the kernel, then the tasks end, and the lock goes last.
    let Started { session, destination, engine, .. } = started;
    engine.end_notices();
    if !engine.events().flush(PATIENCE) {
        tracing::warn!("the last events are not written");
    }
    drop(engine);
    runtime.shutdown_timeout(PATIENCE);
    session.join(PATIENCE);
    drop(destination);
    tracing::info!(?outcome, "ended");
    outcome
}

/// From ready to unmounted.
async fn live(
    started: &mut Started,
    mut signals: Signals,
    readiness: &mut dyn Readiness,
) -> Result<Outcome> {
    let reporter = Arc::new(Reporter::new(started));
    let job = Job::start(started);
    reporter.set_job(Arc::clone(&job));
    let watch = watch::start(&reporter, &started.statfs);
    let control = match report::serve(&reporter, &started.place) {
        Ok(control) => control,
        Err(error) => {
            watch.abort();
            job.stop();
            take_away(started).await;
            return Err(error);
        }
    };
    let mut control = Some(control);
    // Before anybody who waited for the start can ask for it.
    started.engine.begin_life().await;
    tell_session(started, Step::Begun, None);
    let told = {
        // Who shows it may live longer than the engine, which must not wait for that.
        let shown = Arc::downgrade(&reporter);
        let line = started.first_line();
        let status = move || shown.upgrade().map(|reporter| reporter.status_now());
        readiness.ready(&line, &started.warnings, Box::new(status))
    };
    tracing::info!(session = reporter.session(), source = %started.place.source, mountpoint = %started.place.mountpoint.display(), "mounted");
    let end = match told {
        Ok(()) => until_end(started, &mut signals, &reporter, &job, readiness).await,
        Err(error) => {
            tracing::warn!(%error, "nobody waits for the start any more");
            take_away(started).await;
            End::Unmounted
        }
    };
    watch.abort();
    job.stop();
    if tokio::time::timeout(SAVE_DEADLINE, started.engine.save()).await.is_err() {
        tracing::error!("the disk hangs; the next start recovers what was recorded");
    }
    let outcome = job.outcome(started.engine.stats());
    started.engine.end_life(outcome.as_str()).await;
    tell_session(started, Step::Ended, Some(outcome));
    if let End::Complete { linger } = end {
        let dissolving = Dissolving::new(started, &mut signals, &reporter, readiness, &mut control);
        dissolving.run(linger, outcome).await;
    }
    if let Some(control) = control {
        control.shutdown(PATIENCE).await;
    }
    Ok(outcome)
}

/// Tells one end of this life.
fn tell_session(started: &Started, what: Step, outcome: Option<Outcome>) {
    let place = &started.place;
    let shown = |path: &Path| escape(path.as_os_str());
    started.engine.events().tell(Event::Session {
        what,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        source: place.source.clone(),
        mountpoint: Some(shown(&place.mountpoint)),
        dest: shown(&place.destination),
        outcome: outcome.map(|outcome| outcome.as_str().into()),
    });
}

/// Why a daemon stops serving everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The mount is gone, or was taken from those who use it.
    Unmounted,
    /// A copy in place is complete; the mount is still there.
    Complete { linger: Duration },
}

/// Serves until somebody unmounted, a signal made us do it, or a copy in place is complete.
async fn until_end(
    started: &mut Started,
    signals: &mut Signals,
    reporter: &Reporter,
    job: &Job,
    readiness: &mut dyn Readiness,
) -> End {
    let mut is_told = started.in_place.is_none();
    let mut is_limit_told = is_told;
    let engine = Arc::clone(&started.engine);
    loop {
        tokio::select! {
            () = started.session.ended() => return End::Unmounted,
            () = reporter.detached() => {
                tracing::info!("detached by force");
                return End::Unmounted;
            }
            phase = job.ended(), if !is_told => match clone::at_end(started, phase) {
                Some(AtEnd::Dissolve { linger }) => return End::Complete { linger },
                _ => {
                    let (line, outcome) = clone::stays(started, phase);
                    readiness.settled(outcome, &line, &[]);
                    is_told = true;
                }
            },
            limit = used_up(&engine), if !is_limit_told => {
                // Nobody shall wait for what may never come. With a new quota it still goes on, to its end.
                readiness.settled(Outcome::Stopped, &clone::waits(started, &limit), &[]);
                is_limit_told = true;
            }
            order = signals.next() => match order {
                Order::Explain => reporter.log_everything_waiting(),
                Order::End => break,
            },
        }
    }
    tracing::info!("told to end by a signal");
    tokio::select! {
        () = take_away(started) => {}
        () = signals.end() => tracing::warn!("told twice: open handles lose the daemon"),
    }
    End::Unmounted
}

/// Waits until a quota keeps the background from going on; says which.
async fn used_up(engine: &Engine) -> String {
    loop {
        tokio::time::sleep(PATIENCE).await;
        if engine.limits().keeps_waiting()
            && engine.active_chunks().is_empty()
            && let Some(limit) = engine.limits().used_up()
        {
            return limit;
        }
    }
}

/// Takes the mount out of the tree and serves what is still open for a while.
async fn take_away(started: &mut Started) {
    let (mountpoint, number) = (started.place.mountpoint.clone(), started.number);
    let gone = tokio::task::spawn_blocking(move || {
        match unmount_ours(&mountpoint, number, UnmountMode::Normal) {
            Ok(gone) => Ok(gone),
            Err(error) => {
                tracing::info!(%error, "still in use; taken out of the tree, open files are served on");
                unmount_ours(&mountpoint, number, UnmountMode::Detach)
            }
        }
    })
    .await;
    match gone {
        Ok(Ok(Unmounted::Done | Unmounted::AlreadyGone)) => {}
        Ok(Err(error)) => tracing::error!(%error, "not unmounted"),
        Err(died) => tracing::error!(%died, "not unmounted"),
    }
    if tokio::time::timeout(LINGER, started.session.ended()).await.is_err() {
        tracing::warn!("files are still open; they lose the daemon");
    }
}
