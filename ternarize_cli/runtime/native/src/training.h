// Computes what a training step of a linear needs besides products: rounded weights, the gradients of scales, rounded activations.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

// Rounds weights, divided by a scale, to the codes from `low` to `high`; NaN stays NaN.
inline Floats codes_of(Floats weights, Floats scale, Floats low, Floats high) {
  return rounded(smaller(high, larger(low, weights / scale)));
}

constexpr float kTiny = 1.17549435e-38f;  // the least number by which weights and activations are divided

inline void round_weights(const float* weights, const float* scales, int low, int high, int first, int last, int width,
                          float* out) {
  const Floats least = all(static_cast<float>(low)), most = all(static_cast<float>(high));
  for (int row = first; row < last; ++row) {
    const size_t start = static_cast<size_t>(row) * width;
    const Floats scale = all(scales[row]), by = all(max(scales[row], kTiny));
    const bool has_scale = scales[row] > 0;
    through(weights + start, width, 0.0f, [&](int i, Floats w, int, int left) {
      store_some(out + start + i, (has_scale ? codes_of(w, by, least, most) : all(0.0f)) * scale, left);
    });
  }
}

inline void scale_gradients(const float* gradients, const float* weights, const float* scales, int low, int high, int first,
                            int last, int width, float* out) {
  const Floats least = all(static_cast<float>(low)), most = all(static_cast<float>(high));
  for (int row = first; row < last; ++row) {
    const size_t start = static_cast<size_t>(row) * width;
    const Floats by = all(max(scales[row], kTiny));
    Floats sum[4] = {};
    through(weights + start, width, 0.0f, [&](int i, Floats w, int chain, int left) {
      const float* from = gradients + start + i;
      const Floats gradient = left >= kLanes ? load(from) : load_some(from, left, 0.0f);
      sum[chain] += gradient * codes_of(w, by, least, most);
    });
    out[row] = scales[row] > 0 ? sum_of(sum) : 0.0f;
  }
}

inline void round_activations(const float* x, int first, int last, int width, float* out) {
  for (int row = first; row < last; ++row) {
    const float* in = x + static_cast<size_t>(row) * width;
    float* to = out + static_cast<size_t>(row) * width;
    const int32_t largest = largest_bits(in, width);
    float most;
    __builtin_memcpy(&most, &largest, sizeof most);
    const float scale = most / 127.0f;
    const Floats t = all(largest >= kInfinite ? __builtin_nanf("") : scale), by = all(max(scale, kTiny));
    through(in, width, 0.0f, [&](int i, Floats v, int, int left) { store_some(to + i, rounded(v / by) * t, left); });
  }
}

}  // namespace TZ_ISA
}  // namespace tz
