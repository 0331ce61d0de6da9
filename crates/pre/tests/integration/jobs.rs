//! Jobs: listed, shown, followed, cancelled, begun again, deleted.

use std::time::Duration;

use common::job::{ErrorCode, Failure};
use common::segment::Stage;
use reqwest::Response;
use serde_json::Value;

use crate::house::{TestApp, id_of, json};

#[tokio::test]
async fn a_job_is_shown_with_all_that_happens_to_it() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let job = house.get_json(&format!("/v1/jobs/{id}"), 200).await;
    assert_eq!(job["status"], "ENQUEUE");
    assert_eq!(job["filename"], "bikes.mp4");
    assert_eq!(job["timeline"]["process_start"], "2023-11-14T22:13:20.000000Z");
    assert_eq!(job["timeline"]["total"], Value::Null);
    assert_eq!(job["progress"]["overall"], 0.0);
    assert_eq!(job["links"]["video_mp4"], Value::Null);
    assert_eq!(job["options"]["conf"], 0.3);

    house.index(2).await;
    house.settle(id).await;
    house.clock.advance(Duration::from_secs(10));
    house.work(Stage::Decode).await;
    house.work(Stage::Detect).await;
    assert_eq!(house.report(id, "INFERENCE").await, 200, "it has begun, though not all is decoded");
    house.settle(id).await;
    let job = house.get_json(&format!("/v1/jobs/{id}"), 200).await;
    assert_eq!(job["status"], "PREPROCESSING");
    assert_eq!((&job["frames"], &job["width"]), (&Value::from(4), &Value::from(100)));
    assert_eq!(job["progress"]["decode"], 0.5);
    assert_eq!(job["progress"]["detect"], 0.5);
    assert_eq!(job["progress"]["render"], 0.0);
    let eta = job["eta_seconds"].as_u64().unwrap();
    assert!((1..60).contains(&eta), "10 s for a good third: {eta}");

    for stage in [Stage::Decode, Stage::Detect, Stage::Render, Stage::Render, Stage::Assemble] {
        house.work(stage).await;
    }
    house.settle(id).await;
    let job = house.get_json(&format!("/v1/jobs/{id}"), 200).await;
    assert_eq!(job["status"], "POSTPROCESSING_COMPLETE");
    assert_eq!(job["is_final"], true);
    assert_eq!(job["progress"]["overall"], 1.0);
    assert_eq!(job["timeline"]["total"], "0:00:10.000000");
    assert_eq!(job["summary"]["counts"][0]["class"], "car");
    assert_eq!(job["links"]["video_mp4"], format!("/v1/jobs/{id}/video.mp4"));
}

#[tokio::test]
async fn jobs_are_listed_in_pages_newest_first() {
    let house = TestApp::start().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(house.upload(&format!("{n}.mp4")).await);
        house.clock.advance(Duration::from_secs(1));
    }
    assert!(house.store.cancel(ids[1]).await.unwrap());
    let mut found = Vec::new();
    let mut path = "/v1/jobs?page_size=2".to_owned();
    let mut pages = 0;
    loop {
        let page = house.get_json(&path, 200).await;
        found.extend(page["jobs"].as_array().unwrap().iter().map(id_of));
        pages += 1;
        match page["next_page_token"].as_str() {
            Some(token) => path = format!("/v1/jobs?page_size=2&page_token={token}"),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!((found, pages), (ids.clone(), 3));
    let cancelled = house.get_json("/v1/jobs?status=CANCELLED,INFERENCE_ERROR", 200).await;
    assert_eq!(cancelled["jobs"].as_array().unwrap().iter().map(id_of).collect::<Vec<_>>(), [ids[3]]);
    for wrong in ["page_size=0", "page_size=101", "page_size=x", "page_token=x", "status=DONE", "pagesize=3"]
    {
        let error = house.get_json(&format!("/v1/jobs?{wrong}"), 400).await;
        assert_eq!(error["error"]["code"], "bad_request", "{wrong}");
    }
}

#[tokio::test]
async fn a_job_is_cancelled_and_begun_again() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    assert_eq!(house.post(&format!("/v1/jobs/{id}/retry")).await.status(), 409, "it runs");
    let job = json(house.post(&format!("/v1/jobs/{id}/cancel")).await, 200).await;
    assert_eq!(job["status"], "CANCELLED");
    assert_eq!(house.post(&format!("/v1/jobs/{id}/cancel")).await.status(), 200, "twice is once");
    let job = json(house.post(&format!("/v1/jobs/{id}/retry")).await, 202).await;
    assert_eq!((&job["status"], &job["run"]), (&Value::from("ENQUEUE"), &Value::from(1)));
    house.finish(1).await;
    let refused = json(house.post(&format!("/v1/jobs/{id}/cancel")).await, 409).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("POSTPROCESSING_COMPLETE"));
    assert_eq!(house.post(&format!("/v1/jobs/{id}/retry")).await.status(), 409);
    for path in ["630dc9e9aaaaaaaaaaaaaaaa", "x"] {
        assert_eq!(house.post(&format!("/v1/jobs/{path}/cancel")).await.status(), 404);
        assert_eq!(house.post(&format!("/v1/jobs/{path}/retry")).await.status(), 404);
    }
}

