// Defines what all instruction sets compute in one way, on vectors as wide as their registers. This file is compiled once for
// each instruction set, in the namespace TZ_ISA.
//
// The file of an instruction set defines `struct Multiply` before it includes this file:
//     static constexpr int rows;                                   // rows at a time, a divisor of 16
//     static const uint8_t* prepare(const uint8_t* panel, int blocks, uint8_t* scratch);
//     static void run(const uint8_t* prepared, int blocks, const int8_t* row, int count, int32_t* c);
// `run` writes the sums of digits times activations, c[rows][kPanel]; only the first `count` rows are used.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "native.h"

namespace tz {
namespace TZ_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

// Replace std::min and std::max: native.h says why nothing of the standard library is used here.
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to even, for |x| < 2^22

inline Floats load(const float* x) { return *reinterpret_cast<const Floats*>(x); }
inline void store(float* x, Floats v) { *reinterpret_cast<Floats*>(x) = v; }
inline Floats all(float x) { return x - Floats{}; }
#if defined(__AVX512F__)
inline Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif
inline Floats magnitude(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }
inline Floats rounded(Floats a) { return (a + kMagic) - kMagic; }

// Writes the whole numbers in a vector of floats as bytes.
inline void store_bytes(int8_t* to, Floats v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)v)));
#elif defined(__AVX2__)
  const __m256i whole = _mm256_cvtps_epi32((__m256)v);
  const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(pairs, pairs));
#else
  *reinterpret_cast<Bytes*>(to) = __builtin_convertvector(__builtin_convertvector(v, Ints), Bytes);
#endif
}

// Loads `count` floats, and fills the rest of the vector with `rest`.
inline Floats load_some(const float* x, int count, float rest) {
  Floats v = all(rest);
  __builtin_memcpy(&v, x, count * sizeof(float));
  return v;
}

// Computes a * b + c, fused if the instruction set can do so. `dequantized` does not use it, as its roundings have to equal
// those of the reference.
inline Floats madd(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline Floats quotient(Floats a, Floats b) {
#if defined(__AVX512F__)  // an estimate of 14 bits and a step of Newton's
  const __m512 r = _mm512_rcp14_ps((__m512)b);
  return a * (Floats)_mm512_mul_ps(r, _mm512_fnmadd_ps((__m512)b, r, _mm512_set1_ps(2.0f)));
#else
  return a / b;
#endif
}

template <class Join>
inline float reduced(Floats v, Join join) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] = join(lanes[j], lanes[j + half]);
  return lanes[0];
}

inline float sum_of(Floats v) {
  return reduced(v, [](float a, float b) { return a + b; });
}

inline float max_of(Floats v) {
  return reduced(v, [](float a, float b) { return max(a, b); });
}

// Calls body(place, vector, chain) for `count` floats, a vector at a time; the last vector is filled with `rest`. Reductions
// keep a partial result for each of four chains, so that no step waits for the one before.
template <class Body>
inline void through(const float* x, int count, float rest, Body body) {
  int i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int chain = 0; chain < 4; ++chain) body(i + chain * kLanes, load(x + i + chain * kLanes), chain);
  for (; i + kLanes <= count; i += kLanes) body(i, load(x + i), 0);
  if (i < count) body(i, load_some(x + i, count - i, rest), 0);
}

inline float sum_of(const Floats (&v)[4]) { return sum_of((v[0] + v[1]) + (v[2] + v[3])); }
inline float max_of(const Floats (&v)[4]) { return max_of(larger(larger(v[0], v[1]), larger(v[2], v[3]))); }

inline void store_some(float* x, Floats v, int count) {
  if (count >= kLanes)
    store(x, v);
  else
    __builtin_memcpy(x, &v, count * sizeof(float));
}

// Computes c[0] * x^(n - 1) + ... + c[n - 1] by Horner's rule.
template <int n>
inline Floats polynomial(const float (&c)[n], Floats x) {
  Floats p = all(c[0]);
  for (int i = 1; i < n; ++i) p = madd(p, x, all(c[i]));
  return p;
}

