//! Uploads that come in pieces: changed by compare-and-swap on their `version`.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};
use serde::{Deserialize, Serialize};

use super::super::{NewUpload, StoreError, Upload, UploadState, Writer};
use super::docs::{StoredLease, date, job_id, object_id, read, stamp, write};
use super::segments::is_there;
use super::{MongoStore, TRIES, answer, contended, next, put_unless, schema, step_aside};
use crate::clock::Stamp;
use crate::job::{JobId, Settings};
use crate::store::UPLOAD_KEPT;

/// The document of an upload.
#[derive(Serialize, Deserialize)]
struct StoredUpload {
    _id: ObjectId,
    filename: String,
    state: StoredState,
    offset: u64,
    length: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<StoredLease>,
    #[serde(default)]
    wanted: bool,
    expires: DateTime,
    due: DateTime,
    metadata: String,
    settings: Settings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callback_url: Option<String>,
    version: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredState {
    Receiving,
    Whole,
    Queued,
}

fn write_upload(upload: &Upload, version: i64) -> Result<Document, StoreError> {
    let (offset, due) = (upload.offset(), date(upload.due()));
    let Upload { id, filename, length, state, settings, callback_url, metadata, expires } = upload.clone();
    let (state, writer) = match state {
        UploadState::Receiving { writer, .. } => (StoredState::Receiving, writer),
        UploadState::Whole => (StoredState::Whole, None),
        UploadState::Queued => (StoredState::Queued, None),
    };
    write(&StoredUpload {
        _id: object_id(id),
        filename,
        state,
        offset,
        length,
        wanted: writer.as_ref().is_some_and(|writer| writer.wanted),
        lease: writer.map(|writer| writer.lease.into()),
        expires: date(expires),
        due,
        metadata,
        settings,
        callback_url,
        version,
    })
}

fn read_upload(document: Document) -> Result<(Upload, i64), StoreError> {
    let stored: StoredUpload = read(schema::UPLOADS, document)?;
    let state = match stored.state {
        StoredState::Receiving => UploadState::Receiving {
            offset: stored.offset,
            writer: stored.lease.map(|lease| Writer { lease: lease.into(), wanted: stored.wanted }),
        },
        StoredState::Whole => UploadState::Whole,
        StoredState::Queued => UploadState::Queued,
    };
    let upload = Upload {
        id: job_id(stored._id),
        filename: stored.filename,
        length: stored.length,
        state,
        settings: stored.settings,
        callback_url: stored.callback_url,
        metadata: stored.metadata,
        expires: stamp(stored.expires),
    };
    Ok((upload, stored.version))
}

impl MongoStore {
    pub(super) async fn begin_upload(&self, new: NewUpload) -> Result<Upload, StoreError> {
        let id = object_id(new.id);
        let dates = doc! { "expires": self.after(UPLOAD_KEPT), "due": self.after(UPLOAD_KEPT) };
        let written = write_upload(&Upload::new(new, Stamp(0)), 0)?;
        let new = doc! { "$mergeObjects": [{ "$literal": written }, dates] };
        Ok(read_upload(put_unless(&self.uploads, id, is_there("state"), new).await?)?.0)
    }

    pub(super) async fn find_upload(&self, id: JobId) -> Result<Option<Upload>, StoreError> {
        let found = answer(self.uploads.find_one(doc! { "_id": object_id(id) })).await?;
        Ok(found.map(read_upload).transpose()?.map(|(upload, _)| upload))
    }

    /// The upload, its version, and the moment at which it was read.
    async fn read_upload(&self, id: JobId) -> Result<Option<(Upload, i64, Stamp)>, StoreError> {
        let Some((document, now)) = self.read_now(&self.uploads, id).await? else { return Ok(None) };
        let (upload, version) = read_upload(document)?;
        Ok(Some((upload, version, now)))
    }

    /// Applies `change` to the upload; what it returned, or none when there is no such upload.
    pub(super) async fn change_upload<T>(
        &self,
        id: JobId,
        change: impl Fn(&mut Upload, Stamp) -> T,
    ) -> Result<Option<T>, StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((upload, version, now)) = self.read_upload(id).await? else { return Ok(None) };
            let mut next = upload.clone();
            let found = change(&mut next, now);
            if next == upload {
                return Ok(Some(found));
            }
            let seen = doc! { "_id": object_id(id), "version": version };
            let replaced = self.uploads.replace_one(seen, write_upload(&next, version + 1)?);
            if answer(replaced).await?.matched_count > 0 {
                return Ok(Some(found));
            }
        }
        Err(contended(id))
    }

    pub(super) async fn end_upload(&self, id: JobId) -> Result<bool, StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((upload, version, now)) = self.read_upload(id).await? else { return Ok(true) };
            if !upload.may_go(now) {
                return Ok(false);
            }
            let seen = doc! { "_id": object_id(id), "version": version };
            if answer(self.uploads.delete_one(seen)).await?.deleted_count > 0 {
                return Ok(true);
            }
        }
        Err(contended(id))
    }

    pub(super) async fn list_due_uploads(&self, limit: u32) -> Result<Vec<Upload>, StoreError> {
        // MongoDB takes 0 for no limit.
        if limit == 0 {
            return Ok(Vec::new());
        }
        let due = doc! { "$expr": { "$lte": ["$due", self.now()] } };
        let found = self.uploads.find(due).sort(doc! { "due": 1 }).limit(i64::from(limit));
        let mut cursor = answer(found).await?;
        let mut uploads = Vec::new();
        while let Some(document) = next(&mut cursor).await? {
            uploads.push(read_upload(document)?.0);
        }
        Ok(uploads)
    }
}
