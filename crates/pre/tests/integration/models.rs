//! Jobs whose model no worker has any more.

use std::time::Duration;

use common::job::{ErrorCode, Failure, JobId};
use common::segment::{Stage, State};
use pre::models::{AWAY, Waiting};

use crate::house::{LEASE, TestApp, json};

/// A job two of whose segments are decoded; then the worker comes back with other weights, and `names`.
async fn left_behind(names: &[&str]) -> (TestApp, JobId) {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.index(2).await;
    house.work(Stage::Decode).await;
    let mut worker = house.store.workers(LEASE).await.unwrap().remove(0).worker;
    let offer = worker.offer.as_mut().unwrap();
    offer.key.digest = "retrained".to_owned();
    offer.names = names.iter().map(|&name| name.to_owned()).collect();
    house.store.announce(&worker).await.unwrap();
    (house, id)
}

async fn ends(house: &TestApp, waiting: &mut Waiting, patience: Duration) -> Vec<JobId> {
    waiting.end(house.store.as_ref(), patience).await.unwrap()
}

#[tokio::test]
async fn a_job_whose_model_is_gone_ends_and_is_retried_with_the_one_that_is_there() {
    let (house, id) = left_behind(&["person", "bicycle", "car"]).await;
    let mut waiting = Waiting::default();
    assert_eq!(ends(&house, &mut waiting, AWAY).await, [], "a roll-out takes its time");
    assert_eq!(ends(&house, &mut waiting, Duration::ZERO).await, [id]);
    assert_eq!(ends(&house, &mut waiting, Duration::ZERO).await, []);
    let job = house.get_json(&format!("/v1/jobs/{id}"), 200).await;
    assert_eq!(job["error"]["code"], "INFERENCE_ERROR");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("the model abc in fp32") && message.contains("Retry it"), "{message}");

    json(house.post(&format!("/v1/jobs/{id}/retry")).await, 202).await;
    let job = house.store.job(id).await.unwrap().unwrap();
    assert_eq!(job.settings.model.digest, "retrained");
    assert_eq!(job.state, State::Waiting(Stage::Index));
    house.finish(2).await;
    house.settle(id).await;
    house.expect_status(id, "POSTPROCESSING_COMPLETE").await;
}

#[tokio::test]
async fn a_job_of_other_classes_says_so() {
    let (house, id) = left_behind(&["forklift", "pallet"]).await;
    assert_eq!(ends(&house, &mut Waiting::default(), Duration::ZERO).await, [id]);
    let job = house.get_json(&format!("/v1/jobs/{id}"), 200).await;
    assert!(job["error"]["message"].as_str().unwrap().contains("Upload the video again"), "{job}");
    let refused = json(house.post(&format!("/v1/jobs/{id}/retry")).await, 409).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("other classes"), "{refused}");
}

#[tokio::test]
async fn jobs_wait_for_workers_to_come_and_for_those_with_their_model() {
    // Its worker has gone, and no other is there: workers may be scaled to none for a night.
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    house.index(1).await;
    house.store.retire("infer-1").await.unwrap();
    assert_eq!(ends(&house, &mut Waiting::default(), Duration::ZERO).await, []);
    // One with its model is among others.
    house.offer().await;
    let mut worker = house.store.workers(LEASE).await.unwrap().remove(0).worker;
    worker.name = "infer-2".to_owned();
    worker.offer.as_mut().unwrap().key.digest = "retrained".to_owned();
    house.store.announce(&worker).await.unwrap();
    assert_eq!(ends(&house, &mut Waiting::default(), Duration::ZERO).await, []);
    assert!(house.store.job(id).await.unwrap().unwrap().is_live());

    // What is detected needs no model: a retry goes on where it stood.
    house.work(Stage::Decode).await;
    house.work(Stage::Detect).await;
    house.settle(id).await;
    house.store.retire("infer-1").await.unwrap();
    assert_eq!(ends(&house, &mut Waiting::default(), Duration::ZERO).await, []);
    let failure = Failure { code: ErrorCode::PostprocessingError, message: "The disk is full.".to_owned() };
    assert!(house.store.fail(id, failure).await.unwrap());
    json(house.post(&format!("/v1/jobs/{id}/retry")).await, 202).await;
    let job = house.store.job(id).await.unwrap().unwrap();
    assert_eq!((job.settings.model.digest.as_str(), &job.state), ("abc", &State::Segments));
}
