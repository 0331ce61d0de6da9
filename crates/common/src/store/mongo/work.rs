//! Claims, and what becomes of them.

use std::time::Duration;

use mongodb::bson::{Bson, Document, doc, serialize_to_bson};
use mongodb::options::{Hint, ReturnDocument};
use serde::Serialize;

use super::super::rules::{SegmentDoc, Verdict, check_plan, does_not_fit};
use super::super::{Advanced, ClaimRequest, Claimed, MAX_EXPIRIES, Output, Renewal, Setback, StoreError};
use super::docs::{JobRow, SegmentRow, object_id, read_job, read_segment, segment_id, write_segment};
use super::jobs::moment;
use super::segments::{held, is_there};
use super::{
    ANSWER, MongoStore, REMEMBERED, answer, is_duplicate, long_answer, next, schema, unanswered, within,
};
use crate::clock::Stamp;
use crate::job::{Event, Failure, JobId, Plan};
use crate::segment::{Cut, Lease, Segment, Stage, State, Target, Token};

/// Pieces of work that one claim may find given up or out of force before it says that there is nothing.
const FUTILE: u32 = 1000;

/// What a claim of this request may take.
pub(super) fn claimable(request: &ClaimRequest, now: &Bson) -> Document {
    let mut filter = doc! {
        "stage": request.stage.as_str(),
        "$expr": { "$lte": ["$ready", now] },
        "$or": [
            { "avoid": { "$exists": false } },
            { "avoid.worker": { "$ne": &request.worker } },
            { "$expr": { "$lte": ["$avoid.until", now] } },
        ],
    };
    if let Some(model) = &request.model {
        filter.insert("model", super::super::rules::model_text(model));
    }
    filter
}

/// The order of claims, and the index that has it.
pub(super) fn order(request: &ClaimRequest) -> (Document, &'static str) {
    match (request.stage, &request.model) {
        (Stage::Index | Stage::Assemble, _) => {
            (doc! { "priority": 1, "PROCESS_START": 1, "_id": 1 }, schema::TURN)
        }
        (_, Some(_)) => (doc! { "priority": 1, "rank": 1, "job": 1, "number": 1 }, schema::MODEL_TURN),
        (_, None) => (doc! { "priority": 1, "rank": 1, "job": 1, "number": 1 }, schema::TURN),
    }
}

/// What waits in packs.
pub(super) fn packs() -> [Document; 2] {
    [
        doc! { "$match": { "stage": "detect" } },
        doc! { "$group": { "_id": null, "bytes": { "$sum": "$pack_bytes" } } },
    ]
}

impl MongoStore {
    /// Takes the lease, as a pipeline of an update. What lies there expired has cost an attempt.
    pub(super) fn take(&self, request: &ClaimRequest) -> Vec<Document> {
        let token = request.token.as_str();
        let lease = doc! {
            "worker": { "$literal": &request.worker },
            "token": token,
            "expires": self.after(request.lease),
        };
        let tokens = doc! { "$cond": [is_there("advanced"), [token, "$advanced.token"], [token]] };
        vec![
            doc! { "$set": {
                "expiries": { "$cond": [is_there("lease"), { "$add": ["$expiries", 1] }, "$expiries"] },
                "lease": lease,
                "ready": self.after(request.lease),
                "tokens": tokens,
            } },
            doc! { "$unset": "not_before" },
        ]
    }

    pub(super) async fn claim_next(&self, request: &ClaimRequest) -> Result<Option<Claimed>, StoreError> {
        // Asked before: the claim may have been made and its answer lost.
        if self.asked_before(&request.token)
            && let Some(found) = self.reread(request).await?
        {
            return Ok(found);
        }
        if request.stage == Stage::Decode
            && let Some(budget) = request.pack_budget
            && self.packs_exceed(budget).await?
        {
            self.forget(&request.token);
            return Ok(None);
        }
        for _ in 0..FUTILE {
            let taken = match request.stage {
                Stage::Index | Stage::Assemble => self.take_job(request).await?,
                Stage::Decode | Stage::Detect | Stage::Render => self.take_segment(request).await?,
            };
            match taken {
                Taken::Claimed(claimed) => return Ok(Some(*claimed)),
                Taken::Nothing => {
                    self.forget(&request.token);
                    return Ok(None);
                }
                // An earlier copy of this request has been served, and this one must not be: it may be late.
                Taken::Served => return Ok(self.reread(request).await?.flatten()),
                Taken::Futile => {}
            }
        }
        Ok(None)
    }

