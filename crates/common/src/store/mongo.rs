//! The store in MongoDB (6.0 or newer), for many processes on many machines; a standalone server and a replica
//! set serve alike.
//!
//! # What is written how
//!
//! * Every date is made by the server (`$$NOW`): no two clocks are ever compared.
//! * There are no transactions over several documents. A claim, a renewal, an advance, a setback each change one
//!   document, fenced by the lease's token. What changes a whole job (an end, another run, another cut) is written
//!   into the job's document first, by compare-and-swap on its `version`, together with a new `epoch`; then its
//!   segments follow ([`MongoStore::follow`]): each is changed once, because it takes the epoch over. Whoever
//!   meets a job whose segments have not all followed finishes that: the caller itself, a claim that catches such
//!   a segment, the reconciler.
//! * Every write may be repeated, and may take effect late, after the job went on: a token, a version or an epoch
//!   that has passed makes it void. Documents of segments carry the token of the index lease that cut them in
//!   their `_id`; those of another cut are out of force, whoever writes them.
//! * All writes wait for a majority and for the journal, because a worker deletes files once an advance is
//!   acknowledged. Only the turns of the fair queue, which may be lost, don't.

use std::collections::{HashMap, VecDeque};
use std::future::IntoFuture;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::{Acknowledgment, ClientOptions, CollectionOptions, ReturnDocument, WriteConcern};
use mongodb::{Client, Collection, Cursor, Database};

use super::{
    Advanced, ClaimRequest, Claimed, Counts, Job, JobStore, LockRequest, Locking, NewJob, NewUpload, Offer,
    Output, Queue, Recorded, Renewal, Reported, Seen, Setback, StoreError, Tried, Unanswered, Upkeep, Upload,
    UploadLock, Uploads, Worker,
};
use crate::clock::{Clock, Stamp};
use crate::job::{Failure, JobId, ModelKey, Status};
use crate::segment::{Cut, Lease, Segment, Stage, Token};

mod docs;
mod jobs;
mod schema;
mod segments;
mod upkeep;
mod uploads;
mod wakes;
mod work;

/// How long the driver looks for a server that takes writes, unless the URI says otherwise.
const SELECTION: Duration = Duration::from_secs(3);
/// How long a call waits for its answer: mongod may hang with its connections open.
const ANSWER: Duration = Duration::from_secs(8);
/// The same for changes of all segments of a job.
const LONG_ANSWER: Duration = Duration::from_secs(60);
/// How long the server waits for a majority to have a write.
const MAJORITY: Duration = Duration::from_secs(5);
/// Tokens that are remembered as having been asked with.
const REMEMBERED: usize = 1024;
/// How often a change that others keep getting ahead of is tried before the caller hears of it.
const TRIES: u32 = 50;

/// Jobs and segments in a MongoDB database.
#[derive(Clone)]
pub struct MongoStore {
    database: Database,
    requests: Collection<Document>,
    segments: Collection<Document>,
    turns: Collection<Document>,
    uploads: Collection<Document>,
    /// None: the server's own.
    clock: Option<Arc<dyn Clock>>,
    memory: Arc<Mutex<Memory>>,
}

/// What this process knows of its own calls.
#[derive(Default)]
struct Memory {
    /// Tokens that claims were asked with, unless the answer was that there is nothing.
    asked: VecDeque<Token>,
    /// The largest rank known to be noted, by priority and stage.
    turns: HashMap<(i32, Stage), i64>,
}

impl MongoStore {
    /// Connects to the server or replica set at `uri` (which may carry credentials and TLS options) and makes the
    /// indexes in `database`, unless they are there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the URI cannot be read, no server answers or it refuses the login.
    pub async fn connect(uri: &str, database: &str) -> Result<Self, StoreError> {
        let store = Self::open(uri, database, None).await?;
        schema::prepare(&store).await?;
        Ok(store)
    }

    /// The same with dates made by `clock` instead of by the server, for tests that move time.
    ///
    /// # Errors
    /// As [`MongoStore::connect`].
    #[cfg(any(test, feature = "contract"))]
    pub async fn with_clock(uri: &str, database: &str, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let store = Self::open(uri, database, Some(clock)).await?;
        schema::prepare(&store).await?;
        Ok(store)
    }

    async fn open(uri: &str, database: &str, clock: Option<Arc<dyn Clock>>) -> Result<Self, StoreError> {
        let mut options = ClientOptions::parse(uri).await.map_err(|error| unanswered(&error))?;
        options.app_name.get_or_insert_with(|| "boxreel".to_owned());
        options.server_selection_timeout.get_or_insert(SELECTION);
        options.connect_timeout.get_or_insert(SELECTION);
        let database = Client::with_options(options).map_err(|error| unanswered(&error))?.database(database);
        let durable =
            WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(MAJORITY).build();
        let collection = |name, concern| {
            let options = CollectionOptions::builder().write_concern(concern).build();
            database.collection_with_options::<Document>(name, options)
        };
        let quick = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
        Ok(Self {
            requests: collection(schema::REQUESTS, durable.clone()),
            segments: collection(schema::SEGMENTS, durable.clone()),
            uploads: collection(schema::UPLOADS, durable),
            turns: collection(schema::TURNS, quick),
            database,
            clock,
            memory: Arc::default(),
        })
    }

