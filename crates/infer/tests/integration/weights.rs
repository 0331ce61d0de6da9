//! Weights files that don't fit are refused in words that help.

use infer::{ModelError, ModelFile};
use serde_json::{Value, json};

use crate::grown::{self, Dict};

fn open(dict: &Dict, metadata: &Value) -> Result<ModelFile, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    grown::write(&path, dict, metadata);
    ModelFile::open(&path)
}

fn open_bytes(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    ModelFile::open(&path).unwrap_err().to_string()
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let mut dict = grown::zeros(81);
    dict.remove("conf.3.bias").unwrap();
    dict.remove("feature_extractor.feature_extractor.4.0.bn1.running_var").unwrap();
    dict.insert("loc.0.bias".to_owned(), ("F32", vec![2, 8], vec![0; 64]));
    dict.insert("classifier.weight".to_owned(), ("F32", vec![1], vec![0; 4]));
    // Left by training, and harmless.
    dict.insert("additional_blocks.0.1.num_batches_tracked".to_owned(), ("I64", vec![], vec![0; 8]));
    let error = open(&dict, &json!({})).unwrap_err();
    assert!(matches!(error, ModelError::Misfit { .. }));
    let text = error.to_string();
    for part in [
        "missing: conf.3.bias, feature_extractor.feature_extractor.4.0.bn1.running_var",
        "of another shape: loc.0.bias ([2, 8] instead of [16])",
        "unknown: classifier.weight",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("num_batches_tracked"), "{text}");
}

#[test]
fn another_network_is_not_listed_tensor_by_tensor() {
    let dict = Dict::from([("backbone.conv1.weight".to_owned(), ("F32", vec![1], vec![0; 4]))]);
    let text = open(&dict, &json!({})).unwrap_err().to_string();
    assert!(text.contains("none of its 289 tensors") && text.contains("backbone.conv1.weight"), "{text}");
}

#[test]
fn names_come_from_the_file() {
    let names = json!({"names": r#"["cat","dog"]"#});
    assert_eq!(open(&grown::zeros(3), &names).unwrap().names, ["cat", "dog"]);
    let coco = open(&grown::zeros(81), &json!({})).unwrap().names;
    assert_eq!((coco.len(), coco[2].as_str()), (80, "car"));
    let text = open(&grown::zeros(3), &json!({})).unwrap_err().to_string();
    assert!(text.contains("does not name them"), "{text}");
    let text = open(&grown::zeros(3), &json!({"classes": "3", "names": r#"["cat"]"#})).unwrap_err();
    assert!(text.to_string().contains("names 1 classes but has outputs for 2"), "{text}");
}

#[test]
fn tensors_that_share_their_bytes_are_refused() {
    // One range for everything: a file of 40 kB would become 90 MB of weights.
    let mut header = serde_json::Map::new();
    for (name, shape) in infer::ssd300::state_shapes(81) {
        let bytes = shape.iter().product::<usize>() * 4;
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&header);
    bytes.resize(bytes.len() + 12_000_000, 0);
    assert!(open_bytes(&bytes).contains("its tensors overlap"));
}

#[test]
fn a_damaged_file_is_refused() {
    let missing = ModelFile::open(std::path::Path::new("/nowhere/model.safetensors")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/model.safetensors can't be read"), "{missing}");
    assert!(open_bytes(b"").contains("shorter than a safetensors header"));
    assert!(open_bytes(b"PK\x03\x04 no archive").contains("damaged or cut short"));
    assert!(open_bytes(b"\x04\0\0\0\0\0\0\0nope").contains("its header is not JSON"));
    // A header that speaks of bytes that are not there.
    let header = br#"{"loc.0.bias":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    assert!(open_bytes(&bytes).contains("cut short"));

    let mut dict = grown::zeros(81);
    dict.insert("loc.0.bias".to_owned(), ("F32", vec![16], [0, 0, 0xc0, 0x7f].repeat(16)));
    assert!(open(&dict, &json!({})).unwrap_err().to_string().contains("not finite"));
    dict.insert("loc.0.bias".to_owned(), ("I64", vec![16], vec![0; 128]));
    assert!(open(&dict, &json!({})).unwrap_err().to_string().contains("stored as I64"));
    dict.insert("loc.0.bias".to_owned(), ("F8_E4M3", vec![16], vec![0; 16]));
    assert!(open(&dict, &json!({})).unwrap_err().to_string().contains("not read: only F16"));
    dict.insert("loc.0.bias".to_owned(), ("F32", vec![16], vec![0; 60]));
    assert!(open(&dict, &json!({})).unwrap_err().to_string().contains("another length"));
}
