//! `copy`: the engine without a mount. It runs until everything is copied, and a second time brings what changed since.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::status::JobPhase;
use crate::core::path::RelPath;
use crate::daemon::job::Job;
use crate::daemon::reach::{self, Reached, Way};
use crate::daemon::readiness::Readiness;
use crate::daemon::report::{self, Reporter};
use crate::daemon::settings::{CopySettings, Existing};
use crate::daemon::signals::{Order, Signals};
use crate::daemon::start::{self, Place};
use crate::daemon::{Outcome, PATIENCE, SAVE_DEADLINE};
use crate::engine::bulk::remote::RemotePass;
use crate::engine::bulk::{Bulk, BulkSettings, Counts, Ended};
use crate::engine::hydrate::Hydration;
use crate::engine::settings::{EngineSettings, OnChange};
use crate::engine::{Engine, on_disk};
use crate::error::{Error, Kind, Result};
use crate::store::Destination;
use crate::sync::{AtomicBool, Ordering};
use crate::vfs::mountpoint;

const BEAT: Duration = Duration::from_secs(1);
/// How long what runs may take to end after a signal.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// What a copy came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Nothing was done, only looked at.
    pub is_dry: bool,
    /// Files whose bytes travelled, and their bytes.
    pub copied: u64,
    /// As above.
    pub copied_bytes: u64,
    /// Files that were there already.
    pub unchanged: u64,
    /// Files that only got another name.
    pub renamed: u64,
    /// More names of files.
    pub linked: u64,
    /// Symlinks, pipes, sockets and devices.
    pub specials: u64,
    /// Entries that only got other metadata.
    pub renewed: u64,
    /// Directories listed.
    pub directories: u64,
    /// Entries taken out of DIR.
    pub deleted: u64,
    /// Entries that are gone at the source and are still in DIR.
    pub gone: u64,
    /// Of the entries to delete those that stay, because somebody changed them in DIR.
    pub kept: u64,
    /// Entries that the filter leaves out.
    pub left_out: u64,
    /// Requests for bytes that the source was asked, or would be.
    pub requests: u64,
    /// Entries that could not be copied.
    pub failed: u64,
    /// Pieces of metadata that DIR cannot hold.
    pub warnings: u64,
    /// Seconds.
    pub elapsed_s: f64,
    /// The limit that ended it, in words.
    pub stopped_by: Option<String>,
    /// Paths that failed, with the reason.
    pub errors: Vec<(String, String)>,
}

/// A copy that is ready to begin.
struct Copy {
    place: Place,
    engine: Arc<Engine>,
    destination: Arc<Destination>,
    job: Arc<Job>,
    reporter: Arc<Reporter>,
    settings: CopySettings,
    /// An earlier life began it.
    is_begun: bool,
    /// An earlier pass was complete, and nothing was published since.
    is_delta: bool,
    started: Instant,
    /// Removed at the end.
    _scratch: Option<tempfile::TempDir>,
}

/// Copies until it is done, or told to end. Blocks the caller for that long; makes its own threads.
///
/// # Errors
/// Whatever keeps it from starting, or from going on at all.
pub fn copy(settings: CopySettings, shown: &mut dyn Readiness) -> Result<(Outcome, Summary)> {
    start::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("worker")
        .build()
        .map_err(|error| Error::io("start runtime", error))?;
    let ended = runtime.block_on(async {
        let signals = Signals::listen()?;
        let copy = Copy::start(settings).await?;
        let ended = copy.live(signals, shown).await;
        tracing::info!(outcome = ?ended.as_ref().map(|(outcome, _)| outcome), "ended");
        ended
    });
    runtime.shutdown_timeout(PATIENCE);
    ended
}

