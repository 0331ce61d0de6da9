//! Pixels as 4:2:0 stores them: one luma sample a pixel, one pair of chroma samples for two by two of them.
//!
//! Everything is drawn as if in full colour resolution and then subsampled: a chroma sample takes as much of
//! a new colour as its four pixels do.

use draw::Canvas;
use draw::label::Mask;
use draw::layout::Rect;
use draw::palette::Rgb;
use media::picture::PlaneMut;
use media::probe::Matrix;

/// A colour in limited range, 8 bits: Y from 16 to 235, U and V around 128.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Yuv([u8; 3]);

/// How much red and how much blue count for luma.
fn luma_weights(matrix: Matrix) -> [f32; 2] {
    match matrix {
        Matrix::Bt601 => [0.299, 0.114],
        Matrix::Bt709 => [0.2126, 0.0722],
        Matrix::Bt2020 => [0.2627, 0.0593],
    }
}

impl Yuv {
    /// `color` by the matrix with luma weights `red` and `blue` (ITU-T H.273, equations for limited range).
    fn new(color: Rgb, [red, blue]: [f32; 2]) -> Self {
        let [r, g, b] = [color.r, color.g, color.b].map(|value| f32::from(value) / 255.0);
        let y = red * r + (1.0 - red - blue) * g + blue * b;
        let u = (b - y) / (2.0 * (1.0 - blue));
        let v = (r - y) / (2.0 * (1.0 - red));
        Self([sample(16.0 + 219.0 * y), sample(128.0 + 224.0 * u), sample(128.0 + 224.0 * v)])
    }
}

fn sample(value: f32) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

/// The planes of one picture of `width` × `height` visible pixels.
pub(super) struct Planes<'a> {
    planes: [PlaneMut<'a>; 3],
    width: usize,
    height: usize,
    weights: [f32; 2],
}

impl<'a> Planes<'a> {
    pub(super) fn new(planes: [PlaneMut<'a>; 3], width: usize, height: usize, matrix: Matrix) -> Self {
        Self { planes, width, height, weights: luma_weights(matrix) }
    }
}

impl Canvas for Planes<'_> {
    fn width(&self) -> usize {
        self.width
    }

    fn height(&self) -> usize {
        self.height
    }

    /// What reaches the last visible column or row of an odd-sized picture goes on into the padding, which
    /// repeats them.
    fn fill(&mut self, rect: Rect, color: Rgb, opacity: u8) {
        let color = Yuv::new(color, self.weights);
        let [luma, chroma @ ..] = &mut self.planes;
        let end = |end: usize, visible: usize, stored: usize| if end >= visible { stored } else { end };
        let rect = Rect {
            x1: end(rect.x1, self.width, luma.width),
            y1: end(rect.y1, self.height, luma.height),
            ..rect
        };
        if rect.x0 >= rect.x1 || rect.y0 >= rect.y1 {
            return;
        }
        for y in rect.y0..rect.y1 {
            blend_row(&mut row(luma, y)[rect.x0..rect.x1], color.0[0], opacity);
        }
        for (plane, value) in chroma.iter_mut().zip([color.0[1], color.0[2]]) {
            for y in rect.y0 / 2..rect.y1.div_ceil(2) {
                let rows = covered(y, rect.y0, rect.y1);
                let row = row(plane, y);
                let (first, last) = (rect.x0 / 2, rect.x1.div_ceil(2) - 1);
                for x in [first, last] {
                    let part = rows * covered(x, rect.x0, rect.x1);
                    blend_row(&mut row[x..=x], value, quarter(u16::from(opacity) * part));
                    if first == last {
                        break;
                    }
                }
                if first + 1 < last {
                    blend_row(&mut row[first + 1..last], value, quarter(u16::from(opacity) * rows * 2));
                }
            }
        }
    }

    fn blend(&mut self, mask: &Mask, x: usize, y: usize, color: Rgb) {
        let color = Yuv::new(color, self.weights);
        let columns = mask.width().min(self.width.saturating_sub(x));
        let rows = mask.height().min(self.height.saturating_sub(y));
        if columns == 0 || rows == 0 {
            return;
        }
        let [luma, chroma @ ..] = &mut self.planes;
        for j in 0..rows {
            let pixels = &mut row(luma, y + j)[x..x + columns];
            for (pixel, &coverage) in pixels.iter_mut().zip(mask.row(j)) {
                *pixel = mix(*pixel, color.0[0], coverage);
            }
        }
        let coverage = |i: usize, j: usize| -> u16 {
            match (i.checked_sub(x), j.checked_sub(y)) {
                (Some(i), Some(j)) if i < columns && j < rows => u16::from(mask.row(j)[i]),
                _ => 0,
            }
        };
        let [u, v] = chroma;
        for j in y / 2..(y + rows).div_ceil(2) {
            let (u, v) = (row(u, j), row(v, j));
            for i in x / 2..(x + columns).div_ceil(2) {
                let (i2, j2) = (i * 2, j * 2);
                let four =
                    coverage(i2, j2) + coverage(i2 + 1, j2) + coverage(i2, j2 + 1) + coverage(i2 + 1, j2 + 1);
                u[i] = mix(u[i], color.0[1], quarter(four));
                v[i] = mix(v[i], color.0[2], quarter(four));
            }
        }
    }
}

