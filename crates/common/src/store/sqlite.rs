//! The store in one SQLite file, for one-process use; several processes may open the same file.
//!
//! Write-ahead log, so that readers and the writer don't wait for each other. `synchronous = FULL`: kill -9
//! alone would allow `NORMAL`, but a worker deletes files as soon as an advance is acknowledged, so what is
//! acknowledged must survive a loss of power too; at a handful of commits per segment that costs nothing
//! one would notice. Every call is one `IMMEDIATE` transaction on a blocking thread, so a process that is
//! killed leaves either all of a call or nothing of it, and a call whose future is dropped still takes
//! effect as a whole.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::{
    Advanced, ClaimRequest, Claimed, Counts, Job, JobStore, LockRequest, Locking, NewJob, NewUpload, Offer,
    Output, Queue, Recorded, Renewal, Reported, Seen, Setback, StoreError, Tried, Unanswered, Upkeep, Upload,
    UploadLock, Uploads, Worker,
};
use crate::clock::{Clock, Stamp};
use crate::job::{Failure, JobId, ModelKey, Status};
use crate::segment::{Cut, Lease, Segment};

mod jobs;
mod rows;
mod schema;
mod upkeep;
mod uploads;
mod work;

/// How long a call waits for another process that is writing.
const BUSY: Duration = Duration::from_secs(10);

/// Jobs and segments in one SQLite file.
#[derive(Clone)]
pub struct SqliteStore {
    connection: Arc<Mutex<Connection>>,
    clock: Arc<dyn Clock>,
    refusing: Arc<Mutex<Option<Refusing>>>,
}

/// Since when no write has gone through, and what the last one said.
#[derive(Debug, Clone)]
struct Refusing {
    since: Instant,
    why: String,
}

