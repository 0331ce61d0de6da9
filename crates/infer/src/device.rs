//! Where the network runs, and in what arithmetic.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use common::job::Precision;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Kind, Tensor};

use crate::calibration::{Scales, Uncalibrated};
use crate::native;
use crate::ssd300::NetworkError;

/// What a user may say after `--device`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is no device: say auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// What a user may say after `--precision`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// What the device is fastest in.
    #[default]
    Auto,
    /// This one.
    Exactly(Precision),
}

impl FromStr for PrecisionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "fp32" => Ok(Self::Exactly(Precision::Fp32)),
            "bf16" => Ok(Self::Exactly(Precision::Bf16)),
            "fp16" => Ok(Self::Exactly(Precision::Fp16)),
            "int8" => Ok(Self::Exactly(Precision::Int8)),
            _ => Err(format!("{text:?} is no precision: say auto, fp32, bf16, fp16 or int8")),
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Exactly(precision) => precision.fmt(f),
        }
    }
}

/// A device that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("CPU"),
            Self::Cuda(index) => write!(f, "GPU {index} (CUDA)"),
        }
    }
}

/// Why the wanted device or arithmetic can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// This libtorch was built or installed without its CUDA part.
    #[error(
        "no CUDA device can be used, because this libtorch has no CUDA part ({0}); install PyTorch's CUDA build of \
         libtorch, or use --device cpu"
    )]
    NoCudaLibrary(String),
    /// The CUDA part finds no device.
    #[error("no CUDA device was found; check the NVIDIA driver with nvidia-smi, or use --device cpu")]
    NoCudaDevice,
    /// There are fewer devices than that.
    #[error("there is no CUDA device {wanted}: the machine has {there}, numbered from 0")]
    NoSuchDevice {
        /// The number asked for.
        wanted: usize,
        /// Devices there are.
        there: usize,
    },
    /// fp16 on a CPU.
    #[error("fp16 needs a CUDA device; on a CPU use --precision auto, fp32 or bf16")]
    HalfOnCpu,
    /// int8 on a GPU.
    #[error("int8 runs on a CPU only; use --device cpu, or on a GPU --precision auto, fp16 or fp32")]
    Int8OnGpu,
    /// int8 on a processor that is slow at it, or inexact.
    #[error(
        "int8 needs a processor that multiplies 8-bit integers (avx512_vnni, avx_vnni or amx_int8), and this one does \
         not; use --precision auto, fp32 or bf16"
    )]
    NoInt8,
    /// int8 with weights that have no scales for it.
    #[error(
        "int8 needs the scales of the network's activations, and {0}; measure them with boxreel calibrate --images DIR \
         --model PATH --out FILE and name that FILE with --model, or use --precision auto"
    )]
    Uncalibrated(Uncalibrated),
}

/// Decides on a device and an arithmetic. `scales` are those of the model's activations.
///
/// # Errors
/// When what was asked for is not there.
pub(crate) fn choose(
    device: DeviceChoice,
    precision: PrecisionChoice,
    scales: Result<&Scales, &Uncalibrated>,
) -> Result<(Device, Precision), DeviceError> {
    let device = match device {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto => cuda(0).unwrap_or(Device::Cpu),
        DeviceChoice::Cuda(index) => cuda(index)?,
    };
    let precision = match (precision, device) {
        (PrecisionChoice::Exactly(Precision::Fp16), Device::Cpu) => return Err(DeviceError::HalfOnCpu),
        (PrecisionChoice::Exactly(Precision::Int8), device) => {
            can_int8(device, scales)?;
            Precision::Int8
        }
        (PrecisionChoice::Exactly(precision), _) => precision,
        (PrecisionChoice::Auto, Device::Cuda(_)) => Precision::Fp16,
        // Twice as fast as bf16, and little less exact: see models/README.md.
        (PrecisionChoice::Auto, Device::Cpu) if can_int8(device, scales).is_ok() => Precision::Int8,
        (PrecisionChoice::Auto, Device::Cpu) if bf16_pays() => Precision::Bf16,
        (PrecisionChoice::Auto, Device::Cpu) => Precision::Fp32,
    };
    Ok((device, precision))
}