    /// Whether a claim was asked for with this token already; remembers that it is now.
    fn asked_before(&self, token: &Token) -> bool {
        let asked = &mut self.memory().asked;
        if asked.contains(token) {
            return true;
        }
        if asked.len() >= REMEMBERED {
            asked.pop_front();
        }
        asked.push_back(token.clone());
        false
    }

    fn forget(&self, token: &Token) {
        self.memory().asked.retain(|asked| asked != token);
    }

    /// When no pack waits, one segment is admitted whatever the budget.
    async fn packs_exceed(&self, budget: u64) -> Result<bool, StoreError> {
        let mut cursor =
            answer(self.segments.aggregate(packs()).hint(Hint::Name(schema::PACKS.to_owned()))).await?;
        if !answer(cursor.advance()).await? {
            return Ok(false);
        }
        let bytes = cursor.current().get("bytes").ok().flatten();
        let bytes = bytes.and_then(|n| n.as_i64().or_else(|| n.as_i32().map(i64::from))).unwrap_or(0);
        Ok(bytes > 0 && u64::try_from(bytes).unwrap_or(0) > budget)
    }

    async fn take_document(
        &self,
        collection: &mongodb::Collection<Document>,
        request: &ClaimRequest,
        change: Vec<Document>,
    ) -> Result<Result<Document, Taken>, StoreError> {
        let (sort, index) = order(request);
        let taken = collection
            .find_one_and_update(claimable(request, &self.now()), change)
            .sort(sort)
            .hint(Hint::Name(index.to_owned()))
            .return_document(ReturnDocument::After);
        match within(ANSWER, taken).await? {
            Ok(Some(document)) => Ok(Ok(document)),
            Ok(None) => Ok(Err(Taken::Nothing)),
            Err(error) if is_duplicate(&error) => Ok(Err(Taken::Served)),
            Err(error) => Err(unanswered(&error)),
        }
    }

    async fn take_job(&self, request: &ClaimRequest) -> Result<Taken, StoreError> {
        let mut change = self.take(request);
        let mut noted = doc! { "version": { "$add": ["$version", 1] } };
        if request.stage == Stage::Index {
            noted.insert("claimed.index", true);
        }
        change.push(doc! { "$set": noted });
        let mut row = match self.take_document(&self.requests, request, change).await? {
            Ok(document) => read_job(document)?,
            Err(taken) => return Ok(taken),
        };
        if row.doc.job.expiries >= MAX_EXPIRIES {
            self.change(row.doc.job.id, |row, now| {
                let mut piece = row.doc.piece();
                if piece.held_by(&request.token) {
                    let verdict = piece.bear_silence(request.stage);
                    settle(row, verdict, now);
                }
            })
            .await?;
            return Ok(Taken::Futile);
        }
        let attempt = row.doc.piece().attempt();
        Ok(Taken::claimed(request, Target::Job(row.doc.job.id), attempt, row, None))
    }

    async fn take_segment(&self, request: &ClaimRequest) -> Result<Taken, StoreError> {
        let mut segment = match self.take_document(&self.segments, request, self.take(request)).await? {
            Ok(document) => read_segment(document)?,
            Err(taken) => return Ok(taken),
        };
        let id = segment.doc.segment.job;
        if segment.doc.segment.expiries >= MAX_EXPIRIES {
            let verdict = segment.doc.piece().bear_silence(request.stage);
            if self.save_held(&segment, &request.token, Stamp(0)).await? {
                self.settle_segment(id, verdict).await?;
            }
            return Ok(Taken::Futile);
        }
        let (job, noted) = tokio::join!(
            self.find_job(id),
            self.note_turn(segment.priority, request.stage, segment.doc.rank),
        );
        noted?;
        let Some(mut job) = job? else {
            // Its job is removed, and it should have been.
            self.discard(&segment).await?;
            return Ok(Taken::Futile);
        };
        if !in_force(&job, &segment) {
            self.undo(&job, &segment, &request.token).await?;
            return Ok(Taken::Futile);
        }
        self.note_first_claim(&mut job, request.stage).await?;
        let target = Target::Segment(id, segment.doc.segment.index);
        let attempt = segment.doc.piece().attempt();
        Ok(Taken::claimed(request, target, attempt, job, Some(segment.doc.segment)))
    }

