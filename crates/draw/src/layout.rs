//! Where the lines of a box go, in whole pixels. Knows no colour, no text and no kind of picture.

use common::detection::BoundingBox;

/// A rectangle of pixels; `x1` and `y1` are the first column and row outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub x0: usize,
    /// First row.
    pub y0: usize,
    /// Column after the last.
    pub x1: usize,
    /// Row after the last.
    pub y1: usize,
}

impl Rect {
    /// The pixels of `bbox` in a picture of `width` × `height`, clipped to it, at least one pixel. None when
    /// the box lies outside, or a number of it is none.
    #[must_use]
    pub fn of(bbox: &BoundingBox, width: usize, height: usize) -> Option<Self> {
        let (x0, x1) = span(bbox.min_x, bbox.max_x, width)?;
        let (y0, y1) = span(bbox.min_y, bbox.max_y, height)?;
        Some(Self { x0, y0, x1, y1 })
    }

    /// Columns.
    #[must_use]
    pub fn width(self) -> usize {
        self.x1.saturating_sub(self.x0)
    }

    /// Rows.
    #[must_use]
    pub fn height(self) -> usize {
        self.y1.saturating_sub(self.y0)
    }
}

/// The pixels between two fractions of `size`, whichever is smaller.
fn span(a: f32, b: f32, size: usize) -> Option<(usize, usize)> {
    if a.is_nan() || b.is_nan() || size == 0 {
        return None;
    }
    let (low, high) = (a.min(b), a.max(b));
    if high < 0.0 || low > 1.0 {
        return None;
    }
    let pixel = |fraction: f32| (f64::from(fraction.clamp(0.0, 1.0)) * size as f64).round() as usize;
    let start = pixel(low).min(size - 1);
    Some((start, pixel(high).clamp(start + 1, size)))
}

/// Sizes that follow from the picture's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metrics {
    /// Pixels a box's line is thick: 4 at 1080p, never under 2.
    pub thickness: usize,
    /// How large labels are; none where the picture has no room for a readable one.
    pub label: Option<LabelSize>,
}

/// Sizes of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelSize {
    /// Height of the font's em square in pixels.
    pub em: usize,
    /// The widest a label may be, plate included.
    pub max_width: usize,
}

impl Metrics {
    const SMALLEST_EM: usize = 14;

    /// The sizes for a picture of `width` × `height` pixels, turned either way alike.
    #[must_use]
    pub fn new(width: u32, height: u32) -> Self {
        let (width, height) = (width as usize, height as usize);
        let around = width + height;
        let em = ((around + 55) / 110).max(Self::SMALLEST_EM);
        let room = width >= 5 * em && height >= 4 * em;
        Self {
            thickness: ((around + 400) / 800).max(2),
            label: room.then_some(LabelSize { em, max_width: width }),
        }
    }

    /// The lines around `rect` in a picture of `width` × `height`: half outside, half inside of it, all
    /// within the picture.
    #[must_use]
    pub fn frame(&self, rect: Rect, width: usize, height: usize) -> Frame {
        let outside = self.thickness / 2;
        let outer = Rect {
            x0: rect.x0.saturating_sub(outside),
            y0: rect.y0.saturating_sub(outside),
            x1: (rect.x1 + outside).min(width),
            y1: (rect.y1 + outside).min(height),
        };
        Frame { outer, thickness: self.thickness }
    }
}

/// The four lines of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What the lines enclose, themselves included.
    pub outer: Rect,
    /// Pixels a line is thick.
    pub thickness: usize,
}

impl Frame {
    /// Top, bottom, left and right line. They do not overlap; a box too small for a hole is filled by them.
    #[must_use]
    pub fn sides(self) -> [Rect; 4] {
        ring(self.outer, self.thickness)
    }

    /// The one-pixel lines just outside, as far as they are within the picture.
    #[must_use]
    pub fn contour(self, width: usize, height: usize) -> [Rect; 4] {
        let Rect { x0, y0, x1, y1 } = self.outer;
        let (left, right) = (x0.saturating_sub(1), (x1 + 1).min(width));
        [
            Rect { x0: left, y0: y0.saturating_sub(1), x1: right, y1: y0 },
            Rect { x0: left, y0: y1, x1: right, y1: (y1 + 1).min(height) },
            Rect { x0: left, y0, x1: x0, y1 },
            Rect { x0: x1, y0, x1: right, y1 },
        ]
    }
}

