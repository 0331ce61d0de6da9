//! The store of jobs and segments: one trait, and the contract suite every implementation passes.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::files::{Encoding, FileRecord};
use crate::job::{Event, Failure, JobId, ModelKey, Plan, Settings, Source, Status, Summary, Timeline};
use crate::segment::{Cut, Lease, LeaseRecord, Segment, Stage, State, Token};

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod mongo;
mod rules;
pub mod sqlite;
mod upkeep;
mod uploads;

pub use upkeep::{Callback, Offer, Queue, Seen, Tried, Upkeep, Worker};
pub use uploads::{
    LockRequest, Locking, NewUpload, Recorded, UPLOAD_KEPT, Upload, UploadLock, UploadState, Uploads, Writer,
};

/// Reported failures of one stage of one piece of work after which it is given up.
pub const MAX_FAILURES: u32 = 3;
/// Leases of one stage of one piece of work that may expire silently before it is given up.
pub const MAX_EXPIRIES: u32 = 8;
/// Times that one piece of work may be sent back to an earlier stage before it is given up. Unlike the
/// other two this is not reset when a stage advances, or damage could go round in circles.
pub const MAX_SEND_BACKS: u32 = 3;

/// The store did not answer, or answered what makes no sense. Whether a write took effect is unknown;
/// every write of [`JobStore`] may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Trying again later may help.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    /// What was read is not what this program writes.
    #[error("the database holds something unexpected: {0}")]
    Corrupt(String),
}

/// A job as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The name the user's file had; shown, never used as a path.
    pub filename: String,
    /// The video.
    pub source: Source,
    /// What was asked for.
    pub settings: Settings,
    /// What index froze.
    pub plan: Option<Plan>,
    /// What assemble made.
    pub summary: Option<Summary>,
    /// Its stamps.
    pub timeline: Timeline,
    /// 0, plus one for every retry by a user.
    pub run: u32,
    /// Where its job-level work stands.
    pub state: State,
    /// Lower is sooner.
    pub priority: i32,
    /// Failures reported in the present job-level stage.
    pub failures: u32,
    /// Leases that expired silently in the present job-level stage.
    pub expiries: u32,
    /// Not claimable before, by the store's clock.
    pub not_before: Option<Stamp>,
    /// The lease of a job-level stage.
    pub lease: Option<LeaseRecord>,
    /// Being removed.
    pub deleted: Option<Stamp>,
    /// Who wants to hear of its end.
    pub callback: Option<Callback>,
}

/// What creates a job.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Chosen by the caller, so that creating may be repeated.
    pub id: JobId,
    /// The name the user's file had.
    pub filename: String,
    /// The video, whole on the volume.
    pub source: Source,
    /// What was asked for.
    pub settings: Settings,
    /// Lower is sooner; 0 is usual.
    pub priority: i32,
    /// Where to send word when it ends.
    pub callback_url: Option<String>,
}

/// A worker's request for work.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The stage.
    pub stage: Stage,
    /// Who asks (host, process, slot).
    pub worker: String,
    /// The token the lease will carry.
    pub token: Token,
    /// How long the lease lives unless renewed.
    pub lease: Duration,
    /// Only jobs whose settings name this model (detect).
    pub model: Option<ModelKey>,
    /// No claim while more than this many bytes of packs wait, unless none waits (decode).
    pub pack_budget: Option<u64>,
}

/// Work that was claimed.
#[derive(Debug)]
pub struct Claimed {
    /// The proof.
    pub lease: Lease,
    /// The job, as it was at the claim.
    pub job: Job,
    /// The segment, unless the stage is job-level.
    pub segment: Option<Segment>,
}

/// What a renewal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives on.
    Held,
    /// It does not: somebody else may be at it. Stop quietly.
    Lost,
    /// The job was cancelled, failed, retried or deleted. Stop quietly.
    Cancelled,
}

