//! One convolution of the network, computed in the way that suits the device.

use tch::{Kind, Tensor};

use super::quantization::Steps;
use super::{Names, NetworkError, Quantization, Range, Run, Target, folded};
use crate::calibration::Uncalibrated;
use crate::device::{self, Device, Precision};
use crate::native::{self, Int8Weights};
use crate::weights::{Array, StateDict};

/// Smallest map, in pixels a side, that Winograd's transformed filters (four times the size) pay on.
const MIN_WINOGRAD_SIDE: usize = 19;

/// A convolution's numbers: weight (out, in, k, k) and bias.
pub(crate) struct Weights {
    pub(crate) weight: Array,
    pub(crate) bias: Vec<f32>,
}

/// Where a convolution stands: its input's side in pixels, its stride and padding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) side: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl Site {
    /// The shape of what `weight` (out, in, k, k) is usually given.
    fn input(self, weight: &Tensor, target: Target) -> Result<[i64; 4], NetworkError> {
        let (_, channels, _, _) = weight.size4()?;
        Ok([target.batch as i64, channels, self.side as i64, self.side as i64])
    }
}

/// What a layer hands on: n × channels × rows × columns, channels last in memory.
pub(crate) struct Map {
    pub(crate) tensor: Tensor,
    /// What its bytes stand for, when it is bytes.
    pub(crate) quantization: Option<Quantization>,
}

/// What a convolution makes.
pub(crate) struct Output {
    /// What it is known by to whoever observes the network.
    name: Option<String>,
    /// As which bytes an int8 convolution hands it on; none for fp32.
    quantization: Option<Quantization>,
}

impl Output {
    /// The network's own output: nothing is rounded any more.
    pub(crate) const LAST: Self = Self { name: None, quantization: None };
}

/// What layers are made of.
pub(crate) struct Loader<'a> {
    pub(crate) dict: &'a StateDict,
    pub(crate) target: Target,
}

impl Loader<'_> {
    /// A convolution with the batch normalisation after it folded in. `range` is that of what it hands on.
    pub(crate) fn folded(&self, names: &Names, site: Site, range: Range) -> Result<Conv, NetworkError> {
        let output = self.activation(&names.conv, range)?;
        Conv::new(&folded(self.dict, names)?, site, self.target, output)
    }

    /// What the convolution `name` hands on to the next layer.
    pub(crate) fn activation(&self, name: &str, range: Range) -> Result<Output, NetworkError> {
        let quantization = match self.target.precision {
            Precision::Int8 => {
                let scales = self.dict.scales().map_err(Clone::clone)?;
                let scale = scales.get(name).ok_or_else(|| missing(name))?;
                Some(Quantization::new(scale, range))
            }
            Precision::Fp32 | Precision::Bf16 | Precision::Fp16 => None,
        };
        Ok(Output { name: Some(name.to_owned()), quantization })
    }
}

/// The scales were validated, so only a slip in this crate ends here.
fn missing(name: &str) -> NetworkError {
    NetworkError::Uncalibrated(Uncalibrated::Damaged(format!("missing: {name}")))
}

/// A convolution with its bias.
pub(crate) struct Conv {
    name: Option<String>,
    stride: i64,
    padding: i64,
    way: Way,
}

/// How it is computed.
enum Way {
    /// On the CPU: oneDNN, with bias, residual and ReLU in one pass.
    Fused { weight: Tensor, bias: Tensor },
    /// On the CPU in fp32, 3×3 of stride 1 on large maps: a quarter of the multiplications.
    Winograd { filters: Tensor, bias: Tensor },
    /// cuDNN; and on processors whose oneDNN does not know the precision, whatever libtorch has.
    Plain { weight: Tensor, bias: Tensor },
    /// On the CPU in int8: oneDNN, with bias, residual, ReLU and the rounding to bytes in one pass.
    Int8 { weights: Int8Weights, output: Option<Quantization> },
}

impl Conv {
    pub(crate) fn new(
        weights: &Weights,
        site: Site,
        target: Target,
        output: Output,
    ) -> Result<Self, NetworkError> {
        let (stride, padding) = (site.stride as i64, site.padding as i64);
        let Output { name, quantization } = output;
        let way = if target.precision == Precision::Int8 {
            let weights = int8_weights(weights, site, target)?;
            Way::Int8 { weights, output: quantization }
        } else {
            float(weights, site, target)?
        };
        Ok(Self { name, stride, padding, way })
    }

    pub(crate) fn share(&self) -> Self {
        let way = match &self.way {
            Way::Fused { weight, bias } => {
                Way::Fused { weight: weight.shallow_clone(), bias: bias.shallow_clone() }
            }
            Way::Winograd { filters, bias } => {
                Way::Winograd { filters: filters.shallow_clone(), bias: bias.shallow_clone() }
            }
            Way::Plain { weight, bias } => {
                Way::Plain { weight: weight.shallow_clone(), bias: bias.shallow_clone() }
            }
            Way::Int8 { weights, output } => Way::Int8 { weights: weights.share(), output: *output },
        };
        Self { name: self.name.clone(), way, ..*self }
    }

