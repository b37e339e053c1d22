// Expands the digits of a panel to bytes in 32-byte registers, for AVX2 and AVX-VNNI.
#pragma once
#include <immintrin.h>

#include "native.h"

namespace tz {
// Writes the tiles of a panel to `scratch`, each as 16 groups of four inputs by 16 outputs with a byte for each digit.
// Returns `scratch`.
template <int bits>
static inline const uint8_t* expand_panel(const uint8_t* panel, int blocks, uint8_t* scratch) {
  constexpr int fields = 8 / bits;
  const __m256i mask = _mm256_set1_epi8((1 << bits) - 1);
  for (int tile = 0; tile < 2 * blocks; ++tile)
    for (int chunk = 0; chunk < 16 / fields; ++chunk)
      for (int part = 0; part < 2; ++part) {
        const uint8_t* from = panel + tile * tile_bytes(bits) + chunk * 64 + part * 32;
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        uint8_t* to = scratch + tile * 1024 + chunk * fields * 64 + part * 32;
        auto put = [&](int field, __m256i v) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + field * 64), _mm256_and_si256(v, mask));
        };
        put(0, packed);
        put(1, _mm256_srli_epi16(packed, bits));
        if constexpr (bits == 2) {
          put(2, _mm256_srli_epi16(packed, 4));
          put(3, _mm256_srli_epi16(packed, 6));
        }
      }
  return scratch;
}
}  // namespace tz
