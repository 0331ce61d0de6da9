//! Uploads that come in pieces.

use rusqlite::{Connection, OptionalExtension, params};

use super::super::{NewUpload, StoreError, Upload, UploadState};
use super::rows;
use crate::clock::Stamp;
use crate::job::JobId;

pub(super) fn find(tx: &Connection, id: JobId) -> Result<Option<Upload>, StoreError> {
    tx.prepare_cached("SELECT doc FROM uploads WHERE id = ?1")?
        .query_row([id.to_string()], rows::from_row)
        .optional()?
        .transpose()
}

fn save(tx: &Connection, upload: &Upload) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT OR REPLACE INTO uploads (id, due, doc) VALUES (?1, ?2, ?3)")?
        .execute(params![upload.id.to_string(), upload.due().0, rows::to_text(upload)?])?;
    Ok(())
}

pub(super) fn create(tx: &Connection, new: NewUpload, now: Stamp) -> Result<Upload, StoreError> {
    if let Some(upload) = find(tx, new.id)? {
        return Ok(upload);
    }
    let upload = Upload::new(new, now);
    save(tx, &upload)?;
    Ok(upload)
}

/// Applies `change` to the upload; what it returned, or none when there is no such upload.
pub(super) fn change<T>(
    tx: &Connection,
    id: JobId,
    change: impl FnOnce(&mut Upload) -> T,
) -> Result<Option<T>, StoreError> {
    let Some(upload) = find(tx, id)? else { return Ok(None) };
    let mut next = upload.clone();
    let found = change(&mut next);
    if next != upload {
        save(tx, &next)?;
    }
    Ok(Some(found))
}

pub(super) fn remove(tx: &Connection, id: JobId, now: Stamp) -> Result<bool, StoreError> {
    let may_go = find(tx, id)?.is_none_or(|upload| upload.may_go(now));
    if may_go {
        tx.prepare_cached("DELETE FROM uploads WHERE id = ?1")?.execute([id.to_string()])?;
    }
    Ok(may_go)
}

pub(super) fn due(tx: &Connection, limit: u32, now: Stamp) -> Result<Vec<Upload>, StoreError> {
    all(tx, "SELECT doc FROM uploads WHERE due <= ?1 ORDER BY due LIMIT ?2", params![now.0, limit])
}

/// Hands every lock back; tells how many.
pub(super) fn unlock_all(tx: &Connection) -> Result<usize, StoreError> {
    let mut unlocked = 0;
    for mut upload in all(tx, "SELECT doc FROM uploads", [])? {
        if let UploadState::Receiving { writer: writer @ Some(_), .. } = &mut upload.state {
            *writer = None;
            save(tx, &upload)?;
            unlocked += 1;
        }
    }
    Ok(unlocked)
}

fn all(tx: &Connection, query: &str, values: impl rusqlite::Params) -> Result<Vec<Upload>, StoreError> {
    tx.prepare_cached(query)?.query_map(values, rows::from_row)?.map(|row| row?).collect()
}
