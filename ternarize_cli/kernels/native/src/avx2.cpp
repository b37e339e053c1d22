// Runs on AVX2 with FMA, whose instruction adds pairs of products in 16 bits. A digit is at most 2 and an activation at most
// 127 in magnitude, so a pair is at most 508. 16 pairs are summed before they are widened: 8,128 fits 16 bits. A digit of four
// bits is at most 15 and a pair 3,810; 8 pairs are summed: 30,480.
#include "ymm.h"

namespace tz {
namespace avx2 {
template <int bits>
struct Multiply {
  static constexpr int rows = 4;

  static const uint8_t* prepare(const uint8_t* panel, int blocks, uint8_t* scratch) {
    return expand_panel<bits>(panel, blocks, scratch);
  }

  static void run(const uint8_t* b, int blocks, const int8_t* a, const int8_t*, int count, int32_t* c) {
    for (int part = 0; part < 4; ++part) part_of(b, blocks, a, count, part, c + part * 8);
  }

 private:
  static constexpr int pairs = bits == 2 ? 16 : 8;  // are summed in 16 bits

  // Computes eight outputs of four rows.
  static void part_of(const uint8_t* b, int blocks, const int8_t* a, int count, int part, int32_t* c) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t* x[rows];
    for (int i = 0; i < rows; ++i) x[i] = a + (i < count ? i : count - 1) * kBlock;
    __m256i sums[rows];
    for (auto& s : sums) s = _mm256_setzero_si256();
    for (int block = 0; block < blocks; ++block) {
      const uint8_t* tile = b + (block * 2 + part / 2) * 1024 + part % 2 * 32;
      for (int first = 0; first < 16; first += pairs) {
        __m256i short_sums[rows];
        for (auto& s : short_sums) s = _mm256_setzero_si256();
        for (int r = first; r < first + pairs; ++r) {
          const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + r * 64));
          for (int i = 0; i < rows; ++i) {
            int32_t four;
            __builtin_memcpy(&four, x[i] + block * 1024 + r * 4, 4);
            short_sums[i] = _mm256_add_epi16(short_sums[i], _mm256_maddubs_epi16(w, _mm256_set1_epi32(four)));
          }
        }
        for (int i = 0; i < rows; ++i) sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(short_sums[i], ones));
      }
    }
    for (int i = 0; i < rows; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + i * kPanel), sums[i]);
  }
};
}  // namespace avx2
}  // namespace tz

#define TZ_ISA avx2
#include "ops.h"

namespace tz {
const Kernels* avx2_kernels() {
  static const Kernels table = {"avx2", false, [] {}, [] {}, avx2::gemm, avx2::quantize, avx2::norm,
                                avx2::attention, avx2::rotate, avx2::gather};
  return &table;
}
}  // namespace tz
