//! Who is there, what waits, who wants to hear of an end.

use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{Bson, Document, deserialize_from_bson, doc, serialize_to_bson};
use mongodb::options::Hint;

use super::super::{Job, Offer, Queue, Seen, StoreError, Tried, Worker};
use super::docs::object_id;
use super::jobs::moment;
use super::segments::is_there;
use super::{MongoStore, answer, long_answer, next, put_unless, schema};
use crate::clock::Stamp;
use crate::job::JobId;
use crate::segment::Stage;

/// How long a worker that has gone is remembered, unless it is the last one that offered a model.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

fn number(document: &Document, field: &str) -> i64 {
    match document.get(field) {
        Some(Bson::Int32(n)) => i64::from(*n),
        Some(Bson::Int64(n)) => *n,
        _ => 0,
    }
}

fn count(document: &Document, field: &str) -> u32 {
    u32::try_from(number(document, field)).unwrap_or(u32::MAX)
}

impl MongoStore {
    /// A small collection, with the same care for what is written as the large ones.
    fn side(&self, name: &str) -> Collection<Document> {
        let concern = self.requests.write_concern().cloned();
        let mut options = mongodb::options::CollectionOptions::default();
        options.write_concern = concern;
        self.database.collection_with_options(name, options)
    }

    pub(super) async fn read_clock(&self) -> Result<Stamp, StoreError> {
        let pipeline = [doc! { "$documents": [{}] }, doc! { "$set": { "now": self.now() } }];
        let mut cursor = answer(self.database.aggregate(pipeline)).await?;
        let document = next(&mut cursor).await?;
        moment(&document.ok_or_else(|| StoreError::Corrupt("the server has no time".to_owned()))?, "now")
    }

    pub(super) async fn read_queues(&self) -> Result<Vec<Queue>, StoreError> {
        let empty = |stage| Queue { stage, waiting: 0, delayed: 0, working: 0, oldest: None };
        let mut queues = Stage::ALL.map(empty);
        for collection in [&self.requests, &self.segments] {
            // Looks at index entries only.
            let come = doc! { "$lte": ["$ready", self.now()] };
            let all = [
                doc! { "$match": { "stage": { "$in": Stage::ALL.map(Stage::as_str).to_vec() } } },
                doc! { "$group": {
                    "_id": "$stage",
                    "waiting": { "$sum": { "$cond": [come, 1, 0] } },
                    "oldest": { "$min": "$ready" },
                } },
                doc! { "$set": { "age": { "$subtract": [self.now(), "$oldest"] } } },
            ];
            let hint = Hint::Name(schema::TURN.to_owned());
            let mut cursor = long_answer(collection.aggregate(all).hint(hint.clone())).await?;
            while let Some(group) = next(&mut cursor).await? {
                if let Some(queue) = queue_of(&mut queues, &group) {
                    queue.waiting = count(&group, "waiting");
                    let age = u64::try_from(number(&group, "age")).ok();
                    queue.oldest = age.map(Duration::from_millis).filter(|_| queue.waiting > 0);
                }
            }
            let held = is_there("lease");
            let later = [
                doc! { "$match": {
                    "stage": { "$in": Stage::ALL.map(Stage::as_str).to_vec() },
                    "$expr": { "$gt": ["$ready", self.now()] },
                } },
                doc! { "$group": {
                    "_id": "$stage",
                    "working": { "$sum": { "$cond": [held.clone(), 1, 0] } },
                    "delayed": { "$sum": { "$cond": [held, 0, 1] } },
                } },
            ];
            let mut cursor = long_answer(collection.aggregate(later).hint(hint)).await?;
            while let Some(group) = next(&mut cursor).await? {
                if let Some(queue) = queue_of(&mut queues, &group) {
                    queue.working = count(&group, "working");
                    queue.delayed = count(&group, "delayed");
                }
            }
        }
        Ok(queues.to_vec())
    }

    pub(super) async fn note_worker(&self, worker: &Worker) -> Result<(), StoreError> {
        let stored = serialize_to_bson(worker)
            .map_err(|error| StoreError::Corrupt(format!("a worker cannot be written: {error}")))?;
        let workers = self.side(schema::WORKERS);
        let change = vec![doc! { "$set": {
            "seen": self.now(),
            "here": true,
            "offers": worker.offer.is_some(),
            "worker": { "$literal": stored },
        } }];
        let written = answer(workers.update_one(doc! { "_id": &worker.name }, change).upsert(true)).await?;
        if written.upserted_id.is_some() {
            // Others come and go with every restart of a process: a new one makes the old ones forgotten.
            let last =
                answer(workers.find_one(doc! { "offers": true }).sort(doc! { "seen": -1, "_id": 1 })).await?;
            let kept = last.and_then(|last| last.get("_id").cloned()).unwrap_or(Bson::Null);
            let gone =
                doc! { "_id": { "$ne": kept }, "$expr": { "$lt": ["$seen", self.before(REMEMBERED)] } };
            answer(workers.delete_many(gone)).await?;
        }
        Ok(())
    }

