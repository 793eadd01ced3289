//! Everything before the first answer to the kernel. What can be refused is refused before anything is changed.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::daemon::clone;
use crate::daemon::reach::{self, Reached, Way};
use crate::daemon::settings::{
    self, Existing, Fill, InPlace, KeepPlace, MountSettings, PublishSettings, Refresh, SourceSpec,
};
use crate::daemon::signals::Signals;
use crate::engine::Engine;
use crate::engine::settings::{EngineSettings, ExistingPolicy, OnChange};
use crate::engine::switch::SwitchState;
use crate::error::{Error, Kind, Result};
use crate::source::Source;
use crate::source::kinds::Remote;
use crate::store::{Destination, DestinationOptions, Durability};
use crate::vfs::attributes::Appearance;
use crate::vfs::front::{FrontSettings, StatfsAnswer};
use crate::vfs::mount::{self, UnmountMode, unmount_ours};
use crate::vfs::mountinfo::DeviceNumber;
use crate::vfs::mountpoint;
use crate::vfs::read_ahead::set_read_ahead;
use crate::vfs::session::RunningSession;

/// The kernel's read-ahead while files are incomplete: one fault of a mapping fetches that much.
const READ_AHEAD_KIB: u32 = 512;
/// What the kernel may answer by itself where nothing is ever asked again.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Names of the places that a daemon connects.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Without secrets.
    pub(super) source: String,
    pub(super) mountpoint: PathBuf,
    /// The mountpoint itself in a copy in place.
    pub(super) destination: PathBuf,
}

impl Place {
    pub(super) fn is_in_place(&self) -> bool {
        self.mountpoint == self.destination
    }
}

/// When what lies in the destination already is compared with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Examine {
    /// It was, before the start.
    Done,
    /// While it serves.
    Later,
}

/// A daemon that serves.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) place: Place,
    pub(super) fill: Fill,
    pub(super) limit: Option<u64>,
    pub(super) in_place: Option<InPlace>,
    /// When the source was first asked.
    pub(super) listed_at: SystemTime,
    pub(super) began: Instant,
    pub(super) examine: Examine,
    /// What the user should know from the start.
    pub(super) warnings: Vec<String>,
    pub(super) engine: Arc<Engine>,
    pub(super) destination: Arc<Destination>,
    pub(super) statfs: Arc<ArcSwap<StatfsAnswer>>,
    pub(super) session: RunningSession,
    pub(super) number: DeviceNumber,
}

impl Started {
    /// What there is and where, for people.
    pub(super) fn first_line(&self) -> String {
        let Place { source, mountpoint, destination } = &self.place;
        if let Some(in_place) = &self.in_place {
            return clone::first_line(self, in_place);
        }
        let keeps = match (self.fill, self.limit) {
            (Fill::Everything, _) => "everything is copied",
            (Fill::OnDemand, None) => "what is read is kept",
            (Fill::OnDemand, Some(_)) => "what is read is cached",
        };
        let most =
            self.limit.map_or_else(String::new, |limit| format!(", at most {limit} bytes of it"));
        format!(
            "{} shows {source}; {keeps} in {}{most}",
            mountpoint.display(),
            destination.display()
        )
    }
}

/// Lets this process open as many files as it may.
pub(super) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "limit of open files stays as it is");
    }
}

