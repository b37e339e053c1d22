// Runs on Advanced Matrix Extensions, whose tiles have 16 rows of 64 bytes. The sums of 32 rows and a panel of 32 outputs are
// four tiles, computed from two tiles of activations and two of weights: four products of 16 x 16 x 64 for four loads.
//
// Attention runs on bfloat16 tiles, 16 queries at a time against all keys of the sequence.
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

constexpr int kAhead = 4096;  // codes are prefetched so many bytes ahead: with few rows, memory limits the speed

inline void expand(const uint8_t* packed, uint8_t* tile) {
  const __m512i mask = _mm512_set1_epi8(3);
  for (int chunk = 0; chunk < 4; ++chunk) {
    _mm_prefetch(reinterpret_cast<const char*>(packed + kAhead + chunk * 64), _MM_HINT_T0);
    const __m512i v = _mm512_loadu_si512(packed + chunk * 64);
    uint8_t* to = tile + chunk * 256;
    _mm512_store_si512(to, _mm512_and_si512(v, mask));
    _mm512_store_si512(to + 64, _mm512_and_si512(_mm512_srli_epi16(v, 2), mask));
    _mm512_store_si512(to + 128, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
    _mm512_store_si512(to + 192, _mm512_and_si512(_mm512_srli_epi16(v, 6), mask));
  }
}

}  // namespace amx
}  // namespace tz

#define TZ_ISA amx
#define TZ_OWN_GEMM
#define TZ_SHORT_GELU
#include "ops.h"

namespace tz {
namespace amx {

// Vector work that is done between the products of a block of rows and a panel: expanding the next panel, and finishing the
// sums of the block before. The matrix unit works in parallel to vector instructions if these come between its own, so a part
// of this work follows every product.
struct Beside {
  const uint8_t* packed;  // the next panel to expand, or null
  uint8_t* expanded;
  int tiles;              // tiles to expand at each step
  int tile;               // the next tile to expand
  const int32_t* sums;    // sums of the block before, of which `rows` rows are finished at each step; or null
  int rows, row, count;
  int panel, first;

  template <Then then>
  void step(const Linear& w, const Activations& a, const Sink& to) {
    for (int i = 0; packed && i < tiles && tile < 2 * w.blocks; ++i, ++tile)
      expand(packed + tile * kTile, expanded + tile * 1024);
    if (sums && row < count) {
      const int until = min(count, row + rows);
      finish<then>(sums, row, until, w, panel, a, first, to);
      row = until;
    }
  }
};

// Computes the sums of up to 32 rows and a panel.
template <Then then>
inline void multiply(const uint8_t* b, const Linear& w, const Activations& a, int row, int count, const Sink& to,
                     Beside& beside, int32_t* c) {
  const int8_t* upper = a.row(row);
  const int8_t* lower = a.row(row + 16);
  _tile_zero(0);
  _tile_zero(1);
  if (count <= 16) {
    for (int block = 0; block < w.blocks; ++block) {
      _tile_loadd(4, upper + block * 1024, 64);
      _tile_loadd(6, b + block * 2048, 64);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(7, b + block * 2048 + 1024, 64);
      _tile_dpbsud(1, 4, 7);
      beside.template step<then>(w, a, to);
    }
  } else {
    _tile_zero(2);
    _tile_zero(3);
    for (int block = 0; block < w.blocks; ++block) {
      _tile_loadd(4, upper + block * 1024, 64);
      _tile_loadd(6, b + block * 2048, 64);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(7, b + block * 2048 + 1024, 64);
      _tile_dpbsud(1, 4, 7);
      _tile_loadd(5, lower + block * 1024, 64);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
      beside.template step<then>(w, a, to);
    }
    _tile_stored(2, c + 16 * kPanel, kPanel * 4);
    _tile_stored(3, c + 16 * kPanel + 16, kPanel * 4);
  }
  _tile_stored(0, c, kPanel * 4);
  _tile_stored(1, c + 16, kPanel * 4);
}

template <Then then>
inline void gemm_then(const Linear& w, int first, int last, const Activations& a, int rows, const Sink& to,
                      uint8_t* scratch) {
  if (first >= last || rows <= 0) return;
  alignas(64) int32_t c[2][kRows * kPanel];
  const size_t bytes = static_cast<size_t>(w.blocks) * 2 * kTile;
  uint8_t* now = scratch;
  uint8_t* next = scratch + static_cast<size_t>(w.blocks) * 2048;
  for (int tile = 0; tile < 2 * w.blocks; ++tile) expand(w.codes + first * bytes + tile * kTile, now + tile * 1024);
  Beside beside = {};
  beside.rows = (kRows + w.blocks - 1) / w.blocks;
  beside.tiles = rows > kRows ? 1 : 2;
  int turn = 0;
  for (int panel = first; panel < last; ++panel) {
    beside.packed = panel + 1 < last ? w.codes + (panel + 1) * bytes : nullptr;
    beside.expanded = next;
    beside.tile = 0;
    for (int row = 0; row < rows; row += kRows) {
      const int count = min(kRows, rows - row);
      multiply<then>(now, w, a, row, count, to, beside, c[turn]);
      beside.sums = c[turn];
      beside.row = 0;
      beside.count = count;
      beside.panel = panel;
      beside.first = row;
      turn ^= 1;
    }
    uint8_t* const used = now;
    now = next;
    next = used;
  }
  finish<then>(beside.sums, 0, beside.count, w, beside.panel, a, beside.first, to);
}

// Computes 2^x for x <= 0 with a relative error under 9e-4, less than that of bfloat16; below -126 as at -126.
inline Floats power_of_two(Floats x) {
  const __m512 y = _mm512_max_ps((__m512)x, _mm512_set1_ps(-126.0f));
  const __m512 f = _mm512_reduce_ps(y, 0);  // less the nearest integer
  __m512 p = _mm512_set1_ps(0.0555041f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2402265f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931472f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return (Floats)_mm512_scalef_ps(p, _mm512_sub_ps(y, f));
}

// Transposes a matrix of 16 x 16 pairs of 16-bit numbers.
inline void store_transposed(const __m512i (&rows)[16], uint16_t* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // b[i + c], lane l: column 4l + c of rows i .. i + 3
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), more = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd), other = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
    _mm512_store_si512(to + c * 32, _mm512_shuffle_i32x4(even, more, 0x88));
    _mm512_store_si512(to + (8 + c) * 32, _mm512_shuffle_i32x4(even, more, 0xdd));
    _mm512_store_si512(to + (4 + c) * 32, _mm512_shuffle_i32x4(odd, other, 0x88));
    _mm512_store_si512(to + (12 + c) * 32, _mm512_shuffle_i32x4(odd, other, 0xdd));
  }
}

