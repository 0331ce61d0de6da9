//! What every [`JobStore`] must do, as tests. Compiled for this crate's own tests and under the feature
//! `contract`; an implementation implements [`House`] and calls
//! [`contract_tests!`](crate::contract_tests) in a test module.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Advanced, ClaimRequest, Claimed, Counts, Job, JobStore, LockRequest, Locking, MAX_EXPIRIES, MAX_FAILURES,
    MAX_SEND_BACKS, NewJob, NewUpload, Offer, Output, Recorded, Renewal, Reported, Setback, Store,
    StoreError, Tried, UPLOAD_KEPT, Upload, UploadLock, UploadState, Worker,
};
use crate::clock::Stamp;
use crate::files::{Encoding, FileRecord};
use crate::job::{
    Ended, ErrorCode, Failure, JobId, ModelKey, Plan, Precision, Settings, Source, Status, Summary,
};
use crate::segment::{Cut, Lease, Segment, Stage, State, Target, Token};

/// An empty store, and its clock.
#[async_trait]
pub trait House: Send + Sync {
    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// The same store, as another process would reach it.
    fn another(&self) -> Arc<dyn Store>;

    /// Moves the store's clock on by `time`. Nothing else moves it.
    async fn pass(&self, time: Duration);
}

/// Makes a test of every part of the contract; the argument makes a fresh [`House`] each.
#[macro_export]
macro_rules! contract_tests {
    ($house:expr) => {
        $crate::contract_tests!(@each $house;
            creating_is_idempotent, jobs_are_listed_newest_first, one_video_goes_all_the_way,
            claims_are_exclusive_under_sixteen_racers, a_claim_is_read_again_by_its_token,
            a_served_token_claims_nothing_else, renewing_keeps_a_lease, a_lost_lease_is_fenced_off,
            a_repeated_advance_is_success, an_output_of_another_stage_is_refused,
            failures_are_counted_and_end_the_job, a_fatal_failure_ends_the_job_at_once,
            hand_backs_cost_nothing, retries_wait_and_prefer_another_worker,
            silent_expiries_are_counted, an_advance_clears_the_count, a_clip_overtakes_a_film,
            a_film_progresses_under_endless_clips, a_clip_overtakes_where_the_film_lags,
            priority_comes_before_turn, only_the_right_model_is_claimed, packs_are_bounded,
            cancelling_stops_every_stage, a_failed_job_cannot_be_cancelled, a_retry_redoes_only_the_unfinished,
            a_retry_with_another_model_does_all_again,
            an_old_run_is_fenced_off, reports_are_stamped_when_borne_out, stamps_do_not_move,
            a_finished_job_takes_no_report_back, counts_add_up, damage_sends_a_segment_back_a_bounded_number_of_times,
            a_used_pack_is_made_again, assemble_sends_segments_back, a_lost_index_is_made_again,
            cutting_again_replaces_the_cuts, a_plan_must_fit_its_segments, put_segments_is_fenced,
            removing_takes_a_tombstone, a_random_day_keeps_every_promise, queues_tell_what_waits,
            workers_are_listed_while_they_are_there, the_last_offer_outlives_its_worker, a_key_is_tied_once,
            a_duty_has_one_holder, ended_jobs_are_found_by_age, callbacks_are_due_until_settled,
            an_upload_is_created_once, an_upload_grows_by_one_writer_at_a_time,
            locks_are_exclusive_under_sixteen_racers,
            a_lapsed_lock_goes_to_the_next_and_its_holder_is_fenced_off, a_whole_upload_waits_for_its_job,
            an_upload_expires_when_nothing_more_comes, a_removed_upload_fences_its_writer_off,
        );
    };
    (@each $house:expr; $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                $crate::store::contract::$name(&$house).await;
            }
        )*
    };
}

const LEASE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

fn model(digest: &str) -> ModelKey {
    ModelKey { digest: digest.to_owned(), precision: Precision::Fp32 }
}

/// A new job with all that a user may ask for.
pub fn new_job() -> NewJob {
    NewJob {
        id: JobId::new(Stamp(1_700_000_000_000_000)),
        filename: "bikes & <cars>.mp4".to_owned(),
        source: Source { path: PathBuf::from("/videos/bikes.mp4"), size: 123_456_789_012 },
        settings: Settings {
            conf: 0.3,
            iou: 0.45,
            max_det: 200,
            classes: vec![0, 2],
            every: 1,
            keep_frames: true,
            save_txt: true,
            mp4: true,
            avi: true,
            names: vec!["person".to_owned(), "bicycle".to_owned(), "car".to_owned()],
            model: model("abc"),
        },
        priority: 0,
        callback_url: Some("https://example.org/done".to_owned()),
    }
}

pub(crate) fn file(name: &str, size: u64) -> FileRecord {
    FileRecord { name: name.to_owned(), size, checksum: -5 }
}

pub(crate) fn cuts(n: u32) -> Vec<Cut> {
    (0..n).map(|k| Cut { first: k * 100, last: k * 100 + 99 }).collect()
}

pub(crate) fn plan(n: u32) -> Plan {
    Plan {
        index: file("index/frames.x", 10),
        mezzanine: None,
        frames: n * 100,
        segments: n,
        width: 1920,
        height: 1080,
        dropped: vec!["subtitles (mov_text)".to_owned()],
    }
}

fn request(stage: Stage) -> ClaimRequest {
    ClaimRequest {
        stage,
        worker: "worker-1".to_owned(),
        token: Token::random(),
        lease: LEASE,
        model: None,
        pack_budget: None,
    }
}

/// What `stage` would make of its work.
pub(crate) fn output(stage: Stage, token: &Token) -> Output {
    match stage {
        Stage::Index => Output::Indexed(plan(1)),
        Stage::Decode => Output::Decoded { pack: file(&format!("pack/0.{token}"), 1000), concealed: vec![7] },
        Stage::Detect => Output::Detected { detections: file(&format!("detections/0.{token}"), 10) },
        Stage::Render => Output::Rendered {
            encoded: vec![(Encoding::H264, file("a", 1)), (Encoding::Mpeg4, file("b", 2))],
        },
        Stage::Assemble => Output::Assembled(Summary {
            frames: 100,
            duration: 4.004_000_000_000_001,
            counts: vec![("person".to_owned(), 3)],
            concealed: vec![7],
            notes: vec!["one frame was concealed".to_owned()],
        }),
    }
}

async fn try_claim(store: &dyn JobStore, stage: Stage) -> Option<Claimed> {
    store.claim(&request(stage)).await.unwrap()
}

async fn claim(store: &dyn JobStore, stage: Stage) -> Claimed {
    try_claim(store, stage).await.unwrap_or_else(|| panic!("there should be something to {stage}"))
}

async fn advance(store: &dyn JobStore, claimed: Claimed) -> Advanced {
    let output = output(claimed.lease.stage, &claimed.lease.token);
    store.advance(claimed.lease, output).await.unwrap()
}

/// Claims the next piece of `stage` and finishes it; tells which it was.
pub(crate) async fn step(store: &dyn JobStore, stage: Stage) -> Option<Target> {
    let claimed = try_claim(store, stage).await?;
    let target = claimed.lease.target;
    assert_eq!(advance(store, claimed).await, Advanced::Recorded);
    Some(target)
}

/// Creates a job and has it indexed into `n` segments.
pub(crate) async fn indexed(store: &dyn JobStore, new: NewJob, n: u32) -> JobId {
    let id = store.create_job(new).await.unwrap().id;
    let claimed = claim(store, Stage::Index).await;
    assert_eq!(claimed.job.id, id, "only this job waits for index");
    assert_eq!(store.put_segments(&claimed.lease, &cuts(n)).await.unwrap(), Renewal::Held);
    let advanced = store.advance(claimed.lease, Output::Indexed(plan(n))).await.unwrap();
    assert_eq!(advanced, Advanced::Recorded);
    id
}

pub(crate) async fn film(store: &dyn JobStore, n: u32) -> JobId {
    indexed(store, new_job(), n).await
}

async fn job(store: &dyn JobStore, id: JobId) -> Job {
    store.job(id).await.unwrap().expect("the job is there")
}

async fn segment(store: &dyn JobStore, id: JobId, k: usize) -> Segment {
    store.segments(id).await.unwrap().remove(k)
}

async fn status(store: &dyn JobStore, id: JobId) -> Status {
    job(store, id).await.timeline.status()
}

fn retry(message: &str, backoff: Duration) -> Setback {
    Setback::Retry { message: message.to_owned(), backoff }
}

fn same_lease(lease: &Lease) -> Lease {
    Lease {
        target: lease.target,
        stage: lease.stage,
        run: lease.run,
        token: lease.token.clone(),
        attempt: lease.attempt,
    }
}

// --- jobs -----------------------------------------------------------------------------------------------

pub async fn creating_is_idempotent(house: &dyn House) {
    let store = house.store();
    let new = new_job();
    let created = store.create_job(new.clone()).await.unwrap();
    assert_eq!(created.timeline.status(), Status::Enqueue);
    house.pass(SECOND).await;
    let changed = NewJob { filename: "other".to_owned(), ..new.clone() };
    assert_eq!(store.create_job(changed).await.unwrap(), created, "a repeat changes nothing");
    assert_eq!(job(&*store, new.id).await, created);
    assert_eq!((created.source, created.settings), (new.source, new.settings));
    assert_eq!(store.job(JobId::from([0; 12])).await.unwrap(), None);
}