    /// conv(x) + bias.
    pub(crate) fn linear(&self, x: &Map, run: &Run<'_>) -> Result<Map, NetworkError> {
        self.run(x, false, None, run)
    }

    /// max(0, conv(x) + bias).
    pub(crate) fn relu(&self, x: &Map, run: &Run<'_>) -> Result<Map, NetworkError> {
        self.run(x, true, None, run)
    }

    /// max(0, conv(x) + bias + residual), in the residual's memory where that spares a pass.
    pub(crate) fn residual_relu(&self, x: &Map, residual: Map, run: &Run<'_>) -> Result<Map, NetworkError> {
        self.run(x, true, Some(residual), run)
    }

    fn run(&self, x: &Map, relu: bool, residual: Option<Map>, run: &Run<'_>) -> Result<Map, NetworkError> {
        let quantization = match &self.way {
            Way::Int8 { output, .. } => *output,
            _ => None,
        };
        let map = Map { tensor: self.compute(x, relu, residual)?, quantization };
        if let Some(name) = &self.name {
            run.made(name, &map)?;
        }
        Ok(map)
    }

    fn compute(&self, x: &Map, relu: bool, residual: Option<Map>) -> Result<Tensor, NetworkError> {
        let (stride, padding) = (self.stride, self.padding);
        match &self.way {
            // No 3×3 convolution of this network has a residual.
            Way::Winograd { filters, bias } if residual.is_none() => {
                native::winograd(&x.tensor, filters, bias, relu)
            }
            Way::Winograd { .. } => Err(NetworkError::Torch("a residual where none can be".to_owned())),
            Way::Fused { weight, bias } => {
                let residual = residual.map(|map| map.tensor);
                native::onednn_conv(&x.tensor, weight, bias, padding, stride, relu, residual)
            }
            Way::Plain { weight, bias } => {
                let (stride, padding) = ([stride; 2], [padding; 2]);
                let mut y = x.tensor.f_conv2d(weight, Some(bias), stride, padding, [1, 1], 1)?;
                if let Some(residual) = residual {
                    y = y.f_add_(&residual.tensor)?;
                }
                Ok(if relu { y.f_relu_()? } else { y })
            }
            Way::Int8 { weights, output } => {
                native::int8_conv(x, weights, padding, stride, relu, *output, residual)
            }
        }
    }
}

/// A convolution of floating-point numbers, in the way that suits the device.
fn float(weights: &Weights, site: Site, target: Target) -> Result<Way, NetworkError> {
    let Weights { weight, bias } = weights;
    let bias = Tensor::f_from_slice(bias)?.f_to_device(target.torch())?.f_to_kind(target.kind())?;
    let winograd = target.device == Device::Cpu
        && target.precision == Precision::Fp32
        && weight.shape[2..] == [3, 3]
        && (site.stride, site.padding) == (1, 1)
        && site.side >= MIN_WINOGRAD_SIDE
        && native::has_winograd();
    if winograd {
        let filters = native::winograd_filters(&weight.data, weight.shape[0], weight.shape[1])?;
        return Ok(Way::Winograd { filters, bias });
    }
    let weight = channels_last(&Tensor::f_from_slice(&weight.data)?, &weight.shape)?
        .f_to_device(target.torch())?
        .f_to_kind(target.kind())?;
    if target.device == Device::Cpu && device::onednn_knows(target.precision) {
        let (padding, stride) = (site.padding as i64, site.stride as i64);
        let weight = native::onednn_pack(&weight, padding, stride, site.input(&weight, target)?)?;
        return Ok(Way::Fused { weight, bias });
    }
    Ok(Way::Plain { weight, bias })
}

/// A convolution of bytes.
fn int8_weights(weights: &Weights, site: Site, target: Target) -> Result<Int8Weights, NetworkError> {
    let Steps { steps, scales } = Steps::of(&weights.weight);
    let weight = channels_last(&Tensor::f_from_slice(&steps)?, &weights.weight.shape)?;
    let (padding, stride) = (site.padding as i64, site.stride as i64);
    Int8Weights::pack(&weight, &scales, &weights.bias, padding, stride, site.input(&weight, target)?)
}

/// Weights (out, in, k, k) with channels last in memory, as the activations are.
fn channels_last(weight: &Tensor, shape: &[usize]) -> Result<Tensor, NetworkError> {
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    Ok(weight.f_reshape(&shape)?.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

/// The outputs as fp32 on the CPU, channels last in memory and in the axes.
pub(crate) fn to_host(y: &Tensor) -> Result<Tensor, NetworkError> {
    let y = y.f_permute([0, 2, 3, 1])?;
    Ok(y.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}
