//! SSD300 with a ResNet50 backbone: the architecture and state_dict names that NVIDIA published.
//!
//! A picture of 300×300 goes through ResNet50 up to conv4 (whose first block keeps its stride at 1, so
//! that 38×38 cells are left), then through five additional blocks. Each of the six maps has a head that says,
//! for every default box around every cell, how to move it and what is in it.

pub mod boxes;
pub mod nms;

pub(crate) mod backbone;
pub(crate) mod conv;
pub(crate) mod heads;
pub(crate) mod quantization;
pub(crate) mod stem;

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::calibration::Uncalibrated;
use crate::device::{Device, Precision};
use crate::native;
use crate::weights::{Array, StateDict};
use backbone::Backbone;
use conv::{Conv, Loader, Map, Site, Weights};
use heads::Heads;
pub(crate) use quantization::{Quantization, Range};
use stem::Stem;

/// Pixels along each side of the network's input.
pub const SIDE: usize = common::pack::SIDE;
/// Bytes of one input picture: rows top to bottom, RGB.
pub const FRAME_BYTES: usize = common::pack::FRAME_BYTES;
/// Cells along each side of the six maps.
pub const CELLS: [usize; 6] = [38, 19, 10, 5, 3, 1];
/// Default boxes around each cell of the six maps.
pub const BOXES_PER_CELL: [usize; 6] = [4, 6, 6, 6, 4, 4];
/// Channels of the six maps.
pub(crate) const CHANNELS: [usize; 6] = [1024, 512, 512, 256, 256, 256];
/// Channels between the two convolutions of each additional block.
const ADDITIONAL: [usize; 5] = [256, 256, 128, 128, 128];

/// Why the network gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetworkError {
    /// Libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// int8 lacks its scales.
    #[error("int8 needs the scales of the network's activations, and {0}")]
    Uncalibrated(#[from] Uncalibrated),
    /// The caller did not want it any more.
    #[error("stopped")]
    Stopped,
    /// The outputs are no numbers.
    #[error(
        "the network's outputs are not finite numbers; the weights may be damaged or not bear this precision \
         (try --precision fp32)"
    )]
    NotFinite,
}

impl From<tch::TchError> for NetworkError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(native::first_line(&error.to_string()))
    }
}

/// Name and shape of every tensor of the architecture with `classes` outputs a box, background included.
#[must_use]
pub fn state_shapes(classes: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = backbone::state_shapes();
    for (i, middle) in ADDITIONAL.into_iter().enumerate() {
        let kernel = 3;
        shapes.extend(folded_shapes(&additional_names(i, 0), [middle, CHANNELS[i], 1, 1]));
        shapes.extend(folded_shapes(&additional_names(i, 1), [CHANNELS[i + 1], middle, kernel, kernel]));
    }
    shapes.extend(heads::state_shapes(classes));
    shapes
}

/// What the network hands on from layer to layer, in int8 as bytes: the name of the convolution that makes it (with the
/// residual sum and ReLU after it, if any), and the range of its values.
#[must_use]
pub(crate) fn activations() -> Vec<(String, Range)> {
    let mut names = backbone::activations();
    for block in 0..ADDITIONAL.len() {
        names.extend((0..2).map(|conv| (additional_names(block, conv).conv, Range::Positive)));
    }
    names
}

/// The names of a convolution and the batch normalisation after it.
pub(crate) struct Names {
    pub(crate) conv: String,
    pub(crate) norm: String,
}

fn additional_names(block: usize, conv: usize) -> Names {
    let at = 3 * conv;
    Names {
        conv: format!("additional_blocks.{block}.{at}"),
        norm: format!("additional_blocks.{block}.{}", at + 1),
    }
}

/// The tensors of a convolution (out, in, height, width) without bias and the batch normalisation after it.
pub(crate) fn folded_shapes(names: &Names, shape: [usize; 4]) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![(format!("{}.weight", names.conv), shape.to_vec())];
    for part in ["weight", "bias", "running_mean", "running_var"] {
        shapes.push((format!("{}.{part}", names.norm), vec![shape[0]]));
    }
    shapes
}

/// A convolution with the batch normalisation after it folded in, in double precision:
/// w' = w·γ/√(σ²+ε), b' = β − μ·γ/√(σ²+ε), ε = 1e-5.
pub(crate) fn folded(dict: &StateDict, names: &Names) -> Result<Weights, NetworkError> {
    let weight = dict.get(&format!("{}.weight", names.conv))?;
    let part = |part: &str| dict.get(&format!("{}.{part}", names.norm)).map(|array| &array.data);
    let (gamma, beta, mean, variance) =
        (part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?);
    let per_output: usize = weight.shape[1..].iter().product();
    let mut data = Vec::with_capacity(weight.data.len());
    let mut bias = Vec::with_capacity(gamma.len());
    for (output, rows) in weight.data.chunks_exact(per_output).enumerate() {
        let scale = f64::from(gamma[output]) / (f64::from(variance[output]) + 1e-5).sqrt();
        data.extend(rows.iter().map(|w| (f64::from(*w) * scale) as f32));
        bias.push((f64::from(beta[output]) - f64::from(mean[output]) * scale) as f32);
    }
    Ok(Weights { weight: Array { shape: weight.shape.clone(), data }, bias })
}

/// How the convolutions are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    /// Pictures a call will bring, usually: oneDNN orders its weights for it.
    pub(crate) batch: usize,
}

impl Target {
    /// Of what is held as floating-point numbers.
    pub(crate) fn kind(self) -> Kind {
        match self.precision {
            // In int8, what is not held in bytes.
            Precision::Fp32 | Precision::Int8 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Fp16 => Kind::Half,
        }
    }

