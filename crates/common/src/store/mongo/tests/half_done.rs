//! A caller dies between any two of the commands that one call is made of: nothing is lost, nothing is stuck.

use serde_json::json;

use super::*;
use crate::segment::State;
use crate::store::contract::{cuts, film, new_job, output, plan, step};

/// What is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Put,
    AdvanceIndex,
    ClaimDecode,
    ClaimGivesUp,
    ClaimOfOverJob,
    ClaimOfOldRun,
    AdvanceLastRender,
    AdvanceAssemble,
    Fail,
    FailIndex,
    AssembleSendsBack,
    BackToIndex,
    Cancel,
    Retry,
    RetryIndex,
    Tombstone,
    Remove,
}

const CALLS: [Call; 18] = [
    Call::Create,
    Call::Put,
    Call::AdvanceIndex,
    Call::ClaimDecode,
    Call::ClaimGivesUp,
    Call::ClaimOfOverJob,
    Call::ClaimOfOldRun,
    Call::AdvanceLastRender,
    Call::AdvanceAssemble,
    Call::Fail,
    Call::FailIndex,
    Call::AssembleSendsBack,
    Call::BackToIndex,
    Call::Cancel,
    Call::Retry,
    Call::RetryIndex,
    Call::Tombstone,
    Call::Remove,
];

/// What the call is made on.
struct Scene {
    job: JobId,
    lease: Option<Lease>,
    token: Token,
}

fn request(stage: Stage, token: &Token) -> ClaimRequest {
    ClaimRequest {
        stage,
        worker: "worker-1".to_owned(),
        token: token.clone(),
        lease: LEASE,
        model: None,
        pack_budget: None,
    }
}

async fn claim(store: &MongoStore, stage: Stage) -> Lease {
    store.claim(&request(stage, &Token::random())).await.unwrap().expect("there is something to claim").lease
}

fn copy(lease: &Lease) -> Lease {
    Lease { token: lease.token.clone(), ..*lease }
}

const BROKEN: &str = "It is broken.";

fn broken() -> Setback {
    Setback::Fail { message: BROKEN.to_owned() }
}

/// A change of the job that its segments have not followed.
async fn change_job_alone(store: &MongoStore, id: JobId, change: impl Fn(&mut docs::JobRow, Stamp)) {
    let (mut row, now) = store.read_job(id).await.unwrap().unwrap();
    change(&mut row, now);
    assert!(store.save_job(row).await.unwrap());
}

async fn prepare(call: Call, good: &MongoStore, clock: &ManualClock) -> Scene {
    let token = Token::random();
    let new = new_job();
    let through = async |stages: &[Stage]| {
        for stage in stages {
            while step(good, *stage).await.is_some() {}
        }
    };
    let (job, lease) = match call {
        Call::Create => (new.id, None),
        Call::Put | Call::AdvanceIndex | Call::FailIndex | Call::RetryIndex => {
            let job = good.create_job(new).await.unwrap().id;
            let lease = claim(good, Stage::Index).await;
            if call == Call::AdvanceIndex {
                good.put_segments(&lease, &cuts(3)).await.unwrap();
            }
            if call == Call::RetryIndex {
                good.put_segments(&lease, &cuts(3)).await.unwrap();
                good.set_back(lease, broken()).await.unwrap();
                (job, None)
            } else {
                (job, Some(lease))
            }
        }
        Call::ClaimDecode | Call::Cancel | Call::Tombstone => (film(good, 3).await, None),
        Call::ClaimGivesUp => {
            let job = film(good, 1).await;
            for _ in 0..crate::store::MAX_EXPIRIES {
                claim(good, Stage::Decode).await;
                clock.advance(LEASE);
            }
            (job, None)
        }
        Call::ClaimOfOverJob => {
            let job = film(good, 2).await;
            change_job_alone(good, job, |row, now| row.end(crate::job::Event::Cancelled, now)).await;
            (job, None)
        }
        Call::ClaimOfOldRun => {
            let job = film(good, 2).await;
            change_job_alone(good, job, |row, _| {
                row.doc.job.run += 1;
                row.epoch += 1;
            })
            .await;
            (job, None)
        }
        Call::AdvanceLastRender => {
            let job = film(good, 2).await;
            through(&[Stage::Decode, Stage::Detect]).await;
            step(good, Stage::Render).await.unwrap();
            (job, Some(claim(good, Stage::Render).await))
        }
        Call::AdvanceAssemble | Call::AssembleSendsBack => {
            let job = film(good, 2).await;
            through(&[Stage::Decode, Stage::Detect, Stage::Render]).await;
            (job, Some(claim(good, Stage::Assemble).await))
        }
        Call::Fail | Call::BackToIndex => {
            let job = film(good, 2).await;
            through(&[Stage::Decode]).await;
            (job, Some(claim(good, Stage::Detect).await))
        }
        Call::Retry => {
            let job = film(good, 2).await;
            through(&[Stage::Decode]).await;
            let lease = claim(good, Stage::Detect).await;
            good.set_back(lease, broken()).await.unwrap();
            (job, None)
        }
        Call::Remove => {
            let job = film(good, 2).await;
            good.tombstone(job).await.unwrap();
            (job, None)
        }
    };
    Scene { job, lease, token }
}

