//! The six heads: where each default box moves, and what is in it.

use tch::Tensor;

use super::conv::{Conv, Loader, Map, Output, Site, Weights, to_host};
use super::{BOXES_PER_CELL, CELLS, CHANNELS, NetworkError, Run};
use crate::weights::{Array, StateDict};

/// Name and shape of each of the heads' tensors.
pub(crate) fn state_shapes(classes: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = Vec::new();
    for (i, (boxes, channels)) in BOXES_PER_CELL.into_iter().zip(CHANNELS).enumerate() {
        for (head, outputs) in [("loc", boxes * 4), ("conf", boxes * classes)] {
            shapes.push((format!("{head}.{i}.weight"), vec![outputs, channels, 3, 3]));
            shapes.push((format!("{head}.{i}.bias"), vec![outputs]));
        }
    }
    shapes
}

/// One convolution a map: loc and conf together.
pub(crate) struct Heads {
    convs: Vec<Conv>,
    classes: usize,
}

impl Heads {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self, NetworkError> {
        let convs = (0..CELLS.len()).map(|i| {
            let site = Site { side: CELLS[i], stride: 1, padding: 1 };
            Conv::new(&joined(loader.dict, i)?, site, loader.target, Output::LAST)
        });
        Ok(Self { convs: convs.collect::<Result<_, _>>()?, classes: loader.dict.classes() })
    }

    pub(crate) fn share(&self) -> Self {
        Self { convs: self.convs.iter().map(Conv::share).collect(), classes: self.classes }
    }

    pub(crate) fn classes(&self) -> usize {
        self.classes
    }

    /// The head of map `scale`: n × cells × cells × (boxes × 4, boxes × classes), fp32 on the CPU.
    pub(crate) fn forward(&self, scale: usize, map: &Map, run: &Run<'_>) -> Result<Tensor, NetworkError> {
        to_host(&self.convs[scale].linear(map, run)?.tensor)
    }
}

/// loc and conf of map `i` as one convolution. The published order of outputs is (coordinate or class,
/// default box); here a box's numbers lie together, as decoding wants them.
fn joined(dict: &StateDict, i: usize) -> Result<Weights, NetworkError> {
    let boxes = BOXES_PER_CELL[i];
    let per_output = CHANNELS[i] * 9;
    let mut data = Vec::new();
    let mut bias = Vec::new();
    for (head, values) in [("loc", 4), ("conf", dict.classes())] {
        let weight = dict.get(&format!("{head}.{i}.weight"))?;
        let biases = dict.get(&format!("{head}.{i}.bias"))?;
        for output in (0..boxes).flat_map(|b| (0..values).map(move |value| value * boxes + b)) {
            data.extend_from_slice(&weight.data[output * per_output..][..per_output]);
            bias.push(biases.data[output]);
        }
    }
    Ok(Weights { weight: Array { shape: vec![bias.len(), CHANNELS[i], 3, 3], data }, bias })
}