pub async fn jobs_are_listed_newest_first(house: &dyn House) {
    let store = house.store();
    let mut ids = Vec::new();
    for second in 0..5 {
        let id = JobId::new(Stamp(1_700_000_000_000_000).after(SECOND * second));
        ids.push(store.create_job(NewJob { id, ..new_job() }).await.unwrap().id);
    }
    ids.reverse();
    assert!(store.cancel(ids[1]).await.unwrap());
    let list = async |before, limit, statuses: &[Status]| -> Vec<JobId> {
        store.jobs(before, limit, statuses).await.unwrap().into_iter().map(|job| job.id).collect()
    };
    assert_eq!(list(None, 10, &[]).await, ids);
    assert_eq!(list(None, 2, &[]).await, ids[..2]);
    assert_eq!(list(Some(ids[1]), 2, &[]).await, ids[2..4]);
    assert_eq!(list(None, 10, &[Status::Cancelled]).await, [ids[1]]);
    assert_eq!(list(None, 2, &[Status::Enqueue, Status::Inference]).await, [ids[0], ids[2]]);
    assert_eq!(list(None, 0, &[]).await, []);
    assert!(store.tombstone(ids[0]).await.unwrap());
    assert_eq!(list(None, 10, &[]).await, ids[1..], "what is being deleted is not shown");
    let unsettled: BTreeSet<_> = store.unsettled().await.unwrap().into_iter().collect();
    assert_eq!(unsettled, [ids[0], ids[2], ids[3], ids[4]].into(), "but it is to be visited");
}

pub async fn one_video_goes_all_the_way(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 2).await;
    for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
        for k in 0..2 {
            assert_eq!(try_claim(&*store, Stage::Assemble).await.map(|c| c.lease), None, "too early");
            assert_eq!(step(&*store, stage).await, Some(Target::Segment(id, k)), "{stage} in order");
        }
        assert_eq!(step(&*store, stage).await, None);
    }
    let segments = store.segments(id).await.unwrap();
    assert_eq!(
        segments.iter().map(|s| (s.index, s.first, s.last)).collect::<Vec<_>>(),
        [(0, 0, 99), (1, 100, 199)]
    );
    for segment in &segments {
        assert_eq!(segment.state, State::Done);
        assert_eq!(segment.files.pack, None, "the pack is not named once detect has read it");
        assert_eq!(segment.files.concealed, [7]);
        assert!(segment.files.detections.is_some());
        assert_eq!(segment.files.encoded.len(), 2);
    }
    assert_eq!(job(&*store, id).await.plan, Some(plan(2)));
    let claimed = claim(&*store, Stage::Assemble).await;
    let Output::Assembled(summary) = output(Stage::Assemble, &claimed.lease.token) else { unreachable!() };
    assert_eq!(advance(&*store, claimed).await, Advanced::Recorded);
    let done = store.reconcile(id).await.unwrap().unwrap();
    assert_eq!((done.state, done.summary), (State::Done, Some(summary)));
    assert_eq!(done.timeline.status(), Status::PostprocessingComplete);
    assert!(store.unsettled().await.unwrap().is_empty());
    for stage in Stage::ALL {
        assert_eq!(step(&*store, stage).await, None, "nothing left to {stage}");
    }
}

// --- claims and leases ----------------------------------------------------------------------------------

pub async fn claims_are_exclusive_under_sixteen_racers(house: &dyn House) {
    let id = film(&*house.store(), 40).await;
    let racers: Vec<_> = (0..16)
        .map(|n| {
            let store = if n % 2 == 0 { house.store() } else { house.another() };
            tokio::spawn(async move {
                let mut won = Vec::new();
                while let Some(claimed) = try_claim(&*store, Stage::Decode).await {
                    won.push(claimed.lease.target);
                    if won.len() % 2 == 0 {
                        assert_eq!(advance(&*store, claimed).await, Advanced::Recorded);
                    }
                }
                won
            })
        })
        .collect();
    let mut won = Vec::new();
    for racer in racers {
        won.extend(racer.await.unwrap());
    }
    assert_eq!(won.len(), 40, "nobody got what another held");
    let distinct: BTreeSet<_> = won.into_iter().collect();
    assert_eq!(distinct, (0..40).map(|k| Target::Segment(id, k)).collect());
}

pub async fn a_claim_is_read_again_by_its_token(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 2).await;
    let request = request(Stage::Decode);
    let first = store.claim(&request).await.unwrap().unwrap();
    house.pass(SECOND).await;
    let again = store.claim(&request).await.unwrap().unwrap();
    assert_eq!(again.lease, first.lease);
    assert_eq!(again.segment, first.segment);
    assert_eq!(store.counts(id).await.unwrap().decode, 2);
    assert_eq!(segment(&*store, id, 1).await.lease, None, "the repeat took nothing else");

    store.create_job(new_job()).await.unwrap();
    let request = ClaimRequest { stage: Stage::Index, token: Token::random(), ..request };
    let first = store.claim(&request).await.unwrap().unwrap();
    assert_eq!(store.claim(&request).await.unwrap().unwrap().lease, first.lease, "job-level claims too");
}

pub async fn a_served_token_claims_nothing_else(house: &dyn House) {
    let store = house.store();
    film(&*store, 3).await;
    let request = request(Stage::Decode);
    let claimed = store.claim(&request).await.unwrap().unwrap();
    advance(&*store, claimed).await;
    assert!(store.claim(&request).await.unwrap().is_none(), "a late copy of an old request");
    let expired = ClaimRequest { token: Token::random(), ..request };
    store.claim(&expired).await.unwrap().unwrap();
    house.pass(LEASE).await;
    assert!(store.claim(&expired).await.unwrap().is_none(), "the claim it made is over");
}

pub async fn renewing_keeps_a_lease(house: &dyn House) {
    let store = house.store();
    film(&*store, 1).await;
    let claimed = claim(&*store, Stage::Decode).await;
    for _ in 0..5 {
        house.pass(LEASE * 2 / 3).await;
        assert!(try_claim(&*store, Stage::Decode).await.is_none());
        assert_eq!(store.renew(&claimed.lease, LEASE).await.unwrap(), Renewal::Held);
    }
    house.pass(LEASE - SECOND).await;
    assert!(try_claim(&*store, Stage::Decode).await.is_none());
    house.pass(SECOND).await;
    let other = claim(&*store, Stage::Decode).await;
    assert_eq!(other.lease.attempt, 2, "the silence counted");
    assert_eq!(store.renew(&claimed.lease, LEASE).await.unwrap(), Renewal::Lost);
    assert_eq!(store.renew(&other.lease, LEASE).await.unwrap(), Renewal::Held);

    // The same on a job.
    store.create_job(new_job()).await.unwrap();
    let claimed = claim(&*store, Stage::Index).await;
    house.pass(LEASE * 2 / 3).await;
    assert_eq!(store.renew(&claimed.lease, LEASE).await.unwrap(), Renewal::Held);
    house.pass(LEASE * 2 / 3).await;
    assert!(try_claim(&*store, Stage::Index).await.is_none());
    house.pass(LEASE / 3).await;
    assert_eq!(claim(&*store, Stage::Index).await.lease.attempt, 2);
    assert_eq!(store.renew(&claimed.lease, LEASE).await.unwrap(), Renewal::Lost);
}

pub async fn a_lost_lease_is_fenced_off(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    let slow = claim(&*store, Stage::Decode).await;
    let slow_again = same_lease(&slow.lease);
    house.pass(LEASE).await;
    let quick = claim(&*store, Stage::Decode).await;
    let name = format!("pack/0.{}", quick.lease.token);
    assert_eq!(advance(&*store, slow).await, Advanced::Lost);
    let setback = Setback::Fail { message: "late".to_owned() };
    store.set_back(slow_again, setback).await.unwrap();
    assert_eq!(segment(&*store, id, 0).await.state, State::Waiting(Stage::Decode));
    assert_eq!(status(&*store, id).await, Status::Enqueue, "a late failure fails nothing");
    assert_eq!(advance(&*store, quick).await, Advanced::Recorded);
    assert_eq!(segment(&*store, id, 0).await.files.pack.unwrap().name, name);
}

pub async fn a_repeated_advance_is_success(house: &dyn House) {
    let store = house.store();
    let id = store.create_job(new_job()).await.unwrap().id;
    let claimed = claim(&*store, Stage::Index).await;
    let again = same_lease(&claimed.lease);
    store.put_segments(&claimed.lease, &cuts(1)).await.unwrap();
    for lease in [claimed.lease, again] {
        let advanced = store.advance(lease, Output::Indexed(plan(1))).await.unwrap();
        assert_eq!(advanced, Advanced::Recorded);
    }
    for stage in [Stage::Decode, Stage::Detect, Stage::Render, Stage::Assemble] {
        let claimed = claim(&*store, stage).await;
        let (again, output) = (same_lease(&claimed.lease), output(stage, &claimed.lease.token));
        assert_eq!(advance(&*store, claimed).await, Advanced::Recorded);
        let before = (segment(&*store, id, 0).await, job(&*store, id).await);
        assert_eq!(store.advance(again, output).await.unwrap(), Advanced::Recorded, "{stage}");
        assert_eq!((segment(&*store, id, 0).await, job(&*store, id).await), before, "and nothing changed");
    }
}