// Computes GELU: y * (1 + erf(y / sqrt 2)) / 2.
inline Floats gelu(Floats y) {
#if defined(TZ_SHORT_GELU)  // a polynomial within 5e-5 for |x| < 16, a hundredth of a step of int8, in half of the instructions
  const Floats x = smaller(larger(y, all(-4.4f)), all(4.4f)), u = x * x;
  constexpr float c[] = {3.57258399e-11f, -3.75659230e-09f, 1.74169544e-07f, -4.72637967e-06f, 8.43085314e-05f,
                         -1.05508454e-03f, 9.64332710e-03f, -6.60768945e-02f, 3.98761853e-01f};
  return y * madd(polynomial(c, u), x, all(0.5f));
#else  // a rational function fitted to erf(x / sqrt 2) on [0, 5.4]; the result is within 3e-7 |x|
  const Floats x = smaller(larger(y, all(-5.4f)), all(5.4f)), u = x * x;
  constexpr float p[] = {4.677366754e-08f, 1.271996505e-05f, 3.286377463e-04f, 9.301668295e-03f, 6.674394366e-02f,
                         7.978844908e-01f};
  constexpr float d[] = {1.216591056e-06f, 7.239917961e-05f, 1.858965786e-03f, 2.837853703e-02f, 2.503172175e-01f, 1.0f};
  const Floats half = 0.5f * y;
  return madd(half, quotient(x * polynomial(p, u), polynomial(d, u)), half);
#endif
}

// Computes e^x for x <= 0 with a relative error under 3e-7; below -87 gives e^-87. A power of two times Taylor's polynomial of
// the remainder.
inline Floats exp_of_negative(Floats x) {
  x = smaller(larger(x, all(-87.0f)), all(0.0f));
  const Floats whole = rounded(x * 1.44269504f);
  Floats f = madd(whole, all(-0.693359375f), x);  // ln 2 in two parts
  f = madd(whole, all(2.12194440e-4f), f);
  constexpr float p[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  return polynomial(p, f) * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

// Computes 1 / (1 + e^-x).
inline Floats sigmoid(Floats x) {
  const Floats e = exp_of_negative(-magnitude(x));
  const Floats larger_half = quotient(all(1.0f), e + 1.0f);  // of |x|
  return x < all(0.0f) ? e * larger_half : larger_half;
}

template <Activation by>
inline Floats activation(Floats y) {
  if constexpr (by == Activation::kGelu) return gelu(y);
  if constexpr (by == Activation::kGeluTanh)
    return y * sigmoid(y * madd(y * y, all(2 * 0.7978845608f * 0.044715f), all(2 * 0.7978845608f)));
  if constexpr (by == Activation::kQuickGelu) return y * sigmoid(y * 1.702f);
  if constexpr (by == Activation::kSilu) return y * sigmoid(y);
  return larger(y, all(0.0f));
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);  // rounding could carry a NaN into the sign
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void put_bf16(uint16_t* to, Floats y, int count) {
#if defined(__AVX512BF16__)
  const __m256i made = (__m256i)_mm512_cvtneps_pbh((__m512)y);
  if (count >= kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), made);
  else
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), made);
#else
  for (int j = 0; j < min(count, kLanes); ++j) to[j] = to_bf16(y[j]);
#endif
}

constexpr bool is_activated(Then then) { return then >= Then::kActivate && then < Then::kGate; }
constexpr bool is_gated(Then then) { return then >= Then::kGate; }
constexpr Activation activation_of(Then then) {
  return static_cast<Activation>(static_cast<int32_t>(then) - static_cast<int32_t>(is_gated(then) ? Then::kGate : Then::kActivate));
}

// Does what `then` says with up to a vector of outputs of one row.
template <Then then>
inline void put(const Sink& to, size_t row, size_t column, Ints sums, Floats y, int count) {
  const size_t place = row * to.stride + column;
  const bool whole = count >= kLanes;
  if constexpr (then == Then::kSums) {
    __builtin_memcpy(to.sums + place, &sums, min(count, kLanes) * sizeof(int32_t));
  } else if constexpr (then == Then::kBf16) {
    put_bf16(to.bf16 + place, y, count);
  } else {
    if constexpr (is_activated(then)) y = activation<activation_of(then)>(y);
    if constexpr (then == Then::kAdd) {
      const float* from = to.residual + row * to.residual_stride + column;
      y = y + (whole ? load(from) : load_some(from, count, 0.0f));
    }
    if (whole)
      store(to.out + place, y);
    else
      store_some(to.out + place, y, count);
  }
}

