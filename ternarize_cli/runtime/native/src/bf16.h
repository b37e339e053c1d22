// Attention and rotary positions on bfloat16, for instruction sets with AVX-512 BF16.
//
// The file of an instruction set defines kQueries, 16 or 32, and `multiply_pairs` before it includes this file:
//     void multiply_pairs(const uint16_t* a, size_t stride, int rows, int steps, const uint16_t* left, const uint16_t* right,
//                         size_t step, float* c, size_t c_stride);
// It writes the products of up to kQueries rows of 32 * `steps` numbers with 32 columns to c[kQueries][c_stride], of which
// only the first `rows` rows are used. `left` holds 16 of the columns, as a tile of 16 pairs of numbers x 16 columns for each step, `step`
// numbers apart; `right` holds the other 16.
#pragma once
#include "attention.h"
#include "dense.h"
#include "product.h"
#include "rows.h"
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

static_assert(kQueries <= kRows, "attention_scratch has room for kRows queries");

// Transposes a matrix of 16 x 16 pairs of 16-bit numbers.
inline void store_transposed(const __m512i (&rows)[16], uint16_t* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // b[i + c], lane l: column 4l + c of rows i .. i + 3
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), more = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd), other = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
    _mm512_store_si512(to + c * 32, _mm512_shuffle_i32x4(even, more, 0x88));
    _mm512_store_si512(to + (8 + c) * 32, _mm512_shuffle_i32x4(even, more, 0xdd));
    _mm512_store_si512(to + (4 + c) * 32, _mm512_shuffle_i32x4(odd, other, 0x88));
    _mm512_store_si512(to + (12 + c) * 32, _mm512_shuffle_i32x4(odd, other, 0xdd));
  }
}

inline void bf16_rotate(void* x, int heads, int head, const Norm& by, const float* cos, const float* sin, int half) {
  uint16_t* from = static_cast<uint16_t*>(x);
  const bool is_even = by.kind == kNone && cos && half % kLanes == 0;
  for (int i = 0; i < heads; ++i, from += head) {
    if (is_even) {
      for (int d = 0; d < half; d += kLanes) {
        const Floats a = from_bf16(from + d, kLanes), b = from_bf16(from + half + d, kLanes);
        const Floats c = load(cos + d), s = load(sin + d);
        put_bf16(from + d, a * c - b * s, kLanes);
        put_bf16(from + half + d, b * c + a * s, kLanes);
      }
      continue;
    }
    float line[4096];  // the widest head
    for (int d = 0; d < head; d += kLanes) store_some(line + d, from_bf16(from + d, head - d), head - d);
    if (by.kind != kNone) norm_row(line, head, by, nullptr, line);
    if (cos) rotate_line(line, cos, sin, half);
    for (int d = 0; d < head; d += kLanes) put_bf16(from + d, load_some(line + d, min(kLanes, head - d), 0.0f), head - d);
  }
}

