// Runs on AVX-VNNI, which adds four products to a 32-bit sum in one instruction, on processors without AVX-512 (Alder Lake
// and later).
#include "ymm.h"

namespace tz {
namespace avxvnni {
template <int bits>
struct Multiply : Halves<Multiply<bits>, bits> {
  // Computes sixteen outputs of N rows.
  template <int N>
  static void some(const uint8_t* b, int blocks, const int8_t* a, int32_t* c) {
    __m256i left[N], right[N];
    for (int i = 0; i < N; ++i) left[i] = right[i] = _mm256_setzero_si256();
    for (int block = 0; block < blocks; ++block)
      for (int r = 0; r < 16; ++r) {
        const uint8_t* group = b + block * 2048 + r * 64;
        const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group));
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 32));
        for (int i = 0; i < N; ++i) {
          int32_t four;
          __builtin_memcpy(&four, a + i * kBlock + block * 1024 + r * 4, 4);
          const __m256i x = _mm256_set1_epi32(four);
          left[i] = _mm256_dpbusd_avx_epi32(left[i], u, x);
          right[i] = _mm256_dpbusd_avx_epi32(right[i], v, x);
        }
      }
    for (int i = 0; i < N; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * kPanel), left[i]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * kPanel + 8), right[i]);
    }
  }
};
}  // namespace avxvnni
}  // namespace tz

#define TZ_ISA avxvnni
#include "ops.h"

namespace tz {
const Kernels* avxvnni_kernels() {
  static const Kernels table = avxvnni::kernels("avxvnni");
  return &table;
}
}  // namespace tz