inline Floats from_bf16(const uint16_t* x, int count) {
  const __mmask16 kept = count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(kept, x)), 16);
}

inline void bf16_rotate(void* x, int heads, int head, const Norm& by, const float* cos, const float* sin, int half) {
  uint16_t* from = static_cast<uint16_t*>(x);
  const bool is_even = by.kind == kNone && cos && half % kLanes == 0;
  for (int i = 0; i < heads; ++i, from += head) {
    if (is_even) {
      for (int d = 0; d < half; d += kLanes) {
        const Floats a = from_bf16(from + d, kLanes), b = from_bf16(from + half + d, kLanes);
        const Floats c = load(cos + d), s = load(sin + d);
        put_bf16(from + d, a * c - b * s, kLanes);
        put_bf16(from + half + d, b * c + a * s, kLanes);
      }
      continue;
    }
    float line[4096];  // the widest head
    for (int d = 0; d < head; d += kLanes) store_some(line + d, from_bf16(from + d, head - d), head - d);
    if (by.kind != kNone) norm_row(line, head, by, nullptr, line);
    if (cos) rotate_line(line, cos, sin, half);
    for (int d = 0; d < head; d += kLanes) put_bf16(from + d, load_some(line + d, min(kLanes, head - d), 0.0f), head - d);
  }
}

