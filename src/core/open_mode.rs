//! Whether the open handles of one inode read through the kernel's page cache or go straight to the published file.
//!
//! The kernel answers EIO when one inode has both kinds open at once (measured), so the first handle decides for all.

use crate::sync::Mutex;

/// `B` is the kernel's registration of the published file; all handles of one inode share one.
#[derive(Debug)]
pub struct OpenMode<B> {
    state: Mutex<State<B>>,
}

#[derive(Debug)]
struct State<B> {
    cached: u32,
    passthrough: u32,
    backing: Option<B>,
    /// Whether a descriptor of this file was ever given to the kernel; then it is evicted only by unlink.
    ever_passthrough: bool,
}

impl<B> Default for OpenMode<B> {
    fn default() -> Self {
        let state = State { cached: 0, passthrough: 0, backing: None, ever_passthrough: false };
        Self { state: Mutex::new(state) }
    }
}

/// How one open handle reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Through the page cache and the daemon.
    Cached,
    /// By the kernel itself.
    Passthrough,
}

impl<B: Clone> OpenMode<B> {
    /// Opens through the page cache; refused (`false`) while passthrough handles are open.
    pub fn open_cached(&self) -> bool {
        let mut state = self.state.lock();
        let free = state.passthrough == 0;
        state.cached += u32::from(free);
        free
    }

    /// Joins the passthrough handles that are open, if any.
    pub fn join_passthrough(&self) -> Option<B> {
        let mut state = self.state.lock();
        let backing = state.backing.clone()?;
        state.passthrough += 1;
        Some(backing)
    }

    /// Whether a first passthrough handle may be opened now.
    pub fn may_start_passthrough(&self) -> bool {
        let state = self.state.lock();
        state.cached == 0 && state.passthrough == 0
    }

    /// Opens the first passthrough handle with `backing`, or joins who was quicker; refused (`None`) when a cached handle was.
    pub fn start_passthrough(&self, backing: B) -> Option<B> {
        let mut state = self.state.lock();
        if state.cached > 0 {
            return None;
        }
        state.passthrough += 1;
        state.ever_passthrough = true;
        Some(state.backing.get_or_insert(backing).clone())
    }

    /// Closes one handle; the registration ends with the last.
    pub fn release(&self, mode: Mode) {
        let mut state = self.state.lock();
        let ended = match mode {
            Mode::Cached => {
                state.cached = state.cached.saturating_sub(1);
                None
            }
            Mode::Passthrough => {
                state.passthrough = state.passthrough.saturating_sub(1);
                if state.passthrough == 0 { state.backing.take() } else { None }
            }
        };
        drop(state);
        drop(ended);
    }

    /// Whether a descriptor of this file was ever given to the kernel.
    pub fn ever_passthrough(&self) -> bool {
        self.state.lock().ever_passthrough
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_two_kinds_are_never_open_at_once() {
        let mode: OpenMode<Arc<u32>> = OpenMode::default();
        assert!(mode.open_cached());
        assert!(!mode.may_start_passthrough());
        assert_eq!(mode.start_passthrough(Arc::new(1)), None);
        mode.release(Mode::Cached);
        assert!(mode.start_passthrough(Arc::new(1)).is_some());
        assert!(!mode.open_cached());
        assert_eq!(mode.start_passthrough(Arc::new(2)), Some(Arc::new(1)), "all share one");
        assert!(mode.join_passthrough().is_some());
        for _ in 0..3 {
            mode.release(Mode::Passthrough);
        }
        assert!(mode.join_passthrough().is_none());
        assert!(mode.open_cached());
        assert!(mode.ever_passthrough());
    }
}
