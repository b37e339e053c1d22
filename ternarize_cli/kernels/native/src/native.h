// What the parts of the runtime share: the layout of packed weights, and the table of functions that each instruction
// set fills.
//
// A linear has codes in {-1, 0, +1}, kept as digits 0, 1, 2 in two bits. They are multiplied as they are, unsigned, by
// signed int8 activations, and the sum of the activations is taken off again: sum q*c = sum q*(c+1) - sum q. So
// every instruction set needs one unsigned-by-signed product and no subtraction for each weight.
//
// Layout. Outputs go in panels of 32, inputs in blocks of 64. A block of a panel is two tiles of 16 outputs, a tile is
// 256 bytes, and expanded it is the operand of an AMX or VNNI instruction: 16 rows r of 64 bytes, byte j of which belongs
// to input 4r + j%4 and output j/4. Packed, byte j of chunk c (64 bytes each) holds the rows 4c .. 4c+3, lowest bits
// first, so that a shift and a mask of 64 bytes at a time expand it.
//
// Files of instruction sets share no inline function with any other file. Each is compiled with flags of its own, the linker
// keeps one copy of an inline function that several files hold, and a copy with AVX-512 in it would end the process on a
// processor without. So they take nothing from the standard library but types; what is in ops.h has another name in each of
// them, and what is shared here is inlined always (TZ_INLINE).
#pragma once
#include <cstddef>
#include <cstdint>

#define TZ_INLINE inline __attribute__((always_inline))

namespace tz {

constexpr int kPanel = 32;   // outputs in a panel
constexpr int kBlock = 64;   // inputs in a block
constexpr int kRows = 32;    // rows (tokens) that are multiplied at a time
constexpr int kTile = 256;   // bytes of a packed tile: 64 inputs, 16 outputs

extern "C" struct Linear {
  const uint8_t* codes;  // [panels][blocks][2][kTile]
  const float* scale;    // [panels * kPanel], zeros behind the last output
  const float* bias;     // the same
  int32_t inputs, outputs, blocks, panels;
};

// Where a product goes. `y` is what the reference computes: float(sum) * scale * t + bias.
enum class Then : int32_t {
  kSums,   // sums = the integer alone
  kStore,  // out = y
  kGelu,   // out = gelu(y), with the error function
  kAdd,    // out = y + residual
  kBf16,   // bf16 = bfloat16(y)
};

struct Sink {
  Then then;
  float* out;
  uint16_t* bf16;
  const float* residual;
  size_t stride;  // elements from row to row, of all of these
  int32_t* sums = nullptr;
};

// Activations, int8 with a scale a row, in tiles like the weights: 16 rows of a block of 64 inputs lie together, a cache
// line each, so that what a product needs next is what comes next in memory.
struct Activations {
  int8_t* q;      // [rows / 16][blocks][16][64]; zeros behind the last input, anything behind the last row
  float* t;       // scale of each row
  int32_t* sums;  // sum of each row
  int blocks;

  TZ_INLINE int8_t* row(int i) const { return q + (static_cast<size_t>(i / 16) * blocks * 16 + i % 16) * kBlock; }
  // From a row on that is a multiple of 16.
  TZ_INLINE Activations from(int i) const { return {row(i), t + i, sums + i, blocks}; }
  TZ_INLINE static size_t bytes(size_t rows, int blocks) { return (rows + kRows - 1) / kRows * kRows * blocks * kBlock; }
};

// One instruction set.
struct Kernels {
  const char* name;
  bool bf16;  // attention takes queries, keys and values as bfloat16, not as float
  void (*begin)();
  void (*end)();
  // Panels [first, last) of a linear times `rows` activations. `scratch`: gemm_scratch bytes.
  void (*gemm)(const Linear&, int first, int last, const Activations&, int rows, const Sink&, uint8_t* scratch);
  // Symmetric int8 of rows [first, last): t = max|x| / 127, q = round(x / t). x: [..][width].
  void (*quantize)(const float* x, int first, int last, int width, const Activations& to);
  void (*layer_norm)(const float* x, int rows, int width, const float* gain, const float* bias, float eps, float* out);
  // One head of one sequence, for queries [first, last): qkv points at the first token's queries; keys and values stand
  // `width` and 2 * `width` elements further.
  void (*attention)(const void* qkv, size_t stride, int width, int length, int first, int last, int head, float scale,
                    float* out, size_t out_stride, uint8_t* scratch);
  // x = table rows of int8 with a scale each; `add` adds them to what is there.
  void (*gather)(const int8_t* table, const float* scales, const int64_t* ids, int rows, int width, bool add, float* x);
};

// Bytes of scratch that products and attention need.
TZ_INLINE size_t gemm_scratch(int blocks) { return static_cast<size_t>(blocks) * 4096; }
size_t attention_scratch(int length, int head);

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();     // AVX2 and FMA
const Kernels* avxvnni_kernels();  // the same with VNNI, without AVX-512
const Kernels* vnni_kernels();     // AVX-512 with VNNI
const Kernels* amx_kernels();      // AMX int8 and bfloat16
const Kernels* neon_kernels();     // Armv8.2 dot product

}  // namespace tz