    /// The present moment, as an expression that the server evaluates.
    fn now(&self) -> Bson {
        match &self.clock {
            None => Bson::String("$$NOW".to_owned()),
            Some(clock) => Bson::DateTime(docs::date(clock.now())),
        }
    }

    /// The moment `time` from now, as an expression.
    fn after(&self, time: Duration) -> Document {
        doc! { "$add": [self.now(), milliseconds(time)] }
    }

    /// The moment `time` ago, as an expression.
    fn before(&self, time: Duration) -> Document {
        doc! { "$subtract": [self.now(), milliseconds(time)] }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX / 2)
}

/// Waits for the server's answer, though not for ever.
async fn answer<T>(call: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, StoreError> {
    within(ANSWER, call).await?.map_err(|error| unanswered(&error))
}

/// The next document of a cursor.
async fn next(cursor: &mut Cursor<Document>) -> Result<Option<Document>, StoreError> {
    if !answer(cursor.advance()).await? {
        return Ok(None);
    }
    answer(std::future::ready(cursor.deserialize_current())).await.map(Some)
}

/// The same for changes of all segments of a job.
async fn long_answer<T>(call: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, StoreError> {
    within(LONG_ANSWER, call).await?.map_err(|error| unanswered(&error))
}

/// The answer, or [`StoreError::Unavailable`] if none comes in time.
async fn within<T>(time: Duration, call: impl IntoFuture<Output = T>) -> Result<T, StoreError> {
    let late = || StoreError::Unavailable(format!("no answer from MongoDB within {} s", time.as_secs()));
    tokio::time::timeout(time, call).await.map_err(|_| late())
}

/// Makes `new` the document `id`, unless there is one for which `stays` holds. Returns what is there then.
async fn put_unless(
    collection: &Collection<Document>,
    id: impl Into<Bson>,
    stays: Document,
    new: Document,
) -> Result<Document, StoreError> {
    let id = id.into();
    let change = vec![doc! { "$replaceWith": { "$cond": [stays, "$$ROOT", new] } }];
    // Two may make it at once; the one that comes second then finds it.
    for last in [false, true] {
        let put = collection
            .find_one_and_update(doc! { "_id": &id }, change.clone())
            .upsert(true)
            .return_document(ReturnDocument::After);
        match within(ANSWER, put).await? {
            Ok(Some(document)) => return Ok(document),
            Err(error) if !last && is_duplicate(&error) => {}
            Ok(None) => break,
            Err(error) => return Err(unanswered(&error)),
        }
    }
    Err(StoreError::Corrupt(format!("{id} was put and is not there")))
}

fn unanswered(error: &Error) -> StoreError {
    match &*error.kind {
        ErrorKind::Bson(what) => StoreError::Corrupt(what.to_string()),
        ErrorKind::InvalidResponse { message, .. } => StoreError::Corrupt(message.clone()),
        kind => StoreError::Unavailable(kind.to_string()),
    }
}

/// Whether the server refused a document because a unique field of it is another's.
fn is_duplicate(error: &Error) -> bool {
    const DUPLICATE_KEY: i32 = 11000;
    match &*error.kind {
        ErrorKind::Command(error) => error.code == DUPLICATE_KEY,
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        ErrorKind::InsertMany(error) => {
            error.write_concern_error.is_none()
                && error
                    .write_errors
                    .as_ref()
                    .is_some_and(|errors| errors.iter().all(|error| error.code == DUPLICATE_KEY))
        }
        _ => false,
    }
}

/// Others got ahead of this change again and again.
fn contended(id: JobId) -> StoreError {
    StoreError::Unavailable(format!("too many writers change job {id} at once"))
}

/// Waits a moment before another try of a change that somebody got ahead of.
async fn step_aside(tries: u32) {
    if tries > 1 {
        let most = 2_u64.pow(tries.min(6));
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..=most))).await;
    }
}

#[async_trait]
impl JobStore for MongoStore {
    async fn create_job(&self, new: NewJob) -> Result<Job, StoreError> {
        self.create(new).await
    }

