// Products of float activations and float weights: what an encoder has beside its ternary blocks, such as patches of images
// and heads of classifiers.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

// Computes N rows of a panel: y[i][0..columns). The sums of a row go through the inputs in order, one after the other, so that
// they do not depend on the rows that share a call.
template <int N>
inline void dense_rows(const float* panel, const float* bias, int inputs, const float* x, size_t stride, int columns, float* y,
                       size_t to_stride) {
  constexpr int parts = kPanel / kLanes;
  Floats sums[N][parts];
  for (int i = 0; i < N; ++i)
    for (int part = 0; part < parts; ++part) sums[i][part] = load(bias + part * kLanes);
  for (int k = 0; k < inputs; ++k)
    for (int i = 0; i < N; ++i) {
      const Floats from = all(x[i * stride + k]);
      for (int part = 0; part < parts; ++part)
        sums[i][part] = madd(from, load(panel + static_cast<size_t>(k) * kPanel + part * kLanes), sums[i][part]);
    }
  for (int i = 0; i < N; ++i)
    for (int part = 0; part < parts && part * kLanes < columns; ++part)
      store_some(y + i * to_stride + part * kLanes, sums[i][part], min(kLanes, columns - part * kLanes));
}

// Multiplies `rows` rows of x by the panels [first, last) of a dense linear.
inline void dense(const Dense& w, int first, int last, const float* x, int rows, float* y) {
  constexpr int together = kLanes == 16 ? 8 : kLanes == 8 ? 2 : 1;
  const size_t stride = w.inputs, to_stride = w.outputs;
  for (int panel = first; panel < last; ++panel) {
    const float* weights = w.weights + static_cast<size_t>(panel) * w.inputs * kPanel;
    const float* bias = w.bias + panel * kPanel;
    const int columns = min(kPanel, w.outputs - panel * kPanel);
    float* to = y + static_cast<size_t>(panel) * kPanel;
    int row = 0;
    for (; row + together <= rows; row += together)
      dense_rows<together>(weights, bias, w.inputs, x + row * stride, stride, columns, to + row * to_stride, to_stride);
    for (; row < rows; ++row)
      dense_rows<1>(weights, bias, w.inputs, x + row * stride, stride, columns, to + row * to_stride, to_stride);
  }
}

}  // namespace TZ_ISA
}  // namespace tz