impl Copy {
    async fn start(settings: CopySettings) -> Result<Self> {
        let started = Instant::now();
        match settings.is_dry {
            true => mountpoint::check_not_dead(&settings.destination)?,
            // As a mount does that goes on where a copy in place was killed.
            false => drop(mountpoint::clean_stale(&settings.destination)?),
        }
        let destination = start::canonical_destination(&settings.destination)?;
        mountpoint::check_not_covered(&destination)?;
        let is_begun = reach::is_begun(&destination);
        let local = reach::local_place(&settings.source, false)?;
        check_apart(local.as_deref(), &destination)?;
        check_quotas(local.as_deref(), &settings)?;
        let place =
            Place { source: String::new(), mountpoint: std::path::PathBuf::new(), destination };
        let way = Way::new(&settings.source, settings.cross_mounts)
            .reading_from(settings.read_from.as_deref());
        let source = way.open(is_begun).await?;
        let (destination, scratch) = open_destination(&place, &settings).await?;
        // A source that is away, or suddenly empty, is no reason to go on without it.
        let source = match way.reach(Ok(source), destination.catalog()).await? {
            Reached { away: Some(why), .. } => return Err(why),
            Reached { source, away: None } => source,
        };
        let place = Place { source: source.display_name().to_owned(), ..place };
        let engine_settings = EngineSettings {
            // Listed anew by this pass, and then not again.
            refresh: None,
            reserve: settings.publish.reserve,
            existing: start::existing_policy(settings.publish.existing),
            on_change: OnChange::Follow,
            hydrate: settings.hydrate.clone(),
            limits: settings.limits,
            has_readers: false,
            ..EngineSettings::default()
        };
        let (engine, _notices) =
            Engine::open(source, Arc::clone(&destination), engine_settings).await?;
        let is_kept = matches!(settings.publish.existing, Existing::Adopt | Existing::AdoptFast);
        if !(settings.is_dry || is_kept && engine.is_examined()?) {
            engine.check_existing().await?;
        }
        engine.look_at_space().await?;
        // Asked for by its user, now.
        if !settings.is_dry && !engine.switch().is_running() {
            engine.switch().resume().await?;
        }
        engine.until_recorded().await;
        let job = Job::of_copy(&engine);
        let reporter = Arc::new(Reporter::of(&engine, &place, None));
        reporter.set_job(Arc::clone(&job));
        let is_delta = destination.has_receipt();
        set_marker(&destination, &place, &settings);
        Ok(Self {
            place,
            engine,
            destination,
            job,
            reporter,
            settings,
            is_begun,
            is_delta,
            started,
            _scratch: scratch,
        })
    }

    async fn live(
        &self,
        mut signals: Signals,
        shown: &mut dyn Readiness,
    ) -> Result<(Outcome, Summary)> {
        let control = match self.settings.is_dry {
            true => None,
            false => Some(report::serve(&self.reporter, &self.place)?),
        };
        let beat = tokio::spawn(beat(Arc::clone(&self.engine)));
        let told = Arc::downgrade(&self.reporter);
        let status = move || told.upgrade().map(|reporter| reporter.status_now());
        let line = self.first_line();
        tracing::info!(session = self.reporter.session(), source = %self.place.source, dest = %self.place.destination.display(), "copy");
        if !self.settings.is_dry {
            start::sweep_trees(&self.destination);
        }
        let ended = match shown.ready(&line, &[], Box::new(status)) {
            Ok(()) => self.run(&mut signals).await,
            Err(error) => Err(error),
        };
        beat.abort();
        if !self.settings.is_dry
            && tokio::time::timeout(SAVE_DEADLINE, self.engine.save()).await.is_err()
        {
            tracing::error!("the disk hangs; the next start recovers what was recorded");
        }
        if let Some(control) = control {
            control.shutdown(PATIENCE).await;
        }
        ended
    }

    fn first_line(&self) -> String {
        let Place { source, destination, .. } = &self.place;
        let what = match (self.settings.is_dry, self.is_delta) {
            (true, _) => "plan of copying",
            (false, true) => "looking for what changed in",
            (false, false) => "copying",
        };
        format!("{what} {source} to {}", destination.display())
    }

    async fn run(&self, signals: &mut Signals) -> Result<(Outcome, Summary)> {
        let begin = self.begin();
        let settings = BulkSettings {
            jobs: self.settings.hydrate.max_jobs,
            delete: self.settings.delete,
            is_dry: self.settings.is_dry,
        };
        let bulk = Bulk::new(&self.engine, settings.clone(), begin);
        let (counts, is_stopped, is_changed) = match bulk {
            Some(bulk) => self.run_bulk(bulk, signals).await?,
            None => self.run_remote(settings, signals).await?,
        };
        let mut summary = self.summary(&counts);
        summary.stopped_by = self.engine.limits().used_up().filter(|_| is_stopped);
        let failed = self.engine.stats().entries_failed();
        let outcome = if self.settings.is_dry {
            if failed > 0 { Outcome::SomeFailed } else { Outcome::Clean }
        } else if is_stopped {
            self.job.set_phase(&self.engine, JobPhase::Stopped);
            Outcome::Stopped
        } else if failed > 0 {
            self.job.set_phase(&self.engine, JobPhase::Failed);
            Outcome::SomeFailed
        } else {
            if is_changed || !self.destination.has_receipt() {
                self.job.finish(&self.engine).await?;
            }
            self.job.set_phase(&self.engine, JobPhase::Complete);
            Outcome::Clean
        };
        Ok((outcome, Summary { elapsed_s: self.started.elapsed().as_secs_f64(), ..summary }))
    }

