//! The first layers: from a picture's bytes to 75×75 cells of 64 channels.

use tch::{Kind, Tensor};

use super::backbone::PREFIX;
use super::conv::{Conv, Loader, Map, Site, Weights};
use super::quantization::Steps;
use super::{FRAME_BYTES, Names, NetworkError, Quantization, Range, Run, SIDE, Target, folded};
use crate::device::Precision;
use crate::native;
use crate::weights::Array;

/// ImageNet's mean and standard deviation of R, G and B, which the backbone was trained with.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The convolution's outputs, stride and padding.
const OUTPUTS: usize = 64;
const STRIDE: usize = 2;
const PADDING: usize = 3;
/// Pixels along each side of the padded picture.
const PADDED: usize = SIDE + 2 * PADDING;
/// Sides of the convolution's output, and of what pooling leaves of it.
const WIDE: usize = 150;
const POOLED: usize = 75;

pub(crate) fn names() -> Names {
    Names { conv: format!("{PREFIX}.0"), norm: format!("{PREFIX}.1") }
}

/// A 7×7 convolution of stride 2, ReLU, and the maximum of every 3×3 at stride 2.
pub(crate) struct Stem {
    conv: Conv,
    input: Input,
}

/// What the convolution takes.
enum Input {
    /// Normalised pixels: (x/255 − mean) / deviation, as one multiplication and one addition.
    Normalised { scale: Tensor, shift: Tensor, target: Target },
    /// Pixels as they are, which are bytes already: the normalisation is in the weights and the bias.
    Pixels,
}

impl Stem {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self, NetworkError> {
        let weights = folded(loader.dict, &names())?;
        let output = loader.activation(&names().conv, Range::Positive)?;
        if loader.target.precision == Precision::Int8 {
            let site = Site { side: PADDED, stride: STRIDE, padding: 0 };
            let conv = Conv::new(&on_pixels(&weights), site, loader.target, output)?;
            return Ok(Self { conv, input: Input::Pixels });
        }
        let site = Site { side: SIDE, stride: STRIDE, padding: PADDING };
        let scale: Vec<f32> = DEVIATION.iter().map(|deviation| 1.0 / (255.0 * deviation)).collect();
        let shift: Vec<f32> = MEAN.iter().zip(DEVIATION).map(|(mean, deviation)| -mean / deviation).collect();
        let target = loader.target;
        let input = Input::Normalised {
            scale: Tensor::f_from_slice(&scale)?.f_to_device(target.torch())?,
            shift: Tensor::f_from_slice(&shift)?.f_to_device(target.torch())?,
            target,
        };
        Ok(Self { conv: Conv::new(&weights, site, target, output)?, input })
    }

    pub(crate) fn share(&self) -> Self {
        let input = match &self.input {
            Input::Normalised { scale, shift, target } => Input::Normalised {
                scale: scale.shallow_clone(),
                shift: shift.shallow_clone(),
                target: *target,
            },
            Input::Pixels => Input::Pixels,
        };
        Self { conv: self.conv.share(), input }
    }

    /// Takes n × 300 × 300 × 3 bytes, gives n×64×75×75.
    pub(crate) fn forward(&self, pictures: &[u8], run: &Run<'_>) -> Result<Map, NetworkError> {
        let n = (pictures.len() / FRAME_BYTES) as i64;
        match &self.input {
            Input::Normalised { scale, shift, target } => {
                let side = SIDE as i64;
                let x = Tensor::f_from_data_size(pictures, &[n, side, side, 3], Kind::Uint8)?
                    .f_to_device(target.torch())?
                    .f_to_kind(Kind::Float)?;
                let x = x.f_mul(scale)?.f_add(shift)?;
                // Channels stay last in memory; libtorch's axes are batch, channel, row, column all the same.
                let x = x.f_to_kind(target.kind())?.f_permute([0, 3, 1, 2])?;
                let Map { tensor, quantization } =
                    self.conv.relu(&Map { tensor: x, quantization: None }, run)?;
                let tensor = tensor.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
                Ok(Map { tensor, quantization })
            }
            Input::Pixels => {
                let size = [n, PADDED as i64, PADDED as i64, 3];
                let x = Tensor::f_from_data_size(&padded(pictures), &size, Kind::Uint8)?;
                let x = Map {
                    tensor: x.f_permute([0, 3, 1, 2])?,
                    quantization: Some(Quantization { scale: 1.0, zero: 0 }),
                };
                let Map { tensor, quantization } = self.conv.relu(&x, run)?;
                let pooled = pooled(native::bytes(&tensor.f_permute([0, 2, 3, 1])?));
                let size = [n, POOLED as i64, POOLED as i64, OUTPUTS as i64];
                let tensor = Tensor::f_from_data_size(&pooled, &size, Kind::Uint8)?;
                Ok(Map { tensor: tensor.f_permute([0, 3, 1, 2])?, quantization })
            }
        }
    }
}

