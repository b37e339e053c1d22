// Vectors as wide as the registers of an instruction set, and what is computed on one vector. Like all headers that ops.h
// includes, this one is compiled once for each instruction set, in the namespace TZ_ISA.
#pragma once
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
inline Ints larger(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
inline Floats larger(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
inline Floats smaller(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
inline Ints larger(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }
#endif
inline Floats magnitude(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }
inline Floats rounded(Floats a) { return (a + kMagic) - kMagic; }

#if !defined(__AVX512F__)  // where rows are rounded in another way
// Writes the whole numbers in a vector of floats as bytes.
inline void store_bytes(int8_t* to, Floats v) {
#if defined(__AVX2__)
  const __m256i whole = _mm256_cvtps_epi32((__m256)v);
  const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(pairs, pairs));
#else
  *reinterpret_cast<Bytes*>(to) = __builtin_convertvector(__builtin_convertvector(v, Ints), Bytes);
#endif
}
#endif

// Loads `count` floats, and fills the rest of the vector with `rest`.
inline Floats load_some(const float* x, int count, float rest) {
  Floats v = all(rest);
  __builtin_memcpy(&v, x, count * sizeof(float));
  return v;
}

inline Floats load_up_to(const float* x, int count) { return count >= kLanes ? load(x) : load_some(x, count, 0.0f); }

// Computes a * b + c, fused if the instruction set can do so. `finish` does not use it for sums, whose roundings have to equal
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

// Reduces a vector half by half: the first half with the second, and so on. All instruction sets add in this order.
template <class Join>
inline float reduced(Floats v, Join join) {
#if defined(__AVX512F__)
  const auto joined = [join](__m512 a, __m512 b) { return (__m512)join((Floats)a, (Floats)b); };
  __m512 x = (__m512)v;
  x = joined(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  x = joined(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = joined(x, _mm512_permute_ps(x, 0x4e));
  x = joined(x, _mm512_permute_ps(x, 0xb1));
  return _mm512_cvtss_f32(x);
#elif defined(__AVX2__)
  const auto joined = [join](__m256 a, __m256 b) { return (__m256)join((Floats)a, (Floats)b); };
  __m256 x = (__m256)v;
  x = joined(x, _mm256_permute2f128_ps(x, x, 1));
  x = joined(x, _mm256_permute_ps(x, 0x4e));
  x = joined(x, _mm256_permute_ps(x, 0xb1));
  return _mm256_cvtss_f32(x);
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] = join(all(lanes[j]), all(lanes[j + half]))[0];
  return lanes[0];
#endif
}

inline float sum_of(Floats v) {
  return reduced(v, [](Floats a, Floats b) { return a + b; });
}

inline float max_of(Floats v) {
  return reduced(v, [](Floats a, Floats b) { return larger(a, b); });
}

// Calls body(place, vector, chain, left) for `count` floats, a vector at a time; the last vector is filled with `rest`, and has
// `left` floats of the row; of the others, `left` is kLanes. Reductions keep a partial result for each of four chains, so that no
// step waits for the one before.
template <class Body>
inline void through(const float* x, int count, float rest, Body body) {
  int i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int chain = 0; chain < 4; ++chain) body(i + chain * kLanes, load(x + i + chain * kLanes), chain, kLanes);
  for (; i + kLanes <= count; i += kLanes) body(i, load(x + i), 0, kLanes);
  if (i < count) body(i, load_some(x + i, count - i, rest), 0, count - i);
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
#if defined(__AVX512BF16__)  // a polynomial within 5e-5 for |x| < 16, a hundredth of a step of int8, in half of the instructions
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

#if defined(__AVX512BF16__)
// Computes 2^x for |x| <= 126 by a polynomial of `terms` terms: the relative error is under 9e-4 with 4, less than that of
// bfloat16, and under 5e-5 with 5. Beyond +-126 it is as at +-126.
template <int terms>
inline Floats power_of_two(Floats x) {
  const Floats y = smaller(larger(x, all(-126.0f)), all(126.0f));
  const Floats raised = y + kMagic, f = y - (raised - kMagic);  // the last bits of `raised` are the nearest integer
  constexpr float four[] = {0.0555041f, 0.2402265f, 0.6931472f, 1.0f};
  constexpr float five[] = {0.00961813f, 0.0555041f, 0.2402265f, 0.6931472f, 1.0f};
  const Floats p = terms == 5 ? polynomial(five, f) : polynomial(four, f);
  return (Floats)((Ints)p + ((Ints)raised << 23));
}
#endif

// Computes 1 / (1 + e^-x).
inline Floats sigmoid(Floats x) {
#if defined(__AVX512BF16__)  // within 7e-5: an estimate of 14 bits, and 4e-5 for the power
  return (Floats)_mm512_rcp14_ps((__m512)(power_of_two<5>(x * -1.44269504f) + 1.0f));
#else
  const Floats e = exp_of_negative(-magnitude(x));
  const Floats larger_half = quotient(all(1.0f), e + 1.0f);  // of |x|
  return x < all(0.0f) ? e * larger_half : larger_half;
#endif
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

// Loads `count` numbers of bfloat16, or a vector of them if they are more; the rest is 0.
inline Floats from_bf16(const uint16_t* x, int count) {
#if defined(__AVX512F__)
  const __mmask16 kept = count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(kept, x)), 16);
#else
  Ints bits = {};
  for (int j = 0; j < min(count, kLanes); ++j) bits[j] = static_cast<int32_t>(static_cast<uint32_t>(x[j]) << 16);
  return (Floats)bits;
#endif
}

}  // namespace TZ_ISA
}  // namespace tz