    async fn discard(&self, segment: &SegmentRow) -> Result<(), StoreError> {
        answer(self.segments.delete_one(doc! { "_id": segment.id() })).await?;
        Ok(())
    }

    /// Takes a claim back that caught a segment whose job is over or went on to another run or cut.
    async fn undo(&self, job: &JobRow, segment: &SegmentRow, token: &Token) -> Result<(), StoreError> {
        if job.cut.as_ref() != Some(&segment.cut) {
            return self.discard(segment).await;
        }
        let mut parked = segment.clone();
        parked.doc.segment.lease = None;
        let mut parked_document = write_segment(&parked, Stamp(0))?;
        parked_document.remove("stage");
        let held = doc! { "_id": segment.id(), "lease.token": token.as_str() };
        answer(self.segments.replace_one(held, parked_document)).await?;
        self.follow(job.doc.job.id).await?;
        Ok(())
    }

    /// The first claim of a stage is what its START is derived from.
    async fn note_first_claim(&self, job: &mut JobRow, stage: Stage) -> Result<(), StoreError> {
        if !job.doc.note_claim(stage) {
            return Ok(());
        }
        let field = format!("claimed.{stage}");
        let unnoted = doc! { "_id": object_id(job.doc.job.id), &field: false };
        let change = doc! { "$set": { field: true }, "$inc": { "version": 1_i64 } };
        answer(self.requests.update_one(unnoted, change)).await?;
        Ok(())
    }

    /// The claim that `request` made before, if its lease still lives: none when no document knows the token,
    /// `Some(None)` when the claim is over. A token that has served is never given anything else.
    async fn reread(&self, request: &ClaimRequest) -> Result<Option<Option<Claimed>>, StoreError> {
        let on_job = matches!(request.stage, Stage::Index | Stage::Assemble);
        let collection = if on_job { &self.requests } else { &self.segments };
        let pipeline = [
            doc! { "$match": { "tokens": request.token.as_str() } },
            doc! { "$limit": 1 },
            doc! { "$set": { "now": self.now() } },
        ];
        let mut cursor = answer(collection.aggregate(pipeline)).await?;
        let Some(document) = next(&mut cursor).await? else { return Ok(None) };
        let now = moment(&document, "now")?;
        let lives = |state: &State, lease: Option<&crate::segment::LeaseRecord>| {
            *state == State::Waiting(request.stage)
                && lease.is_some_and(|lease| lease.token == request.token && now < lease.expires)
        };
        let taken = if on_job {
            let mut job = read_job(document)?;
            if !job.doc.job.is_live() || !lives(&job.doc.job.state, job.doc.job.lease.as_ref()) {
                return Ok(Some(None));
            }
            let attempt = job.doc.piece().attempt();
            Taken::claimed(request, Target::Job(job.doc.job.id), attempt, job, None)
        } else {
            let mut segment = read_segment(document)?;
            let id = segment.doc.segment.job;
            let Some(mut job) = self.find_job(id).await? else { return Ok(Some(None)) };
            let found = &segment.doc.segment;
            if !in_force(&job, &segment) || !lives(&found.state, found.lease.as_ref()) {
                return Ok(Some(None));
            }
            // The first call may have come no further than the claim.
            self.note_turn(segment.priority, request.stage, segment.doc.rank).await?;
            self.note_first_claim(&mut job, request.stage).await?;
            let target = Target::Segment(id, segment.doc.segment.index);
            let attempt = segment.doc.piece().attempt();
            Taken::claimed(request, target, attempt, job, Some(segment.doc.segment))
        };
        Ok(Some(match taken {
            Taken::Claimed(claimed) => Some(*claimed),
            Taken::Nothing | Taken::Served | Taken::Futile => None,
        }))
    }

    /// The job of a lease, if the lease's run is the present one and the job is live.
    async fn job_of(&self, lease: &Lease) -> Result<Result<JobRow, Renewal>, StoreError> {
        Ok(match self.find_job(lease.target.job()).await? {
            None => Err(Renewal::Lost),
            Some(row) if !is_of(&row, lease) => Err(Renewal::Cancelled),
            Some(row) => Ok(row),
        })
    }

