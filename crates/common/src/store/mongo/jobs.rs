//! Jobs: made, listed, stamped, ended, begun again.

use mongodb::bson::{Document, doc};
use mongodb::{Collection, Cursor};

use super::super::rules::{JobDoc, derive, is_stamped};
use super::super::{Callback, Counts, Job, NewJob, Reported, StoreError, reported_event};
use super::docs::{JobRow, job_id, object_id, read_job, stamp, write_job};
use super::segments::is_there;
use super::{MongoStore, TRIES, answer, contended, long_answer, next, put_unless, step_aside};
use crate::clock::Stamp;
use crate::job::{Ended, Event, Failure, JobId, ModelKey, Status, Timeline};
use crate::segment::{Stage, State, Token};

impl MongoStore {
    pub(super) async fn find_job(&self, id: JobId) -> Result<Option<JobRow>, StoreError> {
        answer(self.requests.find_one(doc! { "_id": object_id(id) })).await?.map(read_job).transpose()
    }

    /// The job, and the moment at which it was read.
    pub(super) async fn read_job(&self, id: JobId) -> Result<Option<(JobRow, Stamp)>, StoreError> {
        let found = self.read_now(&self.requests, id).await?;
        found.map(|(document, now)| Ok((read_job(document)?, now))).transpose()
    }

    /// The document of a job or an upload, and the moment at which it was read.
    pub(super) async fn read_now(
        &self,
        collection: &Collection<Document>,
        id: JobId,
    ) -> Result<Option<(Document, Stamp)>, StoreError> {
        let pipeline = [doc! { "$match": { "_id": object_id(id) } }, doc! { "$set": { "now": self.now() } }];
        let mut cursor = answer(collection.aggregate(pipeline)).await?;
        let Some(document) = next(&mut cursor).await? else { return Ok(None) };
        let now = moment(&document, "now")?;
        Ok(Some((document, now)))
    }

    /// Writes the job back unless it was changed since it was read. False when it was.
    pub(super) async fn save_job(&self, mut row: JobRow) -> Result<bool, StoreError> {
        let seen = doc! { "_id": object_id(row.doc.job.id), "version": row.version };
        row.version += 1;
        let written = answer(self.requests.replace_one(seen, write_job(&row)?)).await?;
        Ok(written.matched_count > 0)
    }