    pub(super) async fn note_gone(&self, name: &str) -> Result<(), StoreError> {
        let gone = doc! { "$set": { "here": false } };
        answer(self.side(schema::WORKERS).update_one(doc! { "_id": name }, gone)).await?;
        Ok(())
    }

    pub(super) async fn list_workers(&self, within: Duration) -> Result<Vec<Seen>, StoreError> {
        let here = doc! { "here": true, "$expr": { "$gte": ["$seen", self.before(within)] } };
        let mut cursor = answer(self.side(schema::WORKERS).find(here).sort(doc! { "_id": 1 })).await?;
        let mut workers = Vec::new();
        while let Some(document) = next(&mut cursor).await? {
            workers.push(Seen { at: moment(&document, "seen")?, worker: read_worker(document)? });
        }
        Ok(workers)
    }

    pub(super) async fn last_offer(&self) -> Result<Option<Offer>, StoreError> {
        let workers = self.side(schema::WORKERS);
        let last = workers.find_one(doc! { "offers": true }).sort(doc! { "seen": -1, "_id": 1 });
        match answer(last).await? {
            Some(document) => Ok(read_worker(document)?.offer),
            None => Ok(None),
        }
    }

    pub(super) async fn tie_key(&self, key: &str, id: JobId, time: Duration) -> Result<JobId, StoreError> {
        let ties = self.side(schema::TIES);
        answer(ties.delete_many(doc! { "$expr": { "$lte": ["$until", self.now()] } })).await?;
        let holds = doc! { "$and": [is_there("until"), { "$gt": ["$until", self.now()] }] };
        let new = doc! { "_id": "$_id", "job": object_id(id), "until": self.after(time) };
        let tied = put_unless(&ties, key, holds, new).await?;
        let job = tied.get_object_id("job");
        job.map(super::docs::job_id).map_err(|error| StoreError::Corrupt(format!("key {key:?}: {error}")))
    }

    pub(super) async fn hold_duty(
        &self,
        duty: &str,
        holder: &str,
        time: Duration,
    ) -> Result<bool, StoreError> {
        let holder_now = doc! { "$literal": holder };
        let others = doc! { "$and": [
            is_there("until"),
            { "$ne": ["$holder", holder_now.clone()] },
            { "$gt": ["$until", self.now()] },
        ] };
        let new = doc! { "_id": "$_id", "holder": holder_now, "until": self.after(time) };
        let held = put_unless(&self.side(schema::DUTIES), duty, others, new).await?;
        Ok(held.get_str("holder").is_ok_and(|found| found == holder))
    }

    pub(super) async fn list_ended(&self, age: Duration, limit: u32) -> Result<Vec<JobId>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let ended = doc! {
            "PROCESS_END": { "$exists": true },
            "deleted": { "$exists": false },
            "$expr": { "$lte": ["$PROCESS_END", self.before(age)] },
        };
        let found = self
            .requests
            .find(ended)
            .sort(doc! { "PROCESS_END": 1 })
            .limit(i64::from(limit))
            .projection(doc! { "_id": 1 });
        self.collect_ids(answer(found).await?).await
    }

    pub(super) async fn list_due_callbacks(&self, limit: u32) -> Result<Vec<Job>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let due = doc! {
            "callback_due": { "$exists": true },
            "$expr": { "$lte": ["$callback_due", self.now()] },
        };
        let found = self.requests.find(due).sort(doc! { "callback_due": 1 }).limit(i64::from(limit));
        self.collect_jobs(answer(found).await?).await
    }

    pub(super) async fn note_callback(&self, id: JobId, run: u32, tried: Tried) -> Result<(), StoreError> {
        self.change(id, |row, now| {
            let job = &mut row.doc.job;
            if job.run == run
                && let Some(callback) = &job.callback
                && callback.settled != Some(run)
            {
                job.callback = Some(callback.after(run, tried, now));
            }
        })
        .await?;
        Ok(())
    }
}

fn queue_of<'a>(queues: &'a mut [Queue], group: &Document) -> Option<&'a mut Queue> {
    let stage = group.get_str("_id").ok()?;
    queues.iter_mut().find(|queue| queue.stage.as_str() == stage)
}

fn read_worker(mut document: Document) -> Result<Worker, StoreError> {
    let worker = document.remove("worker").unwrap_or(Bson::Null);
    deserialize_from_bson(worker)
        .map_err(|error| StoreError::Corrupt(format!("a worker cannot be read: {error}")))
}
