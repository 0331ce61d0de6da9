//! Word of an end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use common::job::JobId;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::house::{TestApp, id_of, json};

type Heard = Arc<Mutex<Vec<(HeaderMap, String)>>>;

/// Somebody who waits for word, and answers it with `statuses`, one after the other; the last for ever.
struct Receiver {
    url: String,
    heard: Heard,
    _server: AbortOnDropHandle<()>,
}

impl Receiver {
    async fn start(statuses: &'static [u16]) -> Self {
        let heard = Heard::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/done", listener.local_addr().unwrap());
        let router = Router::new()
            .route(
                "/done",
                post(async move |State(heard): State<Heard>, headers: HeaderMap, body: String| {
                    let mut heard = heard.lock().unwrap();
                    let status = statuses[heard.len().min(statuses.len() - 1)];
                    heard.push((headers, body));
                    (StatusCode::from_u16(status).unwrap(), [("location", "/done")])
                }),
            )
            .with_state(heard.clone());
        let stop = tokio_util::sync::CancellationToken::new();
        let server = tokio::spawn(common::service::serve(listener, router, stop, Duration::ZERO));
        Self { url, heard, _server: AbortOnDropHandle::new(server) }
    }

    fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

async fn upload(house: &TestApp, url: &str) -> JobId {
    let answer =
        house.request("POST", &format!("/v1/jobs?callback_url={url}")).body("a video").send().await.unwrap();
    id_of(&json(answer, 202).await)
}

async fn send(house: &TestApp) -> usize {
    pre::callbacks::send_due(&house.app).await.unwrap()
}

#[tokio::test]
async fn an_end_is_told_once_and_signed() {
    let receiver = Receiver::start(&[204]).await;
    let house = TestApp::start_with(&["--allow-private-callbacks", "--callback-secret", "s3cret"]).await;
    let id = upload(&house, &receiver.url).await;
    assert_eq!(send(&house).await, 0, "it has not ended");
    house.finish(1).await;
    assert_eq!(send(&house).await, 1);
    assert_eq!(send(&house).await, 0);
    let (headers, body) = receiver.heard.lock().unwrap()[0].clone();
    let word: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (word["event"].as_str(), word["job"]["id"].as_str()),
        (Some("job.ended"), Some(&*id.to_string()))
    );
    assert_eq!(word["job"]["status"], "POSTPROCESSING_COMPLETE");
    assert_eq!(headers["boxreel-delivery"], format!("{id}-0"));
    let signature = headers["boxreel-signature"].to_str().unwrap();
    assert!(signature.starts_with("t=1700000000,v1=") && signature.len() == 16 + 64, "{signature}");
}

#[tokio::test]
async fn a_deaf_receiver_is_tried_for_a_day() {
    let receiver = Receiver::start(&[500, 302, 404]).await;
    let house = TestApp::start_with(&["--allow-private-callbacks"]).await;
    let id = upload(&house, &receiver.url).await;
    house.store.cancel(id).await.unwrap();
    assert_eq!(send(&house).await, 1);
    assert_eq!(send(&house).await, 0, "not at once");
    house.clock.advance(Duration::from_secs(10));
    assert_eq!(send(&house).await, 1);
    house.clock.advance(Duration::from_secs(10));
    assert_eq!(send(&house).await, 0, "the pauses grow");
    house.clock.advance(Duration::from_secs(10));
    assert_eq!(send(&house).await, 1);
    assert_eq!(receiver.count(), 3, "a redirect is not followed");
    house.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(send(&house).await, 1, "a last time");
    house.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(send(&house).await, 0);
}

#[tokio::test]
async fn nothing_is_sent_into_the_house_s_own_network() {
    let receiver = Receiver::start(&[204]).await;
    let house = TestApp::start().await;
    let refused = house.request("POST", &format!("/v1/jobs?callback_url={}", receiver.url)).body("a video");
    assert_eq!(refused.send().await.unwrap().status(), 400);
    // A name is only seen through when it is resolved.
    let id = upload(&house, &receiver.url.replace("127.0.0.1", "localhost")).await;
    house.store.cancel(id).await.unwrap();
    assert_eq!(send(&house).await, 1);
    assert_eq!(receiver.count(), 0);
    assert_eq!(house.store.job(id).await.unwrap().unwrap().callback.unwrap().failures, 1);
}
