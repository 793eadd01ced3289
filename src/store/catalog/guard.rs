//! redb takes the pages that it wrote for granted: rotten ones make it panic. Here that becomes an answer, and nothing is printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Once;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    Guarded,
    Panicked,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State::Outside) };
}

static HOOKED: Once = Once::new();

/// Runs `work`; `None` if redb panicked in it. Any other panic goes on. It may be nested.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    HOOKED.call_once(hook);
    let before = STATE.replace(State::Guarded);
    let result = catch_unwind(AssertUnwindSafe(work));
    match (result, STATE.replace(before)) {
        (Ok(value), _) => Some(value),
        (Err(_panic), State::Panicked) => None,
        (Err(panic), _) => resume_unwind(panic),
    }
}

/// Panics of redb within the guard are noted and not printed; everything else is as before.
fn hook() {
    let others = take_hook();
    set_hook(Box::new(move |panic| {
        let is_redb = panic.location().is_some_and(|place| place.file().contains("/redb-"));
        let is_guarded = STATE.try_with(Cell::get) == Ok(State::Guarded);
        if is_redb && is_guarded {
            STATE.set(State::Panicked);
        } else {
            others(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_is_not_redbs_goes_on() {
        assert_eq!(guarded(|| 7), Some(7));
        let panicked = catch_unwind(|| guarded(|| std::panic::panic_any("ours")));
        assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"ours"));
        assert_eq!(STATE.get(), State::Outside);
    }
}