// Computes attention of a head in tiles: queries [rows/16][head/32] of 16 x 32; keys [keys/16][head/32] of 16 pairs of
// dimensions x 16 keys; values [keys/32][head/16] of 16 pairs of keys x 16 dimensions. Tiles are filled up with zeros. Places
// count from `start`, a multiple of 32 up to the first key that any query sees.
inline void bf16_attention(const Attention& at) {
  const int head = at.head, start = seen(at, at.first).from / 32 * 32, length = seen(at, at.last - 1).until - start;
  const size_t stride = at.stride;
  const uint16_t* q = static_cast<const uint16_t*>(at.q);
  const uint16_t* k = static_cast<const uint16_t*>(at.k) + start * stride;
  const uint16_t* v = static_cast<const uint16_t*>(at.v) + start * stride;
  const int wide = (head + 31) / 32 * 32, steps = wide / 32, padded = (length + 31) / 32 * 32;
  uint16_t* keys = reinterpret_cast<uint16_t*>(at.scratch);
  uint16_t* values = keys + static_cast<size_t>(padded) * wide;
  uint16_t* weights = values + static_cast<size_t>(padded) * wide;  // [16][padded]
  uint16_t* queries = weights + 16 * static_cast<size_t>(padded);   // [16][wide]
  float* scores = reinterpret_cast<float*>(queries + 16 * static_cast<size_t>(wide));  // [16][padded]
  alignas(64) float made[16 * 16];
  const float factor = (at.bias ? 1.0f : at.scale) * 1.44269504f;
  const bool sees_all = at.before >= at.length && at.after >= at.length;

  for (int key = 0; key < padded; key += 16)
    for (int step = 0; step < steps; ++step) {
      const int left = head - step * 32;
      const __mmask32 kept = left >= 32 ? ~0u : (1u << left) - 1;
      __m512i rows[16];
      for (int i = 0; i < 16; ++i)
        rows[i] = key + i < length ? _mm512_maskz_loadu_epi16(kept, k + (key + i) * stride + step * 32)
                                   : _mm512_setzero_si512();
      store_transposed(rows, keys + (key / 16 * steps + step) * 512);
    }
  for (int pair = 0; pair < padded / 2; ++pair)
    for (int column = 0; column < wide; column += 16) {
      const int left = head - column;
      const __mmask16 kept = left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1;
      __m256i low = _mm256_setzero_si256(), high = low;
      if (2 * pair < length) low = _mm256_maskz_loadu_epi16(kept, v + 2 * pair * stride + column);
      if (2 * pair + 1 < length) high = _mm256_maskz_loadu_epi16(kept, v + (2 * pair + 1) * stride + column);
      const __m512i both =
          _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm512_store_si512(values + ((pair / 16) * (wide / 16) + column / 16) * 512 + pair % 16 * 32, both);
    }

  for (int row = at.first; row < at.last; row += 16) {
    const int count = min(16, at.last - row);
    // These queries see keys from `low` on, up to `high`, which are multiples of 32.
    const int low = (seen(at, row).from - start) / 32 * 32;
    const int high = (seen(at, row + count - 1).until - start + 31) / 32 * 32;
    for (int i = 0; i < 16; ++i)
      for (int step = 0; step < steps; ++step) {
        const int left = head - step * 32;
        const __m512i line = i < count ? _mm512_maskz_loadu_epi16(left >= 32 ? ~0u : (1u << left) - 1,
                                                                  q + (row + i) * stride + step * 32)
                                       : _mm512_setzero_si512();
        _mm512_store_si512(queries + i * wide + step * 32, line);
      }
    for (int key = low; key < high; key += 32) {
      _tile_zero(0);
      _tile_zero(1);
      for (int step = 0; step < steps; ++step) {
        _tile_loadd(4, queries + step * 32, wide * 2);
        _tile_loadd(6, keys + (key / 16 * steps + step) * 512, 64);
        _tile_loadd(7, keys + ((key / 16 + 1) * steps + step) * 512, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, scores + key, padded * 4);
      _tile_stored(1, scores + key + 16, padded * 4);
    }
    float inverse[16];
    for (int i = 0; i < count; ++i) {
      float* s = scores + static_cast<size_t>(i) * padded;
      uint16_t* p = weights + static_cast<size_t>(i) * padded;
      const int from = sees_all ? 0 : seen(at, row + i).from - start;
      const int until = sees_all ? length : seen(at, row + i).until - start;
      for (int j = low; j < from; ++j) s[j] = -__builtin_inff();
      for (int j = until; j < high; ++j) s[j] = -__builtin_inff();
      if (at.bias) {
        const float* bias = at.bias + (row + i) * at.bias_stride + start;
        for (int j = from / 16 * 16; j < until; j += 16) {
          const __mmask16 kept = (j + 16 <= until ? 0xffff : static_cast<__mmask16>((1u << (until - j)) - 1)) &
                                 (j >= from ? 0xffff : static_cast<__mmask16>(0xffffu << (from - j)));
          const Floats b = (Floats)_mm512_maskz_loadu_ps(kept, bias + j);
          store(s + j, madd(load(s + j), all(at.scale), b));
        }
      }
      Floats most = load(s + low);
      for (int j = low + 16; j < high; j += 16) most = larger(most, load(s + j));
      const Floats shift = all(-max_of(most) * factor);
      Floats sum = all(0.0f);
      for (int j = low; j < high; j += 32) {
        const Floats left = power_of_two(madd(load(s + j), all(factor), shift));
        const Floats right = power_of_two(madd(load(s + j + 16), all(factor), shift));
        sum += left + right;
        _mm512_storeu_si512(p + j, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
      }
      inverse[i] = 1.0f / sum_of(sum);
    }
    for (int column = 0; column < wide; column += 32) {
      _tile_zero(0);
      _tile_zero(1);
      for (int key = low; key < high; key += 32) {
        _tile_loadd(4, weights + key, padded * 2);
        _tile_loadd(6, values + ((key / 32) * (wide / 16) + column / 16) * 512, 64);
        _tile_loadd(7, values + ((key / 32) * (wide / 16) + column / 16 + 1) * 512, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      for (int half = 0; half < 2 && column + half * 16 < head; ++half) {
        if (half == 0)
          _tile_stored(0, made, 64);
        else
          _tile_stored(1, made, 64);
        const int left = min(16, head - column - half * 16);
        const __mmask16 kept = static_cast<__mmask16>((1u << left) - 1);
        for (int i = 0; i < count; ++i)
          _mm512_mask_storeu_ps(at.out + (row + i) * at.out_stride + column + half * 16, kept,
                                _mm512_mul_ps(_mm512_load_ps(made + i * 16), _mm512_set1_ps(inverse[i])));
      }
    }
  }
}
}  // namespace amx

const Kernels* amx_kernels() {
  static const Kernels table = {"amx", true, amx::begin, amx::end, amx::gemm, amx::quantize, amx::norm,
                                amx::bf16_attention, amx::bf16_rotate, amx::gather};
  return &table;
}
}  // namespace tz
