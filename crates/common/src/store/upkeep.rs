//! What the store keeps beside jobs and segments: who is there, what waits, who wants to hear of an end.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Job, StoreError};
use crate::clock::Stamp;
use crate::job::{JobId, ModelKey};
use crate::segment::Stage;

/// What a worker process says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its name (host and process), as in the leases it holds.
    pub name: String,
    /// The stages it works on.
    pub stages: Vec<Stage>,
    /// Pieces of work it holds at once.
    pub slots: u32,
    /// The model it has loaded.
    pub offer: Option<Offer>,
    /// Whether it claims work; false once it holds itself to be unwell.
    pub ready: bool,
    /// The program's version.
    pub version: String,
}

/// A model that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Weights and arithmetic.
    pub key: ModelKey,
    /// Names of its classes, in the order of its outputs.
    pub names: Vec<String>,
}

/// A worker, and when it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The worker.
    pub worker: Worker,
    /// By the store's clock.
    pub at: Stamp,
}

/// What waits at a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// The stage.
    pub stage: Stage,
    /// Pieces of work that could be claimed now.
    pub waiting: u32,
    /// Pieces that wait for the end of a backoff.
    pub delayed: u32,
    /// Pieces with a live lease.
    pub working: u32,
    /// How long the one that has waited longest could have been claimed.
    pub oldest: Option<Duration>,
}

/// Who wants to hear of a job's end, and whether it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Where to send word.
    pub url: String,
    /// The run whose end is dealt with: told, or given up.
    pub settled: Option<u32>,
    /// Tries that failed, of the present run's end.
    pub failures: u32,
    /// No try before.
    pub not_before: Option<Stamp>,
}

impl Callback {
    /// One that has not been tried.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self { url, settled: None, failures: 0, not_before: None }
    }

    /// That of another run of the same job.
    #[must_use]
    pub fn again(self) -> Self {
        Self { settled: self.settled, ..Self::new(self.url) }
    }

    /// When word of the end of run `run`, at `end`, is due; none when that is dealt with.
    #[must_use]
    pub fn due(&self, run: u32, end: Stamp) -> Option<Stamp> {
        (self.settled != Some(run)).then(|| self.not_before.unwrap_or(end))
    }

    /// What `tried`, of run `run`, makes of it.
    #[must_use]
    pub fn after(&self, run: u32, tried: Tried, now: Stamp) -> Self {
        let url = self.url.clone();
        match tried {
            Tried::Settled => Self { settled: Some(run), ..Self::new(url) },
            Tried::Again(pause) => Self {
                url,
                settled: self.settled,
                failures: self.failures + 1,
                not_before: Some(now.after(pause)),
            },
        }
    }
}

/// How a callback went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// Delivered, or given up.
    Settled,
    /// It failed; another try after this long.
    Again(Duration),
}

/// Who is there, what waits, who wants to hear of an end. As with [`super::JobStore`], every write may be
/// repeated, and all times go by the store's clock.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// The store's clock.
    async fn now(&self) -> Result<Stamp, StoreError>;

    /// What waits and what is in work, for every stage in the order of [`Stage::ALL`].
    async fn queues(&self) -> Result<Vec<Queue>, StoreError>;

    /// Records that a worker is there, and what it does; repeated while it is.
    async fn announce(&self, worker: &Worker) -> Result<(), StoreError>;

    /// Records that a worker has gone. What it offered is still known.
    async fn retire(&self, name: &str) -> Result<(), StoreError>;

    /// Workers announced within the last `within` and not retired since, by name.
    async fn workers(&self, within: Duration) -> Result<Vec<Seen>, StoreError>;

    /// The model announced last, by a worker that is still there or one that has gone: what a new job is to
    /// be detected with. None until a worker with a model was there for the first time.
    async fn offer(&self) -> Result<Option<Offer>, StoreError>;

    /// Ties `key` to a job for `time`: the id that the key is tied to, `id` unless an earlier call said
    /// otherwise.
    async fn tie(&self, key: &str, id: JobId, time: Duration) -> Result<JobId, StoreError>;

    /// Takes or keeps a duty that one process at a time should do (sweeping, callbacks). True when it is
    /// `holder`'s for the next `time`.
    async fn hold(&self, duty: &str, holder: &str, time: Duration) -> Result<bool, StoreError>;

    /// Jobs that ended at least `age` ago and are not being deleted, oldest first.
    async fn ended(&self, age: Duration, limit: u32) -> Result<Vec<JobId>, StoreError>;

    /// Jobs that ended and whose callback is due.
    async fn due_callbacks(&self, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// Records how a callback for the job's run `run` went. Changes nothing when the job runs again.
    async fn callback_tried(&self, id: JobId, run: u32, tried: Tried) -> Result<(), StoreError>;
}