async fn act(call: Call, store: &MongoStore, scene: &Scene) -> Result<(), StoreError> {
    let job = scene.job;
    let lease = || copy(scene.lease.as_ref().unwrap());
    let advance =
        async |output| store.advance(lease(), output).await.map(drop).map_err(|failed| failed.error);
    let set_back = async |setback| store.set_back(lease(), setback).await.map_err(|failed| failed.error);
    let send_back = |to, segments| Setback::SendBack { to, message: "damaged".to_owned(), segments };
    match call {
        Call::Create => {
            let new = crate::store::NewJob { id: job, ..new_job() };
            store.create_job(new).await.map(drop)
        }
        Call::Put => store.put_segments(&lease(), &cuts(3)).await.map(drop),
        Call::AdvanceIndex => advance(Output::Indexed(plan(3))).await,
        Call::ClaimDecode | Call::ClaimGivesUp | Call::ClaimOfOverJob | Call::ClaimOfOldRun => {
            store.claim(&request(Stage::Decode, &scene.token)).await.map(drop)
        }
        Call::AdvanceLastRender => advance(output(Stage::Render, &lease().token)).await,
        Call::AdvanceAssemble => advance(output(Stage::Assemble, &lease().token)).await,
        Call::Fail | Call::FailIndex => set_back(broken()).await,
        Call::AssembleSendsBack => set_back(send_back(Stage::Render, vec![1])).await,
        Call::BackToIndex => set_back(send_back(Stage::Index, Vec::new())).await,
        Call::Cancel => store.cancel(job).await.map(drop),
        Call::Retry | Call::RetryIndex => store.retry(job).await.map(drop),
        Call::Tombstone => store.tombstone(job).await.map(drop),
        Call::Remove => store.remove(job).await,
    }
}

/// Does all work there is, as workers and the reconciler would.
async fn work_it_off(what: &str, store: &MongoStore, clock: &ManualClock) {
    for _ in 0..10 {
        let mut claims = 0;
        clock.advance(LEASE * 2);
        for id in store.unsettled().await.unwrap() {
            store.reconcile(id).await.unwrap();
        }
        // Not only once a claim catches them: nobody may ever ask for that stage again.
        for job in store.jobs(None, 100, &[]).await.unwrap() {
            let claimable = doc! { "job": docs::object_id(job.id), "stage": { "$exists": true } };
            let left = store.segments.count_documents(claimable).await.unwrap();
            assert!(
                job.is_live() || left == 0,
                "{what}: {left} segments of a job that is over are not parked"
            );
        }
        for stage in Stage::ALL {
            while let Some(claimed) = store.claim(&request(stage, &Token::random())).await.unwrap() {
                claims += 1;
                let lease = claimed.lease;
                let output = if stage == Stage::Index {
                    store.put_segments(&lease, &cuts(3)).await.unwrap();
                    Output::Indexed(plan(3))
                } else {
                    output(stage, &lease.token)
                };
                assert_eq!(store.advance(lease, output).await.unwrap(), Advanced::Recorded);
            }
        }
        if claims == 0 {
            break;
        }
    }
    for id in store.unsettled().await.unwrap() {
        store.reconcile(id).await.unwrap();
    }
}

