//! The detector: what it gives, and that it ends when it should.

use std::sync::atomic::{AtomicU64, Ordering};

use common::detection::Detection;
use infer::ssd300::FRAME_BYTES;
use infer::{DetectError, Detector, DetectorSettings, DeviceChoice, Frames, ModelFile, NmsOptions};
use infer::{ModelError, PrecisionChoice};
use tokio_util::sync::CancellationToken;

use crate::grown;

const OPTIONS: NmsOptions = NmsOptions { iou: 0.5, max_det: 200 };

fn start(batch: usize, threads: usize) -> Detector {
    let settings = DetectorSettings {
        device: DeviceChoice::Cpu,
        precision: PrecisionChoice::Exactly(common::job::Precision::Fp32),
        batch: Some(batch),
        threads: Some(threads),
    };
    Detector::start(&ModelFile::open(grown::weights()).unwrap(), &settings).unwrap()
}

fn pictures() -> Frames {
    Frames::of_bytes(["one", "two", "three"].iter().flat_map(|name| grown::picture(name)).collect())
}

async fn detect(detector: &Detector, frames: Frames) -> Result<Vec<Vec<Detection>>, DetectError> {
    detector.detect(frames, OPTIONS, &CancellationToken::new(), &|_| {}).await
}

#[tokio::test]
async fn every_wanted_frame_has_a_result_in_its_place() {
    let detector = start(2, 2);
    assert_eq!(detector.names().len(), 80);
    assert_eq!(detector.names()[0], "person");
    assert_eq!(detector.key().digest.len(), 64);
    let done = AtomicU64::new(0);
    let all = detector
        .detect(pictures(), OPTIONS, &CancellationToken::new(), &|n| done.store(n, Ordering::SeqCst))
        .await
        .unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(done.into_inner(), 3);
    assert!(all.iter().all(|found| !found.is_empty()) && all[0] != all[1] && all[1] != all[2]);
    for found in &all {
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        assert!(found.iter().all(|d| d.score > 0.05 && d.class < 80));
        let inside = |v: f32| (0.0..=1.0).contains(&v);
        assert!(found.iter().all(|d| inside(d.bbox.min_x) && inside(d.bbox.max_y)));
    }
    // Picked frames, out of order; the same call again gives the same to the last bit.
    let picked = detect(&detector, pictures().only(vec![2, 0])).await.unwrap();
    assert_eq!(picked.len(), 2);
    let close = |a: &[Detection], b: &[Detection]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.score - b.score).abs() < 1e-4)
    };
    assert!(close(&picked[0], &all[2]) && close(&picked[1], &all[0]));
    assert_eq!(detect(&detector, pictures().only(vec![2, 0])).await.unwrap(), picked);
    assert_eq!(detect(&detector, pictures().only(vec![])).await.unwrap().len(), 0);
}

#[tokio::test]
async fn what_is_no_picture_is_refused() {
    let detector = start(1, 1);
    let odd = detect(&detector, Frames::of_bytes(vec![0; FRAME_BYTES + 1])).await.unwrap_err();
    assert!(odd.to_string().contains("no whole number of pictures"), "{odd}");
    let beyond = detect(&detector, pictures().only(vec![3])).await.unwrap_err();
    assert!(beyond.to_string().contains("asked for number 3"), "{beyond}");
}

#[tokio::test]
async fn cancelling_ends_a_call_and_not_the_detector() {
    let detector = start(1, 1);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let frames = pictures().only((0..1000).map(|n| n % 3).collect());
    // Cancelled from within, after the first frame: a thousand would take minutes.
    let error = detector.detect(frames, OPTIONS, &cancel, &move |_| stop.cancel()).await.unwrap_err();
    assert!(matches!(error, DetectError::Cancelled));
    assert_eq!(detect(&detector, pictures().only(vec![0])).await.unwrap().len(), 1);
}

#[test]
fn a_file_that_changed_since_it_was_opened_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    grown::write(&path, &grown::zeros(81), &serde_json::json!({}));
    let model = ModelFile::open(&path).unwrap();
    grown::write(&path, &grown::zeros(81), &serde_json::json!({"note": "another"}));
    let settings = DetectorSettings { device: DeviceChoice::Cpu, ..DetectorSettings::default() };
    let error = Detector::start(&model, &settings).err().unwrap();
    assert!(
        matches!(error, ModelError::Malformed { .. }) && error.to_string().contains("changed"),
        "{error}"
    );
}

#[test]
fn the_default_weights_fit() {
    let path = infer::weights::default_path().unwrap();
    let model = ModelFile::open(&path).unwrap();
    assert_eq!((model.names.len(), model.names[79].as_str()), (80, "toothbrush"));
}