// Computes attention of a head in tiles: kQueries rows of queries; keys [keys/16][head/32] of 16 pairs of dimensions x 16 keys;
// values [keys/32][head/16] of 16 pairs of keys x 16 dimensions. Tiles are filled up with zeros. Places count from `start`, a
// multiple of 32 up to the first key that any query sees. A key that a query does not see weighs 2^-126, the least that
// power_of_two gives, which is lost in a sum with any other.
inline void bf16_attention(const Attention& at) {
  const int head = at.head, start = seen(at, at.first).from / 32 * 32, length = seen(at, at.last - 1).until - start;
  const size_t stride = at.stride;
  const uint16_t* q = static_cast<const uint16_t*>(at.q);
  const uint16_t* k = static_cast<const uint16_t*>(at.k) + start * stride;
  const uint16_t* v = static_cast<const uint16_t*>(at.v) + start * stride;
  const int wide = (head + 31) / 32 * 32, steps = wide / 32, padded = (length + 31) / 32 * 32;
  uint16_t* keys = reinterpret_cast<uint16_t*>(at.scratch);
  uint16_t* values = keys + static_cast<size_t>(padded) * wide;
  uint16_t* weights = values + static_cast<size_t>(padded) * wide;        // [kQueries][padded]
  uint16_t* queries = weights + kQueries * static_cast<size_t>(padded);  // [kQueries][wide]
  float* scores = reinterpret_cast<float*>(queries + kQueries * static_cast<size_t>(wide));  // [kQueries][padded]
  alignas(64) float made[kQueries * 32];
  const float factor = (at.bias ? 1.0f : at.scale) * 1.44269504f;
  const bool sees_all = at.before >= at.length && at.after >= at.length;

  for (int key = 0; key < padded; key += 16)
    for (int step = 0; step < steps; ++step) {
      const int left = head - step * 32;
      const __mmask32 kept = left >= 32 ? ~0u : (1u << left) - 1;
      __m512i rows[16];
      for (int i = 0; i < 16; ++i)
        rows[i] = key + i < length ? _mm512_maskz_loadu_epi16(kept, k + (key + i) * stride + step * 32)
                                   : _mm512_setzero_si512();
      store_transposed(rows, keys + (key / 16 * steps + step) * 512);
    }
  for (int pair = 0; pair < padded / 2; ++pair)
    for (int column = 0; column < wide; column += 16) {
      const int left = head - column;
      const __mmask16 kept = left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1;
      __m256i low = _mm256_setzero_si256(), high = low;
      if (2 * pair < length) low = _mm256_maskz_loadu_epi16(kept, v + 2 * pair * stride + column);
      if (2 * pair + 1 < length) high = _mm256_maskz_loadu_epi16(kept, v + (2 * pair + 1) * stride + column);
      const __m512i both =
          _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm512_store_si512(values + ((pair / 16) * (wide / 16) + column / 16) * 512 + pair % 16 * 32, both);
    }

  for (int row = at.first; row < at.last; row += kQueries) {
    const int count = min(kQueries, at.last - row);
    // These queries see keys from `low` on, up to `high`, which are multiples of 32.
    const int low = (seen(at, row).from - start) / 32 * 32;
    const int high = (seen(at, row + count - 1).until - start + 31) / 32 * 32;
    for (int i = 0; i < kQueries; ++i)
      for (int step = 0; step < steps; ++step) {
        const int left = head - step * 32;
        const __m512i line = i < count ? _mm512_maskz_loadu_epi16(left >= 32 ? ~0u : (1u << left) - 1,
                                                                  q + (row + i) * stride + step * 32)
                                       : _mm512_setzero_si512();
        _mm512_store_si512(queries + i * wide + step * 32, line);
      }
    for (int key = low; key < high; key += 32) {
      const uint16_t* tiles = keys + static_cast<size_t>(key / 16 * steps) * 512;
      multiply_pairs(queries, wide, count, steps, tiles, tiles + steps * 512, 512, scores + key, padded);
    }
    float inverse[kQueries];
    for (int i = 0; i < count; ++i) {
      float* s = scores + static_cast<size_t>(i) * padded;
      uint16_t* p = weights + static_cast<size_t>(i) * padded;
      const int from = sees_all ? 0 : seen(at, row + i).from - start;
      const int until = sees_all ? length : seen(at, row + i).until - start;
      for (int j = low; j < from; ++j) s[j] = -__builtin_inff();
      for (int j = until; j < high; ++j) s[j] = -__builtin_inff();
      if (at.bias) {
        const float* bias = at.bias + (row + i) * at.bias_stride + start;
        for (int j = from / 16 * 16; j < until; j += 16) {
          const __mmask16 kept = (j + 16 <= until ? 0xffff : static_cast<__mmask16>((1u << (until - j)) - 1)) &
                                 (j >= from ? 0xffff : static_cast<__mmask16>(0xffffu << (from - j)));
          const Floats b = (Floats)_mm512_maskz_loadu_ps(kept, bias + j);
          store(s + j, madd(load(s + j), all(at.scale), b));
        }
      }
      Floats most = load(s + low);
      for (int j = low + 16; j < high; j += 16) most = larger(most, load(s + j));
      const Floats shift = all(-max_of(most) * factor);
      Floats sum = all(0.0f);
      for (int j = low; j < high; j += 32) {
        const Floats left = power_of_two<4>(madd(load(s + j), all(factor), shift));
        const Floats right = power_of_two<4>(madd(load(s + j + 16), all(factor), shift));
        sum += left + right;
        _mm512_storeu_si512(p + j, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
      }
      inverse[i] = 1.0f / sum_of(sum);
    }
    for (int column = 0; column < wide; column += 32) {
      const uint16_t* tiles = values + static_cast<size_t>((low / 32) * (wide / 16) + column / 16) * 512;
      multiply_pairs(weights + low, padded, count, (high - low) / 32, tiles, tiles + 512, wide / 16 * 512, made, 32);
      for (int half = 0; half < 2 && column + half * 16 < head; ++half) {
        const int left = min(16, head - column - half * 16);
        const __mmask16 kept = static_cast<__mmask16>((1u << left) - 1);
        for (int i = 0; i < count; ++i)
          _mm512_mask_storeu_ps(at.out + (row + i) * at.out_stride + column + half * 16, kept,
                                _mm512_mul_ps(_mm512_load_ps(made + i * 32 + half * 16), _mm512_set1_ps(inverse[i])));
      }
    }
  }
}

// The functions of an instruction set whose attention is in bfloat16.
inline Kernels bf16_kernels(const char* name, int rows, void (*begin)(), void (*end)()) {
  return {name, true, rows, begin, end, gemm, quantize, norm, bf16_attention, bf16_rotate, gather, dense, round_weights,
          scale_gradients, round_activations};
}

}  // namespace TZ_ISA
}  // namespace tz
