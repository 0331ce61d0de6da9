//! The one loop: claim, work, advance.
//!
//! A stage implements [`Work`]; [`run`] claims for it, renews its leases while its progress counter moves,
//! and records what it made. The loop never looks into a stage's errors: the stage says whether to retry
//! or to fail ([`JobError`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::job::JobId;
use crate::meter::Meter;
use crate::metrics::LoopMetrics;
use crate::segment::{Lease, Segment, Stage, Token};
use crate::store::{ClaimRequest, Claimed, Job, JobStore, Output, StoreError};
use crate::timeline::Reports;

mod hints;
mod slot;
mod streak;

pub use hints::Hints;
use slot::{Ended, Slot};
use streak::Streak;

/// The usual [`LoopSettings::streak`].
pub const MAX_STREAK: usize = 3;

/// Why a stage gives up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// It may go well another time.
    #[error("{message}")]
    Retry {
        /// One sentence for the user, if this was the last try.
        message: String,
        /// The chain of causes, for the log.
        source: Cause,
    },
    /// It will fail every time.
    #[error("{message}")]
    Fail {
        /// One sentence for the user: what was wrong and what to do.
        message: String,
    },
    /// What an earlier stage made is gone or damaged.
    #[error("back to {to}: {message}")]
    SendBack {
        /// The stage to repeat.
        to: Stage,
        /// (Assemble only) the segments that go back.
        segments: Vec<u32>,
        /// For the log.
        message: String,
    },
    /// Cancelled, lost or shutting down: nobody is to blame.
    #[error("stopped")]
    Stopped,
}

/// An error and what caused it, as one line of text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cause(pub String);

impl Cause {
    /// The text of `error` and of everything beneath it.
    #[must_use]
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        Self(text)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

impl JobError {
    /// It failed, and may go well another time.
    #[must_use]
    pub fn retry(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Retry { source: Cause(message.clone()), message }
    }

    /// It failed because of `source`, and may go well another time.
    #[must_use]
    pub fn retry_because(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source: Box<dyn std::error::Error + Send + Sync> = source.into();
        Self::Retry { message: message.into(), source: Cause::of(&*source) }
    }

    /// Something on the volume could not be read or written, which may go well another time: `doing` completes
    /// "could not …".
    #[must_use]
    pub fn storage(doing: &str, error: std::io::Error) -> Self {
        Self::retry_because(crate::files::trouble(doing, &error), error)
    }

    /// It failed, and will again.
    #[must_use]
    pub fn fail(message: impl Into<String>) -> Self {
        Self::Fail { message: message.into() }
    }

    /// What stage `to` made is gone or damaged.
    #[must_use]
    pub fn send_back(to: Stage, message: impl Into<String>) -> Self {
        Self::SendBack { to, segments: Vec::new(), message: message.into() }
    }
}

/// How the loop and the work in hand talk: progress one way, "stop" the other.
#[derive(Debug, Clone, Default)]
pub struct Control {
    progress: Arc<AtomicU64>,
    cancelled: CancellationToken,
    meter: Option<(Arc<Meter>, LoopMetrics, JobId, Stage)>,
}

impl Control {
    /// A control of its own, for running a stage without the loop.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A control whose ticks `meter` and `metrics` count as `stage`'s work on `job`.
    #[must_use]
    pub fn metered(meter: Arc<Meter>, metrics: LoopMetrics, job: JobId, stage: Stage) -> Self {
        Self { meter: Some((meter, metrics, job, stage)), ..Self::default() }
    }

    /// Says that `units` (frames, packets) more are done. Work that doesn't say so for
    /// [`LoopSettings::stall`] counts as hung.
    pub fn tick(&self, units: u64) {
        self.progress.fetch_add(units, Ordering::Relaxed);
        if let Some((meter, metrics, job, stage)) = &self.meter {
            meter.add(*job, *stage, units);
            metrics.frames(*stage, units);
        }
    }

