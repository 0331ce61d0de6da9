//! ResNet50 up to conv4: children 0 to 6 of torchvision's model, with conv4 kept at stride 1.

use tch::Tensor;

use super::conv::{Conv, Site};
use super::{Names, NetworkError, Run, Target, folded, folded_shapes};
use crate::weights::StateDict;

const PREFIX: &str = "feature_extractor.feature_extractor";

/// A row of bottleneck blocks.
struct Stage {
    /// Its place among the children.
    child: usize,
    blocks: usize,
    /// Channels it is given.
    input: usize,
    /// Channels between its 1×1 convolutions; it hands on four times as many.
    middle: usize,
    /// Stride of its first block's 3×3 convolution.
    stride: usize,
    /// Side of its input in pixels.
    side: usize,
}

const STAGES: [Stage; 3] = [
    Stage { child: 4, blocks: 3, input: 64, middle: 64, stride: 1, side: 75 },
    Stage { child: 5, blocks: 4, input: 256, middle: 128, stride: 2, side: 75 },
    Stage { child: 6, blocks: 6, input: 512, middle: 256, stride: 1, side: 38 },
];

fn stem_names() -> Names {
    Names { conv: format!("{PREFIX}.0"), norm: format!("{PREFIX}.1") }
}

/// The `number`th (1 to 3) convolution of a block.
fn block_names(child: usize, block: usize, number: usize) -> Names {
    let at = format!("{PREFIX}.{child}.{block}");
    Names { conv: format!("{at}.conv{number}"), norm: format!("{at}.bn{number}") }
}

fn downsample_names(child: usize) -> Names {
    let at = format!("{PREFIX}.{child}.0.downsample");
    Names { conv: format!("{at}.0"), norm: format!("{at}.1") }
}

/// Name and shape of each of the backbone's tensors.
pub(crate) fn state_shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = folded_shapes(&stem_names(), [64, 3, 7, 7]);
    for Stage { child, blocks, input, middle, .. } in STAGES {
        let output = 4 * middle;
        for block in 0..blocks {
            let input = if block == 0 { input } else { output };
            shapes.extend(folded_shapes(&block_names(child, block, 1), [middle, input, 1, 1]));
            shapes.extend(folded_shapes(&block_names(child, block, 2), [middle, middle, 3, 3]));
            shapes.extend(folded_shapes(&block_names(child, block, 3), [output, middle, 1, 1]));
        }
        shapes.extend(folded_shapes(&downsample_names(child), [output, input, 1, 1]));
    }
    shapes
}

struct Block {
    convs: [Conv; 3],
    downsample: Option<Conv>,
}

/// The backbone: a picture's 38×38×1024 map.
pub(crate) struct Backbone {
    stem: Conv,
    blocks: Vec<Block>,
}

impl Backbone {
    pub(crate) fn load(dict: &StateDict, target: Target) -> Result<Self, NetworkError> {
        let conv = |names: &Names, site: Site| Conv::new(folded(dict, names)?, site, target);
        let stem = conv(&stem_names(), Site { side: super::SIDE, stride: 2, padding: 3 })?;
        let mut blocks = Vec::new();
        for stage in STAGES {
            let mut side = stage.side;
            for block in 0..stage.blocks {
                let stride = if block == 0 { stage.stride } else { 1 };
                let names = |number| block_names(stage.child, block, number);
                let after = side.div_ceil(stride);
                let convs = [
                    conv(&names(1), Site { side, stride: 1, padding: 0 })?,
                    conv(&names(2), Site { side, stride, padding: 1 })?,
                    conv(&names(3), Site { side: after, stride: 1, padding: 0 })?,
                ];
                let downsample = match block {
                    0 => Some(conv(&downsample_names(stage.child), Site { side, stride, padding: 0 })?),
                    _ => None,
                };
                blocks.push(Block { convs, downsample });
                side = after;
            }
        }
        Ok(Self { stem, blocks })
    }

    pub(crate) fn share(&self) -> Self {
        let blocks = self.blocks.iter().map(|block| Block {
            convs: block.convs.each_ref().map(Conv::share),
            downsample: block.downsample.as_ref().map(Conv::share),
        });
        Self { stem: self.stem.share(), blocks: blocks.collect() }
    }

    /// Takes n×3×300×300, gives n×1024×38×38.
    pub(crate) fn forward(&self, x: &Tensor, run: &Run<'_>) -> Result<Tensor, NetworkError> {
        let x = self.stem.relu(x)?;
        let mut x = x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        for Block { convs: [narrow, middle, widen], downsample } in &self.blocks {
            run.check()?;
            let y = middle.relu(&narrow.relu(&x)?)?;
            let residual = match downsample {
                Some(downsample) => downsample.linear(&x)?,
                None => x,
            };
            x = widen.residual_relu(&y, residual)?;
        }
        Ok(x)
    }
}
