//! Claims, and what becomes of them.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::super::rules::{JobDoc, SegmentDoc, Verdict, check_plan, does_not_fit, model_text};
use super::super::{Advanced, ClaimRequest, Claimed, Output, Renewal, Setback, StoreError};
use super::{Key, jobs, rows};
use crate::clock::Stamp;
use crate::job::JobId;
use crate::segment::{Cut, Lease, Segment, Stage, State, Target};

// Without `INDEXED BY` the planner would have to guess; with it, a query that can no longer use its index
// is an error instead of a scan that grows with the table.
pub(super) const NEXT_SEGMENT: &str = "
    SELECT job, number FROM segments INDEXED BY segments_turn
    WHERE stage = :stage AND ready <= :now AND (avoid IS NULL OR avoid <> :worker OR avoid_until <= :now)
    ORDER BY priority, rank, job, number LIMIT 1";
pub(super) const NEXT_SEGMENT_OF_MODEL: &str = "
    SELECT job, number FROM segments INDEXED BY segments_model_turn
    WHERE stage = :stage AND model = :model AND ready <= :now
      AND (avoid IS NULL OR avoid <> :worker OR avoid_until <= :now)
    ORDER BY priority, rank, job, number LIMIT 1";
pub(super) const NEXT_JOB: &str = "
    SELECT id, NULL FROM jobs INDEXED BY jobs_turn
    WHERE stage = :stage AND (:model IS NULL OR model = :model) AND ready <= :now
      AND (avoid IS NULL OR avoid <> :worker OR avoid_until <= :now)
    ORDER BY priority, rank, id LIMIT 1";
pub(super) const PACKS: &str = "
    SELECT COALESCE(SUM(pack_bytes), 0) FROM segments INDEXED BY segments_packs WHERE stage = 'detect'";
pub(super) const BY_TOKEN: &str = "
    SELECT job, number FROM segments INDEXED BY segments_token WHERE token = ?1
    UNION ALL SELECT job, number FROM segments INDEXED BY segments_last_token WHERE last_token = ?1
    UNION ALL SELECT id, NULL FROM jobs INDEXED BY jobs_token WHERE token = ?1
    UNION ALL SELECT id, NULL FROM jobs INDEXED BY jobs_last_token WHERE last_token = ?1
    LIMIT 1";