    /// Plain threads; what they leave is copied by the engine.
    async fn run_bulk(
        &self,
        bulk: Bulk,
        signals: &mut Signals,
    ) -> Result<(Arc<Counts>, bool, bool)> {
        let counts = bulk.counts();
        let bulk = Arc::new(bulk);
        let stop = bulk.stop();
        let running = tokio::task::spawn_blocking({
            let (bulk, is_delta) = (Arc::clone(&bulk), self.is_delta);
            move || bulk.run(is_delta)
        });
        let ended = match self.until(running, signals, &stop).await {
            // Told to end before it had begun.
            Err(_cut) if stop.load(Ordering::Relaxed) => {
                Ended { left: Vec::new(), is_stopped: true }
            }
            ended => ended?,
        };
        let Ended { left, mut is_stopped } = ended;
        let mut is_changed = bulk.has_begun();
        if !left.is_empty() && !is_stopped && !self.settings.is_dry {
            is_changed = true;
            is_stopped = self.copy_left(left, &counts, signals, &stop).await?;
        }
        Ok((counts, is_stopped || stop.load(Ordering::Relaxed), is_changed))
    }

    /// What plain threads leave. Says whether it was stopped before it was through.
    async fn copy_left(
        &self,
        left: Vec<RelPath>,
        counts: &Counts,
        signals: &mut Signals,
        stop: &AtomicBool,
    ) -> Result<bool> {
        self.destination.mark_incomplete()?;
        let stats = self.engine.stats();
        let (published, fetched) = (stats.files_published(), stats.bytes_fetched.get());
        let engine = Arc::clone(&self.engine);
        let working = tokio::spawn(async move {
            let mut hydration = Hydration::new(&engine);
            hydration.copy_paths(left).await;
            Ok(hydration.is_cut())
        });
        let ended = self.until(working, signals, stop).await;
        counts.copied.add(stats.files_published().saturating_sub(published));
        counts.copied_bytes.add(stats.bytes_fetched.get().saturating_sub(fetched));
        match ended {
            Err(_cut) if stop.load(Ordering::Relaxed) => Ok(true),
            ended => ended,
        }
    }

    /// File by file, as in a mount; what is gone or only renamed is looked for before.
    async fn run_remote(
        &self,
        settings: BulkSettings,
        signals: &mut Signals,
    ) -> Result<(Arc<Counts>, bool, bool)> {
        let (counts, stop) = (Arc::<Counts>::default(), AtomicBool::new(false));
        let is_dry = settings.is_dry;
        let is_looked_at = self.is_begun || is_dry || settings.delete.is_some();
        let mut pass = RemotePass::new(&self.engine, settings, &counts);
        if is_looked_at {
            let looking = tokio::spawn(async move {
                pass.look().await?;
                pass.rename().await?;
                Ok(pass)
            });
            pass = match self.until(looking, signals, &stop).await {
                Err(_cut) if stop.load(Ordering::Relaxed) => return Ok((counts, true, false)),
                looked => looked?,
            };
        }
        let mut is_stopped = false;
        if !is_dry {
            is_stopped = self.copy_tree(signals, &stop).await?;
            let stats = self.engine.stats();
            let found = stats.files_restored.get() + counts.renamed.get();
            counts.unchanged.add(stats.files_restored.get());
            counts.copied.add(stats.files_published().saturating_sub(found));
            counts.copied_bytes.add(stats.bytes_fetched.get());
        }
        if !is_stopped {
            pass.mirror().await?;
        }
        // What was published or deleted took the receipt away.
        Ok((counts, is_stopped, false))
    }

    /// Says whether it was stopped before it was through.
    async fn copy_tree(&self, signals: &mut Signals, stop: &AtomicBool) -> Result<bool> {
        if !self.is_delta {
            self.destination.mark_incomplete()?;
        }
        let engine = Arc::clone(&self.engine);
        let working = tokio::spawn(async move {
            let mut hydration = Hydration::new(&engine);
            hydration.copy_tree().await?;
            Ok(hydration.is_cut())
        });
        match self.until(working, signals, stop).await {
            Err(_cut) if stop.load(Ordering::Relaxed) => Ok(true),
            ended => Ok(ended? || stop.load(Ordering::Relaxed)),
        }
    }

