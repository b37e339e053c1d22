// Computes what a training step of a linear needs besides products: rounded weights, the gradients of scales, rounded activations.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

// Rounds weights, divided by a scale, to the codes from `low` to `high`; NaN stays NaN.
inline Floats codes_of(Floats weights, Floats scale, Floats low, Floats high) {
  return rounded(smaller(high, larger(low, weights / scale)));
}

// A matrix that is written as float, or, if `floats` is null, as bfloat16.
struct Written {
  float* floats;
  uint16_t* bf16;
  void put(size_t at, Floats v, int count) const {
    if (floats)
      store_some(floats + at, v, count);
    else
      put_bf16(bf16 + at, v, count);
  }
};

constexpr float kTiny = 1.17549435e-38f;  // the least number by which weights and activations are divided

inline void round_weights(const float* weights, const float* scales, int low, int high, int first, int last, int width,
                          float* out, uint16_t* bf16) {
  const Floats least = all(static_cast<float>(low)), most = all(static_cast<float>(high));
  const Written written = {out, bf16};
  for (int row = first; row < last; ++row) {
    const size_t start = static_cast<size_t>(row) * width;
    const Floats scale = all(scales[row]), by = all(max(scales[row], kTiny));
    const bool has_scale = scales[row] > 0;
    through(weights + start, width, 0.0f, [&](int i, Floats w, int, int left) {
      written.put(start + i, (has_scale ? codes_of(w, by, least, most) : all(0.0f)) * scale, left);
    });
  }
}

inline void scale_gradients(const float* gradients, const uint16_t* bf16, const float* weights, const float* scales, int low,
                            int high, int first, int last, int width, float* out, float* wide) {
  const Floats least = all(static_cast<float>(low)), most = all(static_cast<float>(high));
  for (int row = first; row < last; ++row) {
    const size_t start = static_cast<size_t>(row) * width;
    const Floats by = all(max(scales[row], kTiny));
    Floats sum[4] = {};
    through(weights + start, width, 0.0f, [&](int i, Floats w, int chain, int left) {
      Floats gradient;
      if (bf16) {
        gradient = from_bf16(bf16 + start + i, left);
        store_some(wide + start + i, gradient, left);
      } else {
        gradient = load_up_to(gradients + start + i, left);
      }
      sum[chain] += gradient * codes_of(w, by, least, most);
    });
    out[row] = scales[row] > 0 ? sum_of(sum) : 0.0f;
  }
}

inline void round_activations(const float* x, int first, int last, int width, float* out, uint16_t* bf16) {
  const Written written = {out, bf16};
  for (int row = first; row < last; ++row) {
    const size_t start = static_cast<size_t>(row) * width;
    const float* in = x + start;
    const int32_t largest = largest_bits(in, width);
    float most;
    __builtin_memcpy(&most, &largest, sizeof most);
    const float scale = most / 127.0f;
    const Floats t = all(largest >= kInfinite ? __builtin_nanf("") : scale), by = all(max(scale, kTiny));
    through(in, width, 0.0f, [&](int i, Floats v, int, int left) { written.put(start + i, rounded(v / by) * t, left); });
  }
}

}  // namespace TZ_ISA
}  // namespace tz
