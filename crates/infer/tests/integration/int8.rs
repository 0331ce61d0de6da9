//! Calibration, and what int8 gives with it.

use std::path::Path;

use common::detection::Detection;
use common::job::Precision;
use infer::calibration::Scales;
use infer::device::multiplies_int8;
use infer::ssd300::Ssd300;
use infer::weights::StateDict;
use infer::{Detector, DetectorSettings, Device, DeviceChoice, Frames, ModelError, ModelFile, NmsOptions};
use infer::{PrecisionChoice, ssd300};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::grown;

const PICTURES: [&str; 5] = ["one", "two", "three", "four", "five"];

fn pictures(names: &[&str]) -> Vec<u8> {
    names.iter().flat_map(|name| grown::picture(name)).collect()
}

fn start(path: &Path, precision: Precision, batch: usize, threads: usize) -> Result<Detector, ModelError> {
    let settings = DetectorSettings {
        device: DeviceChoice::Cpu,
        precision: PrecisionChoice::Exactly(precision),
        batch: Some(batch),
        threads: Some(threads),
    };
    Detector::start(&ModelFile::open(path).unwrap(), &settings)
}

async fn detect(detector: &Detector, names: &[&str]) -> Vec<Vec<Detection>> {
    let options = NmsOptions { iou: 0.5, max_det: 200 };
    let frames = Frames::of_bytes(pictures(names));
    detector.detect(frames, options, &CancellationToken::new(), &|_| {}).await.unwrap()
}

#[test]
fn a_picture_gives_the_same_bytes_in_any_batch() {
    let Some(path) = grown::int8_weights() else { return };
    let dict = StateDict::read(path).unwrap();
    let network = |batch| Ssd300::load(&dict, Device::Cpu, Precision::Int8, batch).unwrap();
    let outputs = |network: &Ssd300, names: &[&str]| {
        let raw = network.forward(&pictures(names), &|| true).unwrap();
        let of =
            |picture| (0..ssd300::CELLS.len()).flat_map(|scale| raw.cells(picture, scale).to_vec()).collect();
        (0..names.len()).map(of).collect::<Vec<Vec<f32>>>()
    };
    let one = network(1);
    let alone: Vec<Vec<f32>> = PICTURES.iter().flat_map(|name| outputs(&one, &[name])).collect();
    assert!(alone[0] != alone[1]);
    // Ordered for batches of this many, and given fewer and more.
    for batch in [1, 4] {
        let network = network(batch);
        for given in [1, 2, 4, 5] {
            let together: Vec<_> =
                PICTURES.chunks(given).flat_map(|names| outputs(&network, names)).collect();
            assert!(together == alone, "{given} pictures where {batch} are usual");
        }
    }
}

#[tokio::test]
async fn threads_and_batches_change_nothing() {
    let Some(path) = grown::int8_weights() else { return };
    let alone = start(path, Precision::Int8, 1, 1).unwrap();
    assert_eq!(alone.key().precision, Precision::Int8);
    assert!(alone.describe().contains("int8"), "{}", alone.describe());
    let expected = detect(&alone, &PICTURES).await;
    assert!(expected.iter().all(|found| found.len() > 20), "a comparison of nothing says nothing");
    let together = start(path, Precision::Int8, 3, 2).unwrap();
    assert_eq!(detect(&together, &PICTURES).await, expected);
    assert_eq!(detect(&together, &["three", "one"]).await, [expected[2].clone(), expected[0].clone()]);
}

/// The header, and the bytes of the tensors.
fn parts(file: &[u8]) -> (serde_json::Value, &[u8]) {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert!(length.is_multiple_of(8), "the tensors' bytes are aligned");
    (serde_json::from_slice(&file[8..8 + length]).unwrap(), &file[8 + length..])
}

#[test]
fn calibrating_leaves_the_tensors_as_they_are_and_makes_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calibrated.safetensors");
    let file = grown::calibrated(&["one", "two"]);
    std::fs::write(&path, &file).unwrap();
    let (original, calibrated) =
        (ModelFile::open(grown::weights()).unwrap(), ModelFile::open(&path).unwrap());
    assert_ne!(calibrated.digest, original.digest);
    assert_eq!(calibrated.names, original.names);

    let before = std::fs::read(grown::weights()).unwrap();
    let length = u64::from_le_bytes(before[..8].try_into().unwrap()) as usize;
    let mut expected: serde_json::Value = serde_json::from_slice(&before[8..8 + length]).unwrap();
    let (header, data) = parts(&file);
    assert!(data == &before[8 + length..]);
    let scales: serde_json::Value =
        serde_json::from_str(header["__metadata__"]["int8"].as_str().unwrap()).unwrap();
    expected["__metadata__"]["int8"] = header["__metadata__"]["int8"].clone();
    assert_eq!(header, expected);
    assert_eq!(scales.as_object().unwrap().len(), 53);
    assert!(scales.as_object().unwrap().values().all(|scale| scale.as_f64().unwrap() > 0.0));

    // Nothing depends on the order of the pictures; and what was calibrated can be calibrated again.
    assert!(grown::calibrated(&["two", "one"]) == file);
    assert!(grown::calibrated(&["two", "three"]) != file);
    let again = calibrated.with_scales(&Scales::default()).unwrap();
    assert_eq!(parts(&again).0["__metadata__"]["int8"], "{}");
    assert!(parts(&again).1 == data);
}

#[test]
fn weights_without_scales_are_refused_for_int8_only() {
    let refusal = |path: &Path| start(path, Precision::Int8, 1, 1).err().unwrap().to_string();
    let never = refusal(grown::weights());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    grown::write(&path, &grown::zeros(81), &json!({"int8": r#"{"additional_blocks.0.0": 0.1}"#}));
    let damaged = refusal(&path);
    if multiplies_int8() {
        assert!(never.contains("the model has none; measure them with boxreel calibrate"), "{never}");
        assert!(damaged.contains("of no use (missing: additional_blocks.0.3 and 51 more)"), "{damaged}");
    } else {
        assert!(never.contains("avx512_vnni") && damaged.contains("avx512_vnni"), "{never} {damaged}");
    }
    start(&path, Precision::Fp32, 1, 1).unwrap();
    // The network itself does not run without them, either.
    let dict = StateDict::read(grown::weights()).unwrap();
    let error = Ssd300::load(&dict, Device::Cpu, Precision::Int8, 1).err().unwrap().to_string();
    assert!(error.contains("int8 needs the scales of the network's activations"), "{error}");
}
