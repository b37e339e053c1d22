// Multiplies with VNNI in 64-byte registers: weights are expanded in registers, for eight rows at a time.
#pragma once
#include <immintrin.h>

#include "native.h"

namespace tz {
namespace TZ_ISA {
template <int bits>
struct Multiply {
  static constexpr int rows = 8;

  static const uint8_t* prepare(const uint8_t* panel, int, uint8_t*) { return panel; }

  // Is inlined, with what it calls: g++ 12 moves the sums from register to register in a function of their own.
  TZ_INLINE static void run(const uint8_t* b, int blocks, const int8_t* a, const int8_t* next, int count, int32_t* c) {
    switch (count) {
      case 1: return some<1>(b, blocks, a, next, c);
      case 2: return some<2>(b, blocks, a, next, c);
      case 3: return some<3>(b, blocks, a, next, c);
      case 4: return some<4>(b, blocks, a, next, c);
      case 5: return some<5>(b, blocks, a, next, c);
      case 6: return some<6>(b, blocks, a, next, c);
      case 7: return some<7>(b, blocks, a, next, c);
      default: return some<8>(b, blocks, a, next, c);
    }
  }

 private:
  template <int N>
  TZ_INLINE static void some(const uint8_t* b, int blocks, const int8_t* a, const int8_t* next, int32_t* c) {
    constexpr int fields = 8 / bits, tile = tile_bytes(bits);
    const __m512i mask = _mm512_set1_epi8((1 << bits) - 1);
    __m512i left[N], right[N];
    for (int i = 0; i < N; ++i) left[i] = right[i] = _mm512_setzero_si512();
    for (int block = 0; block < blocks; ++block) {
      const uint8_t* tiles = b + block * 2 * tile;
      for (int chunk = 0; chunk < 16 / fields; ++chunk) {
        _mm_prefetch(reinterpret_cast<const char*>(tiles + kAhead + chunk * 64), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(tiles + kAhead + tile + chunk * 64), _MM_HINT_T0);
        __m512i u = _mm512_loadu_si512(tiles + chunk * 64);
        __m512i v = _mm512_loadu_si512(tiles + tile + chunk * 64);
        for (int field = 0; field < fields; ++field) {
          if (chunk < 8 / fields)
            _mm_prefetch(reinterpret_cast<const char*>(next + block * 1024 + (chunk * fields + field) * 64), _MM_HINT_T0);
          const __m512i wu = _mm512_and_si512(u, mask), wv = _mm512_and_si512(v, mask);
          for (int i = 0; i < N; ++i) {
            int32_t four;
            __builtin_memcpy(&four, a + i * kBlock + block * 1024 + (chunk * fields + field) * 4, 4);
            const __m512i x = _mm512_set1_epi32(four);
            left[i] = _mm512_dpbusd_epi32(left[i], wu, x);
            right[i] = _mm512_dpbusd_epi32(right[i], wv, x);
          }
          u = _mm512_srli_epi16(u, bits);
          v = _mm512_srli_epi16(v, bits);
        }
      }
    }
    for (int i = 0; i < N; ++i) {
      _mm512_storeu_si512(c + i * kPanel, left[i]);
      _mm512_storeu_si512(c + i * kPanel + 16, right[i]);
    }
  }
};
}  // namespace TZ_ISA
}  // namespace tz
