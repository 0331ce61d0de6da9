//! Uploads that come in pieces: over any number of requests, each perhaps to another process.
//!
//! The bytes lie on the volume; here is how many of them count, and who may write the next. The offset is recorded
//! after the bytes are synced, so what is recorded is never more than what is there.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{NewJob, StoreError};
use crate::clock::Stamp;
use crate::job::{JobId, Settings, Source};
use crate::segment::{LeaseRecord, Token};

/// How long an upload is kept after its last byte came.
pub const UPLOAD_KEPT: Duration = Duration::from_secs(24 * 3600);

/// An upload as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upload {
    /// Its id, and that of the job it becomes.
    pub id: JobId,
    /// The name the user's file has; shown, never used as a path.
    pub filename: String,
    /// Bytes it will have.
    pub length: u64,
    /// How far it is.
    pub state: UploadState,
    /// What is asked for.
    pub settings: Settings,
    /// Where to send word when the job ends.
    pub callback_url: Option<String>,
    /// What its sender said of it, as it was said.
    pub metadata: String,
    /// When it is given up, unless more of it comes.
    pub expires: Stamp,
}

/// How far an upload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadState {
    /// Bytes are missing.
    Receiving {
        /// Bytes that count.
        offset: u64,
        /// Who may write, or could when it was last heard of.
        writer: Option<Writer>,
    },
    /// All bytes are there; the job is to be made.
    Whole,
    /// It became a job.
    Queued,
}

/// Who may write the next bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The lease.
    pub lease: LeaseRecord,
    /// Somebody else asked for it: the sender is back on another connection, most likely.
    pub wanted: bool,
}

/// What begins an upload.
#[derive(Debug, Clone, PartialEq)]
pub struct NewUpload {
    /// Chosen by the caller, so that creating may be repeated.
    pub id: JobId,
    /// The name the user's file has.
    pub filename: String,
    /// Bytes it will have, at least 1.
    pub length: u64,
    /// What is asked for.
    pub settings: Settings,
    /// Where to send word when the job ends.
    pub callback_url: Option<String>,
    /// What its sender said of it.
    pub metadata: String,
}

/// A request for the right to write.
#[derive(Debug, Clone)]
pub struct LockRequest {
    /// The upload.
    pub id: JobId,
    /// Who asks.
    pub worker: String,
    /// The token the lock will carry.
    pub token: Token,
    /// How long it lives unless renewed.
    pub lease: Duration,
}

/// Proof that its holder, and nobody else, may write the next bytes of an upload. Not `Clone`: unlocking consumes it.
#[derive(Debug, PartialEq, Eq)]
pub struct UploadLock {
    /// The upload.
    pub id: JobId,
    /// The fencing token.
    pub token: Token,
}

/// How a request for the right to write went.
#[derive(Debug, PartialEq)]
pub enum Locking {
    /// It is granted; the upload as it is then.
    Held(UploadLock, Upload),
    /// Somebody else holds it, and is told.
    Busy,
    /// There is nothing to write any more: the upload is whole or has expired.
    Over(Upload),
    /// No such upload.
    Unknown,
}

/// What recording an offset found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is recorded, and the lock lives on.
    Held {
        /// Somebody else asks for the lock.
        wanted: bool,
    },
    /// It is recorded, and was the last: the upload is whole and the lock has served.
    Whole,
    /// The lock was lost, or the upload is gone: nothing was recorded. Stop quietly.
    Lost,
}