    pub(super) async fn prolong(&self, lease: &Lease, time: Duration) -> Result<Renewal, StoreError> {
        let row = match self.job_of(lease).await? {
            Ok(row) => row,
            Err(renewal) => return Ok(renewal),
        };
        let token = lease.token.as_str();
        let prolonged = doc! { "$max": ["$lease.expires", self.after(time)] };
        let mut change = vec![
            doc! { "$set": { "lease.expires": prolonged } },
            doc! { "$set": { "ready": "$lease.expires" } },
        ];
        let written = match (lease.target, &row.cut) {
            (Target::Job(id), _) => {
                change.push(doc! { "$set": { "version": { "$add": ["$version", 1] } } });
                let held = doc! { "_id": object_id(id), "lease.token": token };
                answer(self.requests.update_one(held, change)).await?
            }
            (Target::Segment(id, number), Some(cut)) => {
                let held = doc! { "_id": segment_id(id, number, cut), "lease.token": token };
                answer(self.segments.update_one(held, change)).await?
            }
            (Target::Segment(..), None) => return Ok(Renewal::Lost),
        };
        Ok(if written.matched_count > 0 { Renewal::Held } else { Renewal::Lost })
    }

    pub(super) async fn put(&self, lease: &Lease, cuts: &[Cut]) -> Result<Renewal, StoreError> {
        let row = match self.job_of(lease).await? {
            Ok(row) => row,
            Err(renewal) => return Ok(renewal),
        };
        let id = row.doc.job.id;
        // The job names the cut first: from then on it is the one in force, and those before are not.
        let named = self.change(id, |row, _| {
            let fits = is_of(row, lease)
                && row.doc.piece().held_by(&lease.token)
                && row.doc.job.state == State::Waiting(Stage::Index);
            if fits && row.cut.as_ref() != Some(&lease.token) {
                row.dead_cuts.extend(row.cut.replace(lease.token.clone()));
            }
            fits
        });
        let Some((true, row)) = named.await? else { return Ok(Renewal::Lost) };
        let there = self.segments_of(id, &lease.token, doc! {}).await?;
        let range = |segment: &Segment| (segment.first, segment.last);
        if there.iter().map(|row| range(&row.doc.segment)).eq(cuts.iter().map(|cut| (cut.first, cut.last))) {
            return Ok(Renewal::Held);
        }
        if !there.is_empty() {
            let other = doc! { "job": object_id(id), "cut": lease.token.as_str(), "state": "held" };
            long_answer(self.segments.delete_many(other)).await?;
        }
        let new = cuts.iter().zip(0..).map(|(cut, index)| {
            let doc = SegmentDoc::held(&row.doc.job, index, *cut);
            write_segment(&held(&row, &lease.token, doc), Stamp(0))
        });
        let new = new.collect::<Result<Vec<_>, _>>()?;
        if !new.is_empty() {
            // What is there already was put by an earlier copy of this call.
            match within(super::LONG_ANSWER, self.segments.insert_many(new).ordered(false)).await? {
                Err(error) if !is_duplicate(&error) => return Err(unanswered(&error)),
                _ => {}
            }
        }
        Ok(Renewal::Held)
    }

    pub(super) async fn record(&self, lease: &Lease, output: &Output) -> Result<Advanced, StoreError> {
        match lease.target {
            Target::Job(id) => self.record_job(id, lease, output).await,
            Target::Segment(id, number) => self.record_segment(id, number, lease, output).await,
        }
    }

    async fn record_job(&self, id: JobId, lease: &Lease, output: &Output) -> Result<Advanced, StoreError> {
        if let (Stage::Index, Output::Indexed(plan)) = (lease.stage, output) {
            self.check_put(id, lease, plan).await?;
        }
        let changed = self.change(id, |row, now| {
            let of = is_of(row, lease);
            let piece = row.doc.piece();
            if piece.advanced_by(&lease.token, lease.stage) {
                return Ok(Advanced::Recorded);
            }
            if !of || !piece.held_by(&lease.token) {
                return Ok(Advanced::Lost);
            }
            row.doc.record(&lease.token, lease.stage, output.clone())?;
            if lease.stage == Stage::Index {
                row.epoch += 1;
            }
            row.ready = now;
            Ok(Advanced::Recorded)
        });
        changed.await?.map_or(Ok(Advanced::Lost), |(advanced, _)| advanced)
    }

