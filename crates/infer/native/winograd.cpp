// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray, "Fast Algorithms for
// Convolutional Neural Networks", 2015): 36 multiplications for a tile of 16 outputs instead of 144.
//
// Activations are fp32 with channels last. A call goes through the tiles of the whole batch in blocks:
//   1. each 6x6 input tile is transformed (B' d B) into 36 numbers a channel: V[36][tiles][channels]
//   2. 36 matrix products: M[36][tiles][outputs] = V[36] x U[36], U being the transformed filters
//   3. each tile of M is transformed back (A' m A) into 4x4 outputs; bias and ReLU are applied on the way out
//
// This file is compiled for AVX2 and FMA and must only be called where the processor has both.
// It includes no C++ library header, whose inline functions would be compiled for AVX2 program-wide.

#include <immintrin.h>
#include <stdint.h>

namespace {

constexpr int64_t kPoints = 36;   // numbers of a transformed tile
constexpr int64_t kRows = 6;      // tiles a kernel call multiplies at a time
constexpr int64_t kPanel = 16;    // outputs a kernel call computes at a time
constexpr int64_t kDepth = 256;   // channels that stay in the first-level cache


constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Tiles a block holds, a multiple of kRows. Blocks read all filters, so the larger those are, the more tiles
// should share a reading; small ones leave more of the cache to the tiles. Measured on an AMD Zen 3.
int64_t block_of(int64_t channels) { return channels >= 512 ? 192 : 48; }

// Rows are padded: powers of two apart they would all compete for the same cache lines.
int64_t v_stride(int64_t channels) { return channels + 16; }
int64_t m_stride(int64_t outputs) { return round_up(outputs, kPanel) + 16; }

// c[kRows][kPanel] (+)= a[kRows][depth] x b[depth][kPanel]
inline __attribute__((always_inline)) void multiply(const float* a, int64_t a_stride, const float* b, int64_t depth,
                                                    float* c, int64_t c_stride, bool add) {
  __m256 sum[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = add ? _mm256_loadu_ps(c + r * c_stride) : _mm256_setzero_ps();
    sum[r][1] = add ? _mm256_loadu_ps(c + r * c_stride + 8) : _mm256_setzero_ps();
  }
  for (int64_t k = 0; k < depth; ++k, b += kPanel) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_broadcast_ss(a + r * a_stride + k);
      sum[r][0] = _mm256_fmadd_ps(x, b0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, b1, sum[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(c + r * c_stride, sum[r][0]);
    _mm256_storeu_ps(c + r * c_stride + 8, sum[r][1]);
  }
}

// One dimension of B' d: six numbers to six.
inline __attribute__((always_inline)) void forward(const __m256 d[6], __m256 out[6]) {
  const __m256 two = _mm256_set1_ps(2), four = _mm256_set1_ps(4), five = _mm256_set1_ps(5);
  const __m256 even = _mm256_fnmadd_ps(four, d[2], d[4]);     // d4 - 4 d2
  const __m256 odd = _mm256_fnmadd_ps(four, d[1], d[3]);      // d3 - 4 d1
  const __m256 far = _mm256_sub_ps(d[4], d[2]);               // d4 - d2
  const __m256 near = _mm256_mul_ps(two, _mm256_sub_ps(d[3], d[1]));  // 2 (d3 - d1)
  out[0] = _mm256_fmadd_ps(four, d[0], _mm256_fnmadd_ps(five, d[2], d[4]));
  out[1] = _mm256_add_ps(even, odd);
  out[2] = _mm256_sub_ps(even, odd);
  out[3] = _mm256_add_ps(far, near);
  out[4] = _mm256_sub_ps(far, near);
  out[5] = _mm256_fmadd_ps(four, d[1], _mm256_fnmadd_ps(five, d[3], d[5]));
}

// One dimension of A' m: six numbers to four.
inline __attribute__((always_inline)) void backward(const __m256 m[6], __m256 out[4]) {
  const __m256 two = _mm256_set1_ps(2), four = _mm256_set1_ps(4), eight = _mm256_set1_ps(8);
  const __m256 s12 = _mm256_add_ps(m[1], m[2]), d12 = _mm256_sub_ps(m[1], m[2]);
  const __m256 s34 = _mm256_add_ps(m[3], m[4]), d34 = _mm256_sub_ps(m[3], m[4]);
  out[0] = _mm256_add_ps(m[0], _mm256_add_ps(s12, s34));
  out[1] = _mm256_fmadd_ps(two, d34, d12);
  out[2] = _mm256_fmadd_ps(four, s34, s12);
  out[3] = _mm256_add_ps(_mm256_fmadd_ps(eight, d34, d12), m[5]);
}

struct Tile {
  int64_t picture, row, column;  // of its first output
};

struct Grid {
  int64_t height, width, down, across;
  Tile at(int64_t t) const {
    const int64_t in_picture = t % (down * across);
    return {t / (down * across), in_picture / across * 4, in_picture % across * 4};
  }
};

void transform_input(const float* x, const Grid& grid, int64_t channels, Tile tile, float* v, int64_t point_stride) {
  alignas(32) static const float nothing[8] = {};
  const float* pixels[6][6];
  int64_t steps[6][6];
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const int64_t row = tile.row + i - 1, column = tile.column + j - 1;
      const bool inside = row >= 0 && row < grid.height && column >= 0 && column < grid.width;
      pixels[i][j] = inside ? x + ((tile.picture * grid.height + row) * grid.width + column) * channels : nothing;
      steps[i][j] = inside ? 1 : 0;
    }
  }
  for (int64_t c = 0; c < channels; c += 8) {
    __m256 half[6][6];
    for (int j = 0; j < 6; ++j) {
      __m256 d[6], out[6];
      for (int i = 0; i < 6; ++i) d[i] = _mm256_loadu_ps(pixels[i][j] + steps[i][j] * c);
      forward(d, out);
      for (int i = 0; i < 6; ++i) half[i][j] = out[i];
    }
    for (int i = 0; i < 6; ++i) {
      __m256 out[6];
      forward(half[i], out);
      for (int j = 0; j < 6; ++j) _mm256_storeu_ps(v + (i * 6 + j) * point_stride + c, out[j]);
    }
  }
}

