//! Who is there, what waits, who wants to hear of an end.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::super::upkeep::{Offer, Queue, Seen, Tried, Worker};
use super::super::{Job, StoreError};
use super::{jobs, rows};
use crate::clock::Stamp;
use crate::job::JobId;
use crate::segment::Stage;

/// How long a worker that has gone is remembered, unless it is the last one that offered a model.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

pub(super) fn queues(tx: &Connection, now: Stamp) -> Result<Vec<Queue>, StoreError> {
    Stage::ALL.into_iter().map(|stage| queue(tx, stage, now)).collect()
}

fn queue(tx: &Connection, stage: Stage, now: Stamp) -> Result<Queue, StoreError> {
    let table = match stage {
        Stage::Index | Stage::Assemble => "jobs",
        Stage::Decode | Stage::Detect | Stage::Render => "segments",
    };
    let queue = tx
        .prepare_cached(&format!(
            "SELECT COUNT(*) FILTER (WHERE ready <= :now),
                    COUNT(*) FILTER (WHERE ready > :now AND token IS NULL),
                    COUNT(*) FILTER (WHERE ready > :now AND token IS NOT NULL),
                    MIN(ready)
             FROM {table} WHERE stage = :stage"
        ))?
        .query_row(rusqlite::named_params! { ":now": now.0, ":stage": stage.as_str() }, |row| {
            let first: Option<i64> = row.get(3)?;
            Ok(Queue {
                stage,
                waiting: row.get(0)?,
                delayed: row.get(1)?,
                working: row.get(2)?,
                oldest: first.filter(|first| *first <= now.0).map(|first| now.since(Stamp(first))),
            })
        })?;
    Ok(queue)
}

pub(super) fn announce(tx: &Connection, worker: &Worker, now: Stamp) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO workers (name, seen, here, offers, doc) VALUES (?1, ?2, 1, ?3, ?4)",
    )?
    .execute(params![worker.name, now.0, worker.offer.is_some(), rows::to_text(worker)?])?;
    let forget = now.0 - i64::try_from(REMEMBERED.as_micros()).unwrap_or(i64::MAX);
    tx.prepare_cached(
        "DELETE FROM workers WHERE seen < ?1
             AND name IS NOT (SELECT name FROM workers WHERE offers = 1 ORDER BY seen DESC, name LIMIT 1)",
    )?
    .execute([forget])?;
    Ok(())
}

pub(super) fn retire(tx: &Connection, name: &str) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE workers SET here = 0 WHERE name = ?1")?.execute([name])?;
    Ok(())
}

pub(super) fn workers(tx: &Connection, within: Duration, now: Stamp) -> Result<Vec<Seen>, StoreError> {
    tx.prepare_cached("SELECT seen, doc FROM workers WHERE here = 1 ORDER BY name")?
        .query_map([], |row| Ok((Stamp(row.get(0)?), rows::from_row::<Worker>(row)?)))?
        .map(|row| {
            let (at, worker) = row?;
            Ok(Seen { worker: worker?, at })
        })
        .filter(|seen: &Result<Seen, StoreError>| {
            seen.as_ref().map_or(true, |seen| now.since(seen.at) <= within)
        })
        .collect()
}

pub(super) fn offer(tx: &Connection) -> Result<Option<Offer>, StoreError> {
    let worker: Option<Worker> = tx
        .prepare_cached("SELECT doc FROM workers WHERE offers = 1 ORDER BY seen DESC, name LIMIT 1")?
        .query_row([], rows::from_row)
        .optional()?
        .transpose()?;
    Ok(worker.and_then(|worker| worker.offer))
}

pub(super) fn tie(
    tx: &Connection,
    key: &str,
    id: JobId,
    time: Duration,
    now: Stamp,
) -> Result<JobId, StoreError> {
    tx.prepare_cached("DELETE FROM ties WHERE until <= ?1")?.execute([now.0])?;
    tx.prepare_cached("INSERT INTO ties (key, job, until) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute(params![key, id.to_string(), now.after(time).0])?;
    let job: String =
        tx.prepare_cached("SELECT job FROM ties WHERE key = ?1")?.query_row([key], |row| row.get(0))?;
    jobs::id_of(&job)
}

pub(super) fn hold(
    tx: &Connection,
    duty: &str,
    holder: &str,
    time: Duration,
    now: Stamp,
) -> Result<bool, StoreError> {
    let taken = tx
        .prepare_cached(
            "INSERT INTO duties (duty, holder, until) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET holder = excluded.holder, until = excluded.until
                 WHERE holder = excluded.holder OR until <= ?4",
        )?
        .execute(params![duty, holder, now.after(time).0, now.0])?;
    Ok(taken > 0)
}

pub(super) fn ended(
    tx: &Connection,
    age: Duration,
    limit: u32,
    now: Stamp,
) -> Result<Vec<JobId>, StoreError> {
    let before = now.0.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
    tx.prepare_cached("SELECT id FROM jobs WHERE ended <= ?1 ORDER BY ended LIMIT ?2")?
        .query_map(params![before, limit], |row| row.get::<_, String>(0))?
        .map(|id| jobs::id_of(&id?))
        .collect()
}

pub(super) fn due_callbacks(tx: &Connection, limit: u32, now: Stamp) -> Result<Vec<Job>, StoreError> {
    tx.prepare_cached("SELECT id FROM jobs WHERE callback <= ?1 ORDER BY callback LIMIT ?2")?
        .query_map(params![now.0, limit], |row| row.get::<_, String>(0))?
        .map(|id| jobs::id_of(&id?).and_then(|id| rows::job(tx, id)))
        .filter_map(|doc| doc.map(|doc| doc.map(|doc| doc.job)).transpose())
        .collect()
}

pub(super) fn callback_tried(
    tx: &Connection,
    id: JobId,
    run: u32,
    tried: Tried,
    now: Stamp,
) -> Result<(), StoreError> {
    let Some(mut job) = rows::job(tx, id)? else { return Ok(()) };
    if job.job.run == run
        && let Some(callback) = &job.job.callback
        && callback.settled != Some(run)
    {
        job.job.callback = Some(callback.after(run, tried, now));
        rows::save_job(tx, &job)?;
    }
    Ok(())
}
