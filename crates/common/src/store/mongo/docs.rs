//! Documents as MongoDB keeps them, to the typed ones and back.
//!
//! A job's document shows the fields of the original under their names (`FILENAME`, `STATUS`, `PROCESS_START`, …)
//! and everything else in lower case. Dates are BSON dates: whole milliseconds, absent until they happen.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, deserialize_from_document, serialize_to_document};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::rules::{Advance, Avoid, Book, FirstClaims, JobDoc, SegmentDoc, model_text, state_text};
use super::super::{Callback, Job, StoreError};
use crate::clock::Stamp;
use crate::job::{Ended, Event, JobId, Plan, Settings, Source, Summary, Timeline, format_total};
use crate::segment::{LeaseRecord, Segment, SegmentFiles, Stage, State, Token};

/// A job's document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JobRow {
    pub doc: JobDoc,
    /// Since when it may be claimed, if it waits for a stage of its own.
    pub ready: Stamp,
    /// Changes with every write: what was read is written back only if nobody wrote in between.
    pub version: i64,
    /// Counts the changes of this document that its segments have to follow.
    pub epoch: i64,
    /// The last of them that all segments have followed.
    pub followed: i64,
    /// The segments in force: those that this index lease cut.
    pub cut: Option<Token>,
    /// Cuts whose segments are to be removed.
    pub dead_cuts: Vec<Token>,
    /// Segments that assemble sends back, until they have followed.
    pub back: Option<Back>,
}

/// Segments that are sent back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Back {
    pub to: Stage,
    pub message: String,
    pub segments: Vec<u32>,
}

impl JobRow {
    /// Whether the segments have something to follow still.
    pub(super) fn pending(&self) -> bool {
        self.followed < self.epoch || !self.dead_cuts.is_empty()
    }

    /// Whether the reconciler has to visit it.
    fn unsettled(&self) -> bool {
        let job = &self.doc.job;
        job.deleted.is_some() || !job.timeline.status().is_final() || self.pending()
    }

    /// Applies an event that ends the job. A job that has ended already stays as it is.
    pub(super) fn end(&mut self, event: Event, now: Stamp) {
        if let Ok(timeline) = self.doc.job.timeline.apply(event, now) {
            self.doc.job.timeline = timeline;
            self.epoch += 1;
        }
    }

    /// The job will be cut again: its segments are worth nothing now.
    pub(super) fn drop_cut(&mut self) {
        self.dead_cuts.extend(self.cut.take());
        self.epoch += 1;
    }
}

/// A segment's document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SegmentRow {
    pub doc: SegmentDoc,
    /// The index lease that cut it.
    pub cut: Token,
    /// The last change of the job that it has followed.
    pub epoch: i64,
    /// Copied from the job, which never changes it: what a claim chooses by.
    pub priority: i32,
    /// The same.
    pub model: String,
}

impl SegmentRow {
    pub(super) fn id(&self) -> String {
        segment_id(self.doc.segment.job, self.doc.segment.index, &self.cut)
    }
}

/// The `_id` of a segment. It carries the token of the index lease that cut it, as files do: what an index that
/// lost its lease writes late never meets the segments in force.
pub(super) fn segment_id(job: JobId, number: u32, cut: &Token) -> String {
    format!("{job}/{number}.{cut}")
}

pub(super) fn object_id(id: JobId) -> ObjectId {
    ObjectId::from_bytes(id.bytes())
}

pub(super) fn job_id(id: ObjectId) -> JobId {
    JobId::from(id.bytes())
}

/// A date is whole milliseconds; what is finer is rounded up, so that nothing is due too early.
pub(super) fn date(stamp: Stamp) -> DateTime {
    DateTime::from_millis(stamp.0.div_euclid(1000) + i64::from(stamp.0.rem_euclid(1000) > 0))
}