    /// Units done so far.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Set when the work must stop; it then returns [`JobError::Stopped`].
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Stops the work.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }
}

/// One claimed piece of work, as its stage sees it.
#[derive(Debug)]
pub struct Assignment {
    /// The proof of holding it; its token names the files the work publishes.
    pub lease: Lease,
    /// The job, as it was at the claim.
    pub job: Job,
    /// The segment, unless the stage is job-level.
    pub segment: Option<Segment>,
    /// Progress and cancellation.
    pub control: Control,
}

/// A stage's work.
#[async_trait]
pub trait Work: Send + Sync {
    /// The stage it does.
    fn stage(&self) -> Stage;

    /// Completes a claim: the model the worker has loaded, its pack budget.
    fn request(&self, request: ClaimRequest) -> ClaimRequest {
        request
    }

    /// Does one piece of work. Must stop soon after [`Control::cancelled`] is set; is dropped if it
    /// doesn't.
    ///
    /// # Errors
    /// [`JobError`] says whether another try makes sense.
    async fn run(&self, work: &Assignment) -> Result<Output, JobError>;

    /// Called after the store acknowledged what [`Work::run`] made: deletes what nobody needs any more
    /// (the pack, after detect). `job` and `segment` are as they were at the claim. Not called when the
    /// worker dies in between; sweeping takes care of that.
    async fn settled(&self, _job: &Job, _segment: Option<&Segment>) {}
}

/// How a loop works.
#[derive(Debug, Clone)]
pub struct LoopSettings {
    /// Who claims (host, process). All slots share it: a retry that prefers another worker means another
    /// process.
    pub worker: String,
    /// Pieces of work held at once.
    pub slots: usize,
    /// How long a lease lives unless renewed; it is renewed every third of this.
    pub lease: Duration,
    /// Work whose progress counter has not moved for this long counts as hung.
    pub stall: Duration,
    /// The pause after the first claim that found nothing.
    pub poll_min: Duration,
    /// The longest pause between claims.
    pub poll_max: Duration,
    /// Counts what the work ticks.
    pub meter: Arc<Meter>,
    /// Counts what becomes of it.
    pub metrics: LoopMetrics,
    /// Where to note beginnings and ends of work, when pre is another process.
    pub reports: Option<Reports>,
    /// Different jobs failed in a row after which the worker holds itself to be the one that is not well and
    /// claims no more. 0: never (where no other worker could take over).
    pub streak: usize,
}

impl LoopSettings {
    /// The usual settings: one slot, leases of 30 s, a stall after 60 s, polling every 0.2 to 2 s, unready
    /// after a streak of [`MAX_STREAK`].
    #[must_use]
    pub fn new(worker: impl Into<String>) -> Self {
        Self {
            worker: worker.into(),
            slots: 1,
            lease: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            poll_min: Duration::from_millis(200),
            poll_max: Duration::from_secs(2),
            meter: Arc::default(),
            metrics: LoopMetrics::default(),
            reports: None,
            streak: MAX_STREAK,
        }
    }
}

/// Why [`run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopEnd {
    /// It was asked to.
    Shutdown,
    /// This worker failed several different jobs in a row: it is the worker that is not well. It claims
    /// no more; what it held was handed back.
    Unready,
}

/// Claims, works and advances in `settings.slots` places at once until `shutdown`, then hands back what is
/// in hand and returns.
pub async fn run(
    store: Arc<dyn JobStore>,
    work: Arc<dyn Work>,
    settings: LoopSettings,
    hints: Arc<Hints>,
    shutdown: CancellationToken,
) -> LoopEnd {
    let slot = Slot { store, work, settings: Arc::new(settings), hints, stop: shutdown.child_token() };
    let streak = Arc::new(Streak::default());
    let mut slots = JoinSet::new();
    for _ in 0..slot.settings.slots.max(1) {
        slots.spawn(serve(slot.clone(), streak.clone()));
    }
    // Joined, not dropped: it may be in the middle of a report.
    let done = CancellationToken::new();
    let served = async {
        while slots.join_next().await.is_some() {}
        done.cancel();
    };
    tokio::join!(streak.keep(&slot, &done), served);
    let end = streak.close(&slot).await;
    info!(job.stage = %slot.work.stage(), "no longer claiming: {end:?}");
    end
}

