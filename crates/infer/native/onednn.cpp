// The few oneDNN operators of libtorch that tch does not reach: a convolution with its bias, ReLU and
// residual sum in one pass, on weights reordered once at load, of floating-point numbers and of bytes. Libtorch registers them for its own compiler
// under the names below. Nothing may throw across the border to Rust: every function returns null and writes
// the reason into `error` instead.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/InferenceMode.h>
#include <malloc.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using c10::IValue;

using Scalars = c10::List<std::optional<at::Scalar>>;

// The search takes a lock, so callers keep what it finds in a static.
c10::OperatorHandle operator_named(const char* name, const char* overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
}

template <typename Body>
Tensor* guarded(char* error, size_t error_size, Body body) {
  try {
    c10::InferenceMode no_gradients;
    return new Tensor(body());
  } catch (const std::exception& e) {
    std::snprintf(error, error_size, "%s", e.what());
  } catch (...) {
    std::snprintf(error, error_size, "an unknown C++ exception");
  }
  return nullptr;
}

// A tensor of bytes, or none, and what they stand for: scale * (byte - zero).
struct Bytes {
  const Tensor* tensor;
  double scale;
  int64_t zero;
};

struct Int8Call {
  Bytes input;
  const Tensor* weight;
  const Tensor* weight_scales;
  const Tensor* weight_zeros;
  const Tensor* bias;
  int64_t padding;
  int64_t stride;
  int64_t relu;
  Bytes residual;
  double output_scale;  // 0 for fp32
  int64_t output_zero;
};

}  // namespace

extern "C" {

// Keeps freed activations with the process: without this every layer maps and faults its output anew.
void boxreel_keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
}

// Lets fp32 be fp32 on GPUs: by default cuDNN rounds its inputs to 10 bits of mantissa (TF32).
void boxreel_refuse_tf32() {
  at::globalContext().setAllowTF32CuDNN(false);
  at::globalContext().setAllowTF32CuBLAS(false);
}

// `weight` in the order oneDNN likes best for inputs of `n` x `c` x `h` x `w`.
Tensor* boxreel_onednn_pack(const Tensor* weight, int64_t padding, int64_t stride, int64_t n, int64_t c,
                            int64_t h, int64_t w, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    static const auto op = operator_named("mkldnn::_reorder_convolution_weight", "");
    const std::vector<int64_t> paddings{padding, padding}, strides{stride, stride}, dilations{1, 1}, input{n, c, h, w};
    torch::jit::Stack stack{*weight, paddings, strides, dilations, int64_t{1}, input};
    op.callBoxed(stack);
    return stack.at(0).toTensor();
  });
}

// relu?(convolution(input, weight) + bias + residual?); a residual's memory becomes the output's.
Tensor* boxreel_onednn_conv(const Tensor* input, const Tensor* weight, const Tensor* bias, int64_t padding,
                            int64_t stride, int relu, const Tensor* residual, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    const std::vector<int64_t> paddings{padding, padding}, strides{stride, stride}, dilations{1, 1};
    if (residual == nullptr) {
      static const auto op = operator_named("mkldnn::_convolution_pointwise", "");
      torch::jit::Stack stack{*input,  *weight,    *bias,      paddings,
                              strides, dilations,  int64_t{1}, std::string(relu ? "relu" : "none"),
                              Scalars(), std::string()};
      op.callBoxed(stack);
      return stack.at(0).toTensor();
    }
    static const auto op = operator_named("mkldnn::_convolution_pointwise_", "binary");
    torch::jit::Stack stack{*residual, *input,     *weight,    *bias,
                            paddings,  strides,    dilations,  int64_t{1},
                            std::string("add"), at::Scalar(1.0),
                            relu ? IValue(std::string("relu")) : IValue(), Scalars(), std::string()};
    op.callBoxed(stack);
    return stack.at(0).toTensor();
  });
}

// `weight` (s8) in the order oneDNN likes best for u8 inputs of `n` x `c` x `h` x `w`, whose zero is 0.
Tensor* boxreel_onednn_int8_pack(const Tensor* weight, const Tensor* scales, int64_t padding, int64_t stride, int64_t n,
                                 int64_t c, int64_t h, int64_t w, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    static const auto op = operator_named("onednn::qconv_prepack", "");
    const std::vector<int64_t> paddings{padding, padding}, strides{stride, stride}, dilations{1, 1}, input{n, c, h, w};
    torch::jit::Stack stack{*weight, *scales, 1.0, int64_t{0}, strides, paddings, dilations, int64_t{1}, input};
    op.callBoxed(stack);
    return stack.at(0).toTensor();
  });
}

// relu?(convolution(input, weight) + bias + residual?), rounded to bytes or in fp32. A residual's memory becomes the
// output's.
Tensor* boxreel_onednn_int8_conv(const Int8Call* call, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    const auto& [input, weight, weight_scales, weight_zeros, bias, padding, stride, relu, residual, output_scale,
                 output_zero] = *call;
    const std::vector<int64_t> paddings{padding, padding}, strides{stride, stride}, dilations{1, 1};
    const bool bytes = output_scale != 0;
    const auto kind = static_cast<int64_t>(bytes ? at::kByte : at::kFloat);
    torch::jit::Stack stack{*input.tensor, input.scale, input.zero, *weight, *weight_scales, *weight_zeros};
    if (residual.tensor != nullptr) torch::jit::push(stack, *residual.tensor);
    torch::jit::push(stack, *bias, strides, paddings, dilations, int64_t{1}, bytes ? output_scale : 1.0, output_zero,
                     kind);
    const std::string unary = relu ? "relu" : "none";
    if (residual.tensor == nullptr) {
      static const auto op = operator_named("onednn::qconv2d_pointwise", "");
      torch::jit::push(stack, unary, Scalars(), std::string());
      op.callBoxed(stack);
    } else {
      static const auto op = operator_named("onednn::qconv2d_pointwise", "binary");
      torch::jit::push(stack, residual.scale, residual.zero, std::string("sum"), at::Scalar(1.0), unary, Scalars(),
                       std::string());
      op.callBoxed(stack);
    }
    return stack.at(0).toTensor();
  });
}

}  // extern "C"
