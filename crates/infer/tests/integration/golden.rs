//! The network against `tests/golden/reference.py`, which knows nothing of it.

use common::detection::Detection;
use common::job::Precision;
use infer::ssd300::boxes::{COUNT, default_boxes, index};
use infer::ssd300::nms::{NmsOptions, detections};
use infer::ssd300::{BOXES_PER_CELL, CELLS, RawHeads, Ssd300};
use infer::{Device, weights};
use serde::Deserialize;

use crate::grown;

#[derive(Deserialize)]
struct Golden {
    name: String,
    iou: f32,
    max_det: u32,
    largest_loc: f32,
    largest_conf: f32,
    samples: Vec<Sample>,
    detections: Vec<Expected>,
}

#[derive(Deserialize)]
struct Sample {
    #[serde(rename = "box")]
    index: usize,
    loc: [f32; 4],
    classes: Vec<usize>,
    conf: Vec<f32>,
}

#[derive(Deserialize)]
struct Expected {
    class: u16,
    score: f32,
    #[serde(rename = "box")]
    bbox: [f32; 4],
}

fn golden() -> Vec<Golden> {
    serde_json::from_str(include_str!("../golden/golden.json")).unwrap()
}

/// The raw outputs of each default box in the published order: offsets and logits.
fn by_box(raw: &RawHeads, picture: usize) -> Vec<([f32; 4], Vec<f32>)> {
    let mut all = vec![([0.0; 4], Vec::new()); COUNT];
    for scale in 0..CELLS.len() {
        let (boxes, classes) = (BOXES_PER_CELL[scale], raw.classes());
        for (cell, values) in raw.cells(picture, scale).chunks_exact(boxes * (4 + classes)).enumerate() {
            for kind in 0..boxes {
                let offsets = values[kind * 4..][..4].try_into().unwrap();
                let logits = values[boxes * 4 + kind * classes..][..classes].to_vec();
                all[index(scale, cell, kind)] = (offsets, logits);
            }
        }
    }
    all
}

/// The largest differences of loc and conf, each relative to the reference's largest value.
fn deviation(golden: &Golden, raw: &RawHeads, picture: usize) -> (f32, f32) {
    let ours = by_box(raw, picture);
    let (mut loc, mut conf) = (0.0f32, 0.0f32);
    for sample in &golden.samples {
        let (offsets, logits) = &ours[sample.index];
        for (a, b) in offsets.iter().zip(sample.loc) {
            loc = loc.max((a - b).abs());
        }
        for (class, b) in sample.classes.iter().zip(&sample.conf) {
            conf = conf.max((logits[*class] - b).abs());
        }
    }
    assert!(golden.samples.len() > 150, "the reference samples every map");
    (loc / golden.largest_loc, conf / golden.largest_conf)
}

fn matches(ours: &Detection, expected: &Expected) -> bool {
    let b = ours.bbox;
    let near = |a: f32, b: f32| (a - b).abs() < 1e-4;
    ours.class == expected.class
        && near(ours.score, expected.score)
        && [b.min_x, b.min_y, b.max_x, b.max_y].into_iter().zip(expected.bbox).all(|(a, b)| near(a, b))
}

/// The same detections in the same order; neighbours whose scores differ by less than the tolerance may
/// have changed places.
fn assert_same(ours: &[Detection], golden: &Golden) {
    assert_eq!(ours.len(), golden.detections.len(), "picture {}", golden.name);
    let mut taken = vec![false; ours.len()];
    for (at, detection) in ours.iter().enumerate() {
        let partner = golden.detections.iter().enumerate().position(|(i, expected)| {
            !taken[i]
                && matches(detection, expected)
                && (golden.detections[at].score - expected.score).abs() < 1e-4
        });
        let partner = partner.unwrap_or_else(|| panic!("picture {}: {at} is {detection:?}", golden.name));
        taken[partner] = true;
    }
}

fn network(precision: Precision, batch: usize) -> Ssd300 {
    let path = match precision {
        Precision::Int8 => grown::int8_weights().unwrap(),
        _ => grown::weights(),
    };
    let dict = weights::StateDict::read(path).unwrap();
    Ssd300::load(&dict, Device::Cpu, precision, batch).unwrap()
}

#[test]
fn fp32_agrees_with_the_reference_to_1e_4() {
    let golden = golden();
    let pictures: Vec<u8> = golden.iter().flat_map(|golden| grown::picture(&golden.name)).collect();
    let raw = network(Precision::Fp32, 2).forward(&pictures, &|| true).unwrap();
    let defaults = default_boxes();
    for (picture, golden) in golden.iter().enumerate() {
        let (loc, conf) = deviation(golden, &raw, picture);
        println!("picture {}: loc deviates by {loc:.1e}, conf by {conf:.1e}", golden.name);
        assert!(loc < 1e-4 && conf < 1e-4, "loc deviates by {loc}, conf by {conf}");
        let options = NmsOptions { iou: golden.iou, max_det: golden.max_det };
        assert_same(&detections(&raw, picture, &defaults, options).unwrap(), golden);
    }
}

/// How far the raw outputs of the first picture are off, of 1; its strongest detections must be found all the same.
fn coarse(precision: Precision) -> (f32, f32) {
    let golden = &golden()[0];
    let raw = network(precision, 1).forward(&grown::picture(&golden.name), &|| true).unwrap();
    let (loc, conf) = deviation(golden, &raw, 0);
    println!("{precision}: loc deviates by {loc:.1e}, conf by {conf:.1e}");
    let options = NmsOptions { iou: golden.iou, max_det: golden.max_det };
    let ours = detections(&raw, 0, &default_boxes(), options).unwrap();
    let found = golden.detections[..20].iter().filter(|expected| {
        let near = |a: f32, b: f32| (a - b).abs() < 0.02;
        ours.iter().any(|d| {
            let b = [d.bbox.min_x, d.bbox.min_y, d.bbox.max_x, d.bbox.max_y];
            d.class == expected.class && b.into_iter().zip(expected.bbox).all(|(a, b)| near(a, b))
        })
    });
    let found = found.count();
    assert!(found >= 18, "{found} of the 20 strongest detections");
    (loc, conf)
}

/// Every layer rounds to 8 bits of mantissa (2^-9 relative): over some forty layers deep that leaves a few
/// hundredths of the largest output.
#[test]
fn bf16_agrees_with_the_reference_to_0_05() {
    let (loc, conf) = coarse(Precision::Bf16);
    assert!(loc < 0.05 && conf < 0.05, "loc deviates by {loc}, conf by {conf}");
}

/// Every layer rounds to 255 steps of the whole range, which is coarser than bf16's rounding but for the largest values.
#[test]
fn int8_agrees_with_the_reference_to_0_05() {
    if grown::int8_weights().is_none() {
        return;
    }
    let (loc, conf) = coarse(Precision::Int8);
    assert!(loc < 0.05 && conf < 0.05, "loc deviates by {loc}, conf by {conf}");
}