/// One place to work in.
async fn serve(slot: Slot, streak: Arc<Streak>) {
    let stage = slot.work.stage();
    let mut hint = slot.hints.listen(stage);
    let mut idle = slot.settings.poll_min;
    let mut asked = Asked::new();
    while !slot.stop.is_cancelled() {
        hint.mark_unchanged();
        match claim(&slot, &asked).await {
            Ok(Some(claimed)) => {
                streak.works();
                let ended = slot.work_on(claimed, asked.at).await;
                streak.rests();
                idle = slot.settings.poll_min;
                asked = Asked::new();
                match ended {
                    Ended::Recorded => streak.broken(&slot).await,
                    Ended::Failed(failed) => streak.add(&slot, failed).await,
                    Ended::Quiet => {}
                    // Or it would be claimed and dropped again at once, for ever.
                    Ended::GaveUpUnasked => pause(&slot.stop, slot.settings.poll_max).await,
                }
                continue;
            }
            Ok(None) => {
                streak.idle(&slot).await;
                asked = Asked::new();
            }
            // Kept: if the claim was made and only its answer lost, asking again finds it.
            Err(StoreError::Unavailable(what)) => {
                warn!(job.stage = %stage, "cannot claim: the database does not answer: {what}");
            }
            Err(StoreError::Corrupt(what)) => {
                error!(job.stage = %stage, "cannot claim: the database holds something unexpected: {what}");
                asked = Asked::new();
            }
        }
        tokio::select! {
            () = slot.stop.cancelled() => {}
            changed = hint.changed() => {
                if changed.is_ok() {
                    idle = slot.settings.poll_min;
                }
            }
            () = tokio::time::sleep(jittered(idle)) => {
                idle = (idle * 2).min(slot.settings.poll_max).max(slot.settings.poll_min);
            }
        }
    }
}

/// One claim, its work and its advance. False when there was nothing to claim. For tests that step.
///
/// # Errors
/// When the store does not answer the claim.
pub async fn run_once(
    store: &Arc<dyn JobStore>,
    work: &Arc<dyn Work>,
    settings: &LoopSettings,
    hints: &Arc<Hints>,
) -> Result<bool, StoreError> {
    let slot = Slot {
        store: store.clone(),
        work: work.clone(),
        settings: Arc::new(settings.clone()),
        hints: hints.clone(),
        stop: CancellationToken::new(),
    };
    let asked = Asked::new();
    let Some(claimed) = claim(&slot, &asked).await? else { return Ok(false) };
    if let Ended::Failed(failed) = slot.work_on(claimed, asked.at).await {
        slot.report(failed).await;
    }
    Ok(true)
}

/// A claim that was asked for: the same token until there is an answer.
struct Asked {
    token: Token,
    at: Instant,
}

impl Asked {
    fn new() -> Self {
        Self { token: Token::random(), at: Instant::now() }
    }
}

async fn claim(slot: &Slot, asked: &Asked) -> Result<Option<Claimed>, StoreError> {
    let request = slot.work.request(ClaimRequest {
        stage: slot.work.stage(),
        worker: slot.settings.worker.clone(),
        token: asked.token.clone(),
        lease: slot.settings.lease,
        model: None,
        pack_budget: None,
    });
    slot.store.claim(&request).await
}

/// Half of `pause` to all of it, so that workers that were started together don't ask together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

async fn pause(stop: &CancellationToken, pause: Duration) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(jittered(pause)) => {}
    }
}

#[cfg(test)]
mod tests;