/// What finished work leaves behind; moves its target on to the next stage.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Index is done. The segments were put by [`JobStore::put_segments`] and are released by this.
    Indexed(Plan),
    /// Decode is done.
    Decoded {
        /// The pack.
        pack: FileRecord,
        /// Numbers of frames that show their predecessor.
        concealed: Vec<u32>,
    },
    /// Detect is done.
    Detected {
        /// The detections.
        detections: FileRecord,
    },
    /// Render is done.
    Rendered {
        /// What was encoded.
        encoded: Vec<(Encoding, FileRecord)>,
    },
    /// Assemble is done.
    Assembled(Summary),
}

/// What [`JobStore::advance`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advanced {
    /// The output is recorded (now, or by an earlier try of the same call).
    Recorded,
    /// The lease was lost, or the job cancelled: nothing was recorded.
    Lost,
}

/// The store did not answer; the lease comes back, for another try.
#[derive(Debug)]
pub struct Unanswered<T> {
    /// The lease, still the caller's.
    pub lease: Lease,
    /// What was to be recorded.
    pub what: T,
    /// What happened.
    pub error: StoreError,
}

/// Why a lease is given up before its work is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setback {
    /// The worker stops; the work itself is not to blame. Costs no attempt; claimable at once.
    HandBack,
    /// It failed, and may go well another time. After [`MAX_FAILURES`] it is given up.
    Retry {
        /// What to tell the user if this was the last try.
        message: String,
        /// How long to wait, at least.
        backoff: Duration,
    },
    /// It failed, and will again.
    Fail {
        /// What to tell the user.
        message: String,
    },
    /// What the earlier stage made is gone or damaged: the segment goes back to be made again, to decode if
    /// it would need a pack that is no more, the whole job if it goes back to index. After
    /// [`MAX_SEND_BACKS`] it is given up.
    SendBack {
        /// The stage to repeat, earlier than the lease's.
        to: Stage,
        /// For the log.
        message: String,
        /// (Assemble only) the segments that go back.
        segments: Vec<u32>,
    },
}

/// How the store took a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// Stamped now.
    Stamped,
    /// Already stamped; nothing changed.
    Repeat,
    /// The segments do not bear it out.
    NotBorneOut,
    /// No such job.
    Unknown,
}

/// How many segments stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Not released yet.
    pub held: u32,
    /// In or before decode.
    pub decode: u32,
    /// In or before detect.
    pub detect: u32,
    /// In or before render.
    pub render: u32,
    /// Rendered.
    pub done: u32,
    /// Given up.
    pub failed: u32,
}

impl Counts {
    /// All segments.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.held + self.decode + self.detect + self.render + self.done + self.failed
    }
}

impl Job {
    /// Whether work may still be done for it: it has neither ended nor is it being deleted.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.timeline.process_end.is_none() && self.deleted.is_none()
    }
}

/// Jobs and segments, claims and leases. All stamps and leases go by the store's own clock.
///
/// Every write is idempotent: repeating a call whose answer was lost is safe, and one that takes effect
/// late does no harm.
#[async_trait]
pub trait JobStore: Send + Sync {
    /// Creates a job (ENQUEUE), or returns it when `new.id` exists already.
    async fn create_job(&self, new: NewJob) -> Result<Job, StoreError>;

    /// The job, unless there is none.
    async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError>;

    /// Jobs, newest first: at most `limit`, of those before `before`, with one of `statuses` (empty: all).
    /// Jobs that are being deleted are left out.
    async fn jobs(
        &self,
        before: Option<JobId>,
        limit: u32,
        statuses: &[Status],
    ) -> Result<Vec<Job>, StoreError>;

    /// The segments of a job's present run, in order.
    async fn segments(&self, job: JobId) -> Result<Vec<Segment>, StoreError>;

    /// How many of the job's segments stand where.
    async fn counts(&self, job: JobId) -> Result<Counts, StoreError>;

