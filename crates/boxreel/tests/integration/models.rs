//! A model of a user's own: its number of classes and their names come from its file, everywhere.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{boxreel, clip, summary, text};

/// The five classes; the model below sees the third, once in every picture.
pub const NAMES: [&str; 5] = ["hard hat", "forklift", "Gabelstapler, \"groß\"", "pallet", "ladder"];
/// Where it sees it: the first default box of the last map, of 261 pixels of 300 around the middle.
pub const SEEN: [f64; 4] = [0.065, 0.065, 0.935, 0.935];

/// Writes a model of five classes whose weights are zero but for the biases that decide.
pub fn five_classes(folder: &Path) -> PathBuf {
    let outputs = NAMES.len() + 1;
    let boxes = [4, 6, 6, 6, 4, 4];
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    let names = serde_json::to_string(&NAMES).unwrap();
    header.insert("__metadata__".to_owned(), json!({"classes": outputs.to_string(), "names": names}));
    let mut biases = Vec::new();
    for (name, shape) in infer::ssd300::state_shapes(outputs) {
        let (dtype, width) = if shape.len() == 4 { ("F16", 2) } else { ("F32", 4) };
        let end = at + shape.iter().product::<usize>() * width;
        if let Some(map) = name.strip_prefix("conf.").and_then(|name| name.strip_suffix(".bias")) {
            // Outputs lie by class, then by default box; background comes first.
            let map: usize = map.parse().unwrap();
            let mut values = vec![0.0f32; boxes[map] * outputs];
            values[..boxes[map]].fill(20.0);
            if map == 5 {
                values[3 * boxes[5]] = 23.0;
            }
            biases.push((at, values));
        }
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let path = folder.join("five.safetensors");
    let mut file = File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let data = 8 + header.len() as u64;
    // What is not written is zero.
    file.set_len(data + at as u64).unwrap();
    for (at, values) in biases {
        file.seek(SeekFrom::Start(data + at as u64)).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
    }
    path
}

#[test]
fn five_classes_appear_in_every_result() {
    let folder = tempfile::tempdir().unwrap();
    let model = five_classes(folder.path());
    clip(folder.path(), "yard.mp4", 3);
    let output = boxreel(folder.path())
        .args(["detect", "yard.mp4", "--save-txt", "--save-frames", "--no-avi", "--json", "--model"])
        .arg(&model)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(summary(&output)["sources"][0]["counts"], json!({NAMES[2]: 3}));
    let results = folder.path().join("runs/detect/predict/yard");

    for n in 0..3 {
        let txt = fs::read_to_string(results.join(format!("txts/infer{n}.txt"))).unwrap();
        let lines: Vec<_> = txt.lines().collect();
        assert_eq!((lines.len(), lines[4]), (5, "2"), "{txt}");
        for (line, expected) in lines.iter().zip(SEEN) {
            assert!((line.parse::<f64>().unwrap() - expected).abs() < 1e-4, "{txt}");
        }
        // The box and its label are drawn on the kept picture.
        let kept = |kind: &str| fs::read(results.join(format!("{kind}_{n}.jpg"))).unwrap();
        assert_ne!(kept("src_frame/frame"), kept("tar_frame/tar"));
    }
    let coco: Value = serde_json::from_slice(&fs::read(results.join("detections.json")).unwrap()).unwrap();
    let categories: Vec<_> = (1..).zip(NAMES).map(|(id, name)| json!({"id": id, "name": name})).collect();
    assert_eq!(coco["categories"], json!(categories));
    let annotations = coco["annotations"].as_array().unwrap();
    assert!(annotations.len() == 3 && annotations.iter().all(|one| one["category_id"] == 3));
    let csv = fs::read_to_string(results.join("detections.csv")).unwrap();
    assert_eq!(csv.matches("\"Gabelstapler, \"\"groß\"\"\"").count(), 3, "{csv}");
}

#[test]
fn its_classes_are_those_one_can_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = five_classes(folder.path());
    clip(folder.path(), "yard.mp4", 2);
    let run = |classes: &str| {
        let mut command = boxreel(folder.path());
        command.args(["detect", "yard.mp4", "--no-video", "--json", "--classes", classes, "--model"]);
        command.arg(&model).output().unwrap()
    };
    let pallets = run("pallet");
    assert!(pallets.status.success(), "{}", text(&pallets.stderr));
    assert_eq!(summary(&pallets)["sources"][0]["counts"], json!({}));
    let person = run("person");
    assert_eq!(person.status.code(), Some(2));
    assert!(text(&person.stderr).contains("it knows: hard hat, forklift"), "{}", text(&person.stderr));
}

#[test]
fn a_file_that_is_no_model_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "yard.mp4", 2);
    fs::write(folder.path().join("letter.pt"), "Dear reader").unwrap();
    fs::write(folder.path().join("evil.pt"), b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.").unwrap();
    for (model, said) in [
        ("letter.pt", "letter.pt is no usable weights file"),
        ("evil.pt", "a pickle that torch.save did not write"),
        ("none.safetensors", "none.safetensors can't be read"),
    ] {
        let output = boxreel(folder.path()).args(["detect", "yard.mp4", "--model", model]).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(said) && !errors.contains("panicked"), "{errors}");
    }
}
