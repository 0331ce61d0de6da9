//! The segments of a job as a whole: read, counted, and made to follow what its document says.

use mongodb::bson::{Bson, Document, doc};
use mongodb::options::Hint;

use super::super::rules::{SegmentDoc, Verdict};
use super::super::{Counts, StoreError};
use super::docs::{JobRow, SegmentRow, object_id, read_segment, segment_id, write_segment};
use super::{MongoStore, TRIES, answer, contended, long_answer, next, step_aside};
use crate::clock::Stamp;
use crate::job::{Event, Failure, JobId};
use crate::segment::{Stage, State, Token};

/// States of segments that are not done.
const UNFINISHED: [&str; 5] = ["held", "decode", "detect", "render", "failed"];

/// A field that is there, in an expression.
pub(super) fn is_there(field: &str) -> Document {
    doc! { "$ne": [{ "$type": format!("${field}") }, "missing"] }
}

/// What `tokens` is without a lease, as an expression: that of the last advance.
fn resting_tokens() -> Document {
    doc! { "$cond": [is_there("advanced"), ["$advanced.token"], "$$REMOVE"] }
}

impl MongoStore {
    /// The segments of a cut that `filter` fits, in order.
    pub(super) async fn segments_of(
        &self,
        job: JobId,
        cut: &Token,
        filter: Document,
    ) -> Result<Vec<SegmentRow>, StoreError> {
        let mut all = doc! { "job": object_id(job), "cut": cut.as_str() };
        all.extend(filter);
        let mut cursor = answer(self.segments.find(all)).await?;
        let mut rows = Vec::new();
        while let Some(document) = next(&mut cursor).await? {
            rows.push(read_segment(document)?);
        }
        rows.sort_by_key(|row| row.doc.segment.index);
        Ok(rows)
    }

