//! Pictures as JPEG files, which are always full-range BT.601.

use turbojpeg::{Compressor, Subsamp, YuvPlanesImage};

use super::{Picture, Plane};
use crate::MediaError;
use crate::probe::{Color, Matrix};

/// The quality (1 to 100) of the frames that jobs keep.
pub const JPEG_QUALITY: u8 = 90;

/// Writes pictures as baseline JPEG with 4:2:0 chroma.
pub struct JpegWriter {
    compressor: Compressor,
    recode: Recode,
    planes: [Vec<u8>; 3],
}

fn jpeg_error(e: &turbojpeg::Error) -> MediaError {
    MediaError::Internal(format!("A picture could not be written as JPEG: {e}."))
}

impl JpegWriter {
    /// For pictures of this colour; `quality` from 1 to 100.
    ///
    /// # Errors
    /// [`MediaError::Internal`] when libjpeg-turbo refuses.
    pub fn new(color: &Color, quality: u8) -> Result<Self, MediaError> {
        let mut compressor = Compressor::new().map_err(|e| jpeg_error(&e))?;
        compressor.set_quality(i32::from(quality.clamp(1, 100))).map_err(|e| jpeg_error(&e))?;
        compressor.set_subsamp(Subsamp::Sub2x2).map_err(|e| jpeg_error(&e))?;
        Ok(Self { compressor, recode: Recode::new(color.matrix), planes: Default::default() })
    }

    /// The JPEG file of the visible picture.
    ///
    /// # Errors
    /// [`MediaError::Internal`] when libjpeg-turbo refuses.
    pub fn encode(&mut self, picture: &Picture) -> Result<Vec<u8>, MediaError> {
        let [y, u, v] = picture.planes();
        self.recode.run([y, u, v], &mut self.planes);
        let [y_plane, u_plane, v_plane] = self.planes.each_ref().map(Vec::as_slice);
        let image = YuvPlanesImage {
            y_plane,
            u_plane,
            v_plane,
            width: picture.width() as usize,
            height: picture.height() as usize,
            y_stride: y.width,
            u_stride: u.width,
            v_stride: v.width,
            subsamp: Subsamp::Sub2x2,
        };
        self.compressor.compress_yuv_planes_to_vec(&image).map_err(|e| jpeg_error(&e))
    }
}

/// From limited range and any matrix to full range and BT.601, on 4:2:0 planes as they are.
///
/// Both are linear in R'G'B' and keep greys grey, so Y' only gains shares of U and V, and U and V only mix
/// among themselves: chroma need not be brought to luma's resolution first, as going through RGB would.
///
/// All in 16 bits, which every processor does eight or more at a time; what is close to one is kept as its
/// distance from one, so that nine bits of fraction fit.
struct Recode {
    /// Shares of (U, V) in Y', times 2^9.
    y: [i16; 2],
    /// Shares of (U, V) in U', times 2^9, less one for U itself.
    u: [i16; 2],
    /// Shares of (U, V) in V', times 2^9, less one for V itself.
    v: [i16; 2],
}

/// Bits of fraction of the shares of chroma.
const BITS: i32 = 9;
/// Bits of fraction of luma, and its gain from limited to full range, 255 / 219.
const LUMA_BITS: i32 = 7;
const LUMA_GAIN: u16 = 149;
/// Keeps luma from going below zero on the way; taken off again at the end.
const LUMA_BIAS: i16 = 96;

/// Kr and Kb of a matrix (ITU-R BT.601, BT.709, BT.2020: shares of red and blue in luma).
fn luma_shares(matrix: Matrix) -> (f64, f64) {
    match matrix {
        Matrix::Bt601 => (0.299, 0.114),
        Matrix::Bt709 => (0.2126, 0.0722),
        Matrix::Bt2020 => (0.2627, 0.0593),
    }
}

