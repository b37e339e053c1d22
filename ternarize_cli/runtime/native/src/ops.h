// Defines what all instruction sets compute in one way, on vectors as wide as their registers. This file is compiled once for
// each instruction set, in the namespace TZ_ISA.
//
// The file of an instruction set defines `template <int bits> struct Multiply` for digits of 2 and of 4 bits before it includes
// this file:
//     static constexpr int rows;                                   // rows at a time, a divisor of 16
//     static const uint8_t* prepare(const uint8_t* panel, int blocks, uint8_t* scratch);
//     static void run(const uint8_t* prepared, int blocks, const int8_t* row, const int8_t* next, int count, int32_t* c);
// `run` writes the sums of digits times activations, c[rows][kPanel]; only the first `count` rows are used. `next` is the row
// that the next call starts with: `run` may fetch it ahead, and must not read it.
#include "attention.h"
#include "dense.h"
#include "product.h"
#include "rows.h"
#include "training.h"
#include "vectors.h"

namespace tz {
namespace TZ_ISA {

// The functions of an instruction set whose attention is in float.
inline Kernels kernels(const char* name) {
  return {name, false, 64, [] {}, [] {}, gemm, quantize, norm, attention, rotate, gather, dense, round_weights, scale_gradients,
          round_activations};
}

}  // namespace TZ_ISA
}  // namespace tz