fn ring(outer: Rect, thickness: usize) -> [Rect; 4] {
    let Rect { x0, y0, x1, y1 } = outer;
    let top = (y0 + thickness).min(y1);
    let bottom = y1.saturating_sub(thickness).max(top);
    let left = (x0 + thickness).min(x1);
    let right = x1.saturating_sub(thickness).max(left);
    [
        Rect { x0, y0, x1, y1: top },
        Rect { x0, y0: bottom, x1, y1 },
        Rect { x0, y0: top, x1: left, y1: bottom },
        Rect { x0: right, y0: top, x1, y1: bottom },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bbox(min_x: f32, min_y: f32, max_x: f32, max_y: f32) -> BoundingBox {
        BoundingBox { min_x, min_y, max_x, max_y }
    }

    #[test]
    fn boxes_become_pixels_clipped_to_the_picture() {
        let of = |b: BoundingBox| Rect::of(&b, 200, 100);
        assert_eq!(of(bbox(0.25, 0.1, 0.5, 0.9)), Some(Rect { x0: 50, y0: 10, x1: 100, y1: 90 }));
        assert_eq!(of(bbox(-0.5, -7.0, 1.5, f32::INFINITY)), Some(Rect { x0: 0, y0: 0, x1: 200, y1: 100 }));
        assert_eq!(of(bbox(0.5, 0.9, 0.25, 0.1)), of(bbox(0.25, 0.1, 0.5, 0.9)), "corners swapped");
        assert_eq!(of(bbox(0.5, 0.5, 0.5, 0.5)), Some(Rect { x0: 100, y0: 50, x1: 101, y1: 51 }), "a point");
        assert_eq!(of(bbox(1.0, 1.0, 1.0, 1.0)), Some(Rect { x0: 199, y0: 99, x1: 200, y1: 100 }), "corner");
        assert_eq!(of(bbox(-0.3, 0.2, -0.1, 0.3)), None, "left of it");
        assert_eq!(of(bbox(0.1, 1.1, 0.2, 1.2)), None, "below it");
        assert_eq!(of(bbox(f32::NAN, 0.2, 0.1, 0.3)), None);
    }

    #[test]
    fn lines_grow_with_the_picture_and_are_never_under_two_pixels() {
        let thickness = |w, h| Metrics::new(w, h).thickness;
        assert_eq!([thickness(1, 1), thickness(640, 272), thickness(1280, 720)], [2, 2, 3]);
        assert_eq!([thickness(1920, 1080), thickness(1080, 1920), thickness(3840, 2160)], [4, 4, 8]);
    }

    #[test]
    fn labels_are_left_out_where_they_would_cover_the_picture() {
        assert_eq!(Metrics::new(1, 1).label, None);
        assert_eq!(Metrics::new(1000, 20).label, None);
        assert_eq!(Metrics::new(40, 400).label, None);
        assert_eq!(Metrics::new(320, 240).label.map(|l| l.em), Some(14));
        assert_eq!(Metrics::new(1920, 1080).label.map(|l| l.em), Some(27));
    }

    #[test]
    fn the_lines_of_a_box_are_disjoint_and_inside_the_picture_for_any_box() {
        for (width, height) in [(1, 1), (2, 3), (17, 9)] {
            let metrics = Metrics::new(17, 9);
            for x0 in 0..width {
                for x1 in x0 + 1..=width {
                    for y0 in 0..height {
                        for y1 in y0 + 1..=height {
                            let frame = metrics.frame(Rect { x0, y0, x1, y1 }, width, height);
                            let mut hit = vec![0; width * height];
                            for side in frame.sides().into_iter().chain(frame.contour(width, height)) {
                                for y in side.y0..side.y1 {
                                    (side.x0..side.x1).for_each(|x| hit[y * width + x] += 1);
                                }
                            }
                            assert!(hit.iter().all(|&n| n <= 1), "{frame:?} in {width}×{height}");
                            assert_eq!(hit[frame.outer.y0 * width + frame.outer.x0], 1);
                        }
                    }
                }
            }
        }
    }
}