/// Checks, opens, mounts.
pub(super) async fn start(settings: MountSettings) -> Result<(Started, Signals)> {
    let (began, listed_at) = (Instant::now(), SystemTime::now());
    let (place, is_begun) = check_places(&settings)?;
    let way = Way::new(&settings.source, settings.tree.cross_mounts);
    // Before anything is made; where a copy was begun, what is known of it may do instead.
    let opened = way.open(is_begun).await;
    let opened = if is_begun { opened } else { Ok(opened?) };
    let destination = open_destination(&place, &settings).await?;
    let Reached { source, away } = way.reach(opened, destination.catalog()).await?;
    let place = Place { source: source.display_name().to_owned(), ..place };
    let mut warnings: Vec<String> = away.iter().map(|why| away_warning(&place, why)).collect();
    let engine_settings = engine_settings(&settings, &*source);
    let ttl = engine_settings.refresh.unwrap_or(FOR_EVER);
    let has_modes = source.traits().has_modes;
    let (engine, notices) = Engine::open(source, Arc::clone(&destination), engine_settings).await?;
    warnings.extend(held_warning(&engine, &settings));
    warnings.extend(rate_warning(&engine, &settings));
    warnings.extend(pinned_warning(&engine));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let examine = examine(&engine, &settings, away.is_some()).await?;
    engine.look_at_space().await?;
    mark(&engine, &place, settings.fill).await?;
    if place.is_in_place() {
        clone::cover(&destination, &place).await?;
    }

    let statfs = Arc::new(ArcSwap::from_pointee(StatfsAnswer::default()));
    let front = FrontSettings {
        appearance: appearance(ttl, settings.mount.allow_other),
        has_acls: has_modes,
    };
    let mut mount_options = settings.mount.clone();
    mount_options.fsname.get_or_insert_with(|| place.source.clone());
    // Before there is a mount that a signal could leave behind without a daemon.
    let signals = Signals::listen()?;
    let mounted = mount::mount(&place.mountpoint, &mount_options)?;
    let number = mounted.number;
    set_read_ahead(number, READ_AHEAD_KIB);
    let session = RunningSession::start(
        Arc::clone(&engine),
        notices,
        mounted,
        front,
        Arc::clone(&statfs),
        settings.fuse_threads,
    );
    let session = session.inspect_err(|_| {
        // Nothing is left behind that nobody serves.
        if let Err(error) = unmount_ours(&place.mountpoint, number, UnmountMode::Detach) {
            tracing::error!(%error, "mount without a daemon left behind");
        }
    })?;
    sweep_trees(&destination);
    let started = Started {
        place,
        fill: settings.fill,
        limit: settings.keep.limit,
        in_place: settings.in_place,
        listed_at,
        began,
        examine,
        warnings,
        engine,
        destination,
        statfs,
        session,
        number,
    };
    Ok((started, signals))
}

/// Compares what lies in the destination with the source before the start, and refuses it if it conflicts. Where that was done in an
/// earlier life, or cannot be done now, it comes later, beside everything else: then a conflict is reported, and the file left alone.
async fn examine(engine: &Arc<Engine>, settings: &MountSettings, is_away: bool) -> Result<Examine> {
    let is_kept = matches!(settings.publish.existing, Existing::Adopt | Existing::AdoptFast);
    if is_away || (is_kept && engine.is_examined()?) {
        return Ok(Examine::Later);
    }
    engine.check_existing().await?;
    Ok(Examine::Done)
}

/// A copy that was paused or stopped stays so.
fn held_warning(engine: &Engine, settings: &MountSettings) -> Option<String> {
    let state = match engine.switch().state() {
        _ if settings.fill == Fill::OnDemand => return None,
        SwitchState::Running => return None,
        SwitchState::Paused => "paused",
        SwitchState::Draining | SwitchState::Stopped => "stopped",
    };
    let mountpoint = quoted(&settings.mountpoint);
    Some(format!("the copy is {state}, as it was left; lazycopy resume {mountpoint} goes on"))
}

/// A rate that was ordered holds on.
fn rate_warning(engine: &Engine, settings: &MountSettings) -> Option<String> {
    let rate = engine.limits().rate();
    if rate == settings.limits.rate || settings.fill == Fill::OnDemand {
        return None;
    }
    let mountpoint = quoted(&settings.mountpoint);
    let rate = rate.map_or("not limited".to_owned(), |rate| format!("{rate} bytes/s at most"));
    Some(format!(
        "the rate of the copy is {rate}, as it was ordered; lazycopy limit RATE|off {mountpoint} changes it"
    ))
}

/// More is pinned than the cache may hold.
fn pinned_warning(engine: &Engine) -> Option<String> {
    let (cap, used) = engine.cache_fill().filter(|(cap, used)| used > cap)?;
    Some(format!(
        "pinned files take {used} bytes, more than --keep {cap}: nothing else is kept until lazycopy unpin PATH lets some go, or --keep is larger"
    ))
}

fn away_warning(place: &Place, why: &Error) -> String {
    format!(
        "the source {} is away; what is known and local is served until it is back: {why}",
        place.source
    )
}

/// Takes as long as there are trees; nobody waits for it.
pub(super) fn sweep_trees(destination: &Arc<Destination>) {
    let destination = Arc::clone(destination);
    tokio::task::spawn_blocking(move || match destination.sweep_trees() {
        Ok(swept) => tracing::debug!(swept, "hash trees of nobody"),
        Err(error) => tracing::warn!(%error, "hash trees of nobody stay"),
    });
}

