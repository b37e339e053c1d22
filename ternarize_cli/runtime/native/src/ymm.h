// Products in 32-byte registers, for AVX2 and AVX-VNNI: the digits of a panel are expanded to bytes first.
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

// The frame of `Multiply` (ops.h), for an instruction set that defines in it
//     template <int N> static void some(const uint8_t* b, int blocks, const int8_t* a, int32_t* c);
// which computes the sums of N rows and sixteen outputs.
template <class Multiply, int bits>
struct Halves {
  static constexpr int rows = 4;

  static const uint8_t* prepare(const uint8_t* panel, int blocks, uint8_t* scratch) {
    return expand_panel<bits>(panel, blocks, scratch);
  }

  static void run(const uint8_t* b, int blocks, const int8_t* a, const int8_t*, int count, int32_t* c) {
    for (int half = 0; half < 2; ++half) switch (count) {
        case 1: Multiply::template some<1>(b + half * 1024, blocks, a, c + half * 16); break;
        case 2: Multiply::template some<2>(b + half * 1024, blocks, a, c + half * 16); break;
        case 3: Multiply::template some<3>(b + half * 1024, blocks, a, c + half * 16); break;
        default: Multiply::template some<4>(b + half * 1024, blocks, a, c + half * 16);
      }
  }
};
}  // namespace tz
