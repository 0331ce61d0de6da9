//! One convolution of the network, computed in the way that suits the device.

use tch::{Kind, Tensor};

use super::{NetworkError, Target};
use crate::device::{self, Device, Precision};
use crate::native;
use crate::weights::Array;

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

/// A convolution with its bias.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    way: Way,
}

/// How it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// On the CPU: oneDNN, with bias, residual and ReLU in one pass.
    Fused,
    /// On the CPU in fp32, 3×3 of stride 1 on large maps: a quarter of the multiplications.
    Winograd,
    /// cuDNN; and on processors whose oneDNN does not know the precision, whatever libtorch has.
    Plain,
}

impl Conv {
    pub(crate) fn new(weights: Weights, site: Site, target: Target) -> Result<Self, NetworkError> {
        let Weights { weight, bias } = weights;
        let shape: Vec<i64> = weight.shape.iter().map(|n| *n as i64).collect();
        let (stride, padding) = (site.stride as i64, site.padding as i64);
        let way = if target.device == Device::Cpu
            && target.precision == Precision::Fp32
            && weight.shape[2..] == [3, 3]
            && (site.stride, site.padding) == (1, 1)
            && site.side >= MIN_WINOGRAD_SIDE
            && native::has_winograd()
        {
            Way::Winograd
        } else if target.device == Device::Cpu && device::onednn_knows(target.precision) {
            Way::Fused
        } else {
            Way::Plain
        };
        let bias = Tensor::f_from_slice(&bias)?.f_to_device(target.torch())?.f_to_kind(target.kind())?;
        if way == Way::Winograd {
            let weight = native::winograd_filters(&weight.data, weight.shape[0], weight.shape[1])?;
            return Ok(Self { weight, bias, stride, padding, way });
        }
        let weight = Tensor::f_from_slice(&weight.data)?
            .f_reshape(&shape)?
            .f_to_device(target.torch())?
            .f_to_kind(target.kind())?;
        // Channels last, as the activations are.
        let weight = weight.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?;
        let weight = match way {
            Way::Fused => {
                let side = site.side as i64;
                native::onednn_pack(&weight, padding, stride, [target.batch as i64, shape[1], side, side])?
            }
            Way::Winograd | Way::Plain => weight,
        };
        Ok(Self { weight, bias, stride, padding, way })
    }

    pub(crate) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), ..*self }
    }

    /// conv(x) + bias.
    pub(crate) fn linear(&self, x: &Tensor) -> Result<Tensor, NetworkError> {
        self.run(x, false, None)
    }

    /// max(0, conv(x) + bias).
    pub(crate) fn relu(&self, x: &Tensor) -> Result<Tensor, NetworkError> {
        self.run(x, true, None)
    }

    /// max(0, conv(x) + bias + residual), in the residual's memory where that spares a pass.
    pub(crate) fn residual_relu(&self, x: &Tensor, residual: Tensor) -> Result<Tensor, NetworkError> {
        self.run(x, true, Some(residual))
    }

    fn run(&self, x: &Tensor, relu: bool, residual: Option<Tensor>) -> Result<Tensor, NetworkError> {
        match self.way {
            // No 3×3 convolution of this network has a residual.
            Way::Winograd if residual.is_none() => native::winograd(x, &self.weight, &self.bias, relu),
            Way::Winograd => Err(NetworkError::Torch("a residual where none can be".to_owned())),
            Way::Fused => {
                native::onednn_conv(x, &self.weight, &self.bias, self.padding, self.stride, relu, residual)
            }
            Way::Plain => {
                let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
                let mut y = x.f_conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)?;
                if let Some(residual) = residual {
                    y = y.f_add_(&residual)?;
                }
                Ok(if relu { y.f_relu_()? } else { y })
            }
        }
    }
}

/// The outputs as fp32 on the CPU, channels last in memory and in the axes.
pub(crate) fn to_host(y: &Tensor) -> Result<Tensor, NetworkError> {
    let y = y.f_permute([0, 2, 3, 1])?;
    Ok(y.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}
