//! Turning and mirroring planes, and padding them to even sizes.

use super::{Plane, PlaneMut};
use crate::probe::Orientation;

/// Pixels on a side of the tiles that a quarter turn works in, so that both source columns and target rows
/// stay in the processor's nearest cache.
const TILE: usize = 32;

/// Writes `from`, turned upright, into the upper left of `to`.
pub(super) fn turn(from: Plane<'_>, to: &mut PlaneMut<'_>, orientation: Orientation) {
    let Orientation { quarter_turns, mirrored } = orientation;
    let (w, h) = (from.width, from.height);
    if quarter_turns % 2 == 0 {
        let upside_down = quarter_turns == 2;
        let reversed = upside_down != mirrored;
        for y in 0..h {
            let row = from.row(if upside_down { h - 1 - y } else { y });
            let out = &mut to.data[y * to.stride..][..w];
            out.copy_from_slice(row);
            if reversed {
                out.reverse();
            }
        }
        return;
    }
    // Target (x, y) is source column y and row x, each counted from the end where flipped.
    let flip_column = quarter_turns == 3;
    let flip_row = flip_column == mirrored;
    for y0 in (0..w).step_by(TILE) {
        for x0 in (0..h).step_by(TILE) {
            for y in y0..w.min(y0 + TILE) {
                let column = if flip_column { w - 1 - y } else { y };
                let x1 = h.min(x0 + TILE);
                let out = &mut to.data[y * to.stride + x0..y * to.stride + x1];
                for (x, pixel) in (x0..x1).zip(out) {
                    let row = if flip_row { h - 1 - x } else { x };
                    *pixel = from.data[row * from.stride + column];
                }
            }
        }
    }
}

/// Repeats the last of `width` columns and of `height` rows of content up to the plane's size.
pub(super) fn pad(plane: &mut PlaneMut<'_>, width: usize, height: usize) {
    if width < plane.width {
        for y in 0..height {
            let row = &mut plane.data[y * plane.stride..][..plane.width];
            let last = row[width - 1];
            row[width..].fill(last);
        }
    }
    for y in height..plane.height {
        let last = (height - 1) * plane.stride;
        plane.data.copy_within(last..last + plane.width, y * plane.stride);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(quarter_turns: u8, mirrored: bool) -> Vec<u8> {
        // 1 2 3
        // 4 5 6
        let source = [1, 2, 3, 4, 5, 6];
        let (w, h) = if quarter_turns % 2 == 1 { (2, 3) } else { (3, 2) };
        let mut out = vec![0; 6];
        turn(
            Plane { data: &source, stride: 3, width: 3, height: 2 },
            &mut PlaneMut { data: &mut out, stride: w, width: w, height: h },
            Orientation { quarter_turns, mirrored },
        );
        out
    }

    #[test]
    fn all_eight_orientations() {
        assert_eq!(turned(0, false), [1, 2, 3, 4, 5, 6]);
        assert_eq!(turned(1, false), [4, 1, 5, 2, 6, 3]);
        assert_eq!(turned(2, false), [6, 5, 4, 3, 2, 1]);
        assert_eq!(turned(3, false), [3, 6, 2, 5, 1, 4]);
        assert_eq!(turned(0, true), [3, 2, 1, 6, 5, 4]);
        assert_eq!(turned(1, true), [1, 4, 2, 5, 3, 6]);
        assert_eq!(turned(2, true), [4, 5, 6, 1, 2, 3]);
        assert_eq!(turned(3, true), [6, 3, 5, 2, 4, 1]);
    }

    #[test]
    fn padding_repeats_the_edge() {
        let mut data = vec![1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0];
        pad(&mut PlaneMut { data: &mut data, stride: 4, width: 4, height: 4 }, 3, 3);
        assert_eq!(data, [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 7, 8, 9, 9]);
    }
}
