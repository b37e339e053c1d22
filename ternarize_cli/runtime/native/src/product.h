// Products of int8 activations and packed weights, and what is done with their sums.
#pragma once
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

constexpr bool is_activated(Then then) { return then >= Then::kActivate && then < Then::kGate; }
constexpr bool is_gated(Then then) { return then >= Then::kGate; }
constexpr Activation activation_of(Then then) {
  return static_cast<Activation>(static_cast<int32_t>(then) - static_cast<int32_t>(is_gated(then) ? Then::kGate : Then::kActivate));
}

// Does what `then` says with up to a vector of outputs of one row.
template <Then then>
inline void put(const Sink& to, size_t row, size_t column, Ints sums, Floats y, int count) {
  const size_t place = row * to.stride + column;
  const bool whole = count >= kLanes;
  if constexpr (then == Then::kSums) {
    __builtin_memcpy(to.sums + place, &sums, min(count, kLanes) * sizeof(int32_t));
  } else if constexpr (then == Then::kBf16) {
    put_bf16(to.bf16 + place, y, count);
  } else {
    if constexpr (is_activated(then)) y = activation<activation_of(then)>(y);
    if constexpr (then == Then::kAdd) {
      const float* from = to.residual + row * to.residual_stride + column;
      y = y + (whole ? load(from) : load_some(from, count, 0.0f));
    }
    if (whole)
      store(to.out + place, y);
    else
      store_some(to.out + place, y, count);
  }
}

// Subtracts multiples of the sums of activations (native.h) from the rows [from, until) of a block of sums c[..][kPanel],
// applies scales and bias, and writes the rows to `to`. The block's first row belongs to row `first` of the activations.
template <Then then, int bits>
inline void finish(const int32_t* c, int from, int until, const Linear& w, int panel, const Activations& a, int first,
                   const Sink& to) {
  const int columns = w.outputs - panel * kPanel;
  constexpr int parts = kPanel / kLanes;
  Floats scales[parts], biases[parts];
  for (int part = 0; part < parts; ++part) {
    scales[part] = load(w.scale + panel * kPanel + part * kLanes);
    biases[part] = load(w.bias + panel * kPanel + part * kLanes);
  }
  const auto value = [&](int i, int part, Ints& sums) {
    sums = *reinterpret_cast<const Ints*>(c + i * kPanel + part * kLanes) - zero_digit(bits) * a.sums[first + i];
    Floats y = __builtin_convertvector(sums, Floats) * scales[part];
    y = y * a.t[first + i];
    return y + biases[part];
  };
  Ints sums;
  if constexpr (is_gated(then)) {
    constexpr int half = parts / 2;
    for (int i = from; i < until; ++i)
      for (int part = 0; part < half; ++part) {
        const Floats y = activation<activation_of(then)>(value(i, part, sums));
        store(to.out + (first + i) * to.stride + panel * (kPanel / 2) + part * kLanes, y * value(i, part + half, sums));
      }
    return;
  }
  for (int i = from; i < until; ++i)
    for (int part = 0; part < parts && part * kLanes < columns; ++part) {
      const Floats y = value(i, part, sums);
      const size_t column = static_cast<size_t>(panel) * kPanel + part * kLanes;
      if (columns >= kPanel)
        put<then>(to, first + i, column, sums, y, kLanes);
      else
        put<then>(to, first + i, column, sums, y, columns - part * kLanes);
    }
}

#ifndef TZ_OWN_GEMM
template <Then then, int bits>
inline void gemm_then(const Linear& w, int first, int last, const Activations& a, int rows, const Sink& to,
                      uint8_t* scratch) {
  using M = Multiply<bits>;
  alignas(64) int32_t c[M::rows * kPanel];
  for (int panel = first; panel < last; ++panel) {
    const uint8_t* codes = w.codes + static_cast<size_t>(panel) * w.blocks * 2 * tile_bytes(bits);
    const uint8_t* b = M::prepare(codes, w.blocks, scratch);
    for (int row = 0; row < rows; row += M::rows) {
      const int count = min(M::rows, rows - row);
      M::run(b, w.blocks, a.row(row), a.row(row + M::rows), count, c);
      finish<then, bits>(c, 0, count, w, panel, a, row, to);
    }
  }
}
#else
template <Then then, int bits>
inline void gemm_then(const Linear&, int first, int last, const Activations&, int rows, const Sink&, uint8_t* scratch);
#endif

template <int bits, int a>
inline void gemm_activated(const Linear& w, int first, int last, const Activations& x, int rows, const Sink& to,
                           uint8_t* scratch) {
  if constexpr (a < kActivations) {
    constexpr Activation by = static_cast<Activation>(a);
    if (to.then == activated(by)) return gemm_then<activated(by), bits>(w, first, last, x, rows, to, scratch);
    if (to.then == gated(by)) return gemm_then<gated(by), bits>(w, first, last, x, rows, to, scratch);
    gemm_activated<bits, a + 1>(w, first, last, x, rows, to, scratch);
  }
}

template <int bits>
inline void gemm_of(const Linear& w, int first, int last, const Activations& a, int rows, const Sink& to,
                    uint8_t* scratch) {
  switch (to.then) {
    case Then::kSums: return gemm_then<Then::kSums, bits>(w, first, last, a, rows, to, scratch);
    case Then::kStore: return gemm_then<Then::kStore, bits>(w, first, last, a, rows, to, scratch);
    case Then::kAdd: return gemm_then<Then::kAdd, bits>(w, first, last, a, rows, to, scratch);
    case Then::kBf16: return gemm_then<Then::kBf16, bits>(w, first, last, a, rows, to, scratch);
    default: gemm_activated<bits, 0>(w, first, last, a, rows, to, scratch);
  }
}

inline void gemm(const Linear& w, int first, int last, const Activations& a, int rows, const Sink& to,
                 uint8_t* scratch) {
  return (w.bits == 2 ? gemm_of<2> : gemm_of<4>)(w, first, last, a, rows, to, scratch);
}

}  // namespace TZ_ISA
}  // namespace tz
