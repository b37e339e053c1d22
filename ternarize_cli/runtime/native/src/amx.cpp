// Runs on Advanced Matrix Extensions, whose tiles have 16 rows of 64 bytes. The sums of 32 rows and a panel of 32 outputs are
// four tiles, computed from two tiles of activations and two of weights: four products of 16 x 16 x 64 for four loads.
//
// Attention runs on bfloat16 tiles, 32 queries at a time against all keys of the sequence.
#include <immintrin.h>

#include "native.h"

namespace tz {
namespace amx {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void begin() {
  static const TileConfig config;
  _tile_loadconfig(&config);
}

inline void end() { _tile_release(); }

template <int bits>
inline void expand(const uint8_t* packed, uint8_t* tile) {
  constexpr int fields = 8 / bits;
  const __m512i mask = _mm512_set1_epi8((1 << bits) - 1);
  for (int chunk = 0; chunk < 16 / fields; ++chunk) {
    _mm_prefetch(reinterpret_cast<const char*>(packed + kAhead + chunk * 64), _MM_HINT_T0);
    const __m512i v = _mm512_loadu_si512(packed + chunk * 64);
    uint8_t* to = tile + chunk * fields * 64;
    _mm512_store_si512(to, _mm512_and_si512(v, mask));
    _mm512_store_si512(to + 64, _mm512_and_si512(_mm512_srli_epi16(v, bits), mask));
    if constexpr (bits == 2) {
      _mm512_store_si512(to + 128, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
      _mm512_store_si512(to + 192, _mm512_and_si512(_mm512_srli_epi16(v, 6), mask));
    }
  }
}

}  // namespace amx
}  // namespace tz

#define TZ_ISA amx
#define TZ_OWN_GEMM
#include "ops.h"

namespace tz {
namespace amx {

// The sums of 32 rows and a panel, a part of which is finished after every step of the next sums. The matrix unit works in
// parallel to vector instructions if these come between its own.
struct Unfinished {
  const int32_t* sums;  // null: there are none
  int rows;             // that are finished at each step
  int row, count;       // the next row to finish, and the number of rows
  int panel, first;     // what the sums are of: the panel, and the first row

  template <Then then, int bits>
  void step(const Linear& w, const Activations& a, const Sink& to) {
    if (!sums || row >= count) return;
    const int until = min(count, row + rows);
    finish<then, bits>(sums, row, until, w, panel, a, first, to);
    row = until;
  }
};

// Keeps the compiler from moving stores behind a load of a tile: its intrinsics do not say that they read memory.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Expands a block of a panel.
template <int bits>
inline void expand_block(const uint8_t* packed, uint8_t* expanded, int block) {
  for (int tile = 2 * block; tile < 2 * block + 2; ++tile)
    expand<bits>(packed + tile * tile_bytes(bits), expanded + tile * 1024);
}

// Computes the sums of up to 32 rows and a panel. If `packed` is not null, the panel is expanded on the way, each block a step
// before it is multiplied.
template <Then then, int bits>
inline void multiply(const uint8_t* packed, uint8_t* b, const Linear& w, const Activations& a, int row, int count,
                     const Sink& to, Unfinished& before, int32_t* c) {
  const int8_t* upper = a.row(row);
  const int8_t* lower = a.row(row + 16);
  const bool has_lower = count > 16;
  if (packed) expand_block<bits>(packed, b, 0);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int block = 0; block < w.blocks; ++block) {
    finish_stores();
    _tile_loadd(4, upper + block * 1024, 64);
    _tile_loadd(6, b + block * 2048, 64);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, b + block * 2048 + 1024, 64);
    _tile_dpbsud(1, 4, 7);
    if (packed && block + 1 < w.blocks) expand_block<bits>(packed, b, block + 1);
    if (has_lower) {
      _tile_loadd(5, lower + block * 1024, 64);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    before.template step<then, bits>(w, a, to);
  }
  _tile_stored(0, c, kPanel * 4);
  _tile_stored(1, c + 16, kPanel * 4);
  if (has_lower) {
    _tile_stored(2, c + 16 * kPanel, kPanel * 4);
    _tile_stored(3, c + 16 * kPanel + 16, kPanel * 4);
  }
}

// All that it calls is inlined, so that the vector work lies between the products.
template <Then then, int bits>
[[gnu::flatten]] inline void gemm_then(const Linear& w, int first, int last, const Activations& a, int rows,
                                       const Sink& to, uint8_t* scratch) {
  if (first >= last || rows <= 0) return;
  alignas(64) int32_t c[2][kRows * kPanel];
  const size_t bytes = static_cast<size_t>(w.blocks) * 2 * tile_bytes(bits);
  Unfinished before = {};
  before.rows = (kRows + w.blocks - 1) / w.blocks;
  int turn = 0;
  for (int panel = first; panel < last; ++panel)
    for (int row = 0; row < rows; row += kRows) {
      const uint8_t* packed = row == 0 ? w.codes + panel * bytes : nullptr;
      const int count = min(kRows, rows - row);
      multiply<then, bits>(packed, scratch, w, a, row, count, to, before, c[turn]);
      before = {c[turn], before.rows, 0, count, panel, row};
      turn ^= 1;
    }
  finish<then, bits>(before.sums, 0, before.count, w, before.panel, a, before.first, to);
}

constexpr int kQueries = 32;

// Multiplies rows by pairs of columns (bf16.h).
inline void multiply_pairs(const uint16_t* a, size_t stride, int rows, int steps, const uint16_t* left, const uint16_t* right,
                           size_t step, float* c, size_t c_stride) {
  const bool has_lower = rows > 16;
  finish_stores();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0; i < steps; ++i) {
    _tile_loadd(4, a + i * 32, stride * 2);
    _tile_loadd(6, left + i * step, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + i * step, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (has_lower) {
      _tile_loadd(5, a + 16 * stride + i * 32, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_stride * 4);
  _tile_stored(1, c + 16, c_stride * 4);
  if (has_lower) {
    _tile_stored(2, c + 16 * c_stride, c_stride * 4);
    _tile_stored(3, c + 16 * c_stride + 16, c_stride * 4);
  }
}
}  // namespace amx
}  // namespace tz

#include "bf16.h"

namespace tz {
const Kernels* amx_kernels() {
  static const Kernels table = amx::bf16_kernels("amx", 128, amx::begin, amx::end);
  return &table;
}
}  // namespace tz
