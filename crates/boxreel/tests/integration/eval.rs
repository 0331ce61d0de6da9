//! `boxreel eval`, on two pictures and a model that is right by design.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::models::{NAMES, SEEN, five_classes};
use crate::support::{boxreel, ffmpeg, summary, text};

/// Two pictures, each with one object of the class that the model sees, where it sees it; in the second, there is
/// another object, which the model misses.
fn data(folder: &Path) -> Value {
    fs::create_dir(folder.join("pictures")).unwrap();
    ffmpeg(folder, "-f lavfi -i testsrc2=size=320x240 -frames:v 1 pictures/a.png");
    ffmpeg(folder, "-f lavfi -i testsrc=size=200x400 -frames:v 1 pictures/b.jpg");
    let seen = |image: u32, width: f64, height: f64| {
        let [x, y, right, bottom] = SEEN;
        let bbox = [x * width, y * height, (right - x) * width, (bottom - y) * height];
        json!({"id": image, "image_id": image, "category_id": 70, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
    };
    let missed =
        json!({"id": 9, "image_id": 2, "category_id": 80, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0});
    json!({
        "images": [
            {"id": 2, "file_name": "b.jpg", "width": 200, "height": 400},
            {"id": 1, "file_name": "a.png", "width": 320, "height": 240},
        ],
        "categories": [{"id": 70, "name": NAMES[2]}, {"id": 80, "name": NAMES[3]}, {"id": 90, "name": "unicorn"}],
        "annotations": [seen(1, 320.0, 240.0), seen(2, 200.0, 400.0), missed],
    })
}

fn eval(folder: &Path, annotations: &Value, more: &[&str]) -> Output {
    fs::write(folder.join("truth.json"), annotations.to_string()).unwrap();
    boxreel(folder)
        .args(["eval", "--images", "pictures", "--annotations", "truth.json", "--model", "five.safetensors"])
        .args(["--device", "cpu"])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn figures_and_results_are_those_of_the_pictures() {
    let folder = tempfile::tempdir().unwrap();
    five_classes(folder.path());
    let annotations = data(folder.path());
    let output = eval(folder.path(), &annotations, &["--out", "found.json", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let figures = summary(&output);
    // Of two classes with objects, one is found perfectly.
    for key in ["ap", "ap50", "ap75", "ar"] {
        assert!((figures[key].as_f64().unwrap() - 0.5).abs() < 1e-9, "{figures}");
    }
    assert_eq!(figures["images"], 2);
    assert!(figures["images_per_second"].as_f64().unwrap() > 0.0);
    let classes: Vec<_> = figures["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|class| (class["name"].as_str().unwrap(), class["objects"].clone(), class["ap50"].as_f64()))
        .collect();
    assert_eq!(classes, [(NAMES[2], json!(2), Some(1.0)), (NAMES[3], json!(1), Some(0.0))]);
    let notes = figures["notes"].to_string();
    assert!(notes.contains("3 of the model's classes") && notes.contains("unicorn"), "{notes}");

    let found: Value = serde_json::from_slice(&fs::read(folder.path().join("found.json")).unwrap()).unwrap();
    let found = found.as_array().unwrap();
    let kinds: Vec<_> =
        found.iter().map(|one| (one["image_id"].clone(), one["category_id"].clone())).collect();
    assert_eq!(kinds, [(json!(1), json!(70)), (json!(2), json!(70))]);
    assert_eq!(found[0]["bbox"], json!([20.8, 15.6, 278.4, 208.8]));
    assert!(found[0]["score"].as_f64().unwrap() > 0.9);

    // People get a table, and one picture when they ask for one.
    let output = eval(folder.path(), &annotations, &["--limit", "1", "--precision", "fp32"]);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(table.contains("AP 1.000  AP50 1.000  AP75 1.000  AR 1.000  (1 pictures"), "{table}");
    assert!(table.contains(NAMES[2]) && !table.contains(NAMES[3]), "{table}");
    let said = text(&output.stderr);
    assert!(said.contains("5 classes") && said.contains("count as not found: unicorn"), "{said}");
}

#[test]
fn what_is_wrong_with_the_input_is_said() {
    let folder = tempfile::tempdir().unwrap();
    five_classes(folder.path());
    let good = data(folder.path());
    let change = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed
    };
    for (annotations, more, said) in [
        (json!("hello"), &[][..], "truth.json is no COCO instances file that can be read"),
        (json!({"images": []}), &[], "lists no images"),
        (change("/annotations", json!([])), &[], "lists no annotations"),
        (
            change("/images/0/file_name", json!("c.jpg")),
            &[],
            "1 of 2 pictures are not in pictures, the first is c.jpg",
        ),
        (
            change("/images/0/width", json!(400)),
            &[],
            "b.jpg has 200×400 pixels, and the annotations are of one of 400×400",
        ),
        (change("/images/0/width", json!(0)), &[], "gives image 2 no width and height"),
        (change("/images/0/id", json!(1)), &[], "gives two images the id 1"),
        (change("/annotations/0/bbox", json!(null)), &[], "gives annotation 1 no bbox"),
        (change("/categories", json!([{"id": 1, "name": "unicorn"}])), &[], "none of the model's classes"),
        (good.clone(), &["--images", "nowhere"], "nowhere is no folder"),
        (good.clone(), &["--annotations", "none.json"], "none.json"),
        (good.clone(), &["--out", "nowhere/found.json"], "nowhere for --out does not exist"),
        (good.clone(), &["--out", "pictures"], "pictures is a folder"),
        (good.clone(), &["--model", "truth.json"], "truth.json is no usable weights file"),
        (good.clone(), &["--precision", "fp16"], "fp16 needs a CUDA device"),
    ] {
        let mut arguments = vec!["--quiet"];
        arguments.extend(more);
        let mut command = boxreel(folder.path());
        fs::write(folder.path().join("truth.json"), annotations.to_string()).unwrap();
        // A later argument may stand for an earlier one here.
        let defaults =
            [("--images", "pictures"), ("--annotations", "truth.json"), ("--model", "five.safetensors")];
        command.arg("eval").args(&arguments).args(["--device", "cpu"]);
        for (name, value) in defaults.iter().filter(|(name, _)| !more.contains(name)) {
            command.args([name, value]);
        }
        let output = command.output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(said) && errors.starts_with("boxreel: "), "{said}: {errors}");
        assert!(errors.trim_end().lines().count() == 1 && !errors.contains("panicked"), "{errors}");
        assert!(output.stdout.is_empty());
    }
    let usage = boxreel(folder.path()).args(["eval", "--images", "pictures"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("--annotations"));
    let none = eval(folder.path(), &good, &["--limit", "0"]);
    assert_eq!(none.status.code(), Some(2));
}