    /// Claims the next piece of work of a stage. Repeating a request with the same token returns the same
    /// claim while it lives; a token that has served claims nothing else.
    ///
    /// The order is (priority, rank), start-time fair queueing: the segment k of a job has rank base + k,
    /// where base is the largest rank claimed within the priority when the job was indexed or retried, in
    /// the stage (decode, detect or render) where that is least. Were it the stage that is furthest ahead, a
    /// clip would wait in the others for all that a film has piled up there.
    async fn claim(&self, request: &ClaimRequest) -> Result<Option<Claimed>, StoreError>;

    /// Prolongs a lease by `lease_time` from now. A lease that expired unnoticed is held again.
    async fn renew(&self, lease: &Lease, lease_time: Duration) -> Result<Renewal, StoreError>;

    /// Makes `cuts` the segments of the job whose index `lease` holds, as held; those of an older try go.
    async fn put_segments(&self, lease: &Lease, cuts: &[Cut]) -> Result<Renewal, StoreError>;

    /// Records what finished work left and moves its target on. Fenced by the token; repeating it is success.
    /// An output that does not fit its stage, or a plan that does not fit the segments put, is
    /// [`StoreError::Corrupt`]: repeating that call is of no use.
    async fn advance(&self, lease: Lease, output: Output) -> Result<Advanced, Unanswered<Output>>;

    /// Gives a lease up.
    async fn set_back(&self, lease: Lease, setback: Setback) -> Result<(), Unanswered<Setback>>;

    /// A worker's report of a status: stamped when the segments bear it out, with the stamps that come before
    /// it if they are missing still. A report that is not borne out changes nothing.
    async fn report(&self, id: JobId, status: Status) -> Result<Reported, StoreError>;

    /// Re-derives the job's stamps and finishes every half-done cross-document change from the segments:
    /// releases held ones, promotes the job to assemble, fails it when a segment failed.
    async fn reconcile(&self, id: JobId) -> Result<Option<Job>, StoreError>;

    /// Jobs that are not final or are being deleted: what the reconciler visits.
    async fn unsettled(&self) -> Result<Vec<JobId>, StoreError>;

    /// Fails a job that cannot go on. True when it has failed with this code now, by this call or an earlier one.
    async fn fail(&self, id: JobId, failure: Failure) -> Result<bool, StoreError>;

    /// Cancels a job. True when it is cancelled now (by this call or an earlier one), false when it had ended
    /// otherwise or is unknown.
    async fn cancel(&self, id: JobId) -> Result<bool, StoreError>;

    /// Starts another run of a job that failed or was cancelled: only unfinished segments are done again.
    async fn retry(&self, id: JobId) -> Result<bool, StoreError>;

    /// As [`Self::retry`], but with another model: the job goes back to its index, and all of it is done again.
    async fn retry_with(&self, id: JobId, model: ModelKey) -> Result<bool, StoreError>;

    /// Marks a job as being deleted, which cancels it if it was not over. False when it is unknown.
    async fn tombstone(&self, id: JobId) -> Result<bool, StoreError>;

    /// Removes a job and its segments, once its files are gone. Only a job that is marked as being deleted goes.
    async fn remove(&self, id: JobId) -> Result<(), StoreError>;
}

/// All that a service needs of its database.
pub trait Store: JobStore + Upkeep + Uploads {}

impl<T: JobStore + Upkeep + Uploads> Store for T {}

/// The event a reported status stands for, if workers may report it.
#[must_use]
pub fn reported_event(status: Status) -> Option<Event> {
    match status {
        Status::Preprocessing => Some(Event::PreprocessingStarted),
        Status::PreprocessingComplete => Some(Event::PreprocessingEnded),
        Status::Inference => Some(Event::InferenceStarted),
        Status::InferenceComplete => Some(Event::InferenceEnded),
        Status::Postprocessing => Some(Event::PostprocessingStarted),
        Status::PostprocessingComplete => Some(Event::PostprocessingEnded),
        Status::Enqueue
        | Status::EnqueueError
        | Status::FrameConvertError
        | Status::InferenceError
        | Status::PostprocessingError
        | Status::Cancelled => None,
    }
}
