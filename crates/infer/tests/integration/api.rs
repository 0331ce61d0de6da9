//! Single pictures over HTTP.

use std::io::Cursor;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use common::config::Secret;
use common::service::auth::Gate;
use infer::api::{DetectApi, MAX_BODY, router};
use infer::stills::Stills;
use infer::{Detector, DetectorSettings, DeviceChoice, Frames, ModelFile, NmsOptions, PrecisionChoice};
use prometheus::Registry;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::grown;

struct App {
    router: Router,
    detector: Detector,
    registry: Registry,
}

fn app() -> App {
    let settings = DetectorSettings {
        device: DeviceChoice::Cpu,
        precision: PrecisionChoice::Exactly(common::job::Precision::Fp32),
        batch: Some(4),
        threads: Some(1),
    };
    let detector = Detector::start(&ModelFile::open(grown::weights()).unwrap(), &settings).unwrap();
    let registry = Registry::new();
    let stills = Stills::start(detector.clone(), &registry, CancellationToken::new()).unwrap();
    let gates: Arc<[Gate]> = ["user", "worker"].map(|t| Gate::new(Some(&Secret::from(t.to_owned())))).into();
    let router = router(DetectApi { stills, names: detector.names().into(), gates });
    App { router, detector, registry }
}

fn png(name: &str) -> Vec<u8> {
    let image = image::RgbImage::from_raw(300, 300, grown::picture(name)).unwrap();
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

impl App {
    async fn send(&self, query: &str, accept: &str, token: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let request = Request::post(format!("/v1/detect{query}"))
            .header(header::ACCEPT, accept)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::from(body))
            .unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        (status, to_bytes(answer.into_body(), usize::MAX).await.unwrap().to_vec())
    }
}

#[tokio::test]
async fn a_picture_is_answered_with_what_the_detector_finds() {
    let app = app();
    let pixels = Frames::of_bytes(grown::picture("one"));
    let found = app
        .detector
        .detect(pixels, NmsOptions::default(), &CancellationToken::new(), &|_| {})
        .await
        .unwrap()
        .remove(0);
    let (status, body) = app.send("?conf=0.06", "application/json", "user", png("one")).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let expected: Vec<_> = found.iter().filter(|d| d.score >= 0.06).collect();
    assert!(!expected.is_empty());
    assert_eq!(answer["width"], 300);
    let detections = answer["detections"].as_array().unwrap();
    assert_eq!(detections.len(), expected.len());
    for (said, one) in detections.iter().zip(expected) {
        assert_eq!(said["class"], one.class);
        assert_eq!(said["name"], app.detector.names()[usize::from(one.class)]);
        assert!((said["score"].as_f64().unwrap() - f64::from(one.score)).abs() < 1e-5);
        assert!((said["bbox"][0].as_f64().unwrap() - f64::from(one.bbox.min_x) * 300.0).abs() < 0.01);
    }
}

#[tokio::test]
async fn the_picture_with_boxes_is_had_by_accept() {
    let app = app();
    let (status, body) = app.send("?conf=0.06", "image/jpeg", "worker", png("two")).await;
    assert_eq!(status, StatusCode::OK);
    let drawn = image::load_from_memory_with_format(&body, image::ImageFormat::Jpeg).unwrap();
    assert_eq!((drawn.width(), drawn.height()), (300, 300));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_in_a_sentence() {
    let app = app();
    let json = "application/json";
    for (query, accept, token, body, status) in [
        ("", json, "nobody", png("one"), StatusCode::UNAUTHORIZED),
        ("?conf=2", json, "user", png("one"), StatusCode::BAD_REQUEST),
        ("?cnof=0.2", json, "user", png("one"), StatusCode::BAD_REQUEST),
        ("", "text/html", "user", png("one"), StatusCode::NOT_ACCEPTABLE),
        ("", json, "user", b"Dear reader".to_vec(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("", json, "user", vec![0; MAX_BODY + 1], StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let (found, body) = app.send(query, accept, token, body).await;
        assert_eq!(found, status, "{}", String::from_utf8_lossy(&body));
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(body["error"]["message"].as_str().unwrap().ends_with('.'), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_answered_or_refused_and_batched() {
    let app = Arc::new(app());
    let senders: Vec<_> = (0..90)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { app.send("", "application/json", "user", png("three")).await })
        })
        .collect();
    let mut answered = 0;
    for sender in senders {
        let (status, body) = sender.await.unwrap();
        match status {
            StatusCode::OK => answered += 1,
            StatusCode::SERVICE_UNAVAILABLE => {
                assert!(String::from_utf8(body).unwrap().contains("again"));
            }
            other => panic!("{other}"),
        }
    }
    assert!(answered > 0);
    let batches = app.registry.gather()[0].get_metric()[0].get_histogram().get_sample_count();
    assert!(batches < answered, "{answered} pictures in {batches} batches");
}
