//! Calls that the kernel may never answer, with a deadline.

use std::thread;
use std::time::Duration;

use crossbeam::channel;

/// Runs `call` on a thread of its own and waits for at most `deadline`; `None` = no answer yet.
///
/// The thread is left behind then: a call into a dead mount cannot be taken back, only not waited for.
pub fn with_deadline<T: Send + 'static>(
    deadline: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, answer) = channel::bounded(1);
    let thread = thread::Builder::new().name("probe".to_owned()).spawn(move || {
        // A receiver that is gone has stopped waiting.
        drop(sender.send(call()));
    });
    match thread {
        Ok(_thread) => answer.recv_timeout(deadline).ok(),
        Err(error) => {
            tracing::warn!(err = %error, "no thread for a probe");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // H11: a wait without an end.
    #[test]
    fn a_call_that_never_returns_is_not_waited_for() {
        let (_keep, never) = channel::bounded::<()>(0);
        assert_eq!(with_deadline(Duration::from_millis(20), move || never.recv().is_ok()), None);
        assert_eq!(with_deadline(Duration::from_secs(10), || 7), Some(7));
    }
}
