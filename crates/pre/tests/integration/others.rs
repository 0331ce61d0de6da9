//! Pictures, workers, metrics, the document.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::house::{TestApp, json};

/// An infer that tells what it was asked.
async fn infer() -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let router = Router::new().route(
        "/v1/detect",
        post(async |headers: HeaderMap, body: Bytes| {
            if body.is_empty() {
                let after = [("retry-after", "7")];
                return (StatusCode::SERVICE_UNAVAILABLE, after, "{\"error\": {}}").into_response();
            }
            let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let told = serde_json::json!({
                "kind": header("content-type"), "accept": header("accept"), "token": header("authorization"),
                "cookie": header("cookie"), "bytes": body.len(),
            });
            axum::Json(told).into_response()
        }),
    );
    let stop = tokio_util::sync::CancellationToken::new();
    let server = common::service::serve(listener, router, stop, std::time::Duration::ZERO);
    (url, AbortOnDropHandle::new(tokio::spawn(server)))
}

#[tokio::test]
async fn pictures_are_passed_on_to_infer() {
    let (url, _infer) = infer().await;
    let house = TestApp::start_with(&["--infer-url", &url, "--api-token", "us3r"]).await;
    assert_eq!(house.post("/v1/detect").await.status(), 401);
    let house = house.with_token("us3r");
    let request =
        house.request("POST", "/v1/detect").header("Content-Type", "image/png").header("Cookie", "secret");
    let told =
        json(request.header("Accept", "image/jpeg").body("a picture").send().await.unwrap(), 200).await;
    assert_eq!(
        told,
        serde_json::json!({
            "kind": "image/png", "accept": "image/jpeg", "token": "Bearer us3r", "cookie": null, "bytes": 9
        })
    );
    let busy = house.post("/v1/detect").await;
    assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (503, &"7".parse().unwrap()));
}

#[tokio::test]
async fn without_infer_there_is_no_detection_of_pictures() {
    let house = TestApp::start().await;
    assert_eq!(house.request("POST", "/v1/detect").body("x").send().await.unwrap().status(), 503);
    // A port that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let house = TestApp::start_with(&["--infer-url", &url]).await;
    let answer = house.request("POST", "/v1/detect").body("x").send().await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(json(answer, 503).await["error"]["code"], "unavailable");
}

#[tokio::test]
async fn workers_and_queues_are_shown() {
    let house = TestApp::start().await;
    house.upload("bikes.mp4").await;
    let shown = house.get_json("/v1/workers", 200).await;
    let names: Vec<&str> =
        shown["workers"].as_array().unwrap().iter().map(|worker| worker["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"infer-1"), "{names:?}");
    assert_eq!(
        shown["queues"][0],
        serde_json::json!({
            "stage": "index", "service": "pre", "waiting": 1, "delayed": 0, "working": 0, "oldest_seconds": 0.0
        })
    );
    let metrics = house.get("/metrics").await.text().await.unwrap();
    for line in [
        "boxreel_queue_pieces{stage=\"index\",state=\"waiting\"} 1",
        "boxreel_uploads_total{outcome=\"accepted\"} 1",
        "boxreel_upload_received_bytes_total 7",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn the_document_tells_of_every_route_and_can_be_tried() {
    let house = TestApp::start_with(&["--api-token", "us3r"]).await;
    let document = house.get_json("/openapi.json", 200).await;
    assert_eq!(document["openapi"].as_str().unwrap().split('.').take(2).collect::<Vec<_>>(), ["3", "1"]);
    let paths = document["paths"].as_object().unwrap();
    let operations: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!((paths.len(), operations), (21, 29), "{:?}", paths.keys());
    let ids: std::collections::HashSet<String> = paths
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| operation["operationId"].to_string())
        .collect();
    assert_eq!(ids.len(), operations, "each has a name of its own");
    for operation in paths.values().flat_map(|path| path.as_object().unwrap().values()) {
        for (status, answer) in operation["responses"].as_object().unwrap() {
            let described = answer["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(described, "{status} of {}", operation["operationId"]);
        }
    }
    assert_ne!(document["components"]["securitySchemes"]["api_token"], Value::Null);
    let page = house.get("/docs/").await;
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    assert!(!page.contains("http://") && !page.contains("https://"), "it works offline: {page}");
}