void transform_output(const float* m, int64_t point_stride, const Grid& grid, int64_t outputs, Tile tile,
                      const float* bias, bool relu, float* y) {
  const int64_t rows = min(4, grid.height - tile.row), columns = min(4, grid.width - tile.column);
  float* corner = y + ((tile.picture * grid.height + tile.row) * grid.width + tile.column) * outputs;
  for (int64_t k = 0; k < outputs; k += 8) {
    const int64_t there = min(8, outputs - k);
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)there), lanes);
    __m256 half[4][6];
    for (int j = 0; j < 6; ++j) {
      __m256 in[6], out[4];
      for (int i = 0; i < 6; ++i) in[i] = _mm256_loadu_ps(m + (i * 6 + j) * point_stride + k);
      backward(in, out);
      for (int i = 0; i < 4; ++i) half[i][j] = out[i];
    }
    const __m256 b = _mm256_maskload_ps(bias + k, mask);
    for (int64_t i = 0; i < rows; ++i) {
      __m256 out[4];
      backward(half[i], out);
      for (int64_t j = 0; j < columns; ++j) {
        __m256 value = _mm256_add_ps(out[j], b);
        if (relu) value = _mm256_max_ps(value, _mm256_setzero_ps());
        float* to = corner + (i * grid.width + j) * outputs + k;
        if (there == 8) {
          _mm256_storeu_ps(to, value);
        } else {
          _mm256_maskstore_ps(to, mask, value);
        }
      }
    }
  }
}

}  // namespace

