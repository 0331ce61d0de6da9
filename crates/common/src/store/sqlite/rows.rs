//! Documents to rows and back.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::rules::{Book, JobDoc, SegmentDoc, model_text, state_text};
use super::super::{Counts, Job, StoreError};
use crate::clock::Stamp;
use crate::job::JobId;
use crate::segment::{LeaseRecord, Stage, State};

pub(super) fn to_text<T: Serialize>(document: &T) -> Result<String, StoreError> {
    serde_json::to_string(document)
        .map_err(|error| StoreError::Corrupt(format!("cannot be written: {error}")))
}

pub(super) fn from_row<T: DeserializeOwned>(row: &Row<'_>) -> rusqlite::Result<Result<T, StoreError>> {
    let text = row.get_ref("doc")?.as_str()?;
    Ok(serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string())))
}

/// The columns a claim searches by.
struct Turn<'a> {
    stage: Option<&'static str>,
    model: String,
    /// When it may be claimed; none: since now.
    ready: Option<i64>,
    avoid: Option<&'a str>,
    avoid_until: Option<i64>,
    token: Option<&'a str>,
    last_token: Option<&'a str>,
}

impl<'a> Turn<'a> {
    fn new(
        job: &Job,
        state: &State,
        not_before: Option<Stamp>,
        lease: Option<&'a LeaseRecord>,
        book: &'a Book,
    ) -> Self {
        let stage = match state {
            State::Waiting(stage) if job.is_live() => Some(stage.as_str()),
            _ => None,
        };
        Self {
            stage,
            model: model_text(&job.settings.model),
            ready: lease.map(|lease| lease.expires).max(not_before).map(|stamp| stamp.0),
            avoid: book.avoid.as_ref().map(|avoid| avoid.worker.as_str()),
            avoid_until: book.avoid.as_ref().map(|avoid| avoid.until.0),
            token: lease.map(|lease| lease.token.as_str()),
            last_token: book.last.as_ref().map(|last| last.token.as_str()),
        }
    }
}

pub(super) fn save_job(tx: &Connection, doc: &JobDoc) -> Result<(), StoreError> {
    let JobDoc { job, book, .. } = doc;
    let turn = Turn::new(job, &job.state, job.not_before, job.lease.as_ref(), book);
    let unsettled = job.deleted.is_some() || !job.timeline.status().is_final();
    let ended = job.timeline.process_end.filter(|_| job.deleted.is_none());
    let callback = job.callback.as_ref().and_then(|callback| callback.due(job.run, ended?));
    tx.prepare_cached(
        "INSERT OR REPLACE INTO jobs (id, status, unsettled, deleted, stage, model, priority, rank, ready, avoid,
             avoid_until, token, last_token, ended, callback, doc)
         VALUES (:id, :status, :unsettled, :deleted, :stage, :model, :priority, :rank, COALESCE(:ready, clock()),
             :avoid, :avoid_until, :token, :last_token, :ended, :callback, :doc)",
    )?
    .execute(named_params! {
        ":id": job.id.to_string(),
        ":status": job.timeline.status().as_str(),
        ":unsettled": unsettled,
        ":deleted": job.deleted.is_some(),
        ":stage": turn.stage,
        ":model": turn.model,
        ":priority": job.priority,
        ":rank": job.timeline.process_start.0,
        ":ready": turn.ready,
        ":avoid": turn.avoid,
        ":avoid_until": turn.avoid_until,
        ":token": turn.token,
        ":last_token": turn.last_token,
        ":ended": ended.map(|stamp| stamp.0),
        ":callback": callback.map(|stamp| stamp.0),
        ":doc": to_text(doc)?,
    })?;
    Ok(())
}

