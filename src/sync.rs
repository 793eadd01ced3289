//! The only door to locks, atomics and completion signals.
//!
//! Everything that `core` synchronises with comes from here, so that the model checker can be swapped in
//! (`--cfg lazycopy_loom`, see `make test-race`). Nothing here knows what it protects.

#[cfg(not(lazycopy_loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(lazycopy_loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(lazycopy_loom))]
pub use real::{Closer, Signal, signal};
#[cfg(not(lazycopy_loom))]
pub(crate) use real::{Mutex, RwLock};

#[cfg(lazycopy_loom)]
pub use model::{Closer, Signal, signal};
#[cfg(lazycopy_loom)]
pub(crate) use model::{Mutex, RwLock};

#[cfg(not(lazycopy_loom))]
mod real {
    use std::convert::Infallible;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    pub(crate) use parking_lot::{Mutex, RwLock};
    use tokio::sync::oneshot;

    /// The closing end of a completion signal. Dropping it, however that comes about, wakes the waiter.
    #[derive(Debug)]
    pub struct Closer {
        _channel: oneshot::Sender<Infallible>,
    }

    /// The waiting end of a completion signal: resolves when the [`Closer`] is gone. It carries no
    /// verdict; whoever wakes looks again.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing: the state that it announced is looked up, not received.
    #[derive(Debug)]
    pub struct Signal {
        channel: oneshot::Receiver<Infallible>,
    }

    /// Makes a completion signal: a channel that is only ever closed.
    pub fn signal() -> (Closer, Signal) {
        let (sender, channel) = oneshot::channel();
        (Closer { _channel: sender }, Signal { channel })
    }

    impl Future for Signal {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            Pin::new(&mut self.channel).poll(cx).map(|_closed| ())
        }
    }

    impl Signal {
        /// Whether the closer is gone. Never waits.
        pub fn is_closed(&mut self) -> bool {
            matches!(self.channel.try_recv(), Err(oneshot::error::TryRecvError::Closed))
        }
    }
}

#[cfg(lazycopy_loom)]
mod model {
    use loom::sync::{Arc, Condvar};

    /// `loom`'s mutex with the signature of the real one.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("invariant: no model panics under a lock")
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    /// `loom`'s read-write lock with the signature of the real one.
    #[derive(Debug)]
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
            self.0.read().expect("invariant: no model panics under a lock")
        }

        pub(crate) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect("invariant: no model panics under a lock")
        }
    }

    type Shared = Arc<(loom::sync::Mutex<bool>, Condvar)>;

    /// Model of the closing end: dropping it wakes the waiter.
    #[derive(Debug)]
    pub struct Closer(Shared);

    /// Model of the waiting end. A model that never wakes is reported by loom as a deadlock.
    #[derive(Debug)]
    pub struct Signal(Shared);

    /// Makes a completion signal.
    pub fn signal() -> (Closer, Signal) {
        let shared = Arc::new((loom::sync::Mutex::new(false), Condvar::new()));
        (Closer(Arc::clone(&shared)), Signal(shared))
    }

    impl Drop for Closer {
        fn drop(&mut self) {
            *self.0.0.lock().expect("invariant: no model panics under a lock") = true;
            self.0.1.notify_all();
        }
    }

    impl Signal {
        /// Waits until the closer is gone.
        pub fn wait(self) {
            let mut closed = self.0.0.lock().expect("invariant: no model panics under a lock");
            while !*closed {
                closed = self.0.1.wait(closed).expect("invariant: no model panics under a lock");
            }
        }

        /// Whether the closer is gone.
        pub fn is_closed(&mut self) -> bool {
            *self.0.0.lock().expect("invariant: no model panics under a lock")
        }
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_closer_closes_the_signal() {
        let (closer, mut signal) = signal();
        assert!(!signal.is_closed());
        drop(closer);
        assert!(signal.is_closed());
    }

    #[tokio::test]
    async fn a_signal_closed_before_the_wait_is_not_missed() {
        let (closer, signal) = signal();
        drop(closer);
        signal.await;
    }
}
