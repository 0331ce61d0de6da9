//! The 8732 default boxes, and how the network's offsets move them.

use common::detection::BoundingBox;

use super::{BOXES_PER_CELL, CELLS};

/// Default boxes of a picture.
pub const COUNT: usize = 8732;

/// Sides of the boxes of each map in pixels of the 300×300 input; the last bounds the sixth map's.
const SIZES: [f64; 7] = [21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0];
/// Pixels from cell to cell of each map.
const STEPS: [f64; 6] = [8.0, 16.0, 32.0, 64.0, 100.0, 300.0];
/// Aspect ratios of each map's boxes beside 1.
const RATIOS: [&[f64]; 6] = [&[2.0], &[2.0, 3.0], &[2.0, 3.0], &[2.0, 3.0], &[2.0], &[2.0]];
const INPUT: f64 = super::SIDE as f64;
/// What the offsets were divided by in training: the centre's, and the size's.
const CENTRE_VARIANCE: f32 = 0.1;
const SIZE_VARIANCE: f32 = 0.2;

/// A box by its centre and size, in fractions of the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DefaultBox {
    /// Centre from the left.
    pub cx: f32,
    /// Centre from the top.
    pub cy: f32,
    /// Width.
    pub w: f32,
    /// Height.
    pub h: f32,
}

impl DefaultBox {
    /// The box moved by the network's offsets (SSD, equation 2, inverted):
    /// centre + 0.1·offset·size, size·exp(0.2·offset). Not clamped to the picture.
    #[must_use]
    pub fn moved(self, [x, y, w, h]: [f32; 4]) -> BoundingBox {
        let (cx, cy) = (self.cx + x * CENTRE_VARIANCE * self.w, self.cy + y * CENTRE_VARIANCE * self.h);
        let (w, h) = (self.w * (w * SIZE_VARIANCE).exp(), self.h * (h * SIZE_VARIANCE).exp());
        BoundingBox { min_x: cx - w / 2.0, min_y: cy - h / 2.0, max_x: cx + w / 2.0, max_y: cy + h / 2.0 }
    }
}

/// All default boxes in the published order: map, kind of box, row, column.
#[must_use]
pub fn default_boxes() -> Vec<DefaultBox> {
    let mut boxes = Vec::with_capacity(COUNT);
    for (scale, cells) in CELLS.into_iter().enumerate() {
        let per_side = INPUT / STEPS[scale];
        let (size, next) = (SIZES[scale] / INPUT, SIZES[scale + 1] / INPUT);
        let between = (size * next).sqrt();
        let mut kinds = vec![(size, size), (between, between)];
        for ratio in RATIOS[scale] {
            let (long, short) = (size * ratio.sqrt(), size / ratio.sqrt());
            kinds.extend([(long, short), (short, long)]);
        }
        for (w, h) in kinds {
            for (row, column) in (0..cells).flat_map(|row| (0..cells).map(move |column| (row, column))) {
                let fraction = |value: f64| value.clamp(0.0, 1.0) as f32;
                boxes.push(DefaultBox {
                    cx: fraction((column as f64 + 0.5) / per_side),
                    cy: fraction((row as f64 + 0.5) / per_side),
                    w: fraction(w),
                    h: fraction(h),
                });
            }
        }
    }
    boxes
}

/// The published index of a default box: `kind` of `BOXES_PER_CELL` at `cell` (row · cells + column) of `scale`.
#[must_use]
pub fn index(scale: usize, cell: usize, kind: usize) -> usize {
    let before: usize = (0..scale).map(|s| CELLS[s] * CELLS[s] * BOXES_PER_CELL[s]).sum();
    before + kind * CELLS[scale] * CELLS[scale] + cell
}