impl SqliteStore {
    /// Opens the file at `path`, or makes it. Leases and stamps go by `clock`. Blocks for a moment.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the file cannot be opened or written, [`StoreError::Corrupt`] when it
    /// is no database or was written by a newer program.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let in_path = |error: StoreError| match error {
            StoreError::Unavailable(what) => StoreError::Unavailable(format!("{}: {what}", path.display())),
            StoreError::Corrupt(what) => StoreError::Corrupt(format!("{}: {what}", path.display())),
        };
        let mut connection = Connection::open(path).map_err(|error| in_path(error.into()))?;
        let sql_clock = clock.clone();
        connection
            .create_scalar_function("clock", 0, FunctionFlags::default(), move |_| Ok(sql_clock.now().0))
            .map_err(|error| in_path(error.into()))?;
        schema::prepare(&mut connection).map_err(in_path)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), clock, refusing: Arc::default() })
    }

    /// Hands every lease back that is held on anything in the file; tells how many. For a program that knows
    /// that it is the only one to use the file (it holds a lock on its folder): what an earlier process of
    /// it held when it was killed need not wait for leases to expire, and costs no attempt.
    ///
    /// # Errors
    /// As every call of [`JobStore`].
    pub async fn hand_back_all(&self) -> Result<usize, StoreError> {
        self.write(|tx, _| Ok(work::hand_back_all(tx)? + uploads::unlock_all(tx)?)).await
    }

    /// For how long every write has failed, and why the last one did; `None` while writes go through. For a program
    /// whose store is its own: nobody else will mend it, so waiting for an answer has to end at some time.
    #[must_use]
    pub fn refuses_writes(&self) -> Option<(Duration, String)> {
        let refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        refusing.as_ref().map(|refusing| (refusing.since.elapsed(), refusing.why.clone()))
    }

    /// Runs `call` as one transaction. The clock is read once the transaction has begun, so stamps are in
    /// the order of the commits.
    async fn call<T: Send + 'static>(
        &self,
        behavior: TransactionBehavior,
        call: impl FnOnce(&Transaction<'_>, Stamp) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (connection, clock) = (self.connection.clone(), self.clock.clone());
        let run = move || {
            // A panic in an earlier call rolled its transaction back: the connection is as good as new.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(behavior)?;
            let answer = call(&transaction, clock.now())?;
            transaction.commit()?;
            Ok(answer)
        };
        tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| {
            Err(StoreError::Unavailable(format!("the call did not come to its end: {error}")))
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Transaction<'_>, Stamp) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let counted = move |tx: &Transaction<'_>, now| {
            let before = tx.total_changes();
            let answer = call(tx, now)?;
            Ok((answer, tx.total_changes() != before))
        };
        let answer = self.call(TransactionBehavior::Immediate, counted).await;
        let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Ok((_, true)) => *refusing = None,
            // Nothing was written, such as by a claim that found nothing: that shows nothing.
            Ok((_, false)) => {}
            Err(error) => {
                let since = refusing.as_ref().map_or_else(Instant::now, |refusing| refusing.since);
                *refusing = Some(Refusing { since, why: error.to_string() });
            }
        }
        drop(refusing);
        answer.map(|(answer, _)| answer)
    }

    async fn read<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Transaction<'_>, Stamp) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.call(TransactionBehavior::Deferred, call).await
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt(format!("{error}; the file is damaged or no database of this program"))
            }
            Some(ErrorCode::DiskFull) => Self::Unavailable("the disk is full".to_owned()),
            Some(ErrorCode::TypeMismatch | ErrorCode::ConstraintViolation) => {
                Self::Corrupt(error.to_string())
            }
            None if !matches!(error, rusqlite::Error::SqlInputError { .. }) => {
                Self::Corrupt(error.to_string())
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// A lease without its uniqueness, to name it in another thread.
#[derive(Debug, Clone)]
struct Key {
    target: crate::segment::Target,
    stage: crate::segment::Stage,
    run: u32,
    token: crate::segment::Token,
}

impl From<&Lease> for Key {
    fn from(lease: &Lease) -> Self {
        Self { target: lease.target, stage: lease.stage, run: lease.run, token: lease.token.clone() }
    }
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn create_job(&self, new: NewJob) -> Result<Job, StoreError> {
        self.write(|tx, now| jobs::create(tx, new, now)).await
    }

    async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(move |tx, _| Ok(rows::job(tx, id)?.map(|doc| doc.job))).await
    }

    async fn jobs(
        &self,
        before: Option<JobId>,
        limit: u32,
        statuses: &[Status],
    ) -> Result<Vec<Job>, StoreError> {
        let statuses = statuses.to_vec();
        self.read(move |tx, _| jobs::list(tx, before, limit, &statuses)).await
    }

    async fn segments(&self, job: JobId) -> Result<Vec<Segment>, StoreError> {
        self.read(move |tx, _| Ok(rows::segments(tx, job)?.into_iter().map(|doc| doc.segment).collect()))
            .await
    }

    async fn counts(&self, job: JobId) -> Result<Counts, StoreError> {
        self.read(move |tx, _| rows::counts(tx, job)).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Option<Claimed>, StoreError> {
        let request = request.clone();
        self.write(move |tx, now| work::claim(tx, &request, now)).await
    }

    async fn renew(&self, lease: &Lease, lease_time: Duration) -> Result<Renewal, StoreError> {
        let key = Key::from(lease);
        self.write(move |tx, now| work::renew(tx, &key, now.after(lease_time))).await
    }

    async fn put_segments(&self, lease: &Lease, cuts: &[Cut]) -> Result<Renewal, StoreError> {
        let (key, cuts) = (Key::from(lease), cuts.to_vec());
        self.write(move |tx, _| work::put_segments(tx, &key, &cuts)).await
    }

    async fn advance(&self, lease: Lease, output: Output) -> Result<Advanced, Unanswered<Output>> {
        let (key, what) = (Key::from(&lease), output.clone());
        self.write(move |tx, _| work::advance(tx, &key, what)).await.map_err(|error| Unanswered {
            lease,
            what: output,
            error,
        })
    }

    async fn set_back(&self, lease: Lease, setback: Setback) -> Result<(), Unanswered<Setback>> {
        let (key, what) = (Key::from(&lease), setback.clone());
        self.write(move |tx, now| work::set_back(tx, &key, what, now)).await.map_err(|error| Unanswered {
            lease,
            what: setback,
            error,
        })
    }

    async fn report(&self, id: JobId, status: Status) -> Result<Reported, StoreError> {
        self.write(move |tx, now| jobs::report(tx, id, status, now)).await
    }

    async fn reconcile(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.write(move |tx, now| jobs::reconcile(tx, id, now)).await
    }

    async fn unsettled(&self) -> Result<Vec<JobId>, StoreError> {
        self.read(|tx, _| jobs::unsettled(tx)).await
    }

    async fn fail(&self, id: JobId, failure: Failure) -> Result<bool, StoreError> {
        self.write(move |tx, now| jobs::fail(tx, id, failure, now)).await
    }

    async fn cancel(&self, id: JobId) -> Result<bool, StoreError> {
        self.write(move |tx, now| jobs::cancel(tx, id, now)).await
    }

    async fn retry(&self, id: JobId) -> Result<bool, StoreError> {
        self.write(move |tx, now| jobs::retry(tx, id, None, now)).await
    }

    async fn retry_with(&self, id: JobId, model: ModelKey) -> Result<bool, StoreError> {
        self.write(move |tx, now| jobs::retry(tx, id, Some(model), now)).await
    }

    async fn tombstone(&self, id: JobId) -> Result<bool, StoreError> {
        self.write(move |tx, now| jobs::tombstone(tx, id, now)).await
    }

    async fn remove(&self, id: JobId) -> Result<(), StoreError> {
        self.write(move |tx, _| jobs::remove(tx, id)).await
    }
}

#[async_trait]
impl Upkeep for SqliteStore {
    async fn now(&self) -> Result<Stamp, StoreError> {
        Ok(self.clock.now())
    }

    async fn queues(&self) -> Result<Vec<Queue>, StoreError> {
        self.read(|tx, now| upkeep::queues(tx, now)).await
    }

    async fn announce(&self, worker: &Worker) -> Result<(), StoreError> {
        let worker = worker.clone();
        self.write(move |tx, now| upkeep::announce(tx, &worker, now)).await
    }

    async fn retire(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |tx, _| upkeep::retire(tx, &name)).await
    }

    async fn workers(&self, within: Duration) -> Result<Vec<Seen>, StoreError> {
        self.read(move |tx, now| upkeep::workers(tx, within, now)).await
    }

    async fn offer(&self) -> Result<Option<Offer>, StoreError> {
        self.read(|tx, _| upkeep::offer(tx)).await
    }

    async fn tie(&self, key: &str, id: JobId, time: Duration) -> Result<JobId, StoreError> {
        let key = key.to_owned();
        self.write(move |tx, now| upkeep::tie(tx, &key, id, time, now)).await
    }

    async fn hold(&self, duty: &str, holder: &str, time: Duration) -> Result<bool, StoreError> {
        let (duty, holder) = (duty.to_owned(), holder.to_owned());
        self.write(move |tx, now| upkeep::hold(tx, &duty, &holder, time, now)).await
    }

    async fn ended(&self, age: Duration, limit: u32) -> Result<Vec<JobId>, StoreError> {
        self.read(move |tx, now| upkeep::ended(tx, age, limit, now)).await
    }

    async fn due_callbacks(&self, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.read(move |tx, now| upkeep::due_callbacks(tx, limit, now)).await
    }

    async fn callback_tried(&self, id: JobId, run: u32, tried: Tried) -> Result<(), StoreError> {
        self.write(move |tx, now| upkeep::callback_tried(tx, id, run, tried, now)).await
    }
}

