//! Jobs: made, listed, stamped, ended, begun again.

use rusqlite::{Connection, params, params_from_iter};

use super::super::rules::{JobDoc, SegmentDoc, Verdict, derive, is_stamped};
use super::super::{Callback, Job, NewJob, Reported, StoreError, reported_event};
use super::rows;
use crate::clock::Stamp;
use crate::job::{Ended, Event, Failure, JobId, ModelKey, Status, Timeline};
use crate::segment::{Stage, State};

pub(super) fn create(tx: &Connection, new: NewJob, now: Stamp) -> Result<Job, StoreError> {
    if let Some(doc) = rows::job(tx, new.id)? {
        return Ok(doc.job);
    }
    let doc = JobDoc::new(new, now);
    rows::save_job(tx, &doc)?;
    Ok(doc.job)
}

pub(super) fn list(
    tx: &Connection,
    before: Option<JobId>,
    limit: u32,
    statuses: &[Status],
) -> Result<Vec<Job>, StoreError> {
    let before = before.map_or_else(|| "g".to_owned(), |id| id.to_string());
    let wanted = vec!["?"; statuses.len()].join(", ");
    let filter = if statuses.is_empty() { String::new() } else { format!("AND status IN ({wanted})") };
    let values = std::iter::once(before).chain(statuses.iter().map(|status| status.as_str().to_owned()));
    tx.prepare_cached(&format!(
        "SELECT id FROM jobs WHERE id < ? {filter} AND deleted = 0 ORDER BY id DESC LIMIT {limit}"
    ))?
    .query_map(params_from_iter(values), |row| row.get::<_, String>(0))?
    .map(|id| id_of(&id?).and_then(|id| rows::job(tx, id)))
    .filter_map(|doc| doc.map(|doc| doc.map(|doc| doc.job)).transpose())
    .collect()
}

pub(super) fn id_of(text: &str) -> Result<JobId, StoreError> {
    text.parse().map_err(|error| StoreError::Corrupt(format!("{text:?}: {error}")))
}

pub(super) fn unsettled(tx: &Connection) -> Result<Vec<JobId>, StoreError> {
    tx.prepare_cached("SELECT id FROM jobs WHERE unsettled = 1 ORDER BY id")?
        .query_map([], |row| row.get::<_, String>(0))?
        .map(|id| id_of(&id?))
        .collect()
}

/// Lets the segments of an indexed job be claimed, in their turn.
pub(super) fn release(tx: &Connection, job: &JobDoc) -> Result<(), StoreError> {
    let first = rows::first_rank(tx, job.job.priority)?;
    for mut segment in rows::segments(tx, job.job.id)? {
        if segment.segment.state == State::Held {
            segment.rank = first + i64::from(segment.segment.index);
            segment.piece().start(State::Waiting(Stage::Decode));
            rows::save_segment(tx, &job.job, &segment)?;
        }
    }
    Ok(())
}

/// Lets the job be assembled once every segment is done.
pub(super) fn promote(tx: &Connection, job: &mut JobDoc) -> Result<(), StoreError> {
    if job.job.state == State::Segments && rows::all_done(tx, job.job.id)? {
        job.piece().start(State::Waiting(Stage::Assemble));
        rows::save_job(tx, job)?;
    }
    Ok(())
}

/// Ends the job if a piece of its work was given up. True when it did.
pub(super) fn settle(
    tx: &Connection,
    job: &mut JobDoc,
    verdict: Verdict,
    now: Stamp,
) -> Result<bool, StoreError> {
    match verdict {
        Verdict::GoesOn => Ok(false),
        Verdict::GivenUp { stage, reason } => {
            let failure = Failure { code: stage.error_code(), message: reason };
            end(tx, job, Event::Failed(failure), now)?;
            Ok(true)
        }
    }
}

/// Applies an event that ends the job. A job that has ended already stays as it is.
fn end(tx: &Connection, job: &mut JobDoc, event: Event, now: Stamp) -> Result<(), StoreError> {
    if let Ok(timeline) = job.job.timeline.apply(event, now) {
        job.job.timeline = timeline;
        rows::save_job(tx, job)?;
        rows::park(tx, job.job.id)?;
    }
    Ok(())
}

pub(super) fn fail(tx: &Connection, id: JobId, failure: Failure, now: Stamp) -> Result<bool, StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(false) };
    let code = failure.code;
    end(tx, &mut job, Event::Failed(failure), now)?;
    Ok(matches!(&job.job.timeline.ended, Some(Ended::Failed(failure)) if failure.code == code))
}

pub(super) fn cancel(tx: &Connection, id: JobId, now: Stamp) -> Result<bool, StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(false) };
    end(tx, &mut job, Event::Cancelled, now)?;
    Ok(job.job.timeline.ended == Some(Ended::Cancelled))
}