/// Mountpoint and nesting, by their canonical paths. Nothing is changed but a dead mount of ours taken away.
fn check_places(settings: &MountSettings) -> Result<(Place, bool)> {
    let cleaned = mountpoint::clean_stale(&settings.mountpoint)?;
    if cleaned > 0 {
        tracing::info!(cleaned, "took away a mount whose daemon is gone");
    }
    if settings.in_place.is_some() {
        return clone::check_place(settings);
    }
    let mountpoint = mountpoint::check_mountpoint(&settings.mountpoint)?;
    let destination = match &settings.keep.place {
        KeepPlace::Destination(path) => {
            // What a clone has left that was killed.
            mountpoint::clean_stale(path)?;
            canonical_destination(path)?
        }
        KeepPlace::CacheBelow(caches) => {
            canonical_destination(&cache_of(caches, &settings.source)?)?
        }
    };
    mountpoint::check_not_covered(&destination)?;
    let is_begun = reach::is_begun(&destination);
    let source = reach::local_place(&settings.source, is_begun)?;
    mountpoint::check_nesting(source.as_deref(), &destination, &mountpoint)?;
    Ok((Place { source: String::new(), mountpoint, destination }, is_begun))
}

/// The cache of a source below `caches`, which is made if it is missing.
fn cache_of(caches: &Path, spec: &SourceSpec) -> Result<PathBuf> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(caches).map_err(|error| {
        Error::io("make cache", error)
            .at(caches)
            .hint("--dest DIR names another directory for what is read")
    })?;
    let local = match spec {
        SourceSpec::Local(path) => std::fs::canonicalize(path).ok(),
        SourceSpec::Url(_) => None,
    };
    Ok(caches.join(cache_name(spec, local.as_deref())))
}

/// The same for the same source, whoever asks for it: something to recognise it by, and a hash.
fn cache_name(spec: &SourceSpec, local: Option<&Path>) -> String {
    let named = match (spec, local) {
        (SourceSpec::Local(path), local) => local.unwrap_or(path).as_os_str().to_owned(),
        // Neither who asks nor a signature says which source it is, but for sftp, where it has a home directory; another endpoint may have
        // another bucket of that name.
        (SourceSpec::Url(Remote { url: text, options }), _) => match url::Url::parse(text) {
            Ok(url) => format!(
                "{}://{}{}:{}{}{}",
                url.scheme(),
                match (url.scheme(), url.username()) {
                    ("sftp", user) if !user.is_empty() => format!("{user}@"),
                    _ => String::new(),
                },
                url.host_str().unwrap_or_default(),
                url.port_or_known_default().unwrap_or_default(),
                url.path().trim_end_matches('/'),
                options.text("endpoint").ok().flatten().unwrap_or_default()
            )
            .into(),
            Err(_) => text.into(),
        },
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
    let text = named.to_string_lossy();
    let words: Vec<&str> = text.rsplit('/').filter(|word| !word.is_empty()).take(2).collect();
    let words: String = words.into_iter().rev().collect::<Vec<_>>().join("-");
    let words: String = words.chars().map(plain).take(40).collect();
    let hash = blake3::hash(named.as_encoded_bytes()).to_hex();
    format!("{}-{}", words.trim_start_matches('.'), &hash[..16])
}

/// DIR may be missing; its parent may not.
pub(super) fn canonical_destination(path: &Path) -> Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(Error::io("open destination", error).at(path));
            };
            let parent = std::fs::canonicalize(parent).map_err(|error| {
                Error::io("open destination", error)
                    .at(path)
                    .because("neither it nor the directory above it exists")
                    .hint("make the directory above it first")
            })?;
            Ok(parent.join(name))
        }
        Err(error) => Err(Error::io("open destination", error).at(path)),
    }
}

async fn open_destination(place: &Place, settings: &MountSettings) -> Result<Arc<Destination>> {
    let keep = settings.keep.limit;
    let options = destination_options(&settings.publish, settings.state_dir.clone());
    open_place(place, DestinationOptions { keep, ..options }).await
}

pub(super) fn destination_options(
    publish: &PublishSettings,
    state_dir: Option<PathBuf>,
) -> DestinationOptions {
    DestinationOptions {
        preserve_privileged: publish.preserve_privileged,
        strict_metadata: publish.strict_metadata,
        durability: match publish.durability {
            settings::Durability::Normal => Durability::Normal,
            settings::Durability::Paranoid => Durability::Paranoid,
        },
        state_dir,
        ..DestinationOptions::default()
    }
}

