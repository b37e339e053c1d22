// Defines what all parts of the runtime use: the layout of packed weights, and the table of functions that each
// instruction set provides.
//
// A linear has codes in {-1, 0, +1}, stored as digits 0, 1, 2 of two bits, or codes from -8 to 7, stored as digits 0 to 15 of
// four. The digits are multiplied, unsigned, by signed int8 activations, and a multiple of the sum of the activations is
// subtracted at the end: sum q*c = sum q*(c+z) - z * sum q, where z, the digit of code 0, is 1 or 8. So an instruction set
// needs only an unsigned-by-signed product, and no subtraction for each weight. What depends on the bits is a template, so
// that no loop asks for them.
//
// Layout. Outputs are divided into panels of 32, inputs into blocks of 64. A block of a panel is two tiles of 16 outputs.
// Expanded, a tile is the operand of an AMX or VNNI instruction: 16 rows r of 64 bytes, byte j of which belongs to input
// 4r + j%4 and output j/4. Packed, a byte holds n = 4 digits of two bits or n = 2 of four, lowest bits first: byte j of chunk c
// (64 bytes each, 16 / n chunks) holds byte j of the rows n*c .. n*c + n-1, so that a shift and a mask expand 64 bytes at a time.
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
constexpr int kAhead = 4096;  // codes are fetched so many bytes ahead: with few rows, they come from memory
constexpr int kRows = 32;    // rows (tokens) that are multiplied at a time

// The bytes of a packed tile, which is 64 inputs by 16 outputs.
TZ_INLINE constexpr int tile_bytes(int bits) { return 16 * 64 * bits / 8; }
// The digit of code 0.
TZ_INLINE constexpr int zero_digit(int bits) { return bits == 2 ? 1 : 8; }

extern "C" struct Linear {
  const uint8_t* codes;  // [panels][blocks][2][tile_bytes(bits)]
  const float* scale;    // [panels * kPanel], zeros beyond the last output
  const float* bias;     // [panels * kPanel], zeros beyond the last output
  int32_t inputs, outputs, blocks, panels;
  int32_t bits;  // of a digit: 2 or 4
};

// A linear whose weights are floats.
extern "C" struct Dense {
  const float* weights;  // [panels][inputs][kPanel], zeros beyond the last output
  const float* bias;     // [panels * kPanel], zeros beyond the last output
  int32_t inputs, outputs;
};

enum class Activation : int32_t {
  kGelu,       // x * (1 + erf(x / sqrt 2)) / 2
  kGeluTanh,   // x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
  kQuickGelu,  // x * sigmoid(1.702 x)
  kSilu,       // x * sigmoid(x)
  kRelu,       // max(x, 0)
};
constexpr int kActivations = 5;

// What is done with a product. `y` is the value that the reference backend computes: float(sum) * scale * t + bias.
// kActivate stands for five values, one for each activation of `Activation`: kActivate + a. So does kGate, for which a panel
// holds sixteen outputs that go through the activation, and then the sixteen that these are multiplied by.
enum class Then : int32_t {
  kSums,      // sums = the integer sum, without scales and bias
  kStore,     // out = y
  kAdd,       // out = y + residual
  kBf16,      // bf16 = bfloat16(y)
  kActivate,  // out = activation(y)
  kGate = kActivate + kActivations,  // out = activation(y) * the y sixteen outputs further; `out` has half as many columns
};

TZ_INLINE constexpr Then activated(Activation by) {
  return static_cast<Then>(static_cast<int32_t>(Then::kActivate) + static_cast<int32_t>(by));
}
TZ_INLINE constexpr Then gated(Activation by) {
  return static_cast<Then>(static_cast<int32_t>(Then::kGate) + static_cast<int32_t>(by));
}

// A norm over the values of a row.
extern "C" struct Norm {
  const float* gain;
  const float* bias;  // of a layer norm
  float eps;
  int32_t kind;  // one of the following; kNone: there is no norm, and the rest has no meaning
};
constexpr int32_t kNone = 0;
constexpr int32_t kLayerNorm = 1;  // (x - mean) / sqrt(variance + eps) * gain + bias
constexpr int32_t kRmsNorm = 2;    // x / sqrt(mean of x^2 + eps) * gain