pub(super) fn save_segment(tx: &Connection, job: &Job, doc: &SegmentDoc) -> Result<(), StoreError> {
    let SegmentDoc { segment, book, rank } = doc;
    let turn = Turn::new(job, &segment.state, segment.not_before, segment.lease.as_ref(), book);
    let pack_bytes = segment.files.pack.as_ref().map_or(0, |pack| pack.size);
    tx.prepare_cached(
        "INSERT OR REPLACE INTO segments (job, number, state, stage, model, priority, rank, ready, avoid,
             avoid_until, token, last_token, pack_bytes, doc)
         VALUES (:job, :number, :state, :stage, :model, :priority, :rank, COALESCE(:ready, clock()), :avoid,
             :avoid_until, :token, :last_token, :pack_bytes, :doc)",
    )?
    .execute(named_params! {
        ":job": segment.job.to_string(),
        ":number": segment.index,
        ":state": state_text(&segment.state),
        ":stage": turn.stage,
        ":model": turn.model,
        ":priority": job.priority,
        ":rank": rank,
        ":ready": turn.ready,
        ":avoid": turn.avoid,
        ":avoid_until": turn.avoid_until,
        ":token": turn.token,
        ":last_token": turn.last_token,
        ":pack_bytes": i64::try_from(pack_bytes).unwrap_or(i64::MAX),
        ":doc": to_text(doc)?,
    })?;
    Ok(())
}

pub(super) fn job(tx: &Connection, id: JobId) -> Result<Option<JobDoc>, StoreError> {
    tx.prepare_cached("SELECT doc FROM jobs WHERE id = ?1")?
        .query_row([id.to_string()], from_row)
        .optional()?
        .transpose()
}

pub(super) fn segment(tx: &Connection, job: JobId, number: u32) -> Result<Option<SegmentDoc>, StoreError> {
    tx.prepare_cached("SELECT doc FROM segments WHERE job = ?1 AND number = ?2")?
        .query_row(params![job.to_string(), number], from_row)
        .optional()?
        .transpose()
}

pub(super) fn segments(tx: &Connection, job: JobId) -> Result<Vec<SegmentDoc>, StoreError> {
    tx.prepare_cached("SELECT doc FROM segments WHERE job = ?1 ORDER BY number")?
        .query_map([job.to_string()], from_row)?
        .map(|row| row?)
        .collect()
}

pub(super) fn counts(tx: &Connection, job: JobId) -> Result<Counts, StoreError> {
    let mut counts = Counts::default();
    let mut statement =
        tx.prepare_cached("SELECT state, COUNT(*) FROM segments WHERE job = ?1 GROUP BY state")?;
    let mut rows = statement.query([job.to_string()])?;
    while let Some(row) = rows.next()? {
        let n: u32 = row.get(1)?;
        match row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)? {
            "held" => counts.held = n,
            "decode" => counts.decode = n,
            "detect" => counts.detect = n,
            "render" => counts.render = n,
            "done" => counts.done = n,
            "failed" => counts.failed = n,
            other => return Err(StoreError::Corrupt(format!("a segment of {job} is in state {other:?}"))),
        }
    }
    Ok(counts)
}

/// Whether every segment of the job is done. (Looks at one index entry, not at every segment.)
pub(super) fn all_done(tx: &Connection, job: JobId) -> Result<bool, StoreError> {
    let unfinished: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM segments WHERE job = ?1
                 AND state IN ('held', 'decode', 'detect', 'render', 'failed'))",
        )?
        .query_row([job.to_string()], |row| row.get(0))?;
    Ok(!unfinished)
}

/// Makes the segments of a job that is over unclaimable.
pub(super) fn park(tx: &Connection, job: JobId) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE segments SET stage = NULL WHERE job = ?1 AND stage IS NOT NULL")?
        .execute([job.to_string()])?;
    Ok(())
}

/// The rank that a job admitted now starts from: start-time fair queueing over three stages in a row. What
/// counts is the stage that is furthest behind, or a clip would have to wait there for all of a film that
/// the stages before have run ahead with.
pub(super) fn first_rank(tx: &Connection, priority: i32) -> Result<i64, StoreError> {
    let mut first = i64::MAX;
    for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
        let rank: Option<i64> = tx
            .prepare_cached("SELECT rank FROM turns WHERE priority = ?1 AND stage = ?2")?
            .query_row(params![priority, stage.as_str()], |row| row.get(0))
            .optional()?;
        first = first.min(rank.unwrap_or(0));
    }
    Ok(first)
}

/// Notes that a segment with `rank` was claimed.
pub(super) fn note_turn(tx: &Connection, priority: i32, stage: Stage, rank: i64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO turns (priority, stage, rank) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET rank = MAX(rank, excluded.rank)",
    )?
    .execute(params![priority, stage.as_str(), rank])?;
    Ok(())
}
