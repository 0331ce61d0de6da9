//! One piece of work, from its claim to its advance.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span, debug, field, info, info_span, warn};

use super::{Assignment, Control, Hints, JobError, LoopSettings, Work, jittered};
use crate::job::JobId;
use crate::metrics::Outcome;
use crate::segment::{Lease, Stage};
use crate::service::telemetry::join_trace;
use crate::store::{Advanced, Claimed, JobStore, Output, Renewal, Setback, StoreError, Unanswered};
use crate::timeline::Moment;

/// How long work may take to stop once it was told to, before it is dropped.
const GRACE: Duration = Duration::from_millis(500);
/// The first wait after a failure; doubled with every attempt.
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// The first and the longest wait for a store that does not answer.
const OUTAGE: Duration = Duration::from_millis(100);
const MAX_OUTAGE: Duration = Duration::from_secs(2);

/// What a place to work in needs.
#[derive(Clone)]
pub(super) struct Slot {
    pub store: Arc<dyn JobStore>,
    pub work: Arc<dyn Work>,
    pub settings: Arc<LoopSettings>,
    pub hints: Arc<Hints>,
    pub stop: CancellationToken,
}

/// How a piece of work ended, for the loop.
pub(super) enum Ended {
    /// Its output is recorded.
    Recorded,
    /// It failed, and that is not reported yet.
    Failed(Failed),
    /// Lost, cancelled or handed back: nothing follows from it.
    Quiet,
    /// The stage stopped though nobody asked it to; the work is handed back.
    GaveUpUnasked,
}

/// A failure, and the lease to report it with.
pub(super) struct Failed {
    pub lease: Lease,
    pub setback: Setback,
    /// When the lease is over unless renewed, by the monotonic clock.
    pub fence: Instant,
}

/// Why work was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The loop stops.
    Stop,
    /// Its progress counter did not move.
    Stalled,
    /// The lease is over, or the job.
    Lost,
}

impl Slot {
    /// Does one claimed piece of work. `asked` is when its claim was first asked for: the lease cannot be
    /// older.
    pub(super) async fn work_on(&self, claimed: Claimed, asked: Instant) -> Ended {
        let Claimed { lease, job, segment } = claimed;
        let span = info_span!(
            "work",
            job.id = %lease.target.job(),
            job.stage = %lease.stage,
            job.segment = segment.as_ref().map(|segment| segment.index),
            job.attempt = lease.attempt,
            duration_ms = field::Empty,
        );
        let control =
            Control::metered(self.settings.meter.clone(), self.settings.metrics.clone(), job.id, lease.stage);
        join_trace(&span, job.id);
        self.settings.metrics.claimed(lease.stage);
        self.note(job.id, lease.stage, Moment::Claimed);
        let assignment = Arc::new(Assignment { lease, job, segment, control });
        self.hints.changed();
        self.work_in(assignment, asked).instrument(span).await
    }

    async fn work_in(&self, assignment: Arc<Assignment>, asked: Instant) -> Ended {
        let began = Instant::now();
        let mut fence = asked + self.settings.lease;
        let control = assignment.control.clone();
        let _stopped_in_any_case = control.cancelled().clone().drop_guard();
        let mut task = {
            let (work, assignment) = (self.work.clone(), assignment.clone());
            // A task of its own, so that a panic ends it and not the loop; but it ends with the loop.
            let run = async move { work.run(&assignment).await };
            AbortOnDropHandle::new(tokio::spawn(run.in_current_span()))
        };
        let (told, result) = tokio::select! {
            result = &mut task => (None, Some(result)),
            told = self.keep(&assignment, &mut fence) => {
                control.cancel();
                (Some(told), wind_up(&mut task).await)
            }
            () = self.stop.cancelled() => {
                control.cancel();
                (Some(Told::Stop), wind_up(&mut task).await)
            }
        };
        let took = began.elapsed();
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Span::current().record("duration_ms", duration_ms);
        let Some(Assignment { lease, job, segment, .. }) = Arc::into_inner(assignment) else {
            warn!("the work cannot be stopped; its lease is left to expire");
            return Ended::Quiet;
        };
        let stage = lease.stage;
        let count = |outcome| self.settings.metrics.ended(stage, outcome, took);
        let setback = match judge(result, told, &lease) {
            Verdict::Advance(output) => {
                return match self.advance(lease, output, fence).await {
                    Ok(Advanced::Recorded) => {
                        info!(duration_ms, "done");
                        count(Outcome::Done);
                        self.note(job.id, stage, Moment::Advanced);
                        self.work.settled(&job, segment.as_ref()).await;
                        Ended::Recorded
                    }
                    Ok(Advanced::Lost) => {
                        info!(duration_ms, "done, but the lease was lost: nothing is recorded");
                        count(Outcome::Lost);
                        Ended::Quiet
                    }
                    Err(failed) => {
                        count(if failed.is_some() { Outcome::Retry } else { Outcome::Lost });
                        failed.map_or(Ended::Quiet, Ended::Failed)
                    }
                };
            }
            Verdict::Quiet => {
                debug!("stopped: the lease or the job is over");
                count(Outcome::Lost);
                return Ended::Quiet;
            }
            Verdict::SetBack(setback) => setback,
        };
        count(match &setback {
            Setback::HandBack => Outcome::HandedBack,
            Setback::Retry { .. } => Outcome::Retry,
            Setback::Fail { .. } => Outcome::Failed,
            Setback::SendBack { .. } => Outcome::SentBack,
        });
        let failed = Failed { lease, setback, fence };
        match (&failed.setback, told) {
            (Setback::Retry { .. }, _) => Ended::Failed(failed),
            (Setback::HandBack, None) => {
                self.report(failed).await;
                Ended::GaveUpUnasked
            }
            _ => {
                self.report(failed).await;
                Ended::Quiet
            }
        }
    }

