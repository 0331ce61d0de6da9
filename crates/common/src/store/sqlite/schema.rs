//! The tables, and their version.

use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::{BUSY, StoreError};

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The version this program writes, in `PRAGMA user_version`.
const VERSION: i64 = 2;

// `doc` is the truth; the other columns are what is searched by, and are written with it.
//
// `stage` is the stage a row may be claimed for: null unless it waits for one and its job is live, so that
// the partial index holds what is claimable, however many jobs are over. `ready` is when: the end of its
// lease or of its backoff, else the moment it came to wait. `ended` is null for jobs being deleted, `callback`
// when word of a job's end is due. `state` is where a segment stands, whether or not it may be claimed.
const TABLES: &str = "
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    unsettled INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    stage TEXT,
    model TEXT NOT NULL,
    priority INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    ready INTEGER NOT NULL,
    avoid TEXT,
    avoid_until INTEGER,
    token TEXT,
    last_token TEXT,
    ended INTEGER,
    callback INTEGER,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_turn ON jobs (stage, priority, rank, id, ready) WHERE stage IS NOT NULL;
CREATE INDEX jobs_token ON jobs (token) WHERE token IS NOT NULL;
CREATE INDEX jobs_last_token ON jobs (last_token) WHERE last_token IS NOT NULL;
CREATE INDEX jobs_unsettled ON jobs (id) WHERE unsettled = 1;
CREATE INDEX jobs_ended ON jobs (ended) WHERE ended IS NOT NULL;
CREATE INDEX jobs_callback ON jobs (callback) WHERE callback IS NOT NULL;

CREATE TABLE segments (
    job TEXT NOT NULL,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    stage TEXT,
    model TEXT NOT NULL,
    priority INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    ready INTEGER NOT NULL,
    avoid TEXT,
    avoid_until INTEGER,
    token TEXT,
    last_token TEXT,
    pack_bytes INTEGER NOT NULL,
    doc TEXT NOT NULL,
    PRIMARY KEY (job, number)
) STRICT;
CREATE INDEX segments_turn ON segments (stage, priority, rank, job, number, ready) WHERE stage IS NOT NULL;
CREATE INDEX segments_model_turn ON segments (stage, model, priority, rank, job, number, ready)
    WHERE stage IS NOT NULL;
CREATE INDEX segments_packs ON segments (stage, pack_bytes) WHERE stage = 'detect';
CREATE INDEX segments_state ON segments (job, state);
CREATE INDEX segments_token ON segments (token) WHERE token IS NOT NULL;
CREATE INDEX segments_last_token ON segments (last_token) WHERE last_token IS NOT NULL;

-- The largest rank claimed so far: start-time fair queueing's notion of time.
CREATE TABLE turns (
    priority INTEGER NOT NULL,
    stage TEXT NOT NULL,
    rank INTEGER NOT NULL,
    PRIMARY KEY (priority, stage)
) STRICT;

CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    seen INTEGER NOT NULL,
    here INTEGER NOT NULL,
    offers INTEGER NOT NULL,
    doc TEXT NOT NULL
) STRICT;
CREATE TABLE ties (
    key TEXT PRIMARY KEY,
    job TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT;
CREATE TABLE duties (
    duty TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT;
";

/// What version 2 has beyond version 1. `due` is when somebody has to look after an upload.
const UPLOADS: &str = "
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    due INTEGER NOT NULL,
    doc TEXT NOT NULL
) STRICT;
CREATE INDEX uploads_due ON uploads (due);
";

/// Sets the connection up and makes the tables, unless they are there.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY)?;
    // Where two connections enter or leave write-ahead logging at once, SQLite answers "locked" without
    // waiting: it is asked again.
    let started = Instant::now();
    loop {
        match set_up(connection) {
            Ok(done) => return done.map_err(StoreError::Corrupt),
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && started.elapsed() < BUSY =>
            {
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Refuses, in a sentence, a file that is not this program's.
fn set_up(connection: &mut Connection) -> rusqlite::Result<Result<(), String>> {
    // Checked before anything is changed: a newer program's file must stay as it is. One transaction, so that
    // all questions see the same file while another process makes the tables.
    let look = connection.transaction()?;
    if let Err(refusal) = check(&look)? {
        return Ok(Err(refusal));
    }
    drop(look);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match check(&transaction)? {
        Err(refusal) => return Ok(Err(refusal)),
        Ok(VERSION) => {}
        Ok(found) => {
            if found == 0 {
                transaction.execute_batch(TABLES)?;
            }
            transaction.execute_batch(UPLOADS)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
    }
    transaction.commit()?;
    Ok(Ok(()))
}

/// The file's version, 0 when it is new; or why the file is refused.
fn check(connection: &Connection) -> rusqlite::Result<Result<i64, String>> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if !(0..=VERSION).contains(&found) {
        return Ok(Err(format!(
            "its layout is version {found} and this program knows version {VERSION}; use the newer program, or \
             another file"
        )));
    }
    if found == 0 {
        let tables: i64 = connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            return Ok(Err("it is another program's database; use another file".to_owned()));
        }
    }
    Ok(Ok(found))
}
