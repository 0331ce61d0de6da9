//! Real numbers held in bytes: value = scale · (byte − zero), as in Jacob et al., "Quantization and Training of Neural
//! Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR 2018), equation 1.

use crate::weights::Array;

/// What values a layer hands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// Those that a ReLU leaves.
    Positive,
    /// Any.
    Signed,
}

/// How bytes stand for the values of one activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quantization {
    /// What a step is worth.
    pub(crate) scale: f32,
    /// The byte that stands for 0.
    pub(crate) zero: u8,
}

impl Quantization {
    /// Steps of `scale`, on both sides of 0 where values are of both signs.
    pub(crate) fn new(scale: f32, range: Range) -> Self {
        let zero = match range {
            Range::Positive => 0,
            Range::Signed => 128,
        };
        Self { scale, zero }
    }

    /// Steps from 0 to the largest magnitude.
    pub(crate) fn steps(range: Range) -> u8 {
        match range {
            Range::Positive => 255,
            Range::Signed => 127,
        }
    }
}

/// A convolution's weights in whole steps from −127 to 127.
pub(crate) struct Steps {
    /// As the weights lie: output by output.
    pub(crate) steps: Vec<i8>,
    /// For each output, what a step is worth.
    pub(crate) scales: Vec<f32>,
}

impl Steps {
    /// The largest weight of each output is 127 steps.
    pub(crate) fn of(weight: &Array) -> Self {
        let per_output: usize = weight.shape[1..].iter().product();
        let mut steps = Vec::with_capacity(weight.data.len());
        let mut scales = Vec::with_capacity(weight.shape[0]);
        for weights in weight.data.chunks_exact(per_output) {
            let largest = weights.iter().fold(0.0, |largest: f32, weight| largest.max(weight.abs()));
            // An output without weights takes any scale.
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            steps.extend(weights.iter().map(|weight| (weight / scale).round() as i8));
            scales.push(scale);
        }
        Self { steps, scales }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_output_has_its_own_steps() {
        let data = vec![0.5, -1.27, 0.004, 0.0, 0.0, 0.0, 2.54, 2.54, -1.28];
        let Steps { steps, scales } = Steps::of(&Array { shape: vec![3, 3, 1, 1], data });
        assert_eq!(steps, [50, -127, 0, 0, 0, 0, 127, 127, -64]);
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(near(scales[0], 0.01) && near(scales[1], 1.0) && near(scales[2], 0.02), "{scales:?}");
    }
}