pub(super) fn tombstone(tx: &Connection, id: JobId, now: Stamp) -> Result<bool, StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(false) };
    if job.job.deleted.is_none() {
        job.job.deleted = Some(now);
        job.job.timeline = job.job.timeline.apply(Event::Cancelled, now).unwrap_or(job.job.timeline);
        rows::save_job(tx, &job)?;
        rows::park(tx, id)?;
    }
    Ok(true)
}

pub(super) fn remove(tx: &Connection, id: JobId) -> Result<(), StoreError> {
    let deleted =
        tx.prepare_cached("DELETE FROM jobs WHERE id = ?1 AND deleted = 1")?.execute([id.to_string()])?;
    if deleted > 0 {
        tx.prepare_cached("DELETE FROM segments WHERE job = ?1")?.execute(params![id.to_string()])?;
    }
    Ok(())
}

/// Begins another run: what is finished stays, everything else starts anew where it stood. With another model nothing
/// stays.
pub(super) fn retry(
    tx: &Connection,
    id: JobId,
    model: Option<ModelKey>,
    now: Stamp,
) -> Result<bool, StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(false) };
    if job.job.deleted.is_some() {
        return Ok(false);
    }
    let mut segments = rows::segments(tx, id)?;
    for segment in &mut segments {
        segment.piece().again();
    }
    if let Some(model) = model {
        job.remodel(model);
    }
    job.piece().again();
    if job.job.state == State::Waiting(Stage::Index) {
        hold(&mut segments);
    }
    let decoded =
        segments.iter().all(|s| !matches!(s.segment.state, State::Held | State::Waiting(Stage::Decode)));
    let detected = decoded && segments.iter().all(|s| s.segment.state != State::Waiting(Stage::Detect));
    let Ok(timeline) = job.job.timeline.apply(Event::Retried { decoded, detected }, now) else {
        return Ok(false);
    };
    job.job.timeline = timeline;
    job.job.run += 1;
    job.job.callback = job.job.callback.take().map(Callback::again);
    rerank(tx, job.job.priority, &mut segments)?;
    for segment in &mut segments {
        segment.segment.run = job.job.run;
        rows::save_segment(tx, &job.job, segment)?;
    }
    rows::save_job(tx, &job)?;
    promote(tx, &mut job)?;
    Ok(true)
}

/// Forgets all that was made of the segments: they will be cut again.
pub(super) fn hold(segments: &mut [SegmentDoc]) {
    for segment in segments {
        segment.piece().start(State::Held);
        segment.forget_from(Stage::Decode);
    }
}

/// A retried job queues again from where the line is now.
fn rerank(tx: &Connection, priority: i32, segments: &mut [SegmentDoc]) -> Result<(), StoreError> {
    let first = rows::first_rank(tx, priority)?;
    let unfinished = segments.iter_mut().filter(|s| matches!(s.segment.state, State::Waiting(_)));
    for (segment, k) in unfinished.zip(0..) {
        segment.rank = first + k;
    }
    Ok(())
}

pub(super) fn report(tx: &Connection, id: JobId, status: Status, now: Stamp) -> Result<Reported, StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(Reported::Unknown) };
    let before = job.job.timeline.clone();
    let Some(event) = reported_event(status) else {
        // Nobody stamps these from outside; but what is true already is a repeat like any other.
        let known = status == Status::Enqueue || before.status() == status;
        return Ok(if known { Reported::Repeat } else { Reported::NotBorneOut });
    };
    if is_stamped(&before, event.clone()) {
        return Ok(Reported::Repeat);
    }
    let timeline = stamps(tx, &job, now)?;
    if !is_stamped(&timeline, event) {
        return Ok(Reported::NotBorneOut);
    }
    job.job.timeline = timeline;
    rows::save_job(tx, &job)?;
    Ok(Reported::Stamped)
}

/// The job's timeline with all that its documents bear out.
fn stamps(tx: &Connection, job: &JobDoc, now: Stamp) -> Result<Timeline, StoreError> {
    if job.job.deleted.is_some() {
        return Ok(job.job.timeline.clone());
    }
    Ok(derive(job, &rows::counts(tx, job.job.id)?, now))
}

/// Changes that span documents are made in one transaction here, so that this finds only stamps to derive,
/// unless the file was written by a program that did otherwise.
pub(super) fn reconcile(tx: &Connection, id: JobId, now: Stamp) -> Result<Option<Job>, StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(None) };
    if job.job.is_live() && job.job.state == State::Segments {
        let counts = rows::counts(tx, id)?;
        if counts.held > 0 {
            release(tx, &job)?;
        }
        if counts.failed > 0 {
            for segment in rows::segments(tx, id)? {
                if let State::Failed { stage, reason } = segment.segment.state {
                    settle(tx, &mut job, Verdict::GivenUp { stage, reason }, now)?;
                }
            }
        }
        promote(tx, &mut job)?;
    }
    let timeline = stamps(tx, &job, now)?;
    if timeline != job.job.timeline {
        job.job.timeline = timeline;
        rows::save_job(tx, &job)?;
    }
    Ok(Some(job.job))
}
