// Products of float activations and float weights: what an encoder has beside its ternary blocks, such as patches of images
// and heads of classifiers.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

// Computes `parts` vectors of N rows of a panel: y[i][0..columns). The sums of a row go through the inputs in order, one after
// the other, so that they do not depend on the rows that share a call, nor on how many vectors are computed at a time.
template <int N, int parts>
inline void dense_rows(const float* panel, const float* bias, int inputs, const float* x, size_t stride, int columns, float* y,
                       size_t to_stride) {
  Floats sums[N][parts];
  for (int i = 0; i < N; ++i)
    for (int part = 0; part < parts; ++part) sums[i][part] = load(bias + part * kLanes);
  for (int k = 0; k < inputs; ++k) {
    Floats weights[parts];
    for (int part = 0; part < parts; ++part) weights[part] = load(panel + static_cast<size_t>(k) * kPanel + part * kLanes);
    for (int i = 0; i < N; ++i) {
      const Floats from = all(x[i * stride + k]);
      for (int part = 0; part < parts; ++part) sums[i][part] = madd(from, weights[part], sums[i][part]);
    }
  }
  for (int i = 0; i < N; ++i)
    for (int part = 0; part < parts && part * kLanes < columns; ++part)
      store_some(y + i * to_stride + part * kLanes, sums[i][part], min(kLanes, columns - part * kLanes));
}

// Computes rows of a panel, N at a time, and returns how many: `parts` vectors of them at a time, so that all sums and weights
// stay in registers.
template <int N, int parts>
inline int dense_block(const float* panel, const float* bias, int inputs, const float* x, int rows, int columns, float* y,
                       size_t to_stride) {
  int row = 0;
  for (; row + N <= rows; row += N)
    for (int from = 0; from < columns; from += parts * kLanes)
      dense_rows<N, parts>(panel + from, bias + from, inputs, x + static_cast<size_t>(row) * inputs, inputs, columns - from,
                           y + row * to_stride + from, to_stride);
  return row;
}

// Rows that are computed at a time, and vectors of each: as many sums as the registers hold, beside the weights.
#if defined(__aarch64__)
constexpr int kDenseRows = 2, kDenseFew = 1, kDenseParts = kPanel / kLanes;  // 32 registers of 4 numbers
#else
constexpr int kDenseRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 1;  // 32 registers of 16, 16 of 8, or 16 of 4
constexpr int kDenseFew = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 1;    // of what is left over
constexpr int kDenseParts = kLanes == 4 ? kPanel / kLanes : 2;
#endif

// Multiplies `rows` rows of x by the panels [first, last) of a dense linear.
inline void dense(const Dense& w, int first, int last, const float* x, int rows, float* y) {
  constexpr int all_parts = kPanel / kLanes;
  const size_t stride = w.inputs, to_stride = w.outputs;
  for (int panel = first; panel < last; ++panel) {
    const float* weights = w.weights + static_cast<size_t>(panel) * w.inputs * kPanel;
    const float* bias = w.bias + panel * kPanel;
    const int columns = min(kPanel, w.outputs - panel * kPanel);
    float* to = y + static_cast<size_t>(panel) * kPanel;
    int done = dense_block<kDenseRows, kDenseParts>(weights, bias, w.inputs, x, rows, columns, to, to_stride);
    const float* rest = x + done * stride;
    done += dense_block<kDenseFew, all_parts>(weights, bias, w.inputs, rest, rows - done, columns, to + done * to_stride, to_stride);
    rest = x + done * stride;
    dense_block<1, all_parts>(weights, bias, w.inputs, rest, rows - done, columns, to + done * to_stride, to_stride);
  }
}

}  // namespace TZ_ISA
}  // namespace tz