async fn check(call: Call, what: &str, store: &MongoStore, scene: &Scene, repeated: bool) {
    let id = scene.job;
    let unsettled = store.unsettled().await.unwrap();
    let claimable = doc! { "stage": { "$exists": true } };
    assert_eq!(
        store.segments.count_documents(claimable.clone()).await.unwrap(),
        0,
        "{what}: something is left to claim"
    );
    assert_eq!(
        store.requests.count_documents(claimable).await.unwrap(),
        0,
        "{what}: something is left to claim"
    );
    let job = store.job(id).await.unwrap();
    let done = Status::PostprocessingComplete;
    let may_end: &[Status] = match call {
        Call::Cancel if !repeated => &[Status::Cancelled, done],
        Call::Cancel | Call::ClaimOfOverJob | Call::Tombstone => &[Status::Cancelled],
        Call::ClaimGivesUp | Call::FailIndex => &[Status::FrameConvertError],
        Call::Fail => &[Status::InferenceError],
        Call::Retry if !repeated => &[Status::InferenceError, done],
        Call::RetryIndex if !repeated => &[Status::FrameConvertError, done],
        _ => &[done],
    };
    match (call, job) {
        (Call::Remove, None) => {
            let left = store.segments.count_documents(doc! {}).await.unwrap();
            assert_eq!((left, unsettled), (0, vec![]), "{what}: what was removed is gone");
        }
        (Call::Create, None) if !repeated => {}
        (Call::Remove, Some(_)) if !repeated => {
            assert_eq!(unsettled, [id], "{what}: it is still to be removed");
        }
        (_, None) => panic!("{what}: the job is lost"),
        (Call::Tombstone, Some(job)) if job.deleted.is_some() => {
            assert_eq!(unsettled, [id], "{what}: it is to be visited");
            assert_eq!(job.timeline.status(), Status::Cancelled, "{what}");
        }
        (Call::Tombstone, Some(_)) if !repeated => {}
        // A failure that was not said in time may be forgotten: its lease ran out, and the next try went well.
        (Call::Fail | Call::FailIndex | Call::ClaimGivesUp, Some(job)) if !repeated => {
            let status = job.timeline.status();
            assert!(status == done || may_end.contains(&status), "{what}: {status}");
            assert_eq!(unsettled, [], "{what}");
        }
        (_, Some(job)) => {
            let status = job.timeline.status();
            assert!(may_end.contains(&status), "{what}: {status}, {:?}", store.counts(id).await.unwrap());
            assert_eq!(unsettled, [], "{what}");
            if status == done {
                let segments = store.segments(id).await.unwrap();
                assert_eq!(segments.len() as u32, job.plan.unwrap().segments, "{what}");
                assert!(
                    segments.iter().all(|s| s.state == State::Done && s.run == job.run),
                    "{what}: {segments:?}"
                );
                let all = store.segments.count_documents(doc! {}).await.unwrap();
                assert_eq!(all, segments.len() as u64, "{what}: nothing of another cut is left");
            }
        }
    }
}

/// Each call is interrupted after its first command, its second, and so on. Then the caller either repeats it
/// (it has seen an error) or is dead, and others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_may_die_between_any_two_commands() {
    let server = Mongod::start();
    let database = server.fresh_database();
    let clock = Arc::new(ManualClock::new(Stamp(1_700_000_000_000_000)));
    let open = async |app: &str| {
        let uri = format!("{}&appName={app}", server.uri());
        MongoStore::with_clock(&uri, &database, clock.clone()).await.unwrap()
    };
    let (good, victim) = (open("good").await, open("victim").await);
    let (mut calls, mut interrupted) = (0, 0);
    // MaxTimeMSExpired: the driver does not try again by itself, nor wait for the server to come back.
    let refused = json!({ "errorCode": 50 });
    for call in CALLS {
        for repeated in [false, true] {
            for after in 0.. {
                let scene = prepare(call, &good, &clock).await;
                server.fail_commands("victim", &json!({ "skip": after }), &refused);
                let result = act(call, &victim, &scene).await;
                server.fail_commands("victim", &json!("off"), &refused);
                let what = format!("{call:?} after {after} commands, repeated: {repeated}");
                match &result {
                    Err(StoreError::Corrupt(found)) => panic!("{what}: {found}"),
                    Err(StoreError::Unavailable(_)) => interrupted += 1,
                    Ok(()) => {}
                }
                if repeated {
                    act(call, &victim, &scene).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                work_it_off(&what, &good, &clock).await;
                check(call, &what, &good, &scene, repeated).await;
                for collection in [&good.requests, &good.segments, &good.turns] {
                    collection.delete_many(doc! {}).await.unwrap();
                }
                calls += 1;
                if result.is_ok() {
                    break;
                }
            }
        }
    }
    println!("{calls} calls, {interrupted} of them interrupted");
    assert!(interrupted >= 2 * CALLS.len());
}
