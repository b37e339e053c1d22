// Runs on AVX-512 with VNNI and BF16 (Zen 4, Cooper Lake; Sapphire Rapids where AMX is not enabled): as `vnni`, but attention
// runs on bfloat16, of which an instruction multiplies 32 pairs.
#define TZ_ISA vnnibf16
#include "zmm.h"

#include "ops.h"

namespace tz {
namespace vnnibf16 {

constexpr int kQueries = 16;
constexpr int kTogether = 8;  // rows

// Multiplies kTogether rows by pairs of columns (bf16.h).
inline void multiply_some(const uint16_t* a, size_t stride, int steps, const uint16_t* left, const uint16_t* right,
                          size_t step, float* c, size_t c_stride) {
  __m512 low[kTogether], high[kTogether];
  for (int i = 0; i < kTogether; ++i) low[i] = high[i] = _mm512_setzero_ps();
  for (int s = 0; s < steps; ++s)
    for (int pair = 0; pair < 16; ++pair) {
      const __m512bh u = (__m512bh)_mm512_loadu_si512(left + s * step + pair * 32);
      const __m512bh v = (__m512bh)_mm512_loadu_si512(right + s * step + pair * 32);
      for (int i = 0; i < kTogether; ++i) {
        int32_t both;
        __builtin_memcpy(&both, a + i * stride + s * 32 + pair * 2, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(both);
        low[i] = _mm512_dpbf16_ps(low[i], x, u);
        high[i] = _mm512_dpbf16_ps(high[i], x, v);
      }
    }
  for (int i = 0; i < kTogether; ++i) {
    _mm512_storeu_ps(c + i * c_stride, low[i]);
    _mm512_storeu_ps(c + i * c_stride + 16, high[i]);
  }
}

inline void multiply_pairs(const uint16_t* a, size_t stride, int rows, int steps, const uint16_t* left,
                           const uint16_t* right, size_t step, float* c, size_t c_stride) {
  for (int row = 0; row < rows; row += kTogether)
    multiply_some(a + row * stride, stride, steps, left, right, step, c + row * c_stride, c_stride);
}
}  // namespace vnnibf16
}  // namespace tz

#include "bf16.h"

namespace tz {
const Kernels* vnnibf16_kernels() {
  static const Kernels table = vnnibf16::bf16_kernels("vnnibf16", 64, [] {}, [] {});
  return &table;
}
}  // namespace tz