pub async fn an_output_of_another_stage_is_refused(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    let claimed = claim(&*store, Stage::Decode).await;
    let wrong = Output::Detected { detections: file("x", 1) };
    let refused = store.advance(claimed.lease, wrong).await.unwrap_err();
    assert!(matches!(refused.error, StoreError::Corrupt(_)), "{}", refused.error);
    assert_eq!(store.renew(&refused.lease, LEASE).await.unwrap(), Renewal::Held, "the lease came back");
    assert_eq!(segment(&*store, id, 0).await.state, State::Waiting(Stage::Decode));
}

// --- setbacks -------------------------------------------------------------------------------------------

pub async fn failures_are_counted_and_end_the_job(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 3).await;
    for attempt in 1..=MAX_FAILURES {
        let claimed = claim(&*store, Stage::Decode).await;
        assert_eq!((claimed.lease.target, claimed.lease.attempt), (Target::Segment(id, 0), attempt));
        let again = same_lease(&claimed.lease);
        store.set_back(claimed.lease, retry("The disk is slow.", Duration::ZERO)).await.unwrap();
        store.set_back(again, retry("The disk is slow.", Duration::ZERO)).await.unwrap();
        assert_eq!(status(&*store, id).await.is_final(), attempt == MAX_FAILURES);
    }
    let ended = job(&*store, id).await;
    let failure = Failure { code: ErrorCode::FrameConvertError, message: "The disk is slow.".to_owned() };
    assert_eq!(ended.timeline.ended, Some(Ended::Failed(failure)));
    assert!(ended.timeline.process_end.is_some());
    let reason = "The disk is slow.".to_owned();
    assert_eq!(segment(&*store, id, 0).await.state, State::Failed { stage: Stage::Decode, reason });
    assert!(try_claim(&*store, Stage::Decode).await.is_none(), "the other segments are not claimed");
}

pub async fn a_fatal_failure_ends_the_job_at_once(house: &dyn House) {
    let store = house.store();
    for (stage, expected) in [
        (Stage::Index, Status::FrameConvertError),
        (Stage::Decode, Status::FrameConvertError),
        (Stage::Detect, Status::InferenceError),
        (Stage::Render, Status::PostprocessingError),
        (Stage::Assemble, Status::PostprocessingError),
    ] {
        let new = new_job();
        let id = new.id;
        if stage == Stage::Index {
            store.create_job(new).await.unwrap();
        } else {
            indexed(&*store, new, 2).await;
        }
        let (doomed, bystander) = loop {
            let bystander = try_claim(&*store, Stage::Decode).await;
            if let Some(doomed) = try_claim(&*store, stage).await {
                break (doomed, bystander);
            }
            match bystander {
                Some(claimed) => {
                    advance(&*store, claimed).await;
                }
                None => {
                    for stage in [Stage::Detect, Stage::Render] {
                        while step(&*store, stage).await.is_some() {}
                    }
                }
            }
            if stage == Stage::Render {
                step(&*store, Stage::Detect).await;
            }
        };
        let setback = Setback::Fail { message: "It cannot be done.".to_owned() };
        store.set_back(doomed.lease, setback).await.unwrap();
        assert_eq!(status(&*store, id).await, expected, "{stage}");
        if let Some(bystander) = bystander {
            assert_eq!(store.renew(&bystander.lease, LEASE).await.unwrap(), Renewal::Cancelled);
            assert_eq!(advance(&*store, bystander).await, Advanced::Lost);
        }
        for stage in Stage::ALL {
            assert!(try_claim(&*store, stage).await.is_none(), "nothing goes on after {stage} failed");
        }
    }
}

pub async fn hand_backs_cost_nothing(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    for _ in 0..MAX_EXPIRIES + MAX_FAILURES {
        let claimed = claim(&*store, Stage::Decode).await;
        assert_eq!(claimed.lease.attempt, 1);
        store.set_back(claimed.lease, Setback::HandBack).await.unwrap();
    }
    let segment = segment(&*store, id, 0).await;
    assert_eq!((segment.failures, segment.expiries, segment.lease), (0, 0, None));
    store.create_job(new_job()).await.unwrap();
    for _ in 0..MAX_EXPIRIES + MAX_FAILURES {
        let claimed = claim(&*store, Stage::Index).await;
        assert_eq!(claimed.lease.attempt, 1);
        store.set_back(claimed.lease, Setback::HandBack).await.unwrap();
    }
}

pub async fn retries_wait_and_prefer_another_worker(house: &dyn House) {
    let store = house.store();
    film(&*store, 1).await;
    let claimed = claim(&*store, Stage::Decode).await;
    store.set_back(claimed.lease, retry("x", SECOND * 10)).await.unwrap();
    let ask = async |worker: &str| {
        let request = ClaimRequest { worker: worker.to_owned(), ..request(Stage::Decode) };
        store.claim(&request).await.unwrap()
    };
    house.pass(SECOND * 9).await;
    assert!(ask("worker-2").await.is_none(), "nobody before the backoff is over");
    house.pass(SECOND).await;
    assert!(ask("worker-1").await.is_none(), "somebody else first");
    let other = ask("worker-2").await.expect("the other worker gets it");
    assert_eq!(other.lease.attempt, 2);
    store.set_back(other.lease, Setback::HandBack).await.unwrap();
    house.pass(SECOND * 10).await;
    assert!(ask("worker-1").await.is_some(), "a worker that is alone gets it in the end");
}

pub async fn silent_expiries_are_counted(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 2).await;
    for attempt in 1..=MAX_EXPIRIES {
        let claimed = claim(&*store, Stage::Decode).await;
        assert_eq!((claimed.lease.target, claimed.lease.attempt), (Target::Segment(id, 0), attempt));
        house.pass(LEASE).await;
    }
    assert!(try_claim(&*store, Stage::Decode).await.is_none(), "given up, and its job with it");
    assert_eq!(status(&*store, id).await, Status::FrameConvertError);

    let id = store.create_job(new_job()).await.unwrap().id;
    for _ in 0..MAX_EXPIRIES {
        claim(&*store, Stage::Index).await;
        house.pass(LEASE).await;
    }
    assert!(try_claim(&*store, Stage::Index).await.is_none());
    assert_eq!(status(&*store, id).await, Status::FrameConvertError, "the same on a job");
}

pub async fn an_advance_clears_the_count(house: &dyn House) {
    let store = house.store();
    film(&*store, 1).await;
    for stage in [Stage::Decode, Stage::Detect, Stage::Render, Stage::Assemble] {
        for _ in 1..MAX_FAILURES {
            let claimed = claim(&*store, stage).await;
            store.set_back(claimed.lease, retry("x", Duration::ZERO)).await.unwrap();
        }
        claim(&*store, stage).await;
        house.pass(LEASE).await;
        let claimed = claim(&*store, stage).await;
        assert_eq!(claimed.lease.attempt, MAX_FAILURES + 1, "{stage}");
        assert_eq!(advance(&*store, claimed).await, Advanced::Recorded);
    }
}

// --- order ----------------------------------------------------------------------------------------------

pub async fn a_clip_overtakes_a_film(house: &dyn House) {
    let store = house.store();
    let film = film(&*store, 50).await;
    for _ in 0..10 {
        for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
            assert_eq!(step(&*store, stage).await.map(Target::job), Some(film));
        }
    }
    let clip = indexed(&*store, new_job(), 2).await;
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(step(&*store, Stage::Decode).await.unwrap().job() == clip);
    }
    let last = order.iter().rposition(|is_clip| *is_clip).unwrap();
    assert_eq!(order.iter().filter(|is_clip| **is_clip).count(), 2);
    assert!(last < 4, "at most every other turn is the film's: {order:?}");
}

pub async fn a_film_progresses_under_endless_clips(house: &dyn House) {
    let store = house.store();
    let film = film(&*store, 20).await;
    let mut clips = 0;
    while job(&*store, film).await.state == State::Segments {
        indexed(&*store, new_job(), 3).await;
        clips += 1;
        // Just enough workers for the clips, in every stage.
        for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
            for _ in 0..3 {
                step(&*store, stage).await;
            }
        }
        assert!(clips < 100, "the film starves: {:?}", store.counts(film).await.unwrap());
    }
}

pub async fn a_clip_overtakes_where_the_film_lags(house: &dyn House) {
    let store = house.store();
    film(&*store, 30).await;
    for stage in [Stage::Decode, Stage::Detect] {
        while step(&*store, stage).await.is_some() {}
    }
    step(&*store, Stage::Render).await;
    let clip = indexed(&*store, new_job(), 1).await;
    for stage in [Stage::Decode, Stage::Detect] {
        assert_eq!(step(&*store, stage).await.map(Target::job), Some(clip));
    }
    let mut turns = 1;
    while step(&*store, Stage::Render).await.unwrap().job() != clip {
        turns += 1;
    }
    assert!(turns <= 3, "the clip waited for {turns} turns behind what the film has piled up");
}

