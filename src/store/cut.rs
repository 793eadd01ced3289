//! Ends this process at a step that a test names, to see what becomes of what was done so far.

/// Kills this process after `step` if `LAZYCOPY_TEST_CUT_AFTER` names it. Only builds for tests know of it.
pub fn cut_after(step: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("LAZYCOPY_TEST_CUT_AFTER").is_ok_and(|cut| cut == step) {
        let own = rustix::process::getpid();
        if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::KILL) {
            tracing::error!(%error, "not killed");
        }
        // Nothing more may happen.
        loop {
            std::thread::park();
        }
    }
    tracing::debug!(step, "done");
}