pub(super) fn stamp(date: DateTime) -> Stamp {
    Stamp(date.timestamp_millis().saturating_mul(1000))
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredLease {
    worker: String,
    token: Token,
    expires: DateTime,
}

impl From<LeaseRecord> for StoredLease {
    fn from(LeaseRecord { worker, token, expires }: LeaseRecord) -> Self {
        Self { worker, token, expires: date(expires) }
    }
}

impl From<StoredLease> for LeaseRecord {
    fn from(StoredLease { worker, token, expires }: StoredLease) -> Self {
        Self { worker, token, expires: stamp(expires) }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredAvoid {
    worker: String,
    until: DateTime,
}

#[derive(Serialize, Deserialize)]
struct GaveUp {
    stage: Stage,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct StoredCallback {
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settled: Option<u32>,
    failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<DateTime>,
}

/// Where a piece of work stands: the fields that jobs and segments have in common.
#[derive(Serialize, Deserialize)]
struct StoredWork {
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<GaveUp>,
    failures: u32,
    expiries: u32,
    sent_back: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<StoredLease>,
    /// The last advance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advanced: Option<Advance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    avoid: Option<StoredAvoid>,
    // What is searched by. `stage` is there while the work may be claimed, once `ready` has come; `tokens` are
    // those of the lease and of the last advance, unique among all documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stage: Option<Stage>,
    ready: DateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<Token>>,
}

/// The same, typed.
struct Work {
    state: State,
    failures: u32,
    expiries: u32,
    not_before: Option<Stamp>,
    lease: Option<LeaseRecord>,
    book: Book,
    ready: Stamp,
}

impl Work {
    fn stored(self, claimable: bool) -> StoredWork {
        let Self { state, failures, expiries, not_before, lease, book, ready } = self;
        let ready = lease.as_ref().map(|lease| lease.expires).max(not_before).unwrap_or(ready);
        let tokens: Vec<_> = lease
            .iter()
            .map(|lease| &lease.token)
            .chain(book.last.iter().map(|last| &last.token))
            .cloned()
            .collect();
        StoredWork {
            state: state_text(&state).to_owned(),
            stage: match &state {
                State::Waiting(stage) if claimable => Some(*stage),
                _ => None,
            },
            failed: match state {
                State::Failed { stage, reason } => Some(GaveUp { stage, reason }),
                _ => None,
            },
            failures,
            expiries,
            sent_back: book.sent_back,
            not_before: not_before.map(date),
            lease: lease.map(StoredLease::from),
            advanced: book.last,
            avoid: book.avoid.map(|Avoid { worker, until }| StoredAvoid { worker, until: date(until) }),
            ready: date(ready),
            tokens: (!tokens.is_empty()).then_some(tokens),
        }
    }

    fn read(stored: StoredWork) -> Result<Self, String> {
        let state = match (stored.state.as_str(), stored.failed) {
            ("failed", Some(GaveUp { stage, reason })) => State::Failed { stage, reason },
            ("held", None) => State::Held,
            ("segments", None) => State::Segments,
            ("done", None) => State::Done,
            (name, None) => match Stage::ALL.into_iter().find(|stage| stage.as_str() == name) {
                Some(stage) => State::Waiting(stage),
                None => return Err(format!("its state is {name:?}")),
            },
            (name, Some(_)) => return Err(format!("its state is {name:?}, yet it was given up")),
        };
        let avoid = stored.avoid.map(|StoredAvoid { worker, until }| Avoid { worker, until: stamp(until) });
        Ok(Self {
            state,
            failures: stored.failures,
            expiries: stored.expiries,
            not_before: stored.not_before.map(stamp),
            lease: stored.lease.map(LeaseRecord::from),
            book: Book { last: stored.advanced, sent_back: stored.sent_back, avoid },
            ready: stamp(stored.ready),
        })
    }
}

/// The document of a job, in the order in which it reads well.
#[derive(Serialize, Deserialize)]
#[expect(non_snake_case, reason = "the original's names")]
struct StoredJob {
    _id: ObjectId,
    FILENAME: String,
    STATUS: String,
    PROCESS_START: DateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    PREPROCESSING_START: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    PREPROCESSING_END: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    INFERENCE_START: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    INFERENCE_END: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    POSTPROCESSING_START: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    POSTPROCESSING_END: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    PROCESS_END: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    TOTAL: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    source: Source,
    settings: Settings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    run: u32,
    priority: i32,
    #[serde(flatten)]
    work: StoredWork,
    claimed: FirstClaims,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted: Option<DateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback: Option<StoredCallback>,
    /// When word of its end is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback_due: Option<DateTime>,
    model: String,
    /// There, and true, while the reconciler has to visit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsettled: Option<bool>,
    version: i64,
    epoch: i64,
    followed: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cut: Option<Token>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dead_cuts: Vec<Token>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    back: Option<Back>,
}

#[derive(Serialize, Deserialize)]
struct StoredSegment {
    _id: String,
    job: ObjectId,
    number: u32,
    first: u32,
    last: u32,
    run: u32,
    cut: Token,
    epoch: i64,
    priority: i32,
    rank: i64,
    model: String,
    #[serde(flatten)]
    work: StoredWork,
    files: SegmentFiles,
    pack_bytes: u64,
}

pub(super) fn write<T: Serialize>(document: &T) -> Result<Document, StoreError> {
    serialize_to_document(document)
        .map_err(|error| StoreError::Corrupt(format!("a document cannot be written: {error}")))
}

/// Parses a document of `collection`; the error names it.
pub(super) fn read<T: DeserializeOwned>(collection: &str, document: Document) -> Result<T, StoreError> {
    let id = document.get("_id").map_or_else(|| "without _id".to_owned(), ToString::to_string);
    deserialize_from_document(document).map_err(|error| {
        StoreError::Corrupt(format!("document {id} of {collection} cannot be read: {error}"))
    })
}

pub(super) fn write_job(row: &JobRow) -> Result<Document, StoreError> {
    let unsettled = row.unsettled();
    let JobRow { doc, ready, version, epoch, followed, cut, dead_cuts, back } = row.clone();
    let JobDoc { job, book, claimed } = doc;
    let live = job.is_live();
    let status = job.timeline.status();
    let Timeline { process_end, .. } = job.timeline;
    let due = process_end
        .filter(|_| job.deleted.is_none())
        .and_then(|end| job.callback.as_ref().and_then(|callback| callback.due(job.run, end)));
    let work = Work {
        state: job.state,
        failures: job.failures,
        expiries: job.expiries,
        not_before: job.not_before,
        lease: job.lease,
        book,
        ready,
    };
    let total = job.timeline.total().map(format_total);
    let timeline = job.timeline;
    write(&StoredJob {
        _id: object_id(job.id),
        FILENAME: job.filename,
        STATUS: status.to_string(),
        PROCESS_START: date(timeline.process_start),
        PREPROCESSING_START: timeline.preprocessing_start.map(date),
        PREPROCESSING_END: timeline.preprocessing_end.map(date),
        INFERENCE_START: timeline.inference_start.map(date),
        INFERENCE_END: timeline.inference_end.map(date),
        POSTPROCESSING_START: timeline.postprocessing_start.map(date),
        POSTPROCESSING_END: timeline.postprocessing_end.map(date),
        PROCESS_END: timeline.process_end.map(date),
        TOTAL: total,
        ended: timeline.ended,
        source: job.source,
        model: model_text(&job.settings.model),
        settings: job.settings,
        plan: job.plan,
        summary: job.summary,
        run: job.run,
        priority: job.priority,
        work: work.stored(live),
        claimed,
        deleted: job.deleted.map(date),
        callback: job.callback.map(|Callback { url, settled, failures, not_before }| StoredCallback {
            url,
            settled,
            failures,
            not_before: not_before.map(date),
        }),
        callback_due: due.map(date),
        unsettled: unsettled.then_some(true),
        version,
        epoch,
        followed,
        cut,
        dead_cuts,
        back,
    })
}

pub(super) fn read_job(document: Document) -> Result<JobRow, StoreError> {
    let stored: StoredJob = read("requests", document)?;
    let id = job_id(stored._id);
    let work = Work::read(stored.work)
        .map_err(|what| StoreError::Corrupt(format!("document {id} of requests cannot be read: {what}")))?;
    let timeline = Timeline {
        process_start: stamp(stored.PROCESS_START),
        preprocessing_start: stored.PREPROCESSING_START.map(stamp),
        preprocessing_end: stored.PREPROCESSING_END.map(stamp),
        inference_start: stored.INFERENCE_START.map(stamp),
        inference_end: stored.INFERENCE_END.map(stamp),
        postprocessing_start: stored.POSTPROCESSING_START.map(stamp),
        postprocessing_end: stored.POSTPROCESSING_END.map(stamp),
        process_end: stored.PROCESS_END.map(stamp),
        ended: stored.ended,
    };
    let job = Job {
        id,
        filename: stored.FILENAME,
        source: stored.source,
        settings: stored.settings,
        plan: stored.plan,
        summary: stored.summary,
        timeline,
        run: stored.run,
        state: work.state,
        priority: stored.priority,
        failures: work.failures,
        expiries: work.expiries,
        not_before: work.not_before,
        lease: work.lease,
        deleted: stored.deleted.map(stamp),
        callback: stored.callback.map(|StoredCallback { url, settled, failures, not_before }| Callback {
            url,
            settled,
            failures,
            not_before: not_before.map(stamp),
        }),
    };
    Ok(JobRow {
        doc: JobDoc { job, book: work.book, claimed: stored.claimed },
        ready: work.ready,
        version: stored.version,
        epoch: stored.epoch,
        followed: stored.followed,
        cut: stored.cut,
        dead_cuts: stored.dead_cuts,
        back: stored.back,
    })
}

/// The document of a segment. `ready` is since when it may be claimed, unless a lease or a backoff says more.
pub(super) fn write_segment(row: &SegmentRow, ready: Stamp) -> Result<Document, StoreError> {
    let id = row.id();
    let SegmentRow { doc: SegmentDoc { segment, book, rank }, cut, epoch, priority, model } = row.clone();
    let work = Work {
        state: segment.state,
        failures: segment.failures,
        expiries: segment.expiries,
        not_before: segment.not_before,
        lease: segment.lease,
        book,
        ready,
    };
    write(&StoredSegment {
        _id: id,
        job: object_id(segment.job),
        number: segment.index,
        first: segment.first,
        last: segment.last,
        run: segment.run,
        cut,
        epoch,
        priority,
        rank,
        model,
        work: work.stored(true),
        pack_bytes: segment.files.pack.as_ref().map_or(0, |pack| pack.size),
        files: segment.files,
    })
}

pub(super) fn read_segment(document: Document) -> Result<SegmentRow, StoreError> {
    let stored: StoredSegment = read("segments", document)?;
    let work = Work::read(stored.work).map_err(|what| {
        StoreError::Corrupt(format!("document {} of segments cannot be read: {what}", stored._id))
    })?;
    let segment = Segment {
        job: job_id(stored.job),
        run: stored.run,
        index: stored.number,
        first: stored.first,
        last: stored.last,
        state: work.state,
        files: stored.files,
        failures: work.failures,
        expiries: work.expiries,
        not_before: work.not_before,
        lease: work.lease,
    };
    Ok(SegmentRow {
        doc: SegmentDoc { segment, book: work.book, rank: stored.rank },
        cut: stored.cut,
        epoch: stored.epoch,
        priority: stored.priority,
        model: stored.model,
    })
}