pub async fn priority_comes_before_turn(house: &dyn House) {
    let store = house.store();
    film(&*store, 5).await;
    let urgent = indexed(&*store, NewJob { priority: -1, ..new_job() }, 2).await;
    let late = indexed(&*store, NewJob { priority: 1, ..new_job() }, 1).await;
    let mut order = Vec::new();
    while let Some(target) = step(&*store, Stage::Decode).await {
        order.push(target.job());
    }
    assert_eq!(order[..2], [urgent, urgent]);
    assert_eq!(order[7], late);
    let (second, first) = (new_job(), NewJob { priority: -3, ..new_job() });
    store.create_job(second.clone()).await.unwrap();
    store.create_job(first.clone()).await.unwrap();
    assert_eq!(claim(&*store, Stage::Index).await.job.id, first.id);
    assert_eq!(claim(&*store, Stage::Index).await.job.id, second.id);
}

pub async fn only_the_right_model_is_claimed(house: &dyn House) {
    let store = house.store();
    let mut other = new_job();
    other.settings.model = ModelKey { precision: Precision::Bf16, ..model("abc") };
    film(&*store, 1).await;
    let other = indexed(&*store, other, 1).await;
    while step(&*store, Stage::Decode).await.is_some() {}
    let ask = async |model: ModelKey| {
        let request = ClaimRequest { model: Some(model), ..request(Stage::Detect) };
        store.claim(&request).await.unwrap().map(|claimed| claimed.job.id)
    };
    assert_eq!(ask(model("xyz")).await, None);
    assert_eq!(ask(ModelKey { precision: Precision::Bf16, ..model("abc") }).await, Some(other));
    assert_eq!(ask(ModelKey { precision: Precision::Bf16, ..model("abc") }).await, None);
}

pub async fn packs_are_bounded(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 6).await;
    let ask = async |budget| {
        let request = ClaimRequest { pack_budget: Some(budget), ..request(Stage::Decode) };
        store.claim(&request).await.unwrap()
    };
    let first = ask(0).await.expect("one is admitted whatever the budget");
    advance(&*store, first).await;
    assert!(ask(999).await.is_none(), "a pack of 1000 bytes waits");
    let second = ask(1000).await.expect("the budget is not exceeded yet");
    advance(&*store, second).await;
    assert!(ask(1999).await.is_none());
    let detecting = claim(&*store, Stage::Detect).await;
    assert!(ask(1999).await.is_none(), "a pack that is being read is still there");
    advance(&*store, detecting).await;
    assert!(ask(1999).await.is_some());
    assert!(store.cancel(id).await.unwrap());
    indexed(&*store, new_job(), 1).await;
    assert!(ask(0).await.is_some(), "packs of a cancelled job don't hold up others");
}

// --- cancelling, retrying, deleting ---------------------------------------------------------------------

/// Brings a job of two segments to where `stage` can be claimed on it.
async fn at_stage(store: &dyn JobStore, stage: Stage) -> JobId {
    let id = if stage == Stage::Index {
        store.create_job(new_job()).await.unwrap().id
    } else {
        film(store, 2).await
    };
    for earlier in [Stage::Decode, Stage::Detect, Stage::Render] {
        if earlier < stage {
            while step(store, earlier).await.is_some() {}
        }
    }
    id
}

pub async fn cancelling_stops_every_stage(house: &dyn House) {
    let store = house.store();
    for stage in Stage::ALL {
        // With a lease, and before there is one.
        for claimed_before in [true, false] {
            let id = at_stage(&*store, stage).await;
            let held = if claimed_before { Some(claim(&*store, stage).await) } else { None };
            let cancelled_at = job(&*store, id).await.timeline.process_start;
            assert!(store.cancel(id).await.unwrap());
            assert!(store.cancel(id).await.unwrap(), "a repeat is fine");
            assert_eq!(status(&*store, id).await, Status::Cancelled);
            assert!(job(&*store, id).await.timeline.process_end >= Some(cancelled_at));
            house.pass(LEASE * 2).await;
            for any in Stage::ALL {
                assert!(try_claim(&*store, any).await.is_none(), "{any} after cancelling at {stage}");
            }
            if let Some(held) = held {
                assert_eq!(store.renew(&held.lease, LEASE).await.unwrap(), Renewal::Cancelled, "{stage}");
                if stage == Stage::Index {
                    let put = store.put_segments(&held.lease, &cuts(3)).await.unwrap();
                    assert_eq!(put, Renewal::Cancelled);
                }
                let again = same_lease(&held.lease);
                assert_eq!(advance(&*store, held).await, Advanced::Lost, "{stage}");
                store.set_back(again, Setback::Fail { message: "x".to_owned() }).await.unwrap();
                assert_eq!(status(&*store, id).await, Status::Cancelled);
            }
        }
    }
}

pub async fn a_failed_job_cannot_be_cancelled(house: &dyn House) {
    let store = house.store();
    let id = store.create_job(new_job()).await.unwrap().id;
    let failure = Failure { code: ErrorCode::EnqueueError, message: "This is no video.".to_owned() };
    assert!(store.fail(id, failure.clone()).await.unwrap());
    assert!(store.fail(id, failure.clone()).await.unwrap(), "a repeat is fine");
    assert!(!store.cancel(id).await.unwrap());
    assert_eq!(status(&*store, id).await, Status::EnqueueError);
    assert!(!store.cancel(JobId::from([1; 12])).await.unwrap());
    assert!(!store.fail(JobId::from([1; 12]), failure).await.unwrap());
}

pub async fn a_retry_redoes_only_the_unfinished(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 4).await;
    assert!(!store.retry(id).await.unwrap(), "it goes on: there is nothing to retry");
    // 0: done, 1: waits for render, 2: fails at detect, 3: waits for detect.
    while step(&*store, Stage::Decode).await.is_some() {}
    step(&*store, Stage::Detect).await;
    step(&*store, Stage::Detect).await;
    step(&*store, Stage::Render).await;
    store.reconcile(id).await.unwrap();
    let before = store.segments(id).await.unwrap();
    let claimed = claim(&*store, Stage::Detect).await;
    store.set_back(claimed.lease, Setback::Fail { message: "No GPU.".to_owned() }).await.unwrap();
    assert_eq!(status(&*store, id).await, Status::InferenceError);
    house.pass(SECOND).await;

    assert!(store.retry(id).await.unwrap());
    assert!(!store.retry(id).await.unwrap(), "once is enough");
    let after = job(&*store, id).await;
    assert_eq!((after.run, after.timeline.ended.clone(), after.timeline.process_end), (1, None, None));
    assert_eq!(after.timeline.status(), Status::Inference, "all frames are decoded still");
    let segments = store.segments(id).await.unwrap();
    assert_eq!(
        segments.iter().map(|s| s.state.clone()).collect::<Vec<_>>(),
        [
            State::Done,
            State::Waiting(Stage::Render),
            State::Waiting(Stage::Detect),
            State::Waiting(Stage::Detect)
        ]
    );
    for (segment, before) in segments.iter().zip(&before) {
        assert_eq!(segment.files, before.files, "files stay named");
        assert_eq!((segment.run, segment.failures, segment.expiries), (1, 0, 0));
    }
    assert_eq!(step(&*store, Stage::Decode).await, None);
    for (stage, times) in [(Stage::Detect, 2), (Stage::Render, 3), (Stage::Assemble, 1)] {
        for _ in 0..times {
            assert_eq!(step(&*store, stage).await.map(Target::job), Some(id), "{stage}");
        }
        assert_eq!(step(&*store, stage).await, None, "{stage}");
    }
    let done = store.reconcile(id).await.unwrap().unwrap();
    assert_eq!(done.timeline.status(), Status::PostprocessingComplete);
    assert!(!store.retry(id).await.unwrap(), "a result needs no retry");

    // Failing at index and at assemble: these are done again.
    for stage in [Stage::Index, Stage::Assemble] {
        let id = at_stage(&*store, stage).await;
        let claimed = claim(&*store, stage).await;
        store.set_back(claimed.lease, Setback::Fail { message: "x".to_owned() }).await.unwrap();
        assert!(store.retry(id).await.unwrap());
        let claimed = claim(&*store, stage).await;
        assert_eq!((claimed.lease.target, claimed.lease.attempt), (Target::Job(id), 1));
        assert!(store.cancel(id).await.unwrap());
    }
}