    pub(super) async fn counts_of(&self, job: JobId, cut: &Token) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for (state, n) in self.group(job, cut, "$state").await? {
            match state.as_str() {
                "held" => counts.held = n,
                "decode" => counts.decode = n,
                "detect" => counts.detect = n,
                "render" => counts.render = n,
                "done" => counts.done = n,
                "failed" => counts.failed = n,
                other => {
                    return Err(StoreError::Corrupt(format!("a segment of {job} is in state {other:?}")));
                }
            }
        }
        Ok(counts)
    }

    /// Counts where segments would begin again: those that were given up in the stage that gave up.
    pub(super) async fn counts_again(
        &self,
        job: JobId,
        cut: &Token,
    ) -> Result<Vec<(String, u32)>, StoreError> {
        self.group(job, cut, doc! { "$ifNull": ["$failed.stage", "$state"] }).await
    }

    async fn group(
        &self,
        job: JobId,
        cut: &Token,
        by: impl Into<Bson>,
    ) -> Result<Vec<(String, u32)>, StoreError> {
        let pipeline = [
            doc! { "$match": { "job": object_id(job), "cut": cut.as_str() } },
            doc! { "$group": { "_id": by.into(), "n": { "$sum": 1 } } },
        ];
        let mut cursor = answer(self.segments.aggregate(pipeline)).await?;
        let mut groups = Vec::new();
        while let Some(group) = next(&mut cursor).await? {
            let n = group.get_i32("n").ok().and_then(|n| u32::try_from(n).ok());
            let (Ok(name), Some(n)) = (group.get_str("_id"), n) else {
                return Err(StoreError::Corrupt(format!("segments of {job} are counted as {group}")));
            };
            groups.push((name.to_owned(), n));
        }
        Ok(groups)
    }

    /// Whether every segment of the cut is done. (Looks at one index entry, not at every segment.)
    pub(super) async fn all_done(&self, job: JobId, cut: &Token) -> Result<bool, StoreError> {
        let unfinished =
            doc! { "job": object_id(job), "cut": cut.as_str(), "state": { "$in": &UNFINISHED[..] } };
        let found = self
            .segments
            .find_one(unfinished)
            .projection(doc! { "_id": 1 })
            .hint(Hint::Name("job".to_owned()));
        Ok(answer(found).await?.is_none())
    }

    /// Makes the segments follow every change of the job's document that they have not followed yet, and notes
    /// that. Returns the document afterwards; none when the job is gone.
    ///
    /// Any number of callers may do this at once, and any of them may die in the middle.
    pub(super) async fn follow(&self, id: JobId) -> Result<Option<JobRow>, StoreError> {
        for tries in 0..TRIES {
            step_aside(tries).await;
            let Some((row, now)) = self.read_job(id).await? else { return Ok(None) };
            if !row.pending() {
                return Ok(Some(row));
            }
            let verdict = self.follow_once(&row, now).await?;
            let mut next = row.clone();
            next.dead_cuts.clear();
            next.followed = row.epoch;
            next.back = None;
            if let Verdict::GivenUp { stage, reason } = verdict {
                next.end(Event::Failed(Failure { code: stage.error_code(), message: reason }), now);
            }
            // Whether or not this is written: the next turn reads what became of it.
            self.save_job(next).await?;
        }
        Err(contended(id))
    }

    async fn follow_once(&self, row: &JobRow, now: Stamp) -> Result<Verdict, StoreError> {
        let job = &row.doc.job;
        for cut in &row.dead_cuts {
            let dead = doc! { "job": object_id(job.id), "cut": cut.as_str() };
            long_answer(self.segments.delete_many(dead)).await?;
        }
        let Some(cut) = &row.cut else { return Ok(Verdict::GoesOn) };
        if row.followed == row.epoch {
            return Ok(Verdict::GoesOn);
        }
        if !job.is_live() {
            self.park(row, cut).await?;
            return Ok(Verdict::GoesOn);
        }
        if row.back.is_some() {
            return self.send_back(row, cut, now).await;
        }
        if job.state != State::Waiting(Stage::Index) {
            self.begin(row, cut).await?;
        }
        Ok(Verdict::GoesOn)
    }

    /// The segments that are behind the job's epoch.
    fn behind(row: &JobRow, cut: &Token) -> Document {
        doc! { "job": object_id(row.doc.job.id), "cut": cut.as_str(), "epoch": { "$lt": row.epoch } }
    }

    /// Makes the segments of a job that is over unclaimable.
    async fn park(&self, row: &JobRow, cut: &Token) -> Result<(), StoreError> {
        let change = vec![
            doc! { "$set": { "epoch": row.epoch, "tokens": resting_tokens() } },
            doc! { "$unset": ["stage", "lease"] },
        ];
        long_answer(self.segments.update_many(Self::behind(row, cut), change)).await?;
        Ok(())
    }

    /// Lets the segments of an indexed job, or of one that runs again, be claimed: those that are not done start
    /// where they stood, in their turn.
    async fn begin(&self, row: &JobRow, cut: &Token) -> Result<(), StoreError> {
        let job = &row.doc.job;
        let first = self.first_rank(job.priority).await?;
        let numbers = self.unfinished(job.id, cut).await?;
        // The place in the line is the place among those that are left, not among all.
        let place = if numbers.iter().copied().eq(0..numbers.len() as u64) {
            Bson::String("$number".to_owned())
        } else {
            let numbers: Vec<_> = numbers.into_iter().map(|n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
            Bson::Document(doc! { "$indexOfArray": [numbers, "$number"] })
        };
        let unfinished = doc! { "$ne": ["$state", "done"] };
        let state = doc! { "$switch": {
            "branches": [
                { "case": { "$eq": ["$state", "held"] }, "then": "decode" },
                { "case": { "$eq": ["$state", "failed"] }, "then": "$failed.stage" },
            ],
            "default": "$state",
        } };
        let change = vec![
            doc! { "$set": {
                "epoch": row.epoch,
                "run": job.run,
                "rank": { "$cond": [unfinished.clone(), { "$add": [first, place] }, "$rank"] },
                "state": state,
                "failures": 0,
                "expiries": 0,
                "sent_back": 0,
                "ready": self.now(),
                "tokens": resting_tokens(),
            } },
            doc! { "$set": { "stage": { "$cond": [unfinished, "$state", "$$REMOVE"] } } },
            doc! { "$unset": ["failed", "lease", "not_before", "avoid"] },
        ];
        long_answer(self.segments.update_many(Self::behind(row, cut), change)).await?;
        Ok(())
    }

    /// Numbers of the segments that are not done, in order.
    async fn unfinished(&self, job: JobId, cut: &Token) -> Result<Vec<u64>, StoreError> {
        let filter = doc! { "job": object_id(job), "cut": cut.as_str(), "state": { "$in": &UNFINISHED[..] } };
        let mut cursor =
            answer(self.segments.find(filter).projection(doc! { "_id": 0, "number": 1 })).await?;
        let mut numbers = Vec::new();
        while answer(cursor.advance()).await? {
            let number = cursor.current().get("number").ok().flatten();
            let number = number.and_then(|n| n.as_i64().or_else(|| n.as_i32().map(i64::from)));
            let number = number.and_then(|n| u64::try_from(n).ok());
            numbers.push(
                number.ok_or_else(|| StoreError::Corrupt(format!("a segment of {job} has no number")))?,
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Sends those segments back that assemble found damaged.
    async fn send_back(&self, row: &JobRow, cut: &Token, now: Stamp) -> Result<Verdict, StoreError> {
        let Some(back) = &row.back else { return Ok(Verdict::GoesOn) };
        let mut worst = Verdict::GoesOn;
        let behind = doc! { "number": { "$in": &back.segments }, "epoch": { "$lt": row.epoch } };
        for mut segment in self.segments_of(row.doc.job.id, cut, behind).await? {
            let seen = doc! { "_id": segment.id(), "epoch": segment.epoch };
            let verdict = segment.doc.send_back(back.to, &back.message);
            segment.epoch = row.epoch;
            answer(self.segments.replace_one(seen, write_segment(&segment, now)?)).await?;
            if verdict != Verdict::GoesOn {
                worst = verdict;
            }
        }
        let change = doc! { "$set": { "epoch": row.epoch } };
        long_answer(self.segments.update_many(Self::behind(row, cut), change)).await?;
        Ok(worst)
    }

    /// The segment, if `token` holds it.
    pub(super) async fn held_segment(
        &self,
        job: JobId,
        number: u32,
        cut: &Token,
        token: &Token,
    ) -> Result<Option<SegmentRow>, StoreError> {
        let held = doc! { "_id": segment_id(job, number, cut), "lease.token": token.as_str() };
        answer(self.segments.find_one(held)).await?.map(read_segment).transpose()
    }

    /// Writes a segment that `token` holds. False when it no longer does.
    pub(super) async fn save_held(
        &self,
        row: &SegmentRow,
        token: &Token,
        ready: Stamp,
    ) -> Result<bool, StoreError> {
        let held = doc! { "_id": row.id(), "lease.token": token.as_str() };
        let written = answer(self.segments.replace_one(held, write_segment(row, ready)?)).await?;
        Ok(written.matched_count > 0)
    }

    /// The rank that a job admitted now starts from: start-time fair queueing over three stages in a row. What
    /// counts is the stage that is furthest behind.
    async fn first_rank(&self, priority: i32) -> Result<i64, StoreError> {
        let ids = [Stage::Decode, Stage::Detect, Stage::Render].map(|stage| turn_id(priority, stage));
        let mut cursor = answer(self.turns.find(doc! { "_id": { "$in": &ids[..] } })).await?;
        let (mut first, mut known) = (i64::MAX, 0);
        while answer(cursor.advance()).await? {
            let rank = cursor.current().get_i64("rank");
            first = first
                .min(rank.map_err(|error| StoreError::Corrupt(format!("a turn cannot be read: {error}")))?);
            known += 1;
        }
        Ok(if known == ids.len() { first } else { 0 })
    }

    /// Notes that a segment with `rank` was claimed.
    pub(super) async fn note_turn(&self, priority: i32, stage: Stage, rank: i64) -> Result<(), StoreError> {
        if self.memory().turns.get(&(priority, stage)).is_some_and(|noted| rank <= *noted) {
            return Ok(());
        }
        let id = doc! { "_id": turn_id(priority, stage) };
        let noted = self
            .turns
            .find_one_and_update(id, doc! { "$max": { "rank": rank } })
            .upsert(true)
            .return_document(mongodb::options::ReturnDocument::After)
            .into_future();
        let largest = match super::within(super::ANSWER, noted).await? {
            Ok(found) => found.and_then(|turn| turn.get_i64("rank").ok()).unwrap_or(rank),
            // Two made it at once: the other's is as good, or the next claim makes it so.
            Err(error) if super::is_duplicate(&error) => return Ok(()),
            Err(error) => return Err(super::unanswered(&error)),
        };
        self.memory().turns.insert((priority, stage), largest);
        Ok(())
    }
}

fn turn_id(priority: i32, stage: Stage) -> String {
    format!("{priority}/{stage}")
}

/// A segment as index put it.
pub(super) fn held(row: &JobRow, cut: &Token, doc: SegmentDoc) -> SegmentRow {
    let job = &row.doc.job;
    SegmentRow {
        doc,
        cut: cut.clone(),
        epoch: row.epoch,
        priority: job.priority,
        model: super::super::rules::model_text(&job.settings.model),
    }
}