    /// Waits for `running`; a signal makes it end soon, and so does a quota that is used up.
    async fn until<T>(
        &self,
        mut running: tokio::task::JoinHandle<Result<T>>,
        signals: &mut Signals,
        stop: &AtomicBool,
    ) -> Result<T> {
        let died = |died| Error::new(Kind::Io, "copy").caused_by(died);
        let mut look = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                _ = look.tick() => if self.is_at_its_limit() { break },
                ended = &mut running => return ended.map_err(died)?,
                order = signals.next() => match order {
                    Order::Explain => self.reporter.log_everything_waiting(),
                    Order::End => break,
                },
            }
        }
        tracing::info!("ends before it is done");
        stop.store(true, Ordering::Relaxed);
        self.job.set_phase(&self.engine, JobPhase::Draining);
        let abort = running.abort_handle();
        tokio::time::timeout(STOP_DEADLINE, async {
            abort.abort(); // threads end by themselves, tasks at their next wait
            running.await.map_err(died)?
        })
        .await
        .unwrap_or_else(|late| Err(Error::new(Kind::Timeout, "end copy").caused_by(late)))
    }

    /// Whether nothing more comes because a quota is used up.
    fn is_at_its_limit(&self) -> bool {
        // In this order: what a chunk has reserved is not used up yet.
        self.engine.active_chunks().is_empty() && self.engine.limits().keeps_waiting()
    }

    fn begin(&self) -> crate::engine::bulk::Begin {
        let destination = Arc::clone(&self.destination);
        Box::new(move || destination.mark_incomplete())
    }

    fn summary(&self, counts: &Counts) -> Summary {
        let stats = self.engine.stats();
        let errors = stats.errors.recent();
        Summary {
            is_dry: self.settings.is_dry,
            copied: counts.copied.get(),
            copied_bytes: counts.copied_bytes.get(),
            unchanged: counts.unchanged.get(),
            renamed: counts.renamed.get(),
            linked: counts.linked.get(),
            specials: counts.specials.get(),
            renewed: counts.renewed.get(),
            directories: counts.directories.get(),
            deleted: counts.deleted.get(),
            gone: counts.gone.get(),
            kept: counts.kept.get(),
            left_out: counts.left_out.get(),
            requests: stats.chunks_begun.get() + counts.requests.get(),
            failed: stats.entries_failed(),
            warnings: stats.metadata_lost.get() + stats.names_refused.get(),
            elapsed_s: self.started.elapsed().as_secs_f64(),
            stopped_by: None,
            errors: errors.into_iter().map(|note| (note.path.to_string(), note.message)).collect(),
        }
    }
}

async fn beat(engine: Arc<Engine>) {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        beat.tick().await;
        engine.sample_rate();
        engine.checkpoint_in_background();
        engine.tidy_in_background();
        if let Err(error) = engine.look_at_space().await {
            tracing::debug!(%error, "free space unknown");
        }
    }
}

async fn open_destination(
    place: &Place,
    settings: &CopySettings,
) -> Result<(Arc<Destination>, Option<tempfile::TempDir>)> {
    let options = start::destination_options(&settings.publish, settings.state_dir.clone());
    if !settings.is_dry {
        return Ok((start::open_place(place, options).await?, None));
    }
    let path = place.destination.clone();
    let look = move || {
        let scratch = tempfile::tempdir().map_err(|error| {
            Error::io("make scratch directory", error).hint("TMPDIR names another place")
        })?;
        let destination = Destination::open_view(&path, scratch.path(), options)?;
        Ok((Arc::new(destination), Some(scratch)))
    };
    on_disk("look at destination", look).await
}

fn check_apart(source: Option<&Path>, destination: &Path) -> Result<()> {
    let Some(source) = source else { return Ok(()) };
    let refused = |why: String| {
        Err(Error::new(Kind::Invalid, "start")
            .at(destination)
            .because(why)
            .hint("source and destination must be two separate directories"))
    };
    match (destination.starts_with(source), source.starts_with(destination)) {
        (true, true) => refused("source and destination are the same directory".to_owned()),
        (true, false) => refused(format!("it lies inside the source {}", source.display())),
        (false, true) => refused(format!("the source {} lies inside it", source.display())),
        (false, false) => Ok(()),
    }
}

/// Plain threads count no requests: better refused than not kept.
fn check_quotas(source: Option<&Path>, settings: &CopySettings) -> Result<()> {
    let limits = &settings.limits;
    let has_quota = limits.max_fetch.is_some() || limits.max_requests.is_some();
    let Some(source) = source.filter(|_| has_quota) else { return Ok(()) };
    Err(Error::new(Kind::NotSupported, "start")
        .at(source)
        .because("--max-fetch and --max-requests are for sources of other machines")
        .hint("--limit slows a copy down; a mount with --hydrate keeps quotas for every source"))
}

/// What the marker says from now on; it is put there with the first change.
fn set_marker(destination: &Destination, place: &Place, settings: &CopySettings) {
    let delete = if settings.delete.is_some() { " --delete" } else { "" };
    let go_on = format!(
        "lazycopy copy{delete} {} {}",
        start::quoted(Path::new(&place.source)),
        start::quoted(&place.destination)
    );
    destination.set_marker(&place.source, &go_on);
}
