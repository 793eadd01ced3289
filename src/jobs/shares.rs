//! One limit for all jobs that run: each gets an equal share, and another one when a job begins or ends.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::client::Client;
use crate::control::orders::LimitRequest;
use crate::control::registry;
use crate::daemon::units::RATE_MIN;
use crate::error::{Error, Kind, Result};

/// Between two looks at what was not told yet.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// Who runs, and what each was told.
#[derive(Debug)]
pub(super) struct Shares {
    total: Option<u64>,
    running: BTreeMap<usize, Share>,
}

#[derive(Debug)]
struct Share {
    /// The job's own limit.
    own: Option<u64>,
    pid: Option<u32>,
    told: Option<u64>,
}

/// A rate that a process does not know yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Untold {
    pub(super) job: usize,
    pid: u32,
    rate: Option<u64>,
}

impl Shares {
    pub(super) fn new(total: Option<u64>) -> Self {
        Self { total, running: BTreeMap::new() }
    }

    /// `job` begins; the rate to begin with.
    pub(super) fn begin(&mut self, job: usize, own: Option<u64>) -> Option<u64> {
        self.running.insert(job, Share { own, pid: None, told: None });
        let rate = self.rate(own);
        if self.total.is_none()
            && let Some(share) = self.running.get_mut(&job)
        {
            share.told = rate;
        }
        // Its destination may remember a share of an earlier run, so it is told once more.
        rate
    }

    /// Its process.
    pub(super) fn set_pid(&mut self, job: usize, pid: Option<u32>) {
        if let Some(share) = self.running.get_mut(&job) {
            share.pid = pid;
        }
    }

    /// It takes nothing of the source any more.
    pub(super) fn end(&mut self, job: usize) {
        self.running.remove(&job);
    }

    fn rate(&self, own: Option<u64>) -> Option<u64> {
        let running = u64::try_from(self.running.len()).unwrap_or(u64::MAX).max(1);
        let share = self.total.map(|total| (total / running).max(RATE_MIN));
        share.into_iter().chain(own).min()
    }

    /// What has to be said to whom.
    pub(super) fn untold(&self) -> Vec<Untold> {
        let untold = |(job, share): (&usize, &Share)| {
            let rate = self.rate(share.own);
            let pid = share.pid.filter(|_| rate != share.told)?;
            Some(Untold { job: *job, pid, rate })
        };
        self.running.iter().filter_map(untold).collect()
    }

    /// It was said.
    pub(super) fn told(&mut self, untold: Untold) {
        if let Some(share) = self.running.get_mut(&untold.job)
            && share.pid == Some(untold.pid)
        {
            share.told = untold.rate;
        }
    }
}

impl Untold {
    /// Says it, through the control socket of the process.
    ///
    /// # Errors
    /// `NotFound` while the process has no control socket yet.
    pub(super) fn tell(&self) -> Result<()> {
        let found = registry::all().into_iter().find(|found| found.record.pid == self.pid);
        let found = found.ok_or_else(|| Error::new(Kind::NotFound, "find the process of a job"))?;
        let request = LimitRequest { bytes_per_s: self.rate };
        Client::new(&found.socket).limit(request).map(|_done| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_never_more_than_a_jobs_own_limit_and_told_once() {
        let mut shares = Shares::new(Some(9 << 20));
        assert_eq!(shares.begin(0, None), Some(9 << 20));
        assert_eq!(shares.begin(1, Some(1 << 20)), Some(1 << 20));
        assert_eq!(shares.untold(), [], "no process to be told");
        shares.set_pid(0, Some(10));
        shares.set_pid(1, Some(11));
        let first = Untold { job: 0, pid: 10, rate: Some(9 << 19) };
        assert_eq!(shares.untold(), [first, Untold { job: 1, pid: 11, rate: Some(1 << 20) }]);
        shares.untold().into_iter().for_each(|untold| shares.told(untold));
        assert_eq!(shares.untold(), []);
        shares.begin(2, None);
        assert_eq!(shares.untold()[0].rate, Some(3 << 20));
        shares.end(1);
        shares.end(2);
        // What is told is known already.
        assert_eq!(shares.untold()[0].rate, Some(9 << 20));
        assert_eq!(Shares::new(None).begin(0, None), None);
    }
}
