// The few oneDNN operators of libtorch that tch does not reach: a convolution with its bias, ReLU and
// residual sum in one pass, on weights reordered once at load. Libtorch registers them for its own compiler
// under the names below. Nothing may throw across the border to Rust: every function returns null and writes
// the reason into `error` instead.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
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

}  // extern "C"