pub(super) async fn open_place(
    place: &Place,
    options: DestinationOptions,
) -> Result<Arc<Destination>> {
    let path = place.destination.clone();
    let destination = crate::engine::on_disk("open destination", move || {
        let destination = Destination::open(&path, options)?;
        let space = destination.space()?;
        if space.is_used_up() {
            return Err(Error::new(Kind::NoSpace, "open destination")
                .at(&path)
                .because("its file system is full")
                .hint("free some space, or choose another --dest"));
        }
        Ok(destination)
    })
    .await?;
    for missing in destination.abilities().missing() {
        tracing::warn!(ability = missing.ability, cost = missing.cost, "destination");
    }
    Ok(Arc::new(destination))
}

/// Marks DIR as incomplete, but for a complete copy of which nothing new is asked for and nothing is let go: that stays what it is until
/// there is news.
async fn mark(engine: &Arc<Engine>, place: &Place, fill: Fill) -> Result<()> {
    let destination = engine.destination();
    let limit = destination.budget().map(|budget| format!("--keep {}", budget.cap()));
    let may_stay = fill == Fill::OnDemand && limit.is_none();
    let how = limit.unwrap_or_else(|| "--hydrate".to_owned());
    let [source, mountpoint, dir] =
        [Path::new(&place.source), &place.mountpoint, &place.destination].map(quoted);
    let go_on = match place.is_in_place() {
        true => format!("lazycopy clone {source} {dir}"),
        false => format!("lazycopy mount {how} --dest {dir} {source} {mountpoint}"),
    };
    destination.set_marker(&place.source, &go_on);
    if may_stay && destination.is_complete()? {
        engine.changes().follow();
        return Ok(());
    }
    crate::engine::on_disk("write marker", move || destination.mark_incomplete()).await
}

/// As a shell takes it as one word.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn engine_settings(settings: &MountSettings, source: &dyn Source) -> EngineSettings {
    EngineSettings {
        read_timeout: settings.reads.timeout,
        refresh: match settings.tree.refresh {
            None => Some(source.traits().refresh),
            Some(Refresh::After(age)) => Some(age),
            Some(Refresh::Never) => None,
        },
        reserve: settings.publish.reserve,
        existing: existing_policy(settings.publish.existing),
        on_change: match settings.tree.on_change {
            settings::OnChange::Follow => OnChange::Follow,
            settings::OnChange::Fail => OnChange::Fail,
        },
        limits: settings.limits,
        hydrate: settings.hydrate.clone(),
        ..EngineSettings::default()
    }
}

pub(super) fn existing_policy(existing: Existing) -> ExistingPolicy {
    match existing {
        Existing::Adopt => ExistingPolicy::Adopt,
        Existing::AdoptFast => ExistingPolicy::AdoptFast,
        Existing::Overwrite => ExistingPolicy::Overwrite,
        Existing::Fail => ExistingPolicy::Fail,
    }
}

/// Root shows owners as the source has them; for anybody else everything is his own. A source without modes is private, unless others
/// are let in.
fn appearance(ttl: Duration, allow_other: bool) -> Appearance {
    let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Appearance {
        owner: (user.0 != 0).then_some(user),
        file_mode: if allow_other { 0o644 } else { 0o600 },
        directory_mode: if allow_other { 0o755 } else { 0o700 },
        ttl,
        fallback_owner: user,
        started_at: SystemTime::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_named_after_its_source_and_not_after_who_asks() {
        let name = |text: &str| cache_name(&SourceSpec::parse(text.as_ref()).unwrap(), None);
        let plain = name("https://host/data/set");
        assert!(plain.starts_with("data-set-"), "{plain}");
        assert_eq!(plain, name("https://me:secret@host:443/data/set/?sig=1"));
        assert_ne!(plain, name("https://host/data-set"));
        let local = |path: &str| cache_name(&SourceSpec::Local(path.into()), Some(Path::new(path)));
        assert!(local("/").starts_with('-'));
        assert!(local("/a b/.c").starts_with("a-b-.c-"));
        assert!(!local("/.hidden").starts_with('.'));
    }

    #[test]
    fn the_command_in_the_marker_survives_a_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
        assert_eq!(quoted(Path::new("")), "''");
    }
}