impl Upload {
    /// Bytes that count.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self.state {
            UploadState::Receiving { offset, .. } => offset,
            UploadState::Whole | UploadState::Queued => self.length,
        }
    }

    /// Whether no byte is missing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !matches!(self.state, UploadState::Receiving { .. })
    }

    /// The job it becomes, once its bytes are at `source`.
    #[must_use]
    pub fn into_job(self, source: Source) -> NewJob {
        let Self { id, filename, settings, callback_url, .. } = self;
        NewJob { id, filename, source, settings, priority: 0, callback_url }
    }

    /// One that begins at `now`.
    pub(super) fn new(new: NewUpload, now: Stamp) -> Self {
        let NewUpload { id, filename, length, settings, callback_url, metadata } = new;
        let state = UploadState::Receiving { offset: 0, writer: None };
        Self {
            id,
            filename,
            length,
            state,
            settings,
            callback_url,
            metadata,
            expires: now.after(UPLOAD_KEPT),
        }
    }

    /// Gives the right to write to who asks, unless another has it.
    pub(super) fn lock(&mut self, request: &LockRequest, now: Stamp) -> Locking {
        let UploadState::Receiving { writer, .. } = &mut self.state else {
            return Locking::Over(self.clone());
        };
        if self.expires <= now {
            return Locking::Over(self.clone());
        }
        if let Some(Writer { lease, wanted }) = writer
            && lease.token != request.token
            && lease.expires > now
        {
            *wanted = true;
            return Locking::Busy;
        }
        let lease = LeaseRecord {
            worker: request.worker.clone(),
            token: request.token.clone(),
            expires: now.after(request.lease),
        };
        *writer = Some(Writer { lease, wanted: false });
        self.expires = now.after(UPLOAD_KEPT);
        Locking::Held(UploadLock { id: self.id, token: request.token.clone() }, self.clone())
    }

    /// Counts the bytes before `reached`, if the holder of `token` says so, and prolongs its lease.
    pub(super) fn record(
        &mut self,
        token: &Token,
        reached: u64,
        lease_time: Duration,
        now: Stamp,
    ) -> Recorded {
        match &mut self.state {
            UploadState::Receiving { offset, writer: Some(Writer { lease, wanted }) }
                if lease.token == *token && self.expires > now && reached <= self.length =>
            {
                // A call that takes effect late must not take bytes back.
                *offset = reached.max(*offset);
                lease.expires = now.after(lease_time);
                self.expires = now.after(UPLOAD_KEPT);
                if *offset < self.length {
                    return Recorded::Held { wanted: *wanted };
                }
                self.state = UploadState::Whole;
                Recorded::Whole
            }
            UploadState::Whole | UploadState::Queued if reached == self.length => Recorded::Whole,
            _ => Recorded::Lost,
        }
    }

    /// Lets go of the right to write, if `token` holds it.
    pub(super) fn unlock(&mut self, token: &Token) {
        if let UploadState::Receiving { writer, .. } = &mut self.state
            && writer.as_ref().is_some_and(|writer| writer.lease.token == *token)
        {
            *writer = None;
        }
    }

    /// Notes that its job is made.
    pub(super) fn note_queued(&mut self) {
        if self.state == UploadState::Whole {
            self.state = UploadState::Queued;
        }
    }

    /// Whether it may be removed at `now`: what is whole is kept for its time, so that its sender hears of the job.
    pub(super) fn may_go(&self, now: Stamp) -> bool {
        !self.is_whole() || self.expires <= now
    }

    /// From when on somebody has to look after it: at once when its job is to be made, else when it expires.
    pub(super) fn due(&self) -> Stamp {
        if self.state == UploadState::Whole { Stamp(0) } else { self.expires }
    }
}

/// Uploads that come in pieces. As with [`super::JobStore`], every write may be repeated and may take effect late, and
/// all times go by the store's clock.
#[async_trait]
pub trait Uploads: Send + Sync {
    /// Begins an upload, or returns it when `new.id` exists already.
    async fn create_upload(&self, new: NewUpload) -> Result<Upload, StoreError>;

    /// The upload, unless there is none.
    async fn upload(&self, id: JobId) -> Result<Option<Upload>, StoreError>;

    /// Asks for the right to write. Repeating a request with the same token holds the same lock.
    async fn lock_upload(&self, request: &LockRequest) -> Result<Locking, StoreError>;

    /// Counts the bytes before `offset`, which are synced, and prolongs the lock by `lease` from now. Offsets never
    /// go back. A lock that expired unnoticed is held again.
    async fn record_offset(
        &self,
        lock: &UploadLock,
        offset: u64,
        lease: Duration,
    ) -> Result<Recorded, StoreError>;

    /// Lets go of the right to write.
    async fn unlock_upload(&self, lock: UploadLock) -> Result<(), StoreError>;

    /// Notes that the job of a whole upload is made.
    async fn upload_queued(&self, id: JobId) -> Result<(), StoreError>;

    /// Removes an upload that is not whole, or has expired. True when there is none now; the writer loses its lock.
    async fn remove_upload(&self, id: JobId) -> Result<bool, StoreError>;

    /// Uploads that are whole and whose job is to be made, and such that have expired.
    async fn due_uploads(&self, limit: u32) -> Result<Vec<Upload>, StoreError>;
}