// Subtracts the sums of activations from the rows [from, until) of a block of sums c[..][kPanel], applies scales and bias, and
// writes the rows to `to`. The block's first row belongs to row `first` of the activations.
template <Then then>
inline void finish(const int32_t* c, int from, int until, const Linear& w, int panel, const Activations& a, int first,
                   const Sink& to) {
  const int columns = w.outputs - panel * kPanel;
  constexpr int parts = kPanel / kLanes;
  Floats scales[parts], biases[parts];
  for (int part = 0; part < parts; ++part) {
    scales[part] = load(w.scale + panel * kPanel + part * kLanes);
    biases[part] = load(w.bias + panel * kPanel + part * kLanes);
  }
  const auto value = [&](int i, int part, Ints& sums) {
    sums = *reinterpret_cast<const Ints*>(c + i * kPanel + part * kLanes) - a.sums[first + i];
    Floats y = __builtin_convertvector(sums, Floats) * scales[part];
    y = y * a.t[first + i];
    return y + biases[part];
  };
  Ints sums;
  if constexpr (is_gated(then)) {
    constexpr int half = parts / 2;
    for (int i = from; i < until; ++i)
      for (int part = 0; part < half; ++part) {
        const Floats y = activation<activation_of(then)>(value(i, part, sums));
        store(to.out + (first + i) * to.stride + panel * (kPanel / 2) + part * kLanes, y * value(i, part + half, sums));
      }
    return;
  }
  for (int i = from; i < until; ++i)
    for (int part = 0; part < parts && part * kLanes < columns; ++part) {
      const Floats y = value(i, part, sums);
      const size_t column = static_cast<size_t>(panel) * kPanel + part * kLanes;
      if (columns >= kPanel)
        put<then>(to, first + i, column, sums, y, kLanes);
      else
        put<then>(to, first + i, column, sums, y, columns - part * kLanes);
    }
}

#ifndef TZ_OWN_GEMM
template <Then then>
inline void gemm_then(const Linear& w, int first, int last, const Activations& a, int rows, const Sink& to,
                      uint8_t* scratch) {
  alignas(64) int32_t c[Multiply::rows * kPanel];
  for (int panel = first; panel < last; ++panel) {
    const uint8_t* codes = w.codes + static_cast<size_t>(panel) * w.blocks * 2 * kTile;
    const uint8_t* b = Multiply::prepare(codes, w.blocks, scratch);
    for (int row = 0; row < rows; row += Multiply::rows) {
      const int count = min(Multiply::rows, rows - row);
      Multiply::run(b, w.blocks, a.row(row), count, c);
      finish<then>(c, 0, count, w, panel, a, row, to);
    }
  }
}
#else
template <Then then>
inline void gemm_then(const Linear&, int first, int last, const Activations&, int rows, const Sink&, uint8_t* scratch);
#endif

template <int a>
inline void gemm_activated(const Linear& w, int first, int last, const Activations& x, int rows, const Sink& to,
                           uint8_t* scratch) {
  if constexpr (a < kActivations) {
    constexpr Activation by = static_cast<Activation>(a);
    if (to.then == activated(by)) return gemm_then<activated(by)>(w, first, last, x, rows, to, scratch);
    if (to.then == gated(by)) return gemm_then<gated(by)>(w, first, last, x, rows, to, scratch);
    gemm_activated<a + 1>(w, first, last, x, rows, to, scratch);
  }
}