/// Whether int8 can be had there.
fn can_int8(device: Device, scales: Result<&Scales, &Uncalibrated>) -> Result<(), DeviceError> {
    if device != Device::Cpu {
        return Err(DeviceError::Int8OnGpu);
    }
    if !multiplies_int8() {
        return Err(DeviceError::NoInt8);
    }
    scales.map(|_| ()).map_err(|reason| DeviceError::Uncalibrated(reason.clone()))
}

fn cuda(index: usize) -> Result<Device, DeviceError> {
    load_cuda().map_err(DeviceError::NoCudaLibrary)?;
    let there = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    match usize::try_from(there) {
        Ok(0) | Err(_) => Err(DeviceError::NoCudaDevice),
        Ok(there) if index >= there => Err(DeviceError::NoSuchDevice { wanted: index, there }),
        Ok(_) => Ok(Device::Cuda(index)),
    }
}

/// Loads libtorch's CUDA part, once, if it lies beside the CPU part. It has to be there before libtorch is
/// first asked about CUDA: its answer is remembered.
fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // SAFETY: libtorch's own library, whose initialisers register its kernels; never unloaded.
            match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => {
                    std::mem::forget(library);
                    Ok(())
                }
                Err(error) => Err(native::first_line(&error.to_string())),
            }
        })
        .clone()
}

/// Whether the processor multiplies bfloat16 in hardware. Where it does not, bf16 is slower than fp32; where it does,
/// [`bf16_pays`] says.
fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16") || has_amx(22);
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the processor multiplies 8-bit integers in hardware and adds the products up in 32 bits. Where it does not,
/// oneDNN adds them up in 16 bits, which saturates, and int8 is hardly faster than fp32.
#[must_use]
pub fn multiplies_int8() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vnni")
        || std::arch::is_x86_feature_detected!("avxvnni")
        || has_amx(25);
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the processor has the part of AMX that a bit of CPUID's leaf 7 (EDX) stands for, and AVX-512 around it. The
/// flag is read by hand: std does not offer it yet.
#[cfg(target_arch = "x86_64")]
fn has_amx(bit: u32) -> bool {
    let amx =
        std::arch::x86_64::__cpuid(0).eax >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx >> bit & 1 == 1;
    amx && std::arch::is_x86_feature_detected!("avx512f")
}

/// Whether oneDNN computes floating-point convolutions in this arithmetic on this processor: asked by trying.
pub(crate) fn onednn_knows(precision: Precision) -> bool {
    static BF16: OnceLock<bool> = OnceLock::new();
    match precision {
        Precision::Fp32 => true,
        Precision::Fp16 | Precision::Int8 => false,
        Precision::Bf16 => {
            *BF16.get_or_init(|| Trial::new(Kind::BFloat16, 16, 4).and_then(|trial| trial.run()).is_ok())
        }
    }
}

/// Whether the network is faster in bf16 than in fp32 on this processor. AMX is made for it. AVX512-BF16 halves the time
/// on some processors, and on others takes twice as long as fp32: asked by a trial of some 50 ms.
#[must_use]
pub fn bf16_pays() -> bool {
    /// How much faster a convolution has to be: fp32 multiplies less often in others, by Winograd's filtering, and is
    /// more exact.
    const ENOUGH: f64 = 1.5;
    static PAYS: OnceLock<bool> = OnceLock::new();
    *PAYS.get_or_init(|| {
        if !multiplies_bf16() {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        if has_amx(22) {
            return true;
        }
        match faster_in_bf16() {
            Ok(times) => {
                tracing::debug!("a convolution in bf16 is {times:.2} times as fast as in fp32");
                times >= ENOUGH
            }
            Err(error) => {
                tracing::debug!("bf16 can't be tried: {error}");
                false
            }
        }
    })
}

/// How many times as fast as in fp32 a convolution is in bf16: by the quickest of some runs in turns, since another
/// program may have the processor for a while.
fn faster_in_bf16() -> Result<f64, NetworkError> {
    const ROUNDS: usize = 5;
    let trials = [Trial::new(Kind::Float, 256, 38)?, Trial::new(Kind::BFloat16, 256, 38)?];
    let mut quickest = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (trial, quickest) in trials.iter().zip(&mut quickest) {
            let start = Instant::now();
            trial.run()?;
            *quickest = start.elapsed().min(*quickest);
        }
    }
    let [fp32, bf16] = quickest.map(|time| time.as_secs_f64());
    Ok(fp32 / bf16.max(f64::MIN_POSITIVE))
}