    async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        Ok(self.find_job(id).await?.map(|row| row.doc.job))
    }

    async fn jobs(
        &self,
        before: Option<JobId>,
        limit: u32,
        statuses: &[Status],
    ) -> Result<Vec<Job>, StoreError> {
        self.list(before, limit, statuses).await
    }

    async fn segments(&self, job: JobId) -> Result<Vec<Segment>, StoreError> {
        let Some(cut) = self.cut(job).await? else { return Ok(Vec::new()) };
        let rows = self.segments_of(job, &cut, doc! {}).await?;
        Ok(rows.into_iter().map(|row| row.doc.segment).collect())
    }

    async fn counts(&self, job: JobId) -> Result<Counts, StoreError> {
        match self.cut(job).await? {
            Some(cut) => self.counts_of(job, &cut).await,
            None => Ok(Counts::default()),
        }
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Option<Claimed>, StoreError> {
        self.claim_next(request).await
    }

    async fn renew(&self, lease: &Lease, lease_time: Duration) -> Result<Renewal, StoreError> {
        self.prolong(lease, lease_time).await
    }

    async fn put_segments(&self, lease: &Lease, cuts: &[Cut]) -> Result<Renewal, StoreError> {
        self.put(lease, cuts).await
    }

    async fn advance(&self, lease: Lease, output: Output) -> Result<Advanced, Unanswered<Output>> {
        match self.record(&lease, &output).await {
            Ok(advanced) => Ok(advanced),
            Err(error) => Err(Unanswered { lease, what: output, error }),
        }
    }

    async fn set_back(&self, lease: Lease, setback: Setback) -> Result<(), Unanswered<Setback>> {
        match self.give_back(&lease, &setback).await {
            Ok(()) => Ok(()),
            Err(error) => Err(Unanswered { lease, what: setback, error }),
        }
    }

    async fn report(&self, id: JobId, status: Status) -> Result<Reported, StoreError> {
        self.stamp_report(id, status).await
    }

    async fn reconcile(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.finish(id).await
    }

    async fn unsettled(&self) -> Result<Vec<JobId>, StoreError> {
        self.list_unsettled().await
    }

    async fn fail(&self, id: JobId, failure: Failure) -> Result<bool, StoreError> {
        self.end_failed(id, failure).await
    }

    async fn cancel(&self, id: JobId) -> Result<bool, StoreError> {
        self.end_cancelled(id).await
    }

    async fn retry(&self, id: JobId) -> Result<bool, StoreError> {
        self.run_again(id, None).await
    }

    async fn retry_with(&self, id: JobId, model: ModelKey) -> Result<bool, StoreError> {
        self.run_again(id, Some(&model)).await
    }

    async fn tombstone(&self, id: JobId) -> Result<bool, StoreError> {
        self.mark_deleted(id).await
    }

    async fn remove(&self, id: JobId) -> Result<(), StoreError> {
        self.remove_marked(id).await
    }
}

#[async_trait]
impl Upkeep for MongoStore {
    async fn now(&self) -> Result<Stamp, StoreError> {
        self.read_clock().await
    }

    async fn queues(&self) -> Result<Vec<Queue>, StoreError> {
        self.read_queues().await
    }

    async fn announce(&self, worker: &Worker) -> Result<(), StoreError> {
        self.note_worker(worker).await
    }

    async fn retire(&self, name: &str) -> Result<(), StoreError> {
        self.note_gone(name).await
    }

    async fn workers(&self, within: Duration) -> Result<Vec<Seen>, StoreError> {
        self.list_workers(within).await
    }

    async fn offer(&self) -> Result<Option<Offer>, StoreError> {
        self.last_offer().await
    }

    async fn tie(&self, key: &str, id: JobId, time: Duration) -> Result<JobId, StoreError> {
        self.tie_key(key, id, time).await
    }

    async fn hold(&self, duty: &str, holder: &str, time: Duration) -> Result<bool, StoreError> {
        self.hold_duty(duty, holder, time).await
    }

    async fn ended(&self, age: Duration, limit: u32) -> Result<Vec<JobId>, StoreError> {
        self.list_ended(age, limit).await
    }

    async fn due_callbacks(&self, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.list_due_callbacks(limit).await
    }

    async fn callback_tried(&self, id: JobId, run: u32, tried: Tried) -> Result<(), StoreError> {
        self.note_callback(id, run, tried).await
    }
}

#[async_trait]
impl Uploads for MongoStore {
    async fn create_upload(&self, new: NewUpload) -> Result<Upload, StoreError> {
        self.begin_upload(new).await
    }

    async fn upload(&self, id: JobId) -> Result<Option<Upload>, StoreError> {
        self.find_upload(id).await
    }

    async fn lock_upload(&self, request: &LockRequest) -> Result<Locking, StoreError> {
        let locking = self.change_upload(request.id, |upload, now| upload.lock(request, now));
        Ok(locking.await?.unwrap_or(Locking::Unknown))
    }

    async fn record_offset(
        &self,
        lock: &UploadLock,
        offset: u64,
        lease: Duration,
    ) -> Result<Recorded, StoreError> {
        let recorded =
            self.change_upload(lock.id, |upload, now| upload.record(&lock.token, offset, lease, now));
        Ok(recorded.await?.unwrap_or(Recorded::Lost))
    }

    async fn unlock_upload(&self, lock: UploadLock) -> Result<(), StoreError> {
        self.change_upload(lock.id, |upload, _| upload.unlock(&lock.token)).await.map(drop)
    }

    async fn upload_queued(&self, id: JobId) -> Result<(), StoreError> {
        self.change_upload(id, |upload, _| upload.note_queued()).await.map(drop)
    }

    async fn remove_upload(&self, id: JobId) -> Result<bool, StoreError> {
        self.end_upload(id).await
    }

    async fn due_uploads(&self, limit: u32) -> Result<Vec<Upload>, StoreError> {
        self.list_due_uploads(limit).await
    }
}

#[cfg(test)]
mod tests;