inline void gemm(const Linear& w, int first, int last, const Activations& a, int rows, const Sink& to,
                 uint8_t* scratch) {
  switch (to.then) {
    case Then::kSums: return gemm_then<Then::kSums>(w, first, last, a, rows, to, scratch);
    case Then::kStore: return gemm_then<Then::kStore>(w, first, last, a, rows, to, scratch);
    case Then::kAdd: return gemm_then<Then::kAdd>(w, first, last, a, rows, to, scratch);
    case Then::kBf16: return gemm_then<Then::kBf16>(w, first, last, a, rows, to, scratch);
    default: gemm_activated<0>(w, first, last, a, rows, to, scratch);
  }
}

// Rounds x / by to int8. The product with 1 / by rounds to the same integer, unless a quotient lies next to the middle between
// two integers: rows with such a quotient are divided.
inline void quantize(const float* x, size_t stride, int first, int last, int width, const Activations& to) {
  for (int row = first; row < last; ++row) {
    const float* in = x + row * stride;
    int8_t* line = to.row(row);
    const auto put = [line](int i, Floats v) {
      store_bytes(line + i / kBlock * (16 * kBlock) + i % kBlock, v);
    };
    Floats most[4] = {}, farthest[4] = {}, sum[4] = {}, zeros[4] = {};
    through(in, width, 0.0f, [&](int, Floats v, int chain) {
      most[chain] = larger(most[chain], magnitude(v));
      zeros[chain] = madd(v, all(0.0f), zeros[chain]);
    });
    if (sum_of(zeros) != 0.0f) {  // a value is not finite, so the row's results are made NaN
      for (int i = 0; i < to.blocks * kBlock; i += kLanes) put(i, all(0.0f));
      to.t[row] = __builtin_nanf("");
      to.sums[row] = 0;
      continue;
    }
    const float scale = max_of(most) / 127.0f;
    const float by = max(scale, 1.17549435e-38f), inverse = min(1.0f / by, 3e38f);
    through(in, width, 0.0f, [&](int i, Floats v, int chain) {
      const Floats exact = v * inverse, whole = rounded(exact);
      farthest[chain] = larger(farthest[chain], magnitude(exact - whole));
      sum[chain] += whole;
      put(i, whole);
    });
    if (max_of(farthest) > 0.49998f) {
      for (Floats& part : sum) part = all(0.0f);
      through(in, width, 0.0f, [&](int i, Floats v, int chain) {
        const Floats whole = rounded(v / by);
        sum[chain] += whole;
        put(i, whole);
      });
    }
    for (int i = (width + kLanes - 1) / kLanes * kLanes; i < to.blocks * kBlock; i += kLanes) put(i, all(0.0f));
    to.t[row] = scale;
    to.sums[row] = static_cast<int32_t>(sum_of(sum));
  }
}

inline void norm_row(const float* in, int width, const Norm& by, const float* residual, float* to) {
  Floats sum[4] = {}, square[4] = {};
  float mean = 0.0f;
  if (by.kind == kLayerNorm) {
    through(in, width, 0.0f, [&](int, Floats v, int chain) { sum[chain] += v; });
    mean = sum_of(sum) / width;
  }
  through(in, width, mean, [&](int, Floats v, int chain) { square[chain] = madd(v - mean, v - mean, square[chain]); });
  const float inverse = 1.0f / __builtin_sqrtf(sum_of(square) / width + by.eps);
  const bool is_shifted = by.kind == kLayerNorm;
  through(in, width, 0.0f, [&](int i, Floats v, int) {
    const int left = width - i;
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
        through(s + begin, width, 0.0f, [&](int j, Floats x, int) {
          const int left = width - j;
          store_some(s + begin + j, x + (left >= kLanes ? load(bias + j) : load_some(bias + j, left, 0.0f)), left);
        });
      }
      Floats most[4] = {all(s[begin]), all(s[begin]), all(s[begin]), all(s[begin])}, sum[4] = {};
      through(s + begin, width, s[begin], [&](int, Floats x, int chain) { most[chain] = larger(most[chain], x); });
      const float largest = max_of(most);
      through(s + begin, width, -__builtin_inff(), [&](int j, Floats x, int chain) {
        const Floats e = exp_of_negative(x - largest);
        store_some(s + begin + j, e, width - j);
        sum[chain] += width - j >= kLanes ? e : load_some(s + begin + j, width - j, 0.0f);
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
