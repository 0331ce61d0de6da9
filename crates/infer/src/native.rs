//! The border to the C++ in `native/`: every `unsafe` call of it lies here, behind safe functions.

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::ssd300::conv::Map;
use crate::ssd300::{NetworkError, Quantization};

/// A tensor of bytes, or none, and what they stand for.
#[repr(C)]
struct Bytes {
    tensor: *const C_tensor,
    scale: f64,
    zero: i64,
}

/// What `boxreel_onednn_int8_conv` is given.
#[repr(C)]
struct Int8Call {
    input: Bytes,
    weight: *const C_tensor,
    weight_scales: *const C_tensor,
    weight_zeros: *const C_tensor,
    bias: *const C_tensor,
    padding: i64,
    stride: i64,
    relu: i64,
    residual: Bytes,
    /// 0 for fp32.
    output_scale: f64,
    output_zero: i64,
}

unsafe extern "C" {
    fn boxreel_keep_freed_memory();
    fn boxreel_refuse_tf32();
    fn boxreel_onednn_pack(
        weight: *const C_tensor,
        padding: i64,
        stride: i64,
        n: i64,
        c: i64,
        h: i64,
        w: i64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
    fn boxreel_onednn_conv(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        padding: i64,
        stride: i64,
        relu: c_int,
        residual: *const C_tensor,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
    fn boxreel_onednn_int8_pack(
        weight: *const C_tensor,
        scales: *const C_tensor,
        padding: i64,
        stride: i64,
        n: i64,
        c: i64,
        h: i64,
        w: i64,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
    fn boxreel_onednn_int8_conv(
        call: *const Int8Call,
        error: *mut c_char,
        error_size: usize,
    ) -> *mut C_tensor;
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn boxreel_winograd_filter_floats(channels: i64, outputs: i64) -> i64;
    fn boxreel_winograd_scratch_floats(channels: i64, outputs: i64) -> i64;
    fn boxreel_winograd_filters(weight: *const f32, outputs: i64, channels: i64, filters: *mut f32);
    fn boxreel_winograd_conv(
        x: *const f32,
        n: i64,
        height: i64,
        width: i64,
        channels: i64,
        filters: *const f32,
        bias: *const f32,
        outputs: i64,
        relu: c_int,
        y: *mut f32,
        scratch: *mut f32,
    );
}

/// Tells the allocator to keep freed activations instead of giving them back after every layer.
pub(crate) fn keep_freed_memory() {
    // SAFETY: mallopt may be called at any time from any thread.
    unsafe { boxreel_keep_freed_memory() }
}

/// Lets fp32 convolutions on GPUs be computed in fp32, and not in the coarser TF32.
pub(crate) fn refuse_tf32() {
    // SAFETY: sets two flags of libtorch's global context.
    unsafe { boxreel_refuse_tf32() }
}

// glibc's: a function that `exit` calls with the status, and the end that runs nothing more.
unsafe extern "C" {
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    fn _exit(status: c_int) -> !;
}

extern "C" fn end_at_once(status: c_int, _: *mut c_void) {
    // SAFETY: ends the process; whatever Rust had to flush was flushed before `exit` was called.
    unsafe { _exit(status) }
}

/// For the last lines of a program that may end while a [`crate::Detector`] computes: the process then ends without
/// running C++'s destructors, which would take libtorch's globals from under the computing threads and turn the exit
/// status into a crash.
pub fn skip_destructors() {
    // SAFETY: registers a function that takes no argument it would need alive.
    let refused = unsafe { on_exit(end_at_once, std::ptr::null_mut()) };
    if refused != 0 {
        tracing::debug!("no room for another function at exit");
    }
}

/// Runs `call` with room for an error text, and takes ownership of the tensor it returns.
fn tensor(call: impl FnOnce(*mut c_char, usize) -> *mut C_tensor) -> Result<Tensor, NetworkError> {
    let mut error: [c_char; 1024] = [0; 1024];
    let pointer = call(error.as_mut_ptr(), error.len());
    if pointer.is_null() {
        // SAFETY: the buffer was zeroed and C++ writes into it with snprintf, which terminates it.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) };
        return Err(NetworkError::Torch(first_line(&text.to_string_lossy())));
    }
    // SAFETY: on success C++ returns a tensor allocated with `new` that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(pointer) })
}

/// Libtorch appends stack traces to its messages; the first line is what a reader needs.
pub(crate) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("an unknown error").to_owned()
}

/// `weight` (out × in × k × k) reordered for inputs of shape `input` (n, c, h, w).
pub(crate) fn onednn_pack(
    weight: &Tensor,
    padding: i64,
    stride: i64,
    [n, c, h, w]: [i64; 4],
) -> Result<Tensor, NetworkError> {
    // SAFETY: the tensor outlives the call, which only reads it.
    tensor(|error, size| unsafe {
        boxreel_onednn_pack(weight.as_ptr(), padding, stride, n, c, h, w, error, size)
    })
}

/// `relu?(conv(input, weight) + bias + residual?)`. The residual's memory becomes the output's, which is why
/// it is taken by value.
#[expect(clippy::needless_pass_by_value, reason = "its memory is the result's afterwards")]
pub(crate) fn onednn_conv(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    padding: i64,
    stride: i64,
    relu: bool,
    residual: Option<Tensor>,
) -> Result<Tensor, NetworkError> {
    let other = residual.as_ref().map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: all tensors outlive the call; only the residual is written, and this function owns it.
    tensor(|error, size| unsafe {
        boxreel_onednn_conv(
            input.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            padding,
            stride,
            c_int::from(relu),
            other,
            error,
            size,
        )
    })
}

/// An int8 convolution's weights, ready for [`int8_conv`].
pub(crate) struct Int8Weights {
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bias: Tensor,
}

impl Int8Weights {
    /// `weight` (out × in × k × k, s8), of whose outputs each has its scale, reordered for inputs of shape `input`
    /// (n, c, h, w). The bias is in real numbers.
    pub(crate) fn pack(
        weight: &Tensor,
        scales: &[f32],
        bias: &[f32],
        padding: i64,
        stride: i64,
        [n, c, h, w]: [i64; 4],
    ) -> Result<Self, NetworkError> {
        let scales = Tensor::f_from_slice(scales)?;
        // SAFETY: the tensors outlive the call, which only reads them.
        let weight = tensor(|error, size| unsafe {
            let (weight, scales) = (weight.as_ptr(), scales.as_ptr());
            boxreel_onednn_int8_pack(weight, scales, padding, stride, n, c, h, w, error, size)
        })?;
        let zeros = Tensor::f_zeros([scales.size1()?], (Kind::Int, tch::Device::Cpu))?;
        Ok(Self { weight, scales, zeros, bias: Tensor::f_from_slice(bias)? })
    }

    pub(crate) fn share(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            scales: self.scales.shallow_clone(),
            zeros: self.zeros.shallow_clone(),
            bias: self.bias.shallow_clone(),
        }
    }
}

/// `relu?(conv(input, weights) + bias + residual?)` as bytes of `output`'s meaning, or else in fp32. Input and residual
/// are bytes; the input's zero is 0. The residual's memory becomes the output's, which is why it is taken by value.
#[expect(clippy::needless_pass_by_value, reason = "its memory is the result's afterwards")]
pub(crate) fn int8_conv(
    input: &Map,
    weights: &Int8Weights,
    padding: i64,
    stride: i64,
    relu: bool,
    output: Option<Quantization>,
    residual: Option<Map>,
) -> Result<Tensor, NetworkError> {
    let bytes = |map: &Map| match map.quantization {
        Some(Quantization { scale, zero }) if map.tensor.kind() == Kind::Uint8 => {
            Ok(Bytes { tensor: map.tensor.as_ptr(), scale: f64::from(scale), zero: i64::from(zero) })
        }
        _ => Err(NetworkError::Torch("int8 where there are no bytes".to_owned())),
    };
    let none = Bytes { tensor: std::ptr::null(), scale: 1.0, zero: 0 };
    let call = Int8Call {
        input: bytes(input)?,
        weight: weights.weight.as_ptr(),
        weight_scales: weights.scales.as_ptr(),
        weight_zeros: weights.zeros.as_ptr(),
        bias: weights.bias.as_ptr(),
        padding,
        stride,
        relu: i64::from(relu),
        residual: residual.as_ref().map_or(Ok(none), bytes)?,
        output_scale: output.map_or(0.0, |output| f64::from(output.scale)),
        output_zero: output.map_or(0, |output| i64::from(output.zero)),
    };
    // SAFETY: all tensors outlive the call; only the residual is written, and this function owns it.
    tensor(|error, size| unsafe { boxreel_onednn_int8_conv(&raw const call, error, size) })
}

/// A tensor of bytes as they lie in memory.
pub(crate) fn bytes(tensor: &Tensor) -> &[u8] {
    assert!(
        tensor.kind() == Kind::Uint8 && tensor.device() == tch::Device::Cpu && tensor.is_contiguous(),
        "bytes of a tensor that is not of bytes, or not in one piece"
    );
    // SAFETY: the tensor holds `numel` bytes in one piece, as asserted above, for as long as it lives.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// Whether [`winograd`] may be called: it is compiled for AVX2 and FMA.
pub(crate) fn has_winograd() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The filters of a 3×3 convolution (outputs × channels × 3 × 3) as [`winograd`] wants them.
pub(crate) fn winograd_filters(
    weight: &[f32],
    outputs: usize,
    channels: usize,
) -> Result<Tensor, NetworkError> {
    assert!(has_winograd() && weight.len() == outputs * channels * 9);
    #[cfg(target_arch = "x86_64")]
    {
        let (outputs, channels) = (outputs as i64, channels as i64);
        // SAFETY: a pure function of two numbers.
        let floats = unsafe { boxreel_winograd_filter_floats(channels, outputs) };
        let filters = Tensor::f_empty([floats], (Kind::Float, tch::Device::Cpu))?;
        // SAFETY: the weight has the length asserted above, the result the length C++ asked for.
        unsafe {
            boxreel_winograd_filters(weight.as_ptr(), outputs, channels, filters.data_ptr().cast());
        }
        Ok(filters)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Err(no_winograd())
}

#[cfg(not(target_arch = "x86_64"))]
fn no_winograd() -> NetworkError {
    NetworkError::Torch("this processor has no AVX2".to_owned())
}

/// `relu?(conv(x, filters) + bias)` for fp32 activations n × channels × height × width, channels last in
/// memory; 3×3, stride 1, padding 1. `filters` come from [`winograd_filters`].
pub(crate) fn winograd(
    x: &Tensor,
    filters: &Tensor,
    bias: &Tensor,
    relu: bool,
) -> Result<Tensor, NetworkError> {
    // Back to fp32 and channels last, which is a no-op as the network runs.
    let x = x.f_permute([0, 2, 3, 1])?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let (n, height, width, channels) = x.size4()?;
    let outputs = bias.size1()?;
    #[cfg(target_arch = "x86_64")]
    {
        assert!(has_winograd() && channels % 8 == 0 && bias.kind() == Kind::Float);
        // SAFETY: pure functions of two numbers.
        let (filter_floats, scratch_floats) = unsafe {
            (
                boxreel_winograd_filter_floats(channels, outputs),
                boxreel_winograd_scratch_floats(channels, outputs),
            )
        };
        assert!(filters.numel() as i64 == filter_floats && filters.kind() == Kind::Float);
        let options = (Kind::Float, tch::Device::Cpu);
        let scratch = Tensor::f_empty([scratch_floats], options)?;
        let y = Tensor::f_empty([n, height, width, outputs], options)?;
        // SAFETY: all tensors are contiguous fp32 on the CPU, of the lengths C++ goes by: x as its own sizes
        // say, filters and scratch as C++ asked for, bias `outputs`, y as made here. Only y and scratch, which
        // nobody else knows yet, are written. The processor was asked for AVX2 and FMA.
        unsafe {
            boxreel_winograd_conv(
                x.data_ptr().cast(),
                n,
                height,
                width,
                channels,
                filters.data_ptr().cast(),
                bias.data_ptr().cast(),
                outputs,
                c_int::from(relu),
                y.data_ptr().cast(),
                scratch.data_ptr().cast(),
            );
        }
        Ok(y.f_permute([0, 3, 1, 2])?)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Err(no_winograd())
}