#[async_trait]
impl Uploads for SqliteStore {
    async fn create_upload(&self, new: NewUpload) -> Result<Upload, StoreError> {
        self.write(|tx, now| uploads::create(tx, new, now)).await
    }

    async fn upload(&self, id: JobId) -> Result<Option<Upload>, StoreError> {
        self.read(move |tx, _| uploads::find(tx, id)).await
    }

    async fn lock_upload(&self, request: &LockRequest) -> Result<Locking, StoreError> {
        let request = request.clone();
        let locking =
            self.write(move |tx, now| uploads::change(tx, request.id, |upload| upload.lock(&request, now)));
        Ok(locking.await?.unwrap_or(Locking::Unknown))
    }

    async fn record_offset(
        &self,
        lock: &UploadLock,
        offset: u64,
        lease: Duration,
    ) -> Result<Recorded, StoreError> {
        let (id, token) = (lock.id, lock.token.clone());
        let recorded = self.write(move |tx, now| {
            uploads::change(tx, id, |upload| upload.record(&token, offset, lease, now))
        });
        Ok(recorded.await?.unwrap_or(Recorded::Lost))
    }

    async fn unlock_upload(&self, lock: UploadLock) -> Result<(), StoreError> {
        let unlocked =
            self.write(move |tx, _| uploads::change(tx, lock.id, |upload| upload.unlock(&lock.token)));
        unlocked.await.map(drop)
    }

    async fn upload_queued(&self, id: JobId) -> Result<(), StoreError> {
        self.write(move |tx, _| uploads::change(tx, id, Upload::note_queued)).await.map(drop)
    }

    async fn remove_upload(&self, id: JobId) -> Result<bool, StoreError> {
        self.write(move |tx, now| uploads::remove(tx, id, now)).await
    }

    async fn due_uploads(&self, limit: u32) -> Result<Vec<Upload>, StoreError> {
        self.read(move |tx, now| uploads::due(tx, limit, now)).await
    }
}

#[cfg(test)]
mod tests;
