// Works on rows of activations: rounding to int8, norms, rotary positions, and look-ups in tables.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

struct Rounded {
  int32_t sum;          // of the row's integers
  bool is_near_middle;  // a quotient lies next to the middle between two integers
};

// Rounds a row of `width` numbers, times `inverse` or, if `divide`, divided by `by`, to int8. The two may differ where a quotient
// is near the middle.

#if defined(__AVX512F__)
template <bool divide>
inline Rounded round_row(const float* in, int width, float by, float inverse, int8_t* line, int blocks) {
  const __m512 magic = _mm512_set1_ps(kMagic), factor = _mm512_set1_ps(inverse), divisor = _mm512_set1_ps(by);
  __m512i sum = _mm512_setzero_si512();
  Ints farthest = {};
  const auto round_block = [&](const float* from, int8_t* to) {
    for (int i = 0; i < 4; ++i) {
      const __m512 v = _mm512_loadu_ps(from + i * 16);
      const __m512 exact = divide ? _mm512_div_ps(v, divisor) : v;  // before it is multiplied
      const __m512 raised = divide ? _mm512_add_ps(exact, magic) : _mm512_fmadd_ps(v, factor, magic);
      const __m512 whole = _mm512_sub_ps(raised, magic);
      const __m512 rest = divide ? _mm512_sub_ps(exact, whole) : _mm512_fmsub_ps(v, factor, whole);
      farthest = larger(farthest, (Ints)magnitude((Floats)rest));
      sum = _mm512_add_epi32(sum, _mm512_castps_si512(raised));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * 16), _mm512_cvtepi32_epi8(_mm512_castps_si512(raised)));
    }
  };
  const int filled = width / kBlock;
  for (int block = 0; block < filled; ++block) round_block(in + block * kBlock, line + block * (16 * kBlock));
  if (filled < blocks) {
    float rest[kBlock] = {};
    __builtin_memcpy(rest, in + filled * kBlock, (width - filled * kBlock) * sizeof(float));
    round_block(rest, line + filled * (16 * kBlock));
  }
  // The bits of kMagic were added to each of the integers, of which a lane has summed four a block.
  const uint32_t added = static_cast<uint32_t>(blocks) * 4 * 0x4b400000u;
  sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(static_cast<int32_t>(added)));
  return {_mm512_reduce_add_epi32(sum), max_of((Floats)farthest) > 0.49998f};
}
#else
template <bool divide>
inline Rounded round_row(const float* in, int width, float by, float inverse, int8_t* line, int blocks) {
  const auto put = [line](int i, Floats v) { store_bytes(line + i / kBlock * (16 * kBlock) + i % kBlock, v); };
  Floats farthest[4] = {}, sum[4] = {};
  through(in, width, 0.0f, [&](int i, Floats v, int chain, int) {
    const Floats exact = divide ? v / by : v * inverse, whole = rounded(exact);
    farthest[chain] = larger(farthest[chain], magnitude(exact - whole));
    sum[chain] += whole;
    put(i, whole);
  });
  for (int i = (width + kLanes - 1) / kLanes * kLanes; i < blocks * kBlock; i += kLanes) put(i, all(0.0f));
  return {static_cast<int32_t>(sum_of(sum)), max_of(farthest) > 0.49998f};
}
#endif

// Returns the bits of the largest magnitude in a row. They grow with the number; infinity and NaN have kInfinite and more.
constexpr int32_t kInfinite = 0x7f800000;
inline int32_t largest_bits(const float* in, int width) {
  Ints most[4] = {};
  through(in, width, 0.0f, [&](int, Floats v, int chain, int) {
    most[chain] = larger((Ints)magnitude(v), most[chain]);
  });
  const Ints both = larger(larger(most[0], most[1]), larger(most[2], most[3]));
  int32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = max(largest, both[i]);
  return largest;
}