pub async fn a_retry_with_another_model_does_all_again(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 2).await;
    while step(&*store, Stage::Decode).await.is_some() {}
    step(&*store, Stage::Detect).await;
    step(&*store, Stage::Render).await;
    store.reconcile(id).await.unwrap();
    let old = claim(&*store, Stage::Detect).await;
    assert!(!store.retry_with(id, model("new")).await.unwrap(), "it goes on");
    let failure = Failure { code: ErrorCode::InferenceError, message: "The model is gone.".to_owned() };
    assert!(store.fail(id, failure).await.unwrap());

    assert!(store.retry_with(id, model("new")).await.unwrap());
    assert!(!store.retry_with(id, model("newer")).await.unwrap(), "once is enough");
    let after = job(&*store, id).await;
    assert_eq!((after.run, after.state.clone()), (1, State::Waiting(Stage::Index)));
    assert_eq!((&after.settings.model, after.timeline.status()), (&model("new"), Status::Preprocessing));
    assert_eq!(store.renew(&old.lease, LEASE).await.unwrap(), Renewal::Cancelled);
    assert_eq!(advance(&*store, old).await, Advanced::Lost);
    let index = claim(&*store, Stage::Index).await;
    assert_eq!(store.put_segments(&index.lease, &cuts(2)).await.unwrap(), Renewal::Held);
    let indexed = store.advance(index.lease, Output::Indexed(plan(2))).await.unwrap();
    assert_eq!(indexed, Advanced::Recorded);
    while step(&*store, Stage::Decode).await.is_some() {}
    for (name, found) in [("abc", false), ("new", true), ("new", true), ("new", false)] {
        let request = ClaimRequest { model: Some(model(name)), ..request(Stage::Detect) };
        let claimed = store.claim(&request).await.unwrap();
        assert_eq!(claimed.is_some(), found, "{name}");
        if let Some(claimed) = claimed {
            advance(&*store, claimed).await;
        }
    }
    while step(&*store, Stage::Render).await.is_some() {}
    assert_eq!(step(&*store, Stage::Assemble).await, Some(Target::Job(id)));
    let done = store.reconcile(id).await.unwrap().unwrap();
    assert_eq!(done.timeline.status(), Status::PostprocessingComplete);
}

pub async fn an_old_run_is_fenced_off(house: &dyn House) {
    let store = house.store();
    for stage in Stage::ALL {
        let id = at_stage(&*store, stage).await;
        let old = claim(&*store, stage).await;
        assert!(store.cancel(id).await.unwrap());
        assert!(store.retry(id).await.unwrap());
        assert_eq!(store.renew(&old.lease, LEASE).await.unwrap(), Renewal::Cancelled, "{stage}");
        let new = claim(&*store, stage).await;
        assert_eq!((new.lease.target, new.lease.run, new.lease.attempt), (old.lease.target, 1, 1));
        let again = same_lease(&old.lease);
        store.set_back(again, Setback::Fail { message: "late".to_owned() }).await.unwrap();
        assert_eq!(advance(&*store, old).await, Advanced::Lost, "{stage}");
        assert_eq!(store.renew(&new.lease, LEASE).await.unwrap(), Renewal::Held, "{stage}");
        assert!(store.cancel(id).await.unwrap());
    }
}

pub async fn removing_takes_a_tombstone(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 2).await;
    let held = claim(&*store, Stage::Decode).await;
    store.remove(id).await.unwrap();
    assert!(store.job(id).await.unwrap().is_some(), "not without a tombstone");
    assert!(store.tombstone(id).await.unwrap());
    let first = job(&*store, id).await.deleted;
    assert!(first.is_some());
    house.pass(SECOND).await;
    assert!(store.tombstone(id).await.unwrap(), "a repeat is fine");
    assert_eq!(job(&*store, id).await.deleted, first, "the wait counts from the first");
    assert_eq!(store.renew(&held.lease, LEASE).await.unwrap(), Renewal::Cancelled);
    assert_eq!(advance(&*store, held).await, Advanced::Lost);
    assert!(try_claim(&*store, Stage::Decode).await.is_none());
    assert!(!store.retry(id).await.unwrap());
    store.remove(id).await.unwrap();
    store.remove(id).await.unwrap();
    assert_eq!(store.job(id).await.unwrap(), None);
    assert!(store.segments(id).await.unwrap().is_empty());
    assert!(store.unsettled().await.unwrap().is_empty());
    assert!(!store.tombstone(id).await.unwrap());
    assert_eq!(store.report(id, Status::Preprocessing).await.unwrap(), Reported::Unknown);
    assert_eq!(store.reconcile(id).await.unwrap(), None);

    let id = at_stage(&*store, Stage::Assemble).await;
    step(&*store, Stage::Assemble).await;
    store.reconcile(id).await.unwrap();
    assert!(store.tombstone(id).await.unwrap());
    assert_eq!(store.unsettled().await.unwrap(), [id], "a finished job that goes is to be visited");
}

// --- stamps ---------------------------------------------------------------------------------------------

pub async fn reports_are_stamped_when_borne_out(house: &dyn House) {
    let store = house.store();
    let id = store.create_job(new_job()).await.unwrap().id;
    let report = async |status| store.report(id, status).await.unwrap();
    assert_eq!(store.report(JobId::from([1; 12]), Status::Inference).await.unwrap(), Reported::Unknown);
    assert_eq!(report(Status::Enqueue).await, Reported::Repeat);
    let borne_out = async |now: Status| {
        house.pass(SECOND).await;
        let order = [
            Status::Preprocessing,
            Status::PreprocessingComplete,
            Status::Inference,
            Status::InferenceComplete,
            Status::Postprocessing,
            Status::PostprocessingComplete,
        ];
        let later = order.iter().skip_while(|status| **status != now).skip(1);
        for status in later {
            assert_eq!(report(*status).await, Reported::NotBorneOut, "{status} at {now}");
        }
        assert_eq!(report(now).await, Reported::Stamped);
        assert_eq!(report(now).await, Reported::Repeat);
    };
    assert_eq!(report(Status::Preprocessing).await, Reported::NotBorneOut);
    let claimed = claim(&*store, Stage::Index).await;
    borne_out(Status::Preprocessing).await;
    store.put_segments(&claimed.lease, &cuts(2)).await.unwrap();
    store.advance(claimed.lease, Output::Indexed(plan(2))).await.unwrap();
    step(&*store, Stage::Decode).await;
    assert_eq!(report(Status::PreprocessingComplete).await, Reported::NotBorneOut, "one of two");
    step(&*store, Stage::Decode).await;
    borne_out(Status::PreprocessingComplete).await;
    let claimed = claim(&*store, Stage::Detect).await;
    borne_out(Status::Inference).await;
    advance(&*store, claimed).await;
    step(&*store, Stage::Detect).await;
    borne_out(Status::InferenceComplete).await;
    let claimed = claim(&*store, Stage::Render).await;
    borne_out(Status::Postprocessing).await;
    advance(&*store, claimed).await;
    step(&*store, Stage::Render).await;
    assert_eq!(report(Status::PostprocessingComplete).await, Reported::NotBorneOut, "not assembled");
    step(&*store, Stage::Assemble).await;
    borne_out(Status::PostprocessingComplete).await;
    let timeline = job(&*store, id).await.timeline;
    let at = |seconds| Some(timeline.process_start.after(SECOND * seconds));
    assert_eq!(timeline.preprocessing_start, at(1));
    assert_eq!(timeline.preprocessing_end, at(2));
    assert_eq!(timeline.inference_start, at(3));
    assert_eq!(timeline.inference_end, at(4));
    assert_eq!(timeline.postprocessing_start, at(5));
    assert_eq!(timeline.postprocessing_end, at(6));
    assert_eq!(timeline.process_end, at(6));
}

pub async fn stamps_do_not_move(house: &dyn House) {
    let store = house.store();
    let id = at_stage(&*store, Stage::Assemble).await;
    step(&*store, Stage::Assemble).await;
    // No report came: the reconciler alone derives every stamp.
    let first = store.reconcile(id).await.unwrap().unwrap();
    assert_eq!(first.timeline.status(), Status::PostprocessingComplete);
    house.pass(SECOND).await;
    assert_eq!(store.reconcile(id).await.unwrap().unwrap(), first);
    for status in Status::ALL {
        store.report(id, status).await.unwrap();
    }
    assert_eq!(job(&*store, id).await, first);
}

pub async fn a_finished_job_takes_no_report_back(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    assert_eq!(store.report(id, Status::Preprocessing).await.unwrap(), Reported::Stamped);
    assert!(store.cancel(id).await.unwrap());
    assert_eq!(store.report(id, Status::Preprocessing).await.unwrap(), Reported::Repeat, "a late repeat");
    assert_eq!(store.report(id, Status::Inference).await.unwrap(), Reported::NotBorneOut);
    for error in [Status::EnqueueError, Status::FrameConvertError, Status::InferenceError] {
        assert_eq!(store.report(id, error).await.unwrap(), Reported::NotBorneOut, "nobody reports {error}");
    }
    assert_eq!(store.report(id, Status::Cancelled).await.unwrap(), Reported::Repeat);
    assert_eq!(status(&*store, id).await, Status::Cancelled);
}

pub async fn counts_add_up(house: &dyn House) {
    let store = house.store();
    let id = store.create_job(new_job()).await.unwrap().id;
    assert_eq!(store.counts(id).await.unwrap(), Counts::default());
    let claimed = claim(&*store, Stage::Index).await;
    store.put_segments(&claimed.lease, &cuts(5)).await.unwrap();
    assert_eq!(store.counts(id).await.unwrap(), Counts { held: 5, ..Counts::default() });
    assert!(try_claim(&*store, Stage::Decode).await.is_none(), "held segments are not claimed");
    store.advance(claimed.lease, Output::Indexed(plan(5))).await.unwrap();
    for (stage, times) in [(Stage::Decode, 4), (Stage::Detect, 3), (Stage::Render, 1)] {
        for _ in 0..times {
            step(&*store, stage).await;
        }
    }
    let counts = store.counts(id).await.unwrap();
    assert_eq!(counts, Counts { held: 0, decode: 1, detect: 1, render: 2, done: 1, failed: 0 });
    let claimed = claim(&*store, Stage::Render).await;
    store.set_back(claimed.lease, Setback::Fail { message: "x".to_owned() }).await.unwrap();
    let counts = store.counts(id).await.unwrap();
    assert_eq!(counts, Counts { held: 0, decode: 1, detect: 1, render: 1, done: 1, failed: 1 });
    assert_eq!(counts.total(), 5);
}