/// A 1x1 convolution of nothing, by oneDNN.
struct Trial {
    input: Tensor,
    packed: Tensor,
    bias: Tensor,
}

impl Trial {
    /// Of so many channels, in and out, on a square map of so many cells.
    fn new(kind: Kind, channels: i64, side: i64) -> Result<Self, NetworkError> {
        let options = (kind, tch::Device::Cpu);
        let weight = Tensor::f_zeros([channels, channels, 1, 1], options)?;
        let input = Tensor::f_zeros([1, side, side, channels], options)?.f_permute([0, 3, 1, 2])?;
        let packed = native::onednn_pack(&weight, 0, 1, [1, channels, side, side])?;
        Ok(Self { input, packed, bias: Tensor::f_zeros([channels], options)? })
    }

    fn run(&self) -> Result<(), NetworkError> {
        native::onednn_conv(&self.input, &self.packed, &self.bias, 0, 1, true, None).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_back_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["auto", "fp32", "bf16", "fp16", "int8"] {
            assert_eq!(text.parse::<PrecisionChoice>().unwrap().to_string(), text);
        }
        let refusal = "gpu".parse::<DeviceChoice>().unwrap_err();
        assert!(refusal.contains("cuda:N"), "{refusal}");
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("int4".parse::<PrecisionChoice>().unwrap_err().contains("fp16 or int8"));
    }

    #[test]
    fn half_precision_is_refused_on_a_cpu() {
        let exactly = PrecisionChoice::Exactly(Precision::Fp16);
        let chosen = choose(DeviceChoice::Cpu, exactly, Err(&Uncalibrated::Never));
        assert_eq!(chosen, Err(DeviceError::HalfOnCpu));
    }

    #[test]
    fn int8_needs_a_cpu_that_is_made_for_it_and_scales() {
        let exactly = PrecisionChoice::Exactly(Precision::Int8);
        let scales = Scales::default();
        let refused = choose(DeviceChoice::Cpu, exactly, Err(&Uncalibrated::Never)).unwrap_err();
        let chosen = choose(DeviceChoice::Cpu, exactly, Ok(&scales));
        if multiplies_int8() {
            assert_eq!(chosen, Ok((Device::Cpu, Precision::Int8)));
            assert!(refused.to_string().contains("measure them with boxreel calibrate"), "{refused}");
        } else {
            assert_eq!((chosen, refused), (Err(DeviceError::NoInt8), DeviceError::NoInt8));
        }
        assert_eq!(can_int8(Device::Cuda(0), Ok(&scales)), Err(DeviceError::Int8OnGpu));
    }

    #[test]
    fn the_processor_and_the_weights_decide_on_the_precision() {
        let floating = if bf16_pays() { Precision::Bf16 } else { Precision::Fp32 };
        let calibrated = if multiplies_int8() { Precision::Int8 } else { floating };
        let scales = Scales::default();
        for (scales, expected) in [(Ok(&scales), calibrated), (Err(&Uncalibrated::Never), floating)] {
            assert_eq!(choose(DeviceChoice::Cpu, PrecisionChoice::Auto, scales), Ok((Device::Cpu, expected)));
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_in_a_clear_sentence() {
        // More devices than any machine has: refused with or without CUDA.
        let scales = Err(&Uncalibrated::Never);
        let refusal =
            choose(DeviceChoice::Cuda(4096), PrecisionChoice::Auto, scales).unwrap_err().to_string();
        assert!(refusal.contains("CUDA device"), "{refusal}");
    }
}
