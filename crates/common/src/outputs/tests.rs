use std::process::Command;

use crate::job::{ModelKey, Precision};
use crate::labels::COCO;

use super::*;

fn settings() -> Settings {
    Settings {
        conf: 0.3,
        iou: 0.5,
        max_det: 200,
        classes: vec![],
        every: 1,
        keep_frames: false,
        save_txt: true,
        mp4: true,
        avi: true,
        names: COCO.iter().map(|(_, name)| (*name).to_owned()).collect(),
        model: ModelKey { digest: "ab12".to_owned(), precision: Precision::Fp32 },
    }
}

const VIDEO: VideoFacts<'_> =
    VideoFacts { name: "a \"quoted\" clip.mp4", width: 640, height: 272, frames: 4, told: 0..4 };

fn found(class: u16, score: f32, [min_x, min_y, max_x, max_y]: [f32; 4]) -> Detection {
    Detection { bbox: BoundingBox { min_x, min_y, max_x, max_y }, score, class }
}

fn segments() -> [SegmentDetections; 2] {
    let person = found(0, 0.9, [0.25, 0.5, 0.5, 0.75]);
    // Beyond the right and lower edge; class 11 is COCO's category 13.
    let sign = found(11, 0.05, [0.9, -0.1, 1.2, 1.0 / 3.0]);
    [
        SegmentDetections { first: 0, frames: vec![vec![person, sign], vec![]] },
        SegmentDetections { first: 2, frames: vec![vec![], vec![person]] },
    ]
}

fn seconds(n: u32) -> f64 {
    f64::from(n) / 3.0 - 0.1
}

fn coco() -> String {
    let mut writer = CocoWriter::new(Vec::new(), VIDEO, &settings(), seconds).unwrap();
    segments().iter().for_each(|segment| writer.push(segment).unwrap());
    String::from_utf8(writer.finish().unwrap()).unwrap()
}

#[test]
fn the_coco_file_holds_every_frame_and_every_detection() {
    let file: serde_json::Value = serde_json::from_str(&coco()).unwrap();
    assert_eq!(file["info"]["video"], VIDEO.name);
    assert_eq!(file["info"]["conf"].to_string(), "0.3");
    let images = file["images"].as_array().unwrap();
    assert_eq!(images.len(), 4);
    assert_eq!(
        images[3],
        serde_json::json!({
            "id": 3, "file_name": "frame_3.jpg", "width": 640, "height": 272, "frame": 3, "timestamp": 0.9
        })
    );
    assert_eq!(file["categories"].as_array().unwrap().len(), 80);
    assert_eq!(file["categories"][79], serde_json::json!({"id": 90, "name": "toothbrush"}));
    assert_eq!(
        file["annotations"],
        serde_json::json!([
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [160.0, 136.0, 160.0, 68.0], "area": 10880.0,
             "iscrowd": 0, "score": 0.9},
            {"id": 2, "image_id": 0, "category_id": 13, "bbox": [576.0, 0.0, 64.0, 90.67], "area": 5802.88,
             "iscrowd": 0, "score": 0.05},
            {"id": 3, "image_id": 3, "category_id": 1, "bbox": [160.0, 136.0, 160.0, 68.0], "area": 10880.0,
             "iscrowd": 0, "score": 0.9},
        ])
    );
}

#[test]
fn the_files_do_not_depend_on_how_the_video_was_cut() {
    let [mut whole, tail] = segments();
    whole.frames.extend(tail.frames);
    let mut writer = CocoWriter::new(Vec::new(), VIDEO, &settings(), seconds).unwrap();
    writer.push(&whole).unwrap();
    assert_eq!(String::from_utf8(writer.finish().unwrap()).unwrap(), coco());
}

#[test]
fn a_video_without_detections_is_valid_json_too() {
    let video = VideoFacts { frames: 1, told: 0..1, ..VIDEO };
    let mut writer = CocoWriter::new(Vec::new(), video, &settings(), seconds).unwrap();
    writer.push(&SegmentDetections { first: 0, frames: vec![vec![]] }).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&writer.finish().unwrap()).unwrap();
    assert_eq!(file["annotations"], serde_json::json!([]));
}

#[test]
fn numbers_that_are_none_never_reach_a_file() {
    let broken = found(0, f32::NAN, [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, f32::NAN]);
    let video = VideoFacts { frames: 1, told: 0..1, ..VIDEO };
    let mut writer = CocoWriter::new(Vec::new(), video, &settings(), |_| f64::NAN).unwrap();
    writer.push(&SegmentDetections { first: 0, frames: vec![vec![broken]] }).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&writer.finish().unwrap()).unwrap();
    assert_eq!(file["annotations"][0]["bbox"], serde_json::json!([0.0, 0.0, 640.0, 0.0]));
}

