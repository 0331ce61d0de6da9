//! `boxreel calibrate`, and int8 with what it writes.

use std::fs;

use serde_json::json;

use crate::models::{NAMES, five_classes};
use crate::support::{boxreel, clip, ffmpeg, summary, text, tree};

#[test]
fn calibrated_weights_detect_in_int8() {
    let folder = tempfile::tempdir().unwrap();
    five_classes(folder.path());
    clip(folder.path(), "yard.mp4", 2);
    fs::create_dir(folder.path().join("pictures")).unwrap();
    fs::write(folder.path().join("pictures/readme.txt"), "Not a picture").unwrap();
    ffmpeg(folder.path(), "-f lavfi -i testsrc2=size=320x240 -frames:v 1 pictures/a.png");
    ffmpeg(folder.path(), "-f lavfi -i testsrc=size=200x400 -frames:v 1 pictures/b.JPG");
    let calibrate = |more: &[&str]| {
        let mut command = boxreel(folder.path());
        command.args(["calibrate", "--images", "pictures", "--model", "five.safetensors"]);
        command.args(["--out", "ready.safetensors"]).args(more).output().unwrap()
    };
    let output = calibrate(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("ready.safetensors is ready for --precision int8"));
    let ready = fs::read(folder.path().join("ready.safetensors")).unwrap();
    let output = calibrate(&["--quiet", "--limit", "2"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(fs::read(folder.path().join("ready.safetensors")).unwrap() == ready, "the same pictures");

    let detect = |model: &str| {
        let mut command = boxreel(folder.path());
        command.args(["detect", "yard.mp4", "--no-video", "--json", "--device", "cpu"]);
        command.args(["--precision", "int8", "--model", model]).output().unwrap()
    };
    let output = detect("five.safetensors");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("boxreel: int8 needs "), "{}", text(&output.stderr));
    if !infer::device::multiplies_int8() {
        eprintln!("skipped: this processor does not multiply 8-bit integers");
        return;
    }
    let output = detect("ready.safetensors");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(summary(&output)["sources"][0]["counts"], json!({NAMES[2]: 2}));
}

#[test]
fn what_cannot_be_calibrated_is_said() {
    let folder = tempfile::tempdir().unwrap();
    five_classes(folder.path());
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::create_dir(folder.path().join("bad")).unwrap();
    fs::write(folder.path().join("bad/letter.jpg"), "Dear reader").unwrap();
    for (images, model, out, said) in [
        ("nowhere", "five.safetensors", "out", "nowhere is no folder"),
        ("empty", "five.safetensors", "out", "empty holds no pictures"),
        ("bad", "five.safetensors", "out", "bad/letter.jpg cannot be read"),
        ("bad", "bad/letter.jpg", "out", "letter.jpg is no usable weights file"),
        ("bad", "five.safetensors", "nowhere/out", "nowhere for --out does not exist"),
    ] {
        let mut command = boxreel(folder.path());
        command.args(["calibrate", "--quiet", "--images", images, "--model", model, "--out", out]);
        let output = command.output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(said) && errors.starts_with("boxreel: "), "{said}: {errors}");
        assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    }
    assert!(!tree(folder.path()).iter().any(|name| name.contains("out")));
}