// Rounds x / by to int8. Rows are multiplied by 1 / by, which is faster; rows in which this may round to another integer are
// divided.
inline void quantize(const float* x, size_t stride, int first, int last, int width, const Activations& to) {
  for (int row = first; row < last; ++row) {
    const float* in = x + row * stride;
    int8_t* line = to.row(row);
    const int32_t largest = largest_bits(in, width);
    if (largest >= kInfinite) {  // the row's results are made NaN
      for (int block = 0; block < to.blocks; ++block) __builtin_memset(line + block * (16 * kBlock), 0, kBlock);
      to.t[row] = __builtin_nanf("");
      to.sums[row] = 0;
      continue;
    }
    float most;
    __builtin_memcpy(&most, &largest, sizeof most);
    const float scale = most / 127.0f, by = max(scale, 1.17549435e-38f), inverse = min(1.0f / by, 3e38f);
    Rounded made = round_row<false>(in, width, by, inverse, line, to.blocks);
    if (made.is_near_middle) made = round_row<true>(in, width, by, inverse, line, to.blocks);
    to.t[row] = scale;
    to.sums[row] = made.sum;
  }
}

inline void norm_row(const float* in, int width, const Norm& by, const float* residual, float* to) {
  Floats sum[4] = {}, square[4] = {};
  float mean = 0.0f;
  if (by.kind == kLayerNorm) {
    through(in, width, 0.0f, [&](int, Floats v, int chain, int) { sum[chain] += v; });
    mean = sum_of(sum) / width;
  }
  through(in, width, mean, [&](int, Floats v, int chain, int) { square[chain] = madd(v - mean, v - mean, square[chain]); });
  const float inverse = 1.0f / __builtin_sqrtf(sum_of(square) / width + by.eps);
  const bool is_shifted = by.kind == kLayerNorm;
  through(in, width, 0.0f, [&](int i, Floats v, int, int left) {
    const auto at = [&](const float* from) { return left >= kLanes ? load(from + i) : load_some(from + i, left, 0.0f); };
    const Floats scaled = (v - mean) * inverse;
    Floats y = is_shifted ? madd(scaled, at(by.gain), at(by.bias)) : scaled * at(by.gain);
    if (residual) y = y + at(residual);
    store_some(to + i, y, left);
  });
}

inline void norm(const float* x, size_t stride, int rows, int width, const Norm& by, const float* residual, float* out,
                 size_t to_stride) {
  for (int row = 0; row < rows; ++row)
    norm_row(x + row * stride, width, by, residual ? residual + row * to_stride : nullptr, out + row * to_stride);
}

inline void rotate_line(float* line, const float* cos, const float* sin, int half) {
  for (int d = 0; d < half; d += kLanes) {
    const int left = half - d;
    const auto at = [left](const float* from) { return left >= kLanes ? load(from) : load_some(from, left, 0.0f); };
    const Floats a = at(line + d), b = at(line + half + d), c = at(cos + d), s = at(sin + d);
    store_some(line + d, a * c - b * s, left);
    store_some(line + half + d, b * c + a * s, left);
  }
}

inline void rotate(void* x, int heads, int head, const Norm& by, const float* cos, const float* sin, int half) {
  float* line = static_cast<float*>(x);
  for (int i = 0; i < heads; ++i, line += head) {
    if (by.kind != kNone) norm_row(line, head, by, nullptr, line);
    if (cos) rotate_line(line, cos, sin, half);
  }
}

inline void gather(const int8_t* table, const float* scales, const int64_t* ids, int rows, int width, bool add,
                   float* x) {
  for (int row = 0; row < rows; ++row) {
    const int8_t* from = table + ids[row] * width;
    const float scale = scales[ids[row]];
    float* to = x + static_cast<size_t>(row) * width;
    if (add)
      for (int i = 0; i < width; ++i) to[i] += from[i] * scale;
    else
      for (int i = 0; i < width; ++i) to[i] = from[i] * scale;
  }
}

}  // namespace TZ_ISA
}  // namespace tz