#[test]
fn missing_repeated_and_foreign_segments_are_refused() {
    let [first, second] = segments();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    let coco = || CocoWriter::new(Vec::new(), VIDEO, &settings(), seconds).unwrap();
    assert_eq!(kind(coco().push(&second)), io::ErrorKind::InvalidInput);
    let mut writer = coco();
    writer.push(&first).unwrap();
    assert_eq!(kind(writer.push(&first)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(writer.finish().map(drop)), io::ErrorKind::InvalidInput);
    let unknown = SegmentDetections { first: 0, frames: vec![vec![found(80, 0.5, [0.0; 4])]] };
    assert_eq!(kind(coco().push(&unknown)), io::ErrorKind::InvalidInput);
    let mut table = CsvWriter::new(Vec::new(), VIDEO, &settings(), seconds).unwrap();
    assert_eq!(kind(table.push(&second)), io::ErrorKind::InvalidInput);
    assert_eq!(kind(table.finish().map(drop)), io::ErrorKind::InvalidInput);
}

#[test]
fn the_table_has_one_line_a_detection() {
    let mut settings = settings();
    settings.names[11] = "sign, \"stop\"".to_owned();
    let mut writer = CsvWriter::new(Vec::new(), VIDEO, &settings, seconds).unwrap();
    segments().iter().for_each(|segment| writer.push(segment).unwrap());
    assert_eq!(
        String::from_utf8(writer.finish().unwrap()).unwrap(),
        "frame,pts_seconds,class,score,x_min,y_min,x_max,y_max\n\
         0,-0.100000,person,0.900000,160.00,136.00,320.00,204.00\n\
         0,-0.100000,\"sign, \"\"stop\"\"\",0.050000,576.00,0.00,640.00,90.67\n\
         3,0.900000,person,0.900000,160.00,136.00,320.00,204.00\n"
    );
}

#[test]
fn the_lines_are_json_each() {
    let settings = settings();
    let mut writer = LinesWriter::new(Vec::new(), VIDEO, &settings, seconds);
    segments().iter().for_each(|segment| writer.push(segment).unwrap());
    let text = String::from_utf8(writer.finish().unwrap()).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[1],
        serde_json::json!({
            "frame": 0, "pts_seconds": -0.1, "class": "stop sign", "category_id": 13, "score": 0.05,
            "bbox": [576.0, 0.0, 64.0, 90.67]
        })
    );
}

#[test]
fn a_part_of_the_frames_is_told_of_alone() {
    let video = VideoFacts { told: 2..4, ..VIDEO };
    let [first, second] = segments();
    let mut writer = CocoWriter::new(Vec::new(), video, &settings(), seconds).unwrap();
    assert_eq!(writer.push(&first).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    writer.push(&second).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&writer.finish().unwrap()).unwrap();
    let ids: Vec<_> = file["images"].as_array().unwrap().iter().map(|image| image["id"].clone()).collect();
    assert_eq!(ids, [2, 3]);
    assert_eq!(file["annotations"].as_array().unwrap().len(), 1);
}

#[test]
fn the_text_of_a_frame_has_five_lines_for_each_shown_detection() {
    let detections = [
        found(2, 0.3, [0.588_069_56, -0.01, 1.0, 1e-9]),
        found(0, 0.29, [0.1, 0.1, 0.2, 0.2]),
        found(6, 0.8, [0.5, 0.25, 0.75, 1.5]),
    ];
    let mut settings = settings();
    assert_eq!(
        frame_txt(&settings, &detections),
        "0.58806956\n0.0\n1.0\n0.000000001\n2\n0.5\n0.25\n0.75\n1.0\n6\n"
    );
    settings.classes = vec![6];
    assert_eq!(frame_txt(&settings, &detections), "0.5\n0.25\n0.75\n1.0\n6\n");
    assert_eq!(frame_txt(&settings, &[]), "");
}

#[test]
fn counts_are_of_shown_detections_most_first() {
    let settings = settings();
    let mut counts = ClassCounts::new(&settings);
    let at = |class, score| found(class, score, [0.1, 0.1, 0.2, 0.2]);
    counts.add(&[at(2, 0.9), at(0, 0.5), at(5, 0.1)]);
    counts.add(&[at(2, 0.4), at(1, 0.4), at(90, 0.9)]);
    let named = [("car", 2), ("person", 1), ("bicycle", 1), ("class 90", 1)];
    assert_eq!(counts.most_first(), named.map(|(name, n)| (name.to_owned(), n)));
}

#[test]
fn fixed_decimals_carry_sign_and_zeros() {
    let shown = [Fixed::<2>(5).to_string(), Fixed::<2>(-105).to_string(), Fixed::micros(-1e-9).to_string()];
    assert_eq!(shown, ["0.05", "-1.05", "0.000000"]);
}

#[test]
fn pycocotools_loads_the_coco_file() {
    let script = "
import sys
from pycocotools.coco import COCO
coco = COCO(sys.argv[1])
assert coco.getCatIds(catNms=['stop sign']) == [13], coco.getCatIds()
assert coco.getImgIds() == [0, 1, 2, 3]
assert len(coco.getAnnIds(imgIds=[0])) == 2 and len(coco.getAnnIds(catIds=[1])) == 2
results = coco.loadRes([dict(a) for a in coco.loadAnns(coco.getAnnIds())])
assert len(results.anns) == 3
";
    let there = Command::new("python3").args(["-c", "import pycocotools.coco"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 with pycocotools is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("detections.json");
    std::fs::write(&path, coco()).unwrap();
    let output = Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