/// The convolution as it works on pixels: w·((x/255 − mean)/deviation) = w'·x − w'·255·mean, w' = w/(255·deviation). The
/// bias takes the mean back by the weights as int8 has them, so that what rounding does to a weight is multiplied by how
/// far a pixel is from the mean, and not by the whole pixel.
fn on_pixels(weights: &Weights) -> Weights {
    let Array { shape, data } = &weights.weight;
    let per_colour = shape[2] * shape[3];
    let colours = data.chunks_exact(per_colour).zip(DEVIATION.into_iter().cycle());
    let scaled = colours.flat_map(|(row, deviation)| row.iter().map(move |w| w / (255.0 * deviation)));
    let weight = Array { shape: shape.clone(), data: scaled.collect() };
    let Steps { steps, scales } = Steps::of(&weight);
    let of_the_mean = |steps: &[i8]| -> f64 {
        let colours = steps.chunks_exact(per_colour).zip(MEAN);
        colours
            .map(|(steps, mean)| 255.0 * f64::from(mean) * steps.iter().copied().map(f64::from).sum::<f64>())
            .sum()
    };
    let outputs = steps.chunks_exact(3 * per_colour).zip(scales);
    let bias = weights
        .bias
        .iter()
        .zip(outputs)
        .map(|(bias, (steps, scale))| (f64::from(*bias) - f64::from(scale) * of_the_mean(steps)) as f32);
    Weights { bias: bias.collect(), weight }
}

/// Pictures (n × 300 × 300 × 3) with three pixels of the mean colour around (n × 306 × 306 × 3): the padding that the
/// normalisation makes 0, to within half a level of 255.
fn padded(pictures: &[u8]) -> Vec<u8> {
    const ROW: usize = PADDED * 3;
    let mean = MEAN.map(|mean| (255.0 * mean).round() as u8);
    let mut padded = mean.repeat(pictures.len() / FRAME_BYTES * PADDED * PADDED);
    let rows = padded
        .chunks_exact_mut(ROW * PADDED)
        .flat_map(|picture| picture.chunks_exact_mut(ROW).skip(PADDING).take(SIDE));
    for (row, pixels) in rows.zip(pictures.chunks_exact(SIDE * 3)) {
        row[PADDING * 3..][..SIDE * 3].copy_from_slice(pixels);
    }
    padded
}

/// The maximum of every 3×3 cells at stride 2: n × 150 × 150 × 64 to n × 75 × 75 × 64. What lies outside counts as 0, the
/// least that a ReLU leaves.
fn pooled(wide: &[u8]) -> Vec<u8> {
    const ROW: usize = WIDE * OUTPUTS;
    let maximum = |into: &mut [u8], other: &[u8]| {
        into.iter_mut().zip(other).for_each(|(into, other)| *into = (*into).max(*other));
    };
    let mut pooled = vec![0; wide.len() / (WIDE * ROW) * POOLED * POOLED * OUTPUTS];
    let mut tall = [0; ROW];
    for (wide, pooled) in
        wide.chunks_exact(WIDE * ROW).zip(pooled.chunks_exact_mut(POOLED * POOLED * OUTPUTS))
    {
        let rows = wide.as_chunks::<ROW>().0;
        for (y, pooled) in pooled.chunks_exact_mut(POOLED * OUTPUTS).enumerate() {
            tall.copy_from_slice(&rows[2 * y]);
            maximum(&mut tall, &rows[2 * y + 1]);
            if y > 0 {
                maximum(&mut tall, &rows[2 * y - 1]);
            }
            let cells = tall.as_chunks::<OUTPUTS>().0;
            for (x, pooled) in pooled.chunks_exact_mut(OUTPUTS).enumerate() {
                pooled.copy_from_slice(&cells[2 * x]);
                maximum(pooled, &cells[2 * x + 1]);
                if x > 0 {
                    maximum(pooled, &cells[2 * x - 1]);
                }
            }
        }
    }
    pooled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_lie_in_a_frame_of_the_mean_colour() {
        let pictures: Vec<u8> = (0..2 * FRAME_BYTES).map(|i| (i / 7 % 256) as u8).collect();
        let padded = padded(&pictures);
        for (picture, padded) in
            pictures.chunks_exact(FRAME_BYTES).zip(padded.chunks_exact(PADDED * PADDED * 3))
        {
            for (at, pixel) in padded.chunks_exact(3).enumerate() {
                let (x, y) = ((at % PADDED).checked_sub(PADDING), (at / PADDED).checked_sub(PADDING));
                match (x, y) {
                    (Some(x @ ..SIDE), Some(y @ ..SIDE)) => {
                        assert_eq!(pixel, &picture[(y * SIDE + x) * 3..][..3], "{x} {y}");
                    }
                    _ => assert_eq!(pixel, [124, 116, 104], "{x:?} {y:?}"),
                }
            }
        }
        assert_eq!(padded.len(), 2 * PADDED * PADDED * 3);
    }

    #[test]
    fn pooling_is_libtorchs() {
        let wide: Vec<u8> =
            (0..2 * WIDE * WIDE * OUTPUTS).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
        let size = [2, WIDE as i64, WIDE as i64, OUTPUTS as i64];
        let x = Tensor::from_data_size(&wide, &size, Kind::Uint8).to_kind(Kind::Float).permute([0, 3, 1, 2]);
        let expected = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false).permute([0, 2, 3, 1]);
        let expected = expected.to_kind(Kind::Uint8).contiguous();
        assert!(pooled(&wide) == native::bytes(&expected));
    }
}