    async fn check_put(&self, id: JobId, lease: &Lease, plan: &Plan) -> Result<(), StoreError> {
        let Some(mut row) = self.find_job(id).await? else { return Ok(()) };
        if !row.doc.piece().held_by(&lease.token) || !is_of(&row, lease) {
            return Ok(());
        }
        // Only this lease puts segments of this cut: what is counted now stays so.
        let put = self.counts_of(id, &lease.token).await?.total();
        let named = row.cut.as_ref() == Some(&lease.token);
        check_plan(plan, if named { put } else { 0 })
    }

    async fn record_segment(
        &self,
        id: JobId,
        number: u32,
        lease: &Lease,
        output: &Output,
    ) -> Result<Advanced, StoreError> {
        let change = self.advance_change(lease, output)?;
        let Some(mut row) = self.find_job(id).await? else { return Ok(Advanced::Lost) };
        let mut recorded = false;
        if is_of(&row, lease)
            && let Some(cut) = &row.cut
        {
            let held = doc! {
                "_id": segment_id(id, number, cut),
                "lease.token": lease.token.as_str(),
                "state": lease.stage.as_str(),
            };
            recorded = answer(self.segments.update_one(held, change)).await?.matched_count > 0;
        }
        if !recorded {
            let done = doc! {
                "tokens": lease.token.as_str(),
                "advanced.token": lease.token.as_str(),
                "advanced.stage": lease.stage.as_str(),
            };
            if answer(self.segments.find_one(done).projection(doc! { "_id": 1 })).await?.is_none() {
                return Ok(Advanced::Lost);
            }
        }
        // Should its claimer have died before it noted the claim, this one does.
        self.note_first_claim(&mut row, lease.stage).await?;
        if lease.stage == Stage::Render {
            self.promote(id).await?;
        }
        Ok(Advanced::Recorded)
    }

    /// Records an output and puts the segment before what comes next, as one update.
    fn advance_change(&self, lease: &Lease, output: &Output) -> Result<Vec<Document>, StoreError> {
        let (next, files, pack_bytes) = match (lease.stage, output) {
            (Stage::Decode, Output::Decoded { pack, concealed }) => {
                let files = doc! { "files.pack": literal(pack)?, "files.concealed": literal(concealed)? };
                (Some(Stage::Detect), files, i64::try_from(pack.size).unwrap_or(i64::MAX))
            }
            (Stage::Detect, Output::Detected { detections }) => {
                // Its worker deletes the pack once it hears of this.
                let files =
                    doc! { "files.pack": { "$literal": null }, "files.detections": literal(detections)? };
                (Some(Stage::Render), files, 0)
            }
            (Stage::Render, Output::Rendered { encoded }) => {
                (None, doc! { "files.encoded": literal(encoded)? }, 0)
            }
            _ => return Err(does_not_fit(lease.stage)),
        };
        let token = lease.token.as_str();
        let mut set = files;
        set.extend(doc! {
            "state": next.map_or("done", Stage::as_str),
            "stage": next.map_or(Bson::String("$$REMOVE".to_owned()), |stage| stage.as_str().into()),
            "failures": 0,
            "expiries": 0,
            "advanced": { "token": token, "stage": lease.stage.as_str() },
            "tokens": [token],
            "ready": self.now(),
            "pack_bytes": pack_bytes,
        });
        Ok(vec![doc! { "$set": set }, doc! { "$unset": ["lease", "not_before", "avoid"] }])
    }

    pub(super) async fn give_back(&self, lease: &Lease, setback: &Setback) -> Result<(), StoreError> {
        match lease.target {
            Target::Job(id) => {
                self.change(id, |row, now| set_back_job(row, lease, setback, now)).await?;
                if matches!(setback, Setback::SendBack { .. }) {
                    self.promote(id).await?;
                }
                Ok(())
            }
            Target::Segment(id, number) => self.give_segment_back(id, number, lease, setback).await,
        }
    }