fn row<'r>(plane: &'r mut PlaneMut<'_>, y: usize) -> &'r mut [u8] {
    let start = y * plane.stride;
    &mut plane.data[start..start + plane.width]
}

/// How many of the two pixels that share chroma sample `at` lie in `start..end`.
fn covered(at: usize, start: usize, end: usize) -> u16 {
    u16::from((start..end).contains(&(at * 2))) + u16::from((start..end).contains(&(at * 2 + 1)))
}

/// The mean of four coverages, given their sum (at most 1020).
fn quarter(sum: u16) -> u8 {
    ((sum + 2) / 4) as u8
}

fn blend_row(row: &mut [u8], value: u8, opacity: u8) {
    if opacity == 255 {
        row.fill(value);
    } else {
        row.iter_mut().for_each(|pixel| *pixel = mix(*pixel, value, opacity));
    }
}

fn mix(below: u8, above: u8, opacity: u8) -> u8 {
    let (below, above, opacity) = (u32::from(below), u32::from(above), u32::from(opacity));
    ((below * (255 - opacity) + above * opacity + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use media::picture::Picture;

    fn grey(width: u32, height: u32) -> Picture {
        let mut picture = Picture::new(width, height);
        picture.planes_mut().into_iter().for_each(|plane| plane.data.fill(128));
        picture
    }

    const RED: Rgb = Rgb { r: 255, g: 0, b: 0 };

    #[test]
    fn colours_follow_each_matrix() {
        // Limited-range primaries as the ITU recommendations tabulate them.
        let of = |color, matrix| Yuv::new(color, luma_weights(matrix)).0;
        assert_eq!(of(RED, Matrix::Bt601), [81, 90, 240]);
        assert_eq!(of(RED, Matrix::Bt709), [63, 102, 240]);
        assert_eq!(of(RED, Matrix::Bt2020), [74, 97, 240]);
        assert_eq!(of(Rgb { r: 0, g: 0, b: 255 }, Matrix::Bt709), [32, 240, 118]);
        for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020] {
            assert_eq!(of(Rgb::WHITE, matrix), [235, 128, 128]);
            assert_eq!(of(Rgb { r: 0, g: 0, b: 0 }, matrix), [16, 128, 128]);
        }
    }

    #[test]
    fn chroma_takes_as_much_of_a_colour_as_its_pixels_do() {
        let mut picture = grey(8, 8);
        Planes::new(picture.planes_mut(), 8, 8, Matrix::Bt601).fill(
            Rect { x0: 1, y0: 1, x1: 5, y1: 4 },
            RED,
            255,
        );
        let [y, u, v] = picture.planes_mut();
        assert_eq!((y.data[y.stride], y.data[y.stride + 1], y.data[y.stride + 4]), (128, 81, 81));
        assert_eq!((y.data[1], y.data[4 * y.stride + 1]), (128, 128));
        // Quarter, half, whole and none of (240 - 128).
        let at = |x: usize, y: usize| v.data[y * v.stride + x];
        assert_eq!([at(0, 0), at(1, 0), at(2, 0), at(3, 0)], [156, 184, 156, 128]);
        assert_eq!([at(0, 1), at(1, 1), at(2, 1), at(1, 2)], [184, 240, 184, 128]);
        assert_eq!(u.data[u.stride + 1], 90);
    }

    #[test]
    fn what_reaches_an_odd_edge_goes_on_into_the_padding() {
        let mut picture = grey(5, 3);
        Planes::new(picture.planes_mut(), 5, 3, Matrix::Bt601).fill(
            Rect { x0: 4, y0: 2, x1: 5, y1: 3 },
            RED,
            255,
        );
        let [y, _, v] = picture.planes_mut();
        assert_eq!((y.data[2 * y.stride + 5], y.data[3 * y.stride + 5]), (81, 81));
        assert_eq!(v.data[v.stride + 2], 240);
    }

    #[test]
    fn opacity_and_masks_mix_old_and_new() {
        assert_eq!((mix(0, 255, 0), mix(0, 255, 255), mix(100, 200, 128)), (0, 255, 150));
        let mut picture = grey(4, 4);
        let mask = Mask::new(2, 1, vec![255, 0]);
        let mut canvas = Planes::new(picture.planes_mut(), 4, 4, Matrix::Bt601);
        canvas.blend(&mask, 1, 1, RED);
        canvas.blend(&mask, 3, 3, RED);
        canvas.blend(&mask, 9, 0, RED);
        let [y, _, v] = picture.planes_mut();
        assert_eq!((y.data[y.stride + 1], y.data[y.stride + 2], y.data[3 * y.stride + 3]), (81, 128, 81));
        assert_eq!((v.data[0], v.data[v.stride + 1]), (156, 156));
    }
}
