//! Workers report; pre stamps what the segments bear out.

use common::job::JobId;
use common::segment::Stage;

use crate::house::{TestApp, json};

#[tokio::test]
async fn a_report_is_stamped_when_the_segments_bear_it_out() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    assert_eq!(house.report(id, "PREPROCESSING").await, 409, "nobody has claimed it");
    house.index(1).await;
    assert_eq!(house.report(id, "PREPROCESSING").await, 200);
    assert_eq!(house.report(id, "PREPROCESSING").await, 200, "a repeat changes nothing");
    assert_eq!(house.report(id, "INFERENCING_COMPLETE").await, 409);
    house.work(Stage::Decode).await;
    house.work(Stage::Detect).await;
    assert_eq!(house.report(id, "INFRENCING_COMPLETE").await, 200, "as the original's workers spelt it");
    house.expect_status(id, "INFERENCE_COMPLETE").await;
    let answer = house.post(&format!("/requestid/{id}/status/INFERENCE")).await;
    let answer = json(answer, 200).await;
    assert_eq!(answer["id"], id.to_string());
    assert_eq!(answer["status"], "INFERENCE_COMPLETE");
    assert_eq!(answer["stamped"], "2023-11-14T22:13:20.000000Z");
}

#[tokio::test]
async fn reading_a_status_changes_nothing() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    // Claimed, so that a report would be borne out; but nobody reports.
    let _claimed = house.claim(Stage::Index).await;
    let before = house.store.job(id).await.unwrap().unwrap().timeline;
    let answer = house.get_json(&format!("/requestid/{id}/status/PREPROCESSING_COMPLETE"), 200).await;
    assert_eq!(answer["stamped"], serde_json::Value::Null);
    assert_eq!(house.store.job(id).await.unwrap().unwrap().timeline, before);
}

#[tokio::test]
async fn nonsense_and_strangers_are_refused() {
    let house =
        TestApp::start_with(&["--worker-token", "w0rker", "--api-token", "us3r"]).await.with_token("us3r");
    let id = house.upload("bikes.mp4").await;
    assert_eq!(house.report(id, "PREPROCESSING").await, 401, "a user is no worker");
    let house = house.with_token("w0rker");
    assert_eq!(house.report(id, "FINISHED").await, 400);
    assert_eq!(house.report("630dc9e9aaaaaaaaaaaaaaaa", "PREPROCESSING").await, 404);
    assert_eq!(house.report("17", "PREPROCESSING").await, 404);
    assert_eq!(house.report(id, "INFERENCE_ERROR").await, 409, "no worker fails a job by saying so");
    house.finish(1).await;
    assert_eq!(house.report(id, "POSTPROCESSING_COMPLETE").await, 200);
    assert_eq!(house.report(id, "PREPROCESSING").await, 200, "late, but true");
    assert_eq!(house.get(&format!("/v1/jobs/{id}")).await.status(), 401, "a worker is no user");
    assert_ne!(id, JobId::from([0; 12]));
}