// --- damage ---------------------------------------------------------------------------------------------

fn send_back(to: Stage, segments: &[u32]) -> Setback {
    Setback::SendBack { to, message: "checksum".to_owned(), segments: segments.to_vec() }
}

pub async fn damage_sends_a_segment_back_a_bounded_number_of_times(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    for _ in 0..MAX_SEND_BACKS {
        assert!(step(&*store, Stage::Decode).await.is_some());
        let claimed = claim(&*store, Stage::Detect).await;
        let again = same_lease(&claimed.lease);
        store.set_back(claimed.lease, send_back(Stage::Decode, &[])).await.unwrap();
        store.set_back(again, send_back(Stage::Decode, &[])).await.unwrap();
        let segment = segment(&*store, id, 0).await;
        assert_eq!((segment.state, segment.files.pack), (State::Waiting(Stage::Decode), None));
    }
    step(&*store, Stage::Decode).await;
    let claimed = claim(&*store, Stage::Detect).await;
    store.set_back(claimed.lease, send_back(Stage::Decode, &[])).await.unwrap();
    assert_eq!(status(&*store, id).await, Status::FrameConvertError, "it does not go round for ever");
    assert!(store.retry(id).await.unwrap());
    assert!(step(&*store, Stage::Decode).await.is_some(), "a retry starts where the damage came from");
}

pub async fn a_used_pack_is_made_again(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    step(&*store, Stage::Decode).await;
    step(&*store, Stage::Detect).await;
    let claimed = claim(&*store, Stage::Render).await;
    store.set_back(claimed.lease, send_back(Stage::Detect, &[])).await.unwrap();
    let segment = segment(&*store, id, 0).await;
    assert_eq!(segment.state, State::Waiting(Stage::Decode), "detect would have nothing to read");
    assert_eq!(segment.files.detections, None);
    for stage in [Stage::Decode, Stage::Detect, Stage::Render, Stage::Assemble] {
        assert!(step(&*store, stage).await.is_some());
    }
}

pub async fn assemble_sends_segments_back(house: &dyn House) {
    let store = house.store();
    let id = at_stage(&*store, Stage::Assemble).await;
    let claimed = claim(&*store, Stage::Assemble).await;
    store.set_back(claimed.lease, send_back(Stage::Render, &[1])).await.unwrap();
    assert!(try_claim(&*store, Stage::Assemble).await.is_none());
    assert_eq!(segment(&*store, id, 0).await.state, State::Done);
    assert_eq!(segment(&*store, id, 1).await.files.encoded, []);
    assert_eq!(step(&*store, Stage::Render).await, Some(Target::Segment(id, 1)));
    for _ in 1..MAX_SEND_BACKS {
        let claimed = claim(&*store, Stage::Assemble).await;
        store.set_back(claimed.lease, send_back(Stage::Render, &[1])).await.unwrap();
        step(&*store, Stage::Render).await.expect("rendered again");
    }
    let claimed = claim(&*store, Stage::Assemble).await;
    store.set_back(claimed.lease, send_back(Stage::Render, &[0, 1])).await.unwrap();
    assert_eq!(status(&*store, id).await, Status::PostprocessingError);
    assert!(try_claim(&*store, Stage::Render).await.is_none());
    // Sending nothing back would go round for ever: it counts as a failure.
    let id = at_stage(&*store, Stage::Assemble).await;
    for _ in 0..MAX_FAILURES {
        let claimed = claim(&*store, Stage::Assemble).await;
        store.set_back(claimed.lease, send_back(Stage::Render, &[])).await.unwrap();
    }
    assert_eq!(status(&*store, id).await, Status::PostprocessingError);
}

pub async fn a_lost_index_is_made_again(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 2).await;
    step(&*store, Stage::Decode).await;
    let other = claim(&*store, Stage::Decode).await;
    for _ in 0..MAX_SEND_BACKS {
        let claimed = claim(&*store, Stage::Detect).await;
        store.set_back(claimed.lease, send_back(Stage::Index, &[])).await.unwrap();
        assert!(try_claim(&*store, Stage::Decode).await.is_none(), "first it is cut again");
        let claimed = claim(&*store, Stage::Index).await;
        store.put_segments(&claimed.lease, &cuts(3)).await.unwrap();
        store.advance(claimed.lease, Output::Indexed(plan(3))).await.unwrap();
        assert_eq!(store.counts(id).await.unwrap(), Counts { decode: 3, ..Counts::default() });
        step(&*store, Stage::Decode).await;
    }
    assert_eq!(advance(&*store, other).await, Advanced::Lost);
    let claimed = claim(&*store, Stage::Detect).await;
    store.set_back(claimed.lease, send_back(Stage::Index, &[])).await.unwrap();
    assert_eq!(status(&*store, id).await, Status::FrameConvertError);
    assert!(store.retry(id).await.unwrap());
    assert!(try_claim(&*store, Stage::Decode).await.is_none());
    assert!(try_claim(&*store, Stage::Detect).await.is_none());
    assert!(try_claim(&*store, Stage::Index).await.is_some());
}

pub async fn cutting_again_replaces_the_cuts(house: &dyn House) {
    let store = house.store();
    let id = store.create_job(new_job()).await.unwrap().id;
    let first = claim(&*store, Stage::Index).await;
    store.put_segments(&first.lease, &cuts(5)).await.unwrap();
    store.put_segments(&first.lease, &cuts(5)).await.unwrap();
    house.pass(LEASE).await;
    let second = claim(&*store, Stage::Index).await;
    assert_eq!(store.put_segments(&first.lease, &cuts(7)).await.unwrap(), Renewal::Lost);
    let other = [Cut { first: 0, last: 63 }, Cut { first: 64, last: 127 }];
    store.put_segments(&second.lease, &other).await.unwrap();
    store.advance(second.lease, Output::Indexed(plan(2))).await.unwrap();
    assert_eq!(store.put_segments(&first.lease, &cuts(7)).await.unwrap(), Renewal::Lost, "late");
    let ranges: Vec<_> = store.segments(id).await.unwrap().iter().map(|s| (s.first, s.last)).collect();
    assert_eq!(ranges, [(0, 63), (64, 127)], "nothing of the first try is left");
    assert_eq!(store.counts(id).await.unwrap().decode, 2);
}

pub async fn a_plan_must_fit_its_segments(house: &dyn House) {
    let store = house.store();
    store.create_job(new_job()).await.unwrap();
    let claimed = claim(&*store, Stage::Index).await;
    store.put_segments(&claimed.lease, &cuts(5)).await.unwrap();
    let mut lease = claimed.lease;
    for n in [0, 4, 6] {
        let refused = store.advance(lease, Output::Indexed(plan(n))).await.unwrap_err();
        assert!(matches!(refused.error, StoreError::Corrupt(_)));
        lease = refused.lease;
    }
    assert_eq!(store.advance(lease, Output::Indexed(plan(5))).await.unwrap(), Advanced::Recorded);
}

pub async fn put_segments_is_fenced(house: &dyn House) {
    let store = house.store();
    let id = store.create_job(new_job()).await.unwrap().id;
    let claimed = claim(&*store, Stage::Index).await;
    let foreign = Lease { token: Token::random(), ..same_lease(&claimed.lease) };
    assert_eq!(store.put_segments(&foreign, &cuts(2)).await.unwrap(), Renewal::Lost);
    let unknown = Lease { target: Target::Job(JobId::from([9; 12])), ..same_lease(&claimed.lease) };
    assert_eq!(store.put_segments(&unknown, &cuts(2)).await.unwrap(), Renewal::Lost);
    assert_eq!(store.renew(&unknown, LEASE).await.unwrap(), Renewal::Lost);
    assert!(store.segments(id).await.unwrap().is_empty());
}

// --- everything at once ---------------------------------------------------------------------------------

