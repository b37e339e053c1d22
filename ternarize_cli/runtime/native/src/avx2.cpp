// Runs on AVX2 with FMA, whose instruction adds pairs of products in 16 bits. A digit is at most 2 and an activation at most
// 127 in magnitude, so a pair is at most 508. 64 pairs, those of four blocks, are summed before they are widened: 32,512 fits 16
// bits. A digit of four bits is at most 15 and a pair 3,810; 8 pairs, those of half a block, are summed: 30,480.
#include "ymm.h"

namespace tz {
namespace avx2 {
template <int bits>
struct Multiply : Halves<Multiply<bits>, bits> {
  static constexpr int kSummed = bits == 2 ? 64 : 8;           // groups of four inputs, before they are widened
  static constexpr int kTogether = kSummed < 16 ? kSummed : 16;  // of them, in one block

  // Computes sixteen outputs of N rows.
  template <int N>
  __attribute__((noinline)) static void some(const uint8_t* b, int blocks, const int8_t* a, int32_t* c) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < N; ++i)
      for (int part = 0; part < 2; ++part) store(c + i * kPanel + part * 8, _mm256_setzero_si256());
    const int groups = blocks * 16;
    for (int first = 0; first < groups; first += kSummed) {
      __m256i left[N], right[N];
      for (int i = 0; i < N; ++i) left[i] = right[i] = _mm256_setzero_si256();
      const int until = first + kSummed < groups ? first + kSummed : groups;
      for (int group = first; group < until; group += kTogether) {
        const uint8_t* weights = b + group / 16 * 2048 + group % 16 * 64;
        const int8_t* inputs = a + group / 16 * 1024 + group % 16 * 4;
#pragma GCC unroll 4
        for (int r = 0; r < kTogether; ++r) {
          const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + r * 64));
          const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + r * 64 + 32));
          for (int i = 0; i < N; ++i) {
            int32_t four;
            __builtin_memcpy(&four, inputs + i * kBlock + r * 4, 4);
            const __m256i x = _mm256_set1_epi32(four);
            left[i] = _mm256_add_epi16(left[i], _mm256_maddubs_epi16(u, x));
            right[i] = _mm256_add_epi16(right[i], _mm256_maddubs_epi16(v, x));
            __asm__("" : "+x"(left[i]), "+x"(right[i]));  // keeps them in registers
          }
        }
      }
      for (int i = 0; i < N; ++i) {
        add(c + i * kPanel, _mm256_madd_epi16(left[i], ones));
        add(c + i * kPanel + 8, _mm256_madd_epi16(right[i], ones));
      }
    }
  }

  static void store(int32_t* c, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(c), v); }
  static void add(int32_t* c, __m256i v) {
    store(c, _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(c)), v));
  }
};
}  // namespace avx2
}  // namespace tz

#define TZ_ISA avx2
#include "ops.h"

namespace tz {
const Kernels* avx2_kernels() {
  static const Kernels table = avx2::kernels("avx2");
  return &table;
}
}  // namespace tz
