// Defines what all parts of the runtime use: the layout of packed weights, and the table of functions that each
// instruction set provides.
//
// A linear has codes in {-1, 0, +1}, stored as digits 0, 1, 2 of two bits. The digits are multiplied, unsigned, by signed
// int8 activations, and the sum of the activations is subtracted at the end: sum q*c = sum q*(c+1) - sum q. So an
// instruction set needs only an unsigned-by-signed product, and no subtraction for each weight.
//
// Layout. Outputs are divided into panels of 32, inputs into blocks of 64. A block of a panel is two tiles of 16 outputs. A
// tile is 256 bytes; expanded, it is the operand of an AMX or VNNI instruction: 16 rows r of 64 bytes, byte j of which
// belongs to input 4r + j%4 and output j/4. Packed, byte j of chunk c (64 bytes each) holds byte j of the rows 4c .. 4c+3,
// lowest bits first, so that a shift and a mask expand 64 bytes at a time.
//
// The file of an instruction set shares no inline function with any other file. Each such file is compiled with flags of its
// own, and the linker keeps only one copy of an inline function that several files define: a copy with AVX-512 in it would
// end the process on a processor without AVX-512. So these files take only types from the standard library, functions in
// ops.h get a namespace for each file, and functions that are shared here are always inlined (TZ_INLINE).
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
  const float* scale;    // [panels * kPanel], zeros beyond the last output
  const float* bias;     // [panels * kPanel], zeros beyond the last output
  int32_t inputs, outputs, blocks, panels;
};

// What is done with a product. `y` is the value that the reference backend computes: float(sum) * scale * t + bias.
enum class Then : int32_t {
  kSums,   // sums = the integer sum, without scales and bias
  kStore,  // out = y
  kGelu,   // out = gelu(y), defined by the error function, not by tanh
  kAdd,    // out = y + residual
  kBf16,   // bf16 = bfloat16(y)
};

// Where products are written.
struct Sink {
  Then then;
  float* out;
  uint16_t* bf16;
  const float* residual;
  size_t stride;  // elements from row to row in `out`, `bf16`, `residual` and `sums`
  int32_t* sums = nullptr;
};

// Activations, int8 with a scale for each row (token), in tiles like the weights: 16 rows of a block of 64 inputs lie
// together, a cache line for each row, so that a product reads memory in order.
struct Activations {
  int8_t* q;      // [rows / 16][blocks][16][64]; zeros beyond the last input, anything beyond the last row
  float* t;       // scale of each row
  int32_t* sums;  // sum of each row
  int blocks;

  TZ_INLINE int8_t* row(int i) const { return q + (static_cast<size_t>(i / 16) * blocks * 16 + i % 16) * kBlock; }
  // The activations from row i on; i must be a multiple of 16.
  TZ_INLINE Activations from(int i) const { return {row(i), t + i, sums + i, blocks}; }
  TZ_INLINE static size_t bytes(size_t rows, int blocks) { return (rows + kRows - 1) / kRows * kRows * blocks * kBlock; }
};

// The functions of an instruction set.
struct Kernels {
  const char* name;
  bool bf16;  // attention takes queries, keys and values as bfloat16, not as float
  void (*begin)();
  void (*end)();
  // Multiplies `rows` rows of activations by the panels [first, last) of a linear. `scratch` has gemm_scratch bytes.
  void (*gemm)(const Linear&, int first, int last, const Activations&, int rows, const Sink&, uint8_t* scratch);
  // Rounds the rows [first, last) of x [..][width] to symmetric int8: t = max|x| / 127, q = round(x / t).
  void (*quantize)(const float* x, int first, int last, int width, const Activations& to);
  void (*layer_norm)(const float* x, int rows, int width, const float* gain, const float* bias, float eps, float* out);
  // Computes the attention of one head of one sequence, for the queries [first, last). qkv points to the queries of the
  // sequence's first token; its keys and values lie `width` and 2 * `width` elements further.
  void (*attention)(const void* qkv, size_t stride, int width, int length, int first, int last, int head, float scale,
                    float* out, size_t out_stride, uint8_t* scratch);
  // Looks up rows of an int8 table with a scale for each row, and writes them to x, or adds them to x if `add`.
  void (*gather)(const int8_t* table, const float* scales, const int64_t* ids, int rows, int width, bool add, float* x);
};

// The bytes of scratch memory that `gemm` and `attention` need.
TZ_INLINE size_t gemm_scratch(int blocks) { return static_cast<size_t>(blocks) * 4096; }
size_t attention_scratch(int length, int head);

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();     // AVX2 and FMA
const Kernels* avxvnni_kernels();  // AVX2, FMA and AVX-VNNI, without AVX-512
const Kernels* vnni_kernels();     // AVX-512 with VNNI
const Kernels* amx_kernels();      // AMX int8 and bfloat16
const Kernels* neon_kernels();     // Armv8.2 dot product

}  // namespace tz
