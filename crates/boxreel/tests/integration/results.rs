//! What a run leaves.

use std::fs;

use serde_json::Value;

use crate::support::{boxreel, clip, ffmpeg, pixels, probe, summary, text, tree};

#[test]
fn a_video_comes_back_annotated_with_its_detections_as_data() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "street.mp4", 70);
    let output = boxreel(folder.path())
        .args([
            "detect",
            "street.mp4",
            "--save-txt",
            "--save-frames",
            "--every",
            "35",
            "--conf",
            "0.05",
            "--json",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary = summary(&output);
    assert_eq!(summary["sources"][0]["status"], "POSTPROCESSING_COMPLETE");
    assert_eq!(summary["sources"][0]["frames"], 70);

    let results = folder.path().join("runs/detect/predict/street");
    for file in ["street.mp4", "street.avi"] {
        let file = results.join(file);
        assert_eq!(probe(&file, 'v', "nb_read_packets"), "70", "{}", file.display());
        assert_eq!(probe(&file, 'v', "width,height"), "320\n240");
        assert_ne!(probe(&file, 'a', "codec_name"), "", "the sound is gone from {}", file.display());
        pixels(&file);
    }
    assert_eq!(probe(&results.join("street.mp4"), 'v', "codec_name"), "h264");
    assert_eq!(probe(&results.join("street.mp4"), 'v', "duration"), "2.800000");
    assert_eq!(probe(&results.join("street.avi"), 'v', "codec_name"), "mpeg4");
    for n in 0..70 {
        assert!(results.join(format!("txts/infer{n}.txt")).is_file());
        assert!(results.join(format!("src_frame/frame_{n}.jpg")).is_file());
        assert!(results.join(format!("tar_frame/tar_{n}.jpg")).is_file());
    }
    let coco: Value = serde_json::from_slice(&fs::read(results.join("detections.json")).unwrap()).unwrap();
    assert_eq!(coco["images"].as_array().unwrap().len(), 70);
    assert_eq!(coco["categories"].as_array().unwrap().last().unwrap()["id"], 90);
    for annotation in coco["annotations"].as_array().unwrap() {
        assert!(annotation["score"].as_f64().unwrap() >= 0.05);
    }
    let csv = fs::read_to_string(results.join("detections.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + coco["annotations"].as_array().unwrap().len());
    assert!(tree(folder.path()).iter().all(|path| !path.contains(".boxreel") && !path.ends_with(".tmp")));
}

#[test]
fn the_next_run_gets_a_folder_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "a.mp4", 3);
    for _ in 0..2 {
        let output =
            boxreel(folder.path()).args(["detect", "a.mp4", "--no-avi", "--quiet"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
    }
    let runs = folder.path().join("runs/detect");
    assert!(runs.join("predict/a/a.mp4").is_file() && runs.join("predict2/a/a.mp4").is_file());
    assert!(!runs.join("predict/a/a.avi").exists());

    let output = boxreel(folder.path())
        .args(["detect", "a.mp4", "--no-video", "--exist-ok", "--quiet"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(tree(&runs.join("predict")), ["a", "a/detections.csv", "a/detections.json"]);
}

#[test]
fn held_boxes_do_not_depend_on_where_the_video_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    // Keyframes every 50 frames put a cut where no frame is detected.
    ffmpeg(
        folder.path(),
        "-f lavfi -i testsrc2=size=160x120:rate=25:duration=6 -c:v libx264 -g 75 -keyint_min 75 -sc_threshold 0 a.mp4",
    );
    let output = boxreel(folder.path())
        .args(["detect", "a.mp4", "--no-video", "--every", "60", "--conf", "0.05", "--quiet"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json = fs::read(folder.path().join("runs/detect/predict/a/detections.json")).unwrap();
    let coco: Value = serde_json::from_slice(&json).unwrap();
    let ids: Vec<_> = coco["images"].as_array().unwrap().iter().map(|image| image["id"].clone()).collect();
    let boxes = |frame: usize| {
        let found =
            coco["annotations"].as_array().unwrap().iter().filter(|one| one["image_id"] == ids[frame]);
        found.map(|one| (one["bbox"].clone(), one["score"].clone())).collect::<Vec<_>>()
    };
    for (frame, detected) in [(59, 0), (74, 60), (75, 60), (119, 60), (149, 120)] {
        assert_eq!(boxes(frame), boxes(detected), "frame {frame} holds the boxes of frame {detected}");
    }
    assert!(!boxes(60).is_empty(), "a test over no boxes says nothing");
}

#[test]
fn wrong_usage_says_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), "a.mp4", 3);
    for (arguments, said) in [
        (&["detect", "a.mp4", "--classes", "person,unicorn"][..], "unicorn"),
        (&["detect", "a.mp4", "--conf", "1.5"], "0 to 1"),
        (&["detect"], "SOURCE"),
        (&["detect", "a.mp4", "--device", "abacus"], "abacus"),
    ] {
        let output = boxreel(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
    }
    assert_eq!(tree(folder.path()), ["a.mp4"]);
}
