//! Whether it is the worker that is not well: failures of different jobs in a row.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::LoopEnd;
use super::slot::{Failed, Slot};
use crate::job::JobId;
use crate::store::{Renewal, Setback};

/// Failures since anything went well. The first of each job keeps its lease, unreported, until it is clear
/// whether the worker is to blame (then the attempt is given back) or not (then it counts).
#[derive(Default)]
pub(super) struct Streak {
    state: Mutex<State>,
    busy: AtomicUsize,
}

#[derive(Default)]
struct State {
    jobs: BTreeSet<JobId>,
    kept: Vec<(Failed, Instant)>,
    unready: bool,
}

impl Streak {
    /// A piece of work failed.
    pub(super) async fn add(&self, slot: &Slot, failed: Failed) {
        let limit = slot.settings.streak;
        let mut state = self.state.lock().await;
        if limit == 0 || !state.jobs.insert(failed.lease.target.job()) {
            // The same job again says nothing new about the worker.
            drop(state);
            slot.report(failed).await;
            return;
        }
        state.kept.push((failed, Instant::now()));
        if state.jobs.len() >= limit {
            state.unready = true;
            error!(
                job.stage = %slot.work.stage(),
                "this worker failed {limit} different jobs in a row and claims no more; look at what it logged \
                 before, then restart it"
            );
            slot.stop.cancel();
            for (failed, _) in std::mem::take(&mut state.kept) {
                slot.report(Failed { setback: Setback::HandBack, ..failed }).await;
            }
        }
    }

    /// A place begins a piece of work; [`Streak::rests`] says when it is through with it.
    pub(super) fn works(&self) {
        self.busy.fetch_add(1, Ordering::SeqCst);
    }

    /// A place is through with its piece of work.
    pub(super) fn rests(&self) {
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// Something went well: so the worker is well, and the failures were the jobs'.
    pub(super) async fn broken(&self, slot: &Slot) {
        let mut state = self.state.lock().await;
        state.jobs.clear();
        report_all(slot, &mut state).await;
    }

    /// There is nothing to claim. Once no place works, nothing will tell soon who is to blame: the failures
    /// are reported, or a job that is alone would wait for nothing.
    pub(super) async fn idle(&self, slot: &Slot) {
        if self.busy.load(Ordering::SeqCst) == 0 {
            report_all(slot, &mut *self.state.lock().await).await;
        }
    }

    /// Keeps the leases of unreported failures alive, though not for ever: others could have a try. Returns
    /// once `done` is set.
    pub(super) async fn keep(&self, slot: &Slot, done: &CancellationToken) {
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                () = sleep(slot.settings.lease / 3) => {}
            }
            let mut state = self.state.lock().await;
            for (failed, since) in std::mem::take(&mut state.kept) {
                if since.elapsed() >= slot.settings.stall {
                    slot.report(failed).await;
                } else {
                    let renewed = slot.store.renew(&failed.lease, slot.settings.lease).await;
                    if !matches!(renewed, Ok(Renewal::Lost | Renewal::Cancelled)) {
                        state.kept.push((failed, since));
                    }
                }
            }
        }
    }

    /// Reports what is left, and says how the loop ended.
    pub(super) async fn close(&self, slot: &Slot) -> LoopEnd {
        self.broken(slot).await;
        if self.state.lock().await.unready { LoopEnd::Unready } else { LoopEnd::Shutdown }
    }
}

async fn report_all(slot: &Slot, state: &mut State) {
    for (failed, _) in std::mem::take(&mut state.kept) {
        slot.report(failed).await;
    }
}