    fn note(&self, job: JobId, stage: Stage, moment: Moment) {
        if let Some(reports) = &self.settings.reports {
            reports.note(job, stage, moment);
        }
    }

    /// Renews the lease every third of its length while progress moves. Returns when the work must stop.
    async fn keep(&self, assignment: &Assignment, fence: &mut Instant) -> Told {
        let LoopSettings { lease, stall, .. } = *self.settings;
        let mut progress = assignment.control.progress();
        let mut moved = Instant::now();
        let mut outage = OUTAGE;
        let mut next = *fence - lease + lease / 3;
        loop {
            // Looked at more often than renewed, so that a stall is noticed when it is one.
            sleep_until(next.min(moved + stall).min(Instant::now() + stall / 4)).await;
            let now = Instant::now();
            let seen = assignment.control.progress();
            if seen != progress {
                (progress, moved) = (seen, now);
            } else if now >= moved + stall {
                warn!("no progress for {} s: taken to be hung", stall.as_secs_f64());
                return Told::Stalled;
            }
            if now < next {
                continue;
            }
            let renewed = tokio::select! {
                renewed = self.store.renew(&assignment.lease, lease) => renewed,
                () = sleep_until(*fence) => Err(StoreError::Unavailable("no answer".to_owned())),
            };
            match renewed {
                Ok(Renewal::Held) => {
                    *fence = now + lease;
                    next = now + lease / 3;
                    outage = OUTAGE;
                }
                Ok(found @ (Renewal::Lost | Renewal::Cancelled)) => {
                    info!("renewing found the lease {found:?}: the work stops");
                    return Told::Lost;
                }
                Err(error) if Instant::now() >= *fence => {
                    // Somebody else may be at it from now on.
                    warn!("the lease ran out while the database was silent: {error}");
                    return Told::Lost;
                }
                Err(error) => {
                    warn!("cannot renew the lease: {error}");
                    next = (Instant::now() + jittered(outage)).min(*fence);
                    outage = (outage * 2).min(MAX_OUTAGE);
                }
            }
        }
    }

    /// Records an output, repeating the call while the store does not answer and the lease lasts. The lease
    /// comes back as a failure when the store refuses the output, and not at all when time ran out.
    async fn advance(
        &self,
        mut lease: Lease,
        mut output: Output,
        fence: Instant,
    ) -> Result<Advanced, Option<Failed>> {
        let stage = lease.stage;
        let mut outage = OUTAGE;
        loop {
            let Unanswered { lease: back, what, error } = match self.store.advance(lease, output).await {
                Ok(advanced) => {
                    for stage in follows(stage) {
                        self.hints.notify(*stage);
                    }
                    self.hints.changed();
                    return Ok(advanced);
                }
                Err(unanswered) => unanswered,
            };
            warn!("cannot record the output: {error}");
            if matches!(error, StoreError::Corrupt(_)) {
                let message = format!("What {stage} made could not be recorded: {error}.");
                let setback = Setback::Retry { message, backoff: backoff(&back) };
                return Err(Some(Failed { lease: back, setback, fence }));
            }
            if Instant::now() >= fence || self.out_of_patience(outage) {
                return Err(None);
            }
            (lease, output) = (back, what);
            sleep(jittered(outage)).await;
            outage = (outage * 2).min(MAX_OUTAGE);
        }
    }