/// Workers that claim, finish, fail, hang, hand back and repeat themselves in a random order, while users
/// cancel and retry: whatever happens, no stage of a segment is recorded under two tokens in a row without
/// having been sent back, and in the end every job that nobody gave up is done.
pub async fn a_random_day_keeps_every_promise(house: &dyn House) {
    let store = house.store();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(indexed(&*store, new_job(), 4).await);
    }
    let mut held: Vec<Claimed> = Vec::new();
    let mut recorded: BTreeMap<(Target, Stage, u32), Token> = BTreeMap::new();
    let stages = [Stage::Decode, Stage::Detect, Stage::Render, Stage::Assemble];
    for turn in 0..600 {
        let stage = stages[usize::try_from(random(4)).unwrap()];
        match random(12) {
            0..=4 => held.extend(try_claim(&*store, stage).await),
            5..=7 if !held.is_empty() => {
                let claimed = held.swap_remove(usize::try_from(random(held.len() as u64)).unwrap());
                let lease = same_lease(&claimed.lease);
                let output = output(lease.stage, &claimed.lease.token);
                if advance(&*store, claimed).await == Advanced::Recorded {
                    let key = (lease.target, lease.stage, lease.run);
                    let other = recorded.insert(key, lease.token.clone());
                    assert_eq!(other, None, "turn {turn}: {key:?} was recorded twice");
                    if random(2) == 0 {
                        assert_eq!(store.advance(lease, output).await.unwrap(), Advanced::Recorded);
                    }
                }
            }
            8 if !held.is_empty() => {
                let claimed = held.swap_remove(usize::try_from(random(held.len() as u64)).unwrap());
                store.set_back(claimed.lease, Setback::HandBack).await.unwrap();
            }
            9 if !held.is_empty() => {
                let claimed = held.swap_remove(usize::try_from(random(held.len() as u64)).unwrap());
                store.set_back(claimed.lease, retry("x", SECOND)).await.unwrap();
            }
            10 => house.pass(SECOND * u32::try_from(random(20)).unwrap()).await,
            11 => {
                let id = jobs[usize::try_from(random(3)).unwrap()];
                store.reconcile(id).await.unwrap();
                if turn % 5 == 0 && store.cancel(id).await.unwrap() {
                    assert!(store.retry(id).await.unwrap());
                }
            }
            _ => {}
        }
        for id in &jobs {
            let job = job(&*store, *id).await;
            let counts = store.counts(*id).await.unwrap();
            assert_eq!(counts.total(), 4);
            assert_eq!(job.timeline.process_end.is_some(), job.timeline.status().is_final());
            if matches!(job.state, State::Waiting(Stage::Assemble) | State::Done) {
                assert_eq!(counts.done, 4, "turn {turn}");
            }
        }
    }
    // The storm is over: all that is left gets done.
    house.pass(LEASE * 10).await;
    for id in &jobs {
        if status(&*store, *id).await.is_final() {
            store.retry(*id).await.unwrap();
        }
    }
    for stage in stages {
        while step(&*store, stage).await.is_some() {}
    }
    for id in jobs {
        let job = store.reconcile(id).await.unwrap().unwrap();
        assert_eq!(job.timeline.status(), Status::PostprocessingComplete);
    }
}

// --- upkeep ---------------------------------------------------------------------------------------------

pub async fn queues_tell_what_waits(house: &dyn House) {
    let store = house.store();
    film(&*store, 3).await;
    house.pass(SECOND * 5).await;
    let claimed = claim(&*store, Stage::Decode).await;
    store.set_back(claimed.lease, retry("no luck", SECOND * 20)).await.unwrap();
    let held = claim(&*store, Stage::Decode).await;
    let decode =
        async || store.queues().await.unwrap().into_iter().find(|q| q.stage == Stage::Decode).unwrap();
    let queue = decode().await;
    assert_eq!((queue.waiting, queue.delayed, queue.working), (1, 1, 1));
    let oldest = queue.oldest.unwrap();
    assert!((SECOND * 5..SECOND * 20).contains(&oldest), "{oldest:?}");
    // Neither the backoff nor the lease lasts: all three wait again.
    house.pass(LEASE * 2).await;
    assert_eq!(decode().await.waiting, 3);
    drop(held);
    let all = store.queues().await.unwrap();
    assert_eq!(all.iter().map(|queue| queue.stage).collect::<Vec<_>>(), Stage::ALL);
    let index = all[0];
    assert_eq!((index.waiting, index.delayed, index.working, index.oldest), (0, 0, 0, None));
    store.create_job(NewJob { id: JobId::new(Stamp(1)), ..new_job() }).await.unwrap();
    assert_eq!(store.queues().await.unwrap()[0].waiting, 1);
}

fn worker(name: &str, digest: Option<&str>) -> Worker {
    Worker {
        name: name.to_owned(),
        stages: vec![Stage::Detect],
        slots: 2,
        offer: digest.map(|digest| Offer { key: model(digest), names: vec!["person".to_owned()] }),
        ready: true,
        version: "1".to_owned(),
    }
}

pub async fn workers_are_listed_while_they_are_there(house: &dyn House) {
    let store = house.store();
    for name in ["b", "a"] {
        store.announce(&worker(name, None)).await.unwrap();
        store.announce(&worker(name, None)).await.unwrap();
    }
    let names = async |within| {
        let seen = store.workers(within).await.unwrap();
        seen.into_iter().map(|seen| seen.worker.name).collect::<Vec<_>>()
    };
    assert_eq!(names(SECOND * 30).await, ["a", "b"]);
    house.pass(SECOND * 60).await;
    store.announce(&Worker { ready: false, ..worker("b", None) }).await.unwrap();
    assert_eq!(names(SECOND * 30).await, ["b"]);
    assert!(!store.workers(SECOND * 30).await.unwrap()[0].worker.ready);
    store.retire("b").await.unwrap();
    store.retire("nobody").await.unwrap();
    assert_eq!(names(SECOND * 30).await, Vec::<String>::new());
}

pub async fn the_last_offer_outlives_its_worker(house: &dyn House) {
    let store = house.store();
    assert_eq!(store.offer().await.unwrap(), None);
    store.announce(&worker("pre", None)).await.unwrap();
    assert_eq!(store.offer().await.unwrap(), None);
    store.announce(&worker("infer", Some("old"))).await.unwrap();
    house.pass(SECOND).await;
    store.announce(&worker("infer-2", Some("new"))).await.unwrap();
    store.retire("infer-2").await.unwrap();
    let digest = async || store.offer().await.unwrap().map(|offer| offer.key.digest);
    assert_eq!(digest().await.as_deref(), Some("new"));
    house.pass(SECOND * 3600 * 24 * 30).await;
    store.announce(&worker("pre", None)).await.unwrap();
    assert_eq!(digest().await.as_deref(), Some("new"));
    store.announce(&worker("infer", Some("old"))).await.unwrap();
    assert_eq!(digest().await.as_deref(), Some("old"));
}

pub async fn a_key_is_tied_once(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    let [first, second] = [1, 2].map(|second| JobId::new(Stamp(second * 1_000_000)));
    assert_eq!(store.tie("key", first, SECOND * 60).await.unwrap(), first);
    assert_eq!(other.tie("key", second, SECOND * 60).await.unwrap(), first);
    assert_eq!(store.tie("another", second, SECOND * 60).await.unwrap(), second);
    house.pass(SECOND * 61).await;
    assert_eq!(store.tie("key", second, SECOND * 60).await.unwrap(), second);
}

pub async fn a_duty_has_one_holder(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    assert!(store.hold("sweep", "a", SECOND * 10).await.unwrap());
    assert!(!other.hold("sweep", "b", SECOND * 10).await.unwrap());
    assert!(other.hold("callbacks", "b", SECOND * 10).await.unwrap());
    house.pass(SECOND * 6).await;
    assert!(store.hold("sweep", "a", SECOND * 10).await.unwrap());
    house.pass(SECOND * 6).await;
    assert!(!other.hold("sweep", "b", SECOND * 10).await.unwrap());
    house.pass(SECOND * 6).await;
    assert!(other.hold("sweep", "b", SECOND * 10).await.unwrap());
    assert!(!store.hold("sweep", "a", SECOND * 10).await.unwrap());
}

pub async fn ended_jobs_are_found_by_age(house: &dyn House) {
    let store = house.store();
    let mut ids = Vec::new();
    for second in 1..=3 {
        let id = JobId::new(Stamp(second * 1_000_000));
        store.create_job(NewJob { id, ..new_job() }).await.unwrap();
        ids.push(id);
        if second < 3 {
            store.cancel(id).await.unwrap();
            house.pass(SECOND * 10).await;
        }
    }
    assert_eq!(store.ended(SECOND * 5, 10).await.unwrap(), ids[..2]);
    assert_eq!(store.ended(SECOND * 5, 1).await.unwrap(), ids[..1]);
    assert_eq!(store.ended(SECOND * 15, 10).await.unwrap(), ids[..1]);
    store.tombstone(ids[0]).await.unwrap();
    assert_eq!(store.ended(SECOND * 5, 10).await.unwrap(), ids[1..2]);
}

pub async fn callbacks_are_due_until_settled(house: &dyn House) {
    let store = house.store();
    let id = film(&*store, 1).await;
    let due = async || {
        let due = store.due_callbacks(10).await.unwrap();
        due.into_iter().map(|job| (job.id, job.callback.unwrap().failures)).collect::<Vec<_>>()
    };
    assert_eq!(due().await, []);
    store.cancel(id).await.unwrap();
    assert_eq!(due().await, [(id, 0)]);
    store.callback_tried(id, 0, Tried::Again(SECOND * 30)).await.unwrap();
    assert_eq!(due().await, []);
    house.pass(SECOND * 31).await;
    assert_eq!(due().await, [(id, 1)]);
    store.callback_tried(id, 0, Tried::Settled).await.unwrap();
    assert_eq!(due().await, []);
    // What is settled stays settled, whatever is said late.
    store.callback_tried(id, 0, Tried::Again(Duration::ZERO)).await.unwrap();
    house.pass(SECOND).await;
    assert_eq!(due().await, []);

    assert!(store.retry(id).await.unwrap());
    assert_eq!(due().await, []);
    store.cancel(id).await.unwrap();
    assert_eq!(due().await, [(id, 0)]);
    store.callback_tried(id, 0, Tried::Settled).await.unwrap();
    assert_eq!(due().await, [(id, 0)], "the word of run 0 is not that of run 1");
    store.tombstone(id).await.unwrap();
    assert_eq!(due().await, []);
    let quiet = JobId::new(Stamp(1));
    store.create_job(NewJob { id: quiet, callback_url: None, ..new_job() }).await.unwrap();
    store.cancel(quiet).await.unwrap();
    assert_eq!(due().await, []);
}