    async fn give_segment_back(
        &self,
        id: JobId,
        number: u32,
        lease: &Lease,
        setback: &Setback,
    ) -> Result<(), StoreError> {
        let Some((row, now)) = self.read_job(id).await? else { return Ok(()) };
        let Some(cut) = &row.cut else { return Ok(()) };
        let Some(mut segment) = self.held_segment(id, number, cut, &lease.token).await? else {
            return Ok(());
        };
        // What was cancelled or belongs to an older run only gives its lease back.
        let setback = if is_of(&row, lease) { setback.clone() } else { Setback::HandBack };
        let verdict = match setback {
            Setback::SendBack { to: Stage::Index, message, .. } => {
                return self.back_to_index(id, lease, cut, &message).await;
            }
            Setback::SendBack { to, message, .. } if to < lease.stage => segment.doc.send_back(to, &message),
            other => segment.doc.piece().set_back(lease.stage, other, now),
        };
        if self.save_held(&segment, &lease.token, now).await? {
            self.settle_segment(id, verdict).await?;
        }
        Ok(())
    }

    /// The frame index is lost, as the holder of one segment found: the whole job is cut and done again.
    async fn back_to_index(
        &self,
        id: JobId,
        lease: &Lease,
        cut: &Token,
        message: &str,
    ) -> Result<(), StoreError> {
        self.change(id, |row, now| {
            // Another may have found it meanwhile.
            if is_of(row, lease) && row.cut.as_ref() == Some(cut) {
                start_over(row, message, now);
            }
        })
        .await?;
        Ok(())
    }

    /// Ends the job if a segment of it was given up.
    async fn settle_segment(&self, id: JobId, verdict: Verdict) -> Result<(), StoreError> {
        if let Verdict::GivenUp { stage, reason } = verdict {
            self.end_failed(id, Failure { code: stage.error_code(), message: reason }).await?;
        }
        Ok(())
    }
}

/// What one try to claim came to.
enum Taken {
    Claimed(Box<Claimed>),
    Nothing,
    /// The token is another document's.
    Served,
    /// What was taken was given up or out of force; the next may be better.
    Futile,
}

impl Taken {
    fn claimed(
        request: &ClaimRequest,
        target: Target,
        attempt: u32,
        job: JobRow,
        segment: Option<Segment>,
    ) -> Self {
        let job = job.doc.job;
        let lease =
            Lease { target, stage: request.stage, run: job.run, token: request.token.clone(), attempt };
        Self::Claimed(Box::new(Claimed { lease, job, segment }))
    }
}

/// Whether the job is live and in the lease's run.
fn is_of(row: &JobRow, lease: &Lease) -> bool {
    row.doc.job.is_live() && row.doc.job.run == lease.run
}

/// Whether a segment is one of those that the job's document speaks of now.
fn in_force(job: &JobRow, segment: &SegmentRow) -> bool {
    job.doc.job.is_live() && job.cut.as_ref() == Some(&segment.cut) && job.epoch == segment.epoch
}

/// A value as an expression that is taken as it is, whatever it looks like.
fn literal<T: Serialize>(value: &T) -> Result<Document, StoreError> {
    let value = serialize_to_bson(value)
        .map_err(|error| StoreError::Corrupt(format!("an output cannot be written: {error}")))?;
    Ok(doc! { "$literal": value })
}

/// Ends the job if its own work was given up.
fn settle(row: &mut JobRow, verdict: Verdict, now: Stamp) {
    if let Verdict::GivenUp { stage, reason } = verdict {
        row.end(Event::Failed(Failure { code: stage.error_code(), message: reason }), now);
    }
}

fn start_over(row: &mut JobRow, message: &str, now: Stamp) {
    let verdict = row.doc.send_back(message);
    row.ready = now;
    if verdict == Verdict::GoesOn {
        row.drop_cut();
    }
    settle(row, verdict, now);
}

fn set_back_job(row: &mut JobRow, lease: &Lease, setback: &Setback, now: Stamp) {
    if !row.doc.piece().held_by(&lease.token) {
        return;
    }
    let setback = if is_of(row, lease) { setback.clone() } else { Setback::HandBack };
    row.ready = now;
    match setback {
        Setback::SendBack { to: Stage::Index, message, .. } if lease.stage == Stage::Assemble => {
            start_over(row, &message, now);
        }
        Setback::SendBack { to, message, segments }
            if lease.stage == Stage::Assemble && to < lease.stage && !segments.is_empty() =>
        {
            // The job's own failures stay out of it: how often a segment goes back is bounded by itself.
            row.doc.piece().start(State::Segments);
            row.back = Some(super::docs::Back { to, message, segments });
            row.epoch += 1;
        }
        other => {
            let verdict = row.doc.piece().set_back(lease.stage, other, now);
            settle(row, verdict, now);
        }
    }
}