#[tokio::test]
async fn a_failed_job_says_why() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let failure =
        Failure { code: ErrorCode::EnqueueError, message: "This is no video; use an MP4.".to_owned() };
    assert!(house.store.fail(id, failure).await.unwrap());
    let job = house.get_json(&format!("/v1/jobs/{id}"), 200).await;
    assert_eq!(job["error"]["code"], "ENQUEUE_ERROR");
    assert_eq!(job["error"]["message"], "This is no video; use an MP4.");
    let error = house.get_json(&format!("/v1/jobs/{id}/video.mp4"), 409).await;
    assert_eq!(error["error"]["code"], "no_result");
    assert!(error["error"]["message"].as_str().unwrap().contains("ENQUEUE_ERROR"), "{error}");
}

#[tokio::test]
async fn a_deleted_job_is_gone_at_once() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let path = format!("/v1/jobs/{id}");
    assert_eq!(house.request("DELETE", &path).send().await.unwrap().status(), 204);
    assert_eq!(house.get(&path).await.status(), 404);
    assert_eq!(house.get(&format!("{path}/source")).await.status(), 404);
    assert_eq!(house.get(&format!("{path}/events")).await.status(), 404);
    assert!(house.get_json("/v1/jobs", 200).await["jobs"].as_array().unwrap().is_empty());
    let unknown = house.request("DELETE", "/v1/jobs/630dc9e9aaaaaaaaaaaaaaaa").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn without_the_token_nothing_is_told() {
    let house = TestApp::start_with(&["--api-token", "us3r"]).await;
    for path in
        ["/v1/jobs", "/v1/jobs/630dc9e9aaaaaaaaaaaaaaaa", "/v1/jobs/630dc9e9aaaaaaaaaaaaaaaa/video.mp4"]
    {
        let answer = house.get(path).await;
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        assert_eq!(json(answer, 401).await["error"]["code"], "unauthorized");
    }
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(house.get(open).await.status(), 200, "{open}");
    }
    let house = house.with_token("us3r");
    assert_eq!(house.get("/v1/jobs").await.status(), 200);
    assert_eq!(house.get("/v2/jobs").await.status(), 404);
    assert_eq!(house.request("PATCH", "/v1/jobs").send().await.unwrap().status(), 405);
}

/// Reads a stream of events, one after the other.
struct Events {
    answer: Response,
    text: String,
}

impl Events {
    async fn of(house: &TestApp, path: &str, last: Option<&str>) -> Self {
        let mut request = house.request("GET", path);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, text: String::new() }
    }

    /// The next event: its id, its name, its data. None at the end.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().trim_start_matches(": ").to_owned()
                };
                let found = (field("id"), field("event"), field("data"));
                self.text = rest.to_owned();
                if found.2.is_empty() {
                    continue;
                }
                return Some((found.0, found.1, serde_json::from_str(&found.2).unwrap()));
            }
            let chunk = self.answer.chunk().await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn until(&mut self, status: &str) -> String {
        loop {
            let (id, name, job) = self.next().await.expect("an event");
            assert_eq!(name, "job");
            if job["status"] == status {
                return id;
            }
        }
    }
}

#[tokio::test]
async fn changes_are_followed_to_the_end_across_replicas() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let path = format!("/v1/jobs/{id}/events");
    let mut events = Events::of(&house, &path, None).await;
    let first = events.until("ENQUEUE").await;
    house.index(1).await;
    house.report(id, "PREPROCESSING").await;
    let second = events.until("PREPROCESSING").await;
    assert_ne!(first, second);
    drop(events);

    // Another pre: who is up to date hears nothing until something happens, who missed something hears it.
    let other = house.another().await;
    let mut behind = Events::of(&other, &path, Some(&first)).await;
    assert_eq!(behind.until("PREPROCESSING").await, second);
    let mut level = Events::of(&other, &path, Some(&second)).await;
    house.work(Stage::Decode).await;
    let (third, _, job) = level.next().await.unwrap();
    assert_ne!(third, second);
    assert_eq!(job["progress"]["decode"], 1.0);

    house.work(Stage::Detect).await;
    house.work(Stage::Render).await;
    house.work(Stage::Assemble).await;
    house.settle(id).await;
    let last = level.until("POSTPROCESSING_COMPLETE").await;
    assert!(level.next().await.is_none(), "the stream ends with the job");
    assert!(behind.until("POSTPROCESSING_COMPLETE").await == last && behind.next().await.is_none());
    let over = other.request("GET", &path).header("Last-Event-ID", &last).send().await.unwrap();
    assert_eq!(over.status(), 204, "a browser stops asking");
}

#[tokio::test]
async fn a_follower_hears_of_a_deletion_and_is_let_go_at_the_end_of_pre() {
    let house = TestApp::start().await;
    let id = house.upload("bikes.mp4").await;
    let mut events = Events::of(&house, &format!("/v1/jobs/{id}/events"), None).await;
    events.until("ENQUEUE").await;
    house.request("DELETE", &format!("/v1/jobs/{id}")).send().await.unwrap();
    loop {
        let (_, name, _) = events.next().await.expect("word of the deletion");
        if name == "gone" {
            break;
        }
    }
    assert!(events.next().await.is_none());

    let id = house.upload("cars.mp4").await;
    let mut events = Events::of(&house, &format!("/v1/jobs/{id}/events"), None).await;
    events.until("ENQUEUE").await;
    house.app.service.stop.cancel();
    assert!(events.next().await.is_none());
}