    /// Applies `change` to the job and has its segments follow. None when there is no such job; else what
    /// `change` returned and the job after all of it.
    pub(super) async fn change<T>(
        &self,
        id: JobId,
        change: impl Fn(&mut JobRow, Stamp) -> T,
    ) -> Result<Option<(T, JobRow)>, StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((row, now)) = self.read_job(id).await? else { return Ok(None) };
            let mut next = row.clone();
            let found = change(&mut next, now);
            if next != row && !self.save_job(next.clone()).await? {
                continue;
            }
            if !next.pending() {
                return Ok(Some((found, next)));
            }
            return Ok(self.follow(id).await?.map(|row| (found, row)));
        }
        Err(contended(id))
    }

    /// The index lease that cut the job's segments.
    pub(super) async fn cut(&self, id: JobId) -> Result<Option<Token>, StoreError> {
        let found = self.requests.find_one(doc! { "_id": object_id(id) }).projection(doc! { "cut": 1 });
        let Some(document) = answer(found).await? else { return Ok(None) };
        match document.get_str("cut") {
            Ok(cut) => cut
                .parse()
                .map(Some)
                .map_err(|error| StoreError::Corrupt(format!("cut of job {id}: {error}"))),
            Err(_) => Ok(None),
        }
    }

    pub(super) async fn create(&self, new: NewJob) -> Result<Job, StoreError> {
        let (id, at) = (new.id, Stamp(0));
        let row = JobRow {
            doc: JobDoc::new(new, at),
            ready: at,
            version: 0,
            epoch: 0,
            followed: 0,
            cut: None,
            dead_cuts: Vec::new(),
            back: None,
        };
        let dates = doc! { "PROCESS_START": self.now(), "ready": self.now() };
        let new = doc! { "$mergeObjects": [{ "$literal": write_job(&row)? }, dates] };
        let created = put_unless(&self.requests, object_id(id), is_there("STATUS"), new).await?;
        Ok(read_job(created)?.doc.job)
    }

    pub(super) async fn list(
        &self,
        before: Option<JobId>,
        limit: u32,
        statuses: &[Status],
    ) -> Result<Vec<Job>, StoreError> {
        // MongoDB takes 0 for no limit.
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut filter = doc! { "deleted": { "$exists": false } };
        if let Some(before) = before {
            filter.insert("_id", doc! { "$lt": object_id(before) });
        }
        if !statuses.is_empty() {
            let wanted: Vec<_> = statuses.iter().map(|status| status.as_str()).collect();
            filter.insert("STATUS", doc! { "$in": wanted });
        }
        let jobs = self.requests.find(filter).sort(doc! { "_id": -1 }).limit(i64::from(limit));
        self.collect_jobs(answer(jobs).await?).await
    }

    pub(super) async fn collect_jobs(&self, mut cursor: Cursor<Document>) -> Result<Vec<Job>, StoreError> {
        let mut jobs = Vec::new();
        while let Some(document) = next(&mut cursor).await? {
            jobs.push(read_job(document)?.doc.job);
        }
        Ok(jobs)
    }

    pub(super) async fn list_unsettled(&self) -> Result<Vec<JobId>, StoreError> {
        let ids = self
            .requests
            .find(doc! { "unsettled": true })
            .sort(doc! { "_id": 1 })
            .projection(doc! { "_id": 1 });
        self.collect_ids(answer(ids).await?).await
    }

    pub(super) async fn collect_ids(&self, mut cursor: Cursor<Document>) -> Result<Vec<JobId>, StoreError> {
        let mut ids = Vec::new();
        while answer(cursor.advance()).await? {
            let id =
                cursor.current().get("_id").ok().flatten().and_then(mongodb::bson::RawBsonRef::as_object_id);
            let id =
                id.ok_or_else(|| StoreError::Corrupt("a document of requests has no ObjectId".to_owned()))?;
            ids.push(job_id(id));
        }
        Ok(ids)
    }

    /// Lets the job be assembled once every segment is done.
    pub(super) async fn promote(&self, id: JobId) -> Result<(), StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((mut row, now)) = self.read_job(id).await? else { return Ok(()) };
            let job = &row.doc.job;
            let (true, State::Segments, false, Some(cut)) =
                (job.is_live(), &job.state, row.pending(), &row.cut)
            else {
                return Ok(());
            };
            if !self.all_done(id, cut).await? {
                return Ok(());
            }
            row.doc.piece().start(State::Waiting(Stage::Assemble));
            row.ready = now;
            if self.save_job(row).await? {
                return Ok(());
            }
        }
        Err(contended(id))
    }

    pub(super) async fn end_failed(&self, id: JobId, failure: Failure) -> Result<bool, StoreError> {
        let ended = self.change(id, |row, now| row.end(Event::Failed(failure.clone()), now)).await?;
        Ok(ended.is_some_and(|((), row)| {
            matches!(&row.doc.job.timeline.ended, Some(Ended::Failed(found)) if found.code == failure.code)
        }))
    }

    pub(super) async fn end_cancelled(&self, id: JobId) -> Result<bool, StoreError> {
        let ended = self.change(id, |row, now| row.end(Event::Cancelled, now)).await?;
        Ok(ended.is_some_and(|((), row)| row.doc.job.timeline.ended == Some(Ended::Cancelled)))
    }

    pub(super) async fn mark_deleted(&self, id: JobId) -> Result<bool, StoreError> {
        let marked = self.change(id, |row, now| {
            let job = &mut row.doc.job;
            if job.deleted.is_none() {
                job.deleted = Some(now);
                if let Ok(timeline) = job.timeline.apply(Event::Cancelled, now) {
                    job.timeline = timeline;
                }
                row.epoch += 1;
            }
        });
        Ok(marked.await?.is_some())
    }

    /// Segments go first: while one is left, its job is there to say that it is to go.
    pub(super) async fn remove_marked(&self, id: JobId) -> Result<(), StoreError> {
        let marked = doc! { "_id": object_id(id), "deleted": { "$exists": true } };
        if answer(self.requests.find_one(marked.clone()).projection(doc! { "_id": 1 })).await?.is_none() {
            return Ok(());
        }
        long_answer(self.segments.delete_many(doc! { "job": object_id(id) })).await?;
        answer(self.requests.delete_one(marked)).await?;
        Ok(())
    }

    /// Begins another run: what is finished stays, everything else starts anew where it stood. With another model
    /// nothing stays.
    pub(super) async fn run_again(&self, id: JobId, model: Option<&ModelKey>) -> Result<bool, StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            // Parked first: then nothing moves while it is looked at.
            if self.follow(id).await?.is_none() {
                return Ok(false);
            }
            let Some((mut row, now)) = self.read_job(id).await? else { return Ok(false) };
            if row.doc.job.deleted.is_some() {
                return Ok(false);
            }
            if let Some(model) = model {
                row.doc.remodel(model.clone());
            }
            row.doc.piece().again();
            let uncut = row.doc.job.state == State::Waiting(Stage::Index);
            if uncut {
                row.drop_cut();
            } else {
                row.epoch += 1;
            }
            let left = match &row.cut {
                Some(cut) => self.counts_again(id, cut).await?,
                None => Vec::new(),
            };
            let waits = |state: &str| left.iter().any(|(name, _)| name == state);
            let decoded = !uncut && !waits("held") && !waits("decode");
            let detected = decoded && !waits("detect");
            let job = &mut row.doc.job;
            let Ok(timeline) = job.timeline.apply(Event::Retried { decoded, detected }, now) else {
                return Ok(false);
            };
            job.timeline = timeline;
            job.run += 1;
            job.callback = job.callback.take().map(Callback::again);
            row.ready = now;
            if self.save_job(row).await? {
                self.follow(id).await?;
                self.promote(id).await?;
                return Ok(true);
            }
        }
        Err(contended(id))
    }

    pub(super) async fn stamp_report(&self, id: JobId, status: Status) -> Result<Reported, StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((mut row, now)) = self.read_job(id).await? else { return Ok(Reported::Unknown) };
            let before = &row.doc.job.timeline;
            let Some(event) = reported_event(status) else {
                // Nobody stamps these from outside; but what is true already is a repeat like any other.
                let known = status == Status::Enqueue || before.status() == status;
                return Ok(if known { Reported::Repeat } else { Reported::NotBorneOut });
            };
            if is_stamped(before, event.clone()) {
                return Ok(Reported::Repeat);
            }
            let timeline = self.stamps(&mut row, now).await?;
            if !is_stamped(&timeline, event) {
                return Ok(Reported::NotBorneOut);
            }
            row.doc.job.timeline = timeline;
            if self.save_job(row).await? {
                return Ok(Reported::Stamped);
            }
        }
        Err(contended(id))
    }

    /// The job's timeline with all that its documents bear out.
    async fn stamps(&self, row: &mut JobRow, now: Stamp) -> Result<Timeline, StoreError> {
        if row.doc.job.deleted.is_some() || row.doc.job.timeline.process_end.is_some() {
            return Ok(row.doc.job.timeline.clone());
        }
        let counts = match &row.cut {
            Some(cut) => self.counts_of(row.doc.job.id, cut).await?,
            None => Counts::default(),
        };
        // A worker that died right after its claim may have left it unnoted.
        if counts.render + counts.done > 0 {
            row.doc.note_claim(Stage::Detect);
        }
        if counts.done > 0 {
            row.doc.note_claim(Stage::Render);
        }
        Ok(derive(&row.doc, &counts, now))
    }

    /// Finishes every half-done change, then derives the stamps.
    pub(super) async fn finish(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let Some(row) = self.follow(id).await? else { return Ok(None) };
        let job = &row.doc.job;
        if job.is_live()
            && job.state == State::Segments
            && let Some(cut) = &row.cut
        {
            let failed = self.segments_of(id, cut, doc! { "state": "failed" }).await?;
            if let Some(State::Failed { stage, reason }) =
                failed.into_iter().next().map(|row| row.doc.segment.state)
            {
                self.end_failed(id, Failure { code: stage.error_code(), message: reason }).await?;
            } else {
                self.promote(id).await?;
            }
        }
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((row, now)) = self.read_job(id).await? else { return Ok(None) };
            let mut next = row.clone();
            next.doc.job.timeline = self.stamps(&mut next, now).await?;
            if next == row || self.save_job(next.clone()).await? {
                return Ok(Some(next.doc.job));
            }
        }
        Err(contended(id))
    }
}

/// A date of a document.
pub(super) fn moment(document: &Document, field: &str) -> Result<Stamp, StoreError> {
    let found = document.get_datetime(field);
    found.map(|date| stamp(*date)).map_err(|error| StoreError::Corrupt(format!("the date {field}: {error}")))
}
