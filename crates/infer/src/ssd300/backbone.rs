//! ResNet50 up to conv4: children 0 to 6 of torchvision's model, with conv4 kept at stride 1.

use super::conv::{Conv, Loader, Map, Site};
use super::{Names, NetworkError, Range, Run, folded_shapes, stem};

/// What the backbone's tensors' names begin with.
pub(crate) const PREFIX: &str = "feature_extractor.feature_extractor";

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
    let mut shapes = folded_shapes(&stem::names(), [64, 3, 7, 7]);
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

/// As [`super::activations`].
pub(crate) fn activations() -> Vec<(String, Range)> {
    let mut names = vec![(stem::names().conv, Range::Positive)];
    for Stage { child, blocks, .. } in STAGES {
        for block in 0..blocks {
            names.extend((1..=3).map(|number| (block_names(child, block, number).conv, Range::Positive)));
        }
        // There is no ReLU between it and the residual sum.
        names.push((downsample_names(child).conv, Range::Signed));
    }
    names
}

struct Block {
    convs: [Conv; 3],
    downsample: Option<Conv>,
}

/// The backbone after its stem.
pub(crate) struct Backbone {
    blocks: Vec<Block>,
}

impl Backbone {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self, NetworkError> {
        let mut blocks = Vec::new();
        for stage in STAGES {
            let mut side = stage.side;
            for block in 0..stage.blocks {
                let stride = if block == 0 { stage.stride } else { 1 };
                let after = side.div_ceil(stride);
                let conv = |number, site| {
                    loader.folded(&block_names(stage.child, block, number), site, Range::Positive)
                };
                let convs = [
                    conv(1, Site { side, stride: 1, padding: 0 })?,
                    conv(2, Site { side, stride, padding: 1 })?,
                    conv(3, Site { side: after, stride: 1, padding: 0 })?,
                ];
                let downsample = match block {
                    0 => {
                        let site = Site { side, stride, padding: 0 };
                        Some(loader.folded(&downsample_names(stage.child), site, Range::Signed)?)
                    }
                    _ => None,
                };
                blocks.push(Block { convs, downsample });
                side = after;
            }
        }
        Ok(Self { blocks })
    }

    pub(crate) fn share(&self) -> Self {
        let blocks = self.blocks.iter().map(|block| Block {
            convs: block.convs.each_ref().map(Conv::share),
            downsample: block.downsample.as_ref().map(Conv::share),
        });
        Self { blocks: blocks.collect() }
    }

    /// Takes the stem's n×64×75×75, gives n×1024×38×38.
    pub(crate) fn forward(&self, mut x: Map, run: &Run<'_>) -> Result<Map, NetworkError> {
        for Block { convs: [narrow, middle, widen], downsample } in &self.blocks {
            run.check()?;
            let y = middle.relu(&narrow.relu(&x, run)?, run)?;
            let residual = match downsample {
                Some(downsample) => downsample.linear(&x, run)?,
                None => x,
            };
            x = widen.residual_relu(&y, residual, run)?;
        }
        Ok(x)
    }
}
