use common::detection::BoundingBox;
use draw::Canvas;
use draw::layout::Rect;
use draw::palette::class_color;
use media::probe::Matrix;

use super::*;

const COLOR: Color = Color { matrix: Matrix::Bt709, primaries: 1, transfer: 1 };

fn names() -> Vec<String> {
    ["person", "bicycle", "car"].map(str::to_owned).to_vec()
}

fn found(class: u16, score: f32, [min_x, min_y, max_x, max_y]: [f32; 4]) -> Detection {
    Detection { bbox: BoundingBox { min_x, min_y, max_x, max_y }, score, class }
}

fn grey(width: u32, height: u32) -> Picture {
    let mut picture = Picture::new(width, height);
    picture.planes_mut().into_iter().for_each(|plane| plane.data.fill(126));
    picture
}

fn drawn(width: u32, height: u32, detections: &[Detection]) -> Picture {
    let mut picture = grey(width, height);
    Painter::new(&names(), width, height, COLOR).draw(&mut picture, detections);
    picture
}

fn luma(picture: &mut Picture, x: usize, y: usize) -> u8 {
    let [plane, ..] = picture.planes_mut();
    plane.data[y * plane.stride + x]
}

fn class_luma(class: u16) -> u8 {
    let mut picture = grey(2, 2);
    let whole = Rect { x0: 0, y0: 0, x1: 2, y1: 2 };
    Planes::new(picture.planes_mut(), 2, 2, COLOR.matrix).fill(whole, class_color(class), 255);
    luma(&mut picture, 0, 0)
}

/// All pixels of the stored planes, without the padding of their rows.
fn content(picture: &mut Picture) -> Vec<u8> {
    let rows = |plane: &media::picture::PlaneMut<'_>| -> Vec<u8> {
        plane
            .data
            .chunks(plane.stride)
            .take(plane.height)
            .flat_map(|row| row[..plane.width].to_vec())
            .collect()
    };
    picture.planes_mut().iter().flat_map(rows).collect()
}

#[test]
fn a_box_has_its_classes_colour_on_its_edges_and_leaves_its_inside_alone() {
    let mut picture = drawn(400, 300, &[found(2, 0.9, [0.25, 0.4, 0.75, 0.8])]);
    let color = class_luma(2);
    for (x, y) in [(100, 200), (299, 200), (200, 239), (299, 121)] {
        assert_eq!(luma(&mut picture, x, y), color, "at {x}, {y}");
    }
    for (x, y) in [(200, 180), (105, 125), (50, 50), (350, 280)] {
        assert_eq!(luma(&mut picture, x, y), 126, "at {x}, {y}");
    }
}

#[test]
fn the_label_is_a_plate_with_text_above_the_box() {
    let mut picture = drawn(400, 300, &[found(0, 0.87, [0.25, 0.4, 0.75, 0.8])]);
    let color = class_luma(0);
    assert_eq!(luma(&mut picture, 101, 110), color, "the plate left of the text");
    let dark = (100..200).flat_map(|x| (100..119).map(move |y| (x, y)));
    assert!(dark.filter(|&(x, y)| luma(&mut picture, x, y) < 80).count() > 50, "ink on it");
}

#[test]
fn a_label_without_room_above_goes_inside() {
    let mut picture = drawn(400, 300, &[found(0, 0.87, [0.25, 0.0, 0.75, 0.8])]);
    assert_eq!(luma(&mut picture, 102, 9), class_luma(0));
}

#[test]
fn the_strongest_is_on_top_whatever_the_order() {
    let [strong, weak] = [found(0, 0.9, [0.2, 0.3, 0.6, 0.8]), found(1, 0.4, [0.2, 0.3, 0.6, 0.8])];
    let mut one = drawn(400, 300, &[strong, weak]);
    let mut other = drawn(400, 300, &[weak, strong]);
    assert_eq!(luma(&mut one, 80, 200), class_luma(0));
    assert_eq!(content(&mut one), content(&mut other));
    let equal = Detection { score: 0.9, ..weak };
    assert_eq!(luma(&mut drawn(400, 300, &[strong, equal]), 80, 200), class_luma(0), "first of equals");
}

#[test]
fn any_picture_and_any_box_can_be_drawn() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, 0.5, 1.0, 2.0];
    let mut detections = vec![found(u16::MAX, f32::NAN, [0.1, 0.1, 0.9, 0.9])];
    for a in odd {
        for b in odd {
            detections.push(found(1, a, [a, b, b, a]));
            detections.push(found(0, b, [a, a, b, b]));
        }
    }
    for (width, height) in [(1, 1), (1, 40), (3, 2), (65, 53), (70, 52), (301, 203)] {
        drawn(width, height, &detections);
    }
}

#[test]
fn a_picture_of_one_pixel_becomes_its_boxs_colour() {
    let mut picture = drawn(1, 1, &[found(2, 0.9, [0.0, 0.0, 1.0, 1.0])]);
    assert_eq!(luma(&mut picture, 0, 0), class_luma(2));
    assert_eq!(luma(&mut picture, 1, 1), class_luma(2), "and so does its padding");
}

#[test]
fn nothing_found_changes_nothing() {
    let outside = found(0, 0.9, [1.5, 0.2, 1.8, 0.4]);
    assert_eq!(content(&mut drawn(65, 53, &[outside])), content(&mut grey(65, 53)));
    assert_eq!(content(&mut drawn(65, 53, &[])), content(&mut grey(65, 53)));
}