// --- uploads --------------------------------------------------------------------------------------------

const LENGTH: u64 = 5_000_000_000;

fn new_upload() -> NewUpload {
    let NewJob { id, filename, settings, callback_url, .. } = new_job();
    NewUpload { id, filename, length: LENGTH, settings, callback_url, metadata: "filename YQ==".to_owned() }
}

fn lock_request(id: JobId) -> LockRequest {
    LockRequest { id, worker: "pre-1".to_owned(), token: Token::random(), lease: LEASE }
}

async fn lock(store: &dyn Store, id: JobId) -> (UploadLock, Upload) {
    match store.lock_upload(&lock_request(id)).await.unwrap() {
        Locking::Held(lock, upload) => (lock, upload),
        other => panic!("the lock should be free: {other:?}"),
    }
}

async fn offset(store: &dyn Store, id: JobId) -> u64 {
    store.upload(id).await.unwrap().unwrap().offset()
}

fn same_lock(lock: &UploadLock) -> UploadLock {
    UploadLock { id: lock.id, token: lock.token.clone() }
}

const HELD: Recorded = Recorded::Held { wanted: false };

pub async fn an_upload_is_created_once(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    let new = new_upload();
    let created = store.create_upload(new.clone()).await.unwrap();
    house.pass(SECOND).await;
    let changed = NewUpload { filename: "other".to_owned(), length: 1, ..new.clone() };
    assert_eq!(other.create_upload(changed).await.unwrap(), created, "a repeat changes nothing");
    assert_eq!(other.upload(new.id).await.unwrap(), Some(created.clone()));
    assert_eq!((created.offset(), created.length, created.is_whole()), (0, LENGTH, false));
    assert_eq!((created.settings, created.metadata), (new.settings, new.metadata));
    assert_eq!(store.upload(JobId::from([0; 12])).await.unwrap(), None);
    let unknown = lock_request(JobId::from([0; 12]));
    assert_eq!(store.lock_upload(&unknown).await.unwrap(), Locking::Unknown);
}

pub async fn an_upload_grows_by_one_writer_at_a_time(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    let id = store.create_upload(new_upload()).await.unwrap().id;
    let request = lock_request(id);
    let Locking::Held(first, _) = store.lock_upload(&request).await.unwrap() else { panic!("it is free") };
    assert!(matches!(store.lock_upload(&request).await.unwrap(), Locking::Held(again, _) if again == first));
    assert_eq!(store.record_offset(&first, 10, LEASE).await.unwrap(), HELD);
    assert_eq!(other.lock_upload(&lock_request(id)).await.unwrap(), Locking::Busy);
    let wanted = Recorded::Held { wanted: true };
    assert_eq!(store.record_offset(&first, 20, LEASE).await.unwrap(), wanted, "the writer hears of it");
    assert_eq!(store.record_offset(&first, 15, LEASE).await.unwrap(), wanted);
    assert_eq!(offset(&*other, id).await, 20, "what comes late takes nothing back");
    assert_eq!(store.record_offset(&first, LENGTH + 1, LEASE).await.unwrap(), Recorded::Lost);
    store.unlock_upload(same_lock(&first)).await.unwrap();
    store.unlock_upload(first).await.unwrap();
    let (second, upload) = lock(&*other, id).await;
    assert_eq!(upload.offset(), 20);
    assert_eq!(other.record_offset(&second, 30, LEASE).await.unwrap(), HELD);
}

pub async fn locks_are_exclusive_under_sixteen_racers(house: &dyn House) {
    let id = house.store().create_upload(new_upload()).await.unwrap().id;
    let racers: Vec<_> = (0..16)
        .map(|n| {
            let store = if n % 2 == 0 { house.store() } else { house.another() };
            tokio::spawn(async move { store.lock_upload(&lock_request(id)).await.unwrap() })
        })
        .collect();
    let mut held = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Locking::Held(..) => held += 1,
            other => assert_eq!(other, Locking::Busy),
        }
    }
    assert_eq!(held, 1);
}

pub async fn a_lapsed_lock_goes_to_the_next_and_its_holder_is_fenced_off(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    let id = store.create_upload(new_upload()).await.unwrap().id;
    let (first, _) = lock(&*store, id).await;
    house.pass(LEASE * 2).await;
    assert_eq!(store.record_offset(&first, 10, LEASE).await.unwrap(), HELD, "nobody noticed");
    house.pass(LEASE * 2).await;
    let (second, _) = lock(&*other, id).await;
    assert_eq!(store.record_offset(&first, 20, LEASE).await.unwrap(), Recorded::Lost);
    store.unlock_upload(first).await.unwrap();
    assert_eq!(other.record_offset(&second, 15, LEASE).await.unwrap(), HELD, "it still holds");
    assert_eq!(offset(&*store, id).await, 15);
}

pub async fn a_whole_upload_waits_for_its_job(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    let id = store.create_upload(new_upload()).await.unwrap().id;
    let due = async || store.due_uploads(10).await.unwrap().into_iter().map(|it| it.id).collect::<Vec<_>>();
    store.upload_queued(id).await.unwrap();
    let (lock, _) = lock(&*store, id).await;
    assert_eq!(store.record_offset(&lock, 10, LEASE).await.unwrap(), HELD);
    assert_eq!(due().await, []);
    for _ in 0..2 {
        assert_eq!(store.record_offset(&lock, LENGTH, LEASE).await.unwrap(), Recorded::Whole);
    }
    assert_eq!(store.record_offset(&lock, 10, LEASE).await.unwrap(), Recorded::Lost);
    let whole = other.upload(id).await.unwrap().unwrap();
    assert_eq!((whole.offset(), &whole.state), (LENGTH, &UploadState::Whole));
    assert_eq!(other.lock_upload(&lock_request(id)).await.unwrap(), Locking::Over(whole));
    assert_eq!(due().await, [id]);
    assert_eq!(store.due_uploads(0).await.unwrap(), []);
    assert!(!other.remove_upload(id).await.unwrap(), "it is about to be a job");
    for _ in 0..2 {
        store.upload_queued(id).await.unwrap();
    }
    assert_eq!(other.upload(id).await.unwrap().unwrap().state, UploadState::Queued);
    assert_eq!(store.record_offset(&lock, LENGTH, LEASE).await.unwrap(), Recorded::Whole);
    store.unlock_upload(lock).await.unwrap();
    assert_eq!(due().await, []);
    assert!(!other.remove_upload(id).await.unwrap(), "its sender may yet ask what became of it");
    house.pass(UPLOAD_KEPT).await;
    assert_eq!(due().await, [id]);
    assert!(store.remove_upload(id).await.unwrap());
    assert_eq!(store.upload(id).await.unwrap(), None);
}

pub async fn an_upload_expires_when_nothing_more_comes(house: &dyn House) {
    let store = house.store();
    let id = store.create_upload(new_upload()).await.unwrap().id;
    let hour = SECOND * 3600;
    for reached in [10, 20] {
        house.pass(UPLOAD_KEPT - hour).await;
        assert_eq!(store.due_uploads(10).await.unwrap(), []);
        let (lock, _) = lock(&*store, id).await;
        assert_eq!(store.record_offset(&lock, reached, LEASE).await.unwrap(), HELD);
        store.unlock_upload(lock).await.unwrap();
    }
    let (late, upload) = lock(&*store, id).await;
    assert_eq!(upload.expires.since(store.now().await.unwrap()), UPLOAD_KEPT);
    house.pass(UPLOAD_KEPT).await;
    assert_eq!(
        store.record_offset(&late, 30, LEASE).await.unwrap(),
        Recorded::Lost,
        "its time is over for good"
    );
    assert!(
        matches!(store.lock_upload(&lock_request(id)).await.unwrap(), Locking::Over(found) if found.id == id)
    );
    assert_eq!(store.due_uploads(10).await.unwrap().len(), 1);
    assert!(store.remove_upload(id).await.unwrap());
    assert_eq!(store.due_uploads(10).await.unwrap(), []);
}

pub async fn a_removed_upload_fences_its_writer_off(house: &dyn House) {
    let (store, other) = (house.store(), house.another());
    let id = store.create_upload(new_upload()).await.unwrap().id;
    let (lock, _) = lock(&*store, id).await;
    for _ in 0..2 {
        assert!(other.remove_upload(id).await.unwrap());
    }
    assert_eq!(store.record_offset(&lock, 10, LEASE).await.unwrap(), Recorded::Lost);
    store.unlock_upload(lock).await.unwrap();
    store.upload_queued(id).await.unwrap();
    assert_eq!(store.upload(id).await.unwrap(), None);
}