// The attention of one head of one sequence, for the queries [first, last). Rows of queries, keys, values and outputs are
// tokens; the pointers point to the sequence's first token.
struct Attention {
  const void *q, *k, *v;  // `head` numbers a token, float or bfloat16
  size_t stride;          // elements from token to token, in all three
  int length, first, last, head;
  float scale;           // of the products of queries and keys
  int before, after;     // a query sees its own token, and so many tokens before and after it
  const float* bias;     // is added to the scaled product of query i and key j: bias[i * bias_stride + j]; null: nothing is
  ptrdiff_t bias_stride;
  float* out;
  size_t out_stride;
  uint8_t* scratch;  // attention_scratch bytes
};

// Where products are written.
struct Sink {
  Then then;
  float* out;
  uint16_t* bf16;
  const float* residual;
  size_t stride;                // elements from row to row in `out`, `bf16` and `sums`
  size_t residual_stride = 0;   // the same in `residual`
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
  // Rows in a block of the feed-forward. Each block expands the weights once more, and what it makes has to stay in the cache.
  int rows;
  void (*begin)();
  void (*end)();
  // Multiplies `rows` rows of activations by the panels [first, last) of a linear. `scratch` has gemm_scratch bytes.
  void (*gemm)(const Linear&, int first, int last, const Activations&, int rows, const Sink&, uint8_t* scratch);
  // Rounds the rows [first, last) of x, `stride` elements apart, to symmetric int8: t = max|x| / 127, q = round(x / t).
  void (*quantize)(const float* x, size_t stride, int first, int last, int width, const Activations& to);
  // Norms rows of x, `stride` elements apart, and writes them to `out`, to_stride apart; adds `residual`, which is laid out like
  // `out`, unless it is null. `out` may be x or the residual.
  void (*norm)(const float* x, size_t stride, int rows, int width, const Norm&, const float* residual, float* out,
               size_t to_stride);
  void (*attention)(const Attention&);
  // Norms `heads` heads of one token in place, each `head` numbers, float or bfloat16 as `bf16` says, and rotates the first
  // 2 * `half` of them: (a, b) = (a cos - b sin, b cos + a sin) for a in the first and b in the second half. Null cos: none.
  void (*rotate)(void* x, int heads, int head, const Norm&, const float* cos, const float* sin, int half);
  // Looks up rows of an int8 table with a scale for each row, and writes them to x, or adds them to x if `add`.
  void (*gather)(const int8_t* table, const float* scales, const int64_t* ids, int rows, int width, bool add, float* x);
  // Multiplies `rows` rows of x [rows][inputs] by the panels [first, last) of a dense linear: y [rows][outputs].
  void (*dense)(const Dense&, int first, int last, const float* x, int rows, float* y);
  // For training. Each works on the rows [first, last) of matrices with `width` columns, whose rows have a scale each; codes are
  // weights / scale, rounded to the nearest integer from `low` to `high`, and 0 where the scale is 0.
  // Writes codes * scale, as float, or as bfloat16 if `out` is null.
  void (*round_weights)(const float* weights, const float* scales, int low, int high, int first, int last, int width, float* out,
                        uint16_t* bf16);
  // Writes for each row the sum of its gradients times codes. Gradients are float; if `bf16` is not null, these are taken, and
  // written to `wide` as float.
  void (*scale_gradients)(const float* gradients, const uint16_t* bf16, const float* weights, const float* scales, int low,
                          int high, int first, int last, int width, float* out, float* wide);
  // Rounds rows to symmetric int8 as `quantize` does, always by division, and writes q * t, as float, or as bfloat16 if `out` is
  // null.
  void (*round_activations)(const float* x, int first, int last, int width, float* out, uint16_t* bf16);
};

// The bytes of scratch memory that `gemm` and `attention` need.
TZ_INLINE size_t gemm_scratch(int blocks) { return static_cast<size_t>(blocks) * 2048; }
size_t attention_scratch(int length, int head);

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();     // AVX2 and FMA
const Kernels* avxvnni_kernels();  // AVX2, FMA and AVX-VNNI, without AVX-512
const Kernels* vnni_kernels();     // AVX-512 with VNNI
const Kernels* vnnibf16_kernels();  // AVX-512 with VNNI and BF16
const Kernels* amx_kernels();      // AMX int8 and bfloat16
const Kernels* neon_kernels();     // Armv8.2 dot product

}  // namespace tz