    /// Whether the loop is stopping and has waited for the store a little already.
    fn out_of_patience(&self, outage: Duration) -> bool {
        self.stop.is_cancelled() && outage > OUTAGE * 2
    }

    /// Gives a lease up, repeating the call while the store does not answer and the lease lasts; when the
    /// loop is stopping, for a moment only.
    pub(super) async fn report(&self, failed: Failed) {
        let Failed { mut lease, mut setback, fence } = failed;
        match &setback {
            Setback::HandBack => info!(job.id = %lease.target, "handed back"),
            other => warn!(job.id = %lease.target, job.stage = %lease.stage, "set back: {other:?}"),
        }
        let mut outage = OUTAGE;
        loop {
            let stage = match &setback {
                Setback::SendBack { to, .. } => *to,
                _ => lease.stage,
            };
            let Unanswered { lease: back, what, error } = match self.store.set_back(lease, setback).await {
                Ok(()) => {
                    self.hints.notify(stage);
                    return;
                }
                Err(unanswered) => unanswered,
            };
            warn!("cannot give the lease up: {error}");
            let over = Instant::now() >= fence || matches!(error, StoreError::Corrupt(_));
            if over || self.out_of_patience(outage) {
                return;
            }
            (lease, setback) = (back, what);
            sleep(jittered(outage)).await;
            outage = (outage * 2).min(MAX_OUTAGE);
        }
    }
}

type Joined = Result<Result<Output, JobError>, JoinError>;

/// Waits for work that was told to stop, and drops it if it does not.
async fn wind_up(task: &mut AbortOnDropHandle<Result<Output, JobError>>) -> Option<Joined> {
    if let Ok(result) = timeout(GRACE, &mut *task).await {
        return Some(result);
    }
    task.abort();
    timeout(GRACE, task).await.ok()
}

enum Verdict {
    Advance(Output),
    SetBack(Setback),
    Quiet,
}

fn judge(result: Option<Joined>, told: Option<Told>, lease: &Lease) -> Verdict {
    let retry = |message: String| Verdict::SetBack(Setback::Retry { message, backoff: backoff(lease) });
    let stage = lease.stage;
    match (result, told) {
        // Whole work is worth recording, whatever happened meanwhile: the token decides.
        (Some(Ok(Ok(output))), _) => Verdict::Advance(output),
        (_, Some(Told::Lost)) => Verdict::Quiet,
        // What fails while it is being stopped fails because of that.
        (_, Some(Told::Stop)) => Verdict::SetBack(Setback::HandBack),
        (_, Some(Told::Stalled)) => retry(format!(
            "The {stage} stage made no progress for too long and was stopped: try again when the machine is less busy, \
             and if that does not help, convert the video with another program."
        )),
        (Some(Ok(Err(error))), None) => match error {
            JobError::Retry { message, source } => {
                warn!("failed, and may go well another time: {message} ({source})");
                retry(message)
            }
            JobError::Fail { message } => Verdict::SetBack(Setback::Fail { message }),
            JobError::SendBack { to, segments, message } => {
                Verdict::SetBack(Setback::SendBack { to, message, segments })
            }
            JobError::Stopped => Verdict::SetBack(Setback::HandBack),
        },
        (Some(Err(_)) | None, None) => {
            warn!("the stage's code panicked");
            retry(format!(
                "The {stage} stage broke down on this video. Look at the worker's log for \"panicked\", and report \
                 it as a bug."
            ))
        }
    }
}

/// How long to wait before the next attempt: doubled with each, with jitter.
fn backoff(lease: &Lease) -> Duration {
    let doublings = lease.attempt.saturating_sub(1).min(10);
    jittered((BACKOFF * 2 * 2_u32.pow(doublings)).min(MAX_BACKOFF))
}

/// The stages that may have something to claim once `stage` advanced. (Detect frees a pack, for which
/// decode may have waited.)
fn follows(stage: Stage) -> &'static [Stage] {
    match stage {
        Stage::Index => &[Stage::Decode],
        Stage::Decode => &[Stage::Detect],
        Stage::Detect => &[Stage::Render, Stage::Decode],
        Stage::Render => &[Stage::Assemble],
        Stage::Assemble => &[],
    }
}