    pub(crate) fn torch(self) -> tch::Device {
        match self.device {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda(index) => tch::Device::Cuda(index),
        }
    }
}

/// Hears what a convolution, by its name, hands on.
pub(crate) type Observer<'a> = dyn FnMut(&str, &[f32]) + 'a;

/// What one block is given besides its input.
pub(crate) struct Run<'a> {
    /// Asked between layers; false ends the run with [`NetworkError::Stopped`].
    go_on: &'a dyn Fn() -> bool,
    observer: Option<RefCell<&'a mut Observer<'a>>>,
}

impl Run<'_> {
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        if (self.go_on)() { Ok(()) } else { Err(NetworkError::Stopped) }
    }

    /// Tells the observer, if there is one.
    pub(crate) fn made(&self, name: &str, map: &Map) -> Result<(), NetworkError> {
        if let Some(observer) = &self.observer {
            let values = Vec::try_from(conv::to_host(&map.tensor)?.f_flatten(0, -1)?)?;
            (observer.borrow_mut())(name, &values);
        }
        Ok(())
    }
}

/// The network, ready to run. [`Ssd300::share`] gives other threads their handles on the same weights.
pub struct Ssd300 {
    stem: Stem,
    backbone: Backbone,
    additional: Vec<[Conv; 2]>,
    heads: Heads,
}

impl Ssd300 {
    /// Puts the weights on the device, folded and ordered for batches of `batch` pictures.
    ///
    /// # Errors
    /// When libtorch refuses, as for want of memory, or when int8 lacks its scales.
    pub fn load(
        dict: &StateDict,
        device: Device,
        precision: Precision,
        batch: usize,
    ) -> Result<Self, NetworkError> {
        let loader = Loader { dict, target: Target { device, precision, batch } };
        if device != Device::Cpu && precision == Precision::Fp32 {
            native::refuse_tf32();
        }
        let mut additional = Vec::with_capacity(ADDITIONAL.len());
        for (i, side) in CELLS.into_iter().take(ADDITIONAL.len()).enumerate() {
            let (stride, padding) = if i < 3 { (2, 1) } else { (1, 0) };
            let first = Site { side, stride: 1, padding: 0 };
            let second = Site { side, stride, padding };
            additional.push([
                loader.folded(&additional_names(i, 0), first, Range::Positive)?,
                loader.folded(&additional_names(i, 1), second, Range::Positive)?,
            ]);
        }
        let (stem, backbone) = (Stem::load(&loader)?, Backbone::load(&loader)?);
        Ok(Self { stem, backbone, additional, heads: Heads::load(&loader)? })
    }

    /// Another handle on the same weights, for another thread.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            stem: self.stem.share(),
            backbone: self.backbone.share(),
            additional: self.additional.iter().map(|pair| pair.each_ref().map(Conv::share)).collect(),
            heads: self.heads.share(),
        }
    }

    /// Runs pictures (`n` × 300 × 300 × 3 bytes, RGB) through the network. `go_on` is asked between layers.
    ///
    /// # Errors
    /// [`NetworkError::Stopped`] when `go_on` said so, else what libtorch said.
    pub fn forward(&self, pictures: &[u8], go_on: &dyn Fn() -> bool) -> Result<RawHeads, NetworkError> {
        tch::no_grad(|| self.run(pictures, &Run { go_on, observer: None }))
    }

    /// Runs pictures through the network for the sake of what is handed on from layer to layer: `observer` hears all
    /// values of each of the network's [`activations`], in fp32.
    pub(crate) fn observe<'a>(
        &self,
        pictures: &[u8],
        observer: &'a mut Observer<'a>,
    ) -> Result<(), NetworkError> {
        let run = Run { go_on: &|| true, observer: Some(RefCell::new(observer)) };
        tch::no_grad(|| self.run(pictures, &run)).map(|_| ())
    }

    fn run(&self, pictures: &[u8], run: &Run<'_>) -> Result<RawHeads, NetworkError> {
        let mut map = self.backbone.forward(self.stem.forward(pictures, run)?, run)?;
        let mut outputs = Vec::with_capacity(CELLS.len());
        outputs.push(self.heads.forward(0, &map, run)?);
        for (i, [squeeze, shrink]) in self.additional.iter().enumerate() {
            run.check()?;
            map = shrink.relu(&squeeze.relu(&map, run)?, run)?;
            outputs.push(self.heads.forward(i + 1, &map, run)?);
        }
        Ok(RawHeads { outputs, pictures: pictures.len() / FRAME_BYTES, classes: self.heads.classes() })
    }
}

/// What the six heads said about a batch, on the CPU as fp32.
pub struct RawHeads {
    /// For each map: picture, row, column, then for each default box 4 offsets, for each its classes.
    outputs: Vec<Tensor>,
    pictures: usize,
    classes: usize,
}

impl RawHeads {
    /// Pictures in the batch.
    #[must_use]
    pub fn pictures(&self) -> usize {
        self.pictures
    }

    /// Outputs a box, background included.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The outputs of map `scale` for one picture: for each cell (rows, then columns), `BOXES_PER_CELL` × 4
    /// offsets, then `BOXES_PER_CELL` × `classes` logits.
    #[must_use]
    pub fn cells(&self, picture: usize, scale: usize) -> &[f32] {
        let tensor = &self.outputs[scale];
        let per_picture = CELLS[scale] * CELLS[scale] * BOXES_PER_CELL[scale] * (4 + self.classes);
        assert!(picture < self.pictures && tensor.numel() == self.pictures * per_picture);
        // SAFETY: `Heads::forward` hands out contiguous fp32 tensors on the CPU, of the length asserted above,
        // and nobody writes to them while `self` lives.
        let all = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) };
        &all[picture * per_picture..][..per_picture]
    }
}