/// Intersection over union of two boxes.
#[must_use]
pub fn overlap(a: &BoundingBox, b: &BoundingBox) -> f32 {
    let width = (a.max_x.min(b.max_x) - a.min_x.max(b.min_x)).max(0.0);
    let height = (a.max_y.min(b.max_y) - a.min_y.max(b.min_y)).max(0.0);
    let area = |b: &BoundingBox| (b.max_x - b.min_x) * (b.max_y - b.min_y);
    let both = width * height;
    both / (area(a) + area(b) - both)
}

/// The part of a box that lies in the picture.
#[must_use]
pub fn clamped(b: BoundingBox) -> BoundingBox {
    BoundingBox {
        min_x: b.min_x.clamp(0.0, 1.0),
        min_y: b.min_y.clamp(0.0, 1.0),
        max_x: b.max_x.clamp(0.0, 1.0),
        max_y: b.max_y.clamp(0.0, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_8732_in_the_published_order() {
        let boxes = default_boxes();
        assert_eq!(boxes.len(), COUNT);
        let close = |b: DefaultBox, cx: f32, cy: f32, w: f32, h: f32| {
            let off = [b.cx - cx, b.cy - cy, b.w - w, b.h - h];
            assert!(off.iter().all(|d| d.abs() < 1e-6), "{b:?} is not ({cx}, {cy}, {w}, {h})");
        };
        // First cell of the first map, its neighbour to the right, the second kind, the ratio 2:1.
        close(boxes[0], 0.5 * 8.0 / 300.0, 0.5 * 8.0 / 300.0, 0.07, 0.07);
        close(boxes[1], 1.5 * 8.0 / 300.0, 0.5 * 8.0 / 300.0, 0.07, 0.07);
        let between = (0.07f32 * 0.15).sqrt();
        close(boxes[1444], 0.5 * 8.0 / 300.0, 0.5 * 8.0 / 300.0, between, between);
        close(boxes[2 * 1444], 0.5 * 8.0 / 300.0, 0.5 * 8.0 / 300.0, 0.07 * 2f32.sqrt(), 0.07 / 2f32.sqrt());
        // The last map has one cell; the widest of its boxes are clamped to the picture.
        close(boxes[8728], 0.5, 0.5, 0.87, 0.87);
        close(boxes[8730], 0.5, 0.5, 1.0, 0.87 / 2f32.sqrt());
        close(boxes[8731], 0.5, 0.5, 0.87 / 2f32.sqrt(), 1.0);
    }

    #[test]
    fn an_index_leads_to_its_map_kind_and_cell() {
        assert_eq!(index(0, 0, 0), 0);
        assert_eq!(index(0, 39, 1), 1444 + 39);
        assert_eq!(index(1, 0, 0), 5776);
        assert_eq!(index(5, 0, 3), COUNT - 1);
    }

    #[test]
    fn offsets_move_by_variances() {
        let b = DefaultBox { cx: 0.5, cy: 0.4, w: 0.2, h: 0.1 };
        let still = b.moved([0.0; 4]);
        assert!((still.min_x - 0.4).abs() < 1e-6 && (still.max_y - 0.45).abs() < 1e-6);
        let moved = b.moved([1.0, -1.0, 5.0 * 2f32.ln(), 0.0]);
        // The centre moves by a tenth of the size; 0.2 · 5 ln 2 doubles the width.
        assert!((moved.min_x - (0.52 - 0.2)).abs() < 1e-6, "{moved:?}");
        assert!((moved.max_x - (0.52 + 0.2)).abs() < 1e-6, "{moved:?}");
        assert!((moved.min_y - (0.39 - 0.05)).abs() < 1e-6, "{moved:?}");
    }

    #[test]
    fn overlap_is_intersection_over_union() {
        let b = |min_x, min_y, max_x, max_y| BoundingBox { min_x, min_y, max_x, max_y };
        assert!((overlap(&b(0.0, 0.0, 0.2, 0.2), &b(0.1, 0.0, 0.3, 0.2)) - 1.0 / 3.0).abs() < 1e-6);
        assert!(overlap(&b(0.0, 0.0, 0.2, 0.2), &b(0.3, 0.3, 0.4, 0.4)) == 0.0);
    }
}