impl Recode {
    fn new(matrix: Matrix) -> Self {
        let (kr, kb) = luma_shares(matrix);
        let kg = 1.0 - kr - kb;
        let (jr, jb) = luma_shares(Matrix::Bt601);
        // R - Y and B - Y of unit chroma (-0.5 to 0.5), and G - Y from Y = kr R + kg G + kb B.
        let red = [0.0, 2.0 * (1.0 - kr)];
        let blue = [2.0 * (1.0 - kb), 0.0];
        let green = [-kb * blue[0] / kg, -kr * red[1] / kg];
        let fixed = |share: f64| (share * f64::from(1 << BITS)).round() as i16;
        let mut recode = Self { y: [0; 2], u: [0; 2], v: [0; 2] };
        let gain = 255.0 / 224.0;
        for c in 0..2 {
            let luma = jr * red[c] + (1.0 - jr - jb) * green[c] + jb * blue[c];
            let (to_u, to_v) = ((blue[c] - luma) / (2.0 * (1.0 - jb)), (red[c] - luma) / (2.0 * (1.0 - jr)));
            let (is_u, is_v) = if c == 0 { (1.0, 0.0) } else { (0.0, 1.0) };
            recode.y[c] = fixed(luma * gain);
            recode.u[c] = fixed(to_u * gain - is_u);
            recode.v[c] = fixed(to_v * gain - is_v);
        }
        recode
    }

    fn run(&self, [y, u, v]: [Plane<'_>; 3], out: &mut [Vec<u8>; 3]) {
        let half = 1 << (BITS - 1);
        let byte = |value: i16| (value + 128).clamp(0, 255) as u8;
        let base = (LUMA_BIAS << LUMA_BITS) + (1 << (LUMA_BITS - 1)) - 16 * LUMA_GAIN as i16;
        let [out_y, out_u, out_v] = out;
        for (plane, from) in [(&mut *out_y, y), (&mut *out_u, u), (&mut *out_v, v)] {
            plane.resize(from.width * from.height, 0);
        }
        let mut lift = vec![0u16; y.width];
        for row in 0..u.height {
            let to_u = out_u[row * u.width..][..u.width].iter_mut();
            let to_v = out_v[row * v.width..][..v.width].iter_mut();
            let chroma = u.row(row).iter().zip(v.row(row));
            for ((((&cu, &cv), to_u), to_v), lift) in chroma.zip(to_u).zip(to_v).zip(lift.chunks_exact_mut(2))
            {
                let (cu, cv) = (i16::from(cu) - 128, i16::from(cv) - 128);
                *to_u = byte(cu + ((self.u[0] * cu + self.u[1] * cv + half) >> BITS));
                *to_v = byte(cv + ((self.v[0] * cu + self.v[1] * cv + half) >> BITS));
                let share = (self.y[0] * cu + self.y[1] * cv) >> (BITS - LUMA_BITS);
                lift.fill((base + share) as u16);
            }
            for line in 2 * row..(2 * row + 2).min(y.height) {
                let to_y = &mut out_y[line * y.width..][..y.width];
                for ((to, &from), &lift) in to_y.iter_mut().zip(y.row(line)).zip(&lift) {
                    let value = (u16::from(from) * LUMA_GAIN + lift) >> LUMA_BITS;
                    *to = value.saturating_sub(LUMA_BIAS as u16).min(255) as u8;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One 2×2 picture of a colour, as limited-range Y, U, V of `matrix`.
    fn limited(matrix: Matrix, [r, g, b]: [f64; 3]) -> [u8; 3] {
        let (kr, kb) = luma_shares(matrix);
        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
        let (u, v) = ((b - y) / (2.0 * (1.0 - kb)), (r - y) / (2.0 * (1.0 - kr)));
        [16.0 + 219.0 * y, 128.0 + 224.0 * u, 128.0 + 224.0 * v].map(|value| value.round() as u8)
    }

    #[test]
    fn colours_survive_the_change_of_matrix_and_range() {
        for matrix in [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020] {
            for colour in [[0.0; 3], [1.0; 3], [0.5; 3], [0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.9]] {
                let [y, u, v] = limited(matrix, colour);
                let (luma, cu, cv) = ([y; 4], [u], [v]);
                let plane = |data, side| Plane { data, stride: side, width: side, height: side };
                let mut out = Default::default();
                Recode::new(matrix)
                    .run([plane(&luma[..], 2), plane(&cu[..], 1), plane(&cv[..], 1)], &mut out);
                // JFIF: R = Y + 1.402 Cr, G = Y - 0.344136 Cb - 0.714136 Cr, B = Y + 1.772 Cb.
                let [y, cb, cr] =
                    [f64::from(out[0][0]), f64::from(out[1][0]) - 128.0, f64::from(out[2][0]) - 128.0];
                let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
                for (got, wanted) in rgb.iter().zip(colour) {
                    assert!((got - wanted * 255.0).abs() < 3.0, "{matrix:?} {colour:?} became {rgb:?}");
                }
            }
        }
    }
}
