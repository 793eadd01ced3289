//! One mount's life: the session with the kernel, the thread that notifies it, and the end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use tokio::sync::{mpsc, oneshot};

use crate::engine::{Engine, Notice};
use crate::error::{Error, Kind, Result};
use crate::sync::{AtomicBool, Ordering};
use crate::vfs::front::{Front, FrontSettings, StatfsAnswer};
use crate::vfs::mount::Mounted;

/// Between two looks at a thread that is about to end.
const JOIN_POLL: Duration = Duration::from_millis(2);

/// A running session. It ends when the mount is gone, whoever took it away.
#[derive(Debug)]
pub struct RunningSession {
    threads: Vec<JoinHandle<()>>,
    ended: oneshot::Receiver<()>,
    names_closed: Arc<AtomicBool>,
}

impl RunningSession {
    /// Answers the kernel on the mount's device in `fuse_threads` threads.
    ///
    /// # Errors
    /// If the kernel refuses the handshake or no thread can be had.
    pub fn start(
        engine: Arc<Engine>,
        notices: mpsc::UnboundedReceiver<Notice>,
        mounted: Mounted,
        settings: FrontSettings,
        statfs: Arc<ArcSwap<StatfsAnswer>>,
        fuse_threads: usize,
    ) -> Result<Self> {
        let failed = |error| Error::io("start FUSE session", error);
        let mut config = Config::default();
        config.n_threads = Some(fuse_threads);
        config.clone_fd = true;
        let front = Front::new(engine, settings, statfs);
        let names_closed = front.names_closed();
        // Who may look in is the kernel's business: it knows allow_other.
        let session =
            Session::from_fd(front, mounted.device, SessionACL::All, config).map_err(failed)?;
        let notifier = session.notifier();
        let (end, ended) = oneshot::channel::<()>();
        let serve = spawn("fuse", move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "FUSE session ended with an error");
            }
            drop(end);
        })?;
        let notify = spawn("notify", move || notify(&notifier, notices))?;
        Ok(Self { threads: vec![serve, notify], ended, names_closed })
    }

    /// From now on only what is open is served: names are answered as if the daemon were gone.
    pub fn close_names(&self) {
        self.names_closed.store(true, Ordering::Relaxed);
    }

    /// Waits until the kernel has ended the session.
    ///
    /// # Cancel safety
    /// It can be waited for again.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the channel closes.
        let _closed = (&mut self.ended).await;
    }

    /// Waits for the threads, but no longer than `patience`; call it after [`Engine::end_notices`].
    /// A detached mount with open files keeps its session until the process ends, and is left to that.
    pub fn join(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(JOIN_POLL);
            }
            if !thread.is_finished() {
                tracing::info!("open files lose the daemon");
            } else if thread.join().is_err() {
                tracing::error!("a FUSE thread panicked");
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Error::io("start thread", error).kinded(Kind::Limit))
}

/// Tells the kernel, one notice after the other. It may wait for kernel locks that readers hold, which is why nobody waits for it.
fn notify(notifier: &Notifier, mut notices: mpsc::UnboundedReceiver<Notice>) {
    while let Some(notice) = notices.blocking_recv() {
        // ENOENT: the kernel did not know it anyway.
        let told = match &notice {
            Notice::EntryChanged { parent, name } => notifier.inval_entry(INodeNo(*parent), name),
            // From the first byte to the end.
            Notice::ContentChanged { ino } => notifier.inval_inode(INodeNo(*ino), 0, 0),
            Notice::Ended => return,
        };
        if let Err(error) = told {
            tracing::trace!(?notice, %error, "not invalidated");
        }
    }
}