fn target(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<Target, StoreError>> {
    let job = row.get_ref(0)?.as_str()?.parse::<JobId>();
    let number: Option<u32> = row.get(1)?;
    Ok(job
        .map(|job| number.map_or(Target::Job(job), |number| Target::Segment(job, number)))
        .map_err(|error| StoreError::Corrupt(error.to_string())))
}

fn missing(what: Target) -> StoreError {
    StoreError::Corrupt(format!("{what} is in an index but has no document"))
}

pub(super) fn claim(
    tx: &Connection,
    request: &ClaimRequest,
    now: Stamp,
) -> Result<Option<Claimed>, StoreError> {
    let known =
        tx.prepare_cached(BY_TOKEN)?.query_row([request.token.as_str()], target).optional()?.transpose()?;
    if let Some(target) = known {
        return reread(tx, target, request, now);
    }
    if request.stage == Stage::Decode
        && let Some(budget) = request.pack_budget
    {
        let waiting: i64 = tx.prepare_cached(PACKS)?.query_row([], |row| row.get(0))?;
        // When no pack waits, one segment is admitted whatever the budget.
        if waiting > 0 && u64::try_from(waiting).unwrap_or(0) > budget {
            return Ok(None);
        }
    }
    while let Some(target) = next(tx, request, now)? {
        if let Some(claimed) = take(tx, target, request, now)? {
            return Ok(Some(claimed));
        }
    }
    Ok(None)
}

/// The claim that `request` made before, if its lease still lives. A token that has served is never given
/// anything else: the request would be the late copy of an old one.
fn reread(
    tx: &Connection,
    target: Target,
    request: &ClaimRequest,
    now: Stamp,
) -> Result<Option<Claimed>, StoreError> {
    let mut job = rows::job(tx, target.job())?.ok_or_else(|| missing(target))?;
    let lives = |state: &State, lease: Option<&crate::segment::LeaseRecord>| {
        *state == State::Waiting(request.stage)
            && lease.is_some_and(|lease| lease.token == request.token && now < lease.expires)
    };
    if !job.job.is_live() {
        return Ok(None);
    }
    match target {
        Target::Job(_) => {
            let attempt = job.piece().attempt();
            let lives = lives(&job.job.state, job.job.lease.as_ref());
            Ok(lives.then(|| claimed(target, request, attempt, job, None)))
        }
        Target::Segment(_, number) => {
            let mut segment = rows::segment(tx, target.job(), number)?.ok_or_else(|| missing(target))?;
            let attempt = segment.piece().attempt();
            let lives = lives(&segment.segment.state, segment.segment.lease.as_ref());
            Ok(lives.then(|| claimed(target, request, attempt, job, Some(segment.segment))))
        }
    }
}

fn claimed(
    target: Target,
    request: &ClaimRequest,
    attempt: u32,
    job: JobDoc,
    segment: Option<Segment>,
) -> Claimed {
    let lease =
        Lease { target, stage: request.stage, run: job.job.run, token: request.token.clone(), attempt };
    Claimed { lease, job: job.job, segment }
}

fn next(tx: &Connection, request: &ClaimRequest, now: Stamp) -> Result<Option<Target>, StoreError> {
    let stage = request.stage.as_str();
    let worker = &request.worker;
    let model = request.model.as_ref().map(model_text);
    let found = match (request.stage, model) {
        (Stage::Index | Stage::Assemble, model) => tx.prepare_cached(NEXT_JOB)?.query_row(
            named_params! { ":stage": stage, ":now": now.0, ":worker": worker, ":model": model },
            target,
        ),
        (_, Some(model)) => tx.prepare_cached(NEXT_SEGMENT_OF_MODEL)?.query_row(
            named_params! { ":stage": stage, ":now": now.0, ":worker": worker, ":model": model },
            target,
        ),
        (_, None) => tx
            .prepare_cached(NEXT_SEGMENT)?
            .query_row(named_params! { ":stage": stage, ":now": now.0, ":worker": worker }, target),
    };
    found.optional()?.transpose()
}

/// Takes the lease on `target`; `None` when it was given up instead.
fn take(
    tx: &Connection,
    target: Target,
    request: &ClaimRequest,
    now: Stamp,
) -> Result<Option<Claimed>, StoreError> {
    let mut job = rows::job(tx, target.job())?.ok_or_else(|| missing(target))?;
    match target {
        Target::Job(_) => {
            let mut piece = job.piece();
            let verdict = piece.take(request, now);
            let attempt = piece.attempt();
            job.note_claim(request.stage);
            rows::save_job(tx, &job)?;
            if jobs::settle(tx, &mut job, verdict, now)? {
                return Ok(None);
            }
            Ok(Some(claimed(target, request, attempt, job, None)))
        }
        Target::Segment(id, number) => {
            let mut segment = rows::segment(tx, id, number)?.ok_or_else(|| missing(target))?;
            let mut piece = segment.piece();
            let verdict = piece.take(request, now);
            let attempt = piece.attempt();
            rows::save_segment(tx, &job.job, &segment)?;
            if jobs::settle(tx, &mut job, verdict, now)? {
                return Ok(None);
            }
            rows::note_turn(tx, job.job.priority, request.stage, segment.rank)?;
            if job.note_claim(request.stage) {
                rows::save_job(tx, &job)?;
            }
            Ok(Some(claimed(target, request, attempt, job, Some(segment.segment))))
        }
    }
}

/// The job of a lease, if the lease's run is the present one and the job is live.
fn job_of(tx: &Connection, key: &Key) -> Result<Result<JobDoc, Renewal>, StoreError> {
    Ok(match rows::job(tx, key.target.job())? {
        None => Err(Renewal::Lost),
        Some(doc) if !doc.job.is_live() || doc.job.run != key.run => Err(Renewal::Cancelled),
        Some(doc) => Ok(doc),
    })
}

pub(super) fn renew(tx: &Connection, key: &Key, until: Stamp) -> Result<Renewal, StoreError> {
    let mut job = match job_of(tx, key)? {
        Ok(job) => job,
        Err(renewal) => return Ok(renewal),
    };
    let prolong = |lease: &mut Option<crate::segment::LeaseRecord>| match lease {
        Some(lease) if lease.token == key.token => {
            lease.expires = lease.expires.max(until);
            true
        }
        _ => false,
    };
    let held = match key.target {
        Target::Job(_) => {
            let held = prolong(&mut job.job.lease);
            if held {
                rows::save_job(tx, &job)?;
            }
            held
        }
        Target::Segment(id, number) => {
            let Some(mut segment) = rows::segment(tx, id, number)? else { return Ok(Renewal::Lost) };
            let held = prolong(&mut segment.segment.lease);
            if held {
                rows::save_segment(tx, &job.job, &segment)?;
            }
            held
        }
    };
    Ok(if held { Renewal::Held } else { Renewal::Lost })
}

pub(super) fn put_segments(tx: &Connection, key: &Key, cuts: &[Cut]) -> Result<Renewal, StoreError> {
    let mut job = match job_of(tx, key)? {
        Ok(job) => job,
        Err(renewal) => return Ok(renewal),
    };
    if !job.piece().held_by(&key.token) || job.job.state != State::Waiting(Stage::Index) {
        return Ok(Renewal::Lost);
    }
    let id = job.job.id;
    tx.prepare_cached("DELETE FROM segments WHERE job = ?1 AND number >= ?2")?
        .execute(params![id.to_string(), i64::try_from(cuts.len()).unwrap_or(i64::MAX)])?;
    for (cut, index) in cuts.iter().zip(0..) {
        rows::save_segment(tx, &job.job, &SegmentDoc::held(&job.job, index, *cut))?;
    }
    Ok(Renewal::Held)
}

pub(super) fn advance(tx: &Connection, key: &Key, output: Output) -> Result<Advanced, StoreError> {
    match key.target {
        Target::Job(id) => match rows::job(tx, id)? {
            Some(job) => advance_job(tx, key, job, output),
            None => Ok(Advanced::Lost),
        },
        Target::Segment(id, number) => match (rows::job(tx, id)?, rows::segment(tx, id, number)?) {
            (Some(job), Some(segment)) => advance_segment(tx, key, job, segment, output),
            _ => Ok(Advanced::Lost),
        },
    }
}

fn advance_job(tx: &Connection, key: &Key, mut job: JobDoc, output: Output) -> Result<Advanced, StoreError> {
    let live = job.job.is_live() && job.job.run == key.run;
    let piece = job.piece();
    if piece.advanced_by(&key.token, key.stage) {
        return Ok(Advanced::Recorded);
    }
    if !live || !piece.held_by(&key.token) {
        return Ok(Advanced::Lost);
    }
    if let (Stage::Index, Output::Indexed(plan)) = (key.stage, &output) {
        check_plan(plan, rows::counts(tx, job.job.id)?.total())?;
    }
    job.record(&key.token, key.stage, output)?;
    if key.stage == Stage::Index {
        jobs::release(tx, &job)?;
    }
    rows::save_job(tx, &job)?;
    Ok(Advanced::Recorded)
}

fn advance_segment(
    tx: &Connection,
    key: &Key,
    mut job: JobDoc,
    mut segment: SegmentDoc,
    output: Output,
) -> Result<Advanced, StoreError> {
    let piece = segment.piece();
    if piece.advanced_by(&key.token, key.stage) {
        return Ok(Advanced::Recorded);
    }
    if !job.job.is_live() || job.job.run != key.run || !piece.held_by(&key.token) {
        return Ok(Advanced::Lost);
    }
    let files = &mut segment.segment.files;
    let next = match (key.stage, output) {
        (Stage::Decode, Output::Decoded { pack, concealed }) => {
            files.pack = Some(pack);
            files.concealed = concealed;
            State::Waiting(Stage::Detect)
        }
        (Stage::Detect, Output::Detected { detections }) => {
            files.detections = Some(detections);
            // Its worker deletes the pack once it hears of this.
            files.pack = None;
            State::Waiting(Stage::Render)
        }
        (Stage::Render, Output::Rendered { encoded }) => {
            files.encoded = encoded;
            State::Done
        }
        _ => return Err(does_not_fit(key.stage)),
    };
    segment.piece().move_on(&key.token, key.stage, next);
    rows::save_segment(tx, &job.job, &segment)?;
    jobs::promote(tx, &mut job)?;
    Ok(Advanced::Recorded)
}

pub(super) fn set_back(tx: &Connection, key: &Key, setback: Setback, now: Stamp) -> Result<(), StoreError> {
    let Some(mut job) = rows::job(tx, key.target.job())? else { return Ok(()) };
    // What was cancelled or belongs to an older run only gives its lease back.
    let setback = if job.job.is_live() && job.job.run == key.run { setback } else { Setback::HandBack };
    match key.target {
        Target::Job(_) => {
            if job.piece().held_by(&key.token) {
                set_back_job(tx, key.stage, job, setback, now)?;
            }
        }
        Target::Segment(id, number) => {
            let Some(mut segment) = rows::segment(tx, id, number)? else { return Ok(()) };
            if segment.piece().held_by(&key.token) {
                let verdict = match setback {
                    Setback::SendBack { to: Stage::Index, message, .. } => {
                        segment.piece().set_back(key.stage, Setback::HandBack, now);
                        rows::save_segment(tx, &job.job, &segment)?;
                        return back_to_index(tx, job, &message, now);
                    }
                    Setback::SendBack { to, message, .. } if to < key.stage => {
                        segment.send_back(to, &message)
                    }
                    other => segment.piece().set_back(key.stage, other, now),
                };
                rows::save_segment(tx, &job.job, &segment)?;
                jobs::settle(tx, &mut job, verdict, now)?;
            }
        }
    }
    Ok(())
}

fn set_back_job(
    tx: &Connection,
    stage: Stage,
    mut job: JobDoc,
    setback: Setback,
    now: Stamp,
) -> Result<(), StoreError> {
    let verdict = match setback {
        Setback::SendBack { to: Stage::Index, message, .. } if stage == Stage::Assemble => {
            return back_to_index(tx, job, &message, now);
        }
        Setback::SendBack { to, message, segments }
            if stage == Stage::Assemble && to < stage && !segments.is_empty() =>
        {
            // The job's own failures stay out of it: how often a segment goes back is bounded by itself.
            job.piece().start(State::Segments);
            let mut worst = Verdict::GoesOn;
            for number in segments {
                let Some(mut segment) = rows::segment(tx, job.job.id, number)? else { continue };
                let verdict = segment.send_back(to, &message);
                rows::save_segment(tx, &job.job, &segment)?;
                if verdict != Verdict::GoesOn {
                    worst = verdict;
                }
            }
            worst
        }
        other => job.piece().set_back(stage, other, now),
    };
    rows::save_job(tx, &job)?;
    if !jobs::settle(tx, &mut job, verdict, now)? {
        jobs::promote(tx, &mut job)?;
    }
    Ok(())
}

/// The frame index is lost: the whole job is cut and done again.
fn back_to_index(tx: &Connection, mut job: JobDoc, message: &str, now: Stamp) -> Result<(), StoreError> {
    let verdict = job.send_back(message);
    rows::save_job(tx, &job)?;
    if !jobs::settle(tx, &mut job, verdict, now)? {
        let mut segments = rows::segments(tx, job.job.id)?;
        jobs::hold(&mut segments);
        segments.iter().try_for_each(|segment| rows::save_segment(tx, &job.job, segment))?;
    }
    Ok(())
}

pub(super) fn hand_back_all(tx: &Connection) -> Result<usize, StoreError> {
    let held: Vec<Target> = tx
        .prepare_cached(
            "SELECT job, number FROM segments WHERE token IS NOT NULL
             UNION ALL SELECT id, NULL FROM jobs WHERE token IS NOT NULL",
        )?
        .query_map([], target)?
        .map(|row| row?)
        .collect::<Result<_, StoreError>>()?;
    for &target in &held {
        let mut job = rows::job(tx, target.job())?.ok_or_else(|| missing(target))?;
        match target {
            Target::Job(_) => {
                job.job.lease = None;
                rows::save_job(tx, &job)?;
            }
            Target::Segment(id, number) => {
                let mut segment = rows::segment(tx, id, number)?.ok_or_else(|| missing(target))?;
                segment.segment.lease = None;
                rows::save_segment(tx, &job.job, &segment)?;
            }
        }
    }
    Ok(held.len())
}