extern "C" {

// Floats that the transformed filters take.
int64_t boxreel_winograd_filter_floats(int64_t channels, int64_t outputs) {
  return kPoints * channels * round_up(outputs, kPanel);
}

// Floats of scratch memory a call needs.
int64_t boxreel_winograd_scratch_floats(int64_t channels, int64_t outputs) {
  return kPoints * block_of(channels) * (v_stride(channels) + m_stride(outputs));
}

// Transforms filters w[outputs][channels][3][3] (G g G', in double precision) into
// u[36][outputs / 16][channels][16], blocks of kDepth channels outermost within a point.
void boxreel_winograd_filters(const float* w, int64_t outputs, int64_t channels, float* u) {
  static const double G[6][3] = {{1. / 4, 0, 0},           {-1. / 6, -1. / 6, -1. / 6}, {-1. / 6, 1. / 6, -1. / 6},
                                 {1. / 24, 1. / 12, 1. / 6}, {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};
  const int64_t padded = round_up(outputs, kPanel);
  for (int64_t i = 0; i < kPoints * channels * padded; ++i) u[i] = 0;
  for (int64_t k = 0; k < outputs; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      const float* g = w + (k * channels + c) * 9;
      double half[6][3];
      for (int i = 0; i < 6; ++i)
        for (int j = 0; j < 3; ++j) half[i][j] = G[i][0] * g[j] + G[i][1] * g[3 + j] + G[i][2] * g[6 + j];
      const int64_t start = c / kDepth * kDepth, depth = min(kDepth, channels - start);
      for (int i = 0; i < 6; ++i) {
        for (int j = 0; j < 6; ++j) {
          const double value = half[i][0] * G[j][0] + half[i][1] * G[j][1] + half[i][2] * G[j][2];
          float* point = u + (i * 6 + j) * channels * padded;
          point[start * padded + (k / kPanel * depth + c - start) * kPanel + k % kPanel] = (float)value;
        }
      }
    }
  }
}

// y = relu?(convolution(x, w) + bias), padding 1: x[n][height][width][channels], y[n][height][width][outputs].
// `channels` must be a multiple of 8. `scratch` holds boxreel_winograd_scratch_floats.
void boxreel_winograd_conv(const float* x, int64_t n, int64_t height, int64_t width, int64_t channels, const float* u,
                           const float* bias, int64_t outputs, int relu, float* y, float* scratch) {
  const Grid grid{height, width, (height + 3) / 4, (width + 3) / 4};
  const int64_t tiles = n * grid.down * grid.across, padded = round_up(outputs, kPanel);
  const int64_t v_row = v_stride(channels), m_row = m_stride(outputs);
  const int64_t block = block_of(channels), v_point = block * v_row, m_point = block * m_row;
  float* v = scratch;
  float* m = scratch + kPoints * v_point;
  for (int64_t first = 0; first < tiles; first += block) {
    const int64_t count = min(block, tiles - first), rows = round_up(count, kRows);
    for (int64_t t = 0; t < count; ++t) {
      transform_input(x, grid, channels, grid.at(first + t), v + t * v_row, v_point);
    }
    // What lies in the rows that fill the last group up is computed and thrown away; it must only be numbers.
    for (int64_t t = count; t < rows; ++t)
      for (int64_t p = 0; p < kPoints; ++p)
        for (int64_t c = 0; c < channels; ++c) v[p * v_point + t * v_row + c] = 0;
    for (int64_t p = 0; p < kPoints; ++p) {
      const float* filters = u + p * channels * padded;
      for (int64_t start = 0; start < channels; start += kDepth) {
        const int64_t depth = min(kDepth, channels - start);
        for (int64_t k = 0; k < padded; k += kPanel) {
          const float* panel = filters + start * padded + k * depth;
          for (int64_t t = 0; t < rows; t += kRows) {
            multiply(v + p * v_point + t * v_row + start, v_row, panel, depth, m + p * m_point + t * m_row + k, m_row,
                     start > 0);
          }
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      transform_output(m + t * m_row, m_point, grid, outputs, grid.at(first + t), bias, relu != 0, y);
    }
  }
}

}  // extern "C"
