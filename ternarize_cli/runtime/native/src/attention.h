// Attention in float.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

// The keys that a query sees: [from, until).
struct Seen {
  int from, until;
};
inline Seen seen(const Attention& at, int query) {
  return {query > at.before ? query - at.before : 0, query < at.length - at.after ? query + at.after + 1 : at.length};
}

// Computes attention in float, four queries at a time. Keys are transposed first, so that scores are vectors over keys. Places in
// `keys` and `scores` count from the first key that any query sees.
inline void attention(const Attention& at) {
  const float* q = static_cast<const float*>(at.q);
  const int head = at.head, first_key = seen(at, at.first).from, last_key = seen(at, at.last - 1).until;
  const float* k = static_cast<const float*>(at.k) + first_key * at.stride;
  const float* v = static_cast<const float*>(at.v) + first_key * at.stride;
  const int count_keys = last_key - first_key;
  const int padded = (count_keys + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes);
  const size_t line_width = padded;
  float* keys = reinterpret_cast<float*>(at.scratch);  // [head][padded]
  float* scores = keys + head * line_width;              // [4][padded]
  for (int d = 0; d < head; ++d)
    for (int i = 0; i < padded; ++i) keys[d * line_width + i] = i < count_keys ? k[i * at.stride + d] : 0.0f;
  for (int row = at.first; row < at.last; row += 4) {
    const int count = min(4, at.last - row);
    // These four queries see keys from `low` on, up to `high`.
    const int low = (seen(at, row).from - first_key) / (2 * kLanes) * (2 * kLanes);
    const int high = seen(at, row + count - 1).until - first_key;
    const float* from[4];
    for (int i = 0; i < 4; ++i) from[i] = q + min(row + i, at.last - 1) * at.stride;
    for (int j = low; j < high; j += 2 * kLanes) {
      Floats left[4] = {}, right[4] = {};
      for (int d = 0; d < head; ++d) {
        const float* line = keys + d * line_width + j;
        const Floats a = load(line), b = load(line + kLanes);
        for (int i = 0; i < 4; ++i) {
          const Floats x = all(from[i][d]);
          left[i] = madd(x, a, left[i]);
          right[i] = madd(x, b, right[i]);
        }
      }
      for (int i = 0; i < 4; ++i) {
        store(scores + i * line_width + j, left[i] * at.scale);
        store(scores + i * line_width + j + kLanes, right[i] * at.scale);
      }
    }
    float inverse[4];
    for (int i = 0; i < 4; ++i) {
      float* s = scores + i * line_width;
      const int query = min(row + i, at.last - 1);
      const int begin = seen(at, query).from - first_key, end = seen(at, query).until - first_key, width = end - begin;
      if (at.bias) {
        const float* bias = at.bias + query * at.bias_stride + first_key + begin;
        through(s + begin, width, 0.0f, [&](int j, Floats x, int, int left) {
          store_some(s + begin + j, x + (left >= kLanes ? load(bias + j) : load_some(bias + j, left, 0.0f)), left);
        });
      }
      Floats most[4] = {all(s[begin]), all(s[begin]), all(s[begin]), all(s[begin])}, sum[4] = {};
      through(s + begin, width, s[begin], [&](int, Floats x, int chain, int) { most[chain] = larger(most[chain], x); });
      const float largest = max_of(most);
      through(s + begin, width, -__builtin_inff(), [&](int j, Floats x, int chain, int left) {
        const Floats e = exp_of_negative(x - largest);
        store_some(s + begin + j, e, left);
        sum[chain] += left >= kLanes ? e : load_some(s + begin + j, left, 0.0f);
      });
      for (int j = low; j < begin; ++j) s[j] = 0.0f;
      for (int j = end; j < high; ++j) s[j] = 0.0f;
      inverse[i] = 1.0f / sum_of(sum);
    }
    int d = 0;
    for (; d + 2 * kLanes <= head; d += 2 * kLanes) {
      Floats left[4] = {}, right[4] = {};
      for (int j = low; j < high; ++j) {
        const Floats a = load(v + j * at.stride + d), b = load(v + j * at.stride + d + kLanes);
        for (int i = 0; i < 4; ++i) {
          const Floats p = all(scores[i * line_width + j]);
          left[i] = madd(p, a, left[i]);
          right[i] = madd(p, b, right[i]);
        }
      }
      for (int i = 0; i < count; ++i) {
        store(at.out + (row + i) * at.out_stride + d, left[i] * inverse[i]);
        store(at.out + (row + i) * at.out_stride + d + kLanes, right[i] * inverse[i]);
      }
    }
    for (; d < head; ++d)
      for (int i = 0; i < count; ++i) {
        float sum = 0.0f;
        for (int j = low; j < high; ++j) sum += scores[i * line_width + j] * v[j * at.stride + d];
        at.out[(row + i) * at.out_stride + d] = sum * inverse[i];
      }
  }
}

}  // namespace TZ_ISA
}  // namespace tz
